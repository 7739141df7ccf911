//! Crowds that are written to in one system call where the machine lets that be, and one by one where it
//! does not or the settings say so: what clients get is the same.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::TlsFiles;
use fanfare::hub::ring::Ring;
use fanfare::metrics::Reason;
use rustls::version::TLS13;
use socket2::{Domain, SockRef, Socket, Type};

use crate::metrics::scrape;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, subscribe, target, trigger};
use crate::support::http::Http;
use crate::support::lines::{Session, Streaming};
use crate::support::sign::Request;
use crate::support::websocket::{Client, frame, handshake};
use crate::support::wire::{self, file};

const CROWD: usize = 60;

/// A server of one worker.
fn start(io_uring: bool, tls: bool) -> Fixture {
    let mut app = App::new(ID, KEY, SECRET);
    app.limits.outbox_bytes = 256 << 10;
    Fixture::with_config(vec![app], |config| {
        config.server.workers = 1;
        config.server.io_uring = io_uring;
        config.server.tls =
            tls.then(|| TlsFiles { cert: file("one", "crt"), key: file("one", "key") });
        config.metrics.enabled = true;
    })
}

/// Reads one event that `number` and padding were published in.
fn hear(client: &mut Client, number: usize) {
    let text = client.hear_text();
    assert!(text.contains(&format!(r#""data":"{number:04}x"#)), "{number}: {:.80}", text);
}

fn data(number: usize, size: usize) -> String {
    format!("{number:04}{}", "x".repeat(size))
}

#[test]
fn a_crowd_gets_the_same_with_a_ring_and_without() {
    for io_uring in [true, false] {
        let fixture = start(io_uring, false);
        let mut crowd: Vec<Client> = (0..CROWD).map(|_| fixture.subscribed("a")).collect();
        crowd.iter_mut().step_by(2).for_each(|client| subscribe(client, "b"));
        for number in 0..10 {
            fixture.publish("a", "e", &data(number, 300));
            fixture.publish("b", "e", &data(number, 300));
        }
        for (place, client) in crowd.iter_mut().enumerate() {
            let mut next = [0, 0];
            for _ in 0..if place % 2 == 0 { 20 } else { 10 } {
                let text = client.hear_text();
                let channel = usize::from(text.contains(r#""channel":"b""#));
                let expected = format!(r#""data":"{:04}x"#, next[channel]);
                assert!(text.contains(&expected), "{expected}: {text:.80}");
                next[channel] += 1;
            }
        }
        let samples = scrape(fixture.addr);
        // On a thread of its own, for a ring's end interrupts what its thread waits for.
        let can_be_had = || std::thread::spawn(|| Ring::new().is_ok()).join().unwrap();
        let is_used = io_uring && can_be_had();
        assert_eq!(samples[r#"fanfare_worker_io_uring{worker="0"}"#], f64::from(u8::from(is_used)));
        let writes = samples["fanfare_io_uring_writes_total"];
        assert_eq!(writes > 0.0, is_used, "{writes} writes");
        assert!(samples["fanfare_io_uring_submissions_total"] <= writes / 8.0);
    }
}

#[test]
fn a_crowd_over_http_gets_the_same_with_a_ring_and_without() {
    const EVENTS: usize = 40;
    for io_uring in [true, false] {
        let fixture = start(io_uring, false);
        let sessions: Vec<Session> = (0..CROWD).map(|_| Session::new(fixture.addr)).collect();
        let mut streams: Vec<Streaming> =
            sessions.iter().map(|one| one.stream().greeted()).collect();
        for (session, stream) in sessions.iter().zip(&mut streams) {
            session.subscribe("a");
            assert!(stream.frame().contains("subscription_succeeded"));
        }
        // More than one answer may hold, so that some end in the middle of a turn.
        for number in 0..EVENTS {
            fixture.publish("a", "e", &data(number, 9000));
            for (session, stream) in sessions.iter().zip(&mut streams) {
                let line = stream.next().unwrap_or_else(|| {
                    *stream = session.stream();
                    stream.line()
                });
                assert!(line.contains(&format!("{number:04}x")), "{number}: {line:.80}");
            }
        }
        let samples = scrape(fixture.addr);
        let is_used = samples[r#"fanfare_worker_io_uring{worker="0"}"#] > 0.0;
        assert_eq!(samples["fanfare_io_uring_writes_total"] > 0.0, is_used);
    }
}

#[test]
fn who_resets_or_does_not_read_costs_the_others_of_a_turn_nothing() {
    for io_uring in [true, false] {
        let fixture = start(io_uring, false);
        let mut crowd: Vec<Client> = (0..CROWD).map(|_| fixture.subscribed("a")).collect();
        let mut stuck = bare(&fixture);
        let shared = fixture.running().shared();
        for number in 0.. {
            if number % 3 == 0 && number < 30 {
                // It resets while the event may be on its way to it.
                let bare = bare(&fixture);
                SockRef::from(&bare).set_linger(Some(Duration::ZERO)).unwrap();
                fixture.publish("a", "e", &data(number, 20_000));
                drop(bare);
            } else {
                fixture.publish("a", "e", &data(number, 20_000));
            }
            crowd.iter_mut().for_each(|client| hear(client, number));
            if number > 30 && shared.connection_count() == CROWD as u64 {
                break;
            }
            assert!(number < 2000, "40 MB wait for a client that does not read");
        }
        // What was sent to the slow one is whole, and then it is told why.
        let mut heard = Vec::new();
        stuck.read_to_end(&mut heard).unwrap();
        let heard = String::from_utf8_lossy(&heard).into_owned();
        for (number, event) in heard.split(r#""data":""#).skip(1).enumerate() {
            assert!(event.starts_with(&data(number, 20_000)), "{number}: {event:.80}");
        }
        assert!(heard.contains(r#""code":4100"#), "it is not told why");
        let lost = eventually(|| match shared.metrics.ended_for(Reason::Lost) {
            10 => Ok(()),
            lost => Err(format!("{lost} lost")),
        });
        assert_eq!(lost, Ok(()));
        fixture.is_well();
    }
}

/// The socket of a subscriber of `a`.
fn bare(fixture: &Fixture) -> TcpStream {
    // With little room, so that it soon is slow.
    let bare = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bare.set_recv_buffer_size(64 << 10).unwrap();
    bare.connect(&fixture.addr.into()).unwrap();
    let mut bare = TcpStream::from(bare);
    bare.write_all(handshake(&target(KEY), &[]).as_bytes()).unwrap();
    let subscribe = r#"{"event":"pusher:subscribe","data":{"channel":"a"}}"#;
    bare.write_all(&frame(0x81, subscribe.as_bytes())).unwrap();
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(br#""channel":"a","data":"{}"}"#) {
        bare.read_exact(&mut byte).unwrap();
        heard.extend(byte);
    }
    bare
}

#[test]
fn tls_goes_the_same_way() {
    for io_uring in [true, false] {
        let fixture = start(io_uring, true);
        let config = wire::client(&TLS13, &[]);
        let http = || Http::over(wire::tls(fixture.addr, config.clone()).unwrap());
        let mut crowd: Vec<Client> = (0..20)
            .map(|_| {
                let mut client = Client::open_over(http(), &target(KEY), &[]).unwrap();
                established(&client.hear_text()).unwrap();
                subscribe(&mut client, "a");
                client
            })
            .collect();
        let mut publisher = http();
        // Up to more than one run of records, and more than the sockets take at once.
        for (number, size) in
            [300, 90_000, 1, 20_000, 99_000, 2].into_iter().cycle().take(60).enumerate()
        {
            let body = trigger("a", "e", &data(number, size));
            let path = format!("/apps/{ID}/events");
            let request = Request::new("POST", &path, &body, KEY, SECRET);
            assert_eq!(publisher.ask_signed(&request).status, 200);
            let readers = if number % 6 == 5 { crowd.len() } else { 0 };
            for client in crowd.iter_mut().take(readers) {
                (number - 5..=number).for_each(|number| hear(client, number));
            }
        }
    }
}
