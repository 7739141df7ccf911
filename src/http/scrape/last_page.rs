//! How often the metrics page is built: frequent requests get the last one. The page's content is not known here.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Pages that may be made one after the other, whatever they take.
const PAGES_AT_ONCE: f64 = 100.0;

/// The share of a worker's time that pages may take from then on; beyond that the last one is answered again. A page
/// takes about as long as hundreds of events do, and longer the more apps there are.
const PAGE_SHARE: f64 = 0.1;

/// The page that was made last, and how many more may be.
#[derive(Debug, Default)]
pub struct LastPage(Mutex<Option<MadePage>>);

/// A page that was made.
#[derive(Debug)]
struct MadePage {
    page: Bytes,
    /// How many might have been made after it, at `since`.
    pages_left: f64,
    /// When it was made.
    since: Instant,
    /// How long it took to make.
    took: Duration,
}

impl LastPage {
    /// Returns a new page, or the last one if it is recent by `clock`.
    pub(super) fn take(&self, clock: impl Fn() -> Instant, make: impl FnOnce() -> Bytes) -> Bytes {
        let now = clock();
        // Held while a page is made, so that no two workers make one at the same time.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = last.as_ref().map_or(PAGES_AT_ONCE, |last| {
            let passed = now.saturating_duration_since(last.since).as_secs_f64();
            let made = passed * PAGE_SHARE / last.took.as_secs_f64().max(1e-6);
            (last.pages_left + made).min(PAGES_AT_ONCE)
        });
        match &*last {
            Some(last) if left < 1.0 => last.page.clone(),
            _ => {
                let page = make();
                let took = clock().saturating_duration_since(now);
                *last =
                    Some(MadePage { page: page.clone(), pages_left: left - 1.0, since: now, took });
                page
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Ten connections that asked again and again had other apps hear nothing for seconds.
    #[test]
    fn pages_take_a_tenth_of_the_time_however_often_they_are_asked_for() {
        let (last, now) = (LastPage::default(), Cell::new(Instant::now()));
        let pass = |ms: u64| now.set(now.get() + Duration::from_millis(ms));
        // How many are made in so many milliseconds, each of which takes one, if they are asked for in each.
        let made = |ms: u64| {
            let (made, end) = (Cell::new(0), now.get() + Duration::from_millis(ms));
            while now.get() < end {
                let make = || {
                    pass(1);
                    made.set(made.get() + 1);
                    Bytes::new()
                };
                let before = now.get();
                last.take(|| now.get(), make);
                if now.get() == before {
                    pass(1);
                }
            }
            made.get()
        };
        assert_eq!(made(100), 100);
        // A tenth of a second, and what came back during the first hundred.
        assert!((105..=115).contains(&made(1000)));
        assert!((99..=101).contains(&made(1000)));
        pass(60_000);
        assert_eq!(made(100), 100);
    }
}
