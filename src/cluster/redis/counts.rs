//! Counts of subscribers and connections: sent to Redis in chunks, with the totals that come back for subscribers.
//! `session.rs` decides when counts are due.

use std::collections::{HashMap, HashSet};

use redis::cmd;
use tokio::time::Instant;

use super::LinkError;
use super::batch::CommandBatch;
use super::session::{CountUpdate, ExpectedReply, LinkWriter};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::link::LinkEvent;
use crate::cluster::scripts::counts::{CountArgs, CountAudience, CountTotal};
use crate::cluster::topics::CountInterest;
use crate::cluster::webhook_log::{AppHooks, MAX_LOGGED};

/// Channels whose counts one script takes.
const MAX_CHANNELS: usize = 500;

/// Scripts that take counts in one round trip.
const COUNTS_AT_ONCE: usize = 16;

impl LinkWriter<'_> {
    /// Tells Redis the counts that have changed.
    pub(super) async fn report_counts(&mut self) -> Result<(), LinkError> {
        if self.link.whole {
            // A channel must be occupied in the log before its count is.
            self.write_logs().await?;
        }
        if !self.link.changed.is_empty() {
            // Not if nothing was due: the first change after a pause is sent at once.
            self.link.counted.note_now();
        }
        let changed = std::mem::take(&mut self.link.changed);
        let connections = std::mem::take(&mut self.link.connections);
        let told = self.count_changed(&changed, &connections).await;
        if told.is_err() {
            // Where a master is lost meanwhile, the others are told again.
            for (topic, tell) in changed {
                self.topics.count_anew(&topic);
                *self.link.changed.entry(topic).or_default() |= tell;
            }
            self.link.connections.extend(connections);
        }
        told
    }

    async fn count_changed(
        &mut self,
        changed: &HashMap<Topic, bool>,
        connections: &HashSet<AppId>,
    ) -> Result<(), LinkError> {
        let mut by_app: HashMap<AppId, Vec<CountUpdate>> = HashMap::new();
        for (topic, tell) in changed {
            let is_away = self.is_app_away(&topic.app);
            // A count that could not be announced stays noted.
            let counted = if is_away { None } else { Some(self.topics.count_here(topic)) };
            if self.topics.is_idle(topic) {
                self.link.idle.entry(topic.clone()).or_insert_with(Instant::now);
            }
            let Some((count, wish)) = counted.filter(|_| topic.channel.online_user().is_none())
            else {
                continue;
            };
            let untold = self.kept.untold.contains(topic);
            let wish = if untold { CountInterest::Now } else { wish.or_clients(*tell) };
            let counts = by_app.entry(topic.app.clone()).or_default();
            counts.push((Some(topic.channel.clone()), count, wish));
        }
        for app in connections {
            // An app whose last connection has closed has no entry any more: its count is 0.
            let count = self.kept.connections.get(app).copied().unwrap_or_default();
            by_app.entry(app.clone()).or_default().push((None, count, CountInterest::No));
        }
        let mut batch = CommandBatch::new();
        for (app, mut counts) in by_app {
            while !counts.is_empty() {
                let some = counts.drain(..counts.len().min(MAX_CHANNELS)).collect();
                self.add_counts(&mut batch, &app, None, some);
                if batch.len() == COUNTS_AT_ONCE {
                    let full = std::mem::replace(&mut batch, CommandBatch::new());
                    self.send_counts(full).await?;
                    Box::pin(self.renew_if_due()).await?;
                }
            }
        }
        self.send_counts(batch).await
    }

    /// Sends counts, and announces those that subscribers want to know, on all nodes.
    pub(super) async fn send_counts(
        &mut self,
        batch: CommandBatch<ExpectedReply>,
    ) -> Result<(), LinkError> {
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        let (mut announcements, mut done) = (CommandBatch::new(), HashSet::new());
        for (expected, value) in &answers {
            let ExpectedReply::Counted { app, channels } = expected else { continue };
            for (channel, total) in channels.iter().zip(CountTotal::parse_all(value)) {
                let (Some(channel), Some(total)) = (channel, total) else { continue };
                let CountTotal { total: count, audience } = total;
                let topic = Topic { app: app.clone(), channel: channel.clone() };
                if audience == CountAudience::Nobody || !self.is_away(&topic) {
                    done.insert(topic.clone());
                }
                let version = match audience {
                    CountAudience::Nobody => continue,
                    CountAudience::Everybody(version) => {
                        self.kept.webhook_log.note_counted(&topic);
                        version
                    }
                    CountAudience::Here(version) => {
                        // From no node, so that it is not sent to others.
                        let version = self.status.clock.to_local(version);
                        let body = EnvelopeBody::Count { count };
                        let envelope =
                            Envelope { origin: 0, version, ..self.new_envelope(0, false, body) };
                        self.send_event(LinkEvent::Topic(topic, envelope)).await?;
                        continue;
                    }
                };
                if self.is_away(&topic) {
                    // Other nodes may reach it, and no other node announces it to them.
                    continue;
                }
                let envelope = self.new_envelope(0, false, EnvelopeBody::Count { count });
                let envelope = Envelope { version, ..envelope };
                let (name, mut publish) = (self.keys.topic_name(&topic), cmd("SPUBLISH"));
                publish.arg(&name).arg(self.seals.encode_sealed(&topic.app, &name, &envelope));
                announcements.add_command(publish, ExpectedReply::Done);
            }
        }
        self.take_replies(answers, &mut []).await?;
        let answers = announcements.send_all(&mut self.servers, self.status).await?;
        self.take_replies(answers, &mut []).await?;
        if !self.kept.untold.is_empty() {
            self.kept.untold.retain(|topic| !done.contains(topic));
        }
        Ok(())
    }

    /// Adds an app's counts: under the current lease, which takes over the counts of this node's other leases, or
    /// under `cleared`, which has expired.
    pub(super) fn add_counts(
        &mut self,
        batch: &mut CommandBatch<ExpectedReply>,
        app: &AppId,
        cleared: Option<&str>,
        mut counts: Vec<CountUpdate>,
    ) {
        let part = |part| self.keys.app_key(app, part);
        let keys = [part('t'), self.keys.counts_of_leases(app), part('v'), part('w'), part('b')];
        let asks =
            self.kept.webhook_log.apps.get(app).is_some_and(|of| of.hooks == AppHooks::Counting);
        while !counts.is_empty() {
            let some: Vec<_> = counts.drain(..counts.len().min(MAX_CHANNELS)).collect();
            for (channel, _, tell) in &some {
                if let Some(channel) = channel.as_ref().filter(|_| *tell != CountInterest::No) {
                    // Noted until then: if the link is lost before, no other node announces them.
                    let topic = Topic { app: app.clone(), channel: channel.clone() };
                    self.kept.untold.insert(topic);
                }
            }
            let most_logged = if asks { MAX_LOGGED } else { 0 };
            let wakeup_topic = self.keys.wakeup_topic(app);
            let count = CountArgs { app, most_logged, wakeup_topic, cleared };
            let counts = some.iter().map(|(channel, number, tell)| {
                (channel.as_ref().map_or("", |channel| channel.as_str()), *number, *tell)
            });
            let count = count.call(&keys, counts);
            let channels = some.into_iter().map(|(channel, ..)| channel).collect();
            batch.add_command(count, ExpectedReply::Counted { app: app.clone(), channels });
        }
    }
}
