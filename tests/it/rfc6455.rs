//! WebSocket as RFC 6455 has it, byte by byte, in the families of the Autobahn suite: framing, pings,
//! reserved bits, opcodes, fragments, UTF-8 and the closing handshake. A frame that arrived whole is
//! known by its echo: a ping with that text as `data` is answered, or a client event reaches another.

use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::fixture::{Fixture, KEY, SECRET, subscribe};
use crate::support::sign::hmac_hex;
use crate::support::websocket::{BINARY, CLOSE, Client, FIN, Heard, PING, PONG, TEXT, frame};

const CONTINUATION: u8 = 0x0;
const PING_EVENT: &str = r#"{"event":"pusher:ping","data":{}}"#;
const PONG_EVENT: &str = r#"{"event":"pusher:pong","data":"{}"}"#;
const INVALID: &str =
    r#"{"event":"pusher:error","data":{"code":4200,"message":"Invalid message format"}}"#;

/// A ping event that is `length` bytes as a whole.
fn padded(length: usize) -> String {
    let text = r#"{"event":"pusher:ping","data":""}"#;
    text.replace(r#""""#, &format!(r#""{}""#, "x".repeat(length - text.len())))
}

fn answers(client: &mut Client) {
    client.send_text(PING_EVENT);
    assert_eq!(client.hear_text(), PONG_EVENT);
}

/// A connection of its own to which `bytes` are sent, and which must be closed with `code` for it.
fn closes(fixture: &Fixture, bytes: &[u8], code: u16) {
    let (mut client, _) = fixture.connect();
    client.send_bytes(bytes);
    match client.hear() {
        Heard::Close(Some((found, _))) => assert_eq!(found, code, "after {bytes:?}"),
        other => panic!("after {bytes:?} heard {other:?}"),
    }
    client.send_close(code, "");
    assert_eq!(client.hear(), Heard::End, "after {bytes:?}");
}

// Framing.

#[test]
fn texts_of_every_length_arrive() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    for length in [33, 34, 124, 125, 126, 127, 128, 65_534, 65_535, 65_536, 65_537, 100 << 10] {
        client.send_text(&padded(length));
        assert_eq!(client.hear_text(), PONG_EVENT, "a text of {length} bytes");
    }
    client.send_text("");
    assert_eq!(client.hear_text(), INVALID);
    answers(&mut client);
}

#[test]
fn texts_of_every_length_are_sent() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let empty = r#"{"event":"e","channel":"pub","data":""}"#.len();
    for length in [125, 126, 127, 65_535, 65_536, 65_537] {
        let data = "x".repeat(length - empty);
        fixture.publish("pub", "e", &data);
        let text = client.hear_text();
        assert_eq!(text.len(), length);
        assert!(text.contains(&data));
    }
}

#[test]
fn lengths_in_a_longer_form_than_needed_do_no_harm() {
    let fixture = Fixture::start();
    for head in [&[0xfe, 0, 33][..], &[0xff, 0, 0, 0, 0, 0, 0, 0, 33]] {
        let (mut client, _) = fixture.connect();
        let plain = frame(FIN | TEXT, PING_EVENT.as_bytes());
        client.send_bytes(&[&[FIN | TEXT], head, &plain[2..]].concat());
        // RFC 6455 section 5.2 demands the shortest form of senders; it does not say what else to do.
        match client.hear() {
            Heard::Text(text) => assert_eq!(text, PONG_EVENT),
            Heard::Close(Some((1002, _))) => {}
            other => panic!("heard {other:?}"),
        }
    }
    fixture.is_well();
}

#[test]
fn frames_may_arrive_byte_by_byte() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    for text in [PING_EVENT.to_owned(), padded(200)] {
        let ping = frame(FIN | PING, b"mark");
        for byte in [frame(FIN | TEXT, text.as_bytes()), ping].concat() {
            client.send_bytes(&[byte]);
        }
        assert_eq!(client.hear_text(), PONG_EVENT);
        assert_eq!(client.hear(), Heard::Pong(b"mark".to_vec()));
    }
}

#[test]
fn many_frames_may_arrive_in_one_segment() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    let one = [frame(FIN | TEXT, PING_EVENT.as_bytes()), frame(FIN | PING, b"p")].concat();
    client.send_bytes(&one.repeat(500));
    for _ in 0..500 {
        assert_eq!(client.hear_text(), PONG_EVENT);
        assert_eq!(client.hear(), Heard::Pong(b"p".to_vec()));
    }
}

#[test]
fn frames_may_come_with_the_handshake() {
    let fixture = Fixture::start();
    let mut http = crate::support::http::Http::connect(fixture.addr);
    let target = crate::support::fixture::target(KEY);
    let mut bytes = crate::support::websocket::handshake(&target, &[]).into_bytes();
    bytes.extend(frame(FIN | TEXT, PING_EVENT.as_bytes()));
    bytes.extend(frame(FIN | PING, b"early"));
    http.send(&bytes);
    let response = http.answer();
    assert_eq!(response.status, 101);
    let mut client = Client::opened(http, response);
    assert!(client.hear_text().contains("connection_established"));
    assert_eq!(client.hear_text(), PONG_EVENT);
    assert_eq!(client.hear(), Heard::Pong(b"early".to_vec()));
}

#[test]
fn an_unmasked_frame_ends_the_connection() {
    let fixture = Fixture::start();
    for bytes in [&[FIN | TEXT, 2, b'{', b'}'][..], &[FIN | PING, 0], &[FIN | CLOSE, 2, 3, 0xe8]] {
        closes(&fixture, bytes, 1002);
    }
    fixture.is_well();
}

// Pings and pongs.

#[test]
fn pings_come_back_with_their_payload() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    for payload in [&b""[..], b"ping", &[0, 0xff, 0xfe, 0xfd], &[b'x'; 125]] {
        client.send_frame(FIN | PING, payload);
        assert_eq!(client.hear(), Heard::Pong(payload.to_vec()));
    }
    for number in 0..10_u8 {
        client.send_frame(FIN | PING, &[number]);
    }
    for number in 0..10_u8 {
        assert_eq!(client.hear(), Heard::Pong(vec![number]));
    }
}

#[test]
fn pongs_nobody_asked_for_are_no_matter() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    for payload in [&b""[..], b"unasked", &[0xff; 125]] {
        client.send_frame(FIN | PONG, payload);
    }
    answers(&mut client);
}

#[test]
fn control_frames_are_short_and_whole() {
    let fixture = Fixture::start();
    for opcode in [PING, PONG, CLOSE] {
        closes(&fixture, &frame(FIN | opcode, &[0x03; 126]), 1002);
        closes(&fixture, &frame(opcode, b""), 1002);
    }
    fixture.is_well();
}

// Reserved bits and opcodes.

#[test]
fn reserved_bits_end_the_connection() {
    let fixture = Fixture::start();
    for bits in 1..8_u8 {
        closes(&fixture, &frame(FIN | bits << 4 | TEXT, PING_EVENT.as_bytes()), 1002);
        closes(&fixture, &frame(FIN | bits << 4 | PING, b""), 1002);
        closes(&fixture, &frame(FIN | bits << 4 | CLOSE, &[0x03, 0xe8]), 1002);
    }
    fixture.is_well();
}

#[test]
fn unknown_opcodes_end_the_connection() {
    let fixture = Fixture::start();
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        closes(&fixture, &frame(FIN | opcode, b""), 1002);
        closes(&fixture, &frame(FIN | opcode, b"x"), 1002);
    }
    fixture.is_well();
}

#[test]
fn what_came_before_a_broken_frame_is_answered() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    let good = frame(FIN | TEXT, PING_EVENT.as_bytes());
    client.send_bytes(&[good, frame(FIN | 3, b""), frame(FIN | PING, b"late")].concat());
    assert_eq!(client.hear_text(), PONG_EVENT);
    client.hear_close(1002, "");
}

// Fragments (case H22).

#[test]
fn h22_fragments_are_joined() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    let text = PING_EVENT.as_bytes();
    for cut in [0, 1, 10, text.len() - 1, text.len()] {
        client.send_frame(TEXT, &text[..cut]);
        client.send_frame(FIN | CONTINUATION, &text[cut..]);
        assert_eq!(client.hear_text(), PONG_EVENT, "cut at {cut}");
    }
    // Byte by byte, with an empty one between each.
    client.send_frame(TEXT, b"");
    for byte in text {
        client.send_frame(CONTINUATION, &[*byte]);
        client.send_frame(CONTINUATION, b"");
    }
    client.send_frame(FIN | CONTINUATION, b"");
    assert_eq!(client.hear_text(), PONG_EVENT);
    client.send_frame(BINARY, &text[..9]);
    client.send_frame(FIN | CONTINUATION, &text[9..]);
    assert_eq!(client.hear_text(), PONG_EVENT);
}

#[test]
fn control_frames_may_stand_between_fragments() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    let text = PING_EVENT.as_bytes();
    client.send_frame(TEXT, &text[..5]);
    client.send_frame(FIN | PING, b"between");
    assert_eq!(client.hear(), Heard::Pong(b"between".to_vec()));
    client.send_frame(CONTINUATION, &text[5..9]);
    client.send_frame(FIN | PONG, b"");
    client.send_frame(FIN | CONTINUATION, &text[9..]);
    assert_eq!(client.hear_text(), PONG_EVENT);
    client.send_frame(TEXT, &text[..5]);
    client.send_close(1000, "");
    client.hear_close(1000, "");
}

#[test]
fn fragments_out_of_turn_end_the_connection() {
    let fixture = Fixture::start();
    let text = PING_EVENT.as_bytes();
    closes(&fixture, &frame(FIN | CONTINUATION, text), 1002);
    closes(&fixture, &frame(CONTINUATION, text), 1002);
    let whole = frame(FIN | TEXT, text);
    closes(&fixture, &[frame(TEXT, &text[..5]), whole].concat(), 1002);
    closes(&fixture, &[frame(TEXT, &text[..5]), frame(BINARY, b"")].concat(), 1002);
    let joined = [frame(TEXT, b"{"), frame(FIN | CONTINUATION, b"}")].concat();
    let (mut client, _) = fixture.connect();
    client.send_bytes(&[joined, frame(FIN | CONTINUATION, b"")].concat());
    assert_eq!(client.hear_text(), INVALID);
    client.hear_close(1002, "");
    fixture.is_well();
}

// UTF-8. The texts are no JSON, so a valid one is answered with an error and the connection stays.

#[test]
fn valid_utf_8_is_let_through() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    let texts = [
        "Hello-µ@ßöäüàá-UTF-8!!",
        "κόσμε",
        "\u{0}\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}",
        "\u{d7ff}\u{e000}\u{fffe}\u{1fffe}",
    ];
    for text in texts {
        client.send_text(text);
        assert_eq!(client.hear_text(), INVALID, "{text}");
        // Cut between any two bytes, in fragments and in segments.
        for cut in 1..text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            client.send_frame(TEXT, left);
            client.send_frame(FIN | CONTINUATION, right);
            assert_eq!(client.hear_text(), INVALID, "{text}, cut at {cut}");
        }
        for byte in frame(FIN | TEXT, text.as_bytes()) {
            client.send_bytes(&[byte]);
        }
        assert_eq!(client.hear_text(), INVALID);
    }
    answers(&mut client);
}

#[test]
fn invalid_utf_8_ends_the_connection() {
    let fixture = Fixture::start();
    let bad: &[&[u8]] = &[
        b"\x80",
        b"\xbf",
        b"abc\xff",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xce",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe",
    ];
    for bytes in bad {
        closes(&fixture, &frame(FIN | TEXT, bytes), 1007);
        let fragments = bytes.iter().map(|byte| frame(CONTINUATION, &[*byte]));
        let mut all = frame(TEXT, b"");
        fragments.for_each(|fragment| all.extend(fragment));
        all.extend(frame(FIN | CONTINUATION, b""));
        closes(&fixture, &all, 1007);
    }
    closes(&fixture, &frame(FIN | CLOSE, b"\x03\xe8\xce"), 1007);
    fixture.is_well();
}

// The closing handshake.

#[test]
fn a_close_is_answered_with_its_code() {
    let fixture = Fixture::start();
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        let (mut client, _) = fixture.connect();
        client.send_close(code, "because");
        client.hear_close(code, "");
    }
    let (mut client, _) = fixture.connect();
    client.send_close(1000, &"r".repeat(123));
    client.hear_close(1000, "");
}

#[test]
fn a_close_may_be_empty() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    client.send_frame(FIN | CLOSE, b"");
    match client.hear() {
        Heard::Close(None | Some((1000, _))) => {}
        other => panic!("heard {other:?}"),
    }
    assert_eq!(client.hear(), Heard::End);
}

#[test]
fn a_close_that_cannot_be_is_answered_with_1002() {
    let fixture = Fixture::start();
    closes(&fixture, &frame(FIN | CLOSE, b"\x03"), 1002);
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        closes(&fixture, &frame(FIN | CLOSE, &u16::to_be_bytes(code)), 1002);
    }
    let long = [&[0x03, 0xe8][..], &[b'r'; 124]].concat();
    closes(&fixture, &frame(FIN | CLOSE, &long), 1002);
}

#[test]
fn nothing_counts_after_a_close() {
    let fixture = Fixture::start();
    let mut watcher = fixture.subscribed("pub");
    let (mut client, _) = fixture.connect();
    let subscribe_frame =
        frame(FIN | TEXT, br#"{"event":"pusher:subscribe","data":{"channel":"late"}}"#);
    let ping = frame(FIN | PING, b"late");
    client.send_bytes(&[frame(FIN | CLOSE, &[0x03, 0xe8]), subscribe_frame, ping].concat());
    client.hear_close(1000, "");
    assert_eq!(fixture.api("GET", "channels/late", "").text(), r#"{"occupied":false}"#);
    fixture.publish("pub", "e", "1");
    watcher.hear_text();
}

/// A client that we close: a breach, a refusal, a termination.
fn closed_by_us(fixture: &Fixture) -> Vec<Client> {
    let (mut breaks, _) = fixture.connect();
    breaks.send_frame(FIN | 3, b"");
    let mut refused = Client::open(fixture.addr, "/app/nobody?protocol=7", &[]).ok().unwrap();
    refused.hear_text();
    let (mut thrown_out, id) = fixture.connect();
    let auth = format!("{KEY}:{}", hmac_hex(SECRET, &format!(r#"{id}::user::{{"id":"u"}}"#)));
    let data = serde_json::json!({ "auth": auth, "user_data": r#"{"id":"u"}"# });
    thrown_out
        .send_text(&serde_json::json!({ "event": "pusher:signin", "data": data }).to_string());
    assert!(thrown_out.hear_text().contains("signin_success"));
    assert_eq!(fixture.api("POST", "users/u/terminate_connections", "").status, 200);
    thrown_out.hear_text();
    vec![breaks, refused, thrown_out]
}

/// RFC 6455 section 7.1.1: it is the server that ends the TCP stream first. It does not wait long for a client.
#[test]
fn the_server_ends_the_stream_without_the_clients_close() {
    let fixture = Fixture::start();
    for mut client in closed_by_us(&fixture) {
        assert!(matches!(client.hear(), Heard::Close(Some(_))));
        assert_eq!(client.hear(), Heard::End);
    }
}

/// A proxy that carries WebSockets by HTTP/2 ends the browser's stream with ours, and the code is lost.
#[test]
fn the_stream_did_not_end_before_the_client_had_answered_the_close() {
    let fixture = Fixture::start();
    let wait = Duration::from_secs(1);
    for place in 0..3 {
        // From before it was closed on: this thread may come late to hear of it.
        let begun = Instant::now();
        let mut client = closed_by_us(&fixture).swap_remove(place);
        assert!(matches!(client.hear(), Heard::Close(Some(_))));
        // What it still says is no answer.
        client.send_text(&padded(100));
        assert_eq!(client.hear(), Heard::End);
        assert!(begun.elapsed() >= wait, "after {:?}", begun.elapsed());
    }
    // An answer is not waited for once it is there: else none would be faster.
    for place in 0..3 {
        let answered = eventually(|| {
            let mut client = closed_by_us(&fixture).swap_remove(place);
            let begun = Instant::now();
            client.hear_close([1002, 4001, 4009][place], "");
            let took = begun.elapsed();
            if took < wait / 2 { Ok(()) } else { Err(format!("{took:?}")) }
        });
        assert_eq!(answered, Ok(()));
    }
}

// Limits.

#[test]
fn messages_over_the_limit_end_the_connection() {
    let fixture = Fixture::with(|app| app.limits.max_message_size = 1000);
    let (mut client, _) = fixture.connect();
    client.send_text(&padded(1000));
    assert_eq!(client.hear_text(), PONG_EVENT);
    client.send_text(&padded(1001));
    client.hear_close(1009, "Maximum message size exceeded");
    // Fragments count together, and a message is not waited for when its head says enough.
    let (mut client, _) = fixture.connect();
    client.send_frame(TEXT, b"");
    for _ in 0..11 {
        client.send_frame(CONTINUATION, &[b'x'; 100]);
    }
    client.hear_close(1009, "Maximum message size exceeded");
    let (mut client, _) = fixture.connect();
    let head = [FIN | TEXT, 0xff, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3, 4];
    client.send_bytes(&head);
    client.hear_close(1009, "Maximum message size exceeded");
    let (mut client, _) = fixture.connect();
    let head = [FIN | TEXT, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
    client.send_bytes(&head);
    match client.hear() {
        Heard::Close(Some((1002 | 1009, _))) => {}
        other => panic!("heard {other:?}"),
    }
    assert_eq!(client.hear(), Heard::End);
    fixture.is_well();
}

// Garbage.

#[test]
fn random_frames_never_end_the_server() {
    let fixture = Fixture::start();
    let mut chance = crate::support::Chance::new("random frames");
    for _ in 0..300 {
        let (mut client, _) = fixture.connect();
        for _ in 0..chance.below(5) + 1 {
            let length = chance.below(300);
            let payload = chance.bytes(length);
            match chance.below(3) {
                0 => client.send_bytes(&payload),
                1 => client.send_frame(chance.below(256) as u8, &payload),
                _ => client.send_frame(FIN | TEXT, &payload),
            }
        }
    }
    fixture.is_well();
}

#[test]
fn other_connections_hear_nothing_of_a_broken_one() {
    let fixture = Fixture::start();
    let (mut well, _) = fixture.connect();
    subscribe(&mut well, "pub");
    closes(&fixture, &frame(FIN | 3, b""), 1002);
    closes(&fixture, &frame(FIN | TEXT, b"\xff"), 1007);
    fixture.publish("pub", "e", "1");
    assert_eq!(well.hear_text(), r#"{"event":"e","channel":"pub","data":"1"}"#);
}
