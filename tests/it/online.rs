//! Watchlists over several nodes (cases N04, U09 to U13): a watcher hears of a user's first and last signed-in
//! connection of all nodes, whatever becomes of the nodes and of Redis.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::cluster::{Process, hears_nothing, node, query, sign_in};
use crate::outage::is_cut_off;
use crate::support::eventually;
use crate::support::fixture::Fixture;
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::websocket::Client;

fn with_watchlists(app: &mut App) {
    app.features.watchlist = true;
}

fn nodes<const N: usize>(cluster: &ClusterConfig) -> [Fixture; N] {
    std::array::from_fn(|_| node(cluster, with_watchlists))
}

fn signed_in(node: &Fixture, user: &str, watchlist: &[&str]) -> Client {
    let (mut client, id) = node.connect();
    sign_in(&mut client, &id, &json!({ "id": user, "watchlist": watchlist }));
    client
}

/// What the next frame says of whom.
fn statuses(client: &mut Client) -> BTreeMap<String, bool> {
    let frame: Value = serde_json::from_str(&client.hear_text()).unwrap();
    assert_eq!(frame["event"], "pusher_internal:watchlist_events", "{frame}");
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    let mut statuses = BTreeMap::new();
    for event in data["events"].as_array().unwrap() {
        for user in event["user_ids"].as_array().unwrap() {
            statuses.insert(user.as_str().unwrap().to_owned(), event["name"] == "online");
        }
    }
    statuses
}

fn says(client: &mut Client, expected: &[(&str, bool)]) {
    let expected = expected.iter().map(|(user, online)| ((*user).to_owned(), *online)).collect();
    assert_eq!(statuses(client), expected);
}

/// Whoever signed in elsewhere a moment ago may be on the way still.
fn comes_to_say(client: &mut Client, expected: &[(&str, bool)]) {
    let expected: BTreeMap<String, bool> =
        expected.iter().map(|(user, online)| ((*user).to_owned(), *online)).collect();
    let mut told = statuses(client);
    while told != expected {
        told.extend(statuses(client));
    }
}

#[test]
fn n04_watchers_hear_of_users_on_every_node() {
    let Some(redis) = Redis::start() else { return };
    watch_each_other(&redis.cluster());
    let keys = redis.ask(&["KEYS", "*"]);
    let left: Vec<&str> =
        keys.lines().filter(|key| !key.contains(":fence:") && !key.ends_with(":v")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn n04_watchers_hear_of_users_over_a_redis_cluster() {
    let Some(shards) = Shards::shared() else { return };
    watch_each_other(&shards.cluster());
}

fn watch_each_other(cluster: &ClusterConfig) {
    let [one, two, three]: [Fixture; 3] = nodes(cluster);
    let mut b = signed_in(&two, "b", &[]);
    let mut a = signed_in(&one, "a", &["b", "c", "\u{1}"]);
    comes_to_say(&mut a, &[("b", true), ("c", false), ("\u{1}", false)]);
    // A second connection of the same user, elsewhere, changes nothing, and neither does its end.
    let mut c = signed_in(&two, "c", &["a"]);
    comes_to_say(&mut c, &[("a", true)]);
    says(&mut a, &[("c", true)]);
    let mut c2 = signed_in(&three, "c", &["a", "b"]);
    comes_to_say(&mut c2, &[("a", true), ("b", true)]);
    drop(c);
    hears_nothing(&mut c2);
    drop(b);
    says(&mut a, &[("b", false)]);
    says(&mut c2, &[("b", false)]);
    drop(c2);
    says(&mut a, &[("c", false)]);
    // Whom a node knows of it tells at once, of the others when it does.
    let mut d = signed_in(&one, "d", &["b", "e"]);
    comes_to_say(&mut d, &[("b", false), ("e", false)]);
    b = signed_in(&three, "b", &[]);
    says(&mut a, &[("b", true)]);
    says(&mut d, &[("b", true)]);
    // No query knows of the topics that this takes.
    assert_eq!(query(&one, "channels"), json!({ "channels": {} }));
    for client in [&mut a, &mut b, &mut d] {
        hears_nothing(client);
    }
    drop((a, b, d));
    [one, two, three].into_iter().for_each(Fixture::stop);
}

#[test]
fn who_has_just_signed_in_here_is_not_told_to_be_offline() {
    let Some(redis) = Redis::start() else { return };
    let [one]: [Fixture; 1] = nodes(&redis.cluster());
    let mut watcher = signed_in(&one, "w", &["b"]);
    says(&mut watcher, &[("b", false)]);
    // Redis has no time to hear of b.
    redis.signal("STOP");
    let _b = signed_in(&one, "b", &[]);
    let mut a = signed_in(&one, "a", &["b"]);
    says(&mut a, &[("b", true)]);
    redis.signal("CONT");
    says(&mut watcher, &[("b", true)]);
    hears_nothing(&mut a);
}

#[test]
fn the_users_of_a_dead_node_go_offline() {
    let Some(redis) = Redis::start() else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(5), ..redis.cluster() };
    let [one]: [Fixture; 1] = nodes(&cluster);
    let watchlist = [("FANFARE_APPS__0__WATCHLIST", Path::new("true"))];
    let mut doomed = Process::start_with(&cluster, &watchlist);
    doomed.is_ready();
    let (mut d, id) = doomed.connect();
    sign_in(&mut d, &id, &json!({ "id": "d" }));
    let (mut e, id) = doomed.connect();
    sign_in(&mut e, &id, &json!({ "id": "e" }));
    let _e = signed_in(&one, "e", &[]);
    let mut a = signed_in(&one, "a", &["d", "e"]);
    comes_to_say(&mut a, &[("d", true), ("e", true)]);
    doomed.kill();
    says(&mut a, &[("d", false)]);
    hears_nothing(&mut a);
}

#[test]
fn watchers_hear_of_true_changes_when_redis_comes_back() {
    let Some(mut redis) = Redis::start() else { return };
    let cluster = ClusterConfig { lease: Duration::from_secs(5), ..redis.cluster() };
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let b = signed_in(&two, "b", &[]);
    let _c = signed_in(&two, "c", &[]);
    let mut a = signed_in(&one, "a", &["b", "c", "d"]);
    comes_to_say(&mut a, &[("b", true), ("c", true), ("d", false)]);
    redis.kill();
    is_cut_off(&one);
    is_cut_off(&two);
    // What stays on one node goes on.
    let mut d = signed_in(&one, "d", &["b", "f"]);
    says(&mut a, &[("d", true)]);
    comes_to_say(&mut d, &[("b", true), ("f", false)]);
    drop(b);
    let _f = signed_in(&two, "f", &[]);
    eventually(|| match two.running().shared().connection_count() {
        2 => Ok(()),
        count => Err(count.to_string()),
    })
    .unwrap();
    redis.restart();
    one.is_ready();
    two.is_ready();
    says(&mut a, &[("b", false)]);
    comes_to_say(&mut d, &[("b", false), ("f", true)]);
    hears_nothing(&mut a);
    hears_nothing(&mut d);
}

#[test]
fn who_watches_too_many_hears_of_some_and_then_that_it_is_too_many() {
    let Some(redis) = Redis::start() else { return };
    let [one, two]: [Fixture; 2] = nodes(&redis.cluster());
    let users: Vec<String> = (0..101).map(|number| format!("u{number}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let _u7 = signed_in(&two, "u7", &[]);
    // Not before it is known of everywhere.
    let mut first = signed_in(&two, "first", &["u7"]);
    comes_to_say(&mut first, &[("u7", true)]);
    let mut a = signed_in(&one, "a", &users);
    let told = statuses(&mut a);
    assert_eq!((told.len(), told["u7"]), (100, true));
    assert!(a.hear_text().contains(r#""code":4302"#));
    hears_nothing(&mut a);
}
