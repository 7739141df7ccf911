//! Admission of Socket.IO clients: the app, the page's origin, and whether the page's cookies may be sent to the app's
//! backend; and the responses to refused requests.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HOST, HeaderMap, HeaderValue, ORIGIN, REFERER};

use super::error::Error;
use crate::app::{App, Apps};
use crate::protocol::query::Query;

/// A request that is refused: its status, the code that Engine.IO has for it, and why.
#[derive(Debug)]
pub(super) struct EngineRefusal {
    /// For clients and proxies.
    pub status: StatusCode,
    /// 0 to 5, which clients read from the body.
    pub code: u8,
    /// For the developer who sees the answer.
    pub why: Cow<'static, str>,
}

impl EngineRefusal {
    /// With status 400, as Engine.IO's own server answers these codes.
    pub(super) const fn bad(code: u8, why: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, why: Cow::Borrowed(why) }
    }
}

/// The texts before a colon are those of Engine.IO's server; clients and people search for them.
pub(super) const UNKNOWN_TRANSPORT: EngineRefusal = EngineRefusal::bad(0, "Transport unknown");
/// The session has ended, or never existed.
pub(super) const UNKNOWN_SESSION: EngineRefusal = EngineRefusal::bad(1, "Session ID unknown");
/// A method that Engine.IO does not use for this.
pub(super) const BAD_METHOD: EngineRefusal = EngineRefusal::bad(2, "Bad handshake method");
/// JSONP is not supported.
pub(super) const JSONP: EngineRefusal =
    EngineRefusal::bad(3, "Bad request: polling by script tags (JSONP) is not spoken");
/// A body without packets.
pub(super) const NO_PACKETS: EngineRefusal =
    EngineRefusal::bad(3, "Bad request: the body must be packets of Engine.IO, as text");
/// A revision of Engine.IO that is too old.
pub(super) const OLD_VERSION: EngineRefusal = EngineRefusal::bad(
    5,
    "Unsupported protocol version: EIO must be 3 or 4, which socket.io-client 2, 3 and 4 speak",
);

/// The app that a client is for: the one that it names by `key`, else the only one that takes such clients.
pub(super) fn find_app(apps: &Apps, query: &Query<'_>) -> Result<Arc<App>, EngineRefusal> {
    let refused = |status, why: &'static str| EngineRefusal { status, code: 3, why: why.into() };
    let mut all = apps.iter().filter(|app| app.features.socketio.enabled);
    if let Some(key) = query.get("key") {
        let named = all.find(|app| *app.key == *key).cloned();
        return named.ok_or_else(|| {
            refused(StatusCode::NOT_FOUND, "No app with this key takes clients of Socket.IO")
        });
    }
    match (all.next(), all.next()) {
        (Some(app), None) => Ok(app.clone()),
        (Some(_), Some(_)) => Err(refused(
            StatusCode::BAD_REQUEST,
            "Several apps take clients of Socket.IO: Echo names one by its option query: { key: 'app-key' }",
        )),
        (None, _) => Err(EngineRefusal {
            status: StatusCode::NOT_FOUND,
            code: 3,
            why: Error::SocketIo.to_string().into(),
        }),
    }
}

/// The page that a request comes from. Browsers leave `Origin` out where they read from the page's own host.
pub(super) fn page_origin(headers: &HeaderMap) -> Option<HeaderValue> {
    if let Some(origin) = headers.get(ORIGIN) {
        return Some(origin.clone());
    }
    let referer = headers.get(REFERER)?.to_str().ok()?;
    let (scheme, rest) = referer.split_once("://")?;
    let host = rest.split('/').next()?;
    HeaderValue::from_str(&format!("{scheme}://{host}")).ok()
}

/// Whether a request's cookies may be passed to the app's backend. Not those of a browser on a foreign page, since
/// that page could read the response.
pub(super) fn may_pass_cookies(
    app: &App,
    headers: &HeaderMap,
    origin: Option<&HeaderValue>,
) -> bool {
    let Some(origin) = origin else { return true };
    // An origin that is not text matches no pattern.
    let origin = origin.to_str().unwrap_or_default();
    // Without the port: cookies are a host's, whatever port they are sent to (RFC 6265 section
    // 8.5).
    let host_of = |place: &str| match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host.to_ascii_lowercase(),
        _ => place.to_ascii_lowercase(),
    };
    let page = host_of(origin.split_once("://").map_or(origin, |(_, place)| place));
    let asked = headers.get(HOST).and_then(|host| host.to_str().ok()).map(host_of);
    asked == Some(page) || app.names_origin(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str, enabled: bool) -> App {
        let mut app = App::new(name, name, "s");
        app.features.socketio.enabled = enabled;
        app
    }

    #[test]
    fn a_client_is_of_the_app_that_it_names_or_of_the_only_one() {
        let one = Apps::new([app("a", true), app("b", false)]).unwrap();
        let both = Apps::new([app("a", true), app("b", true)]).unwrap();
        let found = |apps: &Apps, query: &str| {
            find_app(apps, &Query::parse(query)).map(|app| app.id.to_string()).map_err(|e| e.status)
        };
        assert_eq!(found(&one, "EIO=4"), Ok("a".to_owned()));
        assert_eq!(found(&both, "EIO=4&key=b"), Ok("b".to_owned()));
        assert_eq!(found(&both, "EIO=4"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(found(&one, "key=b"), Err(StatusCode::NOT_FOUND));
        assert_eq!(found(&Apps::default(), ""), Err(StatusCode::NOT_FOUND));
    }

    #[test]
    fn cookies_of_a_strangers_page_stay_here() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("app.example.test:6001"));
        let mut app = app("a", true);
        let passes = |app: &App, origin: &'static str| {
            may_pass_cookies(app, &headers, Some(&HeaderValue::from_static(origin)))
        };
        assert!(may_pass_cookies(&app, &headers, None), "no page of a browser");
        assert!(passes(&app, "https://app.example.test"));
        assert!(passes(&app, "http://APP.example.test:8000"));
        assert!(!passes(&app, "https://evil.example.test"), "* names nobody");
        assert!(!passes(&app, "null"));
        app.allowed_origins = vec!["*".parse().unwrap(), "*.example.test".parse().unwrap()];
        assert!(passes(&app, "https://other.example.test"));
        assert!(!passes(&app, "https://example.evil.test"));
    }
}
