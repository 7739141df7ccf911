//! Resumable clients of this node that may move to another one, and what other nodes have requested of them.
//! `travelling.rs` acts on it.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::oneshot;

use crate::app::AppId;
use crate::protocol::resume_token::ResumeToken;

/// A client's name: its app, and the key of its token.
pub(super) type Name = (AppId, String);

/// Clients of this node that other nodes may ask for.
#[derive(Debug, Default)]
pub(super) struct Travellers {
    /// Connected here, or connected here last.
    pub(super) here: DashMap<Name, Traveller>,
    /// What those held that have gone, and when they went.
    pub(super) parting: DashMap<Name, (Instant, Bytes)>,
    /// Nodes that were asked to hand a client over.
    pub(super) asked: DashMap<u64, oneshot::Sender<Bytes>>,
    /// The number of the last such request.
    pub(super) requests: AtomicU64,
    /// Redis was away when it was last looked at; once it is back, all clients are written again.
    pub(super) was_down: AtomicBool,
}

/// One client that is connected here.
#[derive(Debug)]
pub(super) struct Traveller {
    /// By which its connection is found in the directory.
    pub(super) token: ResumeToken,
    /// It came while Redis was away, and has not been claimed.
    pub(super) unclaimed: bool,
}

impl Travellers {
    /// What another node was asked for has come.
    pub(super) fn come(&self, request: u64, record: Bytes) {
        if let Some((_, asker)) = self.asked.remove(&request) {
            // Nobody may wait for it any longer.
            let _ = asker.send(record);
        }
    }
}
