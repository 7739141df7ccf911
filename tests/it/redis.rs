//! The kinds of Redis that nodes can share, besides a server that anybody may use: over TLS, as a user with
//! a password and a database, and servers that Sentinels watch over.

use std::path::Path;

use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cluster::{
    Process, added, event, hears_nothing, join, joined, nodes, notice, query, removed,
};
use crate::outage::is_cut_off;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, trigger};
use crate::support::http::Http;
use crate::support::redis::Redis;
use crate::support::sentinels::Watched;
use crate::support::sign::Request;
use crate::support::wire::file;

fn publish(node: &Process, channel: &str, data: &str) {
    let target = format!("/apps/{ID}/events");
    let body = trigger(channel, "e", data);
    let request = Request::new("POST", &target, &body, KEY, SECRET);
    assert_eq!(Http::connect(node.addr).ask_signed(&request).status, 200);
}

const USER: [&str; 9] =
    ["--user", "fan", "on", ">p@:/", "~kinds:*", "&kinds:*", "+@all", "-@dangerous", "+info"];

/// A cluster that logs in as a user that may touch nothing but its own keys.
fn logged_in(scheme: &str, port: u16, database: u8) -> ClusterConfig {
    let url = format!("{scheme}://fan:p%40%3A%2F@localhost:{port}/{database}");
    ClusterConfig { redis: vec![url], prefix: "kinds".to_owned(), ..crate::support::redis::alone() }
}

#[test]
fn nodes_share_a_redis_over_tls() {
    let Some(redis) = Redis::start_with(&USER, true) else { return };
    let cluster = logged_in("rediss", redis.tls_port(), 1);
    let trusted = file("one", "crt");
    let trust: [(&str, &Path); 1] = [("SSL_CERT_FILE", &trusted)];
    let [one, two] = [0; 2].map(|_| Process::start_with(&cluster, &trust));
    one.is_ready();
    two.is_ready();
    let (mut a, id) = one.connect();
    assert_eq!(join(&mut a, &id, "presence-x", "a"), json!(["a"]));
    let (mut b, id) = two.connect();
    assert_eq!(join(&mut b, &id, "presence-x", "b"), json!(["a", "b"]));
    assert_eq!(notice(&mut a), added("b"));
    publish(&two, "presence-x", "1");
    assert_eq!(a.hear_text(), event("presence-x", "1"));
}

#[test]
fn a_redis_with_another_certificate_is_not_spoken_to() {
    let Some(redis) = Redis::start_with(&USER, true) else { return };
    let trusted = file("two", "crt");
    let cluster = logged_in("rediss", redis.tls_port(), 0);
    let node = Process::start_with(&cluster, &[("SSL_CERT_FILE", &trusted)]);
    // It tries again and again: the server numbers those who come, whatever becomes of them.
    let mut last = None;
    for _ in 0..3 {
        eventually(|| {
            let number: u64 = redis.ask(&["CLIENT", "ID"]).parse().unwrap();
            let came = last.replace(number).is_some_and(|last| number > last + 1);
            if came { Ok(()) } else { Err("nobody has come".to_owned()) }
        })
        .unwrap();
    }
    let (mut client, _) = node.connect();
    // It goes on alone.
    subscribe(&mut client, "pub");
    assert_eq!(Http::connect(node.addr).ask("GET", "/ready", "", b"").status, 503);
    assert_eq!(redis.ask(&["DBSIZE"]), "0");
}

#[test]
fn a_user_has_its_keys_in_its_database() {
    let Some(redis) = Redis::start_with(&USER, false) else { return };
    let [one, two] = nodes(&logged_in("redis", redis.port(), 3));
    let mut a = one.subscribed("pub");
    two.publish("pub", "e", "1");
    assert_eq!(a.hear_text(), event("pub", "1"));
    assert_eq!(redis.ask(&["DBSIZE"]), "0");
    redis.ask(&["SWAPDB", "0", "3"]);
    let keys = redis.ask(&["KEYS", "*"]);
    assert!(!keys.is_empty() && keys.lines().all(|key| key.starts_with("kinds:")), "{keys}");
}

fn links_made(node: &Fixture) -> u64 {
    let cluster = node.running().shared().scope.others().unwrap();
    cluster.link().figures().connects.load(std::sync::atomic::Ordering::Relaxed)
}

fn all_is_well(one: &Fixture, two: &Fixture) {
    let (mut c, ids) = joined(one, "presence-y", "c");
    assert_eq!(ids, json!(["c"]));
    let (d, ids) = joined(two, "presence-y", "d");
    assert_eq!(ids, json!(["c", "d"]));
    assert_eq!(notice(&mut c), added("d"));
    two.publish("presence-y", "e", "1");
    assert_eq!(c.hear_text(), event("presence-y", "1"));
    drop(d);
    assert_eq!(notice(&mut c), removed("d"));
}

#[test]
fn nodes_go_on_with_the_replica_of_a_master_that_died() {
    let Some(mut redis) = Watched::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    redis.master.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    one.publish("presence-x", "e", "1");
    assert_eq!(a.hear_text(), event("presence-x", "1"));
    one.is_ready();
    two.is_ready();
    assert_eq!(query(&two, "channels/presence-x?info=user_count")["user_count"], 2);
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    all_is_well(&one, &two);
    hears_nothing(&mut a);
}

#[test]
fn nodes_leave_a_master_that_was_replaced() {
    let Some(redis) = Watched::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (_b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    // The old master lives on and is a master still for a while, as far as it knows.
    assert_eq!(redis.sentinels[0].ask(&["SENTINEL", "FAILOVER", "main"]), "OK");
    for node in [&one, &two] {
        eventually(|| match links_made(node) {
            1 => Err("still the first link".to_owned()),
            _ => Ok(()),
        })
        .unwrap();
        node.is_ready();
    }
    assert!(redis.replica.ask(&["ROLE"]).starts_with("master"));
    all_is_well(&one, &two);
    hears_nothing(&mut a);
    assert_eq!(query(&one, "channels/presence-x?info=user_count")["user_count"], 2);
}
