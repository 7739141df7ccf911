//! Fast path for requests that arrive in one piece, as API requests and handshakes do: parsed and answered here, for
//! half the cost of hyper. Anything unusual or incomplete is left to hyper with the bytes read so far; the connection
//! then stays there.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Collected, Full};
use httparse::{Header, Status};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::task::yield_now;
use tracing::debug;

use super::date_text::DateText;
use crate::http::timeouts::TimeoutReason;
use crate::http::{
    Handoff, HttpService, PlainAnswer, PlainHandshake, PlainRequest, RequestBody, Upgrade,
};
use crate::hub::stream::Stream;
use crate::protocol::json::push_number;

/// Bytes of the largest request that is read here, and of what is read at a time.
const MAX_REQUEST: usize = 16 << 10;

/// Headers of one.
const MAX_HEADERS: usize = 48;

/// Bytes of the largest answer that leaves in one piece with its head.
const MAX_JOINED: usize = 32 << 10;

thread_local! {
    // One for each thread: 16 KiB for each idle connection would be most of what it costs.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_REQUEST]);
    /// The `Date` header, made once a second for each worker.
    static DATE: RefCell<DateText> = RefCell::default();
}

/// A stream that its last request left to something else.
pub(super) struct HandedStream {
    pub stream: Stream,
    /// The socket or session that it becomes.
    pub handoff: Handoff,
    /// Bytes that followed the request.
    pub early: Bytes,
}

/// How a connection leaves here.
pub(super) enum WholeEnd {
    /// The connection belongs to something else now.
    Handed(HandedStream),
    /// The client is done, or is to be.
    Done(Stream),
    /// The connection has ended, or its time is over.
    Broken,
    /// The rest is for hyper, with what was read of it.
    Other(Stream, Bytes),
}

/// Answers requests for as long as they come whole.
pub(super) async fn answer_whole(door: &HttpService, mut stream: Stream) -> WholeEnd {
    // During a drain hyper answers all new requests, so that there is one response.
    let mut is_last = door.http.node.shared.is_draining();
    let mut bytes = Bytes::new();
    while !is_last {
        if bytes.is_empty() {
            match read_request(door, &mut stream).await {
                Some(Ok(some)) if some.is_empty() => return WholeEnd::Done(stream),
                Some(Ok(some)) => bytes = some,
                Some(Err(_)) | None => return WholeEnd::Broken,
            }
        }
        let mut taken = take_request(door, &bytes);
        if matches!(taken, Err(NotWhole::Bodiless)) {
            // Many clients write the body by itself, a moment after the head.
            yield_now().await;
            bytes = read_more(&mut stream, bytes).await;
            taken = take_request(door, &bytes);
        }
        let written = match taken {
            Err(_) => return WholeEnd::Other(stream, bytes),
            Ok(Taken::Published { answer, length }) => {
                bytes = bytes.split_off(length);
                let writing = pin!(write_pieces(&mut stream, &answer, &[]));
                unless_late(door, &mut is_last, writing).await
            }
            Ok(Taken::Upgraded { upgrade, length }) => {
                let (handoff, early) = (Handoff::Socket(upgrade), bytes.split_off(length));
                return WholeEnd::Handed(HandedStream { stream, handoff, early });
            }
            Ok(Taken::Request { parts, body, length }) => {
                // On the heap, for sockets come without it.
                let mut answering = Box::pin(door.begin(parts, RequestBody::Whole(body)));
                let answered = unless_late(door, &mut is_last, answering.as_mut()).await;
                let Some(Ok(answer)) = answered else { return WholeEnd::Broken };
                bytes = bytes.split_off(length);
                if let Some(handoff) = door.handoff.take() {
                    return WholeEnd::Handed(HandedStream { stream, handoff, early: bytes });
                }
                let (first, second) = answer_pieces(answer, is_last);
                let writing = pin!(write_pieces(&mut stream, &first, &second));
                unless_late(door, &mut is_last, writing).await
            }
        };
        if !matches!(written, Some(Ok(()))) {
            return WholeEnd::Broken;
        }
        if is_last {
            return WholeEnd::Done(stream);
        }
    }
    WholeEnd::Other(stream, bytes)
}

/// Reads the next request. Empty at the end of the stream, or if the connection must end between requests; `None`
/// if its time is over.
async fn read_request(door: &HttpService, stream: &mut Stream) -> Option<io::Result<Bytes>> {
    poll_fn(|cx| {
        match door.timer.poll_end(cx) {
            Some(TimeoutReason::Draining) => return Poll::Ready(Some(Ok(Bytes::new()))),
            Some(end) => {
                log_timeout(door, end);
                return Poll::Ready(None);
            }
            None => {}
        }
        let read = poll_some(stream, cx);
        if read.is_ready() {
            door.timer.note_bytes(door.http.node.worker.now_seconds());
        }
        read.map(Some)
    })
    .await
}

/// `bytes` with what has come since, without waiting: what is not here by now is left to hyper.
async fn read_more(stream: &mut Stream, bytes: Bytes) -> Bytes {
    let more = poll_fn(|cx| match poll_some(stream, cx) {
        Poll::Ready(Ok(more)) => Poll::Ready(more),
        // hyper will meet the same error.
        Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(Bytes::new()),
    });
    match more.await {
        more if more.is_empty() => bytes,
        more => [bytes, more].concat().into(),
    }
}

/// Reads into a buffer that the thread's connections share, and copies what came: an idle
/// connection has no buffer.
fn poll_some(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        let read = Pin::new(stream).poll_read(cx, &mut buffer);
        read.map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
    })
}

/// Runs `work` unless the client's time is over before. Sets `is_last` if the server stops.
async fn unless_late<T>(
    door: &HttpService,
    is_last: &mut bool,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    poll_fn(|cx| {
        match door.timer.poll_end(cx) {
            Some(TimeoutReason::Draining) => *is_last = true,
            Some(end) => {
                log_timeout(door, end);
                return Poll::Ready(None);
            }
            None => {}
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Only a client that is too slow is worth a line: the other ends are the server's own.
fn log_timeout(door: &HttpService, end: TimeoutReason) {
    if end == TimeoutReason::Late {
        debug!(peer = %door.peer, step = ?door.timer.current_phase(), "too slow with a request");
    }
}

/// Why a request is not read here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NotWhole {
    /// All but its body is here, or some of that.
    Bodiless,
    /// It is of another kind, has not come yet, or is none.
    Other,
}

/// The result of parsing a request, and how many bytes it had.
enum Taken {
    /// It was an event, which is published.
    Published {
        answer: Vec<u8>,
        length: usize,
    },
    /// It was a handshake, and its socket is let in.
    Upgraded {
        upgrade: Upgrade,
        length: usize,
    },
    Request {
        parts: Parts,
        body: Bytes,
        length: usize,
    },
}

/// Takes the request that `bytes` begin with.
fn take_request(door: &HttpService, bytes: &Bytes) -> Result<Taken, NotWhole> {
    let mut found = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let request = WholeRequest::parse(bytes, &mut found, &door.http.prefix)?;
    let WholeRequest { target, body, length, .. } = request;
    if request.method == Method::POST && !request.has_origin {
        let now = SystemTime::now();
        if let Some(answer) = door.publish_plain(PlainRequest { target, body, now }) {
            let answer = plain_answer(&answer, now);
            return Ok(Taken::Published { answer, length });
        }
    }
    if request.method == Method::GET {
        let handshake = PlainHandshake { target, headers: request.headers };
        if let Some(upgrade) = door.upgrade_plain(handshake) {
            return Ok(Taken::Upgraded { upgrade, length });
        }
    }
    let parts = request.to_parts(bytes).ok_or(NotWhole::Other)?;
    Ok(Taken::Request { parts, body: bytes.slice_ref(body), length })
}

/// A request of the plainest kind.
#[derive(Clone, Debug)]
struct WholeRequest<'h, 'b> {
    method: Method,
    /// Path and query.
    target: &'b str,
    headers: &'h [Header<'b>],
    /// A page asks.
    has_origin: bool,
    body: &'b [u8],
    /// Bytes of all of it.
    length: usize,
}

impl<'h, 'b> WholeRequest<'h, 'b> {
    /// Reads head and body, if all of both is here.
    ///
    /// # Errors
    /// It is for hyper, or its body has not come yet. Nothing was published or counted.
    fn parse(
        bytes: &'b [u8],
        found: &'h mut [MaybeUninit<Header<'b>>],
        prefix: &str,
    ) -> Result<Self, NotWhole> {
        let mut head = httparse::Request::new(&mut []);
        let parsed = head.parse_with_uninit_headers(bytes, found);
        let Ok(Status::Complete(head_length)) = parsed else { return Err(NotWhole::Other) };
        // HTTP/1.1 alone: what an old client may expect of its answer is hyper's to know.
        let (Some(1), Some(target)) = (head.version, head.path) else {
            return Err(NotWhole::Other);
        };
        let method = match head.method {
            Some("POST") => Method::POST,
            Some("GET") => Method::GET,
            _ => return Err(NotWhole::Other),
        };
        if !is_answered_soon(&method, target, prefix) {
            return Err(NotWhole::Other);
        }
        let headers: &'h [Header<'b>] = head.headers;
        let (body_length, has_origin) = judge_headers(headers).ok_or(NotWhole::Other)?;
        let length = head_length + body_length;
        if length > MAX_REQUEST || (method == Method::GET && body_length > 0) {
            return Err(NotWhole::Other);
        }
        let body = bytes.get(head_length..length).ok_or(NotWhole::Bodiless)?;
        Ok(Self { method, target, headers, has_origin, body, length })
    }

    /// Its head as hyper would have made it; none if hyper would refuse it.
    fn to_parts(&self, bytes: &Bytes) -> Option<Parts> {
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for Header { name, value } in self.headers {
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(value)).ok()?;
            headers.append(HeaderName::from_bytes(name.as_bytes()).ok()?, value);
        }
        let uri = Uri::from_maybe_shared(bytes.slice_ref(self.target.as_bytes())).ok()?;
        let (mut parts, ()) = Request::new(()).into_parts();
        (parts.method, parts.uri, parts.headers) = (self.method.clone(), uri, headers);
        Some(parts)
    }
}

/// Whether the response to such a request is immediate. Others go to hyper, which notices a client that leaves
/// while it waits.
fn is_answered_soon(method: &Method, target: &str, prefix: &str) -> bool {
    let inner = target.strip_prefix(prefix).unwrap_or(target);
    inner.starts_with("/apps/")
        || (method == Method::GET && (inner.starts_with("/app/") || inner.starts_with("/resume/")))
}

/// The length of the body that the headers announce, and whether they name a page's origin; none where one of them
/// asks for more than to be read.
fn judge_headers(headers: &[Header<'_>]) -> Option<(usize, bool)> {
    let (mut body_length, mut has_origin) = (None, false);
    for Header { name, value } in headers {
        // By length first, for most are none of these.
        match name.len() {
            14 if name.eq_ignore_ascii_case("content-length") => {
                let is_plain = matches!(value.len(), 1..=5) && value.iter().all(u8::is_ascii_digit);
                let length = std::str::from_utf8(value).ok().filter(|_| is_plain)?.parse().ok()?;
                // Two lengths are how requests are smuggled (RFC 9112 section 6.3): hyper decides.
                if body_length.replace(length).is_some() {
                    return None;
                }
            }
            // Chunks, and whatever else stands between the bytes and the body.
            17 if name.eq_ignore_ascii_case("transfer-encoding") => return None,
            6 if name.eq_ignore_ascii_case("expect") => return None,
            6 if name.eq_ignore_ascii_case("origin") => has_origin = true,
            10 if name.eq_ignore_ascii_case("connection") => {
                let is_plain = |token: &[u8]| {
                    let token = token.trim_ascii();
                    token.eq_ignore_ascii_case(b"keep-alive")
                        || token.eq_ignore_ascii_case(b"upgrade")
                };
                if !value.split(|byte| *byte == b',').all(is_plain) {
                    return None;
                }
            }
            _ => {}
        }
    }
    Some((body_length.unwrap_or(0), has_origin))
}

/// An answer as hyper writes it, which says that it is the last one if it is: its head, with the body if that is not
/// large, and what is left of that.
fn answer_pieces(answer: Response<Full<Bytes>>, is_last: bool) -> (Vec<u8>, Bytes) {
    let (head, body) = answer.into_parts();
    // It is there already.
    let body = body.collect().now_or_never();
    let mut body = body.and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    let joined = if body.len() <= MAX_JOINED { body.len() } else { 0 };
    let mut out = Vec::with_capacity(256 + joined);
    push_head(&mut out, head.status, &head.headers, (body.len(), is_last));
    out.extend_from_slice(&body.split_to(joined));
    (out, body)
}

/// Head and body in one call where they fit together, so that small answers are one packet.
async fn write_pieces(stream: &mut Stream, first: &[u8], second: &[u8]) -> io::Result<()> {
    stream.write_all(first).await?;
    if !second.is_empty() {
        stream.write_all(second).await?;
    }
    stream.flush().await
}

/// The answer to an event that was published, to the byte as all others are written.
fn plain_answer(answer: &PlainAnswer, now: SystemTime) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + answer.body.len());
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json");
    if let Some((limit, left)) = answer.rate {
        out.extend_from_slice(b"\r\nx-ratelimit-limit: ");
        push_number(&mut out, limit.into());
        out.extend_from_slice(b"\r\nx-ratelimit-remaining: ");
        push_number(&mut out, left.into());
    }
    out.extend_from_slice(if answer.any_origin {
        b"\r\naccess-control-allow-origin: *"
    } else {
        b"\r\nvary: Origin"
    });
    push_length_and_date(&mut out, answer.body.len(), now);
    out.extend_from_slice(&answer.body);
    out
}

/// As hyper writes it: names in lower case, `content-length` and `date` last.
fn push_head(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &HeaderMap,
    (length, is_last): (usize, bool),
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    for (name, value) in headers {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
    }
    if is_last {
        out.extend_from_slice(b"\r\nconnection: close");
    }
    push_length_and_date(out, length, SystemTime::now());
}

/// RFC 9110 section 6.6.1 asks for the date; it is formatted once a second.
fn push_length_and_date(out: &mut Vec<u8>, length: usize, now: SystemTime) {
    out.extend_from_slice(b"\r\ncontent-length: ");
    push_number(out, length as u64);
    out.extend_from_slice(b"\r\ndate: ");
    DATE.with_borrow_mut(|date| out.extend_from_slice(date.text(now).as_bytes()));
    out.extend_from_slice(b"\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "POST /apps/1/events?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n";

    /// Its head and body, and how long it is.
    fn parse(text: &str, prefix: &str) -> Result<(Parts, Vec<u8>, usize), NotWhole> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let mut found = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let request = WholeRequest::parse(&bytes, &mut found, prefix)?;
        Ok((request.to_parts(&bytes).unwrap(), request.body.to_vec(), request.length))
    }

    #[test]
    fn a_plain_request_is_read_to_its_end() {
        let text = format!("{HEAD}Connection: Keep-Alive\r\n\r\n{{}}GET /");
        let (parts, body, length) = parse(&text, "").ok().unwrap();
        assert_eq!((&parts.method, &*parts.uri.to_string()), (&Method::POST, "/apps/1/events?a=b"));
        assert_eq!(parts.headers.get("host").unwrap(), "x");
        assert_eq!((&*body, &text[length..]), (&b"{}"[..], "GET /"));
        let socket = "GET /ws/app/key HTTP/1.1\r\nConnection: Upgrade\r\n\r\n";
        assert!(parse(socket, "/ws").is_ok() && parse(socket, "").is_err());
    }

    #[test]
    fn what_is_not_plain_is_left_to_hyper() {
        let whole = |more: &str| format!("{HEAD}{more}\r\n{{}}");
        assert!(parse(&whole(""), "").is_ok());
        for text in [
            whole("Transfer-Encoding: chunked\r\n"),
            whole("Content-Length: 2\r\n"),
            whole("Connection: close\r\n"),
            whole("Connection: keep-alive, x\r\n"),
            whole("Expect: 100-continue\r\n"),
            whole(" folded: x\r\n"),
            whole(&"X: y\r\n".repeat(MAX_HEADERS)),
            whole("").replace("HTTP/1.1", "HTTP/1.0"),
            whole("").replace("POST", "PUT"),
            whole("").replace("POST", "GET"),
            whole("").replace("POST /apps/1/events", "POST /app/key/1/2/xhr_streaming"),
            whole("").replace("/apps/1/events", "http://x/apps/1/events"),
            whole("").replace("Length: 2", "Length: +2"),
            whole("").replace("Length: 2", "Length: 99999"),
            whole("").replace("Length: 2", "Length: "),
            HEAD.to_owned(),
        ] {
            assert_eq!(parse(&text, "").err(), Some(NotWhole::Other), "{text}");
        }
        assert_eq!(parse(&whole("")[..HEAD.len() + 3], "").err(), Some(NotWhole::Bodiless));
    }

    #[test]
    fn heads_of_answers_are_as_hyper_writes_them() {
        let mut out = Vec::new();
        let mut headers = HeaderMap::new();
        headers.insert("vary", HeaderValue::from_static("Origin"));
        push_head(&mut out, StatusCode::NOT_FOUND, &headers, (1203, true));
        let text = String::from_utf8(out).unwrap();
        let before = "HTTP/1.1 404 Not Found\r\nvary: Origin\r\nconnection: close\r\ncontent-length: 1203\r\ndate: ";
        assert!(text.starts_with(before) && text.ends_with(" GMT\r\n\r\n"), "{text}");
    }
}
