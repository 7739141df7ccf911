//! The bounds of clients over HTTP, and how they are counted: wrong requests, sizes, limits, slow
//! readers, sessions that are left, the drain.

use std::time::Duration;

use fanfare::app::App;
use fanfare::config::TlsFiles;
use fanfare::metrics::Limited;
use rustls::version::TLS13;

use crate::metrics::scrape;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::http::{Http, request};
use crate::support::lines::{Session, frames, frames_of, lines_of};
use crate::support::wire::{client, file, tls};

fn one() -> Vec<App> {
    vec![App::new(ID, KEY, SECRET)]
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    let fixture = Fixture::start();
    let session = Session::new(fixture.addr);
    assert_eq!(session.say(&[]), 404, "nobody has opened it");
    let mut stream = session.stream().greeted();
    let any_page = Some("*");
    for body in ["", "{}", "\"a\"", "[1]", "[null]", "[\"a\"", "\u{feff}[]", "[\"\\ud800\"]", "xx"]
    {
        let answer = session.ask("POST", "xhr_send", "", body.as_bytes());
        assert!(answer.error(400).contains("array of strings"), "{body}");
        assert_eq!(answer.header("access-control-allow-origin"), any_page);
    }
    assert_eq!(session.ask("POST", "xhr_send", "", b"\xff").status, 400);
    for what in ["xhr_streaming", "xhr", "xhr_send"] {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = session.ask(method, what, "", b"");
            answer.error(405);
            assert_eq!(answer.header("allow"), Some("POST, OPTIONS"), "{method} {what}");
            assert_eq!(answer.header("access-control-allow-origin"), any_page);
        }
    }
    assert_eq!(session.say(&[r#"{"event":"pusher:ping"}"#]), 204);
    assert!(stream.frame().contains("pusher:pong"), "it is there as before");
}

#[test]
fn sessions_that_no_client_would_name_so_are_refused() {
    let fixture = Fixture::start();
    for name in [
        "1000/00000000",
        "01/00000000",
        "-1/00000000",
        "1/0000000",
        "1/000000000",
        "1/0000000w",
        "1/0000000A",
        "1/0000000%30",
        "x/00000000",
    ] {
        for what in ["xhr_streaming", "xhr", "xhr_send"] {
            let target = format!("/app/{KEY}/{name}/{what}");
            let answer = Http::connect(fixture.addr).ask("POST", &target, "", b"[]");
            answer.error(404);
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{target}");
        }
    }
    assert_eq!(fixture.api("GET", "connections", "").json()["connections"], 0);
}

#[test]
fn any_page_may_ask_whatever_the_api_allows() {
    let fixture = Fixture::with_apps(one(), |server| server.cors_origins = vec![]);
    let session = Session::new(fixture.addr);
    let asked = "Origin: https://a.test\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: content-type\r\n";
    for what in ["xhr_streaming", "xhr", "xhr_send"] {
        let answer = session.ask("OPTIONS", what, asked, b"");
        assert_eq!(answer.status, 204);
        for (name, value) in [
            ("access-control-allow-origin", Some("*")),
            ("access-control-allow-methods", Some("POST, OPTIONS")),
            ("access-control-allow-headers", Some("content-type")),
            ("access-control-max-age", Some("86400")),
            ("access-control-allow-credentials", None),
            ("allow", Some("POST, OPTIONS")),
        ] {
            assert_eq!(answer.header(name), value, "{name}");
        }
    }
    let _stream = session.stream().greeted();
    let sent = session.ask("POST", "xhr_send", "Origin: https://a.test\r\n", b"[]");
    assert_eq!((sent.status, sent.header("access-control-allow-origin")), (204, Some("*")));
}

#[test]
fn what_is_too_large_ends_the_session() {
    const MAX: usize = 1000;
    let fixture = Fixture::with(|app| app.limits.max_message_size = MAX);
    let wide = format!("[{}\"\"]", "\"\",".repeat((2 * MAX + 1024) / 3));
    let long = serde_json::to_string(&["x".repeat(MAX + 1)]).unwrap();
    let chunked = format!("{:x}\r\n{wide}\r\n0\r\n\r\n", wide.len());
    for (headers, body) in [
        ("", wide.as_str()),
        ("", long.as_str()),
        ("Transfer-Encoding: chunked\r\n", chunked.as_str()),
    ] {
        let session = Session::new(fixture.addr);
        let mut stream = session.stream().greeted();
        let answer = session.ask("POST", "xhr_send", headers, body.as_bytes());
        answer.error(413);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(stream.line(), r#"c[1009,"Maximum message size exceeded"]"#);
        assert_eq!(stream.next(), None);
        eventually(|| match session.say(&[]) {
            404 => Ok(()),
            status => Err(status.to_string()),
        })
        .unwrap();
    }
    // At the limit, every character doubled by quoting.
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    let text = "\"".repeat(MAX);
    assert_eq!(session.say(&[&text]), 204);
    assert!(stream.frame().contains("4200"));
}

#[test]
fn without_the_setting_there_is_nothing() {
    let fixture = Fixture::with_apps(one(), |server| server.http_fallback = false);
    let session = Session::new(fixture.addr);
    for what in ["xhr_streaming", "xhr", "xhr_send"] {
        session.ask("POST", what, "", b"").error(404);
    }
    fixture.is_well();
}

#[test]
fn a_flood_of_openings_is_bounded_as_handshakes_are() {
    let fixture = Fixture::with_apps(one(), |server| server.handshakes_per_ip = 1);
    let (mut opened, mut refused) = (Vec::new(), 0);
    for number in 0..20 {
        let session = Session::new(fixture.addr);
        if number % 2 == 0 {
            match session.poll() {
                lines if lines.len() == 2 => opened.push(session),
                lines => {
                    assert_eq!(lines[2], r#"c[4100,"Server is over capacity"]"#);
                    refused += 1;
                }
            }
        } else {
            let mut stream = session.stream();
            assert_eq!(stream.line(), "o");
            if stream.frame().contains("4100") {
                assert!(stream.line().starts_with("c[4100"));
                assert_eq!(stream.next(), None);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "all 20 were let in");
    // Those that are open are none of it.
    let session = &opened[0];
    for _ in 0..5 {
        assert_eq!(session.say(&[r#"{"event":"pusher:ping"}"#]), 204);
        assert_eq!(session.poll().len(), 1);
    }
}

#[test]
fn sessions_count_as_connections_of_their_address() {
    let fixture = Fixture::with_apps(one(), |server| server.connections_per_ip = 2);
    let sessions: Vec<Session> = (0..3).map(|_| Session::new(fixture.addr)).collect();
    let stream = sessions[0].stream().greeted();
    assert_eq!(sessions[1].poll().len(), 2);
    let refused = sessions[2].poll();
    assert_eq!(refused[2], r#"c[4100,"Server is over capacity"]"#);
    // Requests of sessions that are there are no connections.
    for _ in 0..5 {
        assert_eq!(sessions[1].say(&[r#"{"event":"pusher:ping"}"#]), 204);
        assert_eq!(sessions[1].poll().len(), 1);
    }
    drop(stream);
    eventually(|| match Session::new(fixture.addr).poll().len() {
        2 => Ok(()),
        lines => Err(format!("{lines} lines")),
    })
    .unwrap();
}

#[test]
fn an_app_has_as_many_sessions_as_sockets() {
    let fixture = Fixture::with(|app| app.limits.max_connections = 2);
    let _socket = fixture.connect();
    let _stream = Session::new(fixture.addr).stream().greeted();
    let refused = Session::new(fixture.addr).poll();
    assert_eq!(refused[2], r#"c[4004,"Application is over connection quota"]"#);
    let mut streaming = Session::new(fixture.addr).stream();
    assert_eq!(streaming.line(), "o");
    assert!(streaming.frame().contains("4004"));
    assert!(streaming.line().starts_with("c[4004"));
    assert_eq!(streaming.next(), None);
}

#[test]
fn a_client_that_does_not_read_is_closed_as_too_slow() {
    let fixture = Fixture::with(|app| app.limits.outbox_bytes = 64 << 10);
    let sessions = [Session::new(fixture.addr), Session::new(fixture.addr)];
    let stream = sessions[0].stream().greeted();
    sessions[1].poll();
    sessions.iter().for_each(|session| session.subscribe("pub"));
    let text = "x".repeat(60_000);
    let gone = |session: &Session| session.say(&[]) == 404;
    eventually(|| {
        fixture.publish("pub", "e", &text);
        if sessions.iter().all(gone) { Ok(()) } else { Err("still there".to_owned()) }
    })
    .unwrap();
    // Who polls again hears why.
    let last = sessions[1].poll();
    assert_eq!(last.last().unwrap(), r#"c[4100,"Connection is too slow"]"#);
    drop(stream);
    fixture.is_well();
}

#[test]
fn a_session_that_is_left_ends_by_itself() {
    let fixture = Fixture::with(|app| app.activity_timeout = 1);
    let left = Session::new(fixture.addr);
    assert_eq!(left.poll().len(), 2);
    eventually(|| match left.say(&[]) {
        404 => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    eventually(|| match fixture.api("GET", "connections", "").json()["connections"].as_u64() {
        Some(0) => Ok(()),
        count => Err(format!("{count:?}")),
    })
    .unwrap();
}

#[test]
fn a_drain_tells_clients_over_http_too() {
    let fixture = Fixture::with_config(one(), |config| {
        config.server.shutdown_grace = Duration::from_secs(20);
    });
    let (streaming, polling, between) =
        (Session::new(fixture.addr), Session::new(fixture.addr), Session::new(fixture.addr));
    let mut stream = streaming.stream().greeted();
    polling.poll();
    between.poll();
    let mut poll = polling.begin_poll();
    fixture.drain();
    let last: Vec<String> = std::iter::from_fn(|| stream.next()).collect();
    assert!(frames_of(&last[0])[0].contains("4200") && last[1].starts_with("c[4200"), "{last:?}");
    assert_eq!(lines_of(&poll.answer()), last);
    let refused = Session::new(fixture.addr).poll();
    assert!(frames_of(&refused[1])[0].contains("4100"), "{refused:?}");
    eventually(|| match between.say(&[]) {
        404 => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    let kept = between.poll();
    assert!(kept.ends_with(&last), "what was said while nothing received is kept: {kept:?}");
    drop((stream, poll));
    fixture.stop();
}

#[test]
fn sessions_are_carried_over_tls() {
    let fixture = Fixture::with_config(one(), |config| {
        config.server.tls = Some(TlsFiles { cert: file("one", "crt"), key: file("one", "key") });
    });
    let config = client(&TLS13, &[]);
    let connect = || tls(fixture.addr, config.clone()).unwrap();
    // Over several, so that each worker carries a part.
    for _ in 0..4 {
        let session = Session::new(fixture.addr);
        let mut stream = session.stream_over(connect(), "HTTP/1.1").greeted();
        let ask = |body: &[u8]| {
            Http::over(connect()).ask("POST", &session.target("xhr_send"), "", body).status
        };
        assert_eq!(ask(br#"["{\"event\":\"pusher:ping\"}"]"#), 204);
        assert!(stream.frame().contains("pusher:pong"));
        let mut next = session.stream_over(connect(), "HTTP/1.1");
        assert_eq!(stream.next(), None);
        assert_eq!(ask(b"[]"), 204);
        assert_eq!(next.line(), "a[]");
    }
}

#[test]
fn an_app_for_tls_alone_refuses_sessions_too() {
    let fixture = Fixture::with(|app| app.require_tls = true);
    let refused = Session::new(fixture.addr).poll();
    assert!(refused[2].starts_with("c[4000,"), "{refused:?}");
}

#[test]
fn connections_are_told_apart_by_transport() {
    let fixture = Fixture::with_config(one(), |config| {
        config.metrics.enabled = true;
        config.metrics.port = 0;
    });
    let expect = |socket: f64, streaming: f64, polling: f64| {
        let reached = eventually(|| {
            let samples = scrape(fixture.addr);
            let of = |word: &str| {
                samples[&format!("fanfare_connections_by_transport{{transport=\"{word}\"}}")]
            };
            let found = (of("websocket"), of("xhr_streaming"), of("xhr_polling"));
            if found == (socket, streaming, polling) { Ok(()) } else { Err(format!("{found:?}")) }
        });
        assert_eq!(reached, Ok(()));
    };
    expect(0.0, 0.0, 0.0);
    let _socket = fixture.connect();
    let session = Session::new(fixture.addr);
    session.poll();
    expect(1.0, 0.0, 1.0);
    let stream = session.stream();
    expect(1.0, 1.0, 0.0);
    drop(stream);
    expect(1.0, 0.0, 0.0);
}

#[test]
fn an_app_that_is_gone_ends_its_sessions() {
    let fixture = Fixture::start();
    let (streaming, polling) = (Session::new(fixture.addr), Session::new(fixture.addr));
    let mut stream = streaming.stream().greeted();
    polling.poll();
    fixture.running().replace_apps(fanfare::app::Apps::new(Vec::new()).unwrap());
    assert!(stream.frame().contains("4001"));
    assert!(stream.line().starts_with("c[4001"));
    eventually(|| match polling.say(&[]) {
        404 => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    let last = polling.poll();
    assert!(frames(&last[..1])[0].contains("4001") && last[1].starts_with("c[4001"), "{last:?}");
}

#[test]
fn who_talks_nonsense_over_http_is_held_up_as_over_a_websocket() {
    let fixture = Fixture::with_config(one(), |config| config.metrics.enabled = true);
    let session = Session::new(fixture.addr);
    let mut stream = session.stream().greeted();
    session.subscribe("room");
    assert!(stream.frame().contains("subscription_succeeded"));
    let nonsense = serde_json::to_string(&["x"; 900][..]).unwrap();
    let mut sending = Http::connect(fixture.addr);
    sending.send(request("POST", &session.target("xhr_send"), "", nonsense.as_bytes()));
    eventually(|| match scrape(fixture.addr)[r#"fanfare_rate_limited_total{what="pace"}"#] {
        1.0 => Ok(()),
        times => Err(format!("held up {times} times")),
    })
    .unwrap();
    // Of 900 in one request no more was heard than there was a share for, and the client hears on.
    fixture.publish("room", "e", "1");
    let lines = std::iter::repeat_with(|| stream.line());
    let before =
        lines.flat_map(|line| frames_of(&line)).take_while(|frame| !frame.contains("room"));
    let refused = before.filter(|frame| frame.contains("Invalid message format")).count();
    assert!((512..900).contains(&refused), "{refused}");
}

/// Each was kept as long as one that somebody receives for, and took a place and no descriptor: four connections filled
/// all there were in 2.5 s.
#[test]
fn sessions_that_nobody_came_back_to_left_no_place_for_others() {
    let fixture = Fixture::with_apps(one(), |server| {
        server.max_connections = 600;
        server.workers = 1;
    });
    let [held, returned] = [(); 2].map(|()| Session::new(fixture.addr));
    held.poll();
    held.subscribe("room");
    held.poll();
    let receives = held.begin_poll();
    // Comes back every now and then, as a client behind the same address does.
    returned.poll();
    returned.subscribe("room");
    returned.poll();
    let mut flood = Http::connect(fixture.addr);
    for _ in 0..700 {
        let target = Session::new(fixture.addr).target("xhr");
        assert_eq!(flood.ask("POST", &target, "", b"").status, 200);
    }
    let count = || fixture.api("GET", "connections", "").json()["connections"].as_u64().unwrap();
    // The last of them may be on their way out.
    let counts = fixture.running().shared().metrics.of_worker(0);
    eventually(|| match (count(), counts.limited.value(Limited::Connections as usize)) {
        (..=80, 600..) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    fixture.subscribed("room");
    fixture.publish("room", "e", "1");
    let told = |lines: Vec<String>| assert!(lines[0].contains(r#"\"data\":\"1\""#), "{lines:?}");
    told(lines_of(&{ receives }.answer()));
    told(returned.poll());
    assert_eq!(held.say(&[]), 204);
}
