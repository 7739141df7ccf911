//! Clients that come back to another node, after whatever ended their last connection, over a Redis server of the
//! test's own and over a Redis Cluster: each hears what it has not acknowledged, in order and before what is new.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fanfare::app::{App, AppId};
use fanfare::config::ClusterConfig;
use fanfare::hub::resume::ResumeFigures;
use serde_json::{Value, json};

use crate::cluster::{event, hears_nothing, join, node, over_every_redis, query, sign_in};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, established};
use crate::support::sign::hmac_hex;
use crate::support::websocket::Client;

over_every_redis! {
    who_comes_back_to_another_node_hears_what_it_missed,
    what_was_acknowledged_is_not_told_again_though_the_old_connection_is_open_elsewhere,
    events_that_excluded_a_connection_of_the_client_are_not_told_it_on_another_node,
    a_page_heard_its_own_event_once_it_had_a_newer_connection,
    a_right_that_was_taken_back_meanwhile_brings_nothing,
    a_log_that_does_not_reach_back_is_told_as_a_gap,
    who_comes_after_its_time_is_told_of_a_gap_and_nothing_is_left_of_it,
    cached_events_and_whispers_are_told_as_on_one_node,
    an_app_at_its_limit_lets_a_client_come_to_another_node,
    several_channels_and_moves_bring_every_event_once_and_in_order,
}

pub const TOKEN: &str = "0123456789abcdef-token";
pub const GAP: &str = r#"{"event":"resume:gap","channel":"pub","data":"{}"}"#;
const PING: &str = r#"{"event":"pusher:ping","data":"{}"}"#;
const PONG: &str = r#"{"event":"pusher:pong","data":{}}"#;

pub fn resumable(cluster: &ClusterConfig, change: impl Fn(&mut App)) -> Fixture {
    let node = node(cluster, |app| {
        app.features.resume = Duration::from_secs(120);
        change(app);
    });
    node.is_ready();
    node
}

pub fn two(cluster: &ClusterConfig) -> [Fixture; 2] {
    std::array::from_fn(|_| resumable(cluster, |_| {}))
}

pub fn target(token: &str) -> String {
    format!("/resume/{token}/app/{KEY}?protocol=7&client=js")
}

/// A connection of the client with that token.
pub fn come(node: &Fixture, token: &str) -> (Client, String) {
    let mut client = Client::open(node.addr, &target(token), &[]).unwrap();
    let id = established(&client.hear_text()).unwrap();
    (client, id)
}

pub fn enter(client: &mut Client, id: &str, channel: &str) {
    let auth = hmac_hex(SECRET, &format!("{id}:{channel}"));
    let data = json!({ "channel": channel, "auth": format!("{KEY}:{auth}") });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
    let text = next_text(client);
    assert!(text.contains("subscription_succeeded"), "{text}");
}

/// The next text that asks for no acknowledgement. Where there is time between two texts, the first may be asked about
/// before the second comes; that is answered, so that what comes now is asked about too.
fn next_text(client: &mut Client) -> String {
    let text = client.hear_text();
    if text != PING {
        return text;
    }
    client.send_text(PONG);
    client.hear_text()
}

/// A connection of the client, subscribed.
pub fn back(node: &Fixture, token: &str, channel: &str) -> (Client, String) {
    let (mut client, id) = come(node, token);
    enter(&mut client, &id, channel);
    (client, id)
}

/// Waits to be asked, and answers: all before is acknowledged.
pub fn acknowledge(client: &mut Client) {
    assert_eq!(client.hear_text(), PING);
    client.send_text(PONG);
    hears_nothing(client);
}

/// Hears these events, and acknowledges those before the last if it is asked.
pub fn hears(client: &mut Client, channel: &str, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        assert_eq!(next_text(client), event(channel, &number.to_string()));
    }
}

pub fn figure(node: &Fixture, read: impl Fn(&ResumeFigures) -> &AtomicU64) -> u64 {
    let directory = node.running().shared().hub.directory(&AppId::new(ID));
    read(&directory.resume.figures).load(Ordering::Relaxed)
}

/// Waits until nobody is subscribed to the channel any more.
pub fn is_empty(node: &Fixture, channel: &str) {
    eventually(|| match query(node, &format!("channels/{channel}"))["occupied"] {
        Value::Bool(false) => Ok(()),
        _ => Err("occupied".to_owned()),
    })
    .unwrap();
}

fn who_comes_back_to_another_node_hears_what_it_missed(cluster: &ClusterConfig) {
    let [one, two] = two(cluster);
    let (mut a, _) = back(&one, TOKEN, "private-x");
    let mut plain = two.subscribed("pub");
    one.publish("private-x", "e", "1");
    two.publish("private-x", "e", "2");
    let mut heard = [next_text(&mut a), next_text(&mut a)];
    heard.sort_unstable();
    assert_eq!(heard, [event("private-x", "1"), event("private-x", "2")]);
    acknowledge(&mut a);
    drop(a);
    for number in 3..6 {
        two.publish("private-x", "e", &number.to_string());
    }
    // Another client, and one without a token, hear nothing of it.
    let (mut other, _) = back(&two, "another-token-0123456789", "private-x");
    let (mut b, id) = come(&two, TOKEN);
    enter(&mut b, &id, "private-x");
    hears(&mut b, "private-x", 3..6);
    two.publish("private-x", "e", "6");
    while b.hear_text() != event("private-x", "6") {}
    // What it had been told and has not acknowledged comes again, on the first node too.
    drop(b);
    let (mut c, _) = back(&one, TOKEN, "private-x");
    hears(&mut c, "private-x", 3..7);
    acknowledge(&mut c);
    hears_nothing(&mut plain);
    hears(&mut other, "private-x", [6]);
    for node in [&one, &two] {
        node.is_well();
    }
}

fn what_was_acknowledged_is_not_told_again_though_the_old_connection_is_open_elsewhere(
    cluster: &ClusterConfig,
) {
    let [one, two] = two(cluster);
    let (mut a, _) = back(&one, TOKEN, "pub");
    for round in 0..3 {
        let at = if round % 2 == 0 { &two } else { &one };
        at.publish("pub", "e", &(2 * round).to_string());
        hears(&mut a, "pub", [2 * round]);
        acknowledge(&mut a);
        // It is not known yet that the connection is of no use.
        let (mut next, id) = come(at, TOKEN);
        let text = a.hear_text();
        assert!(text.contains(r#""code":4200"#), "{text}");
        at.publish("pub", "e", &(2 * round + 1).to_string());
        enter(&mut next, &id, "pub");
        hears(&mut next, "pub", [2 * round + 1]);
        acknowledge(&mut next);
        a = next;
    }
    hears_nothing(&mut a);
}

fn events_that_excluded_a_connection_of_the_client_are_not_told_it_on_another_node(
    cluster: &ClusterConfig,
) {
    let [one, two] = two(cluster);
    let (a, id) = back(&one, TOKEN, "pub");
    drop(a);
    is_empty(&two, "pub");
    let body = json!({ "name": "e", "channel": "pub", "data": "1", "socket_id": id }).to_string();
    assert_eq!(two.api("POST", "events", &body).status, 200);
    two.publish("pub", "e", "2");
    let (mut b, _) = back(&two, TOKEN, "pub");
    hears(&mut b, "pub", [2]);
    // Nor on the next, of any connection that it had.
    drop(b);
    let (mut c, _) = back(&one, TOKEN, "pub");
    hears(&mut c, "pub", [2]);
    acknowledge(&mut c);
}

/// A page names the connection that it had when it asked its backend, which publishes once the page has come back.
fn a_page_heard_its_own_event_once_it_had_a_newer_connection(cluster: &ClusterConfig) {
    let [one, two] = two(cluster);
    let (a, id) = back(&one, TOKEN, "pub");
    drop(a);
    is_empty(&two, "pub");
    let (mut b, _) = back(&two, TOKEN, "pub");
    let (mut other, other_id) = two.connect();
    enter(&mut other, &other_id, "pub");
    let own = |data: &str| {
        let body = json!({ "name": "e", "channel": "pub", "data": data, "socket_id": id });
        assert_eq!(one.api("POST", "events", &body.to_string()).status, 200);
    };
    own("1");
    one.publish("pub", "e", "2");
    hears(&mut b, "pub", [2]);
    hears(&mut other, "pub", [1, 2]);
    acknowledge(&mut b);
    // The same once it has come back to where it was.
    let (mut c, _) = back(&one, TOKEN, "pub");
    own("3");
    one.publish("pub", "e", "4");
    hears(&mut c, "pub", [4]);
}

fn a_right_that_was_taken_back_meanwhile_brings_nothing(cluster: &ClusterConfig) {
    let [one, two] = two(cluster);
    let (mut a, id) = come(&one, TOKEN);
    sign_in(&mut a, &id, &json!({ "id": "u" }));
    enter(&mut a, &id, "private-x");
    enter(&mut a, &id, "private-y");
    drop(a);
    is_empty(&two, "private-x");
    is_empty(&two, "private-y");
    two.publish("private-x", "e", "1");
    two.publish("private-y", "e", "1");
    let body = r#"{"channels":["private-x"]}"#;
    assert_eq!(two.api("POST", "users/u/unsubscribe", body).status, 200);
    let (mut b, id) = come(&two, TOKEN);
    sign_in(&mut b, &id, &json!({ "id": "u" }));
    // It is another connection, for which the app signs what it likes.
    enter(&mut b, &id, "private-x");
    hears_nothing(&mut b);
    enter(&mut b, &id, "private-y");
    hears(&mut b, "private-y", [1]);
    // While it is open, and comes to another node afterwards.
    let body = r#"{"channels":["private-y"]}"#;
    assert_eq!(two.api("POST", "users/u/unsubscribe", body).status, 200);
    drop(b);
    two.publish("private-y", "e", "2");
    let (mut c, _) = back(&one, TOKEN, "private-y");
    hears_nothing(&mut c);
}

fn a_log_that_does_not_reach_back_is_told_as_a_gap(cluster: &ClusterConfig) {
    let cluster = ClusterConfig { replay: 4, ..cluster.clone() };
    let [one, two] = two(&cluster);
    let (a, _) = back(&one, TOKEN, "pub");
    drop(a);
    is_empty(&two, "pub");
    for number in 0..40 {
        two.publish("pub", "e", &number.to_string());
    }
    let (mut b, _) = back(&two, TOKEN, "pub");
    assert_eq!(b.hear_text(), GAP);
    let first = b.hear_text();
    assert!((30..40).any(|number| event("pub", &number.to_string()) == first), "{first}");
    two.publish("pub", "e", "40");
    while b.hear_text() != event("pub", "40") {}
    assert_eq!(figure(&two, |figures| &figures.gaps), 1);
}

fn who_comes_after_its_time_is_told_of_a_gap_and_nothing_is_left_of_it(cluster: &ClusterConfig) {
    let [one, two] = std::array::from_fn(|_| {
        resumable(cluster, |app| app.features.resume = Duration::from_secs(1))
    });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let token = format!("{}-0123456789abcdef", now.as_secs());
    let (a, _) = back(&one, &token, "pub");
    drop(a);
    is_empty(&two, "pub");
    eventually(|| {
        let both = |read: fn(&ResumeFigures) -> &AtomicU64| figure(&one, read) + figure(&two, read);
        match (both(|figures| &figures.waiting), both(|figures| &figures.expired)) {
            (0, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    two.publish("pub", "e", "1");
    let (mut b, _) = back(&two, &token, "pub");
    assert_eq!(b.hear_text(), GAP);
    hears_nothing(&mut b);
}

fn cached_events_and_whispers_are_told_as_on_one_node(cluster: &ClusterConfig) {
    let [one, two] = std::array::from_fn(|_| {
        resumable(cluster, |app| app.client_events = fanfare::app::ClientEvents::Members)
    });
    let (mut a, id) = back(&one, TOKEN, "cache-c");
    assert!(a.hear_text().contains("cache_miss"));
    enter(&mut a, &id, "private-w");
    drop(a);
    is_empty(&two, "cache-c");
    is_empty(&two, "private-w");
    two.publish("cache-c", "e", "1");
    one.publish("cache-c", "e", "2");
    let (mut other, other_id) = two.connect();
    enter(&mut other, &other_id, "private-w");
    other.send_text(r#"{"event":"client-x","channel":"private-w","data":"hi"}"#);
    hears_nothing(&mut other);
    two.publish("private-w", "e", "3");
    let (mut b, id) = back(&two, TOKEN, "cache-c");
    let mut heard = [next_text(&mut b), next_text(&mut b)];
    heard.sort_unstable();
    assert_eq!(heard, [event("cache-c", "1"), event("cache-c", "2")]);
    enter(&mut b, &id, "private-w");
    hears(&mut b, "private-w", [3]);
    acknowledge(&mut b);
    // With everything acknowledged there is nothing in the place of the kept event either.
    drop(b);
    is_empty(&one, "cache-c");
    let (mut c, _) = back(&one, TOKEN, "cache-c");
    hears_nothing(&mut c);
}

fn an_app_at_its_limit_lets_a_client_come_to_another_node(cluster: &ClusterConfig) {
    let [one, two] =
        std::array::from_fn(|_| resumable(cluster, |app| app.limits.max_connections = 1));
    let (mut a, _) = back(&one, TOKEN, "pub");
    eventually(|| {
        let mut client =
            Client::open(two.addr, &crate::support::fixture::target(KEY), &[]).unwrap();
        let text = client.hear_text();
        if text.contains(r#""code":4004"#) { Ok(()) } else { Err(text) }
    })
    .unwrap();
    let (mut b, _) = back(&two, TOKEN, "pub");
    assert!(a.hear_text().contains(r#""code":4200"#));
    hears_nothing(&mut b);
}

fn several_channels_and_moves_bring_every_event_once_and_in_order(cluster: &ClusterConfig) {
    let nodes = two(cluster);
    let moved = (0..5).any(|time| all_is_heard_over_moves(&nodes, &format!("{TOKEN}-{time}")));
    assert!(moved, "a node took too long to hand a client over, each time");
}

/// How long a node may take to hand a client over; after that there is a gap, and rightly so.
const HANDING_OVER: Duration = Duration::from_secs(1);

/// Whether a client that goes to and fro hears all; it does not where a node was too slow.
fn all_is_heard_over_moves(nodes: &[Fixture; 2], token: &str) -> bool {
    let channels = ["pub", "private-x", "presence-p"];
    let subscribe = |client: &mut Client, id: &str| {
        enter(client, id, "private-x");
        crate::support::fixture::subscribe(client, "pub");
        join(client, id, "presence-p", "u");
    };
    let (mut a, id) = come(&nodes[0], token);
    subscribe(&mut a, &id);
    let mut next = [0; 3];
    for round in 0..12 {
        // Some of it while it is there, which it may or may not have when it is cut off.
        for (place, channel) in channels.iter().enumerate() {
            for _ in 0..round % 4 {
                nodes[(round + place) % 2].publish(channel, "e", &next[place].to_string());
                next[place] += 1;
            }
        }
        let before = (round % 3 > 0).then_some(a);
        let begun = Instant::now();
        let (mut b, id) = come(&nodes[(round + 1) % 2], token);
        if begun.elapsed() >= HANDING_OVER {
            // Whoever asks is answered after what was sent before: nothing comes late to the next client.
            nodes.iter().for_each(|node| drop(query(node, "channels")));
            return false;
        }
        let mut heard: Vec<Vec<usize>> = vec![Vec::new(); 3];
        let mut asked = false;
        let mut take = |client: &mut Client, until: [usize; 3]| {
            while (0..3).any(|place| heard[place].last().map_or(0, |last| last + 1) < until[place])
            {
                let text = client.hear_text();
                let frame: Value = serde_json::from_str(&text).unwrap();
                let name = frame["channel"].as_str().unwrap_or_default();
                if frame["event"] == "e" {
                    let place = channels.iter().position(|channel| *channel == name).unwrap();
                    heard[place].push(frame["data"].as_str().unwrap().parse().unwrap());
                }
                asked |= frame["event"] == "pusher:ping";
                assert_ne!(frame["event"], "resume:gap");
            }
        };
        for (at, channel) in channels.iter().enumerate() {
            let data = match at {
                2 => {
                    let data = json!({ "user_id": "u", "user_info": {} }).to_string();
                    let auth = hmac_hex(SECRET, &format!("{id}:{channel}:{data}"));
                    json!({ "channel": channel, "auth": format!("{KEY}:{auth}"), "channel_data": data })
                }
                _ => {
                    let auth = hmac_hex(SECRET, &format!("{id}:{channel}"));
                    json!({ "channel": channel, "auth": format!("{KEY}:{auth}") })
                }
            };
            b.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
            nodes[at % 2].publish(channel, "e", &next[at].to_string());
            next[at] += 1;
        }
        take(&mut b, next);
        for numbers in &heard {
            let first = numbers[0];
            let expected: Vec<usize> = (first..first + numbers.len()).collect();
            assert_eq!(*numbers, expected, "in order and once on one connection");
        }
        acknowledge_late(&mut b, asked);
        drop(before);
        a = b;
    }
    true
}

/// Answers the ping that comes some time, if it has not come.
fn acknowledge_late(client: &mut Client, asked: bool) {
    while !asked && client.hear_text() != PING {}
    client.send_text(PONG);
    client.send_text(r#"{"event":"pusher:ping"}"#);
    while !client.hear_text().contains("pusher:pong") {}
}
