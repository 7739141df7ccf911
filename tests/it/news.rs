//! Webhooks of several nodes: what happens over all of them is told once, by one of them, and by another when that
//! one stops or dies; over a Redis server of the test's own, and over a Redis Cluster.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::app::{App, Apps};
use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster::{join, joined, node};
use crate::outage::is_cut_off;
use crate::replay::{cut, mend};
use crate::support::child::Child;
use crate::support::cut::Way;
use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe};
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::websocket::Client;

macro_rules! over_every_redis {
    ($($name:ident,)*) => {
        mod one_server {
            $(#[test]
            fn $name() {
                let Some(redis) = super::Redis::start() else { return };
                super::$name(&redis.cluster());
            })*
        }

        mod redis_cluster {
            $(#[test]
            fn $name() {
                let Some(shards) = super::Shards::shared() else { return };
                super::$name(&shards.cluster());
            })*
        }
    };
}

over_every_redis! {
    what_happens_over_all_nodes_is_told_once,
    whispers_misses_and_counts_are_told_once,
    a_node_that_stops_leaves_its_office_to_another,
    a_node_that_dies_is_followed_by_another,
}

fn told(name: &str, channel: &str) -> Value {
    json!({ "name": name, "channel": channel })
}

fn member(name: &str, channel: &str, user: &str) -> Value {
    json!({ "name": name, "channel": channel, "user_id": user })
}

fn nodes<const N: usize>(cluster: &ClusterConfig, endpoint: &Endpoint) -> [Fixture; N] {
    counting(cluster, endpoint, false)
}

fn counting<const N: usize>(
    cluster: &ClusterConfig,
    endpoint: &Endpoint,
    counts: bool,
) -> [Fixture; N] {
    let webhook = endpoint.webhook();
    std::array::from_fn(|_| {
        node(cluster, |app| {
            app.features.subscription_count = counts;
            app.features.watchlist = true;
            app.webhooks = vec![webhook.clone()];
        })
    })
}

/// The next event, counts left out.
fn next(endpoint: &Endpoint) -> Value {
    loop {
        let event = endpoint.event();
        if event["name"] != "subscription_count" {
            return event;
        }
    }
}

/// Waits until the endpoint has taken so many events of the node's.
fn has_sent(node: &Fixture, count: u64) {
    let sent = eventually(|| {
        let figures = node.running().shared().webhooks.figures();
        match figures.iter().map(|of| of.sent.load(Ordering::Relaxed)).sum::<u64>() {
            sent if sent >= count => Ok(()),
            sent => Err(sent.to_string()),
        }
    });
    assert_eq!(sent, Ok(()));
}

fn unsubscribe(client: &mut Client, channel: &str) {
    let data = json!({ "channel": channel });
    client.send_text(&json!({ "event": "pusher:unsubscribe", "data": data }).to_string());
}

fn subscribe_only(client: &mut Client, channel: &str) {
    let data = json!({ "channel": channel });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
}

fn enter(node: &Fixture, channel: &str) -> Client {
    let (mut client, _) = node.connect();
    subscribe_only(&mut client, channel);
    assert!(client.hear_text().contains("subscription_succeeded"));
    client
}

fn what_happens_over_all_nodes_is_told_once(cluster: &ClusterConfig) {
    let endpoint = Endpoint::start();
    let [one, two, three]: [Fixture; 3] = nodes(cluster, &endpoint);
    let first = enter(&one, "c");
    assert_eq!(next(&endpoint), told("channel_occupied", "c"));
    let second = enter(&two, "c");
    let (a, _) = joined(&one, "presence-x", "a");
    assert_eq!(next(&endpoint), told("channel_occupied", "presence-x"));
    assert_eq!(next(&endpoint), member("member_added", "presence-x", "a"));
    let (a2, _) = joined(&two, "presence-x", "a");
    let (b, _) = joined(&three, "presence-x", "b");
    assert_eq!(next(&endpoint), member("member_added", "presence-x", "b"));
    // Whoever comes back on another node was never away, and some are there all the time.
    drop((first, a, b));
    let _third = enter(&three, "c");
    let (b, _) = joined(&one, "presence-x", "b");
    drop(second);
    let mut other = enter(&two, "other");
    assert_eq!(next(&endpoint), told("channel_occupied", "other"));
    unsubscribe(&mut other, "other");
    assert_eq!(next(&endpoint), told("channel_vacated", "other"));
    drop(a2);
    assert_eq!(next(&endpoint), member("member_removed", "presence-x", "a"));
    drop(b);
    assert_eq!(next(&endpoint), member("member_removed", "presence-x", "b"));
    assert_eq!(next(&endpoint), told("channel_vacated", "presence-x"));
}

fn whispers_misses_and_counts_are_told_once(cluster: &ClusterConfig) {
    let endpoint = Endpoint::start();
    let nodes: [Fixture; 2] = counting(cluster, &endpoint, true);
    let (mut client, id) = nodes[1].connect();
    join(&mut client, &id, "presence-x", "a");
    let user = json!({ "id": "w", "watchlist": ["x"] });
    crate::cluster::sign_in(&mut client, &id, &user);
    assert_eq!(next(&endpoint), told("channel_occupied", "presence-x"));
    assert_eq!(next(&endpoint), member("member_added", "presence-x", "a"));
    client.send_text(r#"{"event":"client-e","channel":"presence-x","data":"é"}"#);
    let whisper = json!({ "name": "client_event", "channel": "presence-x", "event": "client-e", "data": "é", "socket_id": id, "user_id": "a" });
    assert_eq!(next(&endpoint), whisper);
    let mut crowd: Vec<Client> = (0..20).map(|index| nodes[index % 2].connect().0).collect();
    // All at once: what is missed three seconds later is told again.
    crowd.iter_mut().for_each(|client| subscribe_only(client, "cache-c"));
    for client in &mut crowd {
        assert!(client.hear_text().contains("subscription_succeeded"));
    }
    let mut seen = vec![next(&endpoint), next(&endpoint)];
    seen.sort_by_key(|event| event["name"].to_string());
    assert_eq!(seen, [told("cache_miss", "cache-c"), told("channel_occupied", "cache-c")]);
    drop(crowd);
    assert_eq!(next(&endpoint), told("channel_vacated", "cache-c"));
    let _clients = [enter(&nodes[0], "c"), enter(&nodes[1], "c")];
    assert_eq!(next(&endpoint), told("channel_occupied", "c"));
    let counted = eventually(|| match endpoint.event() {
        event if event["subscription_count"] == 2 && event["channel"] == "c" => Ok(()),
        event => Err(event.to_string()),
    });
    assert_eq!(counted, Ok(()));
}

fn a_node_that_stops_leaves_its_office_to_another(cluster: &ClusterConfig) {
    let endpoint = Endpoint::start();
    let [one]: [Fixture; 1] = nodes(cluster, &endpoint);
    let mut client = enter(&one, "a");
    assert_eq!(next(&endpoint), told("channel_occupied", "a"));
    has_sent(&one, 1);
    // What the endpoint does not take, and an end that is held back, are left to the other.
    endpoint.usual.store(503, Ordering::SeqCst);
    let [two]: [Fixture; 1] = nodes(cluster, &endpoint);
    let _stays = enter(&two, "b");
    assert_eq!(next(&endpoint), told("channel_occupied", "b"));
    unsubscribe(&mut client, "a");
    one.stop();
    endpoint.usual.store(200, Ordering::SeqCst);
    let again = eventually(|| match next(&endpoint) {
        event if event == told("channel_vacated", "a") => Ok(()),
        event => Err(event.to_string()),
    });
    assert_eq!(again, Ok(()));
    let _more = enter(&two, "c");
    assert_eq!(next(&endpoint), told("channel_occupied", "c"));
}

fn a_node_that_dies_is_followed_by_another(cluster: &ClusterConfig) {
    let cluster = ClusterConfig { lease: Duration::from_secs(5), ..cluster.clone() };
    let endpoint = Endpoint::start();
    let url = format!("http://{}/", endpoint.addr);
    let redis = cluster.redis.join(",");
    let doomed = Child::start(&[
        ("APPS__0__WEBHOOKS__0__URL", &url),
        ("CLUSTER__REDIS", &redis),
        ("CLUSTER__PREFIX", &cluster.prefix),
        ("CLUSTER__LEASE", "5s"),
    ]);
    // What it held before it has Redis is told in the order of names.
    doomed.is_ready();
    let (mut client, id) = doomed.connect();
    join(&mut client, &id, "presence-x", "d");
    subscribe(&mut client, "alone");
    assert_eq!(next(&endpoint), told("channel_occupied", "presence-x"));
    assert_eq!(next(&endpoint), member("member_added", "presence-x", "d"));
    assert_eq!(next(&endpoint), told("channel_occupied", "alone"));
    let [other]: [Fixture; 1] = nodes(&cluster, &endpoint);
    let (_a, _) = joined(&other, "presence-x", "a");
    // The one that dies has told it, or the other does.
    assert_eq!(next(&endpoint), member("member_added", "presence-x", "a"));
    endpoint.usual.store(503, Ordering::SeqCst);
    let _b = enter(&other, "b");
    let refused = next(&endpoint);
    assert!(
        [told("channel_occupied", "b"), member("member_added", "presence-x", "a")]
            .contains(&refused)
    );
    drop(doomed);
    while endpoint.posts.try_recv().is_ok() {}
    endpoint.usual.store(200, Ordering::SeqCst);
    // What was in its hands comes first; what it held ends once.
    while next(&endpoint) != told("channel_occupied", "b") {}
    let mut ends = [next(&endpoint), next(&endpoint)];
    ends.sort_by_key(Value::to_string);
    let gone = member("member_removed", "presence-x", "d");
    assert_eq!(ends, [told("channel_vacated", "alone"), gone]);
    let _c = enter(&other, "c");
    assert_eq!(next(&endpoint), told("channel_occupied", "c"));
}

/// But for beginnings of the last seconds, which may have been unread.
#[test]
fn a_redis_that_comes_back_empty_is_no_news() {
    let Some(mut redis) = Redis::start() else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(3), ..redis.cluster() };
    let endpoint = Endpoint::start();
    let [one, two]: [Fixture; 2] = nodes(&cluster, &endpoint);
    let (a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    let _here = enter(&two, "c");
    let mut known: Vec<String> = (0..4).map(|_| next(&endpoint).to_string()).collect();
    known.sort();
    assert!(known[0].contains('c') && known[3].contains("member_added"), "{known:?}");
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    // This is news, and waits.
    let (mut while_away, _) = one.connect();
    subscribe(&mut while_away, "d");
    redis.restart();
    one.is_ready();
    two.is_ready();
    let later = || loop {
        let event = next(&endpoint);
        if !known.contains(&event.to_string()) {
            return event;
        }
    };
    assert_eq!(later(), told("channel_occupied", "d"));
    drop(a);
    assert_eq!(later(), member("member_removed", "presence-x", "a"));
    drop(b);
    assert_eq!(later(), member("member_removed", "presence-x", "b"));
    assert_eq!(later(), told("channel_vacated", "presence-x"));
}

#[test]
fn webhooks_that_come_while_it_runs_are_served() {
    let Some(redis) = Redis::start() else { return };
    let endpoint = Endpoint::start();
    let [one, two]: [Fixture; 2] = crate::cluster::nodes(&redis.cluster());
    let _before = enter(&one, "a");
    for node in [&one, &two] {
        let mut app = App::new(ID, KEY, SECRET);
        app.webhooks = vec![endpoint.webhook()];
        node.running().replace_apps(Apps::new(vec![app]).unwrap());
    }
    let _after = enter(&two, "b");
    assert_eq!(next(&endpoint), told("channel_occupied", "b"));
}

#[test]
fn a_link_that_breaks_loses_nothing() {
    let Some(redis) = Redis::start() else { return };
    let endpoint = Endpoint::start();
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster(), &endpoint);
    let (mut client, _) = one.connect();
    let mut expected = Vec::new();
    for round in 0..5 {
        for number in 0..20 {
            let name = format!("c{round}-{number}");
            client.send_text(
                &json!({ "event": "pusher:subscribe", "data": { "channel": name } }).to_string(),
            );
            expected.push(told("channel_occupied", &name));
        }
        redis.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    let all = eventually(|| {
        let event = next(&endpoint);
        expected.retain(|other| *other != event);
        if expected.is_empty() { Ok(()) } else { Err(format!("{expected:?}")) }
    });
    assert_eq!(all, Ok(()));
    drop(two);
}

#[test]
fn what_is_ordered_with_a_subscription_outlives_the_link() {
    let Some(redis) = Redis::start() else { return };
    let endpoint = Endpoint::start();
    let way = Way::to(redis.port(), |bytes| {
        bytes.windows(10).filter(|some| some == b"SSUBSCRIBE").count()
    });
    let url = format!("redis://127.0.0.1:{}", way.port());
    let cluster = ClusterConfig { redis: vec![url], ..redis.cluster() };
    let [one]: [Fixture; 1] = nodes(&cluster, &endpoint);
    one.is_ready();
    let channels: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    let mut clients: Vec<Client> = channels.iter().map(|channel| enter(&one, channel)).collect();
    let all_told = |name: &str| {
        let mut events: Vec<Value> = (0..20).map(|_| next(&endpoint)).collect();
        events.sort_by_key(Value::to_string);
        let mut expected: Vec<Value> = channels.iter().map(|channel| told(name, channel)).collect();
        expected.sort_by_key(Value::to_string);
        assert_eq!(events, expected);
    };
    all_told("channel_occupied");
    let asked = way.edits();
    // While this one waits for its script, the others come together.
    assert_eq!(redis.ask(&["CLIENT", "PAUSE", "1000", "WRITE"]), "OK");
    one.publish("c", "e", "1");
    clients.iter_mut().zip(&channels).for_each(|(client, channel)| unsubscribe(client, channel));
    let (mut last, _) = one.connect();
    subscribe_only(&mut last, "last");
    // And the link is lost before the subscription among them is answered.
    way.mute_after("last}");
    let subscribes = eventually(|| if way.edits() > asked { Ok(()) } else { Err(String::new()) });
    assert_eq!(subscribes, Ok(()));
    cut(&one, &way);
    mend(&one, &way);
    assert_eq!(next(&endpoint), told("channel_occupied", "last"));
    all_told("channel_vacated");
}

#[test]
fn nothing_is_left_in_the_log_when_all_is_told() {
    let Some(redis) = Redis::start() else { return };
    let endpoint = Endpoint::start();
    let cluster = redis.cluster();
    let nodes: [Fixture; 2] = nodes(&cluster, &endpoint);
    let clients = [enter(&nodes[0], "a"), enter(&nodes[1], "b")];
    let mut names = [next(&endpoint), next(&endpoint)];
    names.sort_by_key(Value::to_string);
    assert_eq!(names, [told("channel_occupied", "a"), told("channel_occupied", "b")]);
    let log = format!("{}:{{3}}:w", cluster.prefix);
    let emptied = eventually(|| match redis.ask(&["XLEN", &log]) {
        length if length == "0" => Ok(()),
        length => Err(length),
    });
    assert_eq!(emptied, Ok(()));
    drop(clients);
    let mut names = [next(&endpoint), next(&endpoint)];
    names.sort_by_key(Value::to_string);
    assert_eq!(names, [told("channel_vacated", "a"), told("channel_vacated", "b")]);
    nodes.into_iter().for_each(Fixture::stop);
    let left = redis.ask(&["KEYS", "*"]);
    let left: Vec<&str> = left
        .lines()
        .filter(|key| ![":fence:", "}:v", "}:e", "}:w"].iter().any(|part| key.contains(part)))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
