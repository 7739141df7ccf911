//! The facts of the console's feed, and that nobody waits for whoever reads it.

use fanfare::app::App;
use serde_json::{Value, json};

use super::{FeedReader, JSON, ask, get};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, target, trigger};
use crate::support::http::Http;
use crate::support::sign::{Request, hmac_hex};
use crate::support::websocket::Client;

fn publish(server: &Fixture, channel: &str, event: &str, data: &str) {
    let body = trigger(channel, event, data);
    let request = Request::new("POST", &format!("/apps/{ID}/events"), &body, KEY, SECRET);
    assert_eq!(Http::connect(server.addr).ask_signed(&request).status, 200);
}

#[test]
fn what_happens_is_told_in_its_order_and_without_payloads() {
    let server = Fixture::start();
    let mut feed = FeedReader::open(&server, "");
    let (mut client, id) = server.connect();
    subscribe(&mut client, "orders");
    publish(&server, "orders", "shipped", r#"{"what":"a secret"}"#);
    let told = feed.next_of("connected");
    assert_eq!((&told["socket"], &told["app"]), (&json!(id), &json!(ID)));
    assert_eq!(told["transport"], "websocket");
    let told = feed.next_of("subscribed");
    assert_eq!((&told["socket"], &told["channel"]), (&json!(id), &json!("orders")));
    let told = feed.next_of("published");
    assert_eq!((&told["event"], &told["count"]), (&json!("shipped"), &json!(1)));
    assert!(told["bytes"].as_u64().unwrap() >= 19, "{told}");
    assert!(!told.to_string().contains("a secret"), "{told}");
    drop(client);
    assert_eq!(feed.next_of("disconnected")["socket"], json!(id));
}

#[test]
fn payloads_and_filters_are_the_readers_own() {
    let server = Fixture::start();
    let mut all = FeedReader::open(&server, "payloads=1");
    let mut some = FeedReader::open(&server, "channel=private-*&kind=published");
    publish(&server, "public", "e", "plain");
    publish(&server, "private-a", "e", r#"{"n":1}"#);
    assert_eq!(all.next_of("published")["data"], "plain");
    assert_eq!(all.next_of("published")["data"], r#"{"n":1}"#);
    assert_eq!(some.next_of("published")["channel"], "private-a");
    let wrong = get(&server, "/console/feed?kind=nonsense");
    assert!(wrong.error(400).contains("published"), "the kinds there are");
}

#[test]
fn refusals_say_why_and_are_remembered() {
    let server = Fixture::start();
    let (mut client, id) = server.connect();
    client.send_text(
        r#"{"event":"pusher:subscribe","data":{"channel":"private-a","auth":"278d425bdf160c739803:00"}}"#,
    );
    client.hear_text();
    Client::open(server.addr, &target("no-such-key"), &[]).unwrap().hear_text();
    let unsigned = get(&server, &format!("/apps/{ID}/channels")).status;
    assert_eq!(unsigned, 401);
    // Nobody looked meanwhile.
    let mut feed = FeedReader::open(&server, "");
    let told = feed.next_of("refused");
    assert_eq!((&told["past"], &told["code"]), (&json!(true), &json!(4009)));
    assert_eq!(told["signed"], json!(format!("{id}:private-a")));
    assert!(told["why"].as_str().unwrap().contains("HMAC-SHA256"), "{told}");
    let told = feed.next_of("refused");
    assert_eq!((&told["code"], &told["key"]), (&json!(4001), &json!("no-such-key")));
    let told = feed.next_of("refused");
    assert_eq!((&told["code"], &told["path"]), (&json!(401), &json!("/apps/3/channels")));
}

#[test]
fn what_is_remembered_came_to_readers_who_had_asked_for_other_things() {
    let server = Fixture::start();
    let (mut client, _) = server.connect();
    for channel in ["private-a", "private-b"] {
        client.send_text(&format!(
            r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"x"}}}}"#
        ));
        client.hear_text();
    }
    let told = FeedReader::open(&server, "channel=private-b").next_of("refused");
    assert_eq!((&told["past"], &told["channel"]), (&json!(true), &json!("private-b")));
    let mut events = FeedReader::open(&server, "kind=published,refused&channel=pub*");
    publish(&server, "public", "e", "1");
    loop {
        match events.next().unwrap() {
            fact if fact["kind"] == "published" => break,
            fact => assert_ne!(fact["kind"], "refused", "{fact}"),
        }
    }
}

#[test]
fn a_reader_that_takes_nothing_is_let_go_and_nobody_waits() {
    let server = Fixture::start();
    let mut client = server.subscribed("orders");
    let mut idle = Http::connect(server.addr);
    idle.send("GET /console/feed?payloads=1&rate=2000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let watched = || server.is_watched();
    eventually(|| if watched() { Ok(()) } else { Err("not begun".to_owned()) }).unwrap();
    let data = "x".repeat(15 << 10);
    // Until what the kernel and the queue hold is full, and the server has let it go.
    for _ in 0..20_000 {
        publish(&server, "orders", "e", &data);
        client.hear_text();
        if !watched() {
            return;
        }
    }
    panic!("a reader that takes nothing is still waited for");
}

#[test]
fn the_page_asks_what_the_api_answers() {
    let server = Fixture::start();
    let mut client = server.subscribed("orders");
    let channels = get(&server, "/console/apps/3/channels?info=subscription_count").json();
    assert_eq!(channels["channels"]["orders"]["subscription_count"], 1);
    let sent = ask(&server, "POST", "/console/apps/3/events", JSON, &trigger("orders", "e", "d"));
    assert_eq!(sent.status, 200, "{}", sent.text());
    assert!(client.hear_text().contains(r#""event":"e""#));
    assert_eq!(get(&server, "/console/apps/no-such-app/channels").status, 404);
    let form = ask(&server, "POST", "/console/apps/3/events", "", &trigger("orders", "e", "d"));
    assert_eq!(form.status, 400);
}

#[test]
fn what_it_signs_is_signed_as_a_backend_would() {
    let server = Fixture::start();
    let (mut client, id) = server.connect();
    let member = r#"{"user_id":"ann"}"#;
    let body = json!({
        "app": ID, "socket_id": id, "channel": "presence-room", "channel_data": member,
    });
    let answer = ask(&server, "POST", "/console/authorize", JSON, &body.to_string()).json();
    let signature = hmac_hex(SECRET, &format!("{id}:presence-room:{member}"));
    assert_eq!(answer["auth"], json!(format!("{KEY}:{signature}")));
    let data = json!({
        "channel": "presence-room", "channel_data": member, "auth": answer["auth"],
    });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
    assert!(client.hear_text().contains("subscription_succeeded"));
    let sent = trigger("presence-room", "e", "d");
    let body = json!({ "app": ID, "body": sent }).to_string();
    let signed = ask(&server, "POST", "/console/sign", JSON, &body).json();
    let path =
        format!("{}?{}", signed["path"].as_str().unwrap(), signed["query"].as_str().unwrap());
    assert_eq!(ask(&server, "POST", &path, JSON, &sent).status, 200, "the line can be pasted");
    assert!(client.hear_text().contains(r#""event":"e""#));
}

#[test]
fn sockets_are_described_from_whichever_worker_carries_them() {
    let server = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| server.workers = 3);
    let clients: Vec<(Client, String)> = (0..6)
        .map(|_| {
            let (mut client, id) = server.connect();
            subscribe(&mut client, "orders");
            (client, id)
        })
        .collect();
    let all = get(&server, "/console/sockets?channel=orders").json();
    assert_eq!(all["sockets"].as_array().unwrap().len(), clients.len());
    for (_, id) in &clients {
        let one = get(&server, &format!("/console/sockets/{id}")).json();
        assert_eq!((&one["id"], &one["waiting"]), (&json!(id), &json!(0)));
        assert_eq!(one["channels"][0]["name"], "orders");
    }
    assert_eq!(get(&server, "/console/sockets/1.1").status, 404);
    assert_eq!(get(&server, "/console/sockets?user=nobody").json()["sockets"], json!([]));
}

#[test]
fn hostile_names_and_payloads_are_told_as_they_are() {
    let server = Fixture::start();
    let mut feed = FeedReader::open(&server, "payloads=1");
    for text in
        ["<img src=x onerror=alert(1)>", "</script><script>", "\u{1b}[2J\r\n\u{0}", "\u{202e}x"]
    {
        publish(&server, "orders", text, text);
        let told = feed.next_of("published");
        assert_eq!((&told["event"], &told["data"]), (&json!(text), &json!(text)));
    }
    let (mut client, _) = server.connect();
    client.send_text(
        &json!({ "event": "pusher:subscribe", "data": { "channel": "<b>" } }).to_string(),
    );
    client.hear_text();
    assert_eq!(feed.next_of("refused")["channel"], "<b>");
}

#[test]
fn figures_come_each_second_and_say_what_is_not_shown() {
    let server = Fixture::start();
    let mut client = server.subscribed("orders");
    let mut feed = FeedReader::open(&server, "rate=1");
    for _ in 0..50 {
        publish(&server, "orders", "e", "d");
        client.hear_text();
    }
    let mut unseen = 0;
    let mut deliveries = 0;
    while unseen + deliveries == 0 || unseen == 0 {
        let line: Value = feed.next_of("figures");
        assert_eq!(line["connections"], 1);
        unseen += line["unseen"].as_u64().unwrap();
        deliveries += line["deliveries"].as_u64().unwrap();
    }
    assert!(unseen > 0 && unseen < 50, "{unseen}");
}
