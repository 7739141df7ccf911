//! Several nodes whose way to Redis is cut while Redis lives: each catches up with what the others said
//! meanwhile, in order and once, or counts that it cannot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::app::App;
use fanfare::cluster::link::Link;
use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cluster::{added, event, hears_nothing, joined, nodes, notice, query, sign_in};
use crate::metrics::scrape;
use crate::outage::is_cut_off;
use crate::support::cut::{Edit, Way};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, config, subscribe, trigger};
use crate::support::http::Http;
use crate::support::redis::Redis;
use crate::support::websocket::Client;

/// A node whose way to Redis can be cut.
fn cuttable(cluster: &ClusterConfig) -> (Fixture, Way) {
    by_way(cluster, |_| 0)
}

/// The same where what it says is changed on the way.
pub fn by_way(cluster: &ClusterConfig, edit: Edit) -> (Fixture, Way) {
    let (_, port) = cluster.redis[0].rsplit_once(':').unwrap();
    let way = Way::to(port.parse().unwrap(), edit);
    let url = format!("redis://127.0.0.1:{}", way.port());
    let [node] = nodes(&ClusterConfig { redis: vec![url], ..cluster.clone() });
    (node, way)
}

fn link(node: &Fixture) -> Link {
    node.running().shared().scope.others().unwrap().link().clone()
}

pub fn cut(node: &Fixture, way: &Way) {
    way.cut();
    is_cut_off(node);
}

pub fn mend(node: &Fixture, way: &Way) {
    way.mend();
    node.is_ready();
}

/// Waits until Redis has what the nodes have published: whoever asks is answered after what was sent before.
pub fn have_sent(nodes: &[&Fixture]) {
    nodes.iter().for_each(|node| drop(query(node, "channels")));
}

fn hears(client: &mut Client, channel: &str, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        assert_eq!(client.hear_text(), event(channel, &number.to_string()));
    }
}

fn publish(node: &Fixture, channel: &str, numbers: impl IntoIterator<Item = usize>) {
    numbers.into_iter().for_each(|number| node.publish(channel, "e", &number.to_string()));
}

#[test]
fn what_others_said_while_the_link_was_cut_arrives_once_and_in_order() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two, three]) = (cuttable(&cluster), nodes(&cluster));
    let (mut a, _) = joined(&one, "presence-x", "a");
    let mut elsewhere = two.subscribed("pub");
    let mut plain = one.subscribed("pub");
    let mut quiet = one.subscribed("quiet");
    let mut cache = one.subscribed("cache-x");
    assert!(cache.hear_text().contains("cache_miss"));
    publish(&two, "pub", 0..10);
    hears(&mut plain, "pub", 0..10);
    cut(&one, &way);
    publish(&two, "pub", 10..20);
    publish(&three, "pub", 20..30);
    publish(&three, "cache-x", 0..5);
    two.publish("presence-x", "e", "0");
    let (mut b, _) = joined(&two, "presence-x", "b");
    // What it says itself is heard at once here, and there once it is back.
    publish(&one, "pub", 30..31);
    hears(&mut plain, "pub", 30..31);
    // Who comes now hears what is said from now on.
    let mut late = one.subscribed("late");
    publish(&three, "late", 0..3);
    have_sent(&[&two, &three]);
    mend(&one, &way);
    publish(&two, "pub", 31..40);
    publish(&three, "cache-x", 5..6);
    // Each publisher's in its order; whose come first is open.
    let came: Vec<String> = (0..29).map(|_| plain.hear_text()).collect();
    for numbers in [(10..20).chain(31..40), (20..30).chain(0..0)] {
        let expected: Vec<String> =
            numbers.map(|number| event("pub", &number.to_string())).collect();
        let came: Vec<&String> = came.iter().filter(|text| expected.contains(text)).collect();
        assert_eq!(came, expected.iter().collect::<Vec<_>>());
    }
    let mut came: Vec<String> = (0..40).map(|_| elsewhere.hear_text()).collect();
    came.sort_unstable();
    let mut all: Vec<String> = (0..40).map(|number| event("pub", &number.to_string())).collect();
    all.sort_unstable();
    assert_eq!(came, all);
    hears(&mut cache, "cache-x", 0..6);
    hears(&mut late, "late", 0..3);
    assert_eq!(a.hear_text(), event("presence-x", "0"));
    assert_eq!(notice(&mut a), added("b"));
    for client in [&mut a, &mut b, &mut plain, &mut elsewhere, &mut quiet, &mut cache, &mut late] {
        hears_nothing(client);
    }
    let figures = link(&one);
    let figures = figures.figures();
    assert_eq!(figures.gaps.load(Ordering::Relaxed), 0);
    assert_eq!(figures.replayed.load(Ordering::Relaxed), 20 + 5 + 1 + 3);
}

#[test]
fn nothing_is_lost_or_doubled_while_the_links_of_both_sides_come_and_go() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), (two, other_way)) = (cuttable(&cluster), cuttable(&cluster));
    let mut clients: Vec<Client> = Vec::new();
    for node in [&one, &two] {
        let mut client = node.subscribed("pub");
        subscribe(&mut client, "cache-x");
        assert!(client.hear_text().contains("cache_miss"));
        clients.push(client);
    }
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for number in 0..300 {
                let channel = if number % 3 == 0 { "cache-x" } else { "pub" };
                two.publish(channel, "e", &number.to_string());
            }
        });
        while !publishing.is_finished() {
            cut(&one, &way);
            mend(&one, &way);
            cut(&two, &other_way);
            mend(&two, &other_way);
        }
    });
    for (client, cached) in clients.iter_mut().flat_map(|client| [(client, [false, true])]) {
        let heard: Vec<String> = (0..300).map(|_| client.hear_text()).collect();
        for cached in cached {
            let channel = if cached { "cache-x" } else { "pub" };
            let of_channel: Vec<&String> =
                heard.iter().filter(|text| text.contains(channel)).collect();
            let numbers = (0..300).filter(|number| (number % 3 == 0) == cached);
            let expected: Vec<String> =
                numbers.map(|number| event(channel, &number.to_string())).collect();
            assert_eq!(of_channel, expected.iter().collect::<Vec<_>>());
        }
        hears_nothing(client);
    }
}

#[test]
fn what_was_taken_without_an_answer_is_sent_again_and_heard_once() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let mut clients: Vec<Client> = Vec::new();
    for node in [&one, &two] {
        let mut client = node.subscribed("pub");
        subscribe(&mut client, "cache-x");
        assert!(client.hear_text().contains("cache_miss"));
        clients.push(client);
    }
    way.mute_after(r#""channel":"pub""#);
    publish(&one, "pub", 0..1);
    hears(&mut clients[1], "pub", 0..1);
    cut(&one, &way);
    mend(&one, &way);
    way.mute_after(r#""channel":"cache-x""#);
    publish(&one, "cache-x", 0..1);
    hears(&mut clients[1], "cache-x", 0..1);
    // Another event becomes the last while nobody knows whether the first was taken.
    publish(&two, "cache-x", 1..2);
    cut(&one, &way);
    mend(&one, &way);
    publish(&one, "pub", 1..2);
    hears(&mut clients[0], "pub", 0..1);
    hears(&mut clients[0], "cache-x", 0..2);
    hears(&mut clients[0], "pub", 1..2);
    hears(&mut clients[1], "cache-x", 1..2);
    hears(&mut clients[1], "pub", 1..2);
    clients.iter_mut().for_each(hears_nothing);
    for node in [&one, &two] {
        assert_eq!(query(node, "channels/cache-x?info=cache")["cache"]["data"], "1");
        let mut late = node.subscribed("cache-x");
        hears(&mut late, "cache-x", 1..2);
    }
    // The logs have each event once.
    let keys = redis.ask(&["KEYS", "*:l"]);
    let mut lengths: Vec<String> = keys.lines().map(|key| redis.ask(&["LLEN", key])).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, ["2", "2"]);
}

#[test]
fn what_came_back_without_an_answer_is_said_again_once_redis_has_lost_it() {
    let Some(mut redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let mut own = one.subscribed("cache-x");
    assert!(own.hear_text().contains("cache_miss"));
    way.mute_alone_after(r#""channel":"cache-x""#);
    publish(&one, "cache-x", 0..1);
    // Over the connection that listens.
    hears(&mut own, "cache-x", 0..1);
    cut(&one, &way);
    redis.kill();
    is_cut_off(&two);
    redis.restart();
    two.is_ready();
    mend(&one, &way);
    hears(&mut two.subscribed("cache-x"), "cache-x", 0..1);
    hears_nothing(&mut own);
}

#[test]
fn a_redis_that_came_back_empty_hides_no_event() {
    let Some(mut redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let mut a = one.subscribed("pub");
    publish(&two, "pub", 0..10);
    hears(&mut a, "pub", 0..10);
    cut(&one, &way);
    publish(&two, "pub", 10..12);
    let key = redis.ask(&["KEYS", "*:l"]);
    eventually(|| match redis.ask(&["LLEN", &key]) {
        count if count == "12" => Ok(()),
        count => Err(count),
    })
    .unwrap();
    redis.kill();
    is_cut_off(&two);
    publish(&two, "pub", 12..14);
    redis.restart();
    two.is_ready();
    publish(&two, "pub", 14..20);
    // What Redis forgot with everything else, whoever published it of late says again.
    mend(&one, &way);
    publish(&two, "pub", 20..22);
    hears(&mut a, "pub", 10..22);
    hears_nothing(&mut a);
}

#[test]
fn who_was_thrown_out_while_the_link_was_cut_is_thrown_out() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let (mut a, _) = joined(&one, "presence-x", "a");
    cut(&one, &way);
    assert_eq!(two.api("POST", "users/a/terminate_connections", "").status, 200);
    mend(&one, &way);
    assert!(a.hear_text().contains(r#""code":4009"#));
}

/// Waits until a log has so many entries, and then until that is a while ago.
fn is_finished(redis: &Redis, node: &Fixture, log: &str, entries: &str) {
    eventually(|| match redis.ask(&["KEYS", &format!("*{log}:l")]) {
        key if !key.is_empty() && redis.ask(&["LLEN", &key]) == entries => Ok(()),
        key => Err(format!("{key:?} is not that long")),
    })
    .unwrap();
    is_later(redis, node);
}

/// Waits for so long that a node can tell that it is later now than it was.
fn is_later(redis: &Redis, node: &Fixture) {
    let time = redis.ask(&["TIME"]);
    let (seconds, _) = time.split_once('\n').unwrap();
    let later = (seconds.parse::<u64>().unwrap() + 2) * 1_000_000;
    eventually(|| match link(node).clock().now() {
        now if now > later => Ok(()),
        now => Err(format!("{now} is not after {later}")),
    })
    .unwrap();
}

#[test]
fn who_came_after_its_user_was_thrown_out_stays() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), (two, other_way)) = (cuttable(&cluster), cuttable(&cluster));
    let mut old = joined(&one, "presence-x", "a").0;
    // The request reaches Redis at once, and the node late.
    cut(&one, &way);
    assert_eq!(two.api("POST", "users/a/terminate_connections", "").status, 200);
    is_finished(&redis, &one, "{all}", "1");
    let mut new = joined(&one, "presence-x", "a").0;
    mend(&one, &way);
    assert!(old.hear_text().contains(r#""code":4009"#));
    hears_nothing(&mut new);
    // It reaches Redis late.
    old = new;
    cut(&two, &other_way);
    assert_eq!(two.api("POST", "users/a/terminate_connections", "").status, 200);
    is_later(&redis, &one);
    let mut new = joined(&one, "presence-x", "a").0;
    mend(&two, &other_way);
    assert!(old.hear_text().contains(r#""code":4009"#));
    hears_nothing(&mut new);
}

#[test]
fn who_subscribed_after_an_event_was_sent_does_not_hear_it() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let user = "#server-to-user-a";
    let signed_in = || {
        let (mut client, id) = one.connect();
        sign_in(&mut client, &id, &json!({ "id": "a" }));
        subscribe(&mut client, user);
        client
    };
    let mut early = signed_in();
    cut(&one, &way);
    publish(&two, user, 0..1);
    is_finished(&redis, &one, "server-to-user*", "1");
    let mut late = signed_in();
    publish(&two, user, 1..2);
    mend(&one, &way);
    publish(&two, user, 2..3);
    hears(&mut early, user, 0..3);
    hears(&mut late, user, 1..3);
    hears_nothing(&mut early);
    hears_nothing(&mut late);
}

#[test]
fn a_log_that_does_not_reach_back_is_counted() {
    let Some(redis) = Redis::start() else { return };
    let cluster = ClusterConfig { replay: 8, ..redis.cluster() };
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let mut a = one.subscribed("pub");
    let mut b = one.subscribed("other");
    publish(&two, "pub", 0..1);
    hears(&mut a, "pub", 0..1);
    cut(&one, &way);
    publish(&two, "pub", 1..101);
    publish(&two, "other", 0..7);
    have_sent(&[&two]);
    mend(&one, &way);
    publish(&two, "pub", 101..102);
    let first = a.hear_text();
    let first = (91..94).find(|number| event("pub", &number.to_string()) == first);
    hears(&mut a, "pub", first.expect("eight to ten events") + 1..102);
    hears(&mut b, "other", 0..7);
    assert_eq!(link(&one).figures().gaps.load(Ordering::Relaxed), 1);
    // A log that nobody writes to any more goes by itself.
    let keys = redis.ask(&["KEYS", "*:l"]);
    assert_eq!(keys.lines().count(), 2, "{keys}");
    for key in keys.lines() {
        let seconds: i64 = redis.ask(&["TTL", key]).parse().unwrap();
        // A minute from the last event on, which may be a while ago.
        assert!((1..=70).contains(&seconds), "{key}: {seconds}");
    }
}

#[test]
fn what_was_missed_before_redis_lost_its_data_is_counted() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let missed = |node: &Fixture| link(node).figures().gaps.load(Ordering::Relaxed);
    let mut a = one.subscribed("pub");
    publish(&two, "pub", 0..1);
    hears(&mut a, "pub", 0..1);
    // All was heard before, and the log has what came after.
    redis.ask(&["FLUSHALL"]);
    is_registered_again(&redis, &cluster, 2);
    publish(&two, "pub", 1..2);
    hears(&mut a, "pub", 1..2);
    assert_eq!((missed(&one), missed(&two)), (0, 0));
    cut(&one, &way);
    publish(&two, "pub", 2..5);
    have_sent(&[&two]);
    redis.ask(&["FLUSHALL"]);
    is_registered_again(&redis, &cluster, 1);
    mend(&one, &way);
    publish(&two, "pub", 5..6);
    hears(&mut a, "pub", 5..6);
    // Requests to all nodes may be missed, too.
    assert_eq!((missed(&one), missed(&two)), (2, 0));
}

/// Waits until so many nodes have registered at a Redis that was emptied.
fn is_registered_again(redis: &Redis, cluster: &ClusterConfig, nodes: usize) {
    let fence = format!("{}:fence:{{0}}", cluster.prefix);
    // `+` and a node: it has said all that it holds.
    let is_whole = |field: &&str| field.starts_with('+') && field.len() > 2;
    let registered = eventually(|| match redis.ask(&["HKEYS", &fence]) {
        all if all.lines().filter(is_whole).count() == nodes => Ok(()),
        all => Err(all),
    });
    assert_eq!(registered, Ok(()));
}

#[test]
fn the_link_is_measured() {
    let Some(mut redis) = Redis::start() else { return };
    let queue_bytes = 4096;
    let cluster = ClusterConfig { lease: Duration::from_secs(3), queue_bytes, ..redis.cluster() };
    let mut settings = config(vec![App::new(ID, KEY, SECRET)]);
    settings.cluster = cluster.clone();
    settings.metrics.enabled = true;
    let (one, [two]) = (Fixture::of(settings), nodes(&cluster));
    let figure = |name: &str| scrape(one.addr)[&format!("fanfare_cluster_{name}")];
    let reaches = |name: &str, least: f64| {
        let reached = eventually(|| match figure(name) {
            value if value >= least => Ok(()),
            value => Err(format!("{name} is {value}")),
        });
        assert_eq!(reached, Ok(()));
    };
    let mut clients: Vec<Client> = (0..2).map(|_| one.subscribed("pub")).collect();
    publish(&two, "pub", 0..3);
    clients.iter_mut().for_each(|client| hears(client, "pub", 0..3));
    reaches("up", 1.0);
    let connects = figure("connects_total");
    assert!(connects >= 1.0, "{connects}");
    reaches("deliveries_total", 6.0);
    assert_eq!(figure("deliveries_total"), 6.0);
    assert_eq!((figure("received_total"), figure("lag_seconds_count")), (3.0, 3.0));
    // Redis's clock is known to half a round trip, so on one machine it may be no time at all.
    assert!((0.0..60.0).contains(&figure("lag_seconds_sum")));
    publish(&one, "pub", 3..5);
    reaches("published_total", 2.0);
    reaches("renewals_total", 3.0);
    // All of one moment: a renewal may come between two.
    let page = scrape(one.addr);
    let [commands, trips, timed, seconds] = [
        "commands_total",
        "round_trips_total",
        "round_trip_seconds_count",
        "round_trip_seconds_sum",
    ]
    .map(|name| page[&format!("fanfare_cluster_{name}")]);
    assert!(commands >= trips && trips >= timed, "{commands} {trips} {timed}");
    assert!(seconds > 0.0);
    let topic = format!("{}:on:{{{ID}/pub}}", cluster.prefix);
    redis.ask(&["SPUBLISH", &topic, "nonsense"]);
    reaches("invalid_total", 1.0);
    // What is more than the queue holds is refused, and heard by nobody.
    let much = "x".repeat(queue_bytes);
    let refused = one.api("POST", "events", &trigger("pub", "e", &much));
    assert_eq!((refused.status, figure("dropped_total")), (503, 0.0));
    // While Redis is away it is heard here; what is less waits.
    redis.kill();
    is_cut_off(&one);
    one.publish("pub", "e", &much);
    assert_eq!((figure("dropped_total"), figure("queue_bytes")), (1.0, 0.0));
    clients.iter_mut().for_each(|client| {
        hears(client, "pub", 3..5);
        assert_eq!(client.hear_text(), event("pub", &much));
    });
    publish(&one, "pub", 5..6);
    assert_eq!(figure("up"), 0.0);
    assert!((200.0..300.0).contains(&figure("queue_bytes")), "{}", figure("queue_bytes"));
    redis.restart();
    reaches("up", 1.0);
    reaches("connects_total", connects + 1.0);
    reaches("published_total", 3.0);
    assert_eq!((figure("missed_total"), figure("queue_bytes")), (0.0, 0.0));
}

#[test]
fn without_replay_redis_keeps_no_events() {
    let Some(redis) = Redis::start() else { return };
    let cluster = ClusterConfig { replay: 0, ..redis.cluster() };
    let ((one, way), [two]) = (cuttable(&cluster), nodes(&cluster));
    let mut a = one.subscribed("pub");
    cut(&one, &way);
    publish(&two, "pub", 0..3);
    have_sent(&[&two]);
    assert_eq!(Http::connect(one.addr).ask("GET", "/ready", "", b"").status, 503);
    mend(&one, &way);
    publish(&two, "pub", 3..4);
    hears(&mut a, "pub", 3..4);
    publish(&two, "cache-x", 0..1);
    assert_eq!(redis.ask(&["KEYS", "*:l"]), "");
    hears(&mut one.subscribed("cache-x"), "cache-x", 0..1);
}
