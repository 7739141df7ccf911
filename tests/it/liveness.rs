//! Silence, and what comes of it: minutes of waiting, without waiting. Time moves second by second where
//! the test says so.

use std::time::Duration;

use fanfare::hub::stream::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

use crate::support::memory::{Memory, Talk};
use crate::support::websocket::{FIN, Heard, PING, PONG, TEXT, frame as bytes};

const PING_EVENT: &str = r#"{"event":"pusher:ping","data":"{}"}"#;
const NO_PONG: &str =
    r#"{"event":"pusher:error","data":{"code":4201,"message":"Pong reply not received in time"}}"#;

/// The announced silence in these tests; we ask 25 seconds after it.
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
    vec![Heard::Ping(Vec::new()), Heard::Text(PING_EVENT.to_owned())]
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
        assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 24), []);
        assert_eq!(wait(&mut memory, &mut talk, 1), asked());
        assert_eq!(wait(&mut memory, &mut talk, 29), []);
        talk.is_heard();
    }
}

#[test]
fn l06_a_client_that_answers_nothing_is_closed() {
    let mut memory = memory();
    let mut talk = memory.connect(0);
    assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 25), asked());
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
        assert_eq!(wait(&mut memory, &mut talk, TIMEOUT + 25), asked());
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
    for _ in 0..TIMEOUT + 24 {
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

/// The next frame of a server, which sends none that is longer than 125 bytes here.
async fn frame(client: &mut UnixStream) -> Vec<u8> {
    let mut head = [0; 2];
    client.read_exact(&mut head).await.unwrap();
    let mut frame = vec![0; usize::from(head[1])];
    client.read_exact(&mut frame).await.unwrap();
    frame
}

/// Chromium keeps a page that was left, with its socket (back/forward cache). Its network process answers WebSocket
/// pings for the page, which hears nothing.
#[tokio::test]
async fn a_page_that_was_left_was_present_as_long_as_its_browser_answered_for_it() {
    for (answers_pings, data, is_life) in [
        (true, false, false),
        (true, true, true),
        // What cannot answer events, its library's pongs must do for.
        (false, false, true),
    ] {
        let mut memory = memory();
        let (server, mut client) = UnixStream::pair().unwrap();
        let talk = memory.connect_over(0, Stream::Unix(server));
        let connection = talk.session.connection().clone();
        connection.life.answers_pings.set(answers_pings);
        let local = LocalSet::new();
        local.spawn_local(memory.carry(talk));
        let stays = local.run_until(async {
            assert!(String::from_utf8_lossy(&frame(&mut client).await).contains("established"));
            // Before it is asked, a pong is as good as anything.
            (0..TIMEOUT + 24).for_each(|_| memory.second_of(&connection));
            client.write_all(&bytes(FIN | PONG, b"")).await.unwrap();
            client.write_all(&bytes(FIN | PING, b"one")).await.unwrap();
            assert_eq!(frame(&mut client).await, b"one");
            (0..TIMEOUT + 25).for_each(|_| memory.second_of(&connection));
            assert_eq!(frame(&mut client).await, b"", "asked");
            assert_eq!(frame(&mut client).await, PING_EVENT.as_bytes());
            client.write_all(&bytes(FIN | PONG, b"")).await.unwrap();
            if data {
                let answer = bytes(FIN | TEXT, br#"{"event":"pusher:pong","data":{}}"#);
                client.write_all(&answer).await.unwrap();
            }
            client.write_all(&bytes(FIN | PING, b"two")).await.unwrap();
            assert_eq!(frame(&mut client).await, b"two");
            (0..30).for_each(|_| memory.second_of(&connection));
            !connection.is_closing()
        });
        assert_eq!(stays.await, is_life, "answers_pings {answers_pings}, data {data}");
    }
}
