//! A connection's way to a server that a test can cut: it passes bytes on, swallows what comes back, or takes
//! no connections at all.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Passes connections on to a port of the loopback. It ends with the test's process.
pub struct Way {
    addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Where connections go that are made from now on.
    port: AtomicU16,
    cut: AtomicBool,
    mute: AtomicBool,
    /// What is said to the server waits, for as long as it takes, even if who said it has gone.
    held: AtomicBool,
    /// Once this was said, nothing that the server answers comes back; on the connection where it was, or on any.
    last: Mutex<Vec<u8>>,
    alone: AtomicBool,
    /// What was changed on the way to the server.
    edits: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
    /// Connections that were made before it was last raised are held.
    generation: AtomicUsize,
}

/// Changes bytes on their way to the server; how often it did.
pub type Edit = fn(&mut [u8]) -> usize;

impl Way {
    pub fn to(port: u16, edit: Edit) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State { port: port.into(), ..State::default() });
        let passing = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // One that is made while the way is cut is closed at once.
                let port = passing.port.load(Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let mut open = passing.open.lock().unwrap();
                if passing.cut.load(Ordering::SeqCst) {
                    continue;
                }
                open.push(client.try_clone().unwrap());
                open.push(server.try_clone().unwrap());
                drop(open);
                let (to, from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (there, back) = (passing.clone(), passing.clone());
                let made = there.generation.load(Ordering::SeqCst);
                let own = Arc::new(AtomicBool::new(false));
                let said = own.clone();
                thread::spawn(move || {
                    pass(from, to, |bytes| {
                        if there.passes_there(bytes, edit, made) {
                            let alone = there.alone.load(Ordering::SeqCst);
                            let mute = if alone { &said } else { &there.mute };
                            mute.store(true, Ordering::SeqCst);
                        }
                        true
                    });
                });
                let is_mute =
                    move || own.load(Ordering::SeqCst) || back.mute.load(Ordering::SeqCst);
                thread::spawn(move || pass(server, client, |_| !is_mute()));
            }
        });
        Self { addr, state }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Ends all connections, and takes no more.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.state.mute.store(false, Ordering::SeqCst);
    }

    /// Leads to another server from now on; what is open goes on to the one before until it is cut.
    pub fn turn(&self, port: u16) {
        self.state.port.store(port, Ordering::SeqCst);
    }

    /// Swallows what the server answers until it is cut.
    pub fn mute(&self) {
        self.state.mute.store(true, Ordering::SeqCst);
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// What is said to the server on the connections that are there waits from now on. Those that are made anew
    /// from [`Self::forget`] on are others.
    pub fn hold(&self) {
        self.state.held.store(true, Ordering::SeqCst);
    }

    /// Whoever connects from now on is passed on at once; what waits, waits on.
    pub fn forget(&self) {
        self.state.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// What has waited goes to the server.
    pub fn release(&self) {
        self.state.held.store(false, Ordering::SeqCst);
    }

    /// How often something was changed on the way.
    pub fn edits(&self) -> usize {
        self.state.edits.load(Ordering::SeqCst)
    }

    /// Swallows what the server answers from when `last` is said to it until it is cut.
    pub fn mute_after(&self, last: &str) {
        self.state.alone.store(false, Ordering::SeqCst);
        *self.state.last.lock().unwrap() = last.as_bytes().to_vec();
    }

    /// The same on the connection alone where it is said.
    pub fn mute_alone_after(&self, last: &str) {
        self.mute_after(last);
        self.state.alone.store(true, Ordering::SeqCst);
    }
}

impl State {
    /// Whether what is the last to be answered is said.
    fn passes_there(&self, bytes: &mut [u8], edit: Edit, made: usize) -> bool {
        let is_old = || made == 0 || made < self.generation.load(Ordering::SeqCst);
        while self.held.load(Ordering::SeqCst) && is_old() {
            thread::park_timeout(Duration::from_millis(5));
        }
        self.edits.fetch_add(edit(bytes), Ordering::SeqCst);
        let mut last = self.last.lock().unwrap();
        let is_last = !last.is_empty() && bytes.windows(last.len()).any(|some| some == *last);
        if is_last {
            last.clear();
        }
        is_last
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, passes: impl Fn(&mut [u8]) -> bool) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 || (passes(&mut bytes[..count]) && to.write_all(&bytes[..count]).is_err()) {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
