//! The connection of each HTTP session. A session's requests arrive on any worker and must find the one that carries
//! it; only that worker changes its entry.

use std::cell::Cell;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::handles::ConnectionRef;
use crate::app::AppId;

/// The sessions of one node by what their addresses have of them: key, number and name.
#[derive(Debug, Default)]
pub struct HttpSessions(DashMap<Box<str>, HttpSession>);

/// One session: its app, and where it is carried.
#[derive(Clone, Debug)]
pub struct HttpSession {
    /// The session's app. Names of sessions are not secret, so another app's requests must not find it.
    pub app: AppId,
    /// Where its connection is found.
    pub place: ConnectionRef,
}

impl HttpSessions {
    /// Whether there is no session, so that a server that stops may end.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From any worker: requests come in where the kernel puts them.
    pub fn find_session(&self, name: &str) -> Option<HttpSession> {
        self.0.get(name).map(|found| found.value().clone())
    }

    /// Makes a session known until the listing is dropped; if there is one of that name, it stays and is
    /// given back.
    pub fn claim_session(
        self: &Arc<Self>,
        name: &str,
        session: HttpSession,
    ) -> Result<SessionListing, HttpSession> {
        match self.0.entry(name.into()) {
            Entry::Occupied(there) => Err(there.get().clone()),
            Entry::Vacant(free) => {
                free.insert(session);
                Ok(SessionListing { sessions: self.clone(), name: name.into() })
            }
        }
    }
}

/// How long nothing has received for a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLull {
    /// Its client has come back once at least.
    pub has_returned: bool,
    /// Since that second of the worker's clock; 0: since it was looked at last.
    pub since: u32,
}

/// How many there may be on a worker, without looking at each.
#[derive(Debug, Default)]
pub struct LeftSessions {
    /// Most sessions at a time on this worker.
    pub(super) most: Cell<usize>,
}

/// A session can be found for as long as this is kept.
#[derive(Debug)]
pub struct SessionListing {
    sessions: Arc<HttpSessions>,
    /// The session's name in the table.
    name: Box<str>,
}

impl Drop for SessionListing {
    fn drop(&mut self) {
        self.sessions.0.remove(&self.name);
    }
}
