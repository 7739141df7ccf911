//! A script's expectations, held against what was heard, and the other way round: what was heard
//! as the script's line. Besides, every frame is held to the rules that all clients rely on.

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::{Value, json};

use crate::support::fixture::established;
use crate::support::websocket::Heard;

/// A frame as a script's shorthand describes it.
struct Frame {
    event: String,
    channel: Option<String>,
    user_id: Option<String>,
    data: Data,
}

enum Data {
    /// The text itself; `…` stands for any characters.
    Text(String),
    /// A string that holds this JSON, whatever its spaces and the order of its keys.
    Json(Value),
    /// JSON that is no string: only in `pusher:error`.
    Object(Value),
}

/// Whether `heard` is what the text behind `<` means; if not, why.
pub fn check(what: &str, heard: &Heard) -> Result<(), String> {
    let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
    let control = match word {
        "ws-ping" => Some(Heard::Ping(rest.as_bytes().to_vec())),
        "ws-pong" => Some(Heard::Pong(rest.as_bytes().to_vec())),
        "end" => Some(Heard::End),
        _ => None,
    };
    if let Some(control) = control {
        return if *heard == control { Ok(()) } else { Err(format!("heard {heard:?}")) };
    }
    if word == "close" {
        let Heard::Close(Some((code, reason))) = heard else {
            return Err(format!("heard {heard:?}"));
        };
        let (wanted, text) = rest.split_once(' ').unwrap_or((rest, "…"));
        let same = wanted == code.to_string() && glob(text, reason);
        return if same { Ok(()) } else { Err(format!("heard close {code} {reason}")) };
    }
    let Heard::Text(text) = heard else { return Err(format!("heard {heard:?}")) };
    is_sound(text).map_err(|error| format!("no client should hear this: {error}: {text}"))?;
    let same = match word {
        "established" => established(text).is_ok(),
        _ if what.starts_with('{') => glob(what, text),
        _ => parse(word, rest)?.matches(text),
    };
    if same { Ok(()) } else { Err(format!("heard {text}")) }
}

/// The shorthand of a frame, as `docs/testing.md` lists it.
fn parse(word: &str, rest: &str) -> Result<Frame, String> {
    let parse_json =
        |text: &str| serde_json::from_str(text).map_err(|error| format!("{error} in {text:?}"));
    let (first, after) = rest.split_once(' ').unwrap_or((rest, ""));
    let frame = |event: &str, channel: &str, data| Frame {
        event: event.to_owned(),
        channel: (!channel.is_empty()).then(|| channel.to_owned()),
        user_id: None,
        data,
    };
    let nothing = || Data::Text("{}".to_owned());
    Ok(match word {
        "pong" => frame("pusher:pong", "", nothing()),
        "cache_miss" => frame("pusher:cache_miss", first, nothing()),
        "subscription_succeeded" if after.is_empty() => {
            frame("pusher_internal:subscription_succeeded", first, nothing())
        }
        "subscription_succeeded" | "member_added" | "member_removed" | "subscription_count" => {
            frame(&format!("pusher_internal:{word}"), first, Data::Json(parse_json(after)?))
        }
        "watchlist_events" => {
            frame("pusher_internal:watchlist_events", "", Data::Json(parse_json(rest)?))
        }
        "signin_success" => {
            frame("pusher:signin_success", "", Data::Json(json!({ "user_data": rest })))
        }
        "error" => {
            let code: u16 = first.parse().map_err(|_| "error CODE")?;
            let (channel, message) = match after.strip_prefix("in ") {
                Some(text) => {
                    text.split_once(": ").unwrap_or_else(|| (text.trim_end_matches(':'), ""))
                }
                None => ("", after),
            };
            let message = if message.is_empty() { "…" } else { message };
            let data = Data::Object(json!({ "code": code, "message": message }));
            frame("pusher:error", channel, data)
        }
        "subscription_error" => {
            let mut words = after.splitn(3, ' ');
            let kind = words.next().filter(|kind| !kind.is_empty()).unwrap_or("AuthError");
            let status: u16 = words.next().unwrap_or("401").parse().map_err(|_| "no status")?;
            let text = words.next().unwrap_or("…");
            let data = json!({ "type": kind, "error": text, "status": status });
            frame("pusher:subscription_error", first, Data::Json(data))
        }
        event => {
            let (user_id, text) = match after.strip_prefix("from ") {
                Some(text) => {
                    let (id, text) = text.split_once(": ").ok_or("from ID: DATA")?;
                    (Some(id.to_owned()), text)
                }
                None => (None, after),
            };
            Frame { user_id, ..frame(event, first, Data::Text(text.to_owned())) }
        }
    })
}

impl Frame {
    fn matches(&self, text: &str) -> bool {
        let Ok(heard) = serde_json::from_str::<Value>(text) else { return false };
        let is = |key: &str, wanted: &Option<String>| {
            heard.get(key).and_then(Value::as_str) == wanted.as_deref()
        };
        // An error may name a channel though the script does not care.
        let channel = matches!(self.data, Data::Object(_)) && self.channel.is_none()
            || is("channel", &self.channel);
        let data = match (&self.data, &heard["data"]) {
            (Data::Text(wanted), Value::String(text)) => glob(wanted, text),
            (Data::Json(wanted), Value::String(text)) => {
                serde_json::from_str(text).is_ok_and(|data: Value| same(wanted, &data))
            }
            (Data::Object(wanted), data) => same(wanted, data),
            _ => false,
        };
        heard["event"] == *self.event && channel && is("user_id", &self.user_id) && data
    }
}

/// Whether two JSON values are equal, where in `wanted` a string `…` is anything, a `…` within a
/// string is any text, and lists of ids are sets.
pub fn same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::String(wanted), _) if wanted == "…" => true,
        (Value::String(wanted), Value::String(found)) => glob(wanted, found),
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(found).all(|(a, b)| same(a, b))
        }
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.len() == found.len()
                && wanted.iter().all(|(key, value)| {
                    found.get(key).is_some_and(|found| match key.as_str() {
                        "ids" | "user_ids" | "users" => same(&sorted(value), &sorted(found)),
                        _ => same(value, found),
                    })
                })
        }
        _ => wanted == found,
    }
}

fn sorted(list: &Value) -> Value {
    let Value::Array(items) = list else { return list.clone() };
    let mut items = items.clone();
    items.sort_by_key(Value::to_string);
    Value::Array(items)
}

/// Whether `text` is `pattern`, in which `…` stands for any characters.
pub fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, mut pattern)) = pattern.split_once('…') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    while let Some((part, rest)) = pattern.split_once('…') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
        pattern = rest;
    }
    text.ends_with(pattern)
}

/// The rules of every frame: an object with an event, no key twice and none `null`, the keys in one
/// order, `data` a string, but in an error an object with a whole number and a text (cases H18, M06).
pub fn is_sound(text: &str) -> Result<(), String> {
    let Keys(keys) = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let order = ["event", "channel", "data", "user_id"];
    let places: Option<Vec<usize>> =
        keys.iter().map(|key| order.iter().position(|known| known == key)).collect();
    let places = places.ok_or_else(|| format!("an unknown key among {keys:?}"))?;
    if !places.is_sorted_by(|a, b| a < b) {
        return Err(format!("keys in the order {keys:?}"));
    }
    let frame: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for (key, value) in frame.as_object().into_iter().flatten() {
        let sound = match key.as_str() {
            "data" if frame["event"] == "pusher:error" => {
                (value["code"].is_u64() || value["code"].is_null()) && value["message"].is_string()
            }
            _ => value.is_string(),
        };
        if !sound {
            return Err(format!("{key} is {value}"));
        }
    }
    if frame["event"].is_string() { Ok(()) } else { Err("it has no event".to_owned()) }
}

/// The keys of a JSON object in the order they stand.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Keys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// What was heard in the words that would have expected it.
pub fn render(heard: &Heard) -> String {
    match heard {
        Heard::Deflated(bytes) => format!("a compressed text of {} bytes", bytes.len()),
        Heard::Text(text) => render_text(text).unwrap_or_else(|| text.clone()),
        Heard::Close(Some((code, reason))) => format!("close {code} {reason}").trim().to_owned(),
        Heard::Close(None) => "close".to_owned(),
        Heard::Ping(payload) => format!("ws-ping {}", String::from_utf8_lossy(payload)),
        Heard::Pong(payload) => format!("ws-pong {}", String::from_utf8_lossy(payload)),
        Heard::Binary(payload) => format!("binary {}", String::from_utf8_lossy(payload)),
        Heard::End => "end".to_owned(),
    }
}

fn render_text(text: &str) -> Option<String> {
    let frame: Value = serde_json::from_str(text).ok()?;
    let event = frame["event"].as_str()?;
    if event == "pusher:connection_established" {
        return Some("established".to_owned());
    }
    let channel = frame["channel"].as_str().unwrap_or_default();
    let line = if event == "pusher:error" {
        let (code, message) = (&frame["data"]["code"], frame["data"]["message"].as_str()?);
        let place = if channel.is_empty() { String::new() } else { format!("in {channel}: ") };
        format!("error {code} {place}{message}")
    } else {
        let data = frame["data"].as_str()?;
        let short = event.strip_prefix("pusher_internal:");
        match (
            short.or_else(|| event.strip_prefix("pusher:")).unwrap_or(event),
            frame["user_id"].as_str(),
        ) {
            ("pong", _) => "pong".to_owned(),
            ("cache_miss", _) => format!("cache_miss {channel}"),
            ("subscription_succeeded", _) if data == "{}" => {
                format!("subscription_succeeded {channel}")
            }
            ("signin_success", _) => {
                let data: Value = serde_json::from_str(data).ok()?;
                format!("signin_success {}", data["user_data"].as_str()?)
            }
            ("watchlist_events", _) => format!("watchlist_events {data}"),
            ("subscription_error", _) => {
                let data: Value = serde_json::from_str(data).ok()?;
                let (kind, error) = (data["type"].as_str()?, data["error"].as_str()?);
                format!("subscription_error {channel} {kind} {} {error}", data["status"])
            }
            (name, Some(user_id)) => format!("{name} {channel} from {user_id}: {data}"),
            (name, None) => format!("{name} {channel} {data}"),
        }
    };
    // What cannot be said in one line of shorthand is shown as it came.
    let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
    parse(word, rest).ok().filter(|frame| frame.matches(text) && !line.contains('\n'))?;
    Some(line)
}

#[test]
fn what_is_heard_can_be_expected() {
    for text in [
        r#"{"event":"pusher:pong","data":"{}"}"#,
        r#"{"event":"pusher:error","channel":"c","data":{"code":4009,"message":"No: never"}}"#,
        r#"{"event":"e","channel":"c","data":" two\nlines"}"#,
        r#"{"event":"client-e","channel":"presence-c","data":"{\"k\":1}","user_id":"1"}"#,
        r#"{"event":"pusher:subscription_error","channel":"c","data":"{\"type\":\"AuthError\",\"error\":\"x y\",\"status\":401}"}"#,
    ] {
        let heard = Heard::Text(text.to_owned());
        assert_eq!(check(&render(&heard), &heard), Ok(()), "{}", render(&heard));
    }
}

#[test]
fn unsound_frames_are_told() {
    for text in [
        r#"{"event":"e","channel":null,"data":"1"}"#,
        r#"{"event":"e","data":"1","channel":"c"}"#,
        r#"{"event":"e","data":{}}"#,
        r#"{"event":"pusher:error","data":"{\"code\":1,\"message\":\"\"}"}"#,
        r#"{"event":"e","event":"e"}"#,
        r#"{"data":"1"}"#,
    ] {
        assert!(is_sound(text).is_err(), "{text}");
    }
}
