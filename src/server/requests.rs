//! The requests of one connection. Those that arrive whole are read in `whole.rs`; from the first other one on, hyper
//! reads.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tracing::{debug, info};

use super::http_io::HttpIo;
use super::unreadable::{self, MAX_HEAD};
use super::whole::{self, HandedStream, WholeEnd};
use crate::http::eviction::{HYPER_BYTES, log_eviction};
use crate::http::timeouts::{TimeoutReason, TimerGuard};
use crate::http::{AddressRole, Handoff, Http, HttpService};
use crate::hub::stream::Stream;
use crate::metrics::{LogNotice, Unreadable};
use crate::socket;

/// Counts and logs bytes that are no request. A TLS client on a plain port is usually a wrong setting, and worth a
/// line; most of the rest is noise of the internet.
fn report_unreadable(http: &Http, peer: IpAddr, kind: Unreadable) {
    http.node.counts().unreadable.count(kind as usize);
    let (kind_word, (.., text)) = (kind.label(), unreadable::words(kind));
    let notices = &http.node.shared.metrics.notices;
    match (kind == Unreadable::Tls).then(|| notices.take_due(LogNotice::PlainPort)).flatten() {
        Some(others) => info!(%peer, others, "TLS came to a port without it: {text}"),
        None => debug!(%peer, kind = kind_word, "no request that can be read: {text}"),
    }
}

/// Counts buffers of a connection, for which others may make way.
pub(super) fn hold_buffers(http: &Http, kept: &TimerGuard, (peer, bytes): (IpAddr, usize)) {
    let ended = kept.hold_buffers(peer, bytes);
    if ended > 0 {
        log_eviction(http, peer, ended, "unfinished requests take too much memory");
    }
}

/// Answers requests until the client is done, too slow, or wants a socket.
/// The stream, if a request left it to something else; nothing once the connection is over.
pub(super) async fn answer_requests(
    http: &Rc<Http>,
    stream: Stream,
    (peer, role): (IpAddr, AddressRole),
    kept: TimerGuard,
) -> Option<HandedStream> {
    let door = HttpService {
        http: http.clone(),
        peer,
        role,
        tls: stream.is_tls(),
        unix: matches!(stream, Stream::Unix(_)),
        timer: kept.timer.clone(),
        handoff: Rc::default(),
    };
    match whole::answer_whole(&door, stream).await {
        WholeEnd::Handed(handed) => Some(handed),
        WholeEnd::Done(mut stream) => {
            // On the heap, as the next.
            Box::pin(socket::linger(&mut stream)).await;
            None
        }
        WholeEnd::Broken => None,
        WholeEnd::Other(stream, before) => {
            hold_buffers(http, &kept, (peer, HYPER_BYTES));
            // On the heap, for most connections have no need of it.
            Box::pin(answer_by_hyper(door, stream, before)).await
        }
    }
}

/// Has hyper read the requests, of which the first has begun with `before`.
/// Once here, a connection stays here: hyper keeps what it has read ahead.
async fn answer_by_hyper(door: HttpService, stream: Stream, before: Bytes) -> Option<HandedStream> {
    let (http, peer, timer, handoff) =
        (door.http.clone(), door.peer, door.timer.clone(), door.handoff.clone());
    let io = HttpIo {
        stream: TokioIo::new(stream),
        http: http.clone(),
        timer: timer.clone(),
        handoff: handoff.clone(),
        before,
        withheld: Vec::new(),
    };
    let mut connection = http1::Builder::new()
        // A server that drains answers what has come, and says that it will not take more.
        .keep_alive(!http.node.shared.is_draining())
        .max_header_size(MAX_HEAD)
        .serve_connection(io, door);
    let served = poll_fn(|cx| {
        match timer.poll_end(cx) {
            Some(TimeoutReason::Late) => {
                debug!(%peer, step = ?timer.current_phase(), "too slow with a request");
                return Poll::Ready(None);
            }
            Some(TimeoutReason::Crowded) => return Poll::Ready(None),
            Some(TimeoutReason::Draining) => Pin::new(&mut connection).graceful_shutdown(),
            None => {}
        }
        // Not to the end: hyper would close a stream that is to become a socket.
        connection.poll_without_shutdown(cx).map(Some)
    })
    .await?;
    let parts = connection.into_parts();
    let mut stream = parts.io.stream.into_inner();
    if let Err(error) = served {
        let kind = unreadable::classify(&error, &parts.read_buf)?;
        report_unreadable(&http, peer, kind);
        unreadable::answer(&mut stream, kind).await;
        socket::linger(&mut stream).await;
        return None;
    }
    match handoff.take() {
        Some(mut handoff) => {
            let mut before = parts.io.withheld;
            // hyper's own 101 is left out; what it wrote before that belongs to earlier answers.
            before.truncate(head_of_101(&before));
            match &mut handoff {
                Handoff::Socket(upgrade) => drop(upgrade.answer.splice(..0, before)),
                Handoff::Lines(lines) => lines.before = before,
                #[cfg(feature = "socketio")]
                Handoff::Engine(engine) => drop(engine.answer.splice(..0, before)),
                Handoff::Feed(feed) => feed.before = before,
            }
            Some(HandedStream { stream, handoff, early: parts.read_buf })
        }
        None => {
            // Otherwise the kernel resets the stream over what was not read, and the client may never see its
            // answer.
            socket::linger(&mut stream).await;
            None
        }
    }
}

/// Where hyper's 101 begins, which is the last thing that it wrote.
fn head_of_101(held: &[u8]) -> usize {
    const VERSION: usize = b"HTTP/1.1".len();
    memchr::memmem::rfind(held, b" 101 Switching Protocols\r\n")
        .map_or(0, |status| status.saturating_sub(VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_still_waits_is_kept_before_the_101() {
        let before = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let own = b"HTTP/1.1 101 Switching Protocols\r\nconnection: close\r\n\r\n";
        assert_eq!(head_of_101(&[&before[..], own].concat()), before.len());
        assert_eq!(head_of_101(own), 0);
    }
}
