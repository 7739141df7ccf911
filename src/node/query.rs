//! Queries about channels and connections. A single server answers from its directory. A node of a cluster asks Redis,
//! once for the whole request, and answers from local knowledge while Redis is away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Clustered, Node, ServerState};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::link::{ClusterOccupancy, LinkQuery, LinkReply, LinkRequest};
use crate::hub::directory::{Directory, Occupancy};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// A query over all nodes, for a request.
#[derive(Debug)]
pub enum NodeQuery {
    /// The occupied channels whose names begin so; how many users are in each, where wanted.
    Channels { prefix: String, users: bool },
    /// How occupied some channels are.
    Counts(Vec<ChannelName>),
    /// One channel, with its cached event.
    Channel(ChannelName),
    /// The users present in one channel.
    Users(ChannelName),
    /// How many connections the app has.
    Connections,
}

/// A query that Redis has been asked.
#[derive(Debug)]
pub struct PendingReply {
    /// Those that [`NodeQuery::Counts`] asked about, in its order.
    names: Vec<ChannelName>,
    /// Resolves with the link's reply.
    answer: oneshot::Receiver<LinkReply>,
}

impl PendingReply {
    /// The reply over all nodes; empty if Redis went away meanwhile.
    pub fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<NodesReply> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx)).ok();
        Poll::Ready(NodesReply { names: std::mem::take(&mut self.names), answer })
    }
}

/// A reply over all nodes. Where it is empty, local knowledge is the answer.
#[derive(Debug, Default)]
pub struct NodesReply {
    /// The channels, in the order of their counts.
    names: Vec<ChannelName>,
    /// Nothing on a server of its own, and while Redis is away.
    answer: Option<LinkReply>,
}

impl From<ClusterOccupancy> for Occupancy {
    /// The link has a type of its own, since it knows nothing of the hub.
    fn from(counted: ClusterOccupancy) -> Self {
        Self { subscriptions: counted.subscriptions, users: counted.users }
    }
}

impl NodesReply {
    /// Every occupied channel that was asked for.
    pub fn occupied_channels(&self) -> Option<Vec<(ChannelName, Occupancy)>> {
        let Some(LinkReply::Channels(all)) = &self.answer else { return None };
        Some(all.iter().map(|(name, counted)| (name.clone(), (*counted).into())).collect())
    }

    /// How occupied a channel is.
    pub fn channel_occupancy(&self, name: &ChannelName) -> Option<Occupancy> {
        match &self.answer {
            Some(LinkReply::Channel(counted, _)) => Some((*counted).into()),
            // In the order of the question.
            Some(LinkReply::Counts(all)) => {
                let at = self.names.iter().position(|other| other == name)?;
                all.get(at).map(|counted| (*counted).into())
            }
            _ => None,
        }
    }

    /// How many connections the app has.
    pub fn connection_count(&self) -> Option<usize> {
        match &self.answer {
            Some(LinkReply::Connections(count)) => Some(*count),
            _ => None,
        }
    }
}

impl Node {
    /// Asks Redis what other nodes know; `None` while it is away.
    /// Asked once for a whole request, before it is carried out: an answer that had to be asked for channel by
    /// channel would take as many round trips.
    pub fn send_query(
        &self,
        others: &Clustered,
        (app, directory): (&AppId, &Directory),
        query: NodeQuery,
    ) -> Option<PendingReply> {
        let topic = |channel: &ChannelName| Topic { app: app.clone(), channel: channel.clone() };
        let mut names = Vec::new();
        let question = match query {
            NodeQuery::Channels { prefix, users } => {
                LinkQuery::Channels { app: app.clone(), prefix, users }
            }
            NodeQuery::Counts(asked) => {
                names = asked;
                LinkQuery::Counts(names.iter().map(topic).collect())
            }
            NodeQuery::Channel(name) => LinkQuery::Channel(topic(&name)),
            NodeQuery::Users(name) => LinkQuery::Users(topic(&name)),
            NodeQuery::Connections => {
                // Redis gets connection counts every 200 ms; those of this node are exact.
                let count = directory.connection_count();
                others.link().send_request(LinkRequest::Connections { app: app.clone(), count });
                LinkQuery::Connections(app.clone())
            }
        };
        Some(PendingReply { names, answer: others.link().send_query(question)? })
    }
}

impl ServerState {
    /// A channel's occupancy as far as this node knows; zeros without subscribers.
    pub fn inspect_channel(&self, app: &AppId, directory: &Directory, name: &str) -> Occupancy {
        // A channel without subscribers here may still have some elsewhere, which are added below.
        let mut occupancy = directory.occupancy(name).unwrap_or_default();
        if let Some(users) = self.scope.user_count(app, name) {
            occupancy.users = users;
        }
        occupancy
    }

    /// The occupied channels whose names begin with `prefix`, as far as this node knows; with how many `users`
    /// are in each, if that is wanted.
    pub fn occupied_channels(
        &self,
        app: &AppId,
        directory: &Directory,
        prefix: &str,
        users: bool,
    ) -> Vec<(ChannelName, Occupancy)> {
        let mut channels = directory.occupied_channels(prefix);
        for (name, occupancy) in channels.iter_mut().filter(|_| users) {
            if let Some(count) = self.scope.user_count(app, name.as_str()) {
                occupancy.users = count;
            }
        }
        channels
    }

    /// The users present in a channel, in the order they came.
    pub fn present_users(
        &self,
        reply: &NodesReply,
        (app, directory): (&AppId, &Directory),
        name: &ChannelName,
    ) -> Vec<UserId> {
        match &reply.answer {
            Some(LinkReply::Users(users)) => users.clone(),
            _ => self.scope.present_users(app, directory, name),
        }
    }

    /// The token of the last event's data on a cache channel, and for how many seconds it is still kept.
    pub fn last_event(
        &self,
        reply: &NodesReply,
        (app, directory): (&AppId, &Directory),
        name: &ChannelName,
    ) -> Option<(String, u64)> {
        if let Some(LinkReply::Channel(_, kept)) = &reply.answer {
            let kept = kept.as_ref()?;
            return Some((String::from_utf8_lossy(&kept.data).into_owned(), kept.ttl.as_secs()));
        }
        let (data, expires) = self.scope.last_event(app, directory, name)?;
        Some((data, expires.saturating_duration_since(Instant::now()).as_secs()))
    }
}
