//! hyper's I/O over a stream. hyper writes only HTTP; upgraded connections, and replies to clients that send no HTTP,
//! bypass it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

use super::unreadable;
use crate::http::timeouts::RequestTimer;
use crate::http::{Handoff, Http};
use crate::hub::stream::Stream;

/// How much a read by hyper counts in a turn's work: a body is read in pieces of 8 KiB and more.
const WORK_A_READ: usize = 16;

/// The stream as hyper reads and writes it: notes when a request begins, and keeps the answer to a handshake,
/// which is to have no header but ours, and hyper's empty refusals, for which there are words.
pub(super) struct HttpIo {
    /// The socket or TLS, through which hyper reads and writes.
    pub(super) stream: TokioIo<Stream>,
    /// State that all requests on the worker share.
    pub(super) http: Rc<Http>,
    /// The timeouts of the connection.
    pub(super) timer: Rc<RequestTimer>,
    /// Something once a request has been answered 101.
    pub(super) handoff: Rc<RefCell<Option<Handoff>>>,
    /// Bytes that were read before hyper took over.
    pub(super) before: Bytes,
    /// hyper's own 101, behind what of earlier answers the client has not taken yet.
    pub(super) withheld: Vec<u8>,
}

impl Read for HttpIo {
    /// The bytes that were read before come first.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.before.is_empty() {
            let some = self.before.len().min(buffer.remaining());
            // `some` is at most the length of both, so the slice exists.
            buffer.put_slice(self.before.get(..some).unwrap_or_default());
            self.before.advance(some);
            return Poll::Ready(Ok(()));
        }
        // In turn with sockets: who sends bodies without end would keep the worker from everybody else.
        ready!(self.http.node.worker.turnstile.poll_turn(cx));
        // hyper sees whether bytes were read; the attempt is enough for the timer.
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if polled.is_ready() {
            self.http.node.worker.turnstile.count_work(WORK_A_READ);
            self.timer.note_bytes(self.http.node.worker.now_seconds());
        }
        polled
    }
}

impl Write for HttpIo {
    /// Past the socket where the answer is a 101, or an empty refusal.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.handoff.borrow().is_some() {
            // hyper believes that it wrote its answer; what the client gets is ours.
            self.withheld.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        // hyper answers what it cannot read with an empty 400; ours has a text, and follows.
        if unreadable::is_empty_refusal(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.handoff.borrow().is_some() {
            slices.iter().for_each(|slice| self.withheld.extend_from_slice(slice));
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        if let [only] = slices
            && unreadable::is_empty_refusal(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    /// Head and body may be written in one system call.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
