//! Sockets as a person sees them who looks for one: asked of the worker that carries them, and answered from there.

use std::net::IpAddr;

use tokio::sync::oneshot;

use super::connection::Connection;
use super::deflated::Compression;
use super::subscriptions::Subscription;
use super::worker::Worker;
use crate::protocol::socket_id::SocketId;

/// Channels of a socket that are named.
const MAX_CHANNELS: usize = 200;

/// Sockets that one worker describes.
const MAX_SOCKETS: usize = 100;

/// Which sockets are asked about; what is left out is not looked at.
#[derive(Debug, Default, Clone)]
pub struct SocketQuery {
    pub socket: Option<SocketId>,
    /// The id of an app.
    pub app: Option<String>,
    pub channel: Option<String>,
    pub user: Option<String>,
}

/// One socket.
#[derive(Debug)]
pub struct SocketView {
    pub id: SocketId,
    pub app: String,
    pub address: IpAddr,
    /// Signed in as.
    pub user: Option<String>,
    /// Seconds since it was let in.
    pub age: u32,
    /// Seconds since it was last heard.
    pub silent: u32,
    /// The first of its channels, each with the user that it is present as.
    pub channels: Vec<(String, Option<String>)>,
    /// How many those are in all.
    pub channel_count: usize,
    /// Bytes that wait to be written.
    pub waiting: usize,
    /// `websocket`, or by which requests.
    pub transport: &'static str,
    pub is_compressed: bool,
    /// Its client may come back and go on.
    pub is_resumable: bool,
}

/// A question to one worker.
#[derive(Debug)]
pub struct Describe {
    pub query: SocketQuery,
    pub answer: oneshot::Sender<Vec<SocketView>>,
}

impl Describe {
    /// Answers from what the worker carries.
    pub(super) fn answer(self, worker: &Worker) {
        let (all, _) = worker.some_connections(0, worker.places());
        let found = all.iter().filter(|one| self.query.matches(worker, one)).take(MAX_SOCKETS);
        // Whoever asked may have gone.
        let _ = self.answer.send(found.map(|one| view(worker, one)).collect());
    }
}

impl SocketQuery {
    fn matches(&self, worker: &Worker, one: &Connection) -> bool {
        let is_user = |id: &String| {
            one.with_user(|user| user.is_some_and(|user| user.id.as_str() == id))
                || one.subscriptions.borrow().iter().any(|subscription| {
                    subscription.user.as_ref().is_some_and(|user| user.as_str() == id)
                })
        };
        self.socket.is_none_or(|socket| socket == one.id)
            && self.app.as_ref().is_none_or(|app| one.app().id.as_str() == app)
            && self.user.as_ref().is_none_or(is_user)
            && (self.channel.as_ref())
                .is_none_or(|channel| worker.subscribed_as(one, channel).is_some())
    }
}

fn view(worker: &Worker, one: &Connection) -> SocketView {
    let channels = worker.channels.borrow();
    let subscriptions = one.subscriptions.borrow();
    let named = subscriptions.iter().take(MAX_CHANNELS).filter_map(|subscription| {
        let Subscription { channel, user, .. } = subscription;
        let name = channels.get(*channel)?.name.to_string();
        Some((name, user.as_ref().map(|user| user.as_str().to_owned())))
    });
    let now = worker.now_seconds();
    let transport = one.over_http(|stream| stream.transport().word()).unwrap_or("websocket");
    SocketView {
        id: one.id,
        app: one.app().id.to_string(),
        address: one.address,
        user: one.with_user(|user| user.map(|user| user.id.as_str().to_owned())),
        age: now.saturating_sub(one.life.since.get()),
        silent: now.saturating_sub(one.life.heard.get()),
        channels: named.collect(),
        channel_count: subscriptions.len(),
        waiting: one.queued_bytes(),
        transport,
        is_compressed: one.life.compression.get() != Compression::Off,
        is_resumable: one.resumption().is_some(),
    }
}
