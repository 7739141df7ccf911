//! One subscriber: connects, upgrades, subscribes to what it is told, and from then on hands over the text
//! of every message. All of it by events, so that any number of them can be on their way at once. Without WebSockets
//! the bytes are those of `streaming.rs`, and all else is the same.

use std::io;
use std::net::SocketAddr;

use memchr::memmem;
use mio::{Registry, Token};
use serde_json::Value;

use crate::frames::{self, Header};
use crate::inflate::Inflate;
use crate::streaming::{HttpSession, WebhookQueue};
use crate::target::{Target, Transport};
use crate::wire::Wire;

/// A WebSocket connection of a Pusher client.
#[derive(Debug)]
pub(crate) struct Client {
    wire: Wire,
    state: State,
    /// Channels it subscribes to.
    channels: Vec<String>,
    /// The number of whom it is in presence channels.
    user: usize,
    socket_id: String,
    /// If it has no WebSocket.
    session: Option<HttpSession>,
}

/// What a client was told, and the bytes that it took on the wire.
pub(crate) type Told<'a> = (&'a [u8], usize);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Upgrading,
    Upgraded,
    /// So many answers are due.
    Subscribing(usize),
    Ready,
}

impl Client {
    /// Begins a connection that will be subscribed to `channels`.
    pub(crate) fn connect(
        target: &Target,
        address: SocketAddr,
        (registry, token): (&Registry, Token),
        (user, channels): (usize, Vec<String>),
    ) -> io::Result<Self> {
        let mut wire = Wire::connect(address, registry, token)?;
        if target.transport == Transport::Streaming {
            let mut session = HttpSession::new(target, address, token.0);
            wire.send(session.receive().as_bytes())?;
            let (state, socket_id) = (State::Upgraded, String::new());
            return Ok(Self { wire, state, channels, user, socket_id, session: Some(session) });
        }
        let offer =
            if target.compress { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        // The nonce is the RFC's own example.
        let request = format!(
            "GET /app/{}?protocol=7&client=fanfare-load&version=1.0&flash=false HTTP/1.1\r\n\
             Host: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n",
            target.key,
        );
        wire.send(request.as_bytes())?;
        let (state, socket_id) = (State::Upgrading, String::new());
        Ok(Self { wire, state, channels, user, socket_id, session: None })
    }

    /// Whether everything it subscribes to has been confirmed.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Bytes that the server has not taken.
    pub(crate) fn is_blocked(&self) -> bool {
        self.wire.is_blocked()
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.wire.flush()
    }

    /// Sends a text message.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        say(&mut self.wire, text)
    }

    /// Reads what there is: what belongs to the setting up is dealt with here, the rest is for `hear`.
    pub(crate) fn read(
        &mut self,
        (target, place): (&Target, (&Registry, Token)),
        (scratch, inflate): (&mut Vec<u8>, &mut Inflate),
        mut hear: impl FnMut(Told<'_>),
    ) -> io::Result<()> {
        if self.session.is_some() {
            return self.read_lines((target, place), scratch, hear);
        }
        let Self { wire, state, channels, user, socket_id, .. } = self;
        wire.read(scratch, |wire, bytes| {
            let mut taken = 0;
            if *state == State::Upgrading {
                let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(0) };
                if !bytes.starts_with(b"HTTP/1.1 101") {
                    return Err(refused("no upgrade", bytes));
                }
                taken = end + 4;
                *state = State::Upgraded;
            }
            while let Some(header) = Header::parse(&bytes[taken..]) {
                let end = taken + header.total();
                let Some(payload) = bytes.get(taken + header.len..end) else { break };
                taken = end;
                let payload = if header.deflated { inflate.text(payload)? } else { payload };
                match header.opcode {
                    frames::TEXT if *state == State::Ready => hear((payload, header.total())),
                    frames::TEXT => {
                        let step = Step { target, channels, user: *user, socket_id };
                        *state = step.take(*state, payload, |text| say(wire, text))?;
                    }
                    frames::PING => {
                        let mut pong = Vec::new();
                        frames::push_masked(&mut pong, frames::PONG, payload);
                        wire.send(&pong)?;
                    }
                    frames::CLOSE => return Err(refused("closed", payload)),
                    _ => {}
                }
            }
            Ok(taken)
        })
    }

    /// The same without a WebSocket. Where an answer is at its end, asks for the next one.
    fn read_lines(
        &mut self,
        (target, (registry, token)): (&Target, (&Registry, Token)),
        scratch: &mut Vec<u8>,
        mut hear: impl FnMut(Told<'_>),
    ) -> io::Result<()> {
        let Self { wire, state, channels, user, socket_id, session } = self;
        let Some(session) = session else { return Ok(()) };
        let mut is_ended = false;
        let read = wire.read(scratch, |_, bytes| {
            let mut taken = 0;
            while let Some((line, used)) = session.next(&bytes[taken..])? {
                taken += used;
                match line {
                    WebhookQueue::Message(text) if *state == State::Ready => hear((text, used)),
                    WebhookQueue::Message(text) => {
                        let texts: Vec<String> = serde_json::from_slice(text)?;
                        for text in texts {
                            let step = Step { target, channels, user: *user, socket_id };
                            *state =
                                step.take(*state, text.as_bytes(), |text| session.say(&[text]))?;
                        }
                    }
                    WebhookQueue::Heartbeat => session.say(&[])?,
                    WebhookQueue::Closed(line) => return Err(refused("closed", line)),
                    WebhookQueue::End => is_ended = true,
                    WebhookQueue::Other => {}
                }
            }
            Ok(taken)
        });
        // The connection may end right behind the answer.
        if !is_ended || !session.is_full() {
            return read;
        }
        *wire = Wire::connect(session.address(), registry, token)?;
        wire.send(session.receive().as_bytes())
    }
}

/// One message of the setting up.
struct Step<'a> {
    target: &'a Target,
    channels: &'a [String],
    user: usize,
    socket_id: &'a mut String,
}

impl Step<'_> {
    fn take(
        self,
        state: State,
        text: &[u8],
        mut say: impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<State> {
        let has = |word: &str| memmem::find(text, word.as_bytes()).is_some();
        match state {
            State::Upgraded if has("pusher:connection_established") => {
                *self.socket_id = socket_id(text).ok_or_else(|| refused("no socket id", text))?;
                for channel in self.channels {
                    let request = self.target.subscribe(self.socket_id, channel, self.user);
                    say(&request)?;
                }
                Ok(match self.channels.len() {
                    0 => State::Ready,
                    due => State::Subscribing(due),
                })
            }
            State::Subscribing(due) if has("subscription_succeeded") => {
                Ok(if due == 1 { State::Ready } else { State::Subscribing(due - 1) })
            }
            _ if has("pusher:error") || has("subscription_error") => Err(refused("error", text)),
            state => Ok(state),
        }
    }
}

fn say(wire: &mut Wire, text: &str) -> io::Result<()> {
    let mut frame = Vec::with_capacity(text.len() + 14);
    frames::push_masked(&mut frame, frames::TEXT, text.as_bytes());
    wire.send(&frame)
}

fn socket_id(established: &[u8]) -> Option<String> {
    let message: Value = serde_json::from_slice(established).ok()?;
    let data: Value = serde_json::from_str(message.get("data")?.as_str()?).ok()?;
    Some(data.get("socket_id")?.as_str()?.to_owned())
}

fn refused(what: &str, bytes: &[u8]) -> io::Error {
    let said = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
    io::Error::other(format!("{what}: {}", said.trim()))
}
