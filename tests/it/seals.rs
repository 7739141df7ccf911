//! Messages of strangers on the topics of a cluster, or that were changed on their way, are not believed: each fault
//! named after what it did before.

use std::sync::atomic::Ordering;

use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cluster::{added, event, hears_nothing, joined, nodes, notice, removed};
use crate::replay::{by_way, cut, mend};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID};
use crate::support::redis::Redis;

fn unsealed(node: &Fixture) -> u64 {
    let cluster = node.running().shared().scope.others().unwrap();
    cluster.link().figures().unsealed.load(Ordering::Relaxed)
}

fn refuses(node: &Fixture, count: u64) {
    let refused = eventually(|| match unsealed(node) {
        refused if refused >= count => Ok(()),
        refused => Err(refused.to_string()),
    });
    assert_eq!(refused, Ok(()));
}

/// Says on a channel's topic what a script makes of the last entry of its log, `e`.
fn forge(redis: &Redis, prefix: &str, channel: &str, forged: &str) {
    let log = format!("{prefix}:{{{ID}/{channel}}}:l");
    let topic = format!("{prefix}:on:{{{ID}/{channel}}}");
    let script = format!(
        "local e = redis.call('LINDEX', KEYS[1], -1) local f = {forged} \
         redis.call('RPUSH', KEYS[1], f) return redis.call('SPUBLISH', KEYS[2], f)"
    );
    redis.ask(&["EVAL", &script, "2", &log, &topic]);
}

#[test]
fn a_changed_serial_silences_nobody() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let mut a = one.subscribed("pub");
    two.publish("pub", "e", "1");
    assert_eq!(a.hear_text(), event("pub", "1"));
    let serial = r"string.sub(e, 1, 12) .. string.rep('\255', 8) .. string.sub(e, 21)";
    forge(&redis, &cluster.prefix, "pub", serial);
    two.publish("pub", "e", "2");
    assert_eq!(a.hear_text(), event("pub", "2"));
    refuses(&one, 1);
}

#[test]
fn a_bit_that_is_changed_on_the_way_to_redis_costs_one_event() {
    /// Changes the serial of the second event.
    fn change(bytes: &mut [u8]) -> usize {
        let serial = [0, 0, 0, 0, 0, 0, 0, 2];
        let mut edits = 0;
        for at in 12..bytes.len().saturating_sub(8) {
            // Behind the header's beginning: version, kind, flags, mark, and the sender.
            if bytes[at..at + 8] == serial && bytes[at - 9] == 0xfa && bytes[at - 11] == 1 {
                bytes[at] ^= 0x80;
                edits += 1;
            }
        }
        edits
    }
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (by_way(&cluster, change), nodes(&cluster));
    let mut a = two.subscribed("pub");
    for number in 1..=4 {
        one.publish("pub", "e", &number.to_string());
    }
    for number in [1, 3, 4] {
        assert_eq!(a.hear_text(), event("pub", &number.to_string()));
    }
    // A link that was slow is made anew, and what was not answered on it is said again, changed in the same way.
    assert!(way.edits() >= 1);
    assert!((1..=way.edits() as u64).contains(&unsealed(&two)), "{}", unsealed(&two));
}

#[test]
fn a_forged_version_freezes_no_roster() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (mut b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    two.publish("presence-x", "e", "1");
    assert_eq!(a.hear_text(), event("presence-x", "1"));
    assert_eq!(b.hear_text(), event("presence-x", "1"));
    // Without a seal and with one, that somebody came and that somebody left.
    let version = "9999999999999999";
    for (kind, flags, rest) in
        [(3, 0, r"\0\0\0\1z{}"), (3, 2, r"\0\0\0\1z{}"), (4, 0, "b"), (4, 2, "b")]
    {
        let forged = format!(
            r"'\1\{kind}\{flags}\250' .. string.sub(e, 5, 12) .. string.rep('\0', 8) .. string.sub(e, 21, 28) .. '{version}{rest}'"
        );
        forge(&redis, &cluster.prefix, "presence-x", &forged);
    }
    refuses(&one, 4);
    let (c, _) = joined(&two, "presence-x", "c");
    assert_eq!(notice(&mut a), added("c"));
    drop(c);
    assert_eq!(notice(&mut a), removed("c"));
    hears_nothing(&mut a);
}

#[test]
fn a_forged_place_makes_nobody_miss_anything() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (by_way(&cluster, |_| 0), nodes(&cluster));
    let mut a = one.subscribed("pub");
    two.publish("pub", "e", "1");
    assert_eq!(a.hear_text(), event("pub", "1"));
    let place = "string.sub(e, 1, 28) .. '9999999999999999' .. string.sub(e, 45)";
    forge(&redis, &cluster.prefix, "pub", place);
    refuses(&one, 1);
    cut(&one, &way);
    two.publish("pub", "e", "2");
    mend(&one, &way);
    assert_eq!(a.hear_text(), event("pub", "2"));
    cut(&one, &way);
    two.publish("pub", "e", "3");
    mend(&one, &way);
    assert_eq!(a.hear_text(), event("pub", "3"));
    hears_nothing(&mut a);
}

#[test]
fn one_prefix_on_two_databases_is_two_clusters() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let other = ClusterConfig { redis: vec![format!("{}/5", cluster.redis[0])], ..cluster.clone() };
    let ([one], [two]) = (nodes::<1>(&cluster), nodes::<1>(&other));
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (mut b, ids) = joined(&two, "presence-x", "b");
    assert_eq!(ids, json!(["b"]));
    one.publish("presence-x", "e", "1");
    two.publish("presence-x", "e", "2");
    assert_eq!(a.hear_text(), event("presence-x", "1"));
    assert_eq!(b.hear_text(), event("presence-x", "2"));
    refuses(&one, 2);
    refuses(&two, 1);
    assert_eq!(two.api("POST", "users/a/terminate_connections", "").status, 200);
    refuses(&one, 3);
    hears_nothing(&mut a);
    hears_nothing(&mut b);
}

#[test]
fn what_a_node_that_knows_no_seals_says_is_read_once_it_is_there() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one]: [Fixture; 1] = nodes(&cluster);
    let mut a = one.subscribed("pub");
    // Its lease, as it notes it, and an event of it.
    let leases = format!("{}:leases", cluster.prefix);
    let say = |number: u8| {
        let log = format!("{}:{{{ID}/pub}}:l", cluster.prefix);
        let topic = format!("{}:on:{{{ID}/pub}}", cluster.prefix);
        let text = event("pub", &number.to_string());
        let frame = format!(r"\129\{}{text}", text.len());
        let script = format!(
            r#"local t = redis.call('TIME') local place = string.format('%016.0f', t[1] * 1000000 + t[2])
            local e = '\1\1\1\250' .. string.rep('\9', 8) .. string.rep('\0', 7) .. '\{number}' .. string.rep('\0', 8)
              .. place .. string.rep('\0', 16) .. '{frame}'
            redis.call('RPUSH', KEYS[1], e) return redis.call('SPUBLISH', KEYS[2], e)"#
        );
        assert_eq!(redis.ask(&["EVAL", &script, "2", &log, &topic]), "1");
    };
    redis.ask(&["ZADD", &leases, "99999999999999", "0123456789abcdef"]);
    say(1);
    say(2);
    for number in ["1", "2"] {
        assert_eq!(a.hear_text(), event("pub", number));
    }
    hears_nothing(&mut a);
}
