//! A topic that is being subscribed to, and what its log has. `subscribe.rs` continues from there.

use std::time::Duration;

use super::dedup::MessageId;
use super::trust::EnvelopeTrust;
use crate::cluster::Topic;
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::link::RetainedEvent;
use crate::cluster::redis_clock::RedisClock;
use crate::cluster::roster::LoadedRoster;
use crate::cluster::scripts::events::{CachedReply, MissedEntries};

/// Topics that are taken part in again in one round trip; each may have missed as much as its log holds.
pub(super) const REOPENED: usize = 256;

/// A topic that is being taken part in, and what Redis has of it.
pub(super) struct TopicOpening {
    /// The topic that is being opened.
    pub(super) topic: Topic,
    /// The members, on presence channels.
    pub(super) loaded: Option<LoadedRoster>,
    /// With which event it is, and the version of the last that was sent.
    pub(super) cached: Option<(RetainedEvent, MessageId, u64)>,
    /// The place after which it has missed events, unless it has caught up.
    pub(super) after: Option<u64>,
    /// Events that were published while the topic was not subscribed to.
    pub(super) missed: Option<MissedEntries>,
}

/// A cached event that was read for a topic, with its id and the version of the last that was sent; nothing if it is not
/// a node's of this cluster.
pub(super) fn open_cached(
    cached: CachedReply,
    name: &str,
    trust: EnvelopeTrust<'_>,
    clock: &RedisClock,
) -> Option<(RetainedEvent, MessageId, u64)> {
    let CachedReply { envelope: bytes, ttl, last } = cached;
    let mut envelope = Envelope::decode(&bytes).ok()?;
    if !trust.is_believed(name, &envelope, &bytes) {
        return None;
    }
    envelope.map_version(|version| clock.to_local(version));
    let mark = MessageId::from(&envelope);
    let version = envelope.version;
    match envelope.body {
        EnvelopeBody::Cached { frame, data, .. } => {
            let ttl = Duration::from_millis(ttl);
            let cached = RetainedEvent { version, frame, data, ttl, delivered: false };
            Some((cached, mark, clock.to_local(last)))
        }
        _ => None,
    }
}
