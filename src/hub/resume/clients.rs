//! Resumable clients by token: their channels, the last acknowledged event of each, and which connection is open. What
//! was published is in `log.rs`, and who may wait for how long in `waiting.rs`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::held::{HeldChannel, HeldChannels, channel_bytes};
use super::log::{ChannelLogs, MissedEvents};
use super::table::ClientTable;
use super::waiting::WaitingClients;
use crate::hub::handles::ConnectionRef;
use crate::metrics::HeldBytes;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// What a client takes beside its channels: itself, what is known of its past, and its places in tables and lines.
const CLIENT_BYTES: usize = size_of::<ResumableClient>() + size_of::<ClientPast>() + 104;

/// What a client may hold from earlier connections without having subscribed to it in the last one: a page with 500
/// channels that was cut off while it came back. Nobody adds to what it holds without end by coming again and again.
const MAX_OLD_BYTES: usize = 128 << 10;

/// Connections of a client that are known at most. Of those before nobody knows any more which events they published.
const MAX_SOCKETS: usize = 32;

/// The clients of one app.
#[derive(Debug, Default)]
pub(super) struct ResumableClients {
    pub(super) by_token: ClientTable,
    pub(super) waiting: WaitingClients,
    /// Those whose state has changed, where other nodes are to know of it.
    pub(super) changed: Vec<ResumeToken>,
    /// Connections that have yet to end, of clients that have newer ones: what limits counted for them was given back.
    pub(super) replaced: HashSet<SocketId>,
    /// What all of them take is counted here.
    pub(super) held: Arc<HeldBytes>,
}

#[derive(Debug)]
pub(super) struct ResumableClient {
    pub(super) token: ResumeToken,
    /// What it was subscribed to, and how far it has heard each.
    pub(super) channels: HeldChannels,
    /// None while it is away.
    pub(super) current: Option<OpenConnection>,
    /// None for most: those that are here for the first time, and were not looked at since.
    past: Option<Box<ClientPast>>,
    /// It has answered a ping.
    pub(super) answers: bool,
    /// It is among those that have changed.
    pub(super) is_changed: bool,
    /// It holds much, so that it waits among those that do.
    pub(super) is_large: bool,
    /// The second in which other nodes were told of it last.
    pub(super) told: u32,
}

/// What is known of a client's earlier connections.
#[derive(Debug, Default)]
pub(super) struct ClientPast {
    /// Each with the second in which it ended: events that were not for them are not for it.
    sockets: SmallVec<[(SocketId, u32); 1]>,
    /// Whom the last one was signed in or present as.
    users: SmallVec<[UserId; 1]>,
    /// The second in which the last one ended, while none is open.
    ended: u32,
    /// The second since which nobody knows what it held before that; 0: it is known.
    forgotten: u32,
}

impl ResumableClient {
    /// One that has never been here.
    pub(super) fn new(token: ResumeToken) -> Self {
        Self {
            token,
            channels: HeldChannels::default(),
            current: None,
            past: None,
            answers: false,
            is_changed: false,
            is_large: false,
            told: 0,
        }
    }

    /// Connections that it has had, and the second in which each ended.
    pub(super) fn sockets(&self) -> &[(SocketId, u32)] {
        self.past.as_deref().map_or(&[], |past| &past.sockets)
    }

    pub(super) fn add_socket(&mut self, socket: SocketId, ended: u32) {
        let sockets = &mut self.past.get_or_insert_default().sockets;
        if sockets.len() >= MAX_SOCKETS {
            sockets.remove(0);
        }
        sockets.push((socket, ended));
    }

    /// Bytes that are counted for it.
    pub(super) fn bytes(&self) -> usize {
        CLIENT_BYTES + self.channels.bytes()
    }

    /// Takes out what it held before the connection that has ended, `socket`, if that is too much, and notes that
    /// nobody knows it any more.
    pub(super) fn take_old_channels(&mut self, socket: SocketId, now: u32) -> Vec<ChannelName> {
        if self.channels.bytes_beside(socket) <= MAX_OLD_BYTES {
            return Vec::new();
        }
        self.set_forgotten(now.max(1));
        self.channels.take_beside(socket)
    }

    /// Notes when one of them has ended.
    pub(super) fn end_socket(&mut self, socket: SocketId, now: u32) {
        let mut sockets = self.past.iter_mut().flat_map(|past| past.sockets.iter_mut());
        if let Some(earlier) = sockets.find(|(earlier, _)| *earlier == socket) {
            earlier.1 = now;
        }
    }

    /// Whether it is away, and `socket` was its last connection.
    pub(super) fn waits_since(&self, socket: SocketId) -> bool {
        self.current.is_none() && self.sockets().last().is_some_and(|one| one.0 == socket)
    }

    /// Forgets those of its connections that ended more than `window` seconds before `now`.
    pub(super) fn expire_sockets(&mut self, now: u32, window: u32) {
        if let Some(past) = &mut self.past {
            past.sockets.retain(|(_, ended)| now.saturating_sub(*ended) <= window);
        }
    }

    /// The second in which its last connection ended, while there is none.
    pub(super) fn ended(&self) -> u32 {
        self.past.as_deref().map_or(0, |past| past.ended)
    }

    pub(super) fn set_ended(&mut self, now: u32) {
        self.past.get_or_insert_default().ended = now;
    }

    /// The second since which nobody knows what it held before that; 0: it is known.
    pub(super) fn forgotten(&self) -> u32 {
        self.past.as_deref().map_or(0, |past| past.forgotten)
    }

    pub(super) fn set_forgotten(&mut self, since: u32) {
        if self.past.is_some() || since > 0 {
            self.past.get_or_insert_default().forgotten = since;
        }
    }

    /// Whom its last connection was signed in or present as.
    pub(super) fn users(&self) -> &[UserId] {
        self.past.as_deref().map_or(&[], |past| &past.users)
    }

    pub(super) fn set_users(&mut self, users: SmallVec<[UserId; 1]>) {
        if self.past.is_some() || !users.is_empty() {
            self.past.get_or_insert_default().users = users;
        }
    }
}

/// A client's connection. Its place lies open, for together these fit in less than one after the other.
#[derive(Debug, Clone, Copy)]
pub struct OpenConnection {
    socket: SocketId,
    slot: u32,
    worker: u16,
    /// Of its client, for whom limits count it.
    address: IpAddr,
}

impl OpenConnection {
    pub fn new(place: ConnectionRef, address: IpAddr) -> Self {
        let ConnectionRef { worker, slot, socket } = place;
        Self { socket, slot, worker, address }
    }

    pub(super) fn socket(&self) -> SocketId {
        self.socket
    }
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
}

/// What a subscription of a client finds.
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
    let current = client.current.map(|open| open.socket);
    if client.channels.get(channel).is_some_and(|held| Some(held.socket) != current) {
        client.channels.remove(channel);
        all.sub_bytes(channel_bytes(channel));
        waiting.note_given_up(client, channel);
        logs.release_channel(channel);
    }
}

impl ResumableClients {
    /// The connection that the client has open.
    pub(super) fn open_connection(&self, token: &ResumeToken) -> Option<OpenConnection> {
        self.by_token.get(token)?.current
    }

    /// A client's connection is to end. Whoever says so first gives back what limits count for it.
    pub(super) fn replace_connection(&mut self, open: OpenConnection) -> ReplacedConnection {
        let OpenConnection { socket, slot, worker, address } = open;
        let gives_back = self.replaced.insert(socket);
        ReplacedConnection { place: ConnectionRef { worker, slot, socket }, address, gives_back }
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
        let (client, known) = self.by_token.get_or_make(token);
        let previous = client.current.replace(connection);
        if !known {
            self.held.add_bytes(client.bytes());
        } else if previous.is_none() {
            self.waiting.remove_client(client);
        }
        if let Some(previous) = &previous {
            // It has ended as far as the client goes; its task has yet to find out.
            // `u32::MAX` stands for an end that has not come; `end_socket` puts the second in.
            client.add_socket(previous.socket, u32::MAX);
        }
        ClientArrival { previous: previous.map(|open| self.replace_connection(open)), known }
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
            if held.socket == socket {
                return SubscriptionState::Told;
            }
            // From here on the older connection no longer speaks for the channel.
            held.socket = socket;
            let acked = held.acked;
            let earlier = client.sockets().iter().map(|one| one.0);
            let sockets: SmallVec<[SocketId; 4]> = earlier.chain([socket]).collect();
            return SubscriptionState::Held(logs.events_since(channel, acked, &sockets));
        }
        let acked = logs.hold_channel(channel);
        client.channels.insert(channel.clone(), HeldChannel { acked, socket });
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
        client.answers = true;
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
        let Some(client) = self.by_token.get_mut(token) else { return };
        client.end_socket(socket, now);
        // An older connection than the client's last: the client itself has not gone.
        if client.current.as_ref().is_none_or(|current| current.socket != socket) {
            return;
        }
        client.current = None;
        client.set_ended(now);
        client.set_users(users);
        client.add_socket(socket, now);
        for channel in client.take_old_channels(socket, now) {
            self.held.sub_bytes(channel_bytes(&channel));
            logs.release_channel(&channel);
        }
        // A client that never answered a ping may never answer one: it would be kept in vain.
        let forget = unanswered && !client.answers;
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
        let client = self.by_token.get_mut(token)?;
        let is_current = client.current.as_ref().is_some_and(|one| one.socket == socket);
        is_current.then_some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_here_for_the_first_time_has_room_for_no_more_than_it_needs() {
        // With the eight bytes that the allocator adds, a whole number of its sixteen.
        assert!(size_of::<ResumableClient>() <= 120, "{}", size_of::<ResumableClient>());
        let token = ResumeToken::parse("0123456789abcdef").unwrap();
        let mut client = ResumableClient::new(token);
        client.set_forgotten(0);
        client.set_users(SmallVec::new());
        client.expire_sockets(9, 1);
        assert!(client.past.is_none() && client.ended() == 0 && client.forgotten() == 0);
        client.set_forgotten(3);
        client.set_ended(4);
        assert_eq!((client.forgotten(), client.ended()), (3, 4));
        client.set_forgotten(0);
        assert_eq!((client.forgotten(), client.ended()), (0, 4));
    }
}
