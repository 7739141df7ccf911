//! Counters of the link to the other nodes. The link's thread writes them, `metrics_page.rs` exports them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::{HeldByApp, Histogram};

/// Counters of the link. Written by the link's thread, except `dropped`, `throttled` and `waiting`.
#[derive(Debug, Default)]
pub struct LinkMetrics {
    /// Envelopes sent to other nodes.
    pub published: AtomicU64,
    /// Publishes that did not fit the queue, or waited too long.
    pub dropped: AtomicU64,
    /// Publish requests that waited for room (backpressure).
    pub throttled: AtomicU64,
    /// Bytes of requests of clients that wait, by app.
    pub waiting: HeldByApp,
    /// Envelopes of other nodes.
    pub received: AtomicU64,
    /// Time from sending to receiving them, by the clocks of both nodes.
    pub lag: Histogram,
    /// Deliveries to local subscribers of events from other nodes.
    pub deliveries: AtomicU64,
    /// Messages that were no valid envelope.
    pub invalid: AtomicU64,
    /// Envelopes whose seal did not verify.
    pub unsealed: AtomicU64,
    /// Envelopes of kinds that only newer nodes know.
    pub unknown_kind: AtomicU64,
    /// Envelopes that were received a second time.
    pub duplicates: AtomicU64,
    /// Events of other nodes that were read from a log.
    pub replayed: AtomicU64,
    /// Events that were cut off logs for want of room.
    pub cut: AtomicU64,
    /// Topics whose log did not reach back to the last place that was read, so that events may have been missed.
    pub gaps: AtomicU64,
    /// Nodes that did not confirm a withdrawal in time.
    pub unconfirmed: AtomicU64,
    /// Links made.
    pub connects: AtomicU64,
    /// Leases renewed.
    pub renewals: AtomicU64,
    /// Other nodes whose lapsed leases this node cleared.
    pub nodes_expired: AtomicU64,
    /// Entries that this node wrote to webhook logs.
    pub news_said: AtomicU64,
    /// Facts for webhooks that did not fit into a queue or a log.
    pub webhook_facts_dropped: AtomicU64,
    /// Apps whose webhooks this node posts.
    pub webhook_apps: AtomicU64,
    /// Entries in the logs of these apps.
    pub webhook_backlog: AtomicU64,
    /// Commands sent to Redis.
    pub commands: AtomicU64,
    /// Round trips that they took.
    pub round_trips: AtomicU64,
    /// Time from sending a batch of commands to its last reply; most of it is the time that scripts run.
    pub round_trip: Histogram,
}

impl LinkMetrics {
    /// Relaxed: for display, by whichever thread.
    pub(crate) fn add_count(count: &AtomicU64, n: u64) {
        count.fetch_add(n, Ordering::Relaxed);
    }
}
