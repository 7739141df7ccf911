//! Starting and stopping: opens the listeners, starts one thread per worker, and ends all of them in order. `worker.rs`
//! has a thread's work, `accept.rs` distributes sockets.

mod accept;
mod announcement;
mod check;
mod cluster;
mod connection;
mod date_text;
mod files;
mod http_io;
mod listener;
mod listeners;
mod lookup;
mod metrics;
mod process_limits;
mod proxy;
pub mod reload;
mod requests;
pub mod sizing;
mod socket_set;
mod succession;
mod tls;
mod tls_turns;
mod unreadable;
mod whole;
mod worker;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::app::Apps;
use crate::config::{self, Config, ConsoleAccess};
use crate::console::Kind;
use crate::http::channel_list::ChannelLists;
use crate::http::console::ConsoleGate;
use crate::http::scrape::{LastPage, Scrape};
use crate::hub::Hub;
use crate::hub::addresses::ConnectionsPerAddress;
use crate::hub::capacity::Capacity;
use crate::hub::loads::WorkerLoads;
use crate::lookup::Lookup;
use crate::lookup::known_apps::AppRegistry;
use crate::metrics::Metrics;
use crate::node::{self, Clustered, LateRequest, ServerState, Succession};
use crate::webhook::{self, Webhooks};
use accept::AcceptedConnection;
pub use check::{StartError, UnusableSetting, check, examine};
pub(crate) use cluster::redis_tls;
pub use listener::ListenAddress;
use listeners::ListenerSet;
pub use listeners::PassedListeners;
use tls::Certificates;

/// How long webhooks have at least once all connections are gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server that runs.
#[derive(Debug)]
pub struct ServerHandle {
    /// Kept for a process that takes over, and for the files of Unix sockets.
    listeners: ListenerSet,
    /// State that all workers share.
    shared: Arc<ServerState>,
    /// The settings of the listeners.
    config: Arc<config::ServerConfig>,
    certificates: Option<Arc<Certificates>>,
    /// Knows the apps of a table beside those of the settings.
    keeper: Option<Arc<AppRegistry>>,
    /// Counts how often the apps were replaced.
    apps: watch::Sender<u64>,
    /// Changes of it start and end the threads' work.
    phase: watch::Sender<ServerPhase>,
    /// Counts each worker's turns of the clock.
    beats: Arc<[AtomicU64]>,
    /// The workers.
    threads: Vec<JoinHandle<()>>,
    /// When it began to stop.
    drained: OnceLock<Instant>,
    /// Ends once it has carried out what the workers left it.
    link: Option<JoinHandle<()>>,
    /// To the first worker: what the process before is still asked for.
    late_requests: mpsc::UnboundedSender<LateRequest>,
}

/// The phase of all threads. It starts as one of the first two and ends as one of the last two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ServerPhase {
    /// Nothing is accepted, for the process before this one has yet to say what it knows.
    Inheriting,
    /// Everything is served.
    Serving,
    /// New sockets are refused, established ones closed one after the other, requests answered.
    Draining,
    /// No new connections are accepted, since another process does that; those that are there are ended
    /// like while draining.
    HandingOver,
}

impl ServerPhase {
    /// The phase that a server begins with.
    fn first(passed: &PassedListeners) -> Self {
        if passed.clients_follow { Self::Inheriting } else { Self::Serving }
    }

    /// Whether workers end.
    fn is_ending(self) -> bool {
        matches!(self, Self::Draining | Self::HandingOver)
    }
}

/// The state that each thread starts with.
#[derive(Debug)]
struct WorkerContext {
    /// Which worker it is, from 0.
    index: u16,
    /// State that all workers share.
    shared: Arc<ServerState>,
    /// The settings of the listeners.
    config: Arc<config::ServerConfig>,
    /// The page to try the server on, if it is shown.
    page: Option<Bytes>,
    console: Arc<ConsoleGate>,
    /// Builds long lists on a thread of its own.
    lists: ChannelLists,
    /// The certificates, if TLS is on.
    certificates: Option<Arc<Certificates>>,
    /// For `/metrics`, if that is served with everything else.
    scrape: Option<Arc<Scrape>>,
    /// Connections that the acceptor hands over.
    accepted: mpsc::UnboundedReceiver<AcceptedConnection>,
    /// Changes with each reload of the apps.
    apps: watch::Receiver<u64>,
    phase: watch::Receiver<ServerPhase>,
    /// Requests from the previous process; only the first worker has them.
    late: Option<mpsc::UnboundedReceiver<LateRequest>>,
    /// Counts of connections on all workers.
    loads: Arc<WorkerLoads>,
    /// Each worker's beat, by which a stuck one is noticed.
    beats: Arc<[AtomicU64]>,
}

/// Binds and starts. The addresses are ready to be connected to when this returns.
///
/// # Errors
/// A setting that cannot be used on this machine, or an address that cannot be listened on. Then
/// nothing is left running.
pub fn start(config: Config) -> Result<ServerHandle, StartError> {
    start_on(config, PassedListeners::default())
}

/// The same on listeners that are there already.
/// In three steps: what can fail is read and bound first, then what threads share is made, then the
/// threads are started. Nobody is accepted before the last.
///
/// # Errors
/// As with [`start`].
pub fn start_on(config: Config, passed: PassedListeners) -> Result<ServerHandle, StartError> {
    let certificates = certificates(&config.server)?;
    let begins = ServerPhase::first(&passed);
    let (listeners, open) = ListenerSet::open(&config.server, passed)?;
    let (workers, node) = (config.server.workers.max(1), node_number()?);
    let files = files::share_out(workers, config.server.max_connections);
    let apps = Arc::new(ArcSwap::from_pointee(config.apps.clone()));
    let hub = Hub::new(node, workers);
    // Made before the threads, started after what they share: events may come at once.
    let linked = cluster::prepare(&config.cluster, node, &apps, &hub)?;
    let others = linked.as_ref().map(|linked| linked.others().clone());
    let (door, asked) = lookup::prepare(config.sql.as_ref()).unzip();
    let shared = shared_state(&config, (apps, hub, files.sockets), (others, door))?;
    let link = linked.map(|linked| linked.start(shared.clone())).transpose()?;
    let announcement = announcement::Announcement::new(&config);
    let shows_page = config.server.shows_page_at(listeners.sockets.address.tcp());
    let page = shows_page.then(|| page(&config)).flatten();
    let (gate, server) = (gate(&config, &listeners), Arc::new(config.server));
    let lists = ChannelLists::start(shared.clone())?;
    let loads = Arc::new(WorkerLoads::new(workers, files.connections));
    let beats: Arc<[AtomicU64]> = (0..workers).map(|_| AtomicU64::default()).collect();
    let (phase, apps) = (watch::Sender::new(begins), watch::Sender::new(0));
    let keeper = look_up(config.sql.as_ref(), asked, &shared, &apps)?;
    let scrape =
        metrics_of(&config.metrics, &shared, (&listeners, certificates.as_deref()), &phase);
    let (inboxes, accepted): (Vec<_>, Vec<_>) =
        (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    let mut acceptor =
        Some(accept::Acceptor { open, inboxes, loads: loads.clone(), phase: phase.subscribe() });
    let (late_requests, late) = mpsc::unbounded_channel();
    let mut late = Some(late);
    let mut threads = Vec::with_capacity(workers);
    for (index, accepted) in accepted.into_iter().enumerate() {
        let beginning = WorkerContext {
            index: index as u16,
            shared: shared.clone(),
            config: server.clone(),
            page: page.clone(),
            console: gate.clone(),
            lists: lists.clone(),
            certificates: certificates.clone(),
            scrape: scrape.clone(),
            accepted,
            apps: apps.subscribe(),
            phase: phase.subscribe(),
            late: late.take(),
            loads: loads.clone(),
            beats: beats.clone(),
        };
        threads.push(start_worker(beginning, acceptor.take())?);
    }
    // After the last thread was started, so that the line is true.
    announcement.log_start(&listeners, &shared, certificates.as_deref());
    Ok(ServerHandle {
        listeners,
        shared,
        config: server,
        certificates,
        keeper,
        apps,
        phase,
        beats,
        threads,
        link,
        drained: OnceLock::new(),
        late_requests,
    })
}

/// Builds the state that workers share.
fn shared_state(
    config: &Config,
    (apps, hub, sockets): (Arc<ArcSwap<Apps>>, Arc<Hub>, u64),
    (others, lookup): (Option<Arc<Clustered>>, Option<Lookup>),
) -> io::Result<Arc<ServerState>> {
    Ok(Arc::new(ServerState {
        apps,
        metrics: Metrics::new(hub.worker_count()),
        draining: AtomicBool::new(false),
        retiring: AtomicBool::new(false),
        capacity: Capacity::new(sockets, process_limits::limit(config.limits.memory)),
        addresses: addresses(&config.server),
        webhooks: webhooks_of(config, others.as_deref(), &hub)?,
        hub,
        scope: others.into(),
        lookup,
        succession: Succession::default(),
    }))
}

/// The first worker has the acceptor, too.
fn start_worker(
    context: WorkerContext,
    acceptor: Option<accept::Acceptor>,
) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(format!("worker-{}", context.index));
    thread.spawn(move || worker::run(context, acceptor))
}

/// Starts looking up apps, if the settings name a table of them.
fn look_up(
    config: Option<&config::SqlConfig>,
    asked: Option<lookup::LookupQueue>,
    shared: &Arc<ServerState>,
    renewed: &watch::Sender<u64>,
) -> Result<Option<Arc<AppRegistry>>, StartError> {
    let (Some(config), Some(asked)) = (config, asked) else { return Ok(None) };
    let keeper = Arc::new(lookup::keeper(config, shared, renewed));
    lookup::start(config, keeper.clone(), asked)?;
    Ok(Some(keeper))
}

/// The number that the ids of this node's sockets begin with. Never 0, so that an id does not look like one
/// that was left out.
fn node_number() -> io::Result<u64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from(u32::from_le_bytes(bytes)).max(1))
}

/// None where the server speaks plain HTTP.
fn certificates(
    config: &config::ServerConfig,
) -> Result<Option<Arc<Certificates>>, UnusableSetting> {
    let read = config.tls.as_ref().map(Certificates::read).transpose();
    read.map(|read| read.map(Arc::new))
}

/// In a cluster what was sent is acknowledged in the cluster's log, so that no other node sends it.
fn webhooks_of(config: &Config, others: Option<&Clustered>, hub: &Hub) -> io::Result<Webhooks> {
    let config::WebhooksConfig { allow_private, spool } = config.webhooks.clone();
    let done = others.map(|others| {
        Box::new(node::acknowledger(others.link().clone())) as webhook::EntryAcknowledger
    });
    let (console, held) = (hub.console.clone(), hub.held.clone());
    let options = webhook::WebhookOptions { allow_private, spool, console, held };
    Webhooks::start(options, &config.apps, done)
}

/// Serves metrics on a listener of their own, or gives back what the workers are to serve. That metrics
/// cannot be had is no reason not to serve clients.
fn metrics_of(
    metrics: &config::MetricsConfig,
    shared: &Arc<ServerState>,
    (listeners, certificates): (&ListenerSet, Option<&Certificates>),
    phase: &watch::Sender<ServerPhase>,
) -> Option<Arc<Scrape>> {
    let port = listeners.sockets.address.tcp().map_or(0, |addr| addr.port());
    let (shared, prefix) = (shared.clone(), metrics.prefix.clone());
    let certificate = certificates.map(|certificates| certificates.end().clone());
    let scrape = Scrape { shared, prefix, port, certificate, last: LastPage::default() };
    let scrape = Arc::new(scrape);
    if metrics.port == 0 || !(metrics.enabled || metrics.probes) {
        return metrics.enabled.then_some(scrape);
    }
    let scrape =
        metrics::MetricsListener { scrape, enabled: metrics.enabled, local: metrics.local };
    let addr = resolve(&metrics.host, metrics.port);
    let started = addr.and_then(|addr| metrics::start(addr, scrape, phase.subscribe()));
    if let Err(error) = started {
        warn!(%error, host = %metrics.host, port = metrics.port, "metrics are not served");
    }
    None
}

/// The first address that the name has; listening is at one.
fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses = (host, port).to_socket_addrs()?;
    addresses.next().ok_or_else(|| io::Error::other(format!("{host} has no address")))
}

/// Both limits are off at 0, and then nothing is counted.
fn addresses(config: &config::ServerConfig) -> ConnectionsPerAddress {
    ConnectionsPerAddress::new(config.connections_per_ip, config.handshakes_per_ip)
}

/// Access to the debug console.
fn gate(config: &Config, listeners: &ListenerSet) -> Arc<ConsoleGate> {
    let made_app = config.made_app.as_ref().map(|made| made.id.clone());
    let sockets = listeners.api.is_some().then(|| listeners.sockets.address.tcp()).flatten();
    let sockets_port = sockets.map(|address| address.port());
    Arc::new(ConsoleGate::new(&config.console, made_app, sockets_port))
}

/// The page to try the server on, for the first of the apps.
fn page(config: &Config) -> Option<Bytes> {
    let key = match &config.made_app {
        Some(made) => made.key.clone(),
        None => config.apps.iter().min_by(|a, b| a.id.cmp(&b.id))?.key.to_string(),
    };
    let console = config.console.access != ConsoleAccess::Off && config.server.api.is_none();
    let settings = json!({ "key": key, "path": config.server.path, "console": console });
    let settings = settings.to_string();
    // Inside a script element only `<` could end what is meant as data.
    let settings = settings.replace('<', "\\u003c");
    let page = include_str!("../http/tryout.html").replace("{{settings}}", &settings);
    Some(page.into())
}

impl ServerHandle {
    /// Where it listens, with the port that was found if any was to do.
    pub fn address(&self) -> &ListenAddress {
        &self.listeners.sockets.address
    }

    /// Where the HTTP API is, if not with the sockets.
    pub fn api_address(&self) -> Option<&ListenAddress> {
        self.listeners.api.as_ref().map(|api| &api.address)
    }

    /// The shared state, for tests and the program.
    pub fn shared(&self) -> &Arc<ServerState> {
        &self.shared
    }

    /// The apps of the settings, without those that were looked up.
    pub fn configured(&self) -> Apps {
        match &self.keeper {
            Some(keeper) => keeper.configured(),
            None => self.shared.apps.load().as_ref().clone(),
        }
    }

    /// Serves `apps` from now on. Connections go on with their app as it is now, or end with it.
    pub fn replace_apps(&self, apps: Apps) {
        let why = format!("its settings were read again: {} apps", apps.len());
        self.shared.hub.console.send(Kind::Server, |fact| fact.why(why));
        if let Some(keeper) = &self.keeper {
            return keeper.set_configured(apps);
        }
        self.shared.apps.store(Arc::new(apps));
        // Each worker takes its connections through the change.
        self.apps.send_modify(|times| *times += 1);
    }

    /// Tells load balancers to send new sockets elsewhere, and serves on.
    pub fn retire(&self) {
        // Relaxed: `/ready` may answer one more request as before.
        self.shared.retiring.store(true, Ordering::Relaxed);
    }

    /// Begins to stop: new sockets are refused, established ones closed one after the other, requests
    /// answered.
    pub fn drain(&self) {
        self.drained.get_or_init(Instant::now);
        self.shared.hub.console.send(Kind::Server, |fact| fact.why("it drains: no new sockets"));
        // Relaxed: a socket that is admitted in this instant is drained with the others.
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.scope.keep_everybody();
        self.phase.send_replace(ServerPhase::Draining);
    }

    /// Begins to stop while another process accepts on the same listener: no connection is refused, the
    /// established ones are closed one after the other.
    pub fn hand_over(&self) {
        self.shared.scope.keep_everybody();
        self.phase.send_replace(ServerPhase::HandingOver);
    }

    /// The listeners, for another process.
    pub fn listeners(&self) -> io::Result<PassedListeners> {
        self.listeners.duplicate()
    }

    /// Leaves the files of Unix sockets where they are: another process listens on the sockets.
    pub fn leave_sockets(&mut self) {
        self.listeners.leave_files();
    }

    /// Whether every worker has advanced since `before`, which is updated.
    pub fn is_alive(&self, before: &mut Vec<u64>) -> bool {
        // Relaxed: a beat that is seen late looks like a worker that is late, until the next check.
        let now: Vec<u64> = self.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).collect();
        let stuck = before.iter().zip(&now).any(|(before, now)| before == now);
        *before = now;
        !stuck
    }

    /// How long it serves on after SIGTERM.
    pub fn delay(&self) -> Duration {
        self.config.shutdown_delay
    }

    /// How long stopping takes at most, with some time to spare.
    pub fn longest_end(&self) -> Duration {
        self.config.shutdown_delay + self.config.shutdown_grace + FAREWELL * 10
    }

    /// Waits until all connections are gone, or the grace is over. Fails if a worker ended in a panic.
    pub fn wait(self) -> io::Result<()> {
        let mut ends: Vec<bool> = self.threads.into_iter().map(|one| one.join().is_ok()).collect();
        if let Some(link) = self.link {
            // Webhooks that are not sent by then are left to another node.
            self.shared.webhooks.finish(Instant::now() + FAREWELL);
            self.shared.scope.stop_link();
            // In a cluster the webhooks' log has what is left, so Redis comes after them.
            ends.push(cluster::join_in_time(link, FAREWELL * 5));
        }
        // The webhooks of the last connections have the rest of the grace period, and a moment at least.
        let drained = self.drained.get().copied().unwrap_or_else(Instant::now);
        let end = drained + self.config.shutdown_grace;
        self.shared.webhooks.finish(end.max(Instant::now() + FAREWELL));
        self.listeners.remove_files();
        if ends.contains(&false) {
            return Err(io::Error::other("a worker ended in a panic"));
        }
        Ok(())
    }
}
