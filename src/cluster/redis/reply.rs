//! Reads Redis replies as strings, numbers and lists. A reply of an unexpected shape reads as nothing, which no caller
//! takes for success.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::dedup::MessageId;
use super::opening::{LogCoverage, MissedEntries};
use super::trust::EnvelopeTrust;
use crate::cluster::envelope::{DIGITS, Envelope, EnvelopeBody};
use crate::cluster::link::RetainedEvent;
use crate::cluster::redis_clock::RedisClock;
use crate::cluster::roster::LoadedRoster;
use crate::protocol::member::{Member, UserId};

/// Text of either kind that Redis has.
pub(super) fn as_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// `None` for what is not UTF-8.
pub(super) fn as_text(value: &Value) -> Option<&str> {
    std::str::from_utf8(as_bytes(value)?).ok()
}

/// A number, or a text of digits, as hashes hold them.
pub(super) fn as_number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => as_text(value)?.parse().ok(),
    }
}

/// Anything else is an empty list.
pub(super) fn as_list(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// Field and value of each entry of a hash.
pub(super) fn hash_pairs(value: &Value) -> Vec<(&Value, &Value)> {
    match value {
        Value::Map(pairs) => pairs.iter().map(|(field, value)| (field, value)).collect(),
        _ => as_list(value)
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [field, value] => Some((field, value)),
                _ => None,
            })
            .collect(),
    }
}

/// A channel's members: user → version of joining and info.
pub(super) fn read_members(value: &Value) -> Vec<(u64, Member)> {
    let member = |(user, member): (&Value, &Value)| {
        let user_id = UserId::parse(as_text(user)?)?;
        let (version, info) = as_text(member)?.split_at_checked(DIGITS)?;
        Some((version.parse().ok()?, Member { user_id, user_info: info.into() }))
    };
    let mut members: Vec<_> = hash_pairs(value).into_iter().filter_map(member).collect();
    members.sort_unstable_by_key(|(version, _)| *version);
    members
}

/// What `LOAD` answers.
pub(super) fn read_roster(value: &Value) -> Option<LoadedRoster> {
    match as_list(value) {
        [version, all] => {
            Some(LoadedRoster { version: as_number(version)?, members: read_members(all) })
        }
        _ => None,
    }
}

/// What `KEPT` answers for a topic, which event it is, and the version of the last that was sent; nothing if it is not
/// believed.
pub(super) fn read_kept(
    value: &Value,
    name: &str,
    trust: EnvelopeTrust<'_>,
    clock: &RedisClock,
) -> Option<(RetainedEvent, MessageId, u64)> {
    let [envelope, ttl, last] = as_list(value) else { return None };
    let bytes = Bytes::copy_from_slice(as_bytes(envelope)?);
    let mut envelope = Envelope::decode(&bytes).ok()?;
    if !trust.is_believed(name, &envelope, &bytes) {
        return None;
    }
    envelope.map_version(|version| clock.to_local(version));
    let mark = MessageId::from(&envelope);
    let version = envelope.version;
    match envelope.body {
        EnvelopeBody::Cached { frame, data, .. } => {
            let ttl = Duration::from_millis(as_number(ttl)?);
            let last = clock.to_local(as_number(last)?);
            Some((RetainedEvent { version, frame, data, ttl, told: false }, mark, last))
        }
        _ => None,
    }
}

/// What `MISSED` answers.
pub(super) fn read_missed(value: &Value) -> Option<MissedEntries> {
    let [_, reaches, entries] = as_list(value) else { return None };
    let reaches = match as_number(reaches)? {
        2 => LogCoverage::Back,
        1 => LogCoverage::Begin,
        _ => LogCoverage::Short,
    };
    let entries =
        as_list(entries).iter().filter_map(as_bytes).map(Bytes::copy_from_slice).collect();
    Some(MissedEntries { reaches, entries })
}
