//! The settings of a server. `Settings` is what was written, source by source; `Config` is what it
//! means, complete and valid: nothing further down ever asks for a default.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::app::Apps;

/// Everything a server needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub metrics: Metrics,
    pub log: Log,
    pub apps: Apps,
}

/// Where and how the server listens.
#[derive(Clone, Debug)]
pub struct Server {
    pub host: String,
    /// 0: any free port.
    pub port: u16,
    /// Prefix of all routes: empty, or with a slash in front and none at the end.
    pub path: String,
    /// Threads that carry connections; at least 1.
    pub workers: usize,
    /// Sockets of all apps together; 0: what the open-file limit bears.
    pub max_connections: usize,
    /// How long established connections may take to leave when the server stops.
    pub shutdown_grace: Duration,
    /// How long a client may take to send a whole request.
    pub handshake_timeout: Duration,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Sockets at a time from one address; 0: no limit.
    pub connections_per_ip: usize,
    /// Origins that browsers may read the API's answers from; `*` is any.
    pub cors_origins: Vec<String>,
    pub tls: Option<Tls>,
    /// Whether `/` shows browsers the page to try the server on.
    pub try_out: bool,
}

/// A certificate chain and its key, in PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A network in CIDR form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub enabled: bool,
    pub host: String,
    /// 0: served by the main listener under `/metrics`.
    pub port: u16,
    pub prefix: String,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub level: tracing::level_filters::LevelFilter,
    pub json: bool,
}
