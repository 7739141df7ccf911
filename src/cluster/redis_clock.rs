//! Redis's time as this node knows it, which orders what was said during a lost link before or after local events. It
//! is never ahead of Redis's own, so in doubt something counts as said later.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// By how much, at most, this machine's clock is faster than that of Redis: one in so many.
const FASTER: u64 = 1000;

/// By how much Redis's clock is ahead of what it should say if it has been put forward; microseconds.
const STEP: u64 = 2_000_000;

/// Microseconds since 1970 by this machine's own clock.
pub(super) fn now_us() -> u64 {
    // A clock before 1970 gives 0.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A clock that is set by what Redis says, and that setting this machine's own does not change.
#[derive(Debug)]
pub struct RedisClock {
    /// The monotonic start, so that setting the system clock back changes nothing here.
    began: Instant,
    /// Redis's time at the start, microseconds since 1970; this machine's time before Redis was reached.
    then: AtomicU64,
    /// How much is added to all times and versions of Redis, so that they go on where those of a Redis ended that
    /// has lost its data, though the next one's clock may be behind.
    shift: AtomicU64,
    /// The latest version that was received, with the shift.
    latest: AtomicU64,
}

impl Default for RedisClock {
    fn default() -> Self {
        let (shift, latest) = Default::default();
        Self { began: Instant::now(), then: AtomicU64::new(now_us()), shift, latest }
    }
}

impl RedisClock {
    /// Sets the clock from the times that Redis's servers reported a moment ago; the earliest counts. Returns
    /// whether the clock jumped ahead.
    pub(super) fn set_from(&self, said: impl IntoIterator<Item = u64>) -> bool {
        let Some(now) = said.into_iter().min() else { return false };
        let (now, before) = (now.saturating_add(self.clock_shift()), self.now());
        // Relaxed: one thread writes, and a reader that sees the old offset is off by one measurement.
        self.then.store(now.saturating_sub(self.elapsed_us()), Ordering::Relaxed);
        now > before.saturating_add(STEP)
    }

    /// The time of Redis, or a little before; microseconds since 1970.
    pub fn now(&self) -> u64 {
        // Saturating: a wrong clock must not wrap around to the distant past.
        self.then.load(Ordering::Relaxed).saturating_add(self.elapsed_us())
    }

    /// Redis has lost its data, and says that it is `now`: what it says from now on is after all it has said before.
    pub(super) fn begin_epoch(&self, now: u64) {
        // Relaxed: one value, which only grows.
        let before = self.now().max(self.latest.load(Ordering::Relaxed));
        let missing = (before + 1).saturating_sub(now);
        // The shift only grows, so times of this epoch never fall back behind those of the last.
        self.shift.fetch_max(missing, Ordering::Relaxed);
    }

    /// A time or version as this node has it, by what Redis says.
    pub fn to_local(&self, said: u64) -> u64 {
        let local = said.saturating_add(self.clock_shift());
        // Noted before it is returned, so that `begin_epoch` knows the latest time that anybody has seen.
        self.latest.fetch_max(local, Ordering::Relaxed);
        local
    }

    /// The same the other way round.
    pub fn to_redis(&self, local: u64) -> u64 {
        local.saturating_sub(self.clock_shift())
    }

    /// Written and read by the link's thread, which has one value after the other.
    fn clock_shift(&self) -> u64 {
        // Relaxed: the link's thread alone reads and writes it.
        self.shift.load(Ordering::Relaxed)
    }

    /// How long ago Redis said that it was `then`.
    pub(super) fn elapsed_since(&self, then: u64) -> Duration {
        Duration::from_micros(self.now().saturating_sub(then))
    }

    /// Slower than the machine's clock by the most that this may be too fast: never ahead of Redis.
    fn elapsed_us(&self) -> u64 {
        let passed = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        passed - passed / FASTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_that_begins_anew_goes_on_where_the_last_one_ended() {
        let clock = RedisClock::default();
        clock.set_from([5_000_000]);
        let last = clock.to_local(9_000_000);
        clock.begin_epoch(2_000_000);
        clock.set_from([2_000_000]);
        assert!(clock.to_local(2_000_000) > last && clock.now() > last - 1000);
        assert_eq!(clock.to_redis(clock.to_local(2_500_000)), 2_500_000);
        // One whose clock is right changes nothing.
        let before = clock.to_local(3_000_000);
        clock.begin_epoch(90_000_000);
        assert_eq!(clock.to_local(3_000_000), before);
    }

    #[test]
    fn it_goes_by_the_server_that_is_furthest_behind() {
        let clock = RedisClock::default();
        assert!(clock.now().abs_diff(now_us()) < 60_000_000);
        clock.set_from([5_000_000_000, 4_000_000_000]);
        assert!((4_000_000_000..4_900_000_000).contains(&clock.now()));
        assert_eq!(clock.elapsed_since(u64::MAX), Duration::ZERO);
        assert!(!clock.set_from([]));
        assert!(clock.elapsed_since(3_000_000_000) >= Duration::from_secs(1000));
        assert!(clock.set_from([6_000_000_000]), "it was put forward");
        assert!(clock.now() >= 6_000_000_000, "only the last that was said counts");
        assert!(!clock.set_from([6_000_000_000]) && !clock.set_from([5_000_000_000]));
    }
}
