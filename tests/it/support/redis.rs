//! A Redis server of a test's own, on a free port of the loopback, and a client that speaks to it.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fanfare::config::{ClusterConfig, RedisTlsConfig};

use super::clock::Clock;
use super::ports::free_port;
use super::{DEADLINE, eventually, wire};

/// A redis-server that keeps nothing on disk. It ends with the test.
pub struct Redis {
    server: Option<Child>,
    port: u16,
    /// Where it speaks TLS, with the first certificate there is.
    tls: Option<u16>,
    arguments: Vec<String>,
    /// Where it speaks to the others of its Redis Cluster.
    bus: Option<u16>,
    /// A folder of its own.
    folder: PathBuf,
    clock: Option<Clock>,
}

impl Redis {
    /// `None` where there is no redis-server; a failure with `CI=true`.
    pub fn start() -> Option<Self> {
        Self::start_with(&[], false)
    }

    /// With more options, and with TLS on a second port if wanted.
    pub fn start_with(options: &[&str], tls: bool) -> Option<Self> {
        if !is_here() {
            return None;
        }
        Some(Self::begun(|port, folder| {
            let tls = tls.then(free_port);
            let text = port.to_string();
            let own = ["--port", &text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            let mut arguments: Vec<String> = own.map(str::to_owned).into();
            arguments.extend(tls.into_iter().flat_map(tls_options));
            arguments.extend(options.iter().map(ToString::to_string));
            Self { server: None, port, tls, arguments, bus: None, folder, clock: None }
        }))
    }

    /// It keeps its data on disk, and its clock can be stepped where there is a C compiler.
    pub fn lasting() -> Option<Self> {
        let mut redis = Self::start_with(&["--appendonly", "yes"], false)?;
        if let Some(clock) = Clock::build(&redis.folder) {
            redis.kill();
            redis.clock = Some(clock);
            redis.restart();
        }
        Some(redis)
    }

    /// The clock by which it goes, if it has one of its own.
    pub fn clock(&self) -> Option<&Clock> {
        self.clock.as_ref()
    }

    /// What it has kept on disk is gone.
    pub fn lose_data(&self) {
        let _ = std::fs::remove_dir_all(self.folder.join("appendonlydir"));
    }

    /// Its data on disk as they are now, for [`Self::bring_data_back`].
    pub fn keep_data(&self) {
        let (from, to) = (self.folder.join("appendonlydir"), self.folder.join("kept"));
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }

    /// What came after [`Self::keep_data`] is gone.
    pub fn bring_data_back(&self) {
        self.lose_data();
        std::fs::rename(self.folder.join("kept"), self.folder.join("appendonlydir")).unwrap();
    }

    /// A replica of `self`, which has its data.
    pub fn replica(&self) -> Self {
        let port = self.port.to_string();
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &port], false).unwrap();
        replica.follows_its_master();
        replica
    }

    pub fn follows_its_master(&self) {
        // It ends its connections when it becomes a replica.
        eventually(|| match self.try_ask(&["INFO", "replication"]) {
            Ok(info) if info.contains("master_link_status:up") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
    }

    /// One of a Redis Cluster's servers, which knows no other yet.
    pub fn shard() -> Option<Self> {
        is_here().then(|| {
            Self::begun(|port, folder| {
                let bus = free_port();
                let options = format!(
                    "--port {port} --bind 127.0.0.1 --appendonly no --cluster-enabled yes \
                     --cluster-port {bus} --cluster-node-timeout 1500 \
                     --cluster-require-full-coverage no",
                );
                let mut arguments: Vec<String> =
                    options.split_whitespace().map(str::to_owned).collect();
                arguments.extend(["--save", ""].map(str::to_owned));
                Self {
                    server: None,
                    port,
                    tls: None,
                    arguments,
                    bus: Some(bus),
                    folder,
                    clock: None,
                }
            })
        })
    }

    /// Waits until its Redis Cluster has all slots, as far as it knows, and has so many servers.
    /// Where not all slots are wanted, the state alone is `ok` before it knows whose they are.
    pub fn is_of_a_whole_cluster(&self, servers: usize) {
        let servers = format!("cluster_known_nodes:{servers}\r");
        let lines = ["cluster_state:ok\r", "cluster_slots_ok:16384\r", &servers];
        eventually(|| match self.ask(&["CLUSTER", "INFO"]) {
            info if lines.iter().all(|line| info.contains(line)) => Ok(()),
            info => Err(info),
        })
        .unwrap();
    }

    /// The port for the others of its Redis Cluster.
    pub fn bus(&self) -> u16 {
        self.bus.expect("it is one of a Redis Cluster's")
    }

    /// A Sentinel that watches over `self` as `main` and acts when `quorum` of them have lost it.
    pub fn sentinel(&self, quorum: usize) -> Self {
        Self::begun(|port, folder| {
            let file = folder.join("sentinel.conf");
            let settings = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} {quorum}\n\
                 sentinel down-after-milliseconds main 1500\nsentinel failover-timeout main 5000\n",
                self.port
            );
            std::fs::write(&file, settings).unwrap();
            let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
            Self { server: None, port, tls: None, arguments, bus: None, folder, clock: None }
        })
    }

    /// The same over TLS alone, to it and by it, for a master that wants certificates of these issuers.
    pub fn sentinel_over_tls(&self, issuers: &Path) -> Self {
        Self::begun(|port, folder| {
            let (tls, file) = (free_port(), folder.join("sentinel.conf"));
            let (master, issuers) = (self.tls_port(), issuers.display());
            let [cert, key] =
                ["crt", "key"].map(|end| wire::file("one", end).display().to_string());
            let settings = format!(
                "port {port}\nbind 127.0.0.1\ntls-port {tls}\ntls-replication yes\n\
                 tls-cert-file {cert}\ntls-key-file {key}\ntls-ca-cert-file {issuers}\n\
                 tls-auth-clients yes\nsentinel monitor main 127.0.0.1 {master} 1\n"
            );
            std::fs::write(&file, settings).unwrap();
            let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
            Self { server: None, port, tls: Some(tls), arguments, bus: None, folder, clock: None }
        })
    }

    fn begun(plan: impl Fn(u16, PathBuf) -> Self) -> Self {
        // A program that knows nothing of these tests may take it before.
        for _ in 0..10 {
            let port = free_port();
            let folder = format!("fanfare-redis-{}-{port}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let mut redis = plan(port, folder);
            if redis.begin() {
                return redis;
            }
        }
        panic!("no port for redis-server");
    }

    /// Starts it again on its port, with what it kept on disk.
    pub fn restart(&mut self) {
        assert!(self.begin(), "redis-server does not start again");
    }

    fn begin(&mut self) -> bool {
        let mut command = Command::new(program());
        if let Some(clock) = &self.clock {
            command.envs(clock.environment());
        }
        let server = command
            .args(&self.arguments)
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = self.server.insert(server);
        eventually(|| {
            if server.try_wait().unwrap().is_some() {
                return Ok(false);
            }
            match ask(self.port, &["PING"]).as_deref() {
                Ok("PONG") => Ok(true),
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap()
    }

    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Sends a signal by name: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let id = self.server.as_ref().expect("it runs").id();
        signal(id, name);
    }

    /// What it answers to one command, or its error.
    pub fn try_ask(&self, command: &[&str]) -> Result<String, String> {
        ask(self.port, command)
    }

    /// What it answers to one command; the items of a list a line each.
    pub fn ask(&self, command: &[&str]) -> String {
        ask(self.port, command).unwrap()
    }

    /// The port that speaks plainly.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port that speaks TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls.expect("it speaks TLS")
    }

    /// The settings of a node that uses it.
    pub fn cluster(&self) -> ClusterConfig {
        ClusterConfig { redis: vec![format!("redis://127.0.0.1:{}", self.port)], ..alone() }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// What is started: redis-server, or what `TEST_REDIS_SERVER` names, such as a valkey-server.
fn program() -> OsString {
    std::env::var_os("TEST_REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// Whether there is a redis-server; a failure with `CI=true` where there is none.
fn is_here() -> bool {
    let here = Command::new(program()).arg("--version").output().is_ok();
    if !here {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "redis-server is missing");
        println!("skipped: redis-server is not installed");
    }
    here
}

fn tls_options(port: u16) -> Vec<String> {
    let file = |end| wire::file("one", end).display().to_string();
    let options = [
        ("--tls-port", port.to_string()),
        ("--tls-cert-file", file("crt")),
        ("--tls-key-file", file("key")),
        ("--tls-ca-cert-file", file("crt")),
        ("--tls-auth-clients", "no".to_owned()),
    ];
    options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

/// Sends a signal to a process of the test's own.
pub fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// The settings of a node of its own; with `TEST_REDIS` set to a URL, those of the only node of a
/// cluster, so that everything that a single node does can be tried on a clustered one.
pub fn alone() -> ClusterConfig {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let redis = std::env::var("TEST_REDIS").into_iter().collect();
    ClusterConfig {
        redis,
        tls: RedisTlsConfig::default(),
        prefix: format!("test-{}-{number}", std::process::id()),
        lease: Duration::from_secs(15),
        queue_bytes: 1 << 20,
        queue_age: Duration::from_secs(60),
        replay: 256,
    }
}

/// What the server on this port answers to one command, or its error.
pub fn ask(port: u16, command: &[&str]) -> Result<String, String> {
    let connection = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    (&connection).write_all(&bytes).map_err(|error| error.to_string())?;
    reply(&mut BufReader::new(connection))
}

fn reply(reader: &mut BufReader<TcpStream>) -> Result<String, String> {
    let mut line = String::new();
    reader.read_line(&mut line).map_err(|error| error.to_string())?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or("no reply")?;
    let count = || rest.parse::<usize>().unwrap_or_default();
    match kind {
        "$" => {
            let mut bytes = vec![0; count() + if rest == "-1" { 0 } else { 2 }];
            reader.read_exact(&mut bytes).map_err(|error| error.to_string())?;
            bytes.truncate(count());
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => {
            let items: Result<Vec<_>, _> = (0..count()).map(|_| reply(reader)).collect();
            Ok(items?.join("\n"))
        }
        "+" | ":" => Ok(rest.to_owned()),
        _ => Err(line),
    }
}
