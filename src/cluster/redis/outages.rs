//! When the log reports that the link is down: at once, then once a minute with the number of
//! failed attempts.

use std::time::{Duration, Instant};

/// How long there is no other line about an outage.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// State of the current outage in the log.
#[derive(Debug, Default)]
pub(super) struct OutageLog {
    /// A Redis that comes and goes would otherwise fill the log.
    last_told: Option<Instant>,
    /// Outages since then, which the next line counts.
    untold: u64,
}

impl OutageLog {
    /// Whether a line is due, and how many attempts had none since the last.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<u64> {
        if self.last_told.is_some_and(|told| now.duration_since(told) < LINE_INTERVAL) {
            self.untold += 1;
            return None;
        }
        self.last_told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    /// The link was up for a while: what comes now is another outage.
    pub(super) fn begin_anew(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_has_a_line_a_minute() {
        let (mut outages, begun) = (OutageLog::default(), Instant::now());
        let mut due = |seconds| outages.take_due(begun + Duration::from_secs(seconds));
        assert_eq!(
            (due(0), due(1), due(59), due(60), due(61)),
            (Some(0), None, None, Some(2), None)
        );
        outages.begin_anew();
        assert_eq!(outages.take_due(begun + Duration::from_secs(62)), Some(0));
    }
}
