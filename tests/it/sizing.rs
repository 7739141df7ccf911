//! The size of a server as it says it: in the line of its start, and `fanfare capacity` before it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::child::Child;

const APP: &str = "[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"s\"\n";

/// A folder with these files, its own.
fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("sizing-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for (file, text) in files {
        fs::write(folder.join(file), text).unwrap();
    }
    folder
}

/// The line by which a server with these files and arguments says that it listens.
fn start_line(name: &str, files: &[(&str, &str)], arguments: &[&str]) -> String {
    let folder = folder(name, files);
    let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--host", "127.0.0.1", "--port", "0"])
        .args(arguments)
        .env_clear()
        .env("FANFARE_METRICS__ENABLED", "false")
        .env("XDG_RUNTIME_DIR", &folder)
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let line = log.lines().map_while(Result::ok).find(|line| line.contains("listening"));
    child.kill().unwrap();
    child.wait().unwrap();
    line.unwrap()
}

#[test]
fn the_start_says_whence_the_apps_are_and_where_to_go() {
    let child = Child::start(&[("SERVER__PATH", "/ws")]);
    let url = format!(" url=http://{}/ws ", child.addr);
    let line = child.says(&["listening", &url, " apps=1 ", r#" from="environment" "#]);
    assert!(line.contains(" room=") && line.contains(" memory="), "{line}");
    let env = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=s\n";
    let with_more = format!("apps_file = {{ path = \"more.toml\" }}\n{APP}");
    let more = APP.replace("\"1\"", "\"2\"").replace("\"k\"", "\"l\"");
    for (name, files, arguments, words) in [
        ("made", vec![], vec![], r#" apps=1 from="made for this run" "#),
        ("env", vec![(".env", env)], vec![], r#" apps=1 from=".env" "#),
        (
            "files",
            vec![("f.toml", with_more.as_str()), ("more.toml", &more)],
            vec!["--config", "f.toml"],
            r#" apps=2 from="f.toml, more.toml" "#,
        ),
    ] {
        let line = start_line(name, &files, &arguments);
        assert!(line.contains(words), "{line}");
    }
}

/// What `fanfare capacity` says to a program that may open 512 files.
fn capacity(arguments: &str, settings: &[(&str, &str)]) -> Value {
    let script = format!("ulimit -n 512; exec \"$0\" capacity --json {arguments}");
    let output = Command::new("/bin/sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_fanfare")])
        .env_clear()
        .env("FANFARE_SERVER__WORKERS", "2")
        .envs(settings.iter().copied())
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Sockets that the bound of this name bears.
fn bears(said: &Value, name: &str) -> Option<u64> {
    let bounds = said["bounds"].as_array().unwrap();
    bounds.iter().find(|bound| bound["name"] == name).unwrap()["sockets"].as_u64()
}

#[test]
fn the_bound_that_comes_first_is_named() {
    let said = capacity("", &[]);
    // As many as a server that starts so has room for.
    assert_eq!((said["sockets"].as_u64(), said["first"].as_str()), (Some(424), Some("open files")));
    let child = Child::with_files(512, &[("SERVER__WORKERS", "2")]);
    child.says(&["listening", " room=424 "]);
    let said = capacity("", &[("FANFARE_SERVER__MAX_CONNECTIONS", "100")]);
    assert_eq!(said["first"], "server.max_connections");
    assert_eq!(said["sockets"], 100);
    let said = capacity("", &[("FANFARE_LIMITS__MEMORY", "10MiB")]);
    assert_eq!((&said["first"], &said["sockets"]), (&"limits.memory".into(), &0.into()));
}

#[test]
fn ports_and_memory_follow_the_settings() {
    let (one, three) = (capacity("", &[]), capacity("--upstreams 3", &[]));
    let ports = bears(&one, "proxy's ports").unwrap();
    assert_eq!(bears(&three, "proxy's ports"), Some(3 * ports));
    let unix = capacity("", &[("FANFARE_SERVER__UNIX_SOCKET__PATH", "s")]);
    assert_eq!(bears(&unix, "proxy's ports"), None);
    // Everybody else's sockets need none of this machine's ports.
    let certain = |said: &Value| {
        let bounds = said["bounds"].as_array().unwrap();
        bounds.iter().find(|bound| bound["name"] == "proxy's ports").unwrap()["certain"] == true
    };
    assert!(certain(&one));
    assert!(!certain(&capacity("", &[("FANFARE_SERVER__HOST", "0.0.0.0")])));
    let tls = [
        ("FANFARE_SERVER__TLS__CERT", "/nowhere.crt"),
        ("FANFARE_SERVER__TLS__KEY", "/nowhere.key"),
        ("FANFARE_LIMITS__MEMORY", "1GiB"),
    ];
    let (plain, tls) = (capacity("", &tls[2..]), capacity("", &tls));
    let least =
        |said: &Value| bears(said, "memory").unwrap().min(bears(said, "limits.memory").unwrap());
    assert!(least(&tls) < least(&plain));
}
