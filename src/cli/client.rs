//! A client for one server: signed requests and a WebSocket, over TCP, TLS or a Unix socket. `find.rs` finds the
//! server; `events.rs` interprets responses for `doctor`.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HOST, HeaderName, LOCATION, ORIGIN};
use hyper::{Request, Response, Uri, body::Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::answers::{is_page, reachable_host};
use super::{CommandError, root_certs, without_controls};
use crate::app::App;
use crate::config::MetricsConfig;
use crate::hub::stream::Stream;
use crate::protocol::auth::{Signer, md5_hex};
use crate::protocol::query::percent_encode;

/// How long anything may take that is not waiting for events.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Characters of a strange answer that are worth showing.
/// Enough for a sentence of JSON, too little for a page of a proxy to scroll the reason away.
const MAX_SHOWN_CHARACTERS: usize = 300;

/// A server and an app on it.
/// Everything that a request needs is in it, so that a command can be about a server whose settings
/// are not on this machine.
#[derive(Clone)]
pub(super) struct ApiTarget {
    /// Whether HTTPS and WSS are used.
    pub tls: bool,
    /// The host to connect to, without brackets around IPv6.
    pub host: String,
    pub port: u16,
    /// The name that the certificate must be for, if it is not the host.
    pub name: Option<String>,
    /// Where the server listens in the place of host and port.
    pub unix_socket: Option<PathBuf>,
    /// Prefix of all routes, without a slash at its end.
    pub path: String,
    pub id: String,
    pub key: String,
    /// Makes signatures; the secret itself is not kept here.
    pub signer: Signer,
    /// The `Origin` of sockets, for an app that lets only some in.
    pub origin: Option<String>,
    /// Whether compression is on in the app's settings here.
    pub compresses: bool,
    /// The same server at the address of its HTTP API, if that is another.
    pub api: Option<Box<Self>>,
}

/// An answer to a request.
#[derive(Debug)]
pub(super) struct ApiResponse {
    /// Of HTTP, as it was sent.
    pub status: u16,
    /// The whole body, as it was received.
    pub body: Bytes,
    /// The server's clock, as it says it.
    pub date: Option<String>,
    /// Where a redirection leads.
    pub location: Option<String>,
}

impl ApiResponse {
    /// The same if it is no refusal.
    ///
    /// # Errors
    /// Any status but 200, with the API's own sentence where the body has one.
    pub(super) fn require_success(self) -> Result<Self, CommandError> {
        if self.status == 200 {
            return Ok(self);
        }
        let text = String::from_utf8_lossy(&self.body);
        let json: Option<Value> = serde_json::from_str(&text).ok();
        let error = json.as_ref().and_then(|json| json.get("error")).and_then(Value::as_str);
        let said = match error {
            // A proxy's, or another program's.
            None if is_page(&text) => "a web page".to_owned(),
            None => text.trim().chars().take(MAX_SHOWN_CHARACTERS).collect(),
            Some(error) => error.to_owned(),
        };
        let said = without_controls(&said);
        Err(CommandError(format!("the server refused with {}: {said}", self.status)))
    }

    /// The body as JSON, which every answer of the API is.
    ///
    /// # Errors
    /// It is something else: most often another program answers at the address.
    pub(super) fn json(&self) -> Result<Value, CommandError> {
        serde_json::from_slice(&self.body).map_err(|_| {
            CommandError("the server's answer is not JSON; is it the right one?".to_owned())
        })
    }
}

impl ApiTarget {
    /// The server at an `http` or `https` URL, or at `unix:` and a path.
    /// `ws` and `wss` are taken for `http` and `https`: people copy the address from a client.
    ///
    /// # Errors
    /// The text is no such address, with the forms that are.
    pub(super) fn from_url(url: &str, app: &App) -> Result<Self, CommandError> {
        let wrong = || {
            let forms = "http://HOST, https://HOST or unix:/PATH";
            CommandError(format!("--url: expected {forms}, found {url:?}"))
        };
        if let Some(path) = url.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            let place = Self::from_url("http://localhost", app)?;
            return Ok(Self { unix_socket: Some(path.into()), ..place });
        }
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https" | "wss") => true,
            Some("http" | "ws") => false,
            _ => return Err(wrong()),
        };
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        // The ports of the schemes, not 8080: an address without one is that of a proxy.
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            tls,
            host,
            port,
            name: None,
            unix_socket: None,
            path: uri.path().trim_end_matches('/').to_owned(),
            id: app.id.to_string(),
            key: app.key.to_string(),
            signer: app.signer.clone(),
            origin: None,
            compresses: app.features.compression,
            api: None,
        })
    }

    /// With an address of its API's own, below the same prefix unless it has one.
    /// A fault in `url` is reported as one of `--api-url`, where it was written.
    ///
    /// # Errors
    /// As [`Self::from_url`], of the other address.
    pub(super) fn with_api(mut self, url: &str) -> Result<Self, CommandError> {
        let app = App::new(&self.id, &self.key, "");
        let place = Self::from_url(url, &app)
            .map_err(|error| CommandError(error.0.replacen("--url", "--api-url", 1)))?;
        let path = if place.path.is_empty() { self.path.clone() } else { place.path.clone() };
        let signer = self.signer.clone();
        self.api = Some(Box::new(Self { path, signer, ..place }));
        Ok(self)
    }

    /// Where the HTTP API is asked.
    pub(super) fn of_api(&self) -> &Self {
        self.api.as_deref().unwrap_or(self)
    }

    /// The same app at another address.
    /// The API's own address is not kept: at another address it is another one, or none.
    pub(super) fn at_url(&self, url: &str) -> Result<Self, CommandError> {
        let place = Self::from_url(url, &App::new(&self.id, &self.key, ""))?;
        Ok(Self {
            signer: self.signer.clone(),
            origin: self.origin.clone(),
            compresses: self.compresses,
            ..place
        })
    }

    /// The port that the server's metrics have of their own.
    /// Always plain HTTP and without a prefix: `server.tls` and `server.path` do not apply to it.
    pub(super) fn of_its_metrics(&self, metrics: &MetricsConfig) -> Self {
        Self {
            tls: false,
            host: reachable_host(&metrics.host).trim_matches(['[', ']']).to_owned(),
            port: metrics.port,
            name: None,
            unix_socket: None,
            path: String::new(),
            id: self.id.clone(),
            key: self.key.clone(),
            signer: self.signer.clone(),
            origin: None,
            compresses: false,
            api: None,
        }
    }

    /// The address as people write it, for messages. It never holds key or secret.
    pub(super) fn url(&self) -> String {
        if let Some(path) = &self.unix_socket {
            return format!("unix:{}{}", path.display(), self.path);
        }
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}{}", self.host, self.port, self.path)
    }

    /// A connection, and whether its certificate ends soon. Over TLS without HTTP/2, since sockets
    /// need HTTP/1.1.
    pub(super) async fn connect(&self) -> io::Result<(Stream, bool)> {
        if let Some(path) = &self.unix_socket {
            return Ok((Stream::Unix(UnixStream::connect(path).await?), false));
        }
        if !self.tls {
            return Ok((Stream::Tcp(self.connect_tcp().await?), false));
        }
        let name = self.name.as_deref().unwrap_or(&self.host);
        let secured =
            root_certs::connect_tls(self.connect_tcp().await?, name, root_certs::HTTP1).await?;
        Ok((secured.stream, secured.ends_soon))
    }

    /// A connection over TLS that speaks HTTP/2; none where the other side does not.
    ///
    /// # Errors
    /// Those of the connection and of TLS; a certificate that is not trusted is one.
    pub(super) async fn connect_http2(&self) -> io::Result<Option<Stream>> {
        let name = self.name.as_deref().unwrap_or(&self.host);
        let secured =
            root_certs::connect_tls(self.connect_tcp().await?, name, root_certs::HTTP2).await?;
        Ok(secured.is_http2.then_some(secured.stream))
    }

    /// Tries all addresses that the name has, in the resolver's order. Small requests are sent at
    /// once: Nagle's algorithm would keep them for an acknowledgement.
    async fn connect_tcp(&self) -> io::Result<TcpStream> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// A signed request below the app's path, for example `channels`; its answer unless it is a
    /// refusal.
    pub(super) async fn call_api(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: &str,
    ) -> Result<ApiResponse, CommandError> {
        self.send_signed(method, path, query, body).await?.require_success()
    }

    /// The same, refusals included.
    pub(super) async fn send_signed(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: &str,
    ) -> Result<ApiResponse, CommandError> {
        let api = self.of_api();
        // The signature is over the path that the server sees, prefix and escapes included.
        let path = format!("{}/apps/{}/{path}", api.path, percent_encode(&self.id));
        let target = format!("{path}?{}", self.signed_query(method, &path, query, body));
        api.send_plain(method, &target, body).await
    }

    /// A request for the app's channels, signed as if the path had no prefix.
    /// If this is taken where the usual request is refused, a proxy removes the prefix on the way.
    pub(super) async fn send_signed_without_prefix(&self) -> Result<ApiResponse, CommandError> {
        let path = format!("/apps/{}/channels", percent_encode(&self.id));
        let api = self.of_api();
        let target = format!("{}{path}?{}", api.path, self.signed_query("GET", &path, &[], ""));
        api.send_plain("GET", &target, "").await
    }

    /// A request as it is.
    pub(super) async fn send_plain(
        &self,
        method: &str,
        target: &str,
        body: &str,
    ) -> Result<ApiResponse, CommandError> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        let exchange = async {
            let response = self.exchange(request.map_err(io::Error::other)?).await?;
            read_answer(response).await
        };
        self.in_time(exchange).await
    }

    /// A request of a page, to where sockets are; its answer may go on for as long as it likes.
    pub(super) async fn begin_post(
        &self,
        target: &str,
        body: &str,
    ) -> Result<Response<Incoming>, CommandError> {
        // Browsers say the length of nothing, too, and some proxies insist on it.
        let mut request = Request::builder()
            .method("POST")
            .uri(target)
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, body.len());
        if let Some(origin) = &self.origin {
            request = request.header(ORIGIN, origin);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        self.in_time(async { self.exchange(request.map_err(io::Error::other)?).await }).await
    }

    /// Reads a whole response. It must end by itself, as a feed does not.
    pub(super) async fn read_response(
        &self,
        got: Response<Incoming>,
    ) -> Result<ApiResponse, CommandError> {
        self.in_time(read_answer(got)).await
    }

    /// Gives `doing` up after [`PATIENCE`], and puts the address in front of what went wrong.
    pub(super) async fn in_time<T>(
        &self,
        doing: impl Future<Output = io::Result<T>>,
    ) -> Result<T, CommandError> {
        match timeout(PATIENCE, doing).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(CommandError(format!("{}: {}", self.url(), innermost_error(&error))))
            }
            Err(_) => Err(CommandError(format!("{}: no answer in ten seconds", self.url()))),
        }
    }

    /// One request on a connection of its own. The caller sets the time limit.
    pub(super) async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> io::Result<Response<Incoming>> {
        let (stream, _) = self.connect().await?;
        let host = format!("{}:{}", self.host, self.port).parse().map_err(io::Error::other)?;
        request.headers_mut().insert(HOST, host);
        let (mut sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // hyper drives the connection in a task; it ends with the answer, or with the socket.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(io::Error::other)
    }

    /// The query of a request, with its signature.
    /// The method, the path and the sorted parameters are joined by newlines and signed with
    /// HMAC-SHA256. The parameters are signed as they are and sent percent-encoded ("Generating
    /// authentication signatures" of Pusher's HTTP API reference).
    fn signed_query(&self, method: &str, path: &str, query: &[(&str, &str)], body: &str) -> String {
        // A clock before 1970 gives 0, which the server refuses with a message about the time.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (now, hash) = (now.to_string(), md5_hex(body.as_bytes()));
        let mut pairs = query.to_vec();
        pairs.extend([("auth_key", &*self.key), ("auth_timestamp", &now), ("auth_version", "1.0")]);
        // Backends leave it out where there is no body, so this does.
        if !body.is_empty() {
            pairs.push(("body_md5", &hash));
        }
        pairs.sort_unstable();
        let plain: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let signature = self.signer.sign(&[method, "\n", path, "\n", &plain.join("&")]);
        let sent: Vec<_> =
            pairs.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
        format!("{}&auth_signature={signature}", sent.join("&"))
    }
}

/// A whole answer.
pub(super) async fn read_answer(response: Response<Incoming>) -> io::Result<ApiResponse> {
    let status = response.status().as_u16();
    let header = |name: HeaderName| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    let (date, location) = (header(DATE), header(LOCATION));
    let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(ApiResponse { status, body, date, location })
}

/// The innermost error, which says what happened; those around it say only where.
/// The texts made here are what `hints.rs` recognises, so a change of one is a change of both.
fn innermost_error(error: &io::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        io::ErrorKind::InvalidData if text.contains("InvalidContentType") => {
            "it speaks plain HTTP there, so use http:// or the port of TLS".to_owned()
        }
        _ => text,
    }
}
