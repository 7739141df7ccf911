//! Commands of a connection that are handled later: one that waits, and all that came behind it. `session.rs` says
//! what waits, and for what.

use std::collections::VecDeque;

use super::Session;
use crate::node::PendingSubscription;
use crate::protocol::command::{SignIn, Subscribe};

/// Bytes that a client may send ahead of a command that waits before no more is read from it.
pub(super) const MAX_AHEAD_BYTES: usize = 64 << 10;

/// Bytes that a text takes beside its own, about: even an empty one is kept.
pub(super) const PLACE_BYTES: usize = 16;

/// Boxed in the session: hardly any connection has one.
#[derive(Debug)]
pub(super) struct HeldCommands {
    /// The command that waits.
    pub(super) first: HeldCommand,
    /// Messages that the client has sent since, in order; handled once it may go on.
    pub(super) texts: VecDeque<Box<str>>,
    /// Of those, for the bound on how far ahead a client may be.
    pub(super) bytes: usize,
}

/// A command that must wait, and for what.
#[derive(Debug)]
pub(super) enum HeldCommand {
    // With its budget spent, the subscription itself is not yet made, nor checked.
    Nodes(PendingSubscription, Box<str>),
    /// For the next second: the connection has left that channel and joined it again too often in this one, or too much
    /// of its app waits for Redis.
    Clock(Subscribe),
    /// For the next second, in which less of its app may wait for Redis.
    SignIn(SignIn),
}

impl Session {
    /// Handles what the client has said meanwhile. Where the first or one of these must wait again, the rest waits behind it, untouched:
    /// read again for each, a page's many channels would cost the square of their number.
    pub(super) fn on_held_texts(&mut self, mut texts: VecDeque<Box<str>>, mut bytes: usize) {
        loop {
            if let Some(waiting) = self.waiting() {
                (waiting.texts, waiting.bytes) = (texts, bytes);
                return;
            }
            let Some(text) = texts.pop_front() else { return };
            // Closed by one of them: the rest is not said any more.
            if self.connection.is_closing() {
                return;
            }
            bytes -= text.len() + PLACE_BYTES;
            self.on_text(&text);
        }
    }
}
