//! Clears what was held under expired leases: those of dead nodes, and earlier ones of this node. A lease is fenced
//! before anything of it is cleared.

use std::collections::BTreeSet;

use redis::{Value, cmd};

use super::batch::CommandBatch;
use super::leases::{Lease, UNFENCED};
use super::session::{ExpectedReply, LinkWriter, MAX_REQUESTS};
use super::{LinkError, slots};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::EnvelopeBody;
use crate::cluster::keys::held_topic;
use crate::cluster::reply;
use crate::cluster::scripts::leases::{FenceReply, forget_lease};
use crate::cluster::scripts::presence;
use crate::cluster::topics::CountInterest;
use crate::protocol::channel::ChannelName;

/// Leases that are remembered although they were cleared.
const MAX_CLEARED: usize = 256;

impl LinkWriter<'_> {
    /// Fences a lease, removes everything that it held, and forgets it. Repeating it, or two nodes doing it at
    /// once, changes nothing more. Returns whether it is complete: what the lease holds on a master that is away is
    /// removed once that is back.
    pub(super) async fn clear_lease(&mut self, lease: &Lease) -> Result<bool, LinkError> {
        let mut batch = CommandBatch::new();
        let list = if lease.tag == UNFENCED {
            let mut lapse = cmd("ZREM");
            lapse.arg(self.keys.leases_of_old()).arg(&lease.id);
            batch.add_command(lapse, ExpectedReply::Done);
            self.keys.lease_of_old(&lease.id)
        } else {
            // Fenced first: a node that only slept must not add to what is being cleared.
            batch.add_command(self.fence_command(lease), ExpectedReply::Done);
            self.keys.lease_key(lease.tag, &lease.id)
        };
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        if answers.is_empty() {
            // Its master is away.
            return Ok(false);
        }
        self.take_replies(answers, &mut []).await?;
        let mut batch = CommandBatch::new();
        let mut held = cmd("SMEMBERS");
        held.arg(&list);
        batch.add_command(held, ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        // One command, one answer: without it there is nothing to clear.
        let held = answers.first().map(|(_, value)| reply::as_list(value)).unwrap_or_default();
        let held = held.iter().filter_map(reply::as_text).map(str::to_owned);
        let mut held: BTreeSet<String> = held.collect();
        if self.servers.is_cluster() && self.servers.leases.contains(lease) {
            // The server that kept this list may have lost it, and others not what is in it.
            held.extend(self.topics.all_topics().iter().map(held_topic));
            held.extend(self.kept.connections.keys().map(|app| format!("a{app}")));
            held.extend(self.kept.webhook_log.apps.keys().map(|app| format!("w{app}")));
        }
        self.clear_all(&held, &lease.id).await?;
        if held.iter().any(|entry| self.is_entry_away(entry)) {
            return Ok(false);
        }
        let mut batch = CommandBatch::new();
        if lease.tag == UNFENCED {
            let mut forget = cmd("DEL");
            forget.arg(&list);
            batch.add_command(forget, ExpectedReply::Done);
        } else {
            // By a script, so that fence and list go together or not at all.
            let forget = forget_lease(self.keys.fence_key(lease.tag), list, &lease.id);
            batch.add_command(forget, ExpectedReply::Done);
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await?;
        // With the lease the offices went that were had under it.
        self.recheck_offices(held.iter().filter_map(|entry| entry.strip_prefix('w')));
        Ok(true)
    }

    /// Whether the owner of an entry of a lease is away.
    fn is_entry_away(&self, entry: &str) -> bool {
        self.servers.is_partial()
            && match entry.split_at_checked(1) {
                Some(("c", topic)) => self.servers.is_away(&format!("{{{topic}}}")),
                Some((_, app)) => self.is_app_away(&AppId::new(app)),
                None => false,
            }
    }

    /// `held` has `c`, `a` or `w` in front of each name: members of a channel, counts of an app,
    /// entries of its webhooks' log.
    async fn clear_all(&mut self, held: &BTreeSet<String>, lease: &str) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        for entry in held {
            if let Some((app, channel)) = entry.strip_prefix('c').and_then(|c| c.split_once('/')) {
                let Ok(channel) = ChannelName::of_node(channel) else { continue };
                let topic = Topic { app: AppId::new(app), channel };
                self.clear_members(&mut batch, &topic, lease);
            } else if let Some(app) = entry.strip_prefix('a') {
                self.clear_counts(&AppId::new(app), lease).await?;
            } else if let Some(app) = entry.strip_prefix('w') {
                self.clear_webhook_log(&AppId::new(app), lease).await?;
            }
            // Clearing a large node takes a while, and this node's own leases must not lapse over
            // it.
            if batch.len() >= MAX_REQUESTS {
                let full = std::mem::replace(&mut batch, CommandBatch::new());
                let answers = full.send_all(&mut self.servers, self.status).await?;
                self.take_replies(answers, &mut []).await?;
                self.renew_if_due().await?;
            }
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await
    }

    /// Members without another holder leave, as if their connection had closed.
    fn clear_members(&self, batch: &mut CommandBatch<ExpectedReply>, topic: &Topic, lease: &str) {
        // The script adds version and user.
        let (name, envelope) =
            (self.keys.topic_name(topic), self.new_envelope(0, false, EnvelopeBody::Probe));
        let parts = self.seals.parts_of_left(&topic.app, &name, &envelope);
        let clear = presence::clear(&self.channel_keys(topic, "vmrk0"), lease, &name, &parts);
        batch.add_command(clear, ExpectedReply::Done);
    }

    /// Subtracts the lease's counts from the sums of all nodes.
    async fn clear_counts(&mut self, app: &AppId, lease: &str) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        let mut all = cmd("HKEYS");
        all.arg(self.keys.lease_counts(app, lease));
        batch.add_command(all, ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        // As above: one command, one answer.
        let channels = answers.first().map(|(_, value)| reply::as_list(value)).unwrap_or_default();
        let none = |name: &Value| {
            let name = reply::as_text(name)?;
            if name.is_empty() {
                return Some((None, 0, CountInterest::No));
            }
            let channel = ChannelName::parse(name, usize::MAX).ok()?;
            // The node that receives the count knows whether the app wants it.
            let tell = !channel.kind().is_presence();
            Some((Some(channel), 0, CountInterest::No.or_clients(tell)))
        };
        let counts: Vec<_> = channels.iter().filter_map(none).collect();
        let mut batch = CommandBatch::new();
        self.add_counts(&mut batch, app, Some(lease), counts);
        self.send_counts(batch).await
    }

    /// Slots have moved, and what this node holds of `topics` in them was said again, with which it has gone over to the
    /// leases of the servers that have them now: the same with what it holds of apps. Leases that were given up before
    /// are cleared away.
    pub(super) async fn move_holds(
        &mut self,
        moved: &BTreeSet<u16>,
        topics: &[Topic],
        given_up: Vec<Lease>,
    ) -> Result<(), LinkError> {
        let is_of = |app: &AppId| moved.contains(&slots::of_name(app.as_str().as_bytes()));
        let mut apps: BTreeSet<AppId> = self.kept.connections.keys().cloned().collect();
        apps.extend(self.kept.webhook_log.apps.keys().cloned());
        apps.extend(topics.iter().map(|topic| topic.app.clone()));
        apps.retain(is_of);
        if !apps.is_empty() {
            let counted =
                self.topics.all_topics().into_iter().filter(|topic| apps.contains(&topic.app));
            self.link.changed.extend(counted.map(|topic| (topic, false)));
            self.link.connections.extend(apps.iter().cloned());
            self.report_counts().await?;
            self.resend_holds(is_of).await?;
            // Offices go over too, before others find that the old leases hold no more.
            self.sync_webhook_logs().await?;
        }
        self.clear_own_leases(given_up).await
    }

    /// Clears leases of this node away that it has given up.
    pub(super) async fn clear_own_leases(&mut self, leases: Vec<Lease>) -> Result<(), LinkError> {
        for lease in leases {
            if !self.clear_lease(&lease).await? {
                continue;
            }
            self.servers.leases.retain(|other| *other != lease);
            self.kept.cleared.push_back(lease);
        }
        let many = self.kept.cleared.len().saturating_sub(MAX_CLEARED);
        self.kept.cleared.drain(..many);
        Ok(())
    }

    /// Leases of this node that were cleared, but that a server still knows: it has taken over without having the
    /// removal, or has restarted with older data. They are fenced, and must be cleared again.
    pub(super) async fn fence_risen_leases(
        &mut self,
        fences: &[(u16, FenceReply)],
    ) -> Result<Vec<Lease>, LinkError> {
        let is_known = |lease: &&Lease| {
            fences.iter().any(|(tag, fence)| *tag == lease.tag && fence.knows(&lease.id))
        };
        let risen: Vec<Lease> = self.kept.cleared.iter().filter(is_known).cloned().collect();
        let mut batch = CommandBatch::new();
        risen.iter().for_each(|lease| batch.add_command(self.fence_command(lease), ()));
        batch.send_all(&mut self.servers, self.status).await?;
        self.kept.cleared.retain(|lease| !risen.contains(lease));
        self.servers.leases.extend(risen.iter().cloned());
        Ok(risen)
    }
}
