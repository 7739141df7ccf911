//! What comes in on the connection that listens: bytes become envelopes, envelopes arrivals. Whatever is no
//! envelope is counted and dropped.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Msg;
use tokio::sync::mpsc;
use tracing::debug;

use super::hearing::{Hearing, Mark, Verdict};
use super::leases::node_of;
use super::servers::Heard;
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::clock::{Clock, now_us};
use crate::cluster::envelope::{Body, Envelope, Undecodable};
use crate::cluster::keys::{Keys, Named};
use crate::cluster::link::{Arrival, Figures, Withdraw};
use crate::cluster::seal::{self, Seals};
use crate::protocol::channel::ChannelName;

/// The listening half.
pub(super) struct Reader<'a> {
    pub(super) stream: Heard,
    pub(super) keys: &'a Keys,
    pub(super) trust: Trust<'a>,
    pub(super) node: u64,
    pub(super) far: &'a mpsc::Sender<Arrival>,
    pub(super) figures: &'a Figures,
    pub(super) clock: &'a Clock,
    pub(super) hearing: &'a RefCell<Hearing>,
}

impl Reader<'_> {
    /// Reads until the connection ends.
    pub(super) async fn run(&mut self) {
        while let Some(message) = self.stream.next().await {
            let name = message.get_channel_name();
            let Some(envelope) = self.envelope(&message) else { continue };
            let mark = Mark::from(&envelope);
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
                    Undecodable::Newer(_) => &self.figures.newer,
                    Undecodable::Garbage => &self.figures.undecodable,
                };
                Figures::add(count, 1);
                debug!(topic = name, "skipped: {error}");
                return None;
            }
        };
        if !self.trust.believes(name, &envelope, &bytes) {
            return None;
        }
        envelope.map_version(|version| self.clock.local(version));
        if envelope.origin != self.node {
            Figures::add(&self.figures.received, 1);
            self.hearing.borrow_mut().hear_node(envelope.origin);
            self.figures.lag.observe(self.lag(&envelope, &bytes));
        } else if matches!(envelope.body, Body::Probe) {
            self.hearing.borrow_mut().hear_word();
        }
        match self.hearing.borrow_mut().hear(name, envelope) {
            Verdict::New(envelope) => Some(envelope),
            Verdict::Waits => None,
            Verdict::Doubled => {
                Figures::add(&self.figures.doubled, 1);
                None
            }
        }
    }
}

/// What it takes to believe an envelope.
#[derive(Clone, Copy)]
pub(super) struct Trust<'a> {
    pub(super) seals: &'a Seals,
    pub(super) keys: &'a Keys,
    pub(super) hearing: &'a RefCell<Hearing>,
    pub(super) figures: &'a Figures,
}

impl Trust<'_> {
    /// Whether an envelope that came on a topic, or was read for it, is a node's of this cluster, which is counted if
    /// it is not. One without a seal is that of a node which knows none, if there is one.
    pub(super) fn believes(&self, name: &str, envelope: &Envelope, bytes: &[u8]) -> bool {
        let believed = match (self.keys.named(name), &envelope.body) {
            (Some(Named::Topic { app, .. }), _) => self.holds(&AppId::new(app), name, bytes),
            (
                Some(Named::All),
                Body::Terminate { app, .. }
                | Body::Reconnect { app, .. }
                | Body::Withdraw { app, .. },
            )
            | (Some(Named::Node), Body::Done { app, .. }) => self.holds(app, name, bytes),
            (Some(Named::Probe), Body::Probe) => true,
            _ => false,
        };
        if !believed {
            Figures::add(&self.figures.unsealed, 1);
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
    keys: &Keys,
    node: u64,
    name: &str,
    envelope: Envelope,
    late: Option<&Clock>,
) -> Option<Arrival> {
    let own = envelope.origin == node;
    match keys.named(name)? {
        Named::Probe => None,
        Named::Node => match envelope.body {
            Body::Done { request, .. } => {
                Some(Arrival::Done { request, node: node_of(envelope.origin) })
            }
            _ => None,
        },
        Named::All => (!own).then(|| order(envelope, late)).flatten(),
        Named::Topic { app, channel } => {
            // Its own subscribers were given it when it was sent.
            if own && matches!(envelope.body, Body::Event { .. }) {
                return None;
            }
            let channel = ChannelName::of_node(channel).ok()?;
            let topic = Topic { app: AppId::new(app), channel };
            Some(match late {
                Some(_) => Arrival::Late(topic, envelope),
                None => Arrival::Topic(topic, envelope),
            })
        }
    }
}

/// What all nodes are to do.
fn order(envelope: Envelope, late: Option<&Clock>) -> Option<Arrival> {
    let (node, place) = (envelope.origin, envelope.place());
    let on_its_way = late.zip(place).map(|(clock, place)| clock.since(place)).unwrap_or_default();
    let asked = |waited: u64| {
        // Where that is before this machine was started, nobody was connected.
        Instant::now().checked_sub(Duration::from_micros(waited).saturating_add(on_its_way))
    };
    Some(match envelope.body {
        Body::Terminate { waited, app, user, .. } => {
            Arrival::Terminate { app, user, asked: asked(waited)? }
        }
        Body::Reconnect { waited, app, user, .. } => {
            Arrival::Reconnect { app, user, asked: asked(waited)? }
        }
        Body::Withdraw { waited, request, app, user, channels, .. } => {
            let (asked, channels) = (asked(waited)?, channels.into());
            let order = Withdraw { app, user, channels, asked, request };
            Arrival::Withdraw { node, order }
        }
        _ => return None,
    })
}
