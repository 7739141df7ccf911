//! A Redis Cluster whose slots move, and whose masters are replaced.

use std::ops::Range;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::cluster::{
    added, event, eventually_answers, hears_nothing, joined, nodes, notice, removed,
};
use crate::outage::is_cut_off;
use crate::support::fixture::{Fixture, ID};
use crate::support::http::Http;
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::websocket::Client;
use crate::support::{Chance, eventually};

pub fn links_made(node: &Fixture) -> u64 {
    let cluster = node.running().shared().scope.others().unwrap();
    cluster.link().figures().connects.load(Ordering::Relaxed)
}

/// Events on one channel; no more than its log holds.
const EVENTS: usize = 250;

/// The tag of a channel's keys and topic.
fn tag(channel: &str) -> String {
    format!("{{{ID}/{channel}}}")
}

/// A channel, with this in front of its name, that a master keeps.
pub fn kept_by(shards: &Shards, master: usize, prefix: &str) -> String {
    let names = (0..).map(|number| format!("{prefix}{number}"));
    names.into_iter().find(|name| shards.place(&tag(name)).1 == master).unwrap()
}

/// A presence channel that the last master keeps.
fn kept_by_the_last(shards: &Shards) -> String {
    kept_by(shards, shards.masters.len() - 1, "presence-")
}

/// Waits until a node is ready, and says that this is away of the Redis Cluster.
pub fn says_away(node: &Fixture, away: &[String]) {
    let is = match away {
        [] => json!({ "ready": true }),
        away => json!({ "ready": true, "away": away }),
    };
    eventually(|| {
        let answer = Http::connect(node.addr).ask("GET", "/ready", "", b"");
        match answer.status == 200 && answer.json() == is {
            true => Ok(()),
            false => Err(answer.text().to_owned()),
        }
    })
    .unwrap();
}

pub fn name_of(redis: &Redis) -> String {
    format!("127.0.0.1:{}", redis.port())
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

pub fn takes_over(replica: &Redis) {
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
    one.publish(&channel, "e", "1");
    assert_eq!(a.hear_text(), event(&channel, "1"));
    takes_over(master);
    says_away(&one, &[]);
    says_away(&two, &[]);
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
    let away = [name_of(&shards.masters[2])];
    says_away(&one, &away);
    says_away(&two, &away);
    shards.masters[2].restart();
    says_away(&one, &[]);
    says_away(&two, &[]);
    // Who came back first did not take the other's user for gone.
    let (c, ids) = joined(&two, &channel, "c");
    assert_eq!(ids, json!(["a", "b", "c"]));
    for client in [&mut a, &mut b] {
        assert_eq!(notice(client), added("c"));
    }
    drop(c);
    for client in [&mut a, &mut b] {
        assert_eq!(notice(client), removed("c"));
        hears_nothing(client);
    }
}

/// Events and joins get from node to node on channels of a master.
fn all_goes_on(shards: &Shards, master: usize, one: &Fixture, two: &Fixture) {
    let presence = kept_by(shards, master, "presence-of-it-");
    let public = kept_by(shards, master, "public-of-it-");
    let mut listening = one.subscribed(&public);
    let (mut a, _) = joined(one, &presence, "a");
    let (b, ids) = joined(two, &presence, "b");
    assert_eq!(ids, json!(["a", "b"]));
    assert_eq!(notice(&mut a), added("b"));
    for number in 0..3 {
        two.publish(&public, "e", &number.to_string());
        assert_eq!(listening.hear_text(), event(&public, &number.to_string()));
    }
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
}

#[test]
fn a_master_that_is_lost_costs_only_its_own_channels() {
    let Some(mut shards) = Shards::start(3, false) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let (own, cached) = (kept_by(&shards, 2, "presence-"), kept_by(&shards, 2, "cache-"));
    let (mut a, _) = joined(&one, &own, "a");
    let (b, _) = joined(&two, &own, "b");
    assert_eq!(notice(&mut a), added("b"));
    let mut last = one.subscribed(&cached);
    assert!(last.hear_text().contains("cache_miss"));
    shards.masters[2].kill();
    let away = [name_of(&shards.masters[2])];
    says_away(&one, &away);
    says_away(&two, &away);
    all_goes_on(&shards, 0, &one, &two);
    all_goes_on(&shards, 1, &one, &two);
    // Of its own channels each node goes on with what it knows.
    let (mut c, _) = joined(&one, &own, "c");
    assert_eq!(notice(&mut a), added("c"));
    one.publish(&own, "e", "here");
    assert_eq!(a.hear_text(), event(&own, "here"));
    assert_eq!(c.hear_text(), event(&own, "here"));
    one.publish(&cached, "e", "kept");
    assert_eq!(last.hear_text(), event(&cached, "kept"));
    // What others say waits for it.
    two.publish(&own, "e", "there");
    drop(b);
    says_away(&one, &away);
    shards.masters[2].restart();
    says_away(&one, &[]);
    says_away(&two, &[]);
    // In whichever order.
    let heard = [a.hear_text(), a.hear_text()];
    assert!(heard.contains(&event(&own, "there")), "{heard:?}");
    assert!(heard.iter().any(|text| text.contains("member_removed")), "{heard:?}");
    all_goes_on(&shards, 2, &one, &two);
    hears_nothing(&mut a);
}

/// After 60 large events on a channel of a master, or more, its log has so many.
fn has_log_of(master: &Redis, (prefix, channel): (&str, &str), node: &Fixture, most: Range<usize>) {
    let (log, large) = (format!("{prefix}:{}:l", tag(channel)), "x".repeat(90_000));
    (0..60).for_each(|_| node.publish(channel, "e", &large));
    eventually(|| {
        node.publish(channel, "e", &large);
        match master.ask(&["LLEN", &log]).parse::<usize>().unwrap() {
            entries if most.contains(&entries) => Ok(()),
            entries => Err(format!("{channel}: {entries}")),
        }
    })
    .unwrap();
}

#[test]
fn logs_on_different_masters_share_what_the_app_may_have() {
    let Some(mut shards) = Shards::start(3, false) else { return };
    let cluster = shards.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let large = "x".repeat(90_000);
    (0..40).for_each(|number| one.publish(&format!("pub-{number}"), "e", &large));
    let (_, counting) = shards.place(&format!("{{{ID}}}"));
    let others = [(counting + 1) % 3, (counting + 2) % 3];
    let channels = others.map(|master| (master, kept_by(&shards, master, "pub-of-it-")));
    let alone = kept_by(&shards, others[0], "pub-alone-");
    // Of 41 or 42 logs each may have 1.5 MiB, and a quarter more before it is cut; alone these might have four.
    for (master, channel) in &channels {
        has_log_of(&shards.masters[*master], (&cluster.prefix, channel), &two, 17..23);
    }
    // Without the master that counts them, each node goes by the logs that it has published to since.
    shards.masters[counting].kill();
    says_away(&two, &[name_of(&shards.masters[counting])]);
    has_log_of(&shards.masters[others[0]], (&cluster.prefix, &alone), &two, 46..59);
}

#[test]
fn a_master_that_sleeps_costs_only_its_own_channels() {
    let Some(shards) = Shards::start(3, false) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let own = kept_by(&shards, 2, "presence-");
    let (mut a, _) = joined(&one, &own, "a");
    let (b, _) = joined(&two, &own, "b");
    assert_eq!(notice(&mut a), added("b"));
    shards.masters[2].signal("STOP");
    let away = [name_of(&shards.masters[2])];
    says_away(&one, &away);
    says_away(&two, &away);
    all_goes_on(&shards, 0, &one, &two);
    all_goes_on(&shards, 1, &one, &two);
    two.publish(&own, "e", "there");
    shards.masters[2].signal("CONT");
    says_away(&one, &[]);
    says_away(&two, &[]);
    assert_eq!(a.hear_text(), event(&own, "there"));
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    all_goes_on(&shards, 2, &one, &two);
    hears_nothing(&mut a);
}

#[test]
fn a_redis_cluster_that_wants_all_its_slots_is_away_as_a_whole_and_comes_back() {
    let Some(mut shards) = Shards::start(3, false) else { return };
    for master in &shards.masters {
        assert_eq!(master.ask(&["CONFIG", "SET", "cluster-require-full-coverage", "yes"]), "OK");
    }
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    let (mut a, _) = joined(&one, &kept_by(&shards, 0, "presence-"), "a");
    shards.masters[2].kill();
    is_cut_off(&one);
    is_cut_off(&two);
    shards.masters[2].restart();
    says_away(&one, &[]);
    says_away(&two, &[]);
    for master in 0..3 {
        all_goes_on(&shards, master, &one, &two);
    }
    hears_nothing(&mut a);
}

#[test]
fn a_slot_that_is_on_its_way_for_long_costs_only_its_own_channels() {
    let Some(shards) = Shards::start(3, false) else { return };
    let cluster = shards.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let own = kept_by(&shards, 2, "presence-");
    let (mut a, _) = joined(&one, &own, "a");
    let (slot, home) = shards.place(&tag(&own));
    shards.begin_move(&slot, home, 0);
    // One of its keys is there and the others are here.
    let key = format!("{}:{}:m", cluster.prefix, tag(&own));
    let port = shards.masters[0].port().to_string();
    let moved = shards.masters[home].ask(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
    assert_eq!(moved, "OK");
    let (b, _) = joined(&two, &own, "b");
    let away = [format!("slot {slot}")];
    says_away(&two, &away);
    for master in 0..3 {
        all_goes_on(&shards, master, &two, &two);
    }
    shards.move_slot(&slot, home, 0);
    says_away(&one, &[]);
    says_away(&two, &[]);
    assert_eq!(notice(&mut a), added("b"));
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    hears_nothing(&mut a);
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
