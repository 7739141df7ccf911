//! How much this server carries: sockets, and memory. Who comes when either is used up is refused, and those
//! that are there are served. It counts as used up until there is some room again, so that a load balancer
//! does not take the one place that was left for many.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{info, warn};

use crate::metrics::Reason;

/// What may be used, and whether it is used up.
#[derive(Debug)]
pub struct Capacity {
    /// Sockets of all apps together; 0: no limit.
    max_connections: u64,
    /// Bytes that the process may hold; 0: no limit.
    max_memory: u64,
    crowded: AtomicBool,
    heavy: AtomicBool,
}

impl Capacity {
    pub fn new(max_connections: u64, max_memory: u64) -> Self {
        let (crowded, heavy) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { max_connections, max_memory, crowded, heavy }
    }

    /// Why one socket more than there are `connections` is not let in.
    pub fn refusal(&self, connections: u64) -> Option<Reason> {
        if self.max_connections > 0 && connections >= self.max_connections {
            self.crowded.store(true, Ordering::Relaxed);
            return Some(Reason::Capacity);
        }
        self.is_heavy().then_some(Reason::Memory)
    }

    /// Whether sockets should go elsewhere while there are `connections`.
    pub fn is_crowded(&self, connections: u64) -> bool {
        used_up(&self.crowded, connections, self.max_connections)
    }

    /// Whether memory is used up, as was last noted.
    pub fn is_heavy(&self) -> bool {
        self.heavy.load(Ordering::Relaxed)
    }

    /// Bytes that the process may hold; 0: no limit.
    pub fn max_memory(&self) -> u64 {
        self.max_memory
    }

    /// Notes what the process holds now.
    pub fn note_memory(&self, bytes: u64) {
        let before = self.is_heavy();
        let limit = self.max_memory;
        match (before, used_up(&self.heavy, bytes, limit)) {
            (false, true) => {
                warn!(bytes, limit, "new sockets are refused: limits.memory is reached");
            }
            (true, false) => info!(bytes, limit, "there is memory again for new sockets"),
            _ => {}
        }
    }
}

/// Whether `used` is all there is, or was and has not gone back by a twentieth since.
fn used_up(before: &AtomicBool, used: u64, max: u64) -> bool {
    let room = (max / 20).max(1);
    let held = before.load(Ordering::Relaxed) && used > max.saturating_sub(room);
    let is = max > 0 && (used >= max || held);
    before.store(is, Ordering::Relaxed);
    is
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_left_is_not_room_yet() {
        let capacity = Capacity::new(100, 0);
        assert!(!capacity.is_crowded(99) && capacity.refusal(99).is_none());
        assert_eq!(capacity.refusal(100), Some(Reason::Capacity));
        assert!(capacity.is_crowded(99) && capacity.refusal(99).is_none());
        assert!(capacity.is_crowded(96));
        assert!(!capacity.is_crowded(95) && !capacity.is_crowded(99));
        let single = Capacity::new(1, 0);
        assert!(single.is_crowded(1) && !single.is_crowded(0));
        assert!(!Capacity::new(0, 0).is_crowded(u64::MAX));
    }

    #[test]
    fn memory_is_short_until_some_is_free() {
        let capacity = Capacity::new(0, 1000);
        for (bytes, heavy) in [(999, false), (1000, true), (951, true), (950, false), (999, false)]
        {
            capacity.note_memory(bytes);
            assert_eq!(capacity.is_heavy(), heavy, "{bytes}");
            assert_eq!(capacity.refusal(7).is_some(), heavy, "{bytes}");
        }
        let endless = Capacity::new(0, 0);
        endless.note_memory(u64::MAX);
        assert!(!endless.is_heavy());
    }
}
