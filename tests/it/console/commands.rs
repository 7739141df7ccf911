//! The commands that read the console's feed: what they print of a server that runs.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use super::{TOKEN, by_token};
use crate::support::eventually;
use crate::support::fixture::{Fixture, subscribe};

fn command(server: &Fixture, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.args(arguments).args(["--url", &format!("http://{}", server.addr)]);
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command
}

fn run(server: &Fixture, arguments: &[&str]) -> Output {
    command(server, arguments).output().unwrap()
}

/// A command that prints until it is killed.
struct Printing(Child, BufReader<ChildStdout>);

impl Printing {
    fn start(server: &Fixture, arguments: &[&str]) -> Self {
        let mut child = command(server, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let watched = || if server.is_watched() { Ok(()) } else { Err("not yet".to_owned()) };
        eventually(watched).unwrap();
        Self(child, lines)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.1.read_line(&mut line).unwrap() > 0, "it has ended");
        line
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watch_prints_what_is_asked_for() {
    let server = Fixture::start();
    let mut watch = Printing::start(&server, &["watch", "--kind", "subscribed,published"]);
    let (mut client, id) = server.connect();
    subscribe(&mut client, "orders");
    server.publish("orders", "shipped", "{}");
    let line = watch.line();
    assert!(line.contains("subscribed") && line.contains(&format!("orders {id}")), "{line:?}");
    let line = watch.line();
    assert!(line.contains("published") && line.contains("orders shipped ×1"), "{line:?}");
    let wrong = run(&server, &["watch", "--kind", "nonsense"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("published"), "{wrong:?}");
}

#[test]
fn watch_prints_json_for_programs() {
    let server = Fixture::start();
    let mut watch = Printing::start(&server, &["watch", "--json", "--payloads"]);
    server.publish("orders", "shipped", "the payload");
    let line = loop {
        let line: Value = serde_json::from_str(&watch.line()).unwrap();
        if line["kind"] == "published" {
            break line;
        }
    };
    assert_eq!((&line["event"], &line["data"]), (&"shipped".into(), &"the payload".into()));
}

#[test]
fn listen_to_all_hears_every_channel() {
    let server = Fixture::start();
    let mut listen = Printing::start(&server, &["listen", "--all"]);
    server.publish("orders", "shipped", "one");
    server.publish("private-other", "paid", "two");
    assert_eq!(listen.line(), "orders\tshipped\tone\n");
    assert_eq!(listen.line(), "private-other\tpaid\ttwo\n");
}

#[test]
fn top_is_a_page_where_nobody_looks_at_a_terminal() {
    let server = Fixture::start();
    let _client = server.subscribed("orders");
    let output = run(&server, &["top"]);
    assert!(output.status.success(), "{output:?}");
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(!page.contains('\u{1b}'), "{page:?}");
    for part in ["Connections            1", "Workers", "BUSIEST CHANNELS"] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
}

#[test]
fn a_locked_console_wants_its_token() {
    let server = by_token();
    let refused = run(&server, &["top"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("token"), "{refused:?}");
    let by_flag = run(&server, &["top", "--token", TOKEN]);
    assert!(by_flag.status.success(), "{by_flag:?}");
    let by_variable = command(&server, &["top"]).env("FANFARE_CONSOLE__TOKEN", TOKEN).output();
    assert!(by_variable.unwrap().status.success());
}
