//! Three nodes against a model that is too simple to be wrong: random connections, subscriptions, events,
//! deaths of nodes, links that are cut and made again, nodes that sleep for longer than a lease, orders that are refused,
//! lost with their answer or late, leases that lapse, and a Redis that loses everything, over a loopback that brings everything in an
//! order left to chance. Whenever all links are there and all has arrived, every subscriber has been told of every event once
//! and in its publisher's order and of how many they are, all nodes agree on who is present and which cached event is the
//! last, and webhooks have been told what is so.

use std::collections::{BTreeMap, BTreeSet};

use fanfare::app::{App, AppId};
use fanfare::cluster::Topic;
use fanfare::protocol::channel::ChannelName;
use fanfare::protocol::member::UserId;
use serde_json::Value;

use crate::support::Chance;
use crate::support::beyond::OrderFate;
use crate::support::fixture::{ID, webhook};
use crate::support::loopback::Loopback;
use crate::support::memory::Talk;
use crate::support::websocket::Heard;

const NODES: usize = 3;
const CONNECTIONS: usize = 9;
const CHANNELS: [&str; 4] = ["pub", "presence-a", "cache-c", "presence-cache-d"];
const USERS: [&str; 4] = ["1", "2", "3", "4"];
/// One user too many for all to be in.
const MEMBERS: usize = 3;
const STEPS: usize = 3000;

/// One connection as the model knows it.
struct Peer {
    talk: Talk,
    node: usize,
    /// What it asked for, on presence channels as whom; and what it was told of each.
    asked: BTreeMap<&'static str, &'static str>,
    told: BTreeMap<&'static str, Told>,
}

/// What a connection was told of a channel since it is subscribed.
#[derive(Default)]
struct Told {
    present: BTreeSet<String>,
    /// Who has left.
    gone: BTreeSet<String>,
    /// The last event of each publisher, and the last of all.
    last: BTreeMap<usize, usize>,
    cached: Option<String>,
    /// Events that were published since, and have not come.
    due: BTreeSet<String>,
    /// How many subscribe.
    count: Option<usize>,
}

impl Peer {
    fn new(all: &Loopback, node: usize) -> Self {
        let talk = all.nodes[node].memory.connect(0);
        let (asked, told) = Default::default();
        Self { talk, node, asked, told }
    }

    fn is_in(&self, channel: &str) -> bool {
        self.told.contains_key(channel)
    }

    fn listen(&mut self) {
        self.talk.session.resume();
        for heard in self.talk.heard() {
            let Heard::Text(text) = heard else { panic!("heard {heard:?}") };
            let frame: Value = serde_json::from_str(&text).unwrap();
            let name = frame["channel"].as_str().unwrap_or_default();
            let channel = CHANNELS.iter().find(|channel| **channel == name).copied();
            let event = frame["event"].as_str().unwrap();
            // Of what it has left again it is told nothing but that it came.
            let Some(channel) = channel.filter(|channel| self.asked.contains_key(channel)) else {
                continue;
            };
            let data = match &frame["data"] {
                Value::String(data) => serde_json::from_str(data).unwrap(),
                data => data.clone(),
            };
            match event {
                "pusher_internal:subscription_succeeded" => {
                    let ids = data["presence"]["ids"].as_array().cloned().unwrap_or_default();
                    let present: BTreeSet<String> = ids.iter().map(word).collect();
                    assert_eq!(present.len(), ids.len(), "twice in {text}");
                    let own = self.asked[channel];
                    assert!(own.is_empty() || present.contains(own), "{own} is not in {text}");
                    self.told.insert(channel, Told { present, ..Told::default() });
                }
                "pusher:subscription_error" | "pusher:error" => {
                    self.asked.remove(channel);
                }
                _ if !self.is_in(channel) => panic!("before it was subscribed: {text}"),
                "pusher_internal:member_added" | "pusher_internal:member_removed" => {
                    assert_ne!(data["user_id"], self.asked[channel], "told of itself: {text}");
                    self.told.get_mut(channel).unwrap().take(event, &data, &text);
                }
                _ => self.told.get_mut(channel).unwrap().take(event, &data, &text),
            }
        }
    }
}

impl Told {
    fn take(&mut self, event: &str, data: &Value, text: &str) {
        match event {
            "pusher_internal:member_added" => {
                assert!(self.present.insert(word(&data["user_id"])), "twice: {text}");
            }
            "pusher_internal:member_removed" => {
                let user = word(&data["user_id"]);
                assert!(self.present.remove(&user), "was not there: {text}");
                self.gone.insert(user);
            }
            "pusher_internal:subscription_count" => {
                self.count = data["subscription_count"].as_u64().map(|count| count as usize);
            }
            "pusher:cache_miss" => assert_eq!(self.cached, None, "{text}"),
            "e" => {
                let said = word(&data["said"]);
                let (by, number) = said.split_once(':').unwrap();
                let number: usize = number.parse().unwrap();
                let before = self.last.insert(by.parse().unwrap(), number);
                assert!(before.is_none_or(|before| before < number), "{text} after {before:?}");
                self.due.remove(&said);
                self.cached = Some(said);
            }
            event => panic!("{event}: {text}"),
        }
    }
}

/// What an event says, by its frame.
fn said_in(frame: &[u8]) -> String {
    let begin = frame.windows(2).position(|bytes| bytes == br#"{""#).unwrap();
    let frame: Value = serde_json::from_slice(&frame[begin..]).unwrap();
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    word(&data["said"])
}

fn word(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn topic(channel: &str) -> Topic {
    Topic { app: AppId::new(ID), channel: ChannelName::parse(channel, 200).unwrap() }
}

#[test]
fn who_is_let_in_while_the_link_is_made_anew_is_present_elsewhere_though_there_is_no_room() {
    let mut chance = Chance::new("let in and refused");
    let mut was_let_in = false;
    for _ in 0..100 {
        let mut all = Loopback::new(2, |app: &mut App| app.limits.max_presence_members = 1);
        let mut peers = vec![Peer::new(&all, 0), Peer::new(&all, 1)];
        for (peer, user) in peers.iter_mut().zip(["1", "2"]) {
            if user == "2" {
                // It is known to be away only behind the order to join, which is carried out over the next link.
                all.cut(1);
                all.mend(1);
            }
            peer.talk.subscribe("presence-a", user);
            peer.asked.insert("presence-a", user);
            if user == "1" {
                while all.step(&mut chance) {}
            }
        }
        settle(&mut all, &mut peers, &mut chance);
        let there = peers.iter().filter(|peer| peer.is_in("presence-a")).count();
        assert_eq!(
            all.members(&topic("presence-a")).len(),
            there,
            "who is in a channel is present"
        );
        was_let_in |= there == 2;
    }
    assert!(was_let_in, "in none of the orders");
}

/// Subscribers are told how many they are, and webhooks what is occupied and who is present.
fn tell_all(app: &mut App) {
    app.features.subscription_count = true;
    app.webhooks = vec![webhook("http://127.0.0.1:1/")];
}

/// Nodes with connections of three users in turn, all in one presence channel, and one of a fourth.
fn crowd(chance: &mut Chance) -> (Loopback, Vec<Peer>) {
    let mut all = Loopback::new(NODES, tell_all);
    let mut peers: Vec<Peer> =
        (0..CONNECTIONS).map(|number| Peer::new(&all, number % NODES)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        let user = if number + 1 == CONNECTIONS { USERS[3] } else { USERS[number % 3] };
        peer.talk.subscribe("presence-a", user);
        peer.asked.insert("presence-a", user);
    }
    settle(&mut all, &mut peers, chance);
    (all, peers)
}

#[test]
fn who_stays_is_not_said_to_leave_though_redis_has_lost_who_is_present() {
    let mut chance = Chance::new("lost by redis");
    for _ in 0..100 {
        let (mut all, mut peers) = crowd(&mut chance);
        all.flush();
        peers.pop();
        agree(&mut all, &mut peers, &mut chance, &BTreeSet::new());
        for told in peers.iter().map(|peer| &peer.told["presence-a"]) {
            assert_eq!(told.gone, BTreeSet::from([USERS[3].to_owned()]));
        }
    }
}

/// Its lease is renewed some seconds later.
#[test]
fn who_hears_that_it_was_taken_for_dead_is_back_before_it_renews_its_lease() {
    let mut chance = Chance::new("taken for dead");
    for _ in 0..100 {
        let (mut all, mut peers) = crowd(&mut chance);
        all.renews = false;
        all.lapse(0);
        agree(&mut all, &mut peers, &mut chance, &BTreeSet::new());
    }
}

#[test]
fn three_nodes_are_what_the_model_is() {
    let mut chance = Chance::new("nodes and model");
    let mut all = Loopback::new(NODES, |app: &mut App| {
        app.limits.max_presence_members = MEMBERS;
        tell_all(app);
    });
    let mut peers: Vec<Peer> =
        (0..CONNECTIONS).map(|number| Peer::new(&all, number % NODES)).collect();
    let mut parted = BTreeSet::new();
    for number in 1..STEPS {
        act(&mut all, &mut peers, &mut chance, number, &mut parted);
        for _ in 0..chance.below(8) {
            all.step(&mut chance);
            all.check_kept();
        }
        if chance.below(4) == 0 {
            let peer = chance.below(peers.len());
            let memory = &all.nodes[peers[peer].node].memory;
            memory.deliver_all();
            peers[peer].listen();
        }
        if chance.below(20) == 0 {
            agree(&mut all, &mut peers, &mut chance, &parted);
        }
    }
    agree(&mut all, &mut peers, &mut chance, &parted);
}

/// One random thing is done. A node that is cut off gives its own subscribers what it has published and what others
/// have in another order than they hear it, and so what they hear last need not be the same: until the next event,
/// channels are `parted`.
fn act(
    all: &mut Loopback,
    peers: &mut [Peer],
    chance: &mut Chance,
    number: usize,
    parted: &mut BTreeSet<&'static str>,
) {
    let at = chance.below(peers.len());
    let channel = CHANNELS[chance.below(CHANNELS.len())];
    match chance.below(60) {
        0..16 => {
            let peer = &mut peers[at];
            let presence = channel.starts_with("presence-");
            let user = if presence { USERS[chance.below(USERS.len())] } else { "" };
            if !peer.asked.contains_key(channel) {
                peer.talk.subscribe(channel, user);
                peer.asked.insert(channel, user);
            }
        }
        16..24 => {
            let peer = &mut peers[at];
            // Whoever waits for one subscription says nothing else before.
            if peer.is_in(channel) && peer.told.len() == peer.asked.len() {
                peer.talk.unsubscribe(channel);
                settle_one(all, peer);
                peer.asked.remove(channel);
                peer.told.remove(channel);
            }
        }
        24..27 => {
            let node = chance.below(NODES);
            peers[at] = Peer::new(all, node);
        }
        27..39 => {
            let node = chance.below(NODES);
            let said = format!("{}:{number}", all.nodes[node].number);
            let data = serde_json::json!({ "said": said }).to_string();
            for peer in peers.iter_mut() {
                if let Some(told) = peer.told.get_mut(channel) {
                    told.due.insert(said.clone());
                }
            }
            all.nodes[node].memory.publish(0, channel, "e", &data);
            if all.is_whole() {
                parted.remove(channel);
            } else {
                parted.insert(channel);
            }
        }
        39..43 => {
            let node = chance.below(NODES);
            if all.is_cut(node) {
                all.mend(node);
            } else {
                all.cut(node);
                parted.extend(CHANNELS);
            }
        }
        43..59 => {
            parted.extend(CHANNELS);
            fail(all, chance);
        }
        _ => {
            // What it had said was said.
            let node = chance.below(NODES);
            settle(all, peers, chance);
            all.kill(node);
            for peer in peers.iter_mut().filter(|peer| peer.node == node) {
                *peer = Peer::new(all, node);
            }
        }
    }
}

/// A fault that ends by itself.
fn fail(all: &mut Loopback, chance: &mut Chance) {
    let node = chance.below(NODES);
    match chance.below(16) {
        0..6 if all.is_asleep(node) => all.wake(node),
        0..6 => all.fall_asleep(node),
        // A node that is awake has renewed its lease, but to the others' clocks, which step, too long ago.
        6..8 => all.lapse(node),
        8..10 if !all.is_cut(node) => all.cut_late(node),
        10..12 => all.doom_order(node, OrderFate::Refused),
        12..14 => all.doom_order(node, OrderFate::Unanswered),
        14 => all.restart(),
        _ => all.flush(),
    }
}

/// What the connection was told up to now is taken in, so that nothing of it is taken for news later.
fn settle_one(all: &Loopback, peer: &mut Peer) {
    all.nodes[peer.node].memory.deliver_all();
    peer.listen();
}

/// All links are made, and everything that is on its way arrives.
fn settle(all: &mut Loopback, peers: &mut [Peer], chance: &mut Chance) {
    let mut steps = 0;
    for node in 0..all.nodes.len() {
        all.wake(node);
        if all.is_cut(node) {
            all.mend(node);
        }
    }
    loop {
        while all.step(chance) {
            all.check_kept();
            steps += 1;
            assert!(steps < 100_000, "it goes on for ever");
        }
        all.nodes.iter().for_each(|node| node.memory.deliver_all());
        peers.iter_mut().for_each(Peer::listen);
        // Who waited may have gone on with what it had said meanwhile.
        if !all.step(chance) {
            return;
        }
    }
}

/// Once everything has arrived, nobody misses anything, and all see the same.
fn agree(
    all: &mut Loopback,
    peers: &mut [Peer],
    chance: &mut Chance,
    parted: &BTreeSet<&'static str>,
) {
    settle(all, peers, chance);
    for peer in peers.iter_mut() {
        let number = all.nodes[peer.node].number;
        for (_, topic, frame) in all.missed().iter().filter(|(node, ..)| *node == number) {
            if let Some(told) = peer.told.get_mut(topic.channel.as_str()) {
                told.due.remove(&said_in(frame));
            }
        }
    }
    all.note_settled();
    for peer in &*peers {
        let asked: Vec<_> = peer.asked.keys().collect();
        assert_eq!(asked, peer.told.keys().collect::<Vec<_>>(), "one still waits");
        for (channel, told) in &peer.told {
            assert!(told.due.is_empty(), "{channel}: missed {:?}", told.due);
        }
    }
    for channel in CHANNELS {
        let topic = topic(channel);
        let mut members = all.members(&topic);
        // Who leaves a node and comes back at once, twice, may have a place of its own there.
        members.sort_unstable();
        let here: BTreeSet<String> = peers
            .iter()
            .filter(|peer| peer.is_in(channel))
            .filter_map(|peer| peer.asked.get(channel).filter(|user| !user.is_empty()))
            .map(|user| (*user).to_owned())
            .collect();
        let kept: BTreeSet<String> = members.iter().map(|user| user.as_str().to_owned()).collect();
        assert_eq!(kept, here, "{channel}");
        let mut cached = None;
        for peer in peers.iter().filter(|peer| peer.is_in(channel)) {
            let told = &peer.told[channel];
            assert_eq!(told.present, here, "{channel}");
            if channel.contains("cache-") && !parted.contains(channel) {
                assert_eq!(
                    &told.cached,
                    cached.get_or_insert_with(|| told.cached.clone()),
                    "{channel}"
                );
            }
            let cluster = all.nodes[peer.node].memory.shared.scope.others().unwrap();
            let (mut roster, cached) = cluster
                .topics
                .read_topic(&topic, |entry| (entry.roster.users(), entry.cache_version()))
                .unwrap();
            roster.sort_unstable();
            assert_eq!(roster, members, "{channel}");
            if !all.is_behind(&topic) {
                assert_eq!(cached, all.cache_version(&topic), "{channel}");
            }
        }
    }
    agree_on_counts(all, peers);
}

/// How many subscribe is what each was told last, and webhooks are told what is.
fn agree_on_counts(all: &Loopback, peers: &[Peer]) {
    let mut held = BTreeSet::new();
    for channel in CHANNELS {
        let inside: Vec<&Peer> = peers.iter().filter(|peer| peer.is_in(channel)).collect();
        for peer in &inside {
            let user = UserId::parse(peer.asked[channel]);
            held.insert((topic(channel), None));
            if user.is_some() {
                held.insert((topic(channel), user));
            } else {
                assert_eq!(peer.told[channel].count, Some(inside.len()), "{channel}");
            }
        }
    }
    assert_eq!(all.told_of(), held);
}
