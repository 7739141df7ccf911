//! The writes of a worker's turn. With a ring many sockets are written to in one system call; few sockets, and all
//! without a ring, get one call each. The frames were queued before.

use std::cell::RefMut;
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

/// The report, once it was flushed, of an event that somebody follows.
#[derive(Debug)]
pub(super) struct TracedFlush {
    pub(super) trace: Trace,
    pub(super) app: AppId,
    pub(super) channel: ChannelName,
    /// Subscribers that were given it.
    pub(super) subscribers: u64,
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

    /// Writes what is queued, as far as the sockets take it. The rest waits for the connections' tasks.
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

/// Writes to all of them by the ring. The bytes that a socket did not take, and all if the ring fails, go the
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
    /// The bytes that the connection has to write: where it speaks TLS, once that has made records of them. None if
    /// there is nothing, or [`Connection::flush`] has to see to it.
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

    /// Notes what became of the write. The rest is tried once more, by which the runtime learns that
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
