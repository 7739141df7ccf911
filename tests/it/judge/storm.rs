//! The doings of people and backends, all the time and at random: tabs that open, close, drop, join and leave,
//! events, whispers, users who are thrown out.

use std::time::Duration;

use super::backend::Job;
use super::truth::is_counted;
use super::world::{CHANNELS, TABS, USERS, World};
use crate::support::Chance;

/// The pause between two actions, at most.
const PAUSE_MS: usize = 40;
/// Tabs that are open in the beginning, and channels of each.
const OPEN: usize = 18;
const EACH: usize = 4;

/// Opens tabs and lets them subscribe.
pub fn rise(world: &World, chance: &mut Chance) {
    for (number, tab) in world.tabs.iter().enumerate() {
        for _ in 0..EACH {
            let channel = CHANNELS[chance.below(CHANNELS.len())];
            if !tab.sight().wants.contains(channel) {
                tab.toggle(channel);
            }
        }
        if number < OPEN {
            tab.open(watchlist(chance, &tab.user));
        }
    }
}

/// Most tabs are open again.
pub fn refill(world: &World, chance: &mut Chance) {
    let closed = world.tabs.iter().filter(|tab| !tab.is_open());
    for tab in closed.skip(TABS - OPEN) {
        tab.open(watchlist(chance, &tab.user));
    }
}

/// One thing happens, and then nothing for a moment.
pub fn act(world: &World, chance: &mut Chance) {
    let tab = &world.tabs[chance.below(world.tabs.len())];
    let channel = CHANNELS[chance.below(CHANNELS.len())];
    match chance.below(100) {
        0..30 if tab.is_open() => {
            // Nobody wants them all.
            let wants = tab.sight().wants;
            if wants.contains(channel) || wants.len() < 2 * EACH {
                tab.toggle(channel);
            }
        }
        30..36 if tab.is_open() => tab.drop_connection(chance.below(2) == 0),
        36..41 if tab.is_open() => tab.close(chance.below(2) == 0),
        36..46 if !tab.is_open() => tab.open(watchlist(chance, &tab.user)),
        46..56 if channel.starts_with("pr") => tab.whisper(channel),
        56..58 => {
            let user = (chance.below(USERS) + 1).to_string();
            world.order(chance, Job::Terminate { user });
        }
        58..62 => {
            let channel = channel.to_owned();
            let count = 2 + chance.below(3);
            world.order(chance, Job::Batch { channel, count });
        }
        62..66 => {
            let user = chance.below(USERS) + 1;
            publish(world, chance, vec![format!("#server-to-user-{user}")], None);
        }
        66..70 => {
            let other = CHANNELS[chance.below(CHANNELS.len())];
            let can = channel != other && !encrypted(channel) && !encrypted(other);
            if can {
                publish(world, chance, vec![channel.to_owned(), other.to_owned()], None);
            }
        }
        70..73 => publish(world, chance, vec![channel.to_owned()], Some(tab.number)),
        73..100 => publish(world, chance, vec![channel.to_owned()], None),
        _ => {}
    }
    std::thread::park_timeout(Duration::from_millis(chance.below(PAUSE_MS) as u64));
}

fn publish(world: &World, chance: &mut Chance, channels: Vec<String>, except: Option<usize>) {
    world.order(chance, Job::Publish { channels, except });
}

/// Of encrypted channels an event may go to one alone.
fn encrypted(channel: &str) -> bool {
    !is_counted(channel) && channel.starts_with("private-")
}

/// Most sign in, and watch some others.
fn watchlist(chance: &mut Chance, own: &str) -> Option<Vec<String>> {
    (chance.below(3) > 0).then(|| {
        let first = chance.below(USERS);
        let some = (0..3).map(|more| ((first + more * 2) % USERS + 1).to_string());
        some.filter(|user| user != own).collect()
    })
}
