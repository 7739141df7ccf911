//! Webhooks as a backend's endpoint gets them: requests that official SDKs take for genuine, in order, again when
//! they were refused, and nothing that was no news.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare::app::{App, Webhook, WebhookEvent};
use fanfare::protocol::auth::Signer;
use serde_json::{Value, json};

use crate::support::child::Child;
use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe};
use crate::support::http::Http;
use crate::support::sign::hmac_hex;
use crate::support::websocket::Client;

fn say(client: &mut Client, event: &str, data: &Value) {
    client.send_text(&json!({ "event": event, "data": data }).to_string());
}

fn unsubscribe(client: &mut Client, channel: &str) {
    say(client, "pusher:unsubscribe", &json!({ "channel": channel }));
}

/// Subscribes with a signature, on a presence channel as user 7, and reads the answer.
fn join(client: &mut Client, socket_id: &str, channel: &str) {
    let data = r#"{"user_id":7}"#;
    let request = if channel.starts_with("presence-") {
        let auth = hmac_hex(SECRET, &format!("{socket_id}:{channel}:{data}"));
        json!({ "channel": channel, "auth": format!("{KEY}:{auth}"), "channel_data": data })
    } else {
        let auth = hmac_hex(SECRET, &format!("{socket_id}:{channel}"));
        json!({ "channel": channel, "auth": format!("{KEY}:{auth}") })
    };
    say(client, "pusher:subscribe", &request);
    let answer = client.hear_text();
    assert!(answer.contains("subscription_succeeded"), "{answer}");
}

fn occupied(channel: &str) -> Value {
    json!({ "name": "channel_occupied", "channel": channel })
}

fn vacated(channel: &str) -> Value {
    json!({ "name": "channel_vacated", "channel": channel })
}

#[test]
fn w01_an_occupied_channel_is_told_signed_and_to_the_letter() {
    let endpoint = Endpoint::start();
    let fixture = endpoint.server();
    let _client = fixture.subscribed("c");
    let post = endpoint.next();
    assert_eq!(post.head[0], "POST /hooks?token=t HTTP/1.1");
    assert_eq!(post.events(), [occupied("c")]);
    let (start, end) = post.body.split_once(r#","events":"#).unwrap();
    assert!(start.starts_with(r#"{"time_ms":"#), "{start}");
    assert_eq!(end, r#"[{"channel":"c","name":"channel_occupied"}]}"#);
}

#[test]
fn w11_the_oldest_secret_that_holds_signs() {
    let endpoint = Endpoint::start();
    let fixture = Fixture::with(|app| {
        app.signer = Signer::new("new").with_previous(["old", SECRET]);
        app.webhooks = vec![endpoint.webhook()];
    });
    let _client = fixture.subscribed("c");
    assert_eq!(endpoint.event(), occupied("c"));
}

#[test]
fn w02_w03_only_who_stays_away_is_gone() {
    let endpoint = Endpoint::start();
    let fixture = endpoint.server();
    let mut client = fixture.subscribed("c");
    assert_eq!(endpoint.event(), occupied("c"));
    unsubscribe(&mut client, "c");
    subscribe(&mut client, "c");
    let mut other = fixture.subscribed("other");
    unsubscribe(&mut other, "other");
    assert_eq!(endpoint.event(), occupied("other"));
    // Had the first been told as gone, it would have been before.
    assert_eq!(endpoint.event(), vacated("other"));
    drop(client);
    assert_eq!(endpoint.event(), vacated("c"));
}

#[test]
fn w04_members_are_told_once_with_their_id_as_text() {
    let endpoint = Endpoint::start();
    let fixture = endpoint.server();
    let (mut one, id) = fixture.connect();
    join(&mut one, &id, "presence-a");
    assert_eq!(endpoint.event(), occupied("presence-a"));
    let member = |name: &str| json!({ "name": name, "channel": "presence-a", "user_id": "7" });
    assert_eq!(endpoint.event(), member("member_added"));
    let (mut tab, id) = fixture.connect();
    join(&mut tab, &id, "presence-a");
    drop(tab);
    drop(one);
    assert_eq!(endpoint.event(), member("member_removed"));
    assert_eq!(endpoint.event(), vacated("presence-a"));
}

#[test]
fn w05_client_events_come_with_their_sender() {
    let endpoint = Endpoint::start();
    let fixture = endpoint.server();
    let (mut client, id) = fixture.connect();
    join(&mut client, &id, "presence-a");
    join(&mut client, &id, "private-a");
    (0..3).for_each(|_| drop(endpoint.event()));
    let whisper = |channel: &str, data: &str| {
        format!(r#"{{"event":"client-x","channel":"{channel}","data":{data}}}"#)
    };
    client.send_text(&whisper("presence-a", r#"{"a":1.0}"#));
    client.send_text(&whisper("private-a", r#""text\u00e9""#));
    let event = |channel: &str, data: &str| json!({ "name": "client_event", "channel": channel, "event": "client-x", "data": data, "socket_id": id });
    let mut with_user = event("presence-a", r#"{"a":1.0}"#);
    with_user["user_id"] = "7".into();
    assert_eq!(endpoint.event(), with_user);
    assert_eq!(endpoint.event(), event("private-a", "texté"));
}

#[test]
fn w06_a_crowd_that_finds_nothing_cached_is_told_once() {
    let endpoint = Endpoint::start();
    let fixture = endpoint.server();
    let mut clients: Vec<Client> = (0..50).map(|_| fixture.connect().0).collect();
    for client in &mut clients {
        say(client, "pusher:subscribe", &json!({ "channel": "cache-a" }));
    }
    for client in &mut clients {
        assert!(client.hear_text().contains("subscription_succeeded"));
        assert!(client.hear_text().contains("cache_miss"));
    }
    subscribe(&mut clients[0], "last");
    let mut told = vec![endpoint.event(), endpoint.event()];
    told.sort_by_key(|event| event["name"].to_string());
    assert_eq!(told, [json!({ "name": "cache_miss", "channel": "cache-a" }), occupied("cache-a")]);
    assert_eq!(endpoint.event(), occupied("last"));
}

#[test]
fn w07_what_was_refused_is_tried_again_with_a_new_signature() {
    let endpoint = Endpoint::start();
    for status in [500, 302, 404] {
        endpoint.statuses.send(status).unwrap();
    }
    let fixture = endpoint.server();
    let mut client = fixture.subscribed("a");
    subscribe(&mut client, "b");
    let mut times = Vec::new();
    for _ in 0..4 {
        let post = endpoint.next();
        assert_eq!(post.head[0], "POST /hooks?token=t HTTP/1.1", "a redirect is not followed");
        assert_eq!(post.events(), [occupied("a")]);
        let body: Value = serde_json::from_str(&post.body).unwrap();
        times.push(body["time_ms"].as_u64().unwrap());
    }
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    assert_eq!(endpoint.event(), occupied("b"), "the order is kept");
}

#[test]
fn w08_batches_hold_several_in_their_order() {
    let endpoint = Endpoint::start();
    let fixture = Fixture::with(|app| {
        app.webhooks = vec![Webhook { batch: Duration::from_millis(200), ..endpoint.webhook() }];
    });
    let (mut client, _) = fixture.connect();
    let names: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    names.iter().for_each(|name| subscribe(&mut client, name));
    let mut told: Vec<Value> = Vec::new();
    let mut requests = 0;
    while told.len() < names.len() {
        told.extend(endpoint.next().events());
        requests += 1;
    }
    assert_eq!(told, names.iter().map(|name| occupied(name)).collect::<Vec<_>>());
    assert!(requests < names.len(), "{requests} requests");
}

#[test]
fn w10_a_dead_endpoint_is_nobody_elses_concern() {
    // It takes connections and never answers.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::start();
    let fixture = Fixture::with(|app| {
        let url = format!("http://{}/", dead.local_addr().unwrap());
        app.webhooks = vec![Webhook { url, ..endpoint.webhook() }, endpoint.webhook()];
    });
    let mut client = fixture.subscribed("a");
    assert_eq!(endpoint.event(), occupied("a"));
    for number in 0..20 {
        fixture.publish("a", "e", &number.to_string());
        assert!(client.hear_text().contains(&format!(r#""{number}""#)));
        let name = format!("b{number}");
        subscribe(&mut client, &name);
        assert_eq!(endpoint.event(), occupied(&name));
    }
}

#[test]
fn each_webhook_gets_what_it_asks_for_with_its_own_headers() {
    let endpoint = Endpoint::start();
    let fixture = Fixture::with(|app| {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = vec![
            pair("Authorization", "Bearer x"),
            pair("content-type", "text/plain"),
            pair("X-PUSHER-SIGNATURE", "mine"),
            pair("x-pusher-key", "mine"),
        ];
        let some = Webhook {
            events: vec![WebhookEvent::ChannelOccupied],
            channel_prefix: "a-".to_owned(),
            channel_suffix: "-z".to_owned(),
            headers,
            ..endpoint.webhook()
        };
        app.webhooks = vec![some];
    });
    let mut client = fixture.subscribed("a-b");
    for channel in ["b-z", "cache-a", "a-z"] {
        say(&mut client, "pusher:subscribe", &json!({ "channel": channel }));
    }
    let post = endpoint.next();
    assert_eq!(post.events(), [occupied("a-z")]);
    assert_eq!(post.header("authorization"), "Bearer x");
}

#[test]
fn counts_are_told_where_the_app_tells_them() {
    let endpoint = Endpoint::start();
    let fixture = Fixture::with(|app| {
        app.features.subscription_count = true;
        let events = vec![WebhookEvent::SubscriptionCount];
        app.webhooks = vec![Webhook { events, ..endpoint.webhook() }];
    });
    let clients = [fixture.subscribed("a"), fixture.connect().0];
    let count = |count: usize| json!({ "name": "subscription_count", "channel": "a", "subscription_count": count });
    assert_eq!(endpoint.event(), count(1));
    let [_one, mut other] = clients;
    subscribe(&mut other, "a");
    assert_eq!(endpoint.event(), count(2));
}

#[test]
fn private_addresses_can_be_kept_out_of_reach() {
    let endpoint = Endpoint::start();
    let mut app = App::new(ID, KEY, SECRET);
    let by_name = format!("http://localhost:{}/", endpoint.addr.port());
    app.webhooks = vec![endpoint.webhook(), Webhook { url: by_name, ..endpoint.webhook() }];
    let fixture = Fixture::with_config(vec![app], |config| {
        config.webhooks.allow_private = false;
        config.metrics.enabled = true;
    });
    let _client = fixture.subscribed("a");
    let failed = eventually(|| {
        let page = Http::connect(fixture.addr).ask("GET", "/metrics", "", b"");
        let failing = |place| format!(r#"fanfare_webhook_failing{{app="3",webhook="{place}"}} 1"#);
        match page.text() {
            text if text.contains(&failing(0)) && text.contains(&failing(1)) => Ok(()),
            text => Err(text.to_owned()),
        }
    });
    assert_eq!(failed, Ok(()));
    assert!(endpoint.posts.try_recv().is_err());
}

/// A stranger who opens ever new channels and leaves them takes no place in a line that is held up.
#[test]
fn what_cancels_out_leaves_nothing_in_line() {
    let endpoint = Endpoint::start();
    endpoint.usual.store(503, Ordering::SeqCst);
    let fixture = endpoint.server();
    let _first = fixture.subscribed("first");
    assert_eq!(endpoint.event(), occupied("first"));
    let (mut stranger, _) = fixture.connect();
    for number in 0..300 {
        subscribe(&mut stranger, &format!("new-{number}"));
        unsubscribe(&mut stranger, &format!("new-{number}"));
    }
    let _last = fixture.subscribed("last");
    let queued = || {
        let page = fixture.api("GET", "channels", "").json();
        let figures = fixture.running().shared().webhooks.figures();
        let queued = figures[0].queued.load(Ordering::Relaxed);
        if queued == 2 && page["channels"].as_object().unwrap().len() == 2 {
            Ok(())
        } else {
            Err(format!("{queued} in line"))
        }
    };
    eventually(queued).unwrap();
    endpoint.usual.store(200, Ordering::SeqCst);
    let heard = eventually(|| match endpoint.event() {
        event if event == occupied("first") => Err(event.to_string()),
        event => Ok(event),
    });
    assert_eq!(heard, Ok(occupied("last")));
}

#[test]
fn the_log_had_credentials_of_urls_at_trace() {
    let endpoint = Endpoint::start();
    let url = format!("http://caller:pass-word@{}/path-token?query-token", endpoint.addr);
    let child = Child::start(&[("APPS__0__WEBHOOKS__0__URL", &url), ("LOG__LEVEL", "trace")]);
    let (mut client, _) = child.connect();
    subscribe(&mut client, "room");
    let post = endpoint.posts.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(post.header("authorization"), "Basic Y2FsbGVyOnBhc3Mtd29yZA==");
    assert!(post.head[0].contains("/path-token?query-token"), "{:?}", post.head);
    // What the libraries say of the connection is there.
    child.says(&["TRACE", &endpoint.addr.to_string()]);
    for secret in ["pass-word", "path-token", "query-token", "Y2FsbGVyOnBhc3Mtd29yZA"] {
        assert!(!child.log().contains(secret), "{secret} in {}", child.log());
    }
}
