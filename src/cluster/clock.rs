//! The time of Redis as this node knows it, so that what was said while a link was down can be told to be before or
//! after something that happened here. Never ahead of Redis's own, so that in doubt something was said later.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// By how much, at most, this machine's clock is faster than that of Redis: one in so many.
const FASTER: u64 = 1000;

/// Microseconds since 1970 by this machine's own clock.
pub(super) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A clock that is set by what Redis says, and that setting this machine's own does not change.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    /// What time it was then, microseconds since 1970; before Redis was heard, by this machine's own clock.
    then: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { began: Instant::now(), then: AtomicU64::new(now_us()) }
    }
}

impl Clock {
    /// Redis has said what time it was a moment ago; each server, where there are several. The one furthest
    /// behind counts.
    pub(super) fn set(&self, said: impl IntoIterator<Item = u64>) {
        if let Some(now) = said.into_iter().min() {
            self.then.store(now.saturating_sub(self.passed()), Ordering::Relaxed);
        }
    }

    /// The time of Redis, or a little before; microseconds since 1970.
    pub fn now(&self) -> u64 {
        self.then.load(Ordering::Relaxed).saturating_add(self.passed())
    }

    /// How long ago Redis said that it was `then`.
    pub(super) fn since(&self, then: u64) -> Duration {
        Duration::from_micros(self.now().saturating_sub(then))
    }

    fn passed(&self) -> u64 {
        let passed = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        passed - passed / FASTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_by_the_server_that_is_furthest_behind() {
        let clock = Clock::default();
        assert!(clock.now().abs_diff(now_us()) < 60_000_000);
        clock.set([5_000_000_000, 4_000_000_000]);
        assert!((4_000_000_000..4_900_000_000).contains(&clock.now()));
        assert_eq!(clock.since(u64::MAX), Duration::ZERO);
        clock.set([]);
        assert!(clock.since(3_000_000_000) >= Duration::from_secs(1000));
        clock.set([6_000_000_000]);
        assert!(clock.now() >= 6_000_000_000, "only the last that was said counts");
    }
}
