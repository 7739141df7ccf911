//! How connections end that the server ends: a slow one (its outbox full), all of them (drain), and
//! what holds for each: the error frame first, the close frame with the same code after it.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use fanfare::app::App;

use crate::support::fixture::{Fixture, ID, KEY, SECRET, target, trigger};
use crate::support::http::{Http, request};
use crate::support::memory::{Memory, Talk};
use crate::support::sign::{Request, hmac_hex};
use crate::support::websocket::{Client, Heard, handshake};
use crate::support::{DEADLINE, eventually};

/// A server that takes its time to drain.
fn patient(grace: Duration) -> Fixture {
    Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| server.shutdown_grace = grace)
}

#[test]
fn a_slow_connection_is_closed_and_nobody_waits_for_it() {
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 256 << 10);
    let mut quick = fixture.subscribed("pub");
    let mut slow = fixture.subscribed("pub");
    // Far more than the sockets' own buffers take, while `slow` reads nothing.
    let data = "x".repeat(64 << 10);
    let mut sent = 0;
    eventually_closed(&fixture, || {
        fixture.publish("pub", "e", &data);
        assert!(quick.hear_text().contains(&data));
        sent += 1;
        assert!(sent < 1000, "64 MiB are queued for a connection that reads nothing");
    });
    // What was heard before is whole; then it is told why, and there is an end.
    let mut heard = 0;
    loop {
        let text = slow.hear_text();
        if text.contains("pusher:error") {
            assert!(text.contains(r#""code":4100"#), "{text}");
            break;
        }
        assert!(text.contains(&data));
        heard += 1;
    }
    slow.hear_close(4100, "Connection is too slow");
    assert!(heard < sent, "nothing was ever too much");
    fixture.publish("pub", "e", "after");
    assert!(quick.hear_text().contains("after"));
}

/// Repeats `step` until one of the two connections is gone.
fn eventually_closed(fixture: &Fixture, mut step: impl FnMut()) {
    let count = || fixture.api("GET", "connections", "").json()["connections"].as_u64().unwrap();
    assert_eq!(count(), 2);
    while count() == 2 {
        step();
    }
}

/// Between a full socket and a full outbox nothing is lost and nothing is out of order.
#[test]
fn a_connection_that_catches_up_has_missed_nothing() {
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 64 << 20);
    let mut slow = fixture.subscribed("pub");
    let data = "x".repeat(64 << 10);
    for turn in 0..2 {
        for number in 0..200 {
            fixture.publish("pub", &format!("e{turn}-{number}"), &data);
        }
        for number in 0..200 {
            let text = slow.hear_text();
            let head = format!(r#"{{"event":"e{turn}-{number}","channel":"pub","data":"xxx"#);
            assert!(text.starts_with(&head), "{}", &text[..60]);
        }
    }
}

/// The cap is for readers that are slow, not for what comes in one moment.
#[test]
fn who_reads_is_not_slow_however_much_comes_at_once() {
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 64 << 10);
    let mut quick = fixture.subscribed("pub");
    let data = "x".repeat(20 << 10);
    let event = |number| format!(r#"{{"name":"e{number}","channel":"pub","data":"{data}"}}"#);
    let events: Vec<String> = (0..10).map(event).collect();
    let batch = format!(r#"{{"batch":[{}]}}"#, events.join(","));
    for _ in 0..3 {
        assert_eq!(fixture.api("POST", "batch_events", &batch).status, 200);
        for number in 0..10 {
            let text = quick.hear_text();
            assert!(text.starts_with(&format!(r#"{{"event":"e{number}""#)), "{}", &text[..60]);
        }
    }
}

#[test]
fn a_roster_larger_than_the_cap_is_told_all_the_same() {
    let memory = Memory::new(1, |app| app.limits.outbox_bytes = 1000);
    let user = |number: usize| format!("{number}-{}", "x".repeat(100));
    let mut talks: Vec<Talk> = (0..20).map(|_| memory.connect(0)).collect();
    for number in 0..talks.len() {
        talks[number].subscribe("presence-x", &user(number));
        memory.deliver_all();
        let heard = talks[number].heard();
        let [Heard::Text(roster)] = heard.as_slice() else { panic!("{heard:?}") };
        assert!(roster.contains(&user(0)) && roster.contains(&user(number)), "{roster}");
        // The others read as they go.
        talks.iter_mut().take(number).for_each(|talk| assert_eq!(talk.heard().len(), 1));
    }
    // What waits behind a frame of any size has a cap as ever.
    let last = talks.last_mut().unwrap();
    last.say(r#"{"event":"pusher:unsubscribe","data":{"channel":"presence-x"}}"#);
    last.subscribe("presence-x", &user(19));
    for _ in 0..20 {
        last.say(r#"{"event":"pusher:ping"}"#);
    }
    let heard = last.heard();
    assert!(matches!(heard.last(), Some(Heard::Close(Some((4100, _))))), "{:?}", heard.last());
    assert!(matches!(&heard[0], Heard::Text(text) if text.contains(&user(0))));
}

#[test]
fn who_does_not_read_its_own_answers_harms_only_itself() {
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 64 << 10);
    let (mut slow, _) = fixture.connect();
    fixture.publish("cache-x", "e", &format!("{:?}", "x".repeat(50_000)));
    let subscribe = br#"{"event":"pusher:subscribe","data":{"channel":"cache-x"}}"#;
    let again = crate::support::websocket::frame(0x81, subscribe).repeat(10);
    let mut asked = 0;
    while fixture.api("GET", "connections", "").json()["connections"] == 1 {
        slow.send_bytes(&again);
        asked += 10;
        assert!(asked < 2000, "100 MB of answers are queued");
    }
    fixture.is_well();
}

#[test]
fn r03_a_drain_sends_the_established_home_and_refuses_the_new() {
    let fixture = patient(DEADLINE);
    let clients: Vec<Client> = (0..20).map(|_| fixture.subscribed("pub")).collect();
    fixture.drain();
    for mut client in clients {
        let text = client.hear_text();
        assert!(text.starts_with(r#"{"event":"pusher:error","data":{"code":4200,"#), "{text}");
        client.hear_close(4200, "");
    }
    fixture.stop();
}

#[test]
fn r03_new_sockets_during_a_drain_are_told_4100() {
    let fixture = patient(DEADLINE);
    // So many that the grace period is not over before the new one comes.
    let clients: Vec<Client> = (0..50).map(|_| fixture.subscribed("pub")).collect();
    fixture.drain();
    let mut client = Client::open(fixture.addr, &target(KEY), &[]).ok().unwrap();
    assert_eq!(
        client.hear_text(),
        r#"{"event":"pusher:error","data":{"code":4100,"message":"Server is stopping"}}"#
    );
    client.hear_close(4100, "Server is stopping");
    drop(clients);
}

#[test]
fn requests_in_flight_are_answered_during_a_drain() {
    let fixture = patient(DEADLINE);
    let mut client = fixture.subscribed("pub");
    let body = trigger("pub", "e", "in flight");
    let signed = Request::new("POST", &format!("/apps/{ID}/events"), &body, KEY, SECRET);
    let whole = request("POST", &signed.signed_target(), "", body.as_bytes());
    let mut http = Http::connect(fixture.addr);
    // Once the head of the next request is being read, it is in flight.
    assert_eq!(http.ask("GET", "/up", "", b"").status, 200);
    let (head, rest) = whole.split_at(whole.len() - 5);
    let expect = String::from_utf8(head.to_vec()).unwrap();
    let expect = expect.replacen("Host:", "Expect: 100-continue\r\nHost:", 1);
    http.send(&expect);
    assert_eq!(http.answer().status, 100);
    fixture.drain();
    http.send(rest);
    assert_eq!((http.answer().status, http.is_ended()), (200, true));
    while let Heard::Text(text) = client.hear() {
        assert!(text.contains("in flight") || text.contains("4200"), "{text}");
    }
    drop((client, http));
    fixture.stop();
}

/// Accepted, it is nobody else's to answer.
#[test]
fn who_came_just_before_the_end_is_answered() {
    for stop in [Fixture::drain, |fixture: &Fixture| fixture.running().hand_over()] {
        let fixture = patient(DEADLINE);
        let mut new = Http::connect(fixture.addr);
        // Who comes later is accepted later, and ends as soon as all do.
        let mut idle = [Http::connect(fixture.addr), Http::connect(fixture.addr)];
        idle.iter_mut().for_each(|idle| assert_eq!(idle.ask("GET", "/up", "", b"").status, 200));
        stop(&fixture);
        idle.iter_mut().for_each(|idle| assert!(idle.is_ended()));
        assert_eq!(new.ask("GET", "/up", "", b"").status, 200);
        assert!(new.is_ended());
        fixture.stop();
    }
}

#[test]
fn a_drain_ends_in_time_though_a_client_does_not_listen() {
    let fixture = patient(Duration::from_millis(300));
    let addr = fixture.addr;
    let deaf = fixture.subscribed("pub");
    let idle = TcpStream::connect(addr).unwrap();
    fixture.stop();
    eventually(|| match TcpStream::connect(addr) {
        Ok(_) => Err("the port is still open".to_owned()),
        Err(_) => Ok(()),
    })
    .unwrap();
    drop((deaf, idle));
}

#[test]
fn readiness_ends_with_the_drain() {
    let fixture = patient(DEADLINE);
    let clients: Vec<Client> = (0..20).map(|_| fixture.subscribed("pub")).collect();
    let mut http = Http::connect(fixture.addr);
    assert_eq!(http.ask("GET", "/ready", "", b"").status, 200);
    fixture.drain();
    http.send(request("GET", "/ready", "", b""));
    // Answered with 503, or this connection has been ended as idle.
    assert!(http.try_answer("GET").is_none_or(|answer| answer.status == 503));
    drop(clients);
}

/// R05, R08: of every refusal that ends a connection, the code is below 4300, and the same in the
/// error frame and in the close frame that follows it.
#[test]
fn r08_errors_come_before_closes_with_the_same_code() {
    let mut off = App::new("4", "off-key", "off-secret");
    off.enabled = false;
    let mut far = App::new("5", "far-key", "far-secret");
    far.allowed_origins = vec!["example.org".parse().unwrap()];
    let mut full = App::new("6", "full-key", "full-secret");
    full.limits.max_connections = 1;
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET), off, far, full], |_| {});
    let first = Client::open(fixture.addr, &target("full-key"), &[]).ok().unwrap();
    for (path, code) in [
        (target("nobody"), 4001),
        (target("off-key"), 4003),
        (target("full-key"), 4004),
        (format!("/app/{KEY}?protocol=1"), 4007),
        (target("far-key"), 4009),
    ] {
        let mut client = Client::open(fixture.addr, &path, &[]).ok().unwrap();
        let frame: serde_json::Value = serde_json::from_str(&client.hear_text()).unwrap();
        assert_eq!(
            (&frame["event"], &frame["data"]["code"]),
            (&"pusher:error".into(), &code.into())
        );
        client.hear_close(code, frame["data"]["message"].as_str().unwrap());
    }
    drop(first);
}

#[test]
fn a_connection_that_resets_leaves_no_trace() {
    let fixture = Fixture::start();
    let mut watcher = fixture.subscribed("pub");
    let mut stream = TcpStream::connect(fixture.addr).unwrap();
    std::io::Write::write_all(&mut stream, handshake(&target(KEY), &[]).as_bytes()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    // What is unread at the end turns the end into a reset.
    drop(stream);
    eventually(|| match fixture.api("GET", "connections", "").text() {
        r#"{"connections":1}"# => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
    fixture.publish("pub", "e", "1");
    watcher.hear_text();
}

/// Whoever has been sent away may go on talking; nobody listens.
#[test]
fn nothing_counts_after_a_kick() {
    let fixture = Fixture::start();
    let (mut client, id) = fixture.connect();
    let user = r#"{"id":"1"}"#;
    let signature = hmac_hex(SECRET, &format!("{id}::user::{user}"));
    let command = serde_json::json!({ "event": "pusher:signin",
        "data": { "auth": format!("{KEY}:{signature}"), "user_data": user } });
    client.send_text(&command.to_string());
    assert!(client.hear_text().contains("signin_success"));
    assert_eq!(fixture.api("POST", "users/1/terminate_connections", "{}").text(), "{}");
    client.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"late"}}"#);
    let mut heard = client.hear_text();
    if heard.contains("subscription_succeeded") {
        // It was said before the kick came.
        heard = client.hear_text();
    }
    assert!(heard.contains(r#""code":4009"#), "{heard}");
    client.hear_close(4009, "");
    for _ in 0..100 {
        client.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"later"}}"#);
    }
    assert_eq!(fixture.api("GET", "channels", "").text(), r#"{"channels":{}}"#);
    // A socket ends a moment before its connection is counted out.
    eventually(|| match fixture.api("GET", "connections", "").text() {
        r#"{"connections":0}"# => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
}
