//! Channels withdrawn from a connection by a backend, and how its session learns of it. Most connections have none.

use super::connection::Connection;
use super::withdrawal::{Restrictions, Withdrawal};
use crate::protocol::channel::ChannelName;
use crate::protocol::error::close;
use crate::protocol::member::UserId;

impl Connection {
    /// Closes channels to it for the rest of its life. Its session leaves those that it is in, and says so.
    pub(super) fn withdraw_rights(&self, withdrawal: Withdrawal) {
        if self.is_closing() {
            return;
        }
        if self.with_restrictions(|all| all.close_channels(withdrawal)) {
            self.close_with(&close::RECONNECT);
        }
        self.wake_task();
    }

    /// Withdrawals that its session is to carry out. Each is complete when it is dropped.
    pub fn take_withdrawals(&self) -> Vec<Withdrawal> {
        self.with_restrictions(Restrictions::take_due)
    }

    /// Whether a backend has withdrawn the channel.
    pub fn is_closed_to(&self, name: &ChannelName) -> bool {
        self.with_restrictions(|all| all.is_closed(name))
    }

    /// Notes the user as whom it waits to join; `None` once that is decided.
    pub fn set_joining(&self, user: Option<UserId>) {
        self.with_restrictions(|all| all.set_joining(user));
    }
}
