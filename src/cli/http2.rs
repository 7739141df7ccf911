//! WebSockets over HTTP/2, for `fanfare doctor`. Browsers use them (RFC 8441) where a proxy offers them, and do not
//! fall back. One handshake needs a few frames of RFC 9113 and one header of RFC 7541, so they are written and read
//! here; an HTTP/2 library would be three crates for this one check.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::client::{ApiTarget, PATIENCE};
use super::report::{Grade, Report};
use crate::hub::stream::Stream;

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames, RFC 9113 section 6.
const DATA: u8 = 0;
/// The type of a frame with a request's or response's header fields (RFC 9113 section 6.2).
const HEADERS: u8 = 1;
/// Ends one stream with a code; what a proxy answers that refuses a WebSocket it offered.
const RST_STREAM: u8 = 3;
/// The type of a frame with settings (section 6.5).
const SETTINGS: u8 = 4;
/// The type of a ping, which must be answered (section 6.7).
const PING: u8 = 6;
/// Ends the connection: sent by proxies on their way down too.
const GOAWAY: u8 = 7;

// Flags of frames.
const ACK: u8 = 0x1;
/// The flag of the last frame with header fields (section 6.2).
const END_HEADERS: u8 = 0x4;
/// Of HEADERS and DATA: a byte in front says how many bytes at the end are to be dropped.
const PADDED: u8 = 0x8;
/// A flag of HEADERS: five bytes of priority in front, which are obsolete (RFC 9113 section 5.3).
const PRIORITY: u8 = 0x20;

/// `SETTINGS_ENABLE_CONNECT_PROTOCOL`, RFC 8441 section 3.
const ENABLE_CONNECT: u16 = 0x8;

/// The only stream of the connection.
const STREAM: u32 = 1;

/// The largest accepted frame in bytes. Without a SETTINGS frame that says otherwise, RFC 9113 section 4.2 lets
/// nobody send more.
const MAX_FRAME: usize = 16 << 10;

/// How a WebSocket over HTTP/2 came out.
/// In the order in which a handshake gets further.
enum Http2Outcome {
    /// The proxy speaks HTTP/1.1 alone.
    NotSpoken,
    /// The proxy speaks it and does not offer WebSockets on it.
    NotOffered,
    /// The server's first message came: all of it works.
    Greeted,
    /// The request for a socket was answered with this status.
    Answered(u16),
    /// It opened, and nothing came.
    Held,
    /// It broke off.
    Ended(String),
}

/// The remedy: browsers then use HTTP/1.1 for WebSockets. Each proxy has its own switch for that.
const WITHOUT: &str = "switch that off there, and browsers take HTTP/1.1 for sockets (Envoy: leave allow_connect out; Apache: H2WebSockets off; HAProxy: option h2-workaround-bogus-websocket-clients)";

/// Looks at it where TLS offers HTTP/2.
/// Only over TLS do browsers speak HTTP/2.
pub(super) async fn examine_http2(report: &mut Report, target: &ApiTarget) {
    if !target.tls {
        return;
    }
    // Kept outside, for a time limit that cuts the attempt off has to know how far it was.
    let mut has_opened = false;
    let outcome = match timeout(PATIENCE, try_websocket(target, &mut has_opened)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Http2Outcome::Ended(error.to_string()),
        Err(_) if has_opened => Http2Outcome::Held,
        Err(_) => Http2Outcome::Ended("no answer in ten seconds".to_owned()),
    };
    let (grade, text) = match outcome {
        Http2Outcome::NotSpoken => return,
        Http2Outcome::NotOffered => {
            (Grade::Ok, "spoken; WebSockets take HTTP/1.1 beside it".to_owned())
        }
        Http2Outcome::Greeted => (Grade::Ok, "WebSockets open over it".to_owned()),
        Http2Outcome::Answered(status) => (
            Grade::Fail,
            format!(
                "WebSockets are offered over it and answered with {status}, so browsers do not connect: {WITHOUT}"
            ),
        ),
        Http2Outcome::Held => (
            Grade::Fail,
            format!(
                "WebSockets open over it and the greeting is held back, so browsers do not connect: {WITHOUT}"
            ),
        ),
        Http2Outcome::Ended(error) => {
            (Grade::Fail, format!("WebSockets are offered over it and end ({error}): {WITHOUT}"))
        }
    };
    report.add("HTTP/2", grade, text);
}

/// Reads frames until it is clear how it comes out; the caller has a time limit around it.
async fn try_websocket(target: &ApiTarget, has_opened: &mut bool) -> io::Result<Http2Outcome> {
    let Some(stream) = target.connect_http2().await? else { return Ok(Http2Outcome::NotSpoken) };
    let mut connection = Http2Connection { stream };
    connection.stream.write_all(PREFACE).await?;
    // An empty frame of settings, with which a client has to begin.
    connection.write_frame(SETTINGS, 0, 0, &[]).await?;
    let mut heard = Vec::new();
    loop {
        let frame = connection.read_frame().await?;
        match (frame.kind, frame.stream) {
            // The server's own come first, and say whether it takes sockets.
            (SETTINGS, _) if frame.flags & ACK == 0 => {
                connection.write_frame(SETTINGS, ACK, 0, &[]).await?;
                if *has_opened {
                    continue;
                }
                if !offers_sockets(&frame.payload) {
                    return Ok(Http2Outcome::NotOffered);
                }
                let request = connect_headers(target);
                connection.write_frame(HEADERS, END_HEADERS, STREAM, &request).await?;
            }
            (PING, _) if frame.flags & ACK == 0 => {
                connection.write_frame(PING, ACK, 0, &frame.payload).await?;
            }
            (HEADERS, STREAM) => match header_status(frame.content()) {
                Some(200) => *has_opened = true,
                Some(status) => return Ok(Http2Outcome::Answered(status)),
                None => return Err(io::Error::other("its answer cannot be read")),
            },
            (DATA, STREAM) => {
                // The greeting may come in parts.
                heard.extend_from_slice(frame.content());
                let greeting: &[u8] = b"pusher:connection_established";
                if heard.windows(greeting.len()).any(|part| part == greeting) {
                    return Ok(Http2Outcome::Greeted);
                }
            }
            (RST_STREAM, STREAM) => {
                return Ok(Http2Outcome::Ended("the stream was reset".to_owned()));
            }
            (GOAWAY, _) => return Ok(Http2Outcome::Ended("the connection was closed".to_owned())),
            _ => {}
        }
    }
}

/// One stream on one connection, and so nothing of flow control: what is read here is less than the first window.
struct Http2Connection {
    /// The TLS stream, with `h2` negotiated.
    stream: Stream,
}

/// A frame as RFC 9113 section 4.1 has it.
struct Http2Frame {
    /// The frame's type (RFC 9113 section 6).
    kind: u8,
    /// Flags, whose meaning depends on the type.
    flags: u8,
    /// The stream's number; 0 is the connection itself.
    stream: u32,
    /// The frame without its nine bytes of header.
    payload: Vec<u8>,
}

impl Http2Connection {
    /// Nine bytes of header: the length in three, the type, the flags, and the stream in four.
    async fn write_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        // A frame's length has 24 bits (RFC 9113 section 4.1): the first of four bytes is dropped.
        let mut frame = length.to_be_bytes().get(1..).unwrap_or_default().to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }

    /// Reads one frame whole: nine bytes of head, then the payload (RFC 9113 section 4.1).
    ///
    /// # Errors
    /// The stream ends, or a length says that it is not HTTP/2.
    async fn read_frame(&mut self) -> io::Result<Http2Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other("it speaks something else"));
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        // The first bit of the stream is reserved.
        Ok(Http2Frame { kind, flags, stream: u32::from_be_bytes(stream) & !(1 << 31), payload })
    }
}

impl Http2Frame {
    /// The payload without padding and priority.
    fn content(&self) -> &[u8] {
        let mut content = self.payload.as_slice();
        if self.flags & PADDED != 0 {
            // A padded frame without its length byte is invalid, and read as an empty one.
            let padding = content.first().copied().unwrap_or_default();
            let end = content.len().saturating_sub(usize::from(padding));
            content = content.get(1..end).unwrap_or_default();
        }
        // The flag means something else in other frames.
        if self.kind == HEADERS && self.flags & PRIORITY != 0 {
            content = content.get(5..).unwrap_or_default();
        }
        content
    }
}

/// Whether a SETTINGS frame offers WebSockets (`SETTINGS_ENABLE_CONNECT_PROTOCOL`, RFC 8441 section 3).
fn offers_sockets(settings: &[u8]) -> bool {
    settings.chunks_exact(6).any(|setting| {
        matches!(setting, [a, b, .., value] if u16::from_be_bytes([*a, *b]) == ENABLE_CONNECT && *value == 1)
    })
}

/// The header block of an extended CONNECT: nothing in it is remembered, so that no table is needed.
/// The order of pseudo-headers is free; all are literals that are not indexed.
fn connect_headers(target: &ApiTarget) -> Vec<u8> {
    /// The index of `:scheme: https` in the static table of RFC 7541.
    const SCHEME_HTTPS: u8 = 0x80 | 7;
    let mut block = Vec::new();
    // By the static table's numbers for their names.
    // `:method` is the second of the static table, `:path` the fourth, `:authority` the first.
    block.push(2);
    put_string(&mut block, "CONNECT");
    block.push(0);
    put_string(&mut block, ":protocol");
    put_string(&mut block, "websocket");
    block.push(SCHEME_HTTPS);
    block.push(4);
    put_string(&mut block, &target.socket_path());
    block.push(1);
    put_string(&mut block, &format!("{}:{}", target.host, target.port));
    let origin = target.origin.as_deref().map(|origin| ("origin", origin));
    for (name, value) in [("sec-websocket-version", "13")].into_iter().chain(origin) {
        block.push(0);
        put_string(&mut block, name);
        put_string(&mut block, value);
    }
    block
}

/// Writes a string as it is, with its length in front: RFC 7541 section 5.
fn put_string(block: &mut Vec<u8>, text: &str) {
    const PREFIX: usize = 0x7f;
    let mut length = text.len();
    if length < PREFIX {
        block.push(length as u8);
    } else {
        block.push(PREFIX as u8);
        // Seven bits at a time, the lowest first.
        length -= PREFIX;
        while length >= 0x80 {
            block.push((length % 0x80) as u8 | 0x80);
            length /= 0x80;
        }
        block.push(length as u8);
    }
    block.extend_from_slice(text.as_bytes());
}

/// The status of a header block, in which it stands first.
/// `None` for what no proxy sends there.
fn header_status(mut block: &[u8]) -> Option<u16> {
    /// Those of the static table, from its eighth place on.
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    loop {
        let (first, rest) = block.split_first()?;
        match first {
            // A new size of the dynamic table; a large one goes on for as long as bytes have their first bit.
            0x20..=0x3e => block = rest,
            0x3f => {
                let end = rest.iter().position(|byte| byte & 0x80 == 0)?;
                block = rest.get(end + 1..)?;
            }
            0x88..=0x8e => return INDEXED.get(usize::from(first - 0x88)).copied(),
            // Its name by number and its value as text: remembered, not remembered, never remembered.
            0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e => {
                let (length, text) = rest.split_first()?;
                let text = text.get(..usize::from(length & 0x7f))?;
                return if length & 0x80 == 0 {
                    std::str::from_utf8(text).ok()?.parse().ok()
                } else {
                    huffman_digits(text)
                };
            }
            _ => return None,
        }
    }
}

/// Three digits in Huffman's code of RFC 7541: `0` to `2` have five bits, the others six.
/// The only text that has to be read is a status.
fn huffman_digits(text: &[u8]) -> Option<u16> {
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| (byte >> bit) & 1));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | u16::from(bits.next()?);
        }
        let digit = match code {
            0..=2 => code,
            // Six bits: `3` is 011001, and the others follow.
            12..=15 => (code << 1 | u16::from(bits.next()?)) - 0b01_1001 + 3,
            _ => return None,
        };
        number = number * 10 + digit;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 7541 appendix C has them, and as proxies write them.
    #[test]
    fn a_status_is_read_however_it_is_written() {
        for (block, expected) in [
            (&[0x88][..], Some(200)),
            (&[0x8c], Some(400)),
            (&[0x48, 3, b'3', b'0', b'2'], Some(302)),
            (&[0x48, 0x82, 0x64, 0x02], Some(302)),
            (&[0x48, 0x83, 0x64, 0x0e, 0xff], Some(307)),
            (&[0x3f, 0xe1, 0x1f, 0x88], Some(200)),
            (&[0x20, 0x08, 3, b'5', b'0', b'2'], Some(502)),
            (&[0x82], None),
            (&[0x48, 0x83], None),
            (&[], None),
        ] {
            assert_eq!(header_status(block), expected, "{block:x?}");
        }
    }

    #[test]
    fn long_strings_have_longer_lengths() {
        let mut block = Vec::new();
        put_string(&mut block, &"x".repeat(126));
        assert_eq!(block.first(), Some(&126));
        block.clear();
        // RFC 7541 C.1.2: 1337 above a prefix of five bits is 154 10; above seven bits, 186 9.
        put_string(&mut block, &"x".repeat(1337));
        assert_eq!(block.get(..3), Some(&[127, 186, 9][..]));
    }

    #[test]
    fn an_offer_of_sockets_is_found_among_settings() {
        assert!(offers_sockets(&[0, 3, 0, 0, 0, 100, 0, 8, 0, 0, 0, 1]));
        assert!(!offers_sockets(&[0, 3, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0]));
        assert!(!offers_sockets(&[]));
    }
}
