//! A supervisor that does not read what it is told.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use super::{APP, Process};
use crate::support::eventually;

#[test]
fn a_supervisor_that_does_not_read_kept_signals_from_the_server() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("process-unread");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let settings = format!("[metrics]\nenabled = false\n{APP}");
    std::fs::write(folder.join("f.toml"), settings).unwrap();
    let supervisor = UnixDatagram::bind(folder.join("notify")).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.connect(folder.join("notify")).unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send(b"STATUS=of another service").is_ok() {}
    let child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--config", "f.toml", "--port", "0"])
        .current_dir(&folder)
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(folder.join("log")).unwrap()))
        .spawn()
        .unwrap();
    let none = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_, notices) = channel();
    let mut process =
        Process { child, folder, addr: none, metrics: none, successor: None, notices };
    eventually(|| match process.log() {
        log if log.contains("systemd cannot be told READY=1") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    process.signal("TERM");
    assert!(process.ends().success(), "{}", process.log());
    assert_eq!(process.log().matches("systemd cannot be told").count(), 1, "once");
    drop(supervisor);
}
