//! Faults of several Redis servers: Sentinels fail over, and the masters of a Redis Cluster change.

use std::time::Duration;

use super::bystanders;
use super::world::{CHANNELS, Store, World, last};
use crate::support::Chance;
use crate::support::fixture::ID;
use crate::support::redis::Redis;
use crate::support::sentinels::Watched;
use crate::support::shards::Shards;

fn with_watched(world: &World, act: impl FnOnce(&mut Watched)) {
    match &mut *world.store() {
        Store::Watched(watched) => act(watched),
        _ => panic!("no Sentinels"),
    }
}

fn with_shards(world: &World, act: impl FnOnce(&mut Shards)) {
    match &mut *world.store() {
        Store::Sharded(shards) => act(shards),
        _ => panic!("no Redis Cluster"),
    }
}

/// Waits until all Sentinels name the replica; it is called the master from then on.
fn change_places(world: &World, watched: &mut Watched) -> bool {
    let port = watched.replica.port();
    let changed = watched.sentinels.iter().all(|sentinel| {
        world.becomes("a Sentinel names the replica", || {
            match sentinel.try_ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"])? {
                named if named.ends_with(&format!("\n{port}")) => Ok(()),
                named => Err(named),
            }
        })
    });
    if changed {
        std::mem::swap(&mut watched.master, &mut watched.replica);
    }
    changed
}

/// Waits until the one follows the other, as far as the Sentinels know, whichever they have come to name.
pub fn is_whole(world: &World, watched: &mut Watched) -> bool {
    world.becomes("the replica follows, and the Sentinels know", || {
        let ask = |sentinel: &Redis, what| sentinel.try_ask(&["SENTINEL", what, "main"]);
        let named = ask(&watched.sentinels[0], "GET-MASTER-ADDR-BY-NAME")?;
        if named.ends_with(&format!("\n{}", watched.replica.port())) {
            std::mem::swap(&mut watched.master, &mut watched.replica);
        }
        let follows = watched.replica.try_ask(&["INFO", "replication"])?;
        let is_seen = |sentinel: &Redis| {
            ask(sentinel, "REPLICAS").is_ok_and(|known| known.contains("\nflags\nslave\n"))
        };
        match follows.contains("master_link_status:up") && watched.sentinels.iter().all(is_seen) {
            true => Ok(()),
            false => Err(follows),
        }
    })
}

pub fn fail_over(world: &World, _: &mut Chance) {
    with_watched(world, |watched| {
        if !is_whole(world, watched) {
            return;
        }
        // It refuses soon after another one.
        let begins = || watched.sentinels[0].try_ask(&["SENTINEL", "FAILOVER", "main"]).map(drop);
        if world.becomes("a failover begins", begins) && change_places(world, watched) {
            watched.replica.follows_its_master();
        }
    });
}

pub fn kill_watched(world: &World, _: &mut Chance) {
    with_watched(world, |watched| {
        if is_whole(world, watched) {
            watched.master.kill();
            if change_places(world, watched) {
                watched.replica.restart();
            }
        }
    });
}

/// It believes to be the master still when it wakes.
pub fn sleep_watched(world: &World, _: &mut Chance) {
    with_watched(world, |watched| {
        if is_whole(world, watched) {
            watched.master.signal("STOP");
            if change_places(world, watched) {
                watched.replica.signal("CONT");
            }
        }
    });
}

pub fn move_slots(world: &World, chance: &mut Chance) {
    for _ in 0..3 {
        let channel = CHANNELS[chance.below(CHANNELS.len())];
        // Of an app's own slot go the counts and what webhooks say is held, and with this id the key of a lease.
        let tag = match chance.below(4) {
            0 => format!("{{{ID}}}"),
            _ => format!("{{{ID}/{channel}}}"),
        };
        with_shards(world, |shards| {
            let (slot, home) = shards.place(&tag);
            let away = (home + 1 + chance.below(2)) % shards.masters.len();
            shards.move_slot(&slot, home, away);
            last(Duration::from_millis(chance.below(300) as u64));
            shards.move_slot(&slot, away, home);
        });
    }
}

fn becomes_master(world: &World, shards: &mut Shards) -> bool {
    let replica = shards.replica.as_mut().unwrap();
    let became = world.becomes("the replica is a master", || match replica.try_ask(&["ROLE"]) {
        Ok(role) if role.starts_with("master") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    if became {
        std::mem::swap(replica, shards.masters.last_mut().unwrap());
    }
    became
}

pub fn take_over(world: &World, _: &mut Chance) {
    with_shards(world, |shards| {
        let replica = shards.replica.as_ref().unwrap();
        replica.follows_its_master();
        assert_eq!(replica.ask(&["CLUSTER", "FAILOVER"]), "OK");
        becomes_master(world, shards);
    });
}

pub fn kill_replicated(world: &World, _: &mut Chance) {
    with_shards(world, |shards| {
        shards.replica.as_ref().unwrap().follows_its_master();
        shards.masters.last_mut().unwrap().kill();
        if becomes_master(world, shards) {
            shards.replica.as_mut().unwrap().restart();
            shards.are_well();
        }
    });
}

/// Of each master but the first a public channel and a presence channel.
fn channels_of_others(shards: &Shards) -> Vec<(String, String)> {
    let kept_by = |master: usize, prefix: &str| {
        let mut names = (0..).map(|number| format!("{prefix}-by-{number}"));
        names.find(|name| shards.place(&format!("{{{ID}/{name}}}")).1 == master).unwrap()
    };
    let others = 1..shards.masters.len();
    others.map(|master| (kept_by(master, "pub"), kept_by(master, "presence"))).collect()
}

/// The first master as nodes name it, and channels that it does not keep.
fn others_than_first(world: &World) -> (String, Vec<(String, String)>) {
    let mut others = Default::default();
    with_shards(world, |shards| {
        others = (format!("127.0.0.1:{}", shards.masters[0].port()), channels_of_others(shards));
    });
    others
}

pub fn lose_master(world: &World, _: &mut Chance) {
    let (first, channels) = others_than_first(world);
    with_shards(world, |shards| shards.masters[0].kill());
    bystanders::all_know(world, &first);
    bystanders::go_on(world, &channels);
    last(world.lease);
    with_shards(world, |shards| {
        shards.masters[0].restart();
        shards.are_well();
    });
}

pub fn sleep_master(world: &World, chance: &mut Chance) {
    let (first, channels) = others_than_first(world);
    let thirds = 1 + chance.below(3) as u32;
    with_shards(world, |shards| shards.masters[0].signal("STOP"));
    last(world.lease * thirds / 3);
    // A shorter sleep may be over before it is noticed.
    if thirds == 3 {
        bystanders::all_know(world, &first);
        bystanders::go_on(world, &channels);
    }
    with_shards(world, |shards| {
        shards.masters[0].signal("CONT");
        shards.are_well();
    });
}
