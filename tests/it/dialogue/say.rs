//! The shorthand behind `>` as the bytes that an SDK sends, signed where it would sign.

use super::world::Credentials;
use crate::support::sign::hmac_hex;
use crate::support::websocket::{BINARY, FIN, PING, PONG, TEXT, frame};

/// The bytes that the text behind `>` means.
pub fn says(what: &str, socket: &str, app: &Credentials) -> Result<Vec<u8>, String> {
    let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
    let sign = |text: String| format!("{}:{}", app.key, hmac_hex(&app.secret, &text));
    let text = match word {
        "text" => rest.to_owned(),
        "binary" => return Ok(frame(FIN | BINARY, rest.as_bytes())),
        "ws-ping" => return Ok(frame(FIN | PING, rest.as_bytes())),
        "ws-pong" => return Ok(frame(FIN | PONG, rest.as_bytes())),
        "ping" => r#"{"event":"pusher:ping","data":{}}"#.to_owned(),
        "subscribe" => {
            let (channel, how) = rest.split_once(' ').unwrap_or((rest, ""));
            let data = channel_data(how)?;
            let signed = channel.starts_with("private-") || channel.starts_with("presence-");
            let auth = match &data {
                _ if !signed || how == "unsigned" => String::new(),
                Some(data) => sign(format!("{socket}:{channel}:{data}")),
                None => sign(format!("{socket}:{channel}")),
            };
            subscription(channel, data.as_deref(), &auth)
        }
        "unsubscribe" => {
            let channel = serde_json::Value::from(rest);
            format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":{channel}}}}}"#)
        }
        "signin" => {
            let auth = sign(format!("{socket}::user::{rest}"));
            let data = serde_json::Value::from(rest);
            format!(r#"{{"event":"pusher:signin","data":{{"auth":"{auth}","user_data":{data}}}}}"#)
        }
        event if event.starts_with("client-") => {
            let (channel, data) = rest.split_once(' ').ok_or("client-EVENT CHANNEL DATA")?;
            format!(r#"{{"event":"{event}","channel":"{channel}","data":{data}}}"#)
        }
        _ if what.starts_with('{') => what.to_owned(),
        _ => return Err(format!("{word:?} is nothing to say")),
    };
    Ok(frame(FIN | TEXT, text.as_bytes()))
}

/// `as 1 {"name":"Ann"}` is the user 1 with that info, `with {…}` the data as it stands.
fn channel_data(how: &str) -> Result<Option<String>, String> {
    if let Some(data) = how.strip_prefix("with ") {
        return Ok(Some(data.to_owned()));
    }
    let Some(user) = how.strip_prefix("as ") else {
        let known = how.is_empty() || how == "unsigned";
        return if known { Ok(None) } else { Err(format!("subscribe CHANNEL {how}?")) };
    };
    Ok(Some(match user.split_once(' ') {
        Some((id, info)) => format!(r#"{{"user_id":"{id}","user_info":{info}}}"#),
        None => format!(r#"{{"user_id":"{user}"}}"#),
    }))
}

/// A subscription as pusher-js writes it.
pub fn subscription(channel: &str, data: Option<&str>, auth: &str) -> String {
    let channel = serde_json::Value::from(channel);
    let data = data
        .map(|data| format!(r#""channel_data":{},"#, serde_json::Value::from(data)))
        .unwrap_or_default();
    format!(
        r#"{{"event":"pusher:subscribe","data":{{"auth":"{auth}",{data}"channel":{channel}}}}}"#
    )
}
