//! TLS: who is let in, what they are shown, and that what holds on plain sockets holds here: order,
//! batches, slow readers and how it all ends.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::TlsFiles;
use fanfare::metrics::Reason;
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};

use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, subscribe, target, trigger};
use crate::support::http::{Http, request};
use crate::support::sign::Request;
use crate::support::site::Site;
use crate::support::websocket::{Client, Heard};
use crate::support::wire::{self, client, file};
use crate::support::{DEADLINE, eventually};

fn tls() -> TlsFiles {
    TlsFiles { cert: file("one", "crt"), key: file("one", "key") }
}

fn start(change: impl FnOnce(&mut App)) -> Fixture {
    let mut app = App::new(ID, KEY, SECRET);
    change(&mut app);
    Fixture::with_apps(vec![app], |server| server.tls = Some(tls()))
}

fn http(fixture: &Fixture, config: &Arc<ClientConfig>) -> Http {
    Http::over(wire::tls(fixture.addr, config.clone()).unwrap())
}

fn connect(fixture: &Fixture, config: &Arc<ClientConfig>) -> Client {
    let mut client = Client::open_over(http(fixture, config), &target(KEY), &[]).unwrap();
    established(&client.hear_text()).unwrap();
    client
}

fn publish(http: &mut Http, channel: &str, data: &str) {
    let body = trigger(channel, "e", data);
    let target = format!("/apps/{ID}/events");
    let answer = http.ask_signed(&Request::new("POST", &target, &body, KEY, SECRET));
    assert_eq!((answer.status, answer.text()), (200, "{}"));
}

#[test]
fn both_versions_carry_requests_and_sockets() {
    let fixture = start(|_| {});
    for version in [&TLS12, &TLS13] {
        for offer in [&["http/1.1"][..], &["h2", "http/1.1"], &[]] {
            let config = client(version, offer);
            let mut socket = connect(&fixture, &config);
            subscribe(&mut socket, "c");
            publish(&mut http(&fixture, &config), "c", "1");
            assert_eq!(socket.hear_text(), r#"{"event":"e","channel":"c","data":"1"}"#);
            socket.send_text(r#"{"event":"pusher:ping"}"#);
            assert_eq!(socket.hear_text(), r#"{"event":"pusher:pong","data":"{}"}"#);
            socket.send_close(1000, "");
            socket.hear_close(1000, "");
        }
    }
}

#[test]
fn nothing_but_http_1_1_is_on_offer() {
    let fixture = start(|_| {});
    for version in [&TLS12, &TLS13] {
        assert!(wire::tls(fixture.addr, client(version, &["h2"])).is_err());
    }
    connect(&fixture, &client(&TLS13, &[]));
}

#[test]
fn plain_http_is_told_what_is_wrong() {
    let fixture = start(|_| {});
    let answer = Http::connect(fixture.addr).ask("GET", "/up", "", b"");
    assert_eq!(answer.error(400), "This port speaks TLS: use https:// or wss:// instead.");
    assert_eq!(Client::open(fixture.addr, &target(KEY), &[]).err().unwrap().status, 400);
}

#[test]
fn whoever_does_not_shake_hands_is_let_go() {
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.tls = Some(tls());
        server.handshake_timeout = Duration::from_millis(50);
    });
    for bytes in [&b""[..], &[22, 3, 1], &[22, 3, 1, 0, 1, 0], &[0xff; 64]] {
        let mut tcp = wire::tcp(fixture.addr);
        tcp.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // At most an alert comes before the end, and a reset is an end too.
        let _ = tcp.read_to_end(&mut rest);
        assert!(rest.len() < 16, "{rest:?}");
    }
}

#[test]
fn refusals_and_endings_are_as_on_plain_sockets() {
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.tls = Some(tls());
        server.shutdown_grace = DEADLINE;
    });
    let config = client(&TLS13, &[]);
    let mut refused = Client::open_over(http(&fixture, &config), &target("no-app"), &[]).unwrap();
    assert!(refused.hear_text().contains("4001"));
    refused.hear_close(4001, "Application does not exist");
    let mut drained = connect(&fixture, &config);
    fixture.drain();
    assert!(drained.hear_text().contains("4200"));
    drained.hear_close(4200, "");
}

#[test]
fn everyone_gets_everything_in_order() {
    const SOCKETS: usize = 100;
    const EVENTS: usize = 60;
    let fixture = start(|_| {});
    let configs = [client(&TLS12, &[]), client(&TLS13, &[])];
    let mut sockets: Vec<_> =
        (0..SOCKETS).map(|number| connect(&fixture, &configs[number % 2])).collect();
    for socket in &mut sockets {
        subscribe(socket, "c");
    }
    // Pipelined, so that many of them come to a worker in one turn.
    let data: Vec<_> = (0..EVENTS).map(|n| n.to_string() + &"x".repeat(n * 100)).collect();
    let mut publisher = http(&fixture, &configs[1]);
    for data in &data {
        let body = trigger("c", "e", data);
        let signed = Request::new("POST", &format!("/apps/{ID}/events"), &body, KEY, SECRET);
        publisher.send(request("POST", &signed.signed_target(), "", body.as_bytes()));
    }
    for _ in &data {
        assert_eq!(publisher.answer().status, 200);
    }
    for socket in &mut sockets {
        for data in &data {
            let expected = format!(r#"{{"event":"e","channel":"c","data":"{data}"}}"#);
            assert_eq!(socket.hear_text(), expected);
        }
    }
}

#[test]
fn whoever_reads_late_still_gets_all_that_fits() {
    const EVENTS: usize = 120;
    let fixture = start(|app| app.limits.outbox_bytes = 64 << 20);
    for version in [&TLS12, &TLS13] {
        let config = client(version, &[]);
        let mut late = connect(&fixture, &config);
        subscribe(&mut late, "c");
        let mut publisher = http(&fixture, &config);
        // More than the buffers of both kernels take, so that the rest waits for the socket.
        for number in 0..EVENTS {
            publish(&mut publisher, "c", &format!("{number:04}{}", "x".repeat(90_000)));
        }
        for number in 0..EVENTS {
            let text = late.hear_text();
            assert!(
                text.contains(&format!(r#""data":"{number:04}x"#)),
                "{number}: {}",
                &text[..60]
            );
        }
        // Nothing is held back once all is read.
        late.send_text(r#"{"event":"pusher:ping"}"#);
        assert_eq!(late.hear_text(), r#"{"event":"pusher:pong","data":"{}"}"#);
    }
}

#[test]
fn whoever_never_reads_is_closed_and_delays_nobody() {
    let fixture = start(|app| app.limits.outbox_bytes = 200_000);
    let config = client(&TLS13, &[]);
    let (mut slow, mut quick) = (connect(&fixture, &config), connect(&fixture, &config));
    subscribe(&mut slow, "c");
    subscribe(&mut quick, "c");
    let mut publisher = http(&fixture, &config);
    let shared = fixture.running().shared();
    let mut number = 0;
    while shared.connection_count() == 2 {
        publish(&mut publisher, "c", &format!("{number}-{}", "x".repeat(50_000)));
        assert!(quick.hear_text().contains(&format!("\"{number}-")));
        number += 1;
        assert!(number < 2000, "100 MB wait for a client that does not read");
    }
    // It gets what was sent, a frame that is whole, and why it ended, if it can still be told.
    loop {
        match slow.hear() {
            Heard::Text(text) if text.contains("4100") => break,
            Heard::Text(_) => {}
            Heard::Close(Some((4100, _))) | Heard::End => break,
            other => panic!("{other:?}"),
        }
    }
    eventually(|| match shared.metrics.ended_for(Reason::Slow) {
        1 => Ok(()),
        count => Err(format!("{count} were too slow")),
    })
    .unwrap();
}

#[test]
fn large_messages_come_through_whole() {
    let fixture = start(|app| {
        app.limits.max_message_size = 1 << 20;
        app.limits.max_event_data = 1 << 20;
        app.limits.max_client_event_data = 1 << 20;
        app.client_events = fanfare::app::ClientEvents::Members;
    });
    let config = client(&TLS13, &[]);
    let (mut one, mut other) = (connect(&fixture, &config), connect(&fixture, &config));
    subscribe(&mut one, "c");
    subscribe(&mut other, "c");
    let data = "x".repeat(900_000);
    let text = format!(r#"{{"event":"client-e","channel":"c","data":"{data}"}}"#);
    one.send_text(&text);
    assert_eq!(other.hear_text(), text);
}

#[test]
fn require_tls_refuses_plain_sockets_alone() {
    let mut app = App::new(ID, KEY, SECRET);
    app.require_tls = true;
    let plain = Fixture::with_apps(vec![app.clone()], |server| {
        server.trusted_proxies =
            vec![fanfare::config::Network { address: "127.0.0.2".parse().unwrap(), prefix: 32 }];
    });
    let refused = |headers: &[(String, String)], fixture: &Fixture| {
        let mut socket = Client::open(fixture.addr, &target(KEY), headers).unwrap();
        assert!(socket.hear_text().contains(r#""code":4000"#));
        socket.hear_close(4000, "");
    };
    refused(&[], &plain);
    // Only a proxy that is trusted is believed.
    let proto = [("X-Forwarded-Proto".to_owned(), "https".to_owned())];
    refused(&proto, &plain);
    let behind = Fixture::with_apps(vec![app], |server| {
        server.trusted_proxies =
            vec![fanfare::config::Network { address: "127.0.0.1".parse().unwrap(), prefix: 32 }];
    });
    refused(&[], &behind);
    let mut socket = Client::open(behind.addr, &target(KEY), &proto).unwrap();
    established(&socket.hear_text()).unwrap();
    let direct = start(|app| app.require_tls = true);
    connect(&direct, &client(&TLS13, &[]));
}

/// A server whose certificate is in files of its own, so that they can change.
fn site(name: &str) -> Site {
    let name = format!("tls-{name}");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("site-{name}"));
    let text = |end| fs::read_to_string(file("one", end)).unwrap();
    let settings = format!(
        "[server.tls]\ncert = {:?}\nkey = {:?}\n[[apps]]\nid = {ID:?}\nkey = {KEY:?}\nsecret = {SECRET:?}",
        folder.join("crt"),
        folder.join("key")
    );
    Site::start(&name, &[("crt", &text("crt")), ("key", &text("key")), ("fanfare.toml", &settings)])
}

fn hold(site: &Site, name: &str) {
    for end in ["crt", "key"] {
        site.write(end, &fs::read_to_string(file(name, end)).unwrap());
    }
}

fn shown(site: &Site) -> Option<&'static str> {
    wire::tls(site.fixture.addr, client(&TLS13, &[])).unwrap().certificate()
}

#[test]
fn a_new_certificate_is_shown_to_new_connections() {
    let site = site("renewed");
    let mut reloader = site.reloader();
    let mut before = connect(&site.fixture, &client(&TLS13, &[]));
    assert_eq!(shown(&site), Some("one"));
    hold(&site, "two");
    eventually(|| {
        reloader.look();
        shown(&site).filter(|name| *name == "two").ok_or_else(|| "one".to_owned())
    })
    .unwrap();
    hold(&site, "one");
    reloader.reload();
    assert_eq!(shown(&site), Some("one"), "SIGHUP waits for nothing");
    before.send_text(r#"{"event":"pusher:ping"}"#);
    assert_eq!(before.hear_text(), r#"{"event":"pusher:pong","data":"{}"}"#);
}

#[test]
fn a_certificate_that_cannot_be_used_changes_nothing() {
    let site = site("broken");
    let mut reloader = site.reloader();
    // Of another key; not PEM; not there.
    site.write("crt", &fs::read_to_string(file("two", "crt")).unwrap());
    reloader.reload();
    assert_eq!(shown(&site), Some("one"));
    site.write("crt", "no certificate");
    reloader.reload();
    assert_eq!(shown(&site), Some("one"));
    fs::remove_file(site.path("key")).unwrap();
    reloader.reload();
    assert_eq!(shown(&site), Some("one"));
    hold(&site, "two");
    reloader.reload();
    assert_eq!(shown(&site), Some("two"));
}

#[test]
fn a_server_does_not_start_with_a_certificate_it_cannot_use() {
    let mut config = crate::support::fixture::config(vec![App::new(ID, KEY, SECRET)]);
    // The files are each in the place of the other.
    config.server.tls = Some(TlsFiles { cert: file("one", "key"), key: file("one", "crt") });
    let error = fanfare::server::start(config).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    let text = error.to_string();
    assert!(text.contains("holds no certificate in PEM form"), "{text}");
}
