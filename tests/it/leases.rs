//! A node holds each thing in Redis once, under whichever of its leases it said so: while slots of a Redis Cluster
//! are on the move, and when a server takes over that has not heard of what was cleared.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster::{eventually_answers, joined, node, nodes};
use crate::support::child::Child;
use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, subscribe};
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::websocket::Client;

fn leave(client: &mut Client, channel: &str) {
    let data = json!({ "channel": channel });
    client.send_text(&json!({ "event": "pusher:unsubscribe", "data": data }).to_string());
}

fn all_masters(shards: &Shards, command: &[&str]) -> String {
    let answers = shards.masters.iter().map(|redis| redis.ask(command));
    answers.collect::<Vec<_>>().join("\n")
}

/// Every lease that there is.
fn leases(shards: &Shards) -> Vec<String> {
    let mut leases = Vec::new();
    for redis in &shards.masters {
        for key in redis.ask(&["KEYS", "*:fence:*"]).lines() {
            let fields = redis.ask(&["HKEYS", key]);
            let is_lease = |field: &&str| field.len() == 16;
            leases.extend(fields.lines().filter(is_lease).map(|id| format!("{key} {id}")));
        }
    }
    leases.sort();
    leases
}

/// Waits until nothing is left of what nodes held.
fn nothing_is_held(shards: &Shards) {
    let held = eventually(|| {
        let keys = all_masters(shards, &["KEYS", "*"]);
        let is_held = |key: &&str| {
            let ends = ["}:m", "}:r", "}:k", "}:t", "}:o"];
            ends.iter().any(|end| key.ends_with(end))
                || key.contains("}:h:")
                || key.contains("}:n:")
        };
        match keys.lines().filter(is_held).collect::<Vec<_>>() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
    assert_eq!(held, Ok(()));
}

#[test]
fn a_script_that_deletes_keys_is_not_run_halfway_while_their_slot_moves() {
    let Some(shards) = Shards::start(3, false) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let channel = "presence-x";
    let (mut a, _) = joined(&one, channel, "a");
    let (_other, _) = joined(&two, "presence-y", "b");
    eventually_answers(&two, "channels/presence-x", &json!({ "occupied": true }));
    let before = leases(&shards);
    let (slot, home) = shards.place(&format!("{{{ID}/{channel}}}"));
    let away = (home + 1) % shards.masters.len();
    shards.begin_move(&slot, home, away);
    leave(&mut a, channel);
    let refused = eventually(|| match all_masters(&shards, &["INFO", "errorstats"]) {
        errors if errors.contains("errorstat_TRYAGAIN") => Ok(()),
        errors => Err(errors),
    });
    assert_eq!(refused, Ok(()), "nothing of it is done before the slot has moved");
    shards.move_slot(&slot, home, away);
    eventually_answers(&two, "channels/presence-x", &json!({ "occupied": false }));
    eventually_answers(&one, "channels/presence-x/users", &json!({ "users": [] }));
    assert_eq!(leases(&shards), before, "no lease has lost its key");
}

#[test]
fn who_leaves_while_a_slot_is_away_is_gone_when_it_is_back() {
    let Some(shards) = Shards::start(3, false) else { return };
    let endpoint = Endpoint::start();
    let one = node(&shards.cluster(), |app| app.webhooks = vec![endpoint.webhook()]);
    let channel = "presence-x";
    for tag in [format!("{{{ID}/{channel}}}"), format!("{{{ID}}}")] {
        let (slot, home) = shards.place(&tag);
        let away = (home + 1) % shards.masters.len();
        for number in 0..6 {
            let (mut user, _) = joined(&one, channel, &number.to_string());
            eventually_answers(&one, "channels", &json!({ "channels": { channel: {} } }));
            shards.move_slot(&slot, home, away);
            leave(&mut user, channel);
            shards.move_slot(&slot, away, home);
        }
        eventually_answers(&one, "channels", &json!({ "channels": {} }));
        nothing_is_held(&shards);
    }
}

/// Under which node, lease and tag the webhooks are told.
fn office(shards: &Shards, cluster: &ClusterConfig) -> Vec<String> {
    let key = format!("{}:{{{ID}}}:b", cluster.prefix);
    let mut answers = shards.masters.iter().map(|redis| redis.try_ask(&["GET", &key]));
    let office = answers.find_map(Result::ok).unwrap_or_default();
    office.split(' ').take(3).map(str::to_owned).collect()
}

#[test]
fn an_office_under_a_lease_with_another_tag_is_nobody_elses() {
    let Some(shards) = Shards::start(3, false) else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(3), ..shards.cluster() };
    let endpoint = Endpoint::start();
    let (url, redis) = (format!("http://{}/", endpoint.addr), cluster.redis.join(","));
    let owner = Child::start(&[
        ("APPS__0__WEBHOOKS__0__URL", &url),
        ("CLUSTER__REDIS", &redis),
        ("CLUSTER__PREFIX", &cluster.prefix),
        ("CLUSTER__LEASE", "3s"),
    ]);
    let told = |name: &str, channel: &str| json!({ "name": name, "channel": channel });
    let (mut alone, _) = owner.connect();
    subscribe(&mut alone, "alone");
    assert_eq!(endpoint.event(), told("channel_occupied", "alone"));
    let first = office(&shards, &cluster);
    let (slot, home) = shards.place(&format!("{{{}}}", first[2]));
    let away = (home + 1) % shards.masters.len();
    let told_under = |is_meant: &dyn Fn(&[String]) -> bool| {
        let moved = eventually(|| match office(&shards, &cluster) {
            office if office.len() == 3 && is_meant(&office) => Ok(office),
            office => Err(format!("{office:?}, at first {first:?}")),
        });
        moved.unwrap_or_else(|error| panic!("{error}; its node says: {}", owner.log()))
    };
    let is_at_home = |lease: &[String]| shards.place(&format!("{{{}}}", lease[2])).1 == home;
    // A link that was slow and is made anew meanwhile takes the first tag again, and one that has said nothing under its
    // first lease while the slot was away keeps that: then it is moved once more.
    let moved = eventually(|| {
        let before = office(&shards, &cluster);
        shards.move_slot(&slot, home, away);
        told_under(&|lease| lease != before);
        shards.move_slot(&slot, away, home);
        let moved = told_under(&|lease| is_at_home(lease));
        if moved[2] == first[2] { Err(format!("{moved:?}, as at first")) } else { Ok(moved) }
    });
    let moved = moved.unwrap();
    assert_eq!(moved[0], first[0]);
    let other = node(&cluster, |app| app.webhooks = vec![endpoint.webhook()]);
    let mut clients = Vec::new();
    for number in 0..6 {
        let channel = format!("c{number}");
        clients.push(other.subscribed(&channel));
        assert_eq!(endpoint.event(), told("channel_occupied", &channel));
        assert_eq!(office(&shards, &cluster)[..2], moved[..2]);
    }
    let figures = other.running().shared().webhooks.figures();
    let sent: u64 = figures.iter().map(|of| of.sent.load(Ordering::Relaxed)).sum();
    assert_eq!(sent, 0, "the other node has the office");
    // When that one dies, the office is not its any more.
    drop(owner);
    // What it had just sent may be sent twice.
    while endpoint.event() != told("channel_vacated", "alone") {}
    clients.push(other.subscribed("last"));
    assert_eq!(endpoint.event(), told("channel_occupied", "last"));
}

#[test]
fn what_was_cleared_and_comes_back_with_older_data_is_cleared_again() {
    let Some(mut redis) = Redis::lasting() else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(300), ..redis.cluster() };
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (_b, _) = joined(&two, "presence-x", "b");
    let path = "channels/presence-x?info=user_count,subscription_count";
    let counted = |count: usize| -> Value {
        json!({ "occupied": true, "user_count": count, "subscription_count": count })
    };
    eventually_answers(&one, path, &counted(2));
    let fence = format!("{}:fence:{{0}}", cluster.prefix);
    let fields = || {
        let mut fields: Vec<String> =
            redis.ask(&["HKEYS", &fence]).lines().map(str::to_owned).collect();
        fields.retain(|field| !field.starts_with('+') && !field.is_empty());
        fields.sort();
        fields
    };
    let before = fields();
    redis.keep_data();
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let cleared = eventually(|| match fields() {
        now if now.len() == 2 && now.iter().all(|lease| !before.contains(lease)) => Ok(()),
        now => Err(format!("{now:?}, before {before:?}")),
    });
    assert_eq!(cleared, Ok(()), "each has cleared its lease of before");
    leave(&mut a, "presence-x");
    eventually_answers(&one, path, &counted(1));
    redis.kill();
    redis.bring_data_back();
    redis.restart();
    one.is_ready();
    two.is_ready();
    eventually_answers(&one, path, &counted(1));
    eventually_answers(&two, path, &counted(1));
}
