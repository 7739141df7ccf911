//! A client whose WebSockets are blocked: it hears lines in the answers to streaming requests and says each thing by a
//! request of its own, as pusher-js does. What the lines mean is for the client above.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use memchr::memmem;

use crate::target::Target;

/// Characters after which pusher-js asks for the next answer.
const MAX_UNITS: usize = 262_144;

/// The session of one client.
#[derive(Debug)]
pub(crate) struct HttpSession {
    address: SocketAddr,
    /// Up to and with the session's name.
    path: String,
    /// Characters of this answer; all that a meter is told is ASCII.
    units: usize,
    has_head: bool,
}

/// What a piece of an answer is.
pub(crate) enum WebhookQueue<'a> {
    /// A message, in an array of one.
    Message(&'a [u8]),
    /// A sign of life, to be answered by one.
    Heartbeat,
    /// The session is over.
    Closed(&'a [u8]),
    /// Nothing that anybody acts on.
    Other,
    /// The answer is at its end, and another is to be asked for.
    End,
}

impl HttpSession {
    pub(crate) fn new(target: &Target, address: SocketAddr, number: usize) -> Self {
        // Runs side by side must not have the same sessions.
        let name = (std::process::id() as u64) << 24 | number as u64;
        let digit = |place: u32| char::from_digit((name >> (5 * place)) as u32 % 32, 32);
        let name: String = (0..8).filter_map(digit).collect();
        let path = format!("/app/{}/{}/{name}", target.key, number % 1000);
        Self { address, path, units: 0, has_head: false }
    }

    /// The request for the next answer.
    pub(crate) fn receive(&mut self) -> String {
        (self.units, self.has_head) = (0, false);
        format!(
            "POST {}/xhr_streaming?protocol=7&client=fanfare-load&version=1.0 HTTP/1.1\r\n\
             Host: {}\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
            self.path, self.address,
        )
    }

    /// Says something. Waits for the answer, which only the setting up has time for.
    pub(crate) fn say(&self, texts: &[&str]) -> io::Result<()> {
        let body = serde_json::to_string(texts)?;
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request = format!(
            "POST {}/xhr_send HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.path,
            self.address,
            body.len(),
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 204") { Ok(()) } else { Err(io::Error::other(answer)) }
    }

    /// The next line in `bytes`, and how many of them it takes; none if it is not whole.
    pub(crate) fn next<'a>(
        &mut self,
        bytes: &'a [u8],
    ) -> io::Result<Option<(WebhookQueue<'a>, usize)>> {
        let mut taken = 0;
        if !self.has_head {
            let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
            if !bytes.starts_with(b"HTTP/1.1 200") {
                let said = String::from_utf8_lossy(&bytes[..end]).into_owned();
                return Err(io::Error::other(said));
            }
            self.has_head = true;
            taken = end + 4;
        }
        let Some(end) = memmem::find(&bytes[taken..], b"\r\n") else {
            return Ok(self.head_alone(taken));
        };
        let size = std::str::from_utf8(&bytes[taken..taken + end]).unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        let begin = taken + end + 2;
        let Some(line) = bytes.get(begin..begin + size + 2) else {
            return Ok(self.head_alone(taken));
        };
        self.units += size;
        let line = match line {
            [b'a', rest @ .., b'\n', b'\r', b'\n'] => WebhookQueue::Message(rest),
            [b'h', ..] => WebhookQueue::Heartbeat,
            [b'c', ..] => WebhookQueue::Closed(line),
            _ if size == 0 => WebhookQueue::End,
            _ => WebhookQueue::Other,
        };
        Ok(Some((line, begin + size + 2)))
    }

    /// The head of an answer whose first line is not there yet.
    fn head_alone<'a>(&self, taken: usize) -> Option<(WebhookQueue<'a>, usize)> {
        (taken > 0).then_some((WebhookQueue::Other, taken))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the answer may be at its end.
    pub(crate) fn is_full(&self) -> bool {
        self.units > MAX_UNITS
    }
}
