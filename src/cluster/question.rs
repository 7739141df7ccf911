//! Queries to Redis for a caller that waits for the reply: what an API request needs from all nodes, and the state of a
//! client that reconnects here. `redis/query.rs` and `redis/claims.rs` send them.

use std::time::Duration;

use bytes::Bytes;

use super::Topic;
use super::clients::ClaimedClient;
use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// A query to Redis.
#[derive(Debug)]
pub enum LinkQuery {
    /// The occupied channels whose names begin so, with their users where wanted.
    Channels { app: AppId, prefix: String, users: bool },
    /// How occupied some channels are.
    Counts(Vec<Topic>),
    /// One channel, with its cached event.
    Channel(Topic),
    /// The users present in a presence channel.
    Users(Topic),
    /// How many connections the app has on all nodes.
    Connections(AppId),
    /// A client has come here that may have been elsewhere before: what it holds is this node's from now on.
    Claim { app: AppId, key: String, window: Duration },
    /// When each of these was withdrawn last, by `withdrawn_member`.
    Withdrawn { app: AppId, members: Vec<String> },
    /// Have the node of that number hand over what the client holds.
    TakeOver { app: AppId, key: String, node: u64, request: u64 },
}

/// The reply to a query.
#[derive(Debug, PartialEq)]
pub enum LinkReply {
    /// In no order.
    Channels(Vec<(ChannelName, ClusterOccupancy)>),
    /// In the order in which they were asked.
    Counts(Vec<ClusterOccupancy>),
    /// With the cached event, if there is one that has not expired.
    Channel(ClusterOccupancy, Option<RetainedEvent>),
    /// In the order in which they came.
    Users(Vec<UserId>),
    /// All nodes together.
    Connections(usize),
    /// The client's state in Redis. The client belongs to this node from now on.
    Claimed(ClaimedClient),
    /// Times of Redis; 0: not within the time that clients may come back.
    Withdrawn(Vec<u64>),
    /// How many nodes received it.
    Told(usize),
}

/// A cache channel's last event, and how long it is kept on.
#[derive(Clone, PartialEq, Debug)]
pub struct RetainedEvent {
    /// Which of two is the later one.
    pub version: u64,
    /// As subscribers get it.
    pub frame: Bytes,
    /// The token of its data, for the API.
    pub data: Bytes,
    /// For how long Redis still keeps it.
    pub ttl: Duration,
    /// Subscribers here have it already.
    pub delivered: bool,
}

/// How occupied a channel is over all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClusterOccupancy {
    /// Connections that are subscribed.
    pub subscriptions: usize,
    /// Distinct users of a presence channel, where they were asked for.
    pub users: usize,
}
