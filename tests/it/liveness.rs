//! Silence, and what comes of it: minutes of waiting, without waiting. Time moves second by second where
//! the test says so.

use std::time::Duration;

use crate::support::memory::{Memory, Talk};
use crate::support::websocket::Heard;

const PING: &str = r#"{"event":"pusher:ping","data":"{}"}"#;
const NO_PONG: &str =
    r#"{"event":"pusher:error","data":{"code":4201,"message":"Pong reply not received in time"}}"#;

/// The announced silence in these tests; the grace is 30 seconds more.
const TIMEOUT: u32 = 10;

fn memory() -> Memory {
    Memory::new(1, |app| app.activity_timeout = TIMEOUT)
}

/// Lets `seconds` pass; what the connection is told then.
fn wait(memory: &mut Memory, talk: &mut Talk, seconds: u32) -> Vec<Heard> {
    (0..seconds).for_each(|_| memory.second(talk));
    talk.heard()
}

fn asked() -> Vec<Heard> {
    vec![Heard::Ping(Vec::new()), Heard::Text(PING.to_owned())]
}

fn closed() -> Vec<Heard> {
    let reason = "Pong reply not received in time".to_owned();
    vec![Heard::Text(NO_PONG.to_owned()), Heard::Close(Some((4201, reason)))]
}

#[test]
fn l05_a_silent_client_that_answers_pings_is_kept() {
    let (mut memory, mut talk) = {
        let memory = memory();
        let talk = memory.connect(0);
        (memory, talk)
    };
    for _ in 0..10 {
        assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 29), []);
        assert_eq!(wait(&mut memory, &mut talk, 1), asked());
        assert_eq!(wait(&mut memory, &mut talk, 29), []);
        talk.is_heard();
    }
}

#[test]
fn l06_a_client_that_answers_nothing_is_closed() {
    let mut memory = memory();
    let mut talk = memory.connect(0);
    assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 30), asked());
    assert_eq!(wait(&mut memory, &mut talk, 29), []);
    assert_eq!(wait(&mut memory, &mut talk, 1), closed());
    assert_eq!(wait(&mut memory, &mut talk, 100), []);
}

#[test]
fn l07_a_pong_that_is_no_event_is_enough() {
    let mut memory = memory();
    let mut talk = memory.connect(0);
    talk.subscribe("pub", "");
    talk.heard();
    for _ in 0..5 {
        assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 30), asked());
        // What comes as a WebSocket pong or ping counts as heard and says no more.
        talk.is_heard();
        assert_eq!(wait(&mut memory, &mut talk, 1), []);
    }
}

#[test]
fn l10_whatever_a_client_says_is_life() {
    let mut memory = memory();
    let mut talk = memory.connect(0);
    talk.subscribe("private-x", "");
    talk.heard();
    for _ in 0..10 {
        assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 20), []);
        talk.say(r#"{"event":"client-a","channel":"private-x","data":{}}"#);
        assert_eq!(talk.heard(), []);
    }
    // What it is told is no life of its own.
    for _ in 0..TIMEOUT + 29 {
        memory.publish(0, "private-x", "e", "1");
        memory.deliver_all();
        assert_eq!(wait(&mut memory, &mut talk, 1).len(), 1);
    }
    assert_eq!(wait(&mut memory, &mut talk, 1), asked());
    assert_eq!(wait(&mut memory, &mut talk, 30), closed());
}

#[test]
fn a_deadline_of_less_than_a_second_is_one() {
    let deadline = Duration::from_millis(500);
    let mut memory = Memory::new(1, |app| app.features.authorization_timeout = deadline);
    let mut talk = memory.connect(0);
    assert_eq!(wait(&mut memory, &mut talk, 1).len(), 2, "the reason and the close");
}
