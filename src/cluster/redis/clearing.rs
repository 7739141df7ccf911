//! Clearing away what was held under leases that hold no more: those of dead nodes, and this node's own of before.
//! A lease is fenced before anything of it is cleared.

use std::collections::{BTreeSet, HashSet};

use redis::{Value, cmd};

use super::batch::{CommandBatch, script_call};
use super::lease::held_topic;
use super::leases::{Lease, UNFENCED};
use super::session::{ExpectedReply, LinkWriter, MOST};
use super::{LinkError, reply, slots};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::EnvelopeBody;
use crate::cluster::scripts::Script;
use crate::cluster::seal::EnvelopeParts;
use crate::cluster::topics::CountInterest;
use crate::protocol::channel::ChannelName;

impl LinkWriter<'_> {
    /// Fences a lease, clears away what it held, and forgets it. Done twice, or by two nodes at once, it changes
    /// nothing more.
    pub(super) async fn clear_lease(&mut self, lease: &Lease) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        let list = if lease.tag == UNFENCED {
            let mut lapse = cmd("ZREM");
            lapse.arg(self.keys.leases_of_old()).arg(&lease.id);
            batch.add_command(lapse, ExpectedReply::Done);
            self.keys.lease_of_old(&lease.id)
        } else {
            batch.add_command(self.fence_command(lease), ExpectedReply::Done);
            self.keys.lease_key(lease.tag, &lease.id)
        };
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await?;
        let mut batch = CommandBatch::new();
        let mut held = cmd("SMEMBERS");
        held.arg(&list);
        batch.add_command(held, ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        let held = answers.first().map(|(_, value)| reply::as_list(value)).unwrap_or_default();
        let held = held.iter().filter_map(reply::as_text).map(str::to_owned);
        let mut held: BTreeSet<String> = held.collect();
        if self.servers.is_cluster() && self.kept.leases.contains(lease) {
            // The server that kept this list may have lost it, and others not what is in it.
            held.extend(self.topics.all_topics().iter().map(held_topic));
            held.extend(self.kept.connections.keys().map(|app| format!("a{app}")));
            held.extend(self.kept.news.apps.keys().map(|app| format!("w{app}")));
        }
        self.clear_all(&held, &lease.id).await?;
        let mut batch = CommandBatch::new();
        if lease.tag == UNFENCED {
            let mut forget = cmd("DEL");
            forget.arg(&list);
            batch.add_command(forget, ExpectedReply::Done);
        } else {
            let keys = [self.keys.fence_key(lease.tag), list];
            let mut forget = script_call(Script::ForgetLease, &keys);
            forget.arg(&lease.id);
            batch.add_command(forget, ExpectedReply::Done);
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await?;
        // With the lease the offices went that were had under it.
        self.look_at_news(held.iter().filter_map(|entry| entry.strip_prefix('w')));
        Ok(())
    }

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
                self.clear_news(&AppId::new(app), lease).await?;
            }
            if batch.len() >= MOST {
                let full = std::mem::replace(&mut batch, CommandBatch::new());
                let answers = full.send_all(&mut self.servers, self.status).await?;
                self.take_replies(answers, &mut []).await?;
                self.renew_if_due().await?;
            }
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await
    }

    fn clear_members(&self, batch: &mut CommandBatch<ExpectedReply>, topic: &Topic, lease: &str) {
        let mut clear = script_call(Script::Clear, &self.channel_keys(topic, "vmrk"));
        // The script adds version and user.
        let (name, envelope) =
            (self.keys.topic_name(topic), self.new_envelope(0, false, EnvelopeBody::Probe));
        let EnvelopeParts { head, mac, .. } =
            self.seals.parts_of_left(&topic.app, &name, &envelope);
        clear.arg(lease).arg(name).arg(head).arg(mac);
        batch.add_command(clear, ExpectedReply::Done);
    }

    async fn clear_counts(&mut self, app: &AppId, lease: &str) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        let mut all = cmd("HKEYS");
        all.arg(self.keys.lease_counts(app, lease));
        batch.add_command(all, ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        let channels = answers.first().map(|(_, value)| reply::as_list(value)).unwrap_or_default();
        let none = |name: &Value| {
            let name = reply::as_text(name)?;
            if name.is_empty() {
                return Some((None, 0, CountInterest::No));
            }
            let channel = ChannelName::parse(name, usize::MAX).ok()?;
            // Whether the app wants it is known where it is heard.
            let tell = !channel.kind().is_presence();
            Some((Some(channel), 0, CountInterest::No.or_clients(tell)))
        };
        let counts: Vec<_> = channels.iter().filter_map(none).collect();
        let mut batch = CommandBatch::new();
        self.add_counts(&mut batch, app, Some(lease), counts);
        self.tell_counts(batch).await
    }

    /// The ids of this node's leases of before, on the server that keeps a key.
    pub(super) fn old_leases_beside(&self, key: &str) -> impl Iterator<Item = &str> {
        let slots = &self.servers.slots;
        let server = slots.get(usize::from(slots::of_name(key.as_bytes()))).copied();
        let is_there = move |lease: &&Lease| {
            server.is_none_or(|server| slots::owner_of_tag(slots, lease.tag) == server)
        };
        let now: HashSet<&Lease> = self.servers.current_leases().collect();
        let old = self.kept.leases.iter().filter(move |lease| !now.contains(lease));
        old.filter(is_there).map(|lease| lease.id.as_str())
    }

    /// Slots have moved, and what this node holds of `topics` in them was said again: it is cleared away under the
    /// leases that it was held under before.
    pub(super) async fn move_holds(
        &mut self,
        moved: &BTreeSet<u16>,
        topics: &[Topic],
    ) -> Result<(), LinkError> {
        self.kept.leases.append(&mut self.servers.issued);
        let all = self.kept.leases.clone();
        let is_of = |app: &AppId| moved.contains(&slots::of_name(app.as_str().as_bytes()));
        let mut apps: BTreeSet<AppId> = self.kept.connections.keys().cloned().collect();
        apps.extend(self.kept.news.apps.keys().cloned());
        apps.extend(topics.iter().map(|topic| topic.app.clone()));
        apps.retain(is_of);
        if !apps.is_empty() {
            let counted =
                self.topics.all_topics().into_iter().filter(|topic| apps.contains(&topic.app));
            self.link.changed.extend(counted.map(|topic| (topic, false)));
            self.link.connections.extend(apps.iter().cloned());
            self.report_counts().await?;
            self.say_again().await?;
        }
        let now: HashSet<Lease> = self.servers.current_leases().cloned().collect();
        for lease in all {
            if !now.contains(&lease) {
                self.clear_lease(&lease).await?;
                self.kept.leases.retain(|other| *other != lease);
                continue;
            }
            let mut batch = CommandBatch::new();
            for topic in topics.iter().filter(|topic| topic.channel.kind().is_presence()) {
                if self.lease_beside(&self.keys.channel_key(topic, 'r')) != Some(&lease) {
                    self.clear_members(&mut batch, topic, &lease.id);
                }
            }
            let answers = batch.send_all(&mut self.servers, self.status).await?;
            self.take_replies(answers, &mut []).await?;
            for app in &apps {
                if self.lease_beside(&self.keys.app_key(app, 't')) != Some(&lease) {
                    self.clear_counts(app, &lease.id).await?;
                    self.clear_news(app, &lease.id).await?;
                }
            }
        }
        Ok(())
    }

    /// The lease under which this node writes to a key.
    fn lease_beside(&self, key: &str) -> Option<&Lease> {
        let slot = usize::from(slots::of_name(key.as_bytes()));
        let server = self.servers.slots.get(slot).copied().unwrap_or_default();
        self.servers.servers.get(usize::from(server))?.lease.as_ref()
    }
}
