//! permessage-deflate as a client sees it: what is agreed on, who gets which form of what, and what becomes of
//! streams that are no good. The offers and the streams one by one are tested where they are read.

use std::time::Duration;

use fanfare::app::{App, Apps, ClientEvents};
use fanfare::protocol::deflate::Inflater;
use zlib_rs::{Deflate, DeflateFlush};

use crate::cluster::node;
use crate::metrics::scrape;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, subscribe, target};
use crate::support::redis::Redis;
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

#[test]
fn bombs_are_closed_and_hold_nobody_up() {
    const BOMBS: usize = 20;
    const SIZE: usize = 100 << 20;
    // 100 MB of zeros, as small as they become.
    let zeros = vec![b'0'; SIZE];
    let mut bomb = vec![0; 200 << 10];
    let mut deflate = Deflate::new(9, false, 15);
    deflate.compress(&zeros, &mut bomb, DeflateFlush::SyncFlush).unwrap();
    assert_eq!(deflate.total_in() as usize, SIZE);
    bomb.truncate(deflate.total_out() as usize - 4);
    assert!(bomb.len() < 103_000, "{} bytes", bomb.len());

    let server = Fixture::with(|app| {
        app.features.compression = true;
        app.limits.max_message_size = 100_000;
    });
    let mut other = subscribed(&server, "my-channel");
    let mut bombers: Vec<Client> =
        (0..BOMBS).map(|_| open(&server, "permessage-deflate").0).collect();
    bombers.iter_mut().for_each(|client| client.send_frame(FIN | RSV1 | TEXT, &bomb));
    server.publish("my-channel", "e", "meanwhile");
    assert!(other.hear_text().contains("meanwhile"));
    bombers.iter_mut().for_each(|client| client.hear_close(1009, ""));
    server.is_well();
}

/// What RFC 7692 leaves to whoever compresses: blocks of every kind, in fragments cut anywhere, and several last
/// blocks in one message. The families are those of Autobahn's cases 12 and 13.
#[test]
fn whatever_a_client_compresses_is_read() {
    let server = server();
    let (mut client, _) = offering(&server, "permessage-deflate; client_max_window_bits");
    for size in [0, 1, 16, 64, 125, 126, 256, 1024, 4096, 32_768, 60_000] {
        let padding: String =
            (0..size).map(|at| char::from(b'a' + ((7 * at + at / 13) % 23) as u8)).collect();
        let ping = format!(r#"{{"event":"pusher:ping","data":{{"p":"{padding}"}}}}"#);
        for (level, window) in [(0, 15), (1, 15), (6, 9), (9, 15)] {
            let mut deflate = Deflate::new(level, false, window);
            let mut out = vec![0; 2 * ping.len() + 64];
            deflate.compress(ping.as_bytes(), &mut out, DeflateFlush::SyncFlush).unwrap();
            out.truncate(deflate.total_out() as usize - 4);
            let pieces = [1, 7, 256, out.len()].map(|piece| piece.max(out.len() / 50));
            for piece in pieces {
                let mut parts = out.chunks(piece).peekable();
                let mut first = RSV1 | TEXT;
                while let Some(part) = parts.next() {
                    let fin = if parts.peek().is_none() { FIN } else { 0 };
                    client.send_frame(fin | first, part);
                    first = 0;
                }
                assert!(
                    client.hear_text().contains("pusher:pong"),
                    "{size} {level} {window} {piece}"
                );
            }
        }
        // The same without compression, in between.
        client.send_text(&ping);
        assert!(client.hear_text().contains("pusher:pong"));
    }
}

#[test]
fn what_is_told_again_is_plain_and_what_follows_is_not() {
    let server = Fixture::with(|app| {
        app.features.compression = true;
        app.features.resume = Duration::from_secs(60);
    });
    let target = format!("/resume/0123456789abcdef{}", target(KEY));
    let offer = [(EXTENSIONS.to_owned(), "permessage-deflate".to_owned())];
    let come = || {
        let mut client = Client::open(server.addr, &target, &offer).ok().unwrap();
        established(&client.hear_text()).unwrap();
        subscribe(&mut client, "my-channel");
        client
    };
    let first = come();
    drop(first);
    let data = "abc ".repeat(300);
    server.publish("my-channel", "e", &data);
    let mut again = come();
    let told = again.hear_text();
    assert!(told.contains(&data), "what was missed is for it alone");
    server.publish("my-channel", "e", &data);
    // It is asked what it has, in between.
    let next =
        std::iter::repeat_with(|| again.hear()).find(|heard| matches!(heard, Heard::Deflated(_)));
    assert_eq!(inflated(&next.unwrap()), told);
}

#[test]
fn an_event_of_another_node_is_compressed_here() {
    let Some(redis) = Redis::start() else { return };
    let compresses = |app: &mut App| app.features.compression = true;
    let cluster = redis.cluster();
    let here = node(&cluster, compresses);
    let there = node(&cluster, |_| {});
    let mut takes = subscribed(&here, "my-channel");
    let mut plain = there.subscribed("my-channel");
    let data = "abc ".repeat(300);
    there.publish("my-channel", "e", &data);
    let text = plain.hear_text();
    assert!(text.contains(&data));
    assert_eq!(inflated(&takes.hear()), text);
}

#[test]
fn a_reload_switches_it_for_events_at_once_and_for_sockets_as_they_come() {
    let server = server();
    let mut app = App::new(ID, KEY, SECRET);
    let mut reload = |compression: bool| {
        app.features.compression = compression;
        server.running().replace_apps(Apps::new(vec![app.clone()]).unwrap());
    };
    let data = "abc ".repeat(300);
    let mut early = subscribed(&server, "my-channel");
    server.publish("my-channel", "e", &data);
    inflated(&early.hear());
    reload(false);
    server.publish("my-channel", "e", &data);
    assert!(early.hear_text().contains(&data), "events are plain");
    assert_eq!(offering(&server, "permessage-deflate").1, None);
    // What was agreed on holds as long as the socket: such a client may go on compressing.
    early.send_frame(FIN | RSV1 | TEXT, &HELLO);
    assert!(early.hear_text().contains("4200"));
    reload(true);
    server.publish("my-channel", "e", &data);
    inflated(&early.hear());
}

#[test]
fn what_it_saves_is_counted() {
    let mut app = App::new(ID, KEY, SECRET);
    app.features.compression = true;
    let server = Fixture::with_config(vec![app], |config| config.metrics.enabled = true);
    let value = |name: &str| scrape(server.addr)[&format!("fanfare_{name}{{app=\"{ID}\"}}")];
    let mut plain = server.subscribed("my-channel");
    let mut takes: Vec<Client> = (0..3).map(|_| subscribed(&server, "my-channel")).collect();
    assert_eq!(value("compressed_connections"), 3.0);
    assert_eq!(value("compressed_bytes_total"), 0.0);
    server.publish("my-channel", "e", &"abc ".repeat(300));
    let frame = |payload: usize| (payload + if payload > 125 { 4 } else { 2 }) as f64;
    let before = frame(plain.hear_text().len());
    let heard: Vec<Heard> = takes.iter_mut().map(Client::hear).collect();
    let Heard::Deflated(bytes) = &heard[0] else { panic!("{heard:?}") };
    let after = frame(bytes.len());
    let counts = |name: &str, bytes: f64| {
        let counted = eventually(|| match value(name) {
            found if found == bytes => Ok(()),
            found => Err(format!("{name} is {found}, not {bytes}")),
        });
        assert_eq!(counted, Ok(()));
    };
    counts("compressed_plain_bytes_total", 3.0 * before);
    counts("compressed_bytes_total", 3.0 * after);
    drop(takes);
    let gone = eventually(|| match value("compressed_connections") {
        0.0 => Ok(()),
        left => Err(left.to_string()),
    });
    assert_eq!(gone, Ok(()));
}
