//! The queue of requests to the link, with what is counted as held for each from when it is queued until the link has
//! carried it out. `counted_request.rs` says how much that is.

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::metrics::HeldShare;

/// The bytes that are counted for a request until it is dropped.
#[derive(Debug)]
pub(super) struct RequestShare {
    /// As held for its app.
    pub _held: HeldShare,
    /// As waiting, which has a limit of its own.
    pub _waiting: Option<HeldShare>,
}

/// A request, and what is counted for it.
type Queued<T> = (T, Option<RequestShare>);

/// The workers' end. Unbounded as a channel, since workers never wait.
#[derive(Debug)]
pub(super) struct RequestSender<T>(mpsc::UnboundedSender<Queued<T>>);

/// The link's end.
#[derive(Debug)]
pub struct RequestReceiver<T> {
    requests: mpsc::UnboundedReceiver<Queued<T>>,
    arrived: Vec<Queued<T>>,
    /// For the requests that were taken last, which are being carried out.
    taken: Vec<RequestShare>,
}

pub(super) fn request_queue<T>() -> (RequestSender<T>, RequestReceiver<T>) {
    let (sender, requests) = mpsc::unbounded_channel();
    (RequestSender(sender), RequestReceiver { requests, arrived: Vec::new(), taken: Vec::new() })
}

impl<T> Clone for RequestSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> RequestSender<T> {
    /// Without waiting; false if the link has ended.
    pub(super) fn send(&self, request: T, share: Option<RequestShare>) -> bool {
        self.0.send((request, share)).is_ok()
    }
}

impl<T> RequestReceiver<T> {
    /// The next request; `None` once all senders are gone.
    pub async fn recv(&mut self) -> Option<T> {
        // Who asks for the next one has carried out the last.
        self.taken.clear();
        let next = self.requests.recv().await?;
        Some(self.take(next))
    }

    /// Adds up to `max` requests to `batch`; how many, 0 once all senders are gone. They count until the next are
    /// asked for.
    pub async fn recv_many(&mut self, batch: &mut Vec<T>, max: usize) -> usize {
        self.taken.clear();
        let count = self.requests.recv_many(&mut self.arrived, max).await;
        // Nothing is waited for from here on, so that a caller who stops waiting loses none.
        let mut arrived = std::mem::take(&mut self.arrived);
        batch.extend(arrived.drain(..).map(|one| self.take(one)));
        self.arrived = arrived;
        count
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// There is none now, or never will be again.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.taken.clear();
        let next = self.requests.try_recv()?;
        Ok(self.take(next))
    }

    fn take(&mut self, (request, share): Queued<T>) -> T {
        self.taken.extend(share);
        request
    }
}
