//! Publishing to other nodes: events wait while Redis is away, are sent in order, and are sent again if their outcome
//! is unknown.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use redis::{Value, cmd};
use tokio::time::Instant;

use super::batch::CommandBatch;
use super::clients;
use super::log_budget::LogBudget;
use super::session::{ExpectedReply, LinkWriter, MAX_REQUESTS};
use super::{LinkState, PendingPublish};
use crate::cluster::Topic;
use crate::cluster::clients::withdrawn_member;
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::{
    LinkEvent, LinkMetrics, LinkRequest, Manner, OfflineFallback, OutgoingEvent, Withdraw,
};
use crate::cluster::reply;
use crate::cluster::scripts::clients::revoke;
use crate::cluster::scripts::events::{self, CacheArgs, EventArgs};
use crate::cluster::topics::TopicEntry;

/// Bytes of publishes in one round trip.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Events that one script publishes, so that others of Redis's clients need not wait for long.
const MAX_SCRIPT_EVENTS: usize = 64;

/// Bytes of them after which no more are added.
const MAX_SCRIPT_BYTES: usize = 128 << 10;

/// Events that one script publishes.
#[derive(Default)]
struct PublishBatch {
    logs: Vec<String>,
    events: Vec<EventArgs>,
    bytes: usize,
}

impl LinkState {
    pub(super) fn hold_publish(&mut self, publish: OutgoingEvent, delivered: bool) {
        self.serial += 1;
        // Some events go back to their sender too, unless it has told its subscribers.
        let delivered = delivered || !publish.returns();
        let (since, serial) = (Instant::now(), self.serial);
        self.publishes.push_back(PendingPublish {
            since,
            serial,
            delivered,
            sent: false,
            taken: 0,
            publish,
        });
    }

    /// Events that Redis took within the last seconds are to be published again, before anything else: another
    /// server has taken over, or it has begun anew. They are known by their serials where they were heard, and by
    /// the log where they were not lost. Returns their bytes.
    pub(super) fn republish_recent(&mut self, is_its: impl Fn(&PendingPublish) -> bool) -> usize {
        let mut bytes = 0;
        for pending in self.recent.take_doubtful(is_its).into_iter().rev() {
            bytes += pending.publish.queued_bytes();
            self.publishes.push_front(pending);
        }
        bytes
    }
}

/// The name of the topic that a publish goes to.
pub(super) fn publish_topic(keys: &RedisKeys, publish: &OutgoingEvent) -> String {
    match publish {
        OutgoingEvent::Event { topic, .. }
        | OutgoingEvent::Cached { topic, .. }
        | OutgoingEvent::Trace { topic, .. } => keys.topic_name(topic),
        OutgoingEvent::Terminate { .. }
        | OutgoingEvent::Reconnect { .. }
        | OutgoingEvent::Withdraw(_) => keys.all_nodes_topic(),
        OutgoingEvent::Done { node, .. } | OutgoingEvent::HandedOver { node, .. } => {
            keys.node_topic(*node)
        }
    }
}

impl PendingPublish {
    /// The name of the topic that it goes to.
    pub(super) fn topic_name(&self, keys: &RedisKeys) -> String {
        publish_topic(keys, &self.publish)
    }

    /// The notice for subscribers here, now that it will not come back.
    fn offline_fallback(&self) -> Option<(&Topic, OfflineFallback)> {
        self.publish.offline_fallback()
    }

    /// For how long its channel's log must have it.
    fn lasts(&self) -> u32 {
        match &self.publish {
            OutgoingEvent::Event { manner: Manner::Resumable { lasts }, .. }
            | OutgoingEvent::Cached { lasts, .. } => *lasts,
            _ => 0,
        }
    }
}

/// The envelope in which all nodes are told of it.
fn order_to_all(publish: &OutgoingEvent) -> EnvelopeBody {
    let waited = |asked: &std::time::Instant| asked.elapsed().as_micros() as u64;
    match publish {
        OutgoingEvent::Reconnect { app, user, asked } => {
            let (app, user) = (app.clone(), user.clone());
            EnvelopeBody::Reconnect { waited: waited(asked), app, user }
        }
        OutgoingEvent::Terminate { app, user, asked } => {
            let (app, user) = (app.clone(), user.clone());
            EnvelopeBody::Terminate { waited: waited(asked), app, user }
        }
        OutgoingEvent::Withdraw(one) => EnvelopeBody::Withdraw {
            waited: waited(&one.asked),
            request: one.request,
            app: one.app.clone(),
            user: one.user.clone(),
            channels: one.channels.to_vec(),
        },
        // These are for others.
        _ => EnvelopeBody::Probe,
    }
}

impl LinkWriter<'_> {
    /// Adds publishes that wait; how many, and their bytes.
    pub(super) fn add_publishes(
        &mut self,
        batch: &mut CommandBatch<ExpectedReply>,
    ) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        let mut all = std::mem::take(&mut self.kept.publishes);
        let mut together = PublishBatch::default();
        for pending in &mut all {
            if bytes > MAX_BATCH_BYTES || count == MAX_REQUESTS {
                break;
            }
            count += 1;
            bytes += pending.publish.queued_bytes();
            self.add_batch(batch, &mut together, pending);
            pending.sent = true;
        }
        self.send_together(batch, &mut together);
        self.kept.publishes = all;
        (count, bytes)
    }

    fn add_batch(
        &mut self,
        batch: &mut CommandBatch<ExpectedReply>,
        together: &mut PublishBatch,
        pending: &PendingPublish,
    ) {
        let most = self.settings.replay;
        let (topic, log, body) = match &pending.publish {
            OutgoingEvent::Event { topic, except, frame, .. } => {
                let body = EnvelopeBody::Event { except: *except, frame: frame.clone() };
                (self.keys.topic_name(topic), self.keys.channel_key(topic, 'l'), body)
            }
            OutgoingEvent::Terminate { .. }
            | OutgoingEvent::Reconnect { .. }
            | OutgoingEvent::Withdraw(_) => {
                if let OutgoingEvent::Withdraw(order) = &pending.publish {
                    self.note_withdrawal(batch, order);
                    self.ask_who_lives(batch, order.request);
                }
                (
                    self.keys.all_nodes_topic(),
                    self.keys.log_of_all(),
                    order_to_all(&pending.publish),
                )
            }
            OutgoingEvent::Done { app, request, .. } => {
                let body = EnvelopeBody::Done { request: *request, app: app.clone() };
                return self.send_unlogged(batch, pending, body);
            }
            OutgoingEvent::HandedOver { app, request, record, .. } => {
                let (app, record) = (app.clone(), record.clone());
                let body = EnvelopeBody::HandedOver { request: *request, app, record };
                return self.send_unlogged(batch, pending, body);
            }
            OutgoingEvent::Trace { topic, mark, trace } => {
                let (app, trace) = (topic.app.clone(), trace.as_str().into());
                let body = EnvelopeBody::Trace { mark: *mark, app, trace };
                return self.send_unlogged(batch, pending, body);
            }
            OutgoingEvent::Cached { .. } => {
                self.send_together(batch, together);
                return self.add_kept(batch, pending);
            }
        };
        let envelope = self.envelope_of(pending, body);
        let app = pending.publish.app_id();
        if most == 0 {
            return self.send_unlogged(batch, pending, envelope.body);
        }
        let parts = self.seals.sealed_parts(app, &topic, &envelope);
        let lasts = self.kept.log_budget.needs_expire(app, &log, pending.lasts());
        let room = self.kept.log_budget.log_room(app, &parts);
        let event = EventArgs { topic, parts, lasts, room };
        if pending.sent {
            self.send_together(batch, together);
            let again = events::publish_again(log, most, event);
            return batch.add_command(again, ExpectedReply::Published);
        }
        // Of a Redis Cluster no two channels need be on one server.
        let apart = self.servers.is_cluster() && together.logs.last().is_some_and(|l| *l != log);
        if apart || together.logs.len() == MAX_SCRIPT_EVENTS || together.bytes > MAX_SCRIPT_BYTES {
            self.send_together(batch, together);
        }
        together.bytes += event.parts.rest.len();
        together.logs.push(log);
        together.events.push(event);
    }

    fn send_unlogged(
        &self,
        batch: &mut CommandBatch<ExpectedReply>,
        pending: &PendingPublish,
        body: EnvelopeBody,
    ) {
        let (topic, envelope) = (pending.topic_name(self.keys), self.envelope_of(pending, body));
        let mut publish = cmd("SPUBLISH");
        publish.arg(&topic).arg(self.seals.encode_sealed(
            pending.publish.app_id(),
            &topic,
            &envelope,
        ));
        batch.add_command(publish, ExpectedReply::Done);
    }

    fn envelope_of(&self, pending: &PendingPublish, body: EnvelopeBody) -> Envelope {
        let manner = match &pending.publish {
            OutgoingEvent::Event { manner, .. } => *manner,
            _ => Manner::AtOnce,
        };
        let whisper = manner == Manner::Whisper;
        let again = pending.taken > 0;
        Envelope { whisper, again, ..self.new_envelope(pending.serial, pending.delivered, body) }
    }

    /// Notes a withdrawal for clients that come back only after it.
    fn note_withdrawal(&self, batch: &mut CommandBatch<ExpectedReply>, order: &Withdraw) {
        if order.window > 0 {
            let members = order.channels.iter();
            let members = members.map(|channel| withdrawn_member(&order.user, channel));
            let key = self.keys.app_key(&order.app, 'x');
            let revoke = revoke(key, order.window, members);
            batch.add_command(revoke, ExpectedReply::Done);
        }
    }

    /// Asks which nodes have a lease, as every living one has on each server.
    fn ask_who_lives(&self, batch: &mut CommandBatch<ExpectedReply>, request: u64) {
        if let Some(lease) = self.servers.current_leases().next() {
            let mut living = cmd("HGETALL");
            living.arg(self.keys.fence_key(lease.tag));
            batch.add_command(living, ExpectedReply::Living { request });
        }
    }

    fn send_together(&self, batch: &mut CommandBatch<ExpectedReply>, together: &mut PublishBatch) {
        let PublishBatch { logs, events, .. } = std::mem::take(together);
        if logs.is_empty() {
            return;
        }
        let publish = events::publish(&logs, self.settings.replay, &events);
        batch.add_command(publish, ExpectedReply::Published);
    }

    fn add_kept(&mut self, batch: &mut CommandBatch<ExpectedReply>, pending: &PendingPublish) {
        let OutgoingEvent::Cached { topic, except, frame, data, ttl, max, .. } = &pending.publish
        else {
            return;
        };
        let bytes = (frame.len() + data.len(), *max);
        let out =
            self.kept.cache_budget.keep_event(topic, bytes, pending.serial, Instant::now() + *ttl);
        let (plain, frame, data) = (frame.clone(), frame.clone(), data.clone());
        let body = EnvelopeBody::Cached { except: *except, frame, data };
        let (name, envelope) = (self.keys.topic_name(topic), self.envelope_of(pending, body));
        let parts = self.seals.sealed_parts(&topic.app, &name, &envelope);
        // It lasts on with each event, but counts among the app's.
        let log = self.keys.channel_key(topic, 'l');
        let lasts = self.kept.log_budget.needs_expire(&topic.app, &log, pending.lasts()).abs();
        let room = self.kept.log_budget.log_room(&topic.app, &parts);
        // Another may be the last by now.
        let plain = (pending.taken > 0).then(|| {
            let body = EnvelopeBody::Event { except: *except, frame: plain };
            self.seals.sealed_parts(&topic.app, &name, &self.envelope_of(pending, body))
        });
        let args = CacheArgs {
            ttl: (ttl.as_millis() as u64).max(1),
            most: self.settings.replay,
            again: pending.sent,
            taken: pending.taken,
            plain: plain.as_ref(),
            event: EventArgs { topic: name, parts, lasts, room },
        };
        batch.add_command(
            args.call(&self.channel_keys(topic, "vcl")),
            ExpectedReply::Placed { serial: pending.serial },
        );
        for (channel, serial) in out {
            let topic = Topic { app: topic.app.clone(), channel };
            let id = self.new_envelope(serial, false, EnvelopeBody::Probe).id_bytes();
            let uncache = events::uncache(self.keys.channel_key(&topic, 'c'), id.as_slice());
            batch.add_command(uncache, ExpectedReply::Done);
        }
    }

    /// The first `count` of what waited are in Redis; some have the versions that answers say.
    pub(super) fn note_published(
        &mut self,
        (count, bytes): (usize, usize),
        answers: &[(ExpectedReply, Value)],
    ) {
        let (dedup, keys, topics) = (self.dedup.borrow(), self.keys, self.topics);
        let comes_back = |pending: &PendingPublish| {
            !pending.delivered
                && pending
                    .offline_fallback()
                    .is_some_and(|(topic, _)| topics.read_topic(topic, |_| ()).is_some())
                && !dedup.has_own(&pending.topic_name(keys), pending.serial)
        };
        self.kept.flying.retain(comes_back);
        let placed = answers.iter().filter_map(|(expected, value)| match expected {
            ExpectedReply::Placed { serial } => Some((*serial, reply::as_list(value).first()?)),
            _ => None,
        });
        let placed: HashMap<u64, &Value> = placed.collect();
        for pending in self.kept.publishes.drain(..count) {
            let taken = placed.get(&pending.serial).copied().and_then(reply::as_number);
            let taken = taken.filter(|taken| *taken > 0);
            self.kept.recent.note_taken(&pending, taken.unwrap_or_else(|| self.status.clock.now()));
            if comes_back(&pending) {
                self.kept.flying.push_back(pending);
            }
        }
        // Subtracted only now: until Redis confirms them they are memory that this node holds.
        self.status.queued.fetch_sub(bytes, Ordering::Relaxed);
        LinkMetrics::add_count(&self.status.figures.published, count as u64);
    }

    /// Hands out what was not done when the link was lost, to be done with what is known here. Publishes
    /// wait on, but for those that did arrive.
    pub(super) async fn recover_unacked(&mut self) {
        self.kept.leases = std::mem::take(&mut self.servers.leases);
        self.kept.gather_stranded(self.status, |_| true);
        self.kept.recent.note_link_lost();
        self.kept.webhook_log.note_loss();
        for answer in std::mem::take(&mut self.link.alone) {
            // Sends fail only once the node has stopped; then nobody waits for the answers. The same holds below.
            let _ = self.events.send(answer).await;
        }
        for request in std::mem::take(&mut self.link.batch) {
            if let LinkRequest::Leave { topic, user } = request {
                let _ = self
                    .events
                    .send(LinkEvent::Alone(OfflineFallback::Leave { topic, user }))
                    .await;
            }
        }
        self.link.questions.clear();
        for replay in std::mem::take(&mut self.link.replays) {
            let _ = self.events.send(clients::unknown(replay)).await;
        }
        for alone in self.recover_publishes(|_| true) {
            let _ = self.events.send(alone).await;
        }
    }

    /// The same with publishes whose owner is lost. Returns what subscribers here are to get now.
    pub(super) fn recover_publishes(
        &mut self,
        is_its: impl Fn(&PendingPublish) -> bool,
    ) -> Vec<LinkEvent> {
        let (keys, queued) = (self.keys, &self.status.queued);
        let came = |pending: &PendingPublish| {
            self.dedup.borrow().has_own(&pending.topic_name(keys), pending.serial)
        };
        let (now, recent) = (self.status.clock.now(), &mut self.kept.recent);
        self.kept.publishes.retain(|pending| {
            // One that is said again came before it was lost.
            let waits = !is_its(pending) || pending.taken > 0 || !came(pending);
            if !waits {
                // Not everybody need have heard it who is to, and Redis may lose it as what it has answered.
                recent.note_taken(pending, now);
                queued.fetch_sub(pending.publish.queued_bytes(), Ordering::Relaxed);
            }
            waits
        });
        // Nor is it known which logs were told to last on.
        self.kept.log_budget = LogBudget::default();
        // Those that Redis took will not come back either, and are not sent again.
        let flying = std::mem::take(&mut self.kept.flying);
        let (lost, others): (Vec<_>, Vec<_>) = flying.into_iter().partition(&is_its);
        self.kept.flying = others.into();
        let lost = lost.iter().filter(|pending| !came(pending));
        let pending = self.kept.publishes.iter();
        let pending = pending.filter(|pending| is_its(pending) && !pending.delivered);
        let mut local = Vec::new();
        for pending in lost.chain(pending) {
            if let Some((topic, alone)) = pending.offline_fallback() {
                self.note_local_delivery(topic, pending.serial);
                local.push(LinkEvent::Alone(alone));
            }
        }
        let its = self.kept.publishes.iter_mut().filter(|pending| is_its(pending));
        its.for_each(|pending| pending.delivered = true);
        local
    }

    /// Subscribers here have an event that will not come back.
    fn note_local_delivery(&self, topic: &Topic, serial: u64) {
        let (name, mut dedup) = (self.keys.topic_name(topic), self.dedup.borrow_mut());
        if let Some(since) = self.topics.read_topic(topic, TopicEntry::made_at) {
            // It may not have been subscribed to yet.
            dedup.begin_at(&name, since);
        }
        dedup.note_local_delivery(&name, serial);
    }
}
