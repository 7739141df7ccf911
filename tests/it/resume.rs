//! Clients that come back against a model that is too simple to be wrong: random connections, cuts, takeovers,
//! subscriptions, events, exclusions and answered pings on several workers, whose inboxes are emptied at random
//! times. Each connection hears exactly what its client has not acknowledged, in order, and then what is new.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use fanfare::protocol::socket_id::SocketId;

use crate::support::Chance;
use crate::support::memory::{Memory, Talk};
use crate::support::websocket::Heard;

const CHANNELS: [&str; 4] = ["pub", "private-x", "presence-a", "cache-c"];
const WORKERS: usize = 3;
const CLIENTS: usize = 5;
/// Rounds, and how many of them are long.
const ROUNDS: usize = 2000;
const LONG_ONES: usize = 20;
const STEPS: usize = 1500;
const FEW_STEPS: usize = 40;

/// The events of one channel: each with whom it was not for.
type Log = Vec<Option<SocketId>>;

/// One client as the model knows it.
#[derive(Default)]
struct Client {
    token: String,
    talk: Option<Talk>,
    sockets: BTreeSet<SocketId>,
    /// Up to which event of each channel it has acknowledged, as a count of events.
    held: BTreeMap<&'static str, usize>,
    /// What its connection is still to hear.
    due: BTreeMap<&'static str, VecDeque<usize>>,
    /// The last event of each channel that its connection has heard.
    heard: BTreeMap<&'static str, usize>,
    /// How many events there were when it came to hold each channel. Those may still reach it, but need not.
    since: BTreeMap<&'static str, usize>,
    /// The same when its connection was pinged last, until it answers.
    asked: Option<BTreeMap<&'static str, usize>>,
}

impl Client {
    /// Takes in what was told, and holds it against what is due.
    fn listen(&mut self) {
        let Some(talk) = &mut self.talk else { return };
        for heard in talk.heard() {
            let Heard::Text(text) = heard else { panic!("heard {heard:?}") };
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            match frame["event"].as_str().unwrap() {
                "pusher:ping" => {
                    assert!(self.asked.is_none(), "one ping at a time");
                    self.asked = Some(self.heard.clone());
                }
                "e" => {
                    let name = frame["channel"].as_str().unwrap();
                    let channel = *CHANNELS.iter().find(|channel| **channel == name).unwrap();
                    let number: usize = frame["data"].as_str().unwrap().parse().unwrap();
                    if number < self.since[channel] {
                        continue;
                    }
                    let due = self.due.get_mut(channel).and_then(VecDeque::pop_front);
                    assert_eq!(due, Some(number), "{} {text}", self.token);
                    self.heard.insert(channel, number + 1);
                }
                "pusher_internal:subscription_succeeded" | "pusher:cache_miss" => {}
                event if event.starts_with("pusher_internal:member_") => {}
                event => panic!("{event}: {text}"),
            }
        }
    }

    fn cut(&mut self) {
        self.talk = None;
        self.due.clear();
        self.heard.clear();
        self.asked = None;
    }
}

struct World {
    memory: Memory,
    logs: BTreeMap<&'static str, Log>,
    clients: Vec<Client>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let memory = Memory::new(WORKERS, |app| {
            app.features.resume = Duration::from_secs(120);
            app.features.cache_ttl = Duration::from_millis(1);
        });
        let client = |number| Client { token: format!("client-{number:016}"), ..Client::default() };
        let logs = CHANNELS.iter().map(|channel| (*channel, Log::new())).collect();
        Self { memory, logs, clients: (0..CLIENTS).map(client).collect(), now: Instant::now() }
    }

    /// A new connection, whether or not the last one has ended.
    fn connect(&mut self, which: usize, worker: usize) {
        let client = &mut self.clients[which];
        let previous = client.talk.take();
        client.cut();
        let talk = self.memory.connect_as(worker, &client.token);
        client.sockets.insert(talk.id());
        client.talk = Some(talk);
        // It is ended as soon as its worker has seen to that.
        self.memory.deliver_all();
        drop(previous);
    }

    fn subscribe(&mut self, which: usize, channel: &'static str) {
        let client = &mut self.clients[which];
        client.listen();
        let Some(talk) = &mut client.talk else { return };
        let log = &self.logs[channel];
        let is_here = client.due.contains_key(channel);
        if is_here && channel == "cache-c" {
            // Who subscribes again is told the kept event again, whomever it was not for.
            return;
        }
        talk.subscribe(channel, "1");
        if !is_here {
            let since = client.since.entry(channel).or_insert(log.len());
            if !client.held.contains_key(channel) {
                *since = log.len();
            }
            let acked = *client.held.entry(channel).or_insert(log.len());
            let missed = (acked..log.len())
                .filter(|number| !log[*number].is_some_and(|id| client.sockets.contains(&id)));
            client.due.insert(channel, missed.collect());
            client.heard.insert(channel, acked);
        }
    }

    fn unsubscribe(&mut self, which: usize, channel: &'static str) {
        // Events that are on their way may still arrive, or not.
        self.settle();
        let client = &mut self.clients[which];
        let Some(talk) = &mut client.talk else { return };
        talk.unsubscribe(channel);
        if client.due.remove(channel).is_some() {
            client.held.remove(channel);
            client.heard.remove(channel);
        }
    }

    fn publish(&mut self, worker: usize, channel: &'static str, except: Option<SocketId>) {
        let log = self.logs.get_mut(channel).unwrap();
        let number = log.len();
        log.push(except);
        self.memory.publish_except(worker, channel, ("e", &number.to_string()), except);
        for client in &mut self.clients {
            if let Some(due) = client.due.get_mut(channel)
                && !except.is_some_and(|id| client.sockets.contains(&id))
            {
                due.push_back(number);
            }
        }
    }

    /// Lets pings go out, and some clients answer.
    fn ping(&mut self, chance: &mut Chance) {
        self.now += Duration::from_millis(500);
        self.memory.ping_due(self.now);
        for client in &mut self.clients {
            client.listen();
            let Some(talk) = &mut client.talk else { continue };
            if client.asked.is_some() && chance.below(2) == 0 {
                talk.say(r#"{"event":"pusher:pong","data":{}}"#);
                for (channel, acked) in client.asked.take().unwrap() {
                    if let Some(held) = client.held.get_mut(channel) {
                        *held = (*held).max(acked);
                    }
                }
            }
        }
    }

    /// Another process goes on, whatever is on its way; all connections end.
    fn hand_over(&mut self) {
        let next = self.memory.hand_over();
        for client in &mut self.clients {
            client.cut();
        }
        // What was left undone of the old one stays so.
        self.memory = next;
    }

    fn settle(&mut self) {
        self.memory.deliver_all();
        self.clients.iter_mut().for_each(Client::listen);
    }
}

fn run(chance: &mut Chance, steps: usize) {
    let mut world = World::new();
    for _ in 0..steps {
        let which = chance.below(CLIENTS);
        let channel = CHANNELS[chance.below(CHANNELS.len())];
        let worker = chance.below(WORKERS);
        match chance.below(20) {
            0 if chance.below(10) == 0 => world.hand_over(),
            0 => world.connect(which, worker),
            1 => world.clients[which].cut(),
            2..=5 => world.subscribe(which, channel),
            6 => world.unsubscribe(which, channel),
            7..=12 => world.publish(worker, channel, None),
            13 => {
                // The one that it has, or one that it had.
                let sockets: Vec<SocketId> = world.clients[which].sockets.iter().copied().collect();
                let back = chance.below(3);
                let except = sockets.iter().rev().nth(back).or_else(|| sockets.last()).copied();
                world.publish(worker, channel, except);
            }
            14..=15 => world.ping(chance),
            16..=18 => world.memory.deliver(worker),
            _ => world.settle(),
        }
    }
    world.settle();
    for client in &world.clients {
        let left: Vec<_> = client.due.iter().filter(|(_, due)| !due.is_empty()).collect();
        assert!(left.is_empty(), "{} has not heard {left:?}", client.token);
    }
}

#[test]
fn who_comes_back_hears_what_it_has_not_acknowledged_and_nothing_else() {
    let mut seeds = Chance::new("resume");
    for round in 0..ROUNDS {
        let seed = seeds.below(usize::MAX) as u64;
        println!("round: {seed}");
        run(&mut Chance::seeded(seed), if round < LONG_ONES { STEPS } else { FEW_STEPS });
    }
}

/// The first connection to a server that knows nothing of an older page was cut off before it subscribed, and the next
/// one was taken for that of a client which is known.
#[test]
fn a_page_older_than_the_server_had_no_gap_once_it_was_cut_off_again() {
    let memory = Memory::new(1, |app| app.features.resume = Duration::from_secs(120));
    let token = "1700000000-0123456789abcdef";
    drop(memory.connect_as(0, token));
    let mut talk = memory.connect_as(0, token);
    talk.subscribe("pub", "");
    let [Heard::Text(subscribed), Heard::Text(gap)] = &talk.heard()[..] else {
        panic!("it is told of a gap")
    };
    assert!(subscribed.contains("subscription_succeeded"), "{subscribed}");
    assert_eq!(gap, r#"{"event":"resume:gap","channel":"pub","data":"{}"}"#);
}
