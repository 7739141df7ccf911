//! All counters and gauges of the server. Each worker has its own set of plain integers that only it writes, and
//! readers add them up: a delivery never touches a shared cache line. Values that can be computed on demand (channels,
//! queues, the process) are not counted here.

mod counter;
mod held;
mod labels;
mod notices;
mod page;
mod process;

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::runtime::RuntimeMetrics;

pub use counter::{Counter, CounterArray, Histogram, RecentPeak};
pub use held::{HeldByApp, HeldBytes, HeldShare};
pub use labels::{Call, Doubt, Limited, Reason, Signed, Status, Transport, Unreadable, Unready};
pub use notices::{LogNotice, LogThrottle};
pub use page::{MetricsPage, SampleLabels};
pub use process::ProcessStats;

/// One worker's counts, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounts {
    /// Connections open now.
    pub connections: Counter,
    /// Those of them that receive by HTTP requests, by transport.
    pub over_http: CounterArray<{ Transport::ALL.len() }>,
    /// Tasks that panicked; each cost one connection.
    pub panics: Counter,
    /// Frames from clients that were refused in any way.
    pub refused_messages: Counter,
    /// Sockets that ended, or were not let in.
    pub ends: CounterArray<{ Reason::ALL.len() }>,
    /// Signatures that did not hold, by what was signed and what was wrong.
    pub doubts: [CounterArray<{ Doubt::ALL.len() }>; Signed::ALL.len()],
    /// Refused because a second's share was used up.
    pub limited: CounterArray<{ Limited::ALL.len() }>,
    /// Connections whose first bytes were no readable request.
    pub unreadable: CounterArray<{ Unreadable::ALL.len() }>,
    /// Requests to the API, by what was asked and how it was answered.
    pub calls: [RequestCounts; Call::ALL.len()],
}

impl WorkerCounts {
    /// Counts a signature that does not hold.
    pub fn count_doubt(&self, signed: Signed, doubt: Doubt) {
        if let Some(doubts) = self.doubts.get(signed as usize) {
            doubts.count(doubt as usize);
        }
    }
}

/// Requests of one kind.
#[derive(Debug, Default)]
pub struct RequestCounts {
    /// How many were answered how.
    pub by_status: CounterArray<{ Status::ALL.len() }>,
    /// From the request's head to its answer.
    pub seconds: Histogram,
}

/// The traffic that one worker carried for one app, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct AppTraffic {
    /// Sockets that were let in, and those of them that are gone.
    pub connected: Counter,
    /// Connections that have ended.
    pub disconnected: Counter,
    /// Whole messages from clients, and bytes as they came from the sockets.
    pub received: Counter,
    /// Bytes of messages from clients.
    pub received_bytes: Counter,
    /// Events given to subscribers: one for each of them.
    pub deliveries: Counter,
    /// Frames that concern one connection alone.
    pub answers: Counter,
    /// Bytes that the sockets took.
    pub sent_bytes: Counter,
    /// Of what was given compressed, the bytes that it would have had plain, and those that it has.
    pub plain_bytes: Counter,
    /// Bytes that compression produced.
    pub deflated_bytes: Counter,
    /// Sockets now that agreed on compression.
    pub compressed: Counter,
    /// How often a connection was held up, for it asked for more than its share.
    pub held_up: Counter,
    /// Events published, by API or by clients; to each channel one.
    pub published: Counter,
    /// Requests to the API whose signature held, and the bytes of their bodies and of the answers'.
    pub calls: Counter,
    /// Bytes of bodies of API requests.
    pub call_bytes: Counter,
    /// Bytes of bodies of API responses.
    pub answer_bytes: Counter,
}

/// How a worker gets on with its work.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TurnTimes {
    /// From the oldest order to the last flush, until nothing waits to be flushed.
    pub fan_out: Histogram,
    /// One turn of everybody on the worker, while more is asked than fits into one.
    pub crowded: Histogram,
    /// The longest turn of the last while, in nanoseconds.
    pub longest: RecentPeak,
    /// Bytes that wait in outboxes, as last added up.
    pub waiting: Counter,
    /// 1 where writes for many sockets go out together, by io_uring.
    pub ring: Counter,
    /// How often they did, and how many writes these were.
    pub submissions: Counter,
    /// Writes that went through the ring.
    pub submitted_writes: Counter,
}

impl TurnTimes {
    /// A turn is over that began at `begun`. If nothing waits to be flushed any more, `oldest` is when the
    /// first of what was flushed came. Returns when that is.
    pub fn end_turn(&self, oldest: Option<Instant>, begun: Instant) -> Instant {
        let end = Instant::now();
        if let Some(oldest) = oldest {
            self.fan_out.observe(end - oldest);
        }
        self.longest.note_value((end - begun).as_nanos() as u64);
        end
    }
}

/// All workers' counts.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<WorkerCounts>,
    /// Figures of each worker's runtime, once it has started.
    runtimes: Vec<OnceLock<RuntimeMetrics>>,
    /// Limits how often the log reports faults of clients.
    pub notices: LogThrottle,
    /// The last time that the settings were read again they were of no use.
    pub reload_failed: AtomicBool,
}

impl Metrics {
    /// One set for each worker, at least one.
    pub fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        Self {
            workers: (0..workers).map(|_| WorkerCounts::default()).collect(),
            runtimes: (0..workers).map(|_| OnceLock::new()).collect(),
            notices: LogThrottle::default(),
            reload_failed: AtomicBool::new(false),
        }
    }

    /// The counts of one worker.
    pub fn of_worker(&self, worker: u16) -> &WorkerCounts {
        #[expect(clippy::indexing_slicing, reason = "there is always a worker")]
        self.workers.get(usize::from(worker)).unwrap_or(&self.workers[0])
    }

    /// All workers' counts, in their order.
    pub fn all_workers(&self) -> &[WorkerCounts] {
        &self.workers
    }

    /// One count over all workers.
    pub fn sum_counter(&self, read: impl Fn(&WorkerCounts) -> &Counter) -> u64 {
        self.workers.iter().map(|counts| read(counts).value()).fold(0, u64::wrapping_add)
    }

    /// Sockets that ended or were refused for one reason, over all workers.
    pub fn ended_for(&self, reason: Reason) -> u64 {
        self.workers.iter().map(|counts| counts.ends.value(reason as usize)).sum()
    }

    /// Remembers where a worker's runtime can be seen at work.
    pub fn watch_runtime(&self, worker: u16, runtime: RuntimeMetrics) {
        if let Some(place) = self.runtimes.get(usize::from(worker)) {
            // Set once by the worker itself, when its runtime starts.
            let _ = place.set(runtime);
        }
    }

    /// Seconds that each worker has been at work, once it has begun.
    pub fn busy_seconds(&self) -> Vec<f64> {
        let runtimes = self.runtimes.iter().filter_map(OnceLock::get);
        runtimes.map(|runtime| runtime.worker_total_busy_duration(0).as_secs_f64()).collect()
    }
}
