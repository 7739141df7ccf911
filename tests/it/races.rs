//! The hub under threads: workers that subscribe, leave, sign in and publish at the same time, as fast as
//! they can. Notices that overtake each other would leave somebody with a picture that never becomes right,
//! so each connection holds every notice against what it knew, and at the end its picture against the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Barrier, Mutex};

use crate::support::Chance;
use crate::support::memory::{Memory, Talk, shared};
use crate::support::websocket::Heard;

const THREADS: usize = 4;
const PEERS: usize = 3;
const STEPS: usize = 3000;
const USERS: [&str; 3] = ["1", "2", "3"];
const PRESENCE: &str = "presence-x";
const COUNTED: &str = "pub";
const CACHED: &str = "cache-c";

/// One connection, what it is and what it has been told.
struct Peer {
    talk: Talk,
    channels: BTreeMap<&'static str, &'static str>,
    signed_in: Option<&'static str>,
    present: BTreeSet<String>,
    listed: bool,
    online: BTreeSet<String>,
    count: Option<u64>,
    cached: Option<String>,
}

impl Peer {
    fn new(memory: &Memory) -> Self {
        Self {
            talk: memory.connect(0),
            channels: BTreeMap::new(),
            signed_in: None,
            present: BTreeSet::new(),
            listed: false,
            online: BTreeSet::new(),
            count: None,
            cached: None,
        }
    }

    fn listen(&mut self) {
        for heard in self.talk.heard() {
            let Heard::Text(text) = heard else { panic!("heard {heard:?}") };
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            let data = frame["data"].as_str().unwrap();
            let json = serde_json::from_str::<serde_json::Value>(data).unwrap_or_default();
            let user = || json["user_id"].as_str().unwrap().to_owned();
            match frame["event"].as_str().unwrap() {
                "pusher_internal:subscription_succeeded" => {
                    if frame["channel"] == PRESENCE {
                        self.present = texts(&json["presence"]["ids"]);
                    }
                }
                "pusher_internal:member_added" => {
                    assert!(self.present.insert(user()), "twice: {text}");
                }
                "pusher_internal:member_removed" => {
                    assert!(self.present.remove(&user()), "was not there: {text}");
                }
                "pusher_internal:watchlist_events" => {
                    for event in json["events"].as_array().unwrap() {
                        self.watch(event["name"] == "online", texts(&event["user_ids"]), &text);
                    }
                    self.listed = true;
                }
                "pusher_internal:subscription_count" => {
                    if frame["channel"] == COUNTED {
                        self.count = json["subscription_count"].as_u64();
                    }
                }
                "e" | "pusher:cache_miss" => self.cached = Some(data.to_owned()),
                "pusher:signin_success" => {}
                event => panic!("{event}: {text}"),
            }
        }
    }

    /// The first list names everyone who is watched, each later one a change.
    fn watch(&mut self, online: bool, users: BTreeSet<String>, text: &str) {
        for user in users {
            let news = if online { self.online.insert(user) } else { self.online.remove(&user) };
            assert!(news || !self.listed, "no news: {text}");
        }
    }
}

fn texts(list: &serde_json::Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// What all threads' connections together are, once nobody does anything more.
#[derive(Default)]
struct Truth {
    present: BTreeSet<String>,
    online: BTreeSet<String>,
    count: u64,
}

#[test]
fn everyones_picture_becomes_right() {
    let shared = shared(THREADS, |app| {
        app.features.watchlist = true;
        app.features.subscription_count = true;
    });
    let mut chance = Chance::new("races");
    let (truth, barrier) = (Mutex::new(Truth::default()), Barrier::new(THREADS));
    std::thread::scope(|scope| {
        for index in 0..THREADS {
            let (shared, truth, barrier) = (Arc::clone(&shared), &truth, &barrier);
            let mut chance = Chance::seeded(chance.below(1 << 30) as u64);
            scope.spawn(move || {
                let memory = Memory::part(shared, index as u16);
                let mut peers: Vec<Peer> = (0..PEERS).map(|_| Peer::new(&memory)).collect();
                // Whoever panics must not leave the others waiting.
                let busy = caught(|| {
                    (0..STEPS).for_each(|number| step(&memory, &mut peers, &mut chance, number));
                });
                barrier.wait();
                let settled = caught(|| settle(&memory, &mut peers, truth));
                barrier.wait();
                busy.and(settled).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                agree(&memory, &mut peers, &truth.lock().unwrap());
            });
        }
    });
}

fn caught(run: impl FnOnce()) -> std::thread::Result<()> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
}

fn step(memory: &Memory, peers: &mut [Peer], chance: &mut Chance, number: usize) {
    let at = chance.below(peers.len());
    let user = USERS[chance.below(USERS.len())];
    let peer = &mut peers[at];
    match chance.below(12) {
        0..3 => {
            if peer.channels.insert(PRESENCE, user).is_none() {
                peer.talk.subscribe(PRESENCE, user);
            } else {
                peer.talk.unsubscribe(PRESENCE);
                peer.channels.remove(PRESENCE);
            }
        }
        3..5 => {
            let channel = [COUNTED, CACHED][chance.below(2)];
            if peer.channels.insert(channel, "").is_none() {
                peer.talk.subscribe(channel, "");
            } else {
                peer.talk.unsubscribe(channel);
                peer.channels.remove(channel);
            }
        }
        5 => {
            if peer.signed_in.is_none() {
                peer.signed_in = Some(user);
                peer.talk.sign_in(&format!(r#"{{"id":"{user}","watchlist":["1","2","3"]}}"#));
            }
        }
        6 => *peer = Peer::new(memory),
        7 => {
            let data = format!("{number} {}", chance.below(1 << 30));
            memory.publish(0, CACHED, "e", &data);
        }
        _ => {
            memory.deliver(0);
            peers.iter_mut().for_each(Peer::listen);
        }
    }
}

/// Takes in what is on its way, and adds these connections to the truth.
fn settle(memory: &Memory, peers: &mut [Peer], truth: &Mutex<Truth>) {
    memory.deliver(0);
    let mut truth = truth.lock().unwrap();
    for peer in peers {
        truth.present.extend(peer.channels.get(PRESENCE).map(|user| (*user).to_owned()));
        truth.online.extend(peer.signed_in.map(str::to_owned));
        truth.count += u64::from(peer.channels.contains_key(COUNTED));
    }
}

fn agree(memory: &Memory, peers: &mut [Peer], truth: &Truth) {
    let mut late = memory.connect(0);
    late.subscribe(CACHED, "");
    let Some(Heard::Text(text)) = late.heard().into_iter().nth(1) else { panic!("nothing cached") };
    let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
    for peer in peers {
        peer.listen();
        if peer.channels.contains_key(PRESENCE) {
            assert_eq!(peer.present, truth.present);
        }
        if peer.signed_in.is_some() {
            assert_eq!(peer.online, truth.online);
        }
        if peer.channels.contains_key(COUNTED) {
            assert_eq!(peer.count, Some(truth.count));
        }
        if peer.channels.contains_key(CACHED) {
            assert_eq!(peer.cached.as_deref(), frame["data"].as_str());
        }
    }
}
