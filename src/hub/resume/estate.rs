//! The state that a process leaves to its successor: everything that an app knows of resumable clients, taken out in
//! one step and put in there. The transfer itself is done elsewhere.

use bytes::Bytes;

use super::client::ResumableClient;
use super::clients::ResumableClients;
use super::held::HeldChannel;
use super::{ClientState, ResumeRegistry, ResumeState};
use crate::protocol::channel::ChannelName;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// The clients of one app. Times are seconds before it was left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ResumeEstate {
    /// The highest number of a log that was given up.
    pub highest: u64,
    /// For how many seconds nobody was forgotten before their time; none if that never happened.
    pub complete_for: Option<u32>,
    /// Channels that have a log, each with the number of its last event.
    pub channels: Vec<(ChannelName, u64)>,
    /// The last events of these channels, oldest first.
    pub events: Vec<LeftEvent>,
    /// Those that went first come first.
    pub clients: Vec<LeftClient>,
}

/// An event in a log.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftEvent {
    pub channel: ChannelName,
    /// Seconds ago: the two processes count seconds from different moments.
    pub age: u32,
    /// The connection that it was not for.
    pub except: Option<SocketId>,
    pub frame: Bytes,
}

/// A client that may come back.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftClient {
    pub token: ResumeToken,
    /// When its last connection ended.
    pub gone: u32,
    /// Its connections, too, with how long ago each ended.
    pub state: ClientState,
}

impl ResumeRegistry {
    /// Takes out all that is known at second `now`. Events are kept no more from then on, and no client comes back.
    pub fn leave_estate(&self, now: u32) -> ResumeEstate {
        let mut state = self.lock();
        let complete_for = state.content.clients.complete_for(now);
        let ResumeState { clients, logs } = std::mem::take(&mut state.content);
        state.is_left = true;
        drop(state);
        let (highest, channels, events) = logs.into_parts(now);
        ResumeEstate { highest, complete_for, channels, events, clients: clients.into_left(now) }
    }

    /// Puts in what another process has left, at second `now`. Nobody has come here yet.
    pub fn enter_estate(&self, estate: ResumeEstate, now: u32) {
        let mut state = self.lock();
        let ResumeState { clients, logs } = &mut state.content;
        logs.begin_after(estate.highest);
        if let Some(ago) = estate.complete_for {
            clients.waiting.note_incomplete(now.saturating_sub(ago));
        }
        for (channel, last) in &estate.channels {
            logs.restore_channel(channel, *last);
        }
        for event in estate.events {
            logs.restore_event(event, now);
        }
        for LeftClient { token, gone, mut state } in estate.clients {
            let Some((last, _)) = state.sockets.last().copied() else { continue };
            for (channel, _) in &mut state.channels {
                *channel = logs.hold_channel(channel).1;
            }
            clients.restore_client((token, last), state, (gone, now));
        }
        logs.drop_unheld();
    }
}

impl ResumableClients {
    /// All of them, those that went first before others.
    fn into_left(mut self, now: u32) -> Vec<LeftClient> {
        let mut all = Vec::with_capacity(self.by_token.len());
        for (token, socket) in self.waiting.take_order() {
            // Or it has come back since, and is further back.
            let waits = self.by_token.get(&token).is_some_and(|client| client.waits_since(socket));
            if waits && let Some(client) = self.by_token.remove(&token) {
                self.held.sub_bytes(client.bytes());
                all.push(client.into_left(now, self.node));
            }
        }
        all.sort_by_key(|client| std::cmp::Reverse(client.gone));
        // Their workers have not ended them yet, and their connections are no use any more all the same.
        all.extend(self.by_token.drain().map(|client| {
            self.held.sub_bytes(client.bytes());
            client.into_left(now, self.node)
        }));
        all
    }

    /// Seconds that come as ages become seconds of this process.
    fn restore_client(
        &mut self,
        (token, last): (ResumeToken, SocketId),
        state: ClientState,
        (gone, now): (u32, u32),
    ) {
        let second = |ago: u32| now.saturating_sub(ago);
        let mut client = ResumableClient::new(token);
        client.set_answers(state.answers);
        client.set_ended(second(gone));
        if let Some(ago) = state.forgotten.checked_sub(1) {
            client.set_forgotten(second(ago).max(1));
        }
        for (socket, ago) in state.sockets {
            client.add_socket(socket, second(ago));
        }
        client.set_users(state.users);
        let held = |(name, acked)| (name, HeldChannel { acked, is_current: false });
        client.channels = state.channels.into_iter().map(held).collect();
        self.add_waiting(last, client);
    }
}

impl ResumableClient {
    /// The other way round.
    fn into_left(self, now: u32, node: u64) -> LeftClient {
        let ago = |second: u32| if second == u32::MAX { 0 } else { now.saturating_sub(second) };
        let mut state = self.state(node);
        state.sockets.iter_mut().for_each(|one| one.1 = ago(one.1));
        if state.forgotten > 0 {
            // Not 0, which says that it is known.
            state.forgotten = ago(state.forgotten).saturating_add(1);
        }
        let gone = if self.current.is_some() { 0 } else { ago(self.ended()) };
        LeftClient { token: self.token, gone, state }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::*;
    use crate::hub::handles::ConnectionRef;
    use crate::hub::resume::{LogBounds, OpenConnection, SubscriptionState};

    const BOUNDS: LogBounds = LogBounds { bytes: 1000, seconds: 100 };

    fn name(name: &str) -> ChannelName {
        ChannelName::parse(name, 200).unwrap()
    }

    fn token(end: &str) -> ResumeToken {
        ResumeToken::parse(&format!("0123456789abcdef-{end}")).unwrap()
    }

    fn connect(registry: &ResumeRegistry, token: &ResumeToken, number: u64) -> SocketId {
        let socket = SocketId { node: 1, number };
        let place = ConnectionRef { worker: 0, slot: 0, socket };
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let open = OpenConnection::new(place, address);
        registry.connect_client(token, open);
        socket
    }

    fn append(registry: &ResumeRegistry, text: &'static str, now: u32) -> bool {
        let frame = Bytes::from_static(text.as_bytes());
        registry.publish_numbered((&name("a"), &frame, None), now, BOUNDS, |_| ())
    }

    #[test]
    fn a_place_is_given_back_once_whoever_is_first() {
        let (registry, token) = (ResumeRegistry::default(), token("a"));
        let first = connect(&registry, &token, 1);
        let replaced = registry.replace_connection(&token).unwrap();
        assert_eq!((replaced.place.socket, replaced.gives_back), (first, true));
        let place = ConnectionRef { worker: 0, slot: 0, socket: SocketId { node: 1, number: 2 } };
        let open = OpenConnection::new(place, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let previous = registry.connect_client(&token, open).previous.unwrap();
        assert_eq!((previous.place.socket, previous.gives_back), (first, false));
        let end = |socket| {
            let users = smallvec::SmallVec::new();
            registry.note_ended(&token, (socket, 10), users, (false, BOUNDS));
            registry.take_place(socket)
        };
        assert!(!end(first), "whoever took over did");
        assert!(end(place.socket), "nobody took over");
        assert!(registry.lock().content.clients.replaced.is_empty());
    }

    #[test]
    fn the_next_process_knows_what_this_one_knew() {
        let (old, new) = (ResumeRegistry::default(), ResumeRegistry::default());
        let (first, second) = (token("1"), token("2"));
        for (number, token) in [&first, &second].into_iter().enumerate() {
            let socket = connect(&old, token, number as u64);
            old.subscribe_client(token, socket, &name("a"));
            if number == 0 {
                old.note_ended(token, (socket, 10), [].into_iter().collect(), (false, BOUNDS));
            }
        }
        ["1", "2", "3"].iter().for_each(|text| assert!(append(&old, text, 20)));
        let open = SocketId { node: 1, number: 1 };
        old.note_acknowledged(&second, open, [(name("a"), 2)].into_iter());
        let estate = old.leave_estate(30);
        assert!(!append(&old, "4", 30), "it keeps nothing any more");
        assert_eq!(old.occupancy(), (0, 0));
        assert_eq!(estate.clients[0].gone, 20);
        assert_eq!((estate.clients[1].gone, &estate.clients[1].token), (0, &second));
        new.enter_estate(estate, 31);
        assert_eq!(new.occupancy().0, 2);
        assert!(append(&new, "4", 31));
        for (token, number, expected) in
            [(&first, 7, &["1", "2", "3", "4"][..]), (&second, 8, &["3", "4"][..])]
        {
            let socket = connect(&new, token, number);
            let SubscriptionState::Held(missed) = new.subscribe_client(token, socket, &name("a"))
            else {
                panic!("it held the channel");
            };
            assert_eq!(missed.frames, expected);
            assert_eq!((missed.gap, missed.last), (false, 4));
        }
    }

    #[test]
    fn whom_the_process_before_had_forgotten_was_not_told_of_a_gap() {
        let (old, new) = (ResumeRegistry::default(), ResumeRegistry::default());
        old.expire_clients(10, Duration::from_secs(20), BOUNDS);
        assert_eq!(old.complete_for(10), None);
        old.note_incomplete(12);
        new.enter_estate(old.leave_estate(30), 40);
        assert_eq!(new.complete_for(41), Some(19));
    }

    #[test]
    fn who_went_while_fewer_were_waited_for_was_taken_for_new() {
        let registry = ResumeRegistry::default();
        let expire =
            |now, window| registry.expire_clients(now, Duration::from_secs(window), BOUNDS);
        let token = token("1");
        let socket = connect(&registry, &token, 1);
        registry.subscribe_client(&token, socket, &name("a"));
        registry.note_ended(&token, (socket, 10), [].into_iter().collect(), (false, BOUNDS));
        [(11, 20), (12, 20)].into_iter().for_each(|(now, window)| expire(now, window));
        assert_eq!(registry.complete_for(12), None);
        expire(13, 1);
        assert_eq!((registry.complete_for(13), registry.occupancy().0), (None, 0));
        expire(14, 20);
        assert_eq!(registry.complete_for(15), Some(1), "it may have gone before that");
        expire(16, 0);
        expire(17, 20);
        assert_eq!(registry.complete_for(20), Some(3));
    }

    #[test]
    fn what_was_handed_on_ends_in_its_time() {
        let (old, new) = (ResumeRegistry::default(), ResumeRegistry::default());
        let token = token("1");
        let socket = connect(&old, &token, 1);
        old.subscribe_client(&token, socket, &name("a"));
        append(&old, "1", 50);
        old.note_ended(&token, (socket, 50), [].into_iter().collect(), (false, BOUNDS));
        new.enter_estate(old.leave_estate(60), 61);
        let window = Duration::from_secs(20);
        new.expire_clients(71, window, BOUNDS);
        assert_eq!(new.occupancy().0, 1);
        new.expire_clients(72, window, BOUNDS);
        assert_eq!(new.occupancy(), (0, 0), "its log went with it");
    }
}
