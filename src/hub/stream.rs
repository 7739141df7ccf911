//! The byte stream of a connection: TCP, TLS over it, a Unix socket, HTTP responses, or nothing at all for tests and
//! benches that run in memory. It only moves bytes.

#[cfg(feature = "socketio")]
pub mod engine;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::http_stream::HttpStream;
use super::outbox::Outbox;
use super::tls::{Session, TlsStream};
#[cfg(feature = "socketio")]
use engine::EngineStream;

/// Where a connection's bytes come from and go to.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS, or with a proxy in front that speaks it.
    Tcp(TcpStream),
    /// Boxed: a session of TLS is much larger than a socket.
    Tls(Box<TlsStream>),
    /// From a proxy on the same machine.
    Unix(UnixStream),
    /// Of a client whose WebSockets are blocked.
    Http(Box<HttpStream>),
    /// Of a client that speaks Engine.IO.
    #[cfg(feature = "socketio")]
    Engine(Box<EngineStream>),
    /// Takes nothing and gives nothing: what is pushed stays in the outbox.
    Detached,
}

/// A stream on its way to another thread: a runtime wakes only those that are registered with it.
#[derive(Debug)]
pub enum StreamInTransit {
    Tcp(std::net::TcpStream),
    /// TLS over TCP, with its session.
    Tls(std::net::TcpStream, Box<Session>),
    Unix(std::os::unix::net::UnixStream),
}

impl StreamInTransit {
    /// Registers it with the runtime of the thread that calls this.
    pub fn register_here(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Self::Tls(stream, session) => {
                Stream::Tls(Box::new(TlsStream::new(TcpStream::from_std(stream)?, *session)))
            }
            Self::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

impl Stream {
    /// Takes it off the runtime that it is registered with.
    ///
    /// # Errors
    /// `Unsupported` for what has no socket of its own.
    pub fn deregister(self) -> io::Result<StreamInTransit> {
        Ok(match self {
            Self::Tcp(stream) => StreamInTransit::Tcp(stream.into_std()?),
            Self::Tls(stream) => {
                let (stream, session) = stream.into_parts();
                StreamInTransit::Tls(stream.into_std()?, Box::new(session))
            }
            Self::Unix(stream) => StreamInTransit::Unix(stream.into_std()?),
            #[cfg(feature = "socketio")]
            Self::Engine(_) => return Err(io::ErrorKind::Unsupported.into()),
            Self::Http(_) | Self::Detached => return Err(io::ErrorKind::Unsupported.into()),
        })
    }

    /// Whether it is an HTTP session, which may go without a request for a while.
    pub fn is_session(&self) -> bool {
        match self {
            Self::Http(_) => true,
            #[cfg(feature = "socketio")]
            Self::Engine(_) => true,
            Self::Tcp(_) | Self::Tls(_) | Self::Unix(_) | Self::Detached => false,
        }
    }

    /// Whether it is encrypted on the wire.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Waits until the stream may take more.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Tls(stream) => stream.poll_writable(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
            Self::Http(stream) => stream.poll_writable(cx),
            #[cfg(feature = "socketio")]
            Self::Engine(stream) => stream.poll_writable(cx),
            Self::Detached => Poll::Pending,
        }
    }

    /// Whether it holds bytes that the socket has not taken.
    pub fn is_holding(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_holding(),
            Self::Http(stream) => stream.is_holding(),
            #[cfg(feature = "socketio")]
            Self::Engine(stream) => stream.is_holding(),
            Self::Tcp(_) | Self::Unix(_) | Self::Detached => false,
        }
    }

    /// Writes as much of `outbox` as one system call takes; the bytes of it that are dealt with.
    ///
    /// # Errors
    /// `WouldBlock` where it takes nothing now; anything else means that the connection is gone.
    pub fn try_write(&mut self, outbox: &Outbox) -> io::Result<usize> {
        match (self, outbox.single_piece()) {
            (Self::Tcp(stream), Some(frame)) => stream.try_write(frame),
            (Self::Tcp(stream), None) => {
                let mut slices = Outbox::no_slices();
                let used = outbox.fill_slices(&mut slices);
                // `used` is at most the length of the array that `fill_slices` was given.
                stream.try_write_vectored(slices.get(..used).unwrap_or_default())
            }
            (Self::Tls(stream), _) => stream.try_write(outbox),
            (Self::Unix(stream), _) => {
                let mut slices = Outbox::no_slices();
                let used = outbox.fill_slices(&mut slices);
                // `used` is at most the length of the array that `fill_slices` was given.
                stream.try_write_vectored(slices.get(..used).unwrap_or_default())
            }
            (Self::Http(stream), _) => stream.try_write(outbox),
            #[cfg(feature = "socketio")]
            (Self::Engine(stream), _) => stream.try_write(outbox),
            // Tests read the outbox instead.
            (Self::Detached, _) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// For writes that are made elsewhere, together with those of others.
impl Stream {
    /// The socket that it ends in.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Tls(stream) => Some(stream.socket()),
            Self::Unix(stream) => Some(stream.as_fd()),
            Self::Http(stream) => stream.socket(),
            // Frames must be translated first.
            #[cfg(feature = "socketio")]
            Self::Engine(_) => None,
            Self::Detached => None,
        }
    }

    /// Lets TLS take what goes into one run of records; the bytes of `outbox` that are dealt with.
    pub(super) fn encrypt_outbox(&mut self, outbox: &Outbox) -> io::Result<usize> {
        match self {
            Self::Tls(stream) => stream.encrypt_outbox(outbox),
            _ => Ok(0),
        }
    }

    /// Where TLS is spoken, the records that wait for the socket.
    pub(super) fn pending_records(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => Some(stream.pending_records()),
            _ => None,
        }
    }

    /// Forgets the first `written` bytes of these records.
    pub(super) fn forget_encrypted(&mut self, written: usize) {
        if let Self::Tls(stream) = self {
            stream.forget_encrypted(written);
        }
    }
}

impl AsyncRead for Stream {
    /// Reads what there is. Nothing in `buffer` means the other side has ended its half.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => stream.poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            #[cfg(feature = "socketio")]
            Self::Engine(stream) => stream.poll_read(cx, buffer),
            Self::Http(_) | Self::Detached => Poll::Pending,
        }
    }
}

/// For the answers to requests. Frames go through [`Stream::try_write`].
impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => stream.poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "socketio")]
            Self::Engine(_) => Poll::Pending,
            Self::Http(_) | Self::Detached => Poll::Pending,
        }
    }

    /// TLS makes records of one slice at a time; what is left comes with the next call.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            _ => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                self.poll_write(cx, first.map_or(&[], |slice| slice))
            }
        }
    }

    /// Not TLS, which copies what it encrypts anyway, so that writers had better join first.
    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // Of all streams TLS alone keeps back what it was given.
            Self::Tls(stream) => stream.poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ends our half.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => stream.poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "socketio")]
            Self::Engine(stream) => stream.poll_shutdown(cx),
            Self::Http(_) | Self::Detached => Poll::Ready(Ok(())),
        }
    }
}
