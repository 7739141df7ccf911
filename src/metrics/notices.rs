//! Lines of the log about what clients, backends and proxies do wrong. Whoever does it may do it a thousand
//! times a second, so of each kind there is one line a minute, which says how many there were since the last.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::labels::{Reason, Status};

/// Seconds between two lines of a kind.
const PAUSE: u64 = 60;

/// What a line is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A socket that was not let in.
    Refusal(Reason),
    /// A request to the API that was refused.
    Request(Status),
    /// A subscription or a sign-in whose signature does not hold.
    Signature,
    /// A connection that did not come to speak TLS.
    Tls,
    /// One that did not say whom a proxy passes on, or came from none that is trusted.
    Proxy,
}

const KINDS: usize = Reason::ALL.len() + Status::ALL.len() + 3;

impl Notice {
    fn place(self) -> usize {
        let after = Reason::ALL.len() + Status::ALL.len();
        match self {
            Self::Refusal(reason) => reason as usize,
            Self::Request(status) => Reason::ALL.len() + status as usize,
            Self::Signature => after,
            Self::Tls => after + 1,
            Self::Proxy => after + 2,
        }
    }
}

/// When each kind last had a line.
#[derive(Debug)]
pub struct Notices {
    begun: OnceLock<Instant>,
    kinds: [Kind; KINDS],
}

#[derive(Debug, Default)]
struct Kind {
    /// Second from which on there may be another line.
    next: AtomicU64,
    left_out: AtomicU64,
}

impl Default for Notices {
    fn default() -> Self {
        Self { begun: OnceLock::new(), kinds: std::array::from_fn(|_| Kind::default()) }
    }
}

impl Notices {
    /// Whether there is to be a line now, and how many of its kind had none since the last.
    pub fn due(&self, notice: Notice) -> Option<u64> {
        let begun = self.begun.get_or_init(Instant::now);
        self.due_at(notice, begun.elapsed().as_secs())
    }

    fn due_at(&self, notice: Notice, now: u64) -> Option<u64> {
        let kind = self.kinds.get(notice.place())?;
        let next = kind.next.load(Ordering::Relaxed);
        let is_mine = now >= next
            && kind
                .next
                .compare_exchange(next, now + PAUSE, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            return Some(kind.left_out.swap(0, Ordering::Relaxed));
        }
        kind.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_line_a_minute() {
        let notices = Notices::default();
        let due = |notice, now| notices.due_at(notice, now);
        let (unknown, quota) =
            (Notice::Refusal(Reason::UnknownApp), Notice::Refusal(Reason::Quota));
        assert_eq!((due(unknown, 0), due(unknown, 0), due(unknown, 59)), (Some(0), None, None));
        assert_eq!(due(quota, 59), Some(0));
        assert_eq!((due(unknown, 60), due(unknown, 61)), (Some(2), None));
        assert_eq!(due(unknown, 500), Some(1));
        let places = [Notice::Request(Status::Ok), Notice::Request(Status::Other)];
        let others = [Notice::Signature, Notice::Tls, Notice::Proxy];
        for notice in places.into_iter().chain(others) {
            assert_eq!(due(notice, 0), Some(0), "{notice:?}");
        }
        assert_eq!(Notice::Proxy.place(), KINDS - 1);
    }
}
