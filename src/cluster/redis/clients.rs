//! What Redis keeps of clients that may come back: it is put there, handed out to whoever has the client next, and
//! what one has missed is read from its channel's log.

use std::time::Duration;

use bytes::Bytes;
use redis::{Value, cmd};

use super::batch::{CommandBatch, script_call};
use super::connections::RedisConnections;
use super::reader::EnvelopeTrust;
use super::session::{ExpectedReply, LinkWriter, MOST};
use super::subscribe::LogCoverage;
use super::{LinkError, LinkState, reply};
use crate::app::AppId;
use crate::cluster::clients::{
    ClaimedClient, MAX_BYTES, Missed, MissedEvent, Parked, Replay, SWEPT,
};
use crate::cluster::envelope::{DIGITS, Envelope, EnvelopeBody};
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::{LinkEvent, LinkStatus};
use crate::cluster::redis_clock::RedisClock;
use crate::cluster::scripts::Script;

/// Clients that wait for Redis, beyond which more are forgotten.
const MOST_PARKED: usize = 100_000;

/// Logs that are read in one round trip; each may be as long as there is room for.
const READ_AT_ONCE: usize = 64;

/// Seconds that the keys outlast what is in them.
const LONGER: u64 = 120;

/// By how much what Redis says of when it has had its data may be wrong; microseconds.
const SLACK: u64 = 1_000_000;

fn lasts(window: Duration) -> u64 {
    window.as_secs().saturating_mul(2).saturating_add(LONGER)
}

fn micros(window: Duration) -> u64 {
    u64::try_from(window.as_micros()).unwrap_or(u64::MAX)
}

/// How a node is called where it is the one that has a client's connection.
fn owner(node: u64) -> String {
    format!("{node:016x}")
}

fn keys_of(keys: &RedisKeys, app: &AppId, parts: &str) -> Vec<String> {
    parts.chars().map(|part| keys.app_key(app, part)).collect()
}

impl LinkState {
    /// Notes what a client holds, until Redis has it.
    pub(super) fn park(&mut self, parked: Parked) {
        if self.parked.len() < MOST_PARKED {
            self.parked.push_back(parked);
        }
    }
}

impl LinkWriter<'_> {
    /// Adds clients that are to be kept; how many.
    pub(super) fn park(&self, batch: &mut CommandBatch<ExpectedReply>) -> usize {
        let some = self.kept.parked.iter().take(MOST);
        for Parked { app, key, record, window, ended, unclaimed } in some.clone() {
            let mut park = script_call(Script::Park, &keys_of(self.keys, app, "sqz0"));
            let record = match record.is_empty() {
                true => Vec::new(),
                false => self.seals.seal_record(app, key, record),
            };
            park.arg(key).arg(owner(self.kept.node)).arg(record).arg(micros(*window));
            park.arg(u8::from(*ended)).arg(u8::from(*unclaimed)).arg(lasts(*window)).arg(MAX_BYTES);
            batch.add_command(park, ExpectedReply::Parked { app: app.clone() });
        }
        some.len()
    }

    pub(super) fn sweep(&self, batch: &mut CommandBatch<ExpectedReply>, app: AppId) {
        let mut sweep = script_call(Script::Sweep, &keys_of(self.keys, &app, "sqz0"));
        sweep.arg(SWEPT);
        batch.add_command(sweep, ExpectedReply::Swept { app });
    }

    /// Hands out how many clients were forgotten: by a number those that were too many, by two those whose time was
    /// over, and how many are left.
    pub(super) async fn take_forgotten(&self, app: AppId, value: &Value) -> Result<(), LinkError> {
        let counts = match reply::as_list(value) {
            [expired, waiting] => (reply::as_number(expired), Some(0), reply::as_number(waiting)),
            _ => (Some(0), reply::as_number(value), None),
        };
        let (Some(expired), Some(crowded), waiting) = counts else {
            return Err(LinkError::Unexpected);
        };
        if expired + crowded == 0 && waiting.is_none() {
            return Ok(());
        }
        self.send_event(LinkEvent::Swept { app, expired, crowded, waiting }).await
    }

    /// Asks for what clients have missed, some at a time.
    pub(super) fn ask_for_missed(&self, batch: &mut CommandBatch<ExpectedReply>) {
        for replay in self.link.replays.iter().take(READ_AT_ONCE) {
            let mut missed = script_call(Script::Missed, &self.keys.log_keys(&replay.topic));
            missed.arg(self.status.clock.to_redis(replay.after)).arg(self.settings.replay);
            batch.add_command(missed, ExpectedReply::Replayed);
        }
    }

    /// Hands out what the first of those that wait has missed.
    pub(super) async fn take_missed(&mut self, value: &Value) -> Result<(), LinkError> {
        let (reaches, last, missed) = match reply::as_list(value) {
            [last, ..] => {
                let missed = reply::read_missed(value).ok_or(LinkError::Unexpected)?;
                (missed.reaches, reply::as_number(last).unwrap_or_default(), missed.entries)
            }
            [] => return Err(LinkError::Unexpected),
        };
        let Some(Replay { topic, ticket, after, alive }) = self.link.replays.pop_front() else {
            return Err(LinkError::Unexpected);
        };
        let clock = &self.status.clock;
        // What a server that has lost its data since had in its log, nobody knows.
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

/// One entry of a log as a client is told it that comes back; nothing if it is none for it.
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
        EnvelopeBody::Event { version, except, frame }
        | EnvelopeBody::Cached { version, except, frame, .. } => {
            Some(MissedEvent { place: clock.to_local(version), except, frame })
        }
        _ => None,
    }
}

/// What a client is told whose log cannot be read.
pub(super) fn unknown(Replay { topic, ticket, after, .. }: Replay) -> LinkEvent {
    LinkEvent::Missed(Missed { topic, ticket, events: Vec::new(), gap: true, last: after })
}

/// Takes a client for a node.
pub(super) async fn claim(
    servers: &mut RedisConnections,
    trust: EnvelopeTrust<'_>,
    status: &LinkStatus,
    (node, app, key, window): (u64, &AppId, &str, Duration),
) -> Result<Option<ClaimedClient>, LinkError> {
    let mut batch = CommandBatch::new();
    let mut claim = script_call(Script::Claim, &keys_of(trust.keys, app, "sqzx"));
    claim.arg(key).arg(owner(node)).arg(micros(window)).arg(lasts(window));
    batch.add_command(claim, ());
    let answers = batch.send_all(servers, status).await?;
    let Some((_, value)) = answers.first() else { return Ok(None) };
    let [before, record, since, withdrawals] = reply::as_list(value) else { return Ok(None) };
    let owner = reply::as_text(before).and_then(|text| u64::from_str_radix(text, 16).ok());
    let record = reply::as_bytes(record).and_then(|bytes| {
        let (time, sealed) = bytes.split_at_checked(DIGITS)?;
        let time = std::str::from_utf8(time).ok()?.parse().ok()?;
        let record = trust.seals.open_record(app, key, sealed)?;
        Some((status.clock.to_local(time), Bytes::copy_from_slice(record)))
    });
    let since = status.clock.to_local(reply::as_number(since).unwrap_or_default());
    let withdrawals = reply::as_number(withdrawals) == Some(1);
    Ok(Some(ClaimedClient { owner, record, since, withdrawals }))
}

/// When each of these was withdrawn last.
pub(super) async fn withdrawn(
    servers: &mut RedisConnections,
    keys: &RedisKeys,
    status: &LinkStatus,
    (app, members): (&AppId, &[String]),
) -> Result<Vec<u64>, LinkError> {
    let mut batch = CommandBatch::new();
    let mut scores = cmd("ZMSCORE");
    scores.arg(keys.app_key(app, 'x')).arg(members);
    batch.add_command(scores, ());
    let answers = batch.send_all(servers, status).await?;
    let time = |value: &Value| match value {
        Value::Double(score) => status.clock.to_local(*score as u64),
        value => reply::as_text(value)
            .and_then(|text| text.parse::<f64>().ok())
            .map_or(0, |score| status.clock.to_local(score as u64)),
    };
    Ok(answers
        .first()
        .map(|(_, value)| reply::as_list(value).iter().map(time).collect())
        .unwrap_or_default())
}

/// Has a node hand over what a client holds; how many nodes were told.
pub(super) async fn take_over(
    servers: &mut RedisConnections,
    trust: EnvelopeTrust<'_>,
    status: &LinkStatus,
    (envelope, app, node): (Envelope, &AppId, u64),
) -> Result<usize, LinkError> {
    let (topic, mut publish) = (trust.keys.node_topic(node), cmd("SPUBLISH"));
    publish.arg(&topic).arg(trust.seals.encode_sealed(app, &topic, &envelope));
    let mut batch = CommandBatch::new();
    batch.add_command(publish, ());
    let answers = batch.send_all(servers, status).await?;
    Ok(answers.first().and_then(|(_, value)| reply::as_number(value)).unwrap_or_default() as usize)
}
