//! Whether connections live: silent ones are pinged, those without an answer are closed, and those that do not end
//! after a close frame are ended. A worker's clock calls this for a part of its connections at a time.

use super::LINGER_SECONDS;
use crate::hub::connection::Connection;
use crate::protocol::error::close;
use crate::protocol::event::Message;

/// Seconds of silence beyond the announced `activity_timeout` before the server pings. With the usual 30
/// (pusher-js's `activityTimeout`, as most servers announce it) the sum is less than the minute that proxies wait.
const SILENCE_SECONDS: u32 = 25;

/// How long we wait for a sign of life then; seconds.
/// pusher-js waits as long for its own pings.
const PONG_SECONDS: u32 = 30;

/// Checks one connection, at second `now` of its worker's clock: pings it if it is silent, closes it without an
/// answer, and ends it if it lingers. Returns whether it was pinged. Called every second or two for each
/// connection, which is exact enough.
pub fn check_liveness(connection: &Connection, now: u32) -> bool {
    connection.forget_leaves(now);
    if connection.is_closing() {
        end_lingering(connection, now);
        return false;
    }
    watch(connection, now)
}

/// Ends a connection that was closed and has had its time, which begins when this first sees it.
pub(super) fn end_lingering(connection: &Connection, now: u32) {
    let life = &connection.life;
    if !life.ends.replace(true) {
        // The field is free by now: it was the second in which the connection began.
        life.since.set(now);
    } else if now.saturating_sub(life.since.get()) >= LINGER_SECONDS {
        connection.abort();
    }
}

/// Whether a connection has had its time to sign in or to join a channel with a signature, and did neither.
pub(super) fn is_unauthorized(connection: &Connection, now: u32) -> bool {
    let life = &connection.life;
    // A setting below a second is one, for 0 means none.
    let deadline =
        connection.app().features.authorization_timeout.as_millis().div_ceil(1000) as u32;
    deadline > 0 && !life.authorized.get() && now.saturating_sub(life.since.get()) >= deadline
}

/// Pings a silent connection, and closes one without an answer. Returns whether it was pinged. A silent connection
/// may be dead without either side knowing: a phone that lost its network sends no end.
pub(super) fn watch(connection: &Connection, now: u32) -> bool {
    let life = &connection.life;
    let passed = |since: u32, seconds: u32| now.saturating_sub(since) >= seconds;
    if is_unauthorized(connection, now) {
        connection.close_with(&close::UNAUTHORIZED);
        return false;
    }
    let app = connection.app();
    if life.asked.get() > 0 {
        if passed(life.asked.get(), PONG_SECONDS) {
            connection.close_with(&close::NO_PONG);
        }
    } else if passed(life.heard.get(), app.activity_timeout.saturating_add(SILENCE_SECONDS)) {
        // A WebSocket ping for those whose library answers it, an event for those that know only events.
        connection.enqueue_message(Message::ws_ping());
        connection.enqueue_message(Message::ping());
        connection.flush();
        life.asked.set(now);
        return true;
    }
    false
}
