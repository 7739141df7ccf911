//! The faults by name: over which kinds of Redis they can happen, what does it, and what they may cost. Their work
//! on nodes and their links is in `node_faults.rs`, that on Redis in `redis_faults.rs`.

use super::verdict::Kind;
use super::world::Kinds::{self, Sharded, Single, Watched};
use super::world::World;
use super::{cluster_faults, forger, node_faults, redis_faults};
use crate::support::Chance;

pub struct Fault {
    pub name: &'static str,
    kinds: &'static [Kinds],
    /// Begins it, waits, and ends it: when this returns, all is as it should be but for what nodes know.
    pub inflict: fn(&World, &mut Chance),
    /// What may be wrong afterwards, since nobody can know it any more.
    pub costs: &'static [Kind],
}

const ALL: &[Kinds] = &[Single, Watched, Sharded];
const ONE: &[Kinds] = &[Single];

/// Redis lost its data, and with it the logs of channels, kept events, and client events that were not
/// yet posted to webhooks.
const DATA: &[Kind] = &[Kind::Lost, Kind::Cache, Kind::WebhookEvent];

pub const FAULTS: &[Fault] = &[
    free("none", ALL, |_, _| super::world::last(std::time::Duration::from_secs(1))),
    free("everybody leaves", ALL, node_faults::leave),
    free("command links killed", ALL, redis_faults::kill_command_links),
    free("topic links killed", ALL, redis_faults::kill_topic_links),
    free("one node's links killed", ONE, redis_faults::kill_links_of_one),
    free("link cut", ONE, node_faults::cut),
    free("link cut for longer than a lease", ONE, node_faults::cut_long),
    free("all links cut", ONE, node_faults::cut_all),
    free("link reset", ONE, node_faults::reset),
    free("nothing gets to Redis", ONE, node_faults::stall_to_redis),
    free("nothing comes from Redis", ONE, node_faults::stall_from_redis),
    free("latency of 50 to 250 ms", ONE, node_faults::delay),
    free("bytes of old links come late", ONE, node_faults::hold),
    free("node asleep", ALL, node_faults::sleep),
    free("node asleep for longer than a lease", ALL, node_faults::sleep_long),
    free("node killed", ALL, node_faults::kill),
    free("node added", ALL, node_faults::add),
    free("rolling restart", ALL, node_faults::restart_all),
    free("node stopped while Redis hangs", ONE, node_faults::stop_without_redis),
    free("node's clock put forward 50 s and back", ALL, node_faults::clock_forward),
    free("node's clock put back 50 s and forward", ALL, node_faults::clock_back),
    free("Redis asleep", ONE, redis_faults::sleep),
    free("Redis asleep for longer than a lease", ONE, redis_faults::sleep_long),
    free("Redis killed, data kept", ONE, redis_faults::kill_with_data),
    costly("Redis killed, data lost", ONE, redis_faults::kill_without_data, DATA),
    costly("FLUSHALL", ONE, redis_faults::flush, DATA),
    free("NOREPLICAS", ONE, redis_faults::want_replicas),
    free("BUSY", ONE, redis_faults::busy),
    free("OOM", ONE, redis_faults::full),
    free("READONLY", ONE, redis_faults::read_only),
    free("NOPERM inside scripts", ONE, redis_faults::forbid),
    free("SCRIPT FLUSH", ALL, redis_faults::flush_scripts),
    free("CLIENT PAUSE", ONE, redis_faults::pause),
    free("Redis's clock put forward 60 s", ONE, redis_faults::clock_forward),
    free("Redis's clock put back 60 s", ONE, redis_faults::clock_back),
    free("envelopes corrupted", ONE, forger::corrupt),
    free("envelopes repeated", ONE, forger::repeat),
    free("failover by Sentinel, planned", &[Watched], cluster_faults::fail_over),
    free("master killed, Sentinel", &[Watched], cluster_faults::kill_watched),
    free("master asleep, Sentinel", &[Watched], cluster_faults::sleep_watched),
    free("slots moved", &[Sharded], cluster_faults::move_slots),
    free("replica takes over as told", &[Sharded], cluster_faults::take_over),
    free("master killed, with replica", &[Sharded], cluster_faults::kill_replicated),
    costly("master lost with its data", &[Sharded], cluster_faults::lose_master, DATA),
    free("master asleep", &[Sharded], cluster_faults::sleep_master),
];

const fn free(
    name: &'static str,
    kinds: &'static [Kinds],
    inflict: fn(&World, &mut Chance),
) -> Fault {
    Fault { name, kinds, inflict, costs: &[] }
}

const fn costly(
    name: &'static str,
    kinds: &'static [Kinds],
    inflict: fn(&World, &mut Chance),
    costs: &'static [Kind],
) -> Fault {
    Fault { name, kinds, inflict, costs }
}

impl Fault {
    /// Whether it can happen to this world.
    pub fn can_happen(&self, world: &World) -> bool {
        let is_clock = self.name.contains("clock");
        self.kinds.contains(&world.kind) && (!is_clock || world.has_clocks())
    }

    /// Whether it leaves Redis with another time than the machine's.
    pub fn leaves_clock(&self) -> bool {
        self.name.starts_with("Redis's clock")
    }
}
