//! Whether there is room for one subscription more: of what a connection and a presence channel may have, and
//! in memory.

use super::Node;
use crate::app::App;
use crate::hub::connection::Connection;
use crate::hub::presence::{ChannelFull, PresenceBounds};
use crate::hub::subscriptions::counted_bytes;
use crate::metrics::Limited;
use crate::protocol::channel::ChannelName;
use crate::protocol::error::SubscriptionError;

impl Node {
    /// Whether there is room for one more channel: of what the connection may have, and in memory.
    pub(super) fn check_budget(
        &self,
        connection: &Connection,
        name: &ChannelName,
    ) -> Result<(), SubscriptionError> {
        let app = connection.app();
        let max = app.limits.max_channels_per_connection;
        if connection.channel_count() >= max {
            return Err(SubscriptionError::TooManyChannels { max });
        }
        let (bytes, max) = (counted_bytes(name), app.limits.subscription_bytes);
        if connection.subscription_bytes() + bytes > max {
            return Err(SubscriptionError::TooManyBytes { max });
        }
        if !self.shared.capacity.has_memory_for(bytes, self.hub().counted_bytes()) {
            self.counts().limited.count(Limited::Memory as usize);
            return Err(SubscriptionError::NoMemory);
        }
        Ok(())
    }

    /// Whether the connection comes to that channel and goes from it so often that it has to wait for the next
    /// second, in which it is resumed.
    pub fn holds_up(&self, connection: &Connection, name: &str) -> bool {
        let must_wait = connection.life.rejoins.must_wait(name, self.worker.now_seconds());
        if must_wait {
            self.counts().limited.count(Limited::Presence as usize);
            self.worker.hold_up(connection);
        }
        must_wait
    }
}

/// What one presence channel of the app may have.
pub(super) fn presence_bounds(app: &App) -> PresenceBounds {
    PresenceBounds { members: app.limits.max_presence_members, bytes: app.limits.presence_bytes }
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
