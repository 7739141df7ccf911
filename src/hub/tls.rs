//! TLS over TCP for one stream: reads decrypt; writes gather what is queued into one run of records and hand it to the
//! socket in one call. Certificates and trust are configured above.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

pub use rustls::Connection as Session;
use rustls::pki_types::CertificateDer;
use smallvec::SmallVec;
use tokio::io::{AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::outbox::Outbox;

/// Bytes that are encrypted at a time: four full records (RFC 8446 section 5.1). No more than this waits
/// encrypted, uncounted by the outbox.
const RUN_BYTES: usize = 64 << 10;

/// A TCP stream and the TLS session on it.
#[derive(Debug)]
pub struct TlsStream {
    /// Written to directly: records are gathered here, not in the session.
    tcp: TcpStream,
    /// Keys and the state of the handshake; rustls's.
    session: Session,
    /// Records that were taken out of the session for a write that is made elsewhere. They go before all that
    /// the session has.
    records: Vec<u8>,
}

/// The socket as TLS sees it: takes and gives what it can at once.
struct NonBlockingTcp<'a>(&'a TcpStream);

impl Read for NonBlockingTcp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for NonBlockingTcp<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsStream {
    /// A session that has not begun; its handshake is [`Self::poll_handshake`]'s.
    pub fn new(tcp: TcpStream, session: Session) -> Self {
        Self { tcp, session, records: Vec::new() }
    }

    /// The stream and the session apart.
    pub fn into_parts(self) -> (TcpStream, Session) {
        (self.tcp, self.session)
    }

    /// Shakes hands; ready once application data may flow.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.is_handshaking() {
            ready!(self.poll_flight(cx))?;
            self.answer_flight()?;
        }
        self.poll_flush(cx)
    }

    /// Whether flights of the handshake are still to come.
    pub fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Writes what is to be written; ready once part of the other side's next flight may have come.
    pub fn poll_flight(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        self.tcp.poll_read_ready(cx)
    }

    /// Reads what there is of a flight and computes the answer, which takes most of the time of a handshake.
    ///
    /// # Errors
    /// The other side has gone, or what it sent is no handshake.
    pub fn answer_flight(&mut self) -> io::Result<()> {
        match self.read_records() {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads what there is. Nothing in `buffer` means the other side has ended its half; a TCP stream
    /// that ends without saying so in TLS counts the same, for WebSocket frames know their own lengths.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.session.reader().read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.poll_records(cx))?;
        }
    }

    /// Takes records off the socket; how many bytes of them there were, none at the end of the stream.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.read_records() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    /// The same without waiting.
    fn read_records(&mut self) -> io::Result<usize> {
        let read = self.session.read_tls(&mut NonBlockingTcp(&self.tcp))?;
        if let Err(error) = self.session.process_new_packets() {
            // The alert that says why, if the socket takes it at once.
            let _ = self.write_records();
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(read)
    }

    /// The certificates of the other side, its own first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        // A side that showed no certificate has none in the list.
        self.session.peer_certificates().unwrap_or_default()
    }

    /// The protocol that both sides chose for what is encrypted.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    /// Whether encrypted bytes wait for the socket.
    pub fn is_holding(&self) -> bool {
        !self.records.is_empty() || self.session.wants_write()
    }

    /// The socket, for writes through the ring.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }

    /// Waits until the socket may take more.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    /// Encrypts as much of `outbox` as fits into one run, and writes it; returns the plain bytes that were taken.
    /// Bytes that the socket refuses are kept and written before the next run.
    pub fn try_write(&mut self, outbox: &Outbox) -> io::Result<usize> {
        self.write_records()?;
        let taken = self.take_run(outbox)?;
        match self.write_records() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// As [`Self::try_write`], but the caller writes [`Self::pending_records`].
    pub(super) fn encrypt_outbox(&mut self, outbox: &Outbox) -> io::Result<usize> {
        let taken = self.take_run(outbox)?;
        while self.session.wants_write() {
            self.session.write_tls(&mut self.records)?;
        }
        Ok(taken)
    }

    /// The records that wait to be written.
    pub(super) fn pending_records(&self) -> &[u8] {
        &self.records
    }

    /// Forgets the first `written` bytes of them. None left, they own no memory.
    pub(super) fn forget_encrypted(&mut self, written: usize) {
        self.records.drain(..written.min(self.records.len()));
        if self.records.is_empty() {
            self.records = Vec::new();
        }
    }

    /// Gives the session what goes into one run; the bytes of `outbox` that it took.
    fn take_run(&mut self, outbox: &Outbox) -> io::Result<usize> {
        let mut slices: SmallVec<[IoSlice<'_>; 64]> = SmallVec::new();
        let mut bytes = 0;
        for frame in outbox.iter() {
            slices.push(IoSlice::new(frame));
            bytes += frame.len();
            if bytes >= RUN_BYTES {
                break;
            }
        }
        let taken = self.session.writer().write_vectored(&slices)?;
        if taken == 0 && bytes > 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(taken)
    }

    /// Encrypts as much of `bytes` as goes into one run, once what was encrypted before is written.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let taken = self.session.writer().write(bytes)?;
        match self.write_records() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    /// Writes what is encrypted.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.write_records() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(cx))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }

    /// Says that nothing more comes (RFC 8446 section 6.1), and ends our half.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.send_close_notify();
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    /// Writes the records that are encrypted and not sent.
    ///
    /// # Errors
    /// `WouldBlock` where the socket takes no more for now; what is left stays in `records`.
    fn write_records(&mut self) -> io::Result<()> {
        while !self.records.is_empty() {
            let written = self.tcp.try_write(&self.records)?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            self.forget_encrypted(written);
        }
        while self.session.wants_write() {
            if self.session.write_tls(&mut NonBlockingTcp(&self.tcp))? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}
