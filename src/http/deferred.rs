//! Responses that must wait after their request was checked: for connections that leave channels, for a list that
//! another thread builds, or for large events that are published in chunks.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::error::Error;
use super::response::AnswerBody;
use crate::app::App;
use crate::hub::directory::Directory;
use crate::node::{Node, PendingWithdrawal, Publication};
use crate::protocol::channel::ChannelName;
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// Bytes that are published before others get a turn.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// The pause in which other tasks run and subscribers' sockets take the events: at most 128 MB a second are
/// published.
const CHUNK_PAUSE: Duration = Duration::from_millis(2);

/// The work that the response waits for.
#[derive(Debug)]
pub(super) enum DeferredAnswer {
    /// Connections that leave channels, on all nodes.
    Withdrawing(PendingWithdrawal),
    /// A list of many channels.
    Listing(oneshot::Receiver<Bytes>),
    /// More events than are published in one go.
    Publishing(Box<PacedPublish>),
}

/// Events on their way, and what is answered once they are.
#[derive(Debug)]
pub(super) struct PacedPublish {
    /// All are checked, and will be published.
    pub events: Vec<OwnedTrigger>,
    /// Made beforehand: nothing that comes can change it.
    pub answer: Value,
    /// The trace of the request, if it is followed.
    trace: Option<Trace>,
    /// The event and the channel of it that comes next.
    next: (usize, usize),
    /// Between two parts.
    pause: Option<Pin<Box<Sleep>>>,
}

/// One event and where it goes.
#[derive(Debug)]
pub(super) struct OwnedTrigger {
    /// The event's.
    pub name: String,
    /// The token of the data's JSON string.
    pub data: String,
    /// Each once.
    pub channels: Vec<ChannelName>,
    /// The connection that is not to get it.
    pub except: Option<SocketId>,
}

impl DeferredAnswer {
    /// The answer, once there is one.
    /// Polled by the request's own task, which ends where the client hangs up.
    pub(super) fn poll(
        &mut self,
        node: &Node,
        (app, directory): (&App, &Directory),
        cx: &mut Context<'_>,
    ) -> Poll<Result<AnswerBody, Error>> {
        Poll::Ready(match self {
            Self::Withdrawing(withdrawing) => {
                ready!(Pin::new(withdrawing).poll(cx));
                Ok(AnswerBody::Json(json!({})))
            }
            Self::Listing(list) => match ready!(Pin::new(list).poll(cx)) {
                Ok(list) => Ok(AnswerBody::Text(list)),
                // Its thread is gone, which it is only after a panic.
                Err(_) => Err(Error::Crowded),
            },
            Self::Publishing(publishing) => {
                ready!(publishing.poll(node, (app, directory), cx));
                Ok(AnswerBody::Json(std::mem::take(&mut publishing.answer)))
            }
        })
    }
}

impl PacedPublish {
    /// Starts with the first event.
    pub(super) fn new((events, trace): (Vec<OwnedTrigger>, Option<Trace>), answer: Value) -> Self {
        Self { events, answer, trace, next: (0, 0), pause: None }
    }

    /// Publishes the next part, with a pause between parts.
    fn poll(
        &mut self,
        node: &Node,
        (app, directory): (&App, &Directory),
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let mut bytes = 0;
            // At least one event each time, however large.
            while bytes < CHUNK_BYTES {
                let (at, channel) = self.next;
                let Some(event) = self.events.get(at) else { return Poll::Ready(()) };
                let Some(channel) = event.channels.get(channel) else {
                    // All of an event's channels have it; the next event begins with its first.
                    self.next = (at + 1, 0);
                    continue;
                };
                let OwnedTrigger { name, data, except, .. } = event;
                let (except, trace) = (*except, self.trace.as_ref());
                let publication = Publication { channel, event: name, data, except, trace };
                node.publish(app, directory, publication);
                bytes += data.len();
                self.next.1 += 1;
            }
            self.pause = Some(Box::pin(sleep(CHUNK_PAUSE)));
        }
    }
}
