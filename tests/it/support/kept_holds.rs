//! The state kept without Redis, for several nodes, of how many subscribe to a channel and of what webhooks are told
//! is occupied or present: each by the lease under which it was said. `loopback.rs` has who is present.

use std::collections::{BTreeMap, BTreeSet};

use fanfare::cluster::Topic;
use fanfare::cluster::envelope::{Envelope, EnvelopeBody};
use fanfare::cluster::link::{LinkEvent, LinkRequest};
use fanfare::cluster::topics::CountInterest;
use fanfare::cluster::webhook_log::LogRequest;
use fanfare::protocol::member::UserId;

use super::loopback::Loopback;

/// A channel that is occupied, or a member of it.
pub(super) type Hold = (Topic, Option<UserId>);

#[derive(Default)]
pub(super) struct KeptHolds {
    counts: BTreeMap<(Topic, u64), usize>,
    holds: BTreeSet<(Hold, u64)>,
    /// That of the last sum that was told.
    version: u64,
    /// Whether webhooks were told last that a thing has come, or has ended.
    told: BTreeMap<Hold, bool>,
}

impl KeptHolds {
    /// All of it is lost. What ends before it is said again, backends are not told.
    pub(super) fn lose(&mut self) {
        self.counts.clear();
        self.holds.clear();
        self.told.clear();
    }

    fn sum(&self, topic: &Topic) -> usize {
        self.counts.iter().filter(|((other, _), _)| other == topic).map(|(_, count)| count).sum()
    }

    fn hold(&mut self, hold: Hold, lease: u64, others: &[u64], is: bool) {
        let own = others.iter().chain([&lease]);
        own.for_each(|lease| {
            self.holds.remove(&(hold.clone(), *lease));
        });
        if is {
            self.holds.insert((hold.clone(), lease));
        }
        self.tell(hold);
    }

    /// Notes what webhooks are told, if that is news.
    fn tell(&mut self, hold: Hold) {
        let is = self.holds.iter().any(|(other, _)| *other == hold);
        self.told.insert(hold, is);
    }
}

impl Loopback {
    /// A node says how many subscribe there; who wants to know of all is told as `COUNT` and its caller do.
    pub(super) fn count(&mut self, at: usize, topic: &Topic, tell: bool) {
        let node = &mut self.nodes[at];
        let topics = &node.memory.shared.scope.others().unwrap().topics;
        let (count, wish) = topics.count_here(topic);
        let (number, lease, holds) = (node.number, node.lease, &mut self.holds);
        let own = node.old.iter().chain([&lease]);
        let before: usize =
            own.filter_map(|lease| holds.counts.remove(&(topic.clone(), *lease))).sum();
        holds.counts.insert((topic.clone(), lease), count);
        let untold = node.untold.contains(topic);
        let wish = if untold { CountInterest::Now } else { wish.or_clients(tell) };
        let count_all = holds.sum(topic);
        let is_news = wish != CountInterest::No && count != before;
        if wish == CountInterest::Now || is_news {
            self.tell_sum(number, topic);
        } else if wish == CountInterest::Here {
            holds.version += 1;
            let (version, body) = (holds.version, EnvelopeBody::Count { count: count_all });
            let (delivered, whisper, again) = (false, false, false);
            let (origin, serial, sent) = (0, 0, 0);
            let envelope =
                Envelope { origin, serial, version, sent, delivered, whisper, again, body };
            node.arrivals.push_back(LinkEvent::Topic(topic.clone(), envelope));
        }
    }

    /// A sum is told by the node that has changed it, with an order of its own: another may be told before it.
    fn tell_sum(&mut self, number: u64, topic: &Topic) {
        self.holds.version += 1;
        let (version, count) = (self.holds.version, self.holds.sum(topic));
        let node = self.nodes.iter_mut().find(|node| node.number == number && !node.is_cut);
        let Some(node) = node else {
            return self.send((number, 0), topic, (version, EnvelopeBody::Count { count }));
        };
        node.untold.insert(topic.clone());
        node.sums.push_back((topic.clone(), version, count));
    }

    /// The node sends the next sum that it has changed; whether there was one.
    pub(super) fn send_sum(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let Some((topic, version, count)) = node.sums.pop_front() else { return false };
        if node.sums.iter().all(|(other, ..)| *other != topic) {
            node.untold.remove(&topic);
        }
        let number = node.number;
        self.send((number, 0), &topic, (version, EnvelopeBody::Count { count }));
        true
    }

    /// What was counted and held under a lease ends; the node that clears it tells the sums.
    pub(super) fn clear_holds(&mut self, number: u64, lease: u64) {
        let of_it = self.holds.counts.extract_if(.., |(_, other), _| *other == lease);
        let topics: Vec<Topic> =
            of_it.filter(|(_, count)| *count > 0).map(|((topic, _), _)| topic).collect();
        topics.iter().for_each(|topic| self.tell_sum(number, topic));
        let ended: Vec<(Hold, u64)> =
            self.holds.holds.extract_if(.., |(_, other)| *other == lease).collect();
        ended.into_iter().for_each(|(hold, _)| self.holds.tell(hold));
    }

    /// A node says that webhooks are to be told of something, over its link or, without one, once it has one again.
    pub(super) fn log(&mut self, at: usize, request: LogRequest, has_link: bool) {
        let LogRequest::Held { app, channel, user, is } = request else { return };
        let node = &mut self.nodes[at];
        let hold = (Topic { app, channel }, user);
        if is {
            node.holds.insert(hold.clone());
        } else {
            node.holds.remove(&hold);
        }
        if has_link {
            self.holds.hold(hold, node.lease, &node.old, is);
        }
    }

    /// What a node says again of what webhooks are told.
    pub(super) fn holds_again(&self, at: usize) -> Vec<LinkRequest> {
        let again = self.nodes[at].holds.iter().cloned().map(|(topic, user)| {
            let Topic { app, channel } = topic;
            LinkRequest::WebhookLog(LogRequest::Held { app, channel, user, is: true })
        });
        again.collect()
    }

    /// What webhooks take for occupied or present.
    pub fn told_of(&self) -> BTreeSet<(Topic, Option<UserId>)> {
        let told = self.holds.told.iter().filter(|(_, is)| **is);
        told.map(|(hold, _)| hold.clone()).collect()
    }
}
