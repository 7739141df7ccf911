//! A server that should not have been the master any more, and was for a while to some of the nodes: what they told
//! it is lost, and the webhooks that it led to are sent. In the end webhooks have told what is so all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster::node;
use crate::support::cut::Way;
use crate::support::endpoint::Endpoint;
use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::redis::Redis;
use crate::support::sign::hmac_hex;
use crate::support::websocket::Client;
use crate::support::{Chance, eventually};

const NODES: usize = 3;
/// Rounds unless `FAILOVER_ROUNDS` says how many.
const ROUNDS: usize = 2;
/// How long after the last failover everything may take to be right: ends wait for three seconds.
const LIMIT: Duration = Duration::from_secs(12);

/// Each node has one connection for each of these, so that each user is on each node at times.
const PLACES: [(&str, &str); 20] = [
    ("presence-a", "1"),
    ("presence-a", "2"),
    ("presence-a", "3"),
    ("presence-b", "1"),
    ("presence-b", "2"),
    ("presence-c", "1"),
    ("presence-d", "1"),
    ("presence-e", "1"),
    ("presence-f", "1"),
    ("presence-g", "1"),
    ("room-a", ""),
    ("room-a", ""),
    ("room-b", ""),
    ("room-c", ""),
    ("room-d", ""),
    ("room-e", ""),
    ("room-f", ""),
    ("room-g", ""),
    ("room-h", ""),
    ("room-i", ""),
];

/// A channel, or a user in one.
type Subject = (String, Option<String>);

/// A connection that subscribes to one channel and leaves it again.
struct Seat {
    client: Client,
    socket_id: String,
    place: usize,
    is_on: bool,
}

impl Seat {
    fn turn(&mut self) {
        self.is_on = !self.is_on;
        let (channel, user) = PLACES[self.place];
        let mut data = json!({ "channel": channel });
        if self.is_on && !user.is_empty() {
            let member = json!({ "user_id": user }).to_string();
            let auth = hmac_hex(SECRET, &format!("{}:{channel}:{member}", self.socket_id));
            data["auth"] = format!("{KEY}:{auth}").into();
            data["channel_data"] = member.into();
        }
        let event = if self.is_on { "pusher:subscribe" } else { "pusher:unsubscribe" };
        self.client.send_text(&json!({ "event": event, "data": data }).to_string());
    }
}

/// The last word of the webhooks.
#[derive(Default)]
struct Told {
    states: BTreeMap<Subject, bool>,
    counts: BTreeMap<String, u64>,
    /// What was told although it had been told before.
    doubled: usize,
    all: Vec<(Duration, String)>,
}

impl Told {
    fn hear(&mut self, event: &Value, at: Duration) {
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let channel = text("channel").unwrap();
        let name = event["name"].as_str().unwrap();
        self.all.push((at, event.to_string()));
        if name == "subscription_count" {
            self.counts.insert(channel, event["subscription_count"].as_u64().unwrap());
            return;
        }
        let is = ["channel_occupied", "member_added"].contains(&name);
        let before = self.states.insert((channel, text("user_id")), is);
        self.doubled += usize::from(before == Some(is));
    }
}

/// Two servers of which one is the master, and nodes that each have a way of their own to the one or the other.
struct World {
    servers: [Redis; 2],
    master: usize,
    ways: Vec<Way>,
    /// They end with the test.
    _nodes: Vec<Fixture>,
    seats: Vec<Seat>,
    endpoint: Endpoint,
    told: Told,
    since: Instant,
    did: Vec<(Duration, String)>,
}

impl World {
    fn start(chance: &mut Chance) -> Option<Self> {
        let master = Redis::start()?;
        let servers = [master.replica(), master];
        let endpoint = Endpoint::start();
        // Stale holds lapse in time, or do not.
        let lease = Duration::from_secs([4, 15][chance.below(2)]);
        println!("lease {lease:?}");
        let webhook = endpoint.webhook();
        let ways: Vec<Way> = (0..NODES).map(|_| Way::to(servers[1].port(), |_| 0)).collect();
        let cluster = ClusterConfig { lease, ..servers[1].cluster() };
        let nodes = ways.iter().map(|way| {
            let redis = vec![format!("redis://127.0.0.1:{}", way.port())];
            node(&ClusterConfig { redis, ..cluster.clone() }, |app| {
                app.features.subscription_count = true;
                app.webhooks = vec![webhook.clone()];
            })
        });
        let nodes: Vec<Fixture> = nodes.collect();
        let seats = nodes.iter().flat_map(|node| {
            (0..PLACES.len()).map(|place| {
                let (client, socket_id) = node.connect();
                Seat { client, socket_id, place, is_on: false }
            })
        });
        let seats = seats.collect();
        nodes.iter().for_each(Fixture::is_ready);
        let (told, since, did) = (Told::default(), Instant::now(), Vec::new());
        Some(Self { servers, master: 1, ways, _nodes: nodes, seats, endpoint, told, since, did })
    }

    fn note(&mut self, what: String) {
        self.did.push((self.since.elapsed(), what));
    }

    /// Some come and go.
    fn act(&mut self, chance: &mut Chance) {
        for _ in 0..chance.below(12) {
            let at = chance.below(self.seats.len());
            self.seats[at].turn();
            let (channel, user) = PLACES[self.seats[at].place];
            let (node, is) = (at / PLACES.len(), self.seats[at].is_on);
            self.note(format!("{user} in {channel} on {node}: {is}"));
        }
        self.last(chance.below(250));
    }

    /// Time passes.
    fn last(&mut self, milliseconds: usize) {
        let end = Instant::now() + Duration::from_millis(milliseconds as u64);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left.min(Duration::from_millis(20)));
            self.hear();
        }
    }

    fn hear(&mut self) {
        let at = self.since.elapsed();
        while let Ok(post) = self.endpoint.posts.try_recv() {
            post.events().iter().for_each(|event| self.told.hear(event, at));
        }
    }

    /// The replica becomes the master as it is now, and each node finds out in its own time.
    fn fail_over(&mut self, chance: &mut Chance) {
        let new = 1 - self.master;
        (0..3).for_each(|_| self.act(chance));
        assert_eq!(self.servers[new].ask(&["REPLICAOF", "NO", "ONE"]), "OK");
        self.note("what the master takes from now on is lost".to_owned());
        let mut left: BTreeSet<usize> = (0..NODES).collect();
        while !left.is_empty() {
            let at = *left.iter().nth(chance.below(left.len())).unwrap();
            match chance.below(12) {
                0 => self.last(3500),
                1 => {
                    self.ways[at].mute();
                    self.note(format!("{at} is not answered"));
                }
                2 => {
                    self.ways[at].cut();
                    self.act(chance);
                    self.ways[at].mend();
                    self.note(format!("{at} makes its link anew"));
                }
                3 | 4 => {
                    left.remove(&at);
                    self.ways[at].cut();
                    self.ways[at].turn(self.servers[new].port());
                    self.act(chance);
                    self.ways[at].mend();
                    self.note(format!("{at} goes to the new master"));
                }
                _ => self.act(chance),
            }
        }
        (0..3).for_each(|_| self.act(chance));
        let port = self.servers[new].port().to_string();
        self.servers[self.master].ask(&["REPLICAOF", "127.0.0.1", &port]);
        self.master = new;
    }

    fn wrongs(&mut self) -> Vec<String> {
        self.hear();
        let (mut is, mut counts) = (BTreeSet::<Subject>::new(), BTreeMap::<String, u64>::new());
        for seat in self.seats.iter().filter(|seat| seat.is_on) {
            let (channel, user) = PLACES[seat.place];
            is.insert((channel.to_owned(), None));
            if user.is_empty() {
                *counts.entry(channel.to_owned()).or_default() += 1;
            } else {
                is.insert((channel.to_owned(), Some(user.to_owned())));
            }
        }
        let subjects: BTreeSet<&Subject> = self.told.states.keys().chain(&is).collect();
        let mut wrongs = Vec::new();
        for subject in subjects {
            let told = self.told.states.get(subject).copied().unwrap_or_default();
            if told != is.contains(subject) {
                wrongs.push(format!("{subject:?}: told {told}"));
            }
        }
        for (channel, count) in counts {
            let told = self.told.counts.get(&channel);
            if told != Some(&count) {
                wrongs.push(format!("{channel} has {count}, told {told:?}"));
            }
        }
        wrongs
    }

    /// All that happened to the channel that something is wrong with, by when it was heard of.
    fn print_story(&self, wrong: &str) {
        let channel = PLACES.iter().map(|(channel, _)| *channel).find(|name| wrong.contains(name));
        let is_of = |what: &str| {
            let is_general = !what.contains(" in ") && !what.contains('{');
            is_general || channel.is_some_and(|channel| what.contains(channel))
        };
        let mut all: Vec<_> = self.did.iter().chain(&self.told.all).collect();
        all.sort();
        for (at, what) in all.into_iter().filter(|(_, what)| is_of(what)) {
            println!("{:8.3} {what}", at.as_secs_f64());
        }
    }

    fn becomes_right(&mut self) {
        let begun = Instant::now();
        let mut right: Option<Instant> = None;
        loop {
            let wrongs = self.wrongs();
            if wrongs.is_empty() {
                // What is told next must not be wrong.
                if right.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(1) {
                    return;
                }
            } else if begun.elapsed() > LIMIT {
                wrongs.iter().for_each(|wrong| self.print_story(wrong));
                panic!("{wrongs:#?}");
            } else {
                right = None;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

#[test]
fn webhooks_tell_what_is_so_after_a_master_that_was_none() {
    let mut chance = Chance::new("failovers");
    let Some(mut world) = World::start(&mut chance) else { return };
    let rounds = std::env::var("FAILOVER_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    for round in 0..rounds.unwrap_or(ROUNDS) {
        world.fail_over(&mut chance);
        let ended = Instant::now();
        world.becomes_right();
        println!("{round}: {:.1} s, {} doubled", ended.elapsed().as_secs_f64(), world.told.doubled);
        world.servers[1 - world.master].follows_its_master();
        (world.did, world.told.all) = (Vec::new(), Vec::new());
    }
}

/// What is done with on one server must not be deleted on another that has something else under the same id.
#[test]
fn entries_of_two_writers_have_ids_of_their_own() {
    let Some(redis) = Redis::start() else { return };
    let endpoint = Endpoint::start();
    endpoint.usual.store(503, std::sync::atomic::Ordering::SeqCst);
    let cluster = redis.cluster();
    let nodes = [(); 2].map(|()| node(&cluster, |app| app.webhooks = vec![endpoint.webhook()]));
    let _clients: Vec<Client> = nodes
        .iter()
        .enumerate()
        .flat_map(|(number, node)| (0..3).map(move |of| node.subscribed(&format!("{number}-{of}"))))
        .collect();
    let log = format!("{}:{{{ID}}}:w", cluster.prefix);
    let entries = eventually(|| match redis.ask(&["XRANGE", &log, "-", "+"]) {
        entries if entries.matches("+c").count() == 6 => Ok(entries),
        entries => Err(entries),
    });
    let entries = entries.unwrap();
    let lines: Vec<&str> = entries.lines().collect();
    let number = |id: &str| id.split('-').nth(1).unwrap().parse::<u64>().unwrap() >> 16;
    // An id, `f` and the text. Who comes second in a millisecond may go on with the number of the first.
    let writers: BTreeSet<u64> = lines.chunks(3).map(|entry| number(entry[0])).collect();
    assert!(!writers.contains(&0) && writers.len() <= 2, "{entries}");
}
