//! Operations of a node in a cluster. A subscription waits until this node is subscribed to the topic and, on a
//! presence channel, until the roster has its user; then it is made in one synchronous step, as on a single server.
//! Events go to local subscribers at once and to other nodes through the link.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashMap;

use super::catch_up::{CatchUp, log_seconds};
use super::pending_watchlist::PendingWatchlist;
use super::requests::Requests;
use super::room::no_room;
use super::travellers::Travellers;
use super::webhooks::topic_interest;
use super::{Node, Publication};
use crate::app::{App, AppId};
use crate::cluster::link::{Link, Manner, OutgoingEvent};
use crate::cluster::topics::{MemberClaim, TopicEntry, Topics};
use crate::cluster::traces::{AnnouncedTraces, mark_of};
use crate::cluster::{SubscribeTicket, Topic};
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::hub::handles::{ConnectionRef, Sequence};
use crate::hub::subscribing::EndedSubscription;
use crate::hub::subscriptions::SeenVersions;
use crate::protocol::channel::ChannelName;
use crate::protocol::error::SubscriptionError;
use crate::protocol::event::Message;
use crate::protocol::member::{Member, UserId};
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;
use crate::webhook::Fact;

/// State about the other nodes.
#[derive(Debug)]
pub struct Clustered {
    /// The topics of this node.
    pub topics: Arc<Topics>,
    /// Connections of each app on other nodes, by the last query.
    pub(super) elsewhere: DashMap<AppId, usize>,
    /// Connections whose watchlist is not complete yet.
    pub(super) unknown: DashMap<SocketId, PendingWatchlist>,
    /// Requests to all other nodes that await confirmations.
    pub(super) requests: Requests,
    /// Clients here that may come back to other nodes.
    pub(super) travellers: Travellers,
    /// Of events that are on their way here.
    pub(super) traces: AnnouncedTraces,
}

/// A subscription that waits for other nodes.
#[derive(Debug)]
pub struct PendingSubscription {
    /// The cluster state, for giving the reservation up.
    others: Arc<Clustered>,
    /// The channel, which is held for this connection meanwhile.
    topic: Topic,
    /// The member that joins, on a presence channel.
    member: Option<Member>,
}

impl PendingSubscription {
    /// The user that the roster must have before the subscription is confirmed.
    fn user(&self) -> Option<&UserId> {
        self.member.as_ref().map(|member| &member.user_id)
    }
}

impl Clustered {
    /// Of a server that has just begun: nothing is known of the others yet.
    pub fn new(topics: Arc<Topics>) -> Self {
        let (elsewhere, unknown, requests, travellers, traces) = Default::default();
        Self { topics, elsewhere, unknown, requests, travellers, traces }
    }

    /// The way to the others.
    pub fn link(&self) -> &Link {
        self.topics.link()
    }

    /// Connections of the app on other nodes, at most a second ago.
    pub(super) fn connections_elsewhere(&self, app: &AppId) -> usize {
        self.elsewhere.get(app).map_or(0, |count| *count)
    }

    /// Users present in a channel, where this node has a part in it.
    pub(super) fn user_count(&self, app: &AppId, name: &str) -> usize {
        let Ok(channel) = ChannelName::parse(name, usize::MAX) else { return 0 };
        let topic = Topic { app: app.clone(), channel };
        // A topic that this node has not joined has no members here.
        self.topics.read_topic(&topic, |entry| entry.roster.count()).unwrap_or_default()
    }

    /// Bytes of a channel's roster as a new member receives it, if this node has joined the topic.
    pub(super) fn roster_bytes(&self, app: &AppId, channel: &ChannelName) -> usize {
        let topic = Topic { app: app.clone(), channel: channel.clone() };
        // A topic that this node has not joined holds nothing.
        self.topics.read_topic(&topic, |entry| entry.roster.held_bytes()).unwrap_or_default()
    }

    /// The end of one subscription; the last one here ends this node's part in the topic.
    pub(super) fn leave_topic(&self, app: &App, ended: &EndedSubscription) {
        let topic = Topic { app: app.id.clone(), channel: ended.channel.clone() };
        self.topics.leave_topic(&topic, ended.user.as_ref(), topic_interest(app, &ended.channel));
    }

    /// Tells the others what a backend has published, or a client has said; whether that found room.
    pub(super) fn publish_event(
        &self,
        (app, channel): (&AppId, &ChannelName),
        except: Option<SocketId>,
        frame: Bytes,
        manner: Manner,
    ) -> bool {
        let topic = Topic { app: app.clone(), channel: channel.clone() };
        // The backend got a success response, so the event must not be dropped.
        let promised = manner != Manner::Whisper;
        self.link().queue_publish(OutgoingEvent::Event { topic, except, frame, manner }, promised)
    }

    /// Tells the others, before the event, under which trace it is followed. Where there is no room they do without.
    pub(super) fn announce_trace(
        &self,
        (app, channel): (&AppId, &ChannelName),
        frame: &[u8],
        trace: &Trace,
    ) {
        let topic = Topic { app: app.clone(), channel: channel.clone() };
        let (mark, trace) = (mark_of(app, frame), trace.clone());
        self.link().queue_publish(OutgoingEvent::Trace { topic, mark, trace }, false);
    }

    /// Subscribers here get it when it comes back: only Redis can say which of two events on two nodes was the last.
    pub(super) fn publish_cached(&self, app: &App, publication: Publication<'_>, frame: Bytes) {
        let Publication { channel, data, except, .. } = publication;
        let topic = Topic { app: app.id.clone(), channel: channel.clone() };
        let (data, ttl) = (Bytes::copy_from_slice(data.as_bytes()), app.features.cache_ttl);
        let (max, lasts) = (app.limits.cache_bytes, log_seconds(app));
        let publish =
            OutgoingEvent::Cached { topic: topic.clone(), except, frame, data, ttl, max, lasts };
        self.topics.publish_cached(&topic, publish);
    }
}

/// The frames for a new subscriber: the confirmation, and on a cache channel the last event.
fn subscription_answers(name: &ChannelName, entry: &TopicEntry) -> (Message, Option<Bytes>) {
    let kind = name.kind();
    let subscribed = if kind.is_presence() {
        entry.roster.subscribed_message(name)
    } else {
        Message::subscription_succeeded(name)
    };
    let cached = kind.cache.then(|| match entry.cached() {
        Some(cached) => cached.frame.clone(),
        None => Message::cache_miss(name).into_bytes(),
    });
    (subscribed, cached)
}

/// In this order: clients take the cached event for one that came after they were subscribed.
fn send_answers(connection: &Connection, (subscribed, cached): (Message, Option<Bytes>)) {
    connection.enqueue_message(subscribed);
    cached.into_iter().for_each(|frame| connection.enqueue(frame));
}

/// Answers a second subscription to the same channel.
pub(super) fn confirm_again(cluster: &Clustered, connection: &Connection, name: &ChannelName) {
    let topic = Topic { app: connection.app().id.clone(), channel: name.clone() };
    if let Some(answers) =
        cluster.topics.read_topic(&topic, |entry| subscription_answers(name, entry))
    {
        send_answers(connection, answers);
    }
}

impl Node {
    /// Publishes an event of the API here and through the link. The link comes first: if it takes the event,
    /// subscribers here may have to wait until it comes back.
    pub(super) fn publish_clustered(
        &self,
        cluster: &Clustered,
        (app, directory): (&App, &Directory),
        publication: Publication<'_>,
    ) {
        let Publication { channel, event, data, except, trace } = publication;
        let message = Message::event(channel, event, data);
        if let Some(trace) = trace {
            cluster.announce_trace((&app.id, channel), message.bytes(), trace);
        }
        if channel.kind().cache {
            cluster.publish_cached(app, publication, message.into_bytes());
        } else {
            let lasts = log_seconds(app);
            let manner = if lasts > 0 { Manner::Resumable { lasts } } else { Manner::AtOnce };
            let (event, frame) = ((publication, &message), message.bytes().clone());
            let is_taken = cluster.publish_event((&app.id, channel), except, frame, manner);
            // Where clients may come back, subscribers here get it in the order of the log.
            if lasts == 0 || !is_taken {
                self.publish_to_seats(app, directory, event, Sequence::None, 0);
            }
        }
    }

    /// Subscribes at once if the topic is open on this node. The reservation keeps the topic open and, on a
    /// presence channel, claims the member, whether or not the connection stays.
    pub(super) fn reserve_subscription(
        &self,
        cluster: &Arc<Clustered>,
        connection: &Rc<Connection>,
        channel: ChannelName,
        member: Option<Member>,
        leaving: Option<&UserId>,
    ) -> Result<Option<PendingSubscription>, SubscriptionError> {
        let topic = Topic { app: connection.app().id.clone(), channel };
        let ConnectionRef { worker, slot, socket } = connection.connection_ref();
        let ticket = SubscribeTicket { worker, slot, socket };
        let bounds = connection.app().limits.presence_bounds();
        let claim = member.as_ref().map(|member| MemberClaim { member, bounds, leaving });
        let ready = cluster
            .topics
            .reserve_topic(&topic, ticket, claim)
            .map_err(|full| no_room(&connection.app(), full))?;
        let pending = PendingSubscription { others: cluster.clone(), topic, member };
        if !ready {
            // Redis is asked, which costs more than what is known here.
            connection.budget.spend(WorkKind::NewChannel);
            // So that a user who is thrown out meanwhile is found, though not present yet.
            connection.set_joining(pending.user().cloned());
            return Ok(Some(pending));
        }
        self.commit_subscription(connection, &pending);
        Ok(None)
    }

    /// Goes on with a subscription that waited.
    /// `admitted` is false if the presence channel is full. The connection may have closed, or lost the right, while
    /// it waited: then the reservation is given up.
    /// # Errors
    /// Why the client is not subscribed after all.
    pub fn resume_pending(
        &self,
        connection: &Rc<Connection>,
        pending: PendingSubscription,
        admitted: bool,
    ) -> Result<(), SubscriptionError> {
        connection.set_joining(None);
        let closed = connection.is_closed_to(&pending.topic.channel);
        if connection.is_closing() || closed || !admitted {
            self.cancel_pending(&pending);
        }
        if closed {
            return Err(SubscriptionError::Withdrawn);
        }
        if !admitted {
            let max = connection.app().limits.max_presence_members;
            return Err(SubscriptionError::TooManyMembers { max });
        }
        if !connection.is_closing() {
            self.commit_subscription(connection, &pending);
        }
        Ok(())
    }

    /// Gives up a subscription that waited.
    /// For a connection that ends while it waits. Without this its member would stay in the roster.
    pub fn cancel_pending(&self, pending: &PendingSubscription) {
        pending.others.topics.cancel_reservation(&pending.topic, pending.user());
    }

    /// Announces the count over all nodes to a crowd. Webhooks report counts separately, by the node that reads the
    /// app's log.
    pub(super) fn announce_total(&self, directory: &Directory, name: &ChannelName, total: usize) {
        let message = Message::subscription_count(name, total);
        let seats = directory.targets_of(name.as_str());
        self.hub().publish_frame(&seats, message.bytes(), None, Sequence::None);
    }

    /// The topic's entry is locked while the subscription is made and the answer read off it, so that what arrives
    /// in the meantime is delivered after the answer and nothing is missed in between.
    fn commit_subscription(&self, connection: &Rc<Connection>, pending: &PendingSubscription) {
        let cluster = &*pending.others;
        let name = &pending.topic.channel;
        let app = connection.app();
        let (mut misses, mut caught) = (false, CatchUp::Up);
        let who = (pending.user(), topic_interest(&app, name));
        let entered = cluster.topics.commit_subscription(&pending.topic, who, |entry| {
            let cache = if name.kind().cache {
                entry.cache_version()
            } else {
                cluster.link().clock().now()
            };
            let told = SeenVersions { presence: entry.roster.version(), cache };
            // Nobody is too many here: Redis has found room for the member.
            let subscribed = self.worker.subscribe_connection(connection, name, None, |_| told);
            if let (Ok(_), Some(user)) = (subscribed, pending.user()) {
                connection.make_present(user.clone());
            }
            let (answer, mut cached) = subscription_answers(name, entry);
            caught = self.take_up(cluster, connection, (&pending.topic, entry));
            if matches!(caught, CatchUp::Missed(..)) {
                // The missed events take its place.
                cached = None;
            } else {
                misses = name.kind().cache && entry.cached().is_none();
            }
            (answer, cached)
        });
        self.report_fact(&app, misses.then_some(()), |()| Fact::CacheMiss(name.clone()));
        if let Some((subscribed, cached)) = entered {
            connection.enqueue_message(subscribed);
            if matches!(caught, CatchUp::Gap) {
                connection.enqueue_message(Message::resume_gap(name));
            }
            cached.into_iter().for_each(|frame| connection.enqueue(frame));
        }
        self.shared.scope.note_users(connection);
    }
}
