//! Receives a request's body, up to its limit. Most bodies arrive in one piece, which is not copied.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::error::Error;

/// The rest of a request.
#[derive(Debug)]
pub enum RequestBody {
    /// hyper reads it.
    Incoming(Incoming),
    /// It came with its head.
    Whole(Bytes),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Incoming(body) => Pin::new(body).poll_frame(cx),
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            // All of it in one frame; the next poll finds none.
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Incoming(body) => body.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Incoming(body) => body.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// The body so far; most come in one piece, which is not copied.
#[derive(Debug)]
pub(super) enum ReceivedBody {
    /// Nothing was received.
    Nothing,
    /// One piece, as it was received.
    One(Bytes),
    /// Several pieces, copied together.
    Many(BytesMut),
}

impl ReceivedBody {
    /// The received bytes in one piece.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes,
        }
    }

    /// Takes in what comes, up to `max` bytes; ready when it is all there.
    pub(super) fn poll_all(
        &mut self,
        body: &mut RequestBody,
        max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        while let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)) {
            let Ok(frame) = frame else { return Poll::Ready(Err(Error::Interrupted)) };
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else { continue };
            if self.bytes().len() + data.len() > max {
                return Poll::Ready(Err(Error::TooLarge { what: "request body", size: None, max }));
            }
            self.add(data);
        }
        Poll::Ready(Ok(()))
    }

    /// Appends a piece.
    fn add(&mut self, more: Bytes) {
        match self {
            Self::Nothing => *self = Self::One(more),
            Self::One(first) => {
                // Twice as much as there is: a body in three pieces and more is then copied seldom.
                let mut all = BytesMut::with_capacity(2 * (first.len() + more.len()));
                all.extend_from_slice(first);
                all.extend_from_slice(&more);
                *self = Self::Many(all);
            }
            Self::Many(all) => all.extend_from_slice(&more),
        }
    }
}
