//! The Date header, formatted once a second.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time as a header has it, written once a second.
#[derive(Debug, Default)]
pub(super) struct DateText {
    /// Since 1970.
    second: u64,
    /// The date of the last second that was asked for.
    text: String,
}

impl DateText {
    /// The date of this second.
    pub(super) fn text(&mut self, now: SystemTime) -> &str {
        // A clock before 1970 is shown as 1970.
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.second != second || self.text.is_empty() {
            self.second = second;
            self.text = httpdate::fmt_http_date(now);
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_moves_on() {
        let (mut date, second) = (DateText::default(), std::time::Duration::from_secs(1));
        assert_eq!(date.text(UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date.text(UNIX_EPOCH + second), "Thu, 01 Jan 1970 00:00:01 GMT");
    }
}
