//! A TCP proxy between one node and Redis that misbehaves as networks do: it cuts, stalls one direction, delays,
//! resets, or holds the bytes of old connections back and releases them later. It knows nothing of Redis.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::tab::is_no_news;

/// How often a thread looks whether something has changed.
const TICK: Duration = Duration::from_millis(20);
/// Pieces of at most 16 KiB that wait in one direction; more is left to the kernel and the sender.
const MAX_WAITING: usize = 64;

/// It ends with the test's process.
pub struct Proxy {
    addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToRedis,
    FromRedis,
}

#[derive(Default)]
struct State {
    refuses: AtomicBool,
    stalls: [AtomicBool; 2],
    delay_ms: AtomicU64,
    links: Mutex<Vec<Arc<Link>>>,
}

/// One connection through the proxy.
struct Link {
    /// Dropped by the threads alone, so that the last of them closes the sockets.
    ends: [Weak<TcpStream>; 2],
    is_held: AtomicBool,
    is_reset: AtomicBool,
}

impl Proxy {
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let passing = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    passing.clone().join_up(client, server);
                }
            }
        });
        Self { addr, state }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Ends all connections, and takes no more until it is mended.
    pub fn cut(&self) {
        let links = self.state.links.lock().unwrap();
        self.state.refuses.store(true, Ordering::SeqCst);
        for end in links.iter().flat_map(|link| &link.ends).filter_map(Weak::upgrade) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// From now on everything passes at once, what was held back too.
    pub fn mend(&self) {
        let links = self.state.links.lock().unwrap();
        self.state.refuses.store(false, Ordering::SeqCst);
        self.state.stalls.iter().for_each(|stall| stall.store(false, Ordering::SeqCst));
        self.state.delay_ms.store(0, Ordering::SeqCst);
        links.iter().for_each(|link| link.is_held.store(false, Ordering::SeqCst));
    }

    /// Nothing passes in this direction.
    pub fn stall(&self, direction: Direction) {
        self.state.stalls[direction as usize].store(true, Ordering::SeqCst);
    }

    /// Everything that comes from now on passes so much later, in both directions.
    pub fn delay(&self, by: Duration) {
        self.state.delay_ms.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Nothing passes to Redis on the connections that are open; new ones are free.
    pub fn hold(&self) {
        let links = self.state.links.lock().unwrap();
        links.iter().for_each(|link| link.is_held.store(true, Ordering::SeqCst));
    }

    /// Ends all connections as a firewall does that has forgotten them.
    pub fn reset(&self) {
        let links = self.state.links.lock().unwrap();
        links.iter().for_each(|link| link.is_reset.store(true, Ordering::SeqCst));
    }

    /// The addresses under which Redis knows the connections.
    pub fn sources(&self) -> Vec<SocketAddr> {
        let links = self.state.links.lock().unwrap();
        let servers = links.iter().filter_map(|link| link.ends[1].upgrade());
        servers.filter_map(|server| server.local_addr().ok()).collect()
    }
}

impl State {
    fn join_up(self: Arc<Self>, client: TcpStream, server: TcpStream) {
        let [client, server] = [client, server].map(|end| {
            let _ = end.set_nodelay(true);
            end.set_read_timeout(Some(TICK)).unwrap();
            Arc::new(end)
        });
        let mut links = self.links.lock().unwrap();
        if self.refuses.load(Ordering::SeqCst) {
            return;
        }
        let ends = [Arc::downgrade(&client), Arc::downgrade(&server)];
        let link = Arc::new(Link { ends, is_held: false.into(), is_reset: false.into() });
        links.retain(|link| link.ends[1].strong_count() > 0);
        links.push(link.clone());
        drop(links);
        let ways = [(client.clone(), server.clone()), (server, client)];
        for (direction, (from, to)) in
            [Direction::ToRedis, Direction::FromRedis].into_iter().zip(ways)
        {
            let (sender, receiver) = sync_channel(MAX_WAITING);
            let (state, reading, writing) = (self.clone(), link.clone(), link.clone());
            thread::spawn(move || {
                state.read(&from, &reading, &sender);
            });
            let state = self.clone();
            thread::spawn(move || state.write(&to, &writing, &receiver, direction));
        }
    }

    fn read(&self, from: &TcpStream, link: &Link, sender: &SyncSender<(Instant, Vec<u8>)>) {
        let mut bytes = [0; 16 << 10];
        while !link.is_reset.load(Ordering::SeqCst) {
            match (&*from).read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => {
                    let delay = Duration::from_millis(self.delay_ms.load(Ordering::SeqCst));
                    let piece = (Instant::now() + delay, bytes[..count].to_vec());
                    if sender.send(piece).is_err() {
                        return;
                    }
                }
                Err(error) if is_no_news(&error) => {}
                Err(_) => return,
            }
        }
    }

    /// Ends the stream only in its own direction: what is held back outlives the node's end of it.
    fn write(
        &self,
        to: &TcpStream,
        link: &Link,
        pieces: &Receiver<(Instant, Vec<u8>)>,
        direction: Direction,
    ) {
        loop {
            let piece = pieces.recv_timeout(TICK);
            if let Ok((due, _)) = &piece {
                while *due > Instant::now() || self.is_stalled(link, direction) {
                    if link.is_reset.load(Ordering::SeqCst) {
                        break;
                    }
                    let wait = due.saturating_duration_since(Instant::now());
                    thread::park_timeout(wait.clamp(Duration::from_millis(1), TICK));
                }
            }
            if link.is_reset.load(Ordering::SeqCst) {
                let _ = SockRef::from(to).set_linger(Some(Duration::ZERO));
                return;
            }
            match piece {
                Ok((_, bytes)) if (&*to).write_all(&bytes).is_ok() => {}
                Err(RecvTimeoutError::Timeout) => {}
                _ => break,
            }
        }
        while self.is_stalled(link, direction) {
            thread::park_timeout(TICK);
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn is_stalled(&self, link: &Link, direction: Direction) -> bool {
        let is_held = direction == Direction::ToRedis && link.is_held.load(Ordering::SeqCst);
        is_held || self.stalls[direction as usize].load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::support::{DEADLINE, eventually};

    fn pair() -> (Proxy, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (Proxy::to(listener.local_addr().unwrap().port()), listener)
    }

    fn connected(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(proxy.addr).unwrap();
        let server = listener.accept().unwrap().0;
        // It has connected before it takes note of that: until then nothing can be held back or reset.
        let source = server.peer_addr().unwrap();
        let known = || proxy.sources().contains(&source).then_some(());
        eventually(|| known().ok_or_else(|| format!("{source} is not among its connections")))
            .unwrap();
        (client, server)
    }

    /// What comes within `time`.
    fn comes_within(time: Duration, mut stream: &TcpStream) -> Option<Vec<u8>> {
        stream.set_read_timeout(Some(time)).unwrap();
        let mut bytes = [0; 16];
        loop {
            match stream.read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read.ok().map(|count| bytes[..count].to_vec()),
            }
        }
    }

    fn comes(stream: &TcpStream) -> Option<Vec<u8>> {
        comes_within(DEADLINE, stream)
    }

    fn nothing_comes(stream: &TcpStream) {
        assert_eq!(comes_within(Duration::from_millis(150), stream), None);
    }

    #[test]
    fn what_is_held_back_comes_after_its_sender_has_gone_and_new_connections_pass() {
        let (proxy, listener) = pair();
        let (mut old, old_server) = connected(&proxy, &listener);
        proxy.hold();
        old.write_all(b"late").unwrap();
        drop(old);
        let (mut new, new_server) = connected(&proxy, &listener);
        new.write_all(b"new").unwrap();
        assert_eq!(comes(&new_server), Some(b"new".to_vec()));
        nothing_comes(&old_server);
        proxy.mend();
        assert_eq!(comes(&old_server), Some(b"late".to_vec()));
        assert_eq!(comes(&old_server), Some(Vec::new()));
    }

    #[test]
    fn a_stall_is_of_one_direction_a_delay_of_both_and_a_reset_is_no_end() {
        let (proxy, listener) = pair();
        let (client, server) = connected(&proxy, &listener);
        proxy.stall(Direction::FromRedis);
        (&client).write_all(b"there").unwrap();
        assert_eq!(comes(&server), Some(b"there".to_vec()));
        (&server).write_all(b"back").unwrap();
        nothing_comes(&client);
        proxy.mend();
        assert_eq!(comes(&client), Some(b"back".to_vec()));
        proxy.delay(Duration::from_millis(100));
        let begun = Instant::now();
        (&client).write_all(b"slow").unwrap();
        assert_eq!(comes(&server), Some(b"slow".to_vec()));
        assert!(begun.elapsed() >= Duration::from_millis(100));
        proxy.mend();
        assert_eq!(proxy.sources(), [server.peer_addr().unwrap()]);
        proxy.reset();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!((&client).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
