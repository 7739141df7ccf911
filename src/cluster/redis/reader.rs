//! Reads the subscribed connections: bytes become envelopes, and envelopes become events for the node. Anything else is
//! counted and dropped.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Msg;
use tokio::sync::mpsc;
use tracing::debug;

use super::LinkError;
use super::dedup::{Deduplicator, EnvelopeVerdict, MessageId};
use super::leases::node_of;
use super::pushes::PushStream;
use super::trust::EnvelopeTrust;
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Envelope, EnvelopeBody, EnvelopeError};
use crate::cluster::keys::{RedisKeys, TopicName};
use crate::cluster::link::{LinkEvent, LinkMetrics, Withdraw};
use crate::cluster::redis_clock::{RedisClock, now_us};
use crate::cluster::seal;
use crate::protocol::channel::ChannelName;

/// The listening half.
pub(super) struct LinkReader<'a> {
    /// The pushes of Redis (RESP3), on connections without commands.
    pub(super) stream: PushStream,
    pub(super) keys: &'a RedisKeys,
    /// Which envelopes are believed.
    pub(super) trust: EnvelopeTrust<'a>,
    pub(super) node: u64,
    /// Bounded: a node that falls behind stops reading, and Redis closes the connection.
    pub(super) events: &'a mpsc::Sender<LinkEvent>,
    pub(super) figures: &'a LinkMetrics,
    pub(super) clock: &'a RedisClock,
    /// Shared with the other tasks of the link, which run on one thread.
    pub(super) dedup: &'a RefCell<Deduplicator>,
    /// The next event to hand out.
    pub(super) next: Option<(LinkEvent, Msg, MessageId)>,
}

impl LinkReader<'_> {
    /// Reads until the connection ends.
    pub(super) async fn run(&mut self) {
        while self.forward_all().await {
            let Some(message) = self.stream.next_push().await else { return };
            self.take_message(message);
        }
    }

    /// Hands out what was received before the link was lost. A server that has lost its data could not replay it.
    pub(super) async fn finish(&mut self, lost: &LinkError, recent: Duration) {
        while self.forward_all().await {
            let Some(message) = self.stream.next_waiting() else { break };
            self.take_message(message);
        }
        if matches!(lost, LinkError::Lapsed) {
            self.dedup.borrow_mut().note_lapse(recent);
        }
    }

    /// Takes a message in, which is handed on then.
    fn take_message(&mut self, message: Msg) {
        let name = message.get_channel_name();
        // It is no envelope.
        if let [word] = message.get_payload_bytes()
            && let Some(TopicName::Wakeup { app }) = self.keys.parse_topic(name)
        {
            return self.dedup.borrow_mut().note_wakeup(app, *word == b'g');
        }
        let Some(envelope) = self.decode_message(&message) else { return };
        let mark = MessageId::from(&envelope);
        match event_of(self.keys, self.node, name, envelope, None) {
            Some(arrival) => self.next = Some((arrival, message, mark)),
            None => self.dedup.borrow_mut().note_delivered(name, mark),
        }
    }

    /// Hands out received events. An event stays first if the link is lost meanwhile, so that none overtakes it.
    /// Returns whether the node still takes them.
    async fn forward_all(&mut self) -> bool {
        if self.next.is_none() {
            return true;
        }
        let Ok(place) = self.events.reserve().await else { return false };
        if let Some((arrival, message, mark)) = self.next.take() {
            place.send(arrival);
            self.dedup.borrow_mut().note_delivered(message.get_channel_name(), mark);
        }
        true
    }

    /// How long an envelope was on its way: since Redis gave it its version, or since it was sent.
    fn lag_of(&self, envelope: &Envelope, bytes: &[u8]) -> Duration {
        match envelope.version {
            version @ 1.. if seal::is_sealed(bytes) => self.clock.elapsed_since(version),
            _ => Duration::from_micros(now_us().saturating_sub(envelope.sent)),
        }
    }

    /// The envelope of a message, if it is news and need not wait.
    fn decode_message(&self, message: &Msg) -> Option<Envelope> {
        let name = message.get_channel_name();
        let bytes = Bytes::copy_from_slice(message.get_payload_bytes());
        let mut envelope = match Envelope::decode(&bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                let count = match error {
                    EnvelopeError::Newer(_) => &self.figures.unknown_kind,
                    EnvelopeError::Garbage => &self.figures.invalid,
                };
                LinkMetrics::add_count(count, 1);
                debug!(topic = name, "skipped: {error}");
                return None;
            }
        };
        if !self.trust.is_believed(name, &envelope, &bytes) {
            return None;
        }
        envelope.map_version(|version| self.clock.to_local(version));
        if envelope.origin != self.node {
            LinkMetrics::add_count(&self.figures.received, 1);
            self.dedup.borrow_mut().note_node(envelope.origin);
            self.figures.lag.observe(self.lag_of(&envelope, &bytes));
        } else if matches!(envelope.body, EnvelopeBody::Probe) {
            self.dedup.borrow_mut().note_echo();
        }
        match self.dedup.borrow_mut().judge_envelope(name, envelope) {
            EnvelopeVerdict::New(envelope) => Some(envelope),
            EnvelopeVerdict::Waits => None,
            EnvelopeVerdict::Doubled => {
                LinkMetrics::add_count(&self.figures.duplicates, 1);
                None
            }
        }
    }
}

/// The event that an envelope means to this node; `None` for a duplicate. `late` is Redis's clock if the envelope
/// may have been sent while this node was disconnected.
pub(super) fn event_of(
    keys: &RedisKeys,
    node: u64,
    name: &str,
    envelope: Envelope,
    late: Option<&RedisClock>,
) -> Option<LinkEvent> {
    let own = envelope.origin == node;
    match keys.parse_topic(name)? {
        TopicName::Probe | TopicName::Wakeup { .. } => None,
        TopicName::Node => match envelope.body {
            EnvelopeBody::Done { request, .. } => {
                Some(LinkEvent::Done { request, node: node_of(envelope.origin) })
            }
            EnvelopeBody::TakeOver { request, app, key, .. } => {
                let (node, key) = (envelope.origin, key.into());
                Some(LinkEvent::TakeOver { app, key, node, request })
            }
            EnvelopeBody::HandedOver { request, record, .. } => {
                Some(LinkEvent::HandedOver { request, record })
            }
            _ => None,
        },
        TopicName::All => (!own).then(|| request_of(envelope, late)).flatten(),
        TopicName::Topic { app, channel } => {
            // Its own subscribers were given it when it was sent, unless clients that come back are to have it.
            if own && envelope.delivered && matches!(envelope.body, EnvelopeBody::Event { .. }) {
                return None;
            }
            let channel = ChannelName::of_node(channel).ok()?;
            let topic = Topic { app: AppId::new(app), channel };
            Some(match late {
                Some(_) => LinkEvent::Late(topic, envelope),
                None => LinkEvent::Topic(topic, envelope),
            })
        }
    }
}

/// The event for a request to all nodes.
fn request_of(envelope: Envelope, late: Option<&RedisClock>) -> Option<LinkEvent> {
    let (node, place) = (envelope.origin, envelope.log_place());
    let on_its_way =
        // Zero if the envelope has no place or Redis's time is not known yet: no delay is reported then.
        late.zip(place).map(|(clock, place)| clock.elapsed_since(place)).unwrap_or_default();
    let asked = |waited: u64| {
        // A moment before this machine started had no connections.
        Instant::now().checked_sub(Duration::from_micros(waited).saturating_add(on_its_way))
    };
    Some(match envelope.body {
        EnvelopeBody::Terminate { waited, app, user, .. } => {
            LinkEvent::Terminate { app, user, asked: asked(waited)? }
        }
        EnvelopeBody::Reconnect { waited, app, user, .. } => {
            LinkEvent::Reconnect { app, user, asked: asked(waited)? }
        }
        EnvelopeBody::Withdraw { waited, request, app, user, channels, .. } => {
            let (asked, channels) = (asked(waited)?, channels.into());
            let order = Withdraw { app, user, channels, asked, request, window: 0 };
            LinkEvent::Withdraw { node, order }
        }
        _ => return None,
    })
}
