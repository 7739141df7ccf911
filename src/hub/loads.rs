//! Connections per worker: the acceptor gives new ones to the worker with the fewest, eviction needs the total, and a
//! stopping server waits until there are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Connections by worker.
#[derive(Debug)]
pub struct WorkerLoads {
    /// One for each worker. Written where a connection begins and ends, read by the acceptor.
    of: Vec<AtomicUsize>,
    /// Connections of any kind that may be open at a time.
    most: usize,
    /// No more will come, for another process accepts them.
    complete: AtomicBool,
}

impl WorkerLoads {
    /// For `workers` workers, which carry `most` connections together.
    pub fn new(workers: usize, most: usize) -> Self {
        let of = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        Self { of, most, complete: AtomicBool::new(false) }
    }

    /// Relaxed: which worker is chosen need not be exact.
    pub fn add_connection(&self, worker: usize) {
        if let Some(load) = self.of.get(worker) {
            load.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// By [`LoadGuard`], so that none is forgotten.
    pub fn remove_connection(&self, worker: usize) {
        if let Some(load) = self.of.get(worker) {
            // Relaxed: as for adding.
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The worker with the fewest.
    pub fn lightest_worker(&self) -> usize {
        // Relaxed: two connections accepted at once may go to the same worker.
        let loads = self.of.iter().map(|load| load.load(Ordering::Relaxed)).enumerate();
        loads.min_by_key(|(_, load)| *load).map_or(0, |(worker, _)| worker)
    }

    /// No more will come: after the last one was counted.
    pub fn note_complete(&self) {
        // Release: pairs with the acquire in `is_complete`.
        self.complete.store(true, Ordering::Release);
    }

    /// Acquire: a reader that sees this must also see all earlier counts.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// How many more there are than may be.
    pub fn excess(&self) -> usize {
        // Relaxed: the drain asks again each second.
        let all: usize = self.of.iter().map(|load| load.load(Ordering::Relaxed)).sum();
        all.saturating_sub(self.most)
    }

    /// Whether there are connections.
    pub fn has_connections(&self) -> bool {
        // Relaxed: the drain asks again until none is left.
        self.of.iter().any(|load| load.load(Ordering::Relaxed) > 0)
    }
}

/// Counts a connection among its worker's for as long as it lives.
#[derive(Debug)]
pub struct LoadGuard {
    loads: Arc<WorkerLoads>,
    /// Changed where a stream moves to another worker.
    worker: usize,
}

impl LoadGuard {
    /// The acceptor has counted it already.
    pub fn new(loads: Arc<WorkerLoads>, worker: usize) -> Self {
        Self { loads, worker }
    }

    /// Another worker carries it from now on.
    pub fn move_to(&mut self, worker: usize) {
        self.loads.add_connection(worker);
        self.loads.remove_connection(self.worker);
        self.worker = worker;
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.loads.remove_connection(self.worker);
    }
}
