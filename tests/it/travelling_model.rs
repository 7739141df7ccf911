//! Clients that come back to any of three nodes against a model that is too simple to be wrong, over a loopback that
//! brings everything in an order left to chance: cuts, takeovers by the same token, exclusions, logs that do not reach
//! back, rights that are taken back and nodes that die. Each connection hears what its client has not acknowledged,
//! in the order of the channel's log, and then what is new; or it is told of a gap, where there may be one.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fanfare::app::{App, AppId};
use fanfare::cluster::Topic;
use fanfare::protocol::channel::ChannelName;
use fanfare::protocol::socket_id::SocketId;
use serde_json::Value;

use crate::support::Chance;
use crate::support::fixture::ID;
use crate::support::loopback::Loopback;
use crate::support::memory::Talk;
use crate::support::websocket::Heard;

const NODES: usize = 3;
const CLIENTS: usize = 4;
const CHANNELS: [&str; 3] = ["pub", "private-x", "presence-a"];
const SEEDS: usize = 2000;
/// Of each, at most.
const STEPS: usize = 80;

/// A channel that a client holds, by places in its log.
#[derive(Clone, Copy, Default)]
struct Held {
    /// All from here on must be heard on the next connection.
    must: usize,
    /// Nothing before this may come any more.
    may: usize,
    /// A node died, or a right was taken back a moment ago: nobody may know what it has.
    is_doubtful: bool,
}

/// What a connection was told of a channel since it is subscribed.
#[derive(Default)]
struct Stream {
    is_told: bool,
    /// What it held as it subscribed; nothing if it did not hold the channel.
    held: Option<Held>,
    had_gap: bool,
    /// How long the log was when it was told that it is subscribed.
    begun: usize,
    /// Behind the last event that it heard.
    next: Option<usize>,
}

impl Stream {
    /// The first event that may not be missing any more.
    fn due(&self) -> usize {
        let begin = match self.held {
            Some(held) if !self.had_gap => held.must,
            _ => self.begun,
        };
        self.next.unwrap_or(begin)
    }

    /// The first event that may come.
    fn least(&self) -> usize {
        let may = self.held.map_or(0, |held| held.may);
        self.next.unwrap_or(may)
    }
}

#[derive(Default)]
struct Client {
    token: String,
    user: String,
    node: usize,
    talk: Option<Talk>,
    sockets: BTreeSet<SocketId>,
    /// Those that nodes know of: a client that holds nothing is forgotten once it is cut off.
    known: BTreeSet<SocketId>,
    /// One whose node is still to say that it has the client, since the one before had just ended there.
    unsaid: Option<SocketId>,
    held: BTreeMap<&'static str, Held>,
    streams: BTreeMap<&'static str, Stream>,
    /// Closed to this connection for good.
    closed: BTreeSet<&'static str>,
    /// What its connection had heard of each channel when it was pinged last, until it answers.
    asked: Option<BTreeMap<&'static str, usize>>,
    /// The node of one of its connections has died since what it holds was certain.
    is_doubtful: bool,
}

struct World {
    all: Loopback,
    clients: Vec<Client>,
    now: Instant,
    events: usize,
}

fn topic(channel: &str) -> Topic {
    Topic { app: AppId::new(ID), channel: ChannelName::parse(channel, 200).unwrap() }
}

impl Client {
    fn new(number: usize) -> Self {
        let (token, user) = (format!("client-{number:016}"), format!("u{number}"));
        Self { token, user, ..Self::default() }
    }

    /// The link is gone; what was on its way is lost.
    fn cut(&mut self) {
        self.talk = None;
        self.streams.clear();
        self.closed.clear();
        self.asked = None;
    }

    /// Takes in what its connection was told, and holds it against the logs.
    fn listen(&mut self, all: &Loopback) {
        let Some(talk) = &mut self.talk else { return };
        talk.session.resume();
        for heard in talk.heard() {
            let Heard::Text(text) = heard else { panic!("heard {heard:?}") };
            println!("  {} on {} hears {text}", self.token, self.node);
            let frame: Value = serde_json::from_str(&text).unwrap();
            let name = frame["channel"].as_str().unwrap_or_default();
            let channel = CHANNELS.iter().find(|channel| **channel == name).copied();
            let log = channel.map(|channel| all.logged(&topic(channel))).unwrap_or_default();
            match (frame["event"].as_str().unwrap(), channel) {
                ("pusher:ping", _) => {
                    assert!(self.asked.is_none(), "one ping at a time");
                    let heard = self.streams.iter();
                    self.asked =
                        Some(heard.filter_map(|(name, one)| Some((*name, one.next?))).collect());
                }
                ("pusher:signin_success", _) => {}
                ("pusher_internal:subscription_succeeded", Some(channel)) => {
                    let held = self.held.get(channel).copied();
                    let stream = self.streams.get_mut(channel).expect("it asked for that");
                    if !stream.is_told {
                        *stream =
                            Stream { is_told: true, held, begun: log.len(), ..Stream::default() };
                        // From now on it has the channel, wherever that begins.
                        self.held
                            .entry(channel)
                            .or_insert_with(|| Held { must: log.len(), ..Held::default() });
                    }
                }
                ("pusher:subscription_error", Some(channel)) => {
                    self.streams.remove(channel);
                    self.held.remove(channel);
                    self.closed.insert(channel);
                }
                ("resume:gap", Some(channel)) => {
                    let stream = self.streams.get_mut(channel).expect("it is subscribed");
                    assert!(stream.is_told && !stream.had_gap && stream.next.is_none(), "{text}");
                    let acked = stream.held.map_or(usize::MAX, |held| held.may);
                    let is_short = acked < log.len().saturating_sub(all.replay);
                    let doubtful =
                        self.is_doubtful || stream.held.is_some_and(|held| held.is_doubtful);
                    assert!(is_short || doubtful, "{} has no gap: {text}", self.token);
                    stream.had_gap = true;
                    // What was before it is fetched.
                    let held = self.held.get_mut(channel).expect("it was subscribed");
                    held.must = held.must.max(stream.begun);
                }
                ("e", Some(channel)) => {
                    let bytes = text.as_bytes();
                    let place = log.iter().position(|(_, frame)| frame.ends_with(bytes)).unwrap();
                    let except = log[place].0;
                    assert_ne!(except, Some(talk.id()), "it was not for this connection");
                    let is_own = except.is_some_and(|id| self.known.contains(&id));
                    assert!(!is_own || self.is_doubtful, "{}: its own {text}", self.token);
                    let stream = self.streams.get_mut(channel).expect("it is subscribed");
                    assert!(stream.is_told, "before it was subscribed: {text}");
                    let sockets = &self.sockets;
                    let from = stream.due();
                    let skipped = log.get(from..place).unwrap_or_default();
                    let is_for =
                        |except: &Option<SocketId>| !except.is_some_and(|id| sockets.contains(&id));
                    let missed: Vec<_> = skipped.iter().filter(|one| is_for(&one.0)).collect();
                    assert!(missed.is_empty(), "{} misses {missed:?} before {text}", self.token);
                    let least = stream.least();
                    assert!(place >= least, "{}: {text} comes again, of {least}", self.token);
                    stream.next = Some(place + 1);
                }
                (event, _) if event.starts_with("pusher_internal:member_") => {}
                (event, _) => panic!("{event}: {text}"),
            }
        }
    }

    /// Answers the ping, if there is one: what was heard before is acknowledged.
    fn acknowledge(&mut self) {
        let (Some(talk), Some(asked)) = (&mut self.talk, self.asked.take()) else { return };
        talk.say(r#"{"event":"pusher:pong","data":{}}"#);
        for (channel, heard) in asked {
            if let Some(held) = self.held.get_mut(channel) {
                *held = Held { must: held.must.max(heard), may: held.may.max(heard), ..*held };
            }
        }
    }
}

impl World {
    fn new(replay: usize) -> Self {
        let mut all = Loopback::new(NODES, |app: &mut App| {
            app.features.resume = Duration::from_secs(120);
        });
        all.replay = replay;
        let clients = (0..CLIENTS).map(Client::new).collect();
        Self { all, clients, now: Instant::now(), events: 0 }
    }

    /// A new connection to that node, whether or not the last one has ended.
    fn connect(&mut self, which: usize, node: usize, chance: &mut Chance) {
        self.reconnect((which, node), chance.below(2) == 0, chance);
    }

    /// The same; the last one may end after it was found out where that is, before this one takes its place.
    fn reconnect(&mut self, at: (usize, usize), ends_first: bool, chance: &mut Chance) {
        let (which, node) = at;
        self.clients[which].listen(&self.all);
        let old = self.clients[which].talk.take();
        let token = self.clients[which].token.clone();
        let mut claim = pin!(self.all.nodes[node].memory.claim(0, &token));
        let mut cx = Context::from_waker(Waker::noop());
        let claim = loop {
            match claim.as_mut().poll(&mut cx) {
                Poll::Ready(claim) => break claim,
                Poll::Pending => assert!(self.all.step(chance), "a claim is answered"),
            }
        };
        let old = old.filter(|_| !ends_first);
        let mut talk = self.all.nodes[node].memory.connect_claimed(0, &token, claim);
        self.all.nodes.iter().for_each(|node| node.memory.deliver_all());
        drop(old);
        let client = &mut self.clients[which];
        client.cut();
        if client.held.is_empty() {
            client.known.clear();
        }
        client.sockets.insert(talk.id());
        client.unsaid = Some(talk.id()).filter(|_| ends_first);
        client.known.extend(Some(talk.id()).filter(|_| !ends_first));
        talk.sign_in(&format!(r#"{{"id":"{}"}}"#, client.user));
        (client.node, client.talk) = (node, Some(talk));
    }

    fn subscribe(&mut self, which: usize, channel: &'static str) {
        let client = &mut self.clients[which];
        client.listen(&self.all);
        let Some(talk) = &mut client.talk else { return };
        // Who waits for one subscription says nothing else before.
        let waits = client.streams.values().any(|stream| !stream.is_told);
        if !waits && !client.streams.contains_key(channel) && !client.closed.contains(channel) {
            talk.subscribe(channel, &client.user);
            client.streams.insert(channel, Stream::default());
        }
    }

    fn unsubscribe(&mut self, which: usize, channel: &'static str, chance: &mut Chance) {
        // Events that are on their way may still arrive, or not.
        self.settle(chance);
        let client = &mut self.clients[which];
        if let Some(talk) = &mut client.talk
            && client.streams.remove(channel).is_some()
        {
            talk.unsubscribe(channel);
            client.held.remove(channel);
        }
    }

    fn publish(&mut self, node: usize, channel: &'static str, except: Option<SocketId>) {
        self.events += 1;
        let data = self.events.to_string();
        self.all.nodes[node].memory.publish_except(0, channel, ("e", &data), except);
    }

    fn ping(&mut self, chance: &mut Chance) {
        self.now += Duration::from_millis(500);
        self.all.nodes.iter().for_each(|node| node.memory.ping_due(self.now));
        for client in &mut self.clients {
            client.listen(&self.all);
            if chance.below(2) == 0 {
                client.acknowledge();
            }
        }
    }

    /// Takes one channel from a user: its connection loses it, and what it holds for the next one.
    fn withdraw(&mut self, which: usize, node: usize, channel: &'static str, chance: &mut Chance) {
        self.settle(chance);
        let user = self.clients[which].user.clone();
        let done = self.all.nodes[node].memory.withdraw(0, &user, &[channel]);
        self.settle(chance);
        drop(done);
        let client = &mut self.clients[which];
        client.held.remove(channel);
        if client.talk.is_some() {
            assert!(!client.streams.contains_key(channel), "it was told that it may not");
            client.closed.insert(channel);
        }
        // A withdrawal and a record within a second are not told apart.
        client.is_doubtful = true;
    }

    /// The node dies. What it had said was said; of what its clients have acknowledged nobody may know.
    fn kill(&mut self, node: usize, chance: &mut Chance) {
        self.settle(chance);
        self.all.kill(node);
        for client in self.clients.iter_mut().filter(|client| client.node == node) {
            if client.talk.is_some() {
                client.is_doubtful = true;
                client.held.values_mut().for_each(|held| (held.may, held.is_doubtful) = (0, true));
            }
            client.cut();
        }
    }

    /// Everything that is on its way arrives.
    fn settle(&mut self, chance: &mut Chance) {
        loop {
            while self.all.step(chance) {}
            self.all.nodes.iter().for_each(|node| node.memory.deliver_all());
            self.clients.iter_mut().for_each(|client| client.listen(&self.all));
            if !self.all.step(chance) {
                break;
            }
        }
        self.clients.iter_mut().for_each(|client| client.known.extend(client.unsaid.take()));
    }

    /// Once everything has arrived, nobody who is subscribed misses anything.
    fn is_whole(&mut self, chance: &mut Chance) {
        self.settle(chance);
        for client in &self.clients {
            for (channel, stream) in &client.streams {
                assert!(stream.is_told, "{} still waits for {channel}", client.token);
                let log = self.all.logged(&topic(channel));
                let from = stream.due();
                let left = log.iter().skip(from);
                let is_for = |except: &Option<SocketId>| {
                    !except.is_some_and(|id| client.sockets.contains(&id))
                };
                let missed: Vec<_> = left.filter(|one| is_for(&one.0)).collect();
                assert!(missed.is_empty(), "{} misses {missed:?} of {channel}", client.token);
            }
        }
    }
}

fn run(chance: &mut Chance) {
    let replay = [4, 30, usize::MAX][chance.below(3)];
    let mut world = World::new(replay);
    for _ in 0..20 + chance.below(STEPS - 20) {
        let (which, node) = (chance.below(CLIENTS), chance.below(NODES));
        let channel = CHANNELS[chance.below(CHANNELS.len())];
        let what = chance.below(40);
        println!("{what}: client {which}, node {node}, {channel}");
        match what {
            0..=2 => world.connect(which, node, chance),
            3 => {
                world.clients[which].listen(&world.all);
                world.clients[which].cut();
            }
            4..=13 => world.subscribe(which, channel),
            14 => world.unsubscribe(which, channel, chance),
            15..=26 => world.publish(node, channel, None),
            27..=28 => {
                // The one that it has, or one that it had.
                let sockets = world.clients[which].sockets.iter().rev();
                let except = sockets.copied().nth(chance.below(3));
                world.publish(node, channel, except);
            }
            29..=32 => world.ping(chance),
            33..=36 => {
                world.all.nodes[node].memory.deliver_all();
                world.clients[which].listen(&world.all);
            }
            37 if chance.below(3) == 0 => world.withdraw(which, node, channel, chance),
            38 if chance.below(4) == 0 => world.kill(node, chance),
            _ => world.settle(chance),
        }
        for _ in 0..chance.below(6) {
            world.all.step(chance);
        }
    }
    world.is_whole(chance);
}

/// A world without chance but in what arrives when, where one client is subscribed to the private channel.
fn scripted(chance: &mut Chance) -> World {
    let mut world = World::new(usize::MAX);
    world.connect(0, 0, chance);
    world.subscribe(0, "private-x");
    world.settle(chance);
    world
}

/// It was taken out of what the client held, and the client was not told that it may have missed something.
#[test]
fn a_channel_that_was_entered_again_behind_a_withdrawal_had_no_gap() {
    in_a_runtime(|| {
        let mut chance = Chance::new("entered again");
        let mut world = scripted(&mut chance);
        world.withdraw(0, 1, "private-x", &mut chance);
        world.connect(0, 0, &mut chance);
        world.subscribe(0, "private-x");
        world.settle(&mut chance);
        world.clients[0].cut();
        world.publish(1, "private-x", None);
        world.settle(&mut chance);
        world.connect(0, 1, &mut chance);
        world.subscribe(0, "private-x");
        world.is_whole(&mut chance);
    });
}

/// What it held was known neither from here nor from Redis, and the page was not told of a gap.
#[test]
fn what_a_page_had_missed_was_lost_if_its_old_connection_ended_while_the_new_one_came() {
    in_a_runtime(|| {
        let mut chance = Chance::new("ended first");
        let mut world = scripted(&mut chance);
        world.publish(1, "private-x", None);
        world.settle(&mut chance);
        world.reconnect((0, 0), true, &mut chance);
        world.subscribe(0, "private-x");
        world.is_whole(&mut chance);
        // Redis hears of the end behind the new connection.
        world.publish(1, "private-x", None);
        world.settle(&mut chance);
        world.reconnect((0, 1), false, &mut chance);
        world.subscribe(0, "private-x");
        world.is_whole(&mut chance);
    });
}

/// The answer waited behind a subscription that waits for Redis, and was lost with the connection.
#[test]
fn a_pong_behind_a_subscription_that_waits_acknowledged_nothing() {
    in_a_runtime(|| {
        let mut chance = Chance::new("pong behind");
        let mut world = scripted(&mut chance);
        world.publish(1, "private-x", None);
        world.settle(&mut chance);
        world.all.nodes[0].memory.ping_due(world.now);
        world.subscribe(0, "pub");
        world.clients[0].listen(&world.all);
        world.clients[0].acknowledge();
        assert_eq!(world.clients[0].held["private-x"].may, 1, "it was asked, and has answered");
        world.connect(0, 1, &mut chance);
        world.subscribe(0, "private-x");
        world.is_whole(&mut chance);
    });
}

/// What a dead node knew of a client is lost for good, however often it is cut off before it subscribes again.
#[test]
fn a_gap_was_forgotten_when_the_client_was_cut_off_again() {
    in_a_runtime(|| {
        let mut chance = Chance::new("cut off again");
        let mut world = scripted(&mut chance);
        world.kill(0, &mut chance);
        world.publish(1, "private-x", None);
        world.settle(&mut chance);
        for node in [1, 1, 2] {
            world.connect(0, node, &mut chance);
        }
        world.clients[0].cut();
        world.settle(&mut chance);
        world.connect(0, 2, &mut chance);
        world.subscribe(0, "private-x");
        world.is_whole(&mut chance);
        assert!(world.clients[0].streams["private-x"].had_gap);
    });
}

/// What claims and withdrawals wait for has timers, though none of them ends here.
fn in_a_runtime(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();
    test();
}

#[test]
fn who_comes_back_to_any_node_hears_what_the_model_says() {
    in_a_runtime(|| {
        // One round alone, for looking into it.
        if let Some(round) = std::env::var("TEST_ROUND").ok().and_then(|round| round.parse().ok()) {
            return run(&mut Chance::seeded(round));
        }
        let mut seeds = Chance::new("travelling");
        for _ in 0..SEEDS {
            let seed = seeds.below(usize::MAX) as u64;
            println!("TEST_ROUND={seed}");
            run(&mut Chance::seeded(seed));
        }
    });
}
