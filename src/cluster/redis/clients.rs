//! Storing resumable clients in Redis, handing them to the node where they reconnect, and reading from a channel's log
//! what one has missed.

use bytes::Bytes;
use redis::Value;

use super::LinkError;
use super::batch::CommandBatch;
use super::claims::keys_of;
use super::session::{ExpectedReply, LinkWriter, MAX_REQUESTS};
use super::trust::EnvelopeTrust;
use crate::app::AppId;
use crate::cluster::clients::{Missed, MissedEvent, Parked, Replay};
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::link::LinkEvent;
use crate::cluster::redis_clock::RedisClock;
use crate::cluster::scripts::clients::{self, ParkArgs, SweepReply};
use crate::cluster::scripts::events::{LogCoverage, MissedEntries, read_missed};

/// Logs that are read in one round trip; each may be as long as there is room for.
const READ_AT_ONCE: usize = 64;

/// By how much what Redis says of when it has had its data may be wrong; microseconds. Where it lost them less than that
/// after a client was there, nothing is missed: nodes publish again what was taken in the seconds before.
const SLACK: u64 = 1_000_000;

impl LinkWriter<'_> {
    /// Adds clients that are to be kept; how many.
    pub(super) fn park(&self, batch: &mut CommandBatch<ExpectedReply>) -> usize {
        let mut count = 0;
        let here = self.kept.parked.iter(|app| !self.is_app_away(app));
        for Parked { app, key, record, window, ended, unclaimed } in here.take(MAX_REQUESTS) {
            count += 1;
            let record = match record.is_empty() {
                true => Vec::new(),
                false => self.seals.seal_record(app, key, record),
            };
            let (node, window) = (self.kept.node, *window);
            let park = ParkArgs { key, node, record, window, ended: *ended, unclaimed: *unclaimed };
            let park = park.call(&keys_of(self.keys, app, "sqz0"));
            batch.add_command(park, ExpectedReply::Parked { app: app.clone() });
        }
        count
    }

    /// Whether client states wait, and Redis can take them.
    pub(super) fn is_parking(&self) -> bool {
        self.kept.parked.iter(|app| !self.is_app_away(app)).next().is_some()
    }

    /// Removes the first `count` of the states that could be sent.
    pub(super) fn forget_parked(&mut self, count: usize) {
        if count > 0 {
            let mut parked = std::mem::take(&mut self.kept.parked);
            parked.forget(count, |app| !self.is_app_away(app));
            self.kept.parked = parked;
        }
    }

    /// Forgets clients whose time is over, a bounded number at a time: Redis runs one script at a
    /// time.
    pub(super) fn sweep(&self, batch: &mut CommandBatch<ExpectedReply>, app: AppId) {
        let sweep = clients::sweep(&keys_of(self.keys, &app, "sqz0"));
        batch.add_command(sweep, ExpectedReply::Swept { app });
    }

    /// Reports how many clients were deleted.
    pub(super) async fn take_forgotten(&self, app: AppId, value: &Value) -> Result<(), LinkError> {
        let swept = SweepReply::parse(value).ok_or(LinkError::Unexpected)?;
        let SweepReply { expired, crowded, waiting } = swept;
        if expired + crowded == 0 && waiting.is_none() {
            return Ok(());
        }
        self.send_event(LinkEvent::Swept { app, expired, crowded, waiting }).await
    }

    /// Asks for what clients have missed, some at a time.
    pub(super) fn ask_for_missed(&self, batch: &mut CommandBatch<ExpectedReply>) {
        for replay in self.link.replays.iter().take(READ_AT_ONCE) {
            let after = self.status.clock.to_redis(replay.after);
            let log = self.keys.log_keys(&replay.topic);
            let missed = read_missed(&log, after, self.settings.replay);
            batch.add_command(missed, ExpectedReply::Replayed);
        }
    }

    /// Hands out what the first of those that wait has missed.
    pub(super) async fn take_missed(&mut self, value: &Value) -> Result<(), LinkError> {
        let missed = MissedEntries::parse(value).ok_or(LinkError::Unexpected)?;
        let MissedEntries { last, reaches, entries: missed } = missed;
        let Some(Replay { topic, ticket, after, alive }) = self.link.replays.pop_front() else {
            return Err(LinkError::Unexpected);
        };
        let clock = &self.status.clock;
        // The log's earlier content on a server that has lost its data is unknown.
        let lost = self.kept.epochs.values().any(|epoch| clock.to_local(*epoch) > alive + SLACK);
        let gap = match reaches {
            LogCoverage::Back => false,
            LogCoverage::Begin => lost,
            LogCoverage::Short => true,
        };
        let name = self.keys.topic_name(&topic);
        let events =
            missed.into_iter().filter_map(|entry| missed_event(self.trust, &name, clock, &entry));
        let events = events.collect();
        let last = clock.to_local(last).max(after);
        self.send_event(LinkEvent::Missed(Missed { topic, ticket, events, gap, last })).await
    }
}

/// An entry of a log as it is replayed to a client; `None` if it is not for it.
fn missed_event(
    trust: EnvelopeTrust<'_>,
    name: &str,
    clock: &RedisClock,
    entry: &Bytes,
) -> Option<MissedEvent> {
    let envelope = Envelope::decode(entry).ok()?;
    if envelope.whisper || !trust.is_believed(name, &envelope, entry) {
        return None;
    }
    match envelope.body {
        EnvelopeBody::Event { except, frame } | EnvelopeBody::Cached { except, frame, .. } => {
            Some(MissedEvent { place: clock.to_local(envelope.version), except, frame })
        }
        _ => None,
    }
}

/// The result for a client whose log cannot be read.
pub(super) fn unknown(Replay { topic, ticket, after, .. }: Replay) -> LinkEvent {
    LinkEvent::Missed(Missed { topic, ticket, events: Vec::new(), gap: true, last: after })
}
