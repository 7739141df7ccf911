//! How often a connection may leave one presence channel and join it again. Each time all members are notified, so
//! endless rejoining would cost them time. Channels count separately: a page that is left for another may leave and
//! join hundreds at once.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;

use crate::protocol::channel::ChannelName;

/// Times that a presence channel may be left in a second and joined again; then the next join waits.
const MAX_REJOINS: u8 = 100;

/// Presence channels that a connection left in this second. Uses no memory while it is empty.
#[derive(Default)]
pub struct Rejoins(Cell<Option<Box<Departures>>>);

impl fmt::Debug for Rejoins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rejoins(…)")
    }
}

/// How often channels were left in one second.
#[derive(Debug, Default)]
struct Departures {
    /// Of the worker's clock.
    second: u32,
    /// How often in that second, by channel.
    times: HashMap<ChannelName, u8>,
}

impl Rejoins {
    /// Notes that it left a presence channel at second `now`.
    pub fn note_leave(&self, name: &ChannelName, now: u32) {
        // Most connections never leave a presence channel, so the list is made at the first leave.
        let mut departures = self.0.take().unwrap_or_default();
        if departures.second != now {
            departures.second = now;
            departures.times.clear();
        }
        let times = departures.times.entry(name.clone()).or_default();
        *times = times.saturating_add(1);
        self.0.set(Some(departures));
    }

    /// Whether joining that channel must wait for the next second.
    pub fn must_wait(&self, name: &str, now: u32) -> bool {
        let Some(departures) = self.0.take() else { return false };
        let must_wait = departures.second == now
            && departures.times.get(name).is_some_and(|times| *times >= MAX_REJOINS);
        self.0.set(Some(departures));
        must_wait
    }

    /// Frees what past seconds have left.
    pub fn forget_past(&self, now: u32) {
        self.0.set(self.0.take().filter(|departures| departures.second >= now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_own_count_a_second() {
        let name = |text: &str| ChannelName::parse(text, 200).unwrap();
        let rejoins = Rejoins::default();
        for number in 0..1000 {
            rejoins.note_leave(&name(&format!("presence-{number}")), 7);
        }
        (1..MAX_REJOINS).for_each(|_| rejoins.note_leave(&name("presence-1"), 7));
        assert!(rejoins.must_wait("presence-1", 7));
        assert!(!rejoins.must_wait("presence-2", 7) && !rejoins.must_wait("presence-1", 8));
        rejoins.forget_past(7);
        assert!(rejoins.must_wait("presence-1", 7));
        rejoins.note_leave(&name("presence-2"), 8);
        assert!(!rejoins.must_wait("presence-1", 8));
        rejoins.forget_past(9);
        assert!(rejoins.0.take().is_none(), "nothing is kept");
    }
}
