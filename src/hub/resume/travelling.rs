//! Clients that resume on another node: the state of one is taken out here and put in there. Such channels have no
//! local logs; numbers are places in the logs that all nodes share.

use smallvec::SmallVec;

use super::client::{OpenConnection, ResumableClient, TO_TELL};
use super::clients::{ClientArrival, ReplacedConnection, ResumableClients};
use super::held::{HeldChannel, channel_bytes};
use super::{ResumeFigures, ResumeRegistry};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// The acknowledgement of a client that holds a channel for all that is known, but nobody knows how far.
pub const UNKNOWN: u64 = u64::MAX;

/// A client's state, for whichever node it comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientState {
    /// Each with the number of the last event that it has acknowledged.
    pub channels: Vec<(ChannelName, u64)>,
    /// Connections that it has had, and the second of this node's clock in which each ended; `u32::MAX`: not yet.
    pub sockets: SmallVec<[(SocketId, u32); 1]>,
    /// The users that its last connection was signed in or present as.
    pub users: SmallVec<[UserId; 1]>,
    /// It has answered a ping.
    pub answers: bool,
    /// The second of this node's clock since which nobody knows what it held before that; 0: it is known.
    pub forgotten: u32,
}

impl ClientState {
    /// Whether there is nothing to keep for its next connection.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.forgotten == 0
    }
}

/// The result of such a client's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenUp {
    /// The client did not hold the channel.
    New,
    /// It did, and had acknowledged it up to there.
    Held(u64),
    /// It did, and nobody knows how far.
    Unknown,
    /// This connection was told already.
    Told,
}

impl TakenUp {
    /// Whether it may have missed what nobody knows of; `is_forgotten` if that holds for all it held before.
    pub fn may_miss(self, is_forgotten: bool) -> bool {
        self == Self::Unknown || (self == Self::New && is_forgotten)
    }
}

impl ResumableClient {
    /// As it is handed to another node or process by this one, which gave its connections the number `node`.
    pub(super) fn state(&self, node: u64) -> ClientState {
        let channels = self.channels.iter().map(|(name, held)| (name.clone(), held.acked));
        let mut sockets = SmallVec::from(self.sockets());
        sockets.extend(self.current.as_ref().map(|open| (open.socket(node), u32::MAX)));
        let (users, answers, forgotten) = (self.users().into(), self.answers(), self.forgotten());
        ClientState { channels: channels.collect(), sockets, users, answers, forgotten }
    }
}

impl ResumableClients {
    /// Notes that other nodes are to be told of the client anew.
    pub(super) fn note_change(&mut self, token: &ResumeToken) {
        if let Some(client) = self.by_token.get_mut(token)
            && client.told > 0
            && client.told != TO_TELL
        {
            client.told = TO_TELL;
            self.changed.push(token.clone());
        }
    }

    /// Notes that the client's connection is subscribed to a channel whose last event is `end`.
    fn take_up(
        &mut self,
        token: &ResumeToken,
        socket: SocketId,
        channel: &ChannelName,
        end: u64,
    ) -> TakenUp {
        let Some(client) = self.current_client(token, socket) else { return TakenUp::Told };
        if let Some(held) = client.channels.get_mut(channel) {
            if held.is_current {
                return TakenUp::Told;
            }
            held.is_current = true;
            // Said once: from here on it is known how far the client has heard the channel.
            if held.acked == UNKNOWN {
                held.acked = end;
                self.note_change(token);
                return TakenUp::Unknown;
            }
            return TakenUp::Held(held.acked);
        }
        client.channels.insert(channel.clone(), HeldChannel { acked: end, is_current: true });
        self.held.add_bytes(channel_bytes(channel));
        self.note_change(token);
        TakenUp::New
    }

    /// Takes the client out whose connection this was; what it holds, if it is to be kept.
    fn depart(
        &mut self,
        token: &ResumeToken,
        (socket, now): (SocketId, u32),
        users: SmallVec<[UserId; 1]>,
        unanswered: bool,
    ) -> Option<ClientState> {
        let node = self.node;
        let client = self.by_token.get_mut(token)?;
        client.end_socket(socket, now);
        if !client.has_socket(socket, node) {
            return None;
        }
        let mut client = self.by_token.remove(token)?;
        self.held.sub_bytes(client.bytes());
        drop(client.take_old_channels(now));
        client.set_users(users);
        let mut state = client.state(node);
        for (_, ended) in state.sockets.iter_mut().filter(|(one, _)| *one == socket) {
            *ended = now;
        }
        // As on one node: a client that never answered a ping is not waited for.
        if unanswered && !state.answers {
            state.channels.clear();
            state.forgotten = 0;
        }
        Some(state)
    }
}

impl ResumeRegistry {
    /// Takes a new connection of a client. One that has none here may have held something elsewhere, or here until a
    /// moment ago: `state` is asked for that under the lock under which a client departs.
    pub fn arrive(
        &self,
        token: &ResumeToken,
        connection: OpenConnection,
        now: u32,
        state: impl FnOnce() -> Option<ClientState>,
    ) -> ClientArrival {
        let mut guard = self.lock();
        let clients = &mut guard.content.clients;
        let mut arrived = clients.connect_client(token, connection);
        if let Some(client) = clients.by_token.get_mut(token) {
            if !arrived.known
                && let Some(state) = state()
            {
                let held = |(name, acked)| (name, HeldChannel { acked, is_current: false });
                client.channels = state.channels.into_iter().map(held).collect();
                clients.held.add_bytes(client.channels.bytes());
                for (socket, ended) in state.sockets {
                    client.add_socket(socket, ended);
                }
                client.set_users(state.users);
                client.set_answers(state.answers);
                client.set_forgotten(state.forgotten);
                arrived.known = true;
                arrived.earlier = client.earlier_sockets();
            }
            // 0 would mean that other nodes know nothing of the client.
            if client.told != TO_TELL {
                client.told = now.max(1);
            }
        }
        clients.note_change(token);
        drop(guard);
        ResumeFigures::add_count(&self.figures.resumed, u64::from(arrived.known));
        arrived
    }

    /// Notes that the client's connection is subscribed to a channel whose last event is `end`.
    pub fn take_up(
        &self,
        token: &ResumeToken,
        socket: SocketId,
        name: &ChannelName,
        end: u64,
    ) -> TakenUp {
        self.lock().content.clients.take_up(token, socket, name, end)
    }

    /// Takes out the client whose connection ended in second `now`, and has what it holds kept before anybody can see
    /// that; nothing if it has another connection. Without channels there is nothing to keep.
    pub fn depart(
        &self,
        token: &ResumeToken,
        end: (SocketId, u32),
        (users, unanswered): (SmallVec<[UserId; 1]>, bool),
        keep: impl FnOnce(&ClientState),
    ) {
        let mut guard = self.lock();
        if let Some(state) = guard.content.clients.depart(token, end, users, unanswered) {
            keep(&state);
        }
        drop(guard);
    }

    /// Takes out the client for another node that it has come to, with the connection that it has here.
    pub fn hand_over(
        &self,
        token: &ResumeToken,
        now: u32,
    ) -> Option<(ReplacedConnection, ClientState)> {
        let mut guard = self.lock();
        let clients = &mut guard.content.clients;
        let open = clients.open_connection(token)?;
        let users = clients.by_token.get(token)?.users().into();
        let state = clients.depart(token, (open.socket(), now), users, false)?;
        Some((clients.replace_connection(open), state))
    }

    /// Notes the users that the client's connection is signed in or present as.
    pub fn note_users(&self, token: &ResumeToken, socket: SocketId, users: SmallVec<[UserId; 1]>) {
        let mut guard = self.lock();
        if let Some(client) = guard.content.clients.current_client(token, socket)
            && client.users() != users.as_slice()
        {
            client.set_users(users);
            guard.content.clients.note_change(token);
        }
    }

    /// The clients that have changed since this was last asked, and those of whom other nodes were told `every`
    /// seconds ago or longer.
    pub fn take_changed(&self, now: u32, every: u32) -> Vec<(ResumeToken, ClientState)> {
        let mut guard = self.lock();
        let clients = &mut guard.content.clients;
        let node = clients.node;
        let mut changed = std::mem::take(&mut clients.changed);
        let is_due = |client: &ResumableClient| {
            client.told > 0 && client.told != TO_TELL && now.saturating_sub(client.told) >= every
        };
        let due = clients.by_token.iter().filter(|client| is_due(client));
        changed.extend(due.map(|client| client.token.clone()));
        let mut states = Vec::with_capacity(changed.len());
        for token in changed {
            if let Some(client) = clients.by_token.get_mut(&token) {
                client.told = now.max(1);
                let state = client.state(node);
                states.push((token, state));
            }
        }
        states
    }

    /// Connections that the client has had, other than `socket`, and that one.
    pub(super) fn sockets(&self, token: &ResumeToken, socket: SocketId) -> SmallVec<[SocketId; 4]> {
        let mut guard = self.lock();
        let client = guard.content.clients.current_client(token, socket);
        let earlier = client.map(|client| client.sockets().iter().map(|one| one.0).collect());
        // A client that is new here has had no sockets before.
        let mut sockets: SmallVec<[SocketId; 4]> = earlier.unwrap_or_default();
        sockets.push(socket);
        sockets
    }
}
