//! The rate of new sockets per client address. Counted only if there is a limit; the address behind a proxy is
//! determined above, and `addresses.rs` limits the number of sockets.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

/// How far ahead of its rate an address may be: a burst of as many sockets as the rate gives in this time.
const BURST: Duration = Duration::from_secs(2);

/// A limit on new sockets a second for each address, kept by the generic cell rate algorithm (ITU-T I.371):
/// one moment for each address says when it is back within its rate.
#[derive(Debug)]
pub struct HandshakeLimit {
    /// Time that one socket stands for; `None`: no limit.
    interval: Option<Duration>,
    /// When each address is even again. Those that are even already are forgotten.
    even_at: DashMap<IpAddr, Instant>,
    /// Times are counted from here in 32 bits, which saves memory for each address.
    began: Instant,
    /// Milliseconds after `began` at which those were last looked for.
    swept_ms: AtomicU64,
}

impl HandshakeLimit {
    /// A limit of `per_second` new sockets, and twice as many at once; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        let interval = (per_second > 0).then(|| Duration::from_secs(1) / per_second);
        let (even_at, began) = (DashMap::new(), Instant::now());
        Self { interval, even_at, began, swept_ms: AtomicU64::new(0) }
    }

    /// Counts one more socket that `address` opens at `now`; whether it may.
    pub fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let Some(interval) = self.interval else { return true };
        self.forget_quiet(now);
        let mut even_at = self.even_at.entry(counted_address(address)).or_insert(now);
        let next = (*even_at).max(now) + interval;
        if next.saturating_duration_since(now) > BURST {
            return false;
        }
        *even_at = next;
        true
    }

    /// Forgets, every [`BURST`], the addresses that have been quiet for long enough.
    fn forget_quiet(&self, now: Instant) {
        let now_ms = now.saturating_duration_since(self.began).as_millis() as u64;
        // Relaxed: a sweep too many or too late changes nothing but memory.
        let swept_ms = self.swept_ms.load(Ordering::Relaxed);
        if now_ms.saturating_sub(swept_ms) < BURST.as_millis() as u64 {
            return;
        }
        // Relaxed: a second sweep by another worker would only find nothing.
        self.swept_ms.store(now_ms, Ordering::Relaxed);
        self.even_at.retain(|_, even_at| *even_at > now);
    }
}

/// The address by which limits count. Of IPv6 it is a network of 64 bits, any address in which a host may give
/// itself (RFC 4291 section 2.5.1).
pub fn counted_address(address: IpAddr) -> IpAddr {
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

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_a_burst_of_twice_its_rate_and_then_its_rate() {
        let (limit, start) = (HandshakeLimit::new(5), Instant::now());
        let admitted = |at: Duration, tries: usize| {
            (0..tries).filter(|_| limit.admit(address("10.0.0.1"), start + at)).count()
        };
        assert_eq!(admitted(Duration::ZERO, 50), 10);
        assert_eq!(admitted(Duration::from_millis(199), 5), 0);
        assert_eq!(admitted(Duration::from_millis(200), 5), 1);
        assert_eq!(admitted(Duration::from_millis(1200), 50), 5);
        assert_eq!(admitted(Duration::from_secs(60), 50), 10);
        assert!(limit.admit(address("10.0.0.2"), start), "an address of its own");
        assert!(HandshakeLimit::new(0).admit(address("10.0.0.1"), start), "no limit");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_quiet_ones_are_forgotten() {
        let (limit, start) = (HandshakeLimit::new(1), Instant::now());
        assert!(limit.admit(address("2001:db8:1:2::1"), start));
        assert!(limit.admit(address("2001:db8:1:2::2"), start));
        assert!(!limit.admit(address("2001:db8:1:2:ffff::3"), start));
        (0..100).for_each(|n| assert!(limit.admit(IpAddr::from([10, 0, 0, n]), start)));
        assert_eq!(limit.even_at.len(), 101);
        assert!(limit.admit(address("10.1.0.1"), start + Duration::from_secs(3)));
        assert_eq!(limit.even_at.len(), 1);
    }
}
