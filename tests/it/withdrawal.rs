//! Rights that a backend takes back from a user whose connections are on several nodes: all have left before it is
//! answered, each member leaves once, and what a node or Redis is away from is done when it is back.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cli;
use crate::cluster::{
    Process, event, hears_nothing, join, joined, nodes, notice, over_every_redis, removed, sign_in,
};
use crate::replay::{by_way, cut, mend};
use crate::support::Chance;
use crate::support::fixture::{Fixture, KEY, SECRET};
use crate::support::loopback::Loopback;
use crate::support::memory::{Memory, Talk};
use crate::support::redis::Redis;
use crate::support::sign::hmac_hex;
use crate::support::websocket::{Client, Heard};

over_every_redis! {
    rights_are_taken_back_on_every_node_before_the_answer,
    a_user_comes_back_on_every_node_with_new_signatures,
}

const WITHDRAWN: &str =
    r#"{\"type\":\"AuthError\",\"error\":\"Access was withdrawn.\",\"status\":403}"#;

fn enter(client: &mut Client, id: &str, channel: &str) {
    let auth = hmac_hex(SECRET, &format!("{id}:{channel}"));
    let data = json!({ "channel": channel, "auth": format!("{KEY}:{auth}") });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
}

/// A connection that is signed in as the user, in these private channels.
fn signed_in(node: &Fixture, user: &str, channels: &[&str]) -> (Client, String) {
    let (mut client, id) = node.connect();
    sign_in(&mut client, &id, &json!({ "id": user }));
    for channel in channels {
        enter(&mut client, &id, channel);
        assert!(client.hear_text().contains("subscription_succeeded"));
    }
    (client, id)
}

fn withdrawn(channel: &str) -> String {
    format!(r#"{{"event":"pusher:subscription_error","channel":"{channel}","data":"{WITHDRAWN}"}}"#)
}

fn unconfirmed(node: &Fixture) -> u64 {
    let shared = node.running().shared();
    let figures = shared.scope.others().unwrap().link().figures();
    figures.unconfirmed.load(Ordering::Relaxed)
}

fn take_back(node: &Fixture, channels: &[&str]) {
    let body = json!({ "channels": channels }).to_string();
    let answer = node.api("POST", "users/a/unsubscribe", &body);
    assert_eq!((answer.status, answer.text()), (200, "{}"));
}

fn rights_are_taken_back_on_every_node_before_the_answer(cluster: &ClusterConfig) {
    let [one, two, three]: [Fixture; 3] = nodes(cluster);
    let (mut watcher, _) = joined(&three, "presence-x", "w");
    let (mut a, id) = signed_in(&one, "a", &["private-a", "private-b"]);
    let (mut b, _) = joined(&two, "presence-x", "a");
    assert_eq!(notice(&mut watcher).1, "a");
    let (mut other, _) = signed_in(&two, "b", &["private-a"]);
    for asked in [&three, &one, &two] {
        take_back(asked, &["private-a", "presence-x"]);
        // Whichever node it comes to: nothing of the channels reaches them any more.
        for node in [&one, &two, &three] {
            node.publish("private-a", "e", "1");
            node.publish("presence-x", "e", "1");
        }
    }
    one.publish("private-b", "e", "2");
    assert_eq!(a.hear_text(), withdrawn("private-a"));
    assert_eq!(a.hear_text(), event("private-b", "2"));
    assert_eq!(b.hear_text(), withdrawn("presence-x"));
    hears_nothing(&mut b);
    // It left once, and who is somebody else hears on.
    let mut heard: Vec<String> = (0..10).map(|_| watcher.hear_text()).collect();
    heard.retain(|text| text.contains("member_removed"));
    assert_eq!(heard.len(), 1);
    (0..9).for_each(|_| assert_eq!(other.hear_text(), event("private-a", "1")));
    hears_nothing(&mut other);
    // It stays closed to the connection.
    enter(&mut a, &id, "private-a");
    assert_eq!(a.hear_text(), withdrawn("private-a"));
    assert_eq!([&one, &two, &three].map(unconfirmed), [0; 3]);
}

fn a_user_comes_back_on_every_node_with_new_signatures(cluster: &ClusterConfig) {
    let [one, two]: [Fixture; 2] = nodes(cluster);
    let (mut a, _) = signed_in(&two, "a", &["private-a"]);
    let (mut b, _) = joined(&one, "presence-x", "a");
    let (mut other, _) = signed_in(&two, "b", &[]);
    assert_eq!(one.api("POST", "users/a/reconnect", "{}").text(), "{}");
    for client in [&mut a, &mut b] {
        assert!(client.hear_text().contains(r#""code":4200"#));
    }
    hears_nothing(&mut other);
    // By hand it is the same.
    let (mut a, _) = signed_in(&two, "a", &["private-a"]);
    let output = cli::ask(&cli::url(&one), &["revoke", "a", "private-a"]);
    assert_eq!(cli::text(&output), "a has left private-a.\n");
    assert_eq!(a.hear_text(), withdrawn("private-a"));
    assert!(cli::ask(&cli::url(&one), &["reconnect", "a"]).status.success());
    assert!(a.hear_text().contains(r#""code":4200"#));
    // Who comes afterwards stays.
    let (mut a, _) = signed_in(&two, "a", &["private-a"]);
    one.publish("private-a", "e", "1");
    assert_eq!(a.hear_text(), event("private-a", "1"));
}

#[test]
fn a_node_that_does_not_answer_is_counted_and_does_it_when_it_wakes() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one]: [Fixture; 1] = nodes(&cluster);
    let asleep = Process::start(&cluster);
    asleep.is_ready();
    let (mut watcher, _) = joined(&one, "presence-x", "w");
    let (mut a, id) = asleep.connect();
    join(&mut a, &id, "presence-x", "a");
    assert_eq!(notice(&mut watcher).1, "a");
    take_back(&one, &["presence-y"]);
    assert_eq!(unconfirmed(&one), 0);
    asleep.signal("STOP");
    take_back(&one, &["presence-x"]);
    assert_eq!(unconfirmed(&one), 1);
    asleep.signal("CONT");
    assert_eq!(a.hear_text(), withdrawn("presence-x"));
    assert_eq!(notice(&mut watcher), removed("a"));
}

#[test]
fn what_is_taken_back_while_redis_is_away_is_taken_back_elsewhere_once_it_is_there() {
    let Some(redis) = Redis::start() else { return };
    // It waits longer than an event may.
    let cluster = ClusterConfig { queue_age: Duration::from_millis(1), ..redis.cluster() };
    let (one, way) = by_way(&cluster, |_| 0);
    let [two]: [Fixture; 1] = nodes(&cluster);
    let (mut a, id) = signed_in(&two, "a", &["private-a"]);
    let (mut b, b_id) = signed_in(&one, "a", &["private-a"]);
    cut(&one, &way);
    take_back(&one, &["private-a"]);
    assert_eq!(b.hear_text(), withdrawn("private-a"));
    assert_eq!(unconfirmed(&one), 1);
    hears_nothing(&mut a);
    one.publish("private-c", "e", "1");
    mend(&one, &way);
    assert_eq!(a.hear_text(), withdrawn("private-a"));
    enter(&mut a, &id, "private-a");
    assert_eq!(a.hear_text(), withdrawn("private-a"));
    // The other way round: the node that is cut off was asked by another, and does it once it hears of it.
    cut(&one, &way);
    take_back(&two, &["private-d"]);
    mend(&one, &way);
    enter(&mut b, &b_id, "private-d");
    assert_eq!(b.hear_text(), withdrawn("private-d"));
}

/// The time of both was compared in steps of 10 ms: whoever came back within one, on a worker that had not carried it
/// out yet, lost its new rights too.
#[test]
fn what_was_signed_anew_within_a_hundredth_of_a_second_was_taken_back_as_well() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();
    let memory = Memory::new(2, |_| {});
    let signed_in = |worker| {
        let mut talk = memory.connect(worker);
        talk.sign_in(r#"{"id":"a"}"#);
        talk.subscribe("private-a", "");
        assert_eq!(talk.heard().len(), 2);
        talk
    };
    let mut before = signed_in(0);
    let withdrawing = memory.withdraw(0, "a", &["private-a"]);
    let mut after = signed_in(1);
    memory.deliver_all();
    for talk in [&mut before, &mut after] {
        talk.session.resume();
    }
    assert_eq!(before.heard(), [Heard::Text(withdrawn("private-a"))]);
    assert_eq!(after.heard(), []);
    drop(withdrawing);
}

#[test]
fn over_a_loopback_the_answer_waits_for_every_node_and_a_cut_one_does_it_later() {
    let mut chance = Chance::new("withdrawal");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();
    let mut cx = Context::from_waker(Waker::noop());
    let mut all = Loopback::new(3, |_| {});
    let mut talks: Vec<Talk> = (0..3).map(|node| all.nodes[node].memory.connect(0)).collect();
    for talk in &mut talks {
        talk.sign_in(r#"{"id":"a"}"#);
        talk.subscribe("private-a", "");
    }
    let settle = |all: &mut Loopback, talks: &mut [Talk], chance: &mut Chance| {
        let mut heard = vec![Vec::new(); talks.len()];
        for _ in 0..3 {
            while all.step(chance) {}
            for (talk, heard) in talks.iter_mut().zip(&mut heard) {
                talk.session.resume();
                heard.extend(talk.heard());
            }
            all.nodes.iter().for_each(|node| node.memory.deliver_all());
        }
        heard
    };
    settle(&mut all, &mut talks, &mut chance);
    let mut withdrawing = pin!(all.nodes[0].memory.withdraw(0, "a", &["private-a"]));
    assert_eq!(withdrawing.as_mut().poll(&mut cx), Poll::Pending);
    let heard = settle(&mut all, &mut talks, &mut chance);
    for heard in heard {
        assert_eq!(heard, [Heard::Text(withdrawn("private-a"))]);
    }
    assert_eq!(withdrawing.as_mut().poll(&mut cx), Poll::Ready(()));
    all.cut(2);
    let mut withdrawing = pin!(all.nodes[1].memory.withdraw(0, "a", &["private-b"]));
    settle(&mut all, &mut talks, &mut chance);
    assert_eq!(withdrawing.as_mut().poll(&mut cx), Poll::Pending, "one is cut off");
    all.mend(2);
    settle(&mut all, &mut talks, &mut chance);
    assert_eq!(withdrawing.as_mut().poll(&mut cx), Poll::Ready(()));
    talks[2].subscribe("private-b", "");
    let heard = settle(&mut all, &mut talks, &mut chance);
    assert_eq!(heard[2], [Heard::Text(withdrawn("private-b"))]);
}
