//! Streams the feed: an endless HTTP response with a JSON line per fact and one with figures each second. A reader that
//! falls behind is disconnected.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::figures;
use crate::config;
use crate::console::{Batch, Watching, unix_millis};
use crate::http::Http;
use crate::hub::stream::Stream;

/// How long a reader may take for what is written to it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often there are figures.
const SECOND: Duration = Duration::from_secs(1);

/// Facts that are gathered into one write.
const GATHER: Duration = Duration::from_millis(40);

/// Written by hand, since the stream was taken from hyper: `chunked` ends the feed as HTTP/1.1 has
/// it, and `x-accel-buffering` keeps nginx from gathering lines.
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncache-control: no-store\r\n\
     x-accel-buffering: no\r\nx-content-type-options: nosniff\r\nconnection: close\r\ntransfer-encoding: chunked\r\n";

/// A connection that the feed goes out on from now on.
#[derive(Debug)]
pub struct FeedStream {
    /// The feed; dropping it closes it.
    pub(super) watching: Watching,
    /// Bytes of earlier responses that the client has not read yet.
    pub before: Vec<u8>,
}

/// Writes until the reader goes, is too slow, or the server ends.
pub async fn serve(http: Rc<Http>, mut stream: Stream, feed: FeedStream) {
    let FeedStream { watching, before } = feed;
    let mut first = before;
    first.extend_from_slice(HEAD.as_bytes());
    let date = httpdate::HttpDate::from(std::time::SystemTime::now());
    first.extend_from_slice(format!("date: {date}\r\n\r\n").as_bytes());
    let shared = &http.node.shared;
    let mut lines = vec![line(&hello(&http))];
    lines.extend(watching.remembered_lines());
    let (figures, mut sample) = figures::sample_figures(shared, None, 0);
    lines.push(line(&figures));
    push_chunk(&mut first, &lines);
    if !write(&mut stream, &first).await {
        return;
    }
    let mut seconds = interval(SECOND);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    seconds.tick().await;
    // Read only to see that the reader goes.
    let mut scratch = [0; 256];
    loop {
        let is_second = tokio::select! {
            read = stream.read(&mut scratch) => match read {
                Ok(0) | Err(_) => return,
                // A reader has nothing to say.
                Ok(_) => continue,
            },
            _ = seconds.tick() => true,
            () = watching.feed().woken() => false,
        };
        if !is_second {
            tokio::time::sleep(GATHER).await;
        }
        let Batch { lines, is_cut } = watching.feed().take();
        let mut lines = Vec::from(lines);
        if is_second {
            let (figures, next) =
                figures::sample_figures(shared, Some(sample), watching.feed().begin_second());
            lines.push(line(&figures));
            sample = next;
        }
        let mut chunk = Vec::new();
        push_chunk(&mut chunk, &lines);
        if is_cut || !write(&mut stream, &chunk).await {
            debug!("a console was too slow, and is let go");
            return;
        }
    }
}

/// The first line of a feed.
fn hello(http: &Http) -> Value {
    json!({
        "kind": "hello",
        "at": unix_millis(),
        "version": config::VERSION,
        "node": http.node.hub().node_number(),
        "uptime": http.node.hub().uptime().as_secs(),
        "workers": http.node.hub().worker_count(),
        "cluster": http.node.shared.scope.is_link_up().is_some(),
    })
}

/// One line of the feed: JSON without line breaks, and the one that ends it (NDJSON).
fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// Puts the lines into one chunk; no lines make none, for an empty one is the end.
fn push_chunk(to: &mut Vec<u8>, lines: &[Bytes]) {
    let size: usize = lines.iter().map(Bytes::len).sum();
    if size > 0 {
        to.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        lines.iter().for_each(|line| to.extend_from_slice(line));
        to.extend_from_slice(b"\r\n");
    }
}

/// False once the reader has gone, or took longer than [`PATIENCE`].
async fn write(stream: &mut Stream, bytes: &[u8]) -> bool {
    let writing = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    matches!(timeout(PATIENCE, writing).await, Ok(Ok(())))
}
