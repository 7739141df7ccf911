//! What this node says to the others: it waits while Redis is away, is sent in order, and is sent again where
//! nobody knows whether it was taken.

use std::sync::atomic::Ordering;

use redis::cmd;
use tokio::time::Instant;

use super::batch::{Batch, script};
use super::writer::{Expected, MOST, Writer};
use super::{Held, Kept};
use crate::cluster::Topic;
use crate::cluster::envelope::Body;
use crate::cluster::link::{Alone, Arrival, Figures, Order, Publish};
use crate::cluster::scripts::{Keys, Script};

/// Bytes of publishes in one round trip.
const MOST_BYTES: usize = 1 << 20;

impl Kept {
    pub(super) fn hold(&mut self, publish: Publish, told: bool) {
        self.serial += 1;
        // Cached events go back to their sender too, unless it has told its subscribers.
        let told = told || !matches!(publish, Publish::Cached { .. });
        let (since, serial) = (Instant::now(), self.serial);
        self.held.push_back(Held { since, serial, told, sent: false, publish });
    }
}

impl Held {
    /// The name of the topic that it goes to.
    fn topic(&self, keys: &Keys) -> String {
        match &self.publish {
            Publish::Event { topic, .. } | Publish::Cached { topic, .. } => keys.topic(topic),
            Publish::Terminate { .. } => keys.all(),
        }
    }

    /// What subscribers here are to be told now that it will not come back.
    fn alone(&self) -> Option<(&Topic, Alone)> {
        let Publish::Cached { topic, except, frame, data, .. } = &self.publish else { return None };
        let (except, frame, data) = (*except, frame.clone(), data.clone());
        Some((topic, Alone::Publish { topic: topic.clone(), except, frame, data }))
    }
}

impl Writer<'_> {
    /// Adds publishes that wait; how many, and their bytes.
    pub(super) fn publish(&mut self, batch: &mut Batch<Expected>) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        let mut all = std::mem::take(&mut self.kept.held);
        for held in &mut all {
            if bytes > MOST_BYTES || count == MOST {
                break;
            }
            count += 1;
            bytes += held.publish.bytes();
            batch.add(self.publishing(held), Expected::Nothing);
            held.sent = true;
        }
        self.kept.held = all;
        (count, bytes)
    }

    fn publishing(&self, held: &Held) -> redis::Cmd {
        let most = self.settings.replay;
        let (topic, log, body) = match &held.publish {
            Publish::Event { topic, except, frame } => {
                let body = Body::Event { version: 0, except: *except, frame: frame.clone() };
                (self.keys.topic(topic), self.keys.channel(topic, 'l'), body)
            }
            Publish::Cached { topic, except, frame, data, ttl } => {
                let (frame, data) = (frame.clone(), data.clone());
                let body = Body::Cached { version: 0, except: *except, frame, data };
                let envelope = self.envelope(held.serial, held.told, body);
                let (head, rest) = envelope.encode_around_version();
                let mut keep = script(Script::Keep, &self.parts(topic, "vcl"));
                keep.arg(self.keys.topic(topic)).arg(head).arg(rest);
                keep.arg((ttl.as_millis() as u64).max(1)).arg(most).arg(u8::from(held.sent));
                return keep;
            }
            Publish::Terminate { app, user } => {
                let body = Body::Terminate { version: 0, app: app.clone(), user: user.clone() };
                (self.keys.all(), self.keys.log_of_all(), body)
            }
        };
        let envelope = self.envelope(held.serial, held.told, body);
        if most == 0 {
            let mut publish = cmd("SPUBLISH");
            publish.arg(topic).arg(envelope.encode());
            return publish;
        }
        let (head, rest) = envelope.encode_around_version();
        let publish = if held.sent { Script::PublishAgain } else { Script::Publish };
        let mut publish = script(publish, &[log]);
        publish.arg(topic).arg(head).arg(rest).arg(most);
        publish
    }

    /// The first `count` of what waited are in Redis.
    pub(super) fn published(&mut self, count: usize, bytes: usize) {
        let (hearing, keys, topics) = (self.hearing.borrow(), self.keys, self.topics);
        let comes_back = |held: &Held| {
            !held.told
                && held.alone().is_some_and(|(topic, _)| topics.read(topic, |_| ()).is_some())
                && !hearing.knows_own(&held.topic(keys), held.serial)
        };
        self.kept.flying.retain(comes_back);
        self.kept.flying.extend(self.kept.held.drain(..count).filter(comes_back));
        self.status.queued.fetch_sub(bytes, Ordering::Relaxed);
        Figures::add(&self.status.figures.published, count as u64);
    }

    /// Hands out what was not done when the link was lost, to be done with what is known here. Publishes
    /// wait on, but for those that did arrive.
    pub(super) async fn unanswered(&mut self) {
        for order in std::mem::take(&mut self.link.batch) {
            if let Order::Leave { topic, user } = order {
                let _ = self.arrivals.send(Arrival::Alone(Alone::Leave { topic, user })).await;
            }
        }
        let (keys, queued) = (self.keys, &self.status.queued);
        let came = |held: &Held| self.hearing.borrow().knows_own(&held.topic(keys), held.serial);
        self.kept.held.retain(|held| {
            let waits = !came(held);
            if !waits {
                queued.fetch_sub(held.publish.bytes(), Ordering::Relaxed);
            }
            waits
        });
        // Those that Redis took will not come back either, and are not sent again.
        let flying = std::mem::take(&mut self.kept.flying);
        let flying = flying.iter().filter(|held| !came(held));
        let held = self.kept.held.iter().filter(|held| !held.told);
        for held in flying.chain(held) {
            if let Some((topic, alone)) = held.alone() {
                let name = self.keys.topic(topic);
                self.hearing.borrow_mut().note_told(&name, held.serial);
                let _ = self.arrivals.send(Arrival::Alone(alone)).await;
            }
        }
        self.kept.held.iter_mut().for_each(|held| held.told = true);
    }
}
