//! The rights that Redis must give nodes: no less and no more than docs/cluster.md lists.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::cluster::redis::diagnose::{RedisFinding, probe_servers};
use fanfare::cluster::redis::tls::{RedisTls, TlsSources};
use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cluster::{added, event, eventually_answers, joined, node, notice, query, removed};
use crate::outage::is_cut_off;
use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::fixture::Fixture;
use crate::support::redis::Redis;
use crate::support::websocket::Client;

/// The rights of the list, without the keys and topics.
fn rights() -> Vec<String> {
    let doc = include_str!("../../docs/cluster.md");
    let line = doc.lines().find(|line| line.starts_with("ACL SETUSER")).unwrap();
    line.split(' ').skip_while(|word| *word != "-@all").map(str::to_owned).collect()
}

/// A user with them; the settings of nodes that log in as it.
fn user(redis: &Redis) -> ClusterConfig {
    let own = redis.cluster();
    let (keys, topics) = (format!("~{}:*", own.prefix), format!("&{}:*", own.prefix));
    let mut rule = vec!["ACL", "SETUSER", "u", "on", ">s3cr3t", &keys, &topics];
    let rights = rights();
    rule.extend(rights.iter().map(String::as_str));
    assert_eq!(redis.ask(&rule), "OK");
    let url = own.redis[0].replace("redis://", "redis://u:s3cr3t@");
    ClusterConfig { redis: vec![url], ..own }
}

/// The next frame that tells no count; those are told between others, whenever Redis has answered.
fn heard_but_counts(client: &mut Client) -> String {
    loop {
        let frame = client.hear_text();
        if !frame.contains("subscription_count") {
            return frame;
        }
    }
}

#[test]
fn the_least_rights_are_enough_for_all_that_nodes_do() {
    let Some(redis) = Redis::start() else { return };
    // One is taken for dead below, and no other though a busy machine stands still for a moment.
    let cluster = ClusterConfig { lease: Duration::from_secs(5), ..user(&redis) };
    let endpoint = Endpoint::start();
    let webhook = endpoint.webhook();
    let [one, two]: [Fixture; 2] = std::array::from_fn(|_| {
        node(&cluster, |app| {
            app.features.subscription_count = true;
            app.features.watchlist = true;
            app.webhooks = vec![webhook.clone()];
        })
    });
    let way = crate::support::cut::Way::to(redis.port(), |_| 0);
    let url = cluster.redis[0].replace(&redis.port().to_string(), &way.port().to_string());
    let third = node(&ClusterConfig { redis: vec![url], ..cluster }, |_| {});
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    let (_c, _) = joined(&third, "presence-x", "c");
    assert_eq!(notice(&mut a), added("c"));
    let mut cache = one.subscribed("cache-x");
    assert!(heard_but_counts(&mut cache).contains("cache_miss"));
    two.publish("cache-x", "e", "1");
    assert_eq!(heard_but_counts(&mut cache), event("cache-x", "1"));
    let mut plain = one.subscribed("pub");
    two.publish("pub", "e", "2");
    assert_eq!(heard_but_counts(&mut plain), event("pub", "2"));
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    // It is taken for dead and cleared away, and the others make their links anew.
    way.cut();
    is_cut_off(&third);
    assert_eq!(notice(&mut a), removed("c"));
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    one.is_ready();
    two.is_ready();
    // Nodes that have not yet seen that their link is gone are ready.
    let users = json!({ "users": [{ "id": "a" }] });
    eventually_answers(&two, "channels/presence-x/users", &users);
    assert_eq!(redis.ask(&["ACL", "LOG"]), "", "what was refused");
}

/// Those of an older version's list lack the right.
#[test]
fn nodes_publish_on_where_they_may_not_count_logs() {
    let Some(redis) = Redis::start() else { return };
    let cluster = user(&redis);
    redis.ask(&["ACL", "SETUSER", "u", "-pfadd", "-pfcount"]);
    let one = node(&cluster, |_| {});
    (0..30).for_each(|_| one.publish("pub", "e", &"x".repeat(90_000)));
    let refused = eventually(|| match redis.ask(&["ACL", "LOG"]) {
        log if log.is_empty() => Err("nothing is refused".to_owned()),
        log => Ok(log),
    });
    assert!(refused.is_ok_and(|log| log.contains("pfadd")));
    // Whoever asks is answered after what was sent before.
    query(&one, "channels");
    let link = one.running().shared().scope.others().unwrap().link().clone();
    assert_eq!(link.figures().connects.load(Ordering::Relaxed), 1, "the link is kept");
}

/// What `doctor` finds.
fn look(cluster: &ClusterConfig) -> Result<RedisFinding, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tls = RedisTls::new(TlsSources::default()).unwrap();
    runtime.block_on(probe_servers(&cluster.redis, &tls, &cluster.prefix))
}

#[test]
fn each_right_that_is_missing_is_named() {
    let Some(redis) = Redis::start() else { return };
    let cluster = user(&redis);
    let found = look(&cluster).unwrap();
    assert!(found.refuses.is_empty() && found.round_trip.is_some(), "{found:?}");
    // Whoever logs in needs these, or they say nothing that nodes need.
    let of_connections = ["hello", "auth", "select", "info"];
    for right in rights() {
        let Some(name) = right.strip_prefix('+').filter(|name| !of_connections.contains(name))
        else {
            continue;
        };
        redis.ask(&["ACL", "SETUSER", "u", &format!("-{name}")]);
        let said = match look(&cluster) {
            Ok(found) => found.refuses.join("; "),
            Err(said) => said,
        };
        assert!(said.to_ascii_lowercase().contains(name), "without {name}: {said}");
        redis.ask(&["ACL", "SETUSER", "u", &format!("+{name}")]);
    }
}
