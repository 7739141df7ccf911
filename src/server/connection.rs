//! One connection from its first byte: the client's address, the protocol, its requests, and what it becomes if one of
//! them was an upgrade.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use super::accept::AcceptedConnection;
use super::proxy;
use super::requests::{answer_requests, hold_buffers};
use super::socket_set::SocketSet;
use super::tls::Certificates;
use super::tls_turns::HandshakeTurns;
use super::whole::HandedStream;
#[cfg(feature = "socketio")]
use crate::http::engine::EngineHandoff;
use crate::http::eviction::{TLS_BYTES, log_eviction};
use crate::http::fallback::LineStream;
use crate::http::timeouts::{RequestPhase, TimerGuard};
use crate::http::{AddressRole, Handoff, HandshakeDetails, Http, Upgrade, console, report_refusal};
use crate::hub::http_stream::SessionRequest;
use crate::hub::loads::{LoadGuard, WorkerLoads};
use crate::hub::stream::Stream;
#[cfg(feature = "socketio")]
use crate::hub::stream::engine::EngineRequest;
use crate::metrics::{LogNotice, Reason, Transport};
use crate::node::ClientClaim;
use crate::session::Session;
use crate::socket::{self, Socket, http_session, upgrade};

/// Connections beyond those that may be open, at which a new one is closed where none can make way for it.
/// Some are in the middle of requests, and end by themselves.
const CLOSE_BEYOND: usize = 16;

/// Why connections of an address are closed.
pub(super) const MORE_THAN_MAY_BE: &str = "this address has more than server.connections_per_ip";

/// How a worker serves what it is handed.
/// The same for all connections of a worker, and so kept once.
#[derive(Debug)]
pub(super) struct ConnectionSettings {
    /// Node, routes and timers of the worker.
    pub http: Rc<Http>,
    /// For how many connections there are beyond what may be open.
    pub loads: Arc<WorkerLoads>,
    /// The sockets that connections become.
    pub sockets: Rc<SocketSet<CountedSocket>>,
    /// None where connections are plain.
    pub certificates: Option<Arc<Certificates>>,
    /// The order in which handshakes are computed.
    pub handshakes: Rc<HandshakeTurns>,
    /// Every connection for sockets begins with a header of the PROXY protocol.
    pub proxied: bool,
    /// How long that header, and the handshake of TLS, may take.
    pub timeout: Duration,
}

/// Serves one connection to its end, in a task of its own.
pub(super) fn spawn_connection(
    terms: Rc<ConnectionSettings>,
    accepted: AcceptedConnection,
    alive: LoadGuard,
) {
    spawn_local(serve(terms, accepted, alive));
}

/// Serves one connection to the end of its requests.
/// Three parts, each of which frees what it needed when it ends: whose connection it is, its requests, and what it
/// becomes. Only a socket lives long, and it keeps nothing of the other two.
async fn serve(terms: Rc<ConnectionSettings>, accepted: AcceptedConnection, alive: LoadGuard) {
    let (http, sockets) = (terms.http.clone(), terms.sockets.clone());
    // Among those that may be evicted from the first moment on.
    let kept = http.timers.begin_connection(http.node.worker.now_seconds());
    let AcceptedConnection { peer, role, .. } = accepted;
    if terms.loads.excess() > 0 {
        let ended = http.timers.evict(&kept);
        log_eviction(&http, peer.ip(), ended.max(1), "as many connections are open as may be");
        // Those that could make way may all be on other workers: then this one does, for the next one here.
        if ended == 0 && terms.loads.excess() > CLOSE_BEYOND {
            return;
        }
    }
    // May wait for the proxy's header and for TLS, both of which a client can draw out.
    let welcome = {
        let welcome = pin!(welcome(&terms, accepted, &kept));
        kept.timer.unless_ended(welcome).await
    };
    drop(terms);
    let Some((stream, peer)) = welcome.flatten() else { return };
    let panic = PanicGuard(http.clone());
    let served = answer_requests(&http, stream, (peer.ip(), role), kept).await;
    drop(panic);
    if let Some(handed) = served {
        begin(&http, &sockets, handed, alive);
    }
}

/// The stream of requests, and whose it is, once both are known.
/// `None` if the connection is of no use: a wrong header, no TLS, or too slow.
async fn welcome(
    terms: &ConnectionSettings,
    accepted: AcceptedConnection,
    kept: &TimerGuard,
) -> Option<(Stream, SocketAddr)> {
    let AcceptedConnection { mut peer, role, .. } = accepted;
    let http = &terms.http;
    let mut stream = accepted.into_stream().ok()?;
    // The proxy stands before the sockets.
    // The API's own address is for backends, which come directly.
    if terms.proxied && role != AddressRole::Api && !announced(terms, &mut stream, &mut peer).await
    {
        return None;
    }
    // What comes by a trusted proxy, and by a Unix socket, is many clients'; where no sockets are, are no strangers.
    let is_many = matches!(stream, Stream::Unix(_))
        || role == AddressRole::Api
        || http.trusted_proxies.iter().any(|network| network.contains(peer.ip()));
    if !is_many && kept.visit(&http.node.shared, peer.ip()) {
        log_eviction(http, peer.ip(), 1, MORE_THAN_MAY_BE);
    }
    let stream = secure(terms, stream, peer).await?;
    if stream.is_tls() {
        hold_buffers(http, kept, (peer.ip(), TLS_BYTES));
    }
    // Its time for a first request begins now, not with the handshake of TLS.
    kept.timer.enter_phase(RequestPhase::New, http.node.worker.now_seconds());
    Some((stream, peer))
}

/// Whether a trusted proxy says whose connection it is, and so whom to take for the peer. Anybody
/// may connect, but only a trusted proxy may say for whom. Otherwise a client could claim any
/// address, and so escape its limits. The header is read by `proxy.rs`, in both versions of the
/// PROXY protocol.
async fn announced(terms: &ConnectionSettings, stream: &mut Stream, peer: &mut SocketAddr) -> bool {
    let trusted = &terms.http.trusted_proxies;
    if !trusted.iter().any(|network| network.contains(peer.ip())) {
        log_proxy_error(terms, *peer, "not one of the trusted proxies");
        return false;
    }
    // On the heap, so that connections without it have no room for it.
    match Box::pin(timeout(terms.timeout, proxy::read(stream))).await {
        Ok(Ok(client)) => {
            client.into_iter().for_each(|client| peer.set_ip(client));
            true
        }
        Ok(Err(error)) => {
            log_proxy_error(terms, *peer, &error.to_string());
            false
        }
        Err(_) => {
            debug!(%peer, "too slow with the header of the PROXY protocol");
            false
        }
    }
}

/// The line of a connection that is not what proxies make of one, once a minute: a port that
/// strangers scan would fill the log.
fn log_proxy_error(terms: &ConnectionSettings, peer: SocketAddr, problem: &str) {
    match terms.http.node.shared.metrics.notices.take_due(LogNotice::Proxy) {
        Some(others) => warn!(%peer, others, "server.proxy_protocol: {problem}"),
        None => debug!(%peer, "server.proxy_protocol: {problem}"),
    }
}

/// The stream as it is, or with TLS on it where that is spoken. `None` where the handshake failed
/// or took longer than `server.handshake_timeout`.
async fn secure(terms: &ConnectionSettings, stream: Stream, peer: SocketAddr) -> Option<Stream> {
    let Some(certificates) = &terms.certificates else { return Some(stream) };
    // A Unix socket's proxy has ended TLS already.
    let Stream::Tcp(stream) = stream else { return Some(stream) };
    // On the heap, so that plain connections have no room for it.
    let turns = (&terms.handshakes, peer.ip());
    let shaking = Box::pin(timeout(terms.timeout, certificates.shake_hands(stream, turns)));
    match shaking.await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            // Who goes without a word is nobody's concern.
            let is_told = matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::Other);
            let notices = &terms.http.node.shared.metrics.notices;
            match is_told.then(|| notices.take_due(LogNotice::Tls)).flatten() {
                Some(others) => warn!(%peer, others, "no TLS: {error}"),
                None => debug!(%peer, "no TLS: {error}"),
            }
            None
        }
        Err(_) => {
            debug!(%peer, "too slow with the TLS handshake");
            None
        }
    }
}

/// A socket, counted for as long as it is there.
pub(super) struct CountedSocket {
    socket: Socket,
    /// Dropped last.
    _alive: LoadGuard,
}

impl Future for CountedSocket {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.socket).poll(cx)
    }
}

/// Counts a panic that unwinds through the requests of a connection; the runtime contains it.
/// Without it a panic would show in no metric: the runtime swallows it with the task.
struct PanicGuard(Rc<Http>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.node.counts().panics.add(1);
            error!("a request's task panicked");
        }
    }
}

/// Begins what the connection has become.
/// From here on the task of the requests is over; each kind of life has a task of its own, if any, but sockets have
/// one together.
fn begin(
    http: &Rc<Http>,
    sockets: &Rc<SocketSet<CountedSocket>>,
    handed: HandedStream,
    alive: LoadGuard,
) {
    let HandedStream { stream, handoff, early } = handed;
    match handoff {
        Handoff::Socket(upgrade) => {
            // Only clients that may come back have a connection elsewhere to be ended.
            let comes_back = upgrade.admission.as_ref().ok().cloned().zip(upgrade.resumes.clone());
            match comes_back.zip(http.node.shared.scope.others().cloned()) {
                Some(((app, token), others)) => {
                    let (http, sockets) = (http.clone(), sockets.clone());
                    spawn_local(async move {
                        // Its last connection may be another node's.
                        let claim = http.node.claim(&others, &app, &token).await;
                        let begun = (&early, alive, Some(claim));
                        let socket = begin_socket(&http, stream, upgrade, begun);
                        socket.into_iter().for_each(|socket| sockets.add_socket(socket));
                    });
                }
                None => {
                    let socket = begin_socket(http, stream, upgrade, (&early, alive, None));
                    socket.into_iter().for_each(|socket| sockets.add_socket(socket));
                }
            }
        }
        Handoff::Lines(LineStream { session: Ok(place), framing, before }) => {
            // The session may be another worker's, and its runtime another thread's.
            match stream.deregister() {
                Ok(stream) => {
                    let arrival = SessionRequest::Streaming { stream, framing, before, alive };
                    http.node.hub().bring_request(place, arrival);
                }
                Err(error) => debug!(%error, "a streaming request was lost"),
            }
        }
        #[cfg(feature = "socketio")]
        Handoff::Engine(EngineHandoff { session, answer }) => match stream.deregister() {
            Ok(stream) => {
                let arrival = EngineRequest::Socket { stream, answer, early, alive };
                http.node.hub().bring_engine_request(session, arrival);
            }
            Err(error) => debug!(%error, "the WebSocket of a session was lost"),
        },
        Handoff::Feed(feed) => {
            // Not among those that the drain waits for: it shows how far that is.
            drop(alive);
            spawn_local(console::serve(http.clone(), stream, *feed));
        }
        Handoff::Lines(LineStream { session: Err(error), framing, before }) => {
            spawn_local(async move {
                http_session::refuse(stream, framing, before, error).await;
                drop(alive);
            });
        }
    }
}

/// Begins the socket's life.
/// The last moment at which it can be refused is when there is a place for it or not: everything else was
/// decided with its request.
fn begin_socket(
    http: &Rc<Http>,
    stream: Stream,
    upgrade: Upgrade,
    (early, alive, claim): (&Bytes, LoadGuard, Option<ClientClaim>),
) -> Option<CountedSocket> {
    let answer = Bytes::from(upgrade.answer);
    let (mut asked, mut reason) = (upgrade.asked, None);
    let admitted = match upgrade.admission {
        Ok(app) => {
            if let Some(presented) = &upgrade.resumes {
                // Before limits count the new connection: the old one's place is the client's.
                http.node.take_over(&http.node.hub().directory(&app.id), &presented.token);
            }
            let (node, address) = (&http.node, upgrade.address);
            let admitted =
                node.connect_client(&app, stream, address, answer.clone(), claim.as_ref());
            if admitted.is_err() {
                let (key, app, origin) = (app.key.to_string(), app.id.to_string(), String::new());
                asked = Some(Box::new(HandshakeDetails { key, origin, app }));
                reason = Some(Reason::Capacity);
            }
            admitted
        }
        Err(error) => {
            // Refused with its request; counted only now that the client is told.
            http.node.counts().ends.count(upgrade::reason(&error) as usize);
            Err((error, stream))
        }
    };
    match admitted {
        Ok(connection) => {
            connection.life.answers_pings.set(upgrade.answers_pings);
            if let Some(presented) = &upgrade.resumes {
                http.node.go_on(&connection, presented, claim);
            }
            connection.agree_on(upgrade.compression);
            // The console is told once all is known of it: who it is, and what was agreed on.
            http.node.emit_connected(&connection, Transport::WebSocket.label());
            let socket =
                Socket::new(Session::new(http.node.clone(), connection), early, upgrade.pause);
            Some(CountedSocket { socket, _alive: alive })
        }
        Err((error, stream)) => {
            if let Some(asked) = asked {
                let shared = &http.node.shared;
                report_refusal(shared, upgrade.address, (&error, reason), &asked);
            }
            spawn_local(async move {
                socket::refuse(stream, answer, error, upgrade.pause).await;
                // Counted as open until the client has been told.
                drop(alive);
            });
            None
        }
    }
}
