//! Requests of pusher-js's HTTP transports, `{path}/app/{key}/{number}/{name}/…`: the session, whether it may be
//! opened, and the response. `socket/http_session.rs` has the sessions; a streaming request leaves here with its
//! stream, like a WebSocket.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, HeaderName,
    HeaderValue,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, Uri, Version};
use tokio::sync::oneshot;

use super::body::{ReceivedBody, RequestBody};
use super::error::Error;
use super::exchange::{AwaitingApp, RequestStage};
use super::timeouts::RequestPhase;
use super::{Handoff, HandshakeDetails, HttpService, LookupUnavailable, report_refusal, response};
use crate::hub::handles::ConnectionRef;
use crate::hub::http_sessions::HttpSession;
use crate::hub::http_stream::SessionRequest;
use crate::lookup::{AppName, LookupResult, PendingLookup};
use crate::metrics::{Reason, Transport};
use crate::protocol::error::{self, close};
use crate::protocol::fallback::{self, AnswerFraming, HEADERS, OPEN};
use crate::protocol::query::{Query, percent_decode};
use crate::socket::{http_session, upgrade};

/// `POST` is the only method of pusher-js's transports; browsers ask with OPTIONS whether it may.
const METHODS: &str = "POST, OPTIONS";

/// The prefix that pusher-js uses by default for these transports.
const DEFAULT_PREFIX: &str = "/pusher";

/// Bytes that the body of `xhr_send` may have beside twice those of a message.
/// Brackets, quotes and commas of the array.
const BODY_SPARE: usize = 1 << 10;

/// The purpose of a request to a session's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SessionPurpose {
    /// A request whose answer is what the session has to say.
    Receive(Transport),
    /// A request that brings what the client says.
    Send,
}

/// The address of a session.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct SessionAddress {
    /// Decoded; whether an app has it is found out later.
    key: String,
    /// Key, number and name; none if no client would name its session so.
    session: Option<String>,
    /// By the last segment.
    purpose: SessionPurpose,
}

impl SessionAddress {
    /// The address that `path` is, below the configured prefix, the client's own or none.
    /// The last segment is looked at first: no other route of the server ends like that.
    pub(super) fn parse(path: &str, prefix: &str) -> Option<Self> {
        let last = path.trim_end_matches('/').rsplit('/').next()?;
        let purpose = match last {
            "xhr_streaming" => SessionPurpose::Receive(Transport::XhrStreaming),
            "xhr" => SessionPurpose::Receive(Transport::XhrPolling),
            "xhr_send" => SessionPurpose::Send,
            _ => return None,
        };
        [prefix, DEFAULT_PREFIX, ""].into_iter().find_map(|prefix| {
            let inner = path.strip_prefix(prefix).filter(|inner| inner.starts_with('/'))?;
            let mut segments = inner.split('/').filter(|segment| !segment.is_empty()).peekable();
            // Sessions are not resumed, so whatever stands for the token means nothing.
            if segments.next_if_eq(&"resume").is_some() {
                segments.next();
            }
            let parts = [(); 5].map(|()| segments.next());
            let ([Some("app"), Some(key), Some(number), Some(name), Some(_)], None) =
                (parts, segments.next())
            else {
                return None;
            };
            let key = percent_decode(key).into_owned();
            let is_name = fallback::is_session_name(number, name);
            let session = is_name.then(|| format!("{key}/{number}/{name}"));
            Some(Self { key, session, purpose })
        })
    }
}

/// A stream that carries lines from now on.
#[derive(Debug)]
pub struct LineStream {
    /// The session, or why there is none.
    pub session: Result<ConnectionRef, error::Error>,
    /// Chunks where the client knows them.
    pub framing: AnswerFraming,
    /// Bytes of earlier responses that the client has not read yet.
    pub before: Vec<u8>,
}

/// The handling of a request, by its head. `Answered` also stands for a refusal in lines, which the client reads as
/// the session's first response.
enum SessionStart {
    Answered(Response<Full<Bytes>>),
    /// Its app is asked for in a database.
    Unknown(PendingLookup),
    /// It is with its session, which answers when it has something to say.
    Polling(oneshot::Receiver<Bytes>),
    /// Its body comes first.
    Sending(HttpSession, MessageSizes),
}

/// How much a client may say at a time, in bytes.
#[derive(Clone, Copy, Debug)]
struct MessageSizes {
    /// Of one of the messages.
    message: usize,
    /// Of the whole request.
    body: usize,
}

/// A request whose answer is not there yet.
#[derive(Debug)]
pub(super) enum AwaitingAnswer {
    /// For something to be said.
    Polling(oneshot::Receiver<Bytes>),
    /// For its body.
    Reading(Box<ClientMessage>),
    /// Waits until the session has read it. The second is the error to respond with, if there is one.
    Heard(oneshot::Receiver<bool>, Option<Error>),
}

/// Messages of a client, as they come in.
#[derive(Debug)]
pub(super) struct ClientMessage {
    /// Still to be read.
    body: RequestBody,
    /// The received part of the body.
    received: ReceivedBody,
    /// The session that it is for.
    place: ConnectionRef,
    /// How much it may be.
    sizes: MessageSizes,
}

impl HttpService {
    /// How a request to the address of a session goes on.
    /// A session is found by its name, whichever worker the request came in on; what has to be done with it is put
    /// into the inbox of the worker that has it.
    pub(super) fn fall_back(
        &self,
        address: &SessionAddress,
        parts: Parts,
        body: RequestBody,
        verdict: Option<LookupResult>,
    ) -> RequestStage {
        let uri = parts.uri.clone();
        let (step, stage) = match self.begin_session(address, &parts, verdict) {
            Ok(SessionStart::Answered(answer)) => {
                (RequestPhase::Idle, RequestStage::Answered(Some(answer)))
            }
            Ok(SessionStart::Unknown(pending)) => {
                let unknown = AwaitingApp { parts, body, pending, begun: Instant::now() };
                (RequestPhase::Held, RequestStage::Unknown(Box::new(unknown)))
            }
            Ok(SessionStart::Polling(poll)) => {
                (RequestPhase::Held, RequestStage::Fallback(uri, AwaitingAnswer::Polling(poll)))
            }
            Ok(SessionStart::Sending(session, sizes)) => {
                let place = session.place;
                let size = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
                let waiting = if size > sizes.body {
                    self.refuse_large(place, Some(size), sizes.body)
                } else {
                    let received = ReceivedBody::Nothing;
                    AwaitingAnswer::Reading(Box::new(ClientMessage {
                        body,
                        received,
                        place,
                        sizes,
                    }))
                };
                (RequestPhase::Body, RequestStage::Fallback(uri, waiting))
            }
            Err(error) => (
                RequestPhase::Idle,
                RequestStage::Answered(Some(self.refuse_fallback(&uri, &error))),
            ),
        };
        self.timer.enter_phase(step, self.now_seconds());
        stage
    }

    /// # Errors
    /// The path or the method is wrong, or the session is not there; clients begin a new one then.
    fn begin_session(
        &self,
        address: &SessionAddress,
        parts: &Parts,
        verdict: Option<LookupResult>,
    ) -> Result<SessionStart, Error> {
        if parts.method == Method::OPTIONS {
            let mut answer = response::preflight_response(&parts.headers);
            let headers = answer.headers_mut();
            // Pages of other origins may have to ask first.
            headers.insert(ALLOW, HeaderValue::from_static(METHODS));
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
            return Ok(SessionStart::Answered(for_any_page(answer)));
        }
        if parts.method != Method::POST {
            return Err(Error::MethodNotAllowed(METHODS));
        }
        let name = address.session.as_deref().ok_or(Error::NotFound)?;
        // A session belongs to this node: another one answers 404, and pusher-js begins a new one.
        let session = self.http.node.hub().http_sessions.find_session(name);
        match (address.purpose, session) {
            (SessionPurpose::Send, Some(session)) => {
                let apps = self.http.node.shared.apps.load();
                let app = apps.by_id(session.app.as_str()).ok_or(Error::NotFound)?;
                let message = app.limits.max_message_size;
                // Escaped in JSON a message may be twice as long.
                let body = message.saturating_mul(2).saturating_add(BODY_SPARE);
                Ok(SessionStart::Sending(session, MessageSizes { message, body }))
            }
            (SessionPurpose::Send, None) => Err(Error::NotFound),
            (SessionPurpose::Receive(transport), Some(session)) => {
                Ok(self.receive_session(parts, transport, Ok(session.place)))
            }
            (SessionPurpose::Receive(transport), None) => {
                self.open_session(parts, address, (name, transport), verdict)
            }
        }
    }

    /// Opens the session that a receiving request is the first of, or says in the same words as to any other
    /// client why not.
    fn open_session(
        &self,
        parts: &Parts,
        address: &SessionAddress,
        (name, transport): (&str, Transport),
        verdict: Option<LookupResult>,
    ) -> Result<SessionStart, Error> {
        let http = &self.http;
        // No query is an empty one.
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let apps = http.node.shared.apps.load();
        let tls =
            self.tls || response::came_by_tls(&http.trusted_proxies, self.peer, &parts.headers);
        let terms = upgrade::HandshakeTerms::new(&query, &parts.headers, tls);
        let mut admission = upgrade::admit(&apps, &address.key, terms);
        if admission.as_ref().is_err_and(|error| *error == close::UNKNOWN_APP) {
            match self.look_up(AppName::Key(address.key.clone()), verdict) {
                Ok(Some(pending)) => return Ok(SessionStart::Unknown(pending)),
                Ok(None) => {}
                Err(LookupUnavailable) => admission = Err(close::LOOKUP_AWAY),
            }
        }
        let client = response::client_address(&http.trusted_proxies, self.peer, &parts.headers);
        // Sessions that are refused for another reason count as well.
        if !http.node.shared.addresses.handshakes.admit(client, Instant::now()) {
            admission = Err(close::OVER_CAPACITY);
        }
        let was_admitted = admission.is_ok();
        let opened = match admission {
            Ok(app) => http_session::open(&http.node, &app, name, transport, client),
            Err(error) => {
                http.node.counts().ends.count(upgrade::reason(&error) as usize);
                Err(error)
            }
        };
        if let Err(error) = &opened {
            let asked = HandshakeDetails::new(&address.key, &parts.headers, &apps);
            let reason = Some(Reason::Capacity).filter(|_| was_admitted);
            report_refusal(&http.node.shared, client, (error, reason), &asked);
        }
        Ok(self.receive_session(parts, transport, opened.map(|session| session.place)))
    }

    /// Passes a receiving request to its session, or answers that there is none.
    fn receive_session(
        &self,
        parts: &Parts,
        transport: Transport,
        session: Result<ConnectionRef, error::Error>,
    ) -> SessionStart {
        if transport == Transport::XhrStreaming {
            // Chunks are HTTP/1.1's; an old client is sent bytes until the connection ends.
            let is_old = parts.version == Version::HTTP_10;
            let framing = if is_old { AnswerFraming::Plain } else { AnswerFraming::Chunked };
            let lines = LineStream { session, framing, before: Vec::new() };
            *self.handoff.borrow_mut() = Some(Handoff::Lines(lines));
            // The client is never sent this: it only makes hyper let go of the stream.
            return SessionStart::Answered(response::switching_response());
        }
        match session {
            Ok(place) => {
                let (answer, poll) = oneshot::channel();
                self.http.node.hub().bring_request(place, SessionRequest::Polling(answer));
                SessionStart::Polling(poll)
            }
            Err(error) => {
                let lines = http_session::refusal(&error, AnswerFraming::Plain);
                SessionStart::Answered(lines_answer([OPEN, &lines].concat().into()))
            }
        }
    }

    /// Ends a session whose client says more than it may.
    fn refuse_large(
        &self,
        place: ConnectionRef,
        size: Option<usize>,
        max: usize,
    ) -> AwaitingAnswer {
        let (heard, answer) = oneshot::channel();
        self.http.node.hub().bring_request(place, SessionRequest::TooLarge { heard });
        // Answered once the session has handled it, so that the client's next request finds it ended.
        AwaitingAnswer::Heard(answer, Some(Error::TooLarge { what: "message", size, max }))
    }

    /// Counts, logs and answers a refusal.
    fn refuse_fallback(&self, uri: &Uri, error: &Error) -> Response<Full<Bytes>> {
        self.http.node.counts().refused_messages.add(1);
        error.log_refusal(&self.http.node.shared.metrics.notices, uri);
        for_any_page(response::refusal_response(error, None))
    }

    /// Takes a waiting request as far as it goes.
    pub(super) fn poll_fallback(
        &self,
        uri: &Uri,
        waiting: &mut AwaitingAnswer,
        cx: &mut Context<'_>,
    ) -> Poll<Response<Full<Bytes>>> {
        if let AwaitingAnswer::Reading(reading) = waiting {
            // The timer limits a client that is slow with its body, but not one that waits for its session.
            let read = ready!(reading.poll_body(cx));
            self.timer.enter_phase(RequestPhase::Held, self.now_seconds());
            match read.and_then(|()| reading.message_texts()) {
                Ok((texts, bytes)) => {
                    let (heard, answer) = oneshot::channel();
                    let said = SessionRequest::Texts { texts, bytes, heard };
                    self.http.node.hub().bring_request(reading.place, said);
                    *waiting = AwaitingAnswer::Heard(answer, None);
                }
                Err(Error::TooLarge { size, max, .. }) => {
                    *waiting = self.refuse_large(reading.place, size, max);
                }
                Err(error) => return Poll::Ready(self.refuse_fallback(uri, &error)),
            }
        }
        let answered = match waiting {
            AwaitingAnswer::Polling(poll) => match ready!(Pin::new(poll).poll(cx)) {
                Ok(said) => Ok(lines_answer(said)),
                // It ended before the request came to it.
                Err(_) => Err(Error::NotFound),
            },
            AwaitingAnswer::Heard(heard, refusal) => match ready!(Pin::new(heard).poll(cx)) {
                Ok(true) => refusal.take().map_or_else(|| Ok(taken_answer()), Err),
                Ok(false) | Err(_) => Err(Error::NotFound),
            },
            AwaitingAnswer::Reading(_) => return Poll::Pending,
        };
        self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
        Poll::Ready(answered.unwrap_or_else(|error| self.refuse_fallback(uri, &error)))
    }
}

impl ClientMessage {
    /// Reads what has come, up to `sizes.body`.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.received.poll_all(&mut self.body, self.sizes.body, cx)
    }

    /// The texts that were said, and the bytes that they came in.
    fn message_texts(&self) -> Result<(Vec<String>, usize), Error> {
        let body = self.received.bytes();
        let texts = fallback::parse_sent(body).ok_or_else(|| {
            Error::BadRequest("The body must be a JSON array of strings.".to_owned())
        })?;
        let max = self.sizes.message;
        // Each message for itself: the body may hold many.
        match texts.iter().map(String::len).find(|size| *size > max) {
            Some(size) => Err(Error::TooLarge { what: "message", size: Some(size), max }),
            None => Ok((texts, body.len())),
        }
    }
}

/// The answer to a poll.
fn lines_answer(said: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(said));
    for (name, value) in HEADERS {
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// The answer to `xhr_send`, at which no client looks.
/// 204: a body would be downloaded for nothing.
fn taken_answer() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for_any_page(answer)
}

/// Lets any page read the response, since admission is the app's decision (`allowed_origins`).
fn for_any_page(mut answer: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_below_three_prefixes() {
        let address = |purpose| SessionAddress {
            key: "k y".to_owned(),
            session: Some("k y/7/0123abcv".to_owned()),
            purpose,
        };
        let (streaming, polling) = (Transport::XhrStreaming, Transport::XhrPolling);
        for (path, prefix, purpose) in [
            ("/app/k%20y/7/0123abcv/xhr_streaming", "", SessionPurpose::Receive(streaming)),
            ("/app/k%20y/7/0123abcv/xhr_streaming", "/ws", SessionPurpose::Receive(streaming)),
            ("/ws/app/k%20y/7/0123abcv/xhr", "/ws", SessionPurpose::Receive(polling)),
            ("/pusher/app/k%20y/7/0123abcv/xhr_send", "/ws", SessionPurpose::Send),
            ("/pusher//app/k%20y/7/0123abcv/xhr_send/", "", SessionPurpose::Send),
            ("/resume/T/app/k%20y/7/0123abcv/xhr", "/ws", SessionPurpose::Receive(polling)),
            ("/ws/resume/T/app/k%20y/7/0123abcv/xhr_send", "/ws", SessionPurpose::Send),
        ] {
            assert_eq!(SessionAddress::parse(path, prefix), Some(address(purpose)), "{path}");
        }
        for path in [
            "/ws2/app/k/7/0123abcv/xhr",
            "/wsapp/k/7/0123abcv/xhr",
            "/app/k/7/0123abcv",
            "/app/k/7/0123abcv/xhr_other",
            "/app/k/7/0123abcv/more/xhr",
            "/app/k/7/xhr",
            "/apps/k/7/0123abcv/xhr",
            "/resume/app/k/7/0123abcv/xhr",
            "/resume/T/resume/T/app/k/7/0123abcv/xhr",
            "xhr",
        ] {
            assert_eq!(SessionAddress::parse(path, "/ws"), None, "{path}");
        }
        let odd = SessionAddress::parse("/app/k/1000/0123abcv/xhr", "").unwrap();
        assert_eq!(odd.session, None, "no client names its session so");
    }
}
