//! One request from its head to its response: waiting for its app, reading its body, and waiting for other nodes or
//! connections. The route was decided when the head arrived.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::Service;
use hyper::{Request, Response, StatusCode, Uri, Version};

use super::api::{Route, SignedCall, SignedQuery};
use super::body::{ReceivedBody, RequestBody};
use super::console::{self, ConsoleReply};
use super::deferred::DeferredAnswer;
#[cfg(feature = "socketio")]
use super::engine::{self, EngineReply, EngineServed};
use super::error::Error;
use super::fallback::{AwaitingAnswer, SessionAddress};
use super::query::{self, QueryState};
use super::response::{self, AnswerBody};
use super::timeouts::RequestPhase;
use super::unread::UnreadBody;
use super::{
    AddressRole, Http, HttpService, RefusedRequest, RoutedRequest, batch, channels, events, users,
};
use crate::app::App;
use crate::hub::directory::Directory;
use crate::hub::shown;
use crate::lookup::{LookupResult, PendingLookup};
use crate::metrics::{self, Status};
use crate::node::NodesReply;
use crate::protocol::trace::Trace;

/// Checks `Host`: a request names one host, and one of HTTP/1.0 may name none (RFC 9112 section 3.2). Two could
/// mean different hosts to a proxy and to this server.
fn check_host(parts: &Parts) -> Result<(), Error> {
    let hosts = parts.headers.get_all(HOST);
    let enough = usize::from(parts.version >= Version::HTTP_11);
    if (enough..=1).contains(&hosts.iter().count())
        && hosts.iter().all(|host| is_one_host(host.as_bytes()))
    {
        return Ok(());
    }
    Err(Error::BadRequest("A request needs one Host header, and no more.".to_owned()))
}

/// Whether it is not several in one line, as some proxies join those of two lines.
pub(super) fn is_one_host(host: &[u8]) -> bool {
    !host.trim_ascii().iter().any(|byte| matches!(byte, b',' | b' ' | b'\t'))
}

/// hyper's door: one request comes in, and its future is polled on the worker's own thread.
impl Service<Request<Incoming>> for HttpService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = RequestFuture;

    fn call(&self, request: Request<Incoming>) -> RequestFuture {
        let (parts, body) = request.into_parts();
        // The console and the fallback have routes of their own and are looked for first; both are rare, and cost a
        // comparison of a prefix.
        self.begin(parts, RequestBody::Incoming(body))
    }
}

impl HttpService {
    /// Begins a request, on the fast path or from hyper.
    pub fn begin(&self, parts: Parts, body: RequestBody) -> RequestFuture {
        let stage = self.begin_request(parts, body, None, Instant::now());
        RequestFuture { door: self.clone(), stage }
    }

    /// How a request goes on once its head is there; `verdict` is what came of asking for its app, if that
    /// was needed.
    fn begin_request(
        &self,
        parts: Parts,
        body: RequestBody,
        verdict: Option<LookupResult>,
        begun: Instant,
    ) -> RequestStage {
        if let Err(error) = check_host(&parts) {
            return self.refuse_head((parts, body), (metrics::Call::Unknown, &error), begun);
        }
        if console::is_below(&parts, &self.http.prefix) {
            return self.open_console(parts, body);
        }
        if self.http.fallback
            && self.role != AddressRole::Api
            && let Some(address) = SessionAddress::parse(parts.uri.path(), &self.http.prefix)
        {
            return self.fall_back(&address, parts, body, verdict);
        }
        #[cfg(feature = "socketio")]
        if self.role != AddressRole::Api
            && engine::is_address(parts.uri.path(), &self.http.prefix)
            && self.takes_engine()
        {
            return match self.serve_engine(&parts, body) {
                EngineServed::Answered(answer, body) => {
                    RequestStage::answered(answer, &parts, body)
                }
                EngineServed::Waiting(reply) => RequestStage::Engine(reply),
            };
        }
        let stage = match self.route_request(&parts, &body, verdict) {
            Ok(RoutedRequest::Unknown(pending)) => {
                RequestStage::Unknown(Box::new(AwaitingApp { parts, body, pending, begun }))
            }
            Ok(RoutedRequest::Answered(mut answer)) => {
                self.allow_origin(&parts, &mut answer);
                RequestStage::answered(answer, &parts, body)
            }
            Ok(RoutedRequest::Call { app, route, claims }) => {
                self.read_call((parts, body), (app, route, claims), begun)
            }
            Err(RefusedRequest { call, error }) => {
                self.refuse_head((parts, body), (call, &error), begun)
            }
        };
        // An answer that is ready leaves the connection idle at once; anything else still reads.
        let step = if matches!(stage, RequestStage::Answered(_)) {
            RequestPhase::Idle
        } else {
            RequestPhase::Body
        };
        self.timer.enter_phase(step, self.now_seconds());
        stage
    }

    /// Answers a request that its head is reason enough to refuse. Its body is not read for the
    /// answer, only dropped.
    fn refuse_head(
        &self,
        (parts, body): (Parts, RequestBody),
        (call, error): (metrics::Call, &Error),
        begun: Instant,
    ) -> RequestStage {
        let answer = self.refuse_request(&parts, call, error, None);
        self.count_request(call, &answer, begun);
        self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
        RequestStage::answered(answer, &parts, body)
    }

    /// A call of the API that may be answered once its body is there. The signature was checked by
    /// then; the digest of the body is checked when it has come.
    pub(super) fn read_call(
        &self,
        // Made of tuples because a function takes six arguments at most; they belong together.
        (parts, body): (Parts, RequestBody),
        (app, route, claims): (Arc<App>, Route, SignedQuery),
        begun: Instant,
    ) -> RequestStage {
        // Found once: the publish and the counts of the request need it, too.
        let directory = self.http.node.hub().directory(&app.id);
        let (received, asking) = (ReceivedBody::Nothing, QueryState::default());
        let reading =
            AwaitingBody { parts, body, app, route, claims, received, asking, directory, begun };
        RequestStage::Reading(Box::new(reading))
    }

    /// The answer to a request that was read, counted.
    fn conclude_request(
        &self,
        reading: &AwaitingBody,
        answered: Result<AnswerBody, Error>,
        rate: Option<(u32, u32)>,
    ) -> Response<Full<Bytes>> {
        self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
        let answer = match answered {
            Ok(said) => {
                let mut answer = response::value_response(said, rate);
                self.allow_origin(&reading.parts, &mut answer);
                answer
            }
            Err(error) => {
                self.refuse_request(&reading.parts, reading.route.metric_label(), &error, rate)
            }
        };
        // Counted for the app whatever the answer is; its status is counted by route.
        let traffic = reading.directory.traffic_of(self.http.node.worker.index());
        traffic.answer_bytes.add(answer.body().size_hint().lower());
        self.count_request(reading.route.metric_label(), &answer, reading.begun);
        answer
    }

    /// By route and status, and how long it took from its head on, with the waiting for other
    /// nodes.
    fn count_request(&self, call: metrics::Call, answer: &Response<Full<Bytes>>, begun: Instant) {
        if let Some(calls) = self.http.node.counts().calls.get(call as usize) {
            calls.by_status.count(Status::of_code(answer.status().as_u16()) as usize);
            calls.seconds.observe(begun.elapsed());
        }
    }
}

/// One request on its way to its answer.
/// Moves through its stages as far as it can each time that it is polled; no task or timer of its own.
#[derive(Debug)]
pub struct RequestFuture {
    door: HttpService,
    /// How far the request is.
    stage: RequestStage,
}

/// Boxed where it is large, so that a connection that idles keeps little.
#[derive(Debug)]
pub(super) enum RequestStage {
    /// The response, until it is taken.
    Answered(Option<Response<Full<Bytes>>>),
    /// The body is being read.
    Reading(Box<AwaitingBody>),
    /// The app is being looked up.
    Unknown(Box<AwaitingApp>),
    /// Answered once enough of its body was dropped.
    Unread(Response<Full<Bytes>>, Box<UnreadBody>),
    /// Answered once something is done; with the limit that applied and what is left of it.
    Deferred(Box<AwaitingBody>, DeferredAnswer, Option<(u32, u32)>),
    /// Of a client without WebSockets.
    Fallback(Uri, AwaitingAnswer),
    /// Of a client of Socket.IO.
    #[cfg(feature = "socketio")]
    Engine(Box<EngineReply>),
    /// Of the debug console.
    Console(ConsoleReply),
}

impl RequestStage {
    /// An answer that may have to wait until what the client still sends was read: closing on unread bytes resets
    /// the connection, and a proxy would make a 502 of the answer.
    pub(super) fn answered(
        answer: Response<Full<Bytes>>,
        parts: &Parts,
        body: RequestBody,
    ) -> Self {
        // Bytes after a handshake belong to the WebSocket; they are no body.
        let unread = (answer.status() != StatusCode::SWITCHING_PROTOCOLS)
            .then(|| UnreadBody::of_request(parts, body))
            .flatten();
        match unread {
            Some(unread) => Self::Unread(answer, unread),
            None => Self::Answered(Some(answer)),
        }
    }
}

/// A request whose app is asked for.
#[derive(Debug)]
pub(super) struct AwaitingApp {
    /// The request's head.
    pub parts: Parts,
    /// The body, not read yet.
    pub body: RequestBody,
    /// Resolves once the app was looked up.
    pub pending: PendingLookup,
    /// When the request began.
    pub begun: Instant,
}

/// A request that may be answered once its body is there.
/// The request's own parts are kept until it is answered: the query and headers are borrowed from them.
#[derive(Debug)]
pub(super) struct AwaitingBody {
    /// The request's head.
    parts: Parts,
    /// The body as far as it is not read.
    body: RequestBody,
    /// The app that signed the request.
    app: Arc<App>,
    /// The requested operation.
    route: Route,
    claims: SignedQuery,
    /// The received part of the body.
    received: ReceivedBody,
    /// How far the question to other nodes is.
    asking: QueryState,
    /// The app's channels and counts on this node.
    directory: Arc<Directory>,
    /// When its head was there; the histogram of durations counts from here.
    begun: Instant,
}

/// The result of a request, and what its response waits for.
struct RequestOutcome {
    answered: Result<AnswerBody, Error>,
    /// The limit that applied and what is left of it.
    rate: Option<(u32, u32)>,
    /// The work that the response waits for.
    later: Option<DeferredAnswer>,
}

impl RequestOutcome {
    /// Before any limit was looked at, so that there is nothing to say of one.
    fn refused(error: Error) -> Self {
        Self { answered: Err(error), rate: None, later: None }
    }
}

impl AwaitingBody {
    /// Reads what has come, up to what the route may have.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.received.poll_all(&mut self.body, self.route.max_body(&self.app), cx)
    }

    /// Waits for what the answer needs to know of other nodes, if there are any.
    fn poll_known(&mut self, http: &Http, cx: &mut Context<'_>) -> Poll<NodesReply> {
        let scope = &http.node.shared.scope;
        let Some(others) = scope.others() else { return Poll::Ready(NodesReply::default()) };
        // A publish waits here while the link to Redis is full; a read has no such limit.
        let publishes = matches!(self.route, Route::Events | Route::BatchEvents);
        let room = || if publishes { scope.wait_for_publish_room() } else { None };
        ready!(self.asking.poll_room(cx, room));
        // Taken out while it polls, because asking borrows all of `self`.
        let mut asking = std::mem::take(&mut self.asking);
        let polled = asking.poll_reply(cx, || {
            let body = self.received.bytes();
            // A body that is not the signed one is refused later; no query is made for it.
            self.claims.body.check_body(body).ok()?;
            let call = self.signed_call(http, NodesReply::default());
            let query = query::query_of(&call, &self.route, body)?;
            http.node.send_query(others, (&self.app.id, &self.directory), query)
        });
        self.asking = asking;
        polled
    }

    /// Carries the request out, now that everything is there that it needs.
    fn answer_request(&self, http: &Http, known: NodesReply) -> RequestOutcome {
        let body = self.received.bytes();
        let traffic = self.directory.traffic_of(http.node.worker.index());
        traffic.calls.add(1);
        traffic.call_bytes.add(body.len() as u64);
        // Only now, when all of the body is there.
        if let Err(error) = self.claims.body.check_body(body) {
            return RequestOutcome::refused(error);
        }
        let call = self.signed_call(http, known);
        let answered = answer_call(&self.route, &call, body);
        RequestOutcome { answered, rate: call.rate.get(), later: call.later.take() }
    }

    /// The trace in the headers, if a console or the debug log would show it.
    fn followed_trace(&self, http: &Http) -> Option<Trace> {
        // Nobody follows anything most of the time, and then headers are not looked at.
        let publishes = matches!(self.route, Route::Events | Route::BatchEvents);
        if !publishes || !(shown::is_wanted() || http.node.console().is_watched()) {
            return None;
        }
        let header = |name| self.parts.headers.get(name).map(HeaderValue::as_bytes);
        Trace::from_headers(header("x-request-id"), header("traceparent"))
    }

    /// Borrows from the request; made twice where other nodes are asked, which costs no allocation.
    fn signed_call<'a>(&'a self, http: &'a Http, known: NodesReply) -> SignedCall<'a> {
        // A clock before 1970 is 0, and every request is then refused as expired.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let query = self.parts.uri.query();
        SignedCall {
            node: &http.node,
            app: &self.app,
            directory: self.directory.clone(),
            // Nothing but the signature's parameters: then there is nothing to find in it.
            raw_query: query.filter(|_| self.claims.asks).unwrap_or_default(),
            plus: self.claims.plus,
            query: OnceCell::new(),
            // Until 2106.
            now: now.as_secs() as u32,
            rate: Cell::new(None),
            known,
            lists: &http.lists,
            trace: self.followed_trace(http),
            later: RefCell::default(),
        }
    }
}

/// Carries out what is asked.
fn answer_call(route: &Route, call: &SignedCall<'_>, body: &[u8]) -> Result<AnswerBody, Error> {
    // Only the routes that read a body insist on UTF-8.
    let text = || {
        std::str::from_utf8(body)
            .map_err(|_| Error::BadRequest("The body must be UTF-8.".to_owned()))
    };
    match route {
        Route::Events => events::publish_events(call, text()?),
        Route::BatchEvents => batch::batch_events(call, text()?),
        Route::Channels => channels::list_channels(call),
        Route::Channel(name) => channels::show_channel(call, name).map(AnswerBody::Json),
        Route::Users(name) => channels::list_users(call, name),
        Route::Connections => channels::count_connections(call).map(AnswerBody::Json),
        Route::Terminate(user) => users::terminate_user(call, user).map(AnswerBody::Json),
        Route::Unsubscribe(user) => users::unsubscribe_user(call, user, text()?),
        Route::Reconnect(user) => users::reconnect_user(call, user).map(AnswerBody::Json),
    }
}

impl Future for RequestFuture {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { door, stage } = &mut *self;
        // First the app: everything else needs it.
        if let RequestStage::Unknown(unknown) = stage {
            let verdict = ready!(Pin::new(&mut unknown.pending).poll(cx));
            if let RequestStage::Unknown(unknown) =
                std::mem::replace(stage, RequestStage::Answered(None))
            {
                let AwaitingApp { parts, body, begun, .. } = *unknown;
                *stage = door.begin_request(parts, body, Some(verdict), begun);
            }
        }
        let reading = match stage {
            RequestStage::Reading(reading) => reading,
            RequestStage::Answered(answer) => {
                // Polled again after it was ready, which hyper does not do; an answer all the same.
                let answer = answer.take().unwrap_or_else(response::health_response);
                return Poll::Ready(Ok(answer));
            }
            RequestStage::Unread(answer, unread) => {
                ready!(unread.poll_drained(cx));
                door.timer.enter_phase(RequestPhase::Idle, door.now_seconds());
                return Poll::Ready(Ok(std::mem::take(answer)));
            }
            RequestStage::Deferred(reading, later, rate) => {
                let (app, directory) = (&reading.app, &reading.directory);
                let answered = ready!(later.poll(&door.http.node, (app, directory), cx));
                return Poll::Ready(Ok(door.conclude_request(reading, answered, *rate)));
            }
            // These three answer by themselves and are not counted among the calls of the API.
            RequestStage::Console(reply) => return reply.poll(cx).map(Ok),
            RequestStage::Fallback(uri, waiting) => {
                return door.poll_fallback(uri, waiting, cx).map(Ok);
            }
            #[cfg(feature = "socketio")]
            RequestStage::Engine(reply) => return door.poll_engine(reply, cx).map(Ok),
            // Nobody is asked twice.
            RequestStage::Unknown(_) => return Poll::Pending,
        };
        let received = ready!(reading.poll_body(cx));
        let known = match received {
            Ok(()) => ready!(reading.poll_known(&door.http, cx)),
            Err(_) => NodesReply::default(),
        };
        let RequestOutcome { answered, rate, later } = match received {
            Ok(()) => reading.answer_request(&door.http, known),
            Err(error) => RequestOutcome::refused(error),
        };
        if let Some(later) = later {
            if let RequestStage::Reading(reading) =
                std::mem::replace(stage, RequestStage::Answered(None))
            {
                *stage = RequestStage::Deferred(reading, later, rate);
            }
            // The answer may be ready already.
            return self.poll(cx);
        }
        let answer = door.conclude_request(reading, answered, rate);
        // All of the body was read, so that the connection can go on with the next request.
        if reading.body.is_end_stream() {
            return Poll::Ready(Ok(answer));
        }
        if let RequestStage::Reading(reading) =
            std::mem::replace(stage, RequestStage::Answered(None))
        {
            *stage = RequestStage::Unread(answer, UnreadBody::of_rest(reading.body));
        }
        self.poll(cx)
    }
}
