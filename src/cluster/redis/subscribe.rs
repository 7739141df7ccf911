//! Subscribing to topics: subscribe, read what Redis has of the topic and, if it was subscribed to before, catch up
//! from its log, in order and before new events.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::batch::CommandBatch;
use super::dedup::MessageId;
use super::opening::{REOPENED, TopicOpening};
use super::reader::event_of;
use super::session::{ExpectedReply, LinkWriter, MAX_REQUESTS};
use super::{LinkError, PATIENCE, slots};
use crate::cluster::Topic;
use crate::cluster::envelope::Envelope;
use crate::cluster::link::{LinkEvent, LinkMetrics, RetainedEvent};
use crate::cluster::scripts::events::{
    LOG_LASTS, LogCoverage, MissedEntries, read_cached, read_missed,
};
use crate::cluster::scripts::presence;
use crate::cluster::topics::TopicEntry;

/// How long a topic without subscribers stays open, since clients often return. Closing and reopening would cost
/// two round trips and a read of the log.
const IDLE_TOPIC_LINGER: Duration = Duration::from_secs(1);

impl LinkWriter<'_> {
    /// A topic that is to be opened, unless it is not open and nobody holds it any more: while Redis is slow, clients may
    /// have come to many topics and left them again.
    pub(super) fn wanted_topic(&self, topic: Topic) -> Option<Topic> {
        let is_open = self.dedup.borrow().is_open(&self.keys.topic_name(&topic));
        (is_open || self.topics.is_still_wanted(&topic)).then_some(topic)
    }

    /// Subscribes to the topics that are to be opened.
    pub(super) async fn open_topics(&mut self, topics: &[Topic]) -> Result<(), LinkError> {
        if !topics.is_empty() {
            let names: Vec<String> =
                topics.iter().map(|topic| self.keys.topic_name(topic)).collect();
            let now = self.status.clock.now();
            names.iter().for_each(|name| self.dedup.borrow_mut().open_topic(name, now));
            LinkMetrics::add_count(&self.status.figures.commands, names.len() as u64);
            LinkMetrics::add_count(&self.status.figures.round_trips, 1);
            timeout(PATIENCE, self.servers.subscribe_topics(&names)).await??;
            for topic in topics {
                self.link.idle.remove(topic);
            }
        }
        Ok(())
    }

    /// Closes topics that were idle for a while: not more at once than leave time for requests and for renewing
    /// leases.
    pub(super) async fn close_idle(&mut self) -> Result<(), LinkError> {
        let old = |since: &Instant| since.elapsed() >= IDLE_TOPIC_LINGER;
        let idle = self.link.idle.extract_if(|_, since| old(since)).take(MAX_REQUESTS);
        let idle: Vec<Topic> = idle.map(|(topic, _)| topic).collect();
        let closed = idle.into_iter().filter(|topic| self.topics.close_if_idle(topic));
        let names: Vec<String> = closed.map(|topic| self.keys.topic_name(&topic)).collect();
        if !names.is_empty() {
            LinkMetrics::add_count(&self.status.figures.commands, names.len() as u64);
            let ended = timeout(PATIENCE, self.servers.unsubscribe_topics(&names)).await;
            // Also where a server is lost meanwhile: what it says still is passed over, and the others have answered.
            let mut dedup = self.dedup.borrow_mut();
            names.iter().for_each(|name| dedup.close_topic(name));
            drop(dedup);
            ended??;
        }
        Ok(())
    }

    /// Reads what Redis has of topics, behind the joins of the same batch.
    pub(super) fn load_topics(
        &mut self,
        batch: &mut CommandBatch<ExpectedReply>,
        topics: Vec<Topic>,
    ) -> Vec<TopicOpening> {
        let mut openings = Vec::with_capacity(topics.len());
        for topic in topics {
            let (kind, opening) = (topic.channel.kind(), openings.len());
            if kind.is_presence() {
                let load = presence::load(&self.channel_keys(&topic, "vm"));
                batch.add_command(load, ExpectedReply::Loaded { opening });
            }
            let name = self.keys.topic_name(&topic);
            let after = self.dedup.borrow().misses_after(&name);
            if let Some(after) = after.filter(|after| *after > 0 && self.settings.replay > 0) {
                self.ask_log(batch, &self.keys.log_keys(&topic), after, opening);
            }
            if kind.cache {
                self.kept.cache_budget.note_used(&topic);
                let kept = read_cached(&self.channel_keys(&topic, "cv"));
                batch.add_command(kept, ExpectedReply::Kept { opening });
            }
            openings.push(TopicOpening { topic, loaded: None, cached: None, after, missed: None });
        }
        openings
    }

    /// Asks a topic's log for what was missed after a place.
    pub(super) fn ask_log(
        &self,
        batch: &mut CommandBatch<ExpectedReply>,
        log: &[String; 2],
        after: u64,
        opening: usize,
    ) {
        let after = self.status.clock.to_redis(after);
        let missed = read_missed(log, after, self.settings.replay);
        batch.add_command(missed, ExpectedReply::Missed { opening });
    }

    /// Reads what was said to all nodes while this one did not hear it.
    pub(super) async fn catch_up_with_all(&mut self) -> Result<(), LinkError> {
        let (name, mut batch) = (self.keys.all_nodes_topic(), CommandBatch::new());
        if self.servers.is_away(&name) {
            return Ok(());
        }
        let after = self.dedup.borrow().misses_after(&name);
        if let Some(after) = after.filter(|after| *after > 0 && self.settings.replay > 0) {
            self.ask_log(&mut batch, &self.keys.log_keys_of_all(), after, 0);
        }
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        let missed = match answers.first() {
            Some((_, value)) => Some(MissedEntries::parse(value).ok_or(LinkError::Unexpected)?),
            None => None,
        };
        self.catch_up(&name, after, missed).await?;
        self.release_waiting(&name).await
    }

    /// Subscribes anew to topics whose slots have become another server's, and catches up with what was said
    /// on them in between.
    pub(super) async fn resubscribe_moved_slots(&mut self) -> Result<(), LinkError> {
        let mut moved = self.servers.take_moved();
        moved.retain(|slot| !self.servers.is_dark(Some(*slot)));
        let done = match moved.is_empty() {
            true => Ok(()),
            false => self.resubscribe_slots(&moved).await,
        };
        if done.is_err() {
            // Another server is lost, and the link may go on.
            self.servers.moves.borrow_mut().moved.extend(moved);
        } else if !self.link.whole {
            // All that there is to say to a server that was lost has been said.
            (self.link.whole, self.link.beat) = (true, Some(Instant::now()));
        }
        done
    }

    async fn resubscribe_slots(&mut self, moved: &BTreeSet<u16>) -> Result<(), LinkError> {
        let (given_up, gaps) = (self.servers.given_up_leases(), self.link.gaps);
        // Before much is held under new ones.
        self.note_tags().await?;
        let has_moved = |name: &str| moved.contains(&slots::of_name(name.as_bytes()));
        self.follow_moved_wakeups(has_moved);
        let own =
            [self.keys.all_nodes_topic(), self.probe.clone(), self.keys.node_topic(self.kept.node)];
        let own: Vec<String> = own.into_iter().filter(|name| has_moved(name)).collect();
        own.iter().for_each(|name| self.dedup.borrow_mut().cut_one(name));
        self.servers.subscribe_topics(&own).await?;
        self.catch_up_with_all().await?;
        let topics = self.topics.all_topics().into_iter();
        let topics: Vec<Topic> =
            topics.filter(|topic| has_moved(&self.keys.topic_name(topic))).collect();
        info!(slots = moved.len(), topics = topics.len(), "topics are subscribed to again");
        for some in topics.chunks(REOPENED) {
            for topic in some {
                self.begin_if_let_in(topic);
                self.dedup.borrow_mut().cut_one(&self.keys.topic_name(topic));
                self.reregister_topic(topic);
            }
            self.take_waiting();
            self.send_batch().await?;
            self.renew_if_due().await?;
        }
        if self.link.gaps > gaps {
            let channels = self.link.gaps - gaps;
            warn!(channels, "events may have been missed while a part of Redis was lost");
        }
        self.move_holds(moved, &topics, given_up).await
    }

    /// Somebody may have been let in before it was known that the owner of a topic is lost: it is read from then on.
    pub(super) fn begin_if_let_in(&self, topic: &Topic) {
        if let Some(since) = self.topics.read_topic(topic, TopicEntry::since_subscribed).flatten() {
            let name = self.keys.topic_name(topic);
            let mut dedup = self.dedup.borrow_mut();
            dedup.begin_at(&name, since);
            dedup.cut_one(&name);
        }
    }

    /// Hands out what Redis has of a topic, behind what it missed.
    pub(super) async fn finish_opening(&mut self, opening: TopicOpening) -> Result<(), LinkError> {
        let TopicOpening { topic, loaded, cached, after, missed } = opening;
        let name = self.keys.topic_name(&topic);
        let whole = self.catch_up(&name, after, missed).await?;
        // What was heard one after the other was heard up to the last, or its rest is on its way. Where that began
        // while the link was down, what was the last before is not known here.
        let is_before = |kept: &RetainedEvent| after.is_some_and(|after| kept.version <= after);
        let cached = cached.filter(|(kept, ..)| !whole || is_before(kept));
        let cached = cached.map(|(kept, mark, last)| {
            let delivered = whole || self.dedup.borrow().is_known(&name, mark);
            // Of what was sent before it was read, the rest comes behind the last.
            let version = kept.version.max(if after == Some(0) { last } else { 0 });
            self.dedup.borrow_mut().note_kept(&name, mark);
            RetainedEvent { version, delivered, ..kept }
        });
        if after == Some(0) {
            // What this node had published there is in what was read, and need not come back.
            self.kept.flying.retain(|held| held.topic_name(self.keys) != name);
        }
        let settled = !self.kept.peers.is_missing();
        self.send_event(LinkEvent::Opened { topic, loaded, cached, settled }).await?;
        // Only now: on a roster that has not been read yet a later change would hide all before it.
        self.release_waiting(&name).await
    }

    /// Hands out what a topic has missed after a place. Whether the log was there to read, and reached back.
    pub(super) async fn catch_up(
        &mut self,
        name: &str,
        after: Option<u64>,
        missed: Option<MissedEntries>,
    ) -> Result<bool, LinkError> {
        let Some(after) = after else { return Ok(false) };
        let mut whole = false;
        if let Some(MissedEntries { reaches, entries, .. }) = missed {
            let mut reached = None;
            whole = match reaches {
                LogCoverage::Back => true,
                LogCoverage::Begin => {
                    let dedup = self.dedup.borrow();
                    !dedup.has_lost_log(name)
                        && dedup.catch_up_window(name) < Duration::from_secs(LOG_LASTS)
                }
                LogCoverage::Short => false,
            };
            for entry in entries {
                let Ok(mut envelope) = Envelope::decode(&entry) else { continue };
                if self.trust.is_believed(name, &envelope, &entry) {
                    envelope.map_version(|version| self.status.clock.to_local(version));
                    reached = envelope.log_place().or(reached);
                    self.forward_missed(name, envelope, true).await?;
                }
            }
            // Of what is not believed the place is not either.
            self.dedup.borrow_mut().note_log_end(name, reached.unwrap_or(after));
        }
        if !whole && after > 0 && self.settings.replay > 0 {
            LinkMetrics::add_count(&self.status.figures.gaps, 1);
            self.link.gaps += 1;
        }
        Ok(whole)
    }

    /// Hands out what came in on a topic meanwhile, with which it has caught up.
    async fn release_waiting(&self, name: &str) -> Result<(), LinkError> {
        loop {
            let now = self.status.clock.now();
            let next = self.dedup.borrow_mut().next_waiting(name, now);
            let Some(envelope) = next else { return Ok(()) };
            self.forward_missed(name, envelope, false).await?;
        }
    }

    async fn forward_missed(
        &self,
        name: &str,
        envelope: Envelope,
        replayed: bool,
    ) -> Result<(), LinkError> {
        let sifted = self.dedup.borrow().filter_duplicate(name, envelope);
        let Some(envelope) = sifted else {
            // From a log it is nothing to wonder at.
            LinkMetrics::add_count(&self.status.figures.duplicates, u64::from(!replayed));
            return Ok(());
        };
        let mark = MessageId::from(&envelope);
        let clock = Some(&self.status.clock);
        if let Some(arrival) = event_of(self.keys, self.kept.node, name, envelope, clock) {
            self.send_event(arrival).await?;
            LinkMetrics::add_count(&self.status.figures.replayed, u64::from(replayed));
        }
        self.dedup.borrow_mut().note_delivered(name, mark);
        Ok(())
    }
}
