//! What lies beyond the links of several nodes, without Redis: orders are carried out as its scripts would,
//! and what comes of them reaches each node in an order that is left to chance, as far as connections to a
//! Redis leave it open. What was published comes in the order it was published in, and so do answers; which
//! of the two comes first is open, and so is who gets his first.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use fanfare::app::App;
use fanfare::cluster::Topic;
use fanfare::cluster::envelope::{Body, Envelope};
use fanfare::cluster::link::{Arrival, FarEnd, Kept, Order, Publish};
use fanfare::cluster::roster::Loaded;
use fanfare::protocol::member::{Member, UserId};

use super::Chance;
use super::memory::Memory;

/// Nodes, and what they have in common.
pub struct Loopback {
    pub nodes: Vec<Beyond>,
    channels: HashMap<Topic, Channel>,
    next: u64,
    change: fn(&mut App),
}

/// A node, and what is on its way to and from it.
pub struct Beyond {
    pub memory: Memory,
    pub number: u64,
    far: FarEnd,
    subscribed: BTreeSet<Topic>,
    /// Topics that are subscribed to and have not been read yet.
    unread: VecDeque<Topic>,
    /// What was published on its topics, and answers to its orders.
    published: VecDeque<(Topic, Envelope)>,
    answers: VecDeque<Arrival>,
    /// What came in on topics that have been subscribed to and not handed out.
    opening: BTreeMap<Topic, Vec<Envelope>>,
    arrivals: VecDeque<Arrival>,
}

/// What is kept of one channel.
#[derive(Default)]
struct Channel {
    /// The last version that was given, and that of the last change in who is present.
    version: u64,
    changed: u64,
    members: BTreeMap<UserId, (u64, Member)>,
    refs: BTreeSet<(u64, UserId)>,
    cached: Option<(u64, Publish)>,
}

impl Loopback {
    pub fn new(nodes: usize, change: fn(&mut App)) -> Self {
        let channels = HashMap::new();
        let mut all = Self { nodes: Vec::new(), channels, next: 1, change };
        for _ in 0..nodes {
            let node = all.node();
            all.nodes.push(node);
        }
        all
    }

    fn node(&mut self) -> Beyond {
        let number = self.next;
        self.next += 1;
        let (memory, far) = Memory::of_several(number, self.change);
        far.go_up();
        let (subscribed, opening) = Default::default();
        let (unread, published, answers, arrivals) = Default::default();
        Beyond { memory, number, far, subscribed, unread, published, answers, opening, arrivals }
    }

    /// The node dies, another takes its place, and its lease lapses. What it had published was sent.
    pub fn kill(&mut self, at: usize) {
        let fresh = self.node();
        let dead = std::mem::replace(&mut self.nodes[at], fresh).number;
        let mut left = Vec::new();
        for (topic, channel) in &self.channels {
            let of_it = channel.refs.iter().filter(|(node, _)| *node == dead);
            left.extend(of_it.map(|(_, user)| (topic.clone(), user.clone())));
        }
        for (topic, user) in left {
            self.leave(dead, topic, user);
        }
    }

    /// Something happens that may happen next; whether anything could.
    pub fn step(&mut self, chance: &mut Chance) -> bool {
        let from = chance.below(self.nodes.len());
        for offset in 0..self.nodes.len() {
            let at = (from + offset) % self.nodes.len();
            let kind = chance.below(5);
            if (0..5).any(|offset| self.step_of(at, (kind + offset) % 5)) {
                return true;
            }
        }
        false
    }

    fn step_of(&mut self, at: usize, kind: usize) -> bool {
        let node = &mut self.nodes[at];
        match kind {
            0 => match node.far.orders.try_recv() {
                Ok(order) => self.carry_out(at, order),
                Err(_) => return false,
            },
            1 => match node.unread.pop_front() {
                Some(topic) => self.read(at, topic),
                None => return false,
            },
            2 => match node.published.pop_front() {
                Some((topic, envelope)) => match node.opening.get_mut(&topic) {
                    Some(waiting) => waiting.push(envelope),
                    None => node.arrivals.push_back(Arrival::Topic(topic, envelope)),
                },
                None => return false,
            },
            3 => match node.answers.pop_front() {
                Some(answer) => node.hand_on(answer),
                None => return false,
            },
            _ => match node.arrivals.pop_front() {
                Some(arrival) => {
                    let shared = &node.memory.shared;
                    shared.receive(shared.cluster.as_ref().unwrap(), arrival);
                }
                None => return false,
            },
        }
        true
    }

    fn carry_out(&mut self, at: usize, order: Order) {
        let number = self.nodes[at].number;
        match order {
            Order::Open(topic) => {
                let node = &mut self.nodes[at];
                node.subscribed.insert(topic.clone());
                node.opening.insert(topic.clone(), Vec::new());
                node.unread.push_back(topic);
            }
            Order::Join { topic, member, max, .. } => self.join(at, topic, member, max),
            Order::Leave { topic, user } => self.leave(number, topic, user),
            Order::Changed { topic, .. } => {
                let node = &mut self.nodes[at];
                let topics = &node.memory.shared.cluster.as_ref().unwrap().topics;
                topics.count(&topic);
                if topics.close_if_idle(&topic) {
                    node.subscribed.remove(&topic);
                    node.opening.remove(&topic);
                }
            }
            Order::Publish(publish) => self.publish(number, publish),
            Order::Connections { .. } | Order::Room(_) | Order::Ask(..) | Order::Stop => {}
        }
    }

    fn channel(&mut self, topic: &Topic) -> &mut Channel {
        self.channels.entry(topic.clone()).or_default()
    }

    fn send(&mut self, origin: u64, topic: &Topic, body: &Body) {
        for node in self.nodes.iter_mut().filter(|node| node.subscribed.contains(topic)) {
            let envelope = Envelope { origin, serial: 0, sent: 0, told: false, body: body.clone() };
            // Its own subscribers were given it when it was sent.
            if node.number != origin || !matches!(body, Body::Event { .. }) {
                node.published.push_back((topic.clone(), envelope));
            }
        }
    }

    fn join(&mut self, at: usize, topic: Topic, member: Member, max: usize) {
        let (origin, user) = (self.nodes[at].number, member.user_id.clone());
        let channel = self.channel(&topic);
        let known = channel.members.contains_key(&user);
        if !known && channel.members.len() >= max {
            self.nodes[at].answers.push_back(Arrival::Full { topic, user });
            return;
        }
        channel.refs.insert((origin, user.clone()));
        if !known {
            let version = channel.change();
            channel.members.insert(user.clone(), (version, member.clone()));
            let info = member.user_info;
            let body = Body::Joined { version, user: user.clone(), info };
            self.send(origin, &topic, &body);
        }
        let version = self.channel(&topic).changed;
        let answer = Arrival::Joined { topic, user, version };
        self.nodes[at].answers.push_back(answer);
    }

    fn leave(&mut self, number: u64, topic: Topic, user: UserId) {
        let channel = self.channel(&topic);
        let held = channel.refs.remove(&(number, user.clone()));
        if held && channel.refs.iter().all(|(_, other)| *other != user) {
            channel.members.remove(&user);
            let version = channel.change();
            self.send(number, &topic, &Body::Left { version, user });
        }
    }

    fn publish(&mut self, origin: u64, publish: Publish) {
        match publish {
            Publish::Event { topic, except, frame } => {
                // It is in a log of its own.
                let version = 0;
                self.send(origin, &topic, &Body::Event { version, except, frame });
            }
            Publish::Cached { ref topic, except, ref frame, ref data, .. } => {
                let channel = self.channel(topic);
                channel.version += 1;
                let version = channel.version;
                let (frame, data) = (frame.clone(), data.clone());
                self.send(origin, topic, &Body::Cached { version, except, frame, data });
                let topic = topic.clone();
                self.channel(&topic).cached = Some((version, publish));
            }
            Publish::Terminate { .. } => {}
        }
    }

    fn read(&mut self, at: usize, topic: Topic) {
        let channel = self.channel(&topic);
        channel.version += 1;
        let version = channel.version;
        let members: Vec<(u64, Member)> = channel.members.values().cloned().collect();
        let presence = topic.channel.kind().is_presence();
        let loaded = presence.then_some(Loaded { version, members });
        let cached = channel.cached.as_ref().and_then(|(version, publish)| match publish {
            Publish::Cached { frame, data, ttl, .. } => Some(Kept {
                version: *version,
                frame: frame.clone(),
                data: data.clone(),
                ttl: *ttl,
                told: false,
            }),
            _ => None,
        });
        let opened = Arrival::Opened { topic, loaded, cached, settled: true };
        self.nodes[at].answers.push_back(opened);
    }

    /// Who is present, by what is kept of all nodes.
    pub fn members(&self, topic: &Topic) -> Vec<UserId> {
        let channel = self.channels.get(topic);
        let mut members: Vec<(u64, UserId)> = channel
            .map(|channel| {
                channel.members.iter().map(|(user, (place, _))| (*place, user.clone())).collect()
            })
            .unwrap_or_default();
        members.sort_unstable();
        members.into_iter().map(|(_, user)| user).collect()
    }
}

impl Channel {
    fn change(&mut self) -> u64 {
        self.version += 1;
        self.changed = self.version;
        self.version
    }
}

impl Beyond {
    fn hand_on(&mut self, answer: Arrival) {
        let opened = match &answer {
            Arrival::Opened { topic, .. } => Some(topic.clone()),
            _ => None,
        };
        self.arrivals.push_back(answer);
        if let Some(topic) = opened {
            let waiting = self.opening.remove(&topic).unwrap_or_default();
            let waiting = waiting.into_iter().map(|one| Arrival::Topic(topic.clone(), one));
            self.arrivals.extend(waiting);
        }
    }
}
