//! Memory held for clients is counted, and there is no more of it once memory is used up: mostly by a node in
//! memory that is told what the process holds.

use fanfare::app::AppId;
use fanfare::cluster::link::LinkRequest;
use fanfare::metrics::Limited;
use fanfare::protocol::error::close;

use crate::support::fixture::{Fixture, ID};
use crate::support::loopback::Loopback;
use crate::support::memory::{Memory, Talk};
use crate::support::websocket::{Heard, frame};
use crate::support::{Chance, eventually};

const LIMIT: u64 = 1 << 20;

fn heard(talk: &mut Talk) -> String {
    let texts = talk.heard().into_iter().map(|heard| match heard {
        Heard::Text(text) => text,
        other => format!("{other:?}"),
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// Bytes that are counted for the app.
fn held(memory: &Memory) -> u64 {
    memory.shared.hub.directory(&AppId::new(ID)).held().value()
}

fn has_refused(memory: &Memory) -> u64 {
    memory.shared.metrics.of_worker(0).limited.value(Limited::Memory as usize)
}

#[test]
fn once_memory_is_used_up_nothing_more_is_kept_for_clients() {
    let memory = Memory::with_memory(LIMIT, |_| ());
    let mut talk = memory.connect(0);
    memory.publish(0, "cache-before", "e", "1");
    talk.subscribe("presence-before", "1");
    heard(&mut talk);
    memory.shared.capacity.note_memory(LIMIT, held(&memory));
    for channel in ["public", "cache-new", "presence-before-not", "presence-new"] {
        talk.subscribe(channel, "1");
        let told = heard(&mut talk);
        assert!(told.contains("LimitReached") && told.contains("4100"), "{channel}: {told}");
    }
    let directory = memory.shared.hub.directory(&AppId::new(ID));
    let before = directory.cache.figures();
    memory.publish(0, "cache-new", "e", "2");
    memory.publish(0, "cache-before", "e", "2");
    let after = directory.cache.figures();
    assert!(before.1 > 0 && after == (2, 0), "neither the new nor the outdated: {after:?}");
    assert_eq!(has_refused(&memory), 6);
    // What is there goes on.
    memory.publish(0, "presence-before", "e", "3");
    memory.deliver(0);
    assert!(heard(&mut talk).contains(r#""data":"3""#));
    memory.shared.capacity.note_memory(LIMIT / 2, held(&memory));
    talk.subscribe("cache-new", "1");
    let told = heard(&mut talk);
    assert!(told.contains("subscription_succeeded") && told.contains("cache_miss"), "{told}");
    memory.publish(0, "cache-new", "e", "4");
    assert!(directory.cache.figures().1 > 0);
}

#[test]
fn a_roster_that_memory_does_not_suffice_for_is_refused_before_anybody_is_told() {
    let memory = Memory::with_memory(LIMIT, |_| ());
    let mut room: Vec<Talk> = (0..40).map(|_| memory.connect(0)).collect();
    for (at, talk) in room.iter_mut().enumerate() {
        talk.subscribe("presence-room", &at.to_string());
    }
    memory.deliver(0);
    room.iter_mut().for_each(|talk| drop(heard(talk)));
    // There is room for a channel, but not for what a joiner is told until it has read that.
    memory.shared.capacity.note_memory(LIMIT - 800, held(&memory));
    let mut late = memory.connect(0);
    late.subscribe("presence-room", "late");
    assert!(heard(&mut late).contains("LimitReached"));
    late.subscribe("public", "");
    assert!(heard(&mut late).contains("subscription_succeeded"));
    memory.deliver(0);
    assert!(room.iter_mut().all(|talk| heard(talk).is_empty()), "nobody hears of it");
    assert_eq!(memory.inspect("presence-room"), (40, 40));
}

#[test]
fn what_waits_for_a_socket_is_held_until_it_has_gone() {
    let memory = Memory::new(1, |_| ());
    let mut readers: Vec<Talk> = (0..3).map(|_| memory.connect(0)).collect();
    for talk in &mut readers {
        talk.subscribe("room", "");
        heard(talk);
    }
    let before = held(&memory);
    memory.publish(0, "room", "e", &"x".repeat(10_000));
    memory.deliver(0);
    let waiting = held(&memory) - before;
    assert!((10_000..11_000).contains(&waiting), "one event, though three wait for it: {waiting}");
    heard(&mut readers[0]);
    assert_eq!(held(&memory) - before, waiting, "two wait for it still");
    readers.iter_mut().for_each(|talk| drop(heard(talk)));
    assert_eq!(held(&memory), before);
    memory.publish(0, "room", "e", &"x".repeat(10_000));
    memory.deliver(0);
    readers.iter().for_each(|talk| talk.connection.abort());
    assert_eq!(held(&memory), before, "nobody waits any more");
}

#[test]
fn who_holds_most_is_freed_of_what_waits_for_it_when_it_is_closed() {
    let memory = Memory::new(1, |_| ());
    let mut slow = memory.connect(0);
    slow.subscribe("room", "");
    heard(&mut slow);
    let before = held(&memory);
    for _ in 0..5 {
        memory.publish(0, "room", "e", &"x".repeat(100_000));
        memory.deliver(0);
    }
    assert!(held(&memory) - before > 500_000 && slow.connection.held_bytes() > 500_000);
    slow.connection.close_freeing(&close::OVER_CAPACITY);
    assert!(held(&memory) - before < 110_000, "all but what it may be in the middle of");
    let told = heard(&mut slow);
    assert!(told.ends_with(r#"Close(Some((4100, "Server is over capacity")))"#));
    assert_eq!(told.matches(r#""event":"e""#).count(), 1);
}

#[test]
fn a_message_that_is_not_whole_yet_is_held_until_it_is_or_its_sender_has_gone() {
    let fixture = Fixture::start();
    let held = || {
        let directory = fixture.running().shared().hub.directory(&AppId::new(ID));
        directory.held().value()
    };
    let reaches = |range: std::ops::Range<u64>| {
        let all = eventually(|| match held() {
            held if range.contains(&held) => Ok(()),
            held => Err(held.to_string()),
        });
        assert_eq!(all, Ok(()), "{range:?}");
    };
    let (mut client, _) = fixture.connect();
    reaches(0..1);
    let message = frame(0x81, &[b' '; 90_000]);
    client.send_bytes(&message[..80_000]);
    reaches(80_000..200_000);
    client.send_bytes(&message[80_000..]);
    reaches(0..1);
    client.send_frame(0x01, &[b' '; 50_000]);
    reaches(50_000..150_000);
    drop(client);
    reaches(0..1);
}

#[test]
fn clients_wait_while_too_much_waits_for_redis_and_leave_all_the_same() {
    let (mut memory, mut far) = Memory::with_queue(1, 0, |app| app.features.watchlist = true);
    far.go_up();
    // Each of them asks Redis for a channel of its own, and goes before it has answered.
    let mut come = 0;
    let mut last = loop {
        let mut talk = memory.connect(0);
        talk.subscribe(&format!("channel-{come:0>150}"), "1");
        come += 1;
        assert!(come < 20_000, "there is no end to what waits");
        if memory.shared.metrics.of_worker(0).limited.value(Limited::Link as usize) > 0 {
            break talk;
        }
    };
    assert!(come > 2000, "{come}");
    let mut other = memory.connect(0);
    other.sign_in(r#"{"id":"u","watchlist":["a","b"]}"#);
    other.say(r#"{"event":"pusher:ping","data":{}}"#);
    // In the next second there is no more room.
    memory.second(&last);
    last.session.resume();
    other.session.resume();
    let heard_before = (heard(&mut last), heard(&mut other));
    assert!(!heard_before.0.contains("subscription") && !heard_before.1.contains("signin"));
    let mut asked = (0, 0);
    while let Ok(request) = far.requests.try_recv() {
        asked.0 += usize::from(matches!(request, LinkRequest::Open(_)));
        asked.1 += usize::from(matches!(request, LinkRequest::Changed { .. }));
    }
    assert_eq!(asked, (come - 1, come - 1), "those that have gone have said so");
    // And in the one after that there is.
    memory.second(&last);
    last.session.resume();
    other.session.resume();
    let channel = format!("channel-{:0>150}", come - 1);
    let mut opened = Vec::new();
    while let Ok(request) = far.requests.try_recv() {
        if let LinkRequest::Open(topic) = request {
            opened.push(topic.channel.as_str().to_owned());
        }
    }
    assert!(opened.contains(&channel), "{opened:?}");
    let told = heard(&mut other);
    let (signed, pong) = (told.find("pusher:signin_success"), told.find("pusher:pong"));
    assert!(signed.is_some() && signed < pong, "{told}");
}

#[tokio::test]
async fn what_is_said_behind_subscriptions_that_wait_is_heard_in_its_order() {
    let mut chance = Chance::new("what waits");
    for _ in 0..50 {
        let mut all = Loopback::new(2, |_| ());
        let mut talk = all.nodes[0].memory.connect(0);
        for channel in ["one", "two", "three"] {
            talk.subscribe(channel, "1");
            talk.say(r#"{"event":"pusher:ping","data":{}}"#);
        }
        talk.unsubscribe("one");
        talk.subscribe("presence-four", "1");
        talk.subscribe("one", "1");
        let mut told = String::new();
        // Once for each that waits behind another.
        let mut left = 20;
        while told.matches("subscription_succeeded").count() < 5 && left > 0 {
            while all.step(&mut chance) {}
            all.nodes[0].memory.deliver_all();
            talk.session.resume();
            told += &heard(&mut talk);
            left -= 1;
        }
        let places = ["one", "two", "three", "presence-four"].map(|channel| {
            let text = format!(r#""pusher_internal:subscription_succeeded","channel":"{channel}""#);
            told.find(&text).unwrap_or_else(|| panic!("{channel} in {told}"))
        });
        assert!(places.is_sorted(), "{told}");
        assert_eq!(told.matches("pusher:pong").count(), 3, "{told}");
        assert_eq!(told.matches(r#""channel":"one""#).count(), 2, "{told}");
        let last = told.rfind(r#""channel":"one""#).unwrap();
        assert!(last > places[3], "{told}");
    }
}
