//! Time: when a thing is due, the mark that it carries, and how long after that it arrived. A thing counts
//! from when it was due, not from when there was time to send it, so that a server that makes the
//! generator wait is not flattered by it (no coordinated omission).

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::memchr;

/// Nanoseconds since a run began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// When each of a row of things is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A second; 0: whenever there is room.
    pub rate: f64,
    /// So many are due at the same moment.
    pub burst: u64,
}

impl Pace {
    /// Nanoseconds after the beginning; `None` where there is no rate.
    pub(crate) fn due(self, number: u64) -> Option<u64> {
        let first = number - number % self.burst.max(1);
        (self.rate > 0.0).then(|| (first as f64 / self.rate * 1e9) as u64)
    }
}

/// Stands before and after a time in a payload. No channel name may have it, so the first one is ours.
const MARK: u8 = b'~';

/// Hexadecimal digits of a time.
const DIGITS: usize = 16;

/// A payload of `size` bytes, or a few more, that says when it was due: a JSON object, without anything
/// that JSON would have to escape but its quotes.
pub(crate) fn payload(due: u64, size: usize) -> String {
    let mut text = format!("{{\"due\":\"~{due:016x}~");
    text.extend(std::iter::repeat_n('x', size.saturating_sub(text.len() + 2)));
    text.push_str("\"}");
    text
}

/// When a message was due, wherever in it the server put the payload.
pub(crate) fn due(text: &[u8]) -> Option<u64> {
    let at = memchr(MARK, text)? + 1;
    if *text.get(at + DIGITS)? != MARK {
        return None;
    }
    text[at..at + DIGITS].iter().try_fold(0, |sum, digit| {
        let digit = (*digit as char).to_digit(16)?;
        Some(sum << 4 | u64::from(digit))
    })
}

/// How long things took: nanoseconds, three digits exact.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).unwrap_or_else(|error| {
            unreachable!("the bounds are legal: {error}");
        }))
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Microseconds that the part `quantile` took at most.
    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// How long to wait for events when the next thing is due at `due`: whole milliseconds, since the kernel
/// rounds up, and at most 20.
pub(crate) fn wait(due: Option<u64>, now: u64) -> Duration {
    let ms = due.map_or(20, |due| due.saturating_sub(now) / 1_000_000);
    Duration::from_millis(ms.min(20))
}
