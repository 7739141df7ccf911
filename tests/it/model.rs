//! The hub against a model that is too simple to be wrong: random connections, subscriptions, events and
//! ends on several workers, whose inboxes are emptied at random times. At every step the counts agree, and
//! every subscriber's view of who is present and of what was said is the model's.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::Chance;
use crate::support::memory::{Memory, Talk};
use crate::support::websocket::Heard;

const CHANNELS: [&str; 6] =
    ["pub", "private-x", "presence-a", "presence-b", "cache-c", "presence-cache-d"];
const USERS: [&str; 3] = ["1", "2", "3"];
const WORKERS: usize = 3;
const CONNECTIONS: usize = 8;
const STEPS: usize = 4000;

/// Stands among the events that are due for a `cache_miss`.
const MISS: &str = "nothing is cached";

/// One connection as the model knows it.
struct Peer {
    talk: Talk,
    /// The channels it is in, on presence channels with the user it is there as.
    channels: BTreeMap<&'static str, &'static str>,
    /// Whom it has been told of, by channel.
    present: BTreeMap<&'static str, BTreeSet<String>>,
    /// The step in which it subscribed. An event from before may still reach it, but none must.
    since: BTreeMap<&'static str, usize>,
    /// Events it must still hear, by channel.
    due: BTreeMap<&'static str, Vec<String>>,
}

impl Peer {
    fn new(memory: &Memory, worker: usize) -> Self {
        let talk = memory.connect(worker);
        let (channels, present, since, due) = Default::default();
        Self { talk, channels, present, since, due }
    }

    /// Takes in what was told, and holds it against what was due.
    fn listen(&mut self) {
        for heard in self.talk.heard() {
            let Heard::Text(text) = heard else { panic!("heard {heard:?}") };
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            let name = frame["channel"].as_str().unwrap();
            let channel = *CHANNELS.iter().find(|channel| **channel == name).unwrap();
            let data = frame["data"].as_str().unwrap();
            let json = || serde_json::from_str::<serde_json::Value>(data).unwrap();
            let user = || json()["user_id"].as_str().unwrap().to_owned();
            let present = self.present.entry(channel).or_default();
            match frame["event"].as_str().unwrap() {
                "pusher_internal:subscription_succeeded" => {
                    let ids = json()["presence"]["ids"].as_array().cloned().unwrap_or_default();
                    *present = ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect();
                    assert_eq!(present.len(), ids.len(), "{text}");
                }
                "pusher_internal:member_added" => assert!(present.insert(user()), "twice: {text}"),
                "pusher_internal:member_removed" => {
                    assert!(present.remove(&user()), "was not there: {text}");
                }
                "e" => {
                    let due = self.due.entry(channel).or_default();
                    if data.parse::<usize>().unwrap() > self.since[channel] {
                        assert!(!due.is_empty() && due.remove(0) == data, "not due: {text}");
                    }
                }
                "pusher:cache_miss" => {
                    assert_eq!(self.due.entry(channel).or_default().remove(0), MISS);
                }
                event => panic!("{event}: {text}"),
            }
        }
    }
}

/// Subscriptions of a channel, and its distinct users.
fn count(peers: &[Peer], channel: &str) -> (usize, BTreeSet<String>) {
    let users: Vec<_> = peers.iter().filter_map(|peer| peer.channels.get(channel)).collect();
    let distinct = users.iter().filter(|user| !user.is_empty());
    (users.len(), distinct.map(|user| (**user).to_owned()).collect())
}

#[test]
fn the_hub_is_what_the_model_is() {
    let memory = Memory::new(WORKERS, |_| {});
    let mut chance = Chance::new("hub and model");
    let mut peers: Vec<Peer> =
        (0..CONNECTIONS).map(|number| Peer::new(&memory, number % WORKERS)).collect();
    let mut last = BTreeMap::new();
    for number in 1..STEPS {
        step(&memory, &mut peers, &mut last, &mut chance, number);
        for channel in CHANNELS {
            let (subscriptions, users) = count(&peers, channel);
            assert_eq!(memory.inspect(channel), (subscriptions, users.len()), "{channel}");
        }
        if chance.below(10) == 0 {
            agree(&memory, &mut peers);
        }
    }
    agree(&memory, &mut peers);
    drop(peers);
    for channel in CHANNELS {
        assert_eq!(memory.inspect(channel), (0, 0), "{channel} after everyone has left");
    }
}

/// One random thing happens.
fn step(
    memory: &Memory,
    peers: &mut [Peer],
    last: &mut BTreeMap<&'static str, String>,
    chance: &mut Chance,
    number: usize,
) {
    let at = chance.below(peers.len());
    let channel = CHANNELS[chance.below(CHANNELS.len())];
    match chance.below(10) {
        0..4 => {
            let peer = &mut peers[at];
            let presence = channel.starts_with("presence-");
            let user = if presence { USERS[chance.below(USERS.len())] } else { "" };
            // Nobody is there as two users at once; that has a test of its own.
            let again = peer.channels.get(channel);
            if again == Some(&user) && !channel.contains("cache-") {
                // Told again who is there, and nothing else changes.
                peer.talk.subscribe(channel, user);
            } else if again.is_none() {
                peer.talk.subscribe(channel, user);
                peer.channels.insert(channel, user);
                peer.since.insert(channel, number);
                if channel.contains("cache-") {
                    // Told what is cached at once, and from there on each event exactly once.
                    let cached = last.get(channel).map_or(MISS, String::as_str);
                    peer.due.insert(channel, vec![cached.to_owned()]);
                    peer.since.insert(channel, 0);
                }
            }
        }
        4..6 => {
            let peer = &mut peers[at];
            peer.talk.unsubscribe(channel);
            if peer.channels.remove(channel).is_some() {
                // What was on its way is not for it any more, unless it had been written already.
                peer.listen();
                peer.due.remove(channel);
            }
        }
        6 => {
            peers[at].listen();
            peers[at] = Peer::new(memory, chance.below(WORKERS));
        }
        7 => {
            memory.publish(chance.below(WORKERS), channel, "e", &number.to_string());
            last.insert(channel, number.to_string());
            for peer in peers.iter_mut().filter(|peer| peer.channels.contains_key(channel)) {
                peer.due.entry(channel).or_default().push(number.to_string());
            }
        }
        _ => memory.deliver(chance.below(WORKERS)),
    }
}

/// Once everything is delivered, nobody misses anything and everybody sees the same.
fn agree(memory: &Memory, peers: &mut [Peer]) {
    memory.deliver_all();
    for peer in &mut *peers {
        peer.listen();
        assert!(peer.due.values().all(Vec::is_empty), "missed {:?}", peer.due);
    }
    for channel in CHANNELS {
        let (_, users) = count(peers, channel);
        for peer in peers.iter().filter(|peer| peer.channels.contains_key(channel)) {
            assert_eq!(peer.present[channel], users, "{channel}");
        }
    }
}
