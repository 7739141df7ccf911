//! Closing idle HTTP connections when one address has too many, or all together, or their buffers take too much memory.
//! Backends, known by their signatures, do not count for an address; connections of trusted proxies carry many clients
//! and do not either. The longest idle connection goes first.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use tracing::{debug, warn};

use super::Http;
use super::timeouts::{
    AddressVisit, RequestPhase, RequestTimer, RequestTimers, TimeoutReason, TimerGuard,
};
use crate::hub::addresses::ConnectionsPerAddress;
use crate::hub::capacity::CONNECTION_BYTES;
use crate::hub::handshakes::counted_address;
use crate::metrics::{Limited, LogNotice};
use crate::node::ServerState;

/// Connections that an address may have for a moment beyond `connections_per_ip`: a backend that has just come is
/// known only once its first request is read.
const MAX_UNKNOWN: usize = 64;

/// Seconds on the worker's clock that make a whole one.
/// The clock moves once a second, so that one step of it may be any moment of one; two are at least a whole one.
const WHOLE_SECOND_TICKS: u32 = 2;

/// Connections that make way together where there is no room for one more, so that they are not looked through for
/// each.
const EVICTED_AT_ONCE: usize = 64;

/// Bytes of buffers on a worker beyond which those of strangers make way: of 1,000 connections that have sent part of a
/// request, or 2,000 that have shaken hands for TLS.
const MAX_BUFFERED_BYTES: usize = 24 << 20;

/// Bytes that hyper and rustls keep for a connection, about, as measured.
pub const HYPER_BYTES: usize = 24 << 10;
pub const TLS_BYTES: usize = 12 << 10;

/// Counts connections that made way, and the line of them.
pub fn log_eviction(http: &Http, address: IpAddr, ended: usize, why: &str) {
    http.node.counts().limited.count_all(Limited::Connections as usize, ended as u64);
    match http.node.shared.metrics.notices.take_due(LogNotice::Crowd) {
        Some(others) => warn!(%address, others, "HTTP connections are closed: {why}"),
        None => debug!(%address, "HTTP connections are closed: {why}"),
    }
}

/// How reluctantly a connection is evicted; the lowest goes first, and `None` must stay, since a request is under
/// way. Sorts unknown before known clients, and idle ones before those that are sending.
fn reluctance(timer: &RequestTimer) -> Option<(bool, bool)> {
    let is_read = match timer.current_phase() {
        RequestPhase::New | RequestPhase::Idle | RequestPhase::Head => false,
        // Of a backend, whatever it is.
        RequestPhase::Body if timer.is_known() => return None,
        RequestPhase::Body => true,
        RequestPhase::Held => return None,
    };
    (!timer.is_ending()).then_some((timer.is_known(), is_read))
}

impl TimerGuard {
    /// Counts the connection for `address`, and lets another of its own make way where those are far too many; whether
    /// one did. Where all the others are on other workers, it stays, and makes way for the next one here.
    pub fn visit(&self, shared: &Arc<ServerState>, address: IpAddr) -> bool {
        // Without a limit nothing is counted, so that the common case costs nothing.
        if !shared.addresses.is_limited() {
            return false;
        }
        let address = counted_address(address);
        self.timer.visit.replace(Some(AddressVisit::new(shared, address)));
        let (timers, place) = (&self.timers, self.timer.place.get());
        timers.visits.borrow_mut().entry(address).or_default().push(place);
        // Some room beyond the limit: backends are only known by their first request.
        if shared.addresses.excess(address) <= MAX_UNKNOWN {
            return false;
        }
        let longest = timers.longest(address, Some(place), |_| true);
        longest.iter().for_each(|longest| timers.crowd_out(longest));
        longest.is_some()
    }
}

impl TimerGuard {
    /// Counts `bytes` of buffers for the connection, of `address`. Where strangers have too many of them, some make way
    /// that have been at their step longest, of the address that has most; how many.
    pub fn hold_buffers(&self, address: IpAddr, bytes: usize) -> usize {
        let (timers, timer, address) = (&self.timers, &self.timer, counted_address(address));
        let before = timer.buffers.get().map_or(0, |(_, bytes)| bytes);
        timer.buffers.set(Some((address, before + bytes)));
        timers.buffered.set(timers.buffered.get() + bytes);
        timers.most_held.set(timers.most_held.get().max(timers.held_bytes()));
        if timers.buffered.get() > MAX_BUFFERED_BYTES { timers.evict_buffered(timer) } else { 0 }
    }
}

impl RequestTimers {
    /// Bytes that its connections take, about.
    pub fn held_bytes(&self) -> usize {
        self.buffered.get() + self.timers.borrow().len() * CONNECTION_BYTES
    }

    /// The most that its connections took since this was asked last. A crowd may come and go between two ticks, and what
    /// the allocator keeps of it is to be given back all the same.
    pub fn take_most_held(&self) -> usize {
        let now = self.held_bytes();
        self.most_held.replace(now).max(now)
    }

    /// The connection has no buffers any longer.
    pub(super) fn forget_buffers(&self, timer: &RequestTimer) {
        let bytes = timer.buffers.take().map_or(0, |(_, bytes)| bytes);
        self.buffered.set(self.buffered.get() - bytes);
    }

    /// Not `but`, which has just come; how many end.
    fn evict_buffered(&self, but: &Rc<RequestTimer>) -> usize {
        let mut by_address: HashMap<IpAddr, (usize, Vec<_>)> = HashMap::new();
        for (_, timer) in self.timers.borrow().iter() {
            let can_go = reluctance(timer).is_some_and(|(is_known, _)| !is_known);
            if let Some((address, bytes)) = timer.buffers.get().filter(|_| can_go) {
                let of_it = by_address.entry(address).or_default();
                of_it.0 += bytes;
                of_it.1.extend((!Rc::ptr_eq(timer, but)).then(|| timer.clone()));
            }
        }
        // The rest is of those that stay, such as clients that poll.
        if by_address.values().map(|(bytes, _)| bytes).sum::<usize>() < MAX_BUFFERED_BYTES / 2 {
            return 0;
        }
        let most = by_address.into_values().max_by_key(|(bytes, _)| *bytes);
        let mut ready = most.map_or(Vec::new(), |(_, ready)| ready);
        let part = (ready.len() / 4).clamp(1, EVICTED_AT_ONCE).min(ready.len());
        if part > 0 {
            ready.select_nth_unstable_by_key(part - 1, |timer| timer.turn());
        }
        ready.iter().take(part).for_each(|timer| self.crowd_out(timer));
        part
    }

    /// The connection belongs to a backend: what came on it was signed.
    /// Then it counts for no address any longer, however many its backend opens.
    pub(super) fn know(&self, timer: &RequestTimer) {
        if !timer.is_known() {
            timer.make_known();
            self.forget_visit(timer);
        }
    }

    /// Counts a connection no longer for its address.
    pub(super) fn forget_visit(&self, timer: &RequestTimer) {
        let Some(visit) = timer.visit.take() else { return };
        let mut visits = self.visits.borrow_mut();
        if let Some(places) = visits.get_mut(&visit.address) {
            if let Some(at) = places.iter().position(|place| *place == timer.place.get()) {
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
                let longest =
                    self.longest(*address, None, |timer| timer.seconds(now) >= WHOLE_SECOND_TICKS);
                // The others are in the middle of a request, or on other workers.
                let Some(longest) = longest else { break };
                self.crowd_out(&longest);
                *ended += 1;
            }
        }
        all.retain(|(_, ended)| *ended > 0);
        all
    }

    /// Makes room for one more connection beside that at `kept`; returns how many it evicted. Crowded addresses go
    /// first, then the longest idle. At most a quarter at a time, so that one flood does not evict everybody.
    pub fn evict(&self, kept: &TimerGuard) -> usize {
        let visits = self.visits.borrow();
        let crowds: HashMap<IpAddr, u32> =
            // By powers of two: addresses with about as many connections are treated alike.
            visits.iter().map(|(address, places)| (*address, places.len().ilog2())).collect();
        drop(visits);
        let all = self.timers.borrow();
        let mut ready: Vec<_> = all
            .iter()
            .filter(|(place, _)| *place != kept.timer.place.get())
            .filter_map(|(_, timer)| {
                let (is_known, is_read) = reluctance(timer)?;
                let visit = timer.visit.borrow();
                let crowd = visit.as_ref().and_then(|visit| crowds.get(&visit.address));
                // Connections of an address with many others go first.
                let crowd = Reverse(crowd.copied().unwrap_or_default());
                Some(((is_known, is_read, crowd, timer.turn()), timer.clone()))
            })
            .collect();
        drop(all);
        let part = (ready.len() / 4).clamp(1, EVICTED_AT_ONCE).min(ready.len());
        if part == 0 {
            return 0;
        }
        // Only the first ones matter, and so nothing is sorted.
        ready.select_nth_unstable_by_key(part - 1, |(order, _)| *order);
        ready.iter().take(part).for_each(|(_, timer)| self.crowd_out(timer));
        part
    }

    /// Of the address's the one that has been at its step longest, beside that at `but`.
    fn longest(
        &self,
        address: IpAddr,
        but: Option<usize>,
        is_meant: impl Fn(&RequestTimer) -> bool,
    ) -> Option<Rc<RequestTimer>> {
        let (visits, all) = (self.visits.borrow(), self.timers.borrow());
        let places = visits.get(&address)?.iter().filter(|place| Some(**place) != but);
        let ready = places.filter_map(|place| {
            let timer = all.get(*place).filter(|timer| is_meant(timer))?;
            Some(((reluctance(timer)?, timer.turn()), timer))
        });
        ready.min_by_key(|(order, _)| *order).map(|(_, timer)| timer.clone())
    }

    /// Tells the connection's task to end. Not counted from now on, or the next would look for one
    /// more.
    fn crowd_out(&self, timer: &RequestTimer) {
        self.forget_visit(timer);
        timer.end_connection(TimeoutReason::Crowded);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn ends(kept: &TimerGuard) -> bool {
        kept.timer.poll_end(&Context::from_waker(Waker::noop())) == Some(TimeoutReason::Crowded)
    }

    #[test]
    fn half_requests_of_one_address_make_way_for_each_other_alone() {
        let timers = Rc::new(RequestTimers::default());
        let from = |address: [u8; 4]| {
            let kept = timers.begin_connection(1);
            let ended = kept.hold_buffers(address.into(), HYPER_BYTES);
            (kept, ended)
        };
        let (slow, backend) = (from([10, 0, 0, 2]).0, from([10, 0, 0, 1]).0);
        timers.know(&backend.timer);
        let mut crowd: Vec<_> = (0..2000).map(|_| from([10, 0, 0, 1])).collect();
        let told: usize = crowd.iter().map(|(_, ended)| ended).sum();
        assert!(told > 500 && !ends(&slow) && !ends(&backend), "{told}");
        let gone: Vec<bool> = crowd.iter().map(|(kept, _)| ends(kept)).collect();
        assert!(gone.iter().take(500).all(|is| *is), "the longest first");
        assert_eq!(gone.iter().filter(|is| **is).count(), told);
        // Clients that poll stay.
        crowd.iter().for_each(|(kept, _)| kept.timer.enter_phase(RequestPhase::Held, 1));
        assert_eq!(from([10, 0, 0, 3]).1, 0);
        crowd.clear();
        drop((slow, backend));
        assert_eq!(timers.held_bytes(), 0);
    }

    #[test]
    fn what_came_and_went_between_two_ticks_was_never_given_back() {
        let timers = Rc::new(RequestTimers::default());
        let crowd: Vec<_> = (0..100).map(|_| timers.begin_connection(1)).collect();
        let held = |kept: &TimerGuard| kept.hold_buffers([10, 0, 0, 1].into(), HYPER_BYTES);
        assert_eq!(crowd.iter().map(held).sum::<usize>(), 0);
        drop(crowd);
        assert_eq!(timers.take_most_held(), 100 * (HYPER_BYTES + CONNECTION_BYTES));
        assert_eq!(timers.take_most_held(), 0);
    }

    #[test]
    fn strangers_evict_before_backends_and_the_longest_idle_before_others() {
        let timers = Rc::new(RequestTimers::default());
        let backend = timers.begin_connection(1);
        timers.know(&backend.timer);
        backend.timer.enter_phase(RequestPhase::Idle, 1);
        let (polls, early, late) =
            (timers.begin_connection(1), timers.begin_connection(1), timers.begin_connection(1));
        polls.timer.enter_phase(RequestPhase::Held, 1);
        early.timer.enter_phase(RequestPhase::Idle, 1);
        let new = timers.begin_connection(1);
        assert_eq!(timers.evict(&new), 1);
        assert!(ends(&late) && !ends(&early), "it has asked for something since");
        late.timer.enter_phase(RequestPhase::Body, 1);
        assert_eq!(timers.evict(&new), 1);
        assert!(ends(&early));
        early.timer.enter_phase(RequestPhase::Held, 1);
        assert_eq!((timers.evict(&new), ends(&late)), (1, true));
        late.timer.enter_phase(RequestPhase::Held, 1);
        assert_eq!((timers.evict(&new), ends(&backend)), (1, true));
        backend.timer.enter_phase(RequestPhase::Body, 1);
        assert_eq!(timers.evict(&new), 0, "all of them are at something");
        assert!(!ends(&polls));
    }
}
