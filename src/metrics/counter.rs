//! Counters that one thread writes and any thread reads: plain additions without locked instructions, cheap enough for
//! every frame.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: there is one writer.
    pub fn add(&self, n: u64) {
        // A load and a store instead of `fetch_add`: on x86 that would be `lock xadd`.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// For what goes away again, by the same one writer.
    pub fn sub(&self, n: u64) {
        // A load and a store instead of `fetch_sub`: there is one writer, and no locked instruction is needed.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// For gauges that are worked out anew each time.
    pub fn set(&self, n: u64) {
        // Relaxed: readers want the value alone.
        self.0.store(n, Ordering::Relaxed);
    }

    /// From any thread; maybe a moment late, never torn.
    pub fn value(&self) -> u64 {
        // Relaxed: a 64-bit load is never torn on the supported targets.
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts by one of `N` labels.
#[derive(Debug)]
pub struct CounterArray<const N: usize>([Counter; N]);

impl<const N: usize> Default for CounterArray<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> CounterArray<N> {
    /// Counts one more at a label's place.
    pub fn count(&self, label: usize) {
        self.count_all(label, 1);
    }

    /// Counts `several` at once.
    pub fn count_all(&self, label: usize, several: u64) {
        if let Some(counter) = self.0.get(label) {
            counter.add(several);
        }
    }

    /// Takes one back where what is counted has gone.
    pub fn uncount(&self, label: usize) {
        if let Some(counter) = self.0.get(label) {
            counter.sub(1);
        }
    }

    /// 0 for a label that there is not.
    pub fn value(&self, label: usize) -> u64 {
        self.0.get(label).map_or(0, Counter::value)
    }
}

/// The highest of the values that were noted in the current stretch of time and the one before.
#[derive(Debug, Default)]
pub struct RecentPeak {
    /// The maximum in the current period.
    current: Counter,
    /// The maximum in the period before.
    before: Counter,
}

impl RecentPeak {
    /// By the one writer alone, as all of this file.
    pub fn note_value(&self, value: u64) {
        if value > self.current.value() {
            self.current.set(value);
        }
    }

    /// Begins a new stretch; the one before the last is forgotten.
    pub fn begin_stretch(&self) {
        self.before.set(self.current.value());
        self.current.set(0);
    }

    /// Over the last stretch at least, and two at most.
    pub fn value(&self) -> u64 {
        self.current.value().max(self.before.value())
    }
}

/// How many durations were no longer than each of [`Histogram::BOUNDS`].
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, not added up, and one for all that was longer.
    buckets: [Counter; Self::BOUNDS.len() + 1],
    /// The sum of all durations, for the mean.
    nanoseconds: Counter,
}

impl Histogram {
    /// Upper bounds in microseconds. A delivery on an idle machine takes about fifty; beyond a second the exact
    /// time does not matter.
    pub const BOUNDS: [u64; 14] = [
        50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
        1_000_000,
    ];

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = duration.as_micros();
        let at = Self::BOUNDS.iter().position(|bound| micros <= u128::from(*bound));
        if let Some(bucket) = self.buckets.get(at.unwrap_or(Self::BOUNDS.len())) {
            bucket.add(1);
        }
        self.nanoseconds.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// For each bound how many were no longer, then how many there were at all; and their sum in seconds.
    pub fn read_all<'a>(all: impl IntoIterator<Item = &'a Self>) -> ([u64; 15], f64) {
        let (mut counts, mut nanoseconds) = ([0; Self::BOUNDS.len() + 1], 0_u64);
        for one in all {
            let mut below = 0;
            for (count, bucket) in counts.iter_mut().zip(&one.buckets) {
                below += bucket.value();
                *count += below;
            }
            nanoseconds = nanoseconds.wrapping_add(one.nanoseconds.value());
        }
        (counts, nanoseconds as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_up_to_their_bound() {
        let (one, other) = (Histogram::default(), Histogram::default());
        one.observe(Duration::from_micros(50));
        one.observe(Duration::from_micros(51));
        other.observe(Duration::from_secs(3));
        let (counts, sum) = Histogram::read_all([&one, &other]);
        assert_eq!((counts[0], counts[1], counts[13], counts[14]), (1, 2, 2, 3));
        assert!((sum - 3.000_101).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_peak_is_remembered_for_a_while() {
        let peak = RecentPeak::default();
        peak.note_value(7);
        peak.note_value(3);
        assert_eq!(peak.value(), 7);
        peak.begin_stretch();
        peak.note_value(5);
        assert_eq!(peak.value(), 7);
        peak.begin_stretch();
        assert_eq!(peak.value(), 5);
    }
}
