//! A socket that never waits: what it does not take is kept and written when it takes more, and what is
//! read goes through one large buffer that all sockets share, so that an idle one owns nothing.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    unsent: Vec<u8>,
    /// The beginning of something that is not whole yet.
    kept: Vec<u8>,
}

impl Wire {
    /// Begins to connect; what is sent before it is connected waits.
    pub(crate) fn connect(
        address: SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        Self::of(stream, registry, token)
    }

    /// Takes over a connected stream.
    pub(crate) fn of(mut stream: TcpStream, registry: &Registry, token: Token) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, unsent: Vec::new(), kept: Vec::new() })
    }

    /// Whether something still waits to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Writes, or keeps what the socket does not take.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = if self.unsent.is_empty() { self.write(bytes)? } else { 0 };
        self.unsent.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    /// Writes several pieces in one call, or keeps what the socket does not take.
    pub(crate) fn send_all(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<()> {
        let mut written = 0;
        if self.unsent.is_empty() {
            written = match self.stream.write_vectored(pieces) {
                Ok(written) => written,
                Err(error) if waits(&error) => 0,
                Err(error) => return Err(error),
            };
        }
        for piece in pieces {
            let skip = written.min(piece.len());
            written -= skip;
            self.unsent.extend_from_slice(&piece[skip..]);
        }
        Ok(())
    }

    /// Keeps what is to be written once the socket takes more.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
    }

    /// The socket itself, for writes that are not made here.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Goes on writing, now that the socket takes more.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let written = self.write(&unsent);
            self.unsent = unsent;
            match written? {
                0 => break,
                all if all == self.unsent.len() => self.unsent = Vec::new(),
                some => drop(self.unsent.drain(..some)),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Ok(written) => Ok(written),
            Err(error) if waits(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads until the socket has no more. `take` is given what is there, and answers how much of it was
    /// whole; the rest comes again with what follows. The end of the stream is an error.
    pub(crate) fn read(
        &mut self,
        scratch: &mut Vec<u8>,
        mut take: impl FnMut(&mut Self, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        loop {
            let kept = self.kept.len();
            // Room for something that is longer than the buffer.
            if kept + 4096 > scratch.len() {
                scratch.resize(2 * scratch.len(), 0);
            }
            scratch[..kept].copy_from_slice(&self.kept);
            let room = scratch.len() - kept;
            let read = match self.stream.read(&mut scratch[kept..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if waits(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let filled = kept + read;
            let taken = take(self, &mut scratch[..filled])?;
            if taken == filled {
                self.kept = Vec::new();
            } else {
                self.kept.clear();
                self.kept.extend_from_slice(&scratch[taken..filled]);
            }
            // A short read emptied the socket, and whatever comes later is a new event (epoll(7)).
            if read < room {
                return Ok(());
            }
        }
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
