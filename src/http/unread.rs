//! Reads and discards the body of a refused request before the response is sent. Otherwise a proxy that is still
//! sending turns the closed connection into a 502.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Body;
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use tokio::time::{Sleep, sleep};

use super::body::RequestBody;

/// Bytes that are dropped at most, and for how long.
const MAX_BYTES: usize = 8 << 20;
/// The longest time spent on an unread body.
const MAX_TIME: Duration = Duration::from_secs(1);

/// A body on its way to nowhere.
#[derive(Debug)]
pub(super) struct UnreadBody {
    body: RequestBody,
    /// Bytes that were discarded.
    bytes: usize,
    /// Ends it after [`MAX_TIME`].
    timer: Pin<Box<Sleep>>,
}

impl UnreadBody {
    /// Of a body that is not at its end; not where the client waits to be asked for it.
    pub(super) fn of_request(parts: &Parts, body: RequestBody) -> Option<Box<Self>> {
        // `Expect: 100-continue` (RFC 9110 section 10.1.1): the body comes only if it is asked for.
        let expects = parts.headers.contains_key(EXPECT);
        (!expects && !body.is_end_stream()).then(|| Self::of_rest(body))
    }

    /// Of a body that was read in part.
    pub(super) fn of_rest(body: RequestBody) -> Box<Self> {
        Box::new(Self { body, bytes: 0, timer: Box::pin(sleep(MAX_TIME)) })
    }

    /// Ready when it is read, or enough of it.
    pub(super) fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.bytes < MAX_BYTES {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.bytes += frame.data_ref().map_or(0, |data| data.len());
                }
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}
