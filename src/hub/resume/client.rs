//! One resumable client: its channels, its connection and what is known of earlier ones, in as little room as it takes
//! while it is connected for the first time. All clients of an app are in `clients.rs`.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::held::HeldChannels;
use crate::hub::handles::ConnectionRef;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// Bytes of a client beside its channels: itself, its past, and its places in tables and lines.
const CLIENT_BYTES: usize = size_of::<ResumableClient>() + size_of::<ClientPast>() + 104;

/// Bytes that a client may hold from earlier connections without having subscribed to it in the last one: a page
/// with 500 channels that was cut off while it came back. Nobody adds to what it holds without end by coming again
/// and again.
const MAX_OLD_BYTES: usize = 128 << 10;

/// Instead of the second in which other nodes were told of a client: they are to be told anew.
pub(super) const TO_TELL: u32 = u32::MAX;

/// Connections of a client that are known at most. Of those before nobody knows any more which events they published.
const MAX_SOCKETS: usize = 32;

#[derive(Debug)]
pub(super) struct ResumableClient {
    pub(super) token: ResumeToken,
    /// Its subscriptions, and how far it has heard each.
    pub(super) channels: HeldChannels,
    /// None while it is away.
    pub(super) current: Option<CurrentConnection>,
    /// None for most: those that are here for the first time, and were not looked at since.
    past: Option<Box<ClientPast>>,
    /// The second in which other nodes were told of it last; 0: they know nothing of it; [`TO_TELL`]: it is among those
    /// that have changed.
    pub(super) told: u32,
}

/// A client's earlier connections.
#[derive(Debug, Default)]
pub(super) struct ClientPast {
    /// Each with the second in which it ended: events that were not for them are not for it.
    sockets: SmallVec<[(SocketId, u32); 1]>,
    /// The users that the last one was signed in or present as.
    users: SmallVec<[UserId; 1]>,
    /// The second in which the last one ended, while none is open.
    ended: u32,
    /// The second since which nobody knows what it held before that; 0: it is known.
    forgotten: u32,
    /// It has answered a ping, as far as its present connection does not say.
    answers: bool,
    /// It holds much, so that it waits among those that do.
    is_large: bool,
}

impl ResumableClient {
    /// One that has never been here.
    pub(super) fn new(token: ResumeToken) -> Self {
        Self { token, channels: HeldChannels::default(), current: None, past: None, told: 0 }
    }

    /// Connections that it has had, and the second in which each ended.
    pub(super) fn sockets(&self) -> &[(SocketId, u32)] {
        self.past.as_deref().map_or(&[], |past| &past.sockets)
    }

    /// The same without when they ended.
    pub(super) fn earlier_sockets(&self) -> Vec<SocketId> {
        self.sockets().iter().map(|one| one.0).collect()
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

    /// Takes out what it held before the connection that has ended if that is too much, and notes that nobody knows it
    /// any more.
    pub(super) fn take_old_channels(&mut self, now: u32) -> Vec<ChannelName> {
        if self.channels.old_bytes() <= MAX_OLD_BYTES {
            return Vec::new();
        }
        self.set_forgotten(now.max(1));
        self.channels.take_old()
    }

    /// Whether that is its connection, on the node of that number.
    pub(super) fn has_socket(&self, socket: SocketId, node: u64) -> bool {
        self.current.as_ref().is_some_and(|open| open.socket(node) == socket)
    }

    /// Puts a new connection in the place of the one that it has.
    pub(super) fn replace_current(
        &mut self,
        connection: OpenConnection,
    ) -> Option<CurrentConnection> {
        let answers = self.answers();
        self.channels.note_connected();
        self.current.replace(CurrentConnection::new(connection, answers))
    }

    /// It has none any more.
    pub(super) fn end_current(&mut self) {
        let answers = self.answers();
        self.current = None;
        self.set_answers(answers);
    }

    /// Whether it has answered a ping.
    pub(super) fn answers(&self) -> bool {
        let before = || self.past.as_deref().is_some_and(|past| past.answers);
        self.current.as_ref().map_or_else(before, |open| open.answers)
    }

    pub(super) fn set_answers(&mut self, answers: bool) {
        match (&mut self.current, &mut self.past) {
            (Some(open), _) => open.answers = answers,
            (None, past) if answers || past.is_some() => {
                past.get_or_insert_default().answers = answers;
            }
            (None, _) => {}
        }
    }

    /// Whether it waits among those that hold much.
    pub(super) fn is_large(&self) -> bool {
        self.past.as_deref().is_some_and(|past| past.is_large)
    }

    pub(super) fn set_large(&mut self, is_large: bool) {
        self.past.get_or_insert_default().is_large = is_large;
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

    /// The users that its last connection was signed in or present as.
    pub(super) fn users(&self) -> &[UserId] {
        self.past.as_deref().map_or(&[], |past| &past.users)
    }

    pub(super) fn set_users(&mut self, users: SmallVec<[UserId; 1]>) {
        if self.past.is_some() || !users.is_empty() {
            self.past.get_or_insert_default().users = users;
        }
    }
}

/// A client's connection.
#[derive(Debug, Clone, Copy)]
pub struct OpenConnection {
    pub(super) place: ConnectionRef,
    /// Of its client, for whom limits count it.
    pub(super) address: IpAddr,
}

impl OpenConnection {
    pub fn new(place: ConnectionRef, address: IpAddr) -> Self {
        Self { place, address }
    }

    pub(super) fn socket(&self) -> SocketId {
        self.place.socket
    }
}

/// The same as each client has room for: without the node's number, and its place lying open, as together these fit in
/// less than one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct CurrentConnection {
    number: u64,
    slot: u32,
    worker: u16,
    /// Its client has answered a ping, on this one or an earlier one.
    answers: bool,
    address: IpAddr,
}

impl CurrentConnection {
    fn new(OpenConnection { place, address }: OpenConnection, answers: bool) -> Self {
        let ConnectionRef { worker, slot, socket } = place;
        Self { number: socket.number, slot, worker, answers, address }
    }

    /// Its id, on the node of that number.
    pub(super) fn socket(&self, node: u64) -> SocketId {
        SocketId { node, number: self.number }
    }

    pub(super) fn open(&self, node: u64) -> OpenConnection {
        let Self { slot, worker, address, .. } = *self;
        OpenConnection { place: ConnectionRef { worker, slot, socket: self.socket(node) }, address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_here_for_the_first_time_has_room_for_no_more_than_it_needs() {
        // With the eight bytes that the allocator adds, a whole number of its sixteen.
        assert!(size_of::<ResumableClient>() <= 88, "{}", size_of::<ResumableClient>());
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
