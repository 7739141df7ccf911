//! A server that has as much as it can carry: it says so, refuses who comes, and serves who is there.

use crate::support::child::Child;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, target, trigger};
use crate::support::http::Http;
use crate::support::sign::Request;
use crate::support::websocket::Client;

/// Bytes of an event that the allocator gives back to the machine as soon as it is gone.
const LARGE: usize = 40 << 20;

fn publish(child: &Child, channel: &str, data: &str) {
    let target = format!("/apps/{ID}/events");
    let body = trigger(channel, "e", data);
    let request = Request::new("POST", &target, &body, KEY, SECRET);
    assert_eq!(Http::connect(child.addr).ask_signed(&request).status, 200);
}

/// Waits until `/ready` answers so.
fn says(child: &Child, status: u16, body: &str) {
    let said = eventually(|| {
        let answer = Http::connect(child.addr).ask("GET", "/ready", "", b"");
        let right = answer.status == status && answer.text() == body;
        if right { Ok(()) } else { Err(format!("{} {}", answer.status, answer.text())) }
    });
    assert_eq!(said, Ok(()));
}

#[test]
fn short_of_memory_it_serves_those_who_are_there() {
    let child = Child::start(&[
        ("LIMITS__MEMORY", "36MiB"),
        // A busy machine takes its time for so large a request.
        ("SERVER__HANDSHAKE_TIMEOUT", "5m"),
        ("APPS__0__MAX_EVENT_DATA", "64MiB"),
        ("APPS__0__OUTBOX_BYTES", "64MiB"),
    ]);
    let (mut client, _) = child.connect();
    subscribe(&mut client, "room");
    // It reads nothing of what it is told now.
    let (mut slow, _) = child.connect();
    subscribe(&mut slow, "large");
    publish(&child, "large", &"x".repeat(LARGE));
    says(&child, 503, r#"{"ready":false,"reason":"memory"}"#);
    let mut refused = Client::open(child.addr, &target(KEY), &[]).unwrap();
    let error =
        r#"{"event":"pusher:error","data":{"code":4100,"message":"Server is over capacity"}}"#;
    assert_eq!(refused.hear_text(), error);
    publish(&child, "room", "1");
    assert_eq!(client.hear_text(), r#"{"event":"e","channel":"room","data":"1"}"#);
    let metrics = Http::connect(child.addr).ask("GET", "/metrics", "", b"");
    for sample in [
        "fanfare_ready 0",
        r#"fanfare_unready{reason="memory"} 1"#,
        r#"fanfare_unready{reason="connections"} 0"#,
        "fanfare_memory_limit_bytes 37748736",
        r#"fanfare_refused_connections_total{code="4100",reason="memory"} 1"#,
    ] {
        assert!(metrics.text().lines().any(|line| line == sample), "{}", metrics.text());
    }
    // Who holds most is closed, and what waited for it goes.
    says(&child, 200, r#"{"ready":true}"#);
    child.connect();
    let closed = r#"fanfare_closes_total{code="4100",reason="heavy"} 1"#;
    // It is counted once it has gone, for which it has a while.
    let counted = eventually(|| {
        let metrics = Http::connect(child.addr).ask("GET", "/metrics", "", b"");
        let is_there = metrics.text().lines().any(|line| line == closed);
        if is_there { Ok(()) } else { Err(metrics.text().to_owned()) }
    });
    assert_eq!(counted, Ok(()));
}

#[test]
fn a_place_that_is_left_is_not_room_for_many() {
    let fixture = Fixture::with_apps(vec![fanfare::app::App::new(ID, KEY, SECRET)], |server| {
        server.max_connections = 40;
    });
    let mut clients: Vec<Client> = (0..40).map(|_| fixture.connect().0).collect();
    let ready = || Http::connect(fixture.addr).ask("GET", "/ready", "", b"").text().to_owned();
    let full = r#"{"ready":false,"reason":"connections"}"#;
    assert_eq!(ready(), full);
    let connections = |expected: u64| {
        eventually(|| match fixture.running().shared().connection_count() {
            count if count == expected => Ok(()),
            count => Err(count.to_string()),
        })
        .unwrap();
    };
    clients.truncate(39);
    connections(39);
    assert_eq!(ready(), full, "one place is soon taken");
    clients.push(fixture.connect().0);
    clients.truncate(38);
    connections(38);
    assert_eq!(ready(), r#"{"ready":true}"#);
}

#[test]
fn addresses_that_ran_out_were_no_memory() {
    // In KiB; nine tenths of it are the limit.
    let child = Child::with_limit("-v 2000000", &[]);
    let metrics = Http::connect(child.addr).ask("GET", "/metrics", "", b"");
    let limit = format!("fanfare_memory_limit_bytes {}", (2_000_000_u64 << 10) / 100 * 90);
    assert!(metrics.text().lines().any(|line| line == limit), "{}", metrics.text());
    says(&child, 200, r#"{"ready":true}"#);
    let mapped = |line: &&str| line.starts_with("process_virtual_memory_bytes ");
    let mapped: f64 =
        metrics.text().lines().find(mapped).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    // A tenth more than it has mapped when it has just begun: all but none is left.
    let child = Child::with_limit(&format!("-v {}", (mapped * 1.1) as u64 >> 10), &[]);
    says(&child, 503, r#"{"ready":false,"reason":"memory"}"#);
}
