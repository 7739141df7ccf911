//! `fanfare listen`: prints events as they arrive, one per line. Private and presence channels are joined with the
//! app's own secret.

use std::io::{self, Write};

use serde_json::{Value, json};

use tokio::time::timeout;

use super::client::{ApiTarget, PATIENCE};
use super::socket::{ClientSocket, SocketError, next_message, send_frame};
use super::{CommandError, coloured, without_controls};

/// Listens until it is interrupted.
///
/// # Errors
/// The server closes the connection, or refuses all subscriptions.
pub(super) async fn listen(
    target: &ApiTarget,
    channels: &[String],
    user: Option<&str>,
    as_json: bool,
) -> Result<(), CommandError> {
    let (mut socket, id) = open_established(target).await?;
    for channel in channels {
        request_subscription(&mut socket, target, channel, (&id, user)).await?;
    }
    // Those that were not refused; the command ends with the last.
    let mut heard: Vec<&str> = channels.iter().map(String::as_str).collect();
    while !heard.is_empty() {
        let Some(frame) = next_event(&mut socket).await? else { continue };
        let text = if as_json { format!("{frame}\n") } else { event_line(&frame) };
        if io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
            // A reader that closes the pipe early has read enough; that is no error.
            return Ok(());
        }
        let word = |name| frame.get(name).and_then(Value::as_str);
        if word("event") == Some("pusher:subscription_error") {
            heard.retain(|channel| word("channel") != Some(channel));
        }
    }
    Err(CommandError("the server refused every channel".to_owned()))
}

/// A WebSocket that is established, and its id, such as `1234.5678`. The id is needed for
/// signatures: they are over it and the channel.
///
/// # Errors
/// The server cannot be reached, refuses the socket, or does not greet in time.
pub(super) async fn open_established(
    target: &ApiTarget,
) -> Result<(ClientSocket, String), SocketError> {
    let mut socket = target.open_socket().await?;
    let greeted = timeout(PATIENCE, read_greeting(&mut socket)).await;
    let id = greeted.unwrap_or(Err(SocketError::Silent))?;
    Ok((socket, id))
}

/// The id that the server greets with, in `pusher:connection_established`. An error in the
/// greeting's place is the refusal, with its code.
async fn read_greeting(socket: &mut ClientSocket) -> Result<String, SocketError> {
    loop {
        let Some(frame) = next_event(socket).await? else { continue };
        let data = frame.get("data");
        if frame.get("event").and_then(Value::as_str) == Some("pusher:error") {
            let said = |name| data.and_then(|data| data.get(name));
            let code =
                said("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
            // A `pusher:error` may lack its code or its message; it still ends the command.
            let message = said("message").and_then(Value::as_str).unwrap_or_default();
            // Reverb says no more than this, and closes nothing.
            return Err(SocketError::Closed(code.unwrap_or_default(), message.to_owned()));
        }
        let data = data.and_then(Value::as_str).unwrap_or_default();
        // Data that is not JSON has no socket id, and is reported below as a wrong greeting.
        let data: Value = serde_json::from_str(data).unwrap_or_default();
        let Some(id) = data.get("socket_id").and_then(Value::as_str) else {
            let text = without_controls(&frame.to_string());
            let text = format!("the server greets with something else: {text}");
            return Err(SocketError::Garbled(text));
        };
        return Ok(id.to_owned());
    }
}

/// Sends a subscription; the response is an event like any other. On a presence channel the command appears as a
/// member of its own, named after the socket unless `user` is given.
pub(super) async fn request_subscription(
    socket: &mut ClientSocket,
    target: &ApiTarget,
    channel: &str,
    (id, user): (&str, Option<&str>),
) -> Result<(), SocketError> {
    let mut data = json!({ "channel": channel });
    let signature = if channel.starts_with("presence-") {
        let user = user.map_or_else(|| format!("fanfare-listen-{id}"), str::to_owned);
        let member = json!({ "user_id": user, "user_info": {} }).to_string();
        let signature = target.signer.sign(&[id, ":", channel, ":", &member]);
        if let Some(data) = data.as_object_mut() {
            data.insert("channel_data".to_owned(), member.into());
        }
        Some(signature)
    } else {
        channel.starts_with("private-").then(|| target.signer.sign(&[id, ":", channel]))
    };
    if let (Some(signature), Some(data)) = (signature, data.as_object_mut()) {
        data.insert("auth".to_owned(), format!("{}:{signature}", target.key).into());
    }
    send_frame(socket, &json!({ "event": "pusher:subscribe", "data": data })).await
}

/// The next frame that is for people. A `pusher:ping` is answered here, and gives `None`.
pub(super) async fn next_event(socket: &mut ClientSocket) -> Result<Option<Value>, SocketError> {
    let text = next_message(socket).await?;
    let frame: Value = serde_json::from_str(&text).map_err(|_| {
        SocketError::Garbled(format!(
            "the server sends what is not JSON: {}",
            without_controls(&text)
        ))
    })?;
    if frame.get("event").and_then(Value::as_str) == Some("pusher:ping") {
        send_frame(socket, &json!({ "event": "pusher:pong", "data": {} })).await?;
        return Ok(None);
    }
    Ok(Some(frame))
}

/// Channel, event and data, divided by tabs so that `cut` and `awk` can take it apart.
fn event_line(frame: &Value) -> String {
    let text = |name: &str| {
        frame.get(name).map(|value| match value {
            Value::String(text) => without_controls(text),
            other => without_controls(&other.to_string()),
        })
    };
    let channel = text("channel").unwrap_or_else(|| "-".to_owned());
    // A frame without an event or data is shown with an empty column.
    let event = coloured(1, &text("event").unwrap_or_default());
    format!("{channel}\t{event}\t{}\n", text("data").unwrap_or_default())
}
