//! Which connections make way where there are too many: of one address, and of all. Those of backends are known
//! by their signatures and count for no address; those of trusted proxies are many clients' and do neither. Who
//! makes way is who has waited longest without asking for anything.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::timeouts::{
    AddressVisit, RequestPhase, RequestTimer, RequestTimers, TimeoutReason, TimerGuard,
};
use crate::hub::addresses::ConnectionsPerAddress;
use crate::hub::handshakes::counted_address;
use crate::node::ServerState;

/// Connections that an address may have for a moment beyond `connections_per_ip`: a backend that has just come is
/// known only once its first request is read.
const MOMENT: usize = 64;

/// Seconds on the worker's clock that make a whole one.
const A_SECOND: u32 = 2;

/// Connections that make way together where there is no room for one more, so that they are not looked through for
/// each.
const AT_ONCE: usize = 64;

/// Whether it may end without anything being lost that was under way, and rather than others: the less the rather.
fn reluctance(pace: &RequestTimer) -> Option<(bool, bool)> {
    let is_read = match pace.current_phase() {
        RequestPhase::New | RequestPhase::Idle | RequestPhase::Head => false,
        // Of a backend, whatever it is.
        RequestPhase::Body if pace.is_known() => return None,
        RequestPhase::Body => true,
        RequestPhase::Held => return None,
    };
    (!pace.is_ending()).then_some((pace.is_known(), is_read))
}

impl TimerGuard {
    /// Counts the connection for `address`, and lets another of its own make way where those are far too many; whether
    /// one did. Where all the others are on other workers, it stays, and makes way for the next one here.
    pub fn visit(&self, shared: &Arc<ServerState>, address: IpAddr) -> bool {
        if !shared.addresses.is_limited() {
            return false;
        }
        let address = counted_address(address);
        self.pace.visit.replace(Some(AddressVisit::new(shared, address)));
        let (paces, place) = (&self.paces, self.pace.place.get());
        paces.visits.borrow_mut().entry(address).or_default().push(place);
        if shared.addresses.excess(address) <= MOMENT {
            return false;
        }
        let longest = paces.longest(address, Some(place), |_| true);
        longest.iter().for_each(|longest| paces.crowd_out(longest));
        longest.is_some()
    }
}

impl RequestTimers {
    /// The connection belongs to a backend: what came on it was signed.
    pub(super) fn know(&self, pace: &RequestTimer) {
        if !pace.is_known() {
            pace.make_known();
            self.forget_visit(pace);
        }
    }

    /// Counts a connection no longer for its address.
    pub(super) fn forget_visit(&self, pace: &RequestTimer) {
        let Some(visit) = pace.visit.take() else { return };
        let mut visits = self.visits.borrow_mut();
        if let Some(places) = visits.get_mut(&visit.address) {
            if let Some(at) = places.iter().position(|place| *place == pace.place.get()) {
                places.swap_remove(at);
            }
            if places.is_empty() {
                visits.remove(&visit.address);
            }
        }
    }

    /// Ends those that have asked for nothing for a second, of addresses that have more than they may: how many
    /// of which.
    pub fn keep_to_limits(
        &self,
        addresses: &ConnectionsPerAddress,
        now: u32,
    ) -> Vec<(IpAddr, usize)> {
        let mut all: Vec<_> = self.visits.borrow().keys().map(|address| (*address, 0)).collect();
        for (address, ended) in &mut all {
            while addresses.excess(*address) > 0 {
                let longest = self.longest(*address, None, |pace| pace.seconds(now) >= A_SECOND);
                let Some(longest) = longest else { break };
                self.crowd_out(&longest);
                *ended += 1;
            }
        }
        all.retain(|(_, ended)| *ended > 0);
        all
    }

    /// Makes room for one more connection beside that at `kept`; how many ended for it.
    pub fn evict(&self, kept: &TimerGuard) -> usize {
        let visits = self.visits.borrow();
        let crowds: HashMap<IpAddr, u32> =
            visits.iter().map(|(address, places)| (*address, places.len().ilog2())).collect();
        drop(visits);
        let all = self.all.borrow();
        let mut ready: Vec<_> = all
            .iter()
            .filter(|(place, _)| *place != kept.pace.place.get())
            .filter_map(|(_, pace)| {
                let (is_known, is_read) = reluctance(pace)?;
                let visit = pace.visit.borrow();
                let crowd = visit.as_ref().and_then(|visit| crowds.get(&visit.address));
                // Who comes with many others goes first.
                let crowd = Reverse(crowd.copied().unwrap_or_default());
                Some(((is_known, is_read, crowd, pace.turn()), pace.clone()))
            })
            .collect();
        drop(all);
        let part = (ready.len() / 4).clamp(1, AT_ONCE).min(ready.len());
        if part == 0 {
            return 0;
        }
        ready.select_nth_unstable_by_key(part - 1, |(order, _)| *order);
        ready.iter().take(part).for_each(|(_, pace)| self.crowd_out(pace));
        part
    }

    /// Of the address's the one that has been at its step longest, beside that at `but`.
    fn longest(
        &self,
        address: IpAddr,
        but: Option<usize>,
        is_meant: impl Fn(&RequestTimer) -> bool,
    ) -> Option<Rc<RequestTimer>> {
        let (visits, all) = (self.visits.borrow(), self.all.borrow());
        let places = visits.get(&address)?.iter().filter(|place| Some(**place) != but);
        let ready = places.filter_map(|place| {
            let pace = all.get(*place).filter(|pace| is_meant(pace))?;
            Some(((reluctance(pace)?, pace.turn()), pace))
        });
        ready.min_by_key(|(order, _)| *order).map(|(_, pace)| pace.clone())
    }

    fn crowd_out(&self, pace: &RequestTimer) {
        self.forget_visit(pace);
        pace.end_connection(TimeoutReason::Crowded);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn ends(kept: &TimerGuard) -> bool {
        kept.pace.poll_end(&Context::from_waker(Waker::noop())) == Some(TimeoutReason::Crowded)
    }

    #[test]
    fn strangers_evict_before_backends_and_the_longest_idle_before_others() {
        let paces = Rc::new(RequestTimers::default());
        let backend = paces.begin_connection(1);
        paces.know(&backend.pace);
        backend.pace.enter_phase(RequestPhase::Idle, 1);
        let (polls, early, late) =
            (paces.begin_connection(1), paces.begin_connection(1), paces.begin_connection(1));
        polls.pace.enter_phase(RequestPhase::Held, 1);
        early.pace.enter_phase(RequestPhase::Idle, 1);
        let new = paces.begin_connection(1);
        assert_eq!(paces.evict(&new), 1);
        assert!(ends(&late) && !ends(&early), "it has asked for something since");
        late.pace.enter_phase(RequestPhase::Body, 1);
        assert_eq!(paces.evict(&new), 1);
        assert!(ends(&early));
        early.pace.enter_phase(RequestPhase::Held, 1);
        assert_eq!((paces.evict(&new), ends(&late)), (1, true));
        late.pace.enter_phase(RequestPhase::Held, 1);
        assert_eq!((paces.evict(&new), ends(&backend)), (1, true));
        backend.pace.enter_phase(RequestPhase::Body, 1);
        assert_eq!(paces.evict(&new), 0, "all of them are at something");
        assert!(!ends(&polls));
    }
}
