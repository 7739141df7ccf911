//! Refusals and how they are told: no request at all, requests that lost their way, sockets that are not let in. Each
//! is answered in words, counted, and has a line in the log that names what was refused.

use std::net::TcpStream;

use crate::support::child::Child;
use crate::support::eventually;
use crate::support::fixture::{KEY, target};
use crate::support::http::Http;
use crate::support::websocket::Client;

/// The text that these bytes are answered with, as JSON, with the status.
fn answer_to(child: &Child, bytes: &[u8], status: u16) -> String {
    let mut http = Http::connect(child.addr);
    http.send(bytes);
    let text = http.answer().error(status);
    assert!(http.is_ended(), "the connection goes on");
    text
}

fn counted(child: &Child, line: &str) {
    eventually(|| {
        let page = Http::connect(child.addr).ask("GET", "/metrics", "", b"");
        let found = page.text().lines().any(|one| one == line);
        found.then_some(()).ok_or_else(|| format!("{line} in {}", page.text()))
    })
    .unwrap();
}

#[test]
fn what_hyper_refused_by_itself_was_not_told() {
    let child = Child::start(&[("LOG__LEVEL", "debug")]);
    let long = format!("GET /up HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(17 << 10));
    let many = format!("GET /up HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(101));
    for (kind, bytes, status, words) in [
        (
            "tls",
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03xxxxxxxxxxxxxxxx"[..],
            400,
            "without TLS",
        ),
        ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", 505, "HTTP/1.1, not HTTP/2"),
        (
            "proxy_protocol",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n",
            400,
            "server.proxy_protocol",
        ),
        ("proxy_protocol", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 400, "server.proxy_protocol"),
        ("head_too_large", long.as_bytes(), 431, "16384 bytes"),
        ("too_many_headers", many.as_bytes(), 431, "100 headers"),
        ("garbage", b"what is this\r\n\r\n", 400, "no request of HTTP/1.1"),
        ("garbage", b"GET / HTTP/1.1\r\n broken\r\n\r\n", 400, "no request of HTTP/1.1"),
    ] {
        let text = answer_to(&child, bytes, status);
        assert!(text.contains(words), "{kind}: {text}");
        if kind == "tls" {
            child.says(&["INFO", "TLS came to a port without it"]);
        } else {
            child.says(&["DEBUG", kind, words]);
        }
    }
    // Behind a request that could be read, too.
    let mut http = Http::connect(child.addr);
    http.send("GET /up HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(http.answer().status, 200);
    http.send("nonsense\r\n\r\n");
    http.answer().error(400);
    for (kind, times) in [
        ("tls", 1),
        ("http2", 1),
        ("proxy_protocol", 2),
        ("head_too_large", 1),
        ("too_many_headers", 1),
        ("garbage", 3),
    ] {
        counted(&child, &format!("fanfare_unreadable_requests_total{{kind=\"{kind}\"}} {times}"));
    }
    // Who only comes and goes has done nothing wrong.
    drop(TcpStream::connect(child.addr).unwrap());
    counted(&child, "fanfare_unreadable_requests_total{kind=\"garbage\"} 3");
}

#[test]
fn requests_that_lost_their_way_left_no_trace() {
    let child = Child::start(&[]);
    let ask = |path: &str| Http::connect(child.addr).ask("GET", path, "", b"");
    let text = ask("/socket.io/?EIO=4&transport=polling").error(404);
    let feature = cfg!(feature = "socketio");
    let what_to_do = if feature { "Set socketio.enabled" } else { "--features socketio" };
    assert!(text.contains("Socket.IO") && text.contains(what_to_do), "{text}");
    child.says(&["INFO", "/socket.io/", "Socket.IO"]);
    let text = ask(&target(KEY)).error(400);
    assert!(text.contains("Upgrade and Connection"), "{text}");
    child.says(&["INFO", "/app/", "a proxy on the way"]);
    ask("/broadcasting/app/key").error(404);
    child.says(&["INFO", "/broadcasting/app/key", "Not found"]);
}

#[test]
fn a_refusal_did_not_name_what_was_refused() {
    let child = Child::start(&[("APPS__0__ALLOWED_ORIGINS", "good.example.test")]);
    let origin = [("Origin".to_owned(), "https://bad.example.test".to_owned())];
    let mut client = Client::open(child.addr, &target(KEY), &origin).ok().unwrap();
    assert!(client.hear_text().contains("4009"));
    child.says(&["WARN", "https://bad.example.test", KEY, "app=3", "Origin not allowed"]);
    let mut client = Client::open(child.addr, &target("nobody"), &origin).ok().unwrap();
    assert!(client.hear_text().contains("4001"));
    child.says(&["WARN", "\"nobody\"", "Application does not exist"]);
    let mut http = Http::connect(child.addr);
    http.ask("GET", "/apps/3/channels?auth_key=stranger", "", b"").error(401);
    child.says(&["WARN", "stranger", "Unknown auth_key"]);
}
