//! Everything that is asked by HTTP: all routes in one match, what a request must satisfy before its body is
//! read, and how answers look. A socket begins here as a request too, and leaves as an `Admission`.

mod answer;
mod api;
mod body;
mod channels;
mod error;
mod events;
mod known;
pub mod pace;
pub mod scrape;
mod users;

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use hyper::service::Service;
use hyper::{Method, Request, Response};

use crate::app::App;
use crate::config::Network;
use crate::hub::directory::Directory;
use crate::lookup::{Name, Pending, Verdict};
use crate::metrics::{self, Limited, Signed, Status};
use crate::node::Node;
use crate::protocol::error::close;
use crate::protocol::query::{Query, percent_decode};
use crate::socket::upgrade::{self, Admission, NoHandshake};
use api::{Call, Claims, Head, Route};
use body::Received;
use error::Error;
use known::{Asking, Known};
use pace::{Pace, Paces, Step};
use scrape::Scrape;

/// What all requests on one worker share.
#[derive(Debug)]
pub struct Http {
    pub node: Rc<Node>,
    /// Prefix of all routes; the API answers without it too, for Guzzle drops it.
    pub prefix: String,
    pub cors_origins: Vec<String>,
    pub trusted_proxies: Vec<Network>,
    pub paces: Rc<Paces>,
    /// What is told under `/metrics`, if that is here.
    pub scrape: Option<Arc<Scrape>>,
    /// The page to try the server on, if it is to be shown.
    pub try_out: Option<Bytes>,
}

/// A connection on which requests come, for as long as they are no socket.
#[derive(Debug, Clone)]
pub struct Door {
    pub http: Rc<Http>,
    pub peer: IpAddr,
    pub tls: bool,
    pub pace: Rc<Pace>,
    /// Left here by a request that was answered 101.
    pub upgrade: Rc<RefCell<Option<Upgrade>>>,
}

/// A socket to be.
#[derive(Debug)]
pub struct Upgrade {
    pub admission: Admission,
    /// The client's address, as far as proxies can be believed.
    pub address: IpAddr,
}

impl Door {
    fn now(&self) -> u32 {
        self.http.node.worker.now()
    }
}

impl Service<Request<Incoming>> for Door {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Exchange;

    fn call(&self, request: Request<Incoming>) -> Exchange {
        let (parts, body) = request.into_parts();
        let stage = self.begin(parts, body, None, Instant::now());
        Exchange { door: self.clone(), stage }
    }
}

impl Door {
    /// How a request goes on once its head is there; `verdict` is what came of asking for its app, if that
    /// was needed.
    fn begin(
        &self,
        parts: Parts,
        body: Incoming,
        verdict: Option<Verdict>,
        begun: Instant,
    ) -> Stage {
        let stage = match self.open(&parts, &body, verdict) {
            Ok(Opened::Unknown(pending)) => {
                Stage::Unknown(Box::new(Unknown { parts, body, pending, begun }))
            }
            Ok(Opened::Answered(mut answer)) => {
                answer::allow_origin(&self.http, &parts.headers, &mut answer);
                Stage::Answered(Some(answer))
            }
            Ok(Opened::Call { app, route, claims }) => {
                let directory = self.http.node.hub().directory(&app.id);
                Stage::Reading(Box::new(Reading {
                    parts,
                    body,
                    app,
                    route,
                    claims,
                    received: Received::Nothing,
                    asking: Asking::default(),
                    directory,
                    begun,
                }))
            }
            Err(Refused { call, error }) => {
                let answer = self.refuse(&parts, call, &error, None);
                self.count(call, &answer, begun);
                Stage::Answered(Some(answer))
            }
        };
        let step = if matches!(stage, Stage::Answered(_)) { Step::Idle } else { Step::Body };
        self.pace.enter(step, self.now());
        stage
    }

    /// Asks for an app that is not known, if there is anybody to ask; afterwards says whether that was of
    /// use.
    fn look_up(&self, name: Name, verdict: Option<Verdict>) -> Result<Option<Pending>, LookupAway> {
        match (&self.http.node.shared.lookup, verdict) {
            (Some(lookup), None) => Ok(Some(lookup.ask(name))),
            (Some(_), Some(Verdict::Away)) => Err(LookupAway),
            _ => Ok(None),
        }
    }
}

/// Whether there is an app could not be found out.
struct LookupAway;

/// What a request's head leads to.
enum Opened {
    Answered(Response<Full<Bytes>>),
    Call {
        app: Arc<App>,
        route: Route,
        claims: Claims,
    },
    /// Its app is asked for.
    Unknown(Pending),
}

/// A request that leads nowhere.
struct Refused {
    call: metrics::Call,
    error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { call: metrics::Call::Unknown, error }
    }
}

impl Door {
    /// All routes.
    fn open(
        &self,
        parts: &Parts,
        body: &Incoming,
        verdict: Option<Verdict>,
    ) -> Result<Opened, Refused> {
        let path = parts.uri.path();
        let inner = path.strip_prefix(self.http.prefix.as_str());
        let inner = inner.filter(|inner| inner.is_empty() || inner.starts_with('/'));
        let prefixed = inner.is_some();
        let segments: Vec<&str> =
            inner.unwrap_or(path).split('/').filter(|segment| !segment.is_empty()).collect();
        let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
        if method == Method::OPTIONS {
            return Ok(Opened::Answered(answer::preflight(&parts.headers)));
        }
        let (id, route, allowed) = match segments.as_slice() {
            [] if method == Method::GET => return Ok(Opened::Answered(self.front(parts))),
            ["up"] if method == Method::GET => return Ok(Opened::Answered(answer::health())),
            // The second is Soketi's name, which probes of its installations ask.
            ["ready" | "accept-traffic"] if method == Method::GET => {
                return Ok(Opened::Answered(answer::ready(&self.http.node.shared)));
            }
            ["metrics"] if method == Method::GET && self.http.scrape.is_some() => {
                return Ok(Opened::Answered(answer::metrics(self.http.scrape.as_deref())));
            }
            [] | ["up" | "ready" | "accept-traffic"] => {
                return Err(Error::MethodNotAllowed("GET, HEAD, OPTIONS").into());
            }
            ["app", key] if prefixed && method == Method::GET => {
                return Ok(self.upgrade(parts, &percent_decode(key), verdict)?);
            }
            ["app", _] if prefixed => return Err(Error::MethodNotAllowed("GET, OPTIONS").into()),
            ["apps", id, rest @ ..] => {
                let (route, allowed) = api_route(rest).ok_or(Error::NotFound)?;
                (Some(percent_decode(id)), route, allowed)
            }
            ["users", user, "terminate_connections"] => {
                (None, Route::Terminate(percent_decode(user).into_owned()), "POST, OPTIONS")
            }
            _ => return Err(Error::NotFound.into()),
        };
        if allowed.split(',').next() != Some(method.as_str()) {
            return Err(Error::MethodNotAllowed(allowed).into());
        }
        match self.admit(parts, body, id.as_deref(), &route) {
            Ok((app, claims)) => Ok(Opened::Call { app, route, claims }),
            Err(error) => {
                let refused = |error| Refused { call: route.word(), error };
                let name =
                    api::unknown(&error, id.is_none(), parts.uri.query().unwrap_or_default());
                let asked = name.map(|name| self.look_up(name, verdict)).transpose();
                match asked.map_err(|LookupAway| refused(Error::LookupAway))?.flatten() {
                    Some(pending) => Ok(Opened::Unknown(pending)),
                    None => Err(refused(error)),
                }
            }
        }
    }

    /// What of a request to the API can be decided before its body is read.
    fn admit(
        &self,
        parts: &Parts,
        body: &Incoming,
        id: Option<&str>,
        route: &Route,
    ) -> Result<(Arc<App>, Claims), Error> {
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let app = api::app(&self.http.node.shared.apps.load(), id, query)?;
        let head = Head { method: &parts.method, path, prefix: &self.http.prefix, query };
        let claims = api::authenticate(&app, head, SystemTime::now())?;
        let max = route.max_body(&app);
        let size = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if size > max {
            return Err(Error::TooLarge { what: "request body", size: Some(size), max });
        }
        Ok((app, claims))
    }

    /// `/`: the page to try the server on for browsers where it is on, and the health of it for the rest.
    fn front(&self, parts: &Parts) -> Response<Full<Bytes>> {
        let accept = parts.headers.get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
        let browser = accept.is_some_and(|accept| accept.contains("text/html"));
        match &self.http.try_out {
            Some(page) if browser => answer::page(page),
            _ => answer::health(),
        }
    }

    fn upgrade(&self, parts: &Parts, key: &str, verdict: Option<Verdict>) -> Result<Opened, Error> {
        let headers = match upgrade::shake_hands(&parts.headers) {
            Ok(headers) => headers,
            Err(NoHandshake::NotAnUpgrade) => {
                return Err(Error::BadRequest("This path is for WebSockets.".to_owned()));
            }
            Err(NoHandshake::Version) => return Err(Error::UpgradeRequired),
            Err(NoHandshake::Key) => {
                return Err(Error::BadRequest("Sec-WebSocket-Key must be 16 bytes.".to_owned()));
            }
        };
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let apps = self.http.node.shared.apps.load();
        let tls =
            self.tls || answer::came_by_tls(&self.http.trusted_proxies, self.peer, &parts.headers);
        let mut admission = upgrade::admit(&apps, key, &query, &parts.headers, tls);
        if admission.as_ref().is_err_and(|error| *error == close::UNKNOWN_APP) {
            match self.look_up(Name::Key(key.to_owned()), verdict) {
                Ok(Some(pending)) => return Ok(Opened::Unknown(pending)),
                Ok(None) => {}
                Err(LookupAway) => admission = Err(close::LOOKUP_AWAY),
            }
        }
        let address = answer::client_address(&self.http.trusted_proxies, self.peer, &parts.headers);
        *self.upgrade.borrow_mut() = Some(Upgrade { admission, address });
        Ok(Opened::Answered(answer::switching(headers)))
    }

    /// Counts, logs and answers a refusal.
    fn refuse(
        &self,
        parts: &Parts,
        call: metrics::Call,
        error: &Error,
        rate: Option<(u32, u32)>,
    ) -> Response<Full<Bytes>> {
        let counts = self.http.node.counts();
        match error {
            Error::Unauthorized(doubt, _) => counts.doubt(Signed::Request, *doubt),
            Error::TooManyRequests(_) => {
                let events = matches!(call, metrics::Call::Events | metrics::Call::BatchEvents);
                let limited = if events { Limited::Events } else { Limited::Reads };
                counts.limited.count(limited as usize);
            }
            _ => {}
        }
        error.tell(&self.http.node.shared.metrics.notices, parts.uri.path());
        let mut answer = answer::refusal(error, rate);
        answer::allow_origin(&self.http, &parts.headers, &mut answer);
        answer
    }
}

impl Door {
    fn count(&self, call: metrics::Call, answer: &Response<Full<Bytes>>, begun: Instant) {
        if let Some(calls) = self.http.node.counts().calls.get(call as usize) {
            calls.by_status.count(Status::of(answer.status().as_u16()) as usize);
            calls.seconds.observe(begun.elapsed());
        }
    }
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
        _ => return None,
    })
}

/// One request on its way to its answer.
#[derive(Debug)]
pub struct Exchange {
    door: Door,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Answered(Option<Response<Full<Bytes>>>),
    Reading(Box<Reading>),
    Unknown(Box<Unknown>),
}

/// A request whose app is asked for.
#[derive(Debug)]
struct Unknown {
    parts: Parts,
    body: Incoming,
    pending: Pending,
    begun: Instant,
}

/// A request that may be answered once its body is there.
#[derive(Debug)]
struct Reading {
    parts: Parts,
    body: Incoming,
    app: Arc<App>,
    route: Route,
    claims: Claims,
    received: Received,
    asking: Asking,
    directory: Arc<Directory>,
    begun: Instant,
}

impl Reading {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let max = self.route.max_body(&self.app);
        while let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            let Ok(frame) = frame else { return Poll::Ready(Err(Error::Interrupted)) };
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else { continue };
            if self.received.bytes().len() + data.len() > max {
                return Poll::Ready(Err(Error::TooLarge { what: "request body", size: None, max }));
            }
            self.received.add(data);
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for what the answer needs to know of other nodes, if there are any.
    fn poll_known(&mut self, node: &Node, cx: &mut Context<'_>) -> Poll<Known> {
        if node.shared.cluster.is_none() {
            return Poll::Ready(Known::default());
        }
        ready!(self.asking.poll_room(cx, || known::room(node, &self.route)));
        let mut asking = std::mem::take(&mut self.asking);
        let polled = asking.poll(cx, || {
            let body = self.received.bytes();
            self.claims.body.check(body).ok()?;
            known::ask(&self.call(node, Known::default()), &self.route, body)
        });
        self.asking = asking;
        polled
    }

    fn answer(
        &self,
        node: &Node,
        known: Known,
    ) -> (Result<serde_json::Value, Error>, Option<(u32, u32)>) {
        let body = self.received.bytes();
        let traffic = self.directory.traffic(node.worker.index());
        traffic.calls.add(1);
        traffic.call_bytes.add(body.len() as u64);
        if let Err(error) = self.claims.body.check(body) {
            return (Err(error), None);
        }
        let call = self.call(node, known);
        (self.route.answer(&call, body), call.rate.get())
    }

    fn call<'a>(&'a self, node: &'a Node, known: Known) -> Call<'a> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let query = self.parts.uri.query();
        Call {
            node,
            app: &self.app,
            directory: self.directory.clone(),
            raw_query: query.filter(|_| self.claims.asks).unwrap_or_default(),
            query: OnceCell::new(),
            now: now.as_secs() as u32,
            rate: Cell::new(None),
            known,
        }
    }
}

impl Future for Exchange {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { door, stage } = &mut *self;
        if let Stage::Unknown(unknown) = stage {
            let verdict = ready!(Pin::new(&mut unknown.pending).poll(cx));
            if let Stage::Unknown(unknown) = std::mem::replace(stage, Stage::Answered(None)) {
                let Unknown { parts, body, begun, .. } = *unknown;
                *stage = door.begin(parts, body, Some(verdict), begun);
            }
        }
        let reading = match stage {
            Stage::Reading(reading) => reading,
            Stage::Answered(answer) => {
                let answer = answer.take().unwrap_or_else(answer::health);
                return Poll::Ready(Ok(answer));
            }
            // Nobody is asked twice.
            Stage::Unknown(_) => return Poll::Pending,
        };
        let received = ready!(reading.poll_body(cx));
        let known = match received {
            Ok(()) => ready!(reading.poll_known(&door.http.node, cx)),
            Err(_) => Known::default(),
        };
        let (answered, rate) = match received {
            Ok(()) => reading.answer(&door.http.node, known),
            Err(error) => (Err(error), None),
        };
        door.pace.enter(Step::Idle, door.now());
        let answer = match answered {
            Ok(value) => {
                let mut answer = answer::json(&value, rate);
                answer::allow_origin(&door.http, &reading.parts.headers, &mut answer);
                answer
            }
            Err(error) => door.refuse(&reading.parts, reading.route.word(), &error, rate),
        };
        let traffic = reading.directory.traffic(door.http.node.worker.index());
        traffic.answer_bytes.add(answer.body().size_hint().lower());
        door.count(reading.route.word(), &answer, reading.begun);
        Poll::Ready(Ok(answer))
    }
}
