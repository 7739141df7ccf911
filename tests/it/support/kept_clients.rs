//! The state that a loopback keeps of clients that may come back, in the place of Redis: their records, whose each
//! is, and when rights were taken back. As the scripts of Redis do, but for time, which passes too slowly here to
//! end anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use fanfare::cluster::clients::{
    ClaimedClient, Missed, MissedEvent, Parked, Replay, withdrawn_member,
};
use fanfare::cluster::envelope::{Envelope, EnvelopeBody};
use fanfare::cluster::link::{LinkEvent, LinkQuery, LinkReply, Withdraw};
use tokio::sync::oneshot;

use super::beyond::now;

/// Clients by the keys of their tokens.
#[derive(Default)]
pub struct KeptClients {
    /// When each was kept, and what.
    records: BTreeMap<String, (u64, Bytes)>,
    owners: BTreeMap<String, u64>,
    withdrawn: BTreeMap<String, u64>,
}

impl KeptClients {
    pub(super) fn park(&mut self, node: u64, parked: Parked) {
        let Parked { key, record, ended, unclaimed, .. } = parked;
        if self.owners.get(&key).is_some_and(|owner| *owner != node) && !unclaimed {
            return;
        }
        if record.is_empty() {
            self.records.remove(&key);
            self.owners.remove(&key);
            return;
        }
        self.records.insert(key.clone(), (now(), record));
        if ended {
            self.owners.remove(&key);
        } else {
            self.owners.insert(key, node);
        }
    }

    fn claim(&mut self, node: u64, key: String) -> ClaimedClient {
        let record = self.records.get(&key).cloned();
        let withdrawals = !self.withdrawn.is_empty();
        let owner = self.owners.insert(key, node);
        ClaimedClient { owner, record, since: 0, withdrawals }
    }

    pub(super) fn withdraw(&mut self, order: &Withdraw) {
        for channel in order.channels.iter() {
            self.withdrawn.insert(withdrawn_member(&order.user, channel), now());
        }
    }

    /// Answers what a node asks; what another one of those that live is to be told for it.
    pub(super) fn answer(
        &mut self,
        (node, question): (u64, LinkQuery),
        asker: oneshot::Sender<LinkReply>,
        living: &[u64],
    ) -> Option<(u64, LinkEvent)> {
        let (reply, told) = match question {
            LinkQuery::Claim { key, .. } => (LinkReply::Claimed(self.claim(node, key)), None),
            LinkQuery::Withdrawn { members, .. } => {
                let time = |member: &String| self.withdrawn.get(member).copied().unwrap_or(0);
                (LinkReply::Withdrawn(members.iter().map(time).collect()), None)
            }
            LinkQuery::TakeOver { app, key, node: other, request } => {
                let told = LinkEvent::TakeOver { app, key, node, request };
                let is_there = living.contains(&other);
                (LinkReply::Told(is_there.into()), is_there.then_some((other, told)))
            }
            // Nobody asks anything else here, and who did would not be answered.
            _ => return None,
        };
        // Whoever asked may have gone.
        let _ = asker.send(reply);
        told
    }
}

/// What a client has missed, by the last `most` events of its channel's log.
pub(super) fn missed(log: &[(u64, Envelope)], replay: Replay, most: usize) -> LinkEvent {
    let Replay { topic, ticket, after, .. } = replay;
    let kept = log.get(log.len().saturating_sub(most)..).unwrap_or_default();
    let place = |envelope: &Envelope| match envelope.body {
        EnvelopeBody::Event { .. } => envelope.version,
        _ => 0,
    };
    let before = &log[..log.len() - kept.len()];
    let gap = before.last().is_some_and(|(_, envelope)| place(envelope) > after);
    let event = |(_, envelope): &(u64, Envelope)| match &envelope.body {
        EnvelopeBody::Event { except, frame } if envelope.version > after => {
            Some(MissedEvent { place: envelope.version, except: *except, frame: frame.clone() })
        }
        _ => None,
    };
    let events = kept.iter().filter_map(event).collect();
    let last = log.last().map_or(after, |(_, envelope)| place(envelope).max(after));
    LinkEvent::Missed(Missed { topic, ticket, events, gap, last })
}
