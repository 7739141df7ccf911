//! Clients that come back after what breaks: a node that is killed or stops, a Redis that is away or comes back empty,
//! and what somebody else writes into it. And whose a token is.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::app::{App, AppId};
use fanfare::config::ClusterConfig;
use serde_json::json;

use crate::cluster::{Process, event, hears_nothing};
use crate::outage::is_cut_off;
use crate::replay::{cut, mend};
use crate::support::cut::Way;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, config, established};
use crate::support::http::Http;
use crate::support::redis::Redis;
use crate::support::sign::Request;
use crate::support::websocket::Client;
use crate::travelling::{
    GAP, TOKEN, acknowledge, back, come, enter, figure, hears, is_empty, resumable, target, two,
};

/// A node of its own process, whose app has `resume`.
fn process(cluster: &ClusterConfig) -> Process {
    let variables = [("FANFARE_APPS__0__RESUME", Path::new("2m"))];
    let process = Process::start_with(cluster, &variables);
    process.is_ready();
    process
}

fn come_to(process: &Process) -> (Client, String) {
    let mut client = Client::open(process.addr, &target(TOKEN), &[]).unwrap();
    let id = established(&client.hear_text()).unwrap();
    (client, id)
}

#[test]
fn who_was_on_a_node_that_was_killed_goes_on_at_another() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let two = resumable(&cluster, |_| {});
    let mut doomed = process(&cluster);
    let (mut a, id) = come_to(&doomed);
    enter(&mut a, &id, "private-x");
    two.publish("private-x", "e", "1");
    hears(&mut a, "private-x", [1]);
    acknowledge(&mut a);
    // As soon as the checkpoint has it.
    eventually(|| {
        let all = redis.ask(&["HVALS", &format!("{}:{{{ID}}}:s", cluster.prefix)]);
        if all.contains("private-x") { Ok(()) } else { Err(all) }
    })
    .unwrap();
    doomed.kill();
    two.publish("private-x", "e", "2");
    two.publish("private-x", "e", "3");
    let (mut b, _) = back(&two, TOKEN, "private-x");
    // The first may come again: its acknowledgement may have come after the checkpoint.
    let mut heard = vec![b.hear_text()];
    while heard.last() != Some(&event("private-x", "3")) {
        heard.push(b.hear_text());
    }
    assert!(heard.len() <= 3, "{heard:?}");
    assert_eq!(heard[heard.len() - 2], event("private-x", "2"));
}

#[test]
fn who_was_on_a_node_that_stopped_goes_on_at_another_exactly() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let two = resumable(&cluster, |_| {});
    let mut stopping = process(&cluster);
    let (mut a, id) = come_to(&stopping);
    enter(&mut a, &id, "private-x");
    two.publish("private-x", "e", "1");
    hears(&mut a, "private-x", [1]);
    acknowledge(&mut a);
    stopping.signal("TERM");
    let text = a.hear_text();
    assert!(text.contains(r#""code":4200"#), "{text}");
    // At once, as pusher-js does.
    let (mut b, id) = come(&two, TOKEN);
    two.publish("private-x", "e", "2");
    enter(&mut b, &id, "private-x");
    hears(&mut b, "private-x", [2]);
    acknowledge(&mut b);
    drop(a);
    eventually(|| if stopping.has_ended() { Ok(()) } else { Err("it runs".to_owned()) }).unwrap();
}

/// A node whose way to Redis can be cut.
fn cuttable(cluster: &ClusterConfig) -> (Fixture, Way) {
    let (_, port) = cluster.redis[0].rsplit_once(':').unwrap();
    let way = Way::to(port.parse().unwrap(), |_| 0);
    let url = format!("redis://127.0.0.1:{}", way.port());
    let node = resumable(&ClusterConfig { redis: vec![url], ..cluster.clone() }, |_| {});
    (node, way)
}

#[test]
fn while_redis_is_away_who_comes_is_told_of_a_gap_and_goes_on_once_it_is_back() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let (one, way) = cuttable(&cluster);
    let two = resumable(&cluster, |_| {});
    let token = "1000000000-0123456789abcdef";
    let (a, _) = back(&two, token, "pub");
    drop(a);
    is_empty(&one, "pub");
    cut(&one, &way);
    let (mut b, _) = back(&one, token, "pub");
    assert_eq!(b.hear_text(), GAP);
    // Its own events it hears at once.
    one.publish("pub", "e", "1");
    hears(&mut b, "pub", [1]);
    mend(&one, &way);
    two.publish("pub", "e", "2");
    hears(&mut b, "pub", [2]);
    acknowledge(&mut b);
    // It is known again, and where it is.
    let known = format!("{}:{{{ID}}}:q", cluster.prefix);
    eventually(|| match redis.ask(&["HLEN", &known]) {
        count if count == "2" => Ok(()),
        count => Err(count),
    })
    .unwrap();
    let (mut c, id) = come(&two, token);
    assert!(b.hear_text().contains(r#""code":4200"#));
    one.publish("pub", "e", "3");
    enter(&mut c, &id, "pub");
    hears(&mut c, "pub", [3]);
}

#[test]
fn a_redis_that_comes_back_empty_is_told_again_who_is_there() {
    let Some(mut redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two] = two(&cluster);
    let (mut a, _) = back(&one, TOKEN, "pub");
    redis.kill();
    is_cut_off(&one);
    redis.restart();
    one.is_ready();
    two.is_ready();
    two.publish("pub", "e", "1");
    hears(&mut a, "pub", [1]);
    acknowledge(&mut a);
    drop(a);
    is_empty(&two, "pub");
    two.publish("pub", "e", "2");
    let (mut b, _) = back(&two, TOKEN, "pub");
    hears(&mut b, "pub", [2]);
    acknowledge(&mut b);
}

#[test]
fn a_client_of_another_app_with_the_same_token_is_another() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let app = |id: &str, key: &str| {
        let mut app = App::new(id, key, SECRET);
        app.features.resume = Duration::from_secs(120);
        app
    };
    let mut config = config(vec![app(ID, KEY), app("other", "otherkey")]);
    config.cluster = cluster;
    let one = Fixture::of(config.clone());
    let two = Fixture::of(config);
    one.is_ready();
    two.is_ready();
    let (a, _) = back(&one, TOKEN, "pub");
    drop(a);
    is_empty(&two, "pub");
    two.publish("pub", "e", "1");
    let target = format!("/resume/{TOKEN}/app/otherkey?protocol=7");
    let mut other = Client::open(two.addr, &target, &[]).unwrap();
    established(&other.hear_text()).unwrap();
    crate::support::fixture::subscribe(&mut other, "pub");
    hears_nothing(&mut other);
    let request = Request::new(
        "POST",
        "/apps/other/events",
        &json!({ "name": "e", "channel": "pub", "data": "9" }).to_string(),
        "otherkey",
        SECRET,
    );
    assert_eq!(Http::connect(one.addr).ask_signed(&request).status, 200);
    hears(&mut other, "pub", [9]);
    let (mut b, _) = back(&two, TOKEN, "pub");
    hears(&mut b, "pub", [1]);
    acknowledge(&mut b);
}

#[test]
fn what_redis_keeps_of_clients_tells_no_token_and_ends_by_itself() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two] = two(&cluster);
    let (a, _) = back(&one, TOKEN, "pub");
    let (idle, _) = come(&two, "nothing-held-0123456789");
    drop(idle);
    drop(a);
    is_empty(&two, "pub");
    let key = |part: char| format!("{}:{{{ID}}}:{part}", cluster.prefix);
    // Who holds nothing is not kept.
    eventually(|| match (redis.ask(&["ZCARD", &key('z')]), redis.ask(&["HLEN", &key('q')])) {
        (one, since) if one == "1" && since == "1" => Ok(()),
        other => Err(format!("{other:?} {}", redis.ask(&["HGETALL", &key('q')]))),
    })
    .unwrap();
    let all = redis.ask(&["HGETALL", &key('s')]) + &redis.ask(&["ZRANGE", &key('z'), "0", "-1"]);
    assert!(all.contains("pub") && !all.contains(TOKEN), "{all}");
    for part in ['s', 'q', 'z'] {
        let lasts: i64 = redis.ask(&["TTL", &key(part)]).parse().unwrap();
        assert!((120..=400).contains(&lasts), "{part} {lasts}");
    }
    assert_eq!(
        [&one, &two].map(|node| {
            let shared = node.running().shared();
            shared.scope.others().unwrap().link().figures().connects.load(Ordering::Relaxed)
        }),
        [1, 1]
    );
    // What somebody else has written there is not believed.
    let field = redis.ask(&["ZRANGE", &key('z'), "0", "-1"]);
    let record = redis.ask(&["HGET", &key('s'), &field]);
    redis.ask(&["HSET", &key('s'), &field, &record.replace("pub", "bup")]);
    two.publish("bup", "e", "1");
    let (mut b, _) = back(&two, TOKEN, "bup");
    hears_nothing(&mut b);
}

/// A token that is made so many seconds from now, as pages make them.
fn token_in(seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{}-0123456789abcdef", now.as_secs() + seconds)
}

#[test]
fn the_first_client_of_an_app_was_told_of_a_gap() {
    let Some(redis) = Redis::start() else { return };
    let [one, _two] = two(&redis.cluster());
    // The clock of its page is a little fast: with whole seconds alone, a token of now may be older than what is known.
    let (mut a, _) = back(&one, &token_in(4), "pub");
    one.publish("pub", "e", "1");
    assert_eq!(a.hear_text(), event("pub", "1"));
}

/// Its token is younger than all that Redis knows of clients, as is that of a page which is new.
#[test]
fn who_was_forgotten_for_want_of_room_was_not_told_of_a_gap() {
    let Some(redis) = Redis::start() else { return };
    let cluster = redis.cluster();
    let [one, two] = two(&cluster);
    let token = token_in(0);
    let (a, _) = back(&one, &token, "pub");
    drop(a);
    is_empty(&two, "pub");
    // As if all records together were as large as they may be.
    let sizes = format!("{}:{{{ID}}}:s", cluster.prefix);
    redis.ask(&["HINCRBY", &sizes, "", "67108864"]);
    drop(back(&two, "another-token-0123456789", "pub"));
    eventually(|| match figure(&one, |it| &it.crowded) + figure(&two, |it| &it.crowded) {
        0 => Err("nobody was forgotten".to_owned()),
        _ => Ok(()),
    })
    .unwrap();
    let (mut b, _) = back(&two, &token, "pub");
    assert_eq!(b.hear_text(), GAP);
}

/// An app's `resume` was off while a page was cut off, so that no record was written of it.
#[test]
fn who_went_while_its_node_waited_for_nobody_was_taken_for_new() {
    let Some(redis) = Redis::start() else { return };
    let [one, two] = two(&redis.cluster());
    let (_a, _) = back(&two, &token_in(0), "pub");
    let hub = &one.running().shared().hub;
    hub.directory(&AppId::new(ID)).resume.note_incomplete(hub.seconds_since_start());
    let (mut b, _) = back(&one, &token_in(0).replace("abcdef", "fedcba"), "pub");
    assert_eq!(b.hear_text(), GAP);
}
