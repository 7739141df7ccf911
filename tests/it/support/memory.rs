//! A node without sockets, threads and time: what connections say is handed to their sessions, what they
//! are told is taken out of their outboxes, and the clock moves when the test says so.

use std::io::BufReader;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use fanfare::app::{App, Apps};
use fanfare::cluster::link::{self, LinkDriver};
use fanfare::cluster::topics::Topics;
use fanfare::hub::Hub;
use fanfare::hub::addresses::ConnectionsPerAddress;
use fanfare::hub::capacity::Capacity;
use fanfare::hub::connection::Connection;
use fanfare::hub::handles::ConnectionRef;
use fanfare::hub::stream::Stream;
use fanfare::hub::worker::Worker;
use fanfare::metrics::{Metrics, Transport};
use fanfare::node::{
    ClientClaim, Clustered, Node, PendingWithdrawal, Publication, ServerState, Succession,
};
use fanfare::protocol::channel::ChannelName;
use fanfare::protocol::member::UserId;
use fanfare::protocol::resume_token::PresentedToken;
use fanfare::protocol::socket_id::SocketId;
use fanfare::session::Session;
use fanfare::socket::{self, Socket, http_session};
use fanfare::webhook::Webhooks;

use super::fixture::{ID, KEY, SECRET};
use super::sign::hmac_hex;
use super::websocket::{Heard, take_frame};

/// Several workers, all on the test's own thread.
pub struct Memory {
    pub shared: Arc<ServerState>,
    pub nodes: Vec<Rc<Node>>,
    app: Arc<App>,
    now: u32,
}

/// One connection and its conversation.
pub struct Talk {
    pub session: Session,
    pub connection: Rc<Connection>,
    bytes: Vec<u8>,
}

impl Memory {
    pub fn new(workers: usize, change: impl FnOnce(&mut App)) -> Self {
        let shared = shared(workers, change);
        Self::with_workers(shared, 0..workers as u16)
    }

    /// On a machine that has `bytes` of memory for it.
    pub fn with_memory(bytes: u64, change: impl FnOnce(&mut App)) -> Self {
        let mut shared = shared(1, change);
        Arc::get_mut(&mut shared).unwrap().capacity = Capacity::new(0, bytes);
        Self::with_workers(shared, 0..1)
    }

    /// One of several nodes, with one worker; its number, and what is beyond its link.
    pub fn of_several(number: u64, change: impl FnOnce(&mut App)) -> (Self, LinkDriver) {
        Self::with_queue(number, usize::MAX, change)
    }

    /// The same, where so many bytes may wait for the link.
    pub fn with_queue(
        number: u64,
        bytes: usize,
        change: impl FnOnce(&mut App),
    ) -> (Self, LinkDriver) {
        let (link, far, _) = link::new_link(bytes);
        let hub = Hub::new(number, 1);
        let cluster = Clustered::new(Arc::new(Topics::new(link, hub.held.clone())));
        let shared = shared_by(hub, 1, change, Some(Arc::new(cluster)));
        (Self::with_workers(shared, 0..1), far)
    }

    /// One worker of several that have threads of their own.
    pub fn part(shared: Arc<ServerState>, worker: u16) -> Self {
        Self::with_workers(shared, worker..worker + 1)
    }

    fn with_workers(shared: Arc<ServerState>, workers: std::ops::Range<u16>) -> Self {
        let node = |index| Node::new(shared.clone(), Worker::new(shared.hub.clone(), index));
        let nodes = workers.map(node).collect();
        let app = shared.apps.load().by_id(ID).unwrap().clone();
        Self { shared, nodes, app, now: 1 }
    }

    /// A connection on that worker, over `stream`.
    pub fn connect_over(&self, worker: usize, stream: Stream) -> Talk {
        self.connect_answered(worker, stream, "")
    }

    /// The same, whose handshake is answered with `answer`.
    pub fn connect_answered(&self, worker: usize, stream: Stream, answer: &'static str) -> Talk {
        let node = &self.nodes[worker];
        let (address, answer) =
            (IpAddr::V4(Ipv4Addr::LOCALHOST), Bytes::from_static(answer.as_bytes()));
        let connection = node.connect_new(&self.app, stream, address, answer).ok().unwrap();
        let session = Session::new(node.clone(), connection.clone());
        Talk { session, connection, bytes: Vec::new() }
    }

    /// A connection on that worker, greeted.
    pub fn connect(&self, worker: usize) -> Talk {
        let mut talk = self.connect_over(worker, Stream::Detached);
        assert!(
            matches!(talk.heard().as_slice(), [Heard::Text(text)] if text.contains("socket_id"))
        );
        talk
    }

    /// A connection of the client with that token, greeted.
    pub fn connect_as(&self, worker: usize, token: &str) -> Talk {
        let token = PresentedToken::parse(token).unwrap();
        self.nodes[worker].take_over(&self.shared.hub.directory(&self.app.id), &token.token);
        let talk = self.connect(worker);
        self.nodes[worker].go_on(&talk.connection, &token, None);
        talk
    }

    /// What a node finds out, of the others, of the client with that token before it is connected.
    pub fn claim(&self, worker: usize, token: &str) -> impl Future<Output = ClientClaim> + use<> {
        let (node, app) = (self.nodes[worker].clone(), self.app.clone());
        let token = PresentedToken::parse(token).unwrap();
        let others = self.shared.scope.others().unwrap().clone();
        async move { node.claim(&others, &app, &token).await }
    }

    /// A connection of the client with that token, after what was found out of it.
    pub fn connect_claimed(&self, worker: usize, token: &str, claim: ClientClaim) -> Talk {
        let token = PresentedToken::parse(token).unwrap();
        self.nodes[worker].take_over(&self.shared.hub.directory(&self.app.id), &token.token);
        let talk = self.connect(worker);
        self.nodes[worker].go_on(&talk.connection, &token, Some(claim));
        talk
    }

    /// What goes on in this one's place, with its clients that may come back, on as many workers.
    pub fn hand_over(&self) -> Self {
        let app = (*self.app).clone();
        let shared = shared_by(
            Hub::new(self.shared.hub.node_number() + 1, self.nodes.len()),
            self.nodes.len(),
            |new| *new = app,
            None,
        );
        self.shared.succession.begin_leaving();
        self.nodes.iter().for_each(|node| node.freeze_clients());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let before = self.shared.clone();
        let telling = std::thread::spawn(move || before.bequeath(ours).unwrap());
        shared.inherit(&mut BufReader::new(theirs)).unwrap();
        telling.join().unwrap();
        Self::with_workers(shared, 0..self.nodes.len() as u16)
    }

    /// Lets every worker ping those of its connections that are to acknowledge events.
    pub fn ping_due(&self, now: Instant) {
        for node in &self.nodes {
            node.worker.ping_due(now);
        }
    }

    /// Hands a connection over to the task that a socket would have.
    pub fn carry(&self, talk: Talk) -> Socket {
        Socket::new(talk.session, &[], None)
    }

    /// As a backend does with `POST events`.
    pub fn publish(&self, worker: usize, channel: &str, event: &str, data: &str) {
        self.publish_except(worker, channel, (event, data), None);
    }

    /// The same with a `socket_id`.
    pub fn publish_except(
        &self,
        worker: usize,
        channel: &str,
        (event, data): (&str, &str),
        except: Option<SocketId>,
    ) {
        let name = ChannelName::parse(channel, 200).unwrap();
        let data = serde_json::Value::from(data).to_string();
        let directory = self.shared.hub.directory(&self.app.id);
        let publication = Publication { channel: &name, event, data: &data, except, trace: None };
        self.nodes[worker].publish(&self.app, &directory, publication);
    }

    /// As a backend does with `POST users/USER/unsubscribe`; what its answer waits for, in a runtime's context.
    pub fn withdraw(&self, worker: usize, user: &str, channels: &[&str]) -> PendingWithdrawal {
        let names = channels.iter().map(|name| ChannelName::parse(name, 200).unwrap()).collect();
        let directory = self.shared.hub.directory(&self.app.id);
        let user = UserId::parse(user).unwrap();
        self.nodes[worker].withdraw_channels((&self.app.id, &directory), &user, names)
    }

    /// The count of subscriptions, and the users in the channel.
    pub fn inspect(&self, channel: &str) -> (usize, usize) {
        let directory = self.shared.hub.directory(&self.app.id);
        let occupancy = self.nodes[0].shared.inspect_channel(&self.app.id, &directory, channel);
        (occupancy.subscriptions, occupancy.users)
    }

    /// Carries out what one worker has been asked.
    pub fn deliver(&self, worker: usize) {
        self.nodes[worker].worker.deliver_now();
    }

    pub fn deliver_all(&self) {
        (0..self.nodes.len()).for_each(|worker| self.deliver(worker));
    }

    /// Moves every worker's clock on by one second, and lets it look after `talk`.
    pub fn second(&mut self, talk: &Talk) {
        self.second_of(&talk.connection);
    }

    /// The same for a connection whose task has been begun.
    pub fn second_of(&mut self, connection: &Connection) {
        self.now += 1;
        for node in &self.nodes {
            node.worker.tick_clock(self.now);
        }
        socket::check_liveness(connection, self.now);
    }

    /// Opens a session of a client over HTTP on the first worker; to be called within a `LocalSet`.
    pub fn open_session(&self, name: &str) -> ConnectionRef {
        let (node, address) = (&self.nodes[0], IpAddr::V4(Ipv4Addr::LOCALHOST));
        http_session::open(node, &self.app, name, Transport::XhrPolling, address).unwrap().place
    }

    /// Moves the first worker's clock on by one second, and lets it look after its sessions over HTTP.
    pub fn second_over_http(&mut self) {
        self.now += 1;
        let worker = &self.nodes[0].worker;
        worker.tick_clock(self.now);
        worker.http_sessions().iter().for_each(|one| http_session::check_liveness(one, self.now));
    }
}

/// What all workers share, with one app.
pub fn shared(workers: usize, change: impl FnOnce(&mut App)) -> Arc<ServerState> {
    shared_by(Hub::new(1, workers), workers, change, None)
}

fn shared_by(
    hub: Arc<Hub>,
    workers: usize,
    change: impl FnOnce(&mut App),
    others: Option<Arc<Clustered>>,
) -> Arc<ServerState> {
    let mut app = App::new(ID, KEY, SECRET);
    change(&mut app);
    Arc::new(ServerState {
        apps: Arc::new(ArcSwap::from_pointee(Apps::new([app]).unwrap())),
        hub,
        metrics: Metrics::new(workers),
        draining: AtomicBool::new(false),
        retiring: AtomicBool::new(false),
        capacity: Capacity::new(0, 0),
        addresses: ConnectionsPerAddress::new(0, 0),
        webhooks: Webhooks::default(),
        scope: others.into(),
        lookup: None,
        succession: Succession::default(),
    })
}

impl Talk {
    pub fn id(&self) -> SocketId {
        self.connection.id
    }

    pub fn socket_id(&self) -> String {
        self.connection.id.to_string()
    }

    /// Says a text, as a socket would hand it on.
    pub fn say(&mut self, text: &str) {
        self.is_heard();
        self.session.on_text(text);
    }

    /// Any frame is a sign of life: a ping's answer does no more than this.
    pub fn is_heard(&self) {
        self.connection.life.heard.set(self.session.node().worker.now_seconds());
        self.connection.life.asked.set(0);
    }

    /// Subscribes as the user, if one is given and the channel is one of presence.
    pub fn subscribe(&mut self, channel: &str, user: &str) {
        let (mut data, mut signed) = (String::new(), format!("{}:{channel}", self.socket_id()));
        if channel.starts_with("presence-") {
            let user = format!(r#"{{"user_id":"{user}"}}"#);
            signed = format!("{signed}:{user}");
            data = format!(r#","channel_data":{}"#, serde_json::Value::from(user));
        }
        let auth = format!("{KEY}:{}", hmac_hex(SECRET, &signed));
        self.say(&format!(
            r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"{auth}"{data}}}}}"#
        ));
    }

    /// Signs in as the user with this `user_data`.
    pub fn sign_in(&mut self, user: &str) {
        let signed = format!("{}::user::{user}", self.socket_id());
        let auth = format!("{KEY}:{}", hmac_hex(SECRET, &signed));
        let data = serde_json::json!({ "auth": auth, "user_data": user });
        self.say(&serde_json::json!({ "event": "pusher:signin", "data": data }).to_string());
    }

    pub fn unsubscribe(&mut self, channel: &str) {
        self.say(&format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":"{channel}"}}}}"#));
    }

    /// What the connection has been told since this was last asked.
    pub fn heard(&mut self) -> Vec<Heard> {
        // What a client has missed comes in parts.
        loop {
            let queued = self.connection.take_queued();
            if queued.is_empty() {
                break;
            }
            self.bytes.extend(queued);
            self.connection.flush();
        }
        let heard = std::iter::from_fn(|| take_frame(&mut self.bytes)).collect();
        assert!(self.bytes.is_empty(), "half a frame is queued");
        heard
    }
}
