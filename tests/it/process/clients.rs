//! A server without Redis hands the clients that may come back on to its successor: they hear there what they have not
//! acknowledged, in order, and nothing is a gap.

use std::fs::OpenOptions;
use std::io::Write as _;

use serde_json::json;

use super::{Process, publish};
use crate::support::eventually;
use crate::support::fixture::{established, trigger};
use crate::support::http::Http;
use crate::support::sign::{Request, hmac_hex};
use crate::support::websocket::Client;

const TOKEN: &str = "0123456789abcdef-lone";
const PING: &str = r#"{"event":"pusher:ping","data":"{}"}"#;

fn resumable(name: &str) -> Process {
    let process = Process::activated(name, "3s");
    let settings = process.folder.join("f.toml");
    let mut settings = OpenOptions::new().append(true).open(settings).unwrap();
    // Behind the keys of the app.
    writeln!(settings, "resume = \"2m\"\nmax_message_size = 65536").unwrap();
    process.signal("HUP");
    process.hears("RELOADING=1");
    process.hears("READY=1");
    process
}

fn come(process: &Process, token: &str) -> (Client, String) {
    let target = format!("/resume/{token}/app/k?protocol=7&client=js");
    let mut client = Client::open(process.addr, &target, &[]).unwrap();
    let id = established(&client.hear_text()).unwrap();
    (client, id)
}

fn enter(client: &mut Client, id: &str, channel: &str) {
    let auth = format!("k:{}", hmac_hex("s", &format!("{id}:{channel}")));
    let data = json!({ "channel": channel, "auth": auth });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": data }).to_string());
    let mut text = client.hear_text();
    if text == PING {
        // It was asked what it has of another channel.
        text = client.hear_text();
    }
    assert!(text.contains("subscription_succeeded"), "{text}");
}

/// A new connection of the client, subscribed; the process that goes may have taken it in still, and sends it away.
fn come_back(process: &Process, token: &str, channel: &str) -> (Client, String) {
    for _ in 0..100 {
        let (mut client, id) = come(process, token);
        client.send_text(r#"{"event":"pusher:ping"}"#);
        let text = client.hear_text();
        if text.contains("pusher:pong") {
            enter(&mut client, &id, channel);
            return (client, id);
        }
        assert!(text.contains(r#""code":4200"#), "{text}");
    }
    panic!("sent away again and again");
}

fn hears(client: &mut Client, channel: &str, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        let mut text = client.hear_text();
        if text == PING {
            text = client.hear_text();
        }
        let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&frame["event"], &frame["channel"]), (&"e".into(), &channel.into()), "{text}");
        assert_eq!(frame["data"], number.to_string());
    }
}

fn hand_over(process: &mut Process) {
    process.signal("USR2");
    let notice = process.hears("MAINPID=");
    process.successor = Some(notice.trim_start_matches("MAINPID=").parse().unwrap());
    // Said before the old one stops accepting.
    eventually(|| match process.log() {
        log if log.contains("goes on with the clients of the previous one") => Ok(()),
        log => Err(log),
    })
    .unwrap();
}

#[test]
fn a_lone_server_hands_its_clients_to_its_successor() {
    let mut process = resumable("clients");
    let (mut there, id) = come(&process, TOKEN);
    enter(&mut there, &id, "private-x");
    // One that has gone already, and one that has left a channel.
    let (mut away, id) = come(&process, "0123456789abcdef-away");
    enter(&mut away, &id, "private-x");
    enter(&mut away, &id, "private-left");
    away.send_text(r#"{"event":"pusher:unsubscribe","data":{"channel":"private-left"}}"#);
    drop(away);
    assert_eq!(publish(process.addr, "private-x", "0"), 200);
    hears(&mut there, "private-x", [0]);
    assert_eq!(there.hear_text(), PING);
    there.send_text(r#"{"event":"pusher:pong","data":{}}"#);
    // Acknowledged, once this is answered behind it.
    there.send_text(r#"{"event":"pusher:ping"}"#);
    assert!(there.hear_text().contains("pusher:pong"));
    for number in 1..4 {
        assert_eq!(publish(process.addr, "private-x", &number.to_string()), 200);
    }
    hears(&mut there, "private-x", 1..4);
    let old = process.child.id();
    hand_over(&mut process);
    assert_ne!(process.successor, Some(old));
    // The new process has them however soon events come to it.
    for number in 4..7 {
        assert_eq!(publish(process.addr, "private-x", &number.to_string()), 200);
    }
    let mut text = there.hear_text();
    if text == PING {
        text = there.hear_text();
    }
    assert!(text.contains(r#""code":4200"#), "{text}");
    let (mut back, _) = come_back(&process, TOKEN, "private-x");
    hears(&mut back, "private-x", 1..7);
    let (mut away, id) = come_back(&process, "0123456789abcdef-away", "private-x");
    hears(&mut away, "private-x", 0..7);
    assert_eq!(publish(process.addr, "private-left", "7"), 200);
    enter(&mut away, &id, "private-left");
    assert_eq!(publish(process.addr, "private-x", "7"), 200);
    hears(&mut away, "private-x", [7]);
    hears(&mut back, "private-x", [7]);
    assert!(process.ends().success(), "{}", process.log());
}

/// A backend's request that the old process has begun to read belongs to the new one's log.
#[test]
fn what_still_comes_to_the_old_process_is_passed_on() {
    let mut process = resumable("late");
    let (mut there, id) = come(&process, TOKEN);
    enter(&mut there, &id, "private-x");
    let body = trigger("private-x", "e", "1");
    let request = Request::new("POST", "/apps/1/events", &body, "k", "s");
    let mut late = Http::connect(process.addr);
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        request.signed_target(),
        body.len()
    );
    late.send(head + &body[..1]);
    assert_eq!(publish(process.addr, "private-x", "0"), 200);
    hears(&mut there, "private-x", [0]);
    hand_over(&mut process);
    let (mut back, _) = come_back(&process, TOKEN, "private-x");
    hears(&mut back, "private-x", [0]);
    late.send(&body[1..]);
    assert_eq!(late.answer().status, 200);
    assert_eq!(publish(process.addr, "private-x", "2"), 200);
    hears(&mut back, "private-x", [1, 2]);
    assert!(process.ends().success(), "{}", process.log());
}
