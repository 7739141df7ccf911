//! The work budget of one connection, a token bucket. Each request costs units; some are added each second, and so many
//! may be saved up that a page which joins everything at once is never throttled. Without units the connection is not
//! read from: its messages are handled later, in order, and none is refused. The caller passes the time.

use std::cell::Cell;

/// Units that come back each second, and how many may be spent before that.
const UNITS_PER_SECOND: u32 = 10_000;
/// The largest burst: a page that reconnects subscribes to all its channels at once.
const MAX_SAVED_UNITS: u32 = 30 * UNITS_PER_SECOND;

/// Units beyond which what one message asks for is waited for at once, whatever was saved up: 96 MiB for others.
const MAX_MESSAGE_UNITS: u32 = 3 * UNITS_PER_SECOND;

/// How much a connection may be refused for, or ping, while it is held up: at the rates below, what takes 20 s.
const MAX_REFUSED_UNITS: u32 = 2_000;

/// Bytes written for a connection's doing, to itself or to others, that a unit pays for: 32 MiB a second.
const BYTES_PER_UNIT: usize = (32 << 20) / UNITS_PER_SECOND as usize;

/// Kinds of work, by their cost. `UNITS_PER_SECOND` divided by the cost is how many a connection may cause each second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkKind {
    /// A message or a frame, whatever it says: 10,000 a second.
    Frame,
    /// A subscription: 500 a second.
    Subscribe,
    /// That it is the first to its channel: 100 a second.
    NewChannel,
    /// A ping, of the protocol or of WebSockets: 100 a second.
    Ping,
    /// A frame that is answered by an error: 20 a second.
    Refused,
    /// A client event beyond `client_events_per_second`: 100 a second.
    OverRate,
    /// A sign-in: 5 a second.
    SignIn,
    /// Frames for so many others, of one who comes or goes: 20,000 a second.
    Notices(usize),
    /// Bytes for others, or of a roster.
    Bytes(usize),
}

impl WorkKind {
    /// How many of each there may be in a second: 500 subscriptions, 100 pings, 20 refusals, 5
    /// sign-ins.
    fn units(self) -> u32 {
        match self {
            Self::Frame => 1,
            Self::Subscribe => UNITS_PER_SECOND / 500,
            Self::NewChannel | Self::Ping | Self::OverRate => UNITS_PER_SECOND / 100,
            Self::Refused => UNITS_PER_SECOND / 20,
            Self::SignIn => UNITS_PER_SECOND / 5,
            Self::Notices(count) => u32::try_from(count / 2).unwrap_or(u32::MAX),
            Self::Bytes(bytes) => u32::try_from(bytes / BYTES_PER_UNIT).unwrap_or(u32::MAX),
        }
    }

    /// How much a refusal of this kind counts towards closing a connection. A client that joins many channels is
    /// slow, but does no harm.
    fn weight(self) -> u32 {
        match self {
            Self::Ping => 1,
            Self::Refused => 5,
            _ => 0,
        }
    }
}

/// One connection's. Every connection has one, so it is packed.
#[derive(Debug, Default)]
pub struct WorkBudget {
    /// Units spent that have not come back, as of `at`, in the lower bits; in those above how much the connection
    /// has been refused for, or has pinged, while it was held up.
    packed: Cell<u32>,
    /// In hundredths of a second.
    at: Cell<u32>,
}

/// Both counts share a word, since every connection has them.
const SPENT_BITS: u32 = 20;

/// Units of which no more are kept in mind: a minute's worth of waiting and more.
const MAX_SPENT: u32 = (1 << SPENT_BITS) - 1;
/// The count of refusals saturates here.
const MAX_REFUSED: u32 = u32::MAX >> SPENT_BITS;

impl WorkBudget {
    /// Pays for `work`.
    pub fn spend(&self, work: WorkKind) {
        let units = work.units();
        if units == 0 {
            return;
        }
        let beyond = units.saturating_sub(MAX_MESSAGE_UNITS);
        let least = if beyond > 0 { MAX_SAVED_UNITS.saturating_add(beyond) } else { 0 };
        let spent = self.spent().saturating_add(units).max(least).min(MAX_SPENT);
        let more = if spent > MAX_SAVED_UNITS { work.weight() } else { 0 };
        self.set(spent, (self.refused() + more).min(MAX_REFUSED));
    }

    /// Neither is more than its bits hold.
    fn set(&self, spent: u32, refused: u32) {
        self.packed.set(refused << SPENT_BITS | spent);
    }

    /// Units spent that have not come back, as of the last look at the clock.
    pub fn spent(&self) -> u32 {
        self.packed.get() & MAX_SPENT
    }

    /// The number of refusals that are kept in mind.
    fn refused(&self) -> u32 {
        self.packed.get() >> SPENT_BITS
    }

    /// For how many hundredths of a second no more is to be read; 0: it may go on.
    pub fn wait(&self, now: u32) -> u32 {
        let passed = now.saturating_sub(self.at.replace(now));
        let back = passed.saturating_mul(UNITS_PER_SECOND / 100);
        let spent = self.spent().saturating_sub(back);
        self.set(spent, if spent < MAX_SAVED_UNITS / 2 { 0 } else { self.refused() });
        spent.saturating_sub(MAX_SAVED_UNITS).div_ceil(UNITS_PER_SECOND / 100)
    }

    /// Whether it keeps sending requests that are refused, however long it is throttled.
    pub fn is_hopeless(&self) -> bool {
        self.refused() >= MAX_REFUSED_UNITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_joins_everything_at_once_is_not_held_up() {
        let budget = WorkBudget::default();
        for _ in 0..1000 {
            budget.spend(WorkKind::Subscribe);
            budget.spend(WorkKind::NewChannel);
        }
        for _ in 0..120 {
            budget.spend(WorkKind::Subscribe);
            budget.spend(WorkKind::Notices(2000));
            budget.spend(WorkKind::Bytes(400 << 10));
        }
        assert_eq!(budget.wait(0), 0);
        (0..20).for_each(|_| budget.spend(WorkKind::SignIn));
        assert_eq!(budget.wait(100), 0);
    }

    #[test]
    fn who_has_spent_too_much_waits_and_goes_on_at_the_rate() {
        let budget = WorkBudget::default();
        let (mut done, mut now) = (0, 0);
        while now < 6_000 {
            match budget.wait(now) {
                0 => {
                    budget.spend(WorkKind::NewChannel);
                    done += 1;
                }
                wait => now += wait,
            }
        }
        let at_once = MAX_SAVED_UNITS / (UNITS_PER_SECOND / 100);
        assert!((at_once + 5_990..at_once + 6_010).contains(&done), "a hundred a second: {done}");
        assert!(!budget.is_hopeless());
        assert_eq!(budget.wait(now + 3_100), 0);
        assert_eq!(budget.spent(), 0, "all of it has come back");
    }

    #[test]
    fn one_message_for_a_crowd_is_waited_for_whatever_was_saved_up() {
        let (budget, mib) = (WorkBudget::default(), |mib: usize| WorkKind::Bytes(mib << 20));
        budget.spend(mib(95));
        assert_eq!(budget.wait(0), 0);
        budget.spend(mib(192));
        assert!((295..=305).contains(&budget.wait(0)), "three of its six seconds");
        assert_eq!(budget.wait(305), 0);
        budget.spend(mib(192));
        assert!((590..=605).contains(&budget.wait(305)), "all of them");
    }

    #[test]
    fn nonsense_without_end_is_hopeless_after_a_while() {
        let budget = WorkBudget::default();
        let mut now = 0;
        while !budget.is_hopeless() && now < 60_000 {
            match budget.wait(now) {
                0 => budget.spend(WorkKind::Refused),
                wait => now += wait,
            }
        }
        assert!((1_900..2_100).contains(&now), "{now}");
        assert!(budget.wait(now + 2_000) == 0 && !budget.is_hopeless(), "it has calmed down");
        let whisperer = WorkBudget::default();
        for now in 0..60_000 {
            whisperer.spend(WorkKind::OverRate);
            assert!(whisperer.wait(now) < 100 && !whisperer.is_hopeless());
        }
    }
}
