//! The byte stream under a connection: TCP, or nothing at all for tests and benches that run whole
//! conversations in memory. Only moves bytes; what they mean is said elsewhere.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::outbox::Outbox;

/// Where a connection's bytes come from and go to.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    /// Takes nothing and gives nothing: what is pushed stays in the outbox.
    Detached,
}

impl Stream {
    /// Reads what there is. Nothing in `buffer` means the other side has ended its half.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Detached => Poll::Pending,
        }
    }

    /// Waits until the stream may take more.
    pub fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Detached => Poll::Pending,
        }
    }

    /// Ends our half.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Detached => Poll::Ready(Ok(())),
        }
    }

    /// Writes as much of `outbox` as one system call takes; the bytes written.
    pub fn try_write(&self, outbox: &Outbox) -> io::Result<usize> {
        match (self, outbox.single()) {
            (Self::Tcp(stream), Some(frame)) => stream.try_write(frame),
            (Self::Tcp(stream), None) => {
                let mut slices = Outbox::no_slices();
                let used = outbox.slices(&mut slices);
                stream.try_write_vectored(slices.get(..used).unwrap_or_default())
            }
            (Self::Detached, _) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
