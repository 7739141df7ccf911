//! What comes in on the connection that listens: bytes become envelopes, envelopes arrivals. Whatever is no
//! envelope is counted and dropped.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use redis::Msg;
use tokio::sync::mpsc;
use tracing::debug;

use super::hearing::{Hearing, Mark, Verdict};
use super::reply::now_us;
use super::servers::Heard;
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Body, Envelope, Undecodable};
use crate::cluster::link::{Arrival, Figures};
use crate::cluster::scripts::{Keys, Named};
use crate::protocol::channel::ChannelName;

/// The listening half.
pub(super) struct Reader<'a> {
    pub(super) stream: Heard,
    pub(super) keys: Keys,
    pub(super) node: u64,
    pub(super) far: &'a mpsc::Sender<Arrival>,
    pub(super) figures: &'a Figures,
    pub(super) hearing: &'a RefCell<Hearing>,
}

impl Reader<'_> {
    /// Reads until the connection ends.
    pub(super) async fn run(&mut self) {
        while let Some(message) = self.stream.next().await {
            let name = message.get_channel_name();
            let Some(envelope) = self.envelope(&message) else { continue };
            let mark = Mark::from(&envelope);
            if let Some(arrival) = arrival(&self.keys, self.node, name, envelope)
                && self.far.send(arrival).await.is_err()
            {
                return;
            }
            self.hearing.borrow_mut().note(name, mark);
        }
    }

    /// The envelope of a message, if it is news and need not wait.
    fn envelope(&self, message: &Msg) -> Option<Envelope> {
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
        if envelope.origin != self.node {
            Figures::add(&self.figures.received, 1);
            let lag = Duration::from_micros(now_us().saturating_sub(envelope.sent));
            self.figures.lag.observe(lag);
        } else if matches!(envelope.body, Body::Probe) {
            self.hearing.borrow_mut().hear_word();
        }
        match self.hearing.borrow_mut().hear(message.get_channel_name(), envelope) {
            Verdict::New(envelope) => Some(envelope),
            Verdict::Waits => None,
            Verdict::Doubled => {
                Figures::add(&self.figures.doubled, 1);
                None
            }
        }
    }
}

/// What an envelope is to a node: nothing, if it knows it already.
pub(super) fn arrival(keys: &Keys, node: u64, name: &str, envelope: Envelope) -> Option<Arrival> {
    let own = envelope.origin == node;
    match keys.named(name)? {
        Named::Probe => None,
        Named::All => (!own).then_some(Arrival::All(envelope)),
        Named::Topic { app, channel } => {
            // Its own subscribers were given it when it was sent.
            if own && matches!(envelope.body, Body::Event { .. }) {
                return None;
            }
            let channel = ChannelName::of_node(channel).ok()?;
            Some(Arrival::Topic(Topic { app: AppId::new(app), channel }, envelope))
        }
    }
}
