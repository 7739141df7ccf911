//! Until when the logs of channels are known not to expire in Redis, and how much of them there is room for. Most events
//! then need no `EXPIRE`. `publish.rs` asks before each event that is logged for replay.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::app::AppId;
use crate::cluster::scripts::events::{LOG_LASTS, LOG_SLACK};
use crate::cluster::seal::EnvelopeParts;

/// How much longer a log is kept than it must be, so that most events need not extend it.
const LONGER: Duration = Duration::from_secs(LOG_SLACK);

/// Seconds for which any log is kept at least.
const LOGGED: u32 = LOG_LASTS as u32;

/// Bytes of all logs of one app that this node publishes to.
const APP_LOG_BYTES: usize = 64 << 20;

/// Bytes of one log.
const LOG_BYTES: usize = 4 << 20;

/// The logs that this node has published to, by app.
#[derive(Debug, Default)]
pub(super) struct LogExpiry {
    /// Until when a log is known not to expire, and for how many seconds it may be there after that.
    until: HashMap<AppId, HashMap<String, (Instant, u32)>>,
    /// When expired logs were last removed from here.
    swept: Option<Instant>,
}

impl LogExpiry {
    /// The seconds that a log must be kept with an entry that is added now and needed for `seconds`. Negative if it is
    /// known to be kept that long already, so that the script need not extend it.
    pub(super) fn needs_expire(&mut self, app: &AppId, log: &str, seconds: u32) -> i64 {
        let seconds = seconds.max(LOGGED);
        let lasts = i64::from(seconds) + LOG_SLACK as i64;
        if self.knows(app, log, seconds) { -lasts } else { lasts }
    }

    /// Whether the log is known to be kept for so many seconds; notes that it is from now on.
    fn knows(&mut self, app: &AppId, log: &str, seconds: u32) -> bool {
        let now = Instant::now();
        if self.swept.is_none_or(|swept| now - swept > LONGER) {
            // Kept here as long as the log may be in Redis, since its bytes count until then.
            let is_there = |(until, seconds): &(Instant, u32)| {
                *until + Duration::from_secs((*seconds).into()) > now
            };
            self.until.values_mut().for_each(|logs| logs.retain(|_, lasts| is_there(lasts)));
            self.until.retain(|_, logs| !logs.is_empty());
            self.swept = Some(now);
        }
        let logs = self.until.entry(app.clone()).or_default();
        if logs.get(log).is_some_and(|(until, known)| *until > now && *known >= seconds) {
            return true;
        }
        logs.insert(log.to_owned(), (now + LONGER, seconds));
        false
    }

    /// The bytes that each log of an app may have: an equal share of [`APP_LOG_BYTES`], at most [`LOG_BYTES`].
    fn log_bytes(&self, app: &AppId) -> usize {
        let logs = self.until.get(app).map_or(1, |logs| logs.len().max(1));
        (APP_LOG_BYTES / logs).min(LOG_BYTES)
    }

    /// How many entries like this one a log has room for; one in any case.
    pub(super) fn log_room(&self, app: &AppId, parts: &EnvelopeParts) -> usize {
        (self.log_bytes(app) / parts.envelope_bytes()).max(1)
    }
}
