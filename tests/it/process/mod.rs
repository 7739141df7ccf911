//! The program as a process: signals, what systemd passes and is told, and the hand-over to a new one.

mod clients;
mod delay;
mod unread;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use crate::support::fixture::{established, subscribe, target, trigger};
use crate::support::http::Http;
use crate::support::ports::free_port;
use crate::support::sign::Request;
use crate::support::websocket::{Client, Heard};
use crate::support::{DEADLINE, eventually};

const APP: &str = "[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"s\"\n";

/// A server in a process, which ends with the test.
struct Process {
    child: Child,
    folder: PathBuf,
    addr: SocketAddr,
    metrics: SocketAddr,
    /// Of the process that it was handed over to, until that has ended.
    successor: Option<u32>,
    notices: Receiver<String>,
}

/// What systemd is told there. It is read at once, as systemd does: a notice for which there is no room is lost.
fn notices(folder: &Path) -> Receiver<String> {
    let socket = UnixDatagram::bind(folder.join("notify")).unwrap();
    let (tell, told) = channel();
    // It ends with the tests.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match socket.recv(&mut buffer) {
                Ok(size) => {
                    let text = String::from_utf8(buffer[..size].to_vec()).unwrap();
                    if tell.send(text).is_err() {
                        return;
                    }
                }
                // This process was stopped and went on.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    told
}

/// A folder for a server of that name, with nothing in it.
fn empty_folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("process-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Process {
    /// Started without a listener, on a port that its log will name.
    fn on_any_port(folder: PathBuf, notices: Receiver<String>) -> Self {
        let settings = format!("[metrics]\nenabled = false\n{APP}");
        std::fs::write(folder.join("f.toml"), settings).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["--config", "f.toml", "--port", "0"])
            .current_dir(&folder)
            .env("NOTIFY_SOCKET", folder.join("notify"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(folder.join("log")).unwrap()))
            .spawn()
            .unwrap();
        let none = "127.0.0.1:0".parse().unwrap();
        Self { child, folder, addr: none, metrics: none, successor: None, notices }
    }

    /// Started as systemd would, with a listener as file 3.
    fn activated(name: &str, grace: &str) -> Self {
        Self::activated_on(name, grace, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn activated_on(name: &str, grace: &str, listener: TcpListener) -> Self {
        let folder = empty_folder(name);
        let port = free_port();
        let metrics = SocketAddr::from(([127, 0, 0, 1], port));
        let settings = format!(
            "[server]\nworkers = 2\nshutdown_grace = \"{grace}\"\n[metrics]\nport = {port}\n{APP}"
        );
        std::fs::write(folder.join("f.toml"), settings).unwrap();
        let notices = notices(&folder);
        let addr = listener.local_addr().unwrap();
        // The shell's pid is the server's.
        let script =
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ WATCHDOG_USEC=4000000 exec \"$@\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_fanfare"), "--config", "f.toml"])
            .current_dir(&folder)
            .env("NOTIFY_SOCKET", folder.join("notify"))
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(folder.join("log")).unwrap()))
            .spawn()
            .unwrap();
        let process = Self { child, folder, addr, metrics, successor: None, notices };
        process.hears("READY=1");
        process
    }

    /// The next notice that begins so; others are passed over.
    fn hears(&self, beginning: &str) -> String {
        loop {
            let told = self.notices.recv_timeout(DEADLINE);
            let text = told.unwrap_or_else(|error| {
                panic!("{error} before {beginning}; the log: {}", self.log())
            });
            if text.starts_with(beginning) {
                return text;
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn connect(&self) -> Client {
        let mut client = Client::open(self.addr, &target("k"), &[]).unwrap();
        established(&client.hear_text()).unwrap();
        client
    }

    fn ends(&mut self) -> ExitStatus {
        eventually(|| self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = self.successor {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn publish(addr: SocketAddr, channel: &str, data: &str) -> u16 {
    let body = trigger(channel, "e", data);
    Http::connect(addr).ask_signed(&Request::new("POST", "/apps/1/events", &body, "k", "s")).status
}

#[test]
fn systemd_is_told_how_it_goes() {
    let mut process = Process::activated("notify", "5s");
    process.hears("WATCHDOG=1");
    let mut client = process.connect();
    let settings = std::fs::read_to_string(process.folder.join("f.toml")).unwrap();
    let more = APP.replace("\"1\"", "\"2\"").replace("\"k\"", "\"k2\"");
    std::fs::write(process.folder.join("f.toml"), settings + &more).unwrap();
    process.signal("HUP");
    assert!(process.hears("RELOADING=1").contains("\nMONOTONIC_USEC="));
    process.hears("READY=1");
    assert!(
        Client::open(process.addr, &target("k2"), &[]).unwrap().hear_text().contains("socket_id")
    );
    process.signal("TERM");
    // The grace and some more.
    assert_eq!(process.hears("STOPPING=1"), "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000");
    assert!(client.hear_text().contains("4200"));
    client.hear_close(4200, "");
    assert!(process.ends().success(), "{}", process.log());
}

#[test]
fn who_comes_while_only_systemd_has_the_listener_is_served_by_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut first = Process::activated_on("first", "5s", listener.try_clone().unwrap());
    let mut client = first.connect();
    first.signal("TERM");
    first.hears("STOPPING=1");
    assert!(client.hear_text().contains("4200"));
    client.hear_close(4200, "");
    assert!(first.ends().success(), "{}", first.log());
    let mut waiting = Http::connect(first.addr);
    waiting.send("GET /up HTTP/1.1\r\nHost: x\r\n\r\n");
    let second = Process::activated_on("second", "5s", listener);
    assert_eq!(waiting.answer().status, 200);
    second.connect();
}

#[test]
fn a_reload_makes_the_log_as_talkative_as_is_wanted() {
    let process = Process::activated("level", "1s");
    let settings = std::fs::read_to_string(process.folder.join("f.toml")).unwrap();
    let reload = |level: &str| {
        let text = format!("{settings}[log]\nlevel = \"{level}\"\n");
        std::fs::write(process.folder.join("f.toml"), text).unwrap();
        process.signal("HUP");
        process.hears("RELOADING=1");
        process.hears("READY=1");
    };
    let refuse = |path: &str| {
        assert_eq!(Http::connect(process.addr).ask("GET", path, "", b"").status, 404);
    };
    refuse("/before");
    reload("debug");
    refuse("/while");
    reload("info");
    refuse("/after");
    assert!(!process.log().contains("takes effect at the next start"), "{}", process.log());
    reload("info\"\n[cluster]\nprefix = \"x");
    let log = process.log();
    assert!(log.contains("[cluster] changed: this takes effect at the next start"), "{log}");
    assert!(log.contains("path=\"/while\""), "{log}");
    // The first of a minute is told to everybody.
    assert!(log.contains("/before") && !log.contains("/after"), "{log}");
}

#[test]
fn the_log_shows_frames_to_who_debugs_and_refusals_to_everybody_once() {
    let process = Process::activated("frames", "1s");
    let get = |path: &str| Http::connect(process.addr).ask("GET", path, "", b"").status;
    let refused = |key: &str| {
        let mut client = Client::open(process.addr, &target(key), &[]).unwrap();
        assert!(client.hear_text().contains("4001"));
        client.hear();
    };
    // As many as come: the first is told of.
    for _ in 0..5 {
        refused("nobody");
        assert_eq!(get("/apps/1/channels"), 401);
        assert_eq!(get("/apps/nobody/channels"), 404);
        assert_eq!(get("/nothing"), 404);
    }
    let mut client = process.connect();
    let subscribe_with = |client: &mut Client, auth: &str| {
        client.send_text(&format!(
            r#"{{"event":"pusher:subscribe","data":{{"channel":"private-c","auth":"{auth}"}}}}"#
        ));
        assert!(client.hear_text().contains("subscription_error"));
        client.hear_text();
    };
    subscribe_with(&mut client, "k:wrong");
    subscribe_with(&mut client, "k:wrong");
    let log = process.log();
    for (line, times) in [
        ("a socket was refused: Application does not exist", 1),
        ("status=401 Unauthorized path=\"/apps/1/channels\" key=\"\" others=0", 1),
        ("status=404 Not Found path=\"/apps/nobody/channels\" key=\"\" others=0", 1),
        ("code=4009 others=0 why=\"Invalid signature", 1),
        ("/nothing", 1),
        ("private-c\" event", 0),
        ("connected", 0),
    ] {
        assert_eq!(log.matches(line).count(), times, "{line}: {log}");
    }

    let settings = std::fs::read_to_string(process.folder.join("f.toml")).unwrap();
    let settings = format!("{settings}[log]\nlevel = \"debug\"\n");
    std::fs::write(process.folder.join("f.toml"), settings).unwrap();
    process.signal("HUP");
    process.hears("RELOADING=1");
    process.hears("READY=1");
    assert_eq!(publish(process.addr, "room", "\"s3cr3t\""), 200);
    subscribe(&mut client, "room");
    assert_eq!(publish(process.addr, "room", "\"s3cr3t\""), 200);
    assert!(client.hear_text().contains("s3cr3t"));
    refused("nobody");
    drop(client);
    let log = eventually(|| match process.log() {
        log if log.contains("disconnected app=1") => Ok(log),
        log => Err(log),
    })
    .unwrap();
    for line in [
        "event=\"pusher:subscribe\" channel=\"room\"",
        "event=\"pusher_internal:subscription_succeeded\" channel=\"room\"",
        "published app=1 event=\"e\" channel=\"room\"",
        "sent to subscribers event=\"e\" channel=\"room\"",
        "DEBUG a socket was refused: Application does not exist",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(!log.contains("s3cr3t"), "{log}");
}

#[test]
fn journald_is_told_how_grave_a_line_is() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("process-journal");
    std::fs::create_dir_all(&folder).unwrap();
    // What all can read is warned of first.
    let file = folder.join("f.toml");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let log = folder.join("log");
    let run = |settings: &str, stream: Option<&str>| {
        let stderr = std::fs::File::create(&log).unwrap();
        let data = stderr.metadata().unwrap();
        let own = format!("{}:{}", data.dev(), data.ino());
        std::fs::write(&file, format!("{settings}{APP}")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["--config", "f.toml", "--port", "0"])
            .current_dir(&folder)
            .env("JOURNAL_STREAM", stream.unwrap_or(&own))
            .env("FANFARE_METRICS__ENABLED", "false")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr))
            .spawn()
            .unwrap();
        let read = || std::fs::read_to_string(&log).unwrap();
        let said = || if read().ends_with('\n') { Ok(read()) } else { Err(read()) };
        let text = eventually(said).unwrap();
        let _ = child.kill();
        child.wait().unwrap();
        text
    };
    let text = run("", None);
    // The line of io_uring may come first.
    assert!(text.starts_with("<6> INFO "), "{text}");
    let text = run("[log]\nformat = \"json\"\n", None);
    assert!(text.starts_with("<6>{\"timestamp\":"), "{text}");
    let text = run("[server]\nports = 1\n", None);
    assert!(text.starts_with("<3>fanfare: f.toml:2: server.ports: unknown key"), "{text}");
    // Another stream's name: standard error leads elsewhere.
    let text = run("", Some("1:2"));
    assert!(text.starts_with("20") && !text.contains('<'), "{text}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// What a thousand clients do may take longer than what one does.
fn patiently(mut fact: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let mut last = eventually(&mut fact);
    for _ in 0..5 {
        if last.is_err() {
            last = eventually(&mut fact);
        }
    }
    last
}

/// Clients that do as pusher-js does, connect again at once when they are closed, and a publisher: none
/// of them is refused while one process takes over from another, and nobody is left on the old one.
#[test]
fn a_hand_over_refuses_nobody() {
    const CLIENTS: usize = 1000;
    const THREADS: usize = 20;
    let mut process = Process::activated("hand-over", "4s");
    let addr = process.addr;
    let (done, moved, ready) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let open = || {
                    let mut client = Client::open(addr, &target("k"), &[]).unwrap();
                    established(&client.hear_text()).unwrap();
                    subscribe(&mut client, "c");
                    client
                };
                let clients: Vec<_> = (0..CLIENTS / THREADS).map(|_| open()).collect();
                ready.fetch_add(clients.len(), Ordering::Relaxed);
                let mut after = Vec::new();
                for mut client in clients {
                    // Events may come first; then the order to come again.
                    while !client.hear_text().contains(r#""code":4200"#) {}
                    assert!(matches!(client.hear(), Heard::Close(Some((4200, _)))));
                    after.push(open());
                    moved.fetch_add(1, Ordering::Relaxed);
                }
                patiently(
                    || if done.load(Ordering::Relaxed) { Ok(()) } else { Err(String::new()) },
                )
                .unwrap();
                // They are on the new process, where events go on.
                for mut client in after {
                    let mut text = client.hear_text();
                    while !text.contains("the last") {
                        text = client.hear_text();
                    }
                }
            });
        }
        let number = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        patiently(|| if number(&ready) == CLIENTS { Ok(()) } else { Err("some".to_owned()) })
            .unwrap();
        process.signal("USR2");
        let notice = process.hears("MAINPID=");
        let new: u32 = notice.trim_start_matches("MAINPID=").parse().unwrap();
        assert_ne!(new, process.child.id());
        process.successor = Some(new);
        while number(&moved) < CLIENTS {
            assert_eq!(publish(addr, "c", "1"), 200);
        }
        assert_eq!(publish(addr, "c", "the last"), 200);
        done.store(true, Ordering::Relaxed);
    });
    assert!(process.ends().success(), "{}", process.log());
    let log = process.log();
    assert!(log.contains("another process goes on"), "{log}");
    // The metrics are the new one's as soon as it has their address.
    eventually(|| match TcpStream::connect(process.metrics) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .unwrap();
    // The new one was started by the old one, so nobody else ends it.
    let new = process.successor.take().unwrap().to_string();
    assert!(Command::new("kill").arg(new).status().unwrap().success());
    eventually(|| match TcpStream::connect(addr) {
        Err(_) => Ok(()),
        Ok(_) => Err("somebody listens".to_owned()),
    })
    .unwrap();
}

/// Nobody has the listener after it, though it was handed it.
#[test]
fn a_successor_that_stops_refuses_as_the_first_does() {
    let folder = empty_folder("successor-stops");
    let notices = notices(&folder);
    let mut process = Process::on_any_port(folder, notices);
    process.hears("READY=1");
    let log = process.log();
    let (_, addr) = log.split_once("addr=").unwrap();
    process.addr = addr.split(' ').next().unwrap().parse().unwrap();
    process.signal("USR2");
    let notice = process.hears("MAINPID=");
    let new = notice.trim_start_matches("MAINPID=").to_owned();
    process.successor = new.parse().ok();
    assert!(process.ends().success(), "{}", process.log());
    let mut client = process.connect();
    // It stays for as long as there is one.
    assert!(Command::new("kill").arg(&new).status().unwrap().success());
    let refused = || {
        let mut late = Client::open(process.addr, &target("k"), &[]).ok()?;
        Some(late.hear_text()).filter(|text| text.contains("\"code\":4100"))
    };
    eventually(|| refused().map(drop).ok_or_else(|| process.log())).unwrap();
    assert!(client.hear_text().contains("4200"));
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let process = Process::activated("failed", "1s");
    let mut client = process.connect();
    std::fs::write(process.folder.join("f.toml"), "[server]\nport = \"x\"").unwrap();
    process.signal("USR2");
    eventually(|| match process.log() {
        log if log.contains("so this one goes on: it ended with exit status: 78") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    client.send_text(r#"{"event":"pusher:ping"}"#);
    assert_eq!(client.hear_text(), r#"{"event":"pusher:pong","data":"{}"}"#);
    process.connect();
}

#[test]
fn a_listener_may_be_the_standard_input() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .env("FANFARE_METRICS__ENABLED", "false")
        .envs([("FANFARE_APPS__0__ID", "1"), ("FANFARE_APPS__0__KEY", "k")])
        .env("FANFARE_APPS__0__SECRET", "s")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "serving\n");
    assert_eq!(publish(addr, "c", "1"), 200);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lines.read_to_string(&mut line).unwrap(), 0);
}
