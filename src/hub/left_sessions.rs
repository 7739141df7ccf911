//! HTTP sessions without a receiving request: how many a worker keeps, and which are closed to make room. A client
//! sends its next request within a round trip. One that never does holds a place but no descriptor, so that a few
//! connections could fill all places. Sessions themselves are in `http_stream.rs` and `stream/engine.rs`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::connection::Connection;
use super::handshakes::counted_address;
use super::http_sessions::SessionLull;
use super::worker::Worker;

/// Of all places this share is for such sessions, and no fewer on a worker than so many: the clients of a large site
/// who poll behind one address, and are between two polls.
const SESSION_SHARE: u64 = 8;
/// Sessions without a receiver that every worker may keep.
const MIN_SESSIONS: u64 = 64;

/// Where places are not limited.
const UNLIMITED_PLACES: u64 = 1 << 17;

/// How long one is kept where there are no places left; seconds of the worker's clock.
const CROWDED_SECONDS: u32 = 3;

impl Connection {
    /// How long no request has received; `None` if one does.
    fn lull(&self) -> Option<SessionLull> {
        if self.is_closing() {
            return None;
        }
        let lull = self.over_http(|stream| stream.lull());
        #[cfg(feature = "socketio")]
        let lull = lull.or_else(|| self.over_engine(|stream| stream.lull()));
        lull.flatten()
    }
}

/// Sessions may be left so many on each of `workers`, of `places` for all.
fn most_left(places: u64, workers: u64) -> usize {
    let places = if places == 0 { UNLIMITED_PLACES } else { places };
    (places / SESSION_SHARE / workers.max(1)).max(MIN_SESSIONS) as usize
}

impl Worker {
    /// Makes room for one more session, of as many as `places` allow for; the addresses of those that ended for it.
    pub fn make_room_for_session(&self, places: u64) -> Vec<IpAddr> {
        let (most, left) =
            (most_left(places, self.hub().worker_count() as u64), &self.left_sessions);
        // Each that is opened may be one more; which of them have been taken up is looked at where it matters.
        left.most.set(left.most.get() + 1);
        if left.most.get() <= most {
            return Vec::new();
        }
        // Some more, so that not each that comes has all looked through.
        self.end_sessions(most - most / 4, |_| true)
    }

    /// The same once a second. If the server is `crowded`, idle sessions are closed at once.
    pub fn look_after_sessions(&self, places: u64, is_crowded: bool) -> Vec<IpAddr> {
        let (most, now) = (most_left(places, self.hub().worker_count() as u64), self.now_seconds());
        let is_old =
            |lull: SessionLull| lull.since > 0 && now.saturating_sub(lull.since) >= CROWDED_SECONDS;
        let mut ended = if is_crowded { self.end_sessions(0, is_old) } else { Vec::new() };
        ended.extend(self.end_sessions(most, |_| true));
        ended
    }

    /// Ends as many that are left and are meant as there are more than `most`: of addresses with many first, then those
    /// whose clients have never come back, then those that have been left longest.
    fn end_sessions(&self, most: usize, is_meant: impl Fn(SessionLull) -> bool) -> Vec<IpAddr> {
        let sessions = self.http_sessions().into_iter();
        let mut left: Vec<(SessionLull, Rc<Connection>)> =
            sessions.filter_map(|one| Some((one.lull()?, one))).collect();
        let surplus = left.len().saturating_sub(most);
        self.left_sessions.most.set(left.len());
        left.retain(|(lull, _)| is_meant(*lull));
        let surplus = surplus.min(left.len());
        if surplus == 0 {
            return Vec::new();
        }
        let mut crowds = HashMap::<IpAddr, u32>::new();
        for (_, one) in &left {
            *crowds.entry(counted_address(one.address)).or_default() += 1;
        }
        left.sort_by_cached_key(|(lull, one)| {
            // By powers of two: addresses with about as many are treated alike.
            let crowd = crowds.get(&counted_address(one.address)).map_or(0, |many| many.ilog2());
            let since = if lull.since == 0 { u32::MAX } else { lull.since };
            (Reverse(crowd), lull.has_returned, since, one.id.number)
        });
        self.left_sessions.most.set(self.left_sessions.most.get() - surplus);
        let ended = left.iter().take(surplus);
        ended.map(|(_, one)| (one.abort(), one.address).1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_of_the_places_is_for_sessions_that_are_left() {
        assert_eq!([most_left(3_896, 2), most_left(100, 4), most_left(0, 1)], [243, 64, 16_384]);
    }
}
