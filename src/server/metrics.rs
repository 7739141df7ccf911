//! The listener for Prometheus and for health checks under Soketi's paths: a thread with its own runtime, so that slow
//! or frequent scrapes take no time from the workers.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{ServerPhase, listener, process_limits};
use crate::config::MemoryLimit;
use crate::http::scrape::Scrape;
use crate::metrics::{MetricsPage, ProcessStats};

/// Connections at a time; the others wait.
/// Several Prometheus servers and probes together have fewer.
const MAX_CONNECTIONS: usize = 32;

/// The longest connection: longer than the usual interval between scrapes.
const LIFETIME: Duration = Duration::from_secs(300);

/// How long to wait when a connection cannot be taken in.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait before an address in use is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The state of the metrics listener.
#[derive(Debug)]
pub(super) struct MetricsListener {
    /// Makes the page.
    pub scrape: Arc<Scrape>,
    /// Whether it serves metrics.
    pub enabled: bool,
    /// Whether metrics are for this machine only.
    pub local: bool,
}

/// Serves `/metrics` on `addr` until the server is gone or hands over. An address in use is waited for: it
/// may be the predecessor's, who is about to leave it.
pub(super) fn start(
    addr: SocketAddr,
    port: MetricsListener,
    mut phase: watch::Receiver<ServerPhase>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = match listener::bind(addr) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            warn!(%addr, "metrics wait for their address, which is in use");
            None
        }
        Err(error) => return Err(error),
        Ok(listener) => {
            log_address(addr, &port);
            Some(listener)
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                served = async { serve(free(listener, addr, &port).await, port).await } => {
                    if let Err(error) = served {
                        error!(%error, "metrics are not served");
                    }
                }
                // The sender goes with the server.
                _ = phase.wait_for(|phase| *phase == ServerPhase::HandingOver) => {}
            }
        });
    })?;
    Ok(())
}

/// Says once what there is at the address.
fn log_address(addr: SocketAddr, port: &MetricsListener) {
    match port {
        MetricsListener { enabled: false, .. } => {
            info!(%addr, "health checks at /, /ready and /usage");
        }
        MetricsListener { local: true, .. } => {
            info!(%addr, "metrics at /metrics, for this machine alone");
        }
        MetricsListener { .. } => info!(%addr, "metrics at /metrics"),
    }
}

/// The listener, once its address can be had.
async fn free(
    listener: Option<TcpListener>,
    addr: SocketAddr,
    port: &MetricsListener,
) -> TcpListener {
    if let Some(listener) = listener {
        return listener;
    }
    loop {
        sleep(AGAIN).await;
        if let Ok(listener) = listener::bind(addr) {
            log_address(addr, port);
            return listener;
        }
    }
}

/// A task for each connection, on this thread's runtime.
async fn serve(listener: TcpListener, port: MetricsListener) -> io::Result<()> {
    let port = Arc::new(port);
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Before a connection is accepted: those that wait are the kernel's.
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(RETRY_PAUSE).await;
            continue;
        };
        let port = port.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, peer, &port);
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that leaves early is no error.
            let _ = timeout(LIFETIME, served).await;
            drop(place);
        });
    }
}

/// A plain text, as a person with `curl` reads it. The paths are those of Soketi's metrics server.
fn answer(
    request: &Request<Incoming>,
    peer: SocketAddr,
    port: &MetricsListener,
) -> Response<Full<Bytes>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    // Soketi's health checks come from anywhere, its metrics do not.
    let is_told = port.enabled && (!port.local || peer.ip().to_canonical().is_loopback());
    let (status, kind, text) = match request.uri().path() {
        "/" | "/ready" | "/usage" | "/metrics" if !is_read => {
            (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "There is GET alone.\n".to_owned())
        }
        "/metrics" if is_told => {
            (StatusCode::OK, MetricsPage::CONTENT_TYPE, port.scrape.page_text())
        }
        "/" => (StatusCode::OK, PLAIN, "OK".to_owned()),
        "/ready" => match port.scrape.shared.unready_reason() {
            None => (StatusCode::OK, PLAIN, "OK".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, why.label().to_owned()),
        },
        "/usage" => (StatusCode::OK, "application/json", usage()),
        _ => {
            let metrics = if is_told { ", /metrics" } else { "" };
            let text = format!("There is GET /, /ready, /usage{metrics}.\n");
            (StatusCode::NOT_FOUND, PLAIN, text)
        }
    };
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// The content type of the health checks.
const PLAIN: &str = "text/plain; charset=utf-8";

/// Memory of the process and its limit, in Soketi's form.
fn usage() -> String {
    let used = ProcessStats::read_all().map_or(0, |process| process.resident_bytes as u64);
    let total = process_limits::limit(MemoryLimit::Share(100)).max(used).max(1);
    let percent = used as f64 * 100.0 / total as f64;
    let free = total - used;
    json!({ "memory": { "free": free, "used": used, "total": total, "percent": percent } })
        .to_string()
}
