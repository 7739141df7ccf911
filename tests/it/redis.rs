//! The kinds of Redis that nodes can share, besides a server that anybody may use: over TLS, and as a user
//! with a password and a database.

use std::path::Path;

use fanfare::config::Cluster;
use serde_json::json;

use crate::cluster::{Process, added, event, join, nodes, notice};
use crate::support::eventually;
use crate::support::fixture::{ID, KEY, SECRET, subscribe, trigger};
use crate::support::http::Http;
use crate::support::redis::Redis;
use crate::support::sign::Request;
use crate::support::wire::file;

fn publish(node: &Process, channel: &str, data: &str) {
    let target = format!("/apps/{ID}/events");
    let body = trigger(channel, "e", data);
    let request = Request::new("POST", &target, &body, KEY, SECRET);
    assert_eq!(Http::connect(node.addr).ask_signed(&request).status, 200);
}

const USER: [&str; 7] = ["--user", "fan", "on", ">p@:/", "~kinds:*", "&kinds:*", "+@all"];

/// A cluster that logs in as a user that may touch nothing but its own keys.
fn logged_in(scheme: &str, port: u16, database: u8) -> Cluster {
    let url = format!("{scheme}://fan:p%40%3A%2F@localhost:{port}/{database}");
    Cluster { redis: vec![url], prefix: "kinds".to_owned(), ..crate::support::redis::alone() }
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
