//! The loss of one master of a Redis Cluster while the link lasts, and its return. Requests for it are handled without
//! Redis meanwhile; then all that it keeps is registered again. For the other masters nothing changes. `away.rs`
//! decides who is to blame and when to look, and `away_look.rs` looks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::away::{FoundMaster, is_fault_of_all};
use super::batch::CommandBatch;
use super::connections::RedisConnections;
use super::lease::RECONNECT_TIME;
use super::pushes::SlotMoves;
use super::server::RedisServer;
use super::session::{LastRun, LinkWriter, MAX_REQUESTS};
use super::slots::{self, HostPort};
use super::{LinkError, LinkState, PATIENCE, PendingPublish, clients, random_number};
use crate::cluster::Topic;
use crate::cluster::link::{LinkEvent, LinkRequest, LinkStatus, OfflineFallback};
use crate::console::{Console, Kind};

/// How long what has come in may take to be handed out, before a server is given up.
const SETTLED_WITHIN: Duration = Duration::from_millis(100);

impl RedisConnections {
    /// Is told when a connection has ended, or a look is over.
    pub(super) fn woken(&self) -> Arc<Notify> {
        self.moves.borrow().woken.clone()
    }

    /// A server whose connection that listens has ended.
    fn take_ended(&self) -> Option<HostPort> {
        let mut moves = self.moves.borrow_mut();
        // One that a look has just made may have ended before the link is made to its server.
        let SlotMoves { ended, passed_over, .. } = &mut *moves;
        ended.retain(|number| !passed_over.contains(number));
        let is_it = |server: &&RedisServer| !server.lost && ended.contains(&server.number);
        let server = self.servers.iter().find(is_it)?;
        ended.remove(&server.number);
        Some(server.at.clone())
    }

    /// Whether the link can go on without a server that it has.
    fn can_lose(&self, at: &HostPort) -> bool {
        let is_there = |server: &RedisServer| !server.lost;
        let has_slots = |place: usize| self.slots.contains(&(place as u16));
        let mut others = self.servers.iter().enumerate();
        self.is_cluster()
            && self.servers.iter().any(|server| server.at == *at && is_there(server))
            && others
                .any(|(place, server)| server.at != *at && is_there(server) && has_slots(place))
    }

    /// Goes on without a server; the slots that it had.
    fn drop_server(&mut self, at: &HostPort) -> BTreeSet<u16> {
        let Some(place) = self.servers.iter().position(|server| server.at == *at) else {
            return BTreeSet::new();
        };
        let mut lost = BTreeSet::new();
        for (slot, owner) in (0..).zip(&mut self.slots) {
            if usize::from(*owner) == place {
                *owner = u16::MAX;
                lost.insert(slot);
            }
        }
        if let Some(server) = self.servers.get_mut(place) {
            (server.lost, server.lease) = (true, None);
            self.moves.borrow_mut().note_lost(server.number, &lost);
        }
        if !lost.is_empty() {
            self.lost.insert(at.clone(), lost.clone());
        }
        self.away.keep_masters(&self.lost);
        // Others that were dark stay so, although their owner may be known by now: what waits for them comes first.
        self.dark.extend(&lost);
        lost
    }

    /// Goes on with a server that has these slots. Returns whether it is the one that had them.
    fn take_back(&mut self, FoundMaster { at, slots, server }: FoundMaster) -> Option<bool> {
        let had = self.lost.get(&at).is_some_and(|lost| slots.is_subset(lost));
        let known = self.servers.iter().position(|server| server.at == at && !server.lost);
        let place = match (known, server) {
            (Some(place), _) => place,
            (None, Some(server)) => self.put_server(server),
            (None, None) => return None,
        };
        let place = u16::try_from(place).ok()?;
        for slot in slots.into_iter().filter(|slot| self.dark.contains(slot)) {
            if let Some(owner) = self.slots.get_mut(usize::from(slot)) {
                *owner = place;
            }
        }
        Some(had)
    }

    /// Notes what is away still. Returns the slots that are not any more, also those whose new owner an answer to some
    /// command has named: they are to be subscribed to again.
    fn note_taken_back(&mut self) -> BTreeSet<u16> {
        let owners = &self.slots;
        let is_lost = |slot: &u16| owners.get(usize::from(*slot)) == Some(&u16::MAX);
        self.lost.retain(|_, slots| slots.iter().any(is_lost));
        self.away.keep_masters(&self.lost);
        let before = std::mem::take(&mut self.dark);
        self.note_dark();
        let back: BTreeSet<u16> = before.difference(&self.dark).copied().collect();
        self.moves.borrow_mut().moved.extend(&back);
        back
    }
}

impl LinkState {
    /// Logs the parts that the link has to do without, once, however often it is made.
    pub(super) fn report_away(&mut self, console: &Console, status: &LinkStatus) {
        let away = self.away.describe();
        let names = away.iter().map(|(part, _)| part.clone()).collect();
        let before = std::mem::replace(&mut self.told_away, names);
        for (part, why) in away.iter().filter(|(part, _)| !before.contains(part)) {
            warn!(%part, "a part of the Redis Cluster is away, the link goes on with the rest: {why}");
            let why = format!("{part} is away: {why}");
            console.send(Kind::Redis, |fact| fact.why(why));
        }
        for part in before.iter().filter(|part| !self.told_away.contains(part)) {
            info!(%part, "a part of the Redis Cluster is back");
        }
        status.away.store(Arc::new(self.told_away.clone()));
    }
}

impl LinkWriter<'_> {
    /// Notes what is away now, for the next link and for whoever asks.
    pub(super) fn report_away(&mut self) {
        self.kept.away = self.servers.away.clone();
        self.kept.report_away(&self.settings.console, self.status);
    }

    /// Whether a connection that listens has ended.
    pub(super) fn look_at_ended(&self) -> Result<(), LinkError> {
        self.servers
            .take_ended()
            .map_or(Ok(()), |at| Err(LinkError::OfMaster(at, Box::new(LinkError::Deaf))))
    }

    /// Whether something is to be carried out that was to be when a master was lost, or when it was away.
    pub(super) fn has_left_over(&self) -> bool {
        let is_asked = !self.link.batch.is_empty() || !self.link.questions.is_empty();
        is_asked || !self.kept.publishes.is_empty() || !self.link.replays.is_empty()
    }

    /// A copy of a request that is carried out again if its answer is lost: the link may go on with other servers.
    pub(super) fn repeatable(&self, request: &LinkRequest) -> Option<LinkRequest> {
        match request {
            LinkRequest::Leave { topic, user } => {
                Some(LinkRequest::Leave { topic: topic.clone(), user: user.clone() })
            }
            LinkRequest::Open(topic) if self.servers.is_cluster() => {
                Some(LinkRequest::Open(topic.clone()))
            }
            LinkRequest::Join { topic, member, max, place } if self.servers.is_cluster() => {
                let (topic, member, max, place) = (topic.clone(), member.clone(), *max, *place);
                Some(LinkRequest::Join { topic, member, max, place })
            }
            _ => None,
        }
    }

    /// Takes requests that have come in meanwhile into the next batch: there may be much to say to a server that is back,
    /// and those to the others do not wait for all of it.
    pub(super) fn take_waiting(&mut self) {
        while self.link.batch.len() < MAX_REQUESTS
            && let Ok(request) = self.requests.try_recv()
        {
            self.link.batch.push(request);
        }
    }

    /// Something was lost: where it is one of several masters the link goes on without it.
    /// # Errors
    /// It was the whole link.
    pub(super) async fn go_on_after(&mut self, mut lost: LinkError) -> Result<(), LinkError> {
        loop {
            let LinkError::OfMaster(at, why) = lost else { return Err(lost) };
            if !self.servers.can_lose(&at) || is_fault_of_all(&why) {
                return Err(LinkError::OfMaster(at, why));
            }
            match self.go_on_without(&at, &why).await {
                // Another was lost meanwhile.
                Err(other) => lost = other,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Goes on without a master: from now on its topics and apps are handled with local knowledge.
    async fn go_on_without(&mut self, at: &HostPort, why: &LinkError) -> Result<(), LinkError> {
        self.settle_pushes().await;
        debug!(master = ?at, "the link goes on without a server: {why}");
        self.servers.away.note_lost_master(at, why);
        let slots = self.servers.drop_server(at);
        // A round of clearing leases away may have been cut short; it is begun anew.
        self.link.reaping = false;
        self.report_away();
        let keys = self.keys;
        let is_its = |name: &str| slots.contains(&slots::of_name(name.as_bytes()));
        if matches!(why, LinkError::Lapsed) {
            self.dedup.borrow_mut().begin_catch_up_after_lapse(is_its, self.settings.lease / 2);
        }
        self.dedup.borrow_mut().begin_catch_up_of(is_its);
        self.kept.webhook_log.note_part_lost(|app| is_its(&keys.app_key(app, 't')));
        let is_waiting = |pending: &PendingPublish| is_its(&pending.topic_name(keys));
        let local = self.recover_publishes(is_waiting);
        self.kept.strand_away(&self.servers, keys, (self.status, self.max_queued));
        self.link.alone.extend(local);
        self.end_waiting(is_its);
        self.link.changed.extend(self.kept.untold.iter().map(|topic| (topic.clone(), true)));
        self.link.looked_away = LastRun::default();
        self.forward_offline().await?;
        if self.servers.is_away(&self.probe) {
            self.probe = new_probe(&self.servers);
            let probe = std::slice::from_ref(&self.probe);
            timeout(PATIENCE, self.servers.subscribe_topics(probe)).await??;
        }
        self.look_for_away().await
    }

    /// Hands out what has come in, while it is news still: a server that has lost its data could not repeat it.
    async fn settle_pushes(&self) {
        let (end, pushed) = (Instant::now() + SETTLED_WITHIN, self.servers.pushes.pushed());
        while self.servers.moves.borrow().handed_out < pushed && Instant::now() < end {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Nobody waits for a master that is lost. Topics of the others that were being read are read again.
    fn end_waiting(&mut self, is_its: impl Fn(&str) -> bool) {
        let keys = self.keys;
        let is_lost = |topic: &Topic| is_its(&keys.topic_name(topic));
        self.link.batch.retain(|request| match request {
            LinkRequest::Open(topic) | LinkRequest::Join { topic, .. } => !is_lost(topic),
            _ => true,
        });
        let replays = std::mem::take(&mut self.link.replays).into_iter();
        let (lost, others): (Vec<_>, Vec<_>) = replays.partition(|of| is_lost(&of.topic));
        self.link.replays = others.into();
        self.link.alone.extend(lost.into_iter().map(clients::unknown));
        for topic in self.topics.all_topics() {
            let name = keys.topic_name(&topic);
            if is_its(&name) {
                self.link.alone.push(LinkEvent::Alone(OfflineFallback::Open(topic)));
            } else if self.dedup.borrow().misses_after(&name).is_some()
                && !self.servers.is_away(&name)
            {
                self.link.batch.push(LinkRequest::Open(topic));
            }
        }
        // Other nodes' connections are unknown now; better too many than none.
        let apps = self.kept.connections.keys().filter(|app| is_its(&keys.app_key(app, 't')));
        let unknown = apps.map(|app| LinkEvent::Connections { app: app.clone(), total: 0 });
        self.link.alone.extend(unknown);
    }

    /// Masters of slots that were away can be worked with: this node takes leases there, says what it holds, and
    /// catches up, as over a new link.
    pub(super) async fn go_on_with(&mut self, found: Vec<FoundMaster>) -> Result<(), LinkError> {
        let mut back = Vec::new();
        for found in found {
            let at = found.at.clone();
            if let Some(had) = self.servers.take_back(found) {
                if !had {
                    // It may have lost what the one before it had taken.
                    self.kept.runs.remove(&at);
                }
                back.push(at);
            }
        }
        let moved = self.servers.note_taken_back();
        self.report_away();
        let is_its = |name: &str| moved.contains(&slots::of_name(name.as_bytes()));
        self.dedup.borrow_mut().begin_catch_up_of(is_its);
        // At once: later ones of the same topics go straight to Redis from here on.
        let (servers, keys) = (&self.servers, self.keys);
        let is_there = |pending: &PendingPublish| !servers.is_publish_away(keys, &pending.publish);
        self.kept.gather_stranded(self.status, is_there);
        self.link.whole = false;
        let restarted = self.find_what_was_lost(back).await?;
        self.link.changed.extend(self.kept.untold.iter().map(|topic| (topic.clone(), true)));
        self.retake_leases(restarted).await?;
        self.resubscribe_moved_slots().await?;
        // What waited for it beside topics.
        self.send_batch().await
    }

    /// Which of these servers have begun anew, or taken over: they may have lost what was said last. Returns whether any
    /// has.
    async fn find_what_was_lost(&mut self, back: Vec<HostPort>) -> Result<bool, LinkError> {
        let mut new = Vec::new();
        for at in back {
            let Some(server) = self.servers.servers.iter().find(|server| server.at == at) else {
                continue;
            };
            if let Some(run) = self.servers.run_id(server).await?
                && self.kept.runs.insert(at.clone(), run.clone()) != Some(run)
            {
                new.push(at);
            }
        }
        self.say_again_to(&new).await?;
        Ok(!new.is_empty())
    }

    /// Takes leases on the servers where this node has none. Commands in flight under those that it had there must not
    /// arrive after the new registration.
    async fn retake_leases(&mut self, restarted: bool) -> Result<(), LinkError> {
        self.kept.reaps = Instant::now() + self.settings.lease.min(RECONNECT_TIME);
        self.kept.peers.forget_looks();
        let mut batch = CommandBatch::new();
        let given_up = self.servers.given_up_leases();
        given_up.iter().for_each(|lease| batch.add_command(self.fence_command(lease), ()));
        batch.send_all(&mut self.servers, self.status).await?;
        let known = !self.kept.epochs.is_empty();
        let fences = self.servers.register_leases().await?;
        self.fence_risen_leases(&fences).await?;
        for (tag, fence) in &fences {
            self.note_epoch(*tag, fence, (known, restarted));
        }
        // By all servers' times the clock is set, not by that of these alone.
        self.link.beat = Some(Instant::now());
        self.renew_if_due().await
    }
}

/// A topic for this node's words to itself, which a server keeps that is there.
pub(super) fn new_probe(servers: &RedisConnections) -> String {
    loop {
        let name = servers.keys.probe_topic(&format!("{:016x}", random_number()));
        if !servers.is_away(&name) {
            return name;
        }
    }
}
