//! Recently published events, per channel, for resumable clients. A channel has a log for as long as a client holds it.
//! All logs of an app share a limit in bytes; the oldest event of any channel is dropped first. The clients are in
//! `clients.rs`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::LeftEvent;
use crate::metrics::HeldBytes;
use crate::protocol::channel::ChannelName;
use crate::protocol::socket_id::SocketId;

/// Bytes that are counted for an event beside its frame.
pub const EVENT_BYTES: usize = 64;

/// Bytes of a log beside its events. Its channel's name is counted with the clients that hold it.
const LOG_BYTES: usize = size_of::<(ChannelName, ChannelLog)>() * 3 / 2;

/// The logs of one app.
#[derive(Debug, Default)]
pub(super) struct ChannelLogs {
    /// Only channels that a client holds.
    channels: HashMap<ChannelName, ChannelLog>,
    /// Which channel each kept event is of, oldest first. A log that was given up leaves its entries behind;
    /// they lead nowhere and are passed over.
    order: VecDeque<LogExpiryEntry>,
    /// Tells a channel's log from an earlier one. Begins again after four billion, when no entry is of the first ones.
    generations: u32,
    /// The highest number of a log that was given up. A later log begins with it: what connections know of the
    /// earlier one must not be taken for what they know of that.
    highest: u64,
    bytes: usize,
    held: Arc<HeldBytes>,
}

#[derive(Debug)]
struct LogExpiryEntry {
    channel: ChannelName,
    generation: u32,
    /// When it was logged.
    seconds: u32,
}

#[derive(Debug)]
struct ChannelLog {
    generation: u32,
    /// Clients that hold the channel.
    holders: u32,
    /// The number of the last event.
    last: u64,
    /// The oldest first, without gaps in their numbers.
    events: LoggedEvents,
}

/// In a box, since there may be as many channels as connections, and most have had no event lately.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "each channel that is held has room for this")]
struct LoggedEvents(Option<Box<VecDeque<LoggedEvent>>>);

impl LoggedEvents {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |events| events.len())
    }

    fn iter(&self) -> impl Iterator<Item = &LoggedEvent> {
        self.0.iter().flat_map(|events| events.iter())
    }

    fn push_back(&mut self, event: LoggedEvent) {
        self.0.get_or_insert_default().push_back(event);
    }

    /// Takes the oldest out, and gives memory back that is no longer needed.
    fn pop_front(&mut self) -> Option<LoggedEvent> {
        let events = self.0.as_mut()?;
        let event = events.pop_front();
        if events.capacity() > 64 && events.len() < events.capacity() / 4 {
            events.shrink_to_fit();
        }
        if events.is_empty() {
            self.0 = None;
        }
        event
    }
}

#[derive(Debug)]
struct LoggedEvent {
    /// Shared with the queues of those who got it.
    frame: Bytes,
    /// The connection that it was not for.
    except: Option<SocketId>,
}

/// The events that a client has missed on a channel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MissedEvents {
    /// In the order in which they were published.
    pub frames: Vec<Bytes>,
    /// Some are not in the log any more.
    pub gap: bool,
    /// The number of the last event that it knows after these.
    pub last: u64,
}

/// Limits of an app's logs.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// Bytes of all events together.
    pub bytes: usize,
    /// Seconds after which an event is of no use to anybody.
    pub seconds: u32,
}

impl ChannelLog {
    /// The number of the event before the first that is kept.
    fn before_first(&self) -> u64 {
        self.last - self.events.len() as u64
    }
}

impl ChannelLogs {
    /// Empty ones, whose bytes are counted in `held` too.
    pub(super) fn new(held: Arc<HeldBytes>) -> Self {
        Self { held, ..Self::default() }
    }

    fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.held.add_bytes(bytes);
    }

    fn sub_bytes(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.held.sub_bytes(bytes);
    }

    /// Counts one more client that holds the channel; the number of its last event, and the name as all of them share
    /// it: a name of its own would take each client more than all else of the channel.
    pub(super) fn hold_channel(&mut self, channel: &ChannelName) -> (u64, ChannelName) {
        if let Entry::Occupied(mut place) = self.channels.entry(channel.clone()) {
            let log = place.get_mut();
            log.holders += 1;
            return (log.last, place.key().clone());
        }
        self.generations = self.generations.wrapping_add(1);
        let log = ChannelLog {
            generation: self.generations,
            holders: 1,
            // Not 0: a number that a client knows of an earlier log must be older than all of this
            // one.
            last: self.highest,
            events: LoggedEvents::default(),
        };
        self.channels.insert(channel.clone(), log);
        self.held.add_bytes(LOG_BYTES);
        (self.highest, channel.clone())
    }

    /// Counts one less. The last takes the log with it.
    pub(super) fn release_channel(&mut self, channel: &ChannelName) {
        let Some(log) = self.channels.get_mut(channel) else { return };
        log.holders = log.holders.saturating_sub(1);
        if log.holders > 0 {
            return;
        }
        if let Some(log) = self.channels.remove(channel) {
            self.held.sub_bytes(LOG_BYTES);
            self.sub_bytes(log.events.iter().map(LoggedEvent::bytes).sum());
            self.highest = self.highest.max(log.last);
        }
        if self.channels.capacity() > 1024 && self.channels.len() < self.channels.capacity() / 8 {
            self.channels.shrink_to(self.channels.len() * 2);
        }
        if self.channels.is_empty() {
            let (generations, highest) = (self.generations, self.highest);
            *self = Self { generations, highest, ..Self::new(self.held.clone()) };
        }
    }

    /// Keeps an event if anybody holds the channel, and numbers it; 0 if not. The count of events that had to
    /// go for it is added to `lost`.
    pub(super) fn append_event(
        &mut self,
        channel: &ChannelName,
        frame: &Bytes,
        except: Option<SocketId>,
        seconds: u32,
        (bounds, lost): (LogBounds, &mut u64),
    ) -> u64 {
        let Entry::Occupied(mut place) = self.channels.entry(channel.clone()) else { return 0 };
        let channel = place.key().clone();
        let log = place.get_mut();
        log.last += 1;
        let (number, generation) = (log.last, log.generation);
        let event = LoggedEvent { frame: frame.clone(), except };
        let bytes = event.bytes();
        log.events.push_back(event);
        self.order.push_back(LogExpiryEntry { channel, generation, seconds });
        self.add_bytes(bytes);
        // An event larger than the bound goes at once, after all others.
        while self.bytes > bounds.bytes && self.drop_oldest() {
            *lost += 1;
        }
        number
    }

    /// Drops the events that are too old to be of use at second `now`.
    pub(super) fn expire_events(&mut self, now: u32, bounds: LogBounds) {
        while self
            .order
            .front()
            .is_some_and(|kept| now.saturating_sub(kept.seconds) > bounds.seconds)
        {
            self.drop_oldest();
        }
        if self.order.capacity() > 1024 && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to_fit();
        }
    }

    /// Whether an event was dropped, rather than there being none.
    fn drop_oldest(&mut self) -> bool {
        while let Some(kept) = self.order.pop_front() {
            let log = self.channels.get_mut(&kept.channel);
            let Some(log) = log.filter(|log| log.generation == kept.generation) else { continue };
            if let Some(event) = log.events.pop_front() {
                self.sub_bytes(event.bytes());
                return true;
            }
        }
        false
    }

    /// The events after `acked`, but for those that were not for one of `sockets`: they were
    /// published by the client itself.
    pub(super) fn events_since(
        &self,
        channel: &ChannelName,
        acked: u64,
        sockets: &[SocketId],
    ) -> MissedEvents {
        let Some(log) = self.channels.get(channel) else { return MissedEvents::default() };
        let before = log.before_first();
        let skipped = usize::try_from(acked.saturating_sub(before)).unwrap_or(usize::MAX);
        let is_for = |event: &&LoggedEvent| !event.except.is_some_and(|id| sockets.contains(&id));
        let frames = log.events.iter().skip(skipped).filter(is_for);
        MissedEvents {
            frames: frames.map(|event| event.frame.clone()).collect(),
            // Then the event after `acked` is gone, at least.
            gap: acked < before,
            last: log.last,
        }
    }

    /// Numbers of logs that begin come after this one.
    pub(super) fn begin_after(&mut self, highest: u64) {
        self.highest = self.highest.max(highest);
    }

    /// Begins a channel's log where that of another process ended, until somebody holds it.
    pub(super) fn restore_channel(&mut self, channel: &ChannelName, last: u64) {
        self.hold_channel(channel);
        if let Some(log) = self.channels.get_mut(channel) {
            (log.holders, log.last) = (0, last);
        }
    }

    /// Puts an event back that is one of the last of a log which was restored, at second `now`.
    pub(super) fn restore_event(&mut self, event: LeftEvent, now: u32) {
        let LeftEvent { channel, age, except, frame } = event;
        let Some(log) = self.channels.get_mut(&channel) else { return };
        let (generation, seconds) = (log.generation, now.saturating_sub(age));
        let event = LoggedEvent { frame, except };
        let bytes = event.bytes();
        log.events.push_back(event);
        self.order.push_back(LogExpiryEntry { channel, generation, seconds });
        self.add_bytes(bytes);
    }

    /// Gives up restored logs that nobody holds.
    pub(super) fn drop_unheld(&mut self) {
        let unheld = self.channels.iter().filter(|(_, log)| log.holders == 0);
        let unheld: Vec<ChannelName> = unheld.map(|(name, _)| name.clone()).collect();
        unheld.iter().for_each(|channel| self.release_channel(channel));
    }

    /// All of it: the highest number of a log that was given up, each channel's last number, and the events of
    /// all channels with their ages at second `now`, oldest first.
    pub(super) fn into_parts(mut self, now: u32) -> (u64, Vec<(ChannelName, u64)>, Vec<LeftEvent>) {
        let last = |(name, log): (&ChannelName, &ChannelLog)| (name.clone(), log.last);
        let channels = self.channels.iter().map(last).collect();
        let mut events = Vec::with_capacity(self.order.len());
        for LogExpiryEntry { channel, generation, seconds } in std::mem::take(&mut self.order) {
            let log = self.channels.get_mut(&channel).filter(|log| log.generation == generation);
            if let Some(LoggedEvent { frame, except }) = log.and_then(|log| log.events.pop_front())
            {
                let age = now.saturating_sub(seconds);
                events.push(LeftEvent { channel, age, except, frame });
            }
        }
        self.sub_bytes(self.bytes);
        self.held.sub_bytes(self.channels.len() * LOG_BYTES);
        (self.highest, channels, events)
    }

    /// Bytes that are counted.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anybody holds the channel.
    pub(super) fn is_held(&self, channel: &ChannelName) -> bool {
        self.channels.contains_key(channel)
    }
}

impl LoggedEvent {
    fn bytes(&self) -> usize {
        self.frame.len() + EVENT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: LogBounds = LogBounds { bytes: usize::MAX, seconds: 100 };

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name, 200).unwrap()
    }

    fn append(
        logs: &mut ChannelLogs,
        name: &str,
        text: &'static str,
        bounds: LogBounds,
    ) -> (u64, u64) {
        let mut lost = 0;
        let frame = Bytes::from_static(text.as_bytes());
        let number = logs.append_event(&channel(name), &frame, None, 7, (bounds, &mut lost));
        (number, lost)
    }

    #[test]
    fn each_client_had_a_name_of_its_own_for_a_channel_that_all_hold() {
        let mut logs = ChannelLogs::default();
        let [first, second] = [(), ()].map(|()| logs.hold_channel(&channel("a")).1);
        assert!(std::ptr::eq(first.as_str(), second.as_str()));
        let (frame, mut lost) = (Bytes::from_static(b"1"), 0);
        logs.append_event(&channel("a"), &frame, None, 1, (WIDE, &mut lost));
        assert!(std::ptr::eq(logs.order[0].channel.as_str(), first.as_str()));
    }

    #[test]
    fn a_channel_that_nobody_holds_is_not_logged() {
        let mut logs = ChannelLogs::default();
        assert_eq!(append(&mut logs, "a", "x", WIDE), (0, 0));
        assert_eq!(logs.hold_channel(&channel("a")).0, 0);
        assert_eq!(append(&mut logs, "a", "x", WIDE), (1, 0));
        assert_eq!(logs.hold_channel(&channel("a")).0, 1);
        logs.release_channel(&channel("a"));
        assert_eq!(append(&mut logs, "a", "y", WIDE), (2, 0));
        assert_eq!(logs.bytes(), 2 * (1 + EVENT_BYTES));
        logs.release_channel(&channel("a"));
        assert_eq!((logs.bytes(), logs.channels.is_empty(), logs.order.len()), (0, true, 0));
    }

    #[test]
    fn what_was_missed_comes_in_order_and_without_what_was_excluded() {
        let mut logs = ChannelLogs::default();
        let (a, own) = (channel("a"), SocketId { node: 1, number: 2 });
        logs.hold_channel(&a);
        for (text, except) in [("1", None), ("2", Some(own)), ("3", None)] {
            let frame = Bytes::from_static(text.as_bytes());
            logs.append_event(&a, &frame, except, 7, (WIDE, &mut 0));
        }
        let frames = |all: &[&'static str]| {
            all.iter().map(|one| Bytes::from_static(one.as_bytes())).collect()
        };
        let missed = |frames, gap| MissedEvents { frames, gap, last: 3 };
        assert_eq!(logs.events_since(&a, 0, &[]), missed(frames(&["1", "2", "3"]), false));
        assert_eq!(logs.events_since(&a, 1, &[own]), missed(frames(&["3"]), false));
        assert_eq!(logs.events_since(&a, 3, &[]), missed(frames(&[]), false));
    }

    #[test]
    fn the_oldest_event_of_all_channels_goes_first_and_leaves_a_gap() {
        let bounds = LogBounds { bytes: 2 * (1 + EVENT_BYTES), seconds: 100 };
        let mut logs = ChannelLogs::default();
        ["a", "b"].iter().for_each(|name| assert_eq!(logs.hold_channel(&channel(name)).0, 0));
        assert_eq!(append(&mut logs, "a", "1", bounds), (1, 0));
        assert_eq!(append(&mut logs, "b", "2", bounds), (1, 0));
        assert_eq!(append(&mut logs, "b", "3", bounds), (2, 1));
        assert!(logs.events_since(&channel("a"), 0, &[]).gap);
        assert!(!logs.events_since(&channel("a"), 1, &[]).gap, "it had that one");
        assert!(!logs.events_since(&channel("b"), 0, &[]).gap);
        assert_eq!(append(&mut logs, "a", "4", bounds), (2, 1));
        assert!(logs.events_since(&channel("b"), 0, &[]).gap);
        assert_eq!(logs.events_since(&channel("b"), 1, &[]).frames.len(), 1);
    }

    #[test]
    fn a_log_that_was_given_up_leaves_nothing_to_a_later_one() {
        let mut logs = ChannelLogs::default();
        ["a", "b"].iter().for_each(|name| assert_eq!(logs.hold_channel(&channel(name)).0, 0));
        append(&mut logs, "a", "1", WIDE);
        logs.release_channel(&channel("a"));
        assert_eq!(logs.hold_channel(&channel("a")).0, 1, "numbers are never used again");
        assert_eq!(append(&mut logs, "a", "2", WIDE), (2, 0));
        let bounds = LogBounds { bytes: 0, seconds: 100 };
        assert_eq!(append(&mut logs, "b", "3", bounds), (1, 2), "one of a, and itself");
        assert_eq!(logs.bytes(), 0);
    }

    #[test]
    fn events_are_dropped_once_they_are_of_no_use() {
        let mut logs = ChannelLogs::default();
        logs.hold_channel(&channel("a"));
        append(&mut logs, "a", "1", WIDE);
        logs.expire_events(107, WIDE);
        assert_eq!(logs.events_since(&channel("a"), 0, &[]).frames.len(), 1);
        logs.expire_events(108, WIDE);
        assert!(logs.events_since(&channel("a"), 0, &[]).gap);
        assert_eq!(logs.bytes(), 0);
    }
}
