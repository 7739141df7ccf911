//! What is asked of Redis for whoever waits for the answer, and what it answers.

use std::time::Duration;

use bytes::Bytes;

use super::Topic;
use super::clients::ClaimedClient;
use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// What a query asks Redis.
#[derive(Debug)]
pub enum LinkQuery {
    /// The occupied channels whose names begin so, with their users where wanted.
    Channels {
        app: AppId,
        prefix: String,
        users: bool,
    },
    /// How occupied some channels are.
    Counts(Vec<Topic>),
    /// One channel, with its cached event.
    Channel(Topic),
    Users(Topic),
    Connections(AppId),
    /// A client has come here that may have been elsewhere before: what it holds is this node's from now on.
    Claim {
        app: AppId,
        key: String,
        window: Duration,
    },
    /// When each of these was withdrawn last, by `withdrawn_member`.
    Withdrawn {
        app: AppId,
        members: Vec<String>,
    },
    /// Have the node of that number hand over what the client holds.
    TakeOver {
        app: AppId,
        key: String,
        node: u64,
        request: u64,
    },
}

/// What it answers.
#[derive(Debug, PartialEq)]
pub enum LinkReply {
    Channels(Vec<(ChannelName, ClusterOccupancy)>),
    Counts(Vec<ClusterOccupancy>),
    Channel(ClusterOccupancy, Option<RetainedEvent>),
    Users(Vec<UserId>),
    Connections(usize),
    Claimed(ClaimedClient),
    /// Times of Redis; 0: not within the time that clients may come back.
    Withdrawn(Vec<u64>),
    /// How many nodes were told.
    Told(usize),
}

/// A cache channel's last event, and how long it is kept on.
#[derive(Clone, PartialEq, Debug)]
pub struct RetainedEvent {
    pub version: u64,
    pub frame: Bytes,
    pub data: Bytes,
    pub ttl: Duration,
    /// Subscribers here have it already.
    pub told: bool,
}

/// How occupied a channel is over all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClusterOccupancy {
    pub subscriptions: usize,
    pub users: usize,
}
