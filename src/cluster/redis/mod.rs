//! The link over Redis or Valkey: to each server one connection for commands and one for subscriptions, on a separate
//! thread, so that workers never wait. It reconnects for ever. Each new link registers everything under a new lease and
//! clears the old one, so a lost link, an empty Redis and a node that was taken for dead recover in the same way.

mod address;
mod away;
mod away_look;
mod batch;
mod cache_budget;
mod claims;
mod clearing;
mod clients;
mod connections;
mod counts;
mod dedup;
pub mod diagnose;
mod lease;
mod leases;
mod log_budget;
mod offline;
mod opening;
mod outages;
mod parked;
mod parts;
mod publish;
mod pushes;
mod query;
mod reader;
mod recent;
mod registration;
mod sentinels;
mod server;
mod session;
mod slots;
mod stranded;
mod subscribe;
pub mod tls;
mod topic_senders;
mod trust;
mod webhook_log;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::Topic;
use super::keys::RedisKeys;
use super::link::{LinkDriver, LinkEvent, LinkMetrics, LinkRequest, OutgoingEvent};
use super::redis_clock::now_us;
use super::seal::EnvelopeSeals;
use super::topics::Topics;
use super::webhook_log::WebhookLog;
use crate::app::{AppId, Apps};
use crate::console::{Console, Kind};
use crate::metrics::HeldByApp;
use address::RedisAddress;
use away::{AwayPart, AwayParts};
use cache_budget::CacheBudget;
use connections::RedisConnections;
use dedup::Deduplicator;
use leases::{Lease, Peers};
use log_budget::LogBudget;
use offline::OfflineRequests;
use outages::OutageLog;
use parked::ParkedClients;
use pushes::PushStream;
use reader::LinkReader;
use recent::RecentPublishes;
use session::LinkWriter;
use slots::HostPort;
use tls::RedisTls;
use trust::EnvelopeTrust;

/// How long Redis may take to answer before it is taken for away.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest pause between two attempts to make the link.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(2);

/// The pause before the first reconnect; it doubles with each failure.
const MIN_RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How long what must not be forgotten waits for Redis.
const URGENT_AGE: Duration = Duration::from_secs(3600);

/// How the link is set.
#[derive(Clone)]
pub struct LinkSettings {
    /// The URL of a server or of Sentinels, or those of some of a Redis Cluster's servers.
    pub urls: Vec<String>,
    /// How TLS is spoken to those of them that want it.
    pub tls: Arc<RedisTls>,
    /// The prefix of all keys and topics.
    pub prefix: String,
    /// How long a node may be silent before others clear away what it held.
    pub lease: Duration,
    /// How long a publish may wait for Redis.
    pub max_age: Duration,
    /// Events of each channel that Redis keeps for nodes whose link dropped; 0: none.
    pub replay: usize,
    /// Reports whether the link is up.
    pub console: Arc<Console>,
}

/// The URL may hold a password.
impl fmt::Debug for LinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Why the link was lost.
#[derive(Debug)]
enum LinkError {
    /// An error of the connection, or of Redis itself.
    Redis(redis::RedisError),
    /// It did not answer in time.
    Silent,
    /// Nothing comes in on the connection that listens.
    Deaf,
    /// Others have cleared this node away.
    Lapsed,
    /// No Sentinel knows the master.
    NoMaster,
    /// The server is a master no longer.
    Replica,
    /// Another server is the master now.
    Replaced,
    /// Several servers are named, which are not one Redis Cluster.
    NoCluster,
    /// There are slots that no server has.
    Uncovered,
    /// One of a Redis Cluster's masters is to blame; with the others it can be made.
    OfMaster(HostPort, Box<Self>),
    /// So can it without slots whose keys have been on their way for too long, by keys that are.
    Stuck(BTreeMap<u16, Vec<Vec<u8>>>),
    /// It is to be made again to what was away.
    Back(Vec<AwayPart>),
    /// It answered with something else than was asked for.
    Unexpected,
    /// The node stops.
    Stopped,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(_) | Self::Unexpected | Self::Silent | Self::Deaf => {
                f.write_str(&diagnose::sentence(self, false))
            }
            Self::Lapsed => f.write_str("the lease had lapsed"),
            Self::Replaced => f.write_str("another server is the master now"),
            Self::NoMaster | Self::Replica | Self::NoCluster | Self::Uncovered => {
                f.write_str(&diagnose::sentence(self, false))
            }
            Self::OfMaster((host, port), why) => write!(f, "{host}:{port}: {why}"),
            Self::Stuck(slots) => {
                let slots: Vec<String> = slots.keys().map(u16::to_string).collect();
                write!(f, "slots are on their way for too long: {}", slots.join(", "))
            }
            Self::Back(_) => f.write_str("what was away is back"),
            Self::Stopped => f.write_str("the server stops"),
        }
    }
}

impl LinkError {
    /// The kind of an error that Redis answered a command with.
    fn of_server(error: &redis::ServerError) -> Self {
        match error.code() {
            "FENCED" => Self::Lapsed,
            _ => Self::Redis(error.clone().into()),
        }
    }
}

impl From<redis::RedisError> for LinkError {
    fn from(error: redis::RedisError) -> Self {
        Self::Redis(error)
    }
}

impl From<tokio::time::error::Elapsed> for LinkError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Silent
    }
}

/// A publish that waits to be sent.
#[derive(Clone, Debug)]
struct PendingPublish {
    since: Instant,
    /// Its number among this node's publishes, by which receivers recognise it.
    serial: u64,
    /// Subscribers here have it already.
    delivered: bool,
    /// Nobody knows whether Redis has taken it.
    sent: bool,
    /// When a server took it that may have lost it since, by the time of Redis; 0: none did.
    taken: u64,
    publish: OutgoingEvent,
}

/// State that survives a lost link.
#[derive(Debug)]
struct LinkState {
    /// This node's number in envelopes.
    node: u64,
    /// Whether the node was told to stop.
    stopping: bool,
    /// The last serial that was given.
    serial: u64,
    /// Publishes that Redis has not confirmed, in order.
    publishes: VecDeque<PendingPublish>,
    /// Publishes beyond the age limit that must not be dropped; sent first.
    urgent: Vec<PendingPublish>,
    /// Publishes for parts of a Redis Cluster that are away.
    stranded: VecDeque<PendingPublish>,
    away: AwayParts,
    /// The parts that the log last named as away.
    told_away: Vec<String>,
    /// States of resumable clients that Redis does not have yet.
    parked: ParkedClients,
    /// Channels whose counts have changed but could not be announced.
    untold: HashSet<Topic>,
    /// Publishes that Redis confirmed within the last seconds, and the runs of its servers at that time.
    recent: RecentPublishes,
    /// The run id of each server, which changes when it restarts.
    runs: BTreeMap<HostPort, String>,
    /// Cached events that Redis has taken and that have not come back yet.
    flying: VecDeque<PendingPublish>,
    /// Logs that this node publishes to: until when they are known not to expire, and their share of the app's bytes.
    log_budget: LogBudget,
    /// Bytes of cached events that this node has published.
    cache_budget: CacheBudget,
    /// Connections by app.
    connections: HashMap<AppId, usize>,
    /// The leases under which something may be held still, as the last link had them.
    leases: Vec<Lease>,
    /// Leases that were cleared last: after a failover a server may still have them.
    cleared: VecDeque<Lease>,
    /// The leases of other nodes.
    peers: Peers,
    /// Since when each server had its data, as was last seen; to know if it has lost it.
    epochs: HashMap<u16, u64>,
    /// Entries for the webhook logs.
    webhook_log: WebhookLog,
    /// When other nodes will have had the time to come back from what took this node's link, and those that are
    /// silent still are dead.
    reaps: Instant,
}

impl LinkState {
    /// Of a node that has had no link yet.
    fn of_node(node: u64, held: Arc<HeldByApp>) -> Self {
        let (publishes, urgent, stranded, flying, parked) = Default::default();
        let (away, told_away, untold, recent, runs) = Default::default();
        let (log_budget, cache_budget, connections) = Default::default();
        let (leases, cleared, peers, epochs) = Default::default();
        let (stopping, serial, reaps) = (false, 0, Instant::now());
        let webhook_log = WebhookLog::new(held);
        Self {
            node,
            stopping,
            serial,
            publishes,
            urgent,
            stranded,
            away,
            told_away,
            parked,
            untold,
            recent,
            runs,
            flying,
            log_budget,
            cache_budget,
            connections,
            leases,
            cleared,
            peers,
            epochs,
            webhook_log,
            reaps,
        }
    }
}

/// The far end of a link, over Redis.
#[derive(Debug)]
pub struct RedisDriver {
    /// Limits and intervals from the settings.
    settings: LinkSettings,
    address: RedisAddress,
    keys: RedisKeys,
    /// The topics of this node, shared with the workers.
    topics: Arc<Topics>,
    /// Seals envelopes with the apps' secrets.
    seals: EnvelopeSeals,
    driver: LinkDriver,
    kept: LinkState,
    dedup: RefCell<Deduplicator>,
}

impl RedisDriver {
    /// The far end for a node of that number. Fails on a URL that is none.
    pub fn new(
        settings: LinkSettings,
        node: u64,
        topics: Arc<Topics>,
        apps: Arc<ArcSwap<Apps>>,
        driver: LinkDriver,
    ) -> Result<Self, redis::RedisError> {
        let address = RedisAddress::parse(&settings.urls, &settings.tls)?;
        let keys = RedisKeys::new(&settings.prefix);
        let kept = LinkState::of_node(node, topics.held.clone());
        let mut dedup = Deduplicator::new(node);
        dedup.open_topic(&keys.all_nodes_topic(), driver.status.clock.now());
        let dedup = RefCell::new(dedup);
        let seals = EnvelopeSeals::new(apps);
        Ok(Self { settings, address, keys, topics, seals, driver, kept, dedup })
    }

    /// Keeps the link up until it is told to stop.
    pub async fn run(mut self) {
        let (mut pause, mut outages) = (MIN_RECONNECT_PAUSE, OutageLog::default());
        loop {
            let begun = Instant::now();
            let lost = self.serve_link().await;
            // From here on queries are answered locally, before anything of the old link is cleaned up.
            let was_up = self.driver.status.up.swap(false, Ordering::Relaxed);
            if matches!(lost, LinkError::Stopped) || self.kept.stopping {
                return;
            }
            let has_lasted = begun.elapsed() > MAX_RECONNECT_PAUSE;
            if has_lasted {
                outages.begin_anew();
            }
            self.kept.away.note_lost_link(&lost);
            let redis = &self.address;
            match &lost {
                LinkError::Back(parts) => info!(%redis, parts = %away::names_of(parts), "{lost}"),
                _ => match outages.take_due(Instant::now().into_std()) {
                    Some(tries) => warn!(%redis, tries, "the link to Redis is down: {lost}"),
                    None => debug!(%redis, "the link to Redis is down: {lost}"),
                },
            }
            if was_up {
                let why = format!("the link to Redis is down: {lost}");
                self.settings.console.send(Kind::Redis, |fact| fact.why(why));
                // Queries are answered with local knowledge from now on.
                let _ = self.driver.events.send(LinkEvent::Down).await;
            }
            let is_at_once = has_lasted || matches!(lost, LinkError::Back(_));
            pause = if is_at_once { MIN_RECONNECT_PAUSE } else { pause * 2 };
            pause = pause.min(MAX_RECONNECT_PAUSE);
            if self.serve_offline(Instant::now() + jittered(pause)).await.is_err() {
                return;
            }
        }
    }

    /// Carries out orders without Redis until `end`.
    async fn serve_offline(&mut self, end: Instant) -> Result<(), LinkError> {
        loop {
            tokio::select! {
                request = self.driver.requests.recv() => match request {
                    None | Some(LinkRequest::Stop) => return Err(LinkError::Stopped),
                    Some(request) => self.answer_offline(request).await,
                },
                () = sleep_until(end) => return Ok(()),
            }
        }
    }

    async fn answer_offline(&mut self, request: LinkRequest) {
        let is_publish = matches!(request, LinkRequest::Publish(_));
        let offline = OfflineRequests {
            kept: &mut self.kept,
            topics: &self.topics,
            keys: &self.keys,
            dedup: &self.dedup,
            status: &self.driver.status,
        };
        let answer = offline.answer_request(request);
        if is_publish {
            self.kept.drop_old(self.settings.max_age, &self.driver.status);
        }
        if let Some(answer) = answer {
            // The receiver is gone only when the node has stopped.
            let _ = self.driver.events.send(answer).await;
        }
    }

    /// Makes the link and keeps it as long as it lasts.
    async fn serve_link(&mut self) -> LinkError {
        self.kept.drop_old(self.settings.max_age, &self.driver.status);
        // In the order of their serials: they are the oldest.
        let urgent = std::mem::take(&mut self.kept.urgent);
        urgent.into_iter().rev().for_each(|publish| self.kept.publishes.push_front(publish));
        let connected = tokio::select! {
            connected = self.connect_link() => connected,
            // Orders wait meanwhile, but not for a Redis that does not answer at all.
            () = tokio::time::sleep(PATIENCE) => Err(LinkError::Silent),
        };
        let (mut servers, stream, probe) = match connected {
            Ok(connected) => connected,
            Err(lost) => {
                self.address.try_next();
                self.kept.away.forget_masters();
                return lost;
            }
        };
        let node = self.kept.node;
        self.kept.away = servers.away.clone();
        self.kept.report_away(&self.settings.console, &self.driver.status);
        self.seals.set_database(servers.database());
        servers.leases = self.kept.leases.clone();
        self.dedup.get_mut().begin_catch_up();
        let figures = &self.driver.status.figures;
        let (seals, keys, dedup) = (&self.seals, &self.keys, &self.dedup);
        let trust = EnvelopeTrust { seals, keys, dedup, figures };
        let mut reader = LinkReader {
            stream,
            keys,
            trust,
            node,
            events: &self.driver.events,
            figures,
            clock: &self.driver.status.clock,
            dedup: &self.dedup,
            next: None,
        };
        let mut writer = LinkWriter {
            servers,
            probe,
            settings: &self.settings,
            keys: &self.keys,
            topics: &self.topics,
            seals: &self.seals,
            trust,
            requests: &mut self.driver.requests,
            events: &self.driver.events,
            status: &self.driver.status,
            max_queued: self.driver.max_queued,
            kept: &mut self.kept,
            link: session::WriterState::default(),
            dedup: &self.dedup,
        };
        let lost = tokio::select! {
            lost = writer.run() => lost,
            () = reader.run() => LinkError::Deaf,
            () = self.address.wait_replaced() => LinkError::Replaced,
        };
        // Pushes that were lost in between are read from the logs later.
        reader.finish(&lost, self.settings.lease / 2).await;
        writer.recover_unacked().await;
        self.driver.status.away.store(Arc::default());
        lost
    }

    async fn connect_link(&mut self) -> Result<(RedisConnections, PushStream, String), LinkError> {
        let (keys, node) = (self.keys.clone(), self.kept.node);
        let away = self.kept.away.clone();
        let (mut servers, heard) =
            RedisConnections::connect_all(&mut self.address, (keys, node), away).await?;
        let probe = parts::new_probe(&servers);
        let own = self.keys.node_topic(node);
        servers.subscribe_topics(&[self.keys.all_nodes_topic(), probe.clone(), own]).await?;
        info!(redis = %self.address, "the link to Redis is made");
        let why = format!("the link to Redis is made ({})", self.address);
        self.settings.console.send(Kind::Redis, |fact| fact.why(why));
        LinkMetrics::add_count(&self.driver.status.figures.connects, 1);
        Ok((servers, heard, probe))
    }
}

fn random_number() -> u64 {
    let mut bytes = [0; 8];
    // Without chance two nodes might pause alike, and the clock makes the lease its own.
    if getrandom::fill(&mut bytes).is_err() {
        return now_us();
    }
    u64::from_le_bytes(bytes)
}

/// Between half of `pause` and all of it, so that nodes do not come back as one herd.
fn jittered(pause: Duration) -> Duration {
    pause / 2 + pause / 2 * (random_number() % 1000) as u32 / 1000
}
