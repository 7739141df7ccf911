//! An HTTP/1.1 client over a raw socket: it sends what it is given and reads one answer at a time, so
//! that keep-alive, pipelining, chunks and `Expect` can be tested as they are on the wire.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use super::eventually;
use super::sign::Request;
use super::wire::{self, Wire};

/// Waits until `/ready` answers with that status.
pub fn await_readiness(addr: SocketAddr, expected: u16) {
    eventually(|| match Http::connect(addr).ask("GET", "/ready", "", b"").status {
        status if status == expected => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
}

/// One connection to the server.
pub struct Http {
    stream: Wire,
    /// What was read and belongs to no answer yet.
    pub ahead: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// In the order they came, names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "header {name} was sent twice: {:?}", self.headers);
        value
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is not UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the body {:?}", self.text()))
    }

    /// Asserts what every refusal of the API looks like, and gives its text.
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let json = self.json();
        assert_eq!(json["code"], status, "{json}");
        json["error"]
            .as_str()
            .unwrap_or_else(|| panic!("no text of the error in {json}"))
            .to_owned()
    }
}

impl Http {
    pub fn connect(addr: SocketAddr) -> Self {
        Self::over(Wire::Plain(wire::tcp(addr)))
    }

    pub fn over(stream: Wire) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends as much as the server takes; none of it matters if it has hung up.
    pub fn offer(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn finish_sending(&self) {
        self.stream.finish();
    }

    /// Sends a whole request and reads its answer.
    pub fn ask(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) -> Response {
        self.send(request(method, target, headers, body));
        self.answer_to(method)
    }

    pub fn ask_signed(&mut self, request: &Request) -> Response {
        let headers = "Content-Type: application/json\r\n";
        self.ask(&request.method, &request.signed_target(), headers, request.body.as_bytes())
    }

    pub fn answer(&mut self) -> Response {
        self.answer_to("GET")
    }

    /// The next answer, to a request with this method: HEAD's has no body whatever its headers say.
    pub fn answer_to(&mut self, method: &str) -> Response {
        self.try_answer(method).expect("the server hung up instead of answering")
    }

    /// The next answer, or none if the server ends the connection before one.
    pub fn try_answer(&mut self, method: &str) -> Option<Response> {
        let end = loop {
            if let Some(at) = find(&self.ahead, b"\r\n\r\n") {
                break at;
            }
            if !self.read_more() {
                assert!(self.ahead.is_empty(), "half an answer: {:?}", self.ahead);
                return None;
            }
        };
        let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1."), "{status:?} begins no answer");
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response { status, headers, body: Vec::new() };
        let bodiless = status < 200 || status == 204 || status == 304 || method == "HEAD";
        if !bodiless {
            response.body = self.read_body(&response);
        }
        Some(response)
    }

    fn read_body(&mut self, head: &Response) -> Vec<u8> {
        if head.header("transfer-encoding") == Some("chunked") {
            return self.read_chunks();
        }
        if let Some(length) = head.header("content-length") {
            return self.take(length.parse().unwrap());
        }
        while self.read_more() {}
        std::mem::take(&mut self.ahead)
    }

    fn read_chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = find(&self.ahead, b"\r\n") {
                    break at;
                }
                assert!(self.read_more(), "the answer ends within a chunk");
            };
            let line = self.take(end + 2);
            let size = std::str::from_utf8(&line[..end]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
            if size == 0 {
                return body;
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count {
            assert!(self.read_more(), "the answer ends too early");
        }
        self.ahead.drain(..count).collect()
    }

    /// The socket, and what was read from it and belongs to no answer.
    pub fn into_parts(self) -> (Wire, Vec<u8>) {
        (self.stream, self.ahead)
    }

    /// Whether the server ends this connection without saying anything more.
    pub fn is_ended(&mut self) -> bool {
        let more = self.read_more();
        !more && self.ahead.is_empty()
    }

    /// Reads whatever comes until the server ends the connection.
    pub fn drain(mut self) -> Vec<u8> {
        while self.read_more() {}
        self.ahead
    }

    /// False at the end of the stream, which a reset is too.
    pub fn read_more(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.ahead.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer in time: {error}; so far {:?}", self.ahead),
        }
    }
}

/// A request as bytes. `headers` are whole lines; length and host are added unless they are there.
pub fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\n{headers}");
    let lower = headers.to_lowercase();
    if !lower.contains("host:") {
        head.push_str("Host: 127.0.0.1\r\n");
    }
    let framed = lower.contains("content-length:") || lower.contains("transfer-encoding:");
    if !framed && (!body.is_empty() || method == "POST") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
