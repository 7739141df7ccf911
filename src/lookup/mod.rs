//! Looking up apps that are not in the settings: a caller with an unknown key or id waits here until the table was
//! queried. `known_apps.rs` has the loaded apps, `sql.rs` the queries. A loaded app never comes this way.

pub mod known_apps;
#[cfg(feature = "sql")]
pub mod sql;

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

/// Questions that may wait: after a restart each tenant's clients come at once. More are answered
/// [`LookupResult::Away`].
const MAX_QUEUED: usize = 16_384;

/// Bytes of the longest name that a table can hold.
const MAX_NAME_BYTES: usize = 255;

/// The name by which an app is looked up.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum AppName {
    /// A backend's request is for it.
    Id(String),
    /// A client's socket is for it.
    Key(String),
}

/// The result of a lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookupResult {
    /// The table has answered: if there is such an app it is among the known ones now.
    Answered,
    /// Nobody can tell just now.
    Away,
}

/// Somebody waits for an app.
#[derive(Debug)]
pub struct LookupRequest {
    /// The id or key to look up.
    pub name: AppName,
    /// Dropped without an answer, it counts as [`LookupResult::Away`].
    pub answer: oneshot::Sender<LookupResult>,
}

/// The sender of lookups, which a thread with a connection to the database answers.
#[derive(Clone, Debug)]
pub struct Lookup(mpsc::Sender<LookupRequest>);

impl Lookup {
    /// The door, and what comes in by it.
    pub fn new() -> (Self, mpsc::Receiver<LookupRequest>) {
        let (questions, asked) = mpsc::channel(MAX_QUEUED);
        (Self(questions), asked)
    }

    /// Never waits to ask: a full queue is answered as a database that is away.
    pub fn ask_for(&self, name: AppName) -> PendingLookup {
        let (AppName::Id(text) | AppName::Key(text)) = &name;
        if text.is_empty() || text.len() > MAX_NAME_BYTES {
            return PendingLookup(Err(LookupResult::Answered));
        }
        let (answer, pending) = oneshot::channel();
        match self.0.try_send(LookupRequest { name, answer }) {
            Ok(()) => PendingLookup(Ok(pending)),
            Err(_) => PendingLookup(Err(LookupResult::Away)),
        }
    }
}

/// A question on its way to its verdict.
/// The answer to come, or one that was clear at once.
#[derive(Debug)]
pub struct PendingLookup(Result<oneshot::Receiver<LookupResult>, LookupResult>);

impl Future for PendingLookup {
    type Output = LookupResult;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LookupResult> {
        match &mut self.0 {
            Ok(pending) => {
                Pin::new(pending).poll(cx).map(|told| told.unwrap_or(LookupResult::Away))
            }
            Err(verdict) => Poll::Ready(*verdict),
        }
    }
}
