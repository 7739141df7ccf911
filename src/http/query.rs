//! What queries see. A node of its own sees its directory; one of several asks Redis before it answers, in
//! one question for the whole request, and sees what it knows itself while Redis is away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::api::{Route, SignedCall};
use super::channel_list::{ChannelList, ListQuery};
use super::events::{self, RequestedInfo};
use crate::cluster::Topic;
use crate::cluster::link::{ClusterOccupancy, LinkQuery, LinkReply, LinkRequest};
use crate::hub::directory::Occupancy;
use crate::node::Node;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::query::Query;

/// What was found out about all nodes before the answer.
#[derive(Debug, Default)]
pub(super) struct QueryResult {
    /// Whom [`LinkQuery::Counts`] asked about, in its order.
    names: Vec<ChannelName>,
    answer: Option<LinkReply>,
}

/// How far that is.
#[derive(Debug, Default)]
pub(super) enum QueryState {
    #[default]
    New,
    /// What is to be published would have to wait for long, and so it waits here.
    Waiting(oneshot::Receiver<()>),
    Unasked,
    Asked(Vec<ChannelName>, oneshot::Receiver<LinkReply>),
    Done,
}

impl QueryState {
    /// Waits until a publish need not wait for many others, if the request is one.
    pub(super) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        room: impl FnOnce() -> Option<oneshot::Receiver<()>>,
    ) -> Poll<()> {
        if matches!(self, Self::New) {
            *self = room().map_or(Self::Unasked, Self::Waiting);
        }
        if let Self::Waiting(room) = self {
            // It is let go of, whatever became of the others.
            let _ = ready!(Pin::new(room).poll(cx));
            *self = Self::Unasked;
        }
        Poll::Ready(())
    }

    /// Asks if there is something to ask, and waits for the answer; nothing if Redis went away meanwhile.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnOnce() -> Option<(Vec<ChannelName>, oneshot::Receiver<LinkReply>)>,
    ) -> Poll<QueryResult> {
        if matches!(self, Self::Unasked) {
            *self = match ask() {
                Some((names, answer)) => Self::Asked(names, answer),
                None => Self::Done,
            };
        }
        let Self::Asked(names, answer) = self else { return Poll::Ready(QueryResult::default()) };
        let answer = ready!(Pin::new(answer).poll(cx)).ok();
        let names = std::mem::take(names);
        *self = Self::Done;
        Poll::Ready(QueryResult { names, answer })
    }
}

/// What a request that publishes waits for.
pub(super) fn publish_room(node: &Node, route: &Route) -> Option<oneshot::Receiver<()>> {
    let publishes = matches!(route, Route::Events | Route::BatchEvents);
    node.shared.cluster.as_ref().filter(|_| publishes)?.link().wait_for_room()
}

/// Asks what a request needs to know of all nodes.
pub(super) fn query_of(
    call: &SignedCall<'_>,
    route: &Route,
    body: &[u8],
) -> Option<(Vec<ChannelName>, oneshot::Receiver<LinkReply>)> {
    let cluster = call.node.shared.cluster.as_ref()?;
    let app = call.app.id.clone();
    let topic = |name: &str| {
        let channel = ChannelName::parse(name, call.app.limits.max_channel_name).ok()?;
        Some(Topic { app: app.clone(), channel })
    };
    let info = |query: &Query<'_>, fact| {
        RequestedInfo::new(query.get("info").unwrap_or_default().to_owned()).has_fact(fact)
    };
    let mut names = Vec::new();
    let question = match route {
        Route::Channels => {
            let query = call.query();
            let prefix = query.get("filter_by_prefix").unwrap_or_default().to_owned();
            let users = info(query, "user_count");
            LinkQuery::Channels { app, prefix, users }
        }
        Route::Channel(name) => LinkQuery::Channel(topic(name)?),
        Route::Users(name) => LinkQuery::Users(topic(name)?),
        Route::Connections => {
            // Those here are known to the moment.
            let count = call.directory.connection_count();
            cluster.link().send_request(LinkRequest::Connections { app: app.clone(), count });
            LinkQuery::Connections(app)
        }
        Route::Events | Route::BatchEvents => {
            names = events::asked_channels(call, route, std::str::from_utf8(body).ok()?);
            if names.is_empty() {
                return None;
            }
            let topic =
                |channel: &ChannelName| Topic { app: app.clone(), channel: channel.clone() };
            LinkQuery::Counts(names.iter().map(topic).collect())
        }
        Route::Terminate(_) | Route::Unsubscribe(_) | Route::Reconnect(_) => return None,
    };
    Some((names, cluster.link().send_query(question)?))
}

fn to_occupancy(counted: ClusterOccupancy) -> Occupancy {
    Occupancy { subscriptions: counted.subscriptions, users: counted.users }
}

impl SignedCall<'_> {
    /// The list of every occupied channel that is wanted.
    pub(super) fn occupied_channels(&self, wanted: ListQuery) -> ChannelList {
        match &self.known.answer {
            Some(LinkReply::Channels(all)) => {
                let all = all.iter().map(|(name, counted)| (name.clone(), to_occupancy(*counted)));
                self.lists.of(wanted, all.collect())
            }
            _ => self.lists.of_here(&self.node.shared, wanted, &self.directory),
        }
    }

    /// How occupied a channel is.
    pub(super) fn channel_occupancy(&self, name: &ChannelName) -> Occupancy {
        let here =
            || self.node.shared.inspect_channel(&self.app.id, &self.directory, name.as_str());
        match &self.known.answer {
            Some(LinkReply::Channel(counted, _)) => to_occupancy(*counted),
            Some(LinkReply::Counts(all)) => {
                let at = self.known.names.iter().position(|other| other == name);
                at.and_then(|at| all.get(at)).map_or_else(here, |counted| to_occupancy(*counted))
            }
            _ => here(),
        }
    }

    /// The token of the last event's data on a cache channel, and the seconds it is kept on.
    pub(super) fn last_event(&self, name: &ChannelName) -> Option<(String, u64)> {
        if !name.kind().cache {
            return None;
        }
        if let Some(LinkReply::Channel(_, kept)) = &self.known.answer {
            let kept = kept.as_ref()?;
            return Some((String::from_utf8_lossy(&kept.data).into_owned(), kept.ttl.as_secs()));
        }
        let left = |expires: Instant| expires.saturating_duration_since(Instant::now()).as_secs();
        if let Some(cluster) = &self.node.shared.cluster {
            let topic = Topic { app: self.app.id.clone(), channel: name.clone() };
            return cluster.topics.read_topic(&topic, |entry| {
                let cached = entry.cached()?;
                let data = String::from_utf8_lossy(&cached.data).into_owned();
                Some((data, left(cached.expires)))
            })?;
        }
        let cached = self.directory.cache.last_event(name)?;
        Some((cached.data.to_string(), left(cached.expires)))
    }

    /// The users present in a channel, in the order they came.
    pub(super) fn present_users(&self, name: &ChannelName) -> Vec<UserId> {
        match (&self.known.answer, &self.node.shared.cluster) {
            (Some(LinkReply::Users(users)), _) => users.clone(),
            (_, Some(cluster)) => {
                let topic = Topic { app: self.app.id.clone(), channel: name.clone() };
                cluster.topics.read_topic(&topic, |entry| entry.roster.users()).unwrap_or_default()
            }
            (_, None) => self.directory.present_users(name.as_str()),
        }
    }

    /// How many sockets the app has.
    pub(super) fn connection_count(&self) -> usize {
        match &self.known.answer {
            Some(LinkReply::Connections(count)) => *count,
            _ => self.directory.connection_count(),
        }
    }
}
