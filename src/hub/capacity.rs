//! How much this server carries: sockets, and memory. Who comes when either is used up is refused, and those
//! that are there are served. It counts as used up until there is some room again, so that a load balancer
//! does not take the one place that was left for many.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{info, warn};

use crate::metrics::Reason;

/// What may be used, and whether it is used up.
#[derive(Debug)]
pub struct Capacity {
    /// Sockets of all apps together; 0: no limit.
    max_connections: u64,
    /// Sockets that have a place.
    open: AtomicU64,
    /// Bytes that the process may hold; 0: no limit.
    max_memory: u64,
    crowded: AtomicBool,
    heavy: AtomicBool,
}

impl Capacity {
    pub fn new(max_connections: u64, max_memory: u64) -> Self {
        let (crowded, heavy) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { max_connections, open: AtomicU64::new(0), max_memory, crowded, heavy }
    }

    /// Takes a place for one more socket, or says why there is none.
    pub fn admit(&self) -> Result<(), Reason> {
        if self.is_heavy() {
            return Err(Reason::Memory);
        }
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        if self.max_connections > 0 && before >= self.max_connections {
            self.release();
            self.crowded.store(true, Ordering::Relaxed);
            return Err(Reason::Capacity);
        }
        Ok(())
    }

    /// Gives a socket's place back.
    pub fn release(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether sockets should go elsewhere.
    pub fn is_crowded(&self) -> bool {
        used_up(&self.crowded, self.open.load(Ordering::Relaxed), self.max_connections)
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
        let come = |sockets: u64| (0..sockets).all(|_| capacity.admit().is_ok());
        let go = |sockets: u64| (0..sockets).for_each(|_| capacity.release());
        assert!(come(99) && !capacity.is_crowded());
        assert!(come(1));
        assert_eq!(capacity.admit(), Err(Reason::Capacity));
        go(1);
        assert!(capacity.is_crowded() && come(1), "who comes all the same is let in");
        go(4);
        assert!(capacity.is_crowded());
        go(1);
        assert!(!capacity.is_crowded());
        assert!(come(4) && !capacity.is_crowded());
        let single = Capacity::new(1, 0);
        assert!(single.admit().is_ok() && single.is_crowded());
        single.release();
        assert!(!single.is_crowded());
        let endless = Capacity::new(0, 0);
        assert!((0..1000).all(|_| endless.admit().is_ok()) && !endless.is_crowded());
    }

    #[test]
    fn many_at_once_are_no_more_than_may_be() {
        let capacity = Capacity::new(1000, 0);
        let admitted = std::thread::scope(|scope| {
            let come = || (0..1000).filter(|_| capacity.admit().is_ok()).count();
            let all: Vec<_> = (0..4).map(|_| scope.spawn(come)).collect();
            all.into_iter().map(|one| one.join().unwrap()).sum::<usize>()
        });
        assert_eq!(admitted, 1000);
    }

    #[test]
    fn memory_is_short_until_some_is_free() {
        let capacity = Capacity::new(0, 1000);
        for (bytes, heavy) in [(999, false), (1000, true), (951, true), (950, false), (999, false)]
        {
            capacity.note_memory(bytes);
            assert_eq!(capacity.is_heavy(), heavy, "{bytes}");
            assert_eq!(capacity.admit().is_err(), heavy, "{bytes}");
        }
        let endless = Capacity::new(0, 0);
        endless.note_memory(u64::MAX);
        assert!(!endless.is_heavy());
    }
}
