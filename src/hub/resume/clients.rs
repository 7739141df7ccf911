//! Resumable clients by token: their channels, the last acknowledged event of each, and which connection is open. The
//! events are in `log.rs`, the clients that are away in `waiting.rs`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::client::{OpenConnection, ResumableClient};
use super::held::{HeldChannel, channel_bytes};
use super::log::{ChannelLogs, MissedEvents};
use super::table::ClientTable;
use super::waiting::WaitingClients;
use crate::hub::handles::ConnectionRef;
use crate::metrics::HeldBytes;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// The clients of one app.
#[derive(Debug, Default)]
pub(super) struct ResumableClients {
    pub(super) by_token: ClientTable,
    pub(super) waiting: WaitingClients,
    /// Those whose state has changed, where other nodes are to know of it.
    pub(super) changed: Vec<ResumeToken>,
    /// Connections that have yet to end, of clients that have newer ones: what limits counted for them was given back.
    pub(super) replaced: HashSet<SocketId>,
    /// Bytes of all of them.
    pub(super) held: Arc<HeldBytes>,
    /// This node's number, which is that of all connections here, once there was one.
    pub(super) node: u64,
}

/// A connection that is to end, for its client has a newer one.
#[derive(Debug)]
pub struct ReplacedConnection {
    pub place: ConnectionRef,
    pub address: IpAddr,
    /// It is for the caller to give back what limits count for it.
    pub gives_back: bool,
}

/// How a client comes.
#[derive(Debug)]
pub struct ClientArrival {
    /// The connection that this one takes the place of.
    pub previous: Option<ReplacedConnection>,
    /// It was here before and has not been forgotten.
    pub known: bool,
    /// The connections that it has had.
    pub earlier: Vec<SocketId>,
}

/// The result of a client's subscription.
#[derive(Debug)]
pub enum SubscriptionState {
    /// The client did not hold the channel.
    New,
    /// It did, and this is what it has not acknowledged.
    Held(MissedEvents),
    /// This connection was told already.
    Told,
}

/// Takes a channel from a client that holds it from before its present connection, if it does.
fn give_up_old(
    client: &mut ResumableClient,
    channel: &ChannelName,
    (waiting, all): (&mut WaitingClients, &HeldBytes),
    logs: &mut ChannelLogs,
) {
    let is_away = client.current.is_none();
    if client.channels.get(channel).is_some_and(|held| is_away || !held.is_current) {
        client.channels.remove(channel);
        all.sub_bytes(channel_bytes(channel));
        waiting.note_given_up(client, channel);
        logs.release_channel(channel);
    }
}

impl ResumableClients {
    /// The connection that the client has open.
    pub(super) fn open_connection(&self, token: &ResumeToken) -> Option<OpenConnection> {
        self.by_token.get(token)?.current.map(|open| open.open(self.node))
    }

    /// A client's connection is to end. The first to say so gives back its share of the limits.
    pub(super) fn replace_connection(&mut self, open: OpenConnection) -> ReplacedConnection {
        let OpenConnection { place, address } = open;
        let gives_back = self.replaced.insert(place.socket);
        ReplacedConnection { place, address, gives_back }
    }

    /// Whether what limits count for a connection is still to be given back, now that it has ended. It is no client's
    /// connection any more, so that nobody asks again.
    pub(super) fn take_place(&mut self, socket: SocketId) -> bool {
        let gives_back = !self.replaced.remove(&socket);
        if self.replaced.is_empty() && self.replaced.capacity() > 0 {
            self.replaced = HashSet::new();
        }
        gives_back
    }

    /// Takes a new connection of the client.
    pub(super) fn connect_client(
        &mut self,
        token: &ResumeToken,
        connection: OpenConnection,
    ) -> ClientArrival {
        self.node = connection.socket().node;
        let (client, known) = self.by_token.get_or_make(token);
        let previous = client.replace_current(connection).map(|open| open.open(self.node));
        if !known {
            self.held.add_bytes(client.bytes());
        } else if previous.is_none() {
            self.waiting.remove_client(client);
        }
        if let Some(previous) = &previous {
            // It has ended as far as the client goes; its task has yet to find out.
            // `u32::MAX` stands for an end that has not come; `end_socket` puts the second in.
            client.add_socket(previous.socket(), u32::MAX);
        }
        let earlier = client.earlier_sockets();
        ClientArrival {
            previous: previous.map(|open| self.replace_connection(open)),
            known,
            earlier,
        }
    }

    /// Notes whether nobody knows what the client held before; whether that holds still at second
    /// `now`. After `window` seconds it holds no longer: what came before is of no use to anybody
    /// then.
    pub(super) fn note_forgotten(
        &mut self,
        token: &ResumeToken,
        is_unsure: bool,
        (now, window): (u32, u32),
    ) -> bool {
        let Some(client) = self.by_token.get_mut(token) else { return is_unsure };
        if is_unsure {
            client.set_forgotten(now.max(1));
        } else if now.saturating_sub(client.forgotten()) > window {
            client.set_forgotten(0);
        }
        client.forgotten() > 0
    }

    /// Notes that the client's connection is subscribed to a channel.
    pub(super) fn note_subscribed(
        &mut self,
        token: &ResumeToken,
        socket: SocketId,
        channel: &ChannelName,
        logs: &mut ChannelLogs,
    ) -> SubscriptionState {
        let Some(client) = self.current_client(token, socket) else {
            return SubscriptionState::Told;
        };
        if let Some(held) = client.channels.get_mut(channel) {
            if held.is_current {
                return SubscriptionState::Told;
            }
            held.is_current = true;
            let acked = held.acked;
            let earlier = client.sockets().iter().map(|one| one.0);
            let sockets: SmallVec<[SocketId; 4]> = earlier.chain([socket]).collect();
            return SubscriptionState::Held(logs.events_since(channel, acked, &sockets));
        }
        let (acked, name) = logs.hold_channel(channel);
        client.channels.insert(name, HeldChannel { acked, is_current: true });
        self.held.add_bytes(channel_bytes(channel));
        SubscriptionState::New
    }

    /// Notes that the client has everything of a channel up to event `acked`.
    pub(super) fn note_acknowledged(
        &mut self,
        token: &ResumeToken,
        socket: SocketId,
        acknowledged: impl Iterator<Item = (ChannelName, u64)>,
    ) {
        let Some(client) = self.current_client(token, socket) else { return };
        client.set_answers(true);
        let mut has_more = false;
        for (channel, acked) in acknowledged {
            if let Some(held) = client.channels.get_mut(&channel) {
                has_more |= acked > held.acked;
                held.acked = held.acked.max(acked);
            }
        }
        if has_more {
            self.note_change(token);
        }
    }

    /// Notes that the client does not want, or may not have, the channel any longer.
    pub(super) fn give_up(
        &mut self,
        token: &ResumeToken,
        socket: SocketId,
        channel: &ChannelName,
        logs: &mut ChannelLogs,
    ) {
        let client = self.current_client(token, socket);
        if client.is_some_and(|client| client.channels.remove(channel)) {
            self.held.sub_bytes(channel_bytes(channel));
            logs.release_channel(channel);
            self.note_change(token);
        }
    }

    /// The same of a client that has not subscribed to the channel since its last connection ended.
    pub(super) fn give_up_waiting(
        &mut self,
        token: &ResumeToken,
        channel: &ChannelName,
        logs: &mut ChannelLogs,
    ) {
        let Self { by_token, waiting, held, .. } = self;
        if let Some(client) = by_token.get_mut(token) {
            give_up_old(client, channel, (waiting, held), logs);
        }
    }

    /// Notes that a connection of the client has ended in second `now`, whoever it was, and keeps what the
    /// client holds, unless its pings went `unanswered` and it never answered one.
    pub(super) fn note_ended(
        &mut self,
        token: &ResumeToken,
        (socket, now): (SocketId, u32),
        users: SmallVec<[UserId; 1]>,
        unanswered: bool,
        logs: &mut ChannelLogs,
    ) {
        let node = self.node;
        let Some(client) = self.by_token.get_mut(token) else { return };
        client.end_socket(socket, now);
        // An older connection than the client's last: the client itself has not gone.
        if !client.has_socket(socket, node) {
            return;
        }
        client.end_current();
        client.set_ended(now);
        client.set_users(users);
        client.add_socket(socket, now);
        for channel in client.take_old_channels(now) {
            self.held.sub_bytes(channel_bytes(&channel));
            logs.release_channel(&channel);
        }
        // A client that never answered a ping may never answer one: it would be kept in vain.
        let forget = unanswered && !client.answers();
        self.waiting.add_client(socket, client);
        if forget {
            self.forget_client(token, logs);
        }
    }

    /// Adds a client whose last connection, `socket`, has ended elsewhere.
    pub(super) fn add_waiting(&mut self, socket: SocketId, mut client: ResumableClient) {
        self.held.add_bytes(client.bytes());
        self.waiting.add_client(socket, &mut client);
        self.by_token.insert(client);
    }

    /// Takes channels from the clients whose last connection was the user's, as far as no newer one has subscribed
    /// to them since.
    pub(super) fn withdraw_channels(
        &mut self,
        user: &UserId,
        channels: &[ChannelName],
        logs: &mut ChannelLogs,
    ) {
        let Self { by_token, waiting, held, .. } = self;
        for client in by_token.iter_mut().filter(|client| client.users().contains(user)) {
            for channel in channels {
                give_up_old(client, channel, (waiting, held), logs);
            }
        }
    }

    /// Its channels are logged for it no longer.
    pub(super) fn forget_client(&mut self, token: &ResumeToken, logs: &mut ChannelLogs) {
        if let Some(client) = self.by_token.remove(token) {
            self.held.sub_bytes(client.bytes());
            self.waiting.remove_client(&client);
            client.channels.iter().for_each(|(channel, _)| logs.release_channel(channel));
        }
        self.shrink();
    }

    /// The tables give their memory back, which nobody would ask of them otherwise.
    fn shrink(&mut self) {
        self.by_token.shrink();
        if self.by_token.is_empty() {
            self.changed = Vec::new();
            self.waiting.clear();
        }
    }

    /// The client, if `socket` is its connection still.
    pub(super) fn current_client(
        &mut self,
        token: &ResumeToken,
        socket: SocketId,
    ) -> Option<&mut ResumableClient> {
        let node = self.node;
        self.by_token.get_mut(token).filter(|client| client.has_socket(socket, node))
    }
}
