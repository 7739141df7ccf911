//! Messages of laravel-echo-server's protocol: Socket.IO packets with the events of Echo's `broadcaster: 'socket.io'`
//! (`docs/protocol.md`, "Socket.IO"). Incoming ones become commands of the Pusher protocol; outgoing ones are made of
//! finished frames, so that everything above is the same for both. `engineio.rs` has the transport.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::engineio::{
    CLOSE_CODE, EngineVersion, PING_INTERVAL, PING_TIMEOUT, TEXT_CODE, push_text_frame,
};
use super::event::Message;
use super::fallback::split_frame;
use super::json::{self, JsonObject, push_string};

/// Tells a client not to reconnect: it ends the conversation, not only the transport.
const DISCONNECT: &str = "41";

/// One packet of Socket.IO.
#[derive(Debug)]
enum SocketPacket<'a> {
    /// The client connects to a namespace.
    Connect,
    /// The client disconnects from it.
    Disconnect,
    Event {
        name: Cow<'a, str>,
        argument: Option<&'a RawValue>,
    },
    /// Of a namespace that there is not.
    Elsewhere(&'a str),
    /// Announces attachments, which nothing of Echo's has.
    Binary,
    /// Any other packet.
    Unknown,
}

impl<'a> SocketPacket<'a> {
    /// Kind, namespace, number of an acknowledgement, and JSON, in this order and mostly left out:
    /// `42["subscribe",{"channel":"orders"}]` comes here as `2[…]`.
    fn parse(text: &'a str) -> Self {
        let Some((kind, rest)) = text.split_at_checked(1) else { return Self::Unknown };
        if matches!(kind, "5" | "6") {
            return Self::Binary;
        }
        let (namespace, rest) = match rest.strip_prefix('/') {
            // Version 2 puts its query behind the name.
            Some(_) => rest.split_once(',').unwrap_or((rest, "")),
            None => ("/", rest),
        };
        if namespace.split('?').next() != Some("/") {
            return Self::Elsewhere(namespace);
        }
        match kind {
            "0" => Self::Connect,
            "1" => Self::Disconnect,
            "2" => {
                // The number of an acknowledgement that Echo never asks for.
                let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
                let arguments: Option<Vec<&RawValue>> = serde_json::from_str(rest).ok();
                let Some(arguments) = arguments else { return Self::Unknown };
                let name = arguments.first().and_then(|name| json::string_text(name));
                let argument = arguments.get(1).copied();
                name.map_or(Self::Unknown, |name| Self::Event { name, argument })
            }
            _ => Self::Unknown,
        }
    }
}

/// A request of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum EchoRequest {
    /// The client asks for its id.
    Connect,
    /// To leave for good.
    Disconnect,
    /// To subscribe where a backend has to be asked first.
    Authorize { channel: String, headers: Vec<(String, String)> },
    /// No longer to wait for that, and to leave the channel: as a command of the Pusher protocol.
    Unsubscribe { channel: String, command: String },
    /// A command of the Pusher protocol, which may be invalid.
    Command(String),
    /// The client names a namespace that does not exist; the packet answers it.
    Elsewhere(String),
    /// To send attachments.
    Binary,
}

impl EchoRequest {
    /// Parses the message of a packet.
    pub fn parse(message: &str, version: EngineVersion) -> Self {
        match SocketPacket::parse(message) {
            SocketPacket::Connect => Self::Connect,
            SocketPacket::Disconnect => Self::Disconnect,
            SocketPacket::Binary => Self::Binary,
            SocketPacket::Elsewhere(namespace) => {
                // Without the query, which the answer must not repeat.
                let namespace = namespace.split('?').next().unwrap_or_default();
                let why = match version {
                    EngineVersion::V3 => "\"Invalid namespace\"",
                    EngineVersion::V4 => r#"{"message":"Invalid namespace"}"#,
                };
                Self::Elsewhere(format!("44{namespace},{why}"))
            }
            SocketPacket::Event { name, argument } => Self::of_event(&name, argument),
            SocketPacket::Unknown => Self::Command(String::new()),
        }
    }

    /// By the names of laravel-echo-server: `subscribe`, `unsubscribe` and `client event`.
    fn of_event(name: &str, argument: Option<&RawValue>) -> Self {
        // Client events also came as texts.
        let decoded = argument.and_then(json::string_text);
        let text = decoded.as_deref().or_else(|| argument.map(RawValue::get)).unwrap_or_default();
        let parsed = JsonObject::parse(text);
        let channel = parsed.as_ref().and_then(|all| all.get_string("channel").ok().flatten());
        match (name, parsed, channel) {
            ("subscribe", Some(asked), Some(channel)) if needs_authorization(&channel) => {
                Self::Authorize { headers: auth_headers(&asked), channel: channel.into_owned() }
            }
            ("subscribe", _, Some(channel)) => Self::Command(subscribe_command(&channel, None)),
            ("unsubscribe", _, Some(channel)) => {
                let command = channel_command("pusher:unsubscribe", &[("channel", &channel)]);
                Self::Unsubscribe { channel: channel.into_owned(), command }
            }
            ("client event", Some(_), _) => Self::Command(text.to_owned()),
            // Refused as any other event that no client may send.
            _ => Self::Command(channel_command(name, &[])),
        }
    }
}

/// Whether the backend must authorize a subscription.
fn needs_authorization(channel: &str) -> bool {
    channel.starts_with("private-") || channel.starts_with("presence-")
}

/// The headers that a page gave Echo for the request to its backend; what is no text is left out.
fn auth_headers(asked: &JsonObject<'_>) -> Vec<(String, String)> {
    let inside = |object: &JsonObject<'_>, key: &str| {
        // Every level may be absent: `auth` itself, and its `headers`.
        object.get_value(key).map(|value| value.get().to_owned()).unwrap_or_default()
    };
    let auth = inside(asked, "auth");
    let headers = JsonObject::parse(&auth).map(|auth| inside(&auth, "headers")).unwrap_or_default();
    // Headers that are no object are none: the backend then refuses on its own.
    let all: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&headers).unwrap_or_default();
    let text = |(name, value)| match value {
        serde_json::Value::String(value) => Some((name, value)),
        serde_json::Value::Number(value) => Some((name, value.to_string())),
        _ => None,
    };
    all.into_iter().filter_map(text).collect()
}

/// `pusher:subscribe`, with what was signed in this server for a channel that its backend lets the client into.
pub fn subscribe_command(channel: &str, signed: Option<(&str, Option<&str>)>) -> String {
    let mut fields = vec![("channel", channel)];
    if let Some((auth, data)) = signed {
        fields.push(("auth", auth));
        fields.extend(data.map(|data| ("channel_data", data)));
    }
    channel_command("pusher:subscribe", &fields)
}

/// A command of the Pusher protocol whose `data` has these fields.
fn channel_command(event: &str, fields: &[(&str, &str)]) -> String {
    let mut out = b"{\"event\":".to_vec();
    push_string(&mut out, event);
    out.extend_from_slice(b",\"data\":{");
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_string(&mut out, name);
        out.push(b':');
        push_string(&mut out, value);
    }
    out.extend_from_slice(b"}}");
    // The parts are UTF-8, so the text is; the default is never used.
    String::from_utf8(out).unwrap_or_default()
}

/// The `channel_data` of a backend's response to an authorization request. Laravel's Redis broadcaster sends an
/// object, the others a text.
pub fn channel_data(answer: &str) -> Option<String> {
    let data = JsonObject::parse(answer)?.get_value("channel_data")?;
    Some(json::string_text(data).map_or_else(|| data.get().to_owned(), Cow::into_owned))
}

/// The content of a session's first packet.
#[derive(Clone, Copy, Debug)]
pub struct GreetingTerms {
    /// Which decides about the form of the greeting.
    pub version: EngineVersion,
    /// It may change to a WebSocket.
    pub upgrades: bool,
    /// Bytes that a body may have.
    pub max_payload: usize,
}

/// The packet that opens a session, and with revision 3 the one that lets it into the only namespace.
fn push_greeting(out: &mut Vec<u8>, socket: &str, terms: GreetingTerms) {
    let upgrades = if terms.upgrades { "\"websocket\"" } else { "" };
    let (interval, timeout) = (PING_INTERVAL * 1000, PING_TIMEOUT * 1000);
    let max = terms.max_payload;
    push_text_frame(
        out,
        &format!(
            r#"0{{"sid":"{socket}","upgrades":[{upgrades}],"pingInterval":{interval},"pingTimeout":{timeout},"maxPayload":{max}}}"#
        ),
    );
    if terms.version == EngineVersion::V3 {
        push_text_frame(out, "40");
    }
}

/// A packet as a frame of its own, which [`translate_frames`] leaves as it is.
pub fn packet_message(packet: &str) -> Message {
    Message::of_text(packet)
}

/// The response to [`EchoRequest::Connect`]. Revision 3 has sent it by itself already.
pub fn connected_packet(socket: &str) -> String {
    format!(r#"40{{"sid":"{socket}"}}"#)
}

/// Tells a client that it may not subscribe, with the status that its backend answered, 0 if it did not.
pub fn subscription_error_packet(channel: &str, status: u16) -> String {
    let mut out = b"42[\"subscription_error\",".to_vec();
    push_string(&mut out, channel);
    out.extend_from_slice(format!(",{status}]").as_bytes());
    // The parts are UTF-8, so the text is; the default is never used.
    String::from_utf8(out).unwrap_or_default()
}

/// Translated frames, and whether the last packet of the conversation is among them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TranslatedFrames {
    pub frames: Vec<u8>,
    /// Whether the last packet of the conversation is among them.
    pub is_last: bool,
}

/// Translates whole, unmasked frames. The first one of a connection, its greeting, becomes the one of `terms`.
pub fn translate_frames(mut frames: &[u8], terms: GreetingTerms) -> TranslatedFrames {
    let mut out = TranslatedFrames::default();
    while let Some((opcode, payload, rest)) = split_frame(frames) {
        let (frame, _) = frames.split_at(frames.len() - rest.len());
        frames = rest;
        // Frames of this server are UTF-8, so the default is never used.
        let text = std::str::from_utf8(payload).unwrap_or_default();
        match opcode {
            TEXT_CODE if text.starts_with('{') => push_event(&mut out.frames, text, terms),
            CLOSE_CODE => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                // Those to which clients of the Pusher protocol do not come back either.
                if code.is_some_and(|code| (4000..4100).contains(&code)) {
                    push_text_frame(&mut out.frames, DISCONNECT);
                }
                out.frames.extend_from_slice(frame);
                out.is_last = true;
            }
            _ => out.frames.extend_from_slice(frame),
        }
    }
    out
}

/// Appends the packet that says what one frame's text says, if there is one.
fn push_event(out: &mut Vec<u8>, text: &str, terms: GreetingTerms) {
    let Some(frame) = JsonObject::parse(text) else { return };
    let Ok(Some(event)) = frame.get_string("event") else { return };
    let channel = frame.get_string("channel").ok().flatten();
    let raw = frame.get_value("data").map_or("null", RawValue::get);
    // Data is a text that most often holds JSON, which is what Echo's callbacks are given.
    let decoded = frame.get_value("data").and_then(json::string_text);
    let inner = decoded.as_deref().filter(|text| serde_json::from_str::<&RawValue>(text).is_ok());
    let data = inner.unwrap_or(raw);
    let (name, data) = match &*event {
        "pusher:connection_established" => {
            let socket =
                JsonObject::parse(data).and_then(|all| all.get_string("socket_id").ok()?);
            // `connection_established` always has the id; this server wrote it.
            return push_greeting(out, &socket.unwrap_or_default(), terms);
        }
        "pusher_internal:subscription_succeeded" => match members(data) {
            Some(members) => ("presence:subscribed", Cow::Owned(members)),
            None => return,
        },
        "pusher_internal:member_added" => ("presence:joining", Cow::Borrowed(data)),
        "pusher_internal:member_removed" => ("presence:leaving", Cow::Borrowed(data)),
        "pusher:subscription_error" => {
            let status = JsonObject::parse(data).and_then(|all| all.get_value("status"));
            let status = status.map_or("0", RawValue::get).to_owned();
            ("subscription_error", Cow::Owned(status))
        }
        "pusher_internal:subscription_count" => ("pusher:subscription_count", Cow::Borrowed(data)),
        "pusher:ping" | "pusher:pong" => return,
        other => (other, Cow::Borrowed(data)),
    };
    let mut packet = b"42[".to_vec();
    push_string(&mut packet, name);
    if let Some(channel) = channel {
        packet.push(b',');
        push_string(&mut packet, &channel);
    }
    packet.push(b',');
    packet.extend_from_slice(data.as_bytes());
    packet.push(b']');
    // The parts are UTF-8, so the text is; the default is never used.
    push_text_frame(out, std::str::from_utf8(&packet).unwrap_or_default());
}

/// The roster of a presence channel as laravel-echo-server gave it: a list of members. `None` for other channels.
fn members(data: &str) -> Option<String> {
    let presence = JsonObject::parse(data)?.get_value("presence")?;
    let presence = JsonObject::parse(presence.get())?;
    let ids: Vec<Cow<'_, str>> = serde_json::from_str(presence.get_value("ids")?.get()).ok()?;
    let hash = JsonObject::parse(presence.get_value("hash")?.get())?;
    let mut out = b"[".to_vec();
    for (index, id) in ids.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"user_id\":");
        push_string(&mut out, id);
        out.extend_from_slice(b",\"user_info\":");
        out.extend_from_slice(hash.get_value(id).map_or("{}", RawValue::get).as_bytes());
        out.push(b'}');
    }
    out.push(b']');
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel::ChannelName;
    use crate::protocol::error::close;
    use crate::protocol::socket_id::SocketId;

    fn terms(version: EngineVersion) -> GreetingTerms {
        GreetingTerms { version, upgrades: true, max_payload: 1000 }
    }

    /// Some messages as a client that polls gets them.
    fn told(messages: &[Message], version: EngineVersion) -> (String, bool) {
        let frames: Vec<u8> = messages.iter().flat_map(|one| one.bytes().to_vec()).collect();
        let translated = translate_frames(&frames, terms(version));
        let body = version.answer_body(&translated.frames);
        (String::from_utf8(body).unwrap(), translated.is_last)
    }

    #[test]
    fn events_that_come_together_are_told_together() {
        let channel = ChannelName::parse("c", 200).unwrap();
        let events =
            [Message::event(&channel, "e", "\"😀\""), Message::event(&channel, "f", "\"1\"")];
        let (body, _) = told(&events, EngineVersion::V3);
        assert_eq!(body, "16:42[\"e\",\"c\",\"😀\"]13:42[\"f\",\"c\",1]");
        assert_eq!(EngineVersion::V3.split_body(&body).unwrap().len(), 2);
        let (body, _) = told(&events, EngineVersion::V4);
        assert_eq!(body, "42[\"e\",\"c\",\"😀\"]\x1e42[\"f\",\"c\",1]");
    }

    #[test]
    fn the_greeting_opens_a_session() {
        let greeting = [Message::established(SocketId { node: 1, number: 2 }, 30)];
        let open = r#"0{"sid":"1.2","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000}"#;
        assert_eq!(told(&greeting, EngineVersion::V4), (open.to_owned(), false));
        let (body, _) = told(&greeting, EngineVersion::V3);
        assert_eq!(body, format!("{}:{open}2:40", open.len()));
    }

    #[test]
    fn what_is_told_is_told_as_laravel_echo_server_did() {
        let room = ChannelName::parse("presence-r", 200).unwrap();
        let member = |text: &str| {
            let member = crate::protocol::member::Member::parse(text, 1000).unwrap();
            crate::protocol::event::MemberText::new(&member)
        };
        let ann = member(r#"{"user_id":1,"user_info":{"name":"Änn \"☕\""}}"#);
        let nobody = member(r#"{"user_id":"2"}"#);
        let info = r#"{"name":"Änn \"☕\""}"#;
        let both = [&ann, &nobody];
        for (message, packet) in [
            (
                Message::subscribed_presence(&room, 2, both.into_iter()),
                format!(
                    r#"42["presence:subscribed","presence-r",[{{"user_id":"1","user_info":{info}}},{{"user_id":"2","user_info":{{}}}}]]"#
                ),
            ),
            (
                Message::member_added(&room, &ann),
                format!(
                    r#"42["presence:joining","presence-r",{{"user_id":"1","user_info":{info}}}]"#
                ),
            ),
            (
                Message::member_removed(&room, &ann, true),
                format!(
                    r#"42["presence:leaving","presence-r",{{"user_id":"1","user_info":{info}}}]"#
                ),
            ),
            (
                Message::event(&room, "App\\Events\\A", r#""{\"a\":[1,null]}""#),
                r#"42["App\\Events\\A","presence-r",{"a":[1,null]}]"#.to_owned(),
            ),
            (
                Message::event(&room, "e", r#""not json \\u00e4""#),
                r#"42["e","presence-r","not json \\u00e4"]"#.to_owned(),
            ),
            (Message::subscription_succeeded(&room), String::new()),
            (Message::pong(), String::new()),
            (Message::ping(), String::new()),
            (packet_message("2"), "2".to_owned()),
        ] {
            assert_eq!(told(&[message], EngineVersion::V4), (packet, false));
        }
    }

    #[test]
    fn codes_to_which_others_do_not_come_back_disconnect() {
        let close =
            |error: &crate::protocol::error::Error| Message::close(error.code, &error.message);
        assert_eq!(told(&[close(&close::TERMINATED)], EngineVersion::V4).0, "41\x1e1");
        let (body, is_last) = told(&[close(&close::DRAINING)], EngineVersion::V4);
        assert_eq!((&*body, is_last), ("1", true));
    }

    #[test]
    fn what_clients_say_becomes_commands() {
        let parse = |text: &str| EchoRequest::parse(text, EngineVersion::V4);
        let command = |text: &str| EchoRequest::Command(text.to_owned());
        assert_eq!(
            parse(r#"2["subscribe",{"channel":"a","auth":{}}]"#),
            command(r#"{"event":"pusher:subscribe","data":{"channel":"a"}}"#)
        );
        // With the number of an acknowledgement, and in the form of older clients.
        assert_eq!(
            parse(
                r#"2/,17["client event","{\"event\":\"client-e\",\"channel\":\"private-a\",\"data\":1}"]"#
            ),
            command(r#"{"event":"client-e","channel":"private-a","data":1}"#)
        );
        let headers = vec![("A".to_owned(), "b".to_owned()), ("N".to_owned(), "1".to_owned())];
        assert_eq!(
            parse(
                r#"2["subscribe",{"channel":"private-a","auth":{"headers":{"A":"b","N":1,"O":{},"X":null}}}]"#
            ),
            EchoRequest::Authorize { channel: "private-a".to_owned(), headers }
        );
        assert_eq!(parse("0"), EchoRequest::Connect);
        assert_eq!(parse(r#"0{"token":"x"}"#), EchoRequest::Connect);
        assert_eq!(parse("1"), EchoRequest::Disconnect);
        assert_eq!(parse(r#"51-["e",{"_placeholder":true,"num":0}]"#), EchoRequest::Binary);
        let elsewhere = |version| EchoRequest::parse("0/admin?a=b,", version);
        let text = r#"44/admin,"Invalid namespace""#.to_owned();
        assert_eq!(elsewhere(EngineVersion::V3), EchoRequest::Elsewhere(text));
        for nothing in ["", "2", "2{}", "9", "2[]", "2[7]"] {
            assert_eq!(parse(nothing), command(""), "{nothing}");
        }
    }

    #[test]
    fn data_of_members_comes_in_two_forms() {
        let text = r#"{"user_id":1,"user_info":{"a":"b"}}"#;
        let as_object = format!(r#"{{"channel_data":{text}}}"#);
        let as_text = format!(r#"{{"auth":"k:s","channel_data":{}}}"#, serde_json::json!(text));
        assert_eq!(channel_data(&as_object).as_deref(), Some(text));
        assert_eq!(channel_data(&as_text).as_deref(), Some(text));
        assert_eq!(channel_data("true"), None);
        assert_eq!(channel_data(r#"{"auth":"k:s"}"#), None);
    }
}
