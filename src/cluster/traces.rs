//! Traces that other nodes have announced for events still to come: few, and for a short time. Without traces this
//! costs one load per event.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha1::{Digest as _, Sha1};
use tokio::time::Instant;

use crate::app::AppId;
use crate::protocol::trace::Trace;

/// Traces that wait for their events.
const MAX_TRACES: usize = 1024;

/// How long one waits.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// A hash of an event's app and frame, the same on every machine, by which another node recognises the event.
pub fn mark_of(app: &AppId, frame: &[u8]) -> u64 {
    let sum = Sha1::new().chain_update(app.as_str()).chain_update([0]).chain_update(frame);
    sum.finalize().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The traces that wait for their events.
#[derive(Debug, Default)]
pub struct AnnouncedTraces {
    /// Looked at for each event, so that most take no lock.
    any: AtomicBool,
    /// The oldest first.
    waiting: Mutex<VecDeque<Announced>>,
}

/// A trace that was announced before its event arrived.
#[derive(Debug)]
struct Announced {
    /// Its event comes right behind it, or never.
    since: Instant,
    /// The node that sent the event.
    origin: u64,
    /// Of the event's frame, by which the two are put together.
    mark: u64,
    /// The trace to give the event.
    trace: Trace,
}

impl AnnouncedTraces {
    /// Keeps the trace of an event that `origin` sends next.
    pub fn announce(&self, origin: u64, mark: u64, trace: Trace) {
        let since = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut waiting, since);
        if waiting.len() == MAX_TRACES {
            waiting.pop_front();
        }
        waiting.push_back(Announced { since, origin, mark, trace });
        // Set under the lock that guards the queue. Readers that miss it lose a trace, never an event.
        self.any.store(true, Ordering::Relaxed);
    }

    /// Takes the trace of an event that has come from `origin`, the first of those that look alike.
    pub fn take_trace(&self, origin: u64, app: &AppId, frame: &[u8]) -> Option<Trace> {
        // Relaxed: what comes out of the link is carried out on one thread.
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mark = mark_of(app, frame);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut waiting, Instant::now());
        let place = waiting.iter().position(|one| one.origin == origin && one.mark == mark);
        let taken = place.and_then(|place| waiting.remove(place));
        // Cleared under the same lock, so the flag cannot say "none" while one waits.
        self.any.store(!waiting.is_empty(), Ordering::Relaxed);
        taken.map(|one| one.trace)
    }
}

/// Those whose event was lost on the way.
fn forget_old(waiting: &mut VecDeque<Announced>, now: Instant) {
    while waiting.front().is_some_and(|one| now.duration_since(one.since) > MAX_WAIT) {
        waiting.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_its_own_trace() {
        let (traces, app) = (AnnouncedTraces::default(), AppId::new("a"));
        let trace = |text| Trace::parse(text).unwrap();
        let take = |origin, app: &AppId, frame: &[u8]| traces.take_trace(origin, app, frame);
        assert_eq!(take(1, &app, b"x"), None);
        for text in ["first", "second"] {
            traces.announce(1, mark_of(&app, b"x"), trace(text));
        }
        assert_eq!(take(2, &app, b"x"), None, "of another node");
        assert_eq!(take(1, &AppId::new("b"), b"x"), None, "of another app");
        assert_eq!(take(1, &app, b"y"), None, "another event");
        assert_eq!(take(1, &app, b"x"), Some(trace("first")));
        assert_eq!(take(1, &app, b"x"), Some(trace("second")));
        assert_eq!(take(1, &app, b"x"), None);
    }

    #[test]
    fn they_are_few_and_do_not_wait_for_ever() {
        let (traces, app) = (AnnouncedTraces::default(), AppId::new("a"));
        let trace = Trace::parse("t").unwrap();
        for mark in 0..=MAX_TRACES as u64 {
            traces.announce(1, mark, trace.clone());
        }
        let mut waiting = traces.waiting.lock().unwrap();
        assert_eq!((waiting.len(), waiting[0].mark), (MAX_TRACES, 1));
        forget_old(&mut waiting, Instant::now() + 2 * MAX_WAIT);
        assert!(waiting.is_empty());
        drop(waiting);
        assert_eq!(traces.take_trace(1, &app, b"x"), None);
        assert!(!traces.any.load(Ordering::Relaxed));
    }
}
