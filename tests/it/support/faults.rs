//! Faults between several nodes without Redis: links that are lost, nodes that die or sleep while others clear
//! what they held, orders that are refused, whose answers are lost, or that arrive late, and a Redis that has lost
//! who is present and how many subscribe. The rest is in `loopback.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fanfare::cluster::Topic;
use fanfare::cluster::envelope::EnvelopeBody;
use fanfare::cluster::link::{LinkEvent, LinkRequest, OfflineFallback, OutgoingEvent};
use fanfare::cluster::topics::TopicEntry;
use fanfare::protocol::member::{Member, UserId};

use super::beyond::OrderFate;
use super::loopback::Loopback;

/// What is kept of faults until they have passed.
#[derive(Default)]
pub(super) struct Faults {
    /// Leases that do not hold any more.
    fenced: BTreeSet<u64>,
    /// Those under which nothing is left.
    cleared: BTreeSet<u64>,
    /// What links that are lost will still bring, with the node and the lease it was said under.
    late: VecDeque<((u64, u64), LateOrder)>,
    /// Nodes that have not said again what they hold since Redis lost it.
    missing: BTreeSet<u64>,
    /// Events that nodes cannot hear, since Redis lost them first.
    missed: BTreeSet<(u64, Topic, Bytes)>,
}

/// An order that was sent and has not arrived.
enum LateOrder {
    Join(Topic, Member, usize),
    Leave(Topic, UserId),
    Publish(u64, OutgoingEvent),
}

impl Faults {
    pub(super) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Whether all have said what they hold, so that whoever is not there has left.
    pub(super) fn is_settled(&self) -> bool {
        self.missing.is_empty()
    }
}

impl LateOrder {
    /// The same as an order, if it is one that changes something; a publish with the serial it has there.
    fn of(order: &LinkRequest, serial: u64) -> Option<Self> {
        match order {
            LinkRequest::Join { topic, member, max, .. } => {
                Some(Self::Join(topic.clone(), member.clone(), *max))
            }
            LinkRequest::Leave { topic, user } => Some(Self::Leave(topic.clone(), user.clone())),
            LinkRequest::Publish(publish) => Some(Self::Publish(serial, publish.clone())),
            _ => None,
        }
    }
}

impl Loopback {
    /// The node dies, another takes its place, and its lease lapses. What it had published was sent.
    pub fn kill(&mut self, at: usize) {
        let fresh = self.node();
        let dead = std::mem::replace(&mut self.nodes[at], fresh);
        for lease in dead.old.into_iter().chain([dead.lease]) {
            self.clear(dead.number, lease);
        }
        self.note_said(dead.number);
    }

    /// A lease is fenced first, and cleared then.
    fn clear(&mut self, origin: u64, lease: u64) {
        self.faults.fenced.insert(lease);
        let mut left = Vec::new();
        for (topic, channel) in &self.channels {
            let of_it = channel.refs.iter().filter(|(other, _)| *other == lease);
            left.extend(of_it.map(|(_, user)| (topic.clone(), user.clone())));
        }
        for (topic, user) in left {
            self.leave(origin, lease, topic, user);
        }
        self.clear_holds(origin, lease);
        self.faults.cleared.insert(lease);
    }

    /// Whether all nodes have their links and will keep them, and have said anew what they hold.
    pub fn is_whole(&self) -> bool {
        self.nodes.iter().all(|node| {
            let holds = !self.faults.fenced.contains(&node.lease);
            let keeps = !node.is_cut && node.fate == OrderFate::Done;
            keeps && node.again.is_empty() && !node.is_asleep && holds
        })
    }

    pub fn is_cut(&self, at: usize) -> bool {
        self.nodes[at].is_cut
    }

    pub fn is_asleep(&self, at: usize) -> bool {
        self.nodes[at].is_asleep
    }

    /// The node does nothing until it wakes; others may take it for dead meanwhile.
    pub fn fall_asleep(&mut self, at: usize) {
        self.nodes[at].is_asleep = true;
    }

    pub fn wake(&mut self, at: usize) {
        self.nodes[at].is_asleep = false;
    }

    /// Another node finds the leases of this one lapsed, and clears them.
    pub fn lapse(&mut self, at: usize) {
        let by = self.nodes[(at + 1) % self.nodes.len()].number;
        let node = &self.nodes[at];
        for lease in node.old.clone().into_iter().chain([node.lease]) {
            self.clear(by, lease);
        }
    }

    /// Something happens to the next order of a node.
    pub fn doom_order(&mut self, at: usize, fate: OrderFate) {
        self.nodes[at].fate = fate;
    }

    /// Redis has lost everything: who is present, how many subscribe and what webhooks hold, under which leases, logs and
    /// cached events. What a node was still to read of a log it misses.
    pub fn flush(&mut self) {
        for channel in self.channels.values_mut() {
            channel.members.clear();
            channel.refs.clear();
            channel.cached = None;
            channel.is_behind = true;
            channel.begin += channel.log.len();
            channel.lost.append(&mut channel.log);
        }
        (0..self.nodes.len()).for_each(|at| self.note_missed(at));
        self.holds.lose();
        let leases = self.nodes.iter().flat_map(|node| node.old.iter().chain([&node.lease]));
        let leases: Vec<u64> = leases.copied().collect();
        self.faults.fenced.extend(&leases);
        self.faults.cleared.extend(&leases);
        self.faults.missing = self.nodes.iter().map(|node| node.number).collect();
    }

    /// Redis stops, and begins anew without data: all links are lost, and nodes say again what it took last.
    pub fn restart(&mut self) {
        (0..self.nodes.len()).for_each(|at| self.cut(at));
        let missed = self.faults.missed.clone();
        self.flush();
        self.faults.missed = missed;
        self.channels.values_mut().for_each(|channel| channel.lost.clear());
        self.nodes.iter_mut().for_each(|node| node.is_doubtful = true);
    }

    /// Notes what a node can hear no more: it was in a log that is lost, and is not on its way.
    pub(super) fn note_missed(&mut self, at: usize) {
        let node = &self.nodes[at];
        for (topic, heard) in &node.heard {
            let Some(channel) = self.channels.get(topic) else { continue };
            let first = channel.begin - channel.lost.len();
            let places = channel.lost.iter().enumerate().map(|(at, (_, it))| (first + at, it));
            let missed = places.filter(|(place, _)| place >= heard);
            let missed = missed.filter(|(place, _)| !node.is_on_its_way(topic, *place));
            self.faults.missed.extend(missed.filter_map(|(_, envelope)| match &envelope.body {
                EnvelopeBody::Event { frame, .. } | EnvelopeBody::Cached { frame, .. } => {
                    Some((node.number, topic.clone(), frame.clone()))
                }
                _ => None,
            }));
        }
    }

    /// What nodes cannot have heard, by their numbers.
    pub fn missed(&self) -> &BTreeSet<(u64, Topic, Bytes)> {
        &self.faults.missed
    }

    /// Redis has taken a publish, and may lose it from now on.
    pub(super) fn note_taken(
        &mut self,
        (origin, serial): (u64, u64),
        publish: &OutgoingEvent,
        at: u64,
    ) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.number == origin)
            && node.recent.iter().all(|(known, ..)| *known != serial)
        {
            node.recent.push((serial, publish.clone(), at));
        }
    }

    /// All have heard everything: what was lost before is not missed.
    pub fn note_settled(&mut self) {
        self.faults.missed.clear();
        self.channels.values_mut().for_each(|channel| channel.lost.clear());
        self.nodes.iter_mut().for_each(|node| node.recent.clear());
    }

    /// The node's link is lost, with what was on its way to the node.
    pub fn cut(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.is_cut = true;
        node.fate = OrderFate::Done;
        node.far.go_down();
        node.published.clear();
        node.answers.clear();
        node.opening.clear();
        node.unread.clear();
        node.subscribed.clear();
        node.again.clear();
        node.sums.clear();
        for (serial, publish) in std::mem::take(&mut node.flying) {
            node.delivered.insert(serial);
            node.publish_alone(serial, &publish);
        }
        node.arrivals.push_back(LinkEvent::Down);
        self.note_missed(at);
    }

    /// The link is lost after what had come in was handed on, and before what was sent has arrived: some of it still
    /// will.
    pub fn cut_late(&mut self, at: usize) {
        self.lose_link(at, None);
    }

    /// The same, behind an order that was not done.
    fn lose_link(&mut self, at: usize, refused: Option<LinkRequest>) {
        let node = &mut self.nodes[at];
        let (next, mut came) = (node.serial + 1, false);
        for (topic, sent) in std::mem::take(&mut node.published) {
            if !node.opening.contains_key(&topic) {
                came |= (sent.1.origin, sent.1.serial) == (node.number, next);
                node.hear(&topic, sent, false);
            }
        }
        // Nothing new is sent before all is said again.
        let (by, was_sent) = ((node.number, node.lease), node.again.is_empty());
        self.cut(at);
        match refused {
            // It has come back, which is an answer too.
            Some(LinkRequest::Publish(_)) if came => self.nodes[at].serial = next,
            Some(order) => self.alone(at, order),
            None => {}
        }
        while let Ok(order) = self.nodes[at].far.requests.try_recv() {
            let late = LateOrder::of(&order, self.nodes[at].serial + 1).filter(|_| was_sent);
            self.faults.late.extend(late.map(|late| (by, late)));
            self.alone(at, order);
        }
    }

    /// The first of the orders that are late arrives; whether there was one. Under a lease that does not hold any more it
    /// changes nothing.
    pub(super) fn bring_late(&mut self) -> bool {
        let Some((by, late)) = self.faults.late.pop_front() else { return false };
        if self.faults.fenced.contains(&by.1) {
            return true;
        }
        match late {
            LateOrder::Join(topic, member, max) => {
                self.hold(by, &topic, member, (max, 0));
            }
            LateOrder::Leave(topic, user) => self.leave(by.0, by.1, topic, user),
            LateOrder::Publish(serial, publish) => self.publish(by.0, serial, publish),
        }
        true
    }

    /// The node's next order is carried out; whether there is one. A node whose lease lapsed hears of it then, or as it
    /// renews it.
    pub(super) fn take_order(&mut self, at: usize) -> bool {
        if self.send_sum(at) {
            return true;
        }
        let node = &mut self.nodes[at];
        let holds = !self.faults.fenced.contains(&node.lease);
        let (said, order) = match node.again.pop_front() {
            Some(order) => (true, order),
            None => match node.far.requests.try_recv() {
                Ok(order) => (false, order),
                Err(_) if holds || !self.renews => return false,
                Err(_) => (true, LinkRequest::Stop),
            },
        };
        let fate = std::mem::replace(&mut node.fate, OrderFate::Done);
        if holds && fate == OrderFate::Done {
            match order {
                LinkRequest::Stop => self.has_said_again(at),
                order => self.carry_out(at, order),
            }
            return true;
        }
        let late = LateOrder::of(&order, node.serial + 1);
        let was_done = holds && fate == OrderFate::Unanswered;
        if let Some(late) = late.filter(|_| was_done) {
            let (by, serial) = ((node.number, node.lease), node.serial + 1);
            self.faults.late.push_front((by, late));
            self.bring_late();
            // Its answer would have said that it comes back.
            self.nodes[at].flying.retain(|(flying, _)| *flying != serial);
        }
        // What is said again is so from the beginning.
        self.lose_link(at, Some(order).filter(|_| !said));
        self.mend(at);
        true
    }

    /// The link is made again: what came before is fenced, the node says anew what it holds, then what it could not say,
    /// and has what it held before cleared away.
    pub fn mend(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.is_cut = false;
        self.faults.fenced.insert(node.lease);
        node.old.push(std::mem::replace(&mut node.lease, self.next));
        self.next += 1;
        let topics = &node.memory.shared.scope.others().unwrap().topics;
        // In the same order with the same seed.
        let all = topics.all_topics().into_iter().collect::<BTreeSet<_>>();
        for topic in node.untold.difference(&all).cloned() {
            node.again.push_back(LinkRequest::Changed { topic, tell: true });
        }
        for topic in all {
            node.again.push_back(LinkRequest::Open(topic.clone()));
            let joins = topics.read_topic(&topic, |entry| {
                let own = entry
                    .roster
                    .local_members()
                    .map(|member| (member.user_id.clone(), member.clone()));
                let own: BTreeMap<UserId, Member> = own.collect();
                let joins = own.into_iter().map(|(user, member)| LinkRequest::Join {
                    topic: topic.clone(),
                    member,
                    max: usize::MAX,
                    place: entry.roster.join_version(&user),
                });
                joins.collect::<Vec<_>>()
            });
            node.again.extend(joins.into_iter().flatten());
            topics.count_anew(&topic);
            node.again.push_back(LinkRequest::Changed { topic, tell: false });
        }
        let holds = self.holds_again(at);
        let node = &mut self.nodes[at];
        node.again.extend(holds);
        node.again.push_back(LinkRequest::Stop);
    }

    /// Carries an order out while the link is cut.
    pub(super) fn alone(&mut self, at: usize, order: LinkRequest) {
        if let LinkRequest::Open(topic) = &order {
            self.since_subscribed(at, topic, TopicEntry::made_at);
        }
        let node = &mut self.nodes[at];
        let alone = match order {
            LinkRequest::Open(topic) => OfflineFallback::Open(topic),
            LinkRequest::Join { topic, member, .. } => {
                OfflineFallback::Join { topic, user: member.user_id }
            }
            LinkRequest::Leave { topic, user } => OfflineFallback::Leave { topic, user },
            LinkRequest::Publish(publish) => {
                node.serial += 1;
                node.delivered.insert(node.serial);
                node.publish_alone(node.serial, &publish);
                node.held.push_back((node.serial, publish));
                return;
            }
            LinkRequest::WebhookLog(request) => return self.log(at, request, false),
            _ => return,
        };
        node.arrivals.push_back(LinkEvent::Alone(alone));
    }

    /// Everything that the node holds is said anew.
    fn has_said_again(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.far.go_up();
        node.arrivals.extend(std::mem::take(&mut node.orders));
        let number = node.number;
        if std::mem::take(&mut node.is_doubtful) {
            for (serial, publish, taken) in node.recent.clone() {
                self.nodes[at].delivered.insert(serial);
                self.publish_taken((number, serial), publish, taken);
            }
        }
        for (serial, publish) in std::mem::take(&mut self.nodes[at].held) {
            self.publish(number, serial, publish);
        }
        for old in std::mem::take(&mut self.nodes[at].old) {
            self.clear(number, old);
        }
        self.note_said(number);
    }

    /// A node has said what it holds, or never will. After the last one rosters are read again.
    fn note_said(&mut self, number: u64) {
        if self.faults.missing.remove(&number) && self.faults.missing.is_empty() {
            for node in self.nodes.iter_mut().filter(|node| !node.is_cut) {
                for topic in &node.subscribed {
                    // What comes meanwhile is a change to what is read.
                    node.opening.entry(topic.clone()).or_default();
                    node.unread.push_back((topic.clone(), true));
                }
            }
        }
    }

    /// Whether the event was taken before, by its sender and serial.
    pub(super) fn is_logged(&self, id: (u64, u64), publish: &OutgoingEvent) -> bool {
        let (OutgoingEvent::Event { topic, .. } | OutgoingEvent::Cached { topic, .. }) = publish
        else {
            return false;
        };
        let log = self.channels.get(topic).map_or([].as_slice(), |channel| channel.log.as_slice());
        log.iter().any(|(_, envelope)| (envelope.origin, envelope.serial) == id)
    }

    /// Nothing stands under a lease that was cleared, whoever is present is held, and a sender's serial never goes back in
    /// a log.
    pub fn check_kept(&self) {
        for (topic, channel) in &self.channels {
            for (lease, user) in &channel.refs {
                let is_cleared = self.faults.cleared.contains(lease);
                assert!(!is_cleared, "{topic:?}: {user:?} under the lease {lease}, cleared before");
            }
            for user in channel.members.keys() {
                let is_held = channel.refs.iter().any(|(_, other)| other == user);
                assert!(is_held, "{topic:?}: nobody holds {user:?}");
            }
            let mut last = BTreeMap::new();
            for (_, envelope) in &channel.log {
                let before = last.insert(envelope.origin, envelope.serial);
                let grows = before.is_none_or(|before| before < envelope.serial);
                assert!(grows, "{topic:?}: {} behind {before:?}", envelope.serial);
            }
        }
    }
}
