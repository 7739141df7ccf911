//! Closing a connection from the server's side: what the client receives, what is freed, and the reason for counts and
//! logs. The session cleans up elsewhere.

use super::{Connection, ConnectionPhase};
use crate::metrics::Reason;
use crate::protocol::error::{Error, close};
use crate::protocol::event::Message;

impl Connection {
    /// Sends an error and a close frame of the same code (wire rule: an error that ends the connection is always
    /// followed by a close frame), and reads nothing more.
    pub fn close_with(&self, error: &Error) {
        if self.is_closing() {
            return;
        }
        // Also of one that is frozen.
        self.phase.set(ConnectionPhase::Open);
        self.enqueue_message(Message::error(error, None));
        self.end_with(Message::close(error.code, &error.message), close_reason(error));
    }

    /// Ends the conversation with `close` as the last frame.
    pub fn end_with(&self, close: Message, reason: Reason) {
        if self.is_closing() {
            return;
        }
        self.phase.set(ConnectionPhase::Open);
        self.ending.set(Some(reason));
        self.enqueue(close.into_bytes());
        self.phase.set(self.phase.get().max(ConnectionPhase::Closing));
        self.flush();
        self.wake_task();
    }

    /// Closes one that is slow to read, for which more waits than may.
    pub(in crate::hub) fn close_slow(&self) {
        self.close_freeing(&close::TOO_SLOW);
    }

    /// Says why, ends the conversation, and frees what its client has not taken. Only the frame it may be in the
    /// middle of is finished, so that the close frame can be read should it ever catch up.
    pub fn close_freeing(&self, error: &Error) {
        if self.is_closing() {
            return;
        }
        let mut outbox = self.outbox.borrow_mut();
        outbox.keep_front();
        outbox.push(Message::error(error, None).into_bytes());
        outbox.push(Message::close(error.code, &error.message).into_bytes());
        drop(outbox);
        self.ending.set(Some(close_reason(error)));
        self.phase.set(ConnectionPhase::Closing);
        self.flush();
        self.wake_task();
    }

    /// Ends the connection without a word.
    pub fn abort(&self) {
        self.count_partial(0);
        self.phase.set(ConnectionPhase::Over);
        self.outbox.borrow_mut().clear();
        self.wake_task();
    }

    /// From now on only a close frame is sent.
    pub fn freeze(&self) {
        if let Some(resumption) = self.resumption() {
            resumption.clear_queued();
        }
        self.phase.set(self.phase.get().max(ConnectionPhase::Frozen));
    }

    /// Whether its client resumes at the next process.
    pub fn is_frozen(&self) -> bool {
        self.phase.get() == ConnectionPhase::Frozen
    }

    /// Whether a close frame is queued, sent, or no longer possible.
    pub fn is_closing(&self) -> bool {
        self.phase.get() >= ConnectionPhase::Closing
    }

    /// Whether nothing can be written any more.
    pub fn is_over(&self) -> bool {
        self.phase.get() == ConnectionPhase::Over
    }

    /// Why it ended.
    pub fn end_reason(&self) -> Reason {
        self.ending.get().unwrap_or(Reason::Lost)
    }
}

/// The word for why an established connection is closed.
fn close_reason(error: &Error) -> Reason {
    match error {
        error if *error == close::UNKNOWN_APP => Reason::AppRemoved,
        error if *error == close::DISABLED => Reason::AppDisabled,
        error if *error == close::TERMINATED => Reason::Terminated,
        error if *error == close::RECONNECT => Reason::Reconnect,
        error if *error == close::TAKEN_OVER => Reason::TakenOver,
        error if *error == close::UNAUTHORIZED => Reason::Unauthorized,
        error if *error == close::NO_PONG => Reason::Silent,
        error if *error == close::TOO_SLOW => Reason::Slow,
        error if *error == close::FLOODING => Reason::Flooding,
        error if *error == close::OVER_CAPACITY => Reason::Heavy,
        _ => Reason::Draining,
    }
}
