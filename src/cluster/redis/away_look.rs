//! Checks, beside the link, whether parts of a Redis Cluster that are away work again. `parts.rs` goes on with a master
//! that does; for a slot the link is made anew. Also serves what belongs to them without Redis meanwhile. Why a part
//! is away is decided in `away.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, ServerErrorKind, Value, cmd};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::LinkError;
use super::away::{
    AwayPart, AwayParts, FoundMaster, FoundParts, LOOK_EVERY, MASTER_PATIENCE, SlotKeys, ask_master,
};
use super::connections::{RedisConnections, slots_of};
use super::publish::publish_topic;
use super::pushes::PushQueue;
use super::server::{ConnectionRole, RedisServer};
use super::session::LinkWriter;
use super::slots::{self, HostPort, SLOTS};
use super::tls::RedisTls;
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::{LinkRequest, OutgoingEvent};

impl RedisConnections {
    /// Something of the Redis Cluster is away.
    pub(super) fn is_partial(&self) -> bool {
        !self.dark.is_empty()
    }

    /// Whether the owner of a key or topic is away.
    pub(super) fn is_away(&self, name: &str) -> bool {
        self.is_partial() && self.is_dark(Some(slots::of_name(name.as_bytes())))
    }

    /// Whether one of these servers owns a key or topic; a single server owns all.
    pub(super) fn is_kept_by(&self, name: &str, servers: &[HostPort]) -> bool {
        let place = self.slots.get(usize::from(slots::of_name(name.as_bytes())));
        match place.and_then(|place| self.servers.get(usize::from(*place))) {
            Some(server) => servers.contains(&server.at),
            None => !self.is_cluster(),
        }
    }

    /// Whether no server could be asked for the slot over this link. A command without a slot can always be sent.
    pub(super) fn is_dark(&self, slot: Option<u16>) -> bool {
        slot.is_some_and(|slot| self.dark.contains(&slot))
    }

    /// Notes the slots without a reachable owner on this link.
    pub(super) fn note_dark(&mut self) {
        let slots = (0..SLOTS).zip(&self.slots);
        let is_dark = |slot: u16, owner: u16| owner == u16::MAX || self.away.has_slot(slot);
        let dark = slots.filter(|(slot, owner)| is_dark(*slot, **owner)).map(|(slot, _)| slot);
        self.dark = dark.collect();
        if self.slots.contains(&u16::MAX) {
            self.away.note_uncovered();
        }
    }

    /// The first number from `from` on that a server keeps names with, and that is not away.
    pub(super) fn tag_on(&self, place: u16, from: u16) -> Option<u16> {
        let mut next = from;
        loop {
            let tag = slots::tag_for_slot(&self.slots, place, next)?;
            if !self.is_dark(Some(slots::of_name(tag.to_string().as_bytes()))) {
                return Some(tag);
            }
            next = tag + 1;
        }
    }

    /// An error that a command of a slot was answered with.
    pub(super) fn blame(&self, slot: Option<u16>, lost: LinkError) -> LinkError {
        let place = slot.and_then(|slot| self.slots.get(usize::from(slot)));
        match place.and_then(|place| self.servers.get(usize::from(*place))) {
            Some(server) => LinkError::OfMaster(server.at.clone(), Box::new(lost)),
            None => lost,
        }
    }

    /// A look at what is away.
    fn begin_look(&self) -> Option<AwayLook> {
        let has_slots = |place: usize| self.slots.contains(&(place as u16));
        let places = (0..self.servers.len()).filter(|place| has_slots(*place));
        let up: Vec<_> = places.filter_map(|place| self.servers.get(place)).collect();
        let first = up.first()?;
        let stuck = self.away.due_slots().into_iter().filter_map(|(slot, keys)| {
            let place = *self.slots.get(usize::from(slot))?;
            let server = self.servers.get(usize::from(place))?;
            Some((slot, server.connection_for(ConnectionRole::Commands), keys))
        });
        Some(AwayLook {
            login: self.login.clone(),
            tls: self.tls.clone(),
            asked: (first.host().to_owned(), first.connection_for(ConnectionRole::Commands)),
            up: up.iter().map(|server| server.at.clone()).collect(),
            away: self.away.clone(),
            dark: self.dark.iter().copied().filter(|slot| !self.away.has_slot(*slot)).collect(),
            stuck: stuck.collect(),
            keys: self.keys.clone(),
            pushes: self.pushes.clone(),
            woken: self.moves.borrow().woken.clone(),
        })
    }
}

/// A look at what is away, beside the link.
struct AwayLook {
    /// User, password and database for new connections.
    login: Client,
    /// Certificates for new connections.
    tls: Arc<RedisTls>,
    /// One that knows who has which slots.
    asked: (String, MultiplexedConnection),
    /// Masters that the link is made to.
    up: BTreeSet<HostPort>,
    /// The parts that were away when the check began.
    away: AwayParts,
    /// Slots without a reachable owner.
    dark: BTreeSet<u16>,
    /// Slots that are being moved, each with a connection to its master and the keys to try.
    stuck: Vec<(u16, MultiplexedConnection, SlotKeys)>,
    keys: RedisKeys,
    /// For new connections that listen.
    pushes: PushQueue,
    /// Is told that the look is over.
    woken: Arc<Notify>,
}

impl AwayLook {
    /// Returns the parts that work again.
    async fn find_back(mut self) -> FoundParts {
        let mut found = FoundParts::default();
        self.find_slots(&mut found.slots).await;
        self.find_masters(&mut found.masters).await;
        self.woken.notify_one();
        found
    }

    async fn find_slots(&mut self, back: &mut Vec<AwayPart>) {
        for (slot, mut connection, keys) in std::mem::take(&mut self.stuck) {
            let mut look = cmd("EXISTS");
            let look = look.arg(keys).query_async::<Value>(&mut connection);
            // Its keys are together again, here or where it has moved to.
            let is_there = |answer: Result<_, RedisError>| match answer {
                Ok(_) => true,
                Err(error) => error.kind() == ErrorKind::Server(ServerErrorKind::Moved),
            };
            if timeout(MASTER_PATIENCE, look).await.is_ok_and(is_there) {
                back.push(AwayPart::Slot(slot));
            }
        }
    }

    async fn find_masters(&mut self, back: &mut Vec<FoundMaster>) {
        let Ok(Ok(ranges)) = timeout(MASTER_PATIENCE, slots_of(&mut self.asked.1)).await else {
            return;
        };
        let mut owners: BTreeMap<HostPort, BTreeSet<u16>> = BTreeMap::new();
        for (first, last, at) in slots::slot_ranges(&ranges, &self.asked.0) {
            let dark: BTreeSet<u16> = self.dark.range(first..=last).copied().collect();
            if !dark.is_empty() {
                owners.entry(at).or_default().extend(dark);
            }
        }
        for (at, slots) in owners {
            if self.up.contains(&at) {
                back.push(FoundMaster { at, slots, server: None });
            } else if self.away.is_due(&AwayPart::Master(at.clone()))
                && let Some(server) = self.connect(at.clone(), &slots).await
            {
                back.push(FoundMaster { at, slots, server: Some(server) });
            }
        }
    }

    /// A connection to a master, if one can be made and it accepts a write in its slots.
    async fn connect(&self, at: HostPort, dark: &BTreeSet<u16>) -> Option<RedisServer> {
        let login = (&self.login, &*self.tls);
        let server = RedisServer::connect(login, at.clone(), &self.pushes);
        let server = timeout(MASTER_PATIENCE, server).await.ok()?.ok()?;
        let is_its = |tag: &u16| dark.contains(&slots::of_name(tag.to_string().as_bytes()));
        let word = match (0..SLOTS).find(is_its) {
            Some(tag) => {
                let mut word = cmd("SET");
                word.arg(self.keys.back_key(tag)).arg("").arg("PX").arg(1000);
                word
            }
            None => cmd("PING"),
        };
        let mut commands = server.connection_for(ConnectionRole::Commands);
        ask_master(at, word.query_async::<Value>(&mut commands)).await.ok()?;
        Some(server)
    }
}

impl LinkWriter<'_> {
    /// Whether the owner of a topic is away.
    pub(super) fn is_away(&self, topic: &Topic) -> bool {
        self.servers.is_partial() && self.servers.is_away(&self.keys.topic_name(topic))
    }

    /// Whether the owner of an app's keys is away.
    pub(super) fn is_app_away(&self, app: &AppId) -> bool {
        self.servers.is_partial() && self.servers.is_away(&self.keys.app_key(app, 't'))
    }

    /// Whether a request can only be handled with local knowledge. Counts and webhook entries are queued instead.
    pub(super) fn is_request_away(&self, request: &LinkRequest) -> bool {
        self.servers.is_partial()
            && match request {
                LinkRequest::Open(topic)
                | LinkRequest::Join { topic, .. }
                | LinkRequest::Leave { topic, .. } => self.is_away(topic),
                LinkRequest::Replay(replay) => self.is_away(&replay.topic),
                LinkRequest::Sweep(app) => self.is_app_away(app),
                LinkRequest::Publish(publish) => self.servers.is_publish_away(self.keys, publish),
                _ => false,
            }
    }

    /// Looks whether something that is away can be worked with again, and goes on with it.
    pub(super) async fn look_for_away(&mut self) -> Result<(), LinkError> {
        if !self.servers.is_partial() {
            return Ok(());
        }
        self.kept.drop_old_stranded(self.settings.max_age, self.status);
        let (servers, keys) = (&self.servers, self.keys);
        self.kept.webhook_log.note_away(|app| servers.is_away(&keys.app_key(app, 't')));
        match self.link.looking.take() {
            Some(looking) if !looking.is_finished() => self.link.looking = Some(looking),
            Some(looking) => {
                // A check that panicked found nothing that is back; the next one starts in a second.
                let found = looking.await.unwrap_or_default();
                if !found.slots.is_empty() {
                    return Err(LinkError::Back(found.slots));
                }
                if found.masters.is_empty() {
                    self.servers.away.end_haste();
                    self.report_away();
                } else {
                    self.go_on_with(found.masters).await?;
                }
            }
            None if self.link.looked_away.elapsed() >= LOOK_EVERY => {
                self.link.looked_away.note_now();
                let look = self.servers.begin_look();
                self.link.looking = look.map(|look| tokio::spawn(look.find_back()));
            }
            None => {}
        }
        Ok(())
    }
}

impl RedisConnections {
    /// Whether the owner of a publish's topic or log is away.
    pub(super) fn is_publish_away(&self, keys: &RedisKeys, publish: &OutgoingEvent) -> bool {
        if !self.is_partial() {
            return false;
        }
        let is_noted = matches!(publish, OutgoingEvent::Withdraw(order) if order.window > 0);
        self.is_away(&publish_topic(keys, publish))
            || (is_noted && self.is_away(&keys.app_key(publish.app_id(), 'x')))
    }
}
