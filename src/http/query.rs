//! Responses that need a query over all nodes first.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::api::{Route, SignedCall};
use super::channel_list::{ChannelList, ListQuery};
use super::events::{Parameters, parse_object, parse_trigger};
use super::requested_info::RequestedInfo;
use crate::hub::directory::Occupancy;
use crate::node::{NodeQuery, NodesReply, PendingReply};
use crate::protocol::channel::ChannelName;
use crate::protocol::json::{JsonList, JsonObject};
use crate::protocol::member::UserId;

/// How far the waiting is.
#[derive(Debug, Default)]
pub(super) enum QueryState {
    /// Nothing has been looked at yet.
    #[default]
    New,
    /// The queue to Redis is long, so that the request waits before it publishes (backpressure).
    Waiting(oneshot::Receiver<()>),
    /// There is room, and the other nodes were not asked yet.
    Unasked,
    /// The answer is on its way.
    Asked(PendingReply),
    /// There is nothing more to wait for.
    Done,
}

impl QueryState {
    /// Waits until a publish need not wait for many others, if the request is one.
    /// Backpressure: a backend that publishes faster than Redis takes it is answered later, before
    /// it is refused. On a server of its own `room` gives nothing, and nothing waits.
    pub(super) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        room: impl FnOnce() -> Option<oneshot::Receiver<()>>,
    ) -> Poll<()> {
        if matches!(self, Self::New) {
            *self = room().map_or(Self::Unasked, Self::Waiting);
        }
        if let Self::Waiting(room) = self {
            // Nothing is sent: the sender is dropped, whether the queue is empty or Redis is away.
            let _ = ready!(Pin::new(room).poll(cx));
            *self = Self::Unasked;
        }
        Poll::Ready(())
    }

    /// Asks if there is something to ask, and waits for the answer.
    /// `ask` is called once, however often this is polled. Without anything to ask the reply is an
    /// empty one, and the facts are those of this node.
    pub(super) fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnOnce() -> Option<PendingReply>,
    ) -> Poll<NodesReply> {
        if matches!(self, Self::Unasked) {
            *self = ask().map_or(Self::Done, Self::Asked);
        }
        let Self::Asked(pending) = self else { return Poll::Ready(NodesReply::default()) };
        let reply = ready!(pending.poll_reply(cx));
        *self = Self::Done;
        Poll::Ready(reply)
    }
}

/// The query over all nodes that a request needs, if any. Also `None` for a request that will be refused, which is
/// answered without a query.
pub(super) fn query_of(call: &SignedCall<'_>, route: &Route, body: &[u8]) -> Option<NodeQuery> {
    let channel = |name: &str| ChannelName::parse(name, call.app.limits.max_channel_name).ok();
    Some(match route {
        Route::Channels => {
            let query = call.query();
            // The parameters mean the same as where the response is built: no prefix matches all channels.
            let prefix = query.get("filter_by_prefix").unwrap_or_default().to_owned();
            let info = RequestedInfo::new(query.get("info").unwrap_or_default());
            NodeQuery::Channels { prefix, users: info.has_fact("user_count") }
        }
        Route::Channel(name) => NodeQuery::Channel(channel(name)?),
        Route::Users(name) => NodeQuery::Users(channel(name)?),
        Route::Connections => NodeQuery::Connections,
        Route::Events | Route::BatchEvents => {
            let names = asked_channels(call, route, std::str::from_utf8(body).ok()?);
            if names.is_empty() {
                return None;
            }
            NodeQuery::Counts(names)
        }
        Route::Terminate(_) | Route::Unsubscribe(_) | Route::Reconnect(_) => return None,
    })
}

/// The channels whose counts the answer is to have.
/// Read before the request is answered, since Redis is asked for all of them at once; what is wrong with a request
/// is said later.
fn asked_channels(call: &SignedCall<'_>, route: &Route, body: &str) -> Vec<ChannelName> {
    if *route == Route::Events {
        // Most ask nothing, and need not be read twice.
        if !body.contains("\"info\"") && call.query().get("info").is_none() {
            return Vec::new();
        }
        let Ok(body) = parse_object(body) else { return Vec::new() };
        let trigger = parse_trigger(&Parameters { body, call: Some(call) }, call.app).ok();
        let asking = trigger.filter(|trigger| trigger.info.is_asked());
        // A request that does not parse asks for no counts; the parser that answers it reports why.
        return asking.map(|trigger| trigger.channels.to_vec()).unwrap_or_default();
    }
    let mut names: Vec<ChannelName> = Vec::new();
    let batch = parse_object(body).ok().and_then(|body| body.get_value("batch"));
    let batch = batch.and_then(JsonList::parse);
    // No more than can be published; a batch that is too large is refused anyway.
    for item in batch.iter().flatten().take(call.app.limits.max_batch) {
        let Some(body) = JsonObject::parse(item.get()) else { continue };
        let trigger = parse_trigger(&Parameters { body, call: None }, call.app).ok();
        let asking = trigger.filter(|trigger| trigger.info.is_asked());
        names.extend(asking.and_then(|trigger| trigger.channels.first().cloned()));
    }
    names
}

impl SignedCall<'_> {
    /// The list of every occupied channel that is wanted.
    /// Over all nodes where others were asked, else the channels of this one. The same holds for
    /// the methods below.
    pub(super) fn occupied_channels(&self, wanted: ListQuery) -> ChannelList {
        match self.known.occupied_channels() {
            Some(all) => self.lists.of(wanted, all),
            None => self.lists.of_here(&self.node.shared, wanted, &self.directory),
        }
    }

    /// How occupied a channel is.
    pub(super) fn channel_occupancy(&self, name: &ChannelName) -> Occupancy {
        self.known.channel_occupancy(name).unwrap_or_else(|| {
            self.node.shared.inspect_channel(&self.app.id, &self.directory, name.as_str())
        })
    }

    /// The token of the last event's data on a cache channel, and the seconds it is kept on.
    pub(super) fn last_event(&self, name: &ChannelName) -> Option<(String, u64)> {
        if !name.kind().cache {
            return None;
        }
        self.node.shared.last_event(&self.known, (&self.app.id, &self.directory), name)
    }

    /// The users present in a channel, in the order they came.
    pub(super) fn present_users(&self, name: &ChannelName) -> Vec<UserId> {
        self.node.shared.present_users(&self.known, (&self.app.id, &self.directory), name)
    }

    /// How many connections the app has.
    pub(super) fn connection_count(&self) -> usize {
        self.known.connection_count().unwrap_or_else(|| self.directory.connection_count())
    }
}
