//! The floor: the least that a server of this protocol can do for a delivery on the machine it runs on.
//! One thread, one poll, frames built once; no signature is checked and no JSON parsed, nothing is counted
//! or limited. Not a server: the yardstick that one is held against in the same minutes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;

use clap::Args;
use fanfare::hub::ring::{Ring, RingPayload, RingWrite};
use memchr::memmem;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;

use crate::frames::{self, Header};
use crate::wire::Wire;

const LISTENER: Token = Token(usize::MAX);

/// Pieces that one vectored write takes.
const PIECES: usize = 512;

#[derive(Args, Clone, Debug)]
pub(crate) struct Floor {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:7000")]
    listen: SocketAddr,
    /// Write all that one turn brings to a socket at once, instead of each frame by itself
    #[arg(long)]
    batch: bool,
    /// Hand all sockets of a turn to the kernel in one call (io_uring), with all that the turn brings to each at once
    #[arg(long, conflicts_with = "batch")]
    uring: bool,
}

#[derive(Debug)]
struct Conn {
    wire: Wire,
    upgraded: bool,
    channels: Vec<String>,
    /// Frames of this turn that wait to be written, as places in the turn's list.
    pieces: Vec<usize>,
}

/// A frame for everybody in a channel but one.
#[derive(Debug)]
struct Delivery {
    channel: String,
    except: usize,
    frame: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    conns: Slab<Conn>,
    channels: HashMap<String, Vec<usize>>,
    /// What this turn has brought.
    turn: Vec<Delivery>,
    /// Where sockets are written to in one call.
    ring: Option<Ring>,
}

impl Floor {
    /// Runs until it is ended from outside.
    pub(crate) fn run(&self) -> io::Result<()> {
        let mut poll = Poll::new()?;
        let mut listener = TcpListener::bind(self.listen)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 64 << 10];
        let mut state = State::default();
        if self.uring {
            state.ring = Some(Ring::new()?);
        }
        loop {
            match poll.poll(&mut events, None) {
                // Somebody looks at it: a profiler or a debugger.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in events.iter() {
                let token = event.token();
                if token == LISTENER {
                    state.accept(&listener, poll.registry())?;
                } else if state.serve(token.0, &mut scratch).is_err() {
                    state.forget(token.0);
                }
            }
            if self.batch || self.uring {
                state.deliver_joined()?;
            } else {
                state.deliver_each();
            }
        }
    }
}

impl State {
    fn accept(&mut self, listener: &TcpListener, registry: &Registry) -> io::Result<()> {
        while let Ok((stream, _)) = listener.accept() {
            let entry = self.conns.vacant_entry();
            let wire = Wire::of(stream, registry, Token(entry.key()))?;
            entry.insert(Conn { wire, upgraded: false, channels: vec![], pieces: vec![] });
        }
        Ok(())
    }

    fn serve(&mut self, key: usize, scratch: &mut Vec<u8>) -> io::Result<()> {
        let Self { conns, channels, turn, .. } = self;
        let Some(conn) = conns.get_mut(key) else { return Ok(()) };
        let Conn { wire, upgraded, channels: own, .. } = conn;
        wire.flush()?;
        wire.read(scratch, |wire, bytes| {
            let mut taken = 0;
            if !*upgraded {
                taken = answer(wire, bytes, key, upgraded, turn)?;
            }
            while *upgraded && let Some(header) = Header::parse(&bytes[taken..]) {
                let Some(frame) = bytes.get_mut(taken..taken + header.total()) else { break };
                taken += header.total();
                if header.opcode == frames::CLOSE {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let (head, payload) = frame.split_at_mut(header.len);
                if let Some(mask) = head.last_chunk() {
                    frames::unmask(*mask, payload);
                }
                let Some(channel) = field(payload, b"\"channel\":\"") else { continue };
                let channel = String::from_utf8_lossy(channel).into_owned();
                let mut frame = Vec::new();
                if memmem::find(payload, b"pusher:subscribe").is_some() {
                    let text = format!(
                        r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{channel}","data":"{{}}"}}"#
                    );
                    frames::push_text(&mut frame, text.as_bytes());
                    wire.send(&frame)?;
                    own.push(channel.clone());
                    channels.entry(channel).or_default().push(key);
                } else {
                    frames::push_text(&mut frame, payload);
                    turn.push(Delivery { channel, except: key, frame });
                }
            }
            Ok(taken)
        })
    }

    fn forget(&mut self, key: usize) {
        let Some(conn) = self.conns.try_remove(key) else { return };
        for channel in conn.channels {
            if let Some(members) = self.channels.get_mut(&channel) {
                members.retain(|member| *member != key);
            }
        }
    }

    fn deliver_each(&mut self) {
        for Delivery { channel, except, frame } in self.turn.drain(..) {
            for key in self.channels.get(&channel).into_iter().flatten() {
                if *key != except
                    && let Some(conn) = self.conns.get_mut(*key)
                {
                    // A broken socket is found by its own read.
                    let _ = conn.wire.send(&frame);
                }
            }
        }
    }

    fn deliver_joined(&mut self) -> io::Result<()> {
        // What follows each other on one channel for everybody there is one piece for all of them.
        self.turn.dedup_by(|next, last| {
            let joins = next.except == usize::MAX
                && last.except == usize::MAX
                && next.channel == last.channel;
            if joins {
                last.frame.append(&mut next.frame);
            }
            joins
        });
        let mut touched = Vec::new();
        for (place, delivery) in self.turn.iter().enumerate() {
            for key in self.channels.get(&delivery.channel).into_iter().flatten() {
                if *key != delivery.except
                    && let Some(conn) = self.conns.get_mut(*key)
                {
                    if conn.pieces.is_empty() {
                        touched.push(*key);
                    }
                    conn.pieces.push(place);
                }
            }
        }
        match self.ring.take() {
            Some(mut ring) => {
                self.submit(&touched, &mut ring)?;
                self.ring = Some(ring);
            }
            None => self.write_each(&touched),
        }
        self.turn.clear();
        Ok(())
    }

    /// A call for each socket.
    fn write_each(&mut self, touched: &[usize]) {
        for key in touched {
            let Some(conn) = self.conns.get_mut(*key) else { continue };
            // A broken socket is found by its own read.
            if let [only] = conn.pieces[..] {
                let _ = conn.wire.send(&self.turn[only].frame);
            } else {
                for some in conn.pieces.chunks(PIECES) {
                    let slices: Vec<_> =
                        some.iter().map(|place| IoSlice::new(&self.turn[*place].frame)).collect();
                    let _ = conn.wire.send_all(&slices);
                }
            }
            conn.pieces.clear();
        }
    }

    /// One call for as many sockets as the ring takes.
    fn submit(&mut self, touched: &[usize], ring: &mut Ring) -> io::Result<()> {
        // What is one piece is sent from where it is.
        let texts: Vec<_> = touched
            .iter()
            .map(|key| match self.conns[*key].pieces[..] {
                [only] => Cow::Borrowed(&self.turn[only].frame[..]),
                ref several => {
                    let frames = several.iter().map(|place| &self.turn[*place].frame[..]);
                    Cow::Owned(frames.collect::<Vec<_>>().concat())
                }
            })
            .collect();
        // Those that wait for a reader get in line behind what they have.
        let (waiting, ready): (Vec<_>, Vec<_>) =
            touched.iter().zip(&texts).partition(|(key, _)| self.conns[**key].wire.is_blocked());
        let sends: Vec<_> = ready
            .iter()
            .map(|(key, text)| RingWrite {
                socket: self.conns[**key].wire.as_fd(),
                bytes: RingPayload::One(text),
            })
            .collect();
        ring.send_all(&sends)?;
        drop(sends);
        for ((key, text), result) in ready.into_iter().zip(ring.write_results()) {
            // A broken socket is found by its own read.
            let written = result.unwrap_or(0);
            self.conns[*key].wire.keep(&text[written..]);
        }
        for (key, text) in waiting {
            self.conns[*key].wire.keep(text);
        }
        touched.iter().for_each(|key| self.conns[*key].pieces.clear());
        Ok(())
    }
}

/// Answers the HTTP requests in `bytes`, the last of which may be an upgrade; how much was whole.
fn answer(
    wire: &mut Wire,
    bytes: &[u8],
    key: usize,
    upgraded: &mut bool,
    turn: &mut Vec<Delivery>,
) -> io::Result<usize> {
    let mut taken = 0;
    while let Some(head_len) = memmem::find(&bytes[taken..], b"\r\n\r\n") {
        let head = &bytes[taken..taken + head_len];
        let body = taken + head_len + 4;
        if head.starts_with(b"GET /app/") {
            let text = format!(
                r#"{{"event":"pusher:connection_established","data":"{{\"socket_id\":\"1.{key}\",\"activity_timeout\":30}}"}}"#
            );
            // The answer to the nonce of the RFC's example, which is what the generator sends.
            let mut hello =
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: \
                Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                    .to_vec();
            frames::push_text(&mut hello, text.as_bytes());
            wire.send(&hello)?;
            *upgraded = true;
            return Ok(body);
        }
        let Some(body) = bytes.get(body..body + content_length(head)) else { break };
        publish(body, turn);
        wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        )?;
        taken += head_len + 4 + body.len();
    }
    Ok(taken)
}

/// The generator's own spelling is the only one looked for.
fn content_length(head: &[u8]) -> usize {
    let digits = memmem::find(head, b"Content-Length: ").map(|at| &head[at + 16..]);
    let digits = digits.into_iter().flatten().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0'))
}

/// Makes a frame of every event in the body, which is one event or a batch.
fn publish(mut body: &[u8], turn: &mut Vec<Delivery>) {
    while let Some(channel) = field(body, b"\"channel\":\"")
        && let Some(data) = field(body, b"\"data\":\"")
    {
        let channel = String::from_utf8_lossy(channel).into_owned();
        let mut text = format!(r#"{{"event":"load","channel":"{channel}","data":""#).into_bytes();
        text.extend_from_slice(data);
        text.extend_from_slice(b"\"}");
        let mut frame = Vec::with_capacity(text.len() + 10);
        frames::push_text(&mut frame, &text);
        turn.push(Delivery { channel, except: usize::MAX, frame });
        let end = data.as_ptr_range().end.addr() - body.as_ptr().addr();
        body = &body[end..];
    }
}

/// The text after `name` and before its closing quote, as it is escaped.
fn field<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let start = memmem::find(text, name)? + name.len();
    let rest = &text[start..];
    let mut escaped = false;
    let end = rest.iter().position(|byte| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    })?;
    Some(&rest[..end])
}
