//! Deduplication of received events: for each topic the last place in its log, and the last serials of each sender.
//! This state outlives a link. While a topic catches up from its log, incoming events wait behind the missed ones. An
//! event is recorded once it was forwarded, so that one that a lost link kept back is read again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::MAX_RECONNECT_PAUSE;
use super::topic_senders::TopicSenders;
use crate::cluster::envelope::{Envelope, EnvelopeBody};

/// How far before the last known place a log is read after a failover; microseconds.
const OVERLAP: u64 = 10_000_000;

/// Nodes whose envelopes came in that are remembered.
const NODES: usize = 1024;

/// Topics on which envelopes without seals were refused that are remembered.
const REFUSED: usize = 10_000;

/// How soon the first node registers after it has learned that its lease lapsed.
const RETURNED_WITHIN: Duration = MAX_RECONNECT_PAUSE.saturating_add(Duration::from_millis(250));

/// How often, at most, nodes are looked for whose envelopes have no seals.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Envelopes received on all topics, by their names in Redis.
#[derive(Debug)]
pub(super) struct Deduplicator {
    /// By the names of the topics in Redis.
    topics: HashMap<String, TopicSenders>,
    /// This node's number.
    node: u64,
    /// The other nodes that were received from.
    others: HashSet<u64>,
    has_newcomer: bool,
    /// When this node's own probe came back last.
    word: Instant,
    /// There are nodes whose envelopes have no seals.
    unsealed: bool,
    /// Topics on which some were refused, and when such nodes were looked for last.
    refused: HashSet<String>,
    looked: Option<Instant>,
    /// Apps whose webhook log has new entries, and whether no node reads it.
    wakeups: Vec<(Box<str>, bool)>,
}

/// The unique id of an envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MessageId {
    pub(super) origin: u64,
    /// The sender numbers what it publishes; 0 for what needs no number.
    pub(super) serial: u64,
    /// Where it stands in the channel's log, if it is in one.
    pub(super) place: Option<u64>,
}

impl From<&Envelope> for MessageId {
    fn from(envelope: &Envelope) -> Self {
        Self { origin: envelope.origin, serial: envelope.serial, place: envelope.log_place() }
    }
}

/// The decision on a received envelope.
#[derive(PartialEq, Debug)]
pub(super) enum EnvelopeVerdict {
    /// Not received before.
    New(Envelope),
    /// A duplicate.
    Doubled,
    /// It comes out of [`Deduplicator::next_waiting`].
    Waits,
}

impl Deduplicator {
    pub(super) fn new(node: u64) -> Self {
        let (topics, refused, others, wakeups) = Default::default();
        let (word, looked, has_newcomer, unsealed) = (Instant::now(), None, false, false);
        Self { topics, node, others, has_newcomer, word, unsealed, refused, looked, wakeups }
    }

    /// Notes that an app's webhook log has new entries; with `anew`, that no node reads it.
    pub(super) fn note_wakeup(&mut self, app: &str, anew: bool) {
        // Anybody who can publish under the prefix can send this, so the list is bounded.
        if self.wakeups.len() < NODES
            && !self.wakeups.iter().any(|(one, a)| **one == *app && *a == anew)
        {
            self.wakeups.push((app.into(), anew));
        }
    }

    pub(super) fn take_wakeups(&mut self) -> Vec<(Box<str>, bool)> {
        std::mem::take(&mut self.wakeups)
    }

    /// Accepts envelopes without seals from now on or not: older nodes do not seal.
    pub(super) fn take_unsealed(&mut self, whether: bool) {
        self.unsealed = whether;
        self.looked = Some(Instant::now());
    }

    /// Whether an envelope without a seal is accepted on a topic.
    pub(super) fn takes_unsealed(&mut self, name: &str) -> bool {
        if !self.unsealed && self.refused.len() < REFUSED {
            self.refused.insert(name.to_owned());
        }
        self.unsealed
    }

    /// Whether some were refused, and older nodes have not been looked for recently.
    pub(super) fn is_to_look_for_unsealed(&self) -> bool {
        !self.refused.is_empty() && self.looked.is_none_or(|looked| looked.elapsed() > LOOK_EVERY)
    }

    /// The topics on which some were refused, if they are believed now.
    pub(super) fn take_refused(&mut self) -> HashSet<String> {
        let refused = std::mem::take(&mut self.refused);
        if self.unsealed { refused } else { HashSet::new() }
    }

    /// An envelope came from a node.
    pub(super) fn note_node(&mut self, node: u64) {
        if node == self.node || self.others.contains(&node) {
            return;
        }
        if self.others.len() == NODES {
            self.others.clear();
        }
        self.others.insert(node);
        self.has_newcomer = true;
    }

    /// Whether a node was received from for the first time; true once.
    pub(super) fn take_newcomer(&mut self) -> bool {
        std::mem::take(&mut self.has_newcomer)
    }

    /// The node's own probe has come back.
    pub(super) fn note_echo(&mut self) {
        self.word = Instant::now();
    }

    /// How long ago that was, or the link was made.
    pub(super) fn time_since_echo(&self) -> Duration {
        self.word.elapsed()
    }

    /// How far back a topic has to catch up: to when its link was lost, however many links were made since.
    pub(super) fn catch_up_window(&self, name: &str) -> Duration {
        let offline_since = self.topics.get(name).and_then(|senders| senders.offline_since);
        offline_since.map_or(Duration::ZERO, |offline_since| offline_since.elapsed())
    }

    /// Redis said that the lease had lapsed, so the node has heard it until now, unless it slept: then its own probe came
    /// back longer ago than `recent`.
    pub(super) fn note_lapse(&mut self, recent: Duration) {
        if self.word.elapsed() < recent {
            // Where Redis lost its data, the first node that returns begins the epoch.
            self.word = Instant::now() + RETURNED_WITHIN;
        }
    }

    /// Redis has lost its data, so logs that begin at `began` say nothing of what was missed before.
    pub(super) fn note_data_loss(&mut self, is_its: impl Fn(&str) -> bool, began: Instant) {
        for (_, senders) in self.topics.iter_mut().filter(|(name, _)| is_its(name)) {
            senders.has_lost_log |= senders.offline_since.is_some_and(|since| since < began);
        }
    }

    /// Whether it did so while this topic was not heard.
    pub(super) fn has_lost_log(&self, name: &str) -> bool {
        self.topics.get(name).is_some_and(|senders| senders.has_lost_log)
    }

    /// Whether an event of this node has come back. Other topics may be on another server.
    pub(super) fn has_own(&self, name: &str, serial: u64) -> bool {
        self.topics.get(name).is_some_and(|senders| senders.own >= serial)
    }

    /// The topic is subscribed to again, and has to catch up.
    pub(super) fn cut_one(&mut self, name: &str) {
        if let Some(senders) = self.topics.get_mut(name) {
            senders.waiting.get_or_insert_default();
        }
    }

    /// There is a new link: all topics have to catch up.
    pub(super) fn begin_catch_up(&mut self) {
        let last = std::mem::replace(&mut self.word, Instant::now());
        for senders in self.topics.values_mut() {
            senders.waiting = Some(VecDeque::new());
            senders.offline_since.get_or_insert(last);
        }
    }

    /// The same of a part whose server said that the lease had lapsed, and which this node has heard until now.
    pub(super) fn begin_catch_up_after_lapse(
        &mut self,
        is_its: impl Fn(&str) -> bool,
        recent: Duration,
    ) {
        let last = Instant::now() + RETURNED_WITHIN;
        let is_recent = self.word.elapsed() < recent;
        for (_, senders) in self.topics.iter_mut().filter(|(name, _)| is_recent && is_its(name)) {
            senders.offline_since.get_or_insert(last);
        }
    }

    /// A part of what there is of Redis is lost, or there again: its topics have to catch up.
    pub(super) fn begin_catch_up_of(&mut self, is_its: impl Fn(&str) -> bool) {
        // What came back to this node last did so from some server. Until then what its others said had come, too, as
        // far as that was ever known.
        let last = self.word;
        for (_, senders) in self.topics.iter_mut().filter(|(name, _)| is_its(name)) {
            senders.waiting = Some(VecDeque::new());
            senders.offline_since.get_or_insert(last);
        }
    }

    /// Another server has taken over, in whose logs events that were published again may stand before the last place that
    /// was read of the old one. So logs are read from further back; known events are recognised.
    pub(super) fn step_back(&mut self, is_its: impl Fn(&str) -> bool) {
        for (_, senders) in self.topics.iter_mut().filter(|(name, _)| is_its(name)) {
            // Not before the topic was opened here: older events would otherwise arrive behind later ones.
            let since = senders.opened.unwrap_or(senders.since);
            let back = |place: u64| place.saturating_sub(OVERLAP);
            senders.place = senders.place.map(|place| back(place).max(since.min(place)));
        }
    }

    /// The topic is about to be subscribed to, at `since`. If it is new, everything from then on is to be received.
    pub(super) fn open_topic(&mut self, name: &str, since: u64) {
        let waiting = Some(VecDeque::new());
        let new = || TopicSenders { since, waiting, ..TopicSenders::default() };
        self.topics.entry(name.to_owned()).or_insert_with(new);
    }

    /// Whether it was opened, and not closed since.
    pub(super) fn is_open(&self, name: &str) -> bool {
        self.topics.contains_key(name)
    }

    /// The same for a topic that is opened while the link is down: everything after `place`.
    pub(super) fn begin_at(&mut self, name: &str, place: u64) {
        let new = || TopicSenders { since: place, ..TopicSenders::default() };
        self.topics.entry(name.to_owned()).or_insert_with(new).place.get_or_insert(place);
    }

    /// The topic is closed: later messages on it are ignored.
    pub(super) fn close_topic(&mut self, name: &str) {
        self.topics.remove(name);
    }

    /// The place after which a topic has to read its log, 0 for a new one; `None` if it has caught up.
    pub(super) fn misses_after(&self, name: &str) -> Option<u64> {
        let senders = self.topics.get(name).filter(|senders| senders.waiting.is_some())?;
        // Without a place nothing was received, so the log is read from its beginning.
        Some(senders.place.unwrap_or_default())
    }

    /// Checks an envelope that was received on a topic.
    pub(super) fn judge_envelope(&mut self, name: &str, envelope: Envelope) -> EnvelopeVerdict {
        let Some(senders) = self.topics.get_mut(name) else {
            return EnvelopeVerdict::New(envelope);
        };
        if let Some(waiting) = &mut senders.waiting {
            waiting.push_back(envelope);
            return EnvelopeVerdict::Waits;
        }
        self.filter_duplicate(name, envelope).map_or(EnvelopeVerdict::Doubled, EnvelopeVerdict::New)
    }

    /// Drops an envelope that was received before, and one that was published again if a later one of its sender was
    /// received. So too this node's own: subscribers may have got the later one without Redis, and one from just before
    /// the topic was opened is read with what was missed. Its cached events pass, for their place.
    pub(super) fn filter_duplicate(&self, name: &str, mut envelope: Envelope) -> Option<Envelope> {
        let (origin, serial) = (envelope.origin, envelope.serial);
        let own = origin == self.node;
        let is_late = self.topics.get(name).is_some_and(|senders| {
            let is_behind_own = own && (1..senders.alone).contains(&serial);
            is_behind_own || (envelope.again && senders.knows_later(origin, serial))
        });
        if !is_late && !self.is_known(name, MessageId::from(&envelope)) {
            return Some(envelope);
        }
        envelope.delivered = true;
        (own && matches!(envelope.body, EnvelopeBody::Cached { .. })).then_some(envelope)
    }

    /// Whether an event was received, for one that is also read from the log.
    pub(super) fn is_known(&self, name: &str, mark: MessageId) -> bool {
        self.topics
            .get(name)
            .is_some_and(|senders| senders.contains_message(mark.origin, mark.serial))
    }

    /// It was forwarded to the node.
    pub(super) fn note_delivered(&mut self, name: &str, mark: MessageId) {
        let own = mark.origin == self.node;
        if let Some(senders) = self.topics.get_mut(name) {
            senders.note_message(mark);
            senders.own = senders.own.max(if own { mark.serial } else { 0 });
        }
    }

    /// An event of this node was delivered to local subscribers without Redis.
    pub(super) fn note_local_delivery(&mut self, name: &str, serial: u64) {
        let mark = MessageId { origin: self.node, serial, place: None };
        if let Some(senders) = self.topics.get_mut(name) {
            senders.note_message(mark);
            senders.alone = senders.alone.max(serial);
        }
    }

    /// An event was delivered as the cached one. After a failover it may be published again, at another place.
    pub(super) fn note_kept(&mut self, name: &str, mark: MessageId) {
        // This node's own come back for other reasons, too.
        if let Some(senders) = self.topics.get_mut(name).filter(|_| mark.origin != self.node) {
            senders.note_message(MessageId { place: None, ..mark });
        }
    }

    /// The log was read, and ends at `place`.
    pub(super) fn note_log_end(&mut self, name: &str, place: u64) {
        if let Some(senders) = self.topics.get_mut(name) {
            senders.place = Some(place.max(senders.place.unwrap_or_default())); // 0: before all.
        }
    }

    /// The next envelope that was received while the log was read; after the last the topic has caught up, at `now`.
    pub(super) fn next_waiting(&mut self, name: &str, now: u64) -> Option<Envelope> {
        let senders = self.topics.get_mut(name)?;
        let next = senders.waiting.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            (senders.waiting, senders.offline_since) = (None, None);
            senders.has_lost_log = false;
            if senders.place.is_none() {
                senders.opened = Some(now.max(senders.since));
            }
            senders.place.get_or_insert(senders.since);
        }
        next
    }
}

#[cfg(test)]
mod tests;
