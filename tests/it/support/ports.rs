//! Ports for servers that are told theirs, and that may go and come again. Listeners that may have any port ask the
//! kernel for one instead.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Below those that Linux gives to listeners on port 0 and to outgoing connections: who gets one from there while a
/// server restarts has taken its port, and a connection to a port of nobody may even be made from that port to itself.
const FIRST: u16 = 10_000;
const END: u16 = 32_768;

/// So many are taken at once; who listens on the first of them has the others.
const BLOCK: u16 = 100;

/// Those that this process may still hand out, and what holds them.
static OWN: Mutex<(Range<u16>, Vec<TcpListener>)> = Mutex::new((0..0, Vec::new()));

/// A port that nobody listens on, and that nobody else is given: neither by this, in this process or another, nor by the
/// kernel, where that is set up as usual.
pub fn free_port() -> u16 {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(port) = own.0.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
        let mut firsts = (FIRST..END - BLOCK).step_by(BLOCK.into());
        let block = firsts.find_map(|first| Some((first, bound(first)?)));
        let (first, holder) = block.expect("a block of ports that nobody has");
        own.1.push(holder);
        own.0 = first + 1..first + BLOCK;
    }
}

/// On all addresses, so that it is held against servers on any.
fn bound(port: u16) -> Option<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).ok()
}
