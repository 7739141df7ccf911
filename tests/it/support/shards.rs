//! A Redis Cluster of a test's own on free ports of the loopback.

use std::sync::{Arc, Mutex, Weak};

use fanfare::config::ClusterConfig;

use super::eventually;
use super::redis::{Redis, alone};

const SLOTS: usize = 16_384;

/// Masters that share all slots, and a replica of the last of them if wanted.
pub struct Shards {
    pub masters: Vec<Redis>,
    pub replica: Option<Redis>,
}

impl Shards {
    /// `None` where there is no redis-server.
    pub fn start(count: usize, replicated: bool) -> Option<Self> {
        let mut masters = Vec::new();
        for _ in 0..count {
            masters.push(Redis::shard()?);
        }
        for (index, master) in masters.iter().enumerate() {
            let epoch = (index + 1).to_string();
            assert_eq!(master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]), "OK");
            let first = (SLOTS * index / count).to_string();
            let last = (SLOTS * (index + 1) / count - 1).to_string();
            assert_eq!(master.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]), "OK");
        }
        let replica = if replicated { Some(Redis::shard()?) } else { None };
        let shards = Self { masters, replica };
        let port = |redis: &Redis| (redis.port().to_string(), redis.bus().to_string());
        for other in shards.all().skip(1) {
            let (port, bus) = port(other);
            shards.masters[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        shards.are_well();
        if let Some(replica) = &shards.replica {
            let master = shards.masters[count - 1].ask(&["CLUSTER", "MYID"]);
            assert_eq!(replica.ask(&["CLUSTER", "REPLICATE", &master]), "OK");
            replica.follows_its_master();
            for redis in shards.all() {
                // Who is not known to be a replica cannot be voted for.
                eventually(|| match redis.ask(&["CLUSTER", "REPLICAS", &master]) {
                    replicas if replicas.contains("slave") => Ok(()),
                    replicas => Err(replicas),
                })
                .unwrap();
            }
        }
        Some(shards)
    }

    /// Three masters that several tests use at once, each under its own prefix.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Shards>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        if let Some(shards) = shared.upgrade() {
            return Some(shards);
        }
        let shards = Arc::new(Self::start(3, false)?);
        *shared = Arc::downgrade(&shards);
        Some(shards)
    }

    /// Waits until all of them agree that every slot has a server.
    pub fn are_well(&self) {
        let count = self.all().count();
        self.all().for_each(|redis| redis.is_of_a_whole_cluster(count));
    }

    fn all(&self) -> impl Iterator<Item = &Redis> {
        self.masters.iter().chain(&self.replica)
    }

    /// The settings of a node that uses them, which knows the first two.
    pub fn cluster(&self) -> ClusterConfig {
        let urls = self.masters.iter().take(2).map(|redis| redis.cluster().redis[0].clone());
        ClusterConfig { redis: urls.collect(), ..alone() }
    }

    /// The slot is on its way, and all that it has is where it was.
    pub fn begin_move(&self, slot: &str, from: usize, to: usize) {
        let (from, to) = (&self.masters[from], &self.masters[to]);
        let [from_id, to_id] = [from, to].map(|redis| redis.ask(&["CLUSTER", "MYID"]));
        assert_eq!(to.ask(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &from_id]), "OK");
        assert_eq!(from.ask(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &to_id]), "OK");
    }

    /// The other nodes of the Redis Cluster take this slot for one of `to` from now on, with all that it has.
    pub fn move_slot(&self, slot: &str, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        let (from, to) = (&self.masters[from], &self.masters[to]);
        let to_id = to.ask(&["CLUSTER", "MYID"]);
        let port = to.port().to_string();
        loop {
            let keys = from.ask(&["CLUSTER", "GETKEYSINSLOT", slot, "100"]);
            if keys.is_empty() {
                break;
            }
            for key in keys.lines() {
                let moved = from.ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
                assert!(["OK", "NOKEY"].contains(&moved.as_str()), "{moved}");
            }
        }
        let others = self.masters.iter().filter(|redis| redis.port() != to.port());
        for redis in std::iter::once(to).chain(others) {
            assert_eq!(redis.ask(&["CLUSTER", "SETSLOT", slot, "NODE", &to_id]), "OK");
        }
        // Moved again before all know of it, a slot can end up with nobody.
        let info = to.ask(&["CLUSTER", "INFO"]);
        let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_my_epoch:")).unwrap();
        for redis in &self.masters {
            eventually(|| {
                let nodes = redis.ask(&["CLUSTER", "NODES"]);
                let line = nodes.lines().find(|line| line.starts_with(&to_id)).unwrap();
                match line.split(' ').nth(6) == Some(epoch) {
                    true => Ok(()),
                    false => Err(format!("{line}: not {epoch}")),
                }
            })
            .unwrap();
        }
    }

    /// The slot of a name, and the master that has had it since the beginning.
    pub fn place(&self, name: &str) -> (String, usize) {
        let slot = self.masters[0].ask(&["CLUSTER", "KEYSLOT", name]);
        let number: usize = slot.parse().unwrap();
        let has = |index: &usize| number < SLOTS * (index + 1) / self.masters.len();
        let master = (0..self.masters.len()).find(has).unwrap();
        (slot, master)
    }
}
