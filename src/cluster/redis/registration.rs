//! This node's leases on the servers of a link: one on each server with slots, registered once. When the key of a lease
//! moves to another server, the lease is given up for a new one.

use std::collections::BTreeMap;
use std::future::Future;

use redis::{RedisError, Value};
use tokio::time::timeout;

use super::away::ask_master;
use super::connections::{RedisConnections, slots_by};
use super::leases::Lease;
use super::server::RedisServer;
use super::slots::{self, HostPort, SLOTS};
use super::{LinkError, PATIENCE};
use crate::cluster::scripts::leases::{FenceReply, register_lease};

impl RedisConnections {
    /// The leases under which this node writes now.
    pub(super) fn current_leases(&self) -> impl Iterator<Item = &Lease> {
        self.servers.iter().filter_map(|server| server.lease.as_ref())
    }

    /// Those under which it has written and something may be held still.
    pub(super) fn given_up_leases(&self) -> Vec<Lease> {
        let is_current = |lease: &Lease| self.current_leases().any(|current| current == lease);
        self.leases.iter().filter(|lease| !is_current(lease)).cloned().collect()
    }

    /// Registers a lease with each server that has slots and where this node has none; what those servers say.
    pub(super) async fn register_leases(&mut self) -> Result<Vec<(u16, FenceReply)>, LinkError> {
        let mut fences = Vec::new();
        for place in 0..self.servers.len() as u16 {
            let has_lease = self.server_at(place).is_some_and(|server| server.lease.is_some());
            let tag = self.tag_on(place, 0).filter(|_| !has_lease);
            if let Some(tag) = tag {
                fences.push((tag, self.register_lease(place, tag).await?));
            }
        }
        Ok(fences)
    }

    /// The run id of each server, which changes with a restart. In a Redis Cluster, only of servers with slots.
    pub(super) async fn run_ids(&self) -> Result<BTreeMap<HostPort, String>, LinkError> {
        let mut runs = BTreeMap::new();
        for (place, server) in self.servers.iter().enumerate() {
            if self.is_cluster() && !self.slots.contains(&(place as u16)) {
                continue;
            }
            let run = self.run_id(server).await?;
            runs.extend(run.map(|run| (server.at.clone(), run)));
        }
        Ok(runs)
    }

    /// The run id of one.
    pub(super) async fn run_id(&self, server: &RedisServer) -> Result<Option<String>, LinkError> {
        let (mut info, mut commands) = (redis::cmd("INFO"), server.commands.clone());
        let asked = info.arg("server").query_async(&mut commands);
        let info: String = self.ask(server, asked).await?;
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(run.map(|run| run.trim_end().to_owned()))
    }

    /// Asks a server. If it is one of several, a failure does not concern the others.
    async fn ask<T>(
        &self,
        server: &RedisServer,
        asked: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, LinkError> {
        if self.is_cluster() {
            return ask_master(server.at.clone(), asked).await;
        }
        Ok(timeout(PATIENCE, asked).await??)
    }

    /// Registers a lease of this node on one server, and reads what else it knows of leases.
    ///
    /// # Errors
    /// The server does not answer, or is none of the link's.
    async fn register_lease(&mut self, place: u16, tag: u16) -> Result<FenceReply, LinkError> {
        let lease = Lease::new(self.node, tag);
        let key = self.keys.fence_key(tag);
        // Noted first: it may be registered although the reply is lost.
        self.leases.push(lease.clone());
        let register = register_lease(key, &lease.id);
        let Some(server) = self.server_at(place) else { return Err(LinkError::Uncovered) };
        let mut commands = server.commands.clone();
        let answer: Value = self.ask(server, register.command.query_async(&mut commands)).await?;
        if let Some(server) = self.servers.get_mut(usize::from(place)) {
            server.lease = Some(lease);
        }
        FenceReply::parse_reply(&answer).ok_or(LinkError::Unexpected)
    }

    /// The key of a server's lease is gone: reads the slots' owners again, and takes another lease. State under the
    /// old lease is registered again for the moved slots.
    pub(super) async fn move_lease(&mut self, place: u16) -> Result<(), LinkError> {
        let Some(server) = self.server_at(place) else { return Err(LinkError::Uncovered) };
        let ranges = slots::slot_ranges(&slots_by(server).await?, server.host());
        self.assign_all(ranges).await;
        self.renew_moved_leases().await?;
        // While its slot is on the move the server has it in name only.
        let held = self.server_at(place).and_then(|server| server.lease.clone());
        if let Some(Lease { tag, .. }) = held {
            self.give_up_lease(place);
            if let Some(next) = self.tag_on(place, tag + 1) {
                self.register_lease(place, next).await?;
            }
        }
        Ok(())
    }

    /// Gives up leases whose keys other servers keep now, and takes those that are missing.
    pub(super) async fn renew_moved_leases(&mut self) -> Result<(), LinkError> {
        for place in 0..self.servers.len() as u16 {
            let lease = self.server_at(place).and_then(|server| server.lease.as_ref());
            if lease.is_some_and(|lease| slots::owner_of_tag(&self.slots, lease.tag) != place) {
                self.give_up_lease(place);
            }
        }
        self.register_leases().await?;
        Ok(())
    }

    /// The slots of that server are said anew once it has another.
    fn give_up_lease(&mut self, place: u16) {
        if let Some(server) = self.servers.get_mut(usize::from(place)) {
            server.lease = None;
        }
        let slots = (0..SLOTS).zip(&self.slots).filter(|(_, owner)| **owner == place);
        self.moves.borrow_mut().moved.extend(slots.map(|(slot, _)| slot));
    }

    /// The server in that place, unless the table has changed.
    fn server_at(&self, place: u16) -> Option<&RedisServer> {
        self.servers.get(usize::from(place))
    }
}
