//! Resumable clients in Redis: their types and the layout of their keys; `scripts/clients.rs` has the scripts. The
//! record of a client is opaque here: bytes sealed with the app's secret, whose content `node/client_record.rs` defines.
//!
//! Of an app, `P:{app}:` and `s`: the key of a token → when it was kept, and the sealed record; the empty key stands for
//! the bytes of all. `q`: the same key → the node that has the client's connection; the empty one: since when
//! there is this. `z`: the keys by when they are forgotten. `x`: users and channels by when a right was taken back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{SubscribeTicket, Topic};
use crate::app::AppId;
use crate::metrics::{HeldBytes, HeldShare};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// Bytes of records that Redis keeps of an app at most; beyond it those go first that are forgotten first.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// How many clients are forgotten at once.
pub(super) const SWEPT: usize = 1000;

/// An encoded record, counted for its app until it is dropped.
struct CountedRecord {
    /// The encoded record.
    bytes: Vec<u8>,
    /// Its share of the app's held memory, given back when the record is dropped.
    _share: HeldShare,
}

impl AsRef<[u8]> for CountedRecord {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A record whose bytes are counted in `held`, however many share it.
pub fn counted_record(bytes: Vec<u8>, held: Arc<HeldBytes>) -> Bytes {
    let share = HeldShare::new(held, bytes.len());
    Bytes::from_owner(CountedRecord { bytes, _share: share })
}

/// The state of a client, to be kept in Redis for its next connection.
#[derive(Clone, Debug)]
pub struct Parked {
    pub app: AppId,
    /// Of its token.
    pub key: String,
    /// Empty where nothing is to be kept.
    pub record: Bytes,
    /// How long it may take to come back.
    pub window: Duration,
    /// Its connection has ended, so that no node owns it.
    pub ended: bool,
    /// It came while Redis was away, and whose it was is not known.
    pub unclaimed: bool,
}

/// The state of a reconnected client in Redis.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct ClaimedClient {
    /// The node that had its connection and has not ended it.
    pub owner: Option<u64>,
    /// Its record, and when that was written, by this node's view of Redis's clock.
    pub record: Option<(u64, Bytes)>,
    /// Since when clients are known.
    pub since: u64,
    /// Rights were taken back of late.
    pub withdrawals: bool,
}

/// A request to replay a topic's log to a client that reconnected.
#[derive(Debug, Clone)]
pub struct Replay {
    pub topic: Topic,
    /// The connection that it is for.
    pub ticket: SubscribeTicket,
    /// The place of the last event that it has acknowledged.
    pub after: u64,
    /// When it was certain last that Redis had its data; what was lost since may have been missed.
    pub alive: u64,
}

/// The missed events of a topic.
#[derive(Debug)]
pub struct Missed {
    /// The topic that was read.
    pub topic: Topic,
    /// The subscription that waits for this.
    pub ticket: SubscribeTicket,
    /// Missed events, oldest first.
    pub events: Vec<MissedEvent>,
    /// There were more.
    pub gap: bool,
    /// The place that the log ended at.
    pub last: u64,
}

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissedEvent {
    /// The event's place in the channel's log, by which events that were replayed already are skipped.
    pub place: u64,
    /// The connection that published it, which does not get it.
    pub except: Option<SocketId>,
    /// As subscribers got it.
    pub frame: Bytes,
}

/// The member of a sorted set that stands for a user's withdrawn channel.
pub fn withdrawn_member(user: &UserId, channel: &ChannelName) -> String {
    format!("{}\n{}", user.as_str(), channel.as_str())
}
