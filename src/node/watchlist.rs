//! Online users over all nodes. A user with a signed-in connection is a member of a topic of its own, to which nodes
//! subscribe if they have that user or a watcher. So whatever removes members of a dead node, or restores them after
//! Redis lost its data, applies to users too.

use std::time::Instant;

use super::clustered::Clustered;
use super::pending_watchlist::PendingWatchlist;
use super::{Node, ServerState};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::topics::{TopicEntry, TopicInterest};
use crate::hub::connection::Connection;
use crate::hub::handles::ConnectionRef;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;
use crate::protocol::member::{Member, User, UserId};
use crate::protocol::socket_id::SocketId;

/// Its name begins with a mark that no client's channel can have.
fn topic_of(app: &AppId, user: &UserId) -> Topic {
    Topic { app: app.clone(), channel: ChannelName::online_topic(user.as_str()) }
}

impl Node {
    /// Signs a user in on one more connection, in a cluster. The connection gets its watchlist once the state of
    /// every watched user is known.
    pub(super) fn go_online(&self, cluster: &Clustered, connection: &Connection, user: &User) {
        let app = &connection.app().id;
        connection.life.online.set(true);
        let member = Member { user_id: user.id.clone(), user_info: "{}".into() };
        cluster.topics.watch_topic(&topic_of(app, &user.id), Some(&member), |_| ());
        let watched = &user.watchlist.ids;
        let users = watched.iter().map(|user| (user.clone(), None)).collect();
        let unknown = PendingWatchlist { users, cut: user.watchlist.cut };
        cluster.unknown.insert(connection.id, unknown);
        for watched in watched {
            cluster.topics.watch_topic(&topic_of(app, watched), None, |entry| {
                let known = entry.is_anybody_there();
                connection.directory.users.watch_known(watched, connection.connection_ref(), known);
                if let Some(mut unknown) = cluster.unknown.get_mut(&connection.id) {
                    unknown.learn_user(watched, known);
                }
            });
        }
        cluster
            .all_known(connection.id)
            .into_iter()
            .for_each(|message| connection.enqueue_message(message));
    }

    /// Ends what [`Self::go_online`] began, if it did.
    pub(super) fn go_offline(&self, cluster: &Clustered, connection: &Connection, user: &User) {
        // The app may not have had watchlists when it signed in.
        if !connection.life.online.replace(false) {
            return;
        }
        let app = &connection.app().id;
        for watched in &user.watchlist.ids {
            connection.directory.users.unwatch_user(watched, connection.id);
            cluster.topics.leave_topic(&topic_of(app, watched), None, TopicInterest::default());
        }
        cluster.unknown.remove(&connection.id);
        cluster.topics.leave_topic(
            &topic_of(app, &user.id),
            Some(&user.id),
            TopicInterest::default(),
        );
    }
}

impl Clustered {
    /// Notes a user's state for a connection with an incomplete watchlist; returns the list's frames if it is
    /// complete now, and `None` for any other connection.
    pub(super) fn learn_watched(
        &self,
        socket: SocketId,
        user: &UserId,
        is_online: bool,
    ) -> Option<Vec<Message>> {
        self.unknown.get_mut(&socket)?.learn_user(user, Some(is_online));
        Some(self.all_known(socket))
    }

    /// The frames of a complete watchlist; only once.
    fn all_known(&self, socket: SocketId) -> Vec<Message> {
        let is_whole =
            |unknown: &PendingWatchlist| unknown.users.iter().all(|(_, online)| online.is_some());
        let unknown = self.unknown.remove_if(&socket, |_, unknown| is_whole(unknown));
        // An incomplete watchlist stays, and sends nothing yet.
        unknown.map(|(_, unknown)| unknown.take_messages()).unwrap_or_default()
    }
}

impl ServerState {
    /// Tells watchers here whether a user is online, if the topic is a user's and that is news.
    pub(super) fn notify_watchers(&self, topic: &Topic, entry: &TopicEntry) {
        let user = topic.channel.online_user().and_then(UserId::parse);
        let Some(user) = user else { return };
        let Some(is_online) = entry.is_anybody_there() else { return };
        let users = std::slice::from_ref(&user);
        let (online, offline) = if is_online { (users, &[][..]) } else { (&[][..], users) };
        let message = Message::watchlist_events(online, offline);
        let now = self.hub.centis_since_start(Instant::now()) / 100;
        self.hub.directory(&topic.app).users.set_online(user.as_str(), is_online, now, |place| {
            self.notify_watcher((&user, is_online), &message, place);
        });
    }

    /// Tells one watcher, or adds the state to its incomplete list.
    pub(super) fn notify_watcher(
        &self,
        (user, is_online): (&UserId, bool),
        message: &Message,
        place: ConnectionRef,
    ) {
        match self.scope.learn_watched(place.socket, user, is_online) {
            None => self.hub.send_to(place, message.bytes().clone()),
            Some(whole) => {
                whole.into_iter().for_each(|one| self.hub.send_to(place, one.into_bytes()));
            }
        }
    }
}
