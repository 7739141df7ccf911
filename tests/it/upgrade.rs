//! Nodes that change while the others go on: two versions side by side, and a node that stops for another.

use std::sync::atomic::Ordering;

use fanfare::cluster::envelope::VERSION;
use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cluster::{
    added, event, eventually_answers, hears_nothing, join, joined, nodes, notice, query, removed,
};
use crate::replay::{by_way, cut, have_sent, mend};
use crate::support::fixture::{Fixture, ID};
use crate::support::redis::Redis;
use crate::support::websocket::{Client, Heard};

/// Makes what a node sends the next version's. The mark is an envelope's fourth byte, kind and flags stand
/// before it, and in a command a line's end stands before all.
fn newer(bytes: &mut [u8]) -> usize {
    let mut edits = 0;
    for at in 2..bytes.len().saturating_sub(3) {
        let is_version = (1..=VERSION).contains(&bytes[at]);
        if bytes[at - 2..at] == *b"\r\n" && is_version && bytes[at + 3] == 0xfa {
            bytes[at] = VERSION + 1;
            edits += 1;
        }
    }
    edits
}

#[test]
fn two_versions_work_side_by_side() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((new, way), [old]) = (by_way(&cluster, newer), nodes::<1>(&cluster));
    let (mut a, _) = joined(&new, "presence-x", "a");
    let (mut b, ids) = joined(&old, "presence-x", "b");
    assert_eq!(ids, json!(["a", "b"]));
    assert_eq!(notice(&mut a), added("b"));
    let (c, ids) = joined(&new, "presence-x", "c");
    assert_eq!(ids, json!(["a", "b", "c"]));
    assert_eq!((notice(&mut a), notice(&mut b)), (added("c"), added("c")));
    let mut caches: Vec<Client> =
        [&new, &old].map(|node| node.subscribed("cache-x")).into_iter().collect();
    for (number, node) in [&new, &old, &new, &old].into_iter().enumerate() {
        let number = number.to_string();
        node.publish("presence-x", "e", &number);
        node.publish("cache-x", "e", &number);
        for client in [&mut a, &mut b] {
            assert_eq!(client.hear_text(), event("presence-x", &number));
        }
        for cache in &mut caches {
            let mut text = cache.hear_text();
            if text.contains("cache_miss") {
                text = cache.hear_text();
            }
            assert_eq!(text, event("cache-x", &number));
        }
    }
    drop(c);
    assert_eq!((notice(&mut a), notice(&mut b)), (removed("c"), removed("c")));
    // What each missed it reads from logs that both have written to, whatever it does not know itself.
    cut(&new, &way);
    old.publish("presence-x", "e", "4");
    let topic = format!("{}:on:{{{ID}/presence-x}}", cluster.prefix);
    let unknown = format!(
        "return redis.call('SPUBLISH', KEYS[1], '\\{}\\127\\0\\250' .. string.rep('x', 40))",
        VERSION + 1
    );
    assert_eq!(redis.ask(&["EVAL", &unknown, "1", &topic]), "1");
    have_sent(&[&old]);
    mend(&new, &way);
    new.publish("presence-x", "e", "5");
    for number in ["4", "5"] {
        assert_eq!(a.hear_text(), event("presence-x", number));
        assert_eq!(b.hear_text(), event("presence-x", number));
    }
    assert_eq!(query(&old, "channels/presence-x/users"), query(&new, "channels/presence-x/users"));
    assert_eq!(new.api("POST", "users/b/terminate_connections", "").status, 200);
    assert!(b.hear_text().contains(r#""code":4009"#));
    assert_eq!(notice(&mut a), removed("b"));
    assert!(way.edits() > 10, "{} envelopes were of another version", way.edits());
    let link = old.running().shared().scope.others().unwrap().link().clone();
    let figures = link.figures();
    assert_eq!(figures.invalid.load(Ordering::Relaxed), 0);
    assert_eq!(figures.unknown_kind.load(Ordering::Relaxed), 1);
}

/// Members whom a node that stops has closed, and who come back, neither leave nor are there twice; the
/// others leave once, when it has stopped.
fn members_stay(cluster: &ClusterConfig, stop: fn(&Fixture)) {
    let [one, two]: [Fixture; 2] = nodes(cluster);
    let (mut a, _) = joined(&two, "presence-x", "a");
    let (mut b, _) = joined(&one, "presence-x", "b");
    let (mut c, ids) = joined(&one, "presence-x", "c");
    assert_eq!(ids, json!(["a", "b", "c"]));
    assert_eq!((notice(&mut a), notice(&mut a)), (added("b"), added("c")));
    stop(&one);
    for client in [&mut b, &mut c] {
        while !matches!(client.hear(), Heard::Close(_) | Heard::End) {}
    }
    eventually_answers(
        &two,
        "channels/presence-x?info=subscription_count",
        &json!({ "occupied": true, "subscription_count": 1 }),
    );
    let (mut b, id) = two.connect();
    assert_eq!(join(&mut b, &id, "presence-x", "b"), json!(["a", "b", "c"]));
    hears_nothing(&mut a);
    one.stop();
    assert_eq!((notice(&mut a), notice(&mut b)), (removed("c"), removed("c")));
    hears_nothing(&mut a);
    let users = json!({ "users": [{ "id": "a" }, { "id": "b" }] });
    assert_eq!(query(&two, "channels/presence-x/users"), users);
}

#[test]
fn members_stay_when_their_node_stops() {
    let Some(redis) = Redis::start() else { return };
    members_stay(&redis.cluster(), Fixture::drain);
}

#[test]
fn members_stay_when_another_process_goes_on() {
    let Some(redis) = Redis::start() else { return };
    members_stay(&redis.cluster(), |node| node.running().hand_over());
}
