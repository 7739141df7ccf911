//! Resumable clients of one app. One lock covers the clients and the logs of their channels, so an event is either part
//! of what a client gets when it resumes or is delivered afterwards, never both. State of a single connection is in
//! `resumption.rs`.

mod acknowledge;
mod client;
mod clients;
pub(in crate::hub) mod deliveries;
mod estate;
mod feed;
mod held;
mod log;
mod replay;
pub mod resumption;
mod table;
mod travelling;
mod waiting;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::metrics::HeldBytes;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

use log::ChannelLogs;

pub use client::OpenConnection;
pub use clients::{ClientArrival, ReplacedConnection, SubscriptionState};
pub use estate::{LeftClient, LeftEvent, ResumeEstate};
pub use log::{EVENT_BYTES, LogBounds, MissedEvents};
pub use travelling::{ClientState, TakenUp, UNKNOWN};

/// The resumable clients of one app, and the logs of what they hold.
#[derive(Debug)]
pub struct ResumeRegistry {
    /// Held while an event is numbered and put into inboxes, so that its number is its place.
    state: Mutex<RegistryState>,
    /// Read without the lock.
    pub figures: ResumeFigures,
}

#[derive(Debug)]
struct RegistryState {
    content: ResumeState,
    /// Another process goes on with it, so that nothing is kept here any more.
    is_left: bool,
    /// For how many seconds clients were waited for when that was last looked at.
    window: u32,
}

#[derive(Debug, Default)]
struct ResumeState {
    clients: clients::ResumableClients,
    logs: ChannelLogs,
}

/// Counts of what became of clients and events; each only grows.
#[derive(Debug, Default)]
pub struct ResumeFigures {
    /// Connections that went on where another had ended.
    pub resumed: AtomicU64,
    /// Clients that did not come back in time.
    pub expired: AtomicU64,
    /// Clients that were forgotten before, as too many waited.
    pub crowded: AtomicU64,
    /// Events told to those that came back.
    pub replayed: AtomicU64,
    /// Channels whose log did not reach back.
    pub gaps: AtomicU64,
    /// Events that `resume_bytes` pushed out of the logs.
    pub dropped: AtomicU64,
    /// Clients that may come back to any node, as was last heard.
    pub waiting: AtomicU64,
}

/// The events that a client has missed of a channel, in order.
#[derive(Debug)]
pub struct Replayed {
    pub channel: ChannelName,
    pub events: Vec<ReplayedEvent>,
    /// Some are not known any longer.
    pub gap: bool,
    /// The number of the last event that there was.
    pub last: u64,
}

/// One of them.
#[derive(Debug)]
pub struct ReplayedEvent {
    /// Its place in the channel's log.
    pub number: u64,
    /// The connection that it was not for.
    pub except: Option<SocketId>,
    pub frame: Bytes,
}

/// Seconds, rounded up.
fn seconds(window: Duration) -> u32 {
    u32::try_from(window.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

impl ResumeFigures {
    /// Adds to one of them. Relaxed: they are read for display alone.
    pub fn add_count(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Default for ResumeRegistry {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl ResumeRegistry {
    /// An empty one, whose bytes are counted in `held` too.
    pub fn new(held: Arc<HeldBytes>) -> Self {
        let clients = clients::ResumableClients { held: held.clone(), ..Default::default() };
        let content = ResumeState { clients, logs: ChannelLogs::new(held) };
        let state = RegistryState { content, is_left: false, window: u32::MAX };
        Self { state: Mutex::new(state), figures: ResumeFigures::default() }
    }

    fn lock(&self) -> MutexGuard<'_, RegistryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has a connection.
    pub fn is_connected(&self, token: &ResumeToken) -> bool {
        self.lock().content.clients.open_connection(token).is_some()
    }

    /// The connection that the client has open, which is to end.
    pub fn replace_connection(&self, token: &ResumeToken) -> Option<ReplacedConnection> {
        let mut state = self.lock();
        let clients = &mut state.content.clients;
        let open = clients.open_connection(token)?;
        Some(clients.replace_connection(open))
    }

    /// Whether it is for a connection that has ended, and whose end was noted, to give back what limits count for it.
    pub fn take_place(&self, socket: SocketId) -> bool {
        self.lock().content.clients.take_place(socket)
    }

    /// Takes a new connection of the client.
    pub fn connect_client(&self, token: &ResumeToken, connection: OpenConnection) -> ClientArrival {
        let arrived = self.lock().content.clients.connect_client(token, connection);
        ResumeFigures::add_count(&self.figures.resumed, u64::from(arrived.known));
        arrived
    }

    /// Notes whether nobody knows what a client that has come held before. That holds, from second `now` on, for all
    /// that come within `window`, for it may be cut off again before it has subscribed to what it held.
    pub fn note_forgotten(
        &self,
        token: &ResumeToken,
        is_unsure: bool,
        (now, window): (u32, Duration),
    ) -> bool {
        self.lock().content.clients.note_forgotten(token, is_unsure, (now, seconds(window)))
    }

    /// Notes that the client's connection is subscribed to a channel, and finds what it missed there.
    pub fn subscribe_client(
        &self,
        token: &ResumeToken,
        socket: SocketId,
        name: &ChannelName,
    ) -> SubscriptionState {
        let mut state = self.lock();
        let ResumeState { clients, logs } = &mut state.content;
        let found = clients.note_subscribed(token, socket, name, logs);
        if let SubscriptionState::Held(missed) = &found {
            ResumeFigures::add_count(&self.figures.replayed, missed.frames.len() as u64);
        }
        found
    }

    /// Whether an event of the channel is worth keeping.
    pub fn is_held(&self, name: &ChannelName) -> bool {
        self.lock().content.logs.is_held(name)
    }

    /// Keeps an event, and publishes it by its number before any other event of the app is numbered: the
    /// order of a channel's log is that in which its subscribers get it. Whether that was done: not where another
    /// process goes on with the logs.
    pub fn publish_numbered(
        &self,
        (name, frame, except): (&ChannelName, &Bytes, Option<SocketId>),
        now: u32,
        bounds: LogBounds,
        publish: impl FnOnce(u64),
    ) -> bool {
        let mut dropped = 0;
        let mut state = self.lock();
        if state.is_left {
            return false;
        }
        let logs = &mut state.content.logs;
        let number = logs.append_event(name, frame, except, now, (bounds, &mut dropped));
        publish(number);
        drop(state);
        ResumeFigures::add_count(&self.figures.dropped, dropped);
        true
    }

    /// Notes what the client's connection has for certain.
    pub fn note_acknowledged(
        &self,
        token: &ResumeToken,
        socket: SocketId,
        acknowledged: impl Iterator<Item = (ChannelName, u64)>,
    ) {
        self.lock().content.clients.note_acknowledged(token, socket, acknowledged);
    }

    /// Notes that the client does not want, or may not have, the channel any longer.
    pub fn give_up(&self, token: &ResumeToken, socket: SocketId, name: &ChannelName) {
        let mut state = self.lock();
        let ResumeState { clients, logs } = &mut state.content;
        clients.give_up(token, socket, name, logs);
    }

    /// The same of a client whose connection was another process's, unless it has come back for the channel.
    pub fn give_up_waiting(&self, token: &ResumeToken, name: &ChannelName) {
        let mut state = self.lock();
        let ResumeState { clients, logs } = &mut state.content;
        clients.give_up_waiting(token, name, logs);
    }

    /// Notes that a connection of the client ended in second `now`, which was `users`'. Without an answer to
    /// its pings, a client that never gave one is not expected back. Those that went first are forgotten where all take
    /// more than is for them.
    pub fn note_ended(
        &self,
        token: &ResumeToken,
        (socket, now): (SocketId, u32),
        users: SmallVec<[UserId; 1]>,
        (unanswered, bounds): (bool, LogBounds),
    ) {
        let mut state = self.lock();
        let ResumeState { clients, logs } = &mut state.content;
        clients.note_ended(token, (socket, now), users, unanswered, logs);
        // Whose time is over is looked at once a second.
        let forgotten = clients.expire_clients((now, u32::MAX), bounds.bytes, logs);
        drop(state);
        ResumeFigures::add_count(&self.figures.crowded, forgotten.crowded);
    }

    /// For how many seconds, at second `now`, nobody was forgotten before their time; none if that never happened. A
    /// client that nobody knows and that is older may have been forgotten.
    pub fn complete_for(&self, now: u32) -> Option<u32> {
        self.lock().content.clients.complete_for(now)
    }

    /// Notes that until second `now` clients may have been forgotten that are expected back.
    pub fn note_incomplete(&self, now: u32) {
        self.lock().content.clients.waiting.note_incomplete(now);
    }

    /// Takes channels from the clients that wait and were the user's.
    pub fn withdraw_channels(&self, user: &UserId, channels: &[ChannelName]) {
        let mut state = self.lock();
        let ResumeState { clients, logs } = &mut state.content;
        clients.withdraw_channels(user, channels, logs);
    }

    /// Forgets what is over at second `now`.
    pub fn expire_clients(&self, now: u32, window: Duration, bounds: LogBounds) {
        let window = seconds(window);
        let mut state = self.lock();
        let was = std::mem::replace(&mut state.window, window);
        let ResumeState { clients, logs } = &mut state.content;
        // Whoever went while nobody, or only for less long, was waited for, may come back to a window that it fits in.
        if window == 0 || was < window {
            clients.waiting.note_incomplete(now);
        }
        let forgotten = clients.expire_clients((now, window), bounds.bytes, logs);
        clients.expire_sockets(now, window);
        logs.expire_events(now, bounds);
        drop(state);
        ResumeFigures::add_count(&self.figures.expired, forgotten.expired);
        ResumeFigures::add_count(&self.figures.crowded, forgotten.crowded);
    }

    /// Clients that may come back, and the bytes of all logs.
    pub fn occupancy(&self) -> (usize, usize) {
        // Relaxed: a figure for display.
        let elsewhere = self.figures.waiting.load(Ordering::Relaxed);
        let state = self.lock();
        (state.content.clients.waiting.len() + elsewhere as usize, state.content.logs.bytes())
    }
}
