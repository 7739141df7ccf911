//! Handles what comes out of the link, on the link's own thread, one event after the other. It publishes nothing to
//! other nodes, so no loop can form. Rosters change only here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::clustered::Clustered;
use super::webhooks::WebhookAppsNotifier;
use super::{Acknowledgement, ServerState, sends_count};
use crate::app::{App, AppId};
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::link::{
    Link, LinkEvent, LinkMetrics, LinkRequest, OfflineFallback, RetainedEvent,
};
use crate::cluster::roster::{LoadedRoster, RosterChange};
use crate::cluster::topic_cache::TopicCache;
use crate::cluster::topics::TopicEntry;
use crate::cluster::{SubscribeOutcome, SubscribeTicket, Topic};
use crate::hub::handles::{ConnectionRef, Sequence};
use crate::hub::traced::EventPlace;
use crate::protocol::error::close;
use crate::protocol::event::Message;
use crate::protocol::member::{Member, UserId};
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// How often changed numbers of connections are sent to Redis; `max_connections` over all nodes is only as exact.
const CONNECTIONS_EVERY: Duration = Duration::from_millis(200);

/// After how many of those the totals are requested although nothing changed here: once a second.
const SUMS_EVERY_TICKS: u32 = 5;

/// Handles link events until the link ends. Nothing here waits, so that the link can go on reading; slow operations,
/// such as a withdrawal, are awaited beside it.
pub async fn handle_link_events(
    shared: Arc<ServerState>,
    others: Arc<Clustered>,
    mut events: mpsc::Receiver<LinkEvent>,
) {
    let cluster = &*others;
    let mut ticks = interval(CONNECTIONS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent_counts, mut tick) = (HashMap::new(), 0_u32);
    let mut announced = WebhookAppsNotifier::default();
    let mut asked = FuturesUnordered::new();
    loop {
        tokio::select! {
            arrival = events.recv() => match arrival {
                Some(arrival) => {
                    let acknowledgement = shared.receive_event(cluster, arrival);
                    asked.extend(acknowledgement.map(Acknowledgement::done));
                }
                None => return,
            },
            Some(done) = asked.next() => {
                if let Some(done) = done {
                    cluster.link().queue_publish(done, false);
                }
            }
            _ = ticks.tick() => {
                tick = tick.wrapping_add(1);
                shared.look_after_travellers(cluster, tick);
                announced.notify_if_changed(&shared.apps.load_full(), cluster.link());
                shared.tell_connections(cluster, &mut sent_counts, tick.is_multiple_of(SUMS_EVERY_TICKS));
            }
        }
    }
}

/// Counts the deliveries of an event from another node, including a socket that it excludes. Relaxed: for display.
fn count_deliveries(cluster: &Clustered, entry: &TopicEntry) {
    LinkMetrics::add_count(&cluster.link().figures().deliveries, entry.subscribed_here() as u64);
}

impl ServerState {
    /// Sends Redis the connections of apps whose number has changed and, with `sums`, of all apps with a limit; the
    /// reply has the totals of all nodes.
    fn tell_connections(
        &self,
        cluster: &Clustered,
        sent_counts: &mut HashMap<AppId, usize>,
        sums: bool,
    ) {
        for (app, directory) in self.hub.directories() {
            let count = directory.connection_count();
            let limited = || {
                let apps = self.apps.load();
                apps.by_id(app.as_str()).is_some_and(|app| app.limits.max_connections > 0)
            };
            if sent_counts.insert(app.clone(), count) != Some(count) || (sums && limited()) {
                cluster.link().send_request(LinkRequest::Connections { app, count });
            }
        }
    }

    /// Handles an event about withdrawals or resumable clients.
    fn receive_for_client(
        &self,
        cluster: &Clustered,
        arrival: LinkEvent,
    ) -> Option<Acknowledgement> {
        match arrival {
            LinkEvent::Withdraw { node, order } => return Some(self.withdraw_for(node, &order)),
            LinkEvent::Living { request, nodes } => cluster.requests.expect_nodes(request, nodes),
            LinkEvent::Done { request, node } => cluster.requests.note_answer(request, node),
            LinkEvent::TakeOver { app, key, node, request } => {
                self.hand_over(cluster, (app, key), node, request);
            }
            LinkEvent::HandedOver { request, record } => cluster.travellers.come(request, record),
            LinkEvent::Missed(missed) => self.replay(missed),
            LinkEvent::Swept { app, expired, crowded, waiting } => {
                self.note_swept(&app, (expired, crowded), waiting);
            }
            _ => {}
        }
        None
    }

    /// Handles an event. A returned task is to be awaited, and then confirmed to the node that requested it.
    pub fn receive_event(
        &self,
        cluster: &Clustered,
        arrival: LinkEvent,
    ) -> Option<Acknowledgement> {
        let topics = &cluster.topics;
        match arrival {
            LinkEvent::Opened { topic, loaded, cached, settled } => {
                topics.change_topic(&topic, |entry| {
                    self.open_topic(&topic, entry, loaded, cached, settled);
                });
            }
            LinkEvent::Joined { topic, user, version } => {
                topics.change_topic(&topic, |entry| {
                    entry.roster.confirm_user(&user, version);
                    self.resume_tickets(entry.take_ready());
                });
            }
            LinkEvent::Full { topic, user } => {
                topics.change_topic(&topic, |entry| {
                    self.refuse_user(topics.link(), &topic, entry, &user);
                });
            }
            LinkEvent::Alone(alone) => self.answer_offline(cluster, alone),
            LinkEvent::Topic(topic, envelope) => self.receive_on(cluster, &topic, envelope, false),
            LinkEvent::Late(topic, envelope) => self.receive_on(cluster, &topic, envelope, true),
            LinkEvent::Terminate { app, user, asked } => {
                let directory = self.hub.directory(&app);
                self.hub.close_user(&directory, &user, asked, &close::TERMINATED);
            }
            LinkEvent::Reconnect { app, user, asked } => {
                let directory = self.hub.directory(&app);
                self.hub.close_user(&directory, &user, asked, &close::RECONNECT);
            }
            LinkEvent::Connections { app, total } => {
                let here = self.hub.directory(&app).connection_count();
                cluster.elsewhere.insert(app, total.saturating_sub(here));
            }
            LinkEvent::WebhookLog(batch) => self.process_log_batch(batch),
            // Nobody waits for a Redis that is away.
            LinkEvent::Down => {
                for topic in topics.all_topics() {
                    topics.change_topic(&topic, |entry| self.admit_waiting(&topic, entry));
                }
                // Other nodes' connections are unknown now; better too many than none.
                cluster.elsewhere.clear();
            }
            other => return self.receive_for_client(cluster, other),
        }
        None
    }

    /// The channel is full in Redis. A user who was admitted while Redis was away, after the request was sent, stays.
    fn refuse_user(&self, link: &Link, topic: &Topic, entry: &mut TopicEntry, user: &UserId) {
        let Some(member) = entry.roster.admitted_member(user).cloned() else {
            return self.resume_tickets(entry.refuse_user(user));
        };
        let (topic, max, place) = (topic.clone(), usize::MAX, entry.roster.join_version(user));
        link.send_request(LinkRequest::Join { topic, member, max, place });
    }

    /// Handles [`LinkEvent::Opened`]: roster and cached event of Redis replace those of this node, and subscribers get
    /// the differences.
    fn open_topic(
        &self,
        topic: &Topic,
        entry: &mut TopicEntry,
        loaded: Option<LoadedRoster>,
        cached: Option<RetainedEvent>,
        settled: bool,
    ) {
        entry.go_live();
        if let Some(loaded) = loaded {
            let changes = entry.roster.apply_load(&loaded, settled);
            self.announce_changes(topic, entry, changes);
            self.notify_watchers(topic, entry);
        }
        entry.note_opened(cached.as_ref().map_or(0, |kept| kept.version));
        // After a lost link this may be an event that subscribers here have missed.
        if let Some(kept) = cached.filter(|kept| kept.version > entry.cache_version()) {
            let (version, frame) = (kept.version, kept.frame.clone());
            // Those who subscribed while the link was down got a cache miss.
            let is_undelivered = !kept.delivered || entry.cache_version() == 0;
            entry.keep_cached(kept.into());
            if is_undelivered {
                self.deliver_event(topic, &frame, (None, Sequence::Cache(version)).into(), version);
            }
        }
        self.resume_tickets(entry.take_ready());
    }

    /// Decides with local knowledge while Redis is away, so that no subscription waits.
    fn answer_offline(&self, cluster: &Clustered, alone: OfflineFallback) {
        let topics = &cluster.topics;
        match alone {
            OfflineFallback::Open(topic) => {
                topics.change_topic(&topic, |entry| self.admit_waiting(&topic, entry));
            }
            OfflineFallback::Join { topic, user } => {
                topics.change_topic(&topic, |entry| self.join_alone(&topic, entry, &user));
            }
            OfflineFallback::Leave { topic, user } => {
                topics.change_topic(&topic, |entry| {
                    let changes = entry.roster.leave_alone(&user);
                    self.announce_changes(&topic, entry, changes);
                });
            }
            OfflineFallback::Publish { topic, except, frame, data: None } => {
                self.deliver_event(&topic, &frame, (except, Sequence::None).into(), 0);
            }
            OfflineFallback::Publish { topic, except, frame, data: Some(data) } => {
                topics.change_topic(&topic, |entry| {
                    let apps = self.apps.load();
                    let app = apps.by_id(topic.app.as_str());
                    let ttl = app.map_or(Duration::ZERO, |app| app.features.cache_ttl);
                    let version = entry.keep_alone(frame.clone(), data, Instant::now() + ttl);
                    let place = (except, Sequence::Cache(version)).into();
                    self.deliver_event(&topic, &frame, place, 0);
                    entry.came_back();
                    self.resume_tickets(entry.take_ready());
                });
            }
        }
    }

    /// Completes subscriptions that wait for Redis. Called for every topic when Redis goes away, since they would
    /// otherwise wait for its return.
    fn admit_waiting(&self, topic: &Topic, entry: &mut TopicEntry) {
        entry.go_live();
        entry.lost_link();
        if topic.channel.online_user().is_some() {
            // No connection waits on this topic.
            entry.roster.go_alone();
            let own: Vec<UserId> =
                entry.roster.local_members().map(|member| member.user_id.clone()).collect();
            own.iter().for_each(|user| drop(entry.roster.join_alone(user)));
            return self.notify_watchers(topic, entry);
        }
        for user in entry.waiting_users().into_iter().flatten() {
            self.join_alone(topic, entry, &user);
        }
        self.resume_tickets(entry.take_ready());
    }

    /// The limit applies to what this node knows; together the nodes may admit more.
    fn join_alone(&self, topic: &Topic, entry: &mut TopicEntry, user: &UserId) {
        entry.go_live();
        if entry.roster.is_full_for(user) {
            return self.resume_tickets(entry.refuse_user(user));
        }
        let changes = entry.roster.join_alone(user);
        self.announce_changes(topic, entry, changes);
        self.resume_tickets(entry.take_ready());
    }

    /// An event of a cache channel: cached, and delivered unless subscribers have it already. Both happen under the
    /// topic's lock, so that the cached event is always the last one delivered.
    fn receive_cached(
        &self,
        cluster: &Clustered,
        topic: &Topic,
        (version, except, frame, data): (u64, Option<SocketId>, Bytes, Bytes),
        (own, delivered): (bool, bool),
        trace: Option<Trace>,
    ) {
        let apps = self.apps.load();
        let ttl = apps.by_id(topic.app.as_str()).map(|app| app.features.cache_ttl);
        // Without the app here the event expires at once: nobody here may read it.
        let expires = Instant::now() + ttl.unwrap_or_default();
        cluster.topics.change_topic(topic, |entry| {
            let news = entry.is_newer_than_opened(version);
            entry.reach(version);
            entry.keep_cached(TopicCache { version, frame: frame.clone(), data, expires });
            let delivered = own && delivered;
            if news && !delivered {
                if !own {
                    self.emit_received(topic, &frame, trace.as_ref());
                }
                let history = Sequence::Cache(version);
                let place = EventPlace { except, history, trace: trace.as_ref() };
                self.deliver_event(topic, &frame, place, version);
                if !own {
                    count_deliveries(cluster, entry);
                }
            }
            if own && !delivered {
                entry.came_back();
                self.resume_tickets(entry.take_ready());
            }
        });
    }

    /// `late` marks an event that may have been sent before some connection here subscribed; its version decides which
    /// connections get it.
    fn receive_on(&self, cluster: &Clustered, topic: &Topic, envelope: Envelope, late: bool) {
        let topics = &cluster.topics;
        let (own, whisper) = (envelope.origin == self.hub.node_number(), envelope.whisper);
        let version = envelope.version;
        match envelope.body {
            EnvelopeBody::Event { except, frame } => {
                // Else all who are subscribed now were when it was sent.
                let history =
                    if late && version > 0 { Sequence::Cache(version) } else { Sequence::None };
                let number = version * u64::from(!whisper);
                let trace = cluster.traces.take_trace(envelope.origin, &topic.app, &frame);
                let trace = trace.as_ref();
                if !own {
                    self.emit_received(topic, &frame, trace);
                }
                let place = EventPlace { except, history, trace };
                if self.deliver_event(topic, &frame, place, number) {
                    topics.change_topic(topic, |entry| entry.reach(number));
                }
                if !own {
                    topics.read_topic(topic, |entry| count_deliveries(cluster, entry));
                }
            }
            EnvelopeBody::Cached { except, frame, data } => {
                let trace = cluster.traces.take_trace(envelope.origin, &topic.app, &frame);
                let event = (version, except, frame, data);
                self.receive_cached(cluster, topic, event, (own, envelope.delivered), trace);
            }
            EnvelopeBody::Trace { mark, trace, .. } => {
                // Of its own events a node gets only some back.
                if !own || self.delivers_on_return(topic) {
                    let announce = |it| cluster.traces.announce(envelope.origin, mark, it);
                    Trace::parse(&trace).into_iter().for_each(announce);
                }
            }
            EnvelopeBody::Joined { user, info } => {
                let member = Member { user_id: user, user_info: info };
                topics.change_topic(topic, |entry| {
                    let changes = entry.roster.apply_join(version, &member);
                    self.announce_changes(topic, entry, changes);
                    self.resume_tickets(entry.take_ready());
                });
            }
            EnvelopeBody::Left { user } => {
                topics.change_topic(topic, |entry| {
                    self.apply_left(cluster, topic, entry, version, &user);
                });
            }
            EnvelopeBody::Count { count } => {
                topics.change_topic(topic, |entry| {
                    // Each total is sent by the node that counted, so one may overtake another.
                    if version > entry.total.version {
                        entry.total.version = version;
                        // New subscribers here get it in any case, even if their own count was lost with a link;
                        // others only if it is new to them.
                        if !own && entry.total.count == count && !entry.total.untold {
                            return;
                        }
                        entry.total.untold = false;
                        self.announce_count(topic, entry, count);
                    }
                });
            }
            EnvelopeBody::Terminate { .. }
            | EnvelopeBody::Reconnect { .. }
            | EnvelopeBody::Withdraw { .. }
            | EnvelopeBody::Done { .. }
            | EnvelopeBody::TakeOver { .. }
            | EnvelopeBody::HandedOver { .. }
            | EnvelopeBody::Probe => {}
        }
    }

    /// Whether local subscribers get this node's events only when they come back from Redis. The event's trace must
    /// then be kept, too.
    fn delivers_on_return(&self, topic: &Topic) -> bool {
        let resumes = |app: &Arc<App>| !app.features.resume.is_zero();
        topic.channel.kind().cache
            || self.apps.load().by_id(topic.app.as_str()).is_some_and(resumes)
    }

    /// A user who has left according to another node, but is connected here, joins again. This is how a node that was
    /// taken for dead recovers.
    fn apply_left(
        &self,
        cluster: &Clustered,
        topic: &Topic,
        entry: &mut TopicEntry,
        version: u64,
        user: &UserId,
    ) {
        if let Some(member) = entry.roster.must_join_again(version, user) {
            let (topic, member, max) = (topic.clone(), member.clone(), usize::MAX);
            let place = entry.roster.join_version(user);
            cluster.link().send_request(LinkRequest::Join { topic, member, max, place });
        }
        let changes = entry.roster.apply_leave(version, user);
        self.announce_changes(topic, entry, changes);
        self.resume_tickets(entry.take_ready());
    }

    /// Large channels get it at most every few seconds; the number is stored in any case.
    fn announce_count(&self, topic: &Topic, entry: &mut TopicEntry, count: usize) {
        entry.total.count = count;
        let apps = self.apps.load();
        let wanted =
            apps.by_id(topic.app.as_str()).is_some_and(|app| sends_count(app, &topic.channel));
        let directory = self.hub.directory(&topic.app);
        if wanted && count > 0 && directory.counting.is_due_now(&topic.channel, count) {
            let message = Message::subscription_count(&topic.channel, count);
            self.deliver_frame(topic, message.bytes(), None, Sequence::None);
        }
    }

    /// Sends local subscribers the joins and leaves.
    fn announce_changes(
        &self,
        topic: &Topic,
        entry: &TopicEntry,
        changes: impl IntoIterator<Item = RosterChange>,
    ) {
        if topic.channel.online_user().is_some() {
            if changes.into_iter().next().is_some() {
                self.notify_watchers(topic, entry);
            }
            return;
        }
        let apps = self.apps.load();
        let app = apps.by_id(topic.app.as_str());
        let tells_info = app.is_some_and(|app| app.features.socketio.enabled);
        for change in changes {
            let message = match &change {
                RosterChange::Added(member) => Message::member_added(&topic.channel, member),
                RosterChange::Removed(member) => {
                    Message::member_removed(&topic.channel, member, tells_info)
                }
            };
            let history = Sequence::Presence(entry.roster.version());
            self.deliver_frame(topic, message.bytes(), None, history);
        }
    }

    /// Delivers an event to local subscribers. `number` is its place in the log, which matters for resumable clients;
    /// returns whether it does.
    fn deliver_event(
        &self,
        topic: &Topic,
        frame: &Bytes,
        place: EventPlace<'_>,
        number: u64,
    ) -> bool {
        let apps = self.apps.load();
        let app = apps.by_id(topic.app.as_str());
        let min = app.and_then(|app| app.compression_min(&topic.channel));
        let seats = self.hub.directory(&topic.app).targets_of(topic.channel.as_str());
        let counts = number > 0 && app.is_some_and(|app| !app.features.resume.is_zero());
        self.hub.publish_event(&seats, frame, place, min, if counts { number } else { 0 });
        counts
    }

    /// For events that are in no log: members, counts.
    fn deliver_frame(
        &self,
        topic: &Topic,
        frame: &Bytes,
        except: Option<SocketId>,
        history: Sequence,
    ) {
        let seats = self.hub.directory(&topic.app).targets_of(topic.channel.as_str());
        self.hub.publish_frame(&seats, frame, except, history);
    }

    /// Each goes into the inbox of the worker that has the connection; the connection may be gone by then.
    fn resume_tickets(&self, tickets: Vec<(SubscribeTicket, SubscribeOutcome)>) {
        for (SubscribeTicket { worker, slot, socket }, outcome) in tickets {
            let place = ConnectionRef { worker, slot, socket };
            self.hub.resume_subscription(place, outcome == SubscribeOutcome::Ready);
        }
    }
}
