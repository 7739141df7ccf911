//! Requests that the server reads itself because they come whole, beside the same ones that hyper reads: nobody can
//! tell which it was.

use std::time::Duration;

use fanfare::app::App;

use crate::support::fixture::{Fixture, ID, KEY, SECRET, trigger};
use crate::support::http::{Http, find, request};
use crate::support::sign::Request;
use crate::support::websocket::handshake;

fn signed(method: &str, path: &str, body: &str) -> Request {
    Request::new(method, &format!("/apps/{ID}/{path}"), body, KEY, SECRET)
}

/// The target of a signed `POST events` for `body`.
fn events(body: &str) -> String {
    signed("POST", "events", body).signed_target()
}

#[test]
fn answers_are_the_same_whoever_reads_the_request() {
    let fixture = Fixture::start();
    let body = trigger("pub", "e", "1");
    let batch = r#"{"batch":[{"name":"e","channel":"pub","data":"1"}]}"#;
    let events = events(&body);
    let signed = |path: &str, body: &str| {
        let method = if body.is_empty() { "GET" } else { "POST" };
        (method, signed(method, path, body).signed_target(), body.to_owned())
    };
    let plain = |method, target: &str| (method, target.to_owned(), String::new());
    for (method, target, body) in [
        signed("events", &body),
        signed("batch_events", batch),
        signed("events", "[]"),
        signed("events", &format!(r#"{{"x":"{}"}}"#, "y".repeat(15 << 10))),
        signed("channels", ""),
        signed("channels/presence-x/users", ""),
        ("POST", events.clone(), "{}".to_owned()),
        plain("POST", &events),
        plain("GET", &events),
        plain("GET", "/apps/none/channels"),
        plain("GET", "/apps/none/nope"),
        plain("GET", "/app/key"),
    ] {
        // The third word is one that leaves a request to hyper, the second a header that no plain one has.
        let answers = ["", "Origin: http://page\r\n", "Connection: x\r\n"].map(|headers| {
            let mut http = Http::connect(fixture.addr);
            let mut answer = http.ask(method, &target, headers, body.as_bytes());
            let again = http.ask(method, &target, headers, body.as_bytes());
            assert_eq!((answer.status, &answer.body), (again.status, &again.body), "{target}");
            let date = answer.headers.iter_mut().find(|(name, _)| name == "date");
            let (_, date) = date.unwrap_or_else(|| panic!("no date: {:?}", again.headers));
            assert_eq!(date.split_off(25), " GMT");
            date.clear();
            (answer.status, answer.headers, answer.body)
        });
        assert_eq!(answers[0], answers[2], "{method} {target}");
        assert_eq!(answers[1], answers[2], "{method} {target}");
    }
}

#[test]
fn limits_and_origins_are_answered_the_same_whoever_reads_the_request() {
    let mut app = App::new(ID, KEY, SECRET);
    app.limits.events_per_second = 1_000_000;
    for origins in ["*", "http://page"] {
        let fixture = Fixture::with_apps(vec![app.clone()], |server| {
            server.cors_origins = vec![origins.to_owned()];
        });
        let body = trigger("pub", "e", "1");
        let answers = ["", "Connection: x\r\n"].map(|headers| {
            let mut http = Http::connect(fixture.addr);
            let answer = http.ask("POST", &events(&body), headers, body.as_bytes());
            let passing = ["date", "x-ratelimit-remaining"];
            let headers = answer.headers.into_iter();
            headers
                .map(|(name, value)| match name {
                    name if passing.contains(&&*name) => (name, None),
                    name => (name, Some(value)),
                })
                .collect::<Vec<_>>()
        });
        assert_eq!(answers[0], answers[1]);
        assert!(answers[0].iter().any(|(name, _)| name == "x-ratelimit-limit"), "{answers:?}");
    }
}

#[test]
fn a_body_may_come_after_its_head() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let mut http = Http::connect(fixture.addr);
    for number in 0..20 {
        let body = trigger("pub", "e", &number.to_string());
        let all = request("POST", &events(&body), "", body.as_bytes());
        let (head, body) = all.split_at(all.len() - body.len() + number % 3);
        http.send(head);
        http.send(body);
        assert_eq!(http.answer().status, 200);
        assert!(client.hear_text().contains(&format!(r#""data":"{number}""#)));
    }
}

/// All that the server says to a handshake until it waits for more, without what differs from one to the next.
fn told(fixture: &Fixture, request: &str) -> String {
    let mut http = Http::connect(fixture.addr);
    http.send(request);
    while find(&http.ahead, b"\r\n\r\n").is_none() {
        assert!(http.read_more(), "no answer to {request:?}");
    }
    // All has come once the server has closed, too.
    http.finish_sending();
    let text = String::from_utf8_lossy(&http.drain()).into_owned();
    let lines = text.lines().filter(|line| !line.starts_with("date: "));
    let digits = |line: &str| line.replace(|c: char| c.is_ascii_digit() || c == '.', "");
    let all: Vec<_> = lines
        .map(|line| if line.contains("socket_id") { digits(line) } else { line.to_owned() })
        .collect();
    all.join("\n")
}

#[test]
fn a_handshake_is_answered_the_same_whoever_reads_it() {
    let mut app = App::new(ID, KEY, SECRET);
    app.features.compression = true;
    app.features.resume = Duration::from_secs(60);
    app.allowed_origins = vec!["good.example".parse().unwrap()];
    let fixture = Fixture::with_apps(vec![app], |_| {});
    let encoded = format!("/app/%{:02x}{}", KEY.as_bytes()[0], &KEY[1..]);
    let token = "0123456789abcdef";
    let targets = [
        format!("/app/{KEY}"),
        format!("/app/{KEY}?protocol=7&client=js&version=8.4.0&flash=false"),
        format!("/app/{KEY}?PROTOCOL=3&protocol=7"),
        format!("/app/{KEY}?protocol=7&Protocol=3"),
        format!("/app/{KEY}?protocol=%37"),
        format!("/app/{KEY}?protocol"),
        format!("/app/{KEY}/"),
        format!("//app//{KEY}"),
        encoded,
        "/app/nobody?protocol=7".to_owned(),
        format!("/resume/{token}/app/{KEY}?protocol=7"),
        format!("/resume/short/app/{KEY}?protocol=7"),
        format!("/resume//app/{KEY}"),
    ];
    let origin = ("Origin", "http://good.example");
    let headers: &[&[(&str, &str)]] = &[
        &[origin],
        &[],
        &[("Origin", "http://bad.example")],
        &[("Origin", "http://g\u{f6}\u{f6}d.example")],
        &[origin, ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")],
        &[
            origin,
            ("Sec-WebSocket-Extensions", "x"),
            ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ],
        &[origin, ("Sec-WebSocket-Key", "dGhl")],
        &[origin, ("Sec-WebSocket-Key", "not of base 64 at all!!!")],
        &[origin, ("Sec-WebSocket-Version", "8")],
        &[origin, ("Sec-WebSocket-Protocol", "pusher-channels-protocol-7")],
        &[origin, ("Upgrade", "h2c")],
        &[origin, ("Upgrade", "WebSocket, h2c")],
        &[origin, ("Connection", "keep-alive")],
        &[origin, ("Host", "a"), ("Host", "b")],
    ];
    let greeted = targets.iter().flat_map(|target| headers.iter().map(move |all| (target, *all)));
    let (mut hands, mut refused) = (0, 0);
    for (target, all) in greeted {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let plain: Vec<_> = all.iter().map(owned).collect();
        let request = handshake(target, &plain);
        // Two headers that leave a handshake to the way of all requests, and to hyper.
        let slower = ["Sec-WebSocket-Protocol: x\r\n", "TE: x\r\nConnection: TE\r\n"];
        let answer = told(&fixture, &request);
        for more in slower {
            let other = request.replacen("\r\n", &format!("\r\n{more}"), 1);
            assert_eq!(answer, told(&fixture, &other), "{other}");
        }
        hands += usize::from(answer.contains(" 101 "));
        refused += usize::from(answer.contains("pusher:error"));
    }
    assert!(hands > 50 && refused > 20, "{hands} {refused}");
}
