//! One request to an endpoint: signed, with the exact headers that SDKs check, over connections that are kept open.
//! Redirects are not followed: the signature is for the configured URL.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::percent_decode_str;
use tower_service::Service;

use crate::app::{App, Webhook};
use crate::console::Console;

/// How long an endpoint may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept open without use.
const IDLE: Duration = Duration::from_secs(60);

/// Bytes of an answer that are read so that the connection can be used again.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 10;

/// How a try went wrong; for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum DeliveryFailure {
    /// Anything but a 2xx; redirects too.
    Status(StatusCode),
    /// None within [`TIMEOUT`].
    Time,
    /// It could not be connected to, or the connection broke.
    Connection(String),
}

/// Asks by HTTP and HTTPS.
pub(super) type HttpsClient = Client<HttpsConnector<HttpConnector<PublicResolver>>, Full<Bytes>>;

/// Posts for all webhooks.
#[derive(Clone)]
pub(super) struct WebhookClient {
    /// Keeps connections open, a pool for all endpoints.
    client: HttpsClient,
    /// Private addresses are refused unless the operator allows them: a person who configures an app may not be
    /// allowed to reach this network.
    allow_private: bool,
    /// Reports each request.
    pub(super) console: Arc<Console>,
}

impl WebhookClient {
    /// One pool of connections for the webhooks of all apps.
    pub(super) fn new(allow_private: bool, console: Arc<Console>) -> Self {
        Self { client: new_client(allow_private), allow_private, console }
    }

    /// Sends `body` once.
    ///
    /// # Errors
    /// The status, unless it is a 2xx; no answer in ten seconds; or why there was no connection.
    pub(super) async fn send(
        &self,
        app: &App,
        webhook: &Webhook,
        body: Vec<u8>,
    ) -> Result<(), DeliveryFailure> {
        let request = self.request(app, webhook, body)?;
        let exchange = async {
            let answer = self.client.request(request).await;
            let answer = answer.map_err(|error| DeliveryFailure::Connection(causes(&error)))?;
            let status = answer.status();
            // Read, so that the connection can be used again; what it says does not matter.
            let _ = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            if status.is_success() { Ok(()) } else { Err(DeliveryFailure::Status(status)) }
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(DeliveryFailure::Time))
    }

    /// A signed `POST`. By the oldest secret that still holds: a receiver may not know the new one
    /// yet.
    ///
    /// # Errors
    /// The URL or a header cannot be used, or the address is one that may not be posted to.
    fn request(
        &self,
        app: &App,
        webhook: &Webhook,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, DeliveryFailure> {
        let wrong = |problem: &dyn ToString| DeliveryFailure::Connection(problem.to_string());
        let uri: Uri = webhook.url.parse().map_err(|error| wrong(&error))?;
        // A URL without a host cannot be connected to; the request then fails as a connection.
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        // An address in the URL itself is never looked up.
        if let Ok(address) = host.parse::<IpAddr>()
            && !self.allow_private
            && !is_public(address)
        {
            return Err(DeliveryFailure::Connection(PRIVATE.to_owned()));
        }
        let (uri, credentials) = without_credentials(uri).map_err(|error| wrong(&error))?;
        let mut request = Request::post(uri);
        let signature = app.signer.sign_with_oldest(&body);
        let headers = request.headers_mut().ok_or_else(|| wrong(&"no request"))?;
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = concat!("Fanfare/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(credentials) = credentials {
            headers.insert(AUTHORIZATION, credentials);
        }
        for (name, value) in &webhook.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
                headers.insert(name, value);
            }
        }
        // Last, so that none of the configured ones takes their place; the Node SDK compares the type as a
        // whole.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let key = HeaderValue::from_str(&app.key).map_err(|error| wrong(&error))?;
        headers.insert("X-Pusher-Key", key);
        let signature = HeaderValue::from_str(&signature).map_err(|error| wrong(&error))?;
        headers.insert("X-Pusher-Signature", signature);
        request.body(Full::new(body.into())).map_err(|error| wrong(&error))
    }
}

/// A client that keeps connections open.
pub(super) fn new_client(allow_private: bool) -> HttpsClient {
    let mut http = HttpConnector::new_with_resolver(PublicResolver { allow_private });
    // The connector around it decides between HTTP and HTTPS.
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(TIMEOUT));
    // The roots that the machine trusts, so that a company's own certificates are good here too.
    let tls = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider());
    let tls = match tls {
        Ok(builder) => builder,
        Err(error) => {
            tracing::warn!(%error, "no TLS certificates are trusted: requests to https URLs will fail");
            HttpsConnectorBuilder::new().with_tls_config(trusting_nobody())
        }
    };
    let connector = tls.https_or_http().enable_http1().wrap_connector(http);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        // Receivers look headers up by the spelling of Pusher's: PHP's own server and Apache's module tell
        // them apart.
        .http1_title_case_headers(true)
        .build(connector)
}

/// A URL without what stands in front of its host, which libraries would log, and the header that
/// says the same: `Authorization: Basic …` (RFC 7617).
pub(super) fn without_credentials(
    uri: Uri,
) -> Result<(Uri, Option<HeaderValue>), hyper::http::Error> {
    let authority = uri.authority().map(|authority| authority.as_str());
    let Some((credentials, host)) = authority.and_then(|authority| authority.rsplit_once('@'))
    else {
        return Ok((uri, None));
    };
    let decoded: Vec<u8> = percent_decode_str(credentials).collect();
    let mut header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(decoded)))?;
    // Shown by no `Debug` of hyper's, and left out of HPACK's table.
    header.set_sensitive(true);
    let host = host.to_owned();
    let mut parts = uri.into_parts();
    parts.authority = Some(host.parse()?);
    Ok((Uri::from_parts(parts)?, Some(header)))
}

/// For a machine without any roots: HTTPS fails there, and plain HTTP goes on.
fn trusting_nobody() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    match builder.with_safe_default_protocol_versions() {
        Ok(builder) => {
            builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
        }
        Err(_) => unreachable!("ring knows both versions of TLS"),
    }
}

/// An error with all that led to it: the outermost says little.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Said both of an address in the URL and of one that a name leads to.
const PRIVATE: &str = "the endpoint's address is not public, and webhooks.allow_private is false";

/// Looks names up, and leaves out addresses that may not be posted to.
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicResolver {
    /// Whether private addresses are allowed.
    allow_private: bool,
}

impl Service<Name> for PublicResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let allow_private = self.allow_private;
        // Looked up for each connection: a name that leads to a public address now may lead
        // elsewhere later.
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = |address: &SocketAddr| allow_private || is_public(address.ip());
            let allowed: Vec<_> = found.filter(allowed).collect();
            if allowed.is_empty() {
                Err(io::Error::other(PRIVATE))
            } else {
                Ok(allowed.into_iter())
            }
        })
    }
}

/// Whether an address is public, by the registries of special addresses (RFC 6890). An IPv4 address inside an IPv6
/// one counts as IPv4.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (b == 18 || b == 19)))
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // Only 2000::/3 is given out, and of it not what leads to IPv4 inside it or to documentation.
            first & 0xe000 == 0x2000
                && first != 0x2002
                && !(first == 0x2001 && matches!(v6.segments()[1], 0..0x200 | 0xdb8))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_told_from_others() {
        for text in ["1.1.1.1", "8.8.8.8", "100.128.0.1", "2606:4700::1", "::ffff:9.9.9.9"] {
            assert!(is_public(text.parse().unwrap()), "{text} is public");
        }
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text} is not public");
        }
    }

    #[test]
    fn what_stands_in_front_of_a_host_is_in_a_header_and_not_in_the_url() {
        let apart = |url: &str| {
            let (uri, header) = without_credentials(url.parse().unwrap()).unwrap();
            (uri.to_string(), header)
        };
        let url = "https://user:pass%40word@hooks.example:8443/a?b=c";
        let (uri, header) = apart(url);
        assert_eq!(uri, "https://hooks.example:8443/a?b=c");
        let header = header.unwrap();
        assert!(header.is_sensitive());
        assert_eq!(header, "Basic dXNlcjpwYXNzQHdvcmQ=");
        assert_eq!(apart("http://hooks.example/"), ("http://hooks.example/".to_owned(), None));
    }
}
