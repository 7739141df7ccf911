//! How often a connection may leave one presence channel and join it again. Each time all who are present are told,
//! so that one that comes and goes without end would cost all of them their time. Different channels do not add
//! up: a page that is left for another may leave and join hundreds at once.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::protocol::channel::ChannelName;

/// Times that a presence channel may be left in a second and joined again; then the next join waits.
const MAX_REJOINS: u8 = 100;

/// What one connection has left in the present second. Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct Rejoins(RefCell<Option<Box<Departures>>>);

#[derive(Debug, Default)]
struct Departures {
    /// Of the worker's clock.
    second: u32,
    times: HashMap<ChannelName, u8>,
}

impl Rejoins {
    /// Notes that it left a presence channel at second `now`.
    pub fn note_leave(&self, name: &ChannelName, now: u32) {
        let mut departures = self.0.borrow_mut();
        let departures = departures.get_or_insert_default();
        if departures.second != now {
            departures.second = now;
            departures.times.clear();
        }
        let times = departures.times.entry(name.clone()).or_default();
        *times = times.saturating_add(1);
    }

    /// Whether joining that channel must wait for the next second.
    pub fn must_wait(&self, name: &str, now: u32) -> bool {
        let departures = self.0.borrow();
        departures.as_ref().is_some_and(|departures| {
            departures.second == now
                && departures.times.get(name).is_some_and(|times| *times >= MAX_REJOINS)
        })
    }

    /// Frees what past seconds have left.
    pub fn forget(&self, now: u32) {
        let mut departures = self.0.borrow_mut();
        if departures.as_ref().is_some_and(|departures| departures.second < now) {
            *departures = None;
        }
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
        rejoins.forget(7);
        assert!(rejoins.must_wait("presence-1", 7));
        rejoins.note_leave(&name("presence-2"), 8);
        assert!(!rejoins.must_wait("presence-1", 8));
        rejoins.forget(9);
        assert!(rejoins.0.borrow().is_none(), "nothing is kept");
    }
}
