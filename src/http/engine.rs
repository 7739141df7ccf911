//! Requests of Socket.IO clients, `{path}/socket.io/?EIO=…`: app, admission and response. `socket/engine_session.rs`
//! has the sessions; a request for a WebSocket leaves here with its stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, Uri};
use serde_json::json;
use tokio::sync::oneshot;
use tracing::debug;

use super::body::{ReceivedBody, RequestBody};
use super::engine_admission::{
    BAD_METHOD, EngineRefusal, JSONP, NO_PACKETS, OLD_VERSION, UNKNOWN_SESSION, UNKNOWN_TRANSPORT,
    find_app, may_pass_cookies, page_origin,
};
use super::error::Error;
use super::timeouts::RequestPhase;
use super::{Handoff, HandshakeDetails, HttpService, path_segments, report_refusal, response};
use crate::hub::handles::ConnectionRef;
use crate::hub::http_sessions::HttpSession;
use crate::hub::stream::engine::EngineRequest;
use crate::metrics::Reason;
use crate::protocol::engineio::EngineVersion;
use crate::protocol::error::{self, close};
use crate::protocol::query::Query;
use crate::protocol::socketio::GreetingTerms;
use crate::socket::{engine_session, upgrade};
use crate::webhook::channel_auth::ClientHeaders;

/// Of polling and of the upgrade; a browser asks with OPTIONS whether it may.
const METHODS: &str = "GET, POST, OPTIONS";

/// Bytes that a body may have beside twice those of a message: clients of revision 3 send all that has gathered at once.
const BODY_SPARE: usize = 1 << 10;

/// A stream that is a session's WebSocket from now on.
#[derive(Debug)]
pub struct EngineHandoff {
    /// The session that gets the stream.
    pub session: ConnectionRef,
    /// The 101 for the client, and in front of it what of earlier answers the client has not taken yet.
    pub answer: Vec<u8>,
}

/// The handling of a request, by its head. `Polling` waits for packets to the client, `Sending` for the body of the
/// request.
enum EngineStart {
    Answered(Response<Full<Bytes>>),
    /// The response to a poll, which comes with the next packets.
    Polling(oneshot::Receiver<Bytes>),
    /// Packets from the client, for this session.
    Sending(HttpSession, EngineVersion),
}

/// How a request goes on.
/// Together with the body where it is answered without it, for the body is still to be drained.
pub(super) enum EngineServed {
    /// A response that is ready, and the body that may have to be discarded.
    Answered(Response<Full<Bytes>>, RequestBody),
    /// A response that waits for its session or body.
    Waiting(Box<EngineReply>),
}

/// A request whose answer is not there yet.
#[derive(Debug)]
pub(super) struct EngineReply {
    /// The requested address, for the log.
    uri: Uri,
    /// The page that asks, for the response's headers.
    origin: Option<HeaderValue>,
    /// The reason to wait.
    awaiting: EngineAwaiting,
}

/// Moves from `Reading` to `Heard`; `Polling` stays what it is.
#[derive(Debug)]
enum EngineAwaiting {
    /// For something to be said.
    Polling(oneshot::Receiver<Bytes>),
    /// For its body, whose packets may have so many bytes each.
    Reading {
        body: RequestBody,
        received: ReceivedBody,
        to: (ConnectionRef, EngineVersion),
        message: usize,
    },
    /// Waits until the session has read it. The second is the limit that the request exceeded, if it did.
    Heard(oneshot::Receiver<bool>, Option<usize>),
}

/// Whether a path belongs to Socket.IO, with or without the configured prefix.
pub(super) fn is_address(path: &str, prefix: &str) -> bool {
    let mut inner = path_segments(path).peekable();
    for own in path_segments(prefix) {
        inner.next_if(|segment| *segment == own);
    }
    inner.next() == Some("socket.io") && inner.next().is_none()
}

impl HttpService {
    /// Whether any app accepts Socket.IO clients.
    pub(super) fn takes_engine(&self) -> bool {
        self.http.node.shared.apps.load().iter().any(|app| app.features.socketio.enabled)
    }

    /// How a request of a client of Socket.IO goes on.
    pub(super) fn serve_engine(&self, parts: &Parts, body: RequestBody) -> EngineServed {
        let origin = parts.headers.get(ORIGIN).cloned();
        let uri = parts.uri.clone();
        let (step, awaiting) = match self.begin_engine(parts) {
            Ok(EngineStart::Polling(poll)) => (RequestPhase::Held, EngineAwaiting::Polling(poll)),
            Ok(EngineStart::Sending(session, version)) => {
                let place = session.place;
                let apps = self.http.node.shared.apps.load();
                let app = apps.by_id(session.app.as_str());
                let message = app.map_or(0, |app| app.limits.max_message_size);
                let max = max_body(message);
                // The size in the head: a body that is too large is not read at all.
                let size = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
                let awaiting = if size > max {
                    self.refuse_large_packets(place, max)
                } else {
                    let (received, to) = (ReceivedBody::Nothing, (place, version));
                    EngineAwaiting::Reading { body, received, to, message }
                };
                (RequestPhase::Body, awaiting)
            }
            Ok(EngineStart::Answered(answer)) => {
                self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
                let answer = for_origin(answer, origin.as_ref());
                return EngineServed::Answered(answer, body);
            }
            Err(refusal) => {
                self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
                let answer = for_origin(self.refuse_engine(&uri, &refusal), origin.as_ref());
                return EngineServed::Answered(answer, body);
            }
        };
        self.timer.enter_phase(step, self.now_seconds());
        EngineServed::Waiting(Box::new(EngineReply { uri, origin, awaiting }))
    }

    /// Classifies a request by its query: `transport` and `sid`, as revisions 3 and 4 of Engine.IO define them.
    ///
    /// # Errors
    /// The refusals of the Engine.IO server, whose codes clients check.
    fn begin_engine(&self, parts: &Parts) -> Result<EngineStart, EngineRefusal> {
        if parts.method == Method::OPTIONS {
            let mut answer = response::preflight_response(&parts.headers);
            let headers = answer.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static(METHODS));
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
            return Ok(EngineStart::Answered(answer));
        }
        // Without a query there is no `EIO`, which is refused below.
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let Some(version) = query.get("EIO").and_then(EngineVersion::parse) else {
            // First of all it is checked whether any app accepts such clients.
            return Err(find_app(&self.http.node.shared.apps.load(), &query)
                .err()
                .unwrap_or(OLD_VERSION));
        };
        // Answers as scripts (JSONP) were for browsers without CORS.
        if query.get("j").is_some() {
            return Err(JSONP);
        }
        let session = match query.get("sid") {
            Some(name) => {
                let found = self.http.node.hub().http_sessions.find_session(name);
                Some(found.ok_or(UNKNOWN_SESSION)?)
            }
            None => None,
        };
        match (query.get("transport"), &parts.method, session) {
            (Some("polling"), &Method::GET, session) => {
                let session = match session {
                    Some(session) => session,
                    None => self.open_engine(parts, &query, (version, true))?,
                };
                let (answer, poll) = oneshot::channel();
                let request = EngineRequest::Polling(answer);
                self.http.node.hub().bring_engine_request(session.place, request);
                Ok(EngineStart::Polling(poll))
            }
            // A POST without a session has no client to speak for, and is refused below.
            (Some("polling"), &Method::POST, Some(session)) => {
                Ok(EngineStart::Sending(session, version))
            }
            (Some("websocket"), &Method::GET, session) => {
                self.upgrade_engine(parts, &query, (version, session))
            }
            (Some("polling" | "websocket"), ..) => Err(BAD_METHOD),
            _ => Err(UNKNOWN_TRANSPORT),
        }
    }

    /// Leaves the stream of a request to its session, which may be a new one.
    fn upgrade_engine(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        (version, session): (EngineVersion, Option<HttpSession>),
    ) -> Result<EngineStart, EngineRefusal> {
        let trusted = &self.http.trusted_proxies;
        let is_trusted = trusted.iter().any(|network| network.contains(self.peer));
        let answer = upgrade::shake_hands(&parts.headers, is_trusted).map_err(|_| {
            EngineRefusal::bad(
                3,
                "Bad request: no handshake of a WebSocket. If the client asked for one, a proxy on the way does not \
                 pass on its Upgrade and Connection headers.",
            )
        })?;
        let session = match session {
            Some(session) => session,
            None => self.open_engine(parts, query, (version, false))?,
        };
        // The connection's task picks it up once its stream is free.
        let handoff = EngineHandoff { session: session.place, answer };
        *self.handoff.borrow_mut() = Some(Handoff::Engine(handoff));
        Ok(EngineStart::Answered(response::switching_response()))
    }

    /// Opens the session that a request is the first of.
    fn open_engine(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        (version, upgrades): (EngineVersion, bool),
    ) -> Result<HttpSession, EngineRefusal> {
        let http = &self.http;
        let apps = http.node.shared.apps.load();
        let app = find_app(&apps, query)?;
        let origin = page_origin(&parts.headers);
        let trusted = &http.trusted_proxies;
        let tls = self.tls || response::came_by_tls(trusted, self.peer, &parts.headers);
        let client = response::client_address(trusted, self.peer, &parts.headers);
        let mut only_origin = HeaderMap::new();
        // Only the page's origin matters for admission: the other headers are those of a poll.
        only_origin.extend(origin.clone().map(|origin| (ORIGIN, origin)));
        let no_query = Query::parse("");
        let terms = upgrade::HandshakeTerms::new(&no_query, &only_origin, tls);
        let mut admission = upgrade::admit(&apps, &app.key, terms);
        // Sessions that are refused for another reason count as well.
        if !http.node.shared.addresses.handshakes.admit(client, Instant::now()) {
            admission = Err(close::OVER_CAPACITY);
        }
        let was_admitted = admission.is_ok();
        let opened = admission
            .inspect_err(|error| http.node.counts().ends.count(upgrade::reason(error) as usize))
            .and_then(|app| {
                let cookies = may_pass_cookies(&app, &parts.headers, origin.as_ref());
                let headers = ClientHeaders::of_request(&parts.headers, cookies);
                let max_payload = max_body(app.limits.max_message_size);
                let terms = GreetingTerms { version, upgrades, max_payload };
                engine_session::open(&http.node, &app, terms, headers, client)
            });
        opened.map_err(|error| {
            let asked = HandshakeDetails::new(&app.key, &only_origin, &apps);
            // The app would have let it in: then it is the server that has no room.
            let reason = Some(Reason::Capacity).filter(|_| was_admitted);
            report_refusal(&http.node.shared, client, (&error, reason), &asked);
            EngineRefusal { status: status_of(&error), code: 4, why: error.message }
        })
    }

    /// Ends a session whose client says more than it may. The request is answered 413 once the
    /// session has noted it, or 400 where the session is gone already.
    fn refuse_large_packets(&self, place: ConnectionRef, max: usize) -> EngineAwaiting {
        let (heard, answer) = oneshot::channel();
        let request = EngineRequest::TooLarge { heard };
        self.http.node.hub().bring_engine_request(place, request);
        EngineAwaiting::Heard(answer, Some(max))
    }

    /// Counts, logs and answers a refusal. The body is that of the Engine.IO server:
    /// `{"code":1,"message":"Session ID unknown"}`.
    fn refuse_engine(&self, uri: &Uri, refusal: &EngineRefusal) -> Response<Full<Bytes>> {
        self.http.node.counts().refused_messages.add(1);
        let EngineRefusal { status, code, why } = refusal;
        if *status == StatusCode::NOT_FOUND {
            Error::SocketIo.log_refusal(&self.http.node.shared.metrics.notices, uri);
        } else {
            debug!(%status, path = uri.path(), %why, "a request was refused");
        }
        let body = json!({ "code": code, "message": why }).to_string();
        let mut answer = Response::new(Full::new(body.into()));
        *answer.status_mut() = *status;
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(CONTENT_TYPE, json);
        answer
    }

    /// Takes a waiting request as far as it goes.
    pub(super) fn poll_engine(
        &self,
        reply: &mut EngineReply,
        cx: &mut Context<'_>,
    ) -> Poll<Response<Full<Bytes>>> {
        let EngineReply { uri, origin, awaiting } = reply;
        if let EngineAwaiting::Reading { body, received, to, message } = awaiting {
            let ((place, version), message) = (*to, *message);
            let read = ready!(received.poll_all(body, max_body(message), cx));
            self.timer.enter_phase(RequestPhase::Held, self.now_seconds());
            let text = std::str::from_utf8(received.bytes()).ok();
            *awaiting = match (read, text.and_then(|text| version.split_body(text))) {
                (Ok(()), Some(packets)) if packets.iter().any(|one| one.len() > message) => {
                    self.refuse_large_packets(place, message)
                }
                (Ok(()), Some(packets)) => {
                    let (heard, answer) = oneshot::channel();
                    let bytes = received.bytes().len();
                    let said = EngineRequest::Packets { packets, bytes, heard };
                    self.http.node.hub().bring_engine_request(place, said);
                    EngineAwaiting::Heard(answer, None)
                }
                (Err(Error::TooLarge { max, .. }), _) => self.refuse_large_packets(place, max),
                _ => {
                    let answer = self.refuse_engine(uri, &NO_PACKETS);
                    return Poll::Ready(for_origin(answer, origin.as_ref()));
                }
            };
        }
        let answered = match awaiting {
            EngineAwaiting::Polling(poll) => match ready!(Pin::new(poll).poll(cx)) {
                Ok(said) => Ok(text_answer(said, "text/plain; charset=UTF-8")),
                // It ended before the request came to it.
                Err(_) => Err(UNKNOWN_SESSION),
            },
            EngineAwaiting::Heard(heard, too_large) => match ready!(Pin::new(heard).poll(cx)) {
                Ok(true) => match too_large {
                    // The response of Engine.IO's own server, to the letter.
                    None => Ok(text_answer(Bytes::from_static(b"ok"), "text/html")),
                    Some(max) => Err(EngineRefusal {
                        status: StatusCode::PAYLOAD_TOO_LARGE,
                        code: 3,
                        why: format!("The body exceeds the allowed maximum ({max} bytes).").into(),
                    }),
                },
                Ok(false) | Err(_) => Err(UNKNOWN_SESSION),
            },
            EngineAwaiting::Reading { .. } => return Poll::Pending,
        };
        self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
        let answer = answered.unwrap_or_else(|refusal| self.refuse_engine(uri, &refusal));
        Poll::Ready(for_origin(answer, origin.as_ref()))
    }
}

/// Bytes that a body may have where a message may have `message`.
fn max_body(message: usize) -> usize {
    message.saturating_mul(2).saturating_add(BODY_SPARE)
}

/// The HTTP status for an error that other clients get as a close code.
fn status_of(error: &error::Error) -> StatusCode {
    match error.code {
        4001 => StatusCode::NOT_FOUND,
        // The app or the server has no room at the moment.
        4004 | 4100.. => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::FORBIDDEN,
    }
}

/// Not to be kept by caches, nor buffered by nginx (`x-accel-buffering`).
fn text_answer(said: Bytes, kind: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(said));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// Lets any page read the response, since admission is the app's decision (`allowed_origins`). With cookies, which
/// `socket.io-client` 2 sends.
fn for_origin(
    mut answer: Response<Full<Bytes>>,
    origin: Option<&HeaderValue>,
) -> Response<Full<Bytes>> {
    let headers = answer.headers_mut();
    match origin {
        Some(origin) => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        None => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_below_the_path_and_without_it() {
        for (path, prefix, is_one) in [
            ("/socket.io/", "", true),
            ("/socket.io", "/ws", true),
            ("/ws/socket.io/", "/ws", true),
            ("/ws/socket.io/", "", false),
            ("/socket.io/socket.io.js", "", false),
            ("/app/k", "", false),
        ] {
            assert_eq!(is_address(path, prefix), is_one, "{path} {prefix}");
        }
    }
}
