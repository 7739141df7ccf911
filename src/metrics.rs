//! Every count and gauge of the server, in one place. Each worker counts for itself, in plain integers
//! that only it writes, and whoever asks adds them up: a delivery never touches a shared cache line.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: there is one writer.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's counts, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts {
    /// Sockets that were let in.
    pub connected: Counter,
    /// Sockets refused before `connection_established`.
    pub refused: Counter,
    /// Connections open now.
    pub connections: Counter,
    /// Connections closed because they did not take what was sent.
    pub slow: Counter,
    /// Connections we closed, for whatever other reason.
    pub closed: Counter,
    /// Tasks that panicked; each cost one connection.
    pub panics: Counter,
    /// Frames from clients, whole messages.
    pub messages: Counter,
    /// Of them, those refused in any way.
    pub refused_messages: Counter,
    /// Breaches of the WebSocket protocol.
    pub protocol_errors: Counter,
    /// Requests to the API.
    pub requests: Counter,
    /// Of them, those not answered 200.
    pub refused_requests: Counter,
    /// Events published, by API or by clients.
    pub published: Counter,
}

/// All workers' counts.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<Counts>,
}

impl Metrics {
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers.max(1)).map(|_| Counts::default()).collect() }
    }

    /// The counts of one worker.
    pub fn of(&self, worker: u16) -> &Counts {
        #[expect(clippy::indexing_slicing, reason = "there is always a worker")]
        self.workers.get(usize::from(worker)).unwrap_or(&self.workers[0])
    }

    /// One count over all workers.
    pub fn sum(&self, read: impl Fn(&Counts) -> &Counter) -> u64 {
        self.workers.iter().map(|counts| read(counts).value()).fold(0, u64::wrapping_add)
    }
}
