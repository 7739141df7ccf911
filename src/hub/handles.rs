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

/// A frame's place in the channel's history. A client that subscribed after it has its content from the
/// confirmation, and must not get it again.
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
    /// Whether frames at both places may be joined into one piece.
    pub(super) fn joins(self, next: Self) -> bool {
        matches!((self, next), (Self::None, Self::None) | (Self::Presence(_), Self::Presence(_)))
    }
}

/// A worker's handle of a channel. The generation tells a late order for an earlier channel in the same place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChannelHandle {
    /// The channel's place on the worker.
    pub slot: u32,
    /// Compared with the slot's: a handle of a channel that was closed finds nothing.
    pub generation: u32,
}
