//! What a reconnected client may have missed, and how long the server keeps events for it. The logs themselves are in
//! `hub/resume/log.rs`.

use std::time::Duration;

use crate::app::App;
use crate::hub::resume::LogBounds;

/// Seconds beyond `activity_timeout` in which a connection that is cut off is found out, rounded up.
const LIVENESS_SECONDS: u32 = 60;

/// How much older than this server a token may seem before it is taken for one of its predecessor: a token's time has
/// no parts of a second. No more than that, for a page that is told of a gap it does not have fetches once more than it
/// must, and one that is not told of the gap it has shows what is not so.
pub(super) const START_SLACK: Duration = Duration::from_secs(1);

/// What is told to a client that subscribes, in the place of a cached event.
#[derive(Debug)]
pub(super) enum CatchUp {
    /// Nothing was missed.
    Up,
    /// Nobody knows what was missed.
    Gap,
    /// What was missed is known, or all of it that is left.
    Missed(Vec<bytes::Bytes>, bool),
}

/// What the logs of an app may keep.
/// An event must outlive the longest absence: the time in which a client may come back, and the time until the
/// server notices that its connection is dead.
pub(super) fn log_bounds(app: &App) -> LogBounds {
    let window = app.features.resume.as_secs().saturating_add(1);
    let window = u32::try_from(window).unwrap_or(u32::MAX);
    let found_out = app.activity_timeout.saturating_add(LIVENESS_SECONDS);
    LogBounds { bytes: app.limits.resume_bytes, seconds: window.saturating_add(found_out) }
}

/// Seconds that an event must be kept for clients that come back; 0 where none may.
/// Redis is told this with each event, since it does not know the app's settings.
pub(super) fn log_seconds(app: &App) -> u32 {
    if app.features.resume.is_zero() { 0 } else { log_bounds(app).seconds }
}
