//! Log lines about errors of clients, backends and proxies. They may occur a thousand times a second, so each kind gets
//! one line a minute, with the number since the last.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::labels::{Reason, Status};

/// Seconds between two lines of a kind: rare enough for a log, and frequent enough for an operator who has just
/// changed a setting.
const LINE_INTERVAL_SECONDS: u64 = 60;

/// The subject of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogNotice {
    /// A socket that was not let in.
    Refusal(Reason),
    /// A request to the API that was refused.
    Request(Status),
    /// A subscription or a sign-in whose signature does not hold.
    Signature,
    /// A connection that did not come to speak TLS.
    Tls,
    /// A connection without a valid PROXY header, or from a proxy that is not trusted.
    Proxy,
    /// One that spoke TLS to a port without it.
    PlainPort,
    /// A request for a socket from which a proxy has taken the upgrade.
    NoUpgrade,
    /// A request to a path that no route has.
    NoRoute,
    /// A client of Socket.IO.
    SocketIo,
    /// A backend that did not say who may subscribe.
    ChannelAuth,
    /// A connection that asks for more than its share.
    HeldUp,
    /// A connection that made way, for there were too many.
    Crowd,
}

/// Each has a slot of its own, so that none keeps another from having its line.
const KINDS: usize = Reason::ALL.len() + Status::ALL.len() + LogNotice::OTHERS.len();

impl LogNotice {
    /// Those that are one kind each, and how many of them are called.
    const OTHERS: [(Self, &'static str); 10] = [
        (Self::Signature, "subscriptions and sign-ins with a wrong signature"),
        (Self::Tls, "connections that did not come to speak TLS"),
        (Self::Proxy, "connections without a good header of the PROXY protocol"),
        (Self::PlainPort, "connections that spoke TLS to a port without it"),
        (Self::NoUpgrade, "requests for a socket without an upgrade"),
        (Self::NoRoute, "requests to paths that no route has"),
        (Self::SocketIo, "requests of Socket.IO"),
        (Self::ChannelAuth, "questions to backends who may subscribe, without a good answer"),
        (Self::HeldUp, "connections held up for asking for more than their share"),
        (Self::Crowd, "HTTP connections closed for others"),
    ];

    /// Reasons first, then statuses, then the others.
    fn slot_index(self) -> usize {
        let after = Reason::ALL.len() + Status::ALL.len();
        match self {
            Self::Refusal(reason) => reason as usize,
            Self::Request(status) => Reason::ALL.len() + status as usize,
            other => after + Self::OTHERS.iter().position(|(one, _)| *one == other).unwrap_or(0),
        }
    }

    /// A description of the notices that share the counter in that place.
    fn describe_slot(place: usize) -> String {
        let (reasons, statuses) = (Reason::ALL.len(), Status::ALL.len());
        if let Some(reason) = Reason::ALL.get(place) {
            format!("sockets refused: {}", reason.label())
        } else if let Some(status) = Status::ALL.get(place - reasons) {
            format!("requests refused: {}", status.label())
        } else {
            let other = Self::OTHERS.get(place - reasons - statuses);
            other.map_or_else(String::new, |(_, words)| (*words).to_owned())
        }
    }
}

/// When each kind last had a line.
#[derive(Debug)]
pub struct LogThrottle {
    /// The start of the clock in seconds; set with the first notice.
    begun: OnceLock<Instant>,
    /// The state of each kind of line.
    kinds: [NoticeKind; KINDS],
}

/// When the next line of a kind is due, and how many were left out.
#[derive(Debug, Default)]
struct NoticeKind {
    /// Second from which on there may be another line.
    next: AtomicU64,
    /// How many had no line since the last.
    left_out: AtomicU64,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self { begun: OnceLock::new(), kinds: std::array::from_fn(|_| NoticeKind::default()) }
    }
}

impl LogThrottle {
    /// Whether a line is due now, and how many notices of its kind were left out since the last one.
    pub fn take_due(&self, notice: LogNotice) -> Option<u64> {
        let begun = self.begun.get_or_init(Instant::now);
        self.due_at(notice, begun.elapsed().as_secs())
    }

    /// Notices that were left out and that no later notice of their kind has reported within a minute: how many,
    /// and of which kind.
    pub fn take_overdue(&self) -> Vec<(u64, String)> {
        self.begun.get().map_or_else(Vec::new, |begun| self.overdue_at(begun.elapsed().as_secs()))
    }

    /// [`Self::take_overdue`] at second `now`, for tests.
    fn overdue_at(&self, now: u64) -> Vec<(u64, String)> {
        let mut overdue = Vec::new();
        for (place, kind) in self.kinds.iter().enumerate() {
            // Relaxed: at worst a notice of this moment is reported a minute later.
            if now >= kind.next.load(Ordering::Relaxed) && kind.left_out.load(Ordering::Relaxed) > 0
            {
                overdue.push((
                    // Relaxed: a notice counted while the line is written appears in the next line.
                    kind.left_out.swap(0, Ordering::Relaxed),
                    LogNotice::describe_slot(place),
                ));
            }
        }
        overdue
    }

    /// [`Self::take_due`] at second `now`, for tests. Of several threads one has the line.
    fn due_at(&self, notice: LogNotice, now: u64) -> Option<u64> {
        let kind = self.kinds.get(notice.slot_index())?;
        // Relaxed: the exchange below decides between workers that find it due at once.
        let next = kind.next.load(Ordering::Relaxed);
        let is_mine = now >= next
            && kind
                .next
                .compare_exchange(
                    next,
                    now + LINE_INTERVAL_SECONDS,
                    // Relaxed: the value alone decides whose line it is.
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if is_mine {
            // Taken with the line, so that the next line counts from here.
            return Some(kind.left_out.swap(0, Ordering::Relaxed));
        }
        // A thread that loses the race for the line counts its notice as left out.
        kind.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_line_a_minute() {
        let notices = LogThrottle::default();
        let due = |notice, now| notices.due_at(notice, now);
        let (unknown, quota) =
            (LogNotice::Refusal(Reason::UnknownApp), LogNotice::Refusal(Reason::Quota));
        assert_eq!((due(unknown, 0), due(unknown, 0), due(unknown, 59)), (Some(0), None, None));
        assert_eq!(due(quota, 59), Some(0));
        assert_eq!((due(unknown, 60), due(unknown, 61)), (Some(2), None));
        assert_eq!(notices.overdue_at(119), []);
        assert_eq!(notices.overdue_at(120), [(1, "sockets refused: unknown_app".to_owned())]);
        assert_eq!((notices.overdue_at(120), due(unknown, 500)), (vec![], Some(0)));
        let places = [LogNotice::Request(Status::Ok), LogNotice::Request(Status::Other)];
        let others = LogNotice::OTHERS.map(|(notice, _)| notice);
        for notice in places.into_iter().chain(others) {
            assert_eq!(due(notice, 0), Some(0), "{notice:?}");
            assert!(!LogNotice::describe_slot(notice.slot_index()).is_empty(), "{notice:?}");
        }
        assert_eq!(LogNotice::OTHERS.last().map(|(last, _)| last.slot_index()), Some(KINDS - 1));
    }
}
