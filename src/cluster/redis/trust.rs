//! Which envelopes are accepted: those sealed with the app's secret, and unsealed ones of older nodes while such a node
//! has a lease. `cluster/seal.rs` defines the seal.

use std::cell::RefCell;

use tracing::debug;

use super::dedup::Deduplicator;
use crate::app::AppId;
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::keys::{RedisKeys, TopicName};
use crate::cluster::link::LinkMetrics;
use crate::cluster::seal::{self, EnvelopeSeals};

/// What it takes to believe an envelope.
#[derive(Clone, Copy)]
pub(super) struct EnvelopeTrust<'a> {
    /// By which an app's own envelopes are known.
    pub(super) seals: &'a EnvelopeSeals,
    pub(super) keys: &'a RedisKeys,
    pub(super) dedup: &'a RefCell<Deduplicator>,
    pub(super) figures: &'a LinkMetrics,
}

impl EnvelopeTrust<'_> {
    /// Whether an envelope that came on a topic, or was read for it, is a node's of this cluster, which is counted if
    /// it is not. One without a seal is that of a node which knows none, if there is one.
    pub(super) fn is_believed(&self, name: &str, envelope: &Envelope, bytes: &[u8]) -> bool {
        let believed = match (self.keys.parse_topic(name), &envelope.body) {
            (Some(TopicName::Topic { app, .. }), _) => {
                self.has_valid_mac(&AppId::new(app), name, bytes)
            }
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
            ) => self.has_valid_mac(app, name, bytes),
            (Some(TopicName::Probe), EnvelopeBody::Probe) => true,
            _ => false,
        };
        if !believed {
            LinkMetrics::add_count(&self.figures.unsealed, 1);
            debug!(topic = name, "skipped: its seal does not hold");
        }
        believed
    }

    /// Envelopes without a seal are taken only while nodes of an earlier version are there.
    fn has_valid_mac(&self, app: &AppId, name: &str, bytes: &[u8]) -> bool {
        match seal::is_sealed(bytes) {
            true => self.seals.is_valid(app, name, bytes),
            false => self.dedup.borrow_mut().takes_unsealed(name),
        }
    }
}
