//! The far end of the links of several nodes, without Redis: orders are carried out as its scripts would,
//! and what comes of them reaches each node in an order that is left to chance, as far as connections to a
//! Redis leave it open. Events come in the order in which they were published, and so do answers; which
//! of the two comes first is open, and so is who gets his first. A node's link can be cut and made again: what was
//! on its way to the node is lost, and it catches up as a link over Redis does.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fanfare::app::App;
use fanfare::cluster::Topic;
use fanfare::cluster::envelope::{Envelope, EnvelopeBody};
use fanfare::cluster::link::{LinkEvent, LinkRequest, Manner, OutgoingEvent, RetainedEvent};
use fanfare::cluster::roster::LoadedRoster;
use fanfare::cluster::topics::TopicEntry;
use fanfare::protocol::member::{Member, UserId};
use fanfare::protocol::socket_id::SocketId;

use super::Chance;
use super::beyond::{Answer, Beyond, now};
use super::faults::Faults;
use super::kept_clients::{self, KeptClients};
use super::kept_holds::KeptHolds;

/// Nodes, and what they have in common.
pub struct Loopback {
    pub nodes: Vec<Beyond>,
    pub(super) channels: BTreeMap<Topic, Channel>,
    pub(super) next: u64,
    change: fn(&mut App),
    /// The time of the last event.
    clock: u64,
    clients: KeptClients,
    /// Events of a channel's log that are told to clients that come back.
    pub replay: usize,
    /// Whether nodes renew their leases, and so find that one has lapsed.
    pub renews: bool,
    pub(super) faults: Faults,
    pub(super) holds: KeptHolds,
}

/// What is kept of one channel.
#[derive(Default)]
pub(super) struct Channel {
    /// The last version that was given, and that of the last change in who is present.
    version: u64,
    changed: u64,
    pub(super) members: BTreeMap<UserId, (u64, Member)>,
    /// By lease.
    pub(super) refs: BTreeSet<(u64, UserId)>,
    pub(super) cached: Option<KeptEvent>,
    /// With the times.
    pub(super) log: Vec<(u64, Envelope)>,
    /// Entries that were in the log before Redis lost it.
    pub(super) begin: usize,
    /// The last of those, which nobody says again.
    pub(super) lost: Vec<(u64, Envelope)>,
    /// Redis lost the cached event, and nothing new was published since: what nodes keep is later than what it has.
    pub(super) is_behind: bool,
}

/// The last event of a cache channel.
pub(super) struct KeptEvent {
    version: u64,
    /// The version that it had before Redis lost it, or the same.
    taken: u64,
    /// In the log.
    place: usize,
    /// Its sender and serial.
    id: (u64, u64),
    publish: OutgoingEvent,
}

/// How far one version is from the next; what a node alone adds is less.
const STEP: u64 = 1_000_000;

impl Loopback {
    pub fn new(nodes: usize, change: fn(&mut App)) -> Self {
        let channels = BTreeMap::new();
        let (clock, clients, faults, holds) = Default::default();
        let replay = usize::MAX;
        let (count, nodes) = (nodes, Vec::new());
        let mut all = Self {
            nodes,
            channels,
            next: 1,
            change,
            clock,
            clients,
            replay,
            renews: true,
            faults,
            holds,
        };
        for _ in 0..count {
            let node = all.node();
            all.nodes.push(node);
        }
        all
    }

    pub(super) fn node(&mut self) -> Beyond {
        let number = self.next;
        self.next += 1;
        Beyond::new(number, self.change)
    }

    /// Something happens that may happen next; whether anything could.
    pub fn step(&mut self, chance: &mut Chance) -> bool {
        if self.faults.has_late() && chance.below(4) == 0 {
            return self.bring_late();
        }
        let from = chance.below(self.nodes.len());
        for offset in 0..self.nodes.len() {
            let at = (from + offset) % self.nodes.len();
            let kind = chance.below(6);
            if (0..6).any(|offset| self.step_of(at, (kind + offset) % 6)) {
                return true;
            }
        }
        self.bring_late()
    }

    fn step_of(&mut self, at: usize, kind: usize) -> bool {
        let node = &mut self.nodes[at];
        match kind {
            _ if node.is_asleep => return false,
            0 if node.is_cut => match node.far.requests.try_recv() {
                Ok(order) => self.alone(at, order),
                Err(_) => return false,
            },
            0 => return self.take_order(at),
            1 => match node.unread.pop_front() {
                Some((topic, again)) => self.read(at, topic, again),
                None => return false,
            },
            2 => match node.published.pop_front() {
                Some((topic, sent)) => match node.opening.get_mut(&topic) {
                    Some(waiting) => waiting.push(sent),
                    None => node.hear(&topic, sent, false),
                },
                None => return false,
            },
            3 => match node.answers.pop_front() {
                Some(answer) => node.hand_on(answer),
                None => return false,
            },
            4 => return node.acknowledge(),
            _ => match node.arrivals.pop_front() {
                Some(arrival) => node.take(arrival),
                None => return false,
            },
        }
        true
    }

    /// The node is to hear of the topic what was said since a time, if it does not hear of it yet.
    pub(super) fn since_subscribed<T: Into<Option<u64>>>(
        &mut self,
        at: usize,
        topic: &Topic,
        since: fn(&TopicEntry) -> T,
    ) {
        let topics = &self.nodes[at].memory.shared.scope.others().unwrap().topics;
        let Some(since) = topics.read_topic(topic, |entry| since(entry).into()).flatten() else {
            return;
        };
        let channel = self.channel(topic);
        let all = channel.lost.iter().chain(&channel.log);
        let before = all.filter(|(time, _)| *time <= since).count();
        let before = channel.begin - channel.lost.len() + before;
        self.nodes[at].heard.entry(topic.clone()).or_insert(before);
        self.note_missed(at);
    }

    pub(super) fn carry_out(&mut self, at: usize, order: LinkRequest) {
        let (number, lease) = (self.nodes[at].number, self.nodes[at].lease);
        match order {
            LinkRequest::Open(topic) => {
                let topics = &self.nodes[at].memory.shared.scope.others().unwrap().topics;
                let is_open = self.nodes[at].heard.contains_key(&topic);
                if !is_open && !topics.is_still_wanted(&topic) {
                    return;
                }
                // Somebody was let in before it was known that the link is down.
                self.since_subscribed(at, &topic, TopicEntry::since_subscribed);
                let heard = self.channel(&topic).end();
                let node = &mut self.nodes[at];
                let again = node.heard.contains_key(&topic);
                node.heard.entry(topic.clone()).or_insert(heard);
                node.subscribed.insert(topic.clone());
                // It may be opened twice, again with the link and by a client's own wish: what waits goes on waiting.
                node.opening.entry(topic.clone()).or_default();
                node.unread.push_back((topic, again));
            }
            LinkRequest::Join { topic, member, max, place } => {
                self.join(at, topic, member, (max, place));
            }
            LinkRequest::Leave { topic, user } => self.leave(number, lease, topic, user),
            LinkRequest::Changed { topic, tell } => {
                self.count(at, &topic, tell);
                let node = &mut self.nodes[at];
                let topics = &node.memory.shared.scope.others().unwrap().topics;
                // A link keeps what is idle for some seconds, in which what it has read of the topic is taken in.
                if !node.is_being_read(&topic) && topics.close_if_idle(&topic) {
                    node.subscribed.remove(&topic);
                    node.opening.remove(&topic);
                    node.heard.remove(&topic);
                    node.known.remove(&topic);
                    node.alone.remove(&topic);
                    let is_on = |publish: &OutgoingEvent| matches!(publish, OutgoingEvent::Cached { topic: other, .. } if *other == topic);
                    node.flying.retain(|(_, publish)| !is_on(publish));
                }
            }
            LinkRequest::Publish(publish) => {
                let node = &mut self.nodes[at];
                node.serial += 1;
                let serial = node.serial;
                let is_whole = self.is_whole();
                if let (OutgoingEvent::Cached { topic, .. }, true) = (&publish, is_whole) {
                    self.channel(topic).is_behind = false;
                }
                self.publish(number, serial, publish);
            }
            LinkRequest::WebhookLog(request) => self.log(at, request, true),
            LinkRequest::Connections { .. }
            | LinkRequest::Room(_)
            | LinkRequest::Sweep(_)
            | LinkRequest::Stop => {}
            LinkRequest::Park(parked) => self.clients.park(number, parked),
            LinkRequest::Replay(replay) => {
                let most = self.replay;
                let missed = kept_clients::missed(&self.channel(&replay.topic).log, replay, most);
                self.nodes[at].answer(missed);
            }
            LinkRequest::Ask(question, asker) => {
                let living: Vec<u64> = self.nodes.iter().map(|node| node.number).collect();
                let replies = self.clients.answer((number, question), asker, &living);
                replies.into_iter().for_each(|(other, reply)| self.arrive(other, reply));
            }
        }
    }

    pub(super) fn channel(&mut self, topic: &Topic) -> &mut Channel {
        self.channels.entry(topic.clone()).or_default()
    }

    pub(super) fn send(
        &mut self,
        (origin, serial): (u64, u64),
        topic: &Topic,
        (version, body): (u64, EnvelopeBody),
    ) {
        self.send_envelope(topic, envelope_of((origin, serial), version, body));
    }

    fn send_envelope(&mut self, topic: &Topic, envelope: Envelope) {
        let is_logged =
            matches!(envelope.body, EnvelopeBody::Event { .. } | EnvelopeBody::Cached { .. });
        let channel = self.channel(topic);
        let place = is_logged.then_some(channel.end());
        channel.log.extend(place.map(|_| (now(), envelope.clone())));
        for node in self.nodes.iter_mut().filter(|node| node.subscribed.contains(topic)) {
            node.published.push_back((topic.clone(), (place, envelope.clone())));
        }
    }

    fn join(&mut self, at: usize, topic: Topic, member: Member, (max, place): (usize, u64)) {
        let by = (self.nodes[at].number, self.nodes[at].lease);
        let user = member.user_id.clone();
        let answer = match self.hold(by, &topic, member, (max, place)) {
            Some(version) => LinkEvent::Joined { topic, user, version },
            None => LinkEvent::Full { topic, user },
        };
        self.nodes[at].answer(answer);
    }

    /// The version from which on the user is present; nothing if there is no room.
    pub(super) fn hold(
        &mut self,
        (origin, lease): (u64, u64),
        topic: &Topic,
        member: Member,
        (max, place): (usize, u64),
    ) -> Option<u64> {
        let user = member.user_id.clone();
        let channel = self.channel(topic);
        let known = channel.members.contains_key(&user);
        if !known && channel.members.len() >= max {
            return None;
        }
        channel.refs.insert((lease, user.clone()));
        if !known {
            let version = channel.change();
            let place = if place == 0 { version } else { place };
            channel.members.insert(user.clone(), (place, member.clone()));
            let info = member.user_info;
            let body = EnvelopeBody::Joined { user, info };
            self.send((origin, 0), topic, (version, body));
        }
        Some(self.channel(topic).changed)
    }

    pub(super) fn leave(&mut self, origin: u64, lease: u64, topic: Topic, user: UserId) {
        let channel = self.channel(&topic);
        let held = channel.refs.remove(&(lease, user.clone()));
        if held && channel.refs.iter().all(|(_, other)| *other != user) {
            channel.members.remove(&user);
            let version = channel.change();
            self.send((origin, 0), &topic, (version, EnvelopeBody::Left { user }));
        }
    }

    pub(super) fn publish(&mut self, origin: u64, serial: u64, publish: OutgoingEvent) {
        self.publish_taken((origin, serial), publish, 0);
    }

    /// The same for something that was taken before and may be lost, with the version that it had then.
    pub(super) fn publish_taken(&mut self, id: (u64, u64), publish: OutgoingEvent, taken: u64) {
        if self.is_logged(id, &publish) {
            return;
        }
        let (origin, again) = (id.0, taken > 0);
        match publish {
            OutgoingEvent::Event { ref topic, except, ref frame, manner } => {
                // No two have one place.
                self.clock = now().max(self.clock + 1);
                let frame = frame.clone();
                let envelope = Envelope {
                    delivered: again || !matches!(manner, Manner::Resumable { .. }),
                    whisper: manner == Manner::Whisper,
                    again,
                    ..envelope_of(id, self.clock, EnvelopeBody::Event { except, frame })
                };
                self.send_envelope(topic, envelope);
                self.note_taken(id, &publish, self.clock);
            }
            OutgoingEvent::Cached { .. } => self.keep(id, publish, taken),
            OutgoingEvent::Trace { topic, mark, trace } => {
                let (app, trace) = (topic.app.clone(), trace.as_str().into());
                let body = EnvelopeBody::Trace { mark, app, trace };
                self.send(id, &topic, (0, body));
            }
            OutgoingEvent::Terminate { .. } | OutgoingEvent::Reconnect { .. } => {}
            OutgoingEvent::HandedOver { node, request, record, .. } => {
                self.arrive(node, LinkEvent::HandedOver { request, record });
            }
            OutgoingEvent::Withdraw(order) => {
                self.clients.withdraw(&order);
                for other in self.nodes.iter_mut().filter(|other| other.number != origin) {
                    let arrival = LinkEvent::Withdraw { node: origin, order: order.clone() };
                    let is_cut = other.is_cut;
                    if is_cut {
                        other.orders.push(arrival);
                    } else {
                        other.arrivals.push_back(arrival);
                    }
                }
                let others = self.nodes.iter().map(|node| node.number).filter(|n| *n != origin);
                let (request, nodes) = (order.request, others.map(|n| n.to_string()).collect());
                self.arrive(origin, LinkEvent::Living { request, nodes });
            }
            OutgoingEvent::Done { node, request, .. } => {
                self.arrive(node, LinkEvent::Done { request, node: origin.to_string() });
            }
        }
    }

    /// An event of a cache channel is the last now, unless it was `taken` before one that is.
    fn keep(&mut self, id: (u64, u64), publish: OutgoingEvent, taken: u64) {
        let OutgoingEvent::Cached { topic, except, frame, data, .. } = &publish else { return };
        let channel = self.channel(topic);
        let last = channel.cached.as_ref();
        if taken > 0 && last.is_some_and(|last| last.id == id) {
            return;
        }
        let is_last = taken == 0 || last.is_none_or(|last| last.taken <= taken);
        channel.version += STEP;
        let (version, place) = (channel.version, channel.end());
        let taken_first = if taken > 0 { taken } else { version };
        if is_last {
            let (publish, taken) = (publish.clone(), taken_first);
            channel.cached = Some(KeptEvent { version, taken, place, id, publish });
        }
        let (except, frame) = (*except, frame.clone());
        let body = match is_last {
            true => EnvelopeBody::Cached { except, frame, data: data.clone() },
            false => EnvelopeBody::Event { except, frame },
        };
        let again = taken > 0;
        let envelope = Envelope { again, delivered: again, ..envelope_of(id, version, body) };
        self.send_envelope(topic, envelope);
        self.note_taken(id, &publish, taken_first);
        for node in self.nodes.iter_mut().filter(|node| node.number == id.0) {
            let topics = &node.memory.shared.scope.others().unwrap().topics;
            let is_heard_here = topics.read_topic(topic, |_| ()).is_some();
            if is_heard_here && !node.delivered.contains(&id.1) {
                node.flying.push((id.1, publish.clone()));
            }
        }
    }

    fn arrive(&mut self, number: u64, arrival: LinkEvent) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.number == number) {
            node.arrivals.push_back(arrival);
        }
    }

    fn read(&mut self, at: usize, topic: Topic, again: bool) {
        let heard = self.nodes[at].heard.get(&topic).copied().unwrap_or_default();
        let settled = self.faults.is_settled();
        let channel = self.channel(&topic);
        channel.version += STEP;
        let version = channel.version;
        let members: Vec<(u64, Member)> = channel.members.values().cloned().collect();
        let presence = topic.channel.kind().is_presence();
        let loaded = presence.then_some(LoadedRoster { version, members });
        let log = channel.log.iter().cloned().enumerate();
        let log = log.map(|(at, (_, envelope))| (channel.begin + at, envelope));
        let log = log.filter(|(place, _)| again && *place >= heard);
        let missed = log.map(|(place, envelope)| (Some(place), envelope)).collect();
        // What was missed is in the log; who began to hear while the link was cut has not missed what was before.
        let cached = channel.cached.as_ref().filter(|kept| !again || kept.place < heard);
        let known = cached.map(|kept| kept.id);
        let cached = cached.and_then(|kept| match &kept.publish {
            OutgoingEvent::Cached { frame, data, ttl, .. } => Some(RetainedEvent {
                version: kept.version,
                frame: frame.clone(),
                data: data.clone(),
                ttl: *ttl,
                delivered: again,
            }),
            _ => None,
        });
        let arrival = LinkEvent::Opened { topic, loaded, cached, settled };
        let node = &mut self.nodes[at];
        let has_own = (!again).then_some(node.serial);
        node.answers.push_back(Answer { missed, arrival, has_own, known });
    }

    /// The frames in a channel's log, each with whom it was not for.
    pub fn logged(&self, topic: &Topic) -> Vec<(Option<SocketId>, Bytes)> {
        let log = self.channels.get(topic).map(|channel| channel.log.as_slice());
        let event = |(_, envelope): &(u64, Envelope)| match &envelope.body {
            EnvelopeBody::Event { except, frame, .. } => Some((*except, frame.clone())),
            _ => None,
        };
        log.unwrap_or_default().iter().filter_map(event).collect()
    }

    /// The version of a channel's cached event.
    pub fn cache_version(&self, topic: &Topic) -> u64 {
        let cached = self.channels.get(topic).and_then(|channel| channel.cached.as_ref());
        cached.map_or(0, |kept| kept.version)
    }

    /// Whether Redis has lost the cached event since one was published.
    pub fn is_behind(&self, topic: &Topic) -> bool {
        self.channels.get(topic).is_some_and(|channel| channel.is_behind)
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

fn envelope_of((origin, serial): (u64, u64), version: u64, body: EnvelopeBody) -> Envelope {
    let (delivered, whisper, again) = (false, false, false);
    Envelope { origin, serial, version, sent: 0, delivered, whisper, again, body }
}

impl Channel {
    /// The place of the next entry of its log.
    fn end(&self) -> usize {
        self.begin + self.log.len()
    }

    fn change(&mut self) -> u64 {
        self.version += STEP;
        self.changed = self.version;
        self.version
    }
}
