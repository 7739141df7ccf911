//! The settings of a server. `Settings` is what was written, source by source; `Config` is its meaning, complete and
//! valid: nothing further down applies a default.

mod apps_file;
mod credentials;
mod dotenv;
mod echo_server;
mod env;
mod env_file;
mod environment;
mod error;
mod file;
mod flags;
mod json_file;
mod keys;
mod laravel;
mod load;
mod manual;
mod redis_url;
mod resolve;
mod secret_files;
mod settings;
mod show;
mod soketi;
mod value;
mod version;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::app::Apps;

pub use error::Error;
pub use flags::{
    CliCommand, ConfigCommand, ConsoleArgs, Flags, TargetArgs, Tool, WatchArgs, right_word,
};
pub use keys::{APP, SERVER, SettingKey, WEBHOOK};
pub use laravel::{LaravelDoubt, PublicAddress};
pub use load::{LoadedSettings, answer_command, load_settings};
pub use manual::manual;
pub use secret_files::readable_secrets;
pub use settings::Settings;
pub use soketi::RowReader;
pub use version::{FEATURES, REVISION, VERSION};

/// Everything that a server needs to start. [`Config::default`] is only a place to read keys into: the defaults of
/// settings are in `keys.rs`.
#[derive(Clone, Default, Debug)]
pub struct Config {
    /// Where it listens, and what holds for every connection.
    pub server: ServerConfig,
    /// Access to the debug console.
    pub console: ConsoleConfig,
    /// Limits on the machine's resources.
    pub limits: LimitsConfig,
    /// Metrics, and where they are served.
    pub metrics: MetricsConfig,
    /// The Redis that nodes share, if they do.
    pub cluster: ClusterConfig,
    /// How much is logged, and in which form.
    pub log: LogConfig,
    /// Settings that all webhooks share.
    pub webhooks: WebhooksConfig,
    /// A file of more apps, which are among `apps`.
    pub apps_file: Option<PathBuf>,
    /// The database table of further apps, which are looked up when a client or backend names them.
    pub sql: Option<SqlConfig>,
    /// Those of the settings and of the file, checked and complete.
    pub apps: Apps,
    /// The one app of a server that was given none.
    pub made_app: Option<GeneratedApp>,
    /// Where the apps were written, for people: files, the environment, a database.
    pub app_sources: String,
}

/// Where and how the server listens.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ServerConfig {
    /// An address or a host's name; an IPv6 address without brackets.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
    /// Prefix of all routes: empty, or with a slash in front and none at the end.
    pub path: String,
    /// Threads that carry connections; at least 1.
    pub workers: usize,
    /// Whether workers write to many sockets in one system call, where the kernel supports it.
    pub io_uring: bool,
    /// Sockets of all apps together; 0: what the open-file limit bears.
    pub max_connections: usize,
    /// How long established connections may take to leave when the server stops.
    pub shutdown_grace: Duration,
    /// For how long the server serves on after SIGTERM, while `/ready` already answers 503.
    pub shutdown_delay: Duration,
    /// How long a client may take to send a whole request.
    pub handshake_timeout: Duration,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether connections come only from these proxies, each with a PROXY header.
    pub proxy_protocol: bool,
    /// Sockets at a time from one address; 0: no limit.
    pub connections_per_ip: usize,
    /// New sockets a second that one address may open, and twice as many at once; 0: no limit.
    pub handshakes_per_ip: u32,
    /// Whether pusher-js is served over HTTP where WebSockets are blocked.
    pub http_fallback: bool,
    /// Origins that browsers may read the API's answers from; `*` is any.
    pub cors_origins: Vec<String>,
    /// None where the server, or a proxy in front of it, speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Where to listen in the place of host and port.
    pub unix_socket: Option<UnixSocket>,
    /// Where the HTTP API is, if not with the sockets.
    pub api: Option<ApiAddress>,
    /// When the try-out page is served at `/`.
    pub try_out: TryOut,
}

/// When the try-out page is served.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TryOut {
    /// Everyone, if the server listens on a loopback address and so to this machine alone, and no proxy in front of
    /// it has been named.
    #[default]
    Loopback,
    /// At any address.
    On,
    /// Nobody.
    Off,
}

/// Characters of a token for the debug console at least.
pub const MIN_CONSOLE_TOKEN: usize = 16;

/// Access to the debug console.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConsoleConfig {
    /// Loopback unless the settings say otherwise.
    pub access: ConsoleAccess,
    /// Empty, or of [`MIN_CONSOLE_TOKEN`] characters or more.
    pub token: String,
    /// Whether the token is accepted over plain HTTP from another machine.
    pub allow_plain_http: bool,
}

/// The token is a secret.
impl fmt::Debug for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleConfig").field("access", &self.access).finish_non_exhaustive()
    }
}

/// The values of `console.enabled`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ConsoleAccess {
    /// Requests from this machine to a loopback address, not through a proxy.
    #[default]
    Loopback,
    /// Requests with the token.
    On,
    /// Nobody; its paths answer as any that do not exist.
    Off,
}

/// Limits on the machine's resources.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LimitsConfig {
    /// Memory of the process beyond which new sockets are refused.
    pub memory: MemoryLimit,
}

/// The values of `limits.memory`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryLimit {
    /// Percent of what the machine, or the control group, has.
    Share(u8),
    /// 0: no limit.
    Bytes(u64),
}

impl Default for MemoryLimit {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// A certificate chain and its key, in PEM files.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The key of that, not encrypted.
    pub key: PathBuf,
}

/// A Unix socket that a proxy on the same machine connects to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UnixSocket {
    /// Made when the server starts, and removed when it ends.
    pub path: PathBuf,
    /// The rights of its file: who may write to it may connect.
    pub mode: u32,
}

/// An address that the HTTP API has of its own.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ApiAddress {
    /// Empty where there is a Unix socket.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
    /// In the place of host and port.
    pub unix_socket: Option<UnixSocket>,
}

/// A network in CIDR form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// Any address in it.
    pub address: IpAddr,
    /// Bits that all of its addresses share: 0 to 32, or to 128.
    pub prefix: u8,
}

impl std::str::FromStr for Network {
    /// The caller words the error, since it knows the setting.
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().map_err(|_| ())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        // No more bits than an address of its kind has.
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(widest);
        if prefix > widest { Err(()) } else { Ok(Self { address, prefix }) }
    }
}

impl Network {
    /// Whether the network contains `address`. An IPv4 address written as IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, net, own) = match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(own)) => {
                (32, u128::from(net.to_bits()), u128::from(own.to_bits()))
            }
            (IpAddr::V6(net), IpAddr::V6(own)) => (128, net.to_bits(), own.to_bits()),
            _ => return false,
        };
        // A prefix of 0 shifts everything out, which `checked_shr` answers with `None` on both sides.
        let host = u32::from(bits - self.prefix.min(bits));
        net.checked_shr(host) == own.checked_shr(host)
    }
}

/// Metrics, and the port that serves them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MetricsConfig {
    /// On the main listener or on a port of their own.
    pub enabled: bool,
    /// Where that port is, if it is not 0.
    pub host: String,
    /// 0: served by the main listener under `/metrics`.
    pub port: u16,
    /// `fanfare_`, or what dashboards of another server ask for.
    pub prefix: String,
    /// Whether the port answers health checks even if metrics are off, as Soketi's does.
    pub probes: bool,
    /// Whether metrics are served to this machine alone, although health checks come from others.
    pub local: bool,
}

/// Settings that all webhooks share. Each webhook belongs to an app.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WebhooksConfig {
    /// Whether webhooks may be posted to private addresses.
    pub allow_private: bool,
    /// The folder in which what could not be sent is kept over a restart.
    pub spool: Option<PathBuf>,
}

/// The log's level and form.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The least severe that is logged.
    pub level: LevelFilter,
    /// A JSON object for each line instead of a text.
    pub json: bool,
}

/// Nothing is logged until the settings say what; `LevelFilter` has no default of its own.
impl Default for LogConfig {
    fn default() -> Self {
        Self { level: LevelFilter::OFF, json: false }
    }
}

/// The other nodes that this one works with.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ClusterConfig {
    /// The URL of a Redis server or Sentinel, or those of the nodes of a Redis Cluster; empty: this
    /// server works alone.
    pub redis: Vec<String>,
    /// Certificates for TLS to Redis, beside those that the system trusts.
    pub tls: RedisTlsConfig,
    /// The prefix of all keys and topics in Redis.
    pub prefix: String,
    /// How long a node may be silent before the others clear away what it held.
    pub lease: Duration,
    /// Bytes of events that may wait while Redis is away.
    pub queue_bytes: usize,
    /// How long each of them may wait.
    pub queue_age: Duration,
    /// Events of each channel that Redis keeps for nodes whose link dropped; 0: none.
    pub replay: usize,
}

/// Certificates for TLS to Redis: each a file in PEM form, or such a text itself; empty: none.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct RedisTlsConfig {
    /// The CA of Redis's certificates, instead of those that the system trusts.
    pub ca: String,
    /// The client certificate, with those between it and its issuer.
    pub cert: String,
    /// The key of it, as a file or a text.
    pub key: String,
}

/// A Redis URL may hold a password, so only how many there are is shown.
impl fmt::Debug for ClusterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("redis", &format_args!("{} URLs", self.redis.len()))
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A table of apps in a database.
#[derive(Clone, Default)]
pub struct SqlConfig {
    /// Of MySQL, MariaDB or PostgreSQL.
    pub url: String,
    /// Its name as the database has it, with a schema in front where there are several.
    pub table: String,
    /// How long what was found is taken for true.
    pub ttl: Duration,
    /// How a row becomes an app.
    pub rows: RowReader,
}

/// The URL may hold a password.
impl fmt::Debug for SqlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sql").field("table", &self.table).finish_non_exhaustive()
    }
}

/// Credentials made at random.
#[derive(Clone)]
pub struct GeneratedApp {
    /// Digits, as Laravel's own are.
    pub id: String,
    /// Public: clients have it in their code.
    pub key: String,
    /// Never shown but once, when it was made.
    pub secret: String,
}

impl fmt::Debug for GeneratedApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MadeApp")
            .field("id", &self.id)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
