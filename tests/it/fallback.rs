//! Clients over HTTP, byte by byte: sessions open, are told lines, go on in the next answer, and end.
//! Nothing is lost, doubled or out of order however answers follow each other.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, subscribe, trigger};
use crate::support::http::{Http, request};
use crate::support::lines::{MAX_UNITS, Session, frames, frames_of, lines_of};
use crate::support::sign::{Request, hmac_hex};
use crate::support::websocket::Client;
use crate::support::wire::{self, Wire};
use crate::support::{Chance, eventually};
use fanfare::app::App;

fn event(channel: &str, data: &str) -> String {
    let data = json!(data);
    format!(r#"{{"event":"e","channel":"{channel}","data":{data}}}"#)
}

/// Frames are compared as what they say.
fn parsed(frame: &str) -> Value {
    serde_json::from_str(frame).unwrap()
}

fn succeeded(channel: &str) -> String {
    format!(
        r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{channel}","data":"{{}}"}}"#
    )
}

/// A WebSocket that sees members of `presence-x` come and go.
fn watcher(fixture: &Fixture) -> Client {
    let (mut client, id) = fixture.connect();
    client.send_text(&joining(&id, "watcher"));
    assert!(client.hear_text().contains("subscription_succeeded"));
    client
}

/// The frame that joins `presence-x` as `user`.
fn joining(socket: &str, user: &str) -> String {
    let data = json!({ "user_id": user }).to_string();
    let auth = hmac_hex(SECRET, &format!("{socket}:presence-x:{data}"));
    json!({
        "event": "pusher:subscribe",
        "data": { "channel": "presence-x", "auth": format!("{KEY}:{auth}"), "channel_data": data },
    })
    .to_string()
}

/// Opens a session by polling; its socket id.
fn opened(session: &Session) -> String {
    let lines = session.poll();
    assert_eq!((lines.len(), lines[0].as_str()), (2, "o"));
    established(&frames_of(&lines[1])[0]).unwrap()
}

#[test]
fn a_stream_opens_and_hears_one_line_a_chunk() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    assert_eq!(stream.head.header("transfer-encoding"), Some("chunked"));
    session.subscribe("pub");
    assert_eq!(stream.frame(), succeeded("pub"));
    for text in ["1", "Grüße 🚀", "\u{2028} \" \\ / \u{7f}", ""] {
        fixture.publish("pub", "e", text);
        assert_eq!(parsed(&stream.frame()), parsed(&event("pub", text)));
    }
    assert_eq!(session.say(&[r#"{"event":"pusher:ping"}"#, "no JSON"]), 204);
    assert_eq!(stream.frame(), r#"{"event":"pusher:pong","data":"{}"}"#);
    assert!(stream.frame().contains("4200"));
}

#[test]
fn a_poll_ends_with_all_that_there_is() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    opened(&session);
    session.subscribe("pub");
    session.subscribe("cache-x");
    let told = frames(&session.poll());
    assert_eq!(told[..2], [succeeded("pub"), succeeded("cache-x")]);
    assert!(told[2].contains("cache_miss"));
    let mut waiting = session.begin_poll();
    // The poll is there when its session has heard what came behind it.
    eventually(|| match session.say(&[]) {
        204 => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    assert_eq!(lines_of(&waiting.answer()), ["a[]"]);
    for number in 0..3 {
        fixture.publish("pub", "e", &number.to_string());
    }
    let mut all = Vec::new();
    while all.len() < 3 {
        all.extend(frames(&session.poll()));
    }
    assert_eq!(all, ["0", "1", "2"].map(|number| event("pub", number)));
}

#[test]
fn one_connection_carries_many_polls() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let mut http = Http::connect(fixture.addr);
    let poll = request("POST", &session.target("xhr"), "", b"");
    http.send(&poll);
    assert_eq!(lines_of(&http.answer())[0], "o");
    for _ in 0..5 {
        http.send(&poll);
        assert_eq!(session.say(&[r#"{"event":"pusher:ping"}"#]), 204);
        assert_eq!(lines_of(&http.answer()).len(), 1);
    }
}

#[test]
fn a_refusal_is_told_in_lines() {
    let fixture =
        Fixture::with(|app| app.allowed_origins = vec!["*.example.test".parse().unwrap()]);
    let origin = "Origin: https://www.example.test\r\n";
    for (key, query, headers, code, text) in [
        ("nope", "?protocol=7", "", 4001, "Application does not exist"),
        (KEY, "?protocol=3", origin, 4007, "Unsupported protocol version"),
        (KEY, "?protocol=7", "Origin: https://else.test\r\n", 4009, "Origin not allowed"),
        (KEY, "?protocol=7", "", 4009, "Origin not allowed"),
    ] {
        let expected = [
            "o".to_owned(),
            format!(
                r#"a["{{\"event\":\"pusher:error\",\"data\":{{\"code\":{code},\"message\":\"{text}\"}}}}"]"#
            ),
            format!(r#"c[{code},"{text}"]"#),
        ];
        for what in ["xhr", "xhr_streaming"] {
            let session = Session::below(fixture.addr, "/pusher", key).with_query(query);
            let answer = session.ask("POST", what, headers, b"");
            assert_eq!(lines_of(&answer), expected, "{what} {key} {query} {headers}");
            // It was never there.
            assert_eq!(session.say(&[]), 404);
        }
    }
    let session = Session::new(fixture.addr);
    assert_eq!(lines_of(&session.ask("POST", "xhr", origin, b"")).len(), 2);
}

#[test]
fn addresses_are_served_below_the_path_pusher_and_neither() {
    let fixture =
        Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| server.path = "/ws".into());
    for prefix in ["/ws", "/pusher", ""] {
        let session = Session::below(fixture.addr, prefix, KEY);
        let stream = session.stream().greeted();
        assert_eq!(session.say(&[]), 204, "{prefix}");
        // A session is the same below all of them.
        let same = Session { path: session.path.replacen(prefix, "", 1), ..session.clone() };
        assert_eq!(same.say(&[]), 204, "{prefix}");
        drop(stream);
    }
    let elsewhere = Session::below(fixture.addr, "/other", KEY);
    assert_eq!(elsewhere.ask("POST", "xhr", "", b"").status, 404);
}

#[test]
fn a_page_with_a_token_in_its_paths_was_not_found_over_http() {
    for resume in [Duration::ZERO, Duration::from_secs(120)] {
        let mut app = App::new(ID, KEY, SECRET);
        app.features.resume = resume;
        let fixture = Fixture::with_apps(vec![app], |server| server.path = "/ws".into());
        for prefix in
            ["/ws/resume/1700000000-0123456789abcdef", "/resume/short", "/pusher/resume/T"]
        {
            let session = Session::below(fixture.addr, prefix, KEY);
            let mut stream = session.stream().greeted();
            session.subscribe("pub");
            assert_eq!(stream.frame(), succeeded("pub"), "{prefix}");
        }
    }
}

#[test]
fn http_1_0_is_answered_without_chunks() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let wire = Wire::Plain(wire::tcp(fixture.addr));
    let mut stream = session.stream_over(wire, "HTTP/1.0").greeted();
    assert_eq!(stream.head.header("transfer-encoding"), None);
    session.subscribe("pub");
    assert_eq!(stream.frame(), succeeded("pub"));
    fixture.publish("pub", "e", "1");
    assert_eq!(stream.frame(), event("pub", "1"));
    assert_eq!(fixture.api("POST", "users/1/terminate_connections", "").status, 200);
    let mut next = session.stream();
    assert_eq!(stream.next(), None);
    fixture.publish("pub", "e", "2");
    assert_eq!(next.frame(), event("pub", "2"));
}

/// Publishes `count` events whose texts `text` makes, over one connection, from another thread.
fn publish_all(
    fixture: &Fixture,
    count: usize,
    text: fn(usize) -> String,
) -> std::thread::JoinHandle<()> {
    let addr = fixture.addr;
    std::thread::spawn(move || {
        let mut http = Http::connect(addr);
        for number in 0..count {
            let body = trigger("pub", "e", &text(number));
            let request = Request::new("POST", "/apps/3/events", &body, KEY, SECRET);
            assert_eq!(http.ask_signed(&request).status, 200);
        }
    })
}

/// Texts whose characters are one byte, two, three or four, by turns.
fn mixed(number: usize) -> String {
    let alphabet = ["x", "é", "語", "🚀"];
    format!("{number}:{}", alphabet[number % 4].repeat(200 + number % 300))
}

#[test]
fn ten_thousand_events_are_heard_once_over_many_answers() {
    const EVENTS: usize = 10_000;
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 64 << 20);
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    session.subscribe("pub");
    assert_eq!(stream.frame(), succeeded("pub"));
    let publishing = publish_all(&fixture, EVENTS, mixed);
    let (mut heard, mut answers) = (0, 1);
    while heard < EVENTS {
        let Some(line) = stream.next() else {
            // It stops after the very line with which it is longer than pusher-js lets it become.
            assert!(stream.units > MAX_UNITS, "stopped after {}", stream.units);
            stream = session.stream();
            answers += 1;
            continue;
        };
        let length = line.encode_utf16().count() + 1;
        assert!(stream.units - length <= MAX_UNITS, "went on after {}", stream.units - length);
        for frame in frames_of(&line) {
            assert_eq!(parsed(&frame)["data"], mixed(heard), "event {heard}");
            heard += 1;
        }
    }
    publishing.join().unwrap();
    assert!(answers > 15, "{answers} answers");
}

#[test]
fn ten_thousand_events_are_heard_once_by_polls_with_pauses() {
    const EVENTS: usize = 10_000;
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 64 << 20);
    let session = Session::new(fixture.addr);
    opened(&session);
    session.subscribe("pub");
    assert_eq!(frames(&session.poll()), [succeeded("pub")]);
    let publishing = publish_all(&fixture, EVENTS, |number| number.to_string());
    let mut chance = Chance::new("pauses between polls");
    let mut heard = 0;
    while heard < EVENTS {
        for frame in frames(&session.poll()) {
            assert_eq!(frame, event("pub", &heard.to_string()));
            heard += 1;
        }
        let pause = Duration::from_micros(chance.below(20_000) as u64);
        std::thread::park_timeout(pause);
    }
    publishing.join().unwrap();
    assert_eq!(heard, EVENTS);
}

#[test]
fn a_newer_request_takes_the_place_of_an_older_one() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let mut first = session.stream().greeted();
    session.subscribe("pub");
    assert_eq!(first.frame(), succeeded("pub"));
    let mut number = 0;
    let mut publish = || {
        number += 1;
        fixture.publish("pub", "e", &number.to_string());
        event("pub", &number.to_string())
    };
    // One stream after the other.
    let mut second = session.stream();
    assert_eq!(first.next(), None, "ends without a further line");
    let text = publish();
    assert_eq!(second.frame(), text, "and no second `o`");
    // A poll after a stream, a poll after a poll, a stream after a poll.
    let mut poll = session.begin_poll();
    assert_eq!(second.next(), None);
    let mut newer = session.begin_poll();
    assert_eq!(lines_of(&poll.answer()), [""; 0]);
    let text = publish();
    assert_eq!(frames(&lines_of(&newer.answer())), [text]);
    let mut third = session.stream();
    let text = publish();
    assert_eq!(third.frame(), text);
    let mut poll = session.begin_poll();
    assert_eq!(third.next(), None);
    let mut fourth = session.stream();
    assert_eq!(lines_of(&poll.answer()), [""; 0]);
    let text = publish();
    assert_eq!(fourth.frame(), text);
}

#[test]
fn a_half_written_line_is_told_again_as_a_whole() {
    let fixture = Fixture::with(|app| {
        app.limits.max_event_data = 8 << 20;
        app.limits.outbox_bytes = 64 << 20;
    });
    let session = Session::new(fixture.addr);
    let mut first = session.stream().greeted();
    session.subscribe("pub");
    assert_eq!(first.frame(), succeeded("pub"));
    // More than the sockets between take: most of it is not written yet.
    let large = "x".repeat(8 << 20);
    fixture.publish("pub", "e", &large);
    fixture.publish("pub", "e", "after");
    first.take_bytes(100_000);
    let mut second = session.stream();
    assert_eq!(parsed(&second.frame())["data"], large.as_str());
    assert_eq!(second.next(), None, "that was more than an answer may be");
    let mut third = session.stream();
    assert_eq!(third.frame(), event("pub", "after"));
}

#[test]
fn a_cut_stream_ends_its_session_at_once_at_whatever_byte() {
    let fixture = Fixture::start();
    let mut watcher = watcher(&fixture);
    let mut chance = Chance::new("bytes before a stream is cut");
    for number in 0..40 {
        let session = Session::new(fixture.addr);
        let mut stream = session.stream();
        assert_eq!(stream.line(), "o");
        let socket = established(&stream.frame()).unwrap();
        let user = format!("user-{number}");
        assert_eq!(session.say(&[&joining(&socket, &user)]), 204);
        assert!(watcher.hear_text().contains("member_added"));
        stream.take_bytes(chance.below(150));
        drop(stream);
        let removed = watcher.hear_text();
        assert!(removed.contains("member_removed") && removed.contains(&user), "{removed}");
        eventually(|| match session.say(&[]) {
            404 => Ok(()),
            status => Err(status.to_string()),
        })
        .unwrap();
    }
    fixture.is_well();
}

#[test]
fn a_cut_request_of_any_length_harms_nobody() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    let whole =
        request("POST", &session.target("xhr_send"), "", br#"["{\"event\":\"pusher:ping\"}"]"#);
    for length in (1..whole.len()).step_by(3) {
        let mut http = Http::connect(fixture.addr);
        http.send(&whole[..length]);
        drop(http);
    }
    let mut http = Http::connect(fixture.addr);
    http.send(&whole);
    assert_eq!(http.answer_to("POST").status, 204);
    assert!(stream.frame().contains("pusher:pong"), "what was whole was heard, and once");
    assert_eq!(session.say(&[]), 204);
    assert_eq!(stream.line(), "a[]");
}

#[test]
fn a_cut_poll_ends_its_session_at_once() {
    let fixture = Fixture::start();
    let mut watcher = watcher(&fixture);
    let session = Session::new(fixture.addr);
    let socket = opened(&session);
    assert_eq!(session.say(&[&joining(&socket, "u")]), 204);
    assert!(watcher.hear_text().contains("member_added"));
    assert!(frames(&session.poll())[0].contains("subscription_succeeded"));
    let poll = session.begin_poll();
    // It waits once what comes after it on another connection is answered through it.
    drop(poll);
    assert!(watcher.hear_text().contains("member_removed"));
}

#[test]
fn what_a_session_is_ended_with_is_kept_for_the_next_request() {
    let fixture = Fixture::start();
    let last = [
        r#"a["{\"event\":\"pusher:error\",\"data\":{\"code\":4009,\"message\":\"Connection terminated by the application\"}}"]"#,
        r#"c[4009,"Connection terminated by the application"]"#,
    ];
    for streams in [false, true] {
        let mut watcher = watcher(&fixture);
        let session = Session::new(fixture.addr);
        let socket = opened(&session);
        assert_eq!(session.say(&[&joining(&socket, "u")]), 204);
        assert!(watcher.hear_text().contains("member_added"));
        session.poll();
        fixture.publish("presence-x", "e", "1");
        assert!(watcher.hear_text().contains(r#""e""#));
        assert_eq!(fixture.api("POST", "users/u/terminate_connections", "").status, 200);
        assert!(watcher.hear_text().contains("member_removed"), "others see it leave at once");
        assert_eq!(session.say(&[]), 404, "it has ended");
        let lines = if streams {
            let mut stream = session.stream();
            std::iter::from_fn(|| stream.next()).collect()
        } else {
            session.poll()
        };
        assert_eq!(frames_of(&lines[0]), [event("presence-x", "1")]);
        assert_eq!(lines[1..], last);
        // Whoever comes now is new.
        assert_eq!(session.poll()[0], "o");
    }
}

#[test]
fn a_heartbeat_is_answered_by_a_line_that_asks_for_none() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    for _ in 0..3 {
        assert_eq!(session.say(&[]), 204);
        assert_eq!(stream.line(), "a[]");
    }
}

#[test]
fn frames_are_taken_in_the_order_in_which_they_come() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    let mut http = Http::connect(fixture.addr);
    let name = |number: usize| format!("c{number}");
    for number in 0..50 {
        let frame = json!({ "event": "pusher:subscribe", "data": { "channel": name(number) } });
        let body = serde_json::to_vec(&[frame.to_string()]).unwrap();
        http.send(request("POST", &session.target("xhr_send"), "", &body));
    }
    for number in 0..50 {
        assert_eq!(stream.frame(), succeeded(&name(number)));
        assert_eq!(http.answer_to("POST").status, 204);
    }
}

#[test]
fn others_see_no_difference() {
    let fixture = Fixture::with(|app| app.client_events = fanfare::app::ClientEvents::Members);
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    let mut socket = fixture.subscribed("pub");
    session.subscribe("pub");
    assert_eq!(stream.frame(), succeeded("pub"));
    assert_eq!(session.say(&[r#"{"event":"client-x","channel":"pub","data":"1"}"#]), 204);
    let whisper = r#"{"event":"client-x","channel":"pub","data":"1"}"#;
    assert_eq!(socket.hear_text(), whisper);
    socket.send_text(whisper);
    assert_eq!(stream.frame(), whisper);
    subscribe(&mut socket, "other");
    let answer = fixture.api("GET", "channels/pub?info=subscription_count", "");
    assert_eq!(answer.json()["subscription_count"], 2);
    assert_eq!(fixture.api("GET", "connections", "").json()["connections"], 2);
}
