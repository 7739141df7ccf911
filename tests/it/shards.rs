//! A Redis Cluster whose slots move, and whose masters are replaced.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::cluster::{
    added, event, eventually_answers, hears_nothing, joined, nodes, notice, removed,
};
use crate::outage::is_cut_off;
use crate::support::fixture::{Fixture, ID};
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::websocket::Client;
use crate::support::{Chance, eventually};

fn links_made(node: &Fixture) -> u64 {
    let cluster = node.running().shared().scope.others().unwrap();
    cluster.link().figures().connects.load(Ordering::Relaxed)
}

/// Events on one channel; no more than its log holds.
const EVENTS: usize = 250;

/// The tag of a channel's keys and topic.
fn tag(channel: &str) -> String {
    format!("{{{ID}/{channel}}}")
}

/// A presence channel that the last master keeps.
fn kept_by_the_last(shards: &Shards) -> String {
    let last = shards.masters.len() - 1;
    let names = (0..).map(|number| format!("presence-{number}"));
    names.into_iter().find(|name| shards.place(&tag(name)).1 == last).unwrap()
}

#[test]
fn what_is_said_while_a_slot_moves_arrives_once_and_in_order() {
    let Some(shards) = Shards::shared() else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let channel = "presence-that-moves";
    let (mut a, _) = joined(&one, channel, "a");
    let (slot, first) = shards.place(&tag(channel));
    let numbers = 0..300;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in numbers.clone() {
                two.publish(channel, "e", &number.to_string());
            }
        });
        for step in 0..5 {
            shards.move_slot(&slot, (first + step) % 3, (first + step + 1) % 3);
        }
    });
    for number in numbers {
        assert_eq!(a.hear_text(), event(channel, &number.to_string()));
    }
    let (b, ids) = joined(&two, channel, "b");
    assert_eq!(ids, json!(["a", "b"]));
    assert_eq!(notice(&mut a), added("b"));
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    hears_nothing(&mut a);
    // Nothing of it was an outage.
    assert_eq!((links_made(&one), links_made(&two)), (1, 1));
}

fn takes_over(replica: &Redis) {
    eventually(|| match replica.ask(&["ROLE"]) {
        role if role.starts_with("master") => Ok(()),
        role => Err(role),
    })
    .unwrap();
}

fn goes_on(channel: &str, one: &Fixture, two: &Fixture) {
    let (mut c, _) = joined(one, channel, "c");
    let (d, _) = joined(two, channel, "d");
    assert_eq!(notice(&mut c), added("d"));
    two.publish(channel, "e", "1");
    assert_eq!(c.hear_text(), event(channel, "1"));
    drop(d);
    assert_eq!(notice(&mut c), removed("d"));
    drop(c);
    eventually_answers(two, "channels", &json!({ "channels": {} }));
}

#[test]
fn a_replica_that_takes_over_is_followed() {
    let Some(mut shards) = Shards::start(3, true) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let channel = kept_by_the_last(&shards);
    let (mut a, _) = joined(&one, &channel, "a");
    let (b, _) = joined(&two, &channel, "b");
    assert_eq!(notice(&mut a), added("b"));
    // As it is told to: the link stays.
    let (mut replica, master) = (shards.replica.take().unwrap(), &shards.masters[2]);
    assert_eq!(replica.ask(&["CLUSTER", "FAILOVER"]), "OK");
    takes_over(&replica);
    two.publish(&channel, "e", "0");
    assert_eq!(a.hear_text(), event(&channel, "0"));
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    let (mut c, _) = joined(&one, &channel, "c");
    assert_eq!(notice(&mut a), added("c"));
    hears_nothing(&mut c);
    drop(c);
    assert_eq!(notice(&mut a), removed("c"));
    assert!(replica.ask(&["KEYS", "*"]).contains(&tag(&channel)));
    assert_eq!((links_made(&one), links_made(&two)), (1, 1));
    // The other way round, because its master has died.
    master.follows_its_master();
    let (b, _) = joined(&two, &channel, "b");
    assert_eq!(notice(&mut a), added("b"));
    replica.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    one.publish(&channel, "e", "1");
    assert_eq!(a.hear_text(), event(&channel, "1"));
    takes_over(master);
    one.is_ready();
    two.is_ready();
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    hears_nothing(&mut a);
    drop(a);
    eventually_answers(&two, "channels", &json!({ "channels": {} }));
    goes_on(&channel, &one, &two);
}

#[test]
fn a_master_that_comes_back_empty_is_told_everything_again() {
    let Some(mut shards) = Shards::start(3, false) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let channel = kept_by_the_last(&shards);
    let (mut a, _) = joined(&one, &channel, "a");
    let (mut b, _) = joined(&two, &channel, "b");
    assert_eq!(notice(&mut a), added("b"));
    shards.masters[2].kill();
    is_cut_off(&one);
    is_cut_off(&two);
    shards.masters[2].restart();
    one.is_ready();
    two.is_ready();
    // Who came back first did not take the other's user for gone.
    let (c, ids) = joined(&two, &channel, "c");
    assert_eq!(ids, json!(["a", "b", "c"]));
    drop(c);
    for client in [&mut a, &mut b] {
        assert_eq!(notice(client), added("c"));
        assert_eq!(notice(client), removed("c"));
        hears_nothing(client);
    }
}

#[test]
fn nothing_is_lost_or_doubled_while_slots_and_connections_come_and_go() {
    let Some(shards) = Shards::start(3, false) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let channels = ["a", "b", "c", "cache-d", "cache-e", "presence-f"];
    let mut clients: Vec<Vec<Client>> = Vec::new();
    for (node, user) in [(&one, "one"), (&two, "two")] {
        clients.push(channels.map(|channel| listener(node, channel, user)).into());
    }
    // The one on the first node hears of that on the second.
    assert_eq!(notice(&mut clients[0][5]), added("two"));
    let mut owners = channels.map(|channel| shards.place(&tag(channel)));
    let mut chance = Chance::new("slots and connections that come and go");
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for number in 0..EVENTS {
                for channel in channels {
                    two.publish(channel, "e", &number.to_string());
                }
            }
        });
        while !publishing.is_finished() {
            let (slot, owner) = &mut owners[chance.below(channels.len())];
            let to = (*owner + 1 + chance.below(2)) % 3;
            shards.move_slot(slot, *owner, to);
            *owner = to;
            if chance.below(3) == 0 {
                let kind = ["pubsub", "normal"][chance.below(2)];
                shards.masters[chance.below(3)].ask(&["CLIENT", "KILL", "TYPE", kind]);
                one.is_ready();
                two.is_ready();
            }
        }
    });
    for client in &mut clients {
        for (channel, client) in channels.iter().zip(client) {
            for number in 0..EVENTS {
                assert_eq!(client.hear_text(), event(channel, &number.to_string()));
            }
            hears_nothing(client);
        }
    }
}

/// A client that listens to one channel, as `user` where it has to be somebody.
fn listener(node: &Fixture, channel: &str, user: &str) -> Client {
    if channel.starts_with("presence-") {
        return joined(node, channel, user).0;
    }
    let mut client = node.subscribed(channel);
    if channel.starts_with("cache-") {
        assert!(client.hear_text().contains("cache_miss"));
    }
    client
}
