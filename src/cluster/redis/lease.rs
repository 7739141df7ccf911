//! Heartbeats. A node registers its state in Redis under leases, one on each server. Each new link takes new leases,
//! registers everything again, and clears the old leases as it does those of dead nodes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::batch::CommandBatch;
use super::leases::{Lease, UNFENCED};
use super::log_budget::LogBudget;
use super::opening::REOPENED;
use super::server::LeasedCommand;
use super::session::{LinkWriter, MAX_REQUESTS};
use super::slots::{HostPort, of_name};
use super::{LinkError, MAX_RECONNECT_PAUSE, PATIENCE};
use crate::cluster::Topic;
use crate::cluster::envelope::EnvelopeBody;
use crate::cluster::link::{LinkEvent, LinkMetrics, LinkRequest};
use crate::cluster::reply;
use crate::cluster::scripts::leases::{FenceReply, fence_lease, renew_lease};
use crate::cluster::webhook_log::LogBatch;
use crate::protocol::member::Member;

/// The part of a lease after which it is renewed. A lease lapses after four of them, so that with one more
/// until others look, and the time to clear away, all is done within the lease as it was set.
pub(super) const RENEWALS_PER_LEASE: u32 = 6;

/// How long nodes may take to come back once Redis does.
pub(super) const RECONNECT_TIME: Duration = MAX_RECONNECT_PAUSE.saturating_add(PATIENCE);

/// How soon a node that finds Redis empty has tried its link and registered, after the first that did.
const RETURN: Duration = MAX_RECONNECT_PAUSE.saturating_add(RESTORED_EVERY);

/// How often it is looked whether what others held is there again.
const RESTORED_EVERY: Duration = Duration::from_millis(250);

/// How many renewals apart nodes without fences are looked for.
const OLD_EVERY: u32 = 4;

impl LinkWriter<'_> {
    /// Takes leases, says what this node holds, and clears away what it held under the last ones.
    pub(super) async fn take_leases(&mut self) -> Result<(), LinkError> {
        let mut old = self.servers.leases.clone();
        if !old.is_empty() {
            self.kept.reaps = Instant::now() + self.settings.lease.min(RECONNECT_TIME);
        }
        self.kept.peers.forget_looks();
        let restarted = self.reregister_lost_topics().await?;
        self.kept.webhook_log.note_link_lost();
        // Commands in flight under the old leases must not arrive after the new registration.
        let mut batch = CommandBatch::new();
        old.iter().for_each(|lease| batch.add_command(self.fence_command(lease), ()));
        batch.add_command(self.look_for_old(), ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        answers.last().into_iter().for_each(|(_, value)| drop(self.note_old(value)));
        let (known, now) = (!self.kept.epochs.is_empty(), Instant::now());
        let fences = self.servers.register_leases().await?;
        old.extend(self.fence_risen_leases(&fences).await?);
        for (tag, fence) in &fences {
            self.note_epoch(*tag, fence, (known, restarted));
        }
        self.kept.webhook_log.held_until_now(now);
        self.status.clock.set_from(fences.iter().map(|(_, fence)| fence.now));
        self.link.beat = Some(Instant::now() + self.settings.lease / RENEWALS_PER_LEASE);
        self.note_tags().await?;
        self.catch_up_with_all().await?;
        let topics = self.topics.all_topics();
        for some in topics.chunks(REOPENED) {
            for topic in some {
                if self.is_away(topic) {
                    self.link.changed.insert(topic.clone(), false);
                    continue;
                }
                self.begin_if_let_in(topic);
                self.reregister_topic(topic);
            }
            self.send_batch().await?;
            self.renew_if_due().await?;
        }
        if self.link.gaps > 0 {
            let channels = self.link.gaps;
            warn!(channels, "events may have been missed while the link to Redis was down");
        }
        self.link.connections.extend(self.kept.connections.keys().cloned());
        self.link.changed.extend(self.kept.untold.iter().map(|topic| (topic.clone(), true)));
        self.report_counts().await?;
        // Only now: an attempt that failed before confirmed nothing, and its server may still be replaced.
        self.kept.recent.note_link_made();
        self.status.up.store(true, Ordering::Relaxed);
        self.send_batch().await?;
        // Before what the old leases hold comes to an end.
        self.resend_holds(|_| true).await?;
        // Offices go over to the new leases before the old ones are forgotten.
        self.sync_webhook_logs().await?;
        self.link.whole = true;
        debug!(leases = ?self.servers.current_leases().collect::<Vec<_>>(), "all is registered");
        // At once, since a request may wait for it.
        self.link.beat = Some(Instant::now());
        self.clear_own_leases(old).await?;
        if !topics.is_empty() {
            info!(topics = topics.len(), "state re-registered in Redis");
        }
        Ok(())
    }

    /// After a failover, or a restart of some servers, registers again what those may have lost. The logs of the
    /// other masters need no second look: their later entries are newer.
    /// Returns whether there was such a server.
    async fn reregister_lost_topics(&mut self) -> Result<bool, LinkError> {
        let runs = self.servers.run_ids().await?;
        let known = &mut self.kept.runs;
        let is_new = |(at, run): &(&HostPort, &String)| known.get(*at) != Some(*run);
        let new: Vec<HostPort> = match known.is_empty() {
            true => Vec::new(),
            false => runs.iter().filter(is_new).map(|(at, _)| at.clone()).collect(),
        };
        // Of one that is away it is seen later what it has become.
        known.retain(|at, _| self.kept.away.has_master(at));
        known.extend(runs);
        self.say_again_to(&new).await?;
        let bounds = (self.status, self.max_queued);
        self.kept.strand_away(&self.servers, self.keys, bounds);
        Ok(!new.is_empty())
    }

    /// These servers may have lost what was said last.
    pub(super) async fn say_again_to(&mut self, new: &[HostPort]) -> Result<(), LinkError> {
        if new.is_empty() {
            return Ok(());
        }
        let (servers, keys) = (&self.servers, self.keys);
        let is_its = |name: &str| servers.is_kept_by(name, new);
        self.dedup.borrow_mut().step_back(is_its);
        let is_apps = |app: &_| is_its(&keys.app_key(app, 't'));
        let (lost, counted) = self.kept.webhook_log.requeue_recent(is_apps);
        self.kept.untold.extend(counted);
        let bytes = self.kept.republish_recent(|pending| is_its(&pending.topic_name(keys)));
        // Counted again before they are sent: they were subtracted when Redis confirmed them.
        self.status.queued.fetch_add(bytes, Ordering::Relaxed);
        for app in lost {
            self.send_event(LinkEvent::WebhookLog(LogBatch::Lost(app))).await?;
        }
        Ok(())
    }

    /// Gives the orders that say again what this node holds of a topic.
    pub(super) fn reregister_topic(&mut self, topic: &Topic) {
        self.link.batch.push(LinkRequest::Open(topic.clone()));
        let own = self.topics.read_topic(topic, |entry| {
            let roster = &entry.roster;
            let own = roster
                .local_members()
                .map(|member| (member.clone(), roster.join_version(&member.user_id)));
            own.collect::<Vec<(Member, u64)>>()
        });
        // A topic that is closed meanwhile has no members left to register.
        for (member, place) in own.unwrap_or_default() {
            // Members that are present stay, even if the channel has more than its limit.
            let (topic, max) = (topic.clone(), usize::MAX);
            self.link.batch.push(LinkRequest::Join { topic, member, max, place });
        }
        self.topics.count_anew(topic);
        self.link.batch.push(LinkRequest::Changed { topic: topic.clone(), tell: false });
    }

    /// A Redis that has lost its data since it was last seen has lost what others hold too; they are about
    /// to say it again.
    pub(super) fn note_epoch(
        &mut self,
        tag: u16,
        fence: &FenceReply,
        (known, restarted): (bool, bool),
    ) {
        let before = self.kept.epochs.insert(tag, fence.epoch);
        if known && before != Some(fence.epoch) {
            let since = Duration::from_micros(fence.now.saturating_sub(fence.epoch));
            self.status.clock.begin_epoch(fence.now);
            // After a restart nodes publish again what the old logs may have had.
            if let Some(began) = Instant::now().checked_sub(since).filter(|_| !restarted) {
                let place =
                    |name: &str| self.servers.slots.get(usize::from(of_name(name.as_bytes())));
                let own = self.keys.fence_key(tag);
                let is_its = |name: &str| place(name) == place(&own);
                self.dedup.borrow_mut().note_data_loss(is_its, began);
            }
            // As long as a node that is silent is taken for alive.
            let patience = self.settings.lease * 4 / RENEWALS_PER_LEASE;
            let until = Instant::now() + patience.saturating_sub(since);
            // A node that registered after the last look was never seen here.
            let strangers = Instant::now() + RETURN.saturating_sub(since);
            self.kept.peers.note_data_loss(tag, self.kept.node, strangers, until);
            // Relaxed: `/ready` may say so a moment late.
            self.status.restoring.store(true, Ordering::Relaxed);
            self.note_emptied_logs(tag, since);
        }
        self.kept.peers.note_back(tag, self.kept.node, fence);
    }

    /// A node was received from for the first time: notes its leases now. If servers lose their data before this
    /// node's next renewal, nothing else would tell of them.
    pub(super) async fn look_at_newcomers(&mut self) -> Result<(), LinkError> {
        if !self.dedup.borrow_mut().take_newcomer() {
            return Ok(());
        }
        let tags = self.servers.current_leases().map(|lease| lease.tag).collect();
        for (tag, fence) in self.look_at(tags).await? {
            self.kept.peers.note_new(tag, fence.valid);
        }
        Ok(())
    }

    /// Looks whether other nodes have said again what Redis had lost, and then reads all rosters again.
    pub(super) async fn look_whether_restored(&mut self) -> Result<(), LinkError> {
        // Relaxed: only this thread writes the flag.
        if !self.status.restoring.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.kept.peers.is_missing() && self.link.looked.elapsed() >= RESTORED_EVERY {
            self.link.looked.note_now();
            let tags = self.servers.current_leases().map(|lease| lease.tag).collect();
            for (tag, fence) in self.look_at(tags).await? {
                self.kept.peers.note_back(tag, self.kept.node, &fence);
            }
        }
        if self.kept.peers.is_missing() && !self.kept.peers.is_restored() {
            return Ok(());
        }
        self.reload_rosters().await?;
        let counted = self.kept.webhook_log.note_restored();
        self.link.changed.extend(counted.iter().map(|topic| (topic.clone(), true)));
        self.kept.untold.extend(counted);
        // Only now: where the link is lost meanwhile it is done over the next.
        self.status.restoring.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the leases up, so that other nodes need not wait until they expire.
    pub(super) async fn give_up_leases(&mut self) -> Result<(), LinkError> {
        self.report_counts().await?;
        self.release_offices().await?;
        let leases: Vec<Lease> = self.servers.current_leases().cloned().collect();
        for lease in leases {
            self.clear_lease(&lease).await?;
        }
        Ok(())
    }

    /// Notes the tags in use if there are several servers, so that any node finds all leases.
    pub(super) async fn note_tags(&mut self) -> Result<(), LinkError> {
        if !self.servers.is_cluster() {
            return Ok(());
        }
        let mut tags = cmd("SADD");
        tags.arg(self.keys.tags_key());
        self.servers.current_leases().for_each(|lease| {
            tags.arg(lease.tag);
        });
        let mut batch = CommandBatch::new();
        batch.add_command(tags, ());
        batch.send_all(&mut self.servers, self.status).await?;
        Ok(())
    }

    /// The command that fences a lease: commands under it are refused from then on.
    pub(super) fn fence_command(&self, lease: &Lease) -> LeasedCommand {
        fence_lease(self.keys.fence_key(lease.tag), &lease.id).into()
    }

    /// Renews the leases where it is time to, clears lapsed ones away, and sends a word to itself: a connection can
    /// be half dead, and only what comes in shows that it is not.
    pub(super) async fn renew_if_due(&mut self) -> Result<(), LinkError> {
        let now = Instant::now();
        if self.link.beat.is_none_or(|beat| now < beat) {
            return Ok(());
        }
        let part = self.settings.lease / RENEWALS_PER_LEASE;
        if self.dedup.borrow().time_since_echo() > part * 3 + PATIENCE {
            return Err(LinkError::Deaf);
        }
        self.link.beat = Some(now + part);
        if self.servers.is_cluster() {
            self.servers.verify_listeners().await?;
        }
        let shown = self.renew_leases().await?;
        LinkMetrics::add_count(&self.status.figures.renewals, 1);
        if now < self.kept.reaps || self.link.reaping {
            return Ok(());
        }
        let mut lapsed = Vec::new();
        for (tag, leases) in shown {
            lapsed.extend(self.kept.peers.note_leases(tag, leases));
        }
        self.link.reaping = true;
        for mut lease in lapsed {
            // A fenced lease is being cleared by the node that fenced it, and may wait for a master that is away.
            if let Some(fenced) = lease.id.strip_prefix('x') {
                lease.id = fenced.to_owned();
            } else {
                info!("a node's lease has lapsed; clearing away what it held");
                LinkMetrics::add_count(&self.status.figures.nodes_expired, 1);
            }
            Box::pin(self.clear_lease(&lease)).await?;
        }
        self.link.reaping = false;
        Ok(())
    }

    /// Renews the leases; all that there are on each server, as [`super::leases::Peers`] looks at them.
    async fn renew_leases(&mut self) -> Result<Vec<(u16, Vec<(String, String)>)>, LinkError> {
        let mut batch = CommandBatch::new();
        let leases: Vec<Lease> = self.servers.current_leases().cloned().collect();
        for lease in &leases {
            let renew = renew_lease(self.keys.fence_key(lease.tag), &lease.id, self.link.whole);
            batch.add_command(renew, RenewalResult::Own(lease.tag));
        }
        let mut word = cmd("SPUBLISH");
        word.arg(&self.probe).arg(self.new_envelope(0, true, EnvelopeBody::Probe).encode());
        batch.add_command(word, RenewalResult::Probe);
        if self.link.beats.is_multiple_of(OLD_EVERY) {
            batch.add_command(self.look_for_old(), RenewalResult::Old);
            if self.servers.is_cluster() {
                let mut tags = cmd("SMEMBERS");
                tags.arg(self.keys.tags_key());
                batch.add_command(tags, RenewalResult::Tags);
            }
        }
        // With tags that were servers' before slots moved.
        self.link.tags.retain(|tag| leases.iter().all(|own| own.tag != *tag));
        for tag in &self.link.tags {
            let mut all = cmd("HGETALL");
            all.arg(self.keys.fence_key(*tag));
            batch.add_command(all, RenewalResult::Elsewhere(*tag));
        }
        self.link.beats = self.link.beats.wrapping_add(1);
        let asked = Instant::now();
        let (mut shown, mut clocks, mut unused) = (Vec::new(), Vec::new(), Vec::new());
        for (look, value) in batch.send_all(&mut self.servers, self.status).await? {
            match look {
                RenewalResult::Own(tag) => {
                    let fence = FenceReply::parse_reply(&value).ok_or(LinkError::Unexpected)?;
                    clocks.push(fence.now);
                    shown.push((tag, leases_of(fence)));
                }
                RenewalResult::Probe => {
                    reply::as_number(&value).ok_or(LinkError::Unexpected)?;
                }
                RenewalResult::Old => shown.push((UNFENCED, self.note_old(&value))),
                RenewalResult::Tags => {
                    let tags = reply::as_list(&value).iter().filter_map(reply::as_number);
                    self.link.tags = tags.filter_map(|tag| u16::try_from(tag).ok()).collect();
                }
                RenewalResult::Elsewhere(tag) => {
                    let leases = leases_of(fence_of(value));
                    if leases.is_empty() {
                        unused.push(tag);
                    }
                    shown.push((tag, leases));
                }
            }
        }
        self.kept.webhook_log.held_until_now(asked);
        if self.status.clock.set_from(clocks) {
            // Times until which keys live may be shorter than assumed.
            self.kept.log_budget = LogBudget::default();
        }
        if self.servers.is_cluster() && self.link.beats % OLD_EVERY == 1 {
            self.note_tags().await?;
            self.forget_tags(&unused).await?;
        }
        Ok(shown)
    }

    /// Reads the leases of nodes of an older version, which do not seal their envelopes.
    fn note_old(&self, value: &Value) -> Vec<(String, String)> {
        let old = old_leases(value);
        self.dedup.borrow_mut().take_unsealed(!old.is_empty());
        old
    }

    /// Envelopes without seals have been refused: looks whether there are nodes that know none, and has what they
    /// said read again.
    pub(super) async fn look_for_unsealed(&mut self) -> Result<(), LinkError> {
        if !self.dedup.borrow_mut().is_to_look_for_unsealed() {
            return Ok(());
        }
        let mut batch = CommandBatch::new();
        batch.add_command(self.look_for_old(), ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        answers.first().into_iter().for_each(|(_, value)| drop(self.note_old(value)));
        let refused = self.dedup.borrow_mut().take_refused();
        let topics = self.topics.all_topics().into_iter();
        let topics: Vec<Topic> =
            topics.filter(|topic| refused.contains(&self.keys.topic_name(topic))).collect();
        for some in topics.chunks(REOPENED) {
            for topic in some {
                self.dedup.borrow_mut().cut_one(&self.keys.topic_name(topic));
                self.link.batch.push(LinkRequest::Open(topic.clone()));
            }
            self.send_batch().await?;
        }
        Ok(())
    }

    /// The command that lists the leases of nodes of an older version.
    fn look_for_old(&self) -> redis::Cmd {
        let mut old = cmd("ZRANGE");
        old.arg(self.keys.leases_of_old()).arg(0).arg(-1).arg("WITHSCORES");
        old
    }

    /// Nobody has a lease with these tags; who is about to get one notes it again.
    async fn forget_tags(&mut self, tags: &[u16]) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        if !tags.is_empty() {
            let mut forget = cmd("SREM");
            forget.arg(self.keys.tags_key()).arg(tags);
            batch.add_command(forget, ());
        }
        batch.send_all(&mut self.servers, self.status).await.map(drop)
    }

    /// Reads the fences of some servers. A server that is away is left out.
    pub(super) async fn look_at(
        &mut self,
        tags: Vec<u16>,
    ) -> Result<Vec<(u16, FenceReply)>, LinkError> {
        let mut batch = CommandBatch::new();
        for tag in tags {
            let mut all = cmd("HGETALL");
            all.arg(self.keys.fence_key(tag));
            batch.add_command(all, tag);
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        Ok(answers.into_iter().map(|(tag, fields)| (tag, fence_of(fields))).collect())
    }

    /// Reads all rosters again, now that what they lack is gone for good.
    pub(super) async fn reload_rosters(&mut self) -> Result<(), LinkError> {
        let topics = self.topics.all_topics();
        let presence: Vec<Topic> =
            topics.into_iter().filter(|topic| topic.channel.kind().is_presence()).collect();
        for some in presence.chunks(MAX_REQUESTS) {
            for topic in some {
                // Envelopes that arrive meanwhile change what is read, and must be handled after it.
                self.dedup.borrow_mut().cut_one(&self.keys.topic_name(topic));
                self.link.batch.push(LinkRequest::Open(topic.clone()));
            }
            self.send_batch().await?;
            self.renew_if_due().await?;
        }
        Ok(())
    }
}

/// The meaning of a reply to a renewal.
enum RenewalResult {
    /// The renewal of the own lease with that tag.
    Own(u16),
    Probe,
    /// The leases of nodes of an older version.
    Old,
    Tags,
    /// The fence with that tag, which is not this node's.
    Elsewhere(u16),
}

/// The content of a fence's key.
fn fence_of(fields: Value) -> FenceReply {
    // A key that is not there yet is a fence without leases.
    FenceReply::parse_reply(&Value::Array(vec![Value::Int(0), fields])).unwrap_or_default()
}

/// All leases that hold, and with an `x` those that are being cleared.
fn leases_of(fence: FenceReply) -> Vec<(String, String)> {
    let fenced = fence.fenced.into_iter().map(|lease| (format!("x{lease}"), String::new()));
    fence.valid.into_iter().chain(fenced).collect()
}

/// The leases of nodes without fences, each with when it would lapse, which changes with each renewal.
fn old_leases(value: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::Double(score) => Some(score.to_string()),
        value => reply::as_text(value).map(str::to_owned),
    };
    let pair = |(lease, score): (&Value, &Value)| Some((text(lease)?, text(score)?));
    reply::hash_pairs(value).into_iter().filter_map(pair).collect()
}
