//! The listener for Prometheus alone: a thread and a runtime of its own, so that whoever scrapes, however
//! slowly or often, takes no time from the workers.

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
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{Phase, listener};
use crate::http::scrape::Scrape;
use crate::metrics::Page;

/// Connections at a time; the others wait.
const MOST: usize = 32;

/// How long a connection may last: longer than anybody pauses between scrapes.
const LIFETIME: Duration = Duration::from_secs(300);

/// How long to wait when a connection cannot be taken in.
const PAUSE: Duration = Duration::from_millis(100);

/// How long to wait before an address in use is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves `/metrics` on `addr` until the server is gone or hands over. An address in use is waited for: it
/// may be the predecessor's, who is about to leave it.
pub(super) fn start(
    addr: SocketAddr,
    scrape: Arc<Scrape>,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = match listener::bind(addr) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            warn!(%addr, "metrics wait for their address, which is in use");
            None
        }
        Err(error) => return Err(error),
        Ok(listener) => {
            info!(%addr, "metrics at /metrics");
            Some(listener)
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                served = async { serve(free(listener, addr).await, scrape).await } => {
                    if let Err(error) = served {
                        error!(%error, "metrics are not served");
                    }
                }
                // The sender goes with the server.
                _ = phase.wait_for(|phase| *phase == Phase::HandingOver) => {}
            }
        });
    })?;
    Ok(())
}

/// The listener, once its address can be had.
async fn free(listener: Option<TcpListener>, addr: SocketAddr) -> TcpListener {
    if let Some(listener) = listener {
        return listener;
    }
    loop {
        sleep(AGAIN).await;
        if let Ok(listener) = listener::bind(addr) {
            info!(%addr, "metrics at /metrics");
            return listener;
        }
    }
}

async fn serve(listener: TcpListener, scrape: Arc<Scrape>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let scrape = scrape.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &scrape);
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Whether the client stays to the end is its own affair.
            let _ = timeout(LIFETIME, served).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, scrape: &Scrape) -> Response<Full<Bytes>> {
    let status = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => StatusCode::OK,
        (_, "/metrics") => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::NOT_FOUND,
    };
    let text = match status {
        StatusCode::OK => scrape.text(),
        _ => "There is GET /metrics.\n".to_owned(),
    };
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(Page::CONTENT_TYPE);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
