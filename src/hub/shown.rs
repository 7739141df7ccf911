//! The log lines of frames with `--debug`: event and channel, never data. They are read off the frames, so nothing is
//! stored; at other log levels this costs a look at a flag.

use tracing::{Level, debug, enabled};

use crate::app::AppId;
use crate::protocol::json::JsonObject;
use crate::protocol::socket_id::SocketId;

/// Whether the log's level shows frames.
pub fn is_wanted() -> bool {
    enabled!(Level::DEBUG)
}

/// A frame for one connection.
pub(super) fn log_sent_frame(app: &AppId, socket: SocketId, frame: &[u8]) {
    if let Some((event, channel)) = event_and_channel(frame) {
        debug!(%app, %socket, ?event, ?channel, "sent");
    }
}

/// A frame for all that are subscribed to its channel.
pub(super) fn show_published(frame: &[u8]) {
    if let Some((event, channel)) = event_and_channel(frame) {
        debug!(?event, ?channel, "sent to subscribers");
    }
}

/// The event and the channel of a text frame as the server writes them; the channel is empty where it has none.
pub fn event_and_channel(frame: &[u8]) -> Option<(String, String)> {
    let frame = JsonObject::parse(text(frame)?)?;
    // Frames of the protocol itself have no channel; they are shown with an empty one.
    let word = |name| frame.get_string(name).ok().flatten().unwrap_or_default().into_owned();
    Some((word("event"), word("channel")))
}

/// Its data.
pub fn data(frame: &[u8]) -> Option<String> {
    let frame = JsonObject::parse(text(frame)?)?;
    frame.get_string("data").ok().flatten().map(String::from)
}

/// The text of a whole text frame.
fn text(frame: &[u8]) -> Option<&str> {
    let (first, length) = (frame.first()?, frame.get(1)?);
    // RFC 6455 section 5.2: a whole text, and how long its length is.
    let header = match length {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    std::str::from_utf8(frame.get(header..).filter(|_| *first == 0x81)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::event::Message;

    #[test]
    fn frames_are_known_by_their_words() {
        let pong = Some(("pusher:pong".to_owned(), String::new()));
        assert_eq!(event_and_channel(Message::pong().bytes()), pong);
        for (length, header) in [(100, &[0x81, 100][..]), (300, &[0x81, 126, 1, 44])] {
            let data = "x".repeat(length - 33);
            let text = format!("{{\"event\":\"e\",\"channel\":\"c\",\"d\":\"{data}\"}}");
            let frame = [header, text.as_bytes()].concat();
            assert_eq!(event_and_channel(&frame), Some(("e".to_owned(), "c".to_owned())));
        }
        assert_eq!(event_and_channel(Message::close(4200, "").bytes()), None);
        assert_eq!(event_and_channel(&[]), None);
    }
}
