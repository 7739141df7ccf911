//! One reader's feed: the facts that it asked for, in a bounded queue. Beyond the feed's rate facts are only counted,
//! and a reader that falls behind is disconnected, so no producer ever waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::fact::{ConsoleFact, Encoded, Kind};
use super::filter::Filter;

/// Lines and bytes that may wait for the reader.
/// A second's worth at the highest rate.
const MAX_LINES: usize = 2_000;
const MAX_BYTES: usize = 4 << 20;

/// Facts of what goes wrong that are shown in a second, whatever the rate of the rest.
const MAX_WRONG_PER_SECOND: u32 = 200;

/// The subscription of one reader.
#[derive(Debug)]
pub struct Feed {
    filter: Filter,
    payloads: bool,
    /// Frequent facts that are shown in a second.
    rate: u32,
    /// Of this second's share.
    quota_left: AtomicU32,
    /// The same of facts about what goes wrong, which a busy server must not crowd out.
    left_wrong: AtomicU32,
    /// Wanted facts that were not shown since the reader last took lines.
    unseen: AtomicU64,
    queue: Mutex<FeedQueue>,
    /// Wakes the task that writes.
    wake: Notify,
}

/// Lines that the reader has not taken yet.
#[derive(Debug, Default)]
struct FeedQueue {
    lines: VecDeque<Bytes>,
    bytes: usize,
    is_cut: bool,
}

/// The lines that a reader takes at a time.
#[derive(Debug)]
pub struct Batch {
    pub lines: VecDeque<Bytes>,
    /// The reader was too slow: there is nothing more.
    pub is_cut: bool,
}

impl Feed {
    /// A feed that shows `rate` frequent facts in a second, with their payloads if they are wanted.
    pub fn new(filter: Filter, payloads: bool, rate: u32) -> Self {
        Self {
            filter,
            payloads,
            rate,
            quota_left: AtomicU32::new(rate),
            left_wrong: AtomicU32::new(MAX_WRONG_PER_SECOND),
            unseen: AtomicU64::new(0),
            queue: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Whether a fact of the kind must be built to decide whether it is shown. If not, and the filter takes the
    /// whole kind, it is counted as not shown.
    pub(super) fn wants_any(&self, kind: Kind) -> bool {
        // Relaxed: the quota may be exceeded by what workers report at the same instant.
        let is_spent = self.left_for(kind).load(Ordering::Relaxed) == 0;
        if is_spent && self.filter.takes_all(kind) {
            self.unseen.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.filter.takes_kind(kind)
    }

    /// Whether its reader wants to see the fact.
    pub(super) fn asks_for(&self, fact: &ConsoleFact<'_>) -> bool {
        self.filter.matches(fact)
    }

    /// The share that facts of the kind are taken from.
    fn left_for(&self, kind: Kind) -> &AtomicU32 {
        if kind.is_frequent() { &self.quota_left } else { &self.left_wrong }
    }

    /// Takes a fact in if it is asked for and there is room in this second.
    pub(super) fn offer(&self, fact: &ConsoleFact<'_>, encoded: &mut Encoded<'_, '_>) {
        if !self.asks_for(fact) {
            return;
        }
        // Relaxed: it is a sample, which need not be exact.
        let one_less = |left: u32| left.checked_sub(1);
        let left = self.left_for(fact.kind);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            // A fact that was skipped before it was built has been counted in `wants_any`.
            if !(fact.kind.is_frequent() && self.filter.takes_all(fact.kind)) {
                self.unseen.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let line = encoded.line(self.payloads);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.lines.len() >= MAX_LINES || queue.bytes + line.len() > MAX_BYTES {
            // The queued lines are dropped as well: a reader would not notice a hole in a feed.
            *queue = FeedQueue { is_cut: true, ..FeedQueue::default() };
        } else if !queue.is_cut {
            queue.bytes += line.len();
            // Shared with the other feeds: a line is encoded once, with and without its payload.
            queue.lines.push_back(line);
        }
        // Before the wake, so that the reader does not run into the lock.
        drop(queue);
        self.wake.notify_one();
    }

    /// Begins a new second; how many facts of the last were not shown.
    pub fn begin_second(&self) -> u64 {
        // Relaxed: workers that still see the last second's quota report one fact less.
        self.quota_left.store(self.rate, Ordering::Relaxed);
        self.left_wrong.store(MAX_WRONG_PER_SECOND, Ordering::Relaxed);
        self.unseen.swap(0, Ordering::Relaxed)
    }

    /// Waits until there may be something to take.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Takes what there is.
    pub fn take(&self) -> Batch {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.bytes = 0;
        Batch { lines: std::mem::take(&mut queue.lines), is_cut: queue.is_cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Console;
    use std::sync::Arc;

    #[test]
    fn a_flood_is_counted_and_what_goes_wrong_is_still_seen() {
        let console = Arc::new(Console::default());
        let watching = console.watch(Feed::new(Filter::default(), false, 10)).unwrap();
        for _ in 0..1_000 {
            console.send(Kind::Published, |fact| fact.channel("c"));
        }
        console.send(Kind::Refused, |fact| fact.why("no"));
        assert_eq!(watching.feed().take().lines.len(), 11);
        assert_eq!(watching.feed().begin_second(), 990);
        assert_eq!(watching.feed().begin_second(), 0);
        console.send(Kind::Published, |fact| fact.channel("c"));
        assert_eq!(watching.feed().take().lines.len(), 1);
    }

    #[test]
    fn with_a_filter_only_what_is_asked_for_is_counted() {
        let console = Arc::new(Console::default());
        let filter = Filter::parse(|name| (name == "channel").then_some("rare")).unwrap();
        let watching = console.watch(Feed::new(filter, false, 1)).unwrap();
        for _ in 0..1_000 {
            console.send(Kind::Published, |fact| fact.channel("common"));
        }
        for _ in 0..3 {
            console.send(Kind::Published, |fact| fact.channel("rare"));
        }
        assert_eq!(watching.feed().take().lines.len(), 1);
        assert_eq!(watching.feed().begin_second(), 2);
    }

    #[test]
    fn a_reader_that_falls_behind_is_cut() {
        let console = Arc::new(Console::default());
        let feed = Feed::new(Filter::default(), false, u32::MAX);
        let watching = console.watch(feed).unwrap();
        for _ in 0..=MAX_LINES {
            console.send(Kind::Published, |fact| fact.channel("c"));
        }
        let Batch { lines, is_cut } = watching.feed().take();
        assert!(is_cut && lines.is_empty());
        let is_cut = watching.feed().take().is_cut;
        assert!(is_cut, "it stays so");
    }
}
