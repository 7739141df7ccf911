//! Leases: those that this node has registered, and what it has observed of others'. A lease has lapsed once this node,
//! by its own monotonic clock, has looked several times without seeing a renewal; the clocks of Redis and of other
//! nodes do not matter.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use crate::cluster::scripts::leases::FenceReply;

/// Looks in a row that find a lease not renewed before it has lapsed. One would do if looks and
/// renewals never came late; on a loaded machine both do.
const LOOKS: u8 = 4;

/// The tag that stands for the list of leases of nodes without fences.
pub(super) const UNFENCED: u16 = u16::MAX;

/// A lease on the server that has a tag's slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lease {
    /// The number whose slot decides which server keeps the lease.
    pub(super) tag: u16,
    /// The node in front, by which others know its next lease for that of the same node; then a number of its own.
    pub(super) id: String,
}

impl Lease {
    /// A new lease of a node, with a random id.
    pub(super) fn new(node: u64, tag: u16) -> Self {
        Self { tag, id: format!("{}{:08x}", node_of(node), super::random_number() as u32) }
    }
}

/// The prefix of a node's leases.
pub(super) fn node_of(node: u64) -> String {
    format!("{:08x}", (node ^ (node >> 32)) as u32)
}

/// The state of other nodes' leases.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// How it was last, and how many looks ago that was new.
    seen: HashMap<Lease, (String, u8)>,
    /// Servers that have lost their data, each with the nodes that had or have leases there and have not said again
    /// all they hold.
    missing: HashMap<u16, HashSet<String>>,
    /// Until when a node may come back that was not seen before; and when those that are silent still are taken
    /// for gone.
    strangers: Option<Instant>,
    /// When it lapses unless it is renewed, by this node's own clock.
    until: Option<Instant>,
}

impl Peers {
    /// Earlier observations say nothing after a lost link: other nodes may have lost theirs, too.
    pub(super) fn forget_looks(&mut self) {
        self.seen.values_mut().for_each(|(_, looks)| *looks = 0);
    }

    /// Notes leases that were not seen yet. It is no look: those that were count theirs in renewals alone.
    pub(super) fn note_new(&mut self, tag: u16, held: Vec<(String, String)>) {
        for (id, value) in held {
            self.seen.entry(Lease { tag, id }).or_insert((value, 0));
        }
    }

    /// A server has lost its data: what was held there is missing until each node that had a lease on it has said all
    /// it holds, or until a time. One that registered after the last look was not seen, and may come back until
    /// `strangers`.
    pub(super) fn note_data_loss(
        &mut self,
        tag: u16,
        own: u64,
        strangers: Instant,
        until: Instant,
    ) {
        // This node registers its own state by itself.
        let own = node_of(own);
        let there = self.seen.keys().filter(|lease| lease.tag == tag || lease.tag == UNFENCED);
        let nodes = there.filter_map(|lease| lease.id.get(..8)).filter(|node| *node != own);
        self.missing.entry(tag).or_default().extend(nodes.map(str::to_owned));
        self.strangers = self.strangers.max(Some(strangers));
        self.until = self.until.max(Some(until));
    }

    /// Notes which nodes are back on a server that lost its data, and whether they have registered everything.
    pub(super) fn note_back(&mut self, tag: u16, own: u64, fence: &FenceReply) {
        let own = node_of(own);
        if let Some(missing) = self.missing.get_mut(&tag) {
            let back = fence.valid.iter().filter_map(|(lease, _)| lease.get(..8));
            missing.extend(back.filter(|node| *node != own).map(str::to_owned));
            missing.retain(|node| !fence.whole.contains(node));
        }
    }

    /// The nodes that have these leases, those that were seen with others than this node's tags, and those that know no
    /// fences, but for the node that asks.
    pub(super) fn living_nodes(
        &self,
        own: (u64, &HashSet<u16>),
        leases: impl Iterator<Item = String>,
    ) -> HashSet<String> {
        let (own, tags) = (node_of(own.0), own.1);
        let seen = self.seen.keys().filter(|lease| !tags.contains(&lease.tag));
        let seen = seen.filter_map(|lease| match lease.tag {
            UNFENCED => Some(lease.id.clone()),
            _ => lease.id.trim_start_matches('x').get(..8).map(str::to_owned),
        });
        let nodes = leases.filter_map(|lease| lease.get(..8).map(str::to_owned));
        nodes.chain(seen).filter(|node| *node != own).collect()
    }

    /// Whether state that was held is still missing.
    pub(super) fn is_missing(&self) -> bool {
        self.until.is_some()
    }

    /// Whether everything is registered again; true once. Until then a member that Redis lacks is not taken as
    /// gone.
    pub(super) fn is_restored(&mut self) -> bool {
        let is_past = |time: Option<Instant>| time.is_some_and(|time| time <= Instant::now());
        let are_all_back = is_past(self.strangers) && self.missing.values().all(HashSet::is_empty);
        let restored = self.is_missing() && (is_past(self.until) || are_all_back);
        if restored {
            self.missing.clear();
            (self.strangers, self.until) = (None, None);
        }
        restored
    }

    /// Takes what one look showed of the leases on one server; those that have lapsed.
    pub(super) fn note_leases(&mut self, tag: u16, shown: Vec<(String, String)>) -> Vec<Lease> {
        let there: HashSet<&str> = shown.iter().map(|(id, _)| id.as_str()).collect();
        // A lease that is gone was given up or cleared, and need not be watched.
        self.seen.retain(|lease, _| lease.tag != tag || there.contains(lease.id.as_str()));
        let mut lapsed = Vec::new();
        for (id, value) in shown {
            let lease = Lease { tag, id };
            let (last, looks) = self.seen.entry(lease.clone()).or_insert((String::new(), 0));
            // Renewed since the last look, by whatever clock its node has.
            if *last != value {
                (*last, *looks) = (value, 0);
                continue;
            }
            *looks = looks.saturating_add(1);
            if *looks >= LOOKS {
                lapsed.push(lease);
            }
        }
        lapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(leases: &[(&str, &str)]) -> Vec<(String, String)> {
        leases.iter().map(|(id, value)| ((*id).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_lease_lapses_when_looks_in_a_row_find_it_unchanged() {
        let mut peers = Peers::default();
        let dead = Lease { tag: 7, id: "a".to_owned() };
        for look in 0..4 {
            let alive = look.to_string();
            assert!(peers.note_leases(7, shown(&[("a", "1"), ("b", &alive)])).is_empty(), "{look}");
            // On another server it is another lease.
            assert!(peers.note_leases(8, shown(&[("a", &alive)])).is_empty());
        }
        assert_eq!(
            peers.note_leases(7, shown(&[("a", "1"), ("b", "9")])),
            std::slice::from_ref(&dead)
        );
        assert_eq!(
            peers.note_leases(7, shown(&[("a", "1"), ("b", "8")])),
            [dead],
            "until it is cleared"
        );
        assert!(peers.note_leases(7, shown(&[("b", "7")])).is_empty());
        assert!(peers.note_leases(7, shown(&[("a", "1")])).is_empty(), "what went and came is new");
    }

    #[test]
    fn one_who_was_away_takes_nobody_for_dead_at_once() {
        let mut peers = Peers::default();
        for _ in 0..4 {
            peers.note_leases(7, shown(&[("a", "1")]));
        }
        peers.forget_looks();
        for _ in 0..3 {
            assert!(peers.note_leases(7, shown(&[("a", "1")])).is_empty());
        }
        assert!(peers.note_leases(7, shown(&[("a", "2")])).is_empty(), "it has come back");
        for _ in 0..9 {
            peers.note_new(7, shown(&[("a", "2"), ("b", "1")]));
        }
        assert!(
            peers.note_leases(7, shown(&[("a", "2"), ("b", "1")])).is_empty(),
            "no time has passed"
        );
    }

    #[test]
    fn what_was_lost_is_there_again_once_all_have_said_it() {
        let mut peers = Peers::default();
        let (one, two) = (node_of(1), node_of(2));
        let (first, second) = (format!("{one}0000000a"), format!("{two}0000000b"));
        peers.note_leases(7, shown(&[(&first, "1"), (&second, "1"), ("000000ff00000001", "1")]));
        assert!(!peers.is_restored() && !peers.is_missing());
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(60);
        let whole = |nodes: &[&String]| FenceReply {
            whole: nodes.iter().map(|node| (*node).clone()).collect(),
            ..FenceReply::default()
        };
        peers.note_data_loss(7, 255, now, later);
        assert!(peers.is_missing() && !peers.is_restored());
        peers.note_back(7, 255, &whole(&[&one]));
        peers.note_back(8, 255, &whole(&[&two]));
        assert!(!peers.is_restored());
        peers.note_back(7, 255, &whole(&[&two]));
        assert!(peers.is_restored() && !peers.is_missing());
        // Those who do not come back are waited for no longer than that.
        peers.note_data_loss(7, 255, now, now);
        assert!(peers.is_restored());
    }

    #[test]
    fn a_node_that_was_not_seen_before_is_waited_for() {
        let mut peers = Peers::default();
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(60);
        peers.note_data_loss(7, 255, later, later);
        assert!(!peers.is_restored(), "it may come back yet");
        let mut peers = Peers::default();
        peers.note_data_loss(7, 255, now, later);
        let held = |node| (Lease::new(node, 7).id, "1".to_owned());
        let mut fence = FenceReply { valid: vec![held(1), held(255)], ..FenceReply::default() };
        peers.note_back(7, 255, &fence);
        assert!(!peers.is_restored(), "it has not said yet what it holds");
        fence.whole.insert(node_of(1));
        peers.note_back(7, 255, &fence);
        assert!(peers.is_restored());
    }

    #[test]
    fn a_lease_begins_with_its_node() {
        assert_eq!(Lease::new(10, 3).id.get(..8), Some("0000000a"));
        assert_eq!(Lease::new(10 << 32, 3).id.len(), 16);
    }
}
