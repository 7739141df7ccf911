//! The body of a request as it comes in, up to the size that it may have. Most bodies come in one piece, and
//! are not copied.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};

use super::error::Error;

/// The body so far; most come in one piece, which is not copied.
#[derive(Debug)]
pub(super) enum ReceivedBody {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl ReceivedBody {
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
        body: &mut Incoming,
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

    fn add(&mut self, more: Bytes) {
        match self {
            Self::Nothing => *self = Self::One(more),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + more.len()));
                all.extend_from_slice(first);
                all.extend_from_slice(&more);
                *self = Self::Many(all);
            }
            Self::Many(all) => all.extend_from_slice(&more),
        }
    }
}
