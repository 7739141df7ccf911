//! The signs that this node lives, and what becomes of those that do not. A node holds what it says in Redis
//! under a lease; it takes a new one with each link, says everything again, and clears the old one away as it
//! does with those of nodes that are silent.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::Instant;
use tracing::{info, warn};

use super::batch::{Batch, script};
use super::writer::{Expected, MOST, Writer};
use super::{LONGEST_PAUSE, Lost, PATIENCE, reply};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::Body;
use crate::cluster::link::{Figures, Order};
use crate::cluster::scripts::Script;
use crate::cluster::topics::Entry;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::Member;

/// The part of a lease after which it is renewed. A lease lapses after four of them, so that with one more
/// until others look, and the time to clear away, all is done within the lease as it was set.
pub(super) const PART: u32 = 6;

/// How long nodes may take to come back once Redis does.
const COME_BACK: Duration = LONGEST_PAUSE.saturating_add(PATIENCE);

/// Topics that are taken part in again in one round trip; each may have missed as much as its log holds.
pub(super) const REOPENED: usize = 256;

/// A topic in the list of what a lease holds.
pub(super) fn held_topic(topic: &Topic) -> String {
    format!("c{}/{}", topic.app, topic.channel)
}

impl Writer<'_> {
    /// Takes a lease, says what this node holds, and clears away what it held under the last one.
    pub(super) async fn begin(&mut self) -> Result<(), Lost> {
        if !self.kept.leases.is_empty() {
            self.kept.reaps = Instant::now() + self.settings.lease.min(COME_BACK);
        }
        self.kept.leases.push(self.lease.clone());
        self.kept.news.cut();
        let mut batch = Batch::new();
        // Each server can lose its data by itself.
        let tags = self.servers.tags();
        for tag in &tags {
            batch.add(script(Script::Epoch, &[self.keys.epoch(*tag)]), ());
        }
        batch.add(self.renewal(true), ());
        let answers = batch.send(&mut self.servers, self.status).await?;
        let known = !self.kept.epochs.is_empty();
        for (tag, (_, epoch)) in tags.into_iter().zip(&answers) {
            self.note_epoch(tag, epoch, known);
        }
        self.set_clock(&answers);
        self.catch_up_with_all().await?;
        let topics = self.topics.all();
        for some in topics.chunks(REOPENED) {
            for topic in some {
                // Somebody was let in before it was known that the link is down.
                if let Some(since) = self.topics.read(topic, Entry::hears_since).flatten() {
                    let (name, mut hearing) = (self.keys.topic(topic), self.hearing.borrow_mut());
                    hearing.begin_at(&name, since);
                    hearing.cut_one(&name);
                }
                self.link.batch.push(Order::Open(topic.clone()));
                let own: Vec<(Member, u64)> = self
                    .topics
                    .read(topic, |entry| {
                        let roster = &entry.roster;
                        let own = roster
                            .own()
                            .map(|member| (member.clone(), roster.place(&member.user_id)));
                        own.collect()
                    })
                    .unwrap_or_default();
                for (member, place) in own {
                    // Who is there stays, even if they are more than may come in.
                    let (topic, max) = (topic.clone(), usize::MAX);
                    self.link.batch.push(Order::Join { topic, member, max, place });
                }
                // What subscribers were told last may still be true; so nobody is told.
                self.link.batch.push(Order::Changed { topic: topic.clone(), tell: false });
            }
            self.carry_out().await?;
        }
        self.hearing.borrow_mut().is_whole();
        if self.link.gaps > 0 {
            let channels = self.link.gaps;
            warn!(channels, "events may have been missed while the link to Redis was down");
        }
        self.link.connections.extend(self.kept.connections.keys().cloned());
        self.count().await?;
        self.status.up.store(true, Ordering::Relaxed);
        self.carry_out().await?;
        // Before what the old lease holds comes to an end.
        self.say_again().await?;
        while let Some(old) = self.kept.leases.first().filter(|old| **old != self.lease).cloned() {
            self.clear(&old).await?;
            self.kept.leases.remove(0);
        }
        if !topics.is_empty() {
            info!(topics = topics.len(), "said again what this node holds");
        }
        Ok(())
    }

    /// A Redis that has lost its data since it was last seen has lost what others hold too; they are about
    /// to say it again.
    fn note_epoch(&mut self, tag: u16, value: &Value, known: bool) {
        let [epoch, age] = reply::list(value) else { return };
        let Some(epoch) = reply::number(epoch) else { return };
        let since = Duration::from_millis(reply::number(age).unwrap_or_default());
        let before = self.kept.epochs.insert(tag, epoch);
        if known && before != Some(epoch) {
            let missing = self.settings.lease.saturating_sub(since);
            self.kept.settles = Some(Instant::now() + missing);
        }
    }

    /// Sets the clock by the answers to [`Script::Epoch`].
    fn set_clock<E>(&self, answers: &[(E, Value)]) {
        let time = |(_, value): &(E, Value)| match reply::list(value) {
            [epoch, age] => Some((reply::number(epoch)? + reply::number(age)?) * 1000),
            _ => None,
        };
        self.status.clock.set(answers.iter().filter_map(time));
    }

    /// Gives the lease up, so that nobody has to wait for it to lapse.
    pub(super) async fn end(&mut self) -> Result<(), Lost> {
        self.count().await?;
        let lease = self.lease.clone();
        self.give_up_news().await?;
        self.clear(&lease).await
    }

    fn renewal(&self, new: bool) -> redis::Cmd {
        let mut renewal = script(Script::Renew, &[self.keys.leases()]);
        let lasts = self.settings.lease * 4 / PART;
        renewal.arg(&self.lease).arg(lasts.as_millis() as u64).arg(u8::from(new));
        renewal
    }

    /// Renews the lease, clears lapsed ones away, and sends a word to itself: a connection can be half dead,
    /// and only what comes in shows that it is not.
    pub(super) async fn give_sign(&mut self, part: Duration) -> Result<(), Lost> {
        if self.hearing.borrow().silence() > part * 3 + PATIENCE {
            return Err(Lost::Deaf);
        }
        let probe = self.envelope(0, true, Body::Probe).encode();
        let mut batch = Batch::new();
        batch.add(self.renewal(false), ());
        let mut publish = cmd("SPUBLISH");
        publish.arg(self.keys.probe(&self.lease)).arg(probe);
        batch.add(publish, ());
        // The word goes over one server. Another that the rest have given up says so to who asks it for a key.
        for tag in self.servers.tags() {
            batch.add(script(Script::Epoch, &[self.keys.epoch(tag)]), ());
        }
        if self.servers.is_cluster() {
            self.servers.listen_well().await?;
        }
        let answers = batch.send(&mut self.servers, self.status).await?;
        let Some((_, renewed)) = answers.first() else { return Ok(()) };
        let [held, lapsed] = reply::list(renewed) else { return Ok(()) };
        if reply::number(held) != Some(1) {
            return Err(Lost::Lapsed);
        }
        Figures::add(&self.status.figures.renewals, 1);
        self.set_clock(answers.get(2..).unwrap_or_default());
        let lapsed: Vec<String> =
            reply::list(lapsed).iter().filter_map(|l| reply::text(l).map(str::to_owned)).collect();
        if Instant::now() < self.kept.reaps {
            return Ok(());
        }
        for lease in lapsed {
            info!("a node's lease has lapsed; clearing away what it held");
            Figures::add(&self.status.figures.reaped, 1);
            self.clear(&lease).await?;
        }
        Ok(())
    }

    /// Reads all rosters again, now that what they lack is gone for good.
    pub(super) async fn settle(&mut self) -> Result<(), Lost> {
        self.kept.settles = None;
        let topics = self.topics.all();
        let presence: Vec<Topic> =
            topics.into_iter().filter(|topic| topic.channel.kind().is_presence()).collect();
        for some in presence.chunks(MOST) {
            for topic in some {
                // What comes meanwhile is a change to what is read, and must not be heard before it.
                self.hearing.borrow_mut().cut_one(&self.keys.topic(topic));
                self.link.batch.push(Order::Open(topic.clone()));
            }
            self.carry_out().await?;
        }
        Ok(())
    }

    /// Clears away what a lease held. Done twice, or by two nodes at once, it changes nothing more.
    async fn clear(&mut self, lease: &str) -> Result<(), Lost> {
        let mut batch = Batch::new();
        let mut held = cmd("SMEMBERS");
        held.arg(self.keys.lease(lease));
        batch.add(held, ());
        let answers = batch.send(&mut self.servers, self.status).await?;
        let Some((_, held)) = answers.first() else { return Ok(()) };
        let held = reply::list(held).iter().filter_map(reply::text).map(str::to_owned);
        let mut held: BTreeSet<String> = held.collect();
        if self.servers.is_cluster() && self.kept.leases.iter().any(|own| own == lease) {
            // The server that kept this list may have lost it, and others not what is in it.
            held.extend(self.topics.all().iter().map(held_topic));
            held.extend(self.kept.connections.keys().map(|app| format!("a{app}")));
            held.extend(self.kept.news.apps.keys().map(|app| format!("w{app}")));
        }
        let mut batch = Batch::new();
        for entry in &held {
            if let Some((app, channel)) = entry.strip_prefix('c').and_then(|c| c.split_once('/')) {
                let Ok(channel) = ChannelName::of_node(channel) else { continue };
                let topic = Topic { app: AppId::new(app), channel };
                let mut clear = script(Script::Clear, &self.parts(&topic, "vmrk"));
                // The script adds version and user.
                let head = self.envelope(0, false, Body::Probe).head_of_left();
                clear.arg(lease).arg(self.keys.topic(&topic)).arg(head);
                batch.add(clear, Expected::Nothing);
            } else if let Some(app) = entry.strip_prefix('a') {
                self.clear_counts(&AppId::new(app), lease).await?;
            } else if let Some(app) = entry.strip_prefix('w') {
                self.clear_news(&AppId::new(app), lease).await?;
            }
            if batch.len() >= MOST {
                let full = std::mem::replace(&mut batch, Batch::new());
                full.send(&mut self.servers, self.status).await?;
            }
        }
        let mut forget = cmd("DEL");
        forget.arg(self.keys.lease(lease));
        batch.add(forget, Expected::Nothing);
        let mut lapse = cmd("ZREM");
        lapse.arg(self.keys.leases()).arg(lease);
        batch.add(lapse, Expected::Nothing);
        batch.send(&mut self.servers, self.status).await?;
        Ok(())
    }

    async fn clear_counts(&mut self, app: &AppId, lease: &str) -> Result<(), Lost> {
        let mut batch = Batch::new();
        let mut all = cmd("HKEYS");
        all.arg(self.keys.counts(app, lease));
        batch.add(all, ());
        let answers = batch.send(&mut self.servers, self.status).await?;
        let channels = answers.first().map(|(_, value)| reply::list(value)).unwrap_or_default();
        let none = |name: &Value| {
            let name = reply::text(name)?;
            if name.is_empty() {
                return Some((None, 0, false));
            }
            let channel = ChannelName::parse(name, usize::MAX).ok()?;
            // Whether the app wants it is known where it is heard.
            let tell = !channel.kind().is_presence();
            Some((Some(channel), 0, tell))
        };
        let counts = channels.iter().filter_map(none).collect();
        let mut batch = Batch::new();
        self.add_counts(&mut batch, app, lease, counts);
        self.tell_counts(batch).await
    }
}
