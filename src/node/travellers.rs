//! Resumable clients of this node that may move to another one, and what other nodes have requested of them.
//! `travelling.rs` acts on it.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::oneshot;

use crate::app::AppId;
use crate::protocol::resume_token::ResumeToken;

/// Bytes of an app's records that are kept for a few seconds.
const MAX_PARTING: usize = 16 << 20;

/// A client's name: its app, and the key of its token.
pub(super) type Name = (AppId, String);

/// Clients of this node that other nodes may ask for.
#[derive(Debug, Default)]
pub(super) struct Travellers {
    /// Connected here, or connected here last.
    pub(super) here: DashMap<Name, Traveller>,
    /// Records of clients that have gone.
    pub(super) parting: PartingRecords,
    /// Nodes that were asked to hand a client over.
    pub(super) asked: DashMap<u64, oneshot::Sender<Bytes>>,
    /// The number of the last such request.
    pub(super) requests: AtomicU64,
    /// Redis was away when it was last looked at; once it is back, all clients are written again.
    pub(super) was_down: AtomicBool,
}

/// Records of clients that have gone and when, for a node that asks before Redis has them; of each app as much
/// as [`MAX_PARTING`]. Of the others the node that asks hears nothing, and tells them of a gap.
#[derive(Debug, Default)]
pub(super) struct PartingRecords {
    /// Each record, and when its client left.
    by_name: DashMap<Name, (Instant, Bytes)>,
    /// Bytes of records, by app.
    bytes: DashMap<AppId, usize>,
}

impl PartingRecords {
    /// Keeps the record of a client that left; the app's oldest make room.
    pub(super) fn put(&self, name: Name, record: Bytes) {
        self.remove(&name);
        let mut bytes = self.bytes.entry(name.0.clone()).or_default();
        if *bytes + record.len() <= MAX_PARTING {
            *bytes += record.len();
            drop(bytes);
            self.by_name.insert(name, (Instant::now(), record));
        }
    }

    /// When a client left a moment ago, and its record.
    pub(super) fn find(&self, name: &Name) -> Option<(Instant, Bytes)> {
        self.by_name.get(name).map(|parting| parting.clone())
    }

    /// Forgets a record.
    pub(super) fn remove(&self, name: &Name) {
        if let Some((_, (_, record))) = self.by_name.remove(name) {
            self.give_back(&name.0, record.len());
        }
    }

    /// Subtracts a record's bytes from its app.
    fn give_back(&self, app: &AppId, bytes: usize) {
        if let Some(mut all) = self.bytes.get_mut(app) {
            *all -= bytes;
        }
    }

    /// Forgets those that have gone longer ago than `age`.
    pub(super) fn expire(&self, age: Duration) {
        self.by_name.retain(|(app, _), (since, record)| {
            let stays = since.elapsed() < age;
            if !stays {
                self.give_back(app, record.len());
            }
            stays
        });
        if self.by_name.is_empty() {
            self.by_name.shrink_to_fit();
        }
    }
}

/// Whether what a client left here, at a moment and a time of Redis, is later than what is known from elsewhere, as of
/// `alive`. Two nodes' clocks of Redis agree to a round trip only, and clients may go to and fro in less: if another
/// node was asked and has handed the client over, that is later than whatever was left here before it was asked.
pub(super) fn is_left_later(
    (since, at): (Instant, u64),
    (asked, alive): (Option<Instant>, u64),
) -> bool {
    asked.map_or(at > alive, |asked| since > asked)
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
    /// Takes a record that another node was asked for.
    pub(super) fn come(&self, request: u64, record: Bytes) {
        if let Some((_, asker)) = self.asked.remove(&request) {
            // Nobody may wait for it any longer.
            let _ = asker.send(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_went_to_another_node_and_back_had_what_it_held_before() {
        let (left, asked) = (Instant::now(), Instant::now() + Duration::from_millis(5));
        // The other node's clock is behind this one's by more than the client was there.
        assert!(!is_left_later((left, 100), (Some(asked), 90)));
        assert!(is_left_later((asked + Duration::from_millis(1), 100), (Some(asked), 90)));
        // A record in Redis that this node was to replace.
        assert!(is_left_later((left, 100), (None, 90)) && !is_left_later((left, 90), (None, 90)));
    }

    #[test]
    fn records_of_those_that_have_gone_took_memory_without_end() {
        let all = PartingRecords::default();
        let name = |app: &str, number: usize| (AppId::new(app), number.to_string());
        let record = Bytes::from(vec![0; 1 << 20]);
        (0..100).for_each(|number| all.put(name("a", number), record.clone()));
        assert_eq!(all.by_name.len(), 16);
        all.put(name("b", 1), record.clone());
        all.put(name("a", 0), Bytes::new());
        assert!(all.find(&name("b", 1)).is_some() && all.find(&name("a", 16)).is_none());
        all.put(name("a", 16), record);
        assert!(all.find(&name("a", 16)).is_some(), "there is room again");
        all.expire(Duration::ZERO);
        assert!(all.by_name.is_empty() && all.bytes.iter().all(|bytes| *bytes == 0));
    }
}
