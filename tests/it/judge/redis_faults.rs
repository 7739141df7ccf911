//! Faults of Redis: it goes, hangs, forgets, refuses, or takes its clock for wrong.

use std::time::Duration;

use super::cluster_faults::is_whole;
use super::world::{Store, World, last};
use crate::support::Chance;
use crate::support::redis::Redis;

/// Each server that nodes speak to, of whatever kind. Sentinels fail over where their own links are killed, so that it is
/// looked which is the master now.
fn each(world: &World, act: impl Fn(&Redis)) {
    match &mut *world.store() {
        Store::Single(redis) => act(redis),
        Store::Watched(watched) => {
            if is_whole(world, watched) {
                act(&watched.master);
            }
        }
        Store::Sharded(shards) => shards.masters.iter().for_each(act),
    }
}

fn kill_links(world: &World, chance: &mut Chance, kind: &str) {
    for _ in 0..3 {
        each(world, |redis| drop(redis.ask(&["CLIENT", "KILL", "TYPE", kind])));
        last(Duration::from_millis(chance.below(500) as u64));
    }
}

pub fn kill_command_links(world: &World, chance: &mut Chance) {
    kill_links(world, chance, "normal");
}

pub fn kill_topic_links(world: &World, chance: &mut Chance) {
    kill_links(world, chance, "pubsub");
}

pub fn kill_links_of_one(world: &World, chance: &mut Chance) {
    let proxy = world.proxy(world.any_node(chance));
    for source in proxy.sources() {
        let source = source.to_string();
        world.with_redis(|redis| drop(redis.ask(&["CLIENT", "KILL", "ADDR", &source])));
        last(Duration::from_millis(chance.below(300) as u64));
    }
}

fn sleep_for(world: &World, time: Duration) {
    world.with_redis(|redis| redis.signal("STOP"));
    last(time);
    world.with_redis(|redis| redis.signal("CONT"));
}

pub fn sleep(world: &World, _: &mut Chance) {
    sleep_for(world, world.lease / 2);
}

pub fn sleep_long(world: &World, _: &mut Chance) {
    sleep_for(world, world.lease * 2);
}

fn kill(world: &World, chance: &mut Chance, keeps: bool) {
    world.with_redis(Redis::kill);
    last(world.lease * chance.below(5) as u32 / 4);
    world.with_redis(|redis| {
        if !keeps {
            redis.lose_data();
        }
        redis.restart();
    });
}

pub fn kill_with_data(world: &World, chance: &mut Chance) {
    kill(world, chance, true);
}

pub fn kill_without_data(world: &World, chance: &mut Chance) {
    kill(world, chance, false);
}

pub fn flush(world: &World, chance: &mut Chance) {
    for _ in 0..=chance.below(2) {
        world.with_redis(|redis| assert_eq!(redis.ask(&["FLUSHALL"]), "OK"));
        last(Duration::from_millis(chance.below(1000) as u64));
    }
}

/// Sets it, waits, and sets it back.
fn change(world: &World, chance: &mut Chance, there: &[&str], back: &[&str]) {
    world.with_redis(|redis| assert_eq!(redis.ask(there), "OK"));
    last(world.lease * (1 + chance.below(5) as u32) / 3);
    world.with_redis(|redis| assert_eq!(redis.ask(back), "OK"));
}

pub fn want_replicas(world: &World, chance: &mut Chance) {
    let set = ["CONFIG", "SET", "min-replicas-to-write"];
    change(world, chance, &[&set[..], &["1"]].concat(), &[&set[..], &["0"]].concat());
}

pub fn full(world: &World, chance: &mut Chance) {
    let set = ["CONFIG", "SET", "maxmemory"];
    change(world, chance, &[&set[..], &["1"]].concat(), &[&set[..], &["0"]].concat());
}

pub fn read_only(world: &World, chance: &mut Chance) {
    // Of a master that is not there.
    change(world, chance, &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]);
}

pub fn forbid(world: &World, chance: &mut Chance) {
    let user = ["ACL", "SETUSER", "default"];
    let there = [&user[..], &["-hset", "-zadd", "-set", "-hincrby", "-xadd"]].concat();
    change(world, chance, &there, &[&user[..], &["+@all"]].concat());
}

pub fn busy(world: &World, chance: &mut Chance) {
    let time = world.lease * (1 + chance.below(4) as u32) / 3;
    let set = ["CONFIG", "SET", "lua-time-limit", "50"];
    world.with_redis(|redis| assert_eq!(redis.ask(&set), "OK"));
    let endless = ["EVAL", "while true do end", "0"];
    std::thread::scope(|scope| {
        let port = world.with_redis(|redis| redis.port());
        scope.spawn(move || drop(crate::support::redis::ask(port, &endless)));
        last(time);
        // It may not have begun yet.
        let killed = || world.with_redis(|redis| redis.try_ask(&["SCRIPT", "KILL"])).map(drop);
        crate::support::eventually(killed).unwrap();
    });
}

pub fn flush_scripts(world: &World, chance: &mut Chance) {
    for _ in 0..3 {
        each(world, |redis| assert_eq!(redis.ask(&["SCRIPT", "FLUSH"]), "OK"));
        last(Duration::from_millis(chance.below(500) as u64));
    }
}

pub fn pause(world: &World, chance: &mut Chance) {
    let time = world.lease * (1 + chance.below(5) as u32) / 3;
    let ms = time.as_millis().to_string();
    let what = ["WRITE", "ALL"][chance.below(2)];
    world.with_redis(|redis| assert_eq!(redis.ask(&["CLIENT", "PAUSE", &ms, what]), "OK"));
    last(time);
}

/// It stays so, and a link is cut while it is.
fn step_clock(world: &World, chance: &mut Chance, seconds: i64) {
    world.with_redis(|redis| redis.clock().expect("it has one").step(seconds));
    last(world.lease);
    super::node_faults::cut(world, chance);
}

pub fn clock_forward(world: &World, chance: &mut Chance) {
    step_clock(world, chance, 60);
}

pub fn clock_back(world: &World, chance: &mut Chance) {
    step_clock(world, chance, -60);
}
