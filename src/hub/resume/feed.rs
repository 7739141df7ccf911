//! Sends a client what it has missed as fast as its socket takes it, not counted by the outbox's limit, and before any
//! newer event.

use bytes::Bytes;
use smallvec::SmallVec;

use super::resumption::Resumption;
use crate::hub::connection::Connection;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// Bytes of what a client has missed that wait in the outbox at a time, about.
const FED_BYTES: usize = 64 << 10;

impl Connection {
    /// Its part in a client that may come back, if it has one.
    pub fn resumption(&self) -> Option<&Resumption> {
        self.resumption.get().map(|resumption| &**resumption)
    }

    /// Makes it a connection of such a client, once.
    pub fn set_resumption(&self, resumption: Resumption) {
        // A connection is made a client's once, so the cell is empty.
        let _ = self.resumption.set(Box::new(resumption));
    }

    /// Whether what `except` is not to get is not for this connection: it is that one, or its page's next. A page
    /// names the connection that it had while it makes a request, and may have another before the backend publishes.
    pub(in crate::hub) fn is_excluded(&self, except: Option<SocketId>) -> bool {
        except.is_some_and(|socket| {
            socket == self.id || self.resumption().is_some_and(|resumption| resumption.had(socket))
        })
    }

    /// The users that it is signed in or present as.
    pub fn users(&self) -> SmallVec<[UserId; 1]> {
        let signed_in = self.with_user(|user| user.map(|user| user.id.clone()));
        let subscriptions = self.subscriptions.borrow();
        let mut all: SmallVec<[UserId; 1]> = signed_in.into_iter().collect();
        for user in subscriptions.iter().filter_map(|one| one.user()) {
            if !all.contains(user) {
                all.push(user.clone());
            }
        }
        all
    }

    /// Queues an event that is in a log: behind what the client has missed and not been given yet.
    pub(in crate::hub) fn push_logged(&self, frame: Bytes) {
        let max = self.app().limits.outbox_bytes;
        match self.resumption().and_then(|resumption| resumption.queue_behind(&frame, max)) {
            None => self.enqueue(frame),
            Some(true) => {}
            Some(false) => self.close_slow(),
        }
    }

    /// Queues what its client has missed. It is fed as the socket takes it, and the cap does not count it.
    pub fn push_missed(&self, frames: Vec<Bytes>) {
        if let Some(resumption) = self.resumption() {
            resumption.queue_missed(frames);
            // What is in the outbox already goes first.
            self.flush();
        }
    }

    /// Puts some of what its client has missed into the empty outbox, if any waits.
    pub(in crate::hub) fn feed_backlog(&self) -> bool {
        let Some(resumption) = self.resumption() else { return false };
        if self.is_closing() {
            resumption.clear_queued();
        }
        let mut outbox = self.outbox.borrow_mut();
        if !outbox.is_empty() {
            return false;
        }
        while outbox.len() < FED_BYTES
            && let Some(frame) = resumption.take_queued()
        {
            outbox.push(frame);
        }
        !outbox.is_empty()
    }
}
