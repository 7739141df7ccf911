//! Clients over HTTP and time: heartbeats, signs of life, and how long a session waits, second by second on a
//! clock of its own.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use fanfare::hub::handles::ConnectionRef;
use fanfare::hub::http_stream::SessionRequest;
use fanfare::hub::loads::{LoadGuard, WorkerLoads};
use fanfare::hub::stream::StreamInTransit;
use fanfare::protocol::fallback::AnswerFraming;
use tokio::sync::oneshot;
use tokio::task::{LocalSet, yield_now};

use crate::support::memory::Memory;

/// The announced silence in these tests; after 25 seconds more of it clients are asked.
const TIMEOUT: u32 = 10;

/// Lets everything be done that can be at this moment.
async fn settle(memory: &Memory) {
    for _ in 0..4 {
        memory.deliver(0);
        yield_now().await;
    }
}

/// Runs a story of sessions over HTTP on a clock of its own.
fn over_http(story: impl AsyncFnOnce(&mut Memory)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let mut memory = Memory::new(1, |app| app.activity_timeout = TIMEOUT);
    let worker = memory.nodes[0].worker.clone();
    let all = LocalSet::new();
    all.spawn_local(async move { worker.turnstile.run_turnstile(&worker.inbox().turns).await });
    runtime.block_on(all.run_until(story(&mut memory)));
}

async fn seconds(memory: &mut Memory, seconds: u32) {
    for _ in 0..seconds {
        memory.second_over_http();
        settle(memory).await;
    }
}

/// Begins a poll.
async fn poll(memory: &Memory, place: ConnectionRef) -> oneshot::Receiver<Bytes> {
    let (answer, poll) = oneshot::channel();
    memory.shared.hub.bring_request(place, SessionRequest::Polling(answer));
    settle(memory).await;
    poll
}

/// Opens a session, and takes its greeting.
async fn opened(memory: &Memory) -> ConnectionRef {
    let place = memory.open_session("k/1/00000000");
    let mut first = poll(memory, place).await;
    assert!(first.try_recv().unwrap().starts_with(b"o\na["));
    place
}

fn is_open(memory: &Memory) -> bool {
    memory.shared.hub.http_sessions.find_session("k/1/00000000").is_some()
}

#[test]
fn a_poll_without_news_is_answered_by_a_heartbeat() {
    over_http(async |memory| {
        let place = opened(memory).await;
        for _ in 0..3 {
            let mut waiting = poll(memory, place).await;
            seconds(memory, 25).await;
            assert!(waiting.try_recv().is_err(), "not before 25 seconds are over");
            seconds(memory, 1).await;
            assert_eq!(waiting.try_recv().unwrap(), "h\n");
            seconds(memory, TIMEOUT - 2).await;
        }
        // In all that time nothing was sent: polls are signs of life.
        assert!(is_open(memory));
    });
}

#[test]
fn a_session_waits_as_long_between_polls_as_was_announced() {
    over_http(async |memory| {
        opened(memory).await;
        seconds(memory, TIMEOUT).await;
        assert!(is_open(memory));
        seconds(memory, 2).await;
        assert!(!is_open(memory));
    });
}

/// Begins a streaming request; the client's end of its stream.
async fn stream(memory: &Memory, place: ConnectionRef) -> UnixStream {
    let (client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let alive = LoadGuard::new(Arc::new(WorkerLoads::new(1, 100)), 0);
    let stream = StreamInTransit::Unix(server);
    let arrival = SessionRequest::Streaming {
        stream,
        framing: AnswerFraming::Plain,
        before: Vec::new(),
        alive,
    };
    memory.shared.hub.bring_request(place, arrival);
    settle(memory).await;
    client
}

/// What has come there.
fn heard(client: &mut UnixStream) -> String {
    let mut all = Vec::new();
    // At its end, or when there is nothing more for now.
    let _ = client.read_to_end(&mut all);
    String::from_utf8(all).unwrap()
}

#[test]
fn a_stream_hears_heartbeats_and_is_asked_for_a_sign_of_life() {
    over_http(async |memory| {
        let place = opened(memory).await;
        let mut client = stream(memory, place).await;
        assert!(heard(&mut client).ends_with("\r\n\r\n"), "no second `o`");
        seconds(memory, 26).await;
        assert_eq!(heard(&mut client), "h\n");
        // It does not answer, and so is asked as any client is.
        let mut lines = String::new();
        let patience = TIMEOUT + 40 + 30;
        for _ in 0..patience {
            seconds(memory, 1).await;
            lines.push_str(&heard(&mut client));
        }
        assert!(lines.contains("pusher:ping"), "{lines}");
        assert!(lines.ends_with("c[4201,\"Pong reply not received in time\"]\n"), "{lines}");
        assert!(!is_open(memory));
    });
}

#[test]
fn a_session_waits_ten_seconds_for_the_next_streaming_request() {
    over_http(async |memory| {
        let place = opened(memory).await;
        let before = stream(memory, place).await;
        // Its client has read so much that it asks again, but does not.
        let (heard, answer) = oneshot::channel();
        let channel = "x".repeat(200);
        let frame = format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#);
        let texts = vec![frame; 1000];
        memory.shared.hub.bring_request(place, SessionRequest::Texts { texts, bytes: 0, heard });
        settle(memory).await;
        assert!(answer.await.unwrap());
        let mut all = String::new();
        let mut client = before;
        for _ in 0..100 {
            all.push_str(&self::heard(&mut client));
            settle(memory).await;
        }
        assert!(all.len() > 262_144, "{} bytes", all.len());
        seconds(memory, 10).await;
        assert!(is_open(memory));
        seconds(memory, 2).await;
        assert!(!is_open(memory));
    });
}
