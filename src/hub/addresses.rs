//! How many connections each client address has, for the limits on them. Counted only where there are any;
//! whose address it is behind a proxy is settled above.

use std::net::{IpAddr, Ipv6Addr};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::handshakes::HandshakeLimit;

/// Connections by address.
#[derive(Debug)]
pub struct ConnectionsPerAddress {
    /// 0: no limit.
    max: usize,
    open: DashMap<IpAddr, usize>,
    pub handshakes: HandshakeLimit,
}

impl ConnectionsPerAddress {
    /// A limit of `max` connections at a time and of `handshakes` new ones a second; 0: no limit.
    pub fn new(max: usize, handshakes: u32) -> Self {
        Self { max, open: DashMap::new(), handshakes: HandshakeLimit::new(handshakes) }
    }

    /// Counts one more connection of `address`; whether there may be one more.
    pub fn admit(&self, address: IpAddr) -> bool {
        if self.max == 0 {
            return true;
        }
        let mut open = self.open.entry(counted(address)).or_insert(0);
        if *open >= self.max {
            return false;
        }
        *open += 1;
        true
    }

    /// Counts one less.
    pub fn release(&self, address: IpAddr) {
        if self.max == 0 {
            return;
        }
        if let Entry::Occupied(mut entry) = self.open.entry(counted(address)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// What counts as one address. Of IPv6 it is a network of 64 bits, any address in which a host may give
/// itself (RFC 4291 section 2.5.1).
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
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
}
