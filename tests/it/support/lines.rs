//! A client of the HTTP transports, byte by byte: it opens sessions, reads lines as they come and holds every
//! answer to the rules that pusher-js and browsers rely on.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fixture::KEY;
use super::http::{Http, Response, find, request};
use super::wire::{self, Wire};

/// Characters after which pusher-js asks for a new streaming answer, as it counts them.
pub const MAX_UNITS: usize = 262_144;

/// A session's address.
#[derive(Clone)]
pub struct Session {
    pub addr: SocketAddr,
    pub path: String,
    pub query: String,
}

/// A streaming answer.
pub struct Streaming {
    wire: Wire,
    ahead: Vec<u8>,
    pub head: Response,
    is_chunked: bool,
    /// UTF-16 code units of all lines so far.
    pub units: usize,
}

impl Session {
    pub fn new(addr: SocketAddr) -> Self {
        Self::below(addr, "", KEY)
    }

    /// A session that nobody has used, below a prefix.
    pub fn below(addr: SocketAddr, prefix: &str, key: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("{prefix}/app/{key}/{}/{:0>8}", number % 1000, format!("{number}v"));
        let query = "?protocol=7&client=js&version=8.6.0&t=1700000000000&n=1".to_owned();
        Self { addr, path, query }
    }

    pub fn with_query(mut self, query: &str) -> Self {
        self.query = query.to_owned();
        self
    }

    pub fn target(&self, what: &str) -> String {
        format!("{}/{what}{}", self.path, self.query)
    }

    pub fn ask(&self, method: &str, what: &str, headers: &str, body: &[u8]) -> Response {
        Http::connect(self.addr).ask(method, &self.target(what), headers, body)
    }

    /// Begins a streaming request.
    pub fn stream(&self) -> Streaming {
        self.stream_over(Wire::Plain(wire::tcp(self.addr)), "HTTP/1.1")
    }

    pub fn stream_over(&self, mut wire: Wire, version: &str) -> Streaming {
        let target = self.target("xhr_streaming");
        let request = format!("POST {target} {version}\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        wire.write_all(request.as_bytes()).unwrap();
        Streaming::begin(wire)
    }

    /// A poll, from beginning to end; its lines.
    pub fn poll(&self) -> Vec<String> {
        lines_of(&self.ask("POST", "xhr", "", b""))
    }

    /// Begins a poll; [`lines_of`] its answer.
    pub fn begin_poll(&self) -> Http {
        let mut http = Http::connect(self.addr);
        http.send(request("POST", &self.target("xhr"), "", b""));
        http
    }

    /// Says frames; the status.
    pub fn say(&self, frames: &[&str]) -> u16 {
        let body = serde_json::to_string(frames).unwrap();
        self.ask("POST", "xhr_send", "Content-Type: application/json\r\n", body.as_bytes()).status
    }

    pub fn subscribe(&self, channel: &str) {
        let frame = format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#);
        assert_eq!(self.say(&[&frame]), 204);
    }
}

/// Holds the head of an answer that carries lines to what browsers and proxies need.
fn check_head(head: &Response) {
    assert_eq!(head.status, 200, "{head:?}");
    for (name, value) in [
        ("content-type", "application/javascript; charset=UTF-8"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(head.header(name), Some(value), "{name}");
    }
    assert_eq!(head.header("access-control-allow-credentials"), None);
    assert!(head.header("date").is_some());
}

/// The lines of a whole answer.
pub fn lines_of(answer: &Response) -> Vec<String> {
    check_head(answer);
    let text = answer.text();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line in {text:?}");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.iter().for_each(|line| check_line(line));
    lines
}

fn check_line(line: &str) {
    let known = matches!(line.split_at(1).0, "o" | "a" | "h" | "c");
    assert!(known && !line.contains('\r'), "{line:?} is no line");
}

/// The frames in a line of messages.
pub fn frames_of(line: &str) -> Vec<String> {
    let array = line.strip_prefix('a').unwrap_or_else(|| panic!("{line:?} holds no messages"));
    serde_json::from_str(array).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

/// All frames of some lines.
pub fn frames(lines: &[String]) -> Vec<String> {
    lines.iter().flat_map(|line| frames_of(line)).collect()
}

impl Streaming {
    fn begin(wire: Wire) -> Self {
        let head = Response { status: 0, headers: Vec::new(), body: Vec::new() };
        let mut streaming = Self { wire, ahead: Vec::new(), head, is_chunked: false, units: 0 };
        let end = loop {
            if let Some(at) = find(&streaming.ahead, b"\r\n\r\n") {
                break at;
            }
            assert!(streaming.read_more(), "no answer: {:?}", streaming.ahead);
        };
        let head: Vec<u8> = streaming.ahead.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        streaming.head = Response { status, headers, body: Vec::new() };
        check_head(&streaming.head);
        streaming.is_chunked = streaming.head.header("transfer-encoding") == Some("chunked");
        assert!(streaming.head.header("content-length").is_none());
        streaming
    }

    /// False at the end of the stream.
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 64 << 10];
        match self.wire.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.ahead.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing in time: {error}; so far {:?}", self.ahead),
        }
    }

    /// The next line, each of which is a chunk of its own; none at the answer's end.
    pub fn next(&mut self) -> Option<String> {
        let line = if self.is_chunked { self.next_chunk()? } else { self.next_plain()? };
        let line = line.strip_suffix('\n').unwrap_or_else(|| panic!("{line:?} has no end"));
        assert!(!line.contains('\n'), "{line:?} is more than one line");
        check_line(line);
        self.units += line.encode_utf16().count() + 1;
        Some(line.to_owned())
    }

    fn next_chunk(&mut self) -> Option<String> {
        let end = loop {
            if let Some(at) = find(&self.ahead, b"\r\n") {
                break at;
            }
            assert!(self.read_more(), "cut within a chunk: {:?}", self.ahead);
        };
        let size = usize::from_str_radix(std::str::from_utf8(&self.ahead[..end]).unwrap(), 16);
        let size = size.unwrap();
        while self.ahead.len() < end + 2 + size + 2 {
            assert!(self.read_more(), "cut within a chunk");
        }
        let chunk: Vec<u8> = self.ahead.drain(..end + 2 + size + 2).collect();
        assert!(chunk.ends_with(b"\r\n"));
        let line = String::from_utf8(chunk[end + 2..end + 2 + size].to_vec()).unwrap();
        if size == 0 {
            assert!(self.ahead.is_empty(), "something follows the end");
            return None;
        }
        Some(line)
    }

    fn next_plain(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.ahead, b"\n") {
                let line = self.ahead.drain(..=at).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            if !self.read_more() {
                assert!(self.ahead.is_empty(), "half a line");
                return None;
            }
        }
    }

    /// The next line; panics at the answer's end.
    pub fn line(&mut self) -> String {
        self.next().expect("the answer is at its end")
    }

    /// The next frame, which is alone in its line.
    pub fn frame(&mut self) -> String {
        let line = self.line();
        let mut frames = frames_of(&line);
        assert_eq!(frames.len(), 1, "{line}");
        frames.remove(0)
    }

    /// Reads the first two lines: the session's, and the greeting.
    pub fn greeted(mut self) -> Self {
        assert_eq!(self.line(), "o");
        let greeting = self.frame();
        super::fixture::established(&greeting)
            .unwrap_or_else(|error| panic!("{error}: {greeting}"));
        self
    }

    /// Takes `count` bytes, whatever they are.
    pub fn take_bytes(&mut self, count: usize) {
        while self.ahead.len() < count {
            assert!(self.read_more());
        }
        self.ahead.drain(..count);
    }
}
