//! The state of each webhook's queue. Only the queue's task writes it; Prometheus, the console and `doctor` read it
//! from any thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::millis;

/// How a line gets on, readable from every thread.
#[derive(Debug, Default)]
pub struct QueueMetrics {
    /// The id, for the metric's label.
    pub app: String,
    /// The webhook's place among those of its app.
    pub index: usize,
    /// Those that were taken back not counted.
    pub queued: AtomicU64,
    /// When the first in line happened, in milliseconds since 1970; 0: nothing waits.
    pub oldest: AtomicU64,
    /// Events, not requests.
    pub sent: AtomicU64,
    /// Events given up: too old, or too many.
    pub dropped: AtomicU64,
    /// Requests, each with one event or many.
    pub tries: AtomicU64,
    /// Those that were not answered with 2xx.
    pub failures: AtomicU64,
    /// The last one failed.
    pub(super) failing: AtomicBool,
}

impl QueueMetrics {
    /// Seconds that the first in line has waited.
    pub fn age(&self) -> f64 {
        // Relaxed: a gauge.
        match self.oldest.load(Ordering::Relaxed) {
            0 => 0.0,
            at => millis().saturating_sub(at) as f64 / 1e3,
        }
    }

    /// Whether the last request failed. Logged once when that begins and once when it ends.
    pub fn is_failing(&self) -> bool {
        // Relaxed: the log's lines are ordered by the queue's task, not by this flag.
        self.failing.load(Ordering::Relaxed)
    }
}
