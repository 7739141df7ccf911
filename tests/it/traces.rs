//! One event followed by its headers: from the API to the flush, in the log and the console, on each node. How the headers
//! are read is tested beside their reader.

use serde_json::json;

use crate::console::FeedReader;
use crate::support::child::Child;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, trigger};
use crate::support::http::{Http, Response};
use crate::support::sign::Request;
use crate::support::websocket::Client;

const PARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn post(addr: std::net::SocketAddr, path: &str, headers: &str, body: &str) -> Response {
    let request = Request::new("POST", &format!("/apps/{ID}/{path}"), body, KEY, SECRET);
    let headers = format!("Content-Type: application/json\r\n{headers}");
    let answer =
        Http::connect(addr).ask("POST", &request.signed_target(), &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn subscribed(child: &Child, channel: &str) -> Client {
    let (mut client, _) = child.connect();
    subscribe(&mut client, channel);
    client
}

#[test]
fn the_log_follows_an_event_from_the_api_to_the_flush() {
    let child = Child::start(&[("LOG__LEVEL", "debug")]);
    let mut clients = [subscribed(&child, "orders"), subscribed(&child, "orders")];
    let answer =
        post(child.addr, "events", "X-Request-Id: r-1\r\n", &trigger("orders", "e", "s3cr3t"));
    assert_eq!(answer.header("x-request-id"), None);
    child.says(&["published", "channel=\"orders\"", "trace=\"r-1\""]);
    let line = child.says(&["flushed", "channel=\"orders\"", "trace=\"r-1\"", "app="]);
    assert!(!line.contains("s3cr3t"), "{line}");
    let heard = clients.each_mut().map(Client::hear_text);
    assert!(heard.iter().all(|text| text.contains("s3cr3t") && !text.contains("r-1")), "{heard:?}");
    let batch = r#"{"batch":[{"name":"e","channel":"orders","data":"d"},
        {"name":"e","channel":"quiet","data":"d"}]}"#;
    post(child.addr, "batch_events", &format!("X-Request-Id: r-2\r\n{PARENT}"), batch);
    let both = format!("trace=\"{TRACE} r-2\"");
    child.says(&["published", "channel=\"orders\"", &both]);
    child.says(&["published", "channel=\"quiet\"", &both]);
    child.says(&["flushed", "channel=\"orders\"", &both]);
    // More than is published at once.
    let channels: Vec<String> = (0..60).map(|number| format!("large-{number}")).collect();
    let event = json!({ "name": "e", "channels": channels, "data": "x".repeat(9_000) });
    let mut listener = subscribed(&child, "large-59");
    post(child.addr, "events", "X-Request-Id: r-3\r\n", &event.to_string());
    listener.hear_text();
    child.says(&["flushed", "channel=\"large-59\"", "trace=\"r-3\"", "subscribers=1"]);
}

#[test]
fn events_without_a_valid_header_have_no_trace() {
    let child = Child::start(&[("LOG__LEVEL", "debug")]);
    let mut client = subscribed(&child, "orders");
    let long = format!("X-Request-Id: {}\r\n", "x".repeat(129));
    for headers in ["", "X-Request-Id: a b\r\n", "traceparent: 00-x-y-01\r\n", &long] {
        post(child.addr, "events", headers, &trigger("orders", "plain", "d"));
        assert!(client.hear_text().contains("plain"));
    }
    // What is followed comes after them.
    post(child.addr, "events", PARENT, &trigger("orders", "last", "d"));
    child.says(&["flushed", &format!("trace=\"{TRACE}\"")]);
    let log = child.says(&["published", "event=\"plain\""]);
    assert!(!log.contains("trace="), "{log}");
    let lines = child.lines();
    let traced = lines.iter().filter(|line| line.contains("trace="));
    assert!(traced.clone().all(|line| line.contains(TRACE)), "{lines:?}");
    assert_eq!(traced.count(), 2, "{lines:?}");
}

#[test]
fn the_console_follows_an_event() {
    let server = Fixture::start();
    let mut client = server.subscribed("orders");
    let mut feed = FeedReader::open(&server, "kind=published,flushed");
    post(server.addr, "events", "", &trigger("orders", "e", "d"));
    assert_eq!(feed.next_of("published").get("trace"), None);
    post(server.addr, "events", "X-Request-Id: r-1\r\n", &trigger("orders", "e", "d"));
    let told = feed.next_of("published");
    assert_eq!((&told["trace"], &told["channel"]), (&json!("r-1"), &json!("orders")));
    let told = feed.next_of("flushed");
    assert_eq!((&told["trace"], &told["channel"]), (&json!("r-1"), &json!("orders")));
    assert_eq!((&told["app"], &told["count"]), (&json!(ID), &json!(1)));
    (0..2).for_each(|_| assert!(!client.hear_text().contains("r-1")));
}

#[test]
fn the_other_nodes_follow_it_too() {
    let Some(redis) = crate::support::redis::Redis::start() else { return };
    let url = format!("redis://127.0.0.1:{}", redis.port());
    let start = |resume: &str| {
        Child::start(&[
            ("LOG__LEVEL", "debug"),
            ("CLUSTER__REDIS", &url),
            ("APPS__0__RESUME", resume),
        ])
    };
    for resume in ["0s", "30s"] {
        let nodes = [start(resume), start(resume)];
        for channel in ["orders", "cache-orders"] {
            let mut clients = nodes.each_ref().map(|node| subscribed(node, channel));
            let id = format!("r-{resume}-{channel}");
            let header = format!("X-Request-Id: {id}\r\n");
            let trace = format!("trace=\"{id}\"");
            let channel_field = format!("channel=\"{channel}\"");
            post(nodes[0].addr, "events", &header, &trigger(channel, "e", "d"));
            for client in &mut clients {
                let told = || {
                    let text = client.hear_text();
                    if text.contains("\"d\"") { Ok(()) } else { Err(text) }
                };
                eventually(told).unwrap();
            }
            nodes[0].says(&["published", &channel_field, &trace]);
            nodes[1].says(&["received from another node", &channel_field, &trace]);
            for node in &nodes {
                node.says(&["flushed", &channel_field, &trace, "subscribers=1"]);
            }
        }
    }
}
