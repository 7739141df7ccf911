//! The writes of a worker's turn. With a ring many sockets are written to in one system call; few sockets, and all
//! without a ring, get one call each. What is queued for whom was decided before.

use std::cell::RefMut;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use tracing::warn;

use super::connection::Connection;
use super::line_batch::LineBatch;
use super::outbox::Outbox;
use super::ring::{MAX_SENDS, Ring, RingPayload, RingWrite};
use super::stream::Stream;
use crate::app::AppId;
use crate::metrics::TurnTimes;
use crate::protocol::channel::ChannelName;
use crate::protocol::trace::Trace;

/// Sockets below which a call for each costs less than the ring's, even where calls are cheap.
const MIN_SENDS: usize = 8;

/// Sockets, and bytes queued for them, that are flushed before others on the worker get a turn.
/// A socket costs a system call and its bytes are copied, so these bound how long a turn stands still: 4 MiB take a few
/// milliseconds, and are 10 KiB for each of 256 sockets and more.
const FLUSHES: usize = 256;
const FLUSH_BYTES: usize = 4 << 20;

/// What is said, once it was flushed, of an event that somebody follows.
#[derive(Debug)]
pub(super) struct TracedFlush {
    pub(super) trace: Trace,
    pub(super) app: AppId,
    pub(super) channel: ChannelName,
    /// Subscribers that were given it.
    pub(super) subscribers: u64,
}

/// Connections that are flushed in more than one turn. Those with little do not wait behind those with much: who was
/// sent a short frame in the same moment in which a room was sent a large one would hear it last of all.
#[derive(Debug)]
pub(super) struct FlushLine<T> {
    light: VecDeque<T>,
    heavy: VecDeque<T>,
}

impl<T> Default for FlushLine<T> {
    fn default() -> Self {
        Self { light: VecDeque::new(), heavy: VecDeque::new() }
    }
}

impl<T> FlushLine<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.light.is_empty() && self.heavy.is_empty()
    }

    /// Takes in what a turn cannot flush at once; that stays in `touched` if it can. `queued` are the bytes for one.
    pub(super) fn take_if_much(&mut self, touched: &mut Vec<T>, queued: impl Fn(&T) -> usize) {
        if part_by_bytes(touched.iter().map(&queued)) == touched.len() {
            return;
        }
        for one in touched.drain(..) {
            let is_light = queued(&one) <= FLUSH_BYTES / FLUSHES;
            if is_light { &mut self.light } else { &mut self.heavy }.push_back(one);
        }
    }

    /// Gives `part` what a turn can flush, of both.
    pub(super) fn give_part(&mut self, part: &mut Vec<T>, queued: impl Fn(&T) -> usize) {
        part.extend(self.light.drain(..self.light.len().min(FLUSHES)));
        let heavy = part_by_bytes(self.heavy.iter().map(queued));
        part.extend(self.heavy.drain(..heavy));
    }
}

/// How many from the front one turn flushes: at least one, and the one with which the bytes are too many is the last.
fn part_by_bytes(queued: impl Iterator<Item = usize>) -> usize {
    let fits = |sum: &mut usize, bytes| {
        let before = *sum;
        *sum += bytes;
        (before < FLUSH_BYTES).then_some(())
    };
    queued.take(FLUSHES).scan(0, fits).count()
}

/// Flushes connections for one worker.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    /// None where io_uring is off or not to be had.
    ring: Option<Ring>,
}

impl Flusher {
    pub(super) fn new(ring: Ring) -> Self {
        Self { ring: Some(ring) }
    }

    /// Writes what is queued, as far as the sockets take it. What is left waits for the connections' tasks.
    pub(super) fn flush_all(&mut self, touched: &mut Vec<Rc<Connection>>, turns: &TurnTimes) {
        for some in touched.chunks(MAX_SENDS) {
            match &mut self.ring {
                Some(ring) if some.len() >= MIN_SENDS => {
                    if let Err(error) = flush_together(ring, some, turns) {
                        warn!(%error, "io_uring failed; from now on each socket is written to by itself");
                        self.ring = None;
                        turns.ring.set(0);
                    }
                }
                _ => some.iter().for_each(|connection| flush_alone(connection)),
            }
        }
        touched.clear();
    }
}

/// By a system call of its own.
fn flush_alone(connection: &Connection) {
    connection.clear_dirty();
    connection.flush();
}

/// Writes to all of them by the ring. What a socket did not take, and all of it if the ring fails, goes the
/// way of one call a socket, so that both ways end alike.
fn flush_together(ring: &mut Ring, some: &[Rc<Connection>], turns: &TurnTimes) -> io::Result<()> {
    let mut lent = Vec::with_capacity(some.len());
    for connection in some {
        connection.clear_dirty();
        match LentOutbox::lend_from(connection) {
            Some(one) => lent.push(one),
            None => connection.flush(),
        }
    }
    let sends: Vec<RingWrite<'_>> = lent.iter().filter_map(LentOutbox::outgoing).collect();
    turns.submissions.add(1);
    turns.submitted_writes.add(sends.len() as u64);
    let sent = ring.send_all(&sends);
    drop(sends);
    for (one, answer) in lent.into_iter().zip(ring.write_results()) {
        one.settle_write(answer);
    }
    sent
}

/// A connection's outbox and stream, for a write that is made together with others.
struct LentOutbox<'a> {
    connection: &'a Connection,
    outbox: RefMut<'a, Outbox>,
    stream: RefMut<'a, Stream>,
    /// Where it has no WebSocket, what is queued as lines.
    lines: Option<LineBatch>,
}

impl<'a> LentOutbox<'a> {
    /// What the connection has to write: where it speaks TLS, once that has made records of it. None if there
    /// is nothing, or [`Connection::flush`] has to see to it.
    fn lend_from(connection: &'a Connection) -> Option<Self> {
        if connection.blocked.get() {
            return None;
        }
        let (mut outbox, mut stream) =
            (connection.outbox.borrow_mut(), connection.stream.borrow_mut());
        if stream.socket().is_none() || (outbox.is_empty() && !stream.is_holding()) {
            return None;
        }
        if stream.is_tls() {
            let taken = stream.encrypt_outbox(&outbox).ok()?;
            connection.note_write(&mut outbox, Ok(taken));
        }
        let lines = match &mut *stream {
            Stream::Http(stream) => stream.begin_lines(&outbox),
            _ => None,
        };
        Some(Self { connection, outbox, stream, lines })
    }

    /// Never none: what has no socket is not lent.
    fn outgoing(&self) -> Option<RingWrite<'_>> {
        let queued = self.lines.as_ref().map_or(&*self.outbox, |lines| &lines.bytes);
        let bytes =
            self.stream.pending_records().map_or(RingPayload::Queued(queued), RingPayload::One);
        Some(RingWrite { socket: self.stream.socket()?, bytes })
    }

    /// Notes what became of the write. Whatever is left is tried once more, by which the runtime learns that
    /// the socket is full.
    fn settle_write(mut self, answer: io::Result<usize>) {
        match (answer, &mut *self.stream, &self.lines) {
            (Ok(written), Stream::Tls(_), _) => self.stream.forget_encrypted(written),
            (Ok(written), Stream::Http(stream), Some(lines)) => {
                let said = stream.note_lines(lines, written);
                self.connection.note_write(&mut self.outbox, Ok(said));
            }
            (answer, ..) => {
                self.connection.note_write(&mut self.outbox, answer);
            }
        }
        let is_written = self.outbox.is_empty() && !self.stream.is_holding();
        let connection = self.connection;
        drop((self.outbox, self.stream));
        if !is_written {
            connection.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_flushes_so_many_sockets_or_bytes() {
        let part = |sockets, bytes| part_by_bytes(std::iter::repeat_n(bytes, sockets));
        assert_eq!((part(0, 1), part(7, 100), part(10_000, 100)), (0, 7, FLUSHES));
        assert_eq!(part(10_000, 16 << 10), FLUSHES);
        assert_eq!(part(2_000, 100 << 10), 41);
        assert_eq!(part(2, 64 << 20), 1, "it is not cut");
    }

    #[test]
    fn a_short_frame_waited_behind_a_large_one_for_a_room() {
        let (mut line, mut part) = (FlushLine::default(), Vec::new());
        let mut touched = vec![100 << 10; 500];
        touched.extend([7; 16]);
        line.take_if_much(&mut touched, |bytes| *bytes);
        assert!(touched.is_empty());
        line.give_part(&mut part, |bytes| *bytes);
        assert_eq!(part.iter().filter(|bytes| **bytes == 7).count(), 16);
        assert_eq!(part.len(), 16 + 41, "and those of the room go on meanwhile");
        // What is little altogether is flushed at once.
        touched.extend([7; FLUSHES]);
        line.take_if_much(&mut touched, |bytes| *bytes);
        assert_eq!(touched.len(), FLUSHES);
        let mut parts = 1;
        while !line.is_empty() {
            line.give_part(&mut part, |bytes| *bytes);
            parts += 1;
        }
        assert_eq!((part.len(), parts), (516, 13));
    }
}
