//! Commands under a lease that may have been cleared change nothing, and those that Redis refuses are not done:
//! each fault named after what went wrong before, over a Redis server of the test's own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster::{
    Process, added, event, eventually_answers, join, joined, nodes, notice, query, removed,
};
use crate::outage::is_cut_off;
use crate::replay::by_way;
use crate::support::cut::Way;
use crate::support::eventually;
use crate::support::fixture::Fixture;
use crate::support::redis::Redis;

fn lease(cluster: ClusterConfig, millis: u64) -> ClusterConfig {
    ClusterConfig { lease: Duration::from_millis(millis), ..cluster }
}

fn counted(users: usize, subscriptions: usize) -> Value {
    json!({ "occupied": true, "user_count": users, "subscription_count": subscriptions })
}

const COUNTS: &str = "channels/presence-x?info=user_count,subscription_count";

/// Nothing of what nodes held is left once they hold nothing, but what says since when there is data.
fn nothing_is_held(redis: &Redis, nodes: &[&Fixture]) {
    eventually_answers(nodes[0], "channels", &json!({ "channels": {} }));
    let held = eventually(|| {
        let keys = redis.ask(&["KEYS", "*"]);
        let held =
            keys.lines().filter(|key| ["}:m", "}:r", "}:k"].iter().any(|end| key.ends_with(end)));
        match held.collect::<Vec<_>>() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
    assert_eq!(held, Ok(()));
}

#[test]
fn a_join_right_after_a_flush_leaves_no_ghost() {
    let Some(redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&lease(redis.cluster(), 3000));
    let (mut a, _) = joined(&one, "presence-x", "a");
    for command in ["FLUSHALL", "FLUSHDB"] {
        redis.ask(&[command]);
        // Before anybody renews anything.
        let (b, _) = joined(&two, "presence-x", "b");
        assert_eq!(notice(&mut a), added("b"));
        eventually_answers(&one, COUNTS, &counted(2, 2));
        eventually_answers(&two, COUNTS, &counted(2, 2));
        drop(b);
        assert_eq!(notice(&mut a), removed("b"));
        eventually_answers(&two, COUNTS, &counted(1, 1));
    }
    drop(a);
    nothing_is_held(&redis, &[&one, &two]);
}

#[test]
fn a_node_that_slept_longer_than_its_lease_leaves_no_ghost() {
    let Some(redis) = Redis::start() else { return };
    let cluster = lease(redis.cluster(), 4000);
    let [one]: [Fixture; 1] = nodes(&cluster);
    let sleeper = Process::start(&cluster);
    sleeper.is_ready();
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (mut b, id) = sleeper.connect();
    join(&mut b, &id, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    let (mut c, id) = sleeper.connect();
    for _ in 0..2 {
        sleeper.signal("STOP");
        assert_eq!(notice(&mut a), removed("b"));
        // It is the first that the node hears of when it wakes.
        let channel_data = json!({ "user_id": "c" }).to_string();
        let auth = crate::support::sign::hmac_hex(
            crate::support::fixture::SECRET,
            &format!("{id}:presence-x:{channel_data}"),
        );
        let key = crate::support::fixture::KEY;
        let data = json!({
            "channel": "presence-x", "auth": format!("{key}:{auth}"), "channel_data": channel_data,
        });
        c.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
        sleeper.signal("CONT");
        let mut came = [notice(&mut a), notice(&mut a)];
        came.sort();
        assert_eq!(came, [added("b"), added("c")]);
        eventually_answers(&one, COUNTS, &counted(3, 3));
        c.send_text(r#"{"event":"pusher:unsubscribe","data":{"channel":"presence-x"}}"#);
        assert_eq!(notice(&mut a), removed("c"));
    }
    eventually_answers(&one, COUNTS, &counted(2, 2));
    drop((b, c));
    assert_eq!(notice(&mut a), removed("b"));
    drop(a);
    nothing_is_held(&redis, &[&one]);
}

#[test]
fn what_an_old_connection_brings_late_is_refused() {
    let Some(redis) = Redis::start() else { return };
    let cluster = lease(redis.cluster(), 15_000);
    let ((one, way), [two]) = (by_way(&cluster, |_| 0), nodes(&cluster));
    let (mut a, _) = joined(&two, "presence-x", "a");
    let mut cache = two.subscribed("cache-x");
    assert!(cache.hear_text().contains("cache_miss"));
    let (mut b, _) = joined(&one, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    // What it says waits on the way, and it is said again over a new connection.
    way.hold();
    let (mut c, id) = one.connect();
    let joining = std::thread::spawn(move || {
        let ids = join(&mut c, &id, "presence-x", "c");
        (c, ids)
    });
    one.publish("cache-x", "e", "1");
    is_cut_off(&one);
    way.forget();
    one.is_ready();
    let (c, _) = joining.join().unwrap();
    assert_eq!(notice(&mut a), added("c"));
    assert_eq!(cache.hear_text(), event("cache-x", "1"));
    one.publish("cache-x", "e", "2");
    assert_eq!(cache.hear_text(), event("cache-x", "2"));
    drop(c);
    assert_eq!(notice(&mut a), removed("c"));
    way.release();
    // Behind what was late.
    let refused = eventually(|| match redis.ask(&["INFO", "errorstats"]) {
        errors if errors.contains("errorstat_FENCED") => Ok(()),
        errors => Err(errors),
    });
    assert_eq!(refused, Ok(()));
    assert_eq!((notice(&mut b), notice(&mut b)), (added("c"), removed("c")));
    one.publish("presence-x", "e", "3");
    assert_eq!(a.hear_text(), event("presence-x", "3"));
    assert_eq!(b.hear_text(), event("presence-x", "3"));
    eventually_answers(&two, COUNTS, &counted(2, 2));
    let cached = query(&two, "channels/cache-x?info=cache");
    assert_eq!(cached["cache"]["data"], "2", "{cached}");
    drop((a, b));
    drop(cache);
    nothing_is_held(&redis, &[&one, &two]);
}

/// While Redis refuses, nodes are not ready and what is published waits; then it is all made good.
fn refusals_are_made_good(refuse: impl Fn(&Redis), allow: impl Fn(&Redis)) {
    changes_are_made_good(refuse, allow, true);
}

/// The same where Redis refuses what only a change needs, so that nodes are cut off by that at first.
fn changes_are_made_good(refuse: impl Fn(&Redis), allow: impl Fn(&Redis), at_once: bool) {
    let Some(redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&lease(redis.cluster(), 4000));
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    refuse(&redis);
    if at_once {
        is_cut_off(&one);
        is_cut_off(&two);
    }
    two.publish("presence-x", "e", "1");
    drop(b);
    let (c, _) = joined(&two, "presence-x", "c");
    is_cut_off(&two);
    allow(&redis);
    one.is_ready();
    two.is_ready();
    let mut heard: Vec<String> = (0..3).map(|_| a.hear_text()).collect();
    heard.sort_unstable();
    assert_eq!(heard[0], event("presence-x", "1"), "{heard:?}");
    assert!(heard[1].contains("member_added") && heard[1].contains("\"c"), "{heard:?}");
    assert!(heard[2].contains("member_removed") && heard[2].contains("\"b"), "{heard:?}");
    eventually_answers(&one, COUNTS, &counted(2, 2));
    drop((a, c));
    nothing_is_held(&redis, &[&one, &two]);
}

#[test]
fn a_redis_without_its_replicas_is_away() {
    let set = |redis: &Redis, count| {
        redis.ask(&["CONFIG", "SET", "min-replicas-to-write", count]);
    };
    refusals_are_made_good(|redis| set(redis, "1"), |redis| set(redis, "0"));
}

#[test]
fn a_redis_that_lacks_a_right_inside_a_script_is_away() {
    let set = |redis: &Redis, rule| {
        redis.ask(&["ACL", "SETUSER", "default", rule]);
    };
    refusals_are_made_good(|redis| set(redis, "-hset"), |redis| set(redis, "+hset"));
}

#[test]
fn a_script_that_is_refused_halfway_leaves_nothing_half_done() {
    let set = |redis: &Redis, rule| {
        redis.ask(&["ACL", "SETUSER", "default", rule]);
    };
    changes_are_made_good(|redis| set(redis, "-hincrby"), |redis| set(redis, "+hincrby"), false);
    refusals_are_made_good(|redis| set(redis, "-spublish"), |redis| set(redis, "+spublish"));
}

#[test]
fn a_redis_without_memory_is_away() {
    let set = |redis: &Redis, bytes| {
        redis.ask(&["CONFIG", "SET", "maxmemory", bytes]);
    };
    refusals_are_made_good(|redis| set(redis, "1"), |redis| set(redis, "0"));
}

#[test]
fn a_redis_that_is_busy_is_away() {
    let busy = |redis: &Redis| {
        redis.ask(&["CONFIG", "SET", "busy-reply-threshold", "50"]);
        let port = redis.port();
        std::thread::spawn(move || {
            crate::support::redis::ask(port, &["EVAL", "while true do end", "0"])
        });
        eventually(|| match crate::support::redis::ask(port, &["PING"]) {
            Err(busy) if busy.contains("BUSY") => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
        .unwrap();
    };
    refusals_are_made_good(busy, |redis| {
        redis.ask(&["SCRIPT", "KILL"]);
    });
}

#[test]
fn a_server_that_is_told_to_stop_while_redis_hangs_ends() {
    let Some(redis) = Redis::start() else { return };
    let mut node = Process::start(&redis.cluster());
    node.is_ready();
    let (mut a, id) = node.connect();
    join(&mut a, &id, "presence-x", "a");
    redis.signal("STOP");
    node.signal("TERM");
    let ended = eventually(|| if node.has_ended() { Ok(()) } else { Err(String::new()) });
    redis.signal("CONT");
    assert_eq!(ended, Ok(()));
}

/// The last count that a client is told, once it is `count`.
fn is_told(client: &mut crate::support::websocket::Client, count: usize) {
    let text = format!(r#"{{\"subscription_count\":{count}}}"#);
    let told = eventually(|| match client.hear_text() {
        heard if heard.contains(&text) => Ok(()),
        heard => Err(heard),
    });
    assert_eq!(told, Ok(()));
}

/// Two nodes that tell counts; the first has its link by the way.
fn two_that_count(redis: &Redis, cluster: &ClusterConfig) -> (Way, [Fixture; 2]) {
    let way = Way::to(redis.port(), |_| 0);
    let url = format!("redis://127.0.0.1:{}", way.port());
    let by_the_way = ClusterConfig { redis: vec![url], ..cluster.clone() };
    let counts = |app: &mut App| app.features.subscription_count = true;
    let nodes = [&by_the_way, cluster].map(|cluster| crate::cluster::node(cluster, counts));
    (way, nodes)
}

#[test]
fn counts_are_told_right_after_a_link_was_away_longer_than_its_lease() {
    let Some(redis) = Redis::start() else { return };
    let cluster = lease(redis.cluster(), 4000);
    let (way, [one, two]) = two_that_count(&redis, &cluster);
    let mut here = [one.subscribed("pub"), one.subscribed("pub")];
    let mut there = [two.subscribed("pub"), two.subscribed("pub")];
    here.iter_mut().chain(&mut there).for_each(|client| is_told(client, 4));
    way.cut();
    is_cut_off(&one);
    // Its lease lapses.
    there.iter_mut().for_each(|client| is_told(client, 2));
    let mut third = two.subscribed("pub");
    is_told(&mut third, 3);
    way.mend();
    one.is_ready();
    here.iter_mut().chain(&mut there).for_each(|client| is_told(client, 5));
    is_told(&mut third, 5);
}

#[test]
fn a_count_whose_answer_was_lost_is_told_everywhere() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let (way, [one, two]) = two_that_count(&redis, &cluster);
    let here = [one.subscribed("pub"), one.subscribed("pub")];
    let mut there = two.subscribed("pub");
    is_told(&mut there, 3);
    // The script that counts names the app so.
    way.mute_after(&format!("\r\na{}\r\n", crate::support::fixture::ID));
    let [_stays, goes] = here;
    drop(goes);
    let path = "channels/pub?info=subscription_count";
    eventually_answers(&two, path, &json!({ "occupied": true, "subscription_count": 2 }));
    way.cut();
    is_cut_off(&one);
    way.mend();
    one.is_ready();
    is_told(&mut there, 2);
}

#[test]
fn a_subscriber_that_comes_while_another_goes_is_told_how_many_they_are() {
    let Some(redis) = Redis::start() else { return };
    let node = crate::cluster::node(&redis.cluster(), |app| app.features.subscription_count = true);
    let (mut other, mut last) = (node.subscribed("pub"), node.subscribed("pub"));
    is_told(&mut other, 2);
    is_told(&mut last, 2);
    for _ in 0..20 {
        drop(last);
        last = node.subscribed("pub");
        is_told(&mut last, 2);
    }
}

#[test]
fn after_an_empty_redis_who_left_meanwhile_does_not_stay_for_a_lease() {
    let Some(mut redis) = Redis::start() else { return };
    // Ten times as long as a test waits for anything.
    let [one, two]: [Fixture; 2] = nodes(&lease(redis.cluster(), 300_000));
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (b, _) = joined(&two, "presence-x", "b");
    let (_c, _) = joined(&two, "presence-x", "c");
    assert_eq!((notice(&mut a), notice(&mut a)), (added("b"), added("c")));
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    drop(b);
    redis.restart();
    one.is_ready();
    two.is_ready();
    assert_eq!(notice(&mut a), removed("b"));
    eventually_answers(&two, COUNTS, &counted(2, 2));
}

/// Waits until the node has made its link so often.
fn has_tried(node: &Fixture, times: u64) {
    let link = node.running().shared().scope.others().unwrap().link().clone();
    eventually(|| match link.figures().connects.load(Ordering::Relaxed) {
        tried if tried >= times => Ok(()),
        tried => Err(format!("{tried} times")),
    })
    .unwrap();
}

#[test]
fn an_empty_redis_whose_clock_is_behind_is_heard() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    // Versions of a time that has not come yet, as if the clock was right from the next line on.
    for channel in ["presence-x", "cache-x"] {
        let key = format!("{}:{{{}/{channel}}}:v", cluster.prefix, crate::support::fixture::ID);
        redis.ask(&["SET", &key, "2999999999999999"]);
    }
    let (mut a, _) = joined(&one, "presence-x", "a");
    let mut cache = one.subscribed("cache-x");
    assert!(cache.hear_text().contains("cache_miss"));
    two.publish("cache-x", "e", "1");
    assert_eq!(cache.hear_text(), event("cache-x", "1"));
    redis.ask(&["FLUSHALL"]);
    // Whoever publishes finds that its lease does not hold any more, and makes its link anew, which takes no time.
    for node in [&one, &two] {
        node.publish("pub", "e", "0");
        has_tried(node, 2);
        node.is_ready();
    }
    let (b, ids) = joined(&two, "presence-x", "b");
    assert_eq!(ids, json!(["a", "b"]));
    assert_eq!(notice(&mut a), added("b"));
    two.publish("cache-x", "e", "2");
    assert_eq!(cache.hear_text(), event("cache-x", "2"));
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    let mut late = two.subscribed("cache-x");
    assert_eq!(late.hear_text(), event("cache-x", "2"));
}

#[test]
fn what_was_answered_right_before_redis_lost_it_is_said_again() {
    let Some(mut redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let mut a = two.subscribed("pub");
    // Answered as soon as it is the node's to send: which of two nodes is first in Redis is known once it is there.
    let is_kept = |data: String| {
        let kept = eventually(|| match query(&two, "channels/cache-x?info=cache") {
            answer if answer["cache"]["data"] == data.as_str() => Ok(()),
            answer => Err(answer.to_string()),
        });
        assert_eq!(kept, Ok(()));
    };
    for number in 0..3 {
        one.publish("cache-x", "e", &format!("one {number}"));
        is_kept(format!("one {number}"));
        two.publish("cache-x", "e", &format!("two {number}"));
        is_kept(format!("two {number}"));
        one.publish("pub", "e", &number.to_string());
        assert_eq!(a.hear_text(), event("pub", &number.to_string()));
    }
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    redis.restart();
    one.is_ready();
    two.is_ready();
    // The later of both stays the last, whoever is back first; and nobody hears anything twice.
    for node in [&one, &two] {
        assert_eq!(node.subscribed("cache-x").hear_text(), event("cache-x", "two 2"));
    }
    one.publish("pub", "e", "3");
    assert_eq!(a.hear_text(), event("pub", "3"));
}

#[test]
fn what_is_to_be_said_again_is_not_forgotten_with_a_link_that_fails() {
    // It refuses writes whenever it begins.
    let Some(mut redis) = Redis::start_with(&["--min-replicas-to-write", "1"], false) else {
        return;
    };
    let allow = |redis: &Redis| redis.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(allow(&redis), "OK");
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let mut own = one.subscribed("cache-x");
    assert!(own.hear_text().contains("cache_miss"));
    one.publish("cache-x", "e", "last");
    // Its own node has heard it, and no other.
    assert_eq!(own.hear_text(), event("cache-x", "last"));
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    redis.restart();
    for node in [&one, &two] {
        has_tried(node, 3);
    }
    assert_eq!(allow(&redis), "OK");
    one.is_ready();
    two.is_ready();
    assert_eq!(two.subscribed("cache-x").hear_text(), event("cache-x", "last"));
}

#[test]
fn logs_of_large_events_do_not_fill_redis() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one]: [Fixture; 1] = nodes(&cluster);
    let large = "x".repeat(90_000);
    for number in 0..70 {
        one.publish("pub", "e", &format!("{number}{large}"));
    }
    let log = format!("{}:{{{}/pub}}:l", cluster.prefix, crate::support::fixture::ID);
    let entries = eventually(|| match redis.ask(&["LLEN", &log]).parse::<usize>().unwrap() {
        // Four MiB, and a quarter more before it is cut.
        entries @ 46..59 => Ok(entries),
        entries => Err(entries.to_string()),
    });
    assert!(entries.is_ok(), "{entries:?}");
    // The node is told later than Redis does it.
    let link = one.running().shared().scope.others().unwrap().link().clone();
    let cut = eventually(|| match link.figures().cut.load(Ordering::Relaxed) {
        0 => Err("nothing was cut".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(cut, Ok(()));
}

#[test]
fn logs_that_different_nodes_publish_to_share_what_the_app_may_have() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let large = "x".repeat(90_000);
    (0..40).for_each(|number| one.publish(&format!("pub-{number}"), "e", &large));
    let log = format!("{}:{{{}/pub}}:l", cluster.prefix, crate::support::fixture::ID);
    // Of 41 logs each may have 1.56 MiB, and a quarter more before it is cut; alone this one might have four.
    (0..60).for_each(|_| two.publish("pub", "e", &large));
    let entries = eventually(|| {
        two.publish("pub", "e", &large);
        match redis.ask(&["LLEN", &log]).parse::<usize>().unwrap() {
            entries @ 17..23 => Ok(entries),
            entries => Err(entries.to_string()),
        }
    });
    assert!(entries.is_ok(), "{entries:?}");
}
