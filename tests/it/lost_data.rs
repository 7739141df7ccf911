//! Redis loses all its data, and with it what it knew of webhooks. In the end they have told what is so all the same.
//! The judge loses data at random; here are the ways in which that went wrong.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::config::ClusterConfig;
use serde_json::Value;

use crate::cluster::{joined, node};
use crate::support::cut::Way;
use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::fixture::Fixture;
use crate::support::http::await_readiness;
use crate::support::redis::Redis;
use crate::support::websocket::Client;

const CHANNEL: &str = "presence-a";

/// Two nodes, each with its own way to Redis.
struct World {
    redis: Redis,
    ways: [Way; 2],
    nodes: [Fixture; 2],
    endpoint: Endpoint,
    /// The last word on each channel and member, and on how many subscribers a channel has.
    told: BTreeMap<String, bool>,
    counts: BTreeMap<String, u64>,
}

impl World {
    fn start(lease: Duration) -> Option<Self> {
        let redis = Redis::start()?;
        let endpoint = Endpoint::start();
        let ways = [(); 2].map(|()| Way::to(redis.port(), |_| 0));
        let cluster = ClusterConfig { lease, ..redis.cluster() };
        let nodes = [0, 1].map(|at: usize| {
            let redis = vec![format!("redis://127.0.0.1:{}", ways[at].port())];
            node(&ClusterConfig { redis, ..cluster.clone() }, |app| {
                app.features.subscription_count = true;
                app.webhooks = vec![endpoint.webhook()];
            })
        });
        nodes.iter().for_each(Fixture::is_ready);
        let (told, counts) = Default::default();
        Some(Self { redis, ways, nodes, endpoint, told, counts })
    }

    fn hear(&mut self) {
        while let Ok(post) = self.endpoint.posts.try_recv() {
            for event in post.events() {
                println!("told {event}");
                self.note(&event);
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        if text("name") == "subscription_count" {
            let count = event["subscription_count"].as_u64().unwrap();
            self.counts.insert(text("channel").to_owned(), count);
            return;
        }
        let is = ["channel_occupied", "member_added"].contains(&text("name"));
        self.told.insert(format!("{} {}", text("channel"), text("user_id")).trim().to_owned(), is);
    }

    /// The last word on a channel or member becomes that.
    fn is_told(&mut self, whom: &str, is: bool) {
        println!("awaited: {whom} {is}");
        eventually(|| {
            self.hear();
            if self.told.get(whom) == Some(&is) { Ok(()) } else { Err(format!("{:?}", self.told)) }
        })
        .unwrap();
    }

    fn is_told_count(&mut self, channel: &str, count: u64) {
        eventually(|| {
            self.hear();
            match self.counts.get(channel) {
                Some(told) if *told == count => Ok(()),
                told => Err(format!("{told:?} instead of {count}")),
            }
        })
        .unwrap();
    }

    fn are_ready(&self) {
        self.nodes.iter().for_each(Fixture::is_ready);
    }
}

fn leave(client: &mut Client, channel: &str) {
    let text = format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":"{channel}"}}}}"#);
    client.send_text(&text);
}

#[test]
fn who_was_told_to_have_left_with_a_silent_node_was_never_told_to_be_there_again() {
    let Some(mut world) = World::start(Duration::from_secs(4)) else { return };
    let _x = joined(&world.nodes[0], CHANNEL, "x");
    world.is_told("presence-a x", true);
    world.ways[0].cut();
    world.is_told("presence-a x", false);
    world.is_told(CHANNEL, false);
    world.redis.ask(&["FLUSHALL"]);
    world.ways[0].mend();
    world.is_told("presence-a x", true);
    world.is_told(CHANNEL, true);
}

#[test]
fn who_left_while_redis_could_not_be_reached_and_lost_its_data_stayed() {
    let Some(mut world) = World::start(Duration::from_secs(4)) else { return };
    let (mut x, _) = joined(&world.nodes[0], CHANNEL, "x");
    let (mut y, _) = joined(&world.nodes[1], CHANNEL, "y");
    let _stays = world.nodes[1].subscribed("room");
    for whom in ["presence-a x", "presence-a y", "room"] {
        world.is_told(whom, true);
    }
    world.ways.iter().for_each(Way::cut);
    world.nodes.iter().for_each(|node| await_readiness(node.addr, 503));
    leave(&mut x, CHANNEL);
    leave(&mut y, CHANNEL);
    world.redis.ask(&["FLUSHALL"]);
    world.ways.iter().for_each(Way::mend);
    world.is_told("presence-a x", false);
    world.is_told("presence-a y", false);
    world.is_told(CHANNEL, false);
    assert!(world.told["room"]);
}

#[test]
fn who_came_just_before_redis_lost_its_data_was_never_told() {
    let Some(mut world) = World::start(Duration::from_secs(4)) else { return };
    let _y = joined(&world.nodes[1], CHANNEL, "y");
    world.is_told("presence-a y", true);
    // What was read and not taken is lost with the log.
    world.endpoint.usual.store(503, Ordering::SeqCst);
    let _x = joined(&world.nodes[0], CHANNEL, "x");
    world.is_told("presence-a x", true);
    world.redis.ask(&["FLUSHALL"]);
    await_readiness(world.nodes[0].addr, 503);
    await_readiness(world.nodes[1].addr, 503);
    world.endpoint.usual.store(200, Ordering::SeqCst);
    world.hear();
    world.told.clear();
    world.is_told("presence-a x", true);
}

#[test]
fn whom_another_node_holds_was_told_to_have_left_before_that_had_said_so_again() {
    let Some(mut world) = World::start(Duration::from_secs(15)) else { return };
    let (mut one, _) = joined(&world.nodes[0], CHANNEL, "x");
    let _other = joined(&world.nodes[1], CHANNEL, "x");
    let rooms = [0, 1].map(|at: usize| world.nodes[at].subscribed("room"));
    world.is_told("presence-a x", true);
    world.is_told_count("room", 2);
    world.ways[1].cut();
    world.redis.ask(&["FLUSHALL"]);
    leave(&mut one, CHANNEL);
    let third = world.nodes[0].subscribed("room");
    // Wrong, for the other node is not back.
    world.is_told_count("room", 2);
    world.is_told("presence-a x", false);
    world.ways[1].mend();
    world.are_ready();
    world.is_told("presence-a x", true);
    world.is_told_count("room", 3);
    drop((rooms, third));
}
