//! A limit of operations per second, counted over all workers without a lock. The caller passes the second.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count, of the second it was last used in.
#[derive(Debug, Default)]
pub struct RateLimit(AtomicU64);

/// The rest of a second's quota after taking from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RateTaken {
    /// That many more.
    Left(u32),
    /// The limit is reached in this second.
    TooMany,
}

impl RateLimit {
    /// Takes `n` of the `limit` that second `now` has.
    pub fn take_from(&self, now: u32, n: u32, limit: u32) -> RateTaken {
        let mut taken = RateTaken::TooMany;
        // The upper half is the second, the lower the count in it.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            let used = if (before >> 32) as u32 == now { before as u32 } else { 0 };
            let after = used.saturating_add(n);
            if after > limit {
                taken = RateTaken::TooMany;
                return None;
            }
            taken = RateTaken::Left(limit - after);
            Some(u64::from(now) << 32 | u64::from(after))
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own_count() {
        let rate = RateLimit::default();
        assert_eq!(rate.take_from(7, 2, 3), RateTaken::Left(1));
        assert_eq!(rate.take_from(7, 2, 3), RateTaken::TooMany);
        assert_eq!(rate.take_from(7, 1, 3), RateTaken::Left(0));
        assert_eq!(rate.take_from(8, 3, 3), RateTaken::Left(0));
        assert_eq!(rate.take_from(9, 4, 3), RateTaken::TooMany);
    }
}
