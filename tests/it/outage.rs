//! Several nodes and a Redis that goes, hangs, comes back empty, or says what it should not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster::{
    Process, added, event, hears_nothing, join, joined, nodes, notice, query, removed,
};
use crate::judge::proxy::{Direction, Proxy};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID};
use crate::support::http::{Http, await_readiness};
use crate::support::redis::Redis;
use crate::support::websocket::Client;

pub fn is_cut_off(node: &Fixture) {
    await_readiness(node.addr, 503);
}

#[test]
fn what_is_no_envelope_is_skipped() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let mut a = one.subscribed("pub");
    let topic = format!("{}:on:{{{ID}/pub}}", cluster.prefix);
    for garbage in ["", "x", "{\"type\":\"message\"}", "\u{1}\u{1}"] {
        assert_eq!(redis.ask(&["SPUBLISH", &topic, garbage]), "1", "{garbage:?}");
    }
    // A kind that only a newer version knows.
    let newer = format!(
        "return redis.call('SPUBLISH', '{topic}', '\\3\\127\\0\\250' .. string.rep('x', 40))"
    );
    assert_eq!(redis.ask(&["EVAL", &newer, "0"]), "1");
    two.publish("pub", "e", "1");
    assert_eq!(a.hear_text(), event("pub", "1"));
    let link = one.running().shared().scope.others().unwrap().link().clone();
    let figures = link.figures();
    let counted = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!((counted(&figures.invalid), counted(&figures.unknown_kind)), (4, 1));
}

#[test]
fn what_a_backend_was_told_is_taken_reaches_all_and_what_is_refused_nobody() {
    let Some(redis) = Redis::start() else { return };
    let cluster = ClusterConfig { queue_bytes: 24 << 10, ..redis.cluster() };
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let mut clients = [one.subscribed("pub"), two.subscribed("pub")];
    let long = "x".repeat(1000);
    // Ten of them are half of the queue, and eight backends are at it.
    let batch = |by: usize, number: usize| {
        let event = |part| json!({ "name": "e", "channel": "pub", "data": format!("{by}:{number}:{part}:{long}") });
        let batch: Vec<Value> = (0..10).map(event).collect();
        json!({ "batch": batch }).to_string()
    };
    let taken: Vec<String> = std::thread::scope(|scope| {
        let backends: Vec<_> = (0..8)
            .map(|by| {
                let (one, batch) = (&one, &batch);
                scope.spawn(move || {
                    let mut taken = Vec::new();
                    for number in 0..20 {
                        let answer = one.api("POST", "batch_events", &batch(by, number));
                        match answer.status {
                            200 => taken.push(format!("{by}:{number}")),
                            status => assert_eq!(status, 503, "{}", answer.text()),
                        }
                    }
                    taken
                })
            })
            .collect();
        backends.into_iter().flat_map(|backend| backend.join().unwrap()).collect()
    });
    assert!(!taken.is_empty());
    for client in &mut clients {
        let mut heard = Vec::new();
        for _ in 0..taken.len() * 10 {
            let frame: Value = serde_json::from_str(&client.hear_text()).unwrap();
            let data = frame["data"].as_str().unwrap().trim_end_matches('x');
            heard.push(data.trim_end_matches(':').to_owned());
        }
        hears_nothing(client);
        heard.sort_unstable();
        let parts = taken.iter().flat_map(|batch| [batch; 10].into_iter().enumerate());
        let mut expected: Vec<String> =
            parts.map(|(part, batch)| format!("{batch}:{part}")).collect();
        expected.sort_unstable();
        assert_eq!(heard, expected);
    }
    let link = one.running().shared().scope.others().unwrap().link().clone();
    assert_eq!(link.figures().dropped.load(Ordering::Relaxed), 0);
}

#[test]
fn a_node_without_redis_serves_its_own_and_catches_up() {
    let Some(mut redis) = Redis::start() else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(3), ..redis.cluster() };
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    let mut cache = two.subscribed("cache-x");
    assert!(cache.hear_text().contains("cache_miss"));
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    assert_eq!(Http::connect(one.addr).ask("GET", "/up", "", b"").status, 200);
    // What stays on one node goes on.
    one.publish("presence-x", "e", "1");
    assert_eq!(a.hear_text(), event("presence-x", "1"));
    let mut late = one.subscribed("late");
    one.publish("late", "e", "2");
    assert_eq!(late.hear_text(), event("late", "2"));
    let (mut c, ids) = joined(&one, "presence-x", "c");
    assert_eq!(ids, json!(["a", "b", "c"]));
    assert_eq!(notice(&mut a), added("c"));
    assert_eq!(query(&one, "channels/presence-x?info=user_count")["user_count"], 3);
    two.publish("cache-x", "e", "3");
    assert_eq!(cache.hear_text(), event("cache-x", "3"));
    drop(b);
    // It comes back empty: all is said again, what waited arrives, and only what has changed is told.
    redis.restart();
    one.is_ready();
    two.is_ready();
    assert_eq!(notice(&mut a), removed("b"));
    assert_eq!(notice(&mut c), removed("b"));
    hears_nothing(&mut a);
    let (mut d, ids) = joined(&two, "presence-x", "d");
    assert_eq!(ids, json!(["a", "c", "d"]));
    assert_eq!(notice(&mut a), added("d"));
    one.publish("presence-x", "e", "4");
    assert_eq!(d.hear_text(), event("presence-x", "4"));
    assert_eq!(one.subscribed("cache-x").hear_text(), event("cache-x", "3"));
    hears_nothing(&mut cache);
}

#[test]
fn what_waited_for_redis_arrives_in_order_and_once() {
    let Some(mut redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let mut a = one.subscribed("pub");
    let mut b = two.subscribed("pub");
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    for number in 0..20 {
        one.publish("pub", "e", &number.to_string());
    }
    redis.restart();
    two.is_ready();
    one.is_ready();
    one.publish("pub", "e", "20");
    for number in 0..=20 {
        assert_eq!(a.hear_text(), event("pub", &number.to_string()));
    }
    // Whether b's node was back before they were sent decides what it hears of them; the last it does.
    let mut last = -1;
    while last != 20 {
        let frame: Value = serde_json::from_str(&b.hear_text()).unwrap();
        let number: i64 = frame["data"].as_str().unwrap().parse().unwrap();
        assert!(number > last, "{number} after {last}");
        last = number;
    }
    hears_nothing(&mut b);
}

#[test]
fn a_listening_connection_that_was_cut_is_made_again() {
    let Some(redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    let mut cache = one.subscribed("cache-x");
    assert!(cache.hear_text().contains("cache_miss"));
    for _ in 0..3 {
        redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        two.publish("cache-x", "e", "1");
        assert_eq!(cache.hear_text(), event("cache-x", "1"));
    }
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    hears_nothing(&mut a);
    one.is_well();
}

#[test]
fn a_redis_that_hangs_is_one_that_is_away() {
    let Some(redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let mut b = two.subscribed("pub");
    redis.signal("STOP");
    let mut a = one.subscribed("fresh");
    one.publish("fresh", "e", "1");
    assert_eq!(a.hear_text(), event("fresh", "1"));
    is_cut_off(&one);
    redis.signal("CONT");
    one.is_ready();
    two.is_ready();
    one.publish("pub", "e", "2");
    assert_eq!(b.hear_text(), event("pub", "2"));
}

#[test]
fn nobody_is_taken_for_dead_who_lost_the_same_redis() {
    let Some(redis) = Redis::start() else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(3), ..redis.cluster() };
    let nodes: [Fixture; 3] = nodes(&cluster);
    let mut clients: Vec<Client> = Vec::new();
    for (node, user) in nodes.iter().zip(["a", "b", "c"]) {
        clients.push(joined(node, "presence-x", user).0);
    }
    assert_eq!([notice(&mut clients[0]), notice(&mut clients[0])], [added("b"), added("c")]);
    assert_eq!(notice(&mut clients[1]), added("c"));
    // Longer than any lease holds.
    redis.signal("STOP");
    nodes.iter().for_each(is_cut_off);
    redis.signal("CONT");
    nodes.iter().for_each(Fixture::is_ready);
    // Of those who are dead, what they held goes nevertheless.
    let mut doomed = Process::start(&cluster);
    doomed.is_ready();
    let (mut d, id) = doomed.connect();
    join(&mut d, &id, "presence-x", "d");
    doomed.kill();
    for client in &mut clients {
        assert_eq!([notice(client), notice(client)], [added("d"), removed("d")]);
    }
}

#[test]
fn nothing_is_left_in_redis_when_all_have_gone() {
    let Some(redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let clients = [joined(&one, "presence-x", "a"), joined(&two, "presence-x", "b")];
    let _pub = one.subscribed("pub");
    drop(clients);
    one.stop();
    two.stop();
    let keys = redis.ask(&["KEYS", "*"]);
    let left: Vec<&str> =
        keys.lines().filter(|key| !key.contains(":fence:") && !key.ends_with(":v")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn channels_that_are_left_while_redis_does_not_answer_are_held_only_until_it_does() {
    const CHANNELS: u64 = 50;
    let Some(redis) = Redis::start() else { return };
    let proxy = Proxy::to(redis.port());
    let urls = vec![format!("redis://127.0.0.1:{}", proxy.port())];
    let [one]: [Fixture; 1] = nodes(&ClusterConfig { redis: urls, ..redis.cluster() });
    let mut stays = one.subscribed("stays");
    let held = || one.running().shared().hub.held.total();
    let before = held();
    let (mut first, _) = one.connect();
    let clients: Vec<Client> = (0..CHANNELS).map(|_| one.connect().0).collect();
    proxy.stall(Direction::FromRedis);
    // The link waits for the answer to this.
    first.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"left-first"}}"#);
    eventually(|| match redis.ask(&["PUBSUB", "SHARDCHANNELS"]) {
        open if open.contains("left-first") => Ok(()),
        open => Err(open),
    })
    .unwrap();
    for (number, mut client) in clients.into_iter().enumerate() {
        let data = json!({ "channel": format!("left-{number:0>180}") });
        client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
        client.send_close(1000, "");
    }
    // An entry for each, and requests.
    eventually(|| match held() {
        bytes if bytes > before + CHANNELS * 1000 => Ok(()),
        bytes => Err(bytes.to_string()),
    })
    .unwrap();
    proxy.mend();
    drop(first);
    eventually(|| match held() {
        bytes if bytes <= before => Ok(()),
        bytes => Err(format!("{bytes}, {before} before")),
    })
    .unwrap();
    eventually(|| match redis.ask(&["PUBSUB", "SHARDCHANNELS"]) {
        open if open.contains("stays") && !open.contains("left-") => Ok(()),
        open => Err(open),
    })
    .unwrap();
    one.publish("stays", "e", "1");
    assert_eq!(stays.hear_text(), event("stays", "1"));
}
