//! What is held for clients is counted, and there is no more of it once memory is used up: mostly by a node in
//! memory that is told what the process holds.

use fanfare::app::AppId;
use fanfare::metrics::Limited;
use fanfare::protocol::error::close;

use crate::support::eventually;
use crate::support::fixture::{Fixture, ID};
use crate::support::memory::{Memory, Talk};
use crate::support::websocket::{Heard, frame};

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
