//! The events that a reconnected client may have missed, and for how long the server keeps them. The logs are in
//! `hub/resume/log.rs`.

use std::time::Duration;

use crate::app::App;
use crate::hub::resume::LogBounds;

/// Seconds beyond `activity_timeout` in which a connection that is cut off is found out, rounded up.
const LIVENESS_SECONDS: u32 = 60;

/// How much older than this server a token may look before it is taken for a token of an earlier process: a token's
/// time has whole seconds only. The value is small: a page with an unnecessary gap fetches its state once more, but
/// one without a necessary gap shows outdated state.
pub(super) const START_SLACK: Duration = Duration::from_secs(1);

/// Whether a page of that age may have been here `complete_for` seconds ago or earlier, before which some were forgotten
/// that are expected back.
pub(super) fn may_be_forgotten(age: Duration, complete_for: Option<u32>) -> bool {
    let is_older =
        |ago: u32| age.saturating_add(START_SLACK) >= Duration::from_secs(u64::from(ago));
    complete_for.is_some_and(is_older)
}

/// The frames for a client that subscribes, in place of a cached event.
#[derive(Debug)]
pub(super) enum CatchUp {
    /// Nothing was missed.
    Up,
    /// Nobody knows what was missed.
    Gap,
    /// The missed events, or those that are left of them.
    Missed(Vec<bytes::Bytes>, bool),
}

/// Limits of an app's logs. An event must be kept for the longest absence: the time in which a client may resume,
/// and the time until the server notices that its connection is dead.
pub(super) fn log_bounds(app: &App) -> LogBounds {
    let window = app.features.resume.as_secs().saturating_add(1);
    let window = u32::try_from(window).unwrap_or(u32::MAX);
    let found_out = app.activity_timeout.saturating_add(LIVENESS_SECONDS);
    LogBounds { bytes: app.limits.resume_bytes, seconds: window.saturating_add(found_out) }
}

/// Seconds that an event must be kept for resuming clients; 0 if there are none. Sent to Redis with each event,
/// since Redis does not know the app's settings.
pub(super) fn log_seconds(app: &App) -> u32 {
    if app.features.resume.is_zero() { 0 } else { log_bounds(app).seconds }
}
