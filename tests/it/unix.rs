//! A Unix socket in the place of an address: sockets and requests over it, whose address counts, and what
//! becomes of its file, also when one process takes over from another.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fanfare::app::App;
use fanfare::config::{Network, ServerConfig, UnixSocket};
use fanfare::server;

use crate::support::fixture::{
    Fixture, ID, KEY, SECRET, config, established, subscribe, target, trigger,
};
use crate::support::http::Http;
use crate::support::place::Place;
use crate::support::sign::Request;
use crate::support::websocket::{Client, Heard};
use crate::support::wire;
use crate::support::{DEADLINE, eventually};

impl Place {
    /// A connection that a proxy passes on for `client`, if it says for whom, and its greeting.
    fn open(&self, client: Option<&str>) -> (Client, String) {
        let forwarded = client.map(|client| ("X-Forwarded-For".to_owned(), client.to_owned()));
        let headers: Vec<_> = forwarded.into_iter().collect();
        let mut client = Client::open_over(self.http(), &target(KEY), &headers).unwrap();
        let text = client.hear_text();
        (client, text)
    }

    fn publish(&self, channel: &str, data: &str) -> u16 {
        let body = trigger(channel, "e", data);
        let target = format!("/apps/{ID}/events");
        self.http().ask_signed(&Request::new("POST", &target, &body, KEY, SECRET)).status
    }

    /// A server here.
    fn serve(&self, change: impl FnOnce(&mut ServerConfig)) -> Fixture {
        Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
            server.unix_socket = Some(UnixSocket { path: self.socket(), mode: 0o660 });
            change(server);
        })
    }

    /// Why no server starts here.
    fn refusal(&self) -> String {
        let mut config = config(vec![App::new(ID, KEY, SECRET)]);
        config.server.unix_socket = Some(UnixSocket { path: self.socket(), mode: 0o660 });
        server::start(config).map(|_| ()).unwrap_err().to_string()
    }
}

#[test]
fn sockets_and_requests_come_over_it() {
    let place = Place::new("unix");
    let fixture = place.serve(|server| server.shutdown_grace = DEADLINE);
    let (mut client, text) = place.open(None);
    established(&text).unwrap();
    subscribe(&mut client, "c");
    assert_eq!(place.publish("c", "1"), 200);
    assert_eq!(client.hear_text(), r#"{"event":"e","channel":"c","data":"1"}"#);
    // More than a pipe holds, so that some of it has to wait in the outbox.
    let long = "x".repeat(90_000);
    (0..8).for_each(|_| assert_eq!(place.publish("c", &long), 200));
    (0..8).for_each(|_| assert!(client.hear_text().contains(&long)));
    assert_eq!(place.http().ask("GET", "/up", "", b"").status, 200);
    fixture.stop();
    assert!(client.hear_text().contains("4200"));
    client.hear_close(4200, "");
    assert!(!place.socket().exists());
}

#[test]
fn the_client_is_who_a_trusted_proxy_says() {
    let network = |address: &str| vec![Network { address: address.parse().unwrap(), prefix: 32 }];
    let place = Place::new("unix-peer");
    let refused = |text: &str| text.contains(r#""code":4100"#);
    for (trusted, second) in [("127.0.0.1", false), ("127.0.0.2", true)] {
        let fixture = place.serve(|server| {
            server.connections_per_ip = 1;
            server.trusted_proxies = network(trusted);
        });
        let (_one, text) = place.open(Some("192.0.2.1"));
        established(&text).unwrap();
        // Where nobody is believed both are the same machine.
        let (_other, text) = place.open(Some("192.0.2.2"));
        assert_eq!(refused(&text), second, "{text}");
        let (_again, text) = place.open(Some("192.0.2.1"));
        assert!(refused(&text), "{text}");
        fixture.stop();
    }
    let _fixture = place.serve(|server| {
        server.connections_per_ip = 1;
        server.trusted_proxies = network("127.0.0.1");
        server.proxy_protocol = true;
    });
    let open = |address: &str| {
        let mut wire = wire::unix(&place.socket()).unwrap();
        write!(wire, "PROXY TCP4 {address} 127.0.0.1 4711 80\r\n").unwrap();
        let mut client = Client::open_over(Http::over(wire), &target(KEY), &[]).unwrap();
        let text = client.hear_text();
        (client, text)
    };
    let (_one, text) = open("192.0.2.1");
    established(&text).unwrap();
    let (_other, text) = open("192.0.2.2");
    established(&text).unwrap();
    let (_again, text) = open("192.0.2.1");
    assert!(refused(&text), "{text}");
}

#[test]
fn only_a_socket_that_nobody_answers_on_is_replaced() {
    let place = Place::new("unix-file");
    // Left behind: dropping a listener does not remove its file.
    drop(UnixListener::bind(place.socket()).unwrap());
    let fixture = place.serve(|_| {});
    assert_eq!(place.http().ask("GET", "/up", "", b"").status, 200);
    let mode = fs::metadata(place.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(place.refusal().ends_with("a server answers on it"), "{}", place.refusal());
    assert_eq!(place.http().ask("GET", "/up", "", b"").status, 200);
    // Another's file in the same place is not ours to remove.
    fs::remove_file(place.socket()).unwrap();
    let other = UnixListener::bind(place.socket()).unwrap();
    fixture.stop();
    assert!(fs::symlink_metadata(place.socket()).unwrap().file_type().is_socket());
    drop(other);
    fs::remove_file(place.socket()).unwrap();
    fs::write(place.socket(), "precious").unwrap();
    assert!(place.refusal().ends_with("the file is no socket"), "{}", place.refusal());
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "precious");
}

/// A server in a process.
struct Process {
    child: Child,
    log: PathBuf,
    /// Which nobody else ends.
    successor: Option<u32>,
}

impl Process {
    /// On what is passed as file 3, where anything is, and otherwise on its own socket.
    fn start(folder: &Path, settings: &str, listener: Option<UnixListener>) -> Self {
        let app = format!("[[apps]]\nid = {ID:?}\nkey = {KEY:?}\nsecret = {SECRET:?}\n");
        let rest = "shutdown_grace = \"1s\"\n[metrics]\nenabled = false\n";
        let text = format!("[server]\nworkers = 2\n{settings}\n{rest}{app}");
        fs::write(folder.join("f.toml"), text).unwrap();
        let script = if listener.is_some() {
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\""
        } else {
            "exec \"$@\""
        };
        let log = folder.join("log");
        let stdin = listener.map_or_else(Stdio::null, |one| Stdio::from(OwnedFd::from(one)));
        let child = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_fanfare"), "--config", "f.toml"])
            .current_dir(folder)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::from(fs::File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        let process = Self { child, log, successor: None };
        process.logs("listening");
        process
    }

    /// Waits for a line with `text`.
    fn logs(&self, text: &str) -> String {
        eventually(|| {
            let log = fs::read_to_string(&self.log).unwrap();
            let line = log.lines().find(|line| line.contains(text)).map(str::to_owned);
            line.ok_or(log)
        })
        .unwrap()
    }

    fn stop(mut self, signal: &str) {
        kill(self.child.id(), signal);
        let ended = eventually(|| self.child.try_wait().unwrap().ok_or_else(|| "on".to_owned()));
        assert!(ended.unwrap().success(), "{}", self.logs(""));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = self.successor {
            kill(pid, "KILL");
        }
    }
}

fn kill(pid: u32, signal: &str) {
    assert!(
        Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap().success()
    );
}

#[test]
fn a_hand_over_keeps_the_file_and_the_last_one_removes_it() {
    let place = Place::new("unix-hand-over");
    let settings = "unix_socket = { path = \"s\", mode = \"0600\" }";
    let mut process = Process::start(&place.folder, settings, None);
    let (mut client, text) = place.open(None);
    established(&text).unwrap();
    kill(process.child.id(), "USR2");
    let line = process.logs("another process goes on");
    let (_, pid) = line.rsplit_once("pid").unwrap();
    let digits: String = pid.chars().filter(char::is_ascii_digit).collect();
    process.successor = Some(digits.parse().unwrap());
    while !matches!(client.hear(), Heard::Close(Some((4200, _)))) {}
    process.logs("stopped");
    let (mut client, text) = place.open(None);
    established(&text).unwrap();
    subscribe(&mut client, "c");
    assert_eq!(place.publish("c", "1"), 200);
    assert!(client.hear_text().contains("\"1\""));
    kill(process.successor.take().unwrap(), "TERM");
    eventually(
        || if place.socket().exists() { Err("the file is there".to_owned()) } else { Ok(()) },
    )
    .unwrap();
}

#[test]
fn systemd_keeps_its_socket() {
    let place = Place::new("unix-activated");
    let listener = UnixListener::bind(place.socket()).unwrap();
    let process = Process::start(&place.folder, "", Some(listener.try_clone().unwrap()));
    let (mut client, text) = place.open(None);
    established(&text).unwrap();
    subscribe(&mut client, "c");
    assert_eq!(place.publish("c", "1"), 200);
    assert!(client.hear_text().contains("\"1\""));
    process.stop("TERM");
    assert!(place.socket().exists());
    // What comes in between waits for the next one.
    let mut waiting = place.http();
    waiting.send("GET /up HTTP/1.1\r\nHost: x\r\n\r\n");
    let next = Process::start(&place.folder, "", Some(listener));
    assert_eq!(waiting.answer().status, 200);
    next.stop("TERM");
}
