//! WebSocket upgrade requests: the response, and the data that the socket needs. `socket/upgrade.rs` decides
//! whether the app admits it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, ORIGIN};
use hyper::http::request::Parts;
use hyper::{Method, Version};
use tracing::{debug, info, warn};

use super::error::Error;
use super::{Handoff, HttpService, LookupUnavailable, RoutedRequest, response};
use crate::app::Apps;
use crate::hub::deflated::Compression;
use crate::lookup::{AppName, LookupResult};
use crate::metrics::{LogNotice, Reason};
use crate::node::{ServerState, watched};
use crate::protocol::error::{Error as Refusal, close};
use crate::protocol::query::Query;
use crate::protocol::resume_token::PresentedToken;
use crate::socket::upgrade::{self, Admission, HandshakeTerms, NoHandshake};

/// The version that nginx speaks by default.
const OLD_HTTP: &str = "WebSockets need HTTP/1.1. Behind nginx: proxy_http_version 1.1.";

/// A socket to be.
#[derive(Debug)]
pub struct Upgrade {
    /// The app that it is let in to, or what its first and last frame says.
    pub admission: Admission,
    /// The client that it is a connection of, if that may come back.
    pub resumes: Option<PresentedToken>,
    /// The client's address, as far as proxies can be believed.
    pub address: IpAddr,
    /// The 101 for the client.
    pub answer: Vec<u8>,
    /// The compression that was agreed on.
    pub compression: Compression,
    /// How long the greeting waits after that.
    pub pause: Option<Duration>,
    /// The details of a refused handshake, for the log.
    pub asked: Option<Box<HandshakeDetails>>,
    /// The client answers `pusher:ping`, as every pusher-js does.
    pub answers_pings: bool,
}

/// Details of a refused handshake, for the log.
#[derive(Debug)]
pub struct HandshakeDetails {
    /// As the client sent it: it may be of no app.
    pub key: String,
    /// The page that opened the socket.
    pub origin: String,
    /// The id of the app that the key is of, if it is of one.
    pub app: String,
}

impl HandshakeDetails {
    /// The origin is any bytes; what is no UTF-8 is shown as such.
    pub(super) fn new(key: &str, headers: &HeaderMap, apps: &Apps) -> Self {
        // No origin is shown as an empty one.
        let origin = headers.get(ORIGIN).map(|origin| origin.as_bytes()).unwrap_or_default();
        Self {
            key: key.to_owned(),
            origin: String::from_utf8_lossy(origin).into_owned(),
            // An unknown key has no app; the log shows the key alone.
            app: apps.by_key(key).map(|app| app.id.to_string()).unwrap_or_default(),
        }
    }
}

/// Logs a refused socket. The client's text is quoted, since it could otherwise forge lines of the log.
pub fn report_refusal(
    shared: &ServerState,
    address: IpAddr,
    (error, reason): (&Refusal, Option<Reason>),
    asked: &HandshakeDetails,
) {
    let (code, text) = (error.code, &error.message);
    let HandshakeDetails { app, key, origin } = asked;
    watched::report_refusal(&shared.hub.console, address, |fact| {
        let fact = fact.app(app.as_str()).code(code).why(&**text).event("connect");
        fact.more("key", key.as_str()).more("origin", origin.as_str())
    });
    // One code has several.
    let reason =
        reason.filter(|_| *error == close::OVER_CAPACITY).unwrap_or_else(|| upgrade::reason(error));
    // One line a minute for each reason; the number of others comes with the next.
    match shared.metrics.notices.take_due(LogNotice::Refusal(reason)) {
        // So it is meant to be.
        Some(others) if reason == Reason::Stopping => {
            info!(%address, code, %app, others, "a socket was refused: {text}");
        }
        Some(others) => {
            warn!(%address, code, %app, ?key, ?origin, others, "a socket was refused: {text}");
        }
        None => debug!(%address, code, %app, ?key, ?origin, "a socket was refused: {text}"),
    }
}

impl HttpService {
    /// Answers any right handshake with 101, also that of a socket that will be refused: browsers show a page nothing of a failed
    /// handshake, but do show it a close code (4001, 4009 and so on).
    pub(super) fn upgrade_socket(
        &self,
        parts: &Parts,
        key: &str,
        token: Option<&str>,
        verdict: Option<LookupResult>,
    ) -> Result<RoutedRequest, Error> {
        let (headers, trusted) = (&parts.headers, &self.http.trusted_proxies);
        // Behind Envoy a handshake may lack its key, which only a trusted proxy may leave out.
        let is_trusted = trusted.iter().any(|network| network.contains(self.peer));
        check_request_line(parts)?;
        let mut answer = upgrade::shake_hands(headers, is_trusted).map_err(handshake_refusal)?;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let apps = self.http.node.shared.apps.load();
        let tls = self.tls || response::came_by_tls(trusted, self.peer, headers);
        let terms = HandshakeTerms::new(&query, headers, tls);
        let mut admission = upgrade::admit(&apps, key, terms);
        // An app that only a database has may have to be asked for; the handshake waits, and begins anew with the
        // verdict.
        if admission.as_ref().is_err_and(|error| *error == close::UNKNOWN_APP) {
            match self.look_up(AppName::Key(key.to_owned()), verdict) {
                Ok(Some(pending)) => return Ok(RoutedRequest::Unknown(pending)),
                Ok(None) => {}
                Err(LookupUnavailable) => admission = Err(close::LOOKUP_AWAY),
            }
        }
        let mut resumes = None;
        // A token that means nothing is refused rather than ignored: the client would believe that it can come back.
        if let (Ok(app), Some(token)) = (&admission, token)
            && !app.features.resume.is_zero()
        {
            resumes = PresentedToken::parse(token);
            if resumes.is_none() {
                admission = Err(close::RESUME_TOKEN);
            }
        }
        let address = response::client_address(trusted, self.peer, headers);
        // Before the capacity is looked at, and also for refused ones: otherwise a flood of wrong keys would be
        // free.
        // Sockets that are refused for another reason count as well.
        if !self.http.node.shared.addresses.handshakes.admit(address, Instant::now()) {
            admission = Err(close::OVER_CAPACITY);
        }
        let compression = admission.as_ref().map_or(Compression::Off, |app| {
            let offers = upgrade::compression_offers(headers);
            upgrade::accept_compression(app, offers, &mut answer)
        });
        let asked =
            admission.is_err().then(|| Box::new(HandshakeDetails::new(key, headers, &apps)));
        let upgrade = Upgrade {
            admission,
            asked,
            resumes,
            address,
            compression,
            answer,
            pause: upgrade::greeting_pause(headers),
            // pusher-js says so; other clients answer WebSocket pings alone.
            answers_pings: query.get("client") == Some("js"),
        };
        *self.handoff.borrow_mut() = Some(Handoff::Socket(upgrade));
        Ok(RoutedRequest::Answered(response::switching_response()))
    }
}

/// RFC 6455, section 4.2.1: a handshake is a GET of HTTP/1.1. That it names one host was seen before.
fn check_request_line(parts: &Parts) -> Result<(), Error> {
    if parts.method != Method::GET {
        return Err(Error::MethodNotAllowed("GET, OPTIONS"));
    }
    if parts.version < Version::HTTP_11 {
        return Err(Error::BadRequest(OLD_HTTP.to_owned()));
    }
    Ok(())
}

/// With a status of HTTP: without a right handshake there is no WebSocket to send a close code on.
fn handshake_refusal(why: NoHandshake) -> Error {
    match why {
        NoHandshake::NotAnUpgrade => Error::NotAnUpgrade,
        NoHandshake::Version => Error::UpgradeRequired,
        NoHandshake::Key => Error::BadRequest("Sec-WebSocket-Key must be 16 bytes.".to_owned()),
        NoHandshake::NoKey => Error::BadRequest(
            "Sec-WebSocket-Key is missing. Envoy leaves it out with allow_connect, where browsers speak HTTP/2 to \
             it: upgrade_configs without allow_connect works, or its address in server.trusted_proxies."
                .to_owned(),
        ),
    }
}
