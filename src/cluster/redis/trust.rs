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

/// The state that decides whether an envelope is accepted.
#[derive(Clone, Copy)]
pub(super) struct EnvelopeTrust<'a> {
    /// By which an app's own envelopes are known.
    pub(super) seals: &'a EnvelopeSeals,
    pub(super) keys: &'a RedisKeys,
    /// Notes whether nodes without seals exist.
    pub(super) dedup: &'a RefCell<Deduplicator>,
    pub(super) figures: &'a LinkMetrics,
}

impl EnvelopeTrust<'_> {
    /// Whether an envelope belongs to a node of this cluster; if not, it is counted. One without a seal is accepted
    /// only while nodes of an older version exist.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use arc_swap::ArcSwap;
    use bytes::Bytes;

    use super::*;
    use crate::app::{App, Apps};
    use crate::cluster::Topic;
    use crate::cluster::redis::dedup::{EnvelopeVerdict, MessageId};
    use crate::cluster::redis_clock::RedisClock;
    use crate::protocol::channel::ChannelName;

    /// Numbers that look like chance, the same with the same seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, most: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (self.0 >> 33) as usize % most
        }
    }

    fn seals(secret: &str) -> EnvelopeSeals {
        let apps = Apps::new(vec![App::new("a", "k", secret)]).unwrap();
        EnvelopeSeals::new(Arc::new(ArcSwap::from_pointee(apps)))
    }

    fn event((origin, serial): (u64, u64), version: u64) -> Envelope {
        let body = EnvelopeBody::Event { except: None, frame: Bytes::from_static(b"\x81\x01x") };
        let (sent, delivered, whisper, again) = (0, true, false, false);
        Envelope { origin, serial, version, sent, delivered, whisper, again, body }
    }

    /// A node that hears a topic, with a Redis that may lose its data and begin with an earlier clock.
    struct Listener<'a> {
        trust: EnvelopeTrust<'a>,
        clock: RedisClock,
        heard: BTreeMap<u64, Vec<u64>>,
        last: u64,
    }

    impl Listener<'_> {
        /// Takes bytes in as the link does.
        fn hear(&mut self, name: &str, bytes: &[u8], seed: u64) {
            let bytes = Bytes::copy_from_slice(bytes);
            let Ok(mut envelope) = Envelope::decode(&bytes) else { return };
            if !self.trust.is_believed(name, &envelope, &bytes) {
                return;
            }
            envelope.map_version(|version| self.clock.to_local(version));
            let (mark, version) = (MessageId::from(&envelope), envelope.version);
            let verdict = self.trust.dedup.borrow_mut().judge_envelope(name, envelope);
            if matches!(verdict, EnvelopeVerdict::New(_)) {
                assert!(version > self.last, "seed {seed}: a later event has an earlier version");
                self.last = version;
                self.trust.dedup.borrow_mut().note_delivered(name, mark);
                self.heard.entry(mark.origin).or_default().push(mark.serial);
            }
        }
    }

    /// Events of two senders, between which come changed copies, forged ones, ones of another database, and some again.
    fn listen(seed: u64) {
        let (keys, figures, ours, forged) =
            (RedisKeys::new("p"), LinkMetrics::default(), seals("s"), seals("other"));
        let mut elsewhere = seals("s");
        elsewhere.set_database(1);
        let dedup = RefCell::new(Deduplicator::new(1));
        let channel = ChannelName::parse("c", 200).unwrap();
        let (app, topic) = (AppId::new("a"), Topic { app: AppId::new("a"), channel });
        let name = keys.topic_name(&topic);
        dedup.borrow_mut().open_topic(&name, 1);
        while dedup.borrow_mut().next_waiting(&name, 1).is_some() {}
        let trust = EnvelopeTrust { seals: &ours, keys: &keys, dedup: &dedup, figures: &figures };
        let (clock, heard) = (RedisClock::default(), BTreeMap::new());
        let mut listener = Listener { trust, clock, heard, last: 0 };
        let (mut dice, mut now, mut sent) = (Dice(seed), 1_000_000_000_000, Vec::new());
        let mut serials = BTreeMap::from([(2, 0), (3, 0)]);
        for _ in 0..200 {
            now += 1 + dice.below(1000) as u64;
            let origin = 2 + dice.below(2) as u64;
            let serial = serials.get_mut(&origin).unwrap();
            let next = event((origin, *serial + 1), now);
            let mut bytes = ours.encode_sealed(&app, &name, &next);
            match dice.below(8) {
                0 => {
                    // Before the event itself: it must not be taken for that, nor hide it.
                    let at = 1 + dice.below(bytes.len() - 1);
                    bytes[at] ^= 1 << dice.below(8);
                    listener.hear(&name, &bytes, seed);
                }
                1 => {
                    let far = event((origin, *serial + dice.below(1000) as u64), now + 1_000_000);
                    listener.hear(&name, &forged.encode_sealed(&app, &name, &far), seed);
                    listener.hear(&name, &elsewhere.encode_sealed(&app, &name, &far), seed);
                }
                2 if !sent.is_empty() => {
                    let one: &Vec<u8> = &sent[sent.len() - 1 - dice.below(sent.len().min(50))];
                    listener.hear(&name, one, seed);
                }
                3 if dice.below(4) == 0 => {
                    // It begins anew, up to a minute behind or ahead.
                    now = now + 60_000_000 - dice.below(120_000_000) as u64;
                    listener.clock.begin_epoch(now);
                    listener.clock.set_from([now]);
                }
                _ => {
                    *serial += 1;
                    listener.hear(&name, &bytes, seed);
                    sent.push(bytes);
                }
            }
        }
        for (origin, last) in serials {
            let heard = listener.heard.remove(&origin).unwrap_or_default();
            assert_eq!(heard, (1..=last).collect::<Vec<_>>(), "seed {seed}: sender {origin}");
        }
        assert!(listener.heard.is_empty(), "seed {seed}: senders that there are none of");
        assert!(figures.unsealed.load(Ordering::Relaxed) > 0, "seed {seed}: something was changed");
    }

    #[test]
    fn each_event_is_heard_once_whatever_is_changed_forged_or_said_again() {
        (0..700).for_each(listen);
    }
}
