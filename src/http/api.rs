//! Signed requests: which app, whether the signature is valid, and how large the body may be, all decided before the
//! body is read; the signature covers the body's MD5, not the body.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::{Method, Uri};
use serde_json::Value;
use tracing::debug;

use super::channel_list::ChannelLists;
use super::deferred::DeferredAnswer;
use super::error::Error;
use super::response::AnswerBody;
use crate::app::{App, Apps};
use crate::hub::directory::Directory;
use crate::lookup::AppName;
use crate::metrics::{self, Doubt};
use crate::node::{Node, NodesReply};
use crate::protocol::auth::{self, BodyMd5};
use crate::protocol::query::{PlusMeaning, Query, SigningParameter};
use crate::protocol::trace::Trace;

/// The requested operation, by path and method. Names are decoded from the path. The handler checks them against
/// the app's limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Route {
    /// `POST /apps/{id}/events`
    Events,
    /// `POST /apps/{id}/batch_events`
    BatchEvents,
    /// `GET /apps/{id}/channels`
    Channels,
    /// `GET /apps/{id}/channels/{name}`
    Channel(String),
    /// `GET /apps/{id}/channels/{name}/users`
    Users(String),
    /// `GET /apps/{id}/connections`
    Connections,
    /// To close every connection of a user.
    Terminate(String),
    /// To take the right to some channels from a user.
    Unsubscribe(String),
    /// To make a user's clients come back.
    Reconnect(String),
}

/// A request whose signature holds, once its body is there.
#[derive(Debug)]
pub(super) struct SignedCall<'a> {
    pub node: &'a Node,
    /// The app that signed the request.
    pub app: &'a App,
    /// The app's channels and users on this node.
    pub directory: Arc<Directory>,
    /// Empty where all parameters in it are of the signature.
    pub raw_query: &'a str,
    /// How a `+` in the query was read when the signature held.
    pub plus: PlusMeaning,
    /// Parsed when it is first needed; most publishes have nothing in it.
    pub query: OnceCell<Query<'a>>,
    /// Seconds since 1970.
    pub now: u32,
    /// The limit that applied and what is left of it, for the answer's headers.
    pub rate: Cell<Option<(u32, u32)>>,
    /// The results of a query over all nodes, if the request needs one.
    pub known: NodesReply,
    /// Where lists of many channels are made.
    pub lists: &'a ChannelLists,
    /// The trace by which the published events are followed, if they are.
    pub trace: Option<Trace>,
    /// The work that the response waits for, if it has to.
    pub later: RefCell<Option<DeferredAnswer>>,
}

/// The part of a request that comes before its body. Borrowed, so that nothing is copied for a refused request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestHead<'a> {
    /// The request's method, which is signed.
    pub method: &'a Method,
    /// As it was sent.
    /// Path and prefix are both kept: SDKs sign the path with or without the server's prefix.
    pub path: &'a str,
    /// The server's own prefix.
    pub prefix: &'a str,
    /// The query as it was sent.
    pub query: &'a str,
    /// Whether this is a trial on the fast path; a fault is then reported by the slow path.
    pub is_trial: bool,
}

/// The app that a request is for: by id, or, for the one path that Python's SDK builds without it, by the key
/// in the query (case U17).
///
/// # Errors
/// 404 for an id that is not known, 401 for a key that is missing or not known, 403 for an app that
/// is disabled.
pub(super) fn find_app(apps: &Apps, id: Option<&str>, query: &str) -> Result<Arc<App>, Error> {
    let app = match id {
        Some(id) => apps.by_id(id).ok_or_else(|| Error::NoSuchApp(id.to_owned()))?,
        None => {
            let query = Query::parse(query);
            let key = query
                .get("auth_key")
                .ok_or_else(|| unauthorized(Doubt::Missing, "Missing auth_key."))?;
            apps.by_key(key)
                // A form-encoded key: `+` may have stood for a blank.
                .or_else(|| apps.by_key(&key.replace('+', " ")))
                .ok_or_else(|| unauthorized(Doubt::Key, "Unknown auth_key."))?
        }
    };
    if app.enabled { Ok(app.clone()) } else { Err(Error::AppDisabled) }
}

/// The app that was asked for and is not known, if that is what is wrong.
pub(super) fn unknown_app(error: &Error, by_key: bool, query: &str) -> Option<AppName> {
    match error {
        Error::NoSuchApp(id) => Some(AppName::Id(id.clone())),
        Error::Unauthorized(Doubt::Key, _) if by_key => {
            Query::parse(query).get("auth_key").map(|key| AppName::Key(key.to_owned()))
        }
        _ => None,
    }
}

/// All such texts begin alike, as the hosted API's do; the rest says which check failed, never what was expected.
fn unauthorized(doubt: Doubt, why: &str) -> Error {
    Error::Unauthorized(doubt, format!("Authentication failed: {why}"))
}

/// Checks all that the query says of the request: key, version, time and signature, in the order that
/// hosted Pusher has them. A `+` in it is read as that, and if that is not what was signed, as a blank.
pub(super) fn authenticate_query(
    app: &App,
    head: RequestHead<'_>,
    now: SystemTime,
) -> Result<SignedQuery, Error> {
    // The encoding of most SDKs. The other reading is for SDKs that encode blanks as a form does.
    let first = authenticate_as(app, head, now, PlusMeaning::Plus);
    match first {
        Err(Error::Unauthorized(..)) if head.query.contains('+') => {
            authenticate_as(app, head, now, PlusMeaning::Blank).or(first)
        }
        _ => first,
    }
}

/// Authenticates one reading of the query. Cheap checks come first; the HMAC is last.
fn authenticate_as(
    app: &App,
    head: RequestHead<'_>,
    now: SystemTime,
    plus: PlusMeaning,
) -> Result<SignedQuery, Error> {
    let query = Query::parse_with(head.query, plus);
    let value = |parameter| query.signing_value(parameter);
    let key = value(SigningParameter::Key)
        .ok_or_else(|| unauthorized(Doubt::Missing, "Missing auth_key."))?;
    // Not in constant time: a key is public.
    if key != &*app.key {
        return Err(unauthorized(Doubt::Key, "Unknown auth_key."));
    }
    match value(SigningParameter::Version) {
        None => return Err(unauthorized(Doubt::Missing, "Missing auth_version.")),
        Some("1.0") => {}
        Some(_) => return Err(unauthorized(Doubt::Version, "auth_version must be 1.0.")),
    }
    check_time(app, value(SigningParameter::Timestamp), now)?;
    // Before the HMAC, which costs the most.
    if value(SigningParameter::Signature).is_none() {
        return Err(unauthorized(Doubt::Missing, "Missing auth_signature."));
    }
    let RequestHead { method, path, prefix, is_trial, .. } = head;
    // The texts that were tried go to the debug log alone.
    auth::verify_request(&app.signer, method.as_str(), path, prefix, &query).map_err(|signed| {
        if !is_trial {
            debug!(app = %app.id, ?signed, "refused: the signature is not of this string");
        }
        Error::Unauthorized(Doubt::Signature, "Authentication signature invalid.".to_owned())
    })?;
    let body = match value(SigningParameter::BodyMd5) {
        None => BodyClaim::None,
        Some(hex) => BodyMd5::parse(hex).map_or(BodyClaim::Nonsense, BodyClaim::Md5),
    };
    Ok(SignedQuery { body, asks: query.asks(), plus })
}

/// The text that the server signs for a request, for developers whose signature differs.
pub(super) fn string_to_sign(method: &Method, uri: &Uri) -> String {
    // No query signs as an empty one.
    let query = Query::parse(uri.query().unwrap_or_default());
    query.string_to_sign(method.as_str(), uri.path())
}

/// Seconds since 1970 within the app's `timestamp_tolerance`, in either direction; 0 turns the check off.
fn check_time(app: &App, timestamp: Option<&str>, now: SystemTime) -> Result<(), Error> {
    let timestamp =
        timestamp.ok_or_else(|| unauthorized(Doubt::Missing, "Missing auth_timestamp."))?;
    let seconds: u64 = timestamp
        .parse()
        .map_err(|_| unauthorized(Doubt::Time, "auth_timestamp must be a number."))?;
    let tolerance = app.limits.timestamp_tolerance;
    // A clock before 1970 is 0, and every request is then refused as expired.
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    if !tolerance.is_zero() && now.abs_diff(Duration::from_secs(seconds)) >= tolerance {
        let (tolerance, now) = (tolerance.as_secs(), now.as_secs());
        return Err(unauthorized(
            Doubt::Time,
            &format!(
                "auth_timestamp {seconds} is not within {tolerance} s of the server's time, {now}."
            ),
        ));
    }
    Ok(())
}

/// The result of authenticating a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignedQuery {
    /// The signature's claim about the body.
    pub body: BodyClaim,
    /// There are parameters in it beside those of the signature.
    pub asks: bool,
    /// The meaning of a `+` in it.
    pub plus: PlusMeaning,
}

/// The digest of the body that was signed with the query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BodyClaim {
    /// Nothing, which is right for an empty body alone.
    /// SDKs leave `body_md5` out of requests without a body.
    None,
    /// The MD5 that the body must have.
    Md5(BodyMd5),
    /// Something that is no MD5.
    Nonsense,
    /// Any body is accepted: the request was authenticated in another way.
    Any,
}

impl BodyClaim {
    /// Checks that the body is the signed one. Only now is the signature valid for the whole request.
    ///
    /// # Errors
    /// 401: the digest is missing, or differs from the body's.
    pub(super) fn check_body(self, body: &[u8]) -> Result<(), Error> {
        match self {
            Self::Any => Ok(()),
            Self::None if body.is_empty() => Ok(()),
            Self::None => Err(unauthorized(Doubt::Missing, "Missing body_md5.")),
            Self::Md5(md5) if md5.is_of(body) => Ok(()),
            Self::Md5(_) | Self::Nonsense => {
                Err(unauthorized(Doubt::Body, "body_md5 is not the body's."))
            }
        }
    }
}

impl<'a> SignedCall<'a> {
    /// The parameters in the query.
    pub(super) fn query(&self) -> &Query<'a> {
        // The same reading of `+` as the one that the signature holds for.
        self.query.get_or_init(|| Query::parse_with(self.raw_query, self.plus))
    }

    /// The parameter `name` in the query.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        if self.raw_query.is_empty() {
            return None;
        }
        self.query().get(name)
    }

    /// All values of the parameter `name` in the query.
    pub(super) fn parameters(&self, name: &str) -> Vec<&str> {
        self.query().list(name)
    }

    /// Leaves the answer to what comes of `later`; a placeholder of it for now.
    pub(super) fn answer_later(&self, later: DeferredAnswer) -> AnswerBody {
        self.later.replace(Some(later));
        AnswerBody::Json(Value::Null)
    }
}

impl Route {
    /// The word for it in the metrics.
    pub(super) fn metric_label(&self) -> metrics::Call {
        match self {
            Self::Events => metrics::Call::Events,
            Self::BatchEvents => metrics::Call::BatchEvents,
            Self::Channels => metrics::Call::Channels,
            Self::Channel(_) => metrics::Call::Channel,
            Self::Users(_) => metrics::Call::Users,
            Self::Connections => metrics::Call::Connections,
            Self::Terminate(_) => metrics::Call::Terminate,
            Self::Unsubscribe(_) => metrics::Call::Unsubscribe,
            Self::Reconnect(_) => metrics::Call::Reconnect,
        }
    }

    /// Bytes of the largest body that can be right: data may be escaped sixfold, and the rest of a request
    /// is small.
    pub(super) fn max_body(&self, app: &App) -> usize {
        // Saturating: limits are the operator's and may be `usize::MAX`.
        let limits = &app.limits;
        // Three bytes a name: two quotes and a comma.
        let names = limits.max_channels_per_event.saturating_mul(limits.max_channel_name + 3);
        let event = (limits.max_event_data.saturating_mul(6))
            // A character of JSON is at most `\uXXXX`, six bytes for one.
            .saturating_add(names)
            .saturating_add(limits.max_event_name.saturating_mul(6))
            .saturating_add(4 << 10);
        match self {
            Self::Events => event,
            Self::BatchEvents => event.saturating_mul(limits.max_batch.max(1)),
            _ => 64 << 10,
        }
    }
}
