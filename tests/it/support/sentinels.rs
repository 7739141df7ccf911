//! A Redis server with a replica that Sentinels watch over, on free ports of the loopback.

use fanfare::config::ClusterConfig;

use super::eventually;
use super::redis::{Redis, alone};

/// A master with a replica, and three Sentinels that know them and each other.
pub struct Watched {
    pub master: Redis,
    pub replica: Redis,
    pub sentinels: [Redis; 3],
}

impl Watched {
    /// `None` where there is no redis-server.
    pub fn start() -> Option<Self> {
        let master = Redis::start()?;
        let replica = master.replica();
        let sentinels = [(); 3].map(|()| master.sentinel(2));
        for sentinel in &sentinels {
            eventually(|| {
                let answer = sentinel.ask(&["SENTINEL", "MASTER", "main"]);
                let lines: Vec<&str> = answer.lines().collect();
                let is = |name, value| lines.windows(2).any(|pair| pair == [name, value]);
                match is("num-slaves", "1") && is("num-other-sentinels", "2") {
                    true => Ok(()),
                    false => Err(answer),
                }
            })
            .unwrap();
        }
        Some(Self { master, replica, sentinels })
    }

    /// The settings of nodes that ask the Sentinels, after one that is not there.
    pub fn cluster(&self) -> ClusterConfig {
        let hosts = self.sentinels.iter().map(|s| format!(",127.0.0.1:{}", s.port()));
        let url = format!("redis+sentinel://127.0.0.1:1{}/main", hosts.collect::<String>());
        ClusterConfig { redis: vec![url], ..alone() }
    }
}
