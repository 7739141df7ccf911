//! Encoding of what a process sends to its successor over a stream: first the state of all resumable clients, then
//! requests that still reach the old process. Both run on one machine and mostly are of one version; an unknown message
//! ends the stream.

use std::io::{self, Read};

use bytes::{BufMut as _, Bytes};
use smallvec::SmallVec;

use crate::app::AppId;
use crate::hub::resume::{ClientState, LeftClient, LeftEvent};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// The version of this format. Messages of another are refused.
const VERSION: u8 = 2;

/// Bytes of a message at most: more than any event has.
const MAX_BYTES: u32 = 256 << 20;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bequest {
    /// The following messages, up to the next of this kind, belong to this app.
    App {
        app: AppId,
        /// The highest number of a log that was given up: new logs begin above it.
        highest: u64,
        /// For how many seconds nobody was forgotten before their time; none if that never happened.
        complete_for: Option<u32>,
    },
    /// How far a channel's log has come, whether or not events of it are left.
    Channel {
        channel: ChannelName,
        last: u64,
    },
    Event(LeftEvent),
    Client(LeftClient),
    /// That is all that there was; for so many milliseconds nothing of it was lost.
    Complete {
        /// For how long clients were remembered, in seconds. A client with an older token may have missed events.
        known_for: u64,
    },
    /// An event that a backend has triggered since.
    Publish(LatePublish),
    /// A right that was taken back since.
    Withdraw {
        app: AppId,
        user: UserId,
        channels: Vec<ChannelName>,
    },
    /// A client has left a channel since.
    GiveUp {
        app: AppId,
        token: ResumeToken,
        channel: ChannelName,
    },
}

/// An event of the API, on its way from one process to the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LatePublish {
    pub(super) app: AppId,
    pub(super) channel: ChannelName,
    pub(super) event: String,
    /// The token of the data's JSON string.
    pub(super) data: String,
    /// The publisher's connection, which does not get the event.
    pub(super) except: Option<SocketId>,
}

impl Bequest {
    /// Adds it to `out`: four bytes of length, the version, the kind, then the fields in their
    /// order. Numbers are big-endian, a text has its length in four bytes in front.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.put_u32(0);
        out.put_u8(VERSION);
        match self {
            Self::App { app, highest, complete_for } => {
                out.put_u8(0);
                put_text(out, app.as_str());
                out.put_u64(*highest);
                out.put_u32(complete_for.unwrap_or(u32::MAX));
            }
            Self::Channel { channel, last } => {
                out.put_u8(1);
                put_text(out, channel.as_str());
                out.put_u64(*last);
            }
            Self::Event(LeftEvent { channel, age, except, frame }) => {
                out.put_u8(2);
                put_text(out, channel.as_str());
                out.put_u32(*age);
                put_socket(out, *except);
                out.put_slice(frame);
            }
            Self::Client(client) => {
                out.put_u8(3);
                put_client(out, client);
            }
            Self::Complete { known_for } => {
                out.put_u8(4);
                out.put_u64(*known_for);
            }
            Self::Publish(LatePublish { app, channel, event, data, except }) => {
                out.put_u8(5);
                for text in [app.as_str(), channel.as_str(), event, data] {
                    put_text(out, text);
                }
                put_socket(out, *except);
            }
            Self::Withdraw { app, user, channels } => {
                out.put_u8(6);
                put_text(out, app.as_str());
                put_text(out, user.as_str());
                out.put_u32(channels.len() as u32);
                channels.iter().for_each(|channel| put_text(out, channel.as_str()));
            }
            Self::GiveUp { app, token, channel } => {
                out.put_u8(7);
                put_text(out, app.as_str());
                out.put_slice(&token.to_bytes());
                put_text(out, channel.as_str());
            }
        }
        // Known only now; its four bytes were left free.
        let length = (out.len() - begin - 4) as u32;
        if let Some(place) = out.get_mut(begin..begin + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Waits for the next message; `None` once the other process has ended the stream.
    ///
    /// # Errors
    /// Those of the stream, and `InvalidData` for a message that is not understood as a whole.
    pub(super) fn read_from(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let length = u32::from_be_bytes(length);
        // Before anything is allocated for it.
        if length > MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length as usize];
        stream.read_exact(&mut bytes)?;
        let mut fields = BequestReader(Bytes::from(bytes));
        let message = fields.take_message().filter(|_| fields.0.is_empty());
        message.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// UTF-8, its length in bytes in front.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

/// No connection has the numbers that stand for none.
fn put_socket(out: &mut Vec<u8>, socket: Option<SocketId>) {
    let socket = socket.unwrap_or(SocketId { node: 0, number: 0 });
    out.put_u64(socket.node);
    out.put_u64(socket.number);
}

/// A client and all that it holds, in the order in which [`BequestReader::take_client`] reads it.
fn put_client(out: &mut Vec<u8>, LeftClient { token, gone, state }: &LeftClient) {
    out.put_slice(&token.to_bytes());
    out.put_u32(*gone);
    out.put_u8(state.answers.into());
    out.put_u32(state.forgotten);
    out.put_u32(state.channels.len() as u32);
    for (channel, acked) in &state.channels {
        put_text(out, channel.as_str());
        out.put_u64(*acked);
    }
    out.put_u32(state.sockets.len() as u32);
    for (socket, ended) in &state.sockets {
        put_socket(out, Some(*socket));
        out.put_u32(*ended);
    }
    out.put_u32(state.users.len() as u32);
    state.users.iter().for_each(|user| put_text(out, user.as_str()));
}

/// Reads a message field by field. Each method takes one field off the front, and returns `None` if it is missing,
/// which refuses the whole message. Numbers are big-endian.
struct BequestReader(Bytes);

impl BequestReader {
    /// Takes `N` bytes.
    fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        (N <= self.0.len()).then(|| self.0.split_to(N))?.as_ref().try_into().ok()
    }

    fn take_u32(&mut self) -> Option<u32> {
        self.take_array().map(u32::from_be_bytes)
    }

    fn take_u64(&mut self) -> Option<u64> {
        self.take_array().map(u64::from_be_bytes)
    }

    /// Takes a text with its length in front. A length beyond the message is refused before anything is allocated.
    fn take_text(&mut self) -> Option<String> {
        let count = self.take_u32()? as usize;
        let bytes = (count <= self.0.len()).then(|| self.0.split_to(count))?;
        String::from_utf8(bytes.into()).ok()
    }

    fn take_app(&mut self) -> Option<AppId> {
        self.take_text().map(|text| AppId::new(&text))
    }

    /// At any length: its limit was checked when the client subscribed.
    fn take_channel(&mut self) -> Option<ChannelName> {
        ChannelName::parse(&self.take_text()?, usize::MAX).ok()
    }

    /// Takes a token's digest.
    fn take_token(&mut self) -> Option<ResumeToken> {
        self.take_array().map(ResumeToken::from_bytes)
    }

    fn take_user(&mut self) -> Option<UserId> {
        UserId::parse(&self.take_text()?)
    }

    /// Takes a connection's id; node 0 stands for none.
    fn take_socket(&mut self) -> Option<Option<SocketId>> {
        let socket = SocketId { node: self.take_u64()?, number: self.take_u64()? };
        Some((socket.node != 0).then_some(socket))
    }

    /// So many as are said to come.
    fn take_list<T, L: FromIterator<T>>(
        &mut self,
        mut take: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<L> {
        let count = self.take_u32()?;
        // A count that is too large ends at the first item that is not there; nothing is allocated
        // for it.
        (0..count).map(|_| take(self)).collect()
    }

    /// Takes a client's state.
    fn take_client(&mut self) -> Option<LeftClient> {
        let (token, gone) = (self.take_token()?, self.take_u32()?);
        let [answers] = self.take_array()?;
        let forgotten = self.take_u32()?;
        let channels = self.take_list(|one| Some((one.take_channel()?, one.take_u64()?)))?;
        let sockets: SmallVec<_> =
            self.take_list(|one| Some((one.take_socket()??, one.take_u32()?)))?;
        let users = self.take_list(Self::take_user)?;
        let state = ClientState { channels, sockets, users, answers: answers != 0, forgotten };
        Some(LeftClient { token, gone, state })
    }

    /// A whole message by its kind, with its fields in the order in which [`Bequest::write`] puts
    /// them.
    fn take_message(&mut self) -> Option<Bequest> {
        // Another version's layout may differ in any field, so nothing of it is read.
        let [VERSION, kind] = self.take_array()? else { return None };
        Some(match kind {
            0 => Bequest::App {
                app: self.take_app()?,
                highest: self.take_u64()?,
                complete_for: Some(self.take_u32()?).filter(|seconds| *seconds < u32::MAX),
            },
            1 => Bequest::Channel { channel: self.take_channel()?, last: self.take_u64()? },
            2 => Bequest::Event(LeftEvent {
                channel: self.take_channel()?,
                age: self.take_u32()?,
                except: self.take_socket()?,
                frame: std::mem::take(&mut self.0),
            }),
            3 => Bequest::Client(self.take_client()?),
            4 => Bequest::Complete { known_for: self.take_u64()? },
            5 => Bequest::Publish(LatePublish {
                app: self.take_app()?,
                channel: self.take_channel()?,
                event: self.take_text()?,
                data: self.take_text()?,
                except: self.take_socket()?,
            }),
            6 => Bequest::Withdraw {
                app: self.take_app()?,
                user: self.take_user()?,
                channels: self.take_list(Self::take_channel)?,
            },
            7 => Bequest::GiveUp {
                app: self.take_app()?,
                token: self.take_token()?,
                channel: self.take_channel()?,
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Bequest> {
        let name = |name| ChannelName::parse(name, 200).unwrap();
        let (app, socket) = (AppId::new("äpp"), SocketId { node: 7, number: 9 });
        let token = || ResumeToken::parse("0123456789abcdef").unwrap();
        let user = || UserId::parse("ü").unwrap();
        let state = ClientState {
            channels: vec![(name("private-a"), 3), (name("#server-to-user-ü"), 0)],
            sockets: [(socket, 5), (SocketId { node: 7, number: 10 }, 0)].into_iter().collect(),
            users: [user()].into_iter().collect(),
            answers: true,
            forgotten: 6,
        };
        let frame = Bytes::from_static(b"\x81\x02{}");
        vec![
            Bequest::App { app: app.clone(), highest: u64::MAX, complete_for: None },
            Bequest::App { app: app.clone(), highest: 0, complete_for: Some(7) },
            Bequest::Channel { channel: name("private-a"), last: 4 },
            Bequest::Event(LeftEvent { channel: name("a"), age: 3, except: Some(socket), frame }),
            Bequest::Client(LeftClient { token: token(), gone: 4, state }),
            Bequest::Complete { known_for: 12345 },
            Bequest::Publish(LatePublish {
                app: app.clone(),
                channel: name("a"),
                event: "e".into(),
                data: "\"\\u0000\"".into(),
                except: None,
            }),
            Bequest::Withdraw { app: app.clone(), user: user(), channels: vec![name("private-a")] },
            Bequest::GiveUp { app, token: token(), channel: name("private-a") },
        ]
    }

    #[test]
    fn what_one_process_writes_the_next_one_reads() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|one| one.write(&mut bytes));
        let mut stream = bytes.as_slice();
        for one in samples() {
            assert_eq!(Bequest::read_from(&mut stream).unwrap(), Some(one));
        }
        assert_eq!(Bequest::read_from(&mut stream).unwrap(), None, "the end");
    }

    #[test]
    fn what_is_cut_short_or_of_another_version_is_refused() {
        for one in samples() {
            let mut bytes = Vec::new();
            one.write(&mut bytes);
            for end in 4..bytes.len() {
                assert!(Bequest::read_from(&mut &bytes[..end]).is_err(), "{one:?} {end}");
                // The same with a length that fits: a frame may have any.
                let mut short = bytes[..end].to_vec();
                short[..4].copy_from_slice(&((end - 4) as u32).to_be_bytes());
                let read = Bequest::read_from(&mut short.as_slice());
                assert!(read.is_err() || matches!(one, Bequest::Event(_)), "{one:?} {end}");
            }
            bytes[4] = VERSION + 1;
            assert!(Bequest::read_from(&mut bytes.as_slice()).is_err());
        }
        assert!(Bequest::read_from(&mut &[0xff; 16][..]).is_err(), "too long");
    }
}
