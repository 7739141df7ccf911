//! A supervisor that does not read what it is told.

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::channel;

use super::{Process, empty_folder};
use crate::support::eventually;

#[test]
fn a_supervisor_that_does_not_read_kept_signals_from_the_server() {
    let folder = empty_folder("unread");
    let supervisor = UnixDatagram::bind(folder.join("notify")).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.connect(folder.join("notify")).unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send(b"STATUS=of another service").is_ok() {}
    let (_, notices) = channel();
    let mut process = Process::on_any_port(folder, notices);
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
