//! The commands that people ask a server with: what they print, and what they say of a server that is not
//! as it should be.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use fanfare::app::App;
use fanfare::config::TlsFiles;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, webhook};
use crate::support::ports::free_port;
use crate::support::wire::file;

/// `fanfare` with these arguments, in a folder without settings.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command.env("SSL_CERT_FILE", file("one", "crt"));
    // Where no server without settings is, though its person may have started one.
    command.env("XDG_RUNTIME_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/nowhere"));
    command
}

/// The same, asked of the app of a fixture at `url`.
pub fn ask(url: &str, arguments: &[&str]) -> Output {
    let at = ["--url", url, "--app-id", ID, "--key", KEY, "--secret", SECRET];
    command(&[arguments, &at].concat()).output().unwrap()
}

pub fn url(fixture: &Fixture) -> String {
    format!("http://{}", fixture.addr)
}

pub fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn failure(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    std::str::from_utf8(&output.stderr).unwrap().trim_end()
}

/// `fanfare listen` while it runs.
struct Listening(Child, BufReader<ChildStdout>);

impl Listening {
    fn start(url: &str, arguments: &[&str]) -> Self {
        let at = ["--url", url, "--app-id", ID, "--key", KEY, "--secret", SECRET];
        let mut command = command(&[&["listen"], arguments, &at].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self(child, lines)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_event_is_triggered_and_heard() {
    let fixture = Fixture::start();
    let mut listening =
        Listening::start(&url(&fixture), &["public", "private-p", "presence-r", "--user", "ann"]);
    for channel in ["public", "private-p", "presence-r"] {
        let line = listening.line();
        let beginning = format!("{channel}\tpusher_internal:subscription_succeeded\t");
        assert!(line.starts_with(&beginning), "{line}");
        assert_eq!(line.contains("ann"), channel == "presence-r");
    }
    let output =
        ask(&url(&fixture), &["trigger", "private-p", "greeting", "{\"a\":\"é\u{1b}[2J\"}"]);
    assert_eq!(text(&output), "greeting was triggered on private-p.\n");
    assert_eq!(listening.line(), "private-p\tgreeting\t{\"a\":\"é\\u{1b}[2J\"}\n");
    let output = ask(&url(&fixture), &["trigger", "public", "e", "1", "--json"]);
    assert_eq!(text(&output), "{}\n");
    assert_eq!(listening.line(), "public\te\t1\n");
    // A user who is present is one from whom rights can be taken, and whose connections can be closed.
    let output = ask(&url(&fixture), &["revoke", "ann", "private-p", "private-q"]);
    assert_eq!(text(&output), "ann has left private-p, private-q.\n");
    let line = listening.line();
    assert!(line.starts_with("private-p\tpusher:subscription_error\t"), "{line}");
    assert!(line.contains("Access was withdrawn."), "{line}");
    let output = ask(&url(&fixture), &["terminate", "ann"]);
    assert_eq!(text(&output), "Connections of ann are closed.\n");
    assert!(listening.line().starts_with("-\tpusher:error\t"));
    assert_eq!(listening.line(), "");
    assert_eq!(listening.0.wait().unwrap().code(), Some(1));
}

#[test]
fn who_may_hear_nothing_listens_no_longer() {
    let fixture = Fixture::start();
    let mut listening = Listening::start(&url(&fixture), &["good", "bad name"]);
    assert!(listening.line().starts_with("good\tpusher_internal:subscription_succeeded\t"));
    assert!(listening.line().starts_with("bad name\tpusher:subscription_error\t"));
    assert!(listening.line().starts_with("-\tpusher:error\t"));
    fixture.publish("good", "e", "1");
    assert_eq!(listening.line(), "good\te\t1\n");
    let mut listening = Listening::start(&url(&fixture), &["bad name", "another bad name"]);
    while !listening.line().is_empty() {}
    assert_eq!(listening.0.wait().unwrap().code(), Some(1));
}

#[test]
fn channels_are_listed() {
    let fixture = Fixture::start();
    assert_eq!(text(&ask(&url(&fixture), &["channels"])), "No channel is occupied.\n");
    let (mut client, _) = fixture.connect();
    subscribe(&mut client, "news");
    subscribe(&mut client, "other");
    let output = ask(&url(&fixture), &["channels", "--prefix", "ne"]);
    assert_eq!(text(&output), "news         1\n");
    let output = ask(&url(&fixture), &["channels", "--json"]);
    let json: Value = serde_json::from_str(text(&output)).unwrap();
    let count = json!({ "subscription_count": 1 });
    assert_eq!(json, json!({ "channels": { "news": count, "other": count } }));
}

#[test]
fn events_are_printed_as_json() {
    let fixture = Fixture::start();
    let mut listening = Listening::start(&url(&fixture), &["c", "--json"]);
    let line: Value = serde_json::from_str(&listening.line()).unwrap();
    assert_eq!(line["event"], "pusher_internal:subscription_succeeded");
    fixture.publish("c", "e", "1");
    let line: Value = serde_json::from_str(&listening.line()).unwrap();
    assert_eq!(line, json!({ "event": "e", "channel": "c", "data": "1" }));
}

#[test]
fn a_server_that_is_well_is_found_well() {
    let fixture = Fixture::start();
    let output = ask(&url(&fixture), &["doctor", "--json"]);
    let found: Value = serde_json::from_str(text(&output)).unwrap();
    let subjects: Vec<_> = found.as_array().unwrap().iter().map(|one| &one["subject"]).collect();
    let all = ["settings", "server", "clock", "API", "WebSocket", "event", "HTTP fallback"];
    assert_eq!(subjects, all);
    assert!(found.as_array().unwrap().iter().all(|one| one["grade"] == "ok"), "{found}");
    assert!(output.status.success());
}

#[test]
fn a_server_with_tls_is_found_well() {
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.tls = Some(TlsFiles { cert: file("one", "crt"), key: file("one", "key") });
    });
    let port = fixture.addr.port();
    let output = ask(&format!("https://localhost:{port}"), &["doctor"]);
    assert!(text(&output).contains("TLS: the certificate is trusted"), "{}", text(&output));
    assert!(text(&output).contains("event: a triggered event came back"), "{}", text(&output));
    assert!(output.status.success());
    let url = format!("https://localhost:{port}");
    let at = ["doctor", "--url", &url, "--app-id", ID, "--key", KEY, "--secret", SECRET];
    let output = command(&at).env("SSL_CERT_FILE", file("two", "crt")).output().unwrap();
    assert!(text(&output).contains("issuer is not trusted here"), "{}", text(&output));
    failure(&output);
    // What `openssl req -x509` makes if it is told nothing else, trusted or not.
    let (cert, key) = (file("authority", "crt"), file("authority", "key"));
    let own = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.tls = Some(TlsFiles { cert: cert.clone(), key });
    });
    let url = format!("https://localhost:{}", own.addr.port());
    let at = ["doctor", "--url", &url, "--app-id", ID, "--key", KEY, "--secret", SECRET];
    let output = command(&at).env("SSL_CERT_FILE", &cert).output().unwrap();
    assert!(text(&output).contains("basicConstraints=critical,CA:FALSE"), "{}", text(&output));
    failure(&output);
    let output = ask(&format!("http://localhost:{port}"), &["doctor"]);
    assert!(text(&output).contains("This port speaks TLS"), "{}", text(&output));
    failure(&output);
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let fixture = Fixture::start();
    let doctor = |url: &str, id: &str, secret: &str| {
        let at = ["doctor", "--url", url, "--app-id", id, "--key", KEY, "--secret", secret];
        command(&at).output().unwrap()
    };
    let port = free_port();
    for (url, id, secret, sentence) in [
        (format!("http://127.0.0.1:{port}"), ID, SECRET, "server: http://127.0.0.1:"),
        (url(&fixture), ID, "another", "are key and secret those of this app on that server?"),
        (url(&fixture), "9", SECRET, "the server does not have this app"),
        (url(&fixture).replace("http", "https"), ID, SECRET, "it speaks plain HTTP there"),
    ] {
        let output = doctor(&url, id, secret);
        assert!(text(&output).contains(sentence), "{}", text(&output));
        assert_eq!(failure(&output), "fanfare: one thing is wrong");
    }
}

/// `fanfare` without settings, and what is asked of it in the next terminal.
#[test]
fn a_server_without_settings_is_found_by_other_commands() {
    let runtime =
        std::env::temp_dir().join(format!("fanfare-next-terminal-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&runtime);
    std::fs::create_dir_all(&runtime).unwrap();
    let nowhere = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command.args(arguments).current_dir(&runtime).env("XDG_RUNTIME_DIR", &runtime);
        command.env("FANFARE_METRICS__ENABLED", "false").stdin(Stdio::null());
        command
    };
    let before = nowhere(&["trigger", "c", "e", "1"]).output().unwrap();
    assert!(failure(&before).contains("no server without settings runs"), "{}", failure(&before));
    let mut server =
        nowhere(&["--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // What it prints comes before the file.
    let files = || std::fs::read_dir(runtime.join("fanfare")).ok()?.next()?.ok();
    let file = eventually(|| match files() {
        Some(file) if file.path().extension().is_some_and(|end| end == "json") => Ok(file),
        _ => Err("no file".to_owned()),
    });
    assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    let mut listening = nowhere(&["listen", "c"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(listening.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("c\tpusher_internal:subscription_succeeded\t{}"));
    assert!(nowhere(&["trigger", "c", "e", "1"]).output().unwrap().status.success());
    assert_eq!(lines.next().as_deref(), Some("c\te\t1"));
    assert!(nowhere(&["doctor"]).output().unwrap().status.success());
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    server.wait().unwrap();
    listening.wait().unwrap();
    assert!(files().is_none());
    std::fs::remove_dir_all(runtime).unwrap();
}

/// What the doctor says of a fixture that is not well, line by line.
fn findings(fixture: &Fixture) -> Vec<String> {
    let output = ask(&url(fixture), &["doctor"]);
    failure(&output);
    text(&output).lines().map(str::to_owned).collect()
}

#[test]
fn webhooks_that_do_not_arrive_are_found() {
    let mut app = App::new(ID, KEY, SECRET);
    // Nobody listens on the port of the discard service.
    app.webhooks = vec![webhook("http://127.0.0.1:9/")];
    let fixture = Fixture::with_config(vec![app], |config| {
        config.metrics.enabled = true;
    });
    let _client = fixture.subscribed("room");
    let sentence = "webhooks: the endpoint of webhook 0 of app 3 fails, ";
    eventually(|| match text(&ask(&url(&fixture), &["doctor"])) {
        said if said.contains(sentence) => Ok(()),
        said => Err(said.to_owned()),
    })
    .unwrap();
    let findings = findings(&fixture);
    assert!(findings.iter().any(|line| line.starts_with("FAIL  webhooks: ")), "{findings:#?}");
}

#[test]
fn a_full_server_is_found_to_be_full() {
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.max_connections = 1;
    });
    let _client = fixture.connect();
    let findings = findings(&fixture);
    let ready = "FAIL  ready: it has as many connections as server.max_connections";
    assert!(findings.iter().any(|line| line.starts_with(ready)), "{findings:#?}");
}

#[test]
fn without_an_app_nothing_is_asked() {
    let output = command(&["channels"]).output().unwrap();
    assert!(failure(&output).starts_with("fanfare: no app is configured here"));
    let output = command(&["channels", "--key", KEY]).output().unwrap();
    assert!(failure(&output).contains("need --url and --app-id"));
    let apps = [("0", "1"), ("1", "2")];
    let mut two = command(&["channels"]);
    for (index, id) in apps {
        two.env(format!("FANFARE_APPS__{index}__ID"), id);
        two.env(format!("FANFARE_APPS__{index}__KEY"), id);
        two.env(format!("FANFARE_APPS__{index}__SECRET"), "s");
    }
    assert_eq!(failure(&two.output().unwrap()), "fanfare: say which app with --app-id: 1, 2");
}

#[test]
fn shells_and_manuals_know_every_command() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-man");
    let _ = std::fs::remove_dir_all(&folder);
    let output = command(&["man", folder.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let completions = command(&["completions", "bash"]).output().unwrap();
    for name in [
        "trigger",
        "listen",
        "channels",
        "terminate",
        "revoke",
        "reconnect",
        "doctor",
        "capacity",
        "config",
        "keys",
    ] {
        let page = std::fs::read_to_string(folder.join(format!("fanfare-{name}.1"))).unwrap();
        assert!(page.contains(".TH"), "{page}");
        assert!(text(&completions).contains(name), "{name}");
    }
    assert!(folder.join("fanfare.1").exists());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_user_is_made_to_come_back() {
    let fixture = Fixture::start();
    let mut listening = Listening::start(&url(&fixture), &["presence-r", "--user", "ann"]);
    assert!(listening.line().starts_with("presence-r\tpusher_internal:subscription_succeeded\t"));
    let output = ask(&url(&fixture), &["reconnect", "ann"]);
    assert_eq!(text(&output), "Clients of ann are told to come back.\n");
    let line = listening.line();
    assert!(line.contains("Reconnect requested by the application"), "{line}");
}

#[test]
fn the_settings_are_shown_to_programs_too() {
    let output = command(&["config", "show", "--json"])
        .envs([("FANFARE_SERVER__PORT", "9000"), ("FANFARE_APPS__0__ID", ID)])
        .envs([("FANFARE_APPS__0__KEY", KEY), ("FANFARE_APPS__0__SECRET", SECRET)])
        .env("FANFARE_APPS__0__WEBHOOKS__0__URL", "https://hooks.example.test")
        .env("FANFARE_CLUSTER__REDIS", "redis://:s3cr3t@10.0.0.7")
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["server"]["port"], 9000);
    assert_eq!(shown["server"]["tls"], json!({ "cert": "", "key": "" }));
    assert_eq!(shown["sources"]["server.port"], "FANFARE_SERVER__PORT");
    assert_eq!(shown["sources"]["server.host"], "default");
    let app = &shown["apps"][0];
    assert_eq!((&app["id"], &app["max_batch"]), (&json!(ID), &json!(10)));
    assert_eq!(app["webhooks"][0]["url"], "https://hooks.example.test");
    assert_eq!(shown["sources"]["apps[0].webhooks[0].batch"], "default");
    assert_eq!(shown["cluster"]["redis"], "redis://********@10.0.0.7");
    let text = text(&output);
    assert!(!text.contains(SECRET) && !text.contains("s3cr3t"), "{text}");
}

#[test]
fn doctor_says_what_changes_while_it_watches() {
    let fixture = Fixture::start();
    let at = ["--app-id", ID, "--key", KEY, "--secret", SECRET, "--url", &url(&fixture)];
    let mut child = command(&[&["doctor", "--watch"], &at[..]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("a triggered event came back")));
    // Nothing is said while nothing changes; then all of it again.
    fixture.stop();
    let mut said = Vec::new();
    for line in lines.by_ref().skip_while(|line| !line.contains(" GMT")) {
        said.push(line);
        if said.last().is_some_and(|line| line.contains("FAIL  server: ")) {
            break;
        }
    }
    assert!(said.iter().any(|line| line.contains("nothing listens there")), "{said:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}
