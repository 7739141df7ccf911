//! Clients of Socket.IO, byte by byte: sessions by polls and WebSockets, what they are told, what they may not, and how
//! they end. Real clients are in `tests/clients/node/socketio.test.mjs`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{joined, node};
use crate::support::endpoint::Endpoint;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe};
use crate::support::http::{Http, Response, request};
use crate::support::ports::free_port;
use crate::support::redis::Redis;
use crate::support::websocket::{Client, Heard};
use crate::support::{DEADLINE, eventually};
use fanfare::app::App;

/// A session that polls, of revision 4.
struct Session {
    fixture: Fixture,
    sid: String,
}

fn on(app: &mut App) {
    app.features.socketio.enabled = true;
}

fn started(change: impl FnOnce(&mut App)) -> Fixture {
    Fixture::with(|app| {
        on(app);
        change(app);
    })
}

const OPEN: &str = "/socket.io/?EIO=4&transport=polling";

fn ask(fixture: &Fixture, method: &str, target: &str, headers: &str, body: &str) -> Response {
    Http::connect(fixture.addr).ask(method, target, headers, body.as_bytes())
}

/// The session that an answer opens.
fn sid(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let open: Value = serde_json::from_str(answer.text().strip_prefix('0').unwrap()).unwrap();
    open["sid"].as_str().unwrap().to_owned()
}

impl Session {
    fn open(fixture: Fixture) -> Self {
        let sid = sid(&ask(&fixture, "GET", OPEN, "", ""));
        let session = Self { fixture, sid };
        session.say("40");
        assert_eq!(session.poll(), [format!(r#"40{{"sid":"{}"}}"#, session.sid)]);
        session
    }

    fn target(&self) -> String {
        format!("{OPEN}&sid={}", self.sid)
    }

    fn poll(&self) -> Vec<String> {
        let answer = ask(&self.fixture, "GET", &self.target(), "", "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let packets: Vec<String> = answer.text().split('\x1e').map(str::to_owned).collect();
        assert!(packets.len() <= 16, "python-engineio takes no more: {packets:?}");
        packets
    }

    fn say(&self, body: &str) {
        let answer = ask(&self.fixture, "POST", &self.target(), "", body);
        assert_eq!((answer.status, answer.text()), (200, "ok"));
    }

    /// What a packet is answered at once.
    fn told(&self, body: &str) -> Vec<String> {
        self.say(body);
        self.poll()
    }

    fn is_over(&self) -> bool {
        ask(&self.fixture, "POST", &self.target(), "", "3").status == 400
    }
}

fn subscription(channel: &str) -> String {
    format!("42{}", json!(["subscribe", { "channel": channel, "auth": {} }]))
}

fn code(answer: &Response, status: u16) -> (u64, String) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let json = answer.json();
    (json["code"].as_u64().unwrap(), json["message"].as_str().unwrap().to_owned())
}

/// Waits until a channel has so many subscriptions.
fn occupied(fixture: &Fixture, channel: &str, count: u64) {
    let path = format!("/channels/{channel}");
    eventually(|| {
        let answer = fixture.api("GET", &format!("{path}?info=subscription_count"), "").json();
        let found = answer["subscription_count"].as_u64().unwrap_or_default();
        if found == count { Ok(()) } else { Err(answer.to_string()) }
    })
    .unwrap();
}

#[test]
fn a_poll_opens_a_session_whose_name_backends_take_and_nobody_guesses() {
    let fixture = started(|_| {});
    let answer = ask(&fixture, "GET", OPEN, "Origin: https://page.example.test\r\n", "");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example.test"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    let (first, second) = (sid(&answer), sid(&ask(&fixture, "GET", OPEN, "", "")));
    let (node, number) = first.split_once('.').unwrap();
    assert!(node.parse::<u64>().is_ok() && number.parse::<i64>().is_ok(), "{first}");
    let second: u64 = second.split_once('.').unwrap().1.parse().unwrap();
    assert!(number.parse::<u64>().unwrap().abs_diff(second) > 1 << 32, "{first} {second}");
    let old = ask(&fixture, "GET", "/socket.io/?EIO=3&transport=polling", "", "");
    let text = old.text();
    let (length, rest) = text.split_once(':').unwrap();
    let (open, connected) = rest.split_at(length.parse().unwrap());
    assert!(open.starts_with("0{\"sid\":\"") && open.contains("\"upgrades\":[\"websocket\"]"));
    assert_eq!(connected, "2:40");
}

#[test]
fn events_reach_both_kinds_of_clients_and_count_as_one_channel() {
    let session = Session::open(started(|_| {}));
    session.say(&subscription("orders"));
    let (mut client, _) = session.fixture.connect();
    subscribe(&mut client, "orders");
    occupied(&session.fixture, "orders", 2);
    session.fixture.publish("orders", "e", r#"{"a":"ü"}"#);
    session.fixture.publish("orders", "f", "no JSON");
    let mut told = session.poll();
    while told.len() < 2 {
        told.extend(session.poll());
    }
    assert_eq!(told, [r#"42["e","orders",{"a":"ü"}]"#, r#"42["f","orders","no JSON"]"#]);
    assert!(client.hear_text().contains(r#""event":"e""#));
    session.say(r#"42["unsubscribe",{"channel":"orders"}]"#);
    occupied(&session.fixture, "orders", 1);
    let connections = session.fixture.api("GET", "/connections", "").json();
    assert_eq!(connections["connections"], 2);
}

#[test]
fn a_backend_is_asked_with_the_headers_of_page_and_client() {
    let backend = Endpoint::start();
    let url = format!("http://{}/broadcasting/auth", backend.addr);
    let fixture = started(|app| app.features.socketio.auth_url = url);
    let sent = "Cookie: laravel_session=1\r\nOrigin: http://127.0.0.1\r\nHost: 127.0.0.1\r\n";
    let raw = format!("GET {OPEN} HTTP/1.1\r\n{sent}\r\n");
    let mut http = Http::connect(fixture.addr);
    http.send(raw);
    let session = Session { sid: sid(&http.answer()), fixture };
    let asked = json!({
        "channel": "private-a",
        "auth": { "headers": { "Authorization": "Bearer t", "X-CSRF-TOKEN": "c", "Host": "x" } },
    });
    session.say(&format!("42{}", json!(["subscribe", asked])));
    let post = backend.next();
    for (name, value) in [
        ("Authorization", "Bearer t"),
        ("X-Csrf-Token", "c"),
        ("Cookie", "laravel_session=1"),
        ("X-Requested-With", "XMLHttpRequest"),
        ("Host", &backend.addr.to_string()),
    ] {
        assert_eq!(post.header(name), value, "{name}");
    }
    assert_eq!(post.body, format!("channel_name=private-a&socket_id={}", session.sid));
    occupied(&session.fixture, "private-a", 1);
}

#[test]
fn refusals_of_a_backend_and_one_that_is_away_are_told() {
    let backend = Endpoint::start();
    backend.usual.store(403, std::sync::atomic::Ordering::SeqCst);
    let url = format!("http://{}/auth", backend.addr);
    let session = Session::open(started(|app| app.features.socketio.auth_url = url));
    let told = session.told(&subscription("private-a"));
    assert_eq!(told, [r#"42["subscription_error","private-a",403]"#]);
    drop(session);
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let session = Session::open(started(|app| {
        app.features.socketio.auth_url = format!("http://{closed}/auth");
    }));
    let told = session.told(&subscription("presence-a"));
    assert_eq!(told, [r#"42["subscription_error","presence-a",0]"#]);
    drop(session);
    // One that takes the question and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = Session::open(started(|app| {
        app.features.socketio.auth_url = format!("http://{}/auth", silent.local_addr().unwrap());
        app.features.socketio.auth_timeout = Duration::from_millis(50);
    }));
    let told = session.told(&subscription("private-b"));
    assert_eq!(told, [r#"42["subscription_error","private-b",0]"#]);
    drop(session);
    let session = Session::open(started(|_| {}));
    let told = session.told(&subscription("private-c"));
    assert_eq!(told, [r#"42["subscription_error","private-c",403]"#], "nobody to ask");
}

#[test]
fn a_question_that_nobody_waits_for_any_more_subscribes_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/auth", silent.local_addr().unwrap());
    let session = Session::open(started(|app| app.features.socketio.auth_url = url));
    session.say(&subscription("private-a"));
    let (asked, _) = silent.accept().unwrap();
    session.say(r#"42["unsubscribe",{"channel":"private-a"}]"#);
    drop(asked);
    session.say(&subscription("fence"));
    occupied(&session.fixture, "fence", 1);
    occupied(&session.fixture, "private-a", 0);
}

#[test]
fn what_means_nothing_is_refused_in_words() {
    let session = Session::open(started(|_| {}));
    let invalid = r#"42["pusher:error",{"code":4200,"message":"Invalid message format"}]"#;
    for packet in [
        "x",
        "4",
        "42",
        "42[",
        "42{}",
        "42[]",
        "42[1]",
        r#"42["foo",{}]"#,
        "42[\"subscribe\"]",
        r#"42["subscribe",{"channel":7}]"#,
        r#"42["client event",{"event":"e","channel":"c"}]"#,
    ] {
        assert_eq!(session.told(packet), [invalid], "{packet}");
    }
    assert_eq!(
        session.told("40/admin,"),
        [
            r#"42["pusher:error",{"code":4200,"message":"Invalid namespace"}]"#,
            r#"44/admin,{"message":"Invalid namespace"}"#
        ]
    );
    let told =
        session.told(r#"42["client event",{"event":"client-x","channel":"private-a","data":1}]"#);
    assert!(told[0].contains("4009"), "{told:?}");
    let told = session.told(r#"451-["subscribe",{"_placeholder":true,"num":0}]"#);
    assert!(told[0].contains("Attachments are not taken"), "{told:?}");
    assert_eq!(told[1..], ["1"]);
    assert!(session.is_over());
}

#[test]
fn requests_that_open_nothing_are_answered_in_words() {
    let fixture = started(|app| app.allowed_origins = vec!["*.example.test".parse().unwrap()]);
    let origin = "Origin: https://www.example.test\r\n";
    for (method, target, status, number, text) in [
        ("GET", "/socket.io/?EIO=2&transport=polling", 400, 5, "EIO must be 3 or 4"),
        ("GET", "/socket.io/?transport=polling", 400, 5, "EIO must be 3 or 4"),
        ("GET", "/socket.io/?EIO=4&transport=flash", 400, 0, "Transport unknown"),
        ("GET", "/socket.io/?EIO=4&transport=polling&sid=1.2", 400, 1, "Session ID unknown"),
        ("POST", "/socket.io/?EIO=4&transport=polling", 400, 2, "Bad handshake method"),
        ("GET", "/socket.io/?EIO=4&transport=websocket", 400, 3, "Upgrade and Connection"),
        ("GET", "/socket.io/?EIO=3&transport=polling&j=0", 400, 3, "JSONP"),
        ("GET", "/socket.io/?EIO=4&transport=polling&key=nope", 404, 3, "No app with this key"),
    ] {
        let (found, why) = code(&ask(&fixture, method, target, origin, ""), status);
        assert_eq!(found, number, "{target}");
        assert!(why.contains(text), "{target}: {why}");
    }
    let elsewhere = ask(&fixture, "GET", OPEN, "Origin: https://else.test\r\n", "");
    assert_eq!(code(&elsewhere, 403), (4, "Origin not allowed".to_owned()));
    // From its own host a browser says where it is by Referer alone.
    let own = ask(&fixture, "GET", OPEN, "Referer: https://www.example.test/a/b\r\n", "");
    assert_eq!(own.status, 200);
    let keyed = ask(&fixture, "GET", &format!("{OPEN}&key={KEY}"), origin, "");
    assert_eq!(keyed.status, 200);
    let preflight = ask(&fixture, "OPTIONS", OPEN, origin, "");
    assert_eq!(preflight.header("access-control-allow-credentials"), Some("true"));
    let file = ask(&fixture, "GET", "/socket.io/socket.io.js", "", "").error(404);
    assert!(file.contains("Socket.IO"), "{file}");
}

#[test]
fn an_app_that_takes_no_such_clients_says_so() {
    let fixture = Fixture::start();
    let why = ask(&fixture, "GET", OPEN, "", "").error(404);
    assert!(why.contains("socketio.enabled"), "{why}");
}

#[test]
fn limits_are_those_of_other_clients() {
    let fixture = started(|app| app.limits.max_connections = 1);
    let first = sid(&ask(&fixture, "GET", OPEN, "", ""));
    let (_, why) = code(&ask(&fixture, "GET", OPEN, "", ""), 503);
    assert_eq!(why, "Application is over connection quota");
    let leave = format!("{OPEN}&sid={first}");
    assert_eq!(ask(&fixture, "POST", &leave, "", "41").status, 200);
    eventually(|| match ask(&fixture, "GET", OPEN, "", "").status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    let session = Session::open(started(|app| {
        app.limits.max_message_size = 200;
        app.limits.messages_per_second = 2;
    }));
    // In one request: half a second later there is room for one more.
    let told = session.told(&["a", "b", "c"].map(subscription).join("\x1e"));
    assert_eq!(told, [r#"42["pusher:error",{"code":4301,"message":"Rate limit exceeded"}]"#]);
    let large = "x".repeat(2000);
    let answer = ask(&session.fixture, "POST", &session.target(), "", &large);
    assert!(code(&answer, 413).1.contains("1424 bytes"));
    assert!(session.is_over());
}

#[test]
fn one_packet_may_not_be_larger_than_a_message() {
    let session = Session::open(started(|app| app.limits.max_message_size = 200));
    let large = format!("42[\"subscribe\",{{\"channel\":\"{}\"}}]", "x".repeat(300));
    let answer = ask(&session.fixture, "POST", &session.target(), "", &large);
    assert!(code(&answer, 413).1.contains("200 bytes"));
    assert!(session.is_over());
}

/// A WebSocket of a session, or of a new one.
fn websocket(fixture: &Fixture, sid: &str) -> Client {
    let query = if sid.is_empty() { String::new() } else { format!("&sid={sid}") };
    let target = format!("/socket.io/?EIO=4&transport=websocket{query}");
    Client::open(fixture.addr, &target, &[]).ok().unwrap()
}

#[test]
fn a_websocket_takes_over_from_polls_and_nothing_is_lost() {
    let session = Session::open(started(|_| {}));
    session.say(&subscription("orders"));
    occupied(&session.fixture, "orders", 1);
    let mut waiting = Http::connect(session.fixture.addr);
    waiting.send(request("GET", &session.target(), "", b""));
    let mut socket = websocket(&session.fixture, &session.sid);
    session.fixture.publish("orders", "first", "1");
    assert_eq!(waiting.answer().text(), r#"42["first","orders",1]"#);
    waiting.send(request("GET", &session.target(), "", b""));
    socket.send_text("2probe");
    assert_eq!(socket.hear_text(), "3probe");
    assert_eq!(waiting.answer().text(), "6", "the poll must end for the client to change");
    session.fixture.publish("orders", "between", "2");
    socket.send_text("5");
    assert_eq!(socket.hear_text(), r#"42["between","orders",2]"#);
    session.fixture.publish("orders", "after", "3");
    assert_eq!(socket.hear_text(), r#"42["after","orders",3]"#);
    let late = ask(&session.fixture, "GET", &session.target(), "", "");
    assert_eq!(late.text(), "6");
    socket.send_text("1");
    socket.hear_close(1000, "");
    occupied(&session.fixture, "orders", 0);
}

#[test]
fn a_burst_was_one_answer_of_more_packets_than_python_takes() {
    let session = Session::open(started(|app| app.limits.max_batch = 40));
    session.say(&subscription("orders"));
    occupied(&session.fixture, "orders", 1);
    let event = |n: u32| json!({ "name": "e", "channel": "orders", "data": n.to_string() });
    let batch = json!({ "batch": Vec::from_iter((0..40).map(event)) }).to_string();
    assert_eq!(session.fixture.api("POST", "/batch_events", &batch).status, 200);
    let told: Vec<String> = std::iter::repeat_with(|| session.poll()).flatten().take(40).collect();
    assert_eq!(told[39], r#"42["e","orders",39]"#);
}

#[test]
fn a_poll_that_came_while_its_client_changed_held_the_change_up() {
    let session = Session::open(started(|_| {}));
    let mut socket = websocket(&session.fixture, &session.sid);
    socket.send_text("2probe");
    assert_eq!(socket.hear_text(), "3probe");
    assert_eq!(session.poll(), ["6"]);
    socket.send_text("5");
    socket.send_text(&subscription("orders"));
    occupied(&session.fixture, "orders", 1);
}

#[test]
fn a_probe_that_fails_leaves_the_session_to_its_polls() {
    let session = Session::open(started(|_| {}));
    let mut socket = websocket(&session.fixture, &session.sid);
    socket.send_text("2probe");
    assert_eq!(socket.hear_text(), "3probe");
    drop(socket);
    session.say(&subscription("orders"));
    occupied(&session.fixture, "orders", 1);
    let publish = || session.fixture.publish("orders", "e", "1");
    publish();
    eventually(|| match session.poll().as_slice() {
        [only] if only == "6" => Err("still changing".to_owned()),
        told if told == [r#"42["e","orders",1]"#] => Ok(()),
        told => Err(format!("{told:?}")),
    })
    .unwrap();
}

#[test]
fn a_websocket_alone_opens_a_session() {
    let fixture = started(|_| {});
    let mut socket = websocket(&fixture, "");
    let open = socket.hear_text();
    assert!(open.starts_with("0{") && open.contains("\"upgrades\":[]"), "{open}");
    socket.send_text("40");
    assert!(socket.hear_text().starts_with("40{\"sid\":\""));
    socket.send_text("2");
    assert_eq!(socket.hear_text(), "3");
    // Frames of WebSockets themselves are answered as they are to others.
    socket.send_frame(0x89, b"hi");
    assert_eq!(socket.hear(), Heard::Pong(b"hi".to_vec()));
    socket.send_frame(0x91, b"bad");
    assert!(matches!(socket.hear(), Heard::Close(Some((1002, _)))));
}

#[test]
fn a_session_is_drained_so_that_its_client_comes_back() {
    let mut app = App::new(ID, KEY, SECRET);
    on(&mut app);
    let grace = DEADLINE;
    let fixture = Fixture::with_apps(vec![app], |server| server.shutdown_grace = grace);
    let session = sid(&ask(&fixture, "GET", OPEN, "", ""));
    let mut socket = websocket(&fixture, "");
    socket.hear_text();
    let mut waiting = Http::connect(fixture.addr);
    waiting.send(request("GET", &format!("{OPEN}&sid={session}"), "", b""));
    occupied(&fixture, "nobody", 0);
    fixture.drain();
    let draining = r#"42["pusher:error",{"code":4200,"message":"Server is shutting down"}]"#;
    assert_eq!(socket.hear_text(), draining);
    socket.hear_close(4200, "Server is shutting down");
    assert_eq!(waiting.answer().text(), format!("{draining}\x1e1"));
}

#[test]
fn a_backend_that_names_no_member_lets_nobody_into_a_presence_channel() {
    let backend = Endpoint::start();
    let url = format!("http://{}/auth", backend.addr);
    let session = Session::open(started(|app| app.features.socketio.auth_url = url));
    let told = session.told(&subscription("presence-a"));
    assert_eq!(told[0], r#"42["subscription_error","presence-a",401]"#);
    assert!(told[1].contains("channel_data"), "{told:?}");
    occupied(&session.fixture, "presence-a", 0);
}

/// A backend that lets everybody into everything, as one user.
fn generous(user: &'static str) -> String {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/auth", backend.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in backend.incoming().map_while(Result::ok) {
            let (mut asked, mut some) = (String::new(), [0; 4096]);
            while !asked.contains("channel_name=") {
                let count = stream.read(&mut some).unwrap();
                asked.push_str(std::str::from_utf8(&some[..count]).unwrap());
            }
            let data = json!({ "channel_data": { "user_id": user, "user_info": {} } }).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", data.len());
            stream.write_all((head + &data).as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn several_nodes_are_one_to_both_kinds_of_clients() {
    let Some(redis) = Redis::start() else { return };
    let (cluster, url) = (redis.cluster(), generous("s"));
    let [one, two] = [(), ()].map(|()| {
        node(&cluster, |app| {
            on(app);
            app.features.socketio.auth_url.clone_from(&url);
        })
    });
    let (mut client, _) = joined(&one, "presence-a", "p");
    let session = Session::open(two);
    let told = session.told(&subscription("presence-a"));
    assert!(told[0].contains("presence:subscribed") && told[0].contains("\"p\""), "{told:?}");
    let added = client.hear_text();
    assert!(added.contains("member_added") && added.contains("\\\"s\\\""), "{added}");
    occupied(&one, "presence-a", 2);
    let other =
        json!({ "name": "e", "channel": "presence-a", "data": "1", "socket_id": session.sid });
    assert_eq!(one.api("POST", "/events", &other.to_string()).status, 200);
    one.publish("presence-a", "e", "2");
    assert_eq!(session.poll(), [r#"42["e","presence-a",2]"#], "the first was for others");
    assert!(client.hear_text().contains(r#""data":"1""#));
    assert!(client.hear_text().contains(r#""data":"2""#));
    session.say(r#"42["client event",{"event":"client-x","channel":"presence-a","data":3}]"#);
    assert!(client.hear_text().contains("client-x"));
    session.say("41");
    assert!(client.hear_text().contains("member_removed"));
}
