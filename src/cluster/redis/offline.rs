//! Requests that are handled without Redis, or without the part of it that they belong to: publishes wait, and the rest
//! is decided with local knowledge.

use std::cell::RefCell;

use super::clients;
use super::dedup::Deduplicator;
use super::session::LinkWriter;
use super::{LinkError, LinkState};
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::{LinkEvent, LinkRequest, LinkStatus, OfflineFallback};
use crate::cluster::topics::{TopicEntry, Topics};

/// The state that local handling needs.
pub(super) struct OfflineRequests<'a> {
    /// State that survives a lost link.
    pub(super) kept: &'a mut LinkState,
    pub(super) topics: &'a Topics,
    pub(super) keys: &'a RedisKeys,
    /// Recognises envelopes that were received before.
    pub(super) dedup: &'a RefCell<Deduplicator>,
    /// Shared with the senders of requests.
    pub(super) status: &'a LinkStatus,
}

impl OfflineRequests<'_> {
    /// Carries one out; what comes of it for this node.
    pub(super) fn answer_request(self, request: LinkRequest) -> Option<LinkEvent> {
        let alone = match request {
            LinkRequest::Open(topic) => {
                let since = self.topics.read_topic(&topic, TopicEntry::made_at);
                let since = since.unwrap_or_else(|| self.status.clock.now());
                self.dedup.borrow_mut().begin_at(&self.keys.topic_name(&topic), since);
                OfflineFallback::Open(topic)
            }
            LinkRequest::Join { topic, member, .. } => {
                OfflineFallback::Join { topic, user: member.user_id }
            }
            LinkRequest::Leave { topic, user } => OfflineFallback::Leave { topic, user },
            LinkRequest::Publish(publish) => {
                let local = publish.offline_fallback();
                let local = local.map(|(topic, alone)| (self.keys.topic_name(topic), alone));
                self.kept.hold_publish(publish, true);
                let (name, alone) = local?;
                self.dedup.borrow_mut().note_local_delivery(&name, self.kept.serial);
                alone
            }
            LinkRequest::Connections { app, count } => {
                self.kept.connections.insert(app, count);
                return None;
            }
            LinkRequest::WebhookLog(request) => {
                self.kept.queue_log_request(request, &self.status.figures);
                return None;
            }
            LinkRequest::Park(parked) => {
                self.kept.parked.put(parked);
                return None;
            }
            LinkRequest::Replay(replay) => return Some(clients::unknown(replay)),
            // Everything is counted again once Redis is back; who asks gets no answer and knows why.
            LinkRequest::Changed { .. }
            | LinkRequest::Room(_)
            | LinkRequest::Ask(..)
            | LinkRequest::Sweep(_)
            | LinkRequest::Stop => return None,
        };
        Some(LinkEvent::Alone(alone))
    }
}

impl LinkWriter<'_> {
    /// Handles a request whose owner is away. Its result survives the link until it is handed out.
    pub(super) fn answer_alone(&mut self, request: LinkRequest) {
        let is_publish = matches!(request, LinkRequest::Publish(_));
        let offline = OfflineRequests {
            kept: self.kept,
            topics: self.topics,
            keys: self.keys,
            dedup: self.dedup,
            status: self.status,
        };
        let answer = offline.answer_request(request);
        if is_publish && let Some(publish) = self.kept.publishes.pop_back() {
            self.kept.strand(publish, (self.status, self.max_queued));
        }
        self.link.alone.extend(answer);
    }

    /// Hands events out that were made with local knowledge.
    pub(super) async fn forward_offline(&mut self) -> Result<(), LinkError> {
        // A place first, so that none is taken out that is then not put anywhere.
        while !self.link.alone.is_empty() {
            let place = self.events.reserve().await.map_err(|_| LinkError::Stopped)?;
            place.send(self.link.alone.remove(0));
        }
        Ok(())
    }
}
