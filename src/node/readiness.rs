//! Whether load balancers should send new sockets here, and if not, why. This is advice: a client that connects
//! anyway may still be refused.

use std::sync::atomic::Ordering;

use super::ServerState;
use crate::metrics::Unready;

impl ServerState {
    /// Whether the server stops, or will soon.
    pub fn is_retiring(&self) -> bool {
        // Advice for load balancers: nothing else depends on when it is seen.
        self.retiring.load(Ordering::Relaxed) || self.is_draining()
    }

    /// The first reason why new sockets should go elsewhere.
    /// The order is that of [`Unready::ALL`]: what an operator has to know first.
    pub fn unready_reason(&self) -> Option<Unready> {
        Unready::ALL.iter().copied().find(|why| self.is_unready(*why))
    }

    /// Whether this reason applies.
    pub fn is_unready(&self, why: Unready) -> bool {
        match why {
            Unready::Draining => self.is_retiring(),
            Unready::Redis => self.scope.is_link_up() == Some(false),
            Unready::Restoring => self.scope.is_restoring(),
            Unready::Memory => self.capacity.is_heavy(),
            Unready::Connections => self.capacity.is_crowded(),
        }
    }
}
