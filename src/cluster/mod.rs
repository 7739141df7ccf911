//! The other nodes: the messages between them, and the link that carries these. The link is data: requests go in,
//! events come out, and a table has the topics of this node. The meaning of an event for clients is decided above;
//! nothing here knows sockets, workers or the hub.

pub mod clients;
mod counted_request;
pub mod envelope;
mod figures;
mod keys;
pub mod link;
mod link_queue;
pub mod log_entries;
mod metrics_page;
mod pending_entries;
mod question;
pub mod redis;
pub mod redis_clock;
mod reply;
pub mod roster;
mod scripts;
mod seal;
mod told_states;
pub mod topic_cache;
pub mod topics;
pub mod traces;
pub mod webhook_log;
mod wire_reader;

use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::socket_id::SocketId;

/// One channel of one app: what a node subscribes to while it has subscribers there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Topic {
    /// Two apps may have channels of one name.
    pub app: AppId,
    /// A client's channel, or one that stands for a user who is online.
    pub channel: ChannelName,
}

/// A connection that waits for its subscription, so that the answer finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscribeTicket {
    /// The worker whose inbox gets the outcome.
    pub worker: u16,
    /// Its place in the worker's list.
    pub slot: u32,
    /// Compared when the outcome comes: the slot may be another connection's by then.
    pub socket: SocketId,
}

/// The outcome for a waiting subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscribeOutcome {
    /// It may subscribe now.
    Ready,
    /// The presence channel has as many members as it may.
    Full,
}
