//! Connections per client address, for their limits: sockets, and HTTP connections that have requested no socket yet.
//! Counted only if there is a limit; the address behind a proxy is determined above.

use std::net::IpAddr;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::handshakes::{HandshakeLimit, counted_address};

/// Connections by address.
#[derive(Debug)]
pub struct ConnectionsPerAddress {
    /// 0: no limit.
    max: usize,
    /// Only addresses that have something open, so that it is bounded by what there is.
    open: DashMap<IpAddr, AddressCounts>,
    /// How fast they may open more.
    pub handshakes: HandshakeLimit,
}

/// Open connections of one address.
#[derive(Debug, Default, Clone, Copy)]
struct AddressCounts {
    /// Sockets and sessions that were let in.
    sockets: usize,
    /// Connections that are no sockets, from which nothing signed has come.
    visits: usize,
}

impl ConnectionsPerAddress {
    /// A limit of `max` connections at a time and of `handshakes` new ones a second; 0: no limit.
    pub fn new(max: usize, handshakes: u32) -> Self {
        Self { max, open: DashMap::new(), handshakes: HandshakeLimit::new(handshakes) }
    }

    /// Counts one more socket of `address`; whether there may be one more. Visits do not take its place: they make
    /// way.
    pub fn admit(&self, address: IpAddr) -> bool {
        if self.max == 0 {
            return true;
        }
        let mut open = self.open.entry(counted_address(address)).or_default();
        if open.sockets >= self.max {
            return false;
        }
        open.sockets += 1;
        true
    }

    /// Counts one less.
    pub fn release(&self, address: IpAddr) {
        self.close(address, |open| open.sockets -= 1);
    }

    /// Whether a limit is set; visits are counted only then.
    pub fn is_limited(&self) -> bool {
        self.max > 0
    }

    /// Counts one more visit of `address`. There is always room: [`Self::excess`] says how much is too much.
    pub fn visit(&self, address: IpAddr) {
        if self.is_limited() {
            self.open.entry(counted_address(address)).or_default().visits += 1;
        }
    }

    /// Counts one less.
    pub fn depart(&self, address: IpAddr) {
        self.close(address, |open| open.visits -= 1);
    }

    /// How many visits of `address` are more than it may have connections.
    pub fn excess(&self, address: IpAddr) -> usize {
        // An address without an entry has no connection.
        let open = self.open.get(&counted_address(address)).map(|open| *open).unwrap_or_default();
        (open.sockets + open.visits).saturating_sub(self.max).min(open.visits)
    }

    /// The entry goes with the last of its connections.
    fn close(&self, address: IpAddr, close: impl FnOnce(&mut AddressCounts)) {
        if !self.is_limited() {
            return;
        }
        if let Entry::Occupied(mut entry) = self.open.entry(counted_address(address)) {
            close(entry.get_mut());
            if entry.get().sockets == 0 && entry.get().visits == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_as_many_as_it_may() {
        let addresses = ConnectionsPerAddress::new(2, 0);
        let (one, other): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!(addresses.admit(one) && addresses.admit("::ffff:10.0.0.1".parse().unwrap()));
        assert!(!addresses.admit(one));
        assert!(addresses.admit(other));
        addresses.release(one);
        assert!(addresses.admit(one));
        (0..2).for_each(|_| addresses.release(one));
        addresses.release(other);
        assert!(addresses.open.is_empty());
    }

    #[test]
    fn a_host_with_many_addresses_has_no_more_than_others() {
        let addresses = ConnectionsPerAddress::new(1, 0);
        let admit = |address: &str| addresses.admit(address.parse().unwrap());
        assert!(admit("2001:db8:1:2::1") && !admit("2001:db8:1:2:ffff::2"));
        assert!(admit("2001:db8:1:3::1"), "another network");
        addresses.release("2001:db8:1:2:ffff::2".parse().unwrap());
        assert!(admit("2001:db8:1:2::3"));
    }

    #[test]
    fn sockets_leave_less_room_for_visits_and_take_it() {
        let (addresses, address) = (ConnectionsPerAddress::new(3, 0), "10.0.0.1".parse().unwrap());
        (0..5).for_each(|_| addresses.visit(address));
        assert_eq!(addresses.excess(address), 2);
        assert!((0..3).all(|_| addresses.admit(address)) && !addresses.admit(address));
        assert_eq!(addresses.excess(address), 5);
        (0..4).for_each(|_| addresses.depart(address));
        assert_eq!(addresses.excess(address), 1);
        (0..3).for_each(|_| addresses.release(address));
        assert_eq!(addresses.excess(address), 0);
        addresses.depart(address);
        assert!(addresses.open.is_empty());
    }
}
