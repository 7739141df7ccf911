//! What comes in on the connection that listens: bytes become envelopes, envelopes arrivals. Whatever is no
//! envelope is counted and dropped.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::StreamExt as _;
use redis::Msg;
use redis::aio::PubSubStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::reply::now_us;
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Body, Envelope, Undecodable};
use crate::cluster::link::{Arrival, Figures};
use crate::cluster::scripts::{Keys, Named};
use crate::protocol::channel::ChannelName;

/// The listening half.
pub(super) struct Reader<'a> {
    pub(super) stream: PubSubStream,
    pub(super) keys: Keys,
    pub(super) node: u64,
    pub(super) far: &'a mpsc::Sender<Arrival>,
    pub(super) figures: &'a Figures,
    /// When the node heard itself last.
    pub(super) heard: &'a Cell<Instant>,
    /// The last serial of each node.
    pub(super) seen: &'a RefCell<HashMap<u64, u64>>,
}

impl Reader<'_> {
    /// Reads until the connection ends.
    pub(super) async fn run(&mut self) {
        while let Some(message) = Pin::new(&mut self.stream).next().await {
            if let Some(arrival) = self.arrival(&message)
                && self.far.send(arrival).await.is_err()
            {
                return;
            }
        }
    }

    fn arrival(&self, message: &Msg) -> Option<Arrival> {
        let bytes = Bytes::copy_from_slice(message.get_payload_bytes());
        let envelope = match Envelope::decode(&bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                let count = match error {
                    Undecodable::Newer(_) => &self.figures.newer,
                    Undecodable::Garbage => &self.figures.undecodable,
                };
                Figures::add(count, 1);
                debug!(topic = message.get_channel_name(), "skipped: {error}");
                return None;
            }
        };
        if !self.is_new(&envelope) {
            Figures::add(&self.figures.doubled, 1);
            return None;
        }
        let own = envelope.origin == self.node;
        if !own {
            Figures::add(&self.figures.received, 1);
            Figures::add(&self.figures.lag_us, now_us().saturating_sub(envelope.sent));
        }
        match self.keys.named(message.get_channel_name())? {
            Named::Probe => {
                self.heard.set(Instant::now());
                None
            }
            Named::All => (!own).then_some(Arrival::All(envelope)),
            Named::Topic { app, channel } => {
                // Its own subscribers were given it when it was sent.
                if own && matches!(envelope.body, Body::Event { .. }) {
                    return None;
                }
                let channel = ChannelName::parse(channel, usize::MAX).ok()?;
                Some(Arrival::Topic(Topic { app: AppId::new(app), channel }, envelope))
            }
        }
    }

    /// Whether it was not heard before. A node sends on one connection at a time, so that its serials grow.
    fn is_new(&self, envelope: &Envelope) -> bool {
        if envelope.serial == 0 {
            return true;
        }
        let mut seen = self.seen.borrow_mut();
        let last = seen.entry(envelope.origin).or_default();
        let new = *last < envelope.serial;
        *last = envelope.serial.max(*last);
        new
    }
}
