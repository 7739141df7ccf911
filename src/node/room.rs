//! Whether one more subscription fits the limits of the connection, of the presence channel, and of memory.

use super::Node;
use crate::app::{App, ChannelFull};
use crate::hub::connection::Connection;
use crate::hub::presence::member_bytes;
use crate::hub::subscriptions::counted_bytes;
use crate::metrics::Limited;
use crate::protocol::channel::ChannelName;
use crate::protocol::error::SubscriptionError;
use crate::protocol::event::MemberText;
use crate::protocol::member::Member;

impl Node {
    /// Checks the limits of the connection and of memory for one more channel.
    pub(super) fn check_budget(
        &self,
        connection: &Connection,
        name: &ChannelName,
        member: Option<&Member>,
    ) -> Result<(), SubscriptionError> {
        let app = connection.app();
        let max = app.limits.max_channels_per_connection;
        if connection.channel_count() >= max {
            return Err(SubscriptionError::TooManyChannels { max });
        }
        // The number of channels alone would let long names take much memory.
        let (bytes, max) = (counted_bytes(name), app.limits.subscription_bytes);
        if connection.subscription_bytes() + bytes > max {
            return Err(SubscriptionError::TooManyBytes { max });
        }
        let roster = member.map_or(0, |member| self.joining_bytes(connection, name, member));
        if !self.has_memory_for(bytes + roster) {
            return Err(SubscriptionError::NoMemory);
        }
        Ok(())
    }

    /// Bytes held for a new member: its own entry, and the roster until its client has read it.
    fn joining_bytes(&self, connection: &Connection, name: &ChannelName, member: &Member) -> usize {
        let (app, directory) = (&connection.app().id, &connection.directory);
        let others = self.shared.scope.roster_bytes(app, directory, name);
        member_bytes(&MemberText::new(member)) + others
    }

    /// Whether memory has room for `bytes` more. If not, the caller refuses, and that is counted.
    pub(super) fn has_memory_for(&self, bytes: usize) -> bool {
        let has = self.shared.capacity.has_memory_for(bytes, self.hub().held.total());
        if !has {
            self.counts().limited.count(Limited::Memory as usize);
        }
        has
    }

    /// Whether the connection must wait for the next second, in which it is resumed: it joins and leaves the channel too
    /// often, or too much waits for Redis.
    pub fn holds_up(&self, connection: &Connection, name: &str) -> bool {
        // First, since it costs a look at a number.
        if self.waits_for_link(connection) {
            return true;
        }
        let must_wait = connection.must_wait(name, self.worker.now_seconds());
        if must_wait {
            self.counts().limited.count(Limited::Presence as usize);
            self.worker.hold_up(connection);
        }
        must_wait
    }

    /// Whether so much of the connection's app waits for Redis that it asks for no more before the next second, in which
    /// it is resumed. Nothing is refused, since clients do not ask again.
    pub fn waits_for_link(&self, connection: &Connection) -> bool {
        let must_wait = self.shared.scope.is_link_crowded(&connection.app().id);
        if must_wait {
            self.counts().limited.count(Limited::Link as usize);
            self.worker.hold_up(connection);
        }
        must_wait
    }
}

/// Why a member is not let in.
pub(super) fn no_room(app: &App, full: ChannelFull) -> SubscriptionError {
    match full {
        ChannelFull::Members => {
            SubscriptionError::TooManyMembers { max: app.limits.max_presence_members }
        }
        ChannelFull::Bytes => SubscriptionError::RosterTooLarge { max: app.limits.presence_bytes },
    }
}
