//! A backend that publishes: one request under way at a time, on a connection that is kept for as long as
//! the server keeps it. A server that closes it after each answer pays for a new one each time, as it does
//! in production.

use std::io;
use std::net::SocketAddr;

use memchr::memmem;
use mio::{Registry, Token};

use crate::wire::Wire;

/// One connection to the HTTP API, made when it is needed.
#[derive(Debug)]
pub(crate) struct Publisher {
    address: SocketAddr,
    token: Token,
    wire: Option<Wire>,
    /// What is being answered.
    request: Option<Vec<u8>>,
    /// The connection has answered before: that it ends now may be its age.
    reused: bool,
    /// Connections made.
    pub connects: u64,
}

/// What the bytes of an answer amount to.
enum Answer {
    Partial,
    Whole { status: u16, len: usize, last: bool },
}

impl Publisher {
    pub(crate) fn new(address: SocketAddr, token: Token) -> Self {
        Self { address, token, wire: None, request: None, reused: false, connects: 0 }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.request.is_some()
    }

    /// Sends a request; its answer comes from [`Self::read`].
    pub(crate) fn send(&mut self, registry: &Registry, request: Vec<u8>) -> io::Result<()> {
        if let Some(wire) = &mut self.wire
            && wire.send(&request).is_ok()
        {
            self.request = Some(request);
            return Ok(());
        }
        self.send_anew(registry, request)
    }

    fn send_anew(&mut self, registry: &Registry, request: Vec<u8>) -> io::Result<()> {
        let mut wire = Wire::connect(self.address, registry, self.token)?;
        wire.send(&request)?;
        self.connects += 1;
        self.reused = false;
        self.wire = Some(wire);
        self.request = Some(request);
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.wire.as_mut().map_or(Ok(()), Wire::flush)
    }

    /// Reads what there is; the status of the answer once it is whole, 0 if the server went instead.
    pub(crate) fn read(
        &mut self,
        registry: &Registry,
        scratch: &mut Vec<u8>,
    ) -> io::Result<Option<u16>> {
        let Some(wire) = &mut self.wire else { return Ok(None) };
        let mut answered = None;
        let read = wire.read(scratch, |_, bytes| match parse(bytes) {
            Answer::Partial => Ok(0),
            Answer::Whole { status, len, last } => {
                answered = Some((status, last));
                Ok(len)
            }
        });
        if let Some((status, last)) = answered {
            self.request = None;
            self.reused = true;
            if last || read.is_err() {
                self.wire = None;
            }
            return Ok(Some(status));
        }
        if read.is_err() {
            self.wire = None;
            if let Some(request) = self.request.take() {
                if self.reused {
                    self.send_anew(registry, request)?;
                    return Ok(None);
                }
                return Ok(Some(0));
            }
        }
        Ok(None)
    }
}

fn parse(bytes: &[u8]) -> Answer {
    let Some(head_len) = memmem::find(bytes, b"\r\n\r\n") else { return Answer::Partial };
    let head = String::from_utf8_lossy(&bytes[..head_len]).to_ascii_lowercase();
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let body = &bytes[head_len + 4..];
    let body_len = if field("transfer-encoding") == Some("chunked") {
        memmem::find(body, b"0\r\n\r\n").map(|last| last + 5)
    } else {
        field("content-length").map_or(Some(0), |len| len.parse().ok())
    };
    let Some(body_len) = body_len.filter(|len| *len <= body.len()) else { return Answer::Partial };
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let last = head.starts_with("http/1.0") || field("connection") == Some("close");
    Answer::Whole { status, len: head_len + 4 + body_len, last }
}
