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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// A number is an integer to one command and digits to another, depending on how it is kept.
    #[test]
    fn numbers_come_as_integers_and_as_digits() {
        assert_eq!(as_number(&Value::Int(7)), Some(7));
        assert_eq!(as_number(&text("7")), Some(7));
        assert_eq!(as_number(&Value::SimpleString("7".into())), Some(7));
        for wrong in [Value::Int(-1), text("-1"), text("7 "), text(""), Value::Nil] {
            assert_eq!(as_number(&wrong), None, "{wrong:?}");
        }
    }

    /// RESP3 has maps, RESP2 lists of fields and values.
    #[test]
    fn a_hash_is_read_from_either_protocol() {
        let pairs = [(text("a"), text("1")), (text("b"), text("2"))];
        let map = Value::Map(pairs.to_vec());
        let list = Value::Array(pairs.into_iter().flat_map(|(a, b)| [a, b]).collect());
        let read = |value| -> Vec<(String, Option<u64>)> {
            let of = |(field, number): (&Value, &Value)| {
                (as_text(field).unwrap().to_owned(), as_number(number))
            };
            hash_pairs(value).into_iter().map(of).collect()
        };
        assert_eq!(read(&map), [("a".to_owned(), Some(1)), ("b".to_owned(), Some(2))]);
        assert_eq!(read(&list), read(&map));
        assert!(read(&Value::Nil).is_empty());
    }

    #[test]
    fn members_are_in_the_order_of_their_versions_and_malformed_ones_are_left_out() {
        let list = Value::Array(vec![
            text("late"),
            text("0000000000000009{}"),
            text("early"),
            text("0000000000000002null"),
            text("short"),
            text("12"),
            text("letters"),
            text("000000000000000x{}"),
            Value::BulkString(vec![0xff]),
            text("0000000000000001{}"),
        ]);
        let members = read_members(&list);
        let read: Vec<(u64, &str, &str)> = members
            .iter()
            .map(|(version, member)| (*version, member.user_id.as_str(), &*member.user_info))
            .collect();
        assert_eq!(read, [(2, "early", "null"), (9, "late", "{}")]);
    }

    #[test]
    fn a_log_is_read_with_how_far_it_reaches_back() {
        let reply = |reaches: i64| {
            let entries = Value::Array(vec![text("e1"), Value::Nil, text("e2")]);
            read_missed(&Value::Array(vec![text("5"), Value::Int(reaches), entries]))
        };
        let covers = [(2, LogCoverage::Back), (1, LogCoverage::Begin), (0, LogCoverage::Short)];
        for (number, coverage) in covers {
            let missed = reply(number).unwrap();
            assert_eq!((missed.reaches, missed.entries.len()), (coverage, 2));
        }
        assert!(reply(-1).is_none());
        assert!(read_missed(&Value::Array(vec![text("5")])).is_none());
        assert!(read_roster(&Value::Nil).is_none());
    }
}
