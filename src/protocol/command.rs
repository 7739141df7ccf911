//! Every message that a client may send. All forms of Pusher's, Reverb's and Soketi's clients are accepted: `data` as
//! an object, or as a string that contains one.

use std::borrow::Cow;

use memchr::memchr;
use serde_json::value::RawValue;

use super::json::{self, JsonObject, NotAString};

/// One frame's meaning. Text is borrowed from the frame where it can be.
#[derive(Debug)]
pub enum ClientCommand<'a> {
    /// `pusher:ping`, which every server answers.
    Ping,
    /// `pusher:pong`, the answer to the server's own.
    Pong,
    /// To a channel, with what proves the right to it.
    Subscribe(Subscribe),
    /// From the channel of that name.
    Unsubscribe(String),
    /// As a user, once for the connection.
    SignIn(SignIn),
    /// To the other subscribers of a channel.
    ClientEvent(ClientEvent<'a>),
}

/// `pusher:subscribe`. An `auth` of `""` is none.
#[derive(Debug)]
pub struct Subscribe {
    /// As it was sent; whether it is a name is checked later.
    pub channel: String,
    /// `KEY:SIGNATURE`.
    pub auth: Option<String>,
    /// The raw text, as it was signed.
    pub channel_data: Option<String>,
}

/// `pusher:signin`.
#[derive(Debug)]
pub struct SignIn {
    /// `KEY:SIGNATURE`, of the socket and of `user_data`.
    pub auth: Option<String>,
    /// The raw text, as it was signed.
    pub user_data: String,
}

/// `client-…`: what subscribers send each other.
#[derive(Debug)]
pub struct ClientEvent<'a> {
    /// Begins with `client-`.
    pub event: Cow<'a, str>,
    /// The sender must be subscribed to it.
    pub channel: Cow<'a, str>,
    /// `null` counts as none.
    pub data: Option<&'a RawValue>,
}

/// Why a frame means nothing.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum MalformedCommand {
    /// Not JSON, no event, a wrong type, or an event that clients do not send.
    Message,
    /// A client event without a channel (case C11).
    ClientEvent,
    /// A subscription to this channel, in which that field should be a string.
    Subscribe { channel: String, field: &'static str },
}

impl From<NotAString> for MalformedCommand {
    fn from(_: NotAString) -> Self {
        Self::Message
    }
}

impl<'a> ClientCommand<'a> {
    /// Its event, and its channel if it is about one.
    /// For the log and the console, which show no data.
    pub fn event_and_channel(&self) -> (&str, &str) {
        match self {
            Self::Ping => ("pusher:ping", ""),
            Self::Pong => ("pusher:pong", ""),
            Self::Subscribe(request) => ("pusher:subscribe", &request.channel),
            Self::Unsubscribe(channel) => ("pusher:unsubscribe", channel),
            Self::SignIn(_) => ("pusher:signin", ""),
            Self::ClientEvent(event) => (&event.event, &event.channel),
        }
    }

    /// Parses a message as far as that is possible without its connection. A message is parsed once; the parts that
    /// are passed on stay the bytes that came.
    /// # Errors
    /// The fault, from which the error for the client follows.
    pub fn parse(text: &'a str) -> Result<Self, MalformedCommand> {
        if let Some(request) = plain_subscribe(text) {
            return Ok(Self::Subscribe(request));
        }
        let frame = JsonObject::parse(text).ok_or(MalformedCommand::Message)?;
        let event = frame.get_string("event")?.ok_or(MalformedCommand::Message)?;
        match &*event {
            "pusher:ping" => Ok(Self::Ping),
            "pusher:pong" => Ok(Self::Pong),
            "pusher:subscribe" => with_data(&frame, parse_subscribe).map(Self::Subscribe),
            "pusher:unsubscribe" => with_data(&frame, parse_unsubscribe).map(Self::Unsubscribe),
            "pusher:signin" => with_data(&frame, sign_in).map(Self::SignIn),
            _ if event.starts_with("client-") => {
                // The event alone does not say where it goes.
                let channel = frame.get_string("channel")?.ok_or(MalformedCommand::ClientEvent)?;
                Ok(Self::ClientEvent(ClientEvent { event, channel, data: frame.get_value("data") }))
            }
            _ => Err(MalformedCommand::Message),
        }
    }
}

/// A subscription as pusher-js writes it, without blanks and escapes; whatever is anything else is left to a parser of
/// JSON.
fn plain_subscribe(text: &str) -> Option<Subscribe> {
    let members = text.strip_prefix(r#"{"event":"pusher:subscribe","data":{"#)?;
    let mut members = members.strip_suffix("}}")?;
    let (mut channel, mut auth, mut channel_data) = (None, None, None);
    loop {
        let (name, rest) = plain_string(members)?;
        let (value, rest) = plain_string(rest.strip_prefix(':')?)?;
        let place = match name {
            "channel" => &mut channel,
            "auth" => &mut auth,
            "channel_data" => &mut channel_data,
            _ => return None,
        };
        if place.replace(value).is_some() {
            return None;
        }
        if rest.is_empty() {
            break;
        }
        members = rest.strip_prefix(',')?;
    }
    // Some libraries send an empty text for what they do not have.
    let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    Some(Subscribe {
        channel: channel?.to_owned(),
        auth: given(auth),
        channel_data: given(channel_data),
    })
}

/// The string that `text` begins with, where it stands for itself, and what is behind it.
fn plain_string(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('"')?;
    let (inner, rest) = text.split_at_checked(memchr(b'"', text.as_bytes())?)?;
    let is_plain = inner.bytes().all(|byte| byte >= b' ' && byte != b'\\');
    Some((inner, rest.get(1..)?)).filter(|_| is_plain)
}

/// Reads `data`, which is an object or a string that holds one.
/// pusher-js sends objects; others encode twice.
fn with_data<T>(
    frame: &JsonObject<'_>,
    read: impl FnOnce(&JsonObject<'_>) -> Result<T, MalformedCommand>,
) -> Result<T, MalformedCommand> {
    let data = frame.get_value("data").ok_or(MalformedCommand::Message)?;
    let text = json::string_text(data).unwrap_or_else(|| Cow::Borrowed(data.get()));
    read(&JsonObject::parse(&text).ok_or(MalformedCommand::Message)?)
}

/// `data` is `{"channel", "auth", "channel_data"}`, of which only the first must be there.
fn parse_subscribe(data: &JsonObject<'_>) -> Result<Subscribe, MalformedCommand> {
    // Some libraries send an empty text for what they do not have.
    let given = |text: Cow<'_, str>| (!text.is_empty()).then(|| text.into_owned());
    let channel = data.get_string("channel")?.ok_or(MalformedCommand::Message)?;
    // Told apart from other malformed frames: a wrong type is answered on the channel itself.
    let field = |field| match data.get_string(field) {
        Ok(text) => Ok(text.and_then(given)),
        Err(NotAString(field)) => {
            Err(MalformedCommand::Subscribe { channel: channel.clone().into_owned(), field })
        }
    };
    let (auth, channel_data) = (field("auth")?, field("channel_data")?);
    Ok(Subscribe { channel: channel.into_owned(), auth, channel_data })
}

/// `data` is `{"channel"}`. That the client is not subscribed is no error.
fn parse_unsubscribe(data: &JsonObject<'_>) -> Result<String, MalformedCommand> {
    Ok(data.get_string("channel")?.ok_or(MalformedCommand::Message)?.into_owned())
}

/// `data` is `{"auth", "user_data"}`.
fn sign_in(data: &JsonObject<'_>) -> Result<SignIn, MalformedCommand> {
    Ok(SignIn {
        auth: data.get_string("auth")?.map(Cow::into_owned),
        // Missing is refused as a user that cannot be read.
        user_data: data.get_string("user_data")?.unwrap_or_default().into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribed(text: &str) -> Option<(String, Option<String>, Option<String>)> {
        match ClientCommand::parse(text) {
            Ok(ClientCommand::Subscribe(s)) => Some((s.channel, s.auth, s.channel_data)),
            _ => None,
        }
    }

    #[test]
    fn subscriptions_are_read_in_every_form() {
        let plain = Some(("pub".to_owned(), None, None));
        assert_eq!(
            subscribed(r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"pub"}}"#),
            plain
        );
        assert_eq!(
            subscribed(r#"{"event":"pusher:subscribe","data":{"channel":"pub","auth":null}}"#),
            plain
        );
        assert_eq!(
            subscribed(r#"{"data":"{\"channel\":\"pub\"}","event":"pusher:subscribe"}"#),
            plain
        );
        assert_eq!(
            subscribed(
                r#"{"event":"pusher:subscribe","data":{"channel":"presence-x","auth":"k:s","channel_data":"{\"user_id\": 1}"}}"#
            ),
            Some((
                "presence-x".to_owned(),
                Some("k:s".to_owned()),
                Some(r#"{"user_id": 1}"#.to_owned())
            ))
        );
    }

    #[test]
    fn what_is_written_plainly_is_read_as_by_a_parser() {
        for members in [
            r#""channel":"c""#,
            r#""auth":"k:s","channel":"private-c""#,
            r#""channel":"c","auth":"","channel_data":"""#,
            r#""channel":"c","channel_data":"1""#,
            r#""channel":"ä","auth":"x, y:{}}""#,
            r#""channel":"c","channel":"d""#,
            r#""auth":"k:s""#,
            r#""channel":"c","#,
            r#""channel":"c" "#,
            r#""channel":"c"x"#,
            r#""channel":"c","other":"x""#,
            r#""channel":"c\"","auth":"x""#,
            "\"channel\":\"c\u{1}\"",
            r#""channel":"c","auth":1"#,
            r#""channel":"c"},"x":{"y":"z""#,
            "",
        ] {
            let plain = format!(r#"{{"event":"pusher:subscribe","data":{{{members}}}}}"#);
            // A blank leaves it to the parser.
            let parsed = plain.replacen(':', ": ", 1);
            let said =
                |text: &str| ClientCommand::parse(text).map(|command| format!("{command:?}"));
            assert_eq!(said(&plain), said(&parsed), "{plain}");
        }
    }

    #[test]
    fn what_means_nothing_is_malformed() {
        for text in [
            "",
            "x",
            "[]",
            "1",
            "{}",
            r#"{"event":1}"#,
            r#"{"event":null}"#,
            r#"{"event":"foo","channel":"c","data":{}}"#,
            r#"{"event":"pusher:unknown","data":{}}"#,
            r#"{"event":"pusher_internal:member_added","channel":"c","data":"{}"}"#,
            r#"{"event":"pusher:subscribe"}"#,
            r#"{"event":"pusher:subscribe","data":"x"}"#,
            r#"{"event":"pusher:subscribe","data":[]}"#,
            r#"{"event":"pusher:subscribe","data":{"channel":1}}"#,
            r#"{"event":"client-x","channel":1,"data":{}}"#,
        ] {
            assert_eq!(ClientCommand::parse(text).err(), Some(MalformedCommand::Message), "{text}");
        }
        for text in [r#"{"event":"client-x","data":{}}"#, r#"{"event":"client-x","channel":null}"#]
        {
            assert_eq!(
                ClientCommand::parse(text).err(),
                Some(MalformedCommand::ClientEvent),
                "{text}"
            );
        }
    }

    #[test]
    fn a_field_of_the_wrong_type_is_named() {
        for wrong in ["1", "true", "{}", r#"["x"]"#, r#""\ud83d""#] {
            for field in ["auth", "channel_data"] {
                let data = format!(r#"{{"channel":"c","{field}":{wrong}}}"#);
                let as_text = serde_json::Value::from(data.as_str()).to_string();
                for data in [data, as_text] {
                    let text = format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#);
                    let named = MalformedCommand::Subscribe { channel: "c".to_owned(), field };
                    assert_eq!(ClientCommand::parse(&text).err(), Some(named), "{text}");
                }
            }
        }
    }

    #[test]
    fn client_events_may_have_no_data() {
        for text in [
            r#"{"event":"client-x","channel":"c"}"#,
            r#"{"event":"client-x","channel":"c","data":null}"#,
        ] {
            let Ok(ClientCommand::ClientEvent(event)) = ClientCommand::parse(text) else {
                panic!("{text}")
            };
            assert!(event.data.is_none(), "{text}");
        }
    }

    #[test]
    fn pings_need_no_data() {
        for text in [
            r#"{"event":"pusher:ping"}"#,
            r#"{"event": "pusher:ping","data":{}}"#,
            r#"{"event":"pusher:ping","data":""}"#,
            r#"{"event":"pusher:ping","data":null}"#,
        ] {
            assert!(matches!(ClientCommand::parse(text), Ok(ClientCommand::Ping)), "{text}");
        }
    }
}
