//! Several nodes that are one server: cases N01 to N07, and limits; each over a Redis server of the test's own,
//! and over a Redis Cluster. Outages of Redis are in `outage.rs`.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::ClusterConfig;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, config, established, subscribe, target};
use crate::support::http::await_readiness;
use crate::support::redis::signal;
use crate::support::sign::hmac_hex;
use crate::support::websocket::Client;

/// Each of these over every kind of Redis that several tests can share.
macro_rules! over_every_redis {
    ($($name:ident,)*) => {
        mod one_server {
            $(#[test]
            fn $name() {
                let Some(redis) = crate::support::redis::Redis::start() else { return };
                super::$name(&redis.cluster());
            })*
        }

        mod redis_cluster {
            $(#[test]
            fn $name() {
                let Some(shards) = crate::support::shards::Shards::shared() else { return };
                super::$name(&shards.cluster());
            })*
        }
    };
}
pub(crate) use over_every_redis;

over_every_redis! {
    n01_an_event_reaches_every_node_once_and_in_order,
    n02_a_presence_channel_is_one_over_all_nodes,
    n03_exclusion_and_whispers_cross_nodes,
    n04_users_are_reached_and_thrown_out_on_every_node,
    n05_the_rate_of_client_events_is_each_connections_own,
    n06_the_last_event_of_a_cache_channel_is_shared,
    n07_the_members_of_a_dead_node_leave_once,
    cached_events_take_as_many_bytes_as_they_may,
    a_channel_is_full_over_all_nodes,
    an_app_has_its_connections_over_all_nodes,
    subscribers_are_told_how_many_they_are_on_all_nodes,
    an_answer_about_a_channel_does_not_contradict_itself,
}

/// A node of the cluster.
pub fn node(cluster: &ClusterConfig, change: impl FnOnce(&mut App)) -> Fixture {
    let mut app = App::new(ID, KEY, SECRET);
    change(&mut app);
    let mut config = config(vec![app]);
    config.cluster = cluster.clone();
    Fixture::of(config)
}

pub fn nodes<const N: usize>(cluster: &ClusterConfig) -> [Fixture; N] {
    std::array::from_fn(|_| node(cluster, |_| {}))
}

pub fn join(client: &mut Client, socket_id: &str, channel: &str, user: &str) -> Value {
    ask_to_join(client, socket_id, channel, user);
    let frame: Value = serde_json::from_str(&client.hear_text()).unwrap();
    assert_eq!(frame["event"], "pusher_internal:subscription_succeeded", "{frame}");
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    data["presence"]["ids"].clone()
}

fn ask_to_join(client: &mut Client, socket_id: &str, channel: &str, user: &str) {
    let data = json!({ "user_id": user, "user_info": { "name": user } }).to_string();
    let auth = hmac_hex(SECRET, &format!("{socket_id}:{channel}:{data}"));
    let data = json!({ "channel": channel, "auth": format!("{KEY}:{auth}"), "channel_data": data });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
}

pub fn joined(node: &Fixture, channel: &str, user: &str) -> (Client, Value) {
    let (mut client, socket_id) = node.connect();
    let ids = join(&mut client, &socket_id, channel, user);
    (client, ids)
}

pub fn sign_in(client: &mut Client, socket_id: &str, user_data: &Value) {
    let data = user_data.to_string();
    let auth = hmac_hex(SECRET, &format!("{socket_id}::user::{data}"));
    let data = json!({ "user_data": data, "auth": format!("{KEY}:{auth}") });
    client.send_text(&json!({ "event": "pusher:signin", "data": data }).to_string());
    assert!(client.hear_text().contains("pusher:signin_success"));
}

pub fn notice(client: &mut Client) -> (String, String) {
    let frame: Value = serde_json::from_str(&client.hear_text()).unwrap();
    let event = frame["event"].as_str().unwrap().trim_start_matches("pusher_internal:");
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    (event.to_owned(), data["user_id"].as_str().unwrap_or_default().to_owned())
}

pub fn added(user: &str) -> (String, String) {
    ("member_added".to_owned(), user.to_owned())
}

pub fn removed(user: &str) -> (String, String) {
    ("member_removed".to_owned(), user.to_owned())
}

/// Asserts that nothing was on its way to the client.
pub fn hears_nothing(client: &mut Client) {
    client.send_text(r#"{"event":"pusher:ping"}"#);
    assert_eq!(client.hear_text(), r#"{"event":"pusher:pong","data":"{}"}"#);
}

pub fn event(channel: &str, data: &str) -> String {
    format!(r#"{{"event":"e","channel":"{channel}","data":"{data}"}}"#)
}

pub fn query(node: &Fixture, path: &str) -> Value {
    node.api("GET", path, "").json()
}

pub fn eventually_answers(node: &Fixture, path: &str, expected: &Value) {
    eventually(|| match query(node, path) {
        answer if answer == *expected => Ok(()),
        answer => Err(answer.to_string()),
    })
    .unwrap();
}

fn n01_an_event_reaches_every_node_once_and_in_order(cluster: &ClusterConfig) {
    let nodes: [Fixture; 3] = nodes(cluster);
    let mut clients: Vec<Client> = nodes.iter().map(|node| node.subscribed("pub")).collect();
    let mut other = nodes[1].subscribed("other");
    for number in 0..200 {
        nodes[0].publish("pub", "e", &number.to_string());
    }
    for client in &mut clients {
        for number in 0..200 {
            assert_eq!(client.hear_text(), event("pub", &number.to_string()));
        }
        hears_nothing(client);
    }
    hears_nothing(&mut other);
}

fn n02_a_presence_channel_is_one_over_all_nodes(cluster: &ClusterConfig) {
    let nodes: [Fixture; 3] = nodes(cluster);
    let (mut a, ids) = joined(&nodes[0], "presence-x", "a");
    assert_eq!(ids, json!(["a"]));
    let (mut b, ids) = joined(&nodes[1], "presence-x", "b");
    assert_eq!(ids, json!(["a", "b"]));
    assert_eq!(notice(&mut a), added("b"));
    // The same user again, elsewhere and here: no notice, and all the others in the roster.
    let (b2, ids) = joined(&nodes[2], "presence-x", "b");
    assert_eq!(ids, json!(["a", "b"]));
    let (b3, ids) = joined(&nodes[1], "presence-x", "b");
    assert_eq!(ids, json!(["a", "b"]));
    let (b4, ids) = joined(&nodes[0], "presence-x", "b");
    assert_eq!(ids, json!(["a", "b"]), "this node has heard of the channel before the others");
    drop(b4);
    let (mut c, ids) = joined(&nodes[2], "presence-x", "c");
    assert_eq!(ids, json!(["a", "b", "c"]));
    assert_eq!(notice(&mut a), added("c"));
    assert_eq!(notice(&mut b), added("c"));
    for node in &nodes {
        let users = json!({ "users": [{ "id": "a" }, { "id": "b" }, { "id": "c" }] });
        assert_eq!(query(node, "channels/presence-x/users"), users);
        let counts = json!({ "occupied": true, "user_count": 3, "subscription_count": 5 });
        let path = "channels/presence-x?info=user_count,subscription_count";
        eventually_answers(node, path, &counts);
        let all = json!({ "channels": { "presence-x": { "user_count": 3 } } });
        let path = "channels?filter_by_prefix=presence-&info=user_count";
        eventually_answers(node, path, &all);
    }
    let answer = nodes[0].api(
        "POST",
        "events",
        r#"{"name":"e","channel":"presence-x","data":"1","info":"user_count,subscription_count"}"#,
    );
    let counts = json!({ "user_count": 3, "subscription_count": 5 });
    assert_eq!(answer.json(), json!({ "channels": { "presence-x": counts } }));
    for client in [&mut a, &mut b, &mut c] {
        assert_eq!(client.hear_text(), event("presence-x", "1"));
    }
    // The user leaves with its last connection of all nodes.
    drop(b2);
    drop(b3);
    eventually_answers(
        &nodes[0],
        "channels/presence-x?info=subscription_count",
        &json!({ "occupied": true, "subscription_count": 3 }),
    );
    hears_nothing(&mut a);
    drop(b);
    assert_eq!(notice(&mut a), removed("b"));
    assert_eq!(notice(&mut c), removed("b"));
    drop(c);
    assert_eq!(notice(&mut a), removed("c"));
    drop(a);
    eventually_answers(&nodes[2], "channels", &json!({ "channels": {} }));
    eventually_answers(&nodes[2], "connections", &json!({ "connections": 0 }));
}

fn n03_exclusion_and_whispers_cross_nodes(cluster: &ClusterConfig) {
    let (one, two) =
        (node(cluster, |_| {}), node(cluster, |app| app.client_events = Default::default()));
    let (mut a, id_a) = one.connect();
    let (mut b, id_b) = two.connect();
    assert_ne!(id_a, id_b);
    subscribe(&mut a, "pub");
    subscribe(&mut b, "pub");
    let body = json!({ "name": "e", "channel": "pub", "data": "1", "socket_id": id_b });
    assert_eq!(one.api("POST", "events", &body.to_string()).status, 200);
    assert_eq!(a.hear_text(), event("pub", "1"));
    one.publish("pub", "e", "2");
    assert_eq!(b.hear_text(), event("pub", "2"), "the first was not for b");
    assert_eq!(a.hear_text(), event("pub", "2"));
    join(&mut a, &id_a, "presence-w", "a");
    join(&mut b, &id_b, "presence-w", "b");
    assert_eq!(notice(&mut a), added("b"));
    b.send_text(r#"{"event":"client-x","channel":"presence-w","data":"hi"}"#);
    assert_eq!(
        a.hear_text(),
        r#"{"event":"client-x","channel":"presence-w","data":"hi","user_id":"b"}"#
    );
    hears_nothing(&mut b);
}

fn n04_users_are_reached_and_thrown_out_on_every_node(cluster: &ClusterConfig) {
    let [one, two]: [Fixture; 2] = nodes(cluster);
    let (mut a, id) = two.connect();
    sign_in(&mut a, &id, &json!({ "id": "a" }));
    subscribe(&mut a, "#server-to-user-a");
    one.publish("#server-to-user-a", "e", "1");
    assert_eq!(a.hear_text(), event("#server-to-user-a", "1"));
    let (mut b, _) = joined(&two, "presence-x", "a");
    assert_eq!(one.api("POST", "users/a/terminate_connections", "").status, 200);
    for client in [&mut a, &mut b] {
        assert!(client.hear_text().contains(r#""code":4009"#));
    }
    one.is_well();
    two.is_well();
}

fn n05_the_rate_of_client_events_is_each_connections_own(cluster: &ClusterConfig) {
    let [one, two] = [0; 2].map(|_| node(cluster, |app| app.limits.client_events_per_second = 3));
    let (mut a, _) = joined(&one, "presence-w", "a");
    let (mut b, _) = joined(&two, "presence-w", "b");
    assert_eq!(notice(&mut a), added("b"));
    let whisper = |client: &mut Client| {
        client.send_text(r#"{"event":"client-x","channel":"presence-w","data":"1"}"#);
    };
    // The burst ends within a second, or what is over it would not be refused: so it is told from the answers.
    let mut refused = 0;
    while refused == 0 {
        (0..50).for_each(|_| whisper(&mut a));
        a.send_text(r#"{"event":"pusher:ping"}"#);
        let mut heard = a.hear_text();
        while !heard.contains("pusher:pong") {
            assert!(heard.contains(r#""code":4301"#), "{heard}");
            refused += 1;
            heard = a.hear_text();
        }
    }
    let said = r#"{"event":"client-x","channel":"presence-w","data":"1","user_id":"a"}"#;
    (0..3).for_each(|_| assert_eq!(b.hear_text(), said));
    whisper(&mut b);
    assert_eq!(a.hear_text(), said.replace(r#""a"}"#, r#""b"}"#), "b has said nothing yet");
}

fn n06_the_last_event_of_a_cache_channel_is_shared(cluster: &ClusterConfig) {
    let [one, two]: [Fixture; 2] = nodes(cluster);
    let miss = r#"{"event":"pusher:cache_miss","channel":"cache-x","data":"{}"}"#;
    let mut a = one.subscribed("cache-x");
    assert_eq!(a.hear_text(), miss);
    two.publish("cache-x", "e", "1");
    assert_eq!(a.hear_text(), event("cache-x", "1"));
    let mut b = two.subscribed("cache-x");
    assert_eq!(b.hear_text(), event("cache-x", "1"));
    one.publish("cache-x", "e", "2");
    for client in [&mut a, &mut b] {
        assert_eq!(client.hear_text(), event("cache-x", "2"));
        hears_nothing(client);
    }
    let cached = query(&two, "channels/cache-x?info=cache");
    assert_eq!(cached["cache"]["data"], "2", "{cached}");
    // Nobody is left, and it is still there.
    drop((a, b));
    eventually_answers(&one, "channels", &json!({ "channels": {} }));
    assert_eq!(one.subscribed("cache-x").hear_text(), event("cache-x", "2"));
}

fn cached_events_take_as_many_bytes_as_they_may(cluster: &ClusterConfig) {
    let [one, two] = [0; 2].map(|_| node(cluster, |app| app.limits.cache_bytes = 600));
    let cached = |channel: &str| {
        query(&one, &format!("channels/cache-{channel}?info=cache"))["cache"]["data"].clone()
    };
    one.publish("cache-a", "e", "1");
    one.publish("cache-b", "e", "1");
    assert_eq!([cached("b"), cached("a")], ["1", "1"]);
    one.publish("cache-c", "e", "1");
    let all = ["a", "b", "c", "d"];
    assert_eq!(all.map(cached), [json!("1"), Value::Null, json!("1"), Value::Null]);
    // What another node has put in the place of one is not taken out with it.
    two.publish("cache-a", "e", "2");
    let is_there = || match cached("a") {
        Value::String(data) if data == "2" => Ok(()),
        other => Err(format!("cache-a has {other}")),
    };
    assert_eq!(eventually(is_there), Ok(()));
    one.publish("cache-d", "e", "1");
    one.publish("cache-b", "e", "1");
    assert_eq!(all.map(cached), [json!("2"), json!("1"), Value::Null, json!("1")]);
    let miss = r#"{"event":"pusher:cache_miss","channel":"cache-c","data":"{}"}"#;
    assert_eq!(two.subscribed("cache-c").hear_text(), miss);
}

/// A node as a process of its own, which can be killed.
pub struct Process {
    child: Child,
    pub addr: SocketAddr,
}

impl Process {
    pub fn start(cluster: &ClusterConfig) -> Self {
        Self::start_with(cluster, &[])
    }

    /// With more variables.
    pub fn start_with(cluster: &ClusterConfig, variables: &[(&str, &Path)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .env_clear()
            .env("FANFARE_SERVER__PORT", "0")
            .env("FANFARE_METRICS__ENABLED", "false")
            .env("FANFARE_CLUSTER__REDIS", cluster.redis.join(","))
            .env("FANFARE_CLUSTER__PREFIX", &cluster.prefix)
            .env("FANFARE_CLUSTER__LEASE", format!("{}ms", cluster.lease.as_millis()))
            .env("FANFARE_APPS__0__ID", ID)
            .env("FANFARE_APPS__0__KEY", KEY)
            .env("FANFARE_APPS__0__SECRET", SECRET)
            .envs(variables.iter().copied())
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut addr = None;
        let mut said = String::new();
        while addr.is_none() && log.read_line(&mut said).unwrap() > 0 {
            let line = said.lines().last().unwrap();
            let words = line.split_whitespace().filter_map(|word| word.strip_prefix("addr="));
            addr = words.filter_map(|addr| addr.parse().ok()).next();
        }
        // What it says later must not block it.
        std::thread::spawn(move || log.lines().count());
        Self { child, addr: addr.unwrap_or_else(|| panic!("no address: {said}")) }
    }

    /// Waits until it has its Redis.
    pub fn is_ready(&self) {
        await_readiness(self.addr, 200);
    }

    pub fn connect(&self) -> (Client, String) {
        let mut client = Client::open(self.addr, &target(KEY), &[]).unwrap();
        let id = established(&client.hear_text()).unwrap();
        (client, id)
    }

    /// Sends a signal by name: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn n07_the_members_of_a_dead_node_leave_once(cluster: &ClusterConfig) {
    let cluster = ClusterConfig { lease: Duration::from_secs(5), ..cluster.clone() };
    let [one, two]: [Fixture; 2] = nodes(&cluster);
    let mut doomed = Process::start(&cluster);
    let (mut a, _) = joined(&one, "presence-x", "a");
    let (mut d, id) = doomed.connect();
    doomed.is_ready();
    join(&mut d, &id, "presence-x", "d");
    // Its user a is here too, and stays.
    let (mut d2, id) = doomed.connect();
    join(&mut d2, &id, "presence-x", "a");
    assert_eq!(notice(&mut a), added("d"));
    let (mut b, _) = joined(&two, "presence-x", "b");
    assert_eq!(notice(&mut a), added("b"));
    let counts = |n: usize| json!({ "occupied": true, "subscription_count": n });
    eventually_answers(&one, "channels/presence-x?info=subscription_count", &counts(4));
    doomed.kill();
    assert_eq!(notice(&mut a), removed("d"));
    assert_eq!(notice(&mut b), removed("d"));
    eventually_answers(&two, "channels/presence-x?info=subscription_count", &counts(2));
    eventually_answers(&two, "connections", &json!({ "connections": 2 }));
    hears_nothing(&mut a);
    hears_nothing(&mut b);
}

fn a_channel_is_full_over_all_nodes(cluster: &ClusterConfig) {
    let [one, two] = [0; 2].map(|_| node(cluster, |app| app.limits.max_presence_members = 2));
    let (a, _) = joined(&one, "presence-x", "a");
    let (mut b, _) = joined(&two, "presence-x", "b");
    let (mut c, id) = two.connect();
    ask_to_join(&mut c, &id, "presence-x", "c");
    c.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"pub"}}"#);
    assert!(c.hear_text().contains("pusher:subscription_error"));
    assert!(c.hear_text().contains(r#""code":4009"#));
    assert!(c.hear_text().contains(r#""channel":"pub""#), "what it said meanwhile came next");
    let (_a2, ids) = joined(&two, "presence-x", "a");
    assert_eq!(ids, json!(["a", "b"]), "who is in may come again");
    hears_nothing(&mut b);
    drop(_a2);
    drop(a);
    assert_eq!(notice(&mut b), removed("a"));
    assert_eq!(join(&mut c, &id, "presence-x", "c"), json!(["b", "c"]));
}

fn an_app_has_its_connections_over_all_nodes(cluster: &ClusterConfig) {
    let [one, two] = [0; 2].map(|_| node(cluster, |app| app.limits.max_connections = 2));
    let _held = [one.connect(), one.connect()];
    eventually(|| {
        let mut client = Client::open(two.addr, &target(KEY), &[]).unwrap();
        let text = client.hear_text();
        if text.contains(r#""code":4004"#) { Ok(()) } else { Err(text) }
    })
    .unwrap();
}

fn subscribers_are_told_how_many_they_are_on_all_nodes(cluster: &ClusterConfig) {
    let [one, two] = [0; 2].map(|_| node(cluster, |app| app.features.subscription_count = true));
    let count = |n: usize| {
        format!(
            r#"{{"event":"pusher_internal:subscription_count","channel":"pub","data":"{{\"subscription_count\":{n}}}"}}"#
        )
    };
    let mut a = one.subscribed("pub");
    assert_eq!(a.hear_text(), count(1));
    let mut b = two.subscribed("pub");
    assert_eq!(a.hear_text(), count(2));
    assert_eq!(b.hear_text(), count(2));
    drop(a);
    assert_eq!(b.hear_text(), count(1));
}

fn an_answer_about_a_channel_does_not_contradict_itself(cluster: &ClusterConfig) {
    let [one, two] = nodes(cluster);
    let path = "channels/presence-x?info=user_count,subscription_count";
    let full = json!({ "occupied": true, "subscription_count": 1, "user_count": 1 });
    let empty = json!({ "occupied": false, "subscription_count": 0, "user_count": 0 });
    // Several times, since now and then the count is written in the same moment as the member.
    for _ in 0..5 {
        let (client, _) = joined(&one, "presence-x", "a");
        assert_eq!(query(&two, path), full);
        drop(client);
        let left = eventually(|| match query(&two, path) {
            answer if answer == full => Err(String::new()),
            answer => Ok(answer),
        });
        assert_eq!(left, Ok(empty.clone()));
    }
}
