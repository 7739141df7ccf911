//! permessage-deflate as a client sees it: what is agreed on, who gets which form of what, and what becomes of
//! streams that are no good. The offers and the streams one by one are tested where they are read.

use fanfare::app::ClientEvents;
use fanfare::protocol::deflate::Inflater;

use crate::support::fixture::{Fixture, KEY, SECRET, established, subscribe, target};
use crate::support::sign::hmac_hex;
use crate::support::websocket::{CLOSE, Client, FIN, Heard, PING, RSV1, TEXT};

const EXTENSIONS: &str = "sec-websocket-extensions";

const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// RFC 7692, section 7.2.3.1: "Hello".
const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

fn server() -> Fixture {
    Fixture::with(|app| {
        app.features.compression = true;
        app.client_events = ClientEvents::Members;
    })
}

/// A client that has offered this, and its socket id.
fn open(server: &Fixture, offer: &str) -> (Client, String) {
    let headers = [(EXTENSIONS.to_owned(), offer.to_owned())];
    let mut client = Client::open(server.addr, &target(KEY), &headers).ok().unwrap();
    let id = established(&client.hear_text()).unwrap();
    (client, id)
}

/// A client that has offered this and was greeted, and what it was answered.
fn offering(server: &Fixture, offer: &str) -> (Client, Option<String>) {
    let (client, _) = open(server, offer);
    let agreed = client.response.header(EXTENSIONS).map(str::to_owned);
    (client, agreed)
}

/// One that takes compressed events of the channel.
fn subscribed(server: &Fixture, channel: &str) -> Client {
    let (mut client, agreed) = offering(server, "permessage-deflate; client_max_window_bits");
    assert_eq!(agreed.as_deref(), Some(AGREED));
    subscribe(&mut client, channel);
    client
}

fn inflated(heard: &Heard) -> String {
    let Heard::Deflated(bytes) = heard else { panic!("not compressed: {heard:?}") };
    String::from_utf8(Inflater::default().inflate(bytes, 1 << 20).unwrap().to_vec()).unwrap()
}

#[test]
fn an_offer_is_accepted_where_the_app_has_it_on() {
    let server = server();
    for (offer, answer) in [
        ("permessage-deflate", Some(AGREED.to_owned())),
        ("permessage-deflate; server_max_window_bits=10", {
            Some(format!("{AGREED}; server_max_window_bits=10"))
        }),
        ("permessage-deflate; mode=fast, permessage-deflate", Some(AGREED.to_owned())),
        ("permessage-deflate; server_max_window_bits=016", None),
        ("x-webkit-deflate-frame", None),
    ] {
        assert_eq!(offering(&server, offer).1, answer, "{offer}");
    }
    assert_eq!(offering(&Fixture::start(), "permessage-deflate").1, None);
}

#[test]
fn an_event_is_compressed_for_those_that_take_it() {
    let server = server();
    let mut plain = server.subscribed("my-channel");
    let mut takes = subscribed(&server, "my-channel");
    let (mut small, agreed) = offering(&server, "permessage-deflate; server_max_window_bits=9");
    assert!(agreed.is_some());
    subscribe(&mut small, "my-channel");
    let data = "abc ".repeat(300);
    server.publish("my-channel", "e", &data);
    let text = plain.hear_text();
    assert!(text.contains(&data));
    assert_eq!(small.hear_text(), text, "its window is too small");
    let first = takes.hear();
    assert_eq!(inflated(&first), text);
    server.publish("my-channel", "e", &data);
    assert_eq!(takes.hear(), first, "nothing is remembered");
    // Shorter ones, and what noise makes no smaller, are plain for everybody.
    server.publish("my-channel", "e", "short");
    assert!(takes.hear_text().contains("short"));
    // Whispers, and what a client compresses itself.
    small.hear_text();
    let whisper =
        format!(r#"{{"event":"client-w","channel":"my-channel","data":"{}"}}"#, "w".repeat(600));
    small.send_text(&whisper);
    assert_eq!(inflated(&takes.hear()).len(), whisper.len());
}

#[test]
fn what_is_for_one_or_encrypted_is_plain() {
    let server = server();
    let data = "abc ".repeat(300);
    let mut takes = subscribed(&server, "cache-room");
    takes.hear_text();
    server.publish("cache-room", "e", &data);
    inflated(&takes.hear());
    let mut late = subscribed(&server, "cache-room");
    assert!(late.hear_text().contains(&data), "the kept event is for one alone");
    let (mut secret, id) = open(&server, "permessage-deflate");
    let name = "private-encrypted-room";
    let auth = format!("{KEY}:{}", hmac_hex(SECRET, &format!("{id}:{name}")));
    secret.send_text(&format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"{name}","auth":"{auth}"}}}}"#
    ));
    assert!(secret.hear_text().contains("subscription_succeeded"));
    server.publish("private-encrypted-room", "e", &data);
    assert!(secret.hear_text().contains(&data));
}

#[test]
fn compressed_messages_are_read() {
    let server = server();
    let (mut client, _) = offering(&server, "permessage-deflate");
    let ping = br#"{"event":"pusher:ping","data":{}}"#;
    // A stored block and the empty one that ends the message.
    let mut stored = vec![0, ping.len() as u8, 0, !(ping.len() as u8), 0xff];
    stored.extend_from_slice(ping);
    stored.push(0);
    client.send_frame(FIN | RSV1 | TEXT, &stored);
    assert!(client.hear_text().contains("pusher:pong"));
    client.send_frame(RSV1 | TEXT, &stored[..9]);
    client.send_frame(FIN | PING, b"");
    client.send_frame(FIN, &stored[9..]);
    assert_eq!(client.hear(), Heard::Pong(Vec::new()));
    assert!(client.hear_text().contains("pusher:pong"));
    client.send_frame(FIN | RSV1 | TEXT, &[0]);
    assert!(client.hear_text().contains("4200"), "an empty text is no message");
}

#[test]
fn bad_streams_are_closed() {
    let server = server();
    let mut bomb = fanfare::protocol::deflate::Deflater::default();
    let mut frame = vec![0x81, 127];
    frame.extend_from_slice(&(5u64 << 20).to_be_bytes());
    frame.resize(10 + (5 << 20), b'0');
    let bomb = bomb.deflate(&frame).unwrap();
    assert!(bomb.len() < 100 << 10);
    for (first, payload, code) in [
        (FIN | RSV1 | TEXT, &HELLO[..4], 1007),
        (FIN | RSV1 | TEXT, b"", 1007),
        (FIN | RSV1 | TEXT, b"\xff\xff", 1007),
        (FIN | RSV1 | TEXT, &bomb[4..], 1009),
        (FIN | RSV1 | PING, b"", 1002),
        (FIN | RSV1 | CLOSE, b"", 1002),
        (FIN | RSV1, &HELLO, 1002),
    ] {
        let (mut client, _) = offering(&server, "permessage-deflate");
        client.send_frame(first, payload);
        client.hear_close(code, "");
    }
    let (mut client, _) = server.connect();
    client.send_frame(FIN | RSV1 | TEXT, &HELLO);
    client.hear_close(1002, "");
}
