//! A topic that is being subscribed to, and what its log has. `subscribe.rs` continues from there.

use bytes::Bytes;

use super::dedup::MessageId;
use crate::cluster::Topic;
use crate::cluster::link::RetainedEvent;
use crate::cluster::roster::LoadedRoster;

/// Topics that are taken part in again in one round trip; each may have missed as much as its log holds.
pub(super) const REOPENED: usize = 256;

/// A topic that is being taken part in, and what Redis has of it.
pub(super) struct TopicOpening {
    pub(super) topic: Topic,
    /// Who is present, on presence channels.
    pub(super) loaded: Option<LoadedRoster>,
    /// With which event it is, and the version of the last that was sent.
    pub(super) cached: Option<(RetainedEvent, MessageId, u64)>,
    /// The place after which it has missed events, unless it has caught up.
    pub(super) after: Option<u64>,
    /// What was published while nobody listened here.
    pub(super) missed: Option<MissedEntries>,
}

/// What a log has after a place.
#[derive(Debug)]
pub(super) struct MissedEntries {
    pub(super) reaches: LogCoverage,
    /// Envelopes, the oldest first.
    pub(super) entries: Vec<Bytes>,
}

/// Whether a log has everything after a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LogCoverage {
    Back,
    /// Unless it has expired since.
    Begin,
    Short,
}
