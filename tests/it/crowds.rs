//! Much at once: lists of many channels, and batches of many bytes, come whole and in order.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::http::Http;
use crate::support::sign::Request;
use crate::support::websocket::Client;

/// Subscribes to all of them, without waiting in between.
fn join(client: &mut Client, channels: &[String]) {
    for channel in channels {
        let data = json!({ "channel": channel });
        client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
    }
    for _ in channels {
        assert!(client.hear_text().contains("subscription_succeeded"));
    }
}

fn names(prefix: &str, several: usize) -> Vec<String> {
    (0..several).map(|n| format!("{prefix}-{n}")).collect()
}

#[test]
fn a_long_list_is_the_same_for_all_who_ask_at_once() {
    let fixture = Fixture::start();
    let (few, many) = (names("few", 700), names("many", 700));
    let mut clients: Vec<Client> = (0..3).map(|_| fixture.connect().0).collect();
    join(&mut clients[0], &few);
    join(&mut clients[1], &many);
    join(&mut clients[2], &many);
    let paths = ["channels", "channels?info=subscription_count", "channels?filter_by_prefix=many"];
    let mut asked: Vec<(usize, Http)> = Vec::new();
    for at in 0..24 {
        let target = format!("/apps/{ID}/{}", paths[at % 3]);
        let request = Request::new("GET", &target, "", KEY, SECRET);
        let mut http = Http::connect(fixture.addr);
        http.send(crate::support::http::request("GET", &request.signed_target(), "", b""));
        asked.push((at % 3, http));
    }
    let all = |counts: fn(usize) -> Value| -> BTreeMap<String, Value> {
        let few = few.iter().map(|name| (name.clone(), counts(1)));
        few.chain(many.iter().map(|name| (name.clone(), counts(2)))).collect()
    };
    let with_prefix: BTreeMap<_, _> = many.iter().map(|name| (name.clone(), json!({}))).collect();
    let expected = [
        json!({ "channels": all(|_| json!({})) }),
        json!({ "channels": all(|count| json!({ "subscription_count": count })) }),
        json!({ "channels": with_prefix }),
    ];
    for (which, mut http) in asked {
        let answer = http.answer();
        assert_eq!((answer.status, answer.json()), (200, expected[which].clone()));
    }
}

#[test]
fn a_batch_that_is_published_in_parts_comes_whole_and_in_order() {
    let fixture = Fixture::start();
    let channels = names("room", 20);
    let mut client = fixture.connect().0;
    join(&mut client, &channels);
    // 4 MB in all, of which a part is published at a time.
    let data = |event: usize| format!("{event} {}", "x".repeat(20_000));
    let event = |event: usize| json!({ "name": "e", "channels": channels, "data": data(event) });
    let batch = json!({ "batch": (0..10).map(event).collect::<Vec<_>>() }).to_string();
    let answer = fixture.api("POST", "batch_events", &batch);
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    for at in 0..10 {
        for channel in &channels {
            let expected = json!({ "event": "e", "channel": channel, "data": data(at) });
            let heard: Value = serde_json::from_str(&client.hear_text()).unwrap();
            assert_eq!(heard, expected, "event {at} on {channel}");
        }
    }
}
