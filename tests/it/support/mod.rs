//! The ground of the tests: a server started for one test, and clients that speak to it byte by byte
//! over blocking sockets. None of it uses the server's own parsers or signatures, so that a mistake
//! there cannot hide itself.

pub mod beyond;
pub mod child;
pub mod clock;
pub mod cut;
#[cfg(feature = "sql")]
pub mod database;
pub mod endpoint;
pub mod faults;
pub mod fixture;
pub mod http;
pub mod kept_clients;
mod kept_holds;
pub mod lines;
pub mod loopback;
pub mod memory;
pub mod place;
pub mod ports;
pub mod redis;
pub mod sentinels;
pub mod shards;
pub mod sign;
pub mod site;
pub mod websocket;
pub mod wire;

use std::time::{Duration, Instant};

/// How long anything expected may take before a test gives up on it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks `fact` again and again until it holds; gives up after [`DEADLINE`] with its last answer.
pub fn eventually<T>(fact: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    eventually_within(DEADLINE, fact)
}

/// The same with another deadline.
pub fn eventually_within<T>(
    limit: Duration,
    mut fact: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        match fact() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
        }
    }
}

/// A xorshift generator: enough chance for garbage, and the same garbage for the same seed.
pub struct Chance(u64);

impl Chance {
    /// Seeded by the clock, or by `TEST_SEED` to repeat a run. The seed is printed.
    pub fn new(what: &str) -> Self {
        let given = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = given.unwrap_or(now.as_nanos() as u64) | 1;
        println!("{what}: TEST_SEED={seed}");
        Self(seed)
    }

    pub fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}
