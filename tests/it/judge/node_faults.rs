//! Faults of nodes, of their ways to Redis, and of all clients at once.

use std::time::{Duration, Instant};

use super::proxy::Direction;
use super::world::{STOP, World, last};
use crate::support::Chance;

pub fn cut(world: &World, chance: &mut Chance) {
    let proxy = world.proxy(world.any_node(chance));
    proxy.cut();
    last(world.lease / 3);
    proxy.mend();
}

pub fn cut_long(world: &World, chance: &mut Chance) {
    let proxy = world.proxy(world.any_node(chance));
    proxy.cut();
    last(world.lease * 2);
    proxy.mend();
}

pub fn cut_all(world: &World, chance: &mut Chance) {
    let proxies = world.proxies();
    proxies.iter().for_each(|proxy| proxy.cut());
    last(world.lease * (1 + chance.below(5) as u32) / 3);
    proxies.iter().for_each(|proxy| proxy.mend());
}

pub fn reset(world: &World, chance: &mut Chance) {
    for _ in 0..3 {
        world.proxy(world.any_node(chance)).reset();
        last(Duration::from_millis(chance.below(500) as u64));
    }
}

pub fn stall_to_redis(world: &World, chance: &mut Chance) {
    stall(world, chance, Direction::ToRedis);
}

pub fn stall_from_redis(world: &World, chance: &mut Chance) {
    stall(world, chance, Direction::FromRedis);
}

fn stall(world: &World, chance: &mut Chance, direction: Direction) {
    let proxy = world.proxy(world.any_node(chance));
    proxy.stall(direction);
    last(world.lease * (1 + chance.below(5) as u32) / 3);
    proxy.mend();
}

pub fn delay(world: &World, chance: &mut Chance) {
    let proxies = world.proxies();
    for proxy in &proxies {
        proxy.delay(Duration::from_millis(50 + chance.below(200) as u64));
    }
    last(world.lease / 2);
    proxies.iter().for_each(|proxy| proxy.mend());
}

/// What the node has said comes when it has long given up its connection and made another.
pub fn hold(world: &World, chance: &mut Chance) {
    let proxy = world.proxy(world.any_node(chance));
    proxy.hold();
    last(world.lease * 3 / 2);
    proxy.mend();
}

pub fn sleep(world: &World, chance: &mut Chance) {
    let key = world.any_node(chance);
    world.put_to_sleep(key);
    last(world.lease / 2);
    world.wake(key);
}

pub fn sleep_long(world: &World, chance: &mut Chance) {
    let key = world.any_node(chance);
    world.put_to_sleep(key);
    last(world.lease * 5 / 2);
    world.wake(key);
}

pub fn kill(world: &World, chance: &mut Chance) {
    world.kill_node(world.any_node(chance));
}

pub fn add(world: &World, _: &mut Chance) {
    world.is_up(world.add_node());
}

pub fn restart_all(world: &World, _: &mut Chance) {
    for key in world.keys() {
        world.stop_node(key, STOP);
        world.is_up(world.add_node());
    }
}

pub fn stop_without_redis(world: &World, chance: &mut Chance) {
    let begun = Instant::now();
    world.with_redis(|redis| redis.signal("STOP"));
    // It may not have noticed yet, or be trying to connect again.
    last(world.lease * chance.below(5) as u32 / 2);
    let key = world.any_node(chance);
    world.stop_node(key, STOP);
    // What it could not tell Redis any more goes with it.
    world.ledger.excuse(&key.to_string(), begun);
    world.with_redis(|redis| redis.signal("CONT"));
}

/// Nobody is left but those who come back in the last moment: everything that anybody held is to go.
pub fn leave(world: &World, chance: &mut Chance) {
    last(Duration::from_millis(500));
    world.tabs.iter().for_each(|tab| tab.close(chance.below(2) == 0));
}

/// Half a minute and more; not so much that a receiver of webhooks would not believe it.
fn step_clock(world: &World, chance: &mut Chance, seconds: i64) {
    let key = world.any_node(chance);
    world.step_clock(key, seconds);
    last(world.lease);
    world.step_clock(key, 0);
    last(world.lease / 2);
}

pub fn clock_forward(world: &World, chance: &mut Chance) {
    step_clock(world, chance, 50);
}

pub fn clock_back(world: &World, chance: &mut Chance) {
    step_clock(world, chance, -50);
}
