//! A browser's tab: a client that connects to any node, signs in, subscribes to what it wants, and does all of it
//! again when it loses its connection, as pusher-js does. The frames that it hears go into its connection's view
//! (`view.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ledger::{Ledger, Outcome};
use super::verdict::{Kind, Wrong};
use super::view::View;
use crate::support::Chance;
use crate::support::fixture::{KEY, SECRET, target};
use crate::support::http::find;
use crate::support::sign::hmac_hex;
use crate::support::websocket::{CLOSE, FIN, Heard, PONG, TEXT, frame, handshake, take_frame};

const TICK: Duration = Duration::from_millis(50);
/// How long a handshake may take before the tab tries another node.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// The nodes that clients can reach: their keys and addresses.
pub type Doors = Arc<Mutex<BTreeMap<u64, SocketAddr>>>;

pub struct Tab {
    pub number: usize,
    pub user: String,
    doors: Doors,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    wants: BTreeSet<String>,
    /// Whom it watches; signed in only if there is a list.
    watchlist: Option<Vec<String>>,
    /// Whether it wants a connection at all.
    is_open: bool,
    is_over: bool,
    link: Option<Link>,
    /// Of connections that have ended too.
    wrongs: Vec<Wrong>,
}

struct Link {
    stream: Arc<TcpStream>,
    view: View,
}

/// A tab as it stands: what it wants, and what its connection was told.
pub struct Sight {
    pub number: usize,
    pub user: String,
    pub wants: BTreeSet<String>,
    pub watchlist: Option<Vec<String>>,
    pub is_open: bool,
    pub view: Option<View>,
}

impl Tab {
    pub fn start(
        number: usize,
        user: String,
        doors: &Doors,
        ledger: &Arc<Ledger>,
        seed: u64,
    ) -> Arc<Self> {
        let (doors, ledger) = (doors.clone(), ledger.clone());
        let tab = Arc::new(Self { number, user, doors, ledger, state: Mutex::default() });
        let living = tab.clone();
        thread::spawn(move || living.live(&mut Chance::seeded(seed)));
        tab
    }

    /// Opens it: it connects, signs in with this watchlist, and subscribes.
    pub fn open(&self, watchlist: Option<Vec<String>>) {
        let mut state = self.state();
        state.is_open = true;
        state.watchlist = watchlist;
    }

    /// Closes it, with a close frame or without a word. It comes back if it stays open.
    pub fn drop_connection(&self, politely: bool) {
        if let Some(link) = &self.state().link {
            if politely {
                link.send(&frame(FIN | CLOSE, &1000_u16.to_be_bytes()));
            } else {
                let _ = link.stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// It goes, and stays away until it is opened.
    pub fn close(&self, politely: bool) {
        self.state().is_open = false;
        self.drop_connection(politely);
    }

    pub fn is_open(&self) -> bool {
        self.state().is_open
    }

    /// Ends its thread.
    pub fn end(&self) {
        self.state().is_over = true;
        self.close(false);
    }

    /// Subscribes, or unsubscribes, unless an answer is still due; whether it did.
    pub fn toggle(&self, channel: &str) -> bool {
        let mut state = self.state();
        if state.wants.contains(channel) {
            let Some(link) = &mut state.link else { return false };
            if !link.view.is_in(channel) {
                return false;
            }
            link.view.channels.remove(channel);
            link.say("pusher:unsubscribe", &json!({ "channel": channel }));
            state.wants.remove(channel);
        } else {
            state.wants.insert(channel.to_owned());
            let user = &self.user;
            if let Some(link) = &mut state.link {
                link.subscribe(channel, user);
            }
        }
        true
    }

    /// Says something to the others of a private or presence channel that it is subscribed to.
    pub fn whisper(&self, channel: &str) {
        let state = self.state();
        let Some(link) = &state.link else { return };
        if !link.view.is_in(channel) {
            return;
        }
        let id = &link.view.socket_id;
        let number = self.ledger.publish(id, &[channel.to_owned()], Some(id.clone()));
        let said = json!({ "event": "client-e", "channel": channel, "data": number.to_string() });
        self.ledger.answer(number, Outcome::Taken);
        link.send(&frame(FIN | TEXT, said.to_string().as_bytes()));
    }

    pub fn sight(&self) -> Sight {
        let state = self.state();
        Sight {
            number: self.number,
            user: self.user.clone(),
            wants: state.wants.clone(),
            watchlist: state.watchlist.clone(),
            is_open: state.is_open,
            view: state.link.as_ref().map(|link| link.view.clone()),
        }
    }

    /// What it was told and should not have been, since this was asked.
    pub fn take_wrongs(&self) -> Vec<Wrong> {
        let mut state = self.state();
        let mut wrongs = std::mem::take(&mut state.wrongs);
        if let Some(link) = &mut state.link {
            wrongs.append(&mut link.view.wrongs);
        }
        wrongs
    }

    /// Forgets what it heard of events that are settled.
    pub fn forget_settled(&self) {
        if let Some(link) = &mut self.state().link {
            link.view.channels.values_mut().for_each(|told| told.heard.clear());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn live(&self, chance: &mut Chance) {
        while !self.state().is_over {
            let door = self.door(chance);
            let opened = door.and_then(|(node, addr)| Some((node, open(addr)?)));
            if let Some((node, (stream, ahead))) = opened {
                self.attend(node, Arc::new(stream), ahead);
            }
            thread::park_timeout(Duration::from_millis(20 + chance.below(80) as u64));
        }
    }

    fn door(&self, chance: &mut Chance) -> Option<(u64, SocketAddr)> {
        if !self.state().is_open {
            return None;
        }
        let doors = self.doors.lock().unwrap();
        let nth = chance.below(doors.len().max(1));
        doors.iter().nth(nth).map(|(key, addr)| (*key, *addr))
    }

    fn attend(&self, node: u64, stream: Arc<TcpStream>, mut ahead: Vec<u8>) {
        let mut buffer = [0; 16 << 10];
        loop {
            while let Some(heard) = take_frame(&mut ahead) {
                match heard {
                    Heard::Text(text) => self.hear(node, &stream, &text),
                    Heard::Ping(payload) => {
                        let _ = (&*stream).write_all(&frame(FIN | PONG, &payload));
                    }
                    Heard::Close(_) => {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    other => self.note(Kind::Refused, format!("{other:?}")),
                }
            }
            match (&*stream).read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => ahead.extend_from_slice(&buffer[..count]),
                Err(error) if is_no_news(&error) => {}
                Err(_) => break,
            }
            // Closed while it was on its way.
            if !self.state().is_open {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let mut state = self.state();
        if let Some(mut link) = state.link.take() {
            // What it whispered last may have got lost on its way.
            self.ledger.excuse(&link.view.socket_id, link.view.begun);
            state.wrongs.append(&mut link.view.wrongs);
        }
    }

    fn hear(&self, node: u64, stream: &Arc<TcpStream>, text: &str) {
        let frame: Value = serde_json::from_str(text).unwrap();
        let data = match &frame["data"] {
            Value::String(data) => serde_json::from_str(data).unwrap_or(Value::Null),
            data => data.clone(),
        };
        let mut state = self.state();
        let state = &mut *state;
        match frame["event"].as_str().unwrap() {
            "pusher:connection_established" => {
                let id = data["socket_id"].as_str().unwrap().to_owned();
                let view = View::new(self.number, &self.user, id, node);
                let link = state.link.insert(Link { stream: stream.clone(), view });
                if let Some(watchlist) = &state.watchlist {
                    link.sign_in(&self.user, watchlist);
                }
                state.wants.iter().for_each(|channel| link.subscribe(channel, &self.user));
            }
            "pusher:ping" => {
                if let Some(link) = &state.link {
                    link.say("pusher:pong", &json!({}));
                }
            }
            event => {
                let Some(link) = &mut state.link else { return };
                link.view.hear(event, &frame, &data);
                if event == "pusher:signin_success" {
                    link.subscribe(&format!("#server-to-user-{}", self.user), &self.user);
                }
            }
        }
    }

    fn note(&self, kind: Kind, text: String) {
        let text = format!("tab {}: {text}", self.number);
        self.state().wrongs.push(Wrong { kind, text });
    }
}

impl Link {
    fn send(&self, bytes: &[u8]) {
        // One that has hung up already takes none, which the reading thread finds out.
        let _ = (&*self.stream).write_all(bytes);
    }

    fn say(&self, event: &str, data: &Value) {
        let text = json!({ "event": event, "data": data }).to_string();
        self.send(&frame(FIN | TEXT, text.as_bytes()));
    }

    fn sign_in(&self, user: &str, watchlist: &[String]) {
        let user_data = json!({ "id": user, "watchlist": watchlist }).to_string();
        let text = format!("{}::user::{user_data}", self.view.socket_id);
        let auth = format!("{KEY}:{}", hmac_hex(SECRET, &text));
        self.say("pusher:signin", &json!({ "auth": auth, "user_data": user_data }));
    }

    fn subscribe(&mut self, channel: &str, user: &str) {
        let mut data = json!({ "channel": channel });
        let id = &self.view.socket_id;
        if channel.starts_with("presence-") {
            let channel_data =
                json!({ "user_id": user, "user_info": { "name": user } }).to_string();
            let auth = hmac_hex(SECRET, &format!("{id}:{channel}:{channel_data}"));
            data["auth"] = format!("{KEY}:{auth}").into();
            data["channel_data"] = channel_data.into();
        } else if channel.starts_with("private-") {
            let auth = hmac_hex(SECRET, &format!("{id}:{channel}"));
            data["auth"] = format!("{KEY}:{auth}").into();
        }
        self.say("pusher:subscribe", &data);
        self.view.channels.entry(channel.to_owned()).or_default();
    }
}

/// A WebSocket, with what was read after the handshake; none if the node does not answer in time or refuses.
fn open(addr: SocketAddr) -> Option<(TcpStream, Vec<u8>)> {
    let end = Instant::now() + HANDSHAKE;
    let mut stream = TcpStream::connect_timeout(&addr, HANDSHAKE).ok()?;
    stream.set_read_timeout(Some(TICK)).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(handshake(&target(KEY), &[]).as_bytes()).ok()?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while Instant::now() < end {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if is_no_news(&error) => continue,
            Err(_) => return None,
        }
        if let Some(at) = find(&answer, b"\r\n\r\n") {
            let ahead = answer.split_off(at + 4);
            return answer.starts_with(b"HTTP/1.1 101 ").then_some((stream, ahead));
        }
    }
    None
}

/// Whether a read has only ended before something came: its time was over, or this process was stopped and went on.
pub fn is_no_news(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
