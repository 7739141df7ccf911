//! Telling webhooks the truth once Redis has lost its data, and with it the log. Each node puts together the names that
//! backends may know otherwise: those that it has told of late, and its own holds that began or ended last. They
//! are said once all nodes have registered again, or are taken for gone: only then Redis knows how they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::{AppLog, MAX_NAMES, NAME_BYTES, RECENT, WebhookLog};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::log_entries::ToldAs;
use crate::cluster::pending_entries::PendingEntry;
use crate::cluster::told_states;
use crate::protocol::channel::ChannelName;

/// Names and counts of an app that backends may know otherwise than Redis.
#[derive(Debug, Default)]
pub(super) struct LogDoubts {
    /// Names that Redis had as held here and that are not any more, which it has not been told.
    leaving: BTreeSet<Arc<str>>,
    /// The same, which it was told, and when.
    left: VecDeque<(Instant, Arc<str>)>,
    /// Names that are held here and whose beginning may not have been told, or whose end was.
    pub(super) unsure: BTreeSet<Arc<str>>,
    /// Channels whose counts this node had logged of late, and when.
    counts: VecDeque<(Instant, ChannelName)>,
    /// Redis has lost its data, and not all that was held is there again.
    pub(super) emptied: bool,
}

/// Removes what is old, or too much.
fn forget_old<T>(some: &mut VecDeque<(Instant, T)>, now: Instant) {
    while some.len() > MAX_NAMES || some.front().is_some_and(|(at, _)| now - *at >= RECENT) {
        some.pop_front();
    }
}

impl LogDoubts {
    /// Redis is to be told that a name is held no longer.
    pub(super) fn note_leaving(&mut self, name: Arc<str>) {
        self.unsure.remove(&name);
        self.leaving.insert(name);
    }

    /// It is held again. Returns whether it was held before, for which its bytes are still counted.
    pub(super) fn note_return(&mut self, name: &str) -> bool {
        self.leaving.remove(name)
    }

    /// Redis was told of it. Returns whether its bytes need no longer be counted.
    pub(super) fn note_left(&mut self, name: Arc<str>, now: Instant) -> bool {
        let was = self.leaving.remove(&name);
        self.left.push_back((now, name));
        forget_old(&mut self.left, now);
        was
    }

    /// A channel's count was logged.
    fn note_counted(&mut self, channel: ChannelName) {
        let now = Instant::now();
        self.counts.push_back((now, channel));
        forget_old(&mut self.counts, now);
    }

    /// The channels whose counts may not have been told: those of the last seconds before that time.
    pub(super) fn take_counts(&mut self, lost: Instant) -> Vec<ChannelName> {
        let young = self.counts.drain(..).filter(|(at, _)| is_young(lost, *at));
        young.map(|(_, channel)| channel).collect()
    }
}

/// Whether what was written then may have been unread when Redis lost it.
fn is_young(lost: Instant, at: Instant) -> bool {
    lost.saturating_duration_since(at) < RECENT
}

impl WebhookLog {
    /// A channel's count was logged for webhooks, if they ask for it.
    pub(in crate::cluster) fn note_counted(&mut self, topic: &Topic) {
        let of = self.apps.get_mut(&topic.app).filter(|of| of.hooks == super::AppHooks::Counting);
        if let Some(of) = of {
            of.doubts.note_counted(topic.channel.clone());
        }
    }

    /// This node's leases held at that time.
    pub(in crate::cluster) fn held_until_now(&mut self, at: Instant) {
        self.alive = Some(at);
    }

    /// Redis has lost what it knew of some apps, and the first node found that at the time `began`. Where this node comes
    /// later than others have `patience`, they may have taken it for gone, and have told so. The node that told ends
    /// before that remembers them for a while; this one must not have been silent for longer.
    pub(in crate::cluster) fn note_emptied(
        &mut self,
        is_its: impl Fn(&AppId) -> bool,
        began: Instant,
        patience: Duration,
    ) {
        let is_forgotten = |since: Instant| since.elapsed() > patience + told_states::KEPT;
        let is_late = began.elapsed() > patience;
        let lapsed = is_late || self.alive.is_some_and(is_forgotten);
        for (app, of) in self.apps.iter_mut().filter(|(app, _)| is_its(app)) {
            of.note_emptied(began, lapsed);
            let (unsure, told) = (of.doubts.unsure.len(), of.restated.len());
            debug!(%app, unsure, told, "Redis has lost what webhooks may know");
        }
    }

    /// It is time to say how things were told before a failover, or will not be later.
    pub(in crate::cluster) fn queue_restated(&mut self, is_last: bool) {
        let now = Instant::now();
        for (app, of) in self.apps.iter_mut().filter(|(app, _)| !self.away.contains(*app)) {
            // Until all is there again Redis would take for gone what others hold.
            let waits = of.doubts.emptied;
            if waits || of.restate_at.take_if(|at| is_last || *at <= now).is_none() {
                continue;
            }
            debug!(%app, names = of.restated.len(), "what was told before the failover is said");
            for (name, told) in &of.restated {
                let (sign, text, number) = ('?', name.clone(), told.digit());
                of.queue.push_back(PendingEntry { sign, text, number });
            }
            of.recount();
        }
    }

    /// All that was held is there again, or gone for good: what was told is said. Returns the channels whose counts
    /// are to be told again.
    pub(in crate::cluster) fn note_restored(&mut self) -> Vec<Topic> {
        let (mut counted, now) = (Vec::new(), Instant::now());
        for (app, of) in self.apps.iter_mut().filter(|(_, of)| of.doubts.emptied) {
            // Meanwhile an end may have been logged of what another node holds and had not said again.
            of.gather_doubts(now);
            (of.doubts.emptied, of.restate_at) = (false, Some(now));
            let topic = |channel| Topic { app: app.clone(), channel };
            counted.extend(std::mem::take(&mut of.recounted).into_iter().map(topic));
            of.recount();
        }
        counted
    }
}

impl AppLog {
    fn note_emptied(&mut self, began: Instant, lapsed: bool) {
        let lost = self.lost.map_or(began, |lost| lost.min(began));
        // A beginning that was not read is lost. What is said again with `+` is logged, if nobody else has said it.
        let young = self.recent_held.iter().filter(|(at, _)| is_young(lost, *at));
        let begun: Vec<Arc<str>> =
            young.map(|(_, name)| name.clone()).chain(self.doubtful.iter().cloned()).collect();
        let is_held = |name: &Arc<str>| self.held.contains_key(name);
        self.doubts.unsure.extend(begun.into_iter().filter(is_held));
        if lapsed {
            let told = self.held.iter().filter(|(_, told)| **told);
            self.doubts.unsure.extend(told.map(|(name, _)| name.clone()));
        }
        self.gather_doubts(lost);
        self.doubts.emptied = true;
        self.recount();
    }

    /// Adds what backends may know otherwise than Redis by then.
    fn gather_doubts(&mut self, lost: Instant) {
        let (told, counts) = self.told.take_told(lost);
        let mut own: BTreeMap<Arc<str>, ToldAs> = BTreeMap::new();
        let leaving = std::mem::take(&mut self.doubts.leaving);
        self.name_bytes -= leaving.iter().map(|name| NAME_BYTES + name.len()).sum::<usize>();
        // These stay, for Redis may lose its data again.
        let left = self.doubts.left.iter().filter(|(at, _)| is_young(lost, *at));
        own.extend(left.map(|(_, name)| (name.clone(), ToldAs::Begun)));
        own.extend(leaving.into_iter().map(|name| (name, ToldAs::Begun)));
        let begun = self.recent_held.iter().filter(|(at, _)| is_young(lost, *at));
        own.extend(begun.map(|(_, name)| (name.clone(), ToldAs::Unknown)));
        own.extend(
            std::mem::take(&mut self.doubtful).into_iter().map(|name| (name, ToldAs::Unknown)),
        );
        own.retain(|name, _| !self.held.contains_key(name));
        for (name, as_what) in own {
            // Who reads the log knows better, if it is read here still.
            if !self.owned || !told.contains_key(&name) {
                self.restated.insert(name, as_what);
            }
        }
        for (name, as_what) in told {
            self.restated.insert(name, as_what);
        }
        self.recounted.extend(counts);
        self.recounted.extend(self.doubts.take_counts(lost));
    }

    /// A name that was being left ends with the lease under which it was held.
    pub(super) fn note_leases_end(&mut self) {
        let now = Instant::now();
        for name in std::mem::take(&mut self.doubts.leaving) {
            self.name_bytes -= NAME_BYTES + name.len();
            if self.doubts.emptied {
                // There is no such lease any more.
                self.restated.entry(name).or_insert(ToldAs::Begun);
            } else {
                self.doubts.note_left(name, now);
            }
        }
    }

    /// Of the first `count`, those that a new log has not taken, since this node did not know it: they are said anew.
    pub(in crate::cluster) fn note_refused(&mut self, refused: Vec<PendingEntry>) {
        for entry in refused {
            // This node wrote the digit.
            let told = ToldAs::of_digit(entry.number).unwrap_or(ToldAs::Unknown);
            self.restated.insert(entry.text, told);
            self.restate_at = Some(Instant::now());
        }
    }

    /// Entries on how names were told, among the first `count` to be written.
    pub(in crate::cluster) fn restated_of(&self, count: usize) -> Vec<PendingEntry> {
        self.queue.iter().take(count).filter(|entry| entry.sign == '?').cloned().collect()
    }
}
