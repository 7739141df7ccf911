//! Building responses: a JSON object with the real status, and the headers that browsers, proxies and rate-limited
//! backends expect.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW, CACHE_CONTROL,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER,
    SEC_WEBSOCKET_VERSION, UPGRADE, VARY,
};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::Http;
use super::error::Error;
use super::scrape::Scrape;
use crate::config::Network;
use crate::metrics::MetricsPage;
use crate::node::ServerState;

/// A response whose body is in memory.
pub(super) type HttpResponse = Response<Full<Bytes>>;

/// Soketi's names for them.
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
/// Events left in this second.
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// The body is JSON already.
fn json_response(status: StatusCode, body: Bytes) -> HttpResponse {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// The body of a successful response: JSON, or finished text.
#[derive(Debug)]
pub(super) enum AnswerBody {
    /// JSON that is written when the response is built.
    Json(Value),
    Text(Bytes),
}

impl AnswerBody {
    /// `{}` is the answer to most publishes, and allocates nothing.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Json(Value::Object(all)) if all.is_empty() => Bytes::from_static(b"{}"),
            Self::Json(value) => value.to_string().into(),
            Self::Text(text) => text,
        }
    }
}

/// 200, which PHP's SDK insists on, with the limit that applied and what is left of it.
pub(super) fn value_response(said: AnswerBody, rate: Option<(u32, u32)>) -> HttpResponse {
    // Absent where no limit applies, so that a client does not take 0 for one.
    let mut answer = json_response(StatusCode::OK, said.into_bytes());
    add_rate_headers(&mut answer, rate);
    answer
}

/// Adds the quota's headers, if the app has a quota.
fn add_rate_headers(answer: &mut HttpResponse, rate: Option<(u32, u32)>) {
    if let Some((limit, left)) = rate {
        answer.headers_mut().insert(LIMIT, limit.into());
        answer.headers_mut().insert(REMAINING, left.into());
    }
}

/// The response of `/up`: the process lives and its worker answers. Readiness is a separate question.
pub(super) fn health_response() -> HttpResponse {
    json_response(StatusCode::OK, Bytes::from_static(b"{\"health\":\"OK\"}"))
}

/// The response of `/ready`: 200 if new sockets are accepted, otherwise 503 with the reason. Probes check the
/// status; the body is for people.
pub(super) fn ready_response(shared: &ServerState) -> HttpResponse {
    match shared.unready_reason() {
        None => {
            let away = shared.scope.away_parts();
            if away.is_empty() {
                return json_response(StatusCode::OK, Bytes::from_static(b"{\"ready\":true}"));
            }
            // All nodes lack it: who comes to one of them finds all else.
            let body = serde_json::json!({ "ready": true, "away": *away });
            json_response(StatusCode::OK, body.to_string().into())
        }
        // Built by hand, since the words are a closed list without anything to escape.
        Some(why) => {
            let body = format!("{{\"ready\":false,\"reason\":\"{}\"}}", why.label());
            json_response(StatusCode::SERVICE_UNAVAILABLE, body.into())
        }
    }
}

/// The metrics page in Prometheus's text format, whose content type names its version.
pub(super) fn metrics_response(scrape: Option<&Scrape>) -> HttpResponse {
    // Without a scrape the page is empty, which Prometheus accepts.
    let text = scrape.map(Scrape::page).unwrap_or_default();
    let mut answer = json_response(StatusCode::OK, text);
    let kind = HeaderValue::from_static(MetricsPage::CONTENT_TYPE);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// The page to try the server on. Its policy lets it load nothing from elsewhere.
pub(super) fn page_response(html: &Bytes) -> HttpResponse {
    let mut answer = json_response(StatusCode::OK, html.clone());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A public page must not be framed, and may connect to its own server only.
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
             connect-src 'self' ws: wss:; frame-ancestors 'none'",
        ),
    );
    answer
}

/// Ends the requests of a connection. The client is sent [`Upgrade::answer`](super::Upgrade::answer) in its
/// place.
pub(super) fn switching_response() -> HttpResponse {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
}

/// `{"error": text, "code": status}`.
/// The text is the error's `Display`; SDKs show `error`, and Laravel puts it into its exception.
pub(super) fn refusal_response(error: &Error, rate: Option<(u32, u32)>) -> HttpResponse {
    let status = error.status();
    let body = json!({ "error": error.to_string(), "code": status.as_u16() });
    let mut answer = json_response(status, body.to_string().into());
    add_rate_headers(&mut answer, rate);
    let headers = answer.headers_mut();
    match error {
        Error::MethodNotAllowed(methods) => {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        Error::TooManyRequests(limit) => {
            // The count begins anew each second.
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            headers.insert(LIMIT, (*limit).into());
            headers.insert(REMAINING, HeaderValue::from_static("0"));
        }
        Error::UpgradeRequired => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        _ => {}
    }
    answer
}

/// The response to a CORS preflight.
pub(super) fn preflight_response(request: &HeaderMap) -> HttpResponse {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    headers
        .insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, OPTIONS"));
    // Any header is allowed: a page can send nothing here that a backend could not, and a request without a
    // signature gets no data.
    let asked = request.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let asked = asked.unwrap_or_else(|| HeaderValue::from_static("Content-Type, Authorization"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
    // A day, which is the longest that any browser keeps it.
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    answer
}

/// Lets the page's origin read the answer, if it may.
pub(super) fn allow_origin(http: &Http, request: &HeaderMap, answer: &mut HttpResponse) {
    let headers = answer.headers_mut();
    if http.cors_origins.iter().any(|origin| origin == "*") {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    // Caches must not give one origin's answer to another.
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = request.get(ORIGIN) else { return };
    if http.cors_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
}

/// The client's address: the last one in `X-Forwarded-For` that is not a trusted proxy, if the peer is a trusted
/// proxy; otherwise the peer.
pub(super) fn client_address(trusted: &[Network], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    if !is_trusted(peer) {
        return peer;
    }
    let mut address = peer;
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).collect();
    for hop in hops.iter().rev() {
        // From the right: what stands left of an address that is not trusted was written by the
        // client.
        if !is_trusted(address) {
            break;
        }
        let Some(before) = address_of(hop.trim()) else { break };
        address = before;
    }
    address
}

/// Whether a trusted proxy received the request over TLS: by the last `X-Forwarded-Proto`, if the peer is a trusted
/// proxy.
pub(super) fn came_by_tls(trusted: &[Network], peer: IpAddr, headers: &HeaderMap) -> bool {
    if !trusted.iter().any(|network| network.contains(peer)) {
        return false;
    }
    // The last is the nearest proxy's.
    let proto = headers.get_all("x-forwarded-proto").iter().next_back();
    let proto = proto.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let last = proto.rsplit(',').next().unwrap_or_default().trim();
    last.eq_ignore_ascii_case("https") || last.eq_ignore_ascii_case("wss")
}

/// The address in an entry of `X-Forwarded-For`, to which some proxies add the port.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_start_matches('[').trim_end_matches(']').parse();
    bare.ok().or_else(|| hop.parse().ok().map(|both: SocketAddr| both.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_last_that_no_trusted_proxy_is() {
        let network = |address: &str, prefix| Network { address: address.parse().unwrap(), prefix };
        let trusted = [network("127.0.0.1", 32), network("10.0.0.0", 8)];
        for (peer, hops, client) in [
            ("127.0.0.1", &["1.1.1.1, 2.2.2.2, 10.0.0.5"][..], "2.2.2.2"),
            ("127.0.0.1", &["1.1.1.1", "2.2.2.2,10.0.0.5"], "2.2.2.2"),
            // A listener on all addresses sees IPv4 as IPv6.
            ("::ffff:127.0.0.1", &["2.2.2.2"], "2.2.2.2"),
            ("127.0.0.1", &["1.1.1.1, unknown"], "127.0.0.1"),
            ("127.0.0.1", &["unknown, 10.0.0.5"], "10.0.0.5"),
            ("127.0.0.1", &[], "127.0.0.1"),
            // Whoever is no proxy may say what he likes.
            ("3.3.3.3", &["1.1.1.1"], "3.3.3.3"),
        ] {
            let mut headers = HeaderMap::new();
            for hop in hops {
                headers.append("x-forwarded-for", HeaderValue::from_static(hop));
            }
            let address = client_address(&trusted, peer.parse().unwrap(), &headers);
            assert_eq!(address, client.parse::<IpAddr>().unwrap(), "{peer} {hops:?}");
        }
    }

    #[test]
    fn a_forwarded_address_may_have_a_port() {
        for (hop, address) in [
            ("10.1.2.3", Some("10.1.2.3")),
            ("10.1.2.3:5678", Some("10.1.2.3")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:5678", Some("2001:db8::1")),
            ("unknown", None),
        ] {
            assert_eq!(address_of(hop), address.map(|text| text.parse().unwrap()), "{hop}");
        }
    }
}
