//! The last event of a cache channel, as a node that is subscribed to it keeps it. `topics.rs` decides which event that
//! is and counts its bytes.

use bytes::Bytes;
use tokio::time::Instant;

use super::link::RetainedEvent;

/// Bytes that are counted for the last event of a topic beside its own.
const CACHED_BYTES: usize = 200;

/// The last event of a cache channel.
#[derive(Clone, Debug)]
pub struct TopicCache {
    /// Its version by Redis, which orders the events of a channel.
    pub version: u64,
    pub frame: Bytes,
    /// The data as a JSON string token.
    pub data: Bytes,
    /// When it is no longer returned.
    pub expires: Instant,
}

impl From<RetainedEvent> for TopicCache {
    fn from(kept: RetainedEvent) -> Self {
        let RetainedEvent { version, frame, data, ttl, .. } = kept;
        Self { version, frame, data, expires: Instant::now() + ttl }
    }
}

impl TopicCache {
    /// Bytes that are counted for it.
    pub(super) fn held_bytes(&self) -> usize {
        self.frame.len() + self.data.len() + CACHED_BYTES
    }
}
