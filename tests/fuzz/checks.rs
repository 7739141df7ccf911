//! What must hold of any bytes that come from outside: one function for each door. The fuzz targets feed
//! them what a fuzzer makes up, `cargo test` the committed corpus and what proptest makes up. A rule that
//! is broken panics.

use fanfare::protocol::auth::{Signer, verify_request};
use fanfare::protocol::command::ClientCommand;
use fanfare::protocol::event::{MemberText, Message};
use fanfare::protocol::member::{Member, User, UserId};
use fanfare::protocol::query::Query;
use fanfare::socket::frames::{FrameAssembler, FrameLimits, IncomingMessage, ProtocolBreach};
use serde_json::{Value, json};

/// Largest WebSocket message that [`frames`] lets through, and largest info of a member.
const MAX: usize = 100;

/// A text from a client means something or nothing; what it means is the same when it is written anew,
/// with `data` as an object or as a string that holds one.
pub fn command(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(command) = ClientCommand::parse(text) else { return };
    let meaning = meaning(&command);
    for again in written(&command) {
        let parsed = ClientCommand::parse(&again).expect("what was written can be read");
        assert_eq!(self::meaning(&parsed), meaning, "{text} written as {again}");
    }
}

/// All that a command says.
fn meaning(command: &ClientCommand<'_>) -> (&'static str, [Option<String>; 3]) {
    let some = |text: &str| Some(text.to_owned());
    match command {
        ClientCommand::Ping => ("ping", [None, None, None]),
        ClientCommand::Pong => ("pong", [None, None, None]),
        ClientCommand::Subscribe(one) => {
            ("subscribe", [some(&one.channel), one.auth.clone(), one.channel_data.clone()])
        }
        ClientCommand::Unsubscribe(channel) => ("unsubscribe", [some(channel), None, None]),
        ClientCommand::SignIn(one) => ("signin", [some(&one.user_data), one.auth.clone(), None]),
        ClientCommand::ClientEvent(one) => (
            "client event",
            [some(&one.event), some(&one.channel), one.data.map(|data| data.get().to_owned())],
        ),
    }
}

/// The texts that clients would say it with.
fn written(command: &ClientCommand<'_>) -> Vec<String> {
    let (event, data) = match command {
        ClientCommand::Ping => {
            return vec![json!({ "event": "pusher:ping", "data": {} }).to_string()];
        }
        ClientCommand::Pong => return vec![json!({ "event": "pusher:pong" }).to_string()],
        ClientCommand::ClientEvent(one) => {
            let (event, channel) = (json!(one.event), json!(one.channel));
            let data = one.data.map_or("null", |data| data.get());
            return vec![format!(r#"{{"data":{data},"channel":{channel},"event":{event}}}"#)];
        }
        ClientCommand::Subscribe(one) => (
            "pusher:subscribe",
            json!({ "channel": one.channel, "auth": one.auth, "channel_data": one.channel_data }),
        ),
        ClientCommand::Unsubscribe(channel) => {
            ("pusher:unsubscribe", json!({ "channel": channel }))
        }
        ClientCommand::SignIn(one) => {
            ("pusher:signin", json!({ "auth": one.auth, "user_data": one.user_data }))
        }
    };
    let string = Value::from(data.to_string());
    let frame = |data: Value| json!({ "event": event, "data": data }).to_string();
    vec![frame(data), frame(string)]
}

/// A query comes apart without harm, and signed as the API's page has it, it verifies however its values
/// are encoded.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let query = Query::parse(text);
    let signer = Signer::new("secret");
    let mut pairs: Vec<(String, &str)> = Vec::new();
    for name in query.names() {
        let value = query.get(name).expect("a name that is there has a value");
        query.list(name.trim_end_matches("[]"));
        let lower = name.to_ascii_lowercase();
        if lower != "auth_signature" && !pairs.iter().any(|(other, _)| *other == lower) {
            pairs.push((lower, value));
        }
    }
    let unsigned = Query::parse(text.split('&').next().unwrap_or_default());
    assert!(verify_request(&signer, "GET", "/p", "", &unsigned).is_err(), "unsigned: {text}");
    let encoded: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    let sent = encoded.join("&");
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    let plain: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let signature = signer.sign(&["GET\n/p\n", &plain.join("&")]);
    let sent = format!("{sent}&auth_signature={signature}");
    let verified = verify_request(&signer, "GET", "/p", "", &Query::parse(&sent));
    assert_eq!(verified, Ok(()), "{text} sent as {sent}");
}

/// Everything but letters, digits and `_` as `%XX`.
pub fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let one = |byte: u8| if plain(byte) { (byte as char).into() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

/// A `channel_data` or `user_data` is refused, or holds someone whom all clients can be told of.
pub fn channel_data(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(member) = Member::parse(text, MAX) {
        assert_id(&member.user_id);
        let info: Value = serde_json::from_str(&member.user_info).expect("an info is JSON");
        let room = fanfare::protocol::channel::ChannelName::parse("presence-x", 200);
        let message = Message::member_added(&room.expect("a name"), &MemberText::new(&member));
        let data = data(&message);
        assert_eq!(data["user_id"], member.user_id.as_str(), "{text}");
        assert_eq!(data["user_info"], info, "{text}");
    }
    if let Some(user) = User::parse(text) {
        assert_id(&user.id);
        assert!(user.watchlist.ids.len() <= 100, "{text}");
        assert_eq!(&*user.data, text);
        assert_eq!(data(&Message::signed_in(&user.data))["user_data"], text);
        if let Ok(member) = Member::of_user(&user, MAX) {
            assert_eq!(member.user_id, user.id);
        }
    }
}

fn assert_id(id: &UserId) {
    assert!((1..=UserId::MAX).contains(&id.as_str().chars().count()), "{id}");
}

/// What stands in a frame's `data`, which is JSON in a string.
fn data(message: &Message) -> Value {
    let bytes = message.bytes();
    // A length of 123 reads as a brace, so the header is told by its form.
    let start = match bytes[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let frame: Value = serde_json::from_slice(&bytes[start..]).expect("a frame is JSON");
    let text = frame["data"].as_str().expect("data is a string");
    serde_json::from_str(text).expect("JSON within")
}

/// A stream of WebSocket frames says the same however its bytes are cut. The first byte says how.
pub fn frames(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let (whole, ended) = heard(bytes, bytes.len().max(1));
    for step in [1, 2, usize::from(cut).max(3)] {
        assert_eq!(heard(bytes, step), (whole.clone(), ended), "{step} at a time");
    }
}

/// What is heard of `bytes` when they come `step` at a time, and the breach that ended it.
fn heard(bytes: &[u8], step: usize) -> (Vec<String>, Option<ProtocolBreach>) {
    let (mut frames, mut all, mut closed) = (FrameAssembler::default(), Vec::new(), false);
    for chunk in bytes.chunks(step) {
        let fed = frames.feed(
            &mut chunk.to_vec(),
            FrameLimits { max: MAX, inflates: true },
            |incoming| {
                if let IncomingMessage::Text(text) = incoming {
                    assert!(text.len() <= MAX, "a message over the limit");
                }
                closed |= matches!(incoming, IncomingMessage::Close(_));
                all.push(format!("{incoming:?}"));
                true
            },
        );
        if let Err(breach) = fed {
            return (all, Some(breach));
        }
        if closed {
            break;
        }
    }
    (all, None)
}
