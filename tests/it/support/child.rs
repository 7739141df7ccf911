//! A server in a process of its own, which can be killed, with the app of the fixtures and its metrics under
//! `/metrics`.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::eventually;
use super::fixture::{ID, KEY, SECRET, established, target};
use super::http::await_readiness;
use super::websocket::Client;

pub struct Child {
    child: std::process::Child,
    pub addr: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Child {
    /// With these settings, named as in variables but for the beginning: `CLUSTER__LEASE`.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::run(&mut Command::new(env!("CARGO_BIN_EXE_fanfare")), settings)
    }

    /// The same with settings from a file.
    pub fn with_config(path: &std::path::Path, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        Self::run(command.arg("--config").arg(path), settings)
    }

    /// The same with so many open files at most.
    pub fn with_files(files: u32, settings: &[(&str, &str)]) -> Self {
        Self::with_limit(&format!("-n {files}"), settings)
    }

    /// The same with a limit as the shell's `ulimit` takes it.
    pub fn with_limit(limit: &str, settings: &[(&str, &str)]) -> Self {
        let limit = format!("ulimit {limit}; exec \"$0\"");
        let mut shell = Command::new("/bin/sh");
        Self::run(shell.args(["-c", &limit, env!("CARGO_BIN_EXE_fanfare")]), settings)
    }

    fn run(command: &mut Command, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| (format!("FANFARE_{name}"), value));
        let mut child = command
            .env_clear()
            .env("FANFARE_SERVER__PORT", "0")
            .env("FANFARE_METRICS__PORT", "0")
            .env("FANFARE_APPS__0__ID", ID)
            .env("FANFARE_APPS__0__KEY", KEY)
            .env("FANFARE_APPS__0__SECRET", SECRET)
            .envs(settings)
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut addr = None;
        let mut said = String::new();
        while addr.is_none() && log.read_line(&mut said).unwrap() > 0 {
            let line = said.lines().last().unwrap();
            let words = line.split_whitespace().filter_map(|word| word.strip_prefix("addr="));
            addr = words.filter_map(|addr| addr.parse().ok()).next();
        }
        let addr = addr.unwrap_or_else(|| panic!("no address: {said}"));
        // What it says later must not block it.
        let later = Arc::new(Mutex::new(said));
        let said = later.clone();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                said.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, addr, log: later }
    }

    /// Waits until it has its Redis.
    pub fn is_ready(&self) {
        await_readiness(self.addr, 200);
    }

    /// What its log has so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until its log has a line with all of `words`, and gives that.
    pub fn says(&self, words: &[&str]) -> String {
        eventually(|| {
            let log = self.log.lock().unwrap();
            let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
            log.lines()
                .find(has_all)
                .map(str::to_owned)
                .ok_or_else(|| format!("{words:?} in {log}"))
        })
        .unwrap()
    }

    /// What its log has so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().lines().map(str::to_owned).collect()
    }

    /// A connection that has read its `connection_established`, and its socket id.
    pub fn connect(&self) -> (Client, String) {
        let mut client = Client::open(self.addr, &target(KEY), &[]).unwrap();
        let id = established(&client.hear_text()).unwrap();
        (client, id)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
