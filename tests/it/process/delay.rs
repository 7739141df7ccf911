//! A process between the order to stop and its end: it serves for the delay, then lets everybody go
//! over the grace.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Process, publish};
use crate::support::eventually;
use crate::support::fixture::subscribe;
use crate::support::http::Http;

/// What a load balancer sees: `/ready` says no at once, everybody is served until the delay is over.
#[test]
fn before_it_drains_all_is_served_for_the_delay() {
    let mut process = Process::activated("delay", "5s\"\nshutdown_delay = \"10s");
    let mut before = process.connect();
    subscribe(&mut before, "c");
    let (folder, port) = (process.folder.clone(), process.addr.port().to_string());
    let healthy = || {
        let mut check = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        check.args(["healthcheck", "--config", "f.toml", "--port", &port]).current_dir(&folder);
        check.stderr(Stdio::null()).status().unwrap().success()
    };
    assert!(healthy());
    let begun = Instant::now();
    process.signal("TERM");
    // The delay, the grace and some more.
    assert_eq!(process.hears("STOPPING=1"), "STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000");
    let addr = process.addr;
    let ready = || Http::connect(addr).ask("GET", "/ready", "", b"");
    eventually(|| match ready() {
        answer if answer.status == 503 => Ok(()),
        answer => Err(answer.status.to_string()),
    })
    .unwrap();
    let mut meanwhile = process.connect();
    subscribe(&mut meanwhile, "c");
    assert_eq!(publish(process.addr, "c", "1"), 200);
    assert!(healthy(), "it lives until it ends");
    for client in [&mut before, &mut meanwhile] {
        assert!(client.hear_text().contains(r#""event":"e""#));
        assert!(client.hear_text().contains("4200"));
        client.hear_close(4200, "");
    }
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(process.ends().success(), "{}", process.log());
    assert!(!healthy());
}

#[test]
fn a_second_order_to_stop_ends_the_delay_at_once() {
    let mut process = Process::activated("impatient", "5s\"\nshutdown_delay = \"1h");
    let _client = process.connect();
    process.signal("TERM");
    process.hears("STOPPING=1");
    process.signal("TERM");
    let status = process.ends();
    assert_eq!((status.code(), status.signal()), (Some(128 + 15), None), "{}", process.log());
}

/// One leaves every 25 ms and worker, so that six hundred take seven seconds and a half.
#[test]
fn the_log_says_how_many_are_left_while_they_leave() {
    let mut process = Process::activated("progress", "10s");
    let clients: Vec<_> = (0..600).map(|_| process.connect()).collect();
    process.signal("TERM");
    eventually(|| match process.log() {
        log if log.contains("draining connections=") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    drop(clients);
    assert!(process.ends().success(), "{}", process.log());
}
