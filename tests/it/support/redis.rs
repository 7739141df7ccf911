//! A Redis server of a test's own, on a free port of the loopback, and a client that speaks to it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fanfare::config::Cluster;

use super::{DEADLINE, eventually, wire};

/// A redis-server that keeps nothing on disk. It ends with the test.
pub struct Redis {
    server: Option<Child>,
    port: u16,
    /// Where it speaks TLS, with the first certificate there is.
    tls: Option<u16>,
    options: Vec<String>,
}

impl Redis {
    /// `None` where there is no redis-server; a failure with `CI=true`.
    pub fn start() -> Option<Self> {
        Self::start_with(&[], false)
    }

    /// With more options, and with TLS on a second port if wanted.
    pub fn start_with(options: &[&str], tls: bool) -> Option<Self> {
        let here = Command::new("redis-server").arg("--version").output().is_ok();
        if !here {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "redis-server is missing");
            println!("skipped: redis-server is not installed");
            return None;
        }
        // Another process may take a port that was free a moment ago.
        for _ in 0..10 {
            let options = options.iter().map(ToString::to_string).collect();
            let tls = tls.then(free_port);
            let mut redis = Self { server: None, port: free_port(), tls, options };
            if redis.begin() {
                return Some(redis);
            }
        }
        panic!("no port for redis-server");
    }

    /// Starts it again, empty, on its port.
    pub fn restart(&mut self) {
        assert!(self.begin(), "redis-server does not start again");
    }

    fn begin(&mut self) -> bool {
        let port = self.port.to_string();
        let options = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let server = Command::new("redis-server")
            .args(options)
            .args(self.tls_options())
            .args(&self.options)
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

    fn tls_options(&self) -> Vec<String> {
        let Some(port) = self.tls else { return Vec::new() };
        let file = |end| wire::file("one", end).display().to_string();
        [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", file("crt")),
            ("--tls-key-file", file("key")),
            ("--tls-ca-cert-file", file("crt")),
            ("--tls-auth-clients", "no".to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
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
    pub fn cluster(&self) -> Cluster {
        Cluster { redis: vec![format!("redis://127.0.0.1:{}", self.port)], ..alone() }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal to a process of the test's own.
pub fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// The settings of a node of its own; with `FANFARE_TEST_REDIS` set to a URL, those of the only node of a
/// cluster, so that everything that a single node does can be tried on a clustered one.
pub fn alone() -> Cluster {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let redis = std::env::var("FANFARE_TEST_REDIS").into_iter().collect();
    Cluster {
        redis,
        prefix: format!("test-{}-{number}", std::process::id()),
        lease: Duration::from_secs(15),
        queue_bytes: 1 << 20,
        queue_age: Duration::from_secs(60),
    }
}

fn ask(port: u16, command: &[&str]) -> Result<String, String> {
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
