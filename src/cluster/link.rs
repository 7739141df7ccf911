//! The two ends of the link between a node and the others. Workers send requests and never wait; results, and messages
//! of other nodes, arrive as link events. Publishes are bounded in bytes: what does not fit is not sent to other nodes,
//! and counted.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::Topic;
use super::clients::{Missed, Parked, Replay};
use super::envelope::Envelope;
pub use super::figures::LinkMetrics;
pub use super::link_queue::RequestReceiver;
use super::link_queue::{RequestSender, request_queue};
pub use super::question::{ClusterOccupancy, LinkQuery, LinkReply, RetainedEvent};
use super::redis_clock::RedisClock;
use super::roster::LoadedRoster;
use super::webhook_log::{LogBatch, LogRequest};
use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::{Member, UserId};
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// Link events that may wait for the node before the link stops reading. Redis's output buffer for this node then
/// fills up, until Redis closes the connection (`client-output-buffer-limit pubsub`).
const EVENT_QUEUE: usize = 1024;

/// Queued bytes beyond which publish requests are answered only once these were sent (backpressure), so that backends
/// do not publish faster than Redis accepts; half of `cluster.queue_bytes` if that is less.
const BACKPRESSURE_BYTES: usize = 1 << 20;

/// Estimated bytes of a queued publish besides its frame.
const EVENT_OVERHEAD: usize = 200;

/// A request from a worker to the link.
#[derive(Debug)]
pub enum LinkRequest {
    /// Subscribe to a topic, for its first connection here.
    Open(Topic),
    /// A user's first connection here has joined a presence channel of at most `max` users. `place` is the version
    /// of its earlier join, if Redis may have lost it; else 0.
    Join { topic: Topic, member: Member, max: usize, place: u64 },
    /// A user's last connection here has left it.
    Leave { topic: Topic, user: UserId },
    /// The number of subscribers here has changed; `tell` if subscribers get the total.
    Changed { topic: Topic, tell: bool },
    /// The number of an app's connections here.
    Connections { app: AppId, count: usize },
    /// Counted in bytes until it is sent or dropped.
    Publish(OutgoingEvent),
    /// Drop the sender once everything before it was sent, or Redis is away: its receiver waits for that.
    Room(oneshot::Sender<()>),
    /// A fact for a webhook log.
    WebhookLog(LogRequest),
    /// A query. The sender is dropped without a reply if Redis goes away.
    Ask(LinkQuery, oneshot::Sender<LinkReply>),
    /// Store, or delete, the state of a resumable client.
    Park(Parked),
    /// Read what such a client has missed of a topic.
    Replay(Replay),
    /// Delete the clients of an app that did not resume in time.
    Sweep(AppId),
    /// End, once everything before it is done.
    Stop,
}

/// A message for other nodes.
#[derive(Clone, Debug)]
pub enum OutgoingEvent {
    /// For the subscribers of a topic.
    Event {
        topic: Topic,
        except: Option<SocketId>,
        frame: Bytes,
        manner: Manner,
    },
    /// The same on a cache channel: Redis keeps it for `ttl`, and at most `max` bytes of what this node publishes to
    /// the app's cache channels. Local subscribers get it when it comes back, so that all nodes agree which event is
    /// the last.
    Cached {
        topic: Topic,
        except: Option<SocketId>,
        frame: Bytes,
        data: Bytes,
        ttl: Duration,
        max: usize,
        /// Seconds for which the log must keep it, if longer than usual.
        lasts: u32,
    },
    /// The trace of the next event on the topic.
    Trace {
        topic: Topic,
        /// [`super::traces::mark_of`] it.
        mark: u64,
        trace: Trace,
    },
    /// Closes the user's connections that were made before the request, at `asked`.
    Terminate {
        app: AppId,
        user: UserId,
        asked: Instant,
    },
    /// The same, so that their clients come back at once.
    Reconnect {
        app: AppId,
        user: UserId,
        asked: Instant,
    },
    Withdraw(Withdraw),
    /// To one node, which has taken a client over: the client's state; empty if it has no connection here.
    HandedOver {
        app: AppId,
        node: u64,
        request: u64,
        record: Bytes,
    },
    /// To one node: its request is done.
    Done {
        app: AppId,
        node: u64,
        request: u64,
    },
}

/// How an event is delivered to local subscribers and to clients that resume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Local subscribers get it at once.
    AtOnce,
    /// The same, and clients that resume do not get it.
    Whisper,
    /// Local subscribers get it when it comes back with its place in the log, which must keep it for `lasts` seconds.
    Resumable { lasts: u32 },
}

/// Withdraws channels from a user on all nodes. Each node confirms `request` to the node that sent it.
#[derive(Clone, Debug)]
pub struct Withdraw {
    pub app: AppId,
    pub user: UserId,
    pub channels: Arc<[ChannelName]>,
    pub asked: Instant,
    pub request: u64,
    /// Seconds in which a client with these channels may still resume; 0: none may.
    pub window: u32,
}

impl OutgoingEvent {
    /// Bytes that it counts in the queue's limit; the same when it is added and when it is removed.
    pub(super) fn queued_bytes(&self) -> usize {
        let own = match self {
            Self::Event { frame, .. } => frame.len(),
            Self::Cached { frame, data, .. } => frame.len() + data.len(),
            Self::Withdraw(one) => one.channels.iter().map(|name| name.as_str().len()).sum(),
            Self::HandedOver { record, .. } => record.len(),
            Self::Trace { trace, .. } => trace.as_str().len(),
            Self::Terminate { .. } | Self::Reconnect { .. } | Self::Done { .. } => 0,
        };
        own + EVENT_OVERHEAD
    }

    /// The app that it belongs to.
    pub(super) fn app_id(&self) -> &AppId {
        match self {
            Self::Event { topic, .. } | Self::Cached { topic, .. } | Self::Trace { topic, .. } => {
                &topic.app
            }
            Self::Withdraw(one) => &one.app,
            Self::Terminate { app, .. }
            | Self::Reconnect { app, .. }
            | Self::HandedOver { app, .. }
            | Self::Done { app, .. } => app,
        }
    }

    /// Whether local subscribers get it only when it comes back from Redis.
    pub(super) fn returns(&self) -> bool {
        match self {
            Self::Cached { .. } => true,
            Self::Event { manner, .. } => matches!(manner, Manner::Resumable { .. }),
            _ => false,
        }
    }

    /// The event for local subscribers if it does not come back.
    pub(super) fn offline_fallback(&self) -> Option<(&Topic, OfflineFallback)> {
        let (topic, except, frame, data) = match self {
            Self::Cached { topic, except, frame, data, .. } => (topic, except, frame, Some(data)),
            Self::Event { topic, except, frame, .. } if self.returns() => {
                (topic, except, frame, None)
            }
            _ => return None,
        };
        let (except, frame, data) = (*except, frame.clone(), data.cloned());
        Some((topic, OfflineFallback::Publish { topic: topic.clone(), except, frame, data }))
    }

    /// Whether it is queued even beyond the limit: it is small and rare, and must not be lost.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self, Self::Event { .. } | Self::Cached { .. } | Self::Trace { .. })
    }
}

/// An event from the link to the node.
#[derive(Debug)]
pub enum LinkEvent {
    /// The topic is subscribed to, with what Redis has of it. Repeated after a lost link.
    Opened {
        topic: Topic,
        loaded: Option<LoadedRoster>,
        cached: Option<RetainedEvent>,
        settled: bool,
    },
    /// The user is a member in Redis, from this version on.
    Joined { topic: Topic, user: UserId, version: u64 },
    /// The channel is full.
    Full { topic: Topic, user: UserId },
    /// Redis is away: the request is to be handled with local knowledge.
    Alone(OfflineFallback),
    /// An envelope that was received on a topic.
    Topic(Topic, Envelope),
    /// One that may have been sent while this node was not subscribed. Later subscribers do not get it.
    Late(Topic, Envelope),
    /// Another node was requested, at `asked`, to close a user's connections. Later connections stay open.
    Terminate { app: AppId, user: UserId, asked: Instant },
    /// The same, so that their clients reconnect.
    Reconnect { app: AppId, user: UserId, asked: Instant },
    /// `node` was requested to withdraw channels.
    Withdraw { node: u64, order: Withdraw },
    /// The live nodes that have to confirm a request, by the names that [`Self::Done`] has.
    Living { request: u64, nodes: HashSet<String> },
    /// A node has confirmed a request of this node.
    Done { request: u64, node: String },
    /// A node has handed over the state of a client, as this node requested.
    HandedOver { request: u64, record: Bytes },
    /// A client has reconnected to `node`, which requests its state.
    TakeOver { app: AppId, key: String, node: u64, request: u64 },
    /// Events that a resumed client has missed.
    Missed(Missed),
    /// How many clients of an app did not resume in time, were dropped early, and may still resume.
    Swept { app: AppId, expired: u64, crowded: u64, waiting: Option<u64> },
    /// The connections of an app on all nodes.
    Connections { app: AppId, total: usize },
    /// Entries of a webhook log, for the node that posts the app's webhooks.
    WebhookLog(LogBatch),
    /// Redis is away from now on.
    Down,
}

/// The local result of a request while Redis is away.
#[derive(Debug)]
pub enum OfflineFallback {
    Open(Topic),
    Join {
        topic: Topic,
        user: UserId,
    },
    Leave {
        topic: Topic,
        user: UserId,
    },
    /// With data on a cache channel.
    Publish {
        topic: Topic,
        except: Option<SocketId>,
        frame: Bytes,
        data: Option<Bytes>,
    },
}

/// State shared by both ends.
#[derive(Debug, Default)]
pub(super) struct LinkStatus {
    /// Redis answers. Relaxed, as all here: each flag is read by itself, and a moment late does no harm.
    pub(super) up: AtomicBool,
    /// Redis has lost its data, and other nodes have not yet registered theirs again.
    pub(super) restoring: AtomicBool,
    /// The node is about to stop.
    lingers: AtomicBool,
    /// Parts of a Redis Cluster that are away while the rest answers.
    pub(super) away: ArcSwap<Vec<String>>,
    /// Bytes of queued publishes.
    pub(super) queued: AtomicUsize,
    /// Bytes of publishes that wait for a part of a Redis Cluster.
    pub(super) stranded: AtomicUsize,
    /// Redis's time.
    pub(super) clock: RedisClock,
    /// Written by both ends.
    pub(super) figures: LinkMetrics,
}

/// The node's end, for all workers.
#[derive(Clone, Debug)]
pub struct Link {
    /// Publishes are bounded in bytes; what clients cause counts as held for their app.
    pub(super) requests: RequestSender<LinkRequest>,
    status: Arc<LinkStatus>,
    /// `cluster.queue_bytes`.
    max_queued: usize,
}

/// The far end, for the task that handles requests.
#[derive(Debug)]
pub struct LinkDriver {
    /// In the order in which workers sent them.
    pub requests: RequestReceiver<LinkRequest>,
    pub(super) events: mpsc::Sender<LinkEvent>,
    pub(super) status: Arc<LinkStatus>,
    /// `cluster.queue_bytes`; publishes for parts that are away may take as much again.
    pub(super) max_queued: usize,
}

/// A link whose queue of publishes holds `max_queued` bytes. Both ends are made before anything runs, so that workers
/// can send requests while the link still connects.
pub fn new_link(max_queued: usize) -> (Link, LinkDriver, mpsc::Receiver<LinkEvent>) {
    let (sender, requests) = request_queue();
    let (events, arriving) = mpsc::channel(EVENT_QUEUE);
    let status = Arc::new(LinkStatus::default());
    let link = Link { requests: sender, status: status.clone(), max_queued };
    (link, LinkDriver { requests, events, status, max_queued }, arriving)
}

impl LinkDriver {
    /// From now on queries are sent to Redis.
    pub fn go_up(&self) {
        // Relaxed: a query that sees the old value is answered locally, or fails like one whose link broke a moment
        // later.
        self.status.up.store(true, Ordering::Relaxed);
    }

    /// From now on queries are answered with local knowledge.
    pub fn go_down(&self) {
        // Relaxed: a query that sees the old value times out like one that was sent before the link broke.
        self.status.up.store(false, Ordering::Relaxed);
    }
}

impl Link {
    /// Whether Redis answers. While it does not, the node works with local knowledge. The link may break right
    /// after, so a caller must expect to get no reply.
    pub fn is_up(&self) -> bool {
        // Relaxed: the state may change right after the load anyway.
        self.status.up.load(Ordering::Relaxed)
    }

    /// The masters and slots of a Redis Cluster that are away while the rest answers. Their topics and apps are
    /// handled with local knowledge.
    pub fn away_parts(&self) -> Arc<Vec<String>> {
        self.status.away.load_full()
    }

    /// Whether Redis has lost its data, and other nodes may not have registered theirs again.
    pub fn is_restoring(&self) -> bool {
        // Relaxed: `/ready` and rosters may notice a moment late.
        self.status.restoring.load(Ordering::Relaxed)
    }

    pub fn figures(&self) -> &LinkMetrics {
        &self.status.figures
    }

    /// From now on no leave is sent until the node stops: clients that are closed now reconnect at once, here or on
    /// another node, so others need not see them leave.
    pub fn keep_everybody(&self) {
        // Relaxed: the drain takes seconds, and a leave that is sent in this instant does no harm.
        self.status.lingers.store(true, Ordering::Relaxed);
    }

    pub(super) fn keeps_everybody(&self) -> bool {
        self.status.lingers.load(Ordering::Relaxed) // Relaxed: the flag guards no other data.
    }

    /// The time of Redis.
    pub fn clock(&self) -> &RedisClock {
        &self.status.clock
    }

    /// Bytes of publishes that wait for a part that is away; they have a limit of their own.
    pub fn stranded_bytes(&self) -> usize {
        // Relaxed: a limit on memory may be exceeded by the publishes of one instant.
        self.status.stranded.load(Ordering::Relaxed)
    }

    /// Bytes of queued publishes.
    pub fn queued_bytes(&self) -> usize {
        self.status.queued.load(Ordering::Relaxed) // Relaxed: one that is a moment old will do.
    }

    /// The limit of queued bytes.
    pub fn max_queued(&self) -> usize {
        self.max_queued
    }

    /// Sends a request, without waiting; false if the link has ended. Requests of one sender are handled in order, on
    /// the link's thread.
    pub fn send_request(&self, request: LinkRequest) -> bool {
        // Its far end is gone only when the server stops.
        self.requests.send(request, None)
    }

    /// Queues a publish; false if there is no room. One that is `promised`, because [`Self::has_room_for`] was checked
    /// before, is queued anyway unless Redis is away: what others promised meanwhile is not much.
    pub fn queue_publish(&self, publish: OutgoingEvent, promised: bool) -> bool {
        let bytes = publish.queued_bytes();
        // Added first and taken back if that was too much, so that two workers cannot both take the last bytes.
        let before = self.status.queued.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.max_queued || (promised && self.is_up());
        if !fits && !publish.is_urgent() {
            self.status.queued.fetch_sub(bytes, Ordering::Relaxed);
            LinkMetrics::add_count(&self.figures().dropped, 1);
            return false;
        }
        self.send_request(LinkRequest::Publish(publish))
    }

    /// Resolves when a publish request may be answered; `None` if little is queued (backpressure).
    pub fn wait_for_room(&self) -> Option<oneshot::Receiver<()>> {
        if !self.is_up() || self.queued_bytes() <= BACKPRESSURE_BYTES.min(self.max_queued / 2) {
            return None;
        }
        LinkMetrics::add_count(&self.figures().throttled, 1);
        let (sender, room) = oneshot::channel();
        self.send_request(LinkRequest::Room(sender));
        Some(room)
    }

    /// Whether publishes of so many bytes fit. While Redis is away they always do: local subscribers get them, and
    /// those lost for other nodes are counted.
    pub fn has_room_for(&self, publishes: usize, bytes: usize) -> bool {
        let all = bytes.saturating_add(publishes.saturating_mul(EVENT_OVERHEAD));
        !self.is_up() || self.queued_bytes().saturating_add(all) <= self.max_queued
    }

    /// Asks Redis; `None` while it is away.
    pub fn send_query(&self, question: LinkQuery) -> Option<oneshot::Receiver<LinkReply>> {
        if !self.is_up() {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        self.send_request(LinkRequest::Ask(question, sender));
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues_event(link: &Link, bytes: usize) -> bool {
        let topic = Topic { app: AppId::new("a"), channel: ChannelName::parse("c", 200).unwrap() };
        let (except, frame, manner) = (None, Bytes::from(vec![0; bytes]), Manner::AtOnce);
        link.queue_publish(OutgoingEvent::Event { topic, except, frame, manner }, false)
    }

    #[test]
    fn backends_wait_once_half_the_queue_is_full() {
        let (link, mut far, _arriving) = new_link(1000);
        let publish = |bytes: usize| queues_event(&link, bytes);
        far.go_up();
        assert!(publish(300) && link.wait_for_room().is_none() && link.has_room_for(1, 300));
        assert!(!link.has_room_for(1, 301));
        assert!(publish(1));
        let mut room = link.wait_for_room().expect("501 bytes and what is beside them");
        assert!(matches!(far.requests.try_recv(), Ok(LinkRequest::Publish(_))));
        assert!(matches!(far.requests.try_recv(), Ok(LinkRequest::Publish(_))));
        assert_eq!(room.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(far.requests.try_recv());
        assert_eq!(room.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        // Nobody waits for a Redis that is away.
        far.status.up.store(false, Ordering::Relaxed);
        assert!(link.wait_for_room().is_none() && link.has_room_for(1, 10_000));
    }

    #[test]
    fn publishes_are_bounded_in_bytes() {
        const MAX: usize = 100 + 2 * EVENT_OVERHEAD;
        let (link, mut far, _arriving) = new_link(MAX);
        let publish = |bytes: usize| queues_event(&link, bytes);
        assert!(publish(60) && !publish(41) && publish(40) && !publish(0));
        assert_eq!(link.queued_bytes(), MAX);
        assert_eq!(link.figures().dropped.load(Ordering::Relaxed), 2);
        // Who is to be thrown out is thrown out.
        let user = UserId::parse("u").unwrap();
        let terminate =
            OutgoingEvent::Terminate { app: AppId::new("a"), user, asked: Instant::now() };
        assert!(link.queue_publish(terminate, false));
        link.send_request(LinkRequest::Stop);
        let mut came = Vec::new();
        while let Ok(LinkRequest::Publish(publish)) = far.requests.try_recv() {
            came.push(publish.queued_bytes() - EVENT_OVERHEAD);
        }
        assert_eq!(came, [60, 40, 0]);
    }
}
