//! The debug console's facts: connections, publishes, refusals with their reasons. Facts go to the current readers
//! through bounded queues; without readers a fact costs one load. `http/console` serves them to browsers and terminals.

mod fact;
mod feed;
mod filter;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;

pub use fact::{ConsoleFact, Kind};
pub use feed::{Batch, Feed};
pub use filter::Filter;

use fact::Encoded;

/// Feeds at a time. Each fact is offered to all of them, on the thread that reports it.
const MAX_FEEDS: usize = 16;

/// Facts that are kept for readers that connect later, and how many of them may be of one second.
const MAX_REMEMBERED: usize = 200;
const MAX_REMEMBERED_PER_SECOND: u64 = 20;

/// Collects facts and offers them to feeds.
#[derive(Debug, Default)]
pub struct Console {
    /// Loaded on every event; while it is false nothing else is done.
    watched: AtomicBool,
    /// Read without a lock on the reporting thread; replaced when a feed begins or ends.
    feeds: ArcSwap<Vec<Arc<Feed>>>,
    /// Numbers the facts, so that a gap can be seen.
    last: AtomicU64,
    /// Recent faults, whether or not a feed was open: people look after something has failed.
    remembered: Mutex<Remembered>,
}

/// The newest last, at most [`MAX_REMEMBERED`].
#[derive(Debug, Default)]
struct Remembered {
    facts: VecDeque<RememberedFact>,
    second: u64,
    in_second: u64,
}

/// For readers to come.
#[derive(Debug)]
struct RememberedFact {
    outline: ConsoleFact<'static>,
    /// Of JSON, with `"past":true`.
    line: Bytes,
}

impl Console {
    /// Reports a fact. It is built only if a feed is open, or if its kind is kept.
    pub fn send<'a>(&self, kind: Kind, make: impl FnOnce(ConsoleFact<'a>) -> ConsoleFact<'a>) {
        if self.is_watched() || kind.is_remembered() {
            self.send_to_feeds(kind, make);
        }
    }

    /// Whether a feed is open.
    pub fn is_watched(&self) -> bool {
        // Relaxed: a feed that begins at this moment may miss what happens at this moment.
        self.watched.load(Ordering::Relaxed)
    }

    /// The way that is rarely gone, kept out of the code of those who tell.
    #[cold]
    fn send_to_feeds<'a>(&self, kind: Kind, make: impl FnOnce(ConsoleFact<'a>) -> ConsoleFact<'a>) {
        let feeds = self.feeds.load();
        let remembers = kind.is_remembered();
        // Most of a flood is only counted, and need not be made for that.
        // All of them are asked, for each counts what it is not shown.
        if !remembers && feeds.iter().filter(|feed| feed.wants_any(kind)).count() == 0 {
            return;
        }
        let fact = make(ConsoleFact::new(kind));
        // Relaxed: numbers need only be unique and grow for each worker's own facts.
        let mut encoded = Encoded::new(&fact, self.last.fetch_add(1, Ordering::Relaxed));
        feeds.iter().for_each(|feed| feed.offer(&fact, &mut encoded));
        if remembers {
            self.remember(&fact, &mut encoded);
        }
    }

    /// Keeps it for feeds to come, unless there are too many, or another thread is at it.
    fn remember(&self, fact: &ConsoleFact<'_>, encoded: &mut Encoded<'_, '_>) {
        // A reporting thread never waits for another: the fact is left out instead.
        let Ok(mut remembered) = self.remembered.try_lock() else { return };
        let second = unix_millis() / 1000;
        if remembered.second != second {
            remembered.second = second;
            remembered.in_second = 0;
        }
        remembered.in_second += 1;
        // A flood of one second must not push out what was there before it.
        if remembered.in_second > MAX_REMEMBERED_PER_SECOND {
            return;
        }
        if remembered.facts.len() == MAX_REMEMBERED {
            remembered.facts.pop_front();
        }
        let line = encoded.remembered_line();
        remembered.facts.push_back(RememberedFact { outline: fact.to_outline(), line });
    }

    /// Opens a feed, or returns `None` if there are 16 already, which is answered with 503. Dropping the result
    /// closes the feed.
    pub fn watch(self: &Arc<Self>, feed: Feed) -> Option<Watching> {
        let feed = Arc::new(feed);
        let mut is_full = false;
        // May run more than once, where two feeds begin at the same time.
        self.feeds.rcu(|feeds| {
            is_full = feeds.len() >= MAX_FEEDS;
            let more = (!is_full).then(|| feed.clone());
            feeds.iter().cloned().chain(more).collect::<Vec<_>>()
        });
        if is_full {
            return None;
        }
        // The feed is in the list already: a worker that sees the flag late misses facts of one instant.
        self.watched.store(true, Ordering::Relaxed);
        Some(Watching { console: self.clone(), feed })
    }

    /// Ends a feed, and lowers the flag with the last.
    fn forget(&self, feed: &Arc<Feed>) {
        let others = |feeds: &Arc<Vec<Arc<Feed>>>| {
            feeds.iter().filter(|one| !Arc::ptr_eq(one, feed)).cloned().collect::<Vec<_>>()
        };
        self.feeds.rcu(others);
        // Another may have come between: it is asked again after the store.
        self.watched.store(false, Ordering::SeqCst);
        if !self.feeds.load().is_empty() {
            // Sequentially consistent: a feed added between the two lines must not be left unwatched.
            self.watched.store(true, Ordering::SeqCst);
        }
    }
}

/// A feed that stays open until this is dropped.
#[derive(Debug)]
pub struct Watching {
    console: Arc<Console>,
    feed: Arc<Feed>,
}

impl Watching {
    /// The feed, to be written to its reader.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The faults before somebody looked, of those asked for; oldest first.
    pub fn remembered_lines(&self) -> Vec<Bytes> {
        let remembered = self.console.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = remembered.facts.iter().filter(|fact| self.feed.asks_for(&fact.outline));
        wanted.map(|fact| fact.line.clone()).collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.console.forget(&self.feed);
    }
}

/// Milliseconds since 1970.
pub fn unix_millis() -> u64 {
    // A clock before 1970 gives 0; times are for display.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(watching: &Watching) -> Vec<serde_json::Value> {
        let Batch { lines, .. } = watching.feed().take();
        lines.iter().map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[test]
    fn nothing_is_made_while_nobody_looks() {
        let console = Arc::new(Console::default());
        console.send(Kind::Published, |_| panic!("nobody looks"));
        let watching = console.watch(Feed::new(Filter::default(), false, 10)).unwrap();
        console.send(Kind::Published, |fact| fact.app("a").channel("c").event("e"));
        let told = lines(&watching);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["kind"], "published");
        assert_eq!(told[0]["channel"], "c");
        drop(watching);
        console.send(Kind::Published, |_| panic!("nobody looks any more"));
    }

    #[test]
    fn what_went_wrong_is_remembered_without_a_feed() {
        let console = Arc::new(Console::default());
        for number in 0..100 {
            console.send(Kind::Refused, |fact| fact.app("a").why(format!("reason {number}")));
        }
        let watching = console.watch(Feed::new(Filter::default(), false, 10)).unwrap();
        let all = watching.remembered_lines();
        assert!(!all.is_empty() && all.len() <= 2 * MAX_REMEMBERED_PER_SECOND as usize);
        let first: serde_json::Value = serde_json::from_slice(&all[0]).unwrap();
        assert_eq!((&first["past"], &first["why"]), (&true.into(), &"reason 0".into()));
    }

    #[test]
    fn payloads_go_to_those_who_asked() {
        let console = Arc::new(Console::default());
        let with = console.watch(Feed::new(Filter::default(), true, 10)).unwrap();
        let without = console.watch(Feed::new(Filter::default(), false, 10)).unwrap();
        console.send(Kind::Published, |fact| fact.data("secret of the shop"));
        assert_eq!(lines(&with)[0]["data"], "secret of the shop");
        let line = &lines(&without)[0];
        assert!(line.get("data").is_none(), "{line}");
        assert_eq!(line["bytes"], 18);
    }

    #[test]
    fn there_is_an_end_to_feeds() {
        let console = Arc::new(Console::default());
        let feed = || Feed::new(Filter::default(), false, 10);
        let mut all: Vec<_> = (0..MAX_FEEDS).map(|_| console.watch(feed()).unwrap()).collect();
        assert!(console.watch(feed()).is_none());
        all.pop();
        assert!(console.watch(feed()).is_some());
        assert!(console.is_watched());
        drop(all);
        assert!(!console.is_watched());
    }
}
