//! Counters of the link to the other nodes. The link's thread writes them, `metrics_page.rs` exports them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Histogram;

/// What is counted of the link. Written by the link's thread, but for `dropped` and `throttled`.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// Envelopes sent.
    pub published: AtomicU64,
    /// Publishes that did not fit the queue, or waited too long.
    pub dropped: AtomicU64,
    /// Requests that waited until others were sent.
    pub throttled: AtomicU64,
    /// Envelopes of other nodes.
    pub received: AtomicU64,
    /// From their sending to their coming, by the clocks of both nodes.
    pub lag: Histogram,
    /// Subscribers here that events of other nodes went to.
    pub deliveries: AtomicU64,
    /// Bytes that were no envelope.
    pub invalid: AtomicU64,
    /// Envelopes that are of no node with the app's secret, or were changed on their way.
    pub unsealed: AtomicU64,
    /// Envelopes of kinds that only newer nodes know.
    pub unknown_kind: AtomicU64,
    /// Envelopes that came a second time.
    pub duplicates: AtomicU64,
    /// Events of other nodes that were read from a log.
    pub replayed: AtomicU64,
    /// Events that were cut off logs for their bytes.
    pub cut: AtomicU64,
    /// Topics whose log did not reach back to what was heard last, so that events may have been missed.
    pub gaps: AtomicU64,
    /// Nodes that did not say in time that they have taken a right back.
    pub unconfirmed: AtomicU64,
    /// Times that the link was made.
    pub connects: AtomicU64,
    /// Leases renewed.
    pub renewals: AtomicU64,
    /// Nodes whose lease had lapsed and that this node cleared away.
    pub nodes_expired: AtomicU64,
    /// What was said for webhooks, and what there was no room for.
    pub news_said: AtomicU64,
    /// Entries for webhooks that found no room in the log.
    pub webhook_facts_dropped: AtomicU64,
    /// Apps whose webhooks this node tells, and what waits in their logs.
    pub webhook_apps: AtomicU64,
    /// Entries that wait in the logs which this node tells.
    pub webhook_backlog: AtomicU64,
    /// Commands sent to Redis.
    pub commands: AtomicU64,
    /// Round trips they took, and how long each; the time that scripts run is most of it.
    pub round_trips: AtomicU64,
    /// From a batch of commands to its last answer.
    pub round_trip: Histogram,
}

impl LinkMetrics {
    /// Relaxed: for display, by whichever thread.
    pub(crate) fn add_count(count: &AtomicU64, n: u64) {
        count.fetch_add(n, Ordering::Relaxed);
    }
}
