//! The server's capacity: sockets, and memory. When either is used up, new sockets are refused and open ones are
//! served. Capacity counts as available again only with some margin, so that a load balancer does not send many clients
//! for the one free place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{info, warn};

use crate::metrics::Reason;

/// Bytes that clients have to give back before the allocator is asked for what it keeps of them: a quarter of what they
/// had, within these bounds. So each time is worth it, and a server that had little gives it back too.
const MIN_FREED_BYTES: u64 = 1 << 20;
/// Freed bytes that suffice in any case.
const ENOUGH_FREED_BYTES: u64 = 16 << 20;

/// For how many looks it must stay so: who reconnects takes them again at once.
const FREED_LOOKS: u64 = 3;

/// Bytes of a connection that are counted nowhere else, about: of a socket, or of one for requests without its buffers.
pub const CONNECTION_BYTES: usize = 2 << 10;

/// Limits on sockets and memory, and whether they are reached.
#[derive(Debug)]
pub struct Capacity {
    /// Sockets of all apps together; 0: no limit.
    max_connections: u64,
    /// Sockets that have a place.
    open: AtomicU64,
    /// Bytes of HTTP connections, as the workers noted last.
    visitors: AtomicU64,
    /// Bytes that the process may hold; 0: no limit.
    max_memory: u64,
    /// Told to load balancers. It goes on at the limit and off a little below, so that it does not
    /// flap.
    crowded: AtomicBool,
    /// The same of memory.
    heavy: AtomicBool,
    /// The last measurement of the process's memory, and requests to return memory since.
    memory: MemoryUse,
}

/// The last measurement of the process's memory.
#[derive(Debug, Default)]
struct MemoryUse {
    /// Bytes that it held, and those of them that are in use.
    held: AtomicU64,
    /// Bytes in use: held, less what the allocator keeps.
    used: AtomicU64,
    /// Bytes counted for clients at that time, and the most of it that may not be back from the allocator yet.
    counted: AtomicU64,
    /// Bytes counted for clients at their highest since memory was last returned.
    peak: AtomicU64,
    /// The most that was held for clients since memory was last given back, and for how many looks it has been much less.
    highest: AtomicU64,
    /// Checks in a row that found much freed memory.
    looks: AtomicU64,
}

impl Capacity {
    /// Nothing is open, and nothing is known of memory before the first look.
    pub fn new(max_connections: u64, max_memory: u64) -> Self {
        let (crowded, heavy) = (AtomicBool::new(false), AtomicBool::new(false));
        let (open, memory) = (AtomicU64::new(0), MemoryUse::default());
        let visitors = AtomicU64::new(0);
        Self { max_connections, open, visitors, max_memory, crowded, heavy, memory }
    }

    /// Takes a place for one more socket, or says why there is none.
    ///
    /// # Errors
    /// The limit that is reached: memory, or the number of sockets.
    pub fn take_place(&self) -> Result<(), Reason> {
        if self.is_heavy() {
            return Err(Reason::Memory);
        }
        // Added before it is compared, so that workers that admit at once cannot exceed the limit together.
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        if self.max_connections > 0 && before >= self.max_connections {
            self.free_place();
            // Relaxed: readers may act on the flag a connection later.
            self.crowded.store(true, Ordering::Relaxed);
            return Err(Reason::Capacity);
        }
        Ok(())
    }

    /// Sockets that may be open at a time; 0: no limit.
    pub fn max_connections(&self) -> u64 {
        self.max_connections
    }

    /// Gives a socket's place back.
    pub fn free_place(&self) {
        // Relaxed: the place is free for whoever counts next.
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether new sockets should go elsewhere.
    pub fn is_crowded(&self) -> bool {
        // Relaxed: a balancer asks again within seconds.
        used_up(&self.crowded, self.open.load(Ordering::Relaxed), self.max_connections)
    }

    /// Whether memory was used up at the last measurement.
    pub fn is_heavy(&self) -> bool {
        // Relaxed: measured once a second, so a moment more is no difference.
        self.heavy.load(Ordering::Relaxed)
    }

    /// Bytes that the process may hold; 0: no limit.
    pub fn max_memory(&self) -> u64 {
        self.max_memory
    }

    /// Whether `bytes` more fit into memory, where `counted` bytes are held for clients now. Between two
    /// measurements the growth is estimated from this; memory that is not counted may grow as much.
    pub fn has_memory_for(&self, bytes: usize, counted: u64) -> bool {
        if self.max_memory == 0 {
            return true;
        }
        // Figures that others change meanwhile, whatever the ordering.
        let since = counted.saturating_sub(self.memory.counted.load(Ordering::Relaxed));
        let used = self.memory.used.load(Ordering::Relaxed) + 2 * since + bytes as u64;
        !self.is_heavy() && used < self.max_memory
    }

    /// Bytes in use beyond which there is room again for new sockets; 0 while there is room.
    pub fn excess_bytes(&self) -> u64 {
        let goal = self.max_memory - (self.max_memory / 20).max(1).min(self.max_memory);
        if self.is_heavy() {
            // Relaxed: the figures of the last measurement, as a goal for the next.
            self.memory.used.load(Ordering::Relaxed).saturating_sub(goal)
        } else {
            0
        }
    }

    /// HTTP connections of a worker that took `before` bytes take `now`.
    pub fn note_visitors(&self, before: usize, now: usize) {
        // Relaxed: a sum of its own. Added first, so that it never falls below zero.
        self.visitors.fetch_add(now as u64, Ordering::Relaxed);
        self.visitors.fetch_sub(before as u64, Ordering::Relaxed);
    }

    /// Whether clients have freed so much that the allocator should return it to the system. Called once a second.
    pub fn has_much_freed(&self, counted: u64) -> bool {
        // Relaxed: an estimate from sums that workers change meanwhile.
        let (memory, open) = (&self.memory, self.open.load(Ordering::Relaxed));
        let now = counted + open * CONNECTION_BYTES as u64 + self.visitors.load(Ordering::Relaxed);
        // Relaxed throughout: one worker calls this, once a second.
        let highest = memory.highest.fetch_max(now, Ordering::Relaxed).max(now);
        if highest - now < (highest / 4).clamp(MIN_FREED_BYTES, ENOUGH_FREED_BYTES) {
            memory.looks.store(0, Ordering::Relaxed);
            return false;
        }
        // Relaxed: as above, one worker alone.
        let is_time = memory.looks.fetch_add(1, Ordering::Relaxed) + 1 >= FREED_LOOKS;
        if is_time {
            memory.looks.store(0, Ordering::Relaxed);
            memory.highest.store(now, Ordering::Relaxed);
        }
        is_time
    }

    /// Notes the process's memory, and how much of it is `counted` for clients. Memory that clients freed and the
    /// allocator keeps is reused, so it is not in use. Otherwise a server that all clients have left could refuse
    /// new ones for ever.
    pub fn note_memory(&self, held: u64, counted: u64) {
        let (before, limit, memory) = (self.is_heavy(), self.max_memory, &self.memory);
        // Relaxed throughout: one worker measures; the others read single values.
        let gone_back = memory.held.swap(held, Ordering::Relaxed).saturating_sub(held);
        let peak = memory.peak.load(Ordering::Relaxed).saturating_sub(gone_back).max(counted);
        memory.peak.store(peak, Ordering::Relaxed);
        let used = held.saturating_sub(peak - counted);
        // Relaxed: other workers compare each with a limit by itself.
        memory.used.store(used, Ordering::Relaxed);
        memory.counted.store(counted, Ordering::Relaxed);
        match (before, used_up(&self.heavy, used, limit)) {
            (false, true) => {
                warn!(held, counted, limit, "new sockets are refused: limits.memory is reached");
            }
            (true, false) => info!(held, counted, limit, "there is memory again for new sockets"),
            _ => {}
        }
    }
}

/// Whether `used` reaches the limit, or did and has not gone down by a twentieth since.
fn used_up(before: &AtomicBool, used: u64, max: u64) -> bool {
    let room = (max / 20).max(1);
    // Relaxed: the flag only keeps the answer from changing to and fro; a late one does no harm.
    let held = before.load(Ordering::Relaxed) && used > max.saturating_sub(room);
    let is = max > 0 && (used >= max || held);
    // A limit that was reached stays reached until 5 % are free again, so that a balancer does not flap.
    before.store(is, Ordering::Relaxed);
    is
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_left_is_not_room_yet() {
        let capacity = Capacity::new(100, 0);
        let come = |sockets: u64| (0..sockets).all(|_| capacity.take_place().is_ok());
        let go = |sockets: u64| (0..sockets).for_each(|_| capacity.free_place());
        assert!(come(99) && !capacity.is_crowded());
        assert!(come(1));
        assert_eq!(capacity.take_place(), Err(Reason::Capacity));
        go(1);
        assert!(capacity.is_crowded() && come(1), "who comes all the same is let in");
        go(4);
        assert!(capacity.is_crowded());
        go(1);
        assert!(!capacity.is_crowded());
        assert!(come(4) && !capacity.is_crowded());
        let single = Capacity::new(1, 0);
        assert!(single.take_place().is_ok() && single.is_crowded());
        single.free_place();
        assert!(!single.is_crowded());
        let endless = Capacity::new(0, 0);
        assert!((0..1000).all(|_| endless.take_place().is_ok()) && !endless.is_crowded());
    }

    #[test]
    fn many_at_once_are_no_more_than_may_be() {
        let capacity = Capacity::new(1000, 0);
        let admitted = std::thread::scope(|scope| {
            let come = || (0..1000).filter(|_| capacity.take_place().is_ok()).count();
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
            capacity.note_memory(bytes, 0);
            assert_eq!(capacity.is_heavy(), heavy, "{bytes}");
            assert_eq!(capacity.take_place().is_err(), heavy, "{bytes}");
        }
        let endless = Capacity::new(0, 0);
        endless.note_memory(u64::MAX, 0);
        assert!(!endless.is_heavy());
    }

    #[test]
    fn what_clients_ask_for_between_two_looks_is_counted() {
        let capacity = Capacity::new(0, 1000);
        capacity.note_memory(400, 100);
        assert!(capacity.has_memory_for(500, 100) && !capacity.has_memory_for(600, 100));
        assert!(
            capacity.has_memory_for(10, 350) && !capacity.has_memory_for(10, 400),
            "twice what was counted"
        );
        assert!(Capacity::new(0, 0).has_memory_for(usize::MAX, u64::MAX));
    }

    #[test]
    fn memory_is_given_back_once_a_crowd_has_left_and_stays_away() {
        let capacity = Capacity::new(0, 0);
        let looks = |counted: &[u64]| -> Vec<bool> {
            counted.iter().map(|mib| capacity.has_much_freed(mib << 20)).collect()
        };
        assert_eq!(looks(&[1, 160, 146, 145, 146]), [false; 5], "little, however long");
        assert_eq!(looks(&[144, 143, 160, 143, 142]), [false; 5], "some came back");
        let away = [141, 130, 130, 124, 124, 124];
        assert_eq!(looks(&away), [true, false, false, false, false, true]);
        // Sessions of a crowd whose connections have gone already, once they are over.
        let few = Capacity::new(0, 0);
        let looks = |mib: u64| few.has_much_freed(mib << 20);
        assert_eq!(
            [4, 4, 4, 3, 3, 3, 3].map(looks),
            [false, false, false, false, false, true, false]
        );
        assert_eq!([1, 1, 1, 0, 0, 0].map(looks), [false, false, true, false, false, true]);
    }

    #[test]
    fn memory_of_http_connections_is_given_back_too() {
        let capacity = Capacity::new(0, 0);
        capacity.note_visitors(0, 40 << 20);
        assert!(!capacity.has_much_freed(0));
        capacity.note_visitors(40 << 20, 1 << 20);
        assert_eq!(
            [0; 4].map(|counted| capacity.has_much_freed(counted)),
            [false, false, true, false]
        );
    }

    #[test]
    fn who_has_gone_does_not_keep_others_out() {
        let capacity = Capacity::new(0, 1000);
        capacity.note_memory(1000, 700);
        assert!(capacity.is_heavy() && !capacity.has_memory_for(1, 700));
        assert_eq!(capacity.excess_bytes(), 50);
        // All have left, and the allocator gives nothing back.
        capacity.note_memory(1000, 0);
        assert!(
            !capacity.is_heavy() && capacity.has_memory_for(1, 0) && capacity.excess_bytes() == 0
        );
        capacity.note_memory(1000, 700);
        assert!(capacity.is_heavy(), "they are back");
        // Some of it has gone back, so that there is less left to use again.
        capacity.note_memory(900, 500);
        assert!(
            !capacity.is_heavy()
                && capacity.has_memory_for(100, 500)
                && !capacity.has_memory_for(200, 500)
        );
    }
}
