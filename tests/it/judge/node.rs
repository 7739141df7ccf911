//! One node of the judged cluster: a process of the built program, its way to Redis, and requests to it that give
//! up in time. Which nodes there are, and where clients may connect, is for the world to say.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::proxy::Proxy;
use super::tab::is_no_news;
use crate::support::clock::Clock;
use crate::support::eventually;
use crate::support::fixture::{ID, KEY, SECRET};
use crate::support::http::{find, request};
use crate::support::redis::signal;
use crate::support::sign::Request;

/// The error of a request that was given up.
pub const NO_ANSWER: &str = "no answer in time";

/// A process, told from all others that there were by its key.
pub struct Node {
    pub key: u64,
    pub addr: SocketAddr,
    /// Where all its connections to Redis pass; none where it asks Redis for addresses.
    pub proxy: Option<Arc<Proxy>>,
    clock: Option<Clock>,
    child: Child,
}

impl Node {
    /// With these settings, named as in variables but for the beginning. `JUDGE_BINARY` names another
    /// program to judge.
    pub fn start(
        key: u64,
        settings: &[(String, String)],
        proxy: Option<Arc<Proxy>>,
        clock: Option<Clock>,
        folder: &Path,
    ) -> Self {
        let built = env!("CARGO_BIN_EXE_fanfare").into();
        let program = std::env::var_os("JUDGE_BINARY").unwrap_or(built);
        let log = folder.join(format!("node-{key}.log"));
        let mut child = Command::new(program)
            .env_clear()
            .envs(settings.iter().map(|(name, value)| (format!("FANFARE_{name}"), value)))
            .envs(clock.iter().flat_map(Clock::environment))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let addr = eventually(|| {
            let said = std::fs::read_to_string(&log).unwrap();
            let mut words = said.split_whitespace().filter_map(|word| word.strip_prefix("addr="));
            match words.find_map(|addr| addr.parse().ok()) {
                Some(addr) => Ok(Ok(addr)),
                None if child.try_wait().unwrap().is_some() => Ok(Err(said)),
                None => Err(said),
            }
        });
        let addr = addr.unwrap().unwrap_or_else(|said| panic!("it does not start: {said}"));
        Self { key, addr, proxy, clock, child }
    }

    /// Sends a signal by name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn step_clock(&self, seconds: i64) {
        self.clock.as_ref().expect("it has one").step(seconds);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its status if it ends by itself within `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < end => std::thread::park_timeout(Duration::from_millis(5)),
                status => return status,
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A signed request to `/apps/ID/{path}`, and its status and answer.
pub fn ask(
    addr: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Result<(u16, Value), String> {
    let asked = Request::new(method, &format!("/apps/{ID}/{path}"), body, KEY, SECRET);
    let headers = "Content-Type: application/json\r\nConnection: close\r\n";
    let bytes = request(method, &asked.signed_target(), headers, body.as_bytes());
    let (status, body) = exchange(addr, &bytes, limit)?;
    serde_json::from_str(&body)
        .map(|json| (status, json))
        .map_err(|error| format!("{error}: {body}"))
}

/// Whether it says that new connections are welcome and nothing is away, or what is wrong.
pub fn is_ready(addr: SocketAddr) -> Result<(), String> {
    match away_parts(addr)? {
        parts if parts.is_empty() => Ok(()),
        parts => Err(format!("{parts:?} are away")),
    }
}

/// What it says is away of a Redis Cluster, while it welcomes new connections.
pub fn away_parts(addr: SocketAddr) -> Result<Vec<String>, String> {
    let bytes = request("GET", "/ready", "Connection: close\r\n", b"");
    let (status, body) = exchange(addr, &bytes, Duration::from_secs(2))?;
    if status != 200 {
        return Err(format!("{status} {body}"));
    }
    let answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    let parts = answer["away"].as_array().into_iter().flatten();
    Ok(parts.filter_map(|part| part.as_str().map(str::to_owned)).collect())
}

fn exchange(addr: SocketAddr, bytes: &[u8], limit: Duration) -> Result<(u16, String), String> {
    let failed = |error: std::io::Error| error.to_string();
    let end = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&addr, limit).map_err(failed)?;
    stream.write_all(bytes).map_err(failed)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NO_ANSWER.to_owned());
        }
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if is_no_news(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let head = find(&answer, b"\r\n\r\n").ok_or("no answer")?;
    let body = String::from_utf8_lossy(&answer[head + 4..]).into_owned();
    let head = String::from_utf8_lossy(&answer[..head]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or("no status")?, body))
}
