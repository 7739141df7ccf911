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
pub use super::question::{ClusterOccupancy, LinkQuery, LinkReply, RetainedEvent};
use super::redis_clock::RedisClock;
use super::roster::LoadedRoster;
use super::webhook_log::{LogBatch, LogRequest};
use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::{Member, UserId};
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// Arrivals that may wait to be taken before the link stops reading.
/// Redis's output buffer for this node, which it bounds, fills then.
const ARRIVALS: usize = 1024;

/// Bytes that wait beyond which backends are answered only once those are sent, so that they do not publish faster
/// than Redis takes it, and other nodes hear late; less where the queue holds less than twice of it.
const SLOW_DOWN: usize = 1 << 20;

/// What a publish takes beside its frame while it waits, about.
const BESIDE: usize = 200;

/// What a node asks of the link.
#[derive(Debug)]
pub enum LinkRequest {
    /// Take part in a topic: the first connection here wants it.
    Open(Topic),
    /// A user's first connection here has joined a presence channel of at most `max` users.
    /// `place` is the version that it came with before, if others may have forgotten it; else 0.
    Join { topic: Topic, member: Member, max: usize, place: u64 },
    /// A user's last connection here has left it.
    Leave { topic: Topic, user: UserId },
    /// The number of subscribers here has changed; `tell` if subscribers want to know the sum.
    Changed { topic: Topic, tell: bool },
    /// So many connections of an app are here.
    Connections { app: AppId, count: usize },
    /// Counted in bytes until it is sent or dropped.
    Publish(OutgoingEvent),
    /// Let go of this once everything before is sent, or Redis is away.
    Room(oneshot::Sender<()>),
    /// Something that webhooks are told of.
    News(LogRequest),
    /// The answer is dropped, not sent, if Redis goes away.
    Ask(LinkQuery, oneshot::Sender<LinkReply>),
    /// Keep, or forget, what a client that may come back holds.
    Park(Parked),
    /// Read what such a client has missed of a topic.
    Replay(Replay),
    /// Forget the clients of an app that did not come back in time.
    Sweep(AppId),
    /// End, once everything before is done.
    Stop,
}

/// Something for other nodes.
#[derive(Clone, Debug)]
pub enum OutgoingEvent {
    /// For the subscribers of a topic.
    Event {
        topic: Topic,
        except: Option<SocketId>,
        frame: Bytes,
        manner: Manner,
    },
    /// The same on a cache channel, where Redis keeps it for `ttl`, and `max` bytes of what the node publishes to the
    /// app's cache channels. The sender's own subscribers get it when it comes back, so that all nodes agree
    /// which event is the last.
    Cached {
        topic: Topic,
        except: Option<SocketId>,
        frame: Bytes,
        data: Bytes,
        ttl: Duration,
        max: usize,
        /// Seconds that the log lasts on, if longer than it does anyway.
        lasts: u32,
    },
    /// The trace of the event that comes next on the topic.
    Trace {
        topic: Topic,
        /// [`super::traces::mark_of`] it.
        mark: u64,
        trace: Trace,
    },
    /// Closes the user's connections that were made before it was `asked` for.
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
    /// To one node: what the client held whose connection that node has taken over, nothing if it has none here.
    HandedOver {
        app: AppId,
        node: u64,
        request: u64,
        record: Bytes,
    },
    /// To one node: what it asked for is done.
    Done {
        app: AppId,
        node: u64,
        request: u64,
    },
}

/// What becomes of an event here and for clients that come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Subscribers here have it at once.
    AtOnce,
    /// The same, and who comes back is not told of it.
    Whisper,
    /// Subscribers here get it when it comes back, as it has its place in the log then; for so many seconds it must
    /// be there.
    Resumable { lasts: u32 },
}

/// A right that is taken back on all nodes. Those that have done it answer the request of the node that asked.
#[derive(Clone, Debug)]
pub struct Withdraw {
    pub app: AppId,
    pub user: UserId,
    pub channels: Arc<[ChannelName]>,
    pub asked: Instant,
    pub request: u64,
    /// Seconds in which a client may come back that held the channels; 0: none may.
    pub window: u32,
}

impl OutgoingEvent {
    /// Of the queue's bound; what was put in is taken out again by the same figure.
    pub(super) fn queued_bytes(&self) -> usize {
        let own = match self {
            Self::Event { frame, .. } => frame.len(),
            Self::Cached { frame, data, .. } => frame.len() + data.len(),
            Self::Withdraw(one) => one.channels.iter().map(|name| name.as_str().len()).sum(),
            Self::HandedOver { record, .. } => record.len(),
            Self::Trace { trace, .. } => trace.as_str().len(),
            Self::Terminate { .. } | Self::Reconnect { .. } | Self::Done { .. } => 0,
        };
        own + BESIDE
    }

    /// The app whose event it is.
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

    /// Whether subscribers here get it only when it comes back.
    pub(super) fn returns(&self) -> bool {
        match self {
            Self::Cached { .. } => true,
            Self::Event { manner, .. } => matches!(manner, Manner::Resumable { .. }),
            _ => false,
        }
    }

    /// What subscribers here are given of it if it does not.
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

    /// Whether it is let in where there is no room: it is small and rare, and must not be forgotten.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self, Self::Event { .. } | Self::Cached { .. } | Self::Trace { .. })
    }
}

/// What comes out of the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The topic is subscribed to, and this is what Redis has of it. Comes again after a lost link.
    Opened {
        topic: Topic,
        loaded: Option<LoadedRoster>,
        cached: Option<RetainedEvent>,
        settled: bool,
    },
    /// Redis has the user in the channel, from this version on.
    Joined { topic: Topic, user: UserId, version: u64 },
    /// The channel is full.
    Full { topic: Topic, user: UserId },
    /// Redis is away: the order is to be carried out with what is known here.
    Alone(OfflineFallback),
    /// An envelope that came on a topic.
    Topic(Topic, Envelope),
    /// One that may have been sent while this node did not hear the topic. Who subscribed since has no part in it.
    Late(Topic, Envelope),
    /// Another node was asked, at a time, to close every connection of a user. Those that were made since have no
    /// part in it.
    Terminate { app: AppId, user: UserId, asked: Instant },
    /// The same, so that their clients come back.
    Reconnect { app: AppId, user: UserId, asked: Instant },
    /// The node of that number was asked to take a right back.
    Withdraw { node: u64, order: Withdraw },
    /// These are the other nodes that live and are to answer a request, by the names that [`Self::Done`] has.
    Living { request: u64, nodes: HashSet<String> },
    /// A node has done what this one requested.
    Done { request: u64, node: String },
    /// A node was asked for what a client holds whose connection is there no longer, and answers.
    HandedOver { request: u64, record: Bytes },
    /// A client has come to the node of that number, which asks for what it holds by a request.
    TakeOver { app: AppId, key: String, node: u64, request: u64 },
    /// What a client has missed that came back to a connection here.
    Missed(Missed),
    /// So many clients of an app did not come back in time, or were too many; so many may still come.
    Swept { app: AppId, expired: u64, crowded: u64, waiting: Option<u64> },
    /// So many connections of an app are on all nodes.
    Connections { app: AppId, total: usize },
    /// What webhooks are to be told.
    News(LogBatch),
    /// Redis is away from now on.
    Down,
}

/// What goes on without Redis.
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

/// What both ends know.
#[derive(Debug, Default)]
pub(super) struct LinkStatus {
    /// Redis answers. Relaxed, as all here: each flag is read by itself, and a moment late does no harm.
    pub(super) up: AtomicBool,
    /// Redis has lost its data, and other nodes have not yet said again what they hold.
    pub(super) restoring: AtomicBool,
    /// The node is about to stop.
    lingers: AtomicBool,
    /// What of a Redis Cluster is away while the rest answers.
    pub(super) away: ArcSwap<Vec<String>>,
    /// Bytes of publishes that wait, and of those that wait for what is away.
    pub(super) queued: AtomicUsize,
    pub(super) stranded: AtomicUsize,
    /// What time Redis has.
    pub(super) clock: RedisClock,
    /// Counted by both ends.
    pub(super) figures: LinkMetrics,
}

/// The node's end, for all workers.
#[derive(Clone, Debug)]
pub struct Link {
    /// Without a bound of its own: publishes are bounded in bytes, the rest by what this node holds.
    orders: mpsc::UnboundedSender<LinkRequest>,
    status: Arc<LinkStatus>,
    /// `cluster.queue_bytes`.
    max_queued: usize,
}

/// The far end, which whoever carries out orders has.
#[derive(Debug)]
pub struct LinkDriver {
    /// In the order in which workers put them in.
    pub orders: mpsc::UnboundedReceiver<LinkRequest>,
    pub(super) arrivals: mpsc::Sender<LinkEvent>,
    pub(super) status: Arc<LinkStatus>,
    /// `cluster.queue_bytes`; as many may wait for what is away.
    pub(super) max_queued: usize,
}

/// A link whose queue of publishes holds `max_queued` bytes.
/// Both ends are made before anything runs, so that workers can put orders in while the link still connects.
pub fn new_link(max_queued: usize) -> (Link, LinkDriver, mpsc::Receiver<LinkEvent>) {
    let (sender, orders) = mpsc::unbounded_channel();
    let (arrivals, arriving) = mpsc::channel(ARRIVALS);
    let status = Arc::new(LinkStatus::default());
    let link = Link { orders: sender, status: status.clone(), max_queued };
    (link, LinkDriver { orders, arrivals, status, max_queued }, arriving)
}

impl LinkDriver {
    /// From now on queries are put to this end.
    pub fn go_up(&self) {
        self.status.up.store(true, Ordering::Relaxed);
    }

    /// From now on they are answered from what is known here.
    pub fn go_down(&self) {
        self.status.up.store(false, Ordering::Relaxed);
    }
}

impl Link {
    /// Whether Redis answers. While it does not, the node goes on with what it knows.
    /// It may go away the next moment: whoever asks must be ready to be left without an answer.
    pub fn is_up(&self) -> bool {
        self.status.up.load(Ordering::Relaxed)
    }

    /// The masters and slots of a Redis Cluster that are away while the rest answers: what belongs to them goes on with
    /// what is known here.
    pub fn away_parts(&self) -> Arc<Vec<String>> {
        self.status.away.load_full()
    }

    /// Whether Redis has lost its data, and this node may lack what others held there.
    pub fn is_restoring(&self) -> bool {
        self.status.restoring.load(Ordering::Relaxed)
    }

    pub fn figures(&self) -> &LinkMetrics {
        &self.status.figures
    }

    /// From now on nobody leaves until the node stops: who is closed now comes back at once, here or on another
    /// node, and the others need not hear of it.
    pub fn keep_everybody(&self) {
        self.status.lingers.store(true, Ordering::Relaxed);
    }

    pub(super) fn keeps_everybody(&self) -> bool {
        self.status.lingers.load(Ordering::Relaxed)
    }

    /// The time of Redis.
    pub fn clock(&self) -> &RedisClock {
        &self.status.clock
    }

    /// Bytes of publishes that wait for something that is away; they take no room from others.
    pub fn stranded_bytes(&self) -> usize {
        self.status.stranded.load(Ordering::Relaxed)
    }

    /// Bytes of publishes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.status.queued.load(Ordering::Relaxed)
    }

    /// Bytes that may wait.
    pub fn max_queued(&self) -> usize {
        self.max_queued
    }

    /// Puts an order in; whether it was taken. Orders of one sender are carried out in its order.
    /// Never waits; the link's own thread carries it out.
    pub fn send_request(&self, order: LinkRequest) -> bool {
        // Its far end is gone only when the server stops.
        self.orders.send(order).is_ok()
    }

    /// Puts a publish in, if there is room; whether there was. One that is `promised`, since [`Self::has_room_for`] was
    /// asked before, finds room unless Redis is away: what others promised meanwhile is not much.
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

    /// What a publish that is to be answered waits for first, if so much waits already.
    pub fn wait_for_room(&self) -> Option<oneshot::Receiver<()>> {
        if !self.is_up() || self.queued_bytes() <= SLOW_DOWN.min(self.max_queued / 2) {
            return None;
        }
        LinkMetrics::add_count(&self.figures().throttled, 1);
        let (sender, room) = oneshot::channel();
        self.send_request(LinkRequest::Room(sender));
        Some(room)
    }

    /// Whether publishes of so many bytes would fit, or need not because Redis is away: then the subscribers here
    /// are told, and what others miss is counted.
    pub fn has_room_for(&self, publishes: usize, bytes: usize) -> bool {
        let all = bytes.saturating_add(publishes.saturating_mul(BESIDE));
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

    #[test]
    fn backends_wait_once_half_the_queue_is_full() {
        let (link, mut far, _arriving) = new_link(1000);
        let topic = Topic { app: AppId::new("a"), channel: ChannelName::parse("c", 200).unwrap() };
        let publish = |bytes: usize| {
            let (topic, frame) = (topic.clone(), Bytes::from(vec![0; bytes]));
            link.queue_publish(
                OutgoingEvent::Event { topic, except: None, frame, manner: Manner::AtOnce },
                false,
            )
        };
        far.go_up();
        assert!(publish(300) && link.wait_for_room().is_none() && link.has_room_for(1, 300));
        assert!(!link.has_room_for(1, 301));
        assert!(publish(1));
        let mut room = link.wait_for_room().expect("501 bytes and what is beside them");
        assert!(matches!(far.orders.try_recv(), Ok(LinkRequest::Publish(_))));
        assert!(matches!(far.orders.try_recv(), Ok(LinkRequest::Publish(_))));
        assert_eq!(room.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(far.orders.try_recv());
        assert_eq!(room.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        // Nobody waits for a Redis that is away.
        far.status.up.store(false, Ordering::Relaxed);
        assert!(link.wait_for_room().is_none() && link.has_room_for(1, 10_000));
    }

    #[test]
    fn publishes_are_bounded_in_bytes() {
        const MAX: usize = 100 + 2 * BESIDE;
        let (link, mut far, _arriving) = new_link(MAX);
        let topic = Topic { app: AppId::new("a"), channel: ChannelName::parse("c", 200).unwrap() };
        let publish = |bytes: usize| {
            let (topic, frame) = (topic.clone(), Bytes::from(vec![0; bytes]));
            link.queue_publish(
                OutgoingEvent::Event { topic, except: None, frame, manner: Manner::AtOnce },
                false,
            )
        };
        assert!(publish(60) && !publish(41) && publish(40) && !publish(0));
        assert_eq!(link.queued_bytes(), MAX);
        assert_eq!(link.figures().dropped.load(Ordering::Relaxed), 2);
        // Who is to be thrown out is thrown out.
        let user = UserId::parse("u").unwrap();
        let terminate =
            OutgoingEvent::Terminate { app: topic.app.clone(), user, asked: Instant::now() };
        assert!(link.queue_publish(terminate, false));
        link.send_request(LinkRequest::Stop);
        let mut came = Vec::new();
        while let Ok(LinkRequest::Publish(publish)) = far.orders.try_recv() {
            came.push(publish.queued_bytes() - BESIDE);
        }
        assert_eq!(came, [60, 40, 0]);
    }
}
