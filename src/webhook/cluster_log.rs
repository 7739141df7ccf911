//! Processes a cluster's webhook log, on the one node that posts the app's webhooks. The log has the joins and leaves
//! over all nodes in order, so nothing need be counted: an end is held back, and a return soon after cancels it. An
//! entry stays in the log until everything that it led to is done; the next reader begins with what is left, and may
//! send a webhook twice.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Fact;
use super::debounce::{self, DELAY};
use super::message::{MessageContent, WebhookMessage};
use crate::app::{App, AppId};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// An end followed by a begin within so many milliseconds is no end.
const DEBOUNCE_MS: u64 = DELAY.as_millis() as u64;

/// For how long it is remembered that an end was told, which may be one of long ago: a Redis that is back with older
/// data has it in its log, and nodes say within that time how it was told before.
const ENDED_KEPT: Duration = Duration::from_secs(10);

/// Channels whose last counts are remembered.
const MAX_COUNTS: usize = 100_000;

/// Subscribers up to which each count is reported, and the shortest interval between two counts of a crowd, as for
/// clients.
const UNTHROTTLED_SUBSCRIBERS: usize = 100;
/// The least time between two counts of a crowd.
const CROWD_INTERVAL: Duration = Duration::from_secs(5);

/// Takes entries, by app and place, that are done with.
pub type EntryAcknowledger = Box<dyn Fn(&AppId, &str) + Send>;

/// An entry of a cluster's log.
#[derive(Debug)]
pub struct LoggedEntry {
    /// Its id in the stream, `milliseconds-number`, by which it is acknowledged.
    pub id: Box<str>,
    pub what: EntryContent,
}

/// The content of an entry.
#[derive(Debug)]
pub enum EntryContent {
    /// A channel, or a user in it, is there from now on, or is not.
    Turned(bool, ChannelName, Option<UserId>),
    /// The same as it is now, after a failover that may have lost the entries of what was told before; and how it was
    /// told, if that is known.
    Restated { told: Option<bool>, turned: (bool, ChannelName, Option<UserId>) },
    /// As [`Fact::text`] wrote it.
    Text(String),
}

/// Where entries go that are done with, until the node leaves them to others.
pub(super) struct AckSink {
    /// None on a server of its own, which has no log.
    done: Option<EntryAcknowledger>,
    /// Whether acknowledged entries are still deleted from the log.
    open: Cell<bool>,
    /// The apps whose logs are this node's to tell, until when that is sure, and which time that is.
    offices: RefCell<HashMap<AppId, (Instant, u64)>>,
    /// Counts changes of offices, so that a change during a request is noticed.
    times: Cell<u64>,
}

impl AckSink {
    /// Open until the end of the server.
    pub(super) fn new(done: Option<EntryAcknowledger>) -> Rc<Self> {
        Rc::new(Self {
            done,
            open: Cell::new(true),
            offices: RefCell::default(),
            times: Cell::new(0),
        })
    }

    /// An app's log is this node's to tell until then.
    pub(super) fn hold(&self, app: &AppId, until: Instant) {
        self.begin(app).0 = until;
    }

    /// It is another's.
    pub(super) fn lose(&self, app: &AppId) {
        self.offices.borrow_mut().remove(app);
    }

    /// A log that comes to this node anew has another number: receipts of the time before
    /// acknowledge nothing any longer.
    fn begin(&self, app: &AppId) -> RefMut<'_, (Instant, u64)> {
        RefMut::map(self.offices.borrow_mut(), |offices| {
            offices.entry(app.clone()).or_insert_with(|| {
                self.times.set(self.times.get() + 1);
                (Instant::now(), self.times.get())
            })
        })
    }

    /// Whether events that are left unsent stay in a log for another node.
    pub(super) fn is_to_a_log(&self) -> bool {
        self.done.is_some()
    }

    /// Entries that are not done stay in the log from now on.
    pub(super) fn close(&self) {
        self.open.set(false);
    }
}

/// An entry of the log. With the last that was to be done for it, it is done with.
pub(super) struct LogAck {
    /// The sink that deletes entries.
    door: Rc<AckSink>,
    app: AppId,
    id: Box<str>,
    /// The time that the log was this node's to tell when the entry was read.
    time: u64,
}

/// Whether this node may report an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OfficeHold {
    /// This node holds the office for certain.
    Sure,
    /// Redis has to be asked first.
    Unsure,
    /// Another node holds the office.
    Lost,
}

impl LogAck {
    /// Shared by all events that the entry leads to; the last to go acknowledges it.
    pub(super) fn new(door: &Rc<AckSink>, app: &AppId, id: &str) -> Rc<Self> {
        let time = door.begin(app).1;
        Rc::new(Self { door: door.clone(), app: app.clone(), id: id.into(), time })
    }

    /// Checked before each request: a node that was cut off must not report what another node reports.
    pub(super) fn office(&self) -> OfficeHold {
        match self.door.offices.borrow().get(&self.app) {
            Some((until, time)) if *time == self.time => {
                if Instant::now() < *until {
                    OfficeHold::Sure
                } else {
                    OfficeHold::Unsure
                }
            }
            _ => OfficeHold::Lost,
        }
    }

    /// When the entry was written, in milliseconds since 1970, by the clock of Redis.
    pub(super) fn at(&self) -> u64 {
        self.id.split('-').next().and_then(|at| at.parse().ok()).unwrap_or(u64::MAX)
    }
}

impl Drop for LogAck {
    fn drop(&mut self) {
        let is_told = self.door.open.get() && self.office() != OfficeHold::Lost;
        if let Some(done) = self.door.done.as_ref().filter(|_| is_told) {
            done(&self.app, &self.id);
        }
    }
}

/// A channel of an app, or a member of one.
type SubjectKey = (AppId, ChannelName, Option<UserId>);

/// An event, and the entry that it is from.
pub(super) type DueEvent = (Arc<App>, WebhookMessage, Rc<LogAck>);

/// An end that waits for its opposite.
struct WaitingEnd {
    /// Its place among the ends.
    number: u64,
    app: Arc<App>,
    receipt: Rc<LogAck>,
    /// Whether the beginning before it was told for certain, so that with a return there is nothing to tell.
    is_news: bool,
}

/// Ends that are held back, until it is known that nothing in the log takes them back.
#[derive(Default)]
pub(super) struct HeldEnds {
    /// In the order of the log. A number that is no longer held was taken back.
    due: HashMap<AppId, VecDeque<(SubjectKey, u64)>>,
    /// Ends that wait for their opposite.
    waiting: HashMap<SubjectKey, WaitingEnd>,
    /// The next end's number.
    number: u64,
    /// Names that were told last to have ended, and when.
    ended: HashMap<SubjectKey, Instant>,
    /// The same in order of time. A time that is no longer the key's was overtaken.
    ended_at: VecDeque<(Instant, SubjectKey)>,
}

impl HeldEnds {
    /// A channel or member begins or ends; returns the events to report at once, in order. The entries themselves
    /// tell how soon a begin followed an end.
    pub(super) fn turn(
        &mut self,
        app: &Arc<App>,
        (is, channel, user): (bool, ChannelName, Option<UserId>),
        receipt: Rc<LogAck>,
    ) -> Vec<DueEvent> {
        let key = (app.id.clone(), channel, user);
        if !is {
            self.wait(app, key, receipt, true);
            return Vec::new();
        }
        let came = (app.clone(), event(&key, true), receipt);
        self.ended.remove(&key);
        match self.waiting.remove(&key) {
            None => vec![came],
            // An end followed by a begin soon after is no end.
            Some(end) if came.2.at().saturating_sub(end.receipt.at()) < DEBOUNCE_MS => {
                if end.is_news { Vec::new() } else { vec![came] }
            }
            Some(end) => vec![(end.app, event(&key, false), end.receipt), came],
        }
    }

    /// Holds an end back.
    fn wait(&mut self, app: &Arc<App>, key: SubjectKey, receipt: Rc<LogAck>, is_news: bool) {
        self.number += 1;
        self.due.entry(app.id.clone()).or_default().push_back((key.clone(), self.number));
        let end = WaitingEnd { number: self.number, app: app.clone(), receipt, is_news };
        self.waiting.insert(key, end);
    }

    /// The log says how something was told before a failover, which may not be what the log led to, and how it is now.
    /// Afterwards what is told, or held back, is so. In doubt the same is told twice.
    pub(super) fn restate(
        &mut self,
        app: &Arc<App>,
        told: Option<bool>,
        (is, channel, user): (bool, ChannelName, Option<UserId>),
        receipt: Rc<LogAck>,
    ) -> Vec<DueEvent> {
        let key = (app.id.clone(), channel, user);
        if is {
            // Where it was told so, an end and a return may have cancelled each other since. But an end may be one
            // of before it was told.
            let waits = self.waiting.remove(&key).is_some();
            let ended = self.ended.remove(&key).is_some();
            if told == Some(true) && !waits && !ended {
                return Vec::new();
            }
            return vec![(app.clone(), event(&key, true), receipt)];
        }
        match self.waiting.get_mut(&key) {
            Some(end) => end.is_news &= told == Some(true),
            // Another node may have told the end meanwhile, so that a return is news in any case.
            None if told != Some(false) => self.wait(app, key, receipt, false),
            None => {}
        }
        Vec::new()
    }

    /// The ends of an app without a begin, if its log was read up to that time.
    pub(super) fn due(&mut self, app: &AppId, read_up_to: u64) -> Vec<DueEvent> {
        self.forget_ended();
        let mut events = Vec::new();
        let Some(due) = self.due.get_mut(app) else { return events };
        while let Some((key, number)) = due.front() {
            match self.waiting.get(key).filter(|end| end.number == *number) {
                Some(end) if end.receipt.at().saturating_add(DEBOUNCE_MS) > read_up_to => break,
                Some(_) => {
                    if let Some(end) = self.waiting.remove(key) {
                        events.push((end.app, event(key, false), end.receipt));
                        let now = Instant::now();
                        self.ended.insert(key.clone(), now);
                        self.ended_at.push_back((now, key.clone()));
                    }
                }
                None => {}
            }
            due.pop_front();
        }
        if due.is_empty() {
            self.due.remove(app);
        }
        events
    }

    /// Forgets what ended long ago.
    fn forget_ended(&mut self) {
        while self.ended_at.front().is_some_and(|(at, _)| at.elapsed() > ENDED_KEPT) {
            let Some((at, key)) = self.ended_at.pop_front() else { break };
            if self.ended.get(&key) == Some(&at) {
                self.ended.remove(&key);
            }
        }
    }

    /// Another node reads the app's log from now on; what is held back is for it to tell.
    pub(super) fn leave(&mut self, app: &AppId) {
        self.due.remove(app);
        self.waiting.retain(|(other, ..), _| other != app);
    }
}

/// The event for a beginning or an end.
fn event((_, channel, user): &SubjectKey, is: bool) -> WebhookMessage {
    WebhookMessage::turned((channel.clone(), user.clone()), is)
}

/// Which counts are news: one may stand in the log behind another that is of later, and those of a crowd come seldom.
#[derive(Default)]
pub(super) struct LatestCounts {
    /// The last count of each crowd.
    last: HashMap<(AppId, ChannelName), LastCount>,
    /// Crowds with a changed count, and when it is reported.
    due: VecDeque<(Instant, (AppId, ChannelName))>,
}

/// A crowd's last count.
#[derive(Default)]
struct LastCount {
    /// Of the last count that was taken; older ones are no news.
    version: u64,
    /// When the crowd's count was last reported.
    reported: Option<Instant>,
    /// A newer count that waits for its time.
    waiting: Option<DueEvent>,
}

impl LatestCounts {
    /// Takes a count with its version; returns it if it is to be reported at once.
    pub(super) fn take(
        &mut self,
        now: Instant,
        (version, count): (u64, usize),
        due_event: DueEvent,
    ) -> Option<DueEvent> {
        let channel = (due_event.0.id.clone(), due_event.1.channel.clone());
        if self.last.len() >= MAX_COUNTS && !self.last.contains_key(&channel) {
            self.last.retain(|_, last| last.waiting.is_some());
        }
        let last = self.last.entry(channel.clone()).or_default();
        if version <= last.version {
            return None;
        }
        last.version = version;
        match last
            .reported
            .filter(|at| count > UNTHROTTLED_SUBSCRIBERS && now - *at < CROWD_INTERVAL)
        {
            Some(at) => {
                if last.waiting.replace(due_event).is_none() {
                    self.due.push_back((at + CROWD_INTERVAL, channel));
                }
                None
            }
            None => {
                last.waiting = None;
                last.reported = (count > UNTHROTTLED_SUBSCRIBERS).then_some(now);
                Some(due_event)
            }
        }
    }

    /// When the next crowd's count is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }

    /// The counts that are due now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<DueEvent> {
        let mut events = Vec::new();
        while self.due.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, channel)) = self.due.pop_front() else { break };
            let Some(last) = self.last.get_mut(&channel) else { continue };
            if let Some(waiting) = last.waiting.take() {
                last.reported = Some(now);
                events.push(waiting);
            }
        }
        events
    }

    /// Another node reads the app's log from now on, and what waits with it.
    pub(super) fn leave(&mut self, app: &AppId) {
        self.last.retain(|(other, _), _| other != app);
    }
}

impl Fact {
    /// As the log has it; `None` for what nodes hold, of which the log has more to say.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Occupied(_) | Self::Vacated(_) | Self::Joined(..) | Self::Left(..) => None,
            Self::CacheMiss(channel) => Some(format!("X{channel}")),
            Self::Count(channel, count) => Some(format!("N{channel}\n{count}")),
            Self::ClientEvent(whisper) => {
                Some(format!("E{}\n{}", whisper.channel, debounce::client_event(whisper)))
            }
        }
    }
}

/// Reads what [`Fact::text`] wrote. A cache miss is none yet, for it may be one of many.
pub(super) enum ParsedEntry {
    Miss(ChannelName),
    /// With its version.
    Count((u64, usize), WebhookMessage),
    Event(WebhookMessage),
}

/// `None` for an entry of a later version, which is acknowledged unread.
pub(super) fn read(text: &str) -> Option<ParsedEntry> {
    let (kind, rest) = text.split_at_checked(1)?;
    let (name, rest) = rest.split_once('\n').unwrap_or((rest, ""));
    let channel = ChannelName::parse(name, usize::MAX).ok()?;
    match kind {
        "X" => Some(ParsedEntry::Miss(channel)),
        "N" => {
            let (count, version) = rest.split_once('\n').unwrap_or((rest, ""));
            let count: usize = count.parse().ok()?;
            let event = WebhookMessage { channel, what: MessageContent::Count(count) };
            // Nodes of before say no version.
            Some(match version.parse() {
                Ok(version) => ParsedEntry::Count((version, count), event),
                Err(_) => ParsedEntry::Event(event),
            })
        }
        "E" => {
            let what = MessageContent::ClientEvent(rest.into());
            Some(ParsedEntry::Event(WebhookMessage { channel, what }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
