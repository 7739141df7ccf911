//! Connections and subscriptions of this node. The directory is what all workers share, a worker what one thread
//! carries, and an inbox how they reach each other. The hub returns facts; what they mean to clients, webhooks or other
//! nodes is decided above.

pub mod addresses;
pub mod budget;
pub mod cache;
pub mod capacity;
mod channels;
pub mod connection;
mod core_offer;
pub mod count_throttle;
pub mod deflated;
pub mod described;
pub mod directory;
mod fanout;
mod flush;
mod flush_line;
pub mod handles;
pub mod handshakes;
pub mod http_sessions;
pub mod http_stream;
pub mod inbox;
pub mod leave_throttle;
pub mod left_sessions;
mod line_batch;
pub mod line_cache;
pub mod loads;
pub mod outbox;
pub mod presence;
mod publish;
pub mod rate_limit;
pub mod rejoins;
mod restrictions;
pub mod resume;
pub mod ring;
pub mod seats;
pub mod shown;
mod socket_views;
pub mod stream;
pub mod subscribing;
pub mod subscriptions;
pub mod tls;
pub mod traced;
pub mod turnstile;
pub mod users;
mod waiting_frames;
pub mod withdrawal;
pub mod worker;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::oneshot;

use crate::app::AppId;
use crate::console::Console;
use crate::metrics::HeldByApp;
use crate::protocol::error::Error;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;
use described::{DescribeTask, SocketQuery, SocketView};
use directory::Directory;
use handles::ConnectionRef;
use http_sessions::HttpSessions;
use http_stream::SessionRequest;
use inbox::{Inbox, WorkerTask};
use resume::Replayed;
#[cfg(feature = "socketio")]
use stream::engine::EngineRequest;
use withdrawal::Withdrawal;

/// State that the workers of one node share.
#[derive(Debug)]
pub struct Hub {
    /// The first part of every socket id made here.
    node: u64,
    next: AtomicU64,
    /// When the hub was created.
    began: Instant,
    /// How long the processes had been there whose clients this one goes on with.
    before: OnceLock<Duration>,
    /// The directories of all apps that were used.
    directories: DashMap<AppId, Arc<Directory>>,
    /// Memory held for clients, by app.
    pub held: Arc<HeldByApp>,
    inboxes: Box<[Inbox]>,
    /// HTTP sessions by name.
    pub http_sessions: Arc<HttpSessions>,
    /// Reports events to the debug console.
    pub console: Arc<Console>,
}

impl Hub {
    /// A hub of `workers` workers whose socket ids begin with `node`.
    pub fn new(node: u64, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            node,
            next: AtomicU64::new(1),
            began: Instant::now(),
            before: OnceLock::new(),
            directories: DashMap::new(),
            held: Arc::default(),
            inboxes: (0..workers.max(1)).map(|_| Inbox::default()).collect(),
            http_sessions: Arc::default(),
            console: Arc::default(),
        })
    }

    /// An id that no other connection of this node has had: clients see it as `node.number`.
    pub fn next_socket_id(&self) -> SocketId {
        // Relaxed: uniqueness needs atomicity alone.
        SocketId { node: self.node, number: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// A socket id that cannot be guessed, for sessions that are found by their id alone.
    #[cfg(feature = "socketio")]
    pub(in crate::hub) fn secret_socket_id(&self) -> SocketId {
        let mut bytes = [0; 8];
        // No kernel of today fails at this once it has started.
        if getrandom::fill(&mut bytes).is_err() {
            return self.next_socket_id();
        }
        // Above what is counted, and within what PHP reads as a whole number.
        let number = u64::from_be_bytes(bytes) >> 1 | 1 << 62;
        SocketId { node: self.node, number }
    }

    /// Nanoseconds since start (584 years fit); 0 for moments before. So fine that the connection which a client opens
    /// because its last one was closed is never taken for one that was there when the close was asked for.
    pub(super) fn nanos_since_start(&self, moment: Instant) -> u64 {
        let passed = moment.saturating_duration_since(self.began).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// Centiseconds since start, saturating at `u32::MAX` (497 days); 0 for moments before.
    pub fn centis_since_start(&self, moment: Instant) -> u32 {
        let passed = moment.saturating_duration_since(self.began).as_millis() / 10;
        u32::try_from(passed).unwrap_or(u32::MAX)
    }

    /// How long there has been this hub.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// For how long nothing was lost of what is known of clients that come back: longer than this hub, where it goes
    /// on with what another knew.
    pub fn age(&self) -> Duration {
        // Zero for a process that was not handed anything.
        self.began.elapsed() + self.before.get().copied().unwrap_or_default()
    }

    /// Continues the clock of an earlier process. Called once, before the first client connects.
    pub fn continue_clock(&self, before: Duration) {
        // Called once, so the cell is empty.
        let _ = self.before.set(before);
    }

    /// Seconds since there has been this hub or what it goes on with, a clock that all workers share.
    pub fn seconds_since_start(&self) -> u32 {
        u32::try_from(self.age().as_secs()).unwrap_or(u32::MAX)
    }

    /// The first part of every socket id made here.
    pub fn node_number(&self) -> u64 {
        self.node
    }

    pub fn worker_count(&self) -> usize {
        self.inboxes.len()
    }

    /// All workers' inboxes, in their order.
    pub fn inboxes(&self) -> &[Inbox] {
        &self.inboxes
    }

    /// A worker's inbox; the first worker's for a number that does not exist.
    pub(in crate::hub) fn inbox(&self, worker: u16) -> &Inbox {
        let inboxes = &self.inboxes;
        #[expect(clippy::indexing_slicing, reason = "a hub always has a worker")]
        inboxes.get(usize::from(worker)).unwrap_or(&inboxes[0])
    }

    /// The app's directory, made when first asked for. It outlives a reload of the app.
    pub fn directory(&self, app: &AppId) -> Arc<Directory> {
        if let Some(directory) = self.directories.get(app) {
            return directory.clone();
        }
        let new = || Arc::new(Directory::new(self.worker_count(), self.held.of_app(app)));
        self.directories.entry(app.clone()).or_insert_with(new).clone()
    }

    /// Every app that has had a directory, for sweeping and counting.
    pub fn directories(&self) -> Vec<(AppId, Arc<Directory>)> {
        let all = self.directories.iter();
        all.map(|entry| (entry.key().clone(), entry.value().clone())).collect()
    }

    /// Closes every connection of the user on this node that was made before this was `asked`, and says
    /// `why`.
    pub fn close_user(
        &self,
        directory: &Arc<Directory>,
        user: &UserId,
        asked: Instant,
        why: &Error,
    ) {
        let asked = self.nanos_since_start(asked);
        for inbox in &self.inboxes {
            let (directory, user) = (directory.clone(), user.clone());
            let why = why.clone();
            inbox.put_task(WorkerTask::CloseUser { directory, user, asked, why });
        }
    }

    /// Takes the right to some channels from every connection of the user on this node that was made before
    /// this was `asked`.
    pub fn withdraw_channels(
        &self,
        directory: &Arc<Directory>,
        user: &UserId,
        asked: Instant,
        withdrawal: &Withdrawal,
    ) {
        let asked = self.nanos_since_start(asked);
        for inbox in &self.inboxes {
            let (directory, user) = (directory.clone(), user.clone());
            let withdrawal = withdrawal.clone();
            inbox.put_task(WorkerTask::Withdraw { directory, user, asked, withdrawal });
        }
    }

    /// Lets a connection go on that waited for its subscription, or refuses it.
    pub fn resume_subscription(&self, place: ConnectionRef, admitted: bool) {
        self.inbox(place.worker).put_task(WorkerTask::Resume { place, admitted });
    }

    /// Tells a connection what its client has missed.
    pub fn replay(&self, place: ConnectionRef, replayed: Replayed) {
        self.inbox(place.worker)
            .put_task(WorkerTask::Replay { place, replayed: Box::new(replayed) });
    }

    /// Closes one connection.
    pub fn close_one(&self, place: ConnectionRef, why: Error) {
        self.inbox(place.worker).put_task(WorkerTask::CloseOne { place, why });
    }

    /// Gives one connection a frame.
    pub fn send_to(&self, place: ConnectionRef, frame: Bytes) {
        self.inbox(place.worker).put_task(WorkerTask::Tell { place, frame });
    }

    /// Asks all workers for the sockets that `query` is about; each answers for its own.
    pub fn describe(&self, query: &SocketQuery) -> Vec<oneshot::Receiver<Vec<SocketView>>> {
        let ask = |inbox: &Inbox| {
            let (answer, answered) = oneshot::channel();
            let asked = DescribeTask { query: query.clone(), answer };
            inbox.put_task(WorkerTask::Describe(Box::new(asked)));
            answered
        };
        self.inboxes.iter().map(ask).collect()
    }

    /// The same for a session of Engine.IO.
    #[cfg(feature = "socketio")]
    pub fn bring_engine_request(&self, place: ConnectionRef, arrival: EngineRequest) {
        let arrival = Box::new(arrival);
        self.inbox(place.worker).put_task(WorkerTask::ArriveByEngine { place, arrival });
    }

    /// Brings a request to the HTTP session that it is for. Where that has ended, it is dropped.
    pub fn bring_request(&self, place: ConnectionRef, arrival: SessionRequest) {
        self.inbox(place.worker).put_task(WorkerTask::Arrive { place, arrival: Box::new(arrival) });
    }
}
