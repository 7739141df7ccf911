//! What comes in on the connection that listens: bytes become envelopes, envelopes arrivals. Whatever is no
//! envelope is counted and dropped.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Msg;
use tokio::sync::mpsc;
use tracing::debug;

use super::connections::PushStream;
use super::dedup::{Deduplicator, EnvelopeVerdict, MessageId};
use super::leases::node_of;
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Envelope, EnvelopeBody, EnvelopeError};
use crate::cluster::keys::{RedisKeys, TopicName};
use crate::cluster::link::{LinkEvent, LinkMetrics, Withdraw};
use crate::cluster::redis_clock::{RedisClock, now_us};
use crate::cluster::seal::{self, EnvelopeSeals};
use crate::protocol::channel::ChannelName;

/// The listening half.
pub(super) struct LinkReader<'a> {
    pub(super) stream: PushStream,
    pub(super) keys: &'a RedisKeys,
    pub(super) trust: EnvelopeTrust<'a>,
    pub(super) node: u64,
    pub(super) far: &'a mpsc::Sender<LinkEvent>,
    pub(super) figures: &'a LinkMetrics,
    pub(super) clock: &'a RedisClock,
    pub(super) hearing: &'a RefCell<Deduplicator>,
}

impl LinkReader<'_> {
    /// Reads until the connection ends.
    pub(super) async fn run(&mut self) {
        while let Some(message) = self.stream.next().await {
            let name = message.get_channel_name();
            // It is no envelope.
            if let [word] = message.get_payload_bytes()
                && let Some(TopicName::News { app }) = self.keys.named(name)
            {
                self.hearing.borrow_mut().hear_news(app, *word == b'g');
                continue;
            }
            let Some(envelope) = self.envelope(&message) else { continue };
            let mark = MessageId::from(&envelope);
            if let Some(arrival) = arrival(self.keys, self.node, name, envelope, None)
                && self.far.send(arrival).await.is_err()
            {
                return;
            }
            self.hearing.borrow_mut().note(name, mark);
        }
    }

    /// How long an envelope was on its way: since Redis gave it its version, or since it was sent.
    fn lag(&self, envelope: &Envelope, bytes: &[u8]) -> Duration {
        match envelope.version().filter(|version| *version > 0) {
            Some(version) if seal::is_sealed(bytes) => self.clock.since(version),
            _ => Duration::from_micros(now_us().saturating_sub(envelope.sent)),
        }
    }

    /// The envelope of a message, if it is news and need not wait.
    fn envelope(&self, message: &Msg) -> Option<Envelope> {
        let name = message.get_channel_name();
        let bytes = Bytes::copy_from_slice(message.get_payload_bytes());
        let mut envelope = match Envelope::decode(&bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                let count = match error {
                    EnvelopeError::Newer(_) => &self.figures.unknown_kind,
                    EnvelopeError::Garbage => &self.figures.invalid,
                };
                LinkMetrics::add(count, 1);
                debug!(topic = name, "skipped: {error}");
                return None;
            }
        };
        if !self.trust.believes(name, &envelope, &bytes) {
            return None;
        }
        envelope.map_version(|version| self.clock.local(version));
        if envelope.origin != self.node {
            LinkMetrics::add(&self.figures.received, 1);
            self.hearing.borrow_mut().hear_node(envelope.origin);
            self.figures.lag.observe(self.lag(&envelope, &bytes));
        } else if matches!(envelope.body, EnvelopeBody::Probe) {
            self.hearing.borrow_mut().hear_word();
        }
        match self.hearing.borrow_mut().hear(name, envelope) {
            EnvelopeVerdict::New(envelope) => Some(envelope),
            EnvelopeVerdict::Waits => None,
            EnvelopeVerdict::Doubled => {
                LinkMetrics::add(&self.figures.duplicates, 1);
                None
            }
        }
    }
}

/// What it takes to believe an envelope.
#[derive(Clone, Copy)]
pub(super) struct EnvelopeTrust<'a> {
    pub(super) seals: &'a EnvelopeSeals,
    pub(super) keys: &'a RedisKeys,
    pub(super) hearing: &'a RefCell<Deduplicator>,
    pub(super) figures: &'a LinkMetrics,
}

impl EnvelopeTrust<'_> {
    /// Whether an envelope that came on a topic, or was read for it, is a node's of this cluster, which is counted if
    /// it is not. One without a seal is that of a node which knows none, if there is one.
    pub(super) fn believes(&self, name: &str, envelope: &Envelope, bytes: &[u8]) -> bool {
        let believed = match (self.keys.named(name), &envelope.body) {
            (Some(TopicName::Topic { app, .. }), _) => self.holds(&AppId::new(app), name, bytes),
            (
                Some(TopicName::All),
                EnvelopeBody::Terminate { app, .. }
                | EnvelopeBody::Reconnect { app, .. }
                | EnvelopeBody::Withdraw { app, .. },
            )
            | (
                Some(TopicName::Node),
                EnvelopeBody::Done { app, .. }
                | EnvelopeBody::TakeOver { app, .. }
                | EnvelopeBody::HandedOver { app, .. },
            ) => self.holds(app, name, bytes),
            (Some(TopicName::Probe), EnvelopeBody::Probe) => true,
            _ => false,
        };
        if !believed {
            LinkMetrics::add(&self.figures.unsealed, 1);
            debug!(topic = name, "skipped: its seal does not hold");
        }
        believed
    }

    fn holds(&self, app: &AppId, name: &str, bytes: &[u8]) -> bool {
        match seal::is_sealed(bytes) {
            true => self.seals.holds(app, name, bytes),
            false => self.hearing.borrow_mut().takes_unsealed(name),
        }
    }
}

/// What an envelope is to a node: nothing, if it knows it already. `late` is the time of Redis where it may have
/// been sent while the node did not hear it.
pub(super) fn arrival(
    keys: &RedisKeys,
    node: u64,
    name: &str,
    envelope: Envelope,
    late: Option<&RedisClock>,
) -> Option<LinkEvent> {
    let own = envelope.origin == node;
    match keys.named(name)? {
        TopicName::Probe | TopicName::News { .. } => None,
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
        TopicName::All => (!own).then(|| order(envelope, late)).flatten(),
        TopicName::Topic { app, channel } => {
            // Its own subscribers were given it when it was sent, unless clients that come back are to have it.
            if own && envelope.told && matches!(envelope.body, EnvelopeBody::Event { .. }) {
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

/// What all nodes are to do.
fn order(envelope: Envelope, late: Option<&RedisClock>) -> Option<LinkEvent> {
    let (node, place) = (envelope.origin, envelope.place());
    let on_its_way = late.zip(place).map(|(clock, place)| clock.since(place)).unwrap_or_default();
    let asked = |waited: u64| {
        // Where that is before this machine was started, nobody was connected.
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
