//! Reading until everything that was sent before has been dealt with.

use crate::support::websocket::{Client, FIN, Heard, PING};

/// Reads texts into `heard` up to and with the first that is `last`.
pub fn read_until(client: &mut Client, heard: &mut Vec<Heard>, last: impl Fn(&str) -> bool) {
    loop {
        let next = client.read();
        let end = match &next {
            Heard::Text(text) => last(text),
            other => *other == Heard::End,
        };
        heard.push(next);
        if end {
            return;
        }
    }
}

/// Waits until the server has dealt with all that this client sent before. What is heard meanwhile
/// is kept.
pub fn hear_out(client: &mut Client) {
    let mark = b"heard out";
    client.send_frame(FIN | PING, mark);
    loop {
        match client.read() {
            Heard::Pong(payload) if payload == mark => return,
            Heard::End => return client.waiting.push_back(Heard::End),
            other => client.waiting.push_back(other),
        }
    }
}
