//! A WebSocket client with its hands on every bit: it makes its own handshake, masks its own frames or
//! does not, and tells what it hears frame by frame, each with a deadline.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::http::{Http, Response};
use super::wire::Wire;

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// The bit of the first byte that says: the message ends with this frame.
pub const FIN: u8 = 0x80;
/// The bit that says: the message is compressed.
pub const RSV1: u8 = 0x40;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// One open WebSocket.
pub struct Client {
    stream: Wire,
    ahead: Vec<u8>,
    /// Frames that were read while looking for something else.
    pub waiting: VecDeque<Heard>,
    /// The server's answer to the handshake.
    pub response: Response,
}

/// What a client hears next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Text(String),
    /// A compressed text, as it came (RSV1).
    Deflated(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and reason, if the frame had a body.
    Close(Option<(u16, String)>),
    /// The server ended the TCP stream.
    End,
}

impl Client {
    /// Opens a WebSocket; the answer instead if the server refuses.
    pub fn open(
        addr: SocketAddr,
        target: &str,
        headers: &[(String, String)],
    ) -> Result<Self, Response> {
        Self::open_over(Http::connect(addr), target, headers)
    }

    /// The same on a connection that is there.
    pub fn open_over(
        mut http: Http,
        target: &str,
        headers: &[(String, String)],
    ) -> Result<Self, Response> {
        http.send(handshake(target, headers));
        let response = http.answer();
        if response.status != 101 {
            return Err(response);
        }
        let extensions = "sec-websocket-extensions";
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(extensions)) {
            assert_eq!(response.header(extensions), None, "nothing was offered");
        }
        Ok(Self::opened(http, response))
    }

    /// Goes on as a WebSocket after the handshake was answered with `response`.
    pub fn opened(http: Http, response: Response) -> Self {
        // Many clients compare it as a whole.
        assert_eq!(response.header("connection"), Some("Upgrade"));
        assert_eq!(response.header("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
        let accept =
            STANDARD.encode(Sha1::digest(format!("{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
        assert_eq!(response.header("sec-websocket-accept"), Some(accept.as_str()));
        let (stream, ahead) = http.into_parts();
        Self { stream, ahead, waiting: VecDeque::new(), response }
    }

    /// Sends bytes as they are. A server that has hung up already takes none, which is no error here.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends one masked frame whose first byte is `first`.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send_bytes(&frame(first, payload));
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(FIN | TEXT, text.as_bytes());
    }

    pub fn send_close(&mut self, code: u16, reason: &str) {
        let body = [&code.to_be_bytes(), reason.as_bytes()].concat();
        self.send_frame(FIN | CLOSE, &body);
    }

    /// The next frame or the end; panics after [`super::DEADLINE`].
    pub fn hear(&mut self) -> Heard {
        match self.waiting.pop_front() {
            Some(heard) => heard,
            None => self.read(),
        }
    }

    /// The next text; panics on anything else but a ping, which whoever was silent for a minute gets, and answers.
    pub fn hear_text(&mut self) -> String {
        loop {
            match self.hear() {
                Heard::Text(text) => return text,
                Heard::Ping(payload) => self.send_frame(FIN | PONG, &payload),
                other => panic!("expected a text, heard {other:?}"),
            }
        }
    }

    /// Expects a close frame with this code and, unless empty, this reason, answers it, and expects that the
    /// server ends the stream then.
    pub fn hear_close(&mut self, code: u16, reason: &str) {
        match self.hear() {
            Heard::Close(Some((found, text))) => {
                assert_eq!(found, code, "closed with {text:?}");
                assert!(reason.is_empty() || text == reason, "closed with {text:?}");
                // As any client does; the server waits for it.
                self.send_close(code, "");
            }
            other => panic!("expected close {code}, heard {other:?}"),
        }
        assert_eq!(self.hear(), Heard::End);
    }

    /// Reads from the socket whatever is waiting.
    pub fn read(&mut self) -> Heard {
        loop {
            if let Some(heard) = take_frame(&mut self.ahead) {
                return heard;
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.end(),
                Ok(count) => self.ahead.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return self.end(),
                Err(error) => {
                    panic!("heard nothing in time: {error}; {} bytes of a frame", self.ahead.len())
                }
            }
        }
    }

    fn end(&self) -> Heard {
        assert!(self.ahead.is_empty(), "the stream ends within a frame: {:?}", self.ahead);
        Heard::End
    }
}

/// Takes one frame off what was read. A server masks nothing, fragments nothing here and sets no
/// reserved bit but that of a compressed text.
pub fn take_frame(bytes: &mut Vec<u8>) -> Option<Heard> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let deflated = first == FIN | RSV1 | TEXT;
    assert!(first & 0xf0 == FIN || deflated, "first byte {first:#x}");
    assert_eq!(second & 0x80, 0, "the server masked a frame");
    let (head, length) = match second {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()) as usize),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
        length => (2, length as usize),
    };
    assert!(head == 2 || length > 125, "a length of {length} in {head} bytes");
    assert!(head != 10 || length > 0xffff, "a length of {length} in {head} bytes");
    if bytes.len() < head + length {
        return None;
    }
    let payload = bytes[head..head + length].to_vec();
    bytes.drain(..head + length);
    Some(match first & 0xf {
        TEXT if deflated => Heard::Deflated(payload),
        TEXT => Heard::Text(String::from_utf8(payload).expect("a text that is not UTF-8")),
        BINARY => Heard::Binary(payload),
        PING => Heard::Ping(payload),
        PONG => Heard::Pong(payload),
        CLOSE if payload.is_empty() => Heard::Close(None),
        CLOSE => {
            let (code, reason) = payload.split_at(2);
            let reason = String::from_utf8(reason.to_vec()).unwrap();
            assert!(length <= 125, "a close frame of {length} bytes");
            Heard::Close(Some((u16::from_be_bytes(code.try_into().unwrap()), reason)))
        }
        opcode => panic!("a frame with opcode {opcode:#x}"),
    })
}

/// The client's half of the handshake. A header of the same name in `headers` stands instead of the
/// usual one; an empty value leaves it out.
pub fn handshake(target: &str, headers: &[(String, String)]) -> String {
    let usual = [
        ("Host", "127.0.0.1"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ];
    let mut text = format!("GET {target} HTTP/1.1\r\n");
    for (name, value) in usual {
        if !headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n"
}

/// A masked frame whose first byte is `first`, with its length in the shortest form.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}
