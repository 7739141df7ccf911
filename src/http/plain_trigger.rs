//! Fast path for a single event, signed as SDKs do and with nothing to wait for: published and answered without parsing
//! the head into a request. Anything wrong or unusual is left untouched for the normal route. `events.rs` has the rules
//! for events.

use std::cell::{Cell, OnceCell, RefCell};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::Method;

use super::api::{self, RequestHead, Route, SignedCall};
use super::deferred::CHUNK_BYTES;
use super::timeouts::RequestPhase;
use super::{AddressRole, HttpService, events};
use crate::hub::shown;
use crate::metrics::{Call, Status};
use crate::node::NodesReply;

/// A `POST` as it came.
#[derive(Clone, Copy, Debug)]
pub struct PlainRequest<'a> {
    /// Path and query.
    pub target: &'a str,
    pub body: &'a [u8],
    /// The time, for the signature's age.
    pub now: SystemTime,
}

/// The content of a 200.
#[derive(Debug)]
pub struct PlainAnswer {
    pub body: Bytes,
    /// The limit that applied and what is left of it.
    pub rate: Option<(u32, u32)>,
    /// Pages of any origin may read it.
    pub any_origin: bool,
}

impl HttpService {
    /// Publishes an event if its request is plain and right. Else nothing has happened, and nothing is counted.
    pub fn publish_plain(&self, request: PlainRequest<'_>) -> Option<PlainAnswer> {
        let begun = Instant::now();
        let PlainRequest { target, body, now } = request;
        let (path, query) = target.split_at_checked(memchr::memchr(b'?', target.as_bytes())?)?;
        let query = query.get(1..)?;
        let (node, prefix) = (&self.http.node, &*self.http.prefix);
        // Traces are in the head, and only a console or the debug log shows them.
        let is_watched = shown::is_wanted() || node.console().is_watched();
        if is_watched || self.role == AddressRole::Sockets || !node.shared.scope.is_alone() {
            return None;
        }
        // Signed with or without the prefix: Guzzle drops it.
        let inner = path.strip_prefix(prefix).unwrap_or(path);
        let id = inner.strip_prefix("/apps/")?.strip_suffix("/events")?;
        let app = api::find_app(&node.shared.apps.load(), Some(id), query).ok()?;
        let head = RequestHead { method: &Method::POST, path, prefix, query, is_trial: true };
        let claims = api::authenticate_query(&app, head, now).ok()?;
        // A large event is published in parts, and answered later.
        let most = body.len().saturating_mul(app.limits.max_channels_per_event.max(1));
        if claims.asks || body.len() > Route::Events.max_body(&app) || most > CHUNK_BYTES {
            return None;
        }
        // From here on the request is right: what follows may count and publish.
        claims.body.check_body(body).ok()?;
        let call = SignedCall {
            node,
            app: &app,
            directory: node.hub().directory(&app.id),
            raw_query: "",
            plus: claims.plus,
            query: OnceCell::new(),
            // Seconds since 1970 fit 32 bits until 2106.
            now: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as u32,
            rate: Cell::new(None),
            known: NodesReply::default(),
            lists: &self.http.lists,
            trace: None,
            later: RefCell::default(),
        };
        let answer = events::publish_events(&call, std::str::from_utf8(body).ok()?).ok()?;
        let answer = answer.into_bytes();
        self.http.timers.know(&self.timer);
        self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
        let traffic = call.directory.traffic_of(node.worker.index());
        traffic.calls.add(1);
        traffic.call_bytes.add(body.len() as u64);
        traffic.answer_bytes.add(answer.len() as u64);
        if let Some(calls) = node.counts().calls.get(Call::Events as usize) {
            calls.by_status.count(Status::of_code(200) as usize);
            calls.seconds.observe(begun.elapsed());
        }
        let any_origin = self.http.cors_origins.iter().any(|origin| origin == "*");
        Some(PlainAnswer { body: answer, rate: call.rate.get(), any_origin })
    }
}
