//! The debug console from outside: who may open it, by raw requests, and what its feed tells. The work of its page
//! in a browser is in `tests/clients/node/console.test.mjs`.

mod access;
mod commands;
mod facts;

use std::collections::VecDeque;

use fanfare::app::App;
use fanfare::config::{ConsoleAccess, ConsoleConfig};
use serde_json::Value;

use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::http::{Http, Response, find};

pub(super) const TOKEN: &str = "sixteen letters!";
pub(super) const JSON: &str = "Content-Type: application/json\r\n";

/// A server whose console is open to whoever knows the token.
pub(super) fn by_token() -> Fixture {
    Fixture::with_config(vec![App::new(ID, KEY, SECRET)], |config| {
        config.console = ConsoleConfig {
            access: ConsoleAccess::On,
            token: TOKEN.to_owned(),
            allow_plain_http: false,
        };
    })
}

pub(super) fn ask(
    server: &Fixture,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Response {
    Http::connect(server.addr).ask(method, path, headers, body.as_bytes())
}

pub(super) fn get(server: &Fixture, path: &str) -> Response {
    ask(server, "GET", path, "", "")
}

/// A feed that is read line by line.
pub(super) struct FeedReader {
    http: Http,
    bytes: Vec<u8>,
    lines: VecDeque<Value>,
}

impl FeedReader {
    pub(super) fn open(server: &Fixture, query: &str) -> Self {
        let mut http = Http::connect(server.addr);
        http.send(format!("GET /console/feed?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
        while find(&http.ahead, b"\r\n\r\n").is_none() {
            assert!(http.read_more(), "no answer");
        }
        let end = find(&http.ahead, b"\r\n\r\n").unwrap() + 4;
        let head: Vec<u8> = http.ahead.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.to_lowercase().contains("access-control"), "{head}");
        let mut feed = Self { http, bytes: Vec::new(), lines: VecDeque::new() };
        assert_eq!(feed.next().unwrap()["kind"], "hello");
        feed
    }

    /// The next line; none at the end of the feed.
    pub(super) fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            while !self.take_chunk() {
                if !self.http.read_more() {
                    return None;
                }
            }
            while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                self.lines.push_back(serde_json::from_slice(&line).unwrap());
            }
        }
    }

    fn take_chunk(&mut self) -> bool {
        let ahead = &mut self.http.ahead;
        let Some(end) = find(ahead, b"\r\n") else { return false };
        let size = usize::from_str_radix(std::str::from_utf8(&ahead[..end]).unwrap(), 16).unwrap();
        if ahead.len() < end + 2 + size + 2 {
            return false;
        }
        self.bytes.extend_from_slice(&ahead[end + 2..end + 2 + size]);
        ahead.drain(..end + 2 + size + 2);
        true
    }

    /// The next fact of the kind, past figures and other facts.
    pub(super) fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let line = self.next().unwrap_or_else(|| panic!("the feed ended before {kind}"));
            if line["kind"] == kind {
                return line;
            }
        }
    }
}
