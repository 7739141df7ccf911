//! How much one connection may ask for, of each kind, before it is read later: at once, and each second after that. The
//! figures are those of docs/limits.md. Nothing is refused for it: each is held up, and goes on.

use std::time::{Duration, Instant};

use fanfare::app::ClientEvents;

use crate::support::memory::{Memory, Talk};

/// Units that a connection may spend at once, and that come back each second.
const SAVED: usize = 300_000;
const A_SECOND: usize = 10_000;

/// Asks for the same, which costs `units`, without end until the connection is held up. How often it could is what it
/// may at once, and what has come back meanwhile.
fn is_held_up(what: &str, talk: &mut Talk, units: usize, mut ask: impl FnMut(&mut Talk, usize)) {
    let (begun, mut asked) = (Instant::now(), 0);
    while talk.session.hold_up().is_none() {
        assert!(asked <= 100 * SAVED / units, "{what}: never held up");
        ask(talk, asked);
        asked += 1;
        if asked % 16 == 0 {
            drop(talk.heard());
        }
    }
    let passed = begun.elapsed() + Duration::from_millis(20);
    let back = A_SECOND * passed.as_millis() as usize / 1000;
    // The first is paid for by the time before it.
    let (least, most) = (SAVED / units, (SAVED + back) / units + 2);
    assert!((least..=most).contains(&asked), "{what}: {asked}, of {least} to {most}");
    let wait = talk.session.hold_up().unwrap_or_default();
    assert!(wait <= Duration::from_secs(1), "{what}: for the next one alone, {wait:?}");
    assert!(!talk.connection.is_closing(), "{what}");
}

#[test]
fn what_one_connection_asks_for_has_its_rate() {
    let memory = Memory::new(1, |app| {
        app.client_events = ClientEvents::Members;
        app.limits.client_events_per_second = 1;
    });
    let mut other = memory.connect(0);
    other.subscribe("pub", "");
    // Each is a message as well, which costs one.
    for (what, units, text) in [
        ("what asks for nothing", 1, r#"{"event":"pusher:pong"}"#),
        ("pings", 101, r#"{"event":"pusher:ping"}"#),
        ("what is no message", 501, "nonsense"),
        ("what is no event", 501, r#"{"event":"client-x","channel":7}"#),
        ("refused subscriptions", 521, r#"{"event":"pusher:subscribe","data":{"channel":"a b"}}"#),
    ] {
        is_held_up(what, &mut memory.connect(0), units, |talk, _| talk.say(text));
    }
    is_held_up("sign-ins", &mut memory.connect(0), 2001, |talk, _| talk.sign_in(r#"{"id":"1"}"#));
    is_held_up("subscriptions", &mut memory.connect(0), 22, |talk, _| {
        talk.subscribe("pub", "");
        talk.unsubscribe("pub");
    });
    is_held_up("new channels", &mut memory.connect(0), 122, |talk, number| {
        talk.subscribe(&format!("new-{number}"), "");
        talk.unsubscribe(&format!("new-{number}"));
    });
    let mut whispers = memory.connect(0);
    whispers.subscribe("pub", "");
    whispers.say(r#"{"event":"client-x","channel":"pub","data":"x"}"#);
    is_held_up("client events over their rate", &mut whispers, 101, |talk, _| {
        talk.say(r#"{"event":"client-x","channel":"pub","data":"x"}"#);
    });
}

/// 10 KiB to a hundred are a megabyte, however little of it the sender sends.
#[test]
fn a_client_event_costs_its_bytes_for_all_who_hear_it() {
    let memory = Memory::new(1, |app| {
        app.client_events = ClientEvents::Members;
        app.limits.client_events_per_second = u32::MAX;
    });
    let mut room: Vec<Talk> = (0..101).map(|_| memory.connect(0)).collect();
    room.iter_mut().for_each(|talk| talk.subscribe("pub", ""));
    let data = "x".repeat(10_000);
    let text = format!(r#"{{"event":"client-x","channel":"pub","data":"{data}"}}"#);
    let mut sender = room.pop().unwrap();
    let frame = format!(r#"{{"channel":"pub","event":"client-x","data":"{data}"}}"#).len() + 4;
    // A unit is 3,355 bytes; a message costs one itself. All members are counted, the sender too.
    let units = 101 * frame / ((32 << 20) / A_SECOND) + 1;
    is_held_up("bytes for others", &mut sender, units, |talk, _| {
        talk.say(&text);
        memory.deliver_all();
        room.iter_mut().for_each(|one| drop(one.heard()));
    });
}

/// Who is held up for it and does not stop would never get through.
#[test]
fn who_talks_nonsense_without_end_is_closed() {
    let memory = Memory::new(1, |_| {});
    let mut talk = memory.connect(0);
    // A socket would read on only when the time is over; in memory nothing waits.
    let mut said = 0;
    while !talk.connection.is_closing() {
        assert!(said < 2 * SAVED / 501, "never closed");
        talk.say("nonsense");
        drop(talk.heard());
        talk.session.hold_up();
        said += 1;
    }
    assert!(said > SAVED / 501 + 300, "after {said}");
    let heard = format!("{:?}", talk.heard());
    assert!(
        heard.contains("4200") && heard.contains("Too many refused messages or pings"),
        "{heard}"
    );
}
