//! When a worker that is busy with a crowd offers its core to other threads, between two parts. The order in which the
//! parts are flushed is `flush_line.rs`'s.

use std::thread;
use std::time::{Duration, Instant};

/// A thread runs for this part of the time that it last gave away, one in so many, before it offers its core again. So
/// a program that takes all it can get leaves a ninth of the core. With a half, workers and publishers still wait for
/// each other.
const RUNS_AT_LEAST: u32 = 8;

/// The last offer of a worker's core.
#[derive(Debug)]
pub(super) struct CoreOffer {
    /// When the thread went on after it.
    resumed: Instant,
    /// How long others had the core.
    took: Duration,
}

impl Default for CoreOffer {
    fn default() -> Self {
        Self { resumed: Instant::now(), took: Duration::ZERO }
    }
}

impl CoreOffer {
    /// Lets another thread run that waits for this core; returns at once if none does. That may be another worker, which
    /// has requests to answer, or a program on this machine that publishes or receives. Otherwise all of them wait for
    /// the end of this thread's time slice, and what they would have published meanwhile needs writes of its own.
    pub(super) fn offer_core(&mut self) {
        let begun = Instant::now();
        if self.is_due(begun) {
            thread::yield_now();
            self.note_offer(begun, Instant::now());
        }
    }

    /// Whether the thread has run for long enough since it last gave its core away.
    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.resumed) >= self.took / RUNS_AT_LEAST
    }

    fn note_offer(&mut self, begun: Instant, end: Instant) {
        (self.resumed, self.took) = (end, end.saturating_duration_since(begun));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ninth_of_the_core_is_kept_from_who_takes_all_of_it() {
        let mut offer = CoreOffer::default();
        let at = |micros| offer.resumed + Duration::from_micros(micros);
        let (start, given, resumed, early, due) = (at(0), at(100), at(3300), at(3699), at(3700));
        assert!(offer.is_due(start), "nothing was given away yet");
        offer.note_offer(given, resumed);
        assert!(!offer.is_due(early) && offer.is_due(due));
        // Nobody wanted the core.
        offer.note_offer(due, due);
        assert!(offer.is_due(due));
    }
}
