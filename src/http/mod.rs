//! The HTTP server: all routes in one match, the checks before a body is read, and the responses. A socket starts here
//! as a request too, and leaves as an `Admission`.

mod api;
mod batch;
mod body;
pub mod channel_list;
mod channels;
pub mod console;
mod deferred;
#[cfg(feature = "socketio")]
pub mod engine;
#[cfg(feature = "socketio")]
mod engine_admission;
mod error;
mod events;
pub mod eviction;
mod exchange;
pub mod fallback;
mod handshake;
mod plain_handshake;
mod plain_trigger;
mod query;
mod requested_info;
mod response;
pub mod scrape;
pub mod timeouts;
mod unread;
mod users;

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::http::request::Parts;
use hyper::{Method, Response};

use crate::app::App;
use crate::config::Network;
use crate::lookup::{AppName, LookupResult, PendingLookup};
use crate::metrics::{self, Doubt, Limited, Signed};
use crate::node::{Node, watched};
use crate::protocol::query::percent_decode;
use crate::protocol::resume_token;
use api::{RequestHead, Route, SignedQuery};
use channel_list::ChannelLists;
use console::{ConsoleGate, FeedStream};
#[cfg(feature = "socketio")]
use engine::EngineHandoff;
use error::Error;
use fallback::LineStream;
use scrape::Scrape;
use timeouts::{RequestTimer, RequestTimers};

pub use body::RequestBody;
pub use exchange::RequestFuture;
pub use handshake::{HandshakeDetails, Upgrade, report_refusal};
pub use plain_handshake::PlainHandshake;
pub use plain_trigger::{PlainAnswer, PlainRequest};

/// State that all requests on one worker share. One for each worker, since a `Node` belongs to a worker; state that
/// all workers share is behind an `Arc`.
#[derive(Debug)]
pub struct Http {
    pub node: Rc<Node>,
    /// Prefix of all routes; the API answers without it too, for Guzzle drops it.
    pub prefix: String,
    /// Whether the HTTP transports are on.
    pub fallback: bool,
    /// Origins whose pages may read the API's answers; `*` stands for any.
    pub cors_origins: Vec<String>,
    /// Proxies whose word is taken for a client's address and for whether it came by TLS.
    pub trusted_proxies: Vec<Network>,
    /// When each connection of the worker began what it is at.
    pub timers: Rc<RequestTimers>,
    /// The thread that makes lists of many channels.
    pub lists: ChannelLists,
    /// The metrics page, if `/metrics` is served here.
    pub scrape: Option<Arc<Scrape>>,
    /// The page to try the server on, if it is to be shown.
    pub try_out: Option<Bytes>,
    /// Access to the debug console.
    pub console: Arc<ConsoleGate>,
}

/// The routes that an address serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressRole {
    /// Everything: there is one address.
    Both,
    /// Sockets and their fallbacks, where the API has an address of its own.
    Sockets,
    /// The API and what operators ask.
    Api,
}

impl AddressRole {
    /// Whether a path is served at the other address only.
    fn refuses(self, segments: &[&str]) -> bool {
        matches!(
            (self, segments),
            (Self::Sockets, ["apps" | "users" | "metrics" | "console", ..])
                | (Self::Api, ["app" | "resume", ..])
        )
    }
}

/// A connection on which requests come, for as long as they are no socket.
#[derive(Debug, Clone)]
pub struct HttpService {
    /// State that all requests on the worker share.
    pub http: Rc<Http>,
    /// The TCP connection's other side: the proxy, if there is one.
    pub peer: IpAddr,
    /// Whether sockets, the API or both are served here.
    pub role: AddressRole,
    /// Whether the stream itself is TLS. Behind a proxy the headers tell.
    pub tls: bool,
    /// Over a Unix socket.
    pub unix: bool,
    /// The timeouts of this connection.
    pub timer: Rc<RequestTimer>,
    /// Left here by a request that was answered 101.
    pub handoff: Rc<RefCell<Option<Handoff>>>,
}

/// The future of a connection on which no more requests follow.
#[derive(Debug)]
pub enum Handoff {
    /// A WebSocket, or a refusal that is sent as a close frame.
    Socket(Upgrade),
    /// The answer without an end of a client without WebSockets.
    Lines(LineStream),
    /// A WebSocket of a client of Socket.IO.
    #[cfg(feature = "socketio")]
    Engine(EngineHandoff),
    /// The debug console's feed.
    Feed(Box<FeedStream>),
}

impl HttpService {
    /// The worker's clock, which moves once a second: enough for timeouts, and free of system calls.
    fn now_seconds(&self) -> u32 {
        self.http.node.worker.now_seconds()
    }
}

impl HttpService {
    /// Looks an unknown app up, if a database has apps. `LookupUnavailable` if that failed.
    fn look_up(
        &self,
        name: AppName,
        verdict: Option<LookupResult>,
    ) -> Result<Option<PendingLookup>, LookupUnavailable> {
        match (&self.http.node.shared.lookup, verdict) {
            // First time: ask. Second time, with a verdict: it was of use, or the table could not be read.
            (Some(lookup), None) => Ok(Some(lookup.ask_for(name))),
            (Some(_), Some(LookupResult::Away)) => Err(LookupUnavailable),
            _ => Ok(None),
        }
    }
}

/// The app could not be looked up.
struct LookupUnavailable;

/// The handling of a request, by its head.
enum RoutedRequest {
    Answered(Response<Full<Bytes>>),
    Call {
        app: Arc<App>,
        route: Route,
        claims: SignedQuery,
    },
    /// Its app is asked for.
    Unknown(PendingLookup),
}

/// A request that leads nowhere.
struct RefusedRequest {
    call: metrics::Call,
    error: Error,
}

impl From<Error> for RefusedRequest {
    fn from(error: Error) -> Self {
        Self { call: metrics::Call::Unknown, error }
    }
}

impl HttpService {
    /// All routes.
    /// Finds the route by the path's segments, and decides everything that a head alone can decide.
    /// The order is that of the cases: preflights, what is at the other address, probes, sockets, the API.
    fn route_request(
        &self,
        parts: &Parts,
        body: &RequestBody,
        verdict: Option<LookupResult>,
    ) -> Result<RoutedRequest, RefusedRequest> {
        let path = parts.uri.path();
        let all: Vec<&str> = path_segments(path).collect();
        // The prefix is required for sockets, whose clients are configured with it, and optional for the API: Guzzle
        // drops a base path when a request's own path begins with a slash.
        let own = path_segments(&self.http.prefix).count();
        let prefixed =
            all.len() >= own && path_segments(&self.http.prefix).zip(&all).all(|(a, b)| a == *b);
        // The slice starts at 0 or `own`, and `all` has that many segments.
        let inner = all.get(if prefixed { own } else { 0 }..).unwrap_or_default();
        let answered = |answer| Ok(RoutedRequest::Answered(answer));
        let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
        // Before anything else: a browser asks this of every route, existing or not.
        if method == Method::OPTIONS {
            return answered(response::preflight_response(&parts.headers));
        }
        if self.role.refuses(inner) {
            return Err(Error::OtherSide(self.role).into());
        }
        let (id, route, allowed) = match inner {
            [] if method == Method::GET => return answered(self.front_page(parts)),
            ["up"] if method == Method::GET => return answered(response::health_response()),
            // The second is Soketi's name, which probes of its installations ask.
            ["ready" | "accept-traffic"] if method == Method::GET => {
                return answered(response::ready_response(&self.http.node.shared));
            }
            ["metrics"] if method == Method::GET && self.http.scrape.is_some() => {
                return answered(response::metrics_response(self.http.scrape.as_deref()));
            }
            [] | ["up" | "ready" | "accept-traffic"] => {
                return Err(Error::MethodNotAllowed("GET, HEAD, OPTIONS").into());
            }
            ["app", key] if prefixed && method == Method::GET => {
                return Ok(self.upgrade_socket(parts, &percent_decode(key), None, verdict)?);
            }
            ["resume", token, "app", key] if prefixed && method == Method::GET => {
                return Ok(self.upgrade_socket(
                    parts,
                    &percent_decode(key),
                    Some(token),
                    verdict,
                )?);
            }
            // A token of no characters is refused as others are that are too short.
            ["resume", "app", key] if prefixed && method == Method::GET => {
                return Ok(self.upgrade_socket(parts, &percent_decode(key), Some(""), verdict)?);
            }
            ["app", _] | ["resume", _, "app", _] if prefixed => {
                return Err(Error::MethodNotAllowed("GET, OPTIONS").into());
            }
            ["apps", id, rest @ ..] => {
                let (route, allowed) = api_route(rest).ok_or(Error::NotFound)?;
                (Some(percent_decode(id)), route, allowed)
            }
            ["users", user, "terminate_connections"] => {
                (None, Route::Terminate(percent_decode(user).into_owned()), "POST, OPTIONS")
            }
            // A client of another protocol: the response explains that to its developer.
            ["socket.io" | "engine.io", ..] => return Err(Error::SocketIo.into()),
            _ => return Err(Error::NotFound.into()),
        };
        // The first method of the list is the one that does the work.
        if allowed.split(',').next() != Some(method.as_str()) {
            return Err(Error::MethodNotAllowed(allowed).into());
        }
        match self.admit_api_call(parts, body, id.as_deref(), &route) {
            Ok((app, claims)) => Ok(RoutedRequest::Call { app, route, claims }),
            // Refused or not known yet: an app that only a database has is asked for once, and the request begins
            // anew with the verdict.
            Err(error) => {
                let refused = |error| RefusedRequest { call: route.metric_label(), error };
                let name =
                    api::unknown_app(&error, id.is_none(), parts.uri.query().unwrap_or_default());
                let asked = name.map(|name| self.look_up(name, verdict)).transpose();
                match asked.map_err(|LookupUnavailable| refused(Error::LookupAway))?.flatten() {
                    Some(pending) => Ok(RoutedRequest::Unknown(pending)),
                    None => Err(refused(error)),
                }
            }
        }
    }

    /// Checks the part of an API request that comes before its body. The signature first and the size second: an
    /// unsigned request learns nothing about an app's limits.
    fn admit_api_call(
        &self,
        parts: &Parts,
        body: &RequestBody,
        id: Option<&str>,
        route: &Route,
    ) -> Result<(Arc<App>, SignedQuery), Error> {
        // Without a query no signature is given, which is refused below.
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let app = api::find_app(&self.http.node.shared.apps.load(), id, query)?;
        let head = RequestHead {
            method: &parts.method,
            path,
            prefix: &self.http.prefix,
            query,
            is_trial: false,
        };
        let claims = api::authenticate_query(&app, head, SystemTime::now())?;
        self.http.timers.know(&self.timer);
        let max = route.max_body(&app);
        // The length that the head claims; a chunked body claims none and is bounded while it is read.
        let size = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if size > max {
            return Err(Error::TooLarge { what: "request body", size: Some(size), max });
        }
        Ok((app, claims))
    }

    /// `/`: the page to try the server on for browsers where it is on, and the health of it for the rest.
    fn front_page(&self, parts: &Parts) -> Response<Full<Bytes>> {
        let accept = parts.headers.get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
        let browser = accept.is_some_and(|accept| accept.contains("text/html"));
        match &self.http.try_out {
            Some(page) if browser && self.role != AddressRole::Api => response::page_response(page),
            _ => response::health_response(),
        }
    }

    /// Counts, logs and answers a refusal.
    fn refuse_request(
        &self,
        parts: &Parts,
        call: metrics::Call,
        error: &Error,
        rate: Option<(u32, u32)>,
    ) -> Response<Full<Bytes>> {
        let counts = self.http.node.counts();
        // Counted by cause, because a wrong clock and a wrong secret have different remedies.
        match error {
            Error::Unauthorized(doubt, _) => counts.count_doubt(Signed::Request, *doubt),
            Error::TooManyRequests(_) => {
                let events = matches!(call, metrics::Call::Events | metrics::Call::BatchEvents);
                let limited = if events { Limited::Events } else { Limited::Reads };
                counts.limited.count(limited as usize);
            }
            _ => {}
        }
        error.log_refusal(&self.http.node.shared.metrics.notices, &parts.uri);
        self.report_refusal(parts, error);
        let mut answer = response::refusal_response(error, rate);
        self.allow_origin(parts, &mut answer);
        answer
    }

    /// Lets the page's origin read the answer, if it may; what is the console's is read by no other.
    fn allow_origin(&self, parts: &Parts, response: &mut Response<Full<Bytes>>) {
        if console::is_below(parts, &self.http.prefix) {
            return console::keep_private(response);
        }
        response::allow_origin(&self.http, &parts.headers, response);
    }
}

impl HttpService {
    /// Reports a refused request to the console. For an invalid signature the report has the text that should have
    /// been signed, so that a developer can compare it.
    fn report_refusal(&self, parts: &Parts, error: &Error) {
        let trusted = &self.http.trusted_proxies;
        let address = response::client_address(trusted, self.peer, &parts.headers);
        watched::report_refusal(self.http.node.console(), address, |fact| {
            let signed = match error {
                Error::Unauthorized(Doubt::Signature, _) => {
                    api::string_to_sign(&parts.method, &parts.uri)
                }
                _ => String::new(),
            };
            // A token in a path is a client's secret.
            let path = resume_token::mask(parts.uri.path()).into_owned();
            let fact = fact.code(error.status().as_u16()).why(error.to_string()).more("path", path);
            fact.more("method", parts.method.as_str()).more("signed", signed)
        });
    }
}

/// The segments of a path. Double slashes and a slash at the end make no difference, as with Reverb and Soketi.
fn path_segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// The API's own routes, below `/apps/{id}`, with the methods they take.
fn api_route(segments: &[&str]) -> Option<(Route, &'static str)> {
    const GET: &str = "GET, HEAD, OPTIONS";
    const POST: &str = "POST, OPTIONS";
    let owned = |text: &str| percent_decode(text).into_owned();
    Some(match segments {
        ["events"] => (Route::Events, POST),
        ["batch_events"] => (Route::BatchEvents, POST),
        ["channels"] => (Route::Channels, GET),
        ["channels", name] => (Route::Channel(owned(name)), GET),
        ["channels", name, "users"] => (Route::Users(owned(name)), GET),
        ["connections"] => (Route::Connections, GET),
        ["users", user, "terminate_connections"] => (Route::Terminate(owned(user)), POST),
        ["users", user, "unsubscribe"] => (Route::Unsubscribe(owned(user)), POST),
        ["users", user, "reconnect"] => (Route::Reconnect(owned(user)), POST),
        _ => return None,
    })
}
