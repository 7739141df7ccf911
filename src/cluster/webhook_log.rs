//! This node's entries for the webhook logs. Each app has a log in Redis, to which all nodes write and which one
//! node reads. Each node registers its holds: channels that it has subscribers of, and members. Redis decides in
//! the step that writes an entry whether it is the first hold or the last end over all nodes. Registering twice
//! under one lease changes nothing, so that everything can be registered again after a lost link.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, trace};

use super::Topic;
use super::log_entries::{LogEntry, ToldAs, name_of};
use super::pending_entries::{PendingEntries, PendingEntry};
use super::told_states::ToldStates;
use crate::app::AppId;
use crate::metrics::{HeldByApp, HeldBytes};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use lost_data::LogDoubts;

mod lost_data;

/// Entries that an app's log holds before those are left out that no later one depends on.
pub(super) const MAX_LOGGED: usize = 100_000;

/// Events of an app that wait while Redis is away, and their bytes; beyond that the newest are left out.
const MAX_WAITING: usize = 10_000;
/// Bytes of events that wait for Redis, for each app.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// How long after a failover it is said what was told before: until most nodes have come back, and no stale hold of
/// theirs is in the way, but before an end that is logged at once is due.
const RESTATE_AFTER: Duration = Duration::from_secs(2);

/// For how long written entries are remembered, since a failover may lose them; how many, and their bytes.
const RECENT: Duration = Duration::from_secs(10);
/// Events that are remembered after Redis took them, for each app.
const MAX_RECENT: usize = 1000;
/// Bytes of those events.
const MAX_RECENT_BYTES: usize = 4 << 20;

/// Names that are remembered for that time, for each app.
const MAX_NAMES: usize = 10_000;

/// Bytes that are counted for a channel or member that is held here, beside its name.
const NAME_BYTES: usize = 64;

/// Which comings and goings an app's webhooks ask for.
#[derive(Clone, Copy, Default, Debug)]
pub struct WebhookInterest {
    /// Whether a webhook wants channels that become occupied or vacated.
    pub channels: bool,
    /// Whether a webhook wants members that come or go.
    pub members: bool,
}

/// An entry from the node.
#[derive(Debug)]
pub enum LogRequest {
    /// These are all apps with webhooks that the node knows of, and whether they ask for counts.
    Apps(Vec<(AppId, bool)>),
    /// A channel, or a user in it, is here from now on, or is no longer.
    Held { app: AppId, channel: ChannelName, user: Option<UserId>, is: bool },
    /// Something happened; what it is, the log does not know.
    Happened { app: AppId, text: String },
    /// An entry of the log is done with.
    Done { app: AppId, id: Box<str> },
}

/// Events for the webhooks.
#[derive(Debug)]
pub enum LogBatch {
    /// Entries of an app's log, which this node is to tell backends of.
    Entries { app: AppId, entries: Vec<LogEntry> },
    /// This node is the log's reader at least until then, and has read everything up to a time of Redis, in
    /// milliseconds.
    Held { app: AppId, until: Instant, read_up_to: u64 },
    /// Another node may do that from now on.
    Lost(AppId),
}

/// The entries of all apps, and the position in their logs.
#[derive(Debug, Default)]
pub(super) struct WebhookLog {
    /// Each app with webhooks, or with entries left to write.
    pub(super) apps: HashMap<AppId, AppLog>,
    /// Apps that nothing is left of, whose topics are subscribed to still.
    pub(super) forgotten: Vec<AppId>,
    /// All that is held has been said over this link, but for apps whose logs are on a master that is away.
    up: bool,
    /// That link is lost.
    lost: bool,
    /// When this node's leases held, as far as is known.
    alive: Option<Instant>,
    /// Apps whose logs cannot be reached at the moment.
    away: BTreeSet<AppId>,
    /// Where the bytes are counted that are held for apps.
    counted: Arc<HeldByApp>,
}

/// Whether an app has webhooks, and whether they want counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum AppHooks {
    #[default]
    None,
    /// Webhooks that do not ask for counts.
    Some,
    /// Webhooks that ask for counts.
    Counting,
}

/// Of one app.
#[derive(Debug, Default)]
pub(super) struct AppLog {
    /// The webhooks of the app, as far as they matter here.
    pub(super) hooks: AppHooks,
    /// Shows whether Redis has what was said to it.
    pub(super) marker: String,
    /// Names that are held here, and whether Redis has them.
    held: HashMap<Arc<str>, bool>,
    /// Bytes of the names of that.
    name_bytes: usize,
    /// Entries to be written, in order.
    pub(super) queue: PendingEntries,
    /// The number of the last that happened.
    number: u64,
    /// Entries that were deleted from the log, and when.
    recent_done: VecDeque<(Instant, Box<str>)>,
    /// Events that were written, and when.
    recent: VecDeque<(Instant, PendingEntry)>,
    recent_bytes: usize,
    /// Holds that were registered recently, and when.
    recent_held: VecDeque<(Instant, Arc<str>)>,
    /// Names whose begin and end may both have been reported and then lost.
    doubtful: BTreeSet<Arc<str>>,
    /// The last entries of names that this node has told.
    told: ToldStates,
    /// How names were told that a new master may know differently, and when that is to be said there.
    restated: BTreeMap<Arc<str>, ToldAs>,
    restate_at: Option<Instant>,
    /// More that is unsure if Redis loses its data, and the channels whose counts have to be told again then.
    doubts: LogDoubts,
    recounted: BTreeSet<ChannelName>,
    /// Entries that are done with.
    pub(super) done: Vec<Box<str>>,
    /// Whether this node is the log's reader.
    pub(super) owned: bool,
    /// It is subscribed to what wakes it, and is to be woken.
    pub(super) listening: bool,
    /// Whether the reader waits to be woken.
    pub(super) asleep: bool,
    /// The last entry that was read.
    pub(super) read: Option<Box<str>>,
    /// When the log was looked at last, and when there was something to do.
    pub(super) looked: Option<Instant>,
    /// When the log last had an entry.
    pub(super) busy: Option<Instant>,
    /// Entries of the log.
    pub(super) backlog: u64,
    /// When a link was lost over which all that is held had been said.
    lost: Option<Instant>,
    /// Bytes that are counted for all of it.
    counted: CountedBytes,
}

/// Bytes that are counted, and where.
#[derive(Debug, Default)]
struct CountedBytes {
    /// Bytes that are counted now.
    now: usize,
    /// The app's held memory.
    held: Arc<HeldBytes>,
}

/// The bytes of a forgotten app are no longer counted.
impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.held.sub_bytes(self.now);
    }
}

impl WebhookLog {
    /// Nothing yet; its bytes are counted in `counted`.
    pub(super) fn new(counted: Arc<HeldByApp>) -> Self {
        Self { counted, ..Self::default() }
    }

    /// The state of an app, created at its first entry.
    fn of_app(&mut self, app: AppId) -> &mut AppLog {
        let held = self.counted.of_app(&app);
        let counted = CountedBytes { now: 0, held };
        self.apps.entry(app).or_insert_with(|| AppLog { counted, ..AppLog::default() })
    }

    /// Queues an entry. Returns whether there was room for it.
    pub(super) fn take_request(&mut self, request: LogRequest) -> bool {
        match request {
            LogRequest::Apps(apps) => {
                self.apps.values_mut().for_each(|of| of.hooks = AppHooks::None);
                for (app, counts) in apps {
                    let hooks = if counts { AppHooks::Counting } else { AppHooks::Some };
                    self.of_app(app).hooks = hooks;
                }
            }
            LogRequest::Held { app, channel, user, is } => {
                let up = self.up && !self.away.contains(&app);
                self.of_app(app).note_held(name_of(&channel, user.as_ref()), is, up);
            }
            LogRequest::Happened { app, text } => {
                return self.of_app(app).queue_happening(text);
            }
            LogRequest::Done { app, id } => {
                if let Some(of) = self.apps.get_mut(&app) {
                    of.told.note_done(&id);
                    of.done.push(id);
                }
            }
        }
        true
    }

    /// The link was lost just now. Redis may lose the last entries with it, however long the next link takes.
    pub(super) fn note_loss(&mut self) {
        let (now, is_first) = (Instant::now(), self.up && !std::mem::replace(&mut self.lost, true));
        for (_, of) in self.apps.iter_mut().filter(|(app, _)| is_first && !self.away.contains(*app))
        {
            of.note_lost(now);
        }
    }

    /// There is another link: what is held from now on is said with everything else.
    pub(super) fn note_link_lost(&mut self) {
        self.note_loss();
        (self.up, self.lost) = (false, false);
        for of in self.apps.values_mut() {
            (of.listening, of.asleep) = (false, false);
        }
    }

    /// The master of some apps' logs is lost.
    pub(super) fn note_part_lost(&mut self, is_its: impl Fn(&AppId) -> bool) {
        let now = Instant::now();
        for (app, of) in self.apps.iter_mut().filter(|(app, _)| is_its(app)) {
            if self.up && !self.away.contains(app) {
                of.note_lost(now);
            }
            (of.listening, of.asleep) = (false, false);
        }
        self.note_away(is_its);
    }

    /// Entries written within the last seconds before the link was lost may be lost. They are queued again; those
    /// that are not lost are recognised by their numbers. The same goes for holds. Returns the apps whose logs this
    /// node reads: they are read from the beginning, since a new master's entries may precede the last one that was
    /// read. With them, the channels whose counts it has told, which must be told again.
    pub(super) fn requeue_recent(
        &mut self,
        is_its: impl Fn(&AppId) -> bool,
    ) -> (Vec<AppId>, Vec<Topic>) {
        let (mut owned, mut counted) = (Vec::new(), Vec::new());
        let now = Instant::now();
        for (app, of) in self.apps.iter_mut().filter(|(app, _)| is_its(app)) {
            let lost = of.lost.unwrap_or(now);
            of.read = None;
            let held = of.recent_held.drain(..);
            let held = held.filter(|(at, _)| lost.saturating_duration_since(*at) < RECENT);
            of.doubtful.extend(held.map(|(_, name)| name));
            if of.owned {
                owned.push(app.clone());
            }
            // Entries that were deleted may be in the log again, without later ones.
            of.done.extend(of.recent_done.drain(..).map(|(_, id)| id));
            let recent = std::mem::take(&mut of.recent);
            of.recent_bytes = 0;
            let is_young = |at: &Instant| lost.saturating_duration_since(*at) < RECENT;
            let young = recent.into_iter().filter(|(at, _)| is_young(at));
            young.rev().for_each(|(_, word)| of.queue.push_front(word));
            let (told, counts) = of.told.take_told(lost);
            of.restated.extend(told);
            let topic = |channel| Topic { app: app.clone(), channel };
            counted.extend(counts.into_iter().chain(of.doubts.take_counts(lost)).map(topic));
            of.recount();
            let (doubtful, told) = (of.doubtful.len(), of.restated.len());
            debug!(%app, doubtful, told, "webhooks may know what Redis has lost");
        }
        (owned, counted)
    }

    /// The wake-up topic of an app reports new entries, or with `anew` that no node reads the log.
    pub(super) fn wake(&mut self, app: &str, anew: bool) {
        if let Some(of) = self.apps.get_mut(&AppId::new(app))
            && (of.owned || anew)
        {
            of.looked = None;
        }
    }

    /// Everything is to be said again, but for apps whose master is away: those it is said of over a later link.
    pub(super) fn resend_holds(&mut self, away: BTreeSet<AppId>, is_of: impl Fn(&AppId) -> bool) {
        (self.up, self.lost, self.away) = (true, false, away);
        let is_there = |app: &AppId| !self.away.contains(app) && is_of(app);
        for (_, of) in self.apps.iter_mut().filter(|(app, _)| is_there(app)) {
            of.queue.drop_held();
            of.note_leases_end();
            let unsure = &of.doubts.unsure;
            let again = |(name, told): (&Arc<str>, &bool)| {
                let is_told = *told && !unsure.contains(name);
                PendingEntry::new(if is_told { '=' } else { '+' }, name.clone())
            };
            let mut all: Vec<_> = of.held.iter().map(again).collect();
            // Channels before their members.
            all.sort_unstable_by(|one, other| one.text.cmp(&other.text));
            all.into_iter().rev().for_each(|one| of.queue.push_front(one));
            // Members leave before their channel is empty.
            let ended = || of.doubtful.iter().filter(|name| !of.held.contains_key(*name)).cloned();
            let mut words: Vec<PendingEntry> =
                ended().map(|name| PendingEntry::new('+', name)).collect();
            words.extend(ended().rev().map(|name| PendingEntry::new('-', name)));
            words.into_iter().for_each(|word| of.queue.push_back(word));
            let restate_at = Instant::now() + RESTATE_AFTER;
            of.restate_at = (!of.restated.is_empty()).then_some(restate_at);
            of.looked = None;
            of.recount();
        }
    }

    /// The master of these apps' logs is away, which was not known when all was said.
    pub(super) fn note_away(&mut self, is_away: impl Fn(&AppId) -> bool) {
        for (app, of) in &mut self.apps {
            if !self.away.contains(app) && is_away(app) {
                self.away.insert(app.clone());
                of.queue.drop_held();
            }
        }
    }

    /// Forgets an app that nothing is left of.
    pub(super) fn forget_if_done(&mut self, app: &AppId) {
        if self.apps.get(app).is_some_and(AppLog::is_over) {
            self.apps.remove(app);
            self.forgotten.push(app.clone());
        }
    }
}

impl AppLog {
    /// The link to the log was lost.
    fn note_lost(&mut self, now: Instant) {
        self.lost = Some(now);
        // Redis may have these, though it has not answered, and others may have told them already.
        let asked = self.queue.asked().filter(|entry| entry.sign == '+');
        self.recent_held.extend(asked.map(|entry| (now, entry.text.clone())));
    }

    /// Queues that a name is held or no longer held. An entry that undoes one which was not sent yet removes that
    /// one instead.
    fn note_held(&mut self, name: String, is: bool, up: bool) {
        let name: Arc<str> = name.into();
        if is == self.held.contains_key(&name) {
            return;
        }
        let undone = if up { self.queue.undo(&name) } else { None };
        if is {
            if !self.doubts.note_return(&name) {
                self.name_bytes += NAME_BYTES + name.len();
            }
            // Where its end is taken back Redis holds it as before.
            self.held.insert(name.clone(), undone.unwrap_or(false));
            if up && undone.is_none() {
                self.queue.push_undoable(PendingEntry::new('+', name), false);
            }
        } else {
            let told = self.held.remove(&name).unwrap_or(false);
            if told {
                self.doubts.note_leaving(name.clone());
            } else {
                self.name_bytes -= NAME_BYTES + name.len();
            }
            if up && undone.is_none() {
                self.queue.push_undoable(PendingEntry::new('-', name), told);
            }
            if self.held.is_empty() {
                // Room that a crowd has needed is not kept.
                self.held = HashMap::new();
            }
        }
        self.recount();
    }

    /// Called whenever it has changed.
    fn recount(&mut self) {
        let bytes = self.name_bytes + self.queue.held_bytes() + self.recent_bytes;
        let bytes = bytes + self.told.held_bytes();
        let CountedBytes { now, held } = &mut self.counted;
        held.replace_bytes(std::mem::replace(now, bytes), bytes);
    }

    /// Queues an event that happened. Returns false if there was no room for it.
    fn queue_happening(&mut self, text: String) -> bool {
        // A crowd that misses the same says so once.
        let is_same = |word: &PendingEntry| *word.text == *text;
        if text.starts_with('X') && self.queue.iter().rev().take(64).any(is_same) {
            return true;
        }
        // Holds do not count in the limit, so that clients which come and go cannot displace events.
        let (waiting, bytes) = self.queue.happened();
        let room = waiting < MAX_WAITING && bytes + text.len() <= MAX_WAITING_BYTES;
        if room {
            self.number += 1;
            self.queue.push_back(PendingEntry {
                sign: '!',
                text: text.into(),
                number: self.number,
            });
            self.recount();
        }
        room
    }

    /// The first `count` of the queue are in Redis.
    pub(super) fn note_written(&mut self, count: usize) {
        let now = Instant::now();
        for word in self.queue.drain_said(count) {
            trace!(sign = %word.signed(), text = &*word.text, "written to the webhook log");
            if word.sign == '!' {
                self.recent_bytes += word.held_bytes();
                self.recent.push_back((now, word));
                continue;
            }
            if word.sign == '?' {
                self.restated.remove(&word.text);
                continue;
            }
            if let Some(told) = self.held.get_mut(&word.text) {
                *told = true;
            }
            match word.sign {
                '+' => {
                    self.doubts.unsure.remove(&word.text);
                    self.recent_held.push_back((now, word.text));
                }
                '-' => {
                    self.doubtful.remove(&word.text);
                    let bytes = NAME_BYTES + word.text.len();
                    if self.doubts.note_left(word.text, now) {
                        self.name_bytes -= bytes;
                    }
                }
                _ => drop(self.doubtful.remove(&*word.text)),
            }
        }
        let held = &mut self.recent_held;
        while held.len() > MAX_NAMES || held.front().is_some_and(|(at, _)| now - *at >= RECENT) {
            held.pop_front();
        }
        while self.recent.front().is_some_and(|(at, _)| now - *at >= RECENT)
            || self.recent.len() > MAX_RECENT
            || self.recent_bytes > MAX_RECENT_BYTES
        {
            let gone = self.recent.pop_front();
            self.recent_bytes -= gone.map_or(0, |(_, word)| word.held_bytes());
        }
        self.recount();
    }

    /// Entries of the log are handed out.
    pub(super) fn note_read(&mut self, entries: &[LogEntry]) {
        self.told.note_read(entries);
        self.recount();
    }

    /// The first `count` of what is done with are not in the log any more.
    pub(super) fn taken_out(&mut self, count: usize) {
        let now = Instant::now();
        self.recent_done.extend(self.done.drain(..count).map(|id| (now, id)));
        while self.recent_done.len() > MAX_RECENT
            || self.recent_done.front().is_some_and(|(at, _)| now - *at >= RECENT)
        {
            self.recent_done.pop_front();
        }
    }

    /// Nothing is left to write or read, and no app here has webhooks.
    pub(super) fn is_over(&self) -> bool {
        let idle = self.held.is_empty() && self.queue.is_empty() && self.done.is_empty();
        self.hooks == AppHooks::None && idle && (!self.owned || self.backlog == 0)
    }
}

#[cfg(test)]
mod tests;
