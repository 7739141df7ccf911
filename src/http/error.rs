//! API errors: a status and a text, as JSON, since .NET parses every body. Laravel shows the text to developers, so it
//! names the field and the limit.

use std::fmt;

use hyper::{StatusCode, Uri};
use tracing::{debug, info, warn};

use super::AddressRole;
use crate::metrics::{Doubt, LogNotice, LogThrottle, Status};
use crate::protocol::query::Query;
use crate::protocol::resume_token;

/// A refused request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Error {
    /// A parameter is missing, mistyped, or beyond a limit that is no matter of size; the text says which.
    BadRequest(String),
    /// The request is not signed as it should be; the text says which check failed.
    Unauthorized(Doubt, String),
    /// The app has `enabled = false`.
    AppDisabled,
    /// No app has this id.
    NoSuchApp(String),
    /// There is no such route.
    NotFound,
    /// The route is served at the server's other address only. The field is the role of this one.
    OtherSide(AddressRole),
    /// A path of Socket.IO.
    SocketIo,
    /// A path of sockets, asked for without an upgrade.
    NotAnUpgrade,
    /// The methods that there are.
    MethodNotAllowed(&'static str),
    /// The body, or a part of it, is larger than it may be.
    TooLarge { what: &'static str, size: Option<usize>, max: usize },
    /// A second's share is used up; the limit.
    TooManyRequests(u32),
    /// So much waits for the other nodes that they would miss it.
    Crowded,
    /// The app could not be looked up.
    LookupAway,
    /// A WebSocket version other than 13.
    UpgradeRequired,
    /// The client sent less than it said, or went.
    Interrupted,
}

impl Error {
    /// SDKs tell by it whether to try again: PHP's takes anything but 200 for a failure.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::NotAnUpgrade | Self::Interrupted => StatusCode::BAD_REQUEST,
            Self::Unauthorized(..) => StatusCode::UNAUTHORIZED,
            Self::AppDisabled => StatusCode::FORBIDDEN,
            Self::NoSuchApp(_) | Self::NotFound | Self::OtherSide(_) | Self::SocketIo => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Crowded | Self::LookupAway => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
        }
    }

    /// Logs a refused request to `path`: as a warning if a setting, a secret or a limit may be the cause, and at
    /// debug in any case.
    pub(super) fn log_refusal(&self, notices: &LogThrottle, uri: &Uri) {
        let (status, path) = (self.status(), resume_token::mask(uri.path()));
        let path = path.as_ref();
        // A set-up that is wrong somewhere else: nothing that this server would warn of.
        let elsewhere = match self {
            Self::NotFound | Self::OtherSide(_) => Some(LogNotice::NoRoute),
            Self::SocketIo => Some(LogNotice::SocketIo),
            Self::NotAnUpgrade => Some(LogNotice::NoUpgrade),
            _ => None,
        };
        if let Some(others) = elsewhere.and_then(|notice| notices.take_due(notice)) {
            info!(%status, path, others, why = ?self.to_string(), "a request was refused");
            return;
        }
        let is_told = match self {
            Self::Unauthorized(..) | Self::AppDisabled | Self::NoSuchApp(_) => true,
            Self::TooLarge { .. } | Self::TooManyRequests(_) => true,
            Self::Crowded | Self::LookupAway => true,
            Self::BadRequest(_) | Self::NotFound | Self::MethodNotAllowed(_) => false,
            Self::OtherSide(_) | Self::SocketIo | Self::NotAnUpgrade => false,
            Self::UpgradeRequired | Self::Interrupted => false,
        };
        let notice = LogNotice::Request(Status::of_code(status.as_u16()));
        // Quoted, since decoded text of the path could otherwise forge lines of the log.
        match is_told.then(|| notices.take_due(notice)).flatten() {
            Some(others) => {
                // The key is only for the log; a request without one is logged with an empty key.
                let query = Query::parse(uri.query().unwrap_or_default());
                let key = query.get("auth_key").unwrap_or_default();
                let why = self.to_string();
                warn!(%status, path, key, others, ?why, "a request was refused");
            }
            None => debug!(%status, path, why = ?self.to_string(), "a request was refused"),
        }
    }

    /// A parameter that is not there.
    pub(super) fn missing_parameter(name: &str) -> Self {
        Self::BadRequest(format!("The {name} parameter is required."))
    }

    /// A parameter that is something else than it should be.
    pub(super) fn mistyped_parameter(name: &str, should: &str) -> Self {
        Self::BadRequest(format!("The {name} parameter must be {should}."))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRequest(text) | Self::Unauthorized(_, text) => f.write_str(text),
            Self::AppDisabled => f.write_str("The application is disabled."),
            Self::NoSuchApp(id) => write!(f, "No matching application for ID [{id}]."),
            Self::NotFound => f.write_str("Not found."),
            Self::OtherSide(AddressRole::Api) => {
                f.write_str("Not found: this address is the HTTP API's, sockets are at another.")
            }
            Self::OtherSide(_) => {
                f.write_str("Not found: the HTTP API is at an address of its own (server.api).")
            }
            Self::SocketIo if cfg!(feature = "socketio") => f.write_str(
                "Not found: no app here takes clients of Socket.IO. Set socketio.enabled of the app, or make \
                 Laravel Echo's broadcaster \"reverb\".",
            ),
            Self::SocketIo => f.write_str(
                "Not found: this program was built without Socket.IO. Build it with --features socketio, as the \
                 Debian package and the image are, or make Laravel Echo's broadcaster \"reverb\".",
            ),
            Self::NotAnUpgrade => f.write_str(
                "This path is for WebSockets. If a client asked for one, a proxy on the way does not \
                 pass on its Upgrade and Connection headers.",
            ),
            Self::MethodNotAllowed(_) => f.write_str("Method not allowed."),
            Self::TooLarge { what, size: Some(size), max } => {
                write!(f, "The {what} exceeds the allowed maximum ({max} bytes): {size} bytes.")
            }
            Self::TooLarge { what, size: None, max } => {
                write!(f, "The {what} exceeds the allowed maximum ({max} bytes).")
            }
            Self::TooManyRequests(limit) => {
                write!(f, "Rate limit exceeded: {limit} a second are allowed.")
            }
            Self::Crowded => {
                f.write_str("Too many events wait for the other nodes: try again later.")
            }
            Self::LookupAway => f.write_str("The application cannot be looked up just now."),
            Self::UpgradeRequired => f.write_str("The WebSocket version must be 13."),
            Self::Interrupted => f.write_str("The request body ended early."),
        }
    }
}
