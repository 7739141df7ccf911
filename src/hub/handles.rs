//! Identifiers of what a worker carries, for other threads: a few numbers that stay valid, or are known to be stale,
//! anywhere.

use crate::protocol::socket_id::SocketId;

/// Where a connection is carried: found without a search, and gone if another has its slot now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionRef {
    /// The worker that carries the connection.
    pub worker: u16,
    /// In the worker's list.
    pub slot: u32,
    /// The connection's id, which tells whether the slot is still its own.
    pub socket: SocketId,
}

/// Where in a channel's history a frame belongs. Who subscribed after that was told with its subscription,
/// and must not hear it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sequence {
    /// Nowhere: it is for all.
    None,
    /// Members that come and go, by the channel's version.
    Presence(u64),
    /// The cached event, by its version. On other channels an event that other nodes may have sent before who is
    /// subscribed now was, by the time that Redis had.
    Cache(u64),
}

impl Sequence {
    /// Whether frames at both places may go out as one piece.
    pub(super) fn joins(self, next: Self) -> bool {
        matches!((self, next), (Self::None, Self::None) | (Self::Presence(_), Self::Presence(_)))
    }
}

/// A worker's own handle of a channel. The generation tells an order that was late from one that is meant
/// for the channel that has the place now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChannelHandle {
    /// The channel's place on the worker.
    pub slot: u32,
    /// Compared with the slot's: a handle of a channel that was closed finds nothing.
    pub generation: u32,
}
