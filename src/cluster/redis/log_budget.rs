//! The bytes of an app's logs in Redis: how many entries each may have, and how long it is known to last on. All nodes
//! together share [`APP_LOG_BYTES`] for an app: each tells Redis, now and then, which logs it publishes to, and is answered
//! how many there are. Redis cuts logs itself, see `scripts/events.rs`.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::LinkError;
use super::batch::CommandBatch;
use super::session::{ExpectedReply, LinkWriter};
use crate::app::AppId;
use crate::cluster::reply;
use crate::cluster::scripts::events::{LOG_LASTS, LOG_SLACK, LOGS_WINDOW, count_logs};
use crate::cluster::seal::EnvelopeParts;

/// How much longer a log is kept than it must be, so that most events need not extend it.
const EXTENSION: Duration = Duration::from_secs(LOG_SLACK);

/// Seconds for which any log is kept at least.
const MIN_SECONDS: u32 = LOG_LASTS as u32;

/// Bytes of the logs of one app, and of one of them.
const APP_LOG_BYTES: usize = 64 << 20;
const LOG_BYTES: usize = 4 << 20;

/// Bytes that a node publishes to an app's logs before it takes part in sharing: most apps never do, and cost nothing.
const UNSHARED_BYTES: usize = 1 << 20;

/// How often Redis is asked how many logs of an app there are.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// How often it is told of each, for as long as it may be there.
const TELL_EVERY: Duration = Duration::from_secs(LOGS_WINDOW);

/// Logs that one script counts, and scripts in one round trip.
const MAX_TOGETHER: usize = 1000;
const AT_ONCE: usize = 10;

/// The logs that this node publishes to, by app.
#[derive(Debug, Default)]
pub(super) struct LogBudget {
    apps: HashMap<AppId, AppLogs>,
    /// When those that are past were looked for last.
    swept: Option<Instant>,
}

/// Those of one app.
#[derive(Debug, Default)]
struct AppLogs {
    logs: HashMap<String, LogExpiry>,
    /// Bytes that were added to them since there are any.
    bytes: usize,
    /// How many there are on all nodes, when Redis was last asked; 0: that is not known.
    everywhere: usize,
    asked: Option<Instant>,
}

/// Until when a log is known to last on, and for how many seconds it may be there after that.
#[derive(Debug)]
struct LogExpiry {
    until: Instant,
    seconds: u32,
    /// When Redis was told that it is one of the app's.
    told: Option<Instant>,
}

impl AppLogs {
    /// Whether there is something to ask or to tell.
    fn is_due(&self) -> bool {
        self.bytes > UNSHARED_BYTES && self.asked.is_none_or(|at| at.elapsed() > COUNT_EVERY)
    }

    /// The next logs that Redis is to be told of. Once these are all, it has been asked.
    fn next_told(&mut self) -> Vec<&str> {
        let is_due = |log: &LogExpiry| log.told.is_none_or(|at| at.elapsed() > TELL_EVERY);
        let due = self.logs.iter_mut().filter(|(_, log)| is_due(log)).take(MAX_TOGETHER);
        let told = due.map(|(name, log)| {
            log.told = Some(Instant::now());
            name.as_str()
        });
        let told: Vec<&str> = told.collect();
        if told.len() < MAX_TOGETHER {
            self.asked = Some(Instant::now());
        }
        told
    }
}

impl LogBudget {
    /// The seconds that a log must be kept with an entry that is added now and needed for `seconds`. Negative if it is
    /// known to be kept that long already, so that the script need not extend it.
    pub(super) fn needs_expire(&mut self, app: &AppId, log: &str, seconds: u32) -> i64 {
        let seconds = seconds.max(MIN_SECONDS);
        let lasts = i64::from(seconds) + LOG_SLACK as i64;
        if self.knows(app, log, seconds) { -lasts } else { lasts }
    }

    /// Whether the log is known to be kept for so many seconds; notes that it is from now on.
    fn knows(&mut self, app: &AppId, log: &str, seconds: u32) -> bool {
        let now = Instant::now();
        if self.swept.is_none_or(|swept| now - swept > EXTENSION) {
            // Kept here as long as the log may be in Redis, since its bytes count until then.
            let is_there =
                |log: &LogExpiry| log.until + Duration::from_secs(log.seconds.into()) > now;
            self.apps.values_mut().for_each(|app| app.logs.retain(|_, log| is_there(log)));
            self.apps.retain(|_, app| !app.logs.is_empty());
            self.swept = Some(now);
        }
        let logs = &mut self.apps.entry(app.clone()).or_default().logs;
        let known = logs.get(log);
        if known.is_some_and(|known| known.until > now && known.seconds >= seconds) {
            return true;
        }
        let told = known.and_then(|known| known.told);
        logs.insert(log.to_owned(), LogExpiry { until: now + EXTENSION, seconds, told });
        false
    }

    /// How many entries like this one each of the app's logs has room for; one in any case.
    pub(super) fn log_room(&mut self, app: &AppId, parts: &EnvelopeParts) -> usize {
        let (bytes, mut logs) = (parts.envelope_bytes(), 1);
        if let Some(app) = self.apps.get_mut(app) {
            app.bytes += bytes;
            logs = app.logs.len().max(app.everywhere).max(1);
        }
        ((APP_LOG_BYTES / logs).min(LOG_BYTES) / bytes).max(1)
    }
}

impl LinkWriter<'_> {
    /// Tells Redis of the logs of apps that publish much, and asks how many there are on all nodes.
    pub(super) async fn count_logs(&mut self) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        for (id, app) in &mut self.kept.log_budget.apps {
            while app.is_due() && batch.len() < AT_ONCE {
                let call = count_logs(self.keys.logs_of_app(id), &app.next_told());
                batch.add_command(call, ExpectedReply::LogsCounted { app: id.clone() });
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await
    }

    /// The latest answer counts: it knows of all that was told before.
    pub(super) fn note_logs(&mut self, app: &AppId, count: &redis::Value) -> Result<(), LinkError> {
        let count = reply::as_number(count).ok_or(LinkError::Unexpected)?;
        if let Some(app) = self.kept.log_budget.apps.get_mut(app) {
            app.everywhere = usize::try_from(count).unwrap_or(usize::MAX);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(bytes: usize) -> EnvelopeParts {
        EnvelopeParts { head: Vec::new(), mac: Vec::new(), rest: vec![0; bytes] }
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_app_may_have_is_shared_by_the_logs_of_all_nodes() {
        let (mut budget, app) = (LogBudget::default(), AppId::new("a"));
        let bytes = parts(100_000).envelope_bytes();
        budget.needs_expire(&app, "one", 0);
        assert_eq!(budget.log_room(&app, &parts(100_000)), LOG_BYTES / bytes);
        assert!(!budget.apps[&app].is_due(), "it has published little");
        for _ in 0..30 {
            budget.log_room(&app, &parts(100_000));
        }
        assert!(budget.apps[&app].is_due());
        assert_eq!(budget.apps.get_mut(&app).unwrap().next_told(), ["one"]);
        assert!(!budget.apps[&app].is_due());
        budget.apps.get_mut(&app).unwrap().everywhere = 64;
        assert_eq!(budget.log_room(&app, &parts(100_000)), (1 << 20) / bytes);
        budget.needs_expire(&app, "two", 0);
        tokio::time::advance(COUNT_EVERY + Duration::from_secs(1)).await;
        // What is there still is told again, though nobody has published to it.
        assert_eq!(budget.apps.get_mut(&app).unwrap().next_told(), ["two"]);
        tokio::time::advance(TELL_EVERY - COUNT_EVERY).await;
        assert_eq!(budget.apps.get_mut(&app).unwrap().next_told(), ["one"]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_very_many_logs_redis_is_told_in_parts() {
        let (mut budget, app) = (LogBudget::default(), AppId::new("a"));
        for log in 0..MAX_TOGETHER + 5 {
            budget.needs_expire(&app, &log.to_string(), 0);
            budget.log_room(&app, &parts(100_000));
        }
        let logs = budget.apps.get_mut(&app).unwrap();
        assert_eq!((logs.next_told().len(), logs.is_due()), (MAX_TOGETHER, true));
        assert_eq!((logs.next_told().len(), logs.is_due()), (5, false));
    }
}
