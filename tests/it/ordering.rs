//! The order of frames, where one script cannot show it: many subscriptions, many connections,
//! publishers beside subscribers, and the next second after a rate limit.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::eventually;
use crate::support::fixture::{Fixture, KEY, SECRET, subscribe};
use crate::support::memory::Memory;
use crate::support::sign::hmac_hex;
use crate::support::websocket::{Client, FIN, Heard, TEXT, frame};

fn subscription(channel: &str) -> String {
    format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#)
}

fn join_private(client: &mut Client, socket_id: &str, channel: &str) {
    let auth = format!("{KEY}:{}", hmac_hex(SECRET, &format!("{socket_id}:{channel}")));
    client.send_text(&format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"{auth}"}}}}"#
    ));
    assert!(client.hear_text().contains("subscription_succeeded"));
}

#[test]
fn s11_two_hundred_subscriptions_are_confirmed_in_order() {
    let fixture = Fixture::start();
    let (mut client, _) = fixture.connect();
    let frames: Vec<u8> = (0..200)
        .flat_map(|number| frame(FIN | TEXT, subscription(&format!("c{number}")).as_bytes()))
        .collect();
    client.send_bytes(&frames);
    for number in 0..200 {
        assert!(client.hear_text().contains(&format!(r#""channel":"c{number}""#)));
    }
    fixture.publish("c199", "e", "1");
    assert!(client.hear_text().contains(r#""channel":"c199""#));
    drop(client);
    eventually(|| match fixture.api("GET", "channels", "").text() {
        r#"{"channels":{}}"# => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
}

/// An event either comes after the confirmation or not at all, and none is missed after it.
#[test]
fn t20_nothing_arrives_before_the_confirmation_and_nothing_is_missed_after() {
    let fixture = Fixture::start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !done.load(Ordering::Relaxed) {
                fixture.publish("pub", "e", &number.to_string());
                number += 1;
            }
        });
        for _ in 0..50 {
            let (mut client, _) = fixture.connect();
            client.send_text(&subscription("pub"));
            assert!(client.hear_text().contains("subscription_succeeded"));
            let mut last: Option<u64> = None;
            for _ in 0..5 {
                let text = client.hear_text();
                let number = text.rsplit('"').nth(1).unwrap().parse().unwrap();
                assert!(last.is_none_or(|last| number == last + 1), "{number} after {last:?}");
                last = Some(number);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn whispers_of_one_sender_stay_in_order_for_everyone() {
    let fixture = Fixture::with(|app| app.limits.client_events_per_second = 0);
    let (mut sender, id) = fixture.connect();
    join_private(&mut sender, &id, "private-x");
    let mut others: Vec<Client> = (0..10)
        .map(|_| {
            let (mut client, id) = fixture.connect();
            join_private(&mut client, &id, "private-x");
            client
        })
        .collect();
    let frames: Vec<u8> = (0..100)
        .map(|number| format!(r#"{{"event":"client-n","channel":"private-x","data":"{number}"}}"#))
        .flat_map(|text| frame(FIN | TEXT, text.as_bytes()))
        .collect();
    sender.send_bytes(&frames);
    for other in &mut others {
        for number in 0..100 {
            assert!(other.hear_text().contains(&format!(r#""data":"{number}""#)));
        }
    }
}

#[test]
fn c09_the_next_second_has_a_limit_of_its_own() {
    let fixture = Fixture::with(|app| app.limits.client_events_per_second = 1);
    let (mut sender, id) = fixture.connect();
    join_private(&mut sender, &id, "private-x");
    let (mut other, id) = fixture.connect();
    join_private(&mut other, &id, "private-x");
    let whisper = r#"{"event":"client-n","channel":"private-x","data":"1"}"#;
    // In one write, so that no pause comes between them.
    sender.send_bytes(&frame(FIN | TEXT, whisper.as_bytes()).repeat(2));
    assert!(sender.hear_text().contains("4301"), "two in one second");
    // From here on one is let through as soon as the second is over.
    eventually(|| {
        sender.send_text(whisper);
        sender.send_text(r#"{"event":"pusher:ping"}"#);
        let text = sender.hear_text();
        if text.contains("pusher:pong") {
            return Ok(());
        }
        assert!(sender.hear_text().contains("pusher:pong"));
        Err(text)
    })
    .unwrap();
    for _ in 0..2 {
        assert!(other.hear_text().contains("client-n"));
    }
}

#[test]
fn many_connections_on_one_channel_all_hear() {
    let fixture = Fixture::start();
    let mut clients: Vec<Client> = (0..300).map(|_| fixture.subscribed("pub")).collect();
    for number in 0..10 {
        fixture.publish("pub", "e", &number.to_string());
    }
    for client in &mut clients {
        for number in 0..10 {
            assert!(client.hear_text().contains(&format!(r#""data":"{number}""#)));
        }
    }
    let info = fixture.api("GET", "channels/pub?info=subscription_count", "");
    assert_eq!(info.text(), r#"{"occupied":true,"subscription_count":300}"#);
}

/// Joins and leaves of many users from many threads: at the end all agree on who is there.
#[test]
fn presence_adds_up_under_a_crowd() {
    let fixture = Fixture::start();
    let (mut watcher, id) = fixture.connect();
    join(&mut watcher, &id, "watcher");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let fixture = &fixture;
            scope.spawn(move || {
                for number in 0..25 {
                    let (mut client, id) = fixture.connect();
                    // Users overlap between the threads, so joins and leaves of one user race.
                    join(&mut client, &id, &format!("u{}", (number + thread) % 10));
                }
            });
        }
    });
    eventually(|| match fixture.api("GET", "channels/presence-x/users", "").text() {
        r#"{"users":[{"id":"watcher"}]}"# => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
    // Every notice that came: added and removed by turns, each user's last one removed.
    let mut here = std::collections::BTreeSet::new();
    let mut last =
        Client::open(fixture.addr, &crate::support::fixture::target(KEY), &[]).ok().unwrap();
    let id = crate::support::fixture::established(&last.hear_text()).unwrap();
    join(&mut last, &id, "last");
    loop {
        let text = watcher.hear_text();
        let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
        let data: serde_json::Value =
            serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
        let user = data["user_id"].as_str().unwrap().to_owned();
        if user == "last" {
            break;
        }
        match frame["event"].as_str().unwrap() {
            "pusher_internal:member_added" => assert!(here.insert(user), "twice: {text}"),
            "pusher_internal:member_removed" => assert!(here.remove(&user), "not there: {text}"),
            _ => panic!("{text}"),
        }
    }
    assert!(here.is_empty(), "still here: {here:?}");
}

fn join(client: &mut Client, socket_id: &str, user: &str) {
    let data = format!(r#"{{"user_id":"{user}"}}"#);
    let signature = hmac_hex(SECRET, &format!("{socket_id}:presence-x:{data}"));
    let command = serde_json::json!({ "event": "pusher:subscribe", "data": {
        "channel": "presence-x", "channel_data": data, "auth": format!("{KEY}:{signature}"),
    } });
    client.send_text(&command.to_string());
    while !client.hear_text().contains("subscription_succeeded") {}
}

/// Users come and go on every worker: each watcher hears of turns, and at the end knows who is there.
#[test]
fn watchers_agree_under_a_crowd() {
    let fixture = Fixture::with(|app| app.features.watchlist = true);
    let users: Vec<String> = (0..5).map(|number| format!("u{number}")).collect();
    let mut watched = users.clone();
    watched.push("last".to_owned());
    let user = serde_json::json!({ "id": "watcher", "watchlist": watched }).to_string();
    let mut watchers: Vec<Client> = (0..2)
        .map(|_| {
            let mut watcher = sign_in(&fixture, &user);
            assert!(watcher.hear_text().contains("offline"));
            watcher
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (fixture, users) = (&fixture, &users);
            scope.spawn(move || {
                for number in 0..50 {
                    let id = &users[(number * 3 + thread) % users.len()];
                    drop(sign_in(fixture, &serde_json::json!({ "id": id }).to_string()));
                }
            });
        }
    });
    eventually(|| match fixture.api("GET", "connections", "").text() {
        r#"{"connections":2}"# => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
    let _last = sign_in(&fixture, r#"{"id":"last"}"#);
    for watcher in &mut watchers {
        let mut here = std::collections::BTreeSet::new();
        loop {
            let text = watcher.hear_text();
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            let data: serde_json::Value =
                serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
            let event = &data["events"][0];
            let id = event["user_ids"][0].as_str().unwrap().to_owned();
            if id == "last" {
                break;
            }
            match event["name"].as_str().unwrap() {
                "online" => assert!(here.insert(id), "twice: {text}"),
                "offline" => assert!(here.remove(&id), "was not there: {text}"),
                _ => panic!("{text}"),
            }
        }
        assert!(here.is_empty(), "still here: {here:?}");
    }
}

/// A connection that is signed in as the user with this `user_data`.
fn sign_in(fixture: &Fixture, user: &str) -> Client {
    let (mut client, id) = fixture.connect();
    let auth = format!("{KEY}:{}", hmac_hex(SECRET, &format!("{id}::user::{user}")));
    let data = serde_json::json!({ "auth": auth, "user_data": user });
    client.send_text(&serde_json::json!({ "event": "pusher:signin", "data": data }).to_string());
    assert!(client.hear_text().contains("signin_success"));
    client
}

/// The last count that subscribers are told is the right one.
#[test]
fn counts_agree_under_a_crowd() {
    let fixture = Fixture::with(|app| app.features.subscription_count = true);
    let mut watchers: Vec<Client> = (0..2).map(|_| fixture.subscribed("pub")).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    drop(fixture.subscribed("pub"));
                }
            });
        }
    });
    let count = r#"{"occupied":true,"subscription_count":2}"#;
    eventually(|| match fixture.api("GET", "channels/pub?info=subscription_count", "").text() {
        text if text == count => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
    fixture.publish("pub", "end", "1");
    for watcher in &mut watchers {
        let mut last = String::new();
        loop {
            let text = watcher.hear_text();
            if text.contains(r#""event":"end""#) {
                break;
            }
            last = text;
        }
        assert!(last.ends_with(r#""data":"{\"subscription_count\":2}"}"#), "{last}");
    }
}

#[test]
fn the_first_of_many_subscribers_is_heard_by_the_next_query() {
    let fixture = Fixture::start();
    for number in 0..50 {
        let (mut client, _) = fixture.connect();
        let channel = format!("c{number}");
        subscribe(&mut client, &channel);
        let answer = fixture.api("GET", &format!("channels/{channel}"), "");
        assert_eq!(answer.text(), r#"{"occupied":true}"#);
    }
}

/// Those present hear of no more than a hundred in a second. Whoever is held up comes in later, and what it says
/// meanwhile is heard in its turn.
#[test]
fn who_comes_and_goes_without_end_is_held_up() {
    let mut memory = Memory::new(1, |_| {});
    let (mut present, mut restless) = (memory.connect(0), memory.connect(0));
    present.subscribe("presence-x", "1");
    present.heard();
    for _ in 0..250 {
        restless.subscribe("presence-x", "2");
        restless.unsubscribe("presence-x");
    }
    restless.subscribe("presence-x", "2");
    restless.say(r#"{"event":"pusher:ping"}"#);
    for (told, notices) in [(100, 200), (100, 200), (52, 101), (0, 0)] {
        assert_eq!(restless.heard().len(), told);
        memory.deliver_all();
        assert_eq!(present.heard().len(), notices);
        memory.second(&present);
        restless.session.resume();
    }
    assert_eq!(memory.inspect("presence-x"), (2, 2));
    // Who goes while it waits leaves nothing behind.
    for _ in 0..101 {
        restless.unsubscribe("presence-x");
        restless.subscribe("presence-x", "2");
    }
    drop(restless);
    memory.second(&present);
    assert_eq!(memory.inspect("presence-x"), (1, 1));
}

/// pusher-js does not ask again for a channel that it was refused: a page that left 120 rooms at once and came to 120
/// others, or to the same ones, would never be in those that were one too many.
#[test]
fn a_page_with_many_rooms_lost_some_of_them_for_ever() {
    let memory = Memory::new(1, |_| {});
    let mut page = memory.connect(0);
    let room = |round: usize, number: usize| format!("presence-{round}-{number}");
    for round in [0, 1, 0, 1, 1] {
        for number in 0..500 {
            page.subscribe(&room(round, number), "1");
        }
        let heard = page.heard();
        let is_in = |one: &Heard| matches!(one, Heard::Text(text) if text.contains("subscription_succeeded"));
        assert!(heard.len() == 500 && heard.iter().all(is_in), "{heard:?}");
        (0..500).for_each(|number| page.unsubscribe(&room(round, number)));
        assert_eq!(page.heard(), []);
    }
}
