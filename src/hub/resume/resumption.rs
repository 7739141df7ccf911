//! Resume state of one connection: how far events were delivered to it, and what its outstanding ping confirms. The
//! client as a whole is in `clients.rs`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::hub::handles::ChannelHandle;
use crate::protocol::channel::ChannelName;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// The shortest time between two pings for the sake of an acknowledgement.
pub const MIN_PING_INTERVAL: Duration = Duration::from_secs(2);

/// The number of the last event of a channel that is meant.
type UpTo = (ChannelHandle, u64);

/// A connection's part in its client. Lives on the connection's worker.
pub struct Resumption {
    pub token: ResumeToken,
    /// Its client was here before, and nobody knows any longer what it had: each channel has a gap.
    pub is_forgotten: bool,
    /// The client's state is kept for its next connection.
    has_ended: Cell<bool>,
    /// It is among those that are to be pinged.
    is_due: Cell<bool>,
    /// Whether the extras have what those need that have come back: each event asks.
    is_catching_up: Cell<bool>,
    /// None for those that have not been pinged and were not here before.
    extras: Cell<Option<Box<ResumptionExtras>>>,
}

/// State that a connection without events does without.
#[derive(Debug, Default)]
struct ResumptionExtras {
    /// The last ping, if there was one.
    ping: Option<LastPing>,
    catching_up: Option<Box<CatchingUp>>,
}

/// The events that came in on a channel while it is not known what was missed there.
#[derive(Debug)]
struct HeldBack {
    channel: ChannelHandle,
    frames: Vec<(u64, Bytes)>,
    bytes: usize,
}

/// A ping for the sake of an acknowledgement.
#[derive(Debug)]
struct LastPing {
    /// The events that had been sent before it, until it is answered.
    asked: Option<Box<[UpTo]>>,
    /// When the ping went out, to know how long it has been unanswered.
    sent: Instant,
}

/// The progress of a connection whose client has been here before.
#[derive(Debug, Default)]
struct CatchingUp {
    /// Channels whose gap it was told.
    gaps: Vec<ChannelName>,
    /// Channels of which it was told what it had missed, up to which event: those are not delivered again.
    told: Vec<UpTo>,
    /// Events that it has missed and its socket has not taken yet, and those that came meanwhile.
    backlog: Backlog,
    /// Channels of which is being read what it has missed, each with what has come in since.
    held_back: Vec<HeldBack>,
    /// When it was known last that nothing was lost of what its client holds, by the time of Redis.
    alive: u64,
    /// Connections that its client has had: what is not for them is not for it.
    earlier: Vec<SocketId>,
}

/// Frames that wait outside of the outbox, so that its cap does not count what was missed.
#[derive(Debug, Default)]
struct Backlog {
    frames: VecDeque<Bytes>,
    /// How many of the last frames came meanwhile, and their bytes.
    later: usize,
    later_bytes: usize,
}

impl fmt::Debug for Resumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumption").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Resumption {
    pub fn new(token: ResumeToken, is_forgotten: bool) -> Self {
        Self {
            token,
            is_forgotten,
            has_ended: Cell::default(),
            is_due: Cell::default(),
            is_catching_up: Cell::default(),
            extras: Cell::default(),
        }
    }

    /// Reads what there may be, without making it. Taken out meanwhile, as by all of these: nothing that they are
    /// given comes back here.
    fn read<T: Default>(&self, read: impl FnOnce(&CatchingUp) -> T) -> T {
        self.change_existing(|it| read(it))
    }

    fn change<T>(&self, change: impl FnOnce(&mut CatchingUp) -> T) -> T {
        self.is_catching_up.set(true);
        // The first use makes it; most connections never catch up.
        let mut extras = self.extras.take().unwrap_or_default();
        let result = change(extras.catching_up.get_or_insert_default());
        self.extras.set(Some(extras));
        result
    }

    /// Changes what there may be, without making it.
    fn change_existing<T: Default>(&self, change: impl FnOnce(&mut CatchingUp) -> T) -> T {
        if !self.is_catching_up.get() {
            return T::default();
        }
        let mut extras = self.extras.take();
        let kept = extras.as_mut().and_then(|extras| extras.catching_up.as_deref_mut());
        // A connection that is not catching up has no state to change.
        let result = kept.map(change).unwrap_or_default();
        self.extras.set(extras);
        result
    }

    /// Whether there was a ping of which that holds.
    fn is_ping(&self, is: impl FnOnce(&LastPing) -> bool) -> bool {
        let extras = self.extras.take();
        let ping = extras.as_deref().and_then(|extras| extras.ping.as_ref());
        let result = ping.is_some_and(is);
        self.extras.set(extras);
        result
    }

    /// Events of a channel wait from now on.
    pub(super) fn hold_back(&self, channel: ChannelHandle) {
        let held = HeldBack { channel, frames: Vec::new(), bytes: 0 };
        self.change(|it| it.held_back.push(held));
    }

    /// Keeps a frame that came in on a channel where such wait; `None` if they do not, else whether those that wait
    /// have `max` bytes at most.
    pub(super) fn queue_held_back(
        &self,
        channel: ChannelHandle,
        number: u64,
        frame: &Bytes,
        max: usize,
    ) -> Option<bool> {
        self.change_existing(|it| {
            let held = it.held_back.iter_mut().find(|held| held.channel == channel)?;
            held.bytes += frame.len();
            held.frames.push((number, frame.clone()));
            Some(held.bytes <= max)
        })
    }

    /// Events of a channel wait no longer; those that have, if any could.
    pub(super) fn let_go(&self, channel: ChannelHandle) -> Option<Vec<(u64, Bytes)>> {
        self.change_existing(|it| {
            let place = it.held_back.iter().position(|held| held.channel == channel)?;
            Some(it.held_back.remove(place).frames)
        })
    }

    /// Notes that it is told of a channel's gap; whether for the first time.
    pub fn note_gap(&self, name: &ChannelName) -> bool {
        self.change(|it| {
            let is_first = !it.gaps.contains(name);
            if is_first {
                it.gaps.push(name.clone());
            }
            is_first
        })
    }

    /// Notes when it was known last that nothing was lost of what its client held before, by the time of Redis.
    pub fn set_alive(&self, alive: u64) {
        self.change(|it| it.alive = alive);
    }

    /// The same, of a client that held anything before.
    pub fn alive(&self) -> u64 {
        self.read(|it| it.alive)
    }

    /// Notes which connections its client has had.
    pub fn set_earlier(&self, earlier: Vec<SocketId>) {
        if !earlier.is_empty() {
            self.change(|it| it.earlier = earlier);
        }
    }

    /// Whether its client had that connection before.
    pub(super) fn had(&self, socket: SocketId) -> bool {
        self.read(|it| it.earlier.contains(&socket))
    }

    /// Whether its end is to be noted, once.
    pub fn take_end(&self) -> bool {
        !self.has_ended.replace(true)
    }

    /// Notes that it was told what it had missed of a channel.
    pub fn set_delivered(&self, channel: ChannelHandle, number: u64) {
        self.change(|it| {
            it.told.retain(|(other, _)| *other != channel);
            it.told.push((channel, number));
        });
    }

    /// The number of the last event of the channel that it was told when it came back.
    pub fn delivered_up_to(&self, channel: ChannelHandle) -> u64 {
        self.read(|it| {
            let told = it.told.iter().find(|(other, _)| *other == channel);
            told.map_or(0, |(_, number)| *number)
        })
    }

    /// Notes that it has been given an event; whether it was not among those to be pinged yet.
    pub fn mark_due(&self) -> bool {
        !self.is_due.replace(true)
    }

    /// Whether it is to be pinged at `now`: one ping at a time, and none soon after another.
    pub fn may_ping(&self, now: Instant) -> bool {
        let is_too_soon = |ping: &LastPing| {
            ping.asked.is_some() || now.saturating_duration_since(ping.sent) < MIN_PING_INTERVAL
        };
        // A ping would pass what waits, and its answer acknowledge what was not sent.
        !self.has_backlog() && !self.is_ping(is_too_soon)
    }

    /// Notes that a ping goes out at `now`, behind what is listed. One that goes out while another is
    /// unanswered stands for nothing, as the first answer is the first ping's.
    pub fn note_ping(&self, now: Instant, sent: Box<[UpTo]>) {
        if self.is_ping(|last| last.asked.is_some()) {
            return;
        }
        // The first use makes it; most connections never need it.
        let mut extras = self.extras.take().unwrap_or_default();
        extras.ping = Some(LastPing { asked: Some(sent), sent: now });
        self.extras.set(Some(extras));
        self.is_due.set(false);
    }

    /// Queues what was missed.
    pub fn queue_missed(&self, frames: Vec<Bytes>) {
        if frames.is_empty() {
            return;
        }
        self.change(|CatchingUp { backlog, .. }| {
            backlog.later = 0;
            backlog.later_bytes = 0;
            backlog.frames.extend(frames);
        });
    }

    /// Queues an event behind what was missed, if that waits; `None` if not, else whether what came meanwhile
    /// has `max` bytes at most.
    pub fn queue_behind(&self, frame: &Bytes, max: usize) -> Option<bool> {
        self.change_existing(|CatchingUp { backlog, .. }| {
            if backlog.frames.is_empty() {
                return None;
            }
            backlog.later += 1;
            backlog.later_bytes += frame.len();
            backlog.frames.push_back(frame.clone());
            Some(backlog.later_bytes <= max)
        })
    }

    /// Takes the next frame that waits.
    pub fn take_queued(&self) -> Option<Bytes> {
        self.change_existing(|CatchingUp { backlog, .. }| {
            let frame = backlog.frames.pop_front()?;
            if backlog.frames.len() < backlog.later {
                backlog.later -= 1;
                backlog.later_bytes = backlog.later_bytes.saturating_sub(frame.len());
            }
            if backlog.frames.is_empty() {
                *backlog = Backlog::default();
            }
            Some(frame)
        })
    }

    /// Whether something waits.
    pub fn has_backlog(&self) -> bool {
        self.read(|it| !it.backlog.frames.is_empty() || !it.held_back.is_empty())
    }

    /// Drops what waits: the connection ends.
    pub fn clear_queued(&self) {
        self.change_existing(|it| {
            it.backlog = Backlog::default();
            it.held_back.iter_mut().for_each(|held| held.frames.clear());
        });
    }

    /// The events that the answer to a ping acknowledges; none if nobody asked.
    pub fn take_answered(&self) -> Option<Box<[UpTo]>> {
        let mut extras = self.extras.take();
        let ping = extras.as_mut().and_then(|extras| extras.ping.as_mut());
        let asked = ping.and_then(|last| last.asked.take());
        self.extras.set(extras);
        asked
    }

    /// Whether a ping is unanswered that went out `patience` or longer before `now`.
    pub fn is_unanswered(&self, now: Instant, patience: Duration) -> bool {
        let is_old = |ping: &LastPing| {
            ping.asked.is_some() && now.saturating_duration_since(ping.sent) >= patience
        };
        self.is_ping(is_old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resumption() -> Resumption {
        let token = ResumeToken::parse("0123456789abcdef").unwrap();
        Resumption::new(token, false)
    }

    #[test]
    fn pings_go_out_one_at_a_time_and_not_too_often() {
        let (one, start) = (resumption(), Instant::now());
        let channel = ChannelHandle { slot: 1, generation: 1 };
        assert!(one.mark_due() && !one.mark_due() && one.may_ping(start));
        one.note_ping(start, Box::new([(channel, 3)]));
        assert!(one.mark_due(), "what comes now is not covered");
        let later = start + MIN_PING_INTERVAL;
        assert!(!one.may_ping(later), "it has not answered");
        one.note_ping(later, Box::new([(channel, 5)]));
        assert_eq!(one.take_answered().as_deref(), Some(&[(channel, 3)][..]));
        assert_eq!(one.take_answered(), None, "nobody asked");
        assert!(!one.may_ping(later - Duration::from_millis(1)) && one.may_ping(later));
    }

    #[test]
    fn a_connection_without_events_has_room_for_no_more_than_it_needs() {
        // With the eight bytes that the allocator adds, a whole number of its sixteen.
        assert!(size_of::<Resumption>() <= 24, "{}", size_of::<Resumption>());
        assert!(size_of::<ResumptionExtras>() <= 40, "{}", size_of::<ResumptionExtras>());
        let one = resumption();
        assert!(!one.has_backlog() && one.alive() == 0 && one.take_queued().is_none());
        assert!(one.extras.take().is_none(), "asking makes nothing");
    }

    #[test]
    fn a_ping_and_what_was_missed_are_kept_side_by_side() {
        let (one, start) = (resumption(), Instant::now());
        let channel = ChannelHandle { slot: 1, generation: 1 };
        one.note_ping(start, Box::new([(channel, 3)]));
        one.set_alive(5);
        one.set_delivered(channel, 7);
        one.queue_missed(vec![Bytes::from_static(b"1")]);
        assert_eq!(one.take_answered().as_deref(), Some(&[(channel, 3)][..]));
        assert_eq!((one.alive(), one.delivered_up_to(channel)), (5, 7));
        one.note_ping(start, Box::new([(channel, 9)]));
        assert_eq!(one.take_queued().as_deref(), Some(&b"1"[..]));
        assert_eq!(one.take_answered().as_deref(), Some(&[(channel, 9)][..]));
        assert_eq!((one.alive(), one.delivered_up_to(channel)), (5, 7));
    }

    #[test]
    fn what_was_missed_is_not_counted_and_what_comes_meanwhile_is() {
        let one = resumption();
        let frame = Bytes::from_static(b"12345");
        assert_eq!(one.queue_behind(&frame, 10), None, "nothing waits");
        one.queue_missed(vec![frame.clone(); 100]);
        assert!(!one.may_ping(Instant::now()));
        assert_eq!(
            [10, 10, 10].map(|max| one.queue_behind(&frame, max)),
            [Some(true), Some(true), Some(false)]
        );
        let taken = std::iter::from_fn(|| one.take_queued()).take(101).count();
        assert_eq!((taken, one.queue_behind(&frame, 15)), (101, Some(true)));
        while one.take_queued().is_some() {}
        assert!(one.may_ping(Instant::now()));
    }

    #[test]
    fn who_leaves_a_ping_unanswered_is_told_from_who_had_no_time() {
        let (one, start) = (resumption(), Instant::now());
        let patience = Duration::from_secs(30);
        assert!(!one.is_unanswered(start + patience, patience), "nobody asked");
        one.note_ping(start, Box::new([]));
        assert!(!one.is_unanswered(start, patience));
        assert!(one.is_unanswered(start + patience, patience));
    }
}
