//! Whether this node is alone or in a cluster. A difference between the two is either a function here, which does
//! nothing or answers at once on a single server, or a pair of operations in `alone.rs` and `clustered.rs`. Other
//! modules do not ask.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Node;
use super::clustered::Clustered;
use crate::app::{AppId, ChannelFull};
use crate::cluster::Topic;
use crate::cluster::link::{LinkRequest, OutgoingEvent};
use crate::cluster::topics::TopicEntry;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::metrics::MetricsPage;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;
use crate::protocol::member::{Member, User, UserId};
use crate::protocol::socket_id::SocketId;

/// Whether there may be other nodes. Fixed when the server starts.
#[derive(Debug)]
pub enum Scope {
    /// A single server: its directory is complete, and there is nobody to tell.
    Alone,
    /// One of several nodes, or one that may become one of several: a Redis is set.
    Clustered(Arc<Clustered>),
}

impl From<Option<Arc<Clustered>>> for Scope {
    /// As the settings have it.
    fn from(others: Option<Arc<Clustered>>) -> Self {
        others.map_or(Self::Alone, Self::Clustered)
    }
}

impl Scope {
    /// Whether this is a single server.
    pub fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }

    /// The other nodes, if there may be any.
    pub fn others(&self) -> Option<&Arc<Clustered>> {
        match self {
            Self::Alone => None,
            Self::Clustered(others) => Some(others),
        }
    }

    /// Makes a user that signed in count as online. In a cluster only an app that `watches` users tells others.
    pub(super) fn announce_online(
        &self,
        node: &Node,
        connection: &Connection,
        user: &User,
        watches: bool,
    ) {
        match self {
            Self::Clustered(others) if watches => node.go_online(others, connection, user),
            Self::Clustered(_) => {}
            Self::Alone => node.go_online_alone(connection, user, watches),
        }
    }

    /// The same for a connection of the user that has ended.
    pub(super) fn announce_offline(&self, node: &Node, connection: &Connection, user: &User) {
        match self {
            Self::Clustered(others) => node.go_offline(others, connection, user),
            Self::Alone => node.go_offline_alone(connection, user),
        }
    }

    /// Connections of the app on other nodes, as of at most a second ago.
    pub(super) fn connections_elsewhere(&self, app: &AppId) -> usize {
        self.others().map_or(0, |others| others.connections_elsewhere(app))
    }

    /// Users present in a channel over all nodes; `None` where the directory here knows.
    pub(super) fn user_count(&self, app: &AppId, name: &str) -> Option<usize> {
        Some(self.others()?.user_count(app, name))
    }

    /// Subscribers of a channel on all nodes, by the last announcement; `None` if the local directory is complete.
    pub(super) fn subscriber_count(&self, app: &AppId, name: &ChannelName) -> Option<usize> {
        let topic = Topic { app: app.clone(), channel: name.clone() };
        let total = self.others()?.topics.read_topic(&topic, |entry| entry.total.count);
        // A topic that was left in the meantime has no total any more.
        Some(total.unwrap_or_default())
    }

    /// Bytes of a channel's roster as a new member receives it, as far as this node knows.
    pub(super) fn roster_bytes(
        &self,
        app: &AppId,
        directory: &Directory,
        name: &ChannelName,
    ) -> usize {
        let Some(others) = self.others() else { return directory.roster_bytes(name.as_str()) };
        others.roster_bytes(app, name)
    }

    /// Checks whether a connection that is present as `leaving` may be present as `member` instead. As far as this
    /// node knows: Redis may still refuse it if other nodes admit members meanwhile.
    /// # Errors
    /// The limit that would be exceeded.
    pub(super) fn check_change(
        &self,
        connection: &Connection,
        name: &ChannelName,
        member: &Member,
        leaving: &UserId,
    ) -> Result<(), ChannelFull> {
        let app = connection.app();
        let bounds = app.limits.presence_bounds();
        let Some(others) = self.others() else {
            return connection.directory.check_room(name.as_str(), member, leaving, bounds);
        };
        let topic = Topic { app: app.id.clone(), channel: name.clone() };
        let check = |entry: &TopicEntry| entry.roster.check_change(member, leaving, bounds);
        others.topics.read_topic(&topic, check).unwrap_or(Ok(()))
    }

    /// The users present in a channel, in the order they came, as far as this node knows.
    pub(super) fn present_users(
        &self,
        app: &AppId,
        directory: &Directory,
        name: &ChannelName,
    ) -> Vec<UserId> {
        let Some(others) = self.others() else { return directory.present_users(name.as_str()) };
        let topic = Topic { app: app.clone(), channel: name.clone() };
        // A topic that this node has not joined has nobody present.
        others.topics.read_topic(&topic, |entry| entry.roster.users()).unwrap_or_default()
    }

    /// The token of the last event's data on a cache channel and when it expires, as far as this node knows.
    pub(super) fn last_event(
        &self,
        app: &AppId,
        directory: &Directory,
        name: &ChannelName,
    ) -> Option<(String, Instant)> {
        let Some(others) = self.others() else {
            let cached = directory.cache.last_event(name)?;
            return Some((cached.data.to_string(), cached.expires));
        };
        let topic = Topic { app: app.clone(), channel: name.clone() };
        others.topics.read_topic(&topic, |entry| {
            let cached = entry.cached()?;
            Some((String::from_utf8_lossy(&cached.data).into_owned(), cached.expires))
        })?
    }

    /// Publishes to all other nodes; `promised` if a client or backend got a success for it.
    pub(super) fn publish_to_others(&self, promised: bool, event: impl FnOnce() -> OutgoingEvent) {
        if let Some(others) = self.others() {
            others.link().queue_publish(event(), promised);
        }
    }

    /// Asks all other nodes to do something, under the number that `event` is given: with it, what resolves to an
    /// error once all have answered.
    pub(super) fn ask_others(
        &self,
        event: impl FnOnce(u64) -> OutgoingEvent,
    ) -> Option<(Arc<Clustered>, u64, oneshot::Receiver<()>)> {
        let others = self.others()?;
        let (request, answered) = others.requests.open_request();
        others.link().queue_publish(event(request), true);
        Some((others.clone(), request, answered))
    }

    /// Whether only this process knows the state of resumable clients.
    pub fn keeps_clients(&self) -> bool {
        self.others().is_none()
    }

    /// Notes whose the connection is, for what is taken back from its users once its client is at another node.
    pub(super) fn note_users(&self, connection: &Connection) {
        if let (Some(resumption), Some(_)) = (connection.resumption(), self.others()) {
            let resume = &connection.directory.resume;
            resume.note_users(&resumption.token, connection.id, connection.users());
        }
    }

    /// Notes whether a watched user is online. Returns the connection's watchlist if it is complete now; `None` if
    /// it was complete before, so that only this user is announced.
    pub(super) fn learn_watched(
        &self,
        socket: SocketId,
        user: &UserId,
        is_online: bool,
    ) -> Option<Vec<Message>> {
        self.others()?.learn_watched(socket, user, is_online)
    }

    /// Whether Redis answers; `None` if it is not used.
    pub fn is_link_up(&self) -> Option<bool> {
        self.others().map(|others| others.link().is_up())
    }

    /// The parts of a Redis Cluster that are away while the rest answers.
    pub fn away_parts(&self) -> Arc<Vec<String>> {
        // A single server has no parts that could be away.
        self.others().map(|others| others.link().away_parts()).unwrap_or_default()
    }

    /// Whether Redis has lost its data, so that this node may lack other nodes' state.
    pub(super) fn is_restoring(&self) -> bool {
        self.others().is_some_and(|others| others.link().is_restoring())
    }

    /// Whether the queue to other nodes has room for so many events with so many bytes of data.
    pub fn has_publish_room(&self, events: usize, bytes: usize) -> bool {
        self.others().is_none_or(|others| others.link().has_room_for(events, bytes))
    }

    /// Resolves when a publish request may continue; `None` if it need not wait (backpressure).
    pub fn wait_for_publish_room(&self) -> Option<oneshot::Receiver<()>> {
        self.others()?.link().wait_for_room()
    }

    /// Whether so much of the app waits for Redis that its clients have to wait before they ask for more.
    pub(super) fn is_link_crowded(&self, app: &AppId) -> bool {
        self.others().is_some_and(|others| others.link().is_crowded(app))
    }

    /// From now on leaves are not sent to other nodes: the server stops, and closed clients reconnect at once.
    pub fn keep_everybody(&self) {
        if let Some(others) = self.others() {
            others.link().keep_everybody();
        }
    }

    /// Ends the link once it has sent what it was given before.
    pub fn stop_link(&self) {
        if let Some(others) = self.others() {
            others.link().send_request(LinkRequest::Stop);
        }
    }

    /// Adds what is counted about the link. A server of its own has none of these families, so that a query
    /// for them finds clusters alone.
    pub fn add_metrics(&self, page: &mut MetricsPage) {
        if let Some(others) = self.others() {
            others.link().add_metrics(page);
        }
    }
}
