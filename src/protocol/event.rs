//! Every message to a client, encoded once into a `Message`: a finished WebSocket frame, header included. Frames of a
//! server are not masked (RFC 6455 section 5.1), so the same bytes serve every socket. `data` is a JSON string in all
//! of them but `pusher:error`, where clients expect an object.

use bytes::Bytes;

use super::channel::ChannelName;
use super::error::{Error, SubscriptionError};
use super::json::{self, push_number, push_string};
use super::member::{Member, UserId, Watchlist};
use super::socket_id::SocketId;

/// A whole frame, ready for any socket; cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message(Bytes);

/// Bytes of the longest header of an unmasked frame.
/// Two bytes, and eight for a length of 64 bits.
pub(super) const MAX_HEADER: usize = 10;

/// The first byte: FIN and the opcode (section 5.2), and for what is never fragmented FIN is always set.
pub(super) const TEXT: u8 = 0x81;
/// First byte of a close frame: FIN and opcode 8.
const CLOSE: u8 = 0x88;
/// First byte of a ping.
const PING: u8 = 0x89;
/// First byte of a pong.
const PONG: u8 = 0x8a;

impl Message {
    /// Shared, never copied: an event to 100,000 sockets is one allocation.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The same without the wrapper, for queues that hold frames of all kinds.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The first thing on every connection. `activity_timeout` is the silence, in seconds, after which the client
    /// asks for a sign of life.
    pub fn established(id: SocketId, activity_timeout: u32) -> Self {
        text_frame(144, |out| {
            out.extend_from_slice(
                br#"{"event":"pusher:connection_established","data":"{\"socket_id\":\""#,
            );
            id.push_text(out);
            out.extend_from_slice(br#"\",\"activity_timeout\":"#);
            push_number(out, activity_timeout.into());
            out.extend_from_slice(br#"}"}"#);
        })
    }

    /// A text that is no event.
    #[cfg(feature = "socketio")]
    pub fn of_text(text: &str) -> Self {
        text_frame(text.len(), |out| out.extend_from_slice(text.as_bytes()))
    }

    /// Carries a string as `data`, for React Native parses it whatever it is (case L11).
    pub fn pong() -> Self {
        Self(Bytes::from_static(b"\x81\x23{\"event\":\"pusher:pong\",\"data\":\"{}\"}"))
    }

    /// Asks a client for a sign of life in the protocol's own words.
    pub fn ping() -> Self {
        Self(Bytes::from_static(b"\x81\x23{\"event\":\"pusher:ping\",\"data\":\"{}\"}"))
    }

    /// An event that a backend triggered; `data` is the token of a JSON string and is copied as it is.
    /// The token is what the backend sent, so that data is neither parsed nor escaped anew.
    pub fn event(channel: &ChannelName, event: &str, data: &str) -> Self {
        Self::client_event(channel, event, data, None)
    }

    /// As [`Self::event`], with the sender's id on presence channels (case C03).
    pub fn client_event(
        channel: &ChannelName,
        event: &str,
        data: &str,
        user: Option<&UserId>,
    ) -> Self {
        // 20 for the name of the field and its quotes.
        let user_len = user.map_or(0, |user| 20 + user.as_str().len());
        let len = event.len() + channel.as_str().len() + data.len() + user_len;
        text_frame(40 + len, |out| {
            out.extend_from_slice(b"{\"event\":");
            push_string(out, event);
            push_channel(out, channel.as_str());
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(data.as_bytes());
            if let Some(user) = user {
                out.extend_from_slice(b",\"user_id\":");
                push_string(out, user.as_str());
            }
            out.push(b'}');
        })
    }

    /// `data` is exactly `"{}"`: Java and .NET try to decrypt anything else on encrypted channels.
    pub fn subscription_succeeded(channel: &ChannelName) -> Self {
        with_text("pusher_internal:subscription_succeeded", Some(channel), "{}")
    }

    /// The roster of a presence channel, the joiner included. Written straight into the frame: a channel may have
    /// ten thousand members, and each joiner receives all of them.
    pub fn subscribed_presence<'m>(
        channel: &ChannelName,
        count: usize,
        members: impl Iterator<Item = &'m MemberText> + Clone,
    ) -> Self {
        let len: usize = members.clone().map(MemberText::roster_bytes).sum();
        text_frame(160 + channel.as_str().len() + len, |out| {
            out.extend_from_slice(b"{\"event\":\"pusher_internal:subscription_succeeded\"");
            push_channel(out, channel.as_str());
            out.extend_from_slice(br#","data":"{\"presence\":{\"ids\":["#);
            for (index, member) in members.clone().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(member.id.as_bytes());
            }
            // Ids are keys of the second part, too, in the same order.
            out.extend_from_slice(br#"],\"hash\":{"#);
            for (index, member) in members.enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(member.id.as_bytes());
                out.push(b':');
                out.extend_from_slice(member.info.as_bytes());
            }
            out.extend_from_slice(br#"},\"count\":"#);
            out.extend_from_slice(count.to_string().as_bytes());
            out.extend_from_slice(b"}}\"}");
        })
    }

    /// To those who were there before; the joiner has the roster.
    pub fn member_added(channel: &ChannelName, member: &MemberText) -> Self {
        text_frame(140 + channel.as_str().len() + member.id.len() + member.info.len(), |out| {
            out.extend_from_slice(b"{\"event\":\"pusher_internal:member_added\"");
            push_channel(out, channel.as_str());
            out.extend_from_slice(br#","data":"{\"user_id\":"#);
            out.extend_from_slice(member.id.as_bytes());
            out.extend_from_slice(br#",\"user_info\":"#);
            out.extend_from_slice(member.info.as_bytes());
            out.extend_from_slice(b"}\"}");
        })
    }

    /// Only the id, for who left needs no introduction; `tells_info`: also what the member said of itself, which clients of Socket.IO keep no note of.
    pub fn member_removed(channel: &ChannelName, member: &MemberText, tells_info: bool) -> Self {
        let info = if tells_info { &*member.info } else { "" };
        text_frame(120 + channel.as_str().len() + member.id.len() + info.len(), |out| {
            out.extend_from_slice(b"{\"event\":\"pusher_internal:member_removed\"");
            push_channel(out, channel.as_str());
            out.extend_from_slice(br#","data":"{\"user_id\":"#);
            out.extend_from_slice(member.id.as_bytes());
            if tells_info {
                out.extend_from_slice(br#",\"user_info\":"#);
                out.extend_from_slice(info.as_bytes());
            }
            out.extend_from_slice(b"}\"}");
        })
    }

    /// Tells a client that reconnected that events it missed are lost, all or in part. The client has to fetch its
    /// state. Sent after the confirmation of the subscription.
    pub fn resume_gap(channel: &ChannelName) -> Self {
        with_text("resume:gap", Some(channel), "{}")
    }

    /// In the place of the cached event where there is none.
    pub fn cache_miss(channel: &ChannelName) -> Self {
        with_text("pusher:cache_miss", Some(channel), "{}")
    }

    /// A number alone, for clients that show it; throttled for crowds.
    pub fn subscription_count(channel: &ChannelName, count: usize) -> Self {
        let data = format!(r#"{{"subscription_count":{count}}}"#);
        with_text("pusher_internal:subscription_count", Some(channel), &data)
    }

    /// `user_data` is the raw text that was signed, byte for byte (case U01).
    pub fn signed_in(user_data: &str) -> Self {
        let mut data = b"{\"user_data\":".to_vec();
        push_string(&mut data, user_data);
        data.push(b'}');
        with_text("pusher:signin_success", None, &String::from_utf8_lossy(&data))
    }

    /// The watched users who are online, and those who are not; an empty list is left out. At most
    /// [`Watchlist::MAX`] of each.
    pub fn watchlist_events(online: &[UserId], offline: &[UserId]) -> Self {
        let mut data = b"{\"events\":[".to_vec();
        for (name, users) in [("online", online), ("offline", offline)] {
            if users.is_empty() {
                continue;
            }
            if data.ends_with(b"}") {
                data.push(b',');
            }
            data.extend_from_slice(format!("{{\"name\":\"{name}\",\"user_ids\":[").as_bytes());
            // A list is never longer than what may be watched; a bound all the same, since it comes from other
            // nodes, too.
            for (index, user) in users.iter().take(Watchlist::MAX).enumerate() {
                if index > 0 {
                    data.push(b',');
                }
                push_string(&mut data, user.as_str());
            }
            data.extend_from_slice(b"]}");
        }
        data.extend_from_slice(b"]}");
        with_text("pusher_internal:watchlist_events", None, &String::from_utf8_lossy(&data))
    }

    /// `data` is an object here: Swift drops anything else, Java casts it.
    pub fn error(error: &Error, channel: Option<&str>) -> Self {
        error_frame(error.code, &error.message, channel)
    }

    /// The frames that tell of a refused subscription: one that reaches the channel's own callback in
    /// pusher-js and Echo and, where the error has a code, one for the clients that listen for nothing else.
    pub fn subscription_error(
        channel: &str,
        error: &SubscriptionError,
    ) -> impl Iterator<Item = Self> {
        let text = error.error_text(channel);
        let mut data = format!(r#"{{"type":"{}","error":"#, error.error_type()).into_bytes();
        push_string(&mut data, &text);
        data.extend_from_slice(format!(r#","status":{}}}"#, error.status()).as_bytes());
        let data = String::from_utf8_lossy(&data);
        let refused = text_frame(100 + channel.len() + 2 * data.len(), |out| {
            out.extend_from_slice(b"{\"event\":\"pusher:subscription_error\"");
            push_channel(out, channel);
            out.extend_from_slice(b",\"data\":");
            push_string(out, &data);
            out.push(b'}');
        });
        let plain = error.error_code().map(|code| error_frame(code, &text, None));
        std::iter::once(refused).chain(plain)
    }

    /// Ends the conversation: RFC 6455 section 5.5.1. The reason is cut to what a control frame holds.
    pub fn close(code: u16, reason: &str) -> Self {
        let mut end = reason.len().min(123);
        // Cut between characters: a reason that is not UTF-8 would break the connection (section 5.5.1).
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let mut payload = code.to_be_bytes().to_vec();
        // `end` is a character's boundary within the reason.
        payload.extend_from_slice(reason.as_bytes().get(..end).unwrap_or_default());
        control_frame(CLOSE, &payload)
    }

    /// The answer to a close frame that had no code.
    pub fn close_bare() -> Self {
        control_frame(CLOSE, b"")
    }

    /// Asks for a sign of life in a way that every WebSocket library answers by itself.
    pub fn ws_ping() -> Self {
        control_frame(PING, b"")
    }

    /// Answers a ping with its own payload: RFC 6455 section 5.5.3.
    pub fn ws_pong(payload: &[u8]) -> Self {
        control_frame(PONG, payload)
    }
}

/// A member's two texts as they stand in `data`: JSON, escaped once more for being inside a string.
/// Worked out once a join, for each of them is sent to everyone who joins later.
#[derive(Clone, Debug)]
pub struct MemberText {
    /// The user's id as a JSON string.
    pub id: Box<str>,
    /// `user_info` as JSON.
    pub info: Box<str>,
}

impl MemberText {
    /// The texts of a member, encoded once for all rosters.
    pub fn new(member: &Member) -> Self {
        let mut id = Vec::with_capacity(member.user_id.as_str().len() + 4);
        push_string(&mut id, member.user_id.as_str());
        Self {
            // Escaped twice, because `data` is JSON inside a JSON string.
            id: json::escape_text(&String::from_utf8_lossy(&id)).into(),
            info: json::escape_text(&member.user_info).into(),
        }
    }

    /// Bytes of a member in a roster, where the id occurs twice.
    pub fn roster_bytes(&self) -> usize {
        // Two commas and a colon.
        2 * self.id.len() + self.info.len() + 3
    }
}

/// Appends the channel's field.
fn push_channel(out: &mut Vec<u8>, channel: &str) {
    out.extend_from_slice(b",\"channel\":");
    push_string(out, channel);
}

/// An event with a text as its `data`.
/// Room for the escapes that `data` is likely to need; more only costs another allocation.
fn with_text(event: &str, channel: Option<&ChannelName>, data: &str) -> Message {
    text_frame(64 + event.len() + 2 * data.len(), |out| {
        out.extend_from_slice(b"{\"event\":");
        push_string(out, event);
        if let Some(channel) = channel {
            push_channel(out, channel.as_str());
        }
        out.extend_from_slice(b",\"data\":");
        push_string(out, data);
        out.push(b'}');
    })
}

/// An error frame, with the channel if it is about one.
fn error_frame(code: u16, message: &str, channel: Option<&str>) -> Message {
    text_frame(80 + message.len(), |out| {
        out.extend_from_slice(b"{\"event\":\"pusher:error\"");
        if let Some(channel) = channel {
            push_channel(out, channel);
        }
        out.extend_from_slice(b",\"data\":{\"code\":");
        out.extend_from_slice(code.to_string().as_bytes());
        out.extend_from_slice(b",\"message\":");
        push_string(out, message);
        out.extend_from_slice(b"}}");
    })
}

/// Writes the payload behind room for the longest header, then the header right in front of it, so that
/// the frame is built in one buffer of about `len` bytes.
/// The length is known only once all is written, and the header's size depends on it.
fn text_frame(len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Message {
    let mut out = Vec::with_capacity(MAX_HEADER + len);
    out.extend_from_slice(&[0; MAX_HEADER]);
    write(&mut out);
    let len = out.len() - MAX_HEADER;
    let (header, used) = frame_header(TEXT, len);
    // The header ends where the payload begins.
    for (to, from) in out.iter_mut().skip(MAX_HEADER - used).zip(header).take(used) {
        *to = from;
    }
    Message(Bytes::from(out).slice(MAX_HEADER - used..))
}

/// The header of an unmasked frame with `len` bytes of payload (RFC 6455, section 5.2), and how much of it counts.
/// Lengths up to 125, up to 65,535, and beyond have headers of 2, 4 and 10 bytes.
pub(super) fn frame_header(first: u8, len: usize) -> ([u8; MAX_HEADER], usize) {
    let mut header = [0; MAX_HEADER];
    let used = match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len @ ..=125), _) => put_header(&mut header, &[first, len]),
        (_, Ok(len)) => {
            let [a, b] = len.to_be_bytes();
            put_header(&mut header, &[first, 126, a, b])
        }
        _ => {
            let [a, b, c, d, e, f, g, h] = (len as u64).to_be_bytes();
            put_header(&mut header, &[first, 127, a, b, c, d, e, f, g, h])
        }
    };
    (header, used)
}

/// How many bytes were put.
fn put_header(header: &mut [u8; MAX_HEADER], bytes: &[u8]) -> usize {
    for (to, from) in header.iter_mut().zip(bytes) {
        *to = *from;
    }
    bytes.len()
}

/// A control frame; its payload is at most 125 bytes (RFC 6455 section 5.5), the rest is cut.
fn control_frame(first: u8, payload: &[u8]) -> Message {
    let payload = payload.get(..125).unwrap_or(payload);
    let mut out = Vec::with_capacity(2 + payload.len());
    out.push(first);
    out.push(payload.len() as u8);
    out.extend_from_slice(payload);
    Message(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name, 200).unwrap()
    }

    fn text(message: &Message) -> &str {
        let bytes = message.bytes();
        assert_eq!(bytes[0], TEXT);
        let header = match bytes[1] {
            126 => 4,
            127 => 10,
            len => {
                assert_eq!(usize::from(len), bytes.len() - 2);
                2
            }
        };
        std::str::from_utf8(&bytes[header..]).unwrap()
    }

    #[test]
    fn frames_are_as_the_wire_page_has_them() {
        let id = SocketId { node: 123, number: 456 };
        let member = Member::parse(r#"{"user_id":1,"user_info":{"n":"A\"b"}}"#, 100).unwrap();
        let member = MemberText::new(&member);
        let room = channel("presence-room");
        for (message, expected) in [
            (
                Message::established(id, 30),
                r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"123.456\",\"activity_timeout\":30}"}"#,
            ),
            (Message::pong(), r#"{"event":"pusher:pong","data":"{}"}"#),
            (Message::ping(), r#"{"event":"pusher:ping","data":"{}"}"#),
            (
                Message::event(&channel("a"), "e\"", r#""x\/""#),
                r#"{"event":"e\"","channel":"a","data":"x\/"}"#,
            ),
            (
                Message::client_event(&room, "client-a", r#""1""#, UserId::parse("7").as_ref()),
                r#"{"event":"client-a","channel":"presence-room","data":"1","user_id":"7"}"#,
            ),
            (
                Message::subscription_succeeded(&channel("a")),
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"a","data":"{}"}"#,
            ),
            (
                Message::subscribed_presence(&room, 1, [&member].into_iter()),
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"presence-room","data":"{\"presence\":{\"ids\":[\"1\"],\"hash\":{\"1\":{\"n\":\"A\\\"b\"}},\"count\":1}}"}"#,
            ),
            (
                Message::member_added(&room, &member),
                r#"{"event":"pusher_internal:member_added","channel":"presence-room","data":"{\"user_id\":\"1\",\"user_info\":{\"n\":\"A\\\"b\"}}"}"#,
            ),
            (
                Message::member_removed(&room, &member, false),
                r#"{"event":"pusher_internal:member_removed","channel":"presence-room","data":"{\"user_id\":\"1\"}"}"#,
            ),
            (
                Message::signed_in(r#"{"id":"1"}"#),
                r#"{"event":"pusher:signin_success","data":"{\"user_data\":\"{\\\"id\\\":\\\"1\\\"}\"}"}"#,
            ),
            (
                Message::watchlist_events(&[UserId::parse("b").unwrap()], &[]),
                r#"{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"b\"]}]}"}"#,
            ),
            (
                Message::error(&Error::new(4200, "m\""), Some("c")),
                r#"{"event":"pusher:error","channel":"c","data":{"code":4200,"message":"m\""}}"#,
            ),
        ] {
            assert_eq!(text(&message), expected);
        }
    }

    #[test]
    fn refused_subscriptions_are_told_twice() {
        let error = SubscriptionError::TooManyMembers { max: 3 };
        let mut frames = Message::subscription_error("presence-x", &error);
        let (refused, plain) = (frames.next().unwrap(), frames.next().unwrap());
        assert_eq!(
            text(&refused),
            r#"{"event":"pusher:subscription_error","channel":"presence-x","data":"{\"type\":\"LimitReached\",\"error\":\"The channel already has its 3 members\",\"status\":4004}"}"#
        );
        assert_eq!(
            text(&plain),
            r#"{"event":"pusher:error","data":{"code":4009,"message":"The channel already has its 3 members"}}"#
        );
    }

    #[test]
    fn headers_fit_every_length() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let message = text_frame(len, |out| out.resize(MAX_HEADER + len, b'x'));
            let header = [2, 4, 10][usize::from(len > 125) + usize::from(len > 65_535)];
            assert_eq!(message.bytes().len(), header + len);
            assert_eq!(text(&message).len(), len);
        }
    }

    #[test]
    fn close_reasons_are_cut_between_characters() {
        let message = Message::close(4100, &"é".repeat(100));
        assert_eq!(message.bytes().len(), 2 + 2 + 122);
        assert_eq!(&message.bytes()[..4], [CLOSE, 124, 0x10, 0x04]);
    }
}
