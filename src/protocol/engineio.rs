//! Packets of Engine.IO 3 and 4, the transport of Socket.IO: their types, and their encoding as WebSocket texts or as
//! payloads of several. `socketio.rs` gives them their meaning.

use super::event::{TEXT, frame_header};
use super::fallback::split_frame;

/// How often a sign of life is asked for, and how long it may take; seconds.
pub const PING_INTERVAL: u32 = 25;
/// Seconds after which a client gives up without a ping (`pingTimeout`).
pub const PING_TIMEOUT: u32 = 20;

/// Between the packets of one body in revision 4: ASCII's record separator, which JSON escapes.
const SEPARATOR: char = '\x1e';

/// The revision of Engine.IO that a client speaks: 3 with `socket.io-client` 2, 4 with 3 and 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineVersion {
    /// A body's packets have their length in front, in UTF-16 code units; the client pings.
    V3,
    /// A body's packets have a separator between them; the server pings.
    V4,
}

impl EngineVersion {
    /// By the query's `EIO`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "3" => Some(Self::V3),
            "4" => Some(Self::V4),
            _ => None,
        }
    }

    /// The packets of a request's body; `None` if it is none.
    pub fn split_body(self, body: &str) -> Option<Vec<String>> {
        match self {
            Self::V4 => Some(body.split(SEPARATOR).map(str::to_owned).collect()),
            Self::V3 => {
                let (mut packets, mut rest) = (Vec::new(), body);
                while !rest.is_empty() {
                    let (length, after) = rest.split_once(':')?;
                    let end = utf16_end(after, length.parse().ok()?)?;
                    let (packet, next) = after.split_at_checked(end)?;
                    packets.push(packet.to_owned());
                    rest = next;
                }
                Some(packets)
            }
        }
    }

    /// Appends a packet to those of an answer's body.
    fn push_packet(self, body: &mut Vec<u8>, packet: &str) {
        match self {
            Self::V4 if body.is_empty() => {}
            Self::V4 => body.push(SEPARATOR as u8),
            Self::V3 => {
                let units = packet.encode_utf16().count();
                body.extend_from_slice(format!("{units}:").as_bytes());
            }
        }
        body.extend_from_slice(packet.as_bytes());
    }

    /// The body of an answer that says what translated frames say. A close is a packet there; WebSocket's own pings
    /// and pongs are nothing.
    pub fn answer_body(self, mut frames: &[u8]) -> Vec<u8> {
        let mut body = Vec::with_capacity(frames.len() + 8);
        while let Some((opcode, payload, rest)) = split_frame(frames) {
            frames = rest;
            match opcode {
                TEXT_CODE => {
                    // Our own frames hold text.
                    let packet = std::str::from_utf8(payload).unwrap_or_default();
                    self.push_packet(&mut body, packet);
                }
                CLOSE_CODE => self.push_packet(&mut body, CLOSE_PACKET),
                _ => {}
            }
        }
        body
    }
}

/// Packets that an answer may have: python-engineio gives a connection up that has more in one.
pub const MAX_ANSWER_PACKETS: usize = 16;

/// How many packets translated frames are in an answer's body.
pub fn count_packets(mut frames: &[u8]) -> usize {
    let mut packets = 0;
    while let Some((opcode, _, rest)) = split_frame(frames) {
        frames = rest;
        packets += usize::from(matches!(opcode, TEXT_CODE | CLOSE_CODE));
    }
    packets
}

/// Bytes of the first frame.
pub fn first_frame_len(frames: &[u8]) -> Option<usize> {
    split_frame(frames).map(|(_, _, rest)| frames.len() - rest.len())
}

/// Opcodes (RFC 6455 section 5.2).
pub(super) const TEXT_CODE: u8 = TEXT & 0x0f;
/// The opcode of a close frame (RFC 6455 section 5.2).
pub(super) const CLOSE_CODE: u8 = 8;

/// Where the first `units` UTF-16 code units of a text end, in bytes.
fn utf16_end(text: &str, units: usize) -> Option<usize> {
    let mut left = units;
    for (at, character) in text.char_indices() {
        if left == 0 {
            return Some(at);
        }
        left = left.checked_sub(character.len_utf16())?;
    }
    (left == 0).then_some(text.len())
}

/// The packet that ends a session which polls.
const CLOSE_PACKET: &str = "1";

/// Asks a client of revision 4 for a sign of life; the answer to one of revision 3.
pub const PING: &str = "2";
/// The answer to a ping.
pub const PONG: &str = "3";

/// The answer to a poll that has nothing to say, for the client changes to a WebSocket.
pub const NOOP: &str = "6";

/// The answer to [`EnginePacket::Probe`].
pub const PROBED: &str = "3probe";

/// One packet of Engine.IO: a digit for its kind, then its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnginePacket<'a> {
    /// `1`: the session is over.
    Close,
    /// `2`, from a client of revision 3.
    Ping,
    /// A test whether a WebSocket gets through.
    Probe,
    /// `3`, from a client of revision 4.
    Pong,
    /// `4`: a packet of Socket.IO.
    Message(&'a str),
    /// All that follows comes by the WebSocket.
    Upgrade,
    /// `6`.
    Noop,
}

impl<'a> EnginePacket<'a> {
    /// `None` for what is no packet, and for `0`, which only servers send.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_at_checked(1)?;
        Some(match (kind, rest) {
            ("1", _) => Self::Close,
            ("2", "probe") => Self::Probe,
            ("2", _) => Self::Ping,
            ("3", _) => Self::Pong,
            ("4", message) => Self::Message(message),
            ("5", _) => Self::Upgrade,
            ("6", _) => Self::Noop,
            _ => return None,
        })
    }
}

/// Appends a text as a frame of its own.
pub(super) fn push_text_frame(out: &mut Vec<u8>, text: &str) {
    let (header, used) = frame_header(TEXT, text.len());
    // `used` is at most the header's length.
    out.extend_from_slice(header.get(..used).unwrap_or_default());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_both_revisions_hold_packets() {
        let packets = |version: EngineVersion, body: &str| version.split_body(body);
        let all = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(packets(EngineVersion::V4, "40\x1e2"), all(&["40", "2"]));
        assert_eq!(packets(EngineVersion::V3, "2:402:4é3:😀1"), all(&["40", "4é", "😀1"]));
        assert_eq!(packets(EngineVersion::V3, ""), all(&[]));
        for wrong in ["2", "x:1", "3:12", "1:😀", ":", "-1:2", "99999999999999999999:1"] {
            assert_eq!(packets(EngineVersion::V3, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn packets_are_told_apart() {
        for (text, packet) in [
            ("1", EnginePacket::Close),
            ("2", EnginePacket::Ping),
            ("2probe", EnginePacket::Probe),
            ("3", EnginePacket::Pong),
            ("42[\"e\"]", EnginePacket::Message("2[\"e\"]")),
            ("5", EnginePacket::Upgrade),
            ("6", EnginePacket::Noop),
        ] {
            assert_eq!(EnginePacket::parse(text), Some(packet), "{text}");
        }
        for text in ["", "0{}", "7", "b4AAA=", "é"] {
            assert_eq!(EnginePacket::parse(text), None, "{text}");
        }
    }
}
