//! Finds and describes connections of one worker for the debug console. `described.rs` has the description.

use super::connection::Connection;
use super::deflated::Compression;
use super::described::{DescribeTask, SocketQuery, SocketView};
use super::worker::Worker;
use crate::metrics::Transport;

/// Channels of a socket that are named.
const MAX_CHANNELS: usize = 200;

/// Sockets that one worker describes.
const MAX_SOCKETS: usize = 100;

impl Worker {
    /// Answers which sockets it carries that are asked about.
    pub(super) fn describe_sockets(&self, task: DescribeTask) {
        let DescribeTask { query, answer } = task;
        let (all, _) = self.some_connections(0, self.places());
        let found = all.iter().filter(|one| is_asked_for(&query, self, one)).take(MAX_SOCKETS);
        // The requester may have gone.
        let _ = answer.send(found.map(|one| view(self, one)).collect());
    }
}

/// All parts that are given must match.
fn is_asked_for(query: &SocketQuery, worker: &Worker, one: &Connection) -> bool {
    let is_user = |id: &String| {
        one.with_user(|user| user.is_some_and(|user| user.id.as_str() == id))
            || one
                .subscriptions
                .borrow()
                .iter()
                .any(|subscription| subscription.user().is_some_and(|user| user.as_str() == id))
    };
    query.socket.is_none_or(|socket| socket == one.id)
        && query.app.as_ref().is_none_or(|app| one.app().id.as_str() == app)
        && query.user.as_ref().is_none_or(is_user)
        && (query.channel.as_ref())
            .is_none_or(|channel| worker.subscribed_as(one, channel).is_some())
}

/// Copied, since it leaves the worker's thread.
fn view(worker: &Worker, one: &Connection) -> SocketView {
    let channels = worker.channels.borrow();
    let subscriptions = one.subscriptions.borrow();
    let named = subscriptions.iter().take(MAX_CHANNELS).filter_map(|subscription| {
        let (channel, user) = (subscription.channel, subscription.user());
        let name = channels.get(channel)?.name.to_string();
        Some((name, user.as_ref().map(|user| user.as_str().to_owned())))
    });
    let now = worker.now_seconds();
    let session = if one.is_session() { Transport::SocketIo } else { Transport::WebSocket };
    let transport = one.over_http(|stream| stream.transport()).unwrap_or(session).label();
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
