//! A node without sockets, threads and time, for benches and for counting: what connections are told stays
//! in their outboxes until it is taken out.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use bytes::Bytes;
use fanfare::app::{App, Apps};
use fanfare::hub::Hub;
use fanfare::hub::addresses::ConnectionsPerAddress;
use fanfare::hub::capacity::Capacity;
use fanfare::hub::connection::Connection;
use fanfare::hub::directory::Directory;
use fanfare::hub::stream::Stream;
use fanfare::hub::worker::Worker;
use fanfare::metrics::Metrics;
use fanfare::node::{Node, Publication, Scope, ServerState, Succession};
use fanfare::protocol::channel::ChannelName;
use fanfare::protocol::command::Subscribe;
use fanfare::webhook::Webhooks;

/// One worker with its connections.
pub(crate) struct Stage {
    pub(crate) node: Rc<Node>,
    app: Arc<App>,
    directory: Arc<Directory>,
    pub(crate) connections: Vec<Rc<Connection>>,
}

impl Stage {
    /// With so many connections, each subscribed to each of `channels`.
    pub(crate) fn new(connections: usize, channels: &[&str]) -> Self {
        let app = App::new("id", "key", "secret");
        let Ok(apps) = Apps::new([app.clone()]) else { unreachable!("one app is no duplicate") };
        let shared = Arc::new(ServerState {
            apps: Arc::new(ArcSwap::from_pointee(apps)),
            hub: Hub::new(1, 1),
            metrics: Metrics::new(1),
            draining: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            capacity: Capacity::new(0, 0),
            addresses: ConnectionsPerAddress::new(0, 0),
            webhooks: Webhooks::default(),
            scope: Scope::Alone,
            lookup: None,
            succession: Succession::default(),
        });
        let node = Node::new(shared.clone(), Worker::new(shared.hub.clone(), 0));
        let directory = shared.hub.directory(&app.id);
        let mut stage = Self { node, app: Arc::new(app), directory, connections: Vec::new() };
        for _ in 0..connections {
            let connection = stage.connect();
            channels.iter().for_each(|channel| stage.subscribe(&connection, channel));
            stage.connections.push(connection);
        }
        stage.settle();
        stage
    }

    /// One more connection, which the caller keeps.
    pub(crate) fn connect(&self) -> Rc<Connection> {
        self.connect_over(Stream::Detached)
    }

    /// The same, over a stream that takes what it is told.
    pub(crate) fn connect_over(&self, stream: Stream) -> Rc<Connection> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match self.node.connect_new(&self.app, stream, address, Bytes::new()) {
            Ok(connection) => connection,
            Err((error, _)) => panic!("no room: {error:?}"),
        }
    }

    pub(crate) fn subscribe(&self, connection: &Rc<Connection>, channel: &str) {
        let request = Subscribe { channel: channel.to_owned(), auth: None, channel_data: None };
        if let Err(error) = self.node.subscribe(connection, &request) {
            panic!("{channel}: {error:?}");
        }
    }

    /// Publishes an event as a backend does. It is delivered by [`Self::deliver`].
    pub(crate) fn publish(&self, channel: &ChannelName, data: &str) {
        let publication = Publication { channel, event: "event", data, except: None, trace: None };
        self.node.publish(&self.app, &self.directory, publication);
    }

    /// Puts what was published into the outboxes.
    pub(crate) fn deliver(&self) {
        self.node.worker.deliver_now();
    }

    /// Empties all outboxes; the bytes that were in them.
    pub(crate) fn settle(&self) -> usize {
        self.deliver();
        self.connections.iter().map(|connection| connection.take_queued().len()).sum()
    }
}

/// A channel's name.
pub(crate) fn name(text: &str) -> ChannelName {
    match ChannelName::parse(text, 200) {
        Ok(name) => name,
        Err(error) => panic!("{text}: {error:?}"),
    }
}

/// The token of a JSON string of so many bytes of text, some of which had to be escaped.
pub(crate) fn data(size: usize) -> String {
    let text: String =
        r#"{"order":"4711","state":"shipped"},"#.chars().cycle().take(size).collect();
    serde_json::Value::from(text).to_string()
}
