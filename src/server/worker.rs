//! One worker's thread: its runtime, the tasks that every worker runs, and how they end.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local, unconstrained, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{error, info, warn};

use super::accept::Acceptor;
use super::connection::{ConnectionSettings, CountedSocket, MORE_THAN_MAY_BE, spawn_connection};
use super::socket_set::{SocketSet, SocketTurns};
use super::tls_turns::HandshakeTurns;
use super::{ServerPhase, WorkerContext, process_limits};
use crate::http::Http;
use crate::http::eviction::log_eviction;
use crate::hub::connection::Connection;
use crate::hub::line_cache::forget_shared_lines;
use crate::hub::loads::{LoadGuard, WorkerLoads};
use crate::hub::ring::{Ring, give_back_memory};
#[cfg(feature = "socketio")]
use crate::hub::stream::engine::forget_translations;
use crate::hub::worker::Worker;
use crate::node::{LateRequest, Node, ServerState};
use crate::protocol::error::close;
#[cfg(feature = "socketio")]
use crate::socket::engine_session;
use crate::socket::{self, http_session};

/// Interval between closes while draining: small enough to spread clients over the grace, large enough to keep timers
/// cheap.
const STEP: Duration = Duration::from_millis(25);

/// Up to this many connections are all checked each second; of more, a half. Checking delays deliveries by a longer
/// turn once a second.
const CHECKED_EACH_SECOND: usize = 2000;

/// Connections that are updated after a change of the apps before others get a turn.
const UPDATED_PER_TURN: usize = 256;

/// Bytes from which a connection may be closed when memory is used up: many times what most connections hold.
const HEAVY_BYTES: usize = 64 << 10;

/// Seconds for which the longest turn is remembered, at least.
const PEAK_SECONDS: u32 = 15;

/// Runs a worker until the server has ended; returns at once if no runtime can be created.
pub(super) fn run(beginning: WorkerContext, acceptor: Option<Acceptor>) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "a worker cannot start");
            return;
        }
    };
    let local = LocalSet::new();
    // Everything of a worker is on this thread: `Rc` and `Cell` instead of locks.
    runtime.block_on(local.run_until(work(beginning, acceptor)));
}

/// Runs a worker; the first one also runs the acceptor.
async fn work(beginning: WorkerContext, acceptor: Option<Acceptor>) {
    let WorkerContext {
        index,
        shared,
        config,
        page,
        console,
        lists,
        scrape,
        certificates,
        mut accepted,
        apps,
        mut phase,
        late,
        loads,
        beats,
    } = beginning;
    // The runtime's own count of busy time feeds `worker_busy_seconds_total`.
    shared.metrics.watch_runtime(index, Handle::current().metrics());
    let worker = new_worker(&shared, index, config.io_uring);
    let node = Node::new(shared, worker.clone());
    let http = Rc::new(Http {
        node: node.clone(),
        prefix: config.path.clone(),
        fallback: config.http_fallback,
        cors_origins: config.cors_origins.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        timers: Rc::default(),
        lists,
        scrape,
        try_out: page,
        console,
    });
    spawn_local(inherit(node.clone(), late));
    spawn_local(keep_apps(node.clone(), apps));
    spawn_local(tick_loop(http.clone(), config.handshake_timeout, beats));
    begin_accepting(acceptor);
    let terms = Rc::new(ConnectionSettings {
        http: http.clone(),
        sockets: share_out(&worker),
        loads: loads.clone(),
        certificates,
        handshakes: share_handshakes(),
        proxied: config.proxy_protocol,
        timeout: config.handshake_timeout,
    });
    let taking_in = async {
        while let Some(new) = accepted.recv().await {
            let alive = LoadGuard::new(loads.clone(), usize::from(index));
            spawn_connection(terms.clone(), new, alive);
        }
    };
    let ending = async {
        let changed = phase.wait_for(|phase| phase.is_ending()).await.map(|phase| *phase);
        if let Ok(phase) = changed {
            end(&http, &loads, phase, config.shutdown_grace).await;
        }
    };
    tokio::pin!(taking_in, ending);
    let mut open = true;
    std::future::poll_fn(|cx| {
        // The acceptor may be gone before this worker has ended.
        // Polled first: a connection that was handed over just before the end is still taken in.
        open = open && taking_in.as_mut().poll(cx).is_pending();
        ending.as_mut().poll(cx)
    })
    .await;
}

/// On the first worker, which has the acceptor.
fn begin_accepting(acceptor: Option<Acceptor>) {
    if let Some(acceptor) = acceptor {
        spawn_local(async move {
            if let Err(error) = acceptor.run().await {
                error!(%error, "new connections are no longer accepted");
            }
        });
    }
}

/// Handles requests that the previous process forwards, on the worker that was given them.
async fn inherit(node: Rc<Node>, requests: Option<UnboundedReceiver<LateRequest>>) {
    if let Some(requests) = requests {
        node.keep_inheriting(requests).await;
    }
}

/// A worker, with a ring if that is configured and available. The first worker logs which.
fn new_worker(shared: &ServerState, index: u16, io_uring: bool) -> Rc<Worker> {
    let worker = Worker::new(shared.hub.clone(), index);
    if !io_uring {
        return worker;
    }
    match Ring::new() {
        Ok(ring) => {
            worker.use_ring(ring);
            if index == 0 {
                info!("io_uring: many sockets are written to in one system call");
            }
        }
        Err(error) if index == 0 => {
            info!(%error, "no io_uring: each socket is written to by itself");
        }
        Err(_) => {}
    }
    worker
}

/// Starts the worker's four tasks, whatever the number of connections: delivering, leaving, reading in turn, and the
/// sockets.
fn share_out(worker: &Rc<Worker>) -> Rc<SocketSet<CountedSocket>> {
    spawn_local(deliver(worker.clone()));
    let (leaving, reading) = (worker.clone(), worker.clone());
    spawn_local(async move {
        tokio::join!(leaving.leaving.run_throttle(), leaving.keep_acknowledged())
    });
    spawn_local(async move { reading.turnstile.run_turnstile(&reading.inbox().turns).await });
    let sockets = Rc::new(SocketSet::default());
    // The runtime would end the turn of so large a task in the middle of a socket's.
    spawn_local(unconstrained(SocketTurns::new(sockets.clone())));
    sockets
}

/// The turns of TLS handshakes, begun in a task of their own.
fn share_handshakes() -> Rc<HandshakeTurns> {
    let turns = Rc::new(HandshakeTurns::default());
    let keeper = turns.clone();
    spawn_local(async move { keeper.run_turns().await });
    turns
}

/// Delivers for ever. A panic would stop the whole worker, so the task is restarted.
async fn deliver(worker: Rc<Worker>) {
    loop {
        let worker = worker.clone();
        match spawn_local(async move { worker.deliver_forever().await }).await {
            Ok(()) => return,
            // The frames of that turn are lost, the connections are not.
            Err(error) if error.is_panic() => error!("delivering panicked; it goes on"),
            Err(_) => return,
        }
    }
}

/// Updates all connections whenever the apps were replaced, some at a time.
async fn keep_apps(node: Rc<Node>, mut replaced: watch::Receiver<u64>) {
    while replaced.changed().await.is_ok() {
        let apps = node.shared.apps.load_full();
        let mut place = 0;
        // A slice at a time, since deliveries wait while connections are walked.
        loop {
            let (some, next) = node.worker.some_connections(place, UPDATED_PER_TURN);
            for connection in some {
                node.renew_app(&connection, &apps);
            }
            if next == 0 {
                break;
            }
            place = next;
            yield_now().await;
        }
    }
}

/// Advances the worker's clock once a second and checks some of its connections each time, all of them within two
/// seconds however many there are: silent ones are pinged within a minute.
async fn tick_loop(http: Rc<Http>, timeout: Duration, beats: Arc<[AtomicU64]>) {
    let node = &http.node;
    let timeout = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
    let begun = Instant::now();
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut place = 0;
    let (mut waiting, mut visitors) = (0, 0);
    loop {
        ticks.tick().await;
        // Seconds since the worker began, from 1 on: 0 means never in the fields that hold one.
        let now = begun.elapsed().as_secs() as u32 + 1;
        node.worker.tick_clock(now);
        // Systemd's watchdog looks at these.
        if let Some(beat) = beats.get(usize::from(node.worker.index())) {
            beat.fetch_add(1, Ordering::Relaxed);
        }
        http.timers.check_timeouts(now, timeout);
        for (address, ended) in http.timers.keep_to_limits(&node.shared.addresses, now) {
            log_eviction(&http, address, ended, MORE_THAN_MAY_BE);
        }
        let before = std::mem::replace(&mut visitors, http.timers.take_most_held());
        node.shared.capacity.note_visitors(before, visitors);
        let places = node.worker.places();
        let most = if places <= CHECKED_EACH_SECOND { places } else { places / 2 + 1 };
        let (some, next) = node.worker.some_connections(place, most);
        place = next;
        for connection in some {
            waiting += connection.queued_bytes();
            // HTTP sessions have timeouts of their own, checked below.
            if !connection.is_session() && socket::check_liveness(&connection, now) {
                node.worker.note_ping(&connection, std::time::Instant::now());
            }
        }
        forget_shared_lines();
        #[cfg(feature = "socketio")]
        forget_translations();
        for session in node.worker.http_sessions() {
            http_session::check_liveness(&session, now);
            #[cfg(feature = "socketio")]
            engine_session::check_liveness(&session, now);
        }
        http_session::keep_room(node);
        make_room(node);
        let turns = &node.worker.inbox().turns;
        // One round over all connections is complete.
        if place == 0 {
            turns.waiting.set(waiting as u64);
            waiting = 0;
        }
        if now.is_multiple_of(PEAK_SECONDS) {
            turns.longest.begin_stretch();
        }
        // Work for the whole node, done once.
        if node.worker.index() == 0 {
            tick_node(node);
        }
    }
}

/// The work for the whole node once a second.
fn tick_node(node: &Node) {
    let capacity = &node.shared.capacity;
    if let Some(bytes) = process_limits::held_bytes(capacity.max_memory()) {
        capacity.note_memory(bytes, node.hub().held.total());
    }
    if capacity.has_much_freed(node.hub().held.total()) {
        // On a thread of its own, for it takes longer the more there is.
        let trim = std::thread::Builder::new().name("trim".to_owned());
        let _ = trim.spawn(give_back_memory);
    }
    node.announce_due_counts();
    node.notify_due_watchers();
    for (others, what) in node.shared.metrics.notices.take_overdue() {
        info!(others, "not logged one by one in the last minute: {what}");
    }
    node.expire_clients();
    // Expired cached events and spare memory would otherwise stay until they are next used.
    for (_, directory) in node.hub().directories() {
        directory.cache.drop_expired();
        directory.shrink();
    }
}

/// Closes the worker's connections that hold most, while memory is used up. Each worker closes its share, since only it
/// knows what its connections hold.
fn make_room(node: &Node) {
    let workers = node.hub().worker_count() as u64;
    let mut excess = node.shared.capacity.excess_bytes().div_ceil(workers) as usize;
    if excess == 0 {
        return;
    }
    let held = |one: &Rc<Connection>| one.held_bytes();
    let mut all = node.worker.some_connections(0, node.worker.places()).0;
    all.retain(|one| !one.is_closing() && held(one) >= HEAVY_BYTES);
    all.sort_by_cached_key(|one| std::cmp::Reverse(held(one)));
    for connection in all {
        let (app, socket, held) = (&connection.app().id.clone(), connection.id, held(&connection));
        warn!(%app, %socket, address = %connection.address, held, "a connection was closed: limits.memory is reached");
        connection.close_freeing(&close::OVER_CAPACITY);
        excess = excess.saturating_sub(held);
        if excess == 0 {
            break;
        }
    }
}

/// Closes all connections gradually, over three quarters of the grace, so that their clients do not reconnect all at
/// once and the last ones still have time to leave. Runs until it is aborted.
async fn close_all(node: Rc<Node>, grace: Duration) {
    let begun = Instant::now();
    let (all, _) = node.worker.some_connections(0, node.worker.places());
    let steps = (grace * 3 / 4).as_millis() / STEP.as_millis();
    // Rounded up, so that the last step closes the last one.
    let each = all.len().div_ceil(usize::try_from(steps).unwrap_or(1).max(1)).max(1);
    for (step, some) in all.chunks(each).enumerate() {
        sleep_until(begun + STEP * step as u32).await;
        close(some);
    }
    // Those that were let in meanwhile, while another process takes over.
    loop {
        sleep(STEP).await;
        close(&node.worker.some_connections(0, node.worker.places()).0);
    }
}

/// Ends the worker's connections, and waits until none is left or the grace is over.
async fn end(http: &Http, loads: &WorkerLoads, phase: ServerPhase, grace: Duration) {
    let node = &http.node;
    let end = Instant::now() + grace;
    if phase == ServerPhase::HandingOver {
        node.freeze_clients();
        // Their clients' next requests come to the other process, which does not know them.
        // Over HTTP a session is found by its node; the new process answers 404, and the client begins anew.
        close(&node.worker.http_sessions());
    }
    let closing = spawn_local(close_all(node.clone(), grace));
    let is_busy = || is_busy(loads, phase) || !node.hub().http_sessions.is_empty();
    while is_busy() && Instant::now() < end {
        // A connection between two requests is closed when its answer is sent, not in the middle of one.
        // Each time, for some may have been on their way.
        http.timers.end_idle(node.worker.now_seconds());
        sleep(STEP).await;
    }
    // Closing what is left ends with its task after the grace period.
    closing.abort();
}

/// With 4200: clients reconnect at once, to another node or to the next process.
fn close(connections: &[Rc<Connection>]) {
    connections.iter().for_each(|connection| connection.close_with(&close::DRAINING));
}

/// Whether there are connections, or one may be on its way from the acceptor.
fn is_busy(loads: &WorkerLoads, phase: ServerPhase) -> bool {
    let is_complete = phase == ServerPhase::Draining || loads.is_complete();
    !is_complete || loads.has_connections()
}
