//! The HTTP API at an address of its own: what is served where, who finds it, and that both addresses outlive a
//! process whose successor takes over.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::{ApiAddress, ServerConfig, UnixSocket};
use serde_json::Value;

use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, subscribe, target, trigger};
use crate::support::http::{Http, Response};
use crate::support::place::Place;
use crate::support::ports::free_port;
use crate::support::sign::Request;
use crate::support::websocket::{Client, Heard};

fn fixture(api: ApiAddress, change: impl FnOnce(&mut ServerConfig)) -> Fixture {
    Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.api = Some(api);
        change(server);
    })
}

fn on_tcp(change: impl FnOnce(&mut ServerConfig)) -> (Fixture, SocketAddr) {
    let api = ApiAddress { host: "127.0.0.1".to_owned(), ..ApiAddress::default() };
    let fixture = fixture(api, change);
    let addr = fixture.running().api_address().unwrap().tcp().unwrap();
    assert_ne!(addr, fixture.addr);
    (fixture, addr)
}

fn publish(mut http: Http, channel: &str, data: &str) -> Response {
    let (target, body) = (format!("/apps/{ID}/events"), trigger(channel, "e", data));
    http.ask_signed(&Request::new("POST", &target, &body, KEY, SECRET))
}

fn ask(addr: SocketAddr, path: &str) -> Response {
    Http::connect(addr).ask("GET", path, "", b"")
}

#[test]
fn the_api_is_at_its_address_and_at_no_other() {
    let (fixture, api) = on_tcp(|server| server.path = "/ws".to_owned());
    let mut client = Client::open(fixture.addr, &format!("/ws{}", target(KEY)), &[]).unwrap();
    established(&client.hear_text()).unwrap();
    subscribe(&mut client, "c");
    for path in ["", "/ws"] {
        let target = format!("{path}/apps/{ID}/events");
        let request = Request::new("POST", &target, &trigger("c", "e", "1"), KEY, SECRET);
        assert_eq!(Http::connect(api).ask_signed(&request).status, 200, "{path}");
        assert_eq!(client.hear_text(), r#"{"event":"e","channel":"c","data":"1"}"#);
        let refused = Http::connect(fixture.addr).ask_signed(&request).error(404);
        assert!(refused.contains("an address of its own"), "{refused}");
        for user in ["apps/3/users/u", "users/u"] {
            let target = format!("{path}/{user}/terminate_connections");
            let refused = Http::connect(fixture.addr).ask("POST", &target, "", b"").error(404);
            assert!(refused.contains("an address of its own"), "{refused}");
        }
        for addr in [fixture.addr, api] {
            for probe in ["/up", "/ready", "/"] {
                assert_eq!(ask(addr, &format!("{path}{probe}")).status, 200, "{path}{probe}");
            }
        }
        for of_sockets in ["app/k", "resume/0123456789abcdef/app/k", "app/k/1/0123/xhr_streaming"] {
            let response = ask(api, &format!("{path}/{of_sockets}"));
            assert_eq!(response.status, 404, "{of_sockets}");
        }
    }
    // Nothing of the refused requests was heard.
    client.send_text(r#"{"event":"pusher:ping"}"#);
    assert!(client.hear_text().contains("pusher:pong"));
    assert!(Client::open(api, &format!("/ws{}", target(KEY)), &[]).is_err());
}

#[test]
fn metrics_without_a_port_are_with_the_api() {
    let server = |config: &mut fanfare::config::Config| {
        config.metrics.enabled = true;
        let api = ApiAddress { host: "127.0.0.1".to_owned(), ..ApiAddress::default() };
        config.server.api = Some(api);
    };
    let fixture = Fixture::with_config(vec![App::new(ID, KEY, SECRET)], server);
    let api = fixture.running().api_address().unwrap().tcp().unwrap();
    assert_eq!(ask(api, "/metrics").status, 200);
    assert_eq!(ask(fixture.addr, "/metrics").status, 404);
}

#[test]
fn requests_are_answered_there_while_sockets_are_drained() {
    let (fixture, api) = on_tcp(|server| server.shutdown_grace = Duration::from_secs(20));
    let mut client = fixture.subscribed("c");
    fixture.drain();
    let ready = ask(api, "/ready");
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert_eq!(publish(Http::connect(api), "c", "1").status, 200);
    let mut codes = Vec::new();
    loop {
        match client.hear() {
            Heard::Close(code) => break codes.push(code.map(|(code, _)| code)),
            Heard::End => break,
            _ => {}
        }
    }
    assert_eq!(codes, [Some(4200)]);
    fixture.stop();
}

#[test]
fn it_may_be_a_unix_socket() {
    let place = Place::new("api-unix");
    let unix_socket = Some(UnixSocket { path: place.socket(), mode: 0o600 });
    let fixture = fixture(ApiAddress { unix_socket, ..ApiAddress::default() }, |_| {});
    let mode = fs::metadata(place.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = fixture.subscribed("c");
    assert_eq!(publish(place.http(), "c", "1").status, 200);
    assert!(client.hear_text().contains("\"1\""));
    assert_eq!(place.http().ask("GET", "/ready", "", b"").status, 200);
    assert_eq!(publish(Http::connect(fixture.addr), "c", "1").status, 404);
    fixture.stop();
    assert!(!place.socket().exists());
}

#[test]
fn the_proxy_of_the_sockets_is_not_before_it() {
    let (_fixture, api) = on_tcp(|server| {
        server.proxy_protocol = true;
        let address = "127.0.0.1".parse().unwrap();
        server.trusted_proxies = vec![fanfare::config::Network { address, prefix: 32 }];
    });
    assert_eq!(publish(Http::connect(api), "c", "1").status, 200);
}

/// A server in a process, in a folder of its own.
struct Process {
    child: Child,
    folder: PathBuf,
    /// Which nobody else ends.
    successor: Option<u32>,
}

impl Process {
    /// On addresses of its own, or on what is passed as files 3 and 4 by the names of systemd.
    fn start(folder: &Path, settings: &str, passed: Option<(TcpListener, UnixListener)>) -> Self {
        let app = format!("[[apps]]\nid = {ID:?}\nkey = {KEY:?}\nsecret = {SECRET:?}\n");
        let rest = "shutdown_grace = \"1s\"\n[metrics]\nenabled = false\n";
        let text = format!("[server]\nworkers = 2\n{settings}\n{rest}{app}");
        fs::write(folder.join("f.toml"), text).unwrap();
        let names = "LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=fanfare.socket:api";
        let script = match &passed {
            // Standard input and output are the way in for a test, which has no other.
            Some(_) => format!("exec 3<&0 4<&1 </dev/null >/dev/null; {names} exec \"$@\""),
            None => "exec \"$@\"".to_owned(),
        };
        let (stdin, stdout) = match passed {
            Some((tcp, unix)) => (OwnedFd::from(tcp).into(), OwnedFd::from(unix).into()),
            None => (Stdio::null(), Stdio::null()),
        };
        let child = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_fanfare"), "--config", "f.toml"])
            .current_dir(folder)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::from(fs::File::create(folder.join("log")).unwrap()))
            .spawn()
            .unwrap();
        let process = Self { child, folder: folder.to_owned(), successor: None };
        process.logs("listening");
        process
    }

    /// Waits for a line with `text`.
    fn logs(&self, text: &str) -> String {
        eventually(|| {
            let log = fs::read_to_string(self.folder.join("log")).unwrap();
            let line = log.lines().find(|line| line.contains(text)).map(str::to_owned);
            line.ok_or(log)
        })
        .unwrap()
    }

    /// The address that the line of the start calls `name`.
    fn address(&self, name: &str) -> SocketAddr {
        let line = self.logs("listening");
        let (_, rest) = line.split_once(&format!("{name}=")).unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    }

    fn hands_over(&mut self) -> u32 {
        kill(self.child.id(), "USR2");
        let line = self.logs("another process goes on");
        let digits: String =
            line.rsplit_once("pid").unwrap().1.chars().filter(char::is_ascii_digit).collect();
        let pid = digits.parse().unwrap();
        self.successor = Some(pid);
        eventually(|| self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())).unwrap();
        pid
    }

    fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command.args(["--config", "f.toml"]).args(arguments).current_dir(&self.folder);
        command.output().unwrap()
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
    let pid = pid.to_string();
    assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
}

fn hears(addr: SocketAddr, publish: impl FnOnce() -> Response) {
    let mut client = Client::open(addr, &target(KEY), &[]).unwrap();
    established(&client.hear_text()).unwrap();
    subscribe(&mut client, "c");
    assert_eq!(publish().status, 200);
    assert!(client.hear_text().contains("\"1\""));
}

#[test]
fn a_successor_takes_both_addresses_over() {
    let place = Place::new("api-hand-over");
    let settings = "port = 0\napi = { host = \"127.0.0.1\" }";
    let mut process = Process::start(&place.folder, settings, None);
    let (sockets, api) = (process.address("addr"), process.address("api"));
    hears(sockets, || publish(Http::connect(api), "c", "1"));
    process.hands_over();
    // By the very ports, which were any free ones.
    hears(sockets, || publish(Http::connect(api), "c", "1"));
    assert_eq!(publish(Http::connect(sockets), "c", "1").status, 404);
}

#[test]
fn a_successor_removes_the_file_at_its_end() {
    let place = Place::new("api-hand-over-unix");
    let settings = "port = 0\napi = { unix_socket = { path = \"s\" } }";
    let mut process = Process::start(&place.folder, settings, None);
    let sockets = process.address("addr");
    let first = process.hands_over();
    hears(sockets, || publish(place.http(), "c", "1"));
    kill(first, "TERM");
    process.successor = None;
    let gone =
        || if place.socket().exists() { Err("the file is there".to_owned()) } else { Ok(()) };
    eventually(gone).unwrap();
}

#[test]
fn systemd_passes_both_by_their_names() {
    let place = Place::new("api-activated");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let sockets = tcp.local_addr().unwrap();
    let unix = UnixListener::bind(place.socket()).unwrap();
    // No setting speaks of it: the unit does.
    let mut process = Process::start(&place.folder, "", Some((tcp, unix)));
    hears(sockets, || publish(place.http(), "c", "1"));
    assert_eq!(publish(Http::connect(sockets), "c", "1").status, 404);
    kill(process.child.id(), "TERM");
    eventually(|| process.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())).unwrap();
    assert!(place.socket().exists(), "systemd's to remove");
}

#[test]
fn commands_find_it_by_the_settings() {
    let place = Place::new("api-commands");
    let port = free_port();
    for api in [
        format!("{{ host = \"::1\", port = {port} }}"),
        "{ unix_socket = { path = \"s\" } }".into(),
    ] {
        let settings = format!("port = {}\napi = {api}", free_port());
        let process = Process::start(&place.folder, &settings, None);
        let sockets = process.address("addr");
        let mut client = Client::open(sockets, &target(KEY), &[]).unwrap();
        established(&client.hear_text()).unwrap();
        subscribe(&mut client, "c");
        let output = process.cli(&["trigger", "c", "e", "1"]);
        assert!(output.status.success(), "{output:?}");
        assert!(client.hear_text().contains("\"1\""));
        let output = process.cli(&["channels", "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(list["channels"]["c"].is_object(), "{list}");
        let output = process.cli(&["doctor"]);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.status.success() && text.contains("its own address"), "{text}");
        assert!(text.contains("a triggered event came back"), "{text}");
        assert!(process.cli(&["healthcheck"]).status.success());
        // From elsewhere, it has to be said.
        let url = format!("http://{sockets}");
        let output = process.cli(&["trigger", "c", "e", "2", "--url", &url]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("(server.api)"), "{output:?}");
        let output = process.cli(&["doctor", "--url", &url]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("--api-url"), "{output:?}");
        let api = match process.logs("listening") {
            line if line.contains("api=unix:") => "unix:s".to_owned(),
            _ => format!("http://[::1]:{port}"),
        };
        let output = process.cli(&["trigger", "c", "e", "3", "--url", &url, "--api-url", &api]);
        assert!(output.status.success(), "{output:?}");
        assert!(client.hear_text().contains("\"3\""));
    }
}

/// A server without settings tells its app to the commands by a file, and so its API's address.
#[test]
fn commands_find_that_of_a_server_without_apps() {
    let place = Place::new("api-made");
    let binary = env!("CARGO_BIN_EXE_fanfare");
    let fanfare = |arguments: &[&str]| {
        let mut command = Command::new(binary);
        command.args(arguments).current_dir(&place.folder).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", &place.folder);
        command
    };
    let server = fanfare(&["--port", "0"])
        .envs([("FANFARE_SERVER__API__UNIX_SOCKET__PATH", "s"), ("FANFARE_METRICS__PORT", "0")])
        .stdout(Stdio::null())
        .stderr(Stdio::from(fs::File::create(place.folder.join("log")).unwrap()))
        .spawn()
        .unwrap();
    let process = Process { child: server, folder: place.folder.clone(), successor: None };
    process.logs("listening");
    let trigger = || fanfare(&["trigger", "c", "e", "1"]).output().unwrap();
    eventually(|| {
        Some(trigger()).filter(|output| output.status.success()).ok_or_else(|| "no".to_owned())
    })
    .unwrap();
    let doctor = fanfare(&["doctor"]).output().unwrap();
    assert!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));
}
