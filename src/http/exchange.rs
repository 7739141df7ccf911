//! One request from its head to its answer: waiting for its app, reading its body, and waiting for what other
//! nodes or connections have to do first. Which request it is was decided when its head came.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use hyper::service::Service;
use hyper::{Request, Response, StatusCode, Uri};

use super::answer;
use super::api::{Call, Claims, Route};
use super::body::Received;
use super::error::Error;
use super::fallback::{Address, Waiting};
use super::known::{self, Asking, Known};
use super::pace::Step;
use super::unread::Unread;
use super::{Door, Opened, Refused};
use crate::app::App;
use crate::hub::directory::Directory;
use crate::lookup::{Pending, Verdict};
use crate::metrics::{self, Status};
use crate::node::{Node, Withdrawing};

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
        if self.http.fallback
            && let Some(address) = Address::parse(parts.uri.path(), &self.http.prefix)
        {
            return self.fall_back(&address, parts, body, verdict);
        }
        let stage = match self.open(&parts, &body, verdict) {
            Ok(Opened::Unknown(pending)) => {
                Stage::Unknown(Box::new(Unknown { parts, body, pending, begun }))
            }
            Ok(Opened::Answered(mut answer)) => {
                answer::allow_origin(&self.http, &parts.headers, &mut answer);
                Stage::answered(answer, &parts, body)
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
                Stage::answered(answer, &parts, body)
            }
        };
        let step = if matches!(stage, Stage::Answered(_)) { Step::Idle } else { Step::Body };
        self.pace.enter(step, self.now());
        stage
    }

    /// The answer to a request that was read, counted.
    fn conclude(
        &self,
        reading: &Reading,
        answered: Result<serde_json::Value, Error>,
        rate: Option<(u32, u32)>,
    ) -> Response<Full<Bytes>> {
        self.pace.enter(Step::Idle, self.now());
        let answer = match answered {
            Ok(value) => {
                let mut answer = answer::json(&value, rate);
                answer::allow_origin(&self.http, &reading.parts.headers, &mut answer);
                answer
            }
            Err(error) => self.refuse(&reading.parts, reading.route.word(), &error, rate),
        };
        let traffic = reading.directory.traffic(self.http.node.worker.index());
        traffic.answer_bytes.add(answer.body().size_hint().lower());
        self.count(reading.route.word(), &answer, reading.begun);
        answer
    }

    fn count(&self, call: metrics::Call, answer: &Response<Full<Bytes>>, begun: Instant) {
        if let Some(calls) = self.http.node.counts().calls.get(call as usize) {
            calls.by_status.count(Status::of(answer.status().as_u16()) as usize);
            calls.seconds.observe(begun.elapsed());
        }
    }
}

/// One request on its way to its answer.
#[derive(Debug)]
pub struct Exchange {
    door: Door,
    stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    Answered(Option<Response<Full<Bytes>>>),
    Reading(Box<Reading>),
    Unknown(Box<Unknown>),
    /// Answered once enough of its body was dropped.
    Unread(Response<Full<Bytes>>, Box<Unread>),
    /// Done here, and under way at the connections that it concerns.
    Withdrawing(Box<Reading>, Withdrawing),
    /// Of a client without WebSockets.
    Fallback(Uri, Waiting),
}

impl Stage {
    fn answered(answer: Response<Full<Bytes>>, parts: &Parts, body: Incoming) -> Self {
        // What comes after a handshake is no body.
        let unread = (answer.status() != StatusCode::SWITCHING_PROTOCOLS)
            .then(|| Unread::of(parts, body))
            .flatten();
        match unread {
            Some(unread) => Self::Unread(answer, unread),
            None => Self::Answered(Some(answer)),
        }
    }
}

/// A request whose app is asked for.
#[derive(Debug)]
pub(super) struct Unknown {
    pub parts: Parts,
    pub body: Incoming,
    pub pending: Pending,
    pub begun: Instant,
}

/// A request that may be answered once its body is there.
#[derive(Debug)]
pub(super) struct Reading {
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

/// What came of a request, and what its answer waits for.
struct Outcome {
    answered: Result<serde_json::Value, Error>,
    /// The limit that applied and what is left of it.
    rate: Option<(u32, u32)>,
    withdrawing: Option<Withdrawing>,
}

impl Outcome {
    fn refused(error: Error) -> Self {
        Self { answered: Err(error), rate: None, withdrawing: None }
    }
}

impl Reading {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.received.poll_all(&mut self.body, self.route.max_body(&self.app), cx)
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

    fn answer(&self, node: &Node, known: Known) -> Outcome {
        let body = self.received.bytes();
        let traffic = self.directory.traffic(node.worker.index());
        traffic.calls.add(1);
        traffic.call_bytes.add(body.len() as u64);
        if let Err(error) = self.claims.body.check(body) {
            return Outcome::refused(error);
        }
        let call = self.call(node, known);
        let answered = self.route.answer(&call, body);
        Outcome { answered, rate: call.rate.get(), withdrawing: call.withdrawing.take() }
    }

    fn call<'a>(&'a self, node: &'a Node, known: Known) -> Call<'a> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let query = self.parts.uri.query();
        Call {
            node,
            app: &self.app,
            directory: self.directory.clone(),
            raw_query: query.filter(|_| self.claims.asks).unwrap_or_default(),
            plus: self.claims.plus,
            query: OnceCell::new(),
            now: now.as_secs() as u32,
            rate: Cell::new(None),
            known,
            withdrawing: RefCell::default(),
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
            Stage::Unread(answer, unread) => {
                ready!(unread.poll(cx));
                door.pace.enter(Step::Idle, door.now());
                return Poll::Ready(Ok(std::mem::take(answer)));
            }
            Stage::Withdrawing(_, withdrawing) => {
                ready!(Pin::new(withdrawing).poll(cx));
                let done = std::mem::replace(stage, Stage::Answered(None));
                let Stage::Withdrawing(reading, _) = done else { return Poll::Pending };
                return Poll::Ready(Ok(door.conclude(&reading, Ok(serde_json::json!({})), None)));
            }
            Stage::Fallback(uri, waiting) => {
                return door.poll_fallback(uri, waiting, cx).map(Ok);
            }
            // Nobody is asked twice.
            Stage::Unknown(_) => return Poll::Pending,
        };
        let received = ready!(reading.poll_body(cx));
        let known = match received {
            Ok(()) => ready!(reading.poll_known(&door.http.node, cx)),
            Err(_) => Known::default(),
        };
        let Outcome { answered, rate, withdrawing } = match received {
            Ok(()) => reading.answer(&door.http.node, known),
            Err(error) => Outcome::refused(error),
        };
        if let Some(withdrawing) = withdrawing {
            if let Stage::Reading(reading) = std::mem::replace(stage, Stage::Answered(None)) {
                *stage = Stage::Withdrawing(reading, withdrawing);
            }
            return self.poll(cx);
        }
        let answer = door.conclude(reading, answered, rate);
        if reading.body.is_end_stream() {
            return Poll::Ready(Ok(answer));
        }
        if let Stage::Reading(reading) = std::mem::replace(stage, Stage::Answered(None)) {
            *stage = Stage::Unread(answer, Unread::rest(reading.body));
        }
        self.poll(cx)
    }
}
