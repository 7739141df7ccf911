//! The HTTP API as bytes: keep-alive, pipelining, chunks, `Expect`, what is too large, half-sent or
//! garbage. The meaning of requests is in the scripts.

use fanfare::app::App;

use crate::support::fixture::{Fixture, ID, KEY, SECRET, trigger};
use crate::support::http::{Http, request};
use crate::support::sign::{Request, md5_hex};
use crate::support::{Chance, eventually};

fn signed(method: &str, path: &str, body: &str) -> Request {
    Request::new(method, &format!("/apps/{ID}/{path}"), body, KEY, SECRET)
}

/// The target of a signed `POST events` for `body`.
fn events(body: &str) -> String {
    signed("POST", "events", body).signed_target()
}

#[test]
fn t14_a_connection_is_kept_for_the_next_request() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let mut http = Http::connect(fixture.addr);
    for number in 0..5 {
        let body = trigger("pub", "e", &number.to_string());
        let response = http.ask_signed(&signed("POST", "events", &body));
        assert_eq!((response.status, response.text()), (200, "{}"));
        assert!(client.hear_text().contains(&format!(r#""data":"{number}""#)));
        assert_eq!(http.ask("GET", "/up", "", b"").status, 200);
        // A refusal does not end the connection either.
        http.ask("GET", "/nope", "", b"").error(404);
    }
}

#[test]
fn t12_the_content_type_does_not_matter() {
    let fixture = Fixture::start();
    let body = trigger("pub", "e", "1");
    for kind in ["application/json", "application/json; charset=utf-8", "text/plain", "nonsense"] {
        let headers = format!("Content-Type: {kind}\r\n");
        let mut http = Http::connect(fixture.addr);
        let response = http.ask("POST", &events(&body), &headers, body.as_bytes());
        assert_eq!(response.status, 200, "{kind}");
    }
    let response = Http::connect(fixture.addr).ask("POST", &events(&body), "", body.as_bytes());
    assert_eq!(response.status, 200);
}

#[test]
fn t13_every_answer_is_a_json_object() {
    let fixture = Fixture::start();
    let body = trigger("pub", "e", "1");
    let batch = r#"{"batch":[{"name":"e","channel":"pub","data":"1"}]}"#;
    for (method, path, body) in [
        ("POST", "events", &*body),
        ("POST", "batch_events", batch),
        ("GET", "channels", ""),
        ("GET", "channels/pub", ""),
        ("GET", "channels/presence-x/users", ""),
        ("GET", "connections", ""),
        ("GET", "nope", ""),
        ("POST", "events", "[]"),
    ] {
        let response = fixture.api(method, path, body);
        assert_eq!(response.header("content-type"), Some("application/json"), "{path}");
        assert!(response.json().is_object(), "{path}: {}", response.text());
        assert!(response.header("content-length").is_some(), "{path}");
    }
}

#[test]
fn requests_may_be_pipelined() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let mut http = Http::connect(fixture.addr);
    let mut all = Vec::new();
    for number in 0..20 {
        let body = trigger("pub", "e", &number.to_string());
        all.extend(request("POST", &events(&body), "", body.as_bytes()));
        all.extend(request("GET", "/up", "", b""));
    }
    http.send(&all);
    for number in 0..20 {
        assert_eq!(http.answer().text(), "{}");
        assert_eq!(http.answer().text(), r#"{"health":"OK"}"#);
        assert!(client.hear_text().contains(&format!(r#""data":"{number}""#)));
    }
}

#[test]
fn bodies_may_come_in_chunks() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let body = trigger("pub", "e", "in chunks");
    for size in [1, 7, body.len()] {
        let mut chunked = Vec::new();
        for piece in body.as_bytes().chunks(size) {
            chunked.extend(format!("{:x}\r\n", piece.len()).bytes());
            chunked.extend(piece);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        let mut http = Http::connect(fixture.addr);
        let headers = "Transfer-Encoding: chunked\r\n";
        assert_eq!(http.ask("POST", &events(&body), headers, &chunked).status, 200);
        assert!(client.hear_text().contains("in chunks"));
        assert_eq!(http.ask("GET", "/up", "", b"").status, 200);
    }
}

#[test]
fn a_client_that_waits_is_told_to_go_on() {
    let fixture = Fixture::start();
    let body = trigger("pub", "e", "1");
    let mut http = Http::connect(fixture.addr);
    let headers = format!("Expect: 100-continue\r\nContent-Length: {}\r\n", body.len());
    http.send(request("POST", &events(&body), &headers, b""));
    assert_eq!(http.answer().status, 100);
    http.send(&body);
    assert_eq!(http.answer().status, 200);
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let fixture = Fixture::start();
    // Far more than any event.
    let length = 1_usize << 32;
    let mut http = Http::connect(fixture.addr);
    let headers = format!("Content-Length: {length}\r\n");
    http.send(request("POST", &events("{}"), &headers, b""));
    let text = http.answer().error(413);
    assert!(text.contains(&length.to_string()), "{text}");

    let mut http = Http::connect(fixture.addr);
    let headers = format!("Expect: 100-continue\r\nContent-Length: {length}\r\n");
    http.send(request("POST", &events("{}"), &headers, b""));
    http.answer().error(413);

    fixture.is_well();
}

#[test]
fn a_body_too_large_in_chunks_is_told_so() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    http.send(request("POST", &events("{}"), "Transfer-Encoding: chunked\r\n", b""));
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    // 64 MiB in all, unless the server hangs up before.
    for _ in 0..1024 {
        http.offer(&chunk);
    }
    http.answer().error(413);
    fixture.is_well();
}

#[test]
fn an_event_too_large_is_told_limit_and_size() {
    let fixture = Fixture::with(|app| app.limits.max_event_data = 1000);
    let text = fixture.api("POST", "events", &trigger("pub", "e", &"x".repeat(1234))).error(413);
    // Pusher's own words, for which SDKs look.
    let words = "The data content of this event exceeds the allowed maximum (1000 bytes)";
    assert!(text.contains(words) && text.contains("1234"), "{text}");
}

#[test]
fn heads_have_limits() {
    let fixture = Fixture::start();
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
    let long_header = request("GET", "/up", &format!("X: {}\r\n", "x".repeat(1 << 20)), b"");
    let many_headers = request("GET", "/up", &"X: x\r\n".repeat(100_000), b"");
    for bytes in [long_line.into_bytes(), long_header, many_headers] {
        let mut http = Http::connect(fixture.addr);
        http.offer(&bytes);
        let answer = http.try_answer("GET");
        assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)));
        fixture.is_well();
    }
}

#[test]
fn half_a_request_is_no_request() {
    let fixture = Fixture::start();
    let body = trigger("pub", "e", "half");
    let mut client = fixture.subscribed("pub");
    let whole = request("POST", &events(&body), "", body.as_bytes());
    for cut in [1, 20, whole.len() - body.len(), whole.len() - 1] {
        let mut http = Http::connect(fixture.addr);
        http.send(&whole[..cut]);
        http.finish_sending();
        assert!(http.try_answer("POST").is_none_or(|answer| answer.status >= 400));
    }
    fixture.publish("pub", "e", "whole");
    assert!(client.hear_text().contains("whole"));
}

#[test]
fn a_client_that_never_finishes_is_let_go() {
    let config = |server: &mut fanfare::config::ServerConfig| {
        server.handshake_timeout = std::time::Duration::from_millis(200);
    };
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], config);
    let body = request("POST", &events("{}"), "Content-Length: 2\r\n", b"{");
    let halves = [&b""[..], b"GET /up HTT", b"GET /app/x HTTP/1.1\r\nHost: x\r\n", &body];
    let connections = halves.map(|half| {
        let mut http = Http::connect(fixture.addr);
        http.send(half);
        http
    });
    for mut http in connections {
        let answer = http.try_answer("POST");
        assert!(answer.is_none_or(|answer| answer.status == 408));
        assert!(http.is_ended());
    }
    // Who is held up while it speaks has not finished in time either, and asks again.
    eventually(|| {
        let mut http = Http::connect(fixture.addr);
        http.send(request("GET", "/up", "", b""));
        match http.try_answer("GET") {
            Some(answer) if answer.status == 200 => Ok(()),
            answer => Err(format!("{:?}", answer.map(|answer| answer.status))),
        }
    })
    .unwrap();
}

#[test]
fn head_is_get_without_its_body() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    let get = http.ask("GET", "/up", "", b"");
    let head = http.ask("HEAD", "/up", "", b"");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), get.header("content-type"));
    // No byte of a body came, or this answer would not be readable.
    assert_eq!(http.ask("GET", "/up", "", b"").status, 200);
}

#[test]
fn browsers_may_ask_before_they_ask() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    let headers = "Origin: https://example.org\r\nAccess-Control-Request-Method: POST\r\n\
                   Access-Control-Request-Headers: content-type\r\n";
    let response = http.ask("OPTIONS", &format!("/apps/{ID}/events"), headers, b"");
    assert!((200..300).contains(&response.status), "{}", response.status);
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    let methods = response.header("access-control-allow-methods").unwrap_or_default();
    assert!(methods.contains("POST"), "{methods:?}");
    let allowed = response.header("access-control-allow-headers").unwrap_or_default();
    assert!(allowed == "*" || allowed.to_lowercase().contains("content-type"), "{allowed:?}");
    let body = trigger("pub", "e", "1");
    let origin = "Origin: https://example.org\r\n";
    let response = http.ask("POST", &events(&body), origin, body.as_bytes());
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn origins_of_browsers_are_a_setting() {
    let change = |server: &mut fanfare::config::ServerConfig| {
        server.cors_origins = vec!["https://example.org".to_owned()];
    };
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], change);
    let mut http = Http::connect(fixture.addr);
    let target = signed("GET", "connections", "").signed_target();
    let response = http.ask("GET", &target, "Origin: https://example.org\r\n", b"");
    assert_eq!(response.header("access-control-allow-origin"), Some("https://example.org"));
    let response = http.ask("GET", &target, "Origin: https://example.net\r\n", b"");
    assert_ne!(response.header("access-control-allow-origin"), Some("https://example.net"));
    assert_ne!(response.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let fixture = Fixture::start();
    for (method, path, allowed) in [
        ("GET", "events", "POST"),
        ("PUT", "events", "POST"),
        ("DELETE", "channels", "GET"),
        ("POST", "channels/pub/users", "GET"),
        ("PATCH", "batch_events", "POST"),
        ("POS", "events", "POST"),
    ] {
        let response = fixture.api(method, path, "");
        response.error(405);
        let allow = response.header("allow").unwrap_or_default();
        assert!(allow.split(", ").any(|one| one == allowed), "{method} {path}: Allow: {allow}");
    }
}

#[test]
fn a_socket_needs_its_upgrade() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    let response = http.ask("GET", &format!("/app/{KEY}?protocol=7"), "", b"");
    assert!((400..500).contains(&response.status), "{}", response.status);
    response.error(response.status);
}

#[test]
fn http_1_0_is_answered_and_ended() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    http.send("GET /up HTTP/1.0\r\n\r\n");
    assert_eq!(http.answer().text(), r#"{"health":"OK"}"#);
    assert!(http.is_ended());
}

#[test]
fn targets_may_be_written_in_full() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    assert_eq!(http.ask("GET", "http://127.0.0.1/up", "", b"").text(), r#"{"health":"OK"}"#);
    let target = format!("http://127.0.0.1{}", signed("GET", "channels", "").signed_target());
    assert_eq!(http.ask("GET", &target, "", b"").text(), r#"{"channels":{}}"#);
    assert!(http.ask("OPTIONS", "*", "", b"").status < 500);
    // What cannot be a target is refused; the server goes on.
    for target in ["", "up", "/ü", "/%", "/%zz", "//", "/..", "/apps//channels", "?"] {
        let mut http = Http::connect(fixture.addr);
        http.send(request("GET", target, "", b""));
        assert!(http.try_answer("GET").is_none_or(|answer| answer.status < 500), "{target}");
    }
    fixture.is_well();
}

#[test]
fn every_answer_may_be_read_by_browsers() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    let unsigned = format!("/apps/{ID}/channels");
    for (target, status) in [("/up", 200), ("/", 200), ("/nope", 404), (&*unsigned, 401)] {
        let answer = http.ask("GET", target, "Origin: https://example.org\r\n", b"");
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{target}");
    }
}

#[test]
fn what_is_asked_to_end_ends() {
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    assert_eq!(http.ask("GET", "/up", "Connection: close\r\n", b"").status, 200);
    assert!(http.is_ended());
}

#[test]
fn random_bytes_never_end_the_server() {
    let fixture = Fixture::start();
    let mut chance = Chance::new("random requests");
    let body = trigger("pub", "e", "1");
    let whole = request("POST", &events(&body), "", body.as_bytes());
    for _ in 0..300 {
        let mut http = Http::connect(fixture.addr);
        let mut bytes = match chance.below(3) {
            0 => chance.bytes(200),
            _ => whole.clone(),
        };
        for _ in 0..chance.below(4) {
            let at = chance.below(bytes.len());
            bytes[at] = chance.below(256) as u8;
        }
        bytes.truncate(chance.below(bytes.len()) + 1);
        http.offer(&bytes);
        http.finish_sending();
        http.drain();
    }
    fixture.is_well();
}

#[test]
fn random_json_never_ends_the_server() {
    let fixture = Fixture::start();
    let mut chance = Chance::new("random bodies");
    let words = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "1e999",
        "-0",
        "\"",
        "\"name\"",
        "\"data\"",
        "\"channels\"",
        "\"channel\"",
        "\"batch\"",
        "\"info\"",
        "\"socket_id\"",
        "\\ud800",
        " ",
    ];
    let mut http = Http::connect(fixture.addr);
    for _ in 0..500 {
        let count = chance.below(30);
        let body: String = (0..count).map(|_| words[chance.below(words.len())]).collect();
        let path = ["events", "batch_events"][chance.below(2)];
        let response = http.ask_signed(&signed("POST", path, &body));
        assert!(response.status < 500, "{} for {body}", response.status);
    }
    // Deep nesting must be refused, not followed down the stack.
    for deep in ["[".repeat(50_000), r#"{"a":"#.repeat(10_000)] {
        let response = http.ask_signed(&signed("POST", "events", &deep));
        assert_eq!(response.status, 400);
    }
    fixture.is_well();
}

#[test]
fn a06_a_body_changed_on_the_way_is_refused() {
    let fixture = Fixture::start();
    let (sent, other) = (trigger("pub", "e", "1"), trigger("pub", "e", "2"));
    let target = events(&sent);
    assert!(target.contains(&md5_hex(sent.as_bytes())));
    Http::connect(fixture.addr).ask("POST", &target, "", other.as_bytes()).error(401);
}

#[test]
fn rates_of_the_api_have_limits() {
    let fixture = Fixture::with(|app| {
        app.limits.events_per_second = 2;
        app.limits.reads_per_second = 1;
    });
    let body = trigger("pub", "e", "1");
    // More than two seconds' worth at once: some of it is over, whatever the second's turn.
    let answers: Vec<_> = (0..8).map(|_| fixture.api("POST", "events", &body)).collect();
    assert_eq!(answers[0].status, 200);
    assert_eq!(answers[0].header("x-ratelimit-limit"), Some("2"));
    assert_eq!(answers[0].header("x-ratelimit-remaining"), Some("1"));
    let refused = answers.iter().find(|answer| answer.status == 429).expect("a limit");
    refused.error(429);
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.header("x-ratelimit-limit"), Some("2"));
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    let reads: Vec<_> = (0..4).map(|_| fixture.api("GET", "channels", "").status).collect();
    assert!(reads.contains(&429) && reads.contains(&200), "{reads:?}");
    assert_eq!(Http::connect(fixture.addr).ask("GET", "/up", "", b"").status, 200);
}

/// nginx, Apache and others pass no answer on that comes while they send, once the connection closes under them.
#[test]
fn a_proxy_that_was_still_sending_made_a_502_of_the_answer() {
    let fixture = Fixture::start();
    for (target, size, status) in [
        (events("{}"), 5 << 20, 413),
        ("/apps/nobody/events".to_owned(), 5 << 20, 404),
        (format!("/apps/{ID}/events"), 1 << 20, 401),
        ("/nope".to_owned(), 100 << 10, 404),
        ("/up".to_owned(), 100 << 10, 405),
    ] {
        let mut http = Http::connect(fixture.addr);
        let half = vec![b'x'; size / 2];
        http.send(request("POST", &target, &format!("Content-Length: {size}\r\n"), &half));
        // A proxy that has all of it looks for the answer, on a connection that goes on.
        http.send(&half);
        http.answer().error(status);
        assert_eq!(
            http.ask("GET", "/up", "", b"").status,
            200,
            "{target}: the connection was ended"
        );
    }
    // Who sends no more is answered all the same, and so is who sends without end.
    let mut http = Http::connect(fixture.addr);
    http.send(request("POST", "/nope", "Content-Length: 1000000\r\n", b"x"));
    http.answer().error(404);
    let mut http = Http::connect(fixture.addr);
    let endless = 12 << 20;
    http.send(request("POST", "/nope", &format!("Content-Length: {}\r\n", endless * 2), b""));
    http.offer(&vec![b'x'; endless]);
    http.answer().error(404);
}

#[test]
fn a_browser_is_shown_the_try_out_page_which_loads_nothing_from_elsewhere() {
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.try_out = fanfare::config::TryOut::On;
    });
    let page = Http::connect(fixture.addr).ask("GET", "/", "Accept: text/html\r\n", b"");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    let parts = ["default-src 'none'", "connect-src 'self' ws: wss:", "frame-ancestors 'none'"];
    assert!(parts.iter().all(|part| policy.split("; ").any(|other| other == *part)), "{policy}");
    assert!(page.text().contains("<html"));
}
