//! The console's page and assets, embedded in the program. Its policy (CSP) forbids loading anything from elsewhere and
//! running inline code.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Response, StatusCode};

use crate::http::response::HttpResponse;

/// The Content-Security-Policy: scripts and styles only from the server itself, and no framing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self' ws: wss:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The files below the console's path: name, content type and text.
const ASSETS: [(&str, &str, &str); 11] = [
    ("/console.css", CSS, include_str!("../../console/page/console.css")),
    ("/login.js", JS, include_str!("../../console/page/login.js")),
    ("/main.js", JS, include_str!("../../console/page/main.js")),
    ("/dom.js", JS, include_str!("../../console/page/dom.js")),
    ("/live.js", JS, include_str!("../../console/page/live.js")),
    ("/detail.js", JS, include_str!("../../console/page/detail.js")),
    ("/chart.js", JS, include_str!("../../console/page/chart.js")),
    ("/try.js", JS, include_str!("../../console/page/try.js")),
    ("/link.js", JS, include_str!("../../console/page/link.js")),
    ("/snippets.js", JS, include_str!("../../console/page/snippets.js")),
    ("/connect.js", JS, include_str!("../../console/page/connect.js")),
];

/// The content type of style sheets.
const CSS: &str = "text/css; charset=utf-8";
/// The content type of scripts.
const JS: &str = "text/javascript; charset=utf-8";
/// The content type of pages.
const HTML: &str = "text/html; charset=utf-8";

/// The page, or the one that asks for the token.
pub(super) fn page(is_open: bool) -> HttpResponse {
    let text = if is_open {
        include_str!("../../console/page/console.html")
    } else {
        include_str!("../../console/page/login.html")
    };
    let mut answer = file(HTML, text);
    if !is_open {
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
    }
    answer
}

/// Where the page is without a slash behind it, against which its own addresses are read.
pub(super) fn to_page() -> HttpResponse {
    let mut answer = file(HTML, "");
    *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("../console"));
    answer
}

/// One of these files.
pub(super) fn asset(name: &str) -> Option<HttpResponse> {
    ASSETS.iter().find(|(own, ..)| *own == name).map(|(_, kind, text)| file(kind, text))
}

/// Not kept by browsers: after an upgrade the page must be that of the new program.
fn file(kind: &'static str, text: &'static str) -> HttpResponse {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    harden(&mut answer);
    answer
}

/// Adds the headers that restrict what a browser does with it.
pub(super) fn harden(answer: &mut HttpResponse) {
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
