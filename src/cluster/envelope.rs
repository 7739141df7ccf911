//! Messages between nodes: binary and versioned, with the WebSocket frame ready to be written. A header of fixed size,
//! then a body by kind. A layout never changes: anything new gets a new kind, which older nodes skip and count, so that
//! two versions work side by side. Secrets are never sent.

use std::fmt;

use bytes::{BufMut, Bytes};

pub use super::wire_reader::DIGITS;
pub use super::wire_reader::join_parts;
use super::wire_reader::{EnvelopeReader, put_short, put_socket, text};
use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// The newest version that this node writes. It reads any: see the rule above.
/// Raised with a new kind, never for another layout.
pub const VERSION: u8 = 2;

/// The version of the kinds that there were at first. Nodes of then know no others, and take a newer version
/// as the sign of one.
const FIRST_VERSION: u8 = 1;

/// Bytes of the header: version, kind, flags, the mark, and three numbers.
const HEADER: usize = 28;

/// The first byte, which tells an envelope from other data on the same topic.
const MARK: u8 = 0xfa;

/// The flag of what the sender's own subscribers have been given already.
const DELIVERED: u8 = 1;

/// The flag of client events, which are not replayed to reconnected clients. The bit between is the seal's.
const WHISPER: u8 = 4;

/// The flag of what a server that may have lost it has taken before.
const AGAIN: u8 = 8;

/// One message between nodes.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// The node that sent it.
    pub origin: u64,
    /// Counts what one node has published, so that what is sent again after a lost link is known again.
    /// 0: not counted, since its version says it all.
    pub serial: u64,
    /// The number that Redis gave it: the place in a log, or the version of a roster or a count. 0: none.
    pub version: u64,
    /// When it was sent; microseconds since 1970.
    pub sent: u64,
    /// The sender's own subscribers have it already.
    pub delivered: bool,
    /// A client event, which is not replayed.
    pub whisper: bool,
    /// A server that may have lost it since has taken it before.
    pub again: bool,
    /// The content, by kind.
    pub body: EnvelopeBody,
}

/// The content of an envelope.
#[derive(Clone, PartialEq, Debug)]
pub enum EnvelopeBody {
    /// For the subscribers of its topic. Its version is its place in the channel's log; 0: it is not logged.
    Event { except: Option<SocketId>, frame: Bytes },
    /// The same on a cache channel; `data` is the token of the data's JSON string.
    Cached { except: Option<SocketId>, frame: Bytes, data: Bytes },
    /// A user has joined the topic's channel.
    Joined { user: UserId, info: Box<str> },
    /// A user has left it.
    Left { user: UserId },
    /// The number of its subscribers over all nodes.
    Count { count: usize },
    /// Close every connection of a user. The version is as an event's. `waited` is how long before sending it was
    /// requested, in microseconds; connections made since then stay open.
    Terminate { waited: u64, app: AppId, user: UserId },
    /// A node's message to itself, which shows that its link still delivers.
    Probe,
    /// As [`Self::Terminate`], but so that clients reconnect at once.
    Reconnect { waited: u64, app: AppId, user: UserId },
    /// Withdraw channels from every connection of a user that was made before the request, and confirm the sender's
    /// `request` with [`Self::Done`].
    Withdraw { waited: u64, request: u64, app: AppId, user: UserId, channels: Vec<ChannelName> },
    /// The sender has done what the receiver requested as `request`.
    Done { request: u64, app: AppId },
    /// A client has reconnected to the sender: close its old connection, and hand its state over.
    TakeOver { request: u64, app: AppId, key: Box<str> },
    /// The reply to that, with the client's state.
    HandedOver { request: u64, app: AppId, record: Bytes },
    /// The trace of the event that the sender publishes next on the topic, recognised by its mark.
    Trace { mark: u64, app: AppId, trace: Box<str> },
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnvelopeError {
    /// Of a kind that a newer node knows.
    Newer(u8),
    /// Undecodable: some other program publishes on the topic.
    Garbage,
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer(kind) => write!(f, "kind {kind} is a newer version's"),
            Self::Garbage => f.write_str("not an envelope"),
        }
    }
}

/// Numbers of kinds are never used again.
const EVENT: u8 = 1;
/// An event of a cache channel, with its data.
const CACHED: u8 = 2;
/// A user joined a presence channel.
const JOINED: u8 = 3;
/// A user left a presence channel.
pub(super) const LEFT: u8 = 4;
/// The number of subscribers has changed.
const COUNT: u8 = 5;
/// Close a user's connections.
const TERMINATE: u8 = 6;
/// A node's message to itself, to test the subscribed connection.
const PROBE: u8 = 7;
/// Close a user's connections so that they reconnect.
const RECONNECT: u8 = 8;
/// Withdraw channels from a user.
const WITHDRAW: u8 = 9;
/// A request to all nodes is done on this one.
const DONE: u8 = 10;
/// A client has reconnected elsewhere: hand its state over.
const TAKE_OVER: u8 = 11;
/// A client's state, for the node that asked.
const HANDED_OVER: u8 = 12;
/// The trace of an event that follows or came before.
const TRACE: u8 = 13;

impl EnvelopeBody {
    /// The byte of the kind, and roughly how many bytes follow the version. The size is for one allocation, and
    /// need not be exact.
    fn kind_and_size(&self) -> (u8, usize) {
        match self {
            Self::Event { frame, .. } => (EVENT, 16 + frame.len()),
            Self::Cached { frame, data, .. } => (CACHED, 20 + frame.len() + data.len()),
            Self::Joined { .. } => (JOINED, 0),
            Self::Left { .. } => (LEFT, 0),
            Self::Count { .. } => (COUNT, 0),
            Self::Terminate { .. } => (TERMINATE, 0),
            Self::Probe => (PROBE, 0),
            Self::Reconnect { .. } => (RECONNECT, 0),
            Self::Withdraw { .. } => (WITHDRAW, 0),
            Self::Done { .. } => (DONE, 0),
            Self::TakeOver { .. } => (TAKE_OVER, 0),
            Self::HandedOver { .. } => (HANDED_OVER, 0),
            Self::Trace { .. } => (TRACE, 0),
        }
    }
}

impl Envelope {
    /// The bytes.
    /// A version is in decimal digits, because scripts in Redis put one in.
    pub fn encode(&self) -> Vec<u8> {
        let (mut head, rest) = self.encode_around_version();
        if !matches!(self.body, EnvelopeBody::Probe) {
            head.extend_from_slice(format!("{:0DIGITS$}", self.version).as_bytes());
        }
        head.extend_from_slice(&rest);
        head
    }

    /// The bytes before and behind the version, for the scripts that insert it. Only Redis knows the version.
    pub fn encode_around_version(&self) -> (Vec<u8>, Vec<u8>) {
        let (kind, size) = self.body.kind_and_size();
        let mut head = Vec::with_capacity(HEADER + DIGITS);
        // Older nodes refuse a version they do not know, and so only what they cannot read anyway has it.
        let version = if kind > PROBE { VERSION } else { FIRST_VERSION };
        let flag = |is: bool, flag: u8| u8::from(is) * flag;
        let flags =
            flag(self.delivered, DELIVERED) | flag(self.whisper, WHISPER) | flag(self.again, AGAIN);
        head.extend_from_slice(&[version, kind, flags, MARK]);
        head.put_u64(self.origin);
        head.put_u64(self.serial);
        head.put_u64(self.sent);
        let mut rest = Vec::with_capacity(size);
        match &self.body {
            EnvelopeBody::Event { except, frame, .. } => {
                put_socket(&mut rest, *except);
                rest.extend_from_slice(frame);
            }
            EnvelopeBody::Cached { except, frame, data, .. } => {
                put_socket(&mut rest, *except);
                put_short(&mut rest, frame);
                rest.extend_from_slice(data);
            }
            EnvelopeBody::Joined { user, info, .. } => {
                put_short(&mut rest, user.as_str().as_bytes());
                rest.extend_from_slice(info.as_bytes());
            }
            EnvelopeBody::Left { user, .. } => rest.extend_from_slice(user.as_str().as_bytes()),
            EnvelopeBody::Count { count, .. } => {
                rest.extend_from_slice(count.to_string().as_bytes());
            }
            EnvelopeBody::Terminate { waited, app, user, .. }
            | EnvelopeBody::Reconnect { waited, app, user, .. } => {
                rest.put_u64(*waited);
                put_short(&mut rest, app.as_str().as_bytes());
                rest.extend_from_slice(user.as_str().as_bytes());
            }
            EnvelopeBody::Withdraw { waited, request, app, user, channels, .. } => {
                rest.put_u64(*waited);
                rest.put_u64(*request);
                put_short(&mut rest, app.as_str().as_bytes());
                put_short(&mut rest, user.as_str().as_bytes());
                channels.iter().for_each(|name| put_short(&mut rest, name.as_str().as_bytes()));
            }
            EnvelopeBody::Done { request, app, .. } => {
                rest.put_u64(*request);
                rest.extend_from_slice(app.as_str().as_bytes());
            }
            EnvelopeBody::TakeOver { request: number, app, key: text, .. }
            | EnvelopeBody::Trace { mark: number, app, trace: text, .. } => {
                rest.put_u64(*number);
                put_short(&mut rest, app.as_str().as_bytes());
                rest.extend_from_slice(text.as_bytes());
            }
            EnvelopeBody::HandedOver { request, app, record, .. } => {
                rest.put_u64(*request);
                put_short(&mut rest, app.as_str().as_bytes());
                rest.extend_from_slice(record);
            }
            EnvelopeBody::Probe => {}
        }
        (head, rest)
    }

    /// Its version, or its place, becomes another, as where it was given under another clock.
    pub(super) fn map_version(&mut self, map: impl FnOnce(u64) -> u64) {
        if self.version > 0 {
            self.version = map(self.version);
        }
    }

    /// The unique id: sender and serial, in bytes 5 to 20.
    pub fn id_bytes(&self) -> [u8; 16] {
        (u128::from(self.origin) << 64 | u128::from(self.serial)).to_be_bytes()
    }

    /// Its place in the log of its channel, or in that of all nodes; `None` for what is in no log.
    pub fn log_place(&self) -> Option<u64> {
        // Presence and counts are in no log: the latest says it all.
        let is_logged = match &self.body {
            EnvelopeBody::Event { .. }
            | EnvelopeBody::Cached { .. }
            | EnvelopeBody::Terminate { .. }
            | EnvelopeBody::Reconnect { .. }
            | EnvelopeBody::Withdraw { .. } => true,
            EnvelopeBody::Joined { .. }
            | EnvelopeBody::Left { .. }
            | EnvelopeBody::Count { .. }
            | EnvelopeBody::Probe
            | EnvelopeBody::Done { .. }
            | EnvelopeBody::TakeOver { .. }
            | EnvelopeBody::HandedOver { .. }
            | EnvelopeBody::Trace { .. } => false,
        };
        (is_logged && self.version > 0).then_some(self.version)
    }

    /// Reads what [`Self::encode`] wrote. The frame is a part of `bytes`, not a copy, so that one
    /// allocation serves all subscribers.
    ///
    /// # Errors
    /// Another version's kind, which is counted, or garbage.
    pub fn decode(bytes: &Bytes) -> Result<Self, EnvelopeError> {
        let mut reader = EnvelopeReader(bytes.clone());
        let [version, kind, flags, mark] = reader.take_array().ok_or(EnvelopeError::Garbage)?;
        if version == 0 || mark != MARK {
            return Err(EnvelopeError::Garbage);
        }
        if !(EVENT..=TRACE).contains(&kind) {
            let newer = version > VERSION;
            return Err(if newer { EnvelopeError::Newer(kind) } else { EnvelopeError::Garbage });
        }
        reader.read_envelope(kind, flags).ok_or(EnvelopeError::Garbage)
    }
}

impl EnvelopeReader {
    /// All the names that are left.
    /// As [`ChannelName::of_node`] takes them, since limits may differ between nodes.
    fn take_channels(&mut self) -> Option<Vec<ChannelName>> {
        let mut names = Vec::new();
        while !self.0.is_empty() {
            names.push(ChannelName::of_node(text(&self.take_short_text()?)?).ok()?);
        }
        Some(names)
    }

    /// The head that all kinds share, then the kind's own fields; `None` where bytes are missing.
    fn read_envelope(&mut self, kind: u8, flags: u8) -> Option<Envelope> {
        let (origin, serial, sent) =
            (self.take_number()?, self.take_number()?, self.take_number()?);
        // A probe is never stored, so that nothing gives it a place.
        let version = if kind == PROBE { 0 } else { self.take_version()? };
        let body = self.read_body(kind)?;
        let [delivered, whisper, again] = [DELIVERED, WHISPER, AGAIN].map(|flag| flags & flag != 0);
        Some(Envelope { origin, serial, version, sent, delivered, whisper, again, body })
    }

    /// The last field of each kind takes what is left, and so needs no length.
    fn read_body(&mut self, kind: u8) -> Option<EnvelopeBody> {
        Some(match kind {
            EVENT => EnvelopeBody::Event { except: self.take_socket()?, frame: self.take_rest() },
            CACHED => EnvelopeBody::Cached {
                except: self.take_socket()?,
                frame: self.take_short_text()?,
                data: self.take_rest(),
            },
            JOINED => EnvelopeBody::Joined {
                user: UserId::parse(text(&self.take_short_text()?)?)?,
                info: text(&self.take_rest())?.into(),
            },
            LEFT => EnvelopeBody::Left { user: UserId::parse(text(&self.take_rest())?)? },
            COUNT => EnvelopeBody::Count { count: text(&self.take_rest())?.parse().ok()? },
            TERMINATE => EnvelopeBody::Terminate {
                waited: self.take_number()?,
                app: AppId::new(text(&self.take_short_text()?)?),
                user: UserId::parse(text(&self.take_rest())?)?,
            },
            RECONNECT => EnvelopeBody::Reconnect {
                waited: self.take_number()?,
                app: AppId::new(text(&self.take_short_text()?)?),
                user: UserId::parse(text(&self.take_rest())?)?,
            },
            WITHDRAW => EnvelopeBody::Withdraw {
                waited: self.take_number()?,
                request: self.take_number()?,
                app: AppId::new(text(&self.take_short_text()?)?),
                user: UserId::parse(text(&self.take_short_text()?)?)?,
                channels: self.take_channels()?,
            },
            DONE => EnvelopeBody::Done {
                request: self.take_number()?,
                app: AppId::new(text(&self.take_rest())?),
            },
            TAKE_OVER => EnvelopeBody::TakeOver {
                request: self.take_number()?,
                app: AppId::new(text(&self.take_short_text()?)?),
                key: text(&self.take_rest())?.into(),
            },
            HANDED_OVER => EnvelopeBody::HandedOver {
                request: self.take_number()?,
                app: AppId::new(text(&self.take_short_text()?)?),
                record: self.take_rest(),
            },
            TRACE => EnvelopeBody::Trace {
                mark: self.take_number()?,
                app: AppId::new(text(&self.take_short_text()?)?),
                trace: text(&self.take_rest())?.into(),
            },
            _ => EnvelopeBody::Probe,
        })
    }
}

#[cfg(test)]
mod tests;
