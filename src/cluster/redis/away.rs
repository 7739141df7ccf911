//! The parts of a Redis Cluster that are away: masters that refuse or do not answer, and slots that stay in migration
//! for too long. A link is made without them, and what belongs to them continues as without Redis. `away_look.rs`
//! checks whether they are back; publishes for them wait in `stranded.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::time::{Instant, timeout};

use super::LinkError;
use super::server::RedisServer;
use super::slots::HostPort;

/// How long one of several masters may take before the others go on without it.
pub(super) const MASTER_PATIENCE: Duration = Duration::from_secs(2);

/// How often what is away is looked at; each time that it goes away again half as often, but often enough that no node
/// is taken for dead because others came back long before it.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The pause between two checks is doubled at most so often.
const MAX_DOUBLINGS: u32 = 3;

/// For how long it is remembered that something was away before.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Links that end in a row before the server of the connection that does is left out.
const STRIKES: u32 = 4;

/// Keys of a command, all of one slot.
pub(super) type SlotKeys = Vec<Vec<u8>>;

/// Something that can be away by itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum AwayPart {
    Master(HostPort),
    /// A slot that is being moved.
    Slot(u16),
    /// Slots that no master has.
    Uncovered,
}

impl fmt::Display for AwayPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master((host, port)) => write!(f, "{host}:{port}"),
            Self::Slot(slot) => write!(f, "slot {slot}"),
            Self::Uncovered => f.write_str("slots without a master"),
        }
    }
}

/// The parts that work again.
#[derive(Default)]
pub(super) struct FoundParts {
    /// Slots whose keys are together.
    pub(super) slots: Vec<AwayPart>,
    pub(super) masters: Vec<FoundMaster>,
}

/// The master of slots that were away.
pub(super) struct FoundMaster {
    pub(super) at: HostPort,
    pub(super) slots: BTreeSet<u16>,
    /// Unless the link is made to it already.
    pub(super) server: Option<RedisServer>,
}

/// The names of parts, for the log.
pub(super) fn names_of(parts: &[AwayPart]) -> String {
    let names: Vec<String> = parts.iter().map(AwayPart::to_string).collect();
    names.join(", ")
}

/// The parts that are away, and why. Survives a lost link.
#[derive(Clone, Default, Debug)]
pub(super) struct AwayParts {
    /// The parts that are away, with the error of each.
    parts: BTreeMap<AwayPart, String>,
    /// The keys by which it is seen whether a slot has moved.
    keys: BTreeMap<u16, SlotKeys>,
    /// How often each went away of late, and when it did last.
    losses: BTreeMap<AwayPart, (u32, Instant)>,
    /// Those that may be there: only a connection has ended. They are looked at at once.
    hasty: BTreeSet<AwayPart>,
}

impl AwayParts {
    /// A link was lost: whether something that it can be made without is to blame. A connection that ends says nothing
    /// of its server yet, unless that happens again and again.
    pub(super) fn note_lost_link(&mut self, lost: &LinkError) {
        match lost {
            LinkError::OfMaster(at, why) => {
                let part = AwayPart::Master(at.clone());
                if is_mended_by_new_link(why) && self.count_loss(&part) < STRIKES {
                    return;
                }
                self.note_away(part.clone(), why.to_string());
                if is_fault_of_all(why) {
                    self.losses.remove(&part);
                }
            }
            LinkError::Stuck(slots) => {
                for (slot, keys) in slots {
                    self.keys.insert(*slot, keys.clone());
                    self.note_away(AwayPart::Slot(*slot), "its keys are on their way".to_owned());
                }
            }
            LinkError::Back(parts) => self.parts.retain(|part, _| !parts.contains(part)),
            _ => {}
        }
    }

    /// Notes that a part is away, and the error that shows it.
    pub(super) fn note_away(&mut self, part: AwayPart, why: String) {
        self.count_loss(&part);
        self.parts.insert(part, why);
    }

    /// The link goes on without a master. Where a new connection mends the error that is tried at once, unless it
    /// happens again and again.
    pub(super) fn note_lost_master(&mut self, at: &HostPort, lost: &LinkError) {
        let part = AwayPart::Master(at.clone());
        let times = self.count_loss(&part);
        if is_mended_by_new_link(lost) && times < STRIKES {
            self.hasty.insert(part.clone());
        }
        self.parts.insert(part, lost.to_string());
    }

    /// Nothing was found where a connection had ended: the server is away as others are.
    pub(super) fn end_haste(&mut self) {
        self.hasty.clear();
    }

    /// The link goes on with all masters but these.
    pub(super) fn keep_masters(&mut self, lost: &BTreeMap<HostPort, BTreeSet<u16>>) {
        let is_lost = |part: &AwayPart| match part {
            AwayPart::Master(at) => lost.contains_key(at),
            AwayPart::Slot(_) => true,
            // That is seen anew.
            AwayPart::Uncovered => false,
        };
        self.parts.retain(|part, _| is_lost(part));
        self.hasty.retain(is_lost);
    }

    /// How often that has happened of late.
    fn count_loss(&mut self, part: &AwayPart) -> u32 {
        let now = Instant::now();
        self.losses.retain(|_, (_, last)| now - *last < REMEMBERED);
        let (times, last) = self.losses.entry(part.clone()).or_insert((0, now));
        (*times, *last) = (times.saturating_add(1), now);
        *times
    }

    /// Whether a master must not be connected to.
    pub(super) fn has_master(&self, at: &HostPort) -> bool {
        self.parts.contains_key(&AwayPart::Master(at.clone()))
    }

    /// Whether a slot by itself is away, while it is moved.
    pub(super) fn has_slot(&self, slot: u16) -> bool {
        self.parts.contains_key(&AwayPart::Slot(slot))
    }

    /// Slots whose keys are on their way, with such keys, that it is time to look at again.
    pub(super) fn due_slots(&self) -> Vec<(u16, SlotKeys)> {
        let is_due = |(slot, _): &(&u16, &SlotKeys)| {
            self.has_slot(**slot) && self.is_due(&AwayPart::Slot(**slot))
        };
        self.keys.iter().filter(is_due).map(|(slot, keys)| (*slot, keys.clone())).collect()
    }

    fn knows_masters(&self) -> bool {
        self.parts.keys().any(|part| matches!(part, AwayPart::Master(_)))
    }

    /// Notes that some slots have no owner, or only one that is away.
    pub(super) fn note_uncovered(&mut self) {
        if !self.knows_masters() {
            self.note_away(AwayPart::Uncovered, "no master has them".to_owned());
        }
    }

    /// A master without slots is no loss. If no master with slots is left, all are tried again.
    pub(super) fn keep_owners(&mut self, owners: &BTreeSet<HostPort>) {
        let is_owner = |part: &AwayPart| match part {
            AwayPart::Master(at) => owners.contains(at),
            AwayPart::Slot(_) => true,
            AwayPart::Uncovered => false,
        };
        self.parts.retain(|part, _| is_owner(part));
        if owners.iter().all(|at| self.has_master(at)) {
            self.forget_masters();
        }
    }

    /// Forgets masters that are away, so that all are tried again.
    pub(super) fn forget_masters(&mut self) {
        self.parts.retain(|part, _| matches!(part, AwayPart::Slot(_)));
    }

    /// Their names, and why; of a server that may be there nothing yet.
    pub(super) fn describe(&self) -> Vec<(String, String)> {
        let parts = self.parts.iter().filter(|(part, _)| !self.hasty.contains(part));
        parts.map(|(part, why)| (part.to_string(), why.clone())).collect()
    }

    /// Whether the part is due for a check.
    pub(super) fn is_due(&self, part: &AwayPart) -> bool {
        self.hasty.contains(part) || self.is_long_enough(part)
    }

    fn is_long_enough(&self, part: &AwayPart) -> bool {
        self.losses.get(part).is_none_or(|(times, last)| {
            let doublings = times.saturating_sub(1).min(MAX_DOUBLINGS);
            last.elapsed() >= LOOK_EVERY * 2_u32.pow(doublings)
        })
    }
}

/// Whether a new link to the same server mends the error: the connection has ended, or the server does not know the
/// lease or the scripts any more.
fn is_mended_by_new_link(why: &LinkError) -> bool {
    match why {
        LinkError::Lapsed | LinkError::Deaf => true,
        LinkError::Redis(error) => {
            let no_script = ErrorKind::Server(ServerErrorKind::NoScript);
            error.kind() == no_script || (error.is_connection_dropped() && !error.is_timeout())
        }
        _ => false,
    }
}

/// A master that says so takes part again as soon as the others do.
pub(super) fn is_fault_of_all(why: &LinkError) -> bool {
    let down = ErrorKind::Server(ServerErrorKind::ClusterDown);
    matches!(why, LinkError::Redis(error) if error.kind() == down)
}

/// Runs a request to one of several masters with a timeout. A failure concerns only that master.
pub(super) async fn ask_master<T>(
    at: HostPort,
    asked: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, LinkError> {
    let lost = match timeout(MASTER_PATIENCE, asked).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) if error.is_timeout() => LinkError::Silent,
        Ok(Err(error)) => error.into(),
        Err(_) => LinkError::Silent,
    };
    Err(LinkError::OfMaster(at, Box::new(lost)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> HostPort {
        ("h".to_owned(), port)
    }

    fn silent(port: u16) -> LinkError {
        LinkError::OfMaster(at(port), Box::new(LinkError::Silent))
    }

    fn ended(port: u16) -> LinkError {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        LinkError::OfMaster(at(port), Box::new(RedisError::from(reset).into()))
    }

    #[test]
    fn a_master_that_does_not_answer_is_left_out_until_it_is_back() {
        let mut away = AwayParts::default();
        away.note_lost_link(&silent(1));
        away.note_lost_link(&LinkError::Deaf);
        let told = away.describe();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, "h:1");
        assert!(away.has_master(&at(1)) && !away.has_master(&at(2)));
        away.note_lost_link(&LinkError::Back(vec![AwayPart::Master(at(1))]));
        assert!(!away.has_master(&at(1)));
    }

    #[test]
    fn a_connection_that_ends_leaves_nobody_out_unless_it_does_again_and_again() {
        let mut away = AwayParts::default();
        away.note_lost_link(&ended(1));
        away.note_lost_link(&LinkError::OfMaster(at(1), Box::new(LinkError::Lapsed)));
        away.note_lost_link(&ended(1));
        assert!(!away.has_master(&at(1)), "a new link may do");
        away.note_lost_link(&ended(1));
        assert!(away.has_master(&at(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_connection_ended_is_looked_at_at_once() {
        let (mut away, part) = (AwayParts::default(), AwayPart::Master(at(1)));
        for _ in 1..STRIKES {
            away.note_lost_master(&at(1), &LinkError::Deaf);
            assert!(away.is_due(&part) && away.describe().is_empty());
        }
        away.end_haste();
        assert!(!away.is_due(&part) && away.describe().len() == 1, "it is not there");
        away.keep_masters(&BTreeMap::new());
        away.note_lost_master(&at(1), &LinkError::Deaf);
        assert!(!away.is_due(&part) && away.describe().len() == 1, "it happens again and again");
        away.keep_masters(&BTreeMap::new());
        away.note_lost_master(&at(2), &LinkError::Silent);
        assert!(!away.has_master(&at(1)) && !away.is_due(&AwayPart::Master(at(2))));
    }

    #[test]
    fn where_all_are_away_all_are_tried() {
        let mut away = AwayParts::default();
        [1, 2, 3].iter().for_each(|port| away.note_lost_link(&silent(*port)));
        away.keep_owners(&[at(1), at(2), at(4)].into());
        assert!(away.has_master(&at(1)) && !away.has_master(&at(3)), "it has no slots");
        away.keep_owners(&[at(1), at(2)].into());
        assert!(!away.has_master(&at(1)) && !away.has_master(&at(2)));
    }

    #[test]
    fn a_slot_that_is_on_its_way_is_away_alone() {
        let mut away = AwayParts::default();
        let keys = vec![b"{a}x".to_vec(), b"{a}y".to_vec()];
        away.note_lost_link(&LinkError::Stuck([(7, keys)].into()));
        assert!(away.has_slot(7) && !away.has_slot(8));
        away.forget_masters();
        assert_eq!(away.describe()[0].0, "slot 7");
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_away_again_and_again_is_looked_at_less_often() {
        let (mut away, part) = (AwayParts::default(), AwayPart::Master(at(1)));
        for doubled in [1, 2, 4, 8, 8] {
            away.note_lost_link(&silent(1));
            assert!(!away.is_due(&part));
            tokio::time::advance(LOOK_EVERY * doubled).await;
            assert!(away.is_due(&part), "{doubled}");
        }
        tokio::time::advance(REMEMBERED).await;
        away.note_lost_link(&silent(1));
        tokio::time::advance(LOOK_EVERY).await;
        assert!(away.is_due(&part), "that is forgotten by now");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_silent_is_to_blame_for_it() {
        let never = std::future::pending::<Result<(), RedisError>>();
        let lost = ask_master(at(1), never).await.unwrap_err();
        assert!(matches!(lost, LinkError::OfMaster(of, why) if of == at(1)
            && matches!(*why, LinkError::Silent)));
    }
}
