//! Reading what Redis answers. A reply of another shape than expected reads as nothing, and is no success.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::dedup::MessageId;
use super::reader::EnvelopeTrust;
use super::subscribe::{LogCoverage, MissedEntries};
use crate::cluster::envelope::{DIGITS, Envelope, EnvelopeBody};
use crate::cluster::link::RetainedEvent;
use crate::cluster::redis_clock::RedisClock;
use crate::cluster::roster::LoadedRoster;
use crate::protocol::member::{Member, UserId};

pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    std::str::from_utf8(bytes(value)?).ok()
}

pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => text(value)?.parse().ok(),
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// Field and value of each entry of a hash.
pub(super) fn pairs(value: &Value) -> Vec<(&Value, &Value)> {
    match value {
        Value::Map(pairs) => pairs.iter().map(|(field, value)| (field, value)).collect(),
        _ => list(value)
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [field, value] => Some((field, value)),
                _ => None,
            })
            .collect(),
    }
}

/// A channel's members: user → version of joining and info.
pub(super) fn members(value: &Value) -> Vec<(u64, Member)> {
    let member = |(user, member): (&Value, &Value)| {
        let user_id = UserId::parse(text(user)?)?;
        let (version, info) = text(member)?.split_at_checked(DIGITS)?;
        Some((version.parse().ok()?, Member { user_id, user_info: info.into() }))
    };
    let mut members: Vec<_> = pairs(value).into_iter().filter_map(member).collect();
    members.sort_unstable_by_key(|(version, _)| *version);
    members
}

/// What `LOAD` answers.
pub(super) fn loaded(value: &Value) -> Option<LoadedRoster> {
    match list(value) {
        [version, all] => Some(LoadedRoster { version: number(version)?, members: members(all) }),
        _ => None,
    }
}

/// What `KEPT` answers for a topic, which event it is, and the version of the last that was sent; nothing if it is not
/// believed.
pub(super) fn kept(
    value: &Value,
    name: &str,
    trust: EnvelopeTrust<'_>,
    clock: &RedisClock,
) -> Option<(RetainedEvent, MessageId, u64)> {
    let [envelope, ttl, last] = list(value) else { return None };
    let bytes = Bytes::copy_from_slice(bytes(envelope)?);
    let mut envelope = Envelope::decode(&bytes).ok()?;
    if !trust.believes(name, &envelope, &bytes) {
        return None;
    }
    envelope.map_version(|version| clock.local(version));
    let mark = MessageId::from(&envelope);
    match envelope.body {
        EnvelopeBody::Cached { version, frame, data, .. } => {
            let ttl = Duration::from_millis(number(ttl)?);
            let last = clock.local(number(last)?);
            Some((RetainedEvent { version, frame, data, ttl, told: false }, mark, last))
        }
        _ => None,
    }
}

/// What `MISSED` answers.
pub(super) fn missed(value: &Value) -> Option<MissedEntries> {
    let [_, reaches, entries] = list(value) else { return None };
    let reaches = match number(reaches)? {
        2 => LogCoverage::Back,
        1 => LogCoverage::Begin,
        _ => LogCoverage::Short,
    };
    let entries = list(entries).iter().filter_map(bytes).map(Bytes::copy_from_slice).collect();
    Some(MissedEntries { reaches, entries })
}
