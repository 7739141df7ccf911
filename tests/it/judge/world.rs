//! The world that is judged: a Redis of some kind, nodes behind their proxies, tabs, backends that publish, and a
//! receiver of webhooks. It starts, stops and finds them; what happens to them is in `storm.rs` and the files of
//! faults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::backend::{Job, work};
use super::hooks::Hooks;
use super::ledger::Ledger;
use super::node::{Node, is_ready};
use super::proxy::Proxy;
use super::tab::{Doors, Tab};
use super::truth::is_cached;
use super::verdict::{Kind, Wrong};
use crate::support::clock::Clock;
use crate::support::endpoint::Endpoint;
use crate::support::fixture::{ID, KEY, SECRET};
use crate::support::redis::Redis;
use crate::support::sentinels::Watched;
use crate::support::shards::Shards;
use crate::support::{Chance, eventually_within};

pub const CHANNELS: [&str; 12] = [
    "pub-a",
    "pub-b",
    "room-1",
    "room-2",
    "private-a",
    "private-encrypted-a",
    "presence-a",
    "presence-b",
    "presence-c",
    "cache-a",
    "private-cache-a",
    "presence-cache-a",
];
pub const USERS: usize = 8;
pub const TABS: usize = 24;
const NODES: usize = 3;
/// How long an election of Sentinels or of a Redis Cluster may take on a busy machine, with some that fail before it.
const ENVIRONMENT: Duration = Duration::from_secs(120);
/// How long a node may take to end.
pub const STOP: Duration = Duration::from_secs(15);

/// The Redis that the nodes share.
pub enum Store {
    Single(Redis),
    Watched(Box<Watched>),
    Sharded(Box<Shards>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    Single,
    Watched,
    Sharded,
}

pub struct World {
    pub kind: Kinds,
    pub lease: Duration,
    pub tabs: Vec<Arc<Tab>>,
    pub doors: Doors,
    pub ledger: Arc<Ledger>,
    /// What happened that should not have, and is in no view.
    pub marks: Mutex<Vec<Wrong>>,
    /// The events that were published last, to each channel one, once the dust has settled.
    pub finals: Mutex<BTreeMap<String, usize>>,
    pub folder: PathBuf,
    store: Mutex<Store>,
    nodes: Mutex<Vec<Node>>,
    backends: Mutex<BTreeMap<u64, Sender<Job>>>,
    hooks: Mutex<Hooks>,
    endpoint: Mutex<Endpoint>,
    prefix: String,
    /// Where there is one, each node gets one like it.
    clock: Option<Clock>,
    next: AtomicU64,
}

impl World {
    /// `None` where there is no redis-server; a failure with `CI=true`.
    pub fn start(kind: Kinds, lease: Duration, chance: &mut Chance) -> Option<Self> {
        let store = match kind {
            Kinds::Single => Store::Single(Redis::lasting()?),
            Kinds::Watched => Store::Watched(Box::new(Watched::start()?)),
            Kinds::Sharded => Store::Sharded(Box::new(Shards::start(3, true)?)),
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("judge-{}-{number}", std::process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&name);
        std::fs::create_dir_all(&folder).unwrap();
        let clock = Clock::build(&folder);
        let (doors, ledger): (Doors, Arc<Ledger>) = Default::default();
        let seed = chance.below(usize::MAX) as u64;
        let tabs = (0..TABS).map(|number| {
            let user = (number % USERS + 1).to_string();
            Tab::start(number, user, &doors, &ledger, seed.wrapping_add(number as u64 * 7919))
        });
        let world = Self {
            kind,
            lease,
            tabs: tabs.collect(),
            doors,
            ledger,
            marks: Mutex::default(),
            finals: Mutex::default(),
            folder,
            store: Mutex::new(store),
            nodes: Mutex::default(),
            backends: Mutex::default(),
            hooks: Mutex::default(),
            endpoint: Mutex::new(Endpoint::start()),
            prefix: name,
            clock,
            next: AtomicU64::new(1),
        };
        let keys: Vec<u64> = (0..NODES).map(|_| world.add_node()).collect();
        keys.into_iter().for_each(|key| world.is_up(key));
        Some(world)
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Does something with the only Redis, which may be gone or hang meanwhile.
    pub fn with_redis<T>(&self, act: impl FnOnce(&mut Redis) -> T) -> T {
        match &mut *self.store() {
            Store::Single(redis) => act(redis),
            _ => panic!("not with one Redis alone"),
        }
    }

    /// Starts a node; clients may come once it has an address.
    pub fn add_node(&self) -> u64 {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let (urls, proxy) = match &*self.store() {
            Store::Single(redis) => {
                let proxy = Arc::new(Proxy::to(redis.port()));
                (format!("redis://127.0.0.1:{}", proxy.port()), Some(proxy))
            }
            Store::Watched(watched) => (watched.cluster().redis.join(","), None),
            Store::Sharded(shards) => (shards.cluster().redis.join(","), None),
        };
        let hook = format!("http://{}/hooks", self.endpoint.lock().unwrap().addr);
        let lease = format!("{}ms", self.lease.as_millis());
        let settings = [
            ("SERVER__PORT", "0"),
            ("SERVER__WORKERS", "1"),
            ("SERVER__SHUTDOWN_GRACE", "1s"),
            ("METRICS__PORT", "0"),
            ("CLUSTER__REDIS", &urls),
            ("CLUSTER__PREFIX", &self.prefix),
            ("CLUSTER__LEASE", &lease),
            ("APPS__0__ID", ID),
            ("APPS__0__KEY", KEY),
            ("APPS__0__SECRET", SECRET),
            ("APPS__0__CLIENT_EVENTS_PER_SECOND", "0"),
            ("APPS__0__SUBSCRIPTION_COUNT", "true"),
            ("APPS__0__WATCHLIST", "true"),
            ("APPS__0__WEBHOOKS__0__URL", &hook),
        ];
        let level = std::env::var("JUDGE_LOGS").unwrap_or_default();
        let level = if level == "trace" || level == "debug" { level } else { "info".to_owned() };
        let settings = settings.into_iter().chain([("LOG__LEVEL", &*level)]);
        let settings: Vec<_> =
            settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let clock = self.clock.as_ref().map(|clock| clock.another(&format!("clock-{key}")));
        let node = Node::start(key, &settings, proxy, clock, &self.folder);
        let (sender, jobs) = channel();
        let (addr, ledger, tabs) = (node.addr, self.ledger.clone(), self.tabs.clone());
        std::thread::spawn(move || work(key, addr, &jobs, &ledger, &tabs));
        self.backends.lock().unwrap().insert(key, sender);
        self.doors.lock().unwrap().insert(key, node.addr);
        self.nodes.lock().unwrap().push(node);
        key
    }

    /// Waits until it is ready.
    pub fn is_up(&self, key: u64) {
        let addr = self.doors.lock().unwrap()[&key];
        crate::support::eventually(|| is_ready(addr)).unwrap();
    }

    pub fn keys(&self) -> Vec<u64> {
        self.nodes.lock().unwrap().iter().map(|node| node.key).collect()
    }

    /// One of the nodes.
    pub fn any_node(&self, chance: &mut Chance) -> u64 {
        let keys = self.keys();
        keys[chance.below(keys.len())]
    }

    pub fn proxy(&self, key: u64) -> Arc<Proxy> {
        let nodes = self.nodes.lock().unwrap();
        let node = nodes.iter().find(|node| node.key == key).expect("it runs");
        node.proxy.clone().expect("it has one")
    }

    pub fn proxies(&self) -> Vec<Arc<Proxy>> {
        let nodes = self.nodes.lock().unwrap();
        nodes.iter().filter_map(|node| node.proxy.clone()).collect()
    }

    /// No client comes to it, those who are there wait.
    pub fn put_to_sleep(&self, key: u64) {
        self.doors.lock().unwrap().remove(&key);
        self.signal(key, "STOP");
    }

    pub fn wake(&self, key: u64) {
        self.signal(key, "CONT");
        let addr = self.address(key);
        self.doors.lock().unwrap().insert(key, addr);
    }

    pub fn address(&self, key: u64) -> SocketAddr {
        let nodes = self.nodes.lock().unwrap();
        nodes.iter().find(|node| node.key == key).expect("it runs").addr
    }

    pub fn has_clocks(&self) -> bool {
        self.clock.is_some()
    }

    /// A node's clock is so many seconds ahead from now on.
    pub fn step_clock(&self, key: u64, seconds: i64) {
        let nodes = self.nodes.lock().unwrap();
        nodes.iter().find(|node| node.key == key).expect("it runs").step_clock(seconds);
    }

    fn signal(&self, key: u64, name: &str) {
        let nodes = self.nodes.lock().unwrap();
        nodes.iter().find(|node| node.key == key).expect("it runs").signal(name);
    }

    pub fn kill_node(&self, key: u64) {
        let mut node = self.take_node(key);
        node.kill();
        // An answer may be out before the event is.
        let since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        self.ledger.excuse(&key.to_string(), since);
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop_node(&self, key: u64, limit: Duration) {
        let mut node = self.take_node(key);
        node.signal("TERM");
        let text = match node.ends_within(limit) {
            Some(status) if status.success() => return,
            Some(status) => format!("node {key} ended with {status}"),
            None => format!("node {key} runs still, {limit:?} after SIGTERM"),
        };
        self.marks.lock().unwrap().push(Wrong { kind: Kind::Endless, text });
    }

    fn take_node(&self, key: u64) -> Node {
        self.doors.lock().unwrap().remove(&key);
        self.backends.lock().unwrap().remove(&key);
        let mut nodes = self.nodes.lock().unwrap();
        let at = nodes.iter().position(|node| node.key == key).expect("it runs");
        nodes.remove(at)
    }

    /// Has a backend do something through any node that clients can reach.
    pub fn order(&self, chance: &mut Chance, job: Job) {
        let keys: Vec<u64> = self.doors.lock().unwrap().keys().copied().collect();
        let key = keys.get(chance.below(keys.len().max(1)));
        let backends = self.backends.lock().unwrap();
        if let Some(backend) = key.and_then(|key| backends.get(key)) {
            let _ = backend.send(job);
        }
    }

    /// Waits until the servers of Redis are as they should be. The round is not judged if they do not come to be: that
    /// is marked here.
    pub fn becomes(&self, what: &str, fact: impl FnMut() -> Result<(), String>) -> bool {
        let came = eventually_within(ENVIRONMENT, fact);
        let text = |error| format!("{what}: not within {ENVIRONMENT:?}, the last word was {error}");
        let wrong = came.map_err(|error| Wrong { kind: Kind::Environment, text: text(error) });
        wrong.map_err(|wrong| self.marks.lock().unwrap().push(wrong)).is_ok()
    }

    /// What the receiver of webhooks knows by now.
    pub fn hooks(&self) -> MutexGuard<'_, Hooks> {
        let mut hooks = self.hooks.lock().unwrap();
        let endpoint = self.endpoint.lock().unwrap();
        while let Ok(post) = endpoint.posts.try_recv() {
            post.events().iter().for_each(|event| hooks.hear(event));
        }
        hooks
    }

    /// The cache channels, with the event that was the last of each, if nothing came after it.
    pub fn cache_channels(&self) -> Vec<(String, Option<usize>)> {
        let finals = self.finals.lock().unwrap();
        let channels = CHANNELS.iter().filter(|channel| is_cached(channel));
        channels.map(|name| ((*name).to_owned(), finals.get(*name).copied())).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tabs.iter().for_each(|tab| tab.end());
        // Those that sleep cannot be waited for otherwise.
        self.nodes.get_mut().unwrap().clear();
        if std::env::var_os("JUDGE_LOGS").is_none() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Waits out so much time, which is what a fault is made of.
pub fn last(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}
