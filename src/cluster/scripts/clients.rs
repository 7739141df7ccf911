//! Resumable clients: claiming one, storing its state, sweeping those that are late, and withdrawing channels.
//! `cluster/clients.rs` has the layout of the keys.

use std::time::Duration;

use redis::Value;

use super::{Script, ScriptCall};
use crate::cluster::clients::{MAX_BYTES, SWEPT};
use crate::cluster::envelope::DIGITS;
use crate::cluster::reply;

/// Seconds that the keys outlast what is in them.
const KEYS_OUTLAST: u64 = 120;

/// In front of those that are about clients: the time, and what they have in common.
pub(super) const FIRST: &str = r"
local now = now_us()
local function text(number) return string.format('%016.0f', number) end
local s, q, z = KEYS[1], KEYS[2], KEYS[3]
local function forget(key)
  redis.call('HINCRBY', s, '', 0 - redis.call('HSTRLEN', s, key))
  redis.call('HDEL', s, key)
  redis.call('HDEL', q, key)
  redis.call('ZREM', z, key)
end
local function last(seconds)
  for i = 1, 3 do redis.call('EXPIRE', KEYS[i], seconds) end
end
";

/// KEYS s q z x; ARGV key owner window (microseconds), seconds that the keys last on; fenced. Answers who had the client, its
/// record, since when clients are known, and whether rights were taken back.
pub(super) const CLAIM: &str = r"
local key, owner = ARGV[1], ARGV[2]
local score = redis.call('ZSCORE', z, key)
if score and tonumber(score) < now then forget(key) end
redis.call('HSETNX', q, '', text(now))
local before, record = redis.call('HGET', q, key), redis.call('HGET', s, key)
redis.call('HSET', q, key, owner)
redis.call('ZADD', z, text(now + tonumber(ARGV[3])), key)
last(ARGV[4])
return {before or '', record or '', redis.call('HGET', q, ''), redis.call('EXISTS', KEYS[4])}
";

/// KEYS s q z 0; ARGV key owner record window ended unclaimed lasts bytes; fenced. Keeps a record, unless another node has the
/// client now. Answers how many others had to go for it.
pub(super) const PARK: &str = r"
local key, owner, record = ARGV[1], ARGV[2], ARGV[3]
local before = redis.call('HGET', q, key)
if before and before ~= owner and ARGV[6] == '0' then return 0 end
if record == '' then
  forget(key)
  return 0
end
local value, crowded = text(now) .. record, 0
local bytes = redis.call('HINCRBY', s, '', #value - redis.call('HSTRLEN', s, key))
redis.call('HSET', s, key, value)
redis.call('HSETNX', q, '', text(now))
if ARGV[5] == '1' then redis.call('HDEL', q, key) else redis.call('HSET', q, key, owner) end
redis.call('ZADD', z, text(now + tonumber(ARGV[4])), key)
while bytes > tonumber(ARGV[8]) do
  local first = redis.call('ZRANGE', z, 0, 0)[1]
  if not first then break end
  bytes = bytes - redis.call('HSTRLEN', s, first)
  forget(first)
  crowded = crowded + 1
end
-- From here on nobody knows what clients held; a second late, as a token's time may be a second early.
if crowded > 0 then redis.call('HSET', q, '', text(now + 1000000)) end
last(ARGV[7])
return crowded
";

/// KEYS s q z 0; ARGV most; fenced. Forgets those whose time is over. Answers how many, and how many may still come.
pub(super) const SWEEP: &str = r"
local over = redis.call('ZRANGEBYSCORE', z, '-inf', '(' .. text(now), 'LIMIT', 0, ARGV[1])
for i = 1, #over do forget(over[i]) end
local open = math.max(redis.call('HLEN', q) - 1, 0)
return {#over, math.max(redis.call('ZCARD', z) - open, 0)}
";

/// KEYS x; ARGV lasts (seconds), then users and channels; fenced. Notes that rights are taken back now.
pub(super) const REVOKE: &str = r"
local now = now_us()
for i = 2, #ARGV - 2 do redis.call('ZADD', KEYS[1], string.format('%016.0f', now), ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%016.0f', now - ARGV[1] * 1000000))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
";

/// Seconds for which Redis keeps an app's keys of clients: longer than any may be away.
fn key_lifetime(window: Duration) -> u64 {
    window.as_secs().saturating_mul(2).saturating_add(KEYS_OUTLAST)
}

/// Redis's times are in microseconds.
fn as_micros(window: Duration) -> u64 {
    u64::try_from(window.as_micros()).unwrap_or(u64::MAX)
}

/// A node as the owner of a client.
fn owner_text(node: u64) -> String {
    format!("{node:016x}")
}

/// Claims a client for a node, with the keys `sqzx` of its app. [`ClaimReply`] reads the reply.
pub(in crate::cluster) fn claim(
    keys: &[String],
    key: &str,
    node: u64,
    window: Duration,
) -> ScriptCall {
    let mut call = Script::Claim.call(keys);
    call.arg(key).arg(owner_text(node)).arg(as_micros(window)).arg(key_lifetime(window));
    call
}

/// The state of a client in Redis.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cluster) struct ClaimReply<'a> {
    /// The node that had its connection and has not ended it.
    pub(in crate::cluster) owner: Option<u64>,
    /// When its state was stored, by Redis's clock, and the sealed state.
    pub(in crate::cluster) record: Option<(u64, &'a [u8])>,
    /// Since when clients are known, by Redis's clock.
    pub(in crate::cluster) since: u64,
    /// Channels were withdrawn recently.
    pub(in crate::cluster) withdrawals: bool,
}

impl<'a> ClaimReply<'a> {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &'a Value) -> Option<Self> {
        let [owner, record, since, withdrawals] = reply::as_list(value) else { return None };
        let record = reply::as_bytes(record).and_then(|bytes| {
            let (time, sealed) = bytes.split_at_checked(DIGITS)?;
            Some((std::str::from_utf8(time).ok()?.parse().ok()?, sealed))
        });
        Some(Self {
            owner: reply::as_text(owner).and_then(|text| u64::from_str_radix(text, 16).ok()),
            record,
            // The script answers a number; without one they count as known since ever.
            since: reply::as_number(since).unwrap_or_default(),
            withdrawals: reply::as_number(withdrawals) == Some(1),
        })
    }
}

/// The state of a client.
pub(in crate::cluster) struct ParkArgs<'a> {
    /// The hash of its token.
    pub(in crate::cluster) key: &'a str,
    /// The node whose client it is.
    pub(in crate::cluster) node: u64,
    /// Sealed; empty: it is to be deleted.
    pub(in crate::cluster) record: Vec<u8>,
    /// For how long the record is kept.
    pub(in crate::cluster) window: Duration,
    /// Its connection has ended, so that no node has it.
    pub(in crate::cluster) ended: bool,
    /// It may be another node's, since it came while Redis was away.
    pub(in crate::cluster) unclaimed: bool,
}

impl ParkArgs<'_> {
    /// With the keys `sqz0` of the app. Answers how many other clients were dropped for it.
    pub(in crate::cluster) fn call(self, keys: &[String]) -> ScriptCall {
        let mut call = Script::Park.call(keys);
        call.arg(self.key).arg(owner_text(self.node)).arg(self.record).arg(as_micros(self.window));
        call.arg(u8::from(self.ended)).arg(u8::from(self.unclaimed));
        call.arg(key_lifetime(self.window)).arg(MAX_BYTES);
        call
    }
}

/// Deletes clients that are late, a bounded number at a time, with the keys `sqz0` of the app.
pub(in crate::cluster) fn sweep(keys: &[String]) -> ScriptCall {
    let mut call = Script::Sweep.call(keys);
    call.arg(SWEPT);
    call
}

/// How many clients were deleted, by [`sweep`] or by [`ParkArgs`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) struct SweepReply {
    /// They were late.
    pub(in crate::cluster) expired: u64,
    /// They were dropped for others.
    pub(in crate::cluster) crowded: u64,
    /// Those that may still resume, if that was counted.
    pub(in crate::cluster) waiting: Option<u64>,
}

impl SweepReply {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &Value) -> Option<Self> {
        Some(match reply::as_list(value) {
            [expired, waiting] => {
                let (expired, waiting) = (reply::as_number(expired)?, reply::as_number(waiting));
                Self { expired, crowded: 0, waiting }
            }
            _ => Self { expired: 0, crowded: reply::as_number(value)?, waiting: None },
        })
    }
}

/// Notes that channels are withdrawn now, with the key `x` of the app. Answers 1.
pub(in crate::cluster) fn revoke(
    key: String,
    window: u32,
    members: impl Iterator<Item = String>,
) -> ScriptCall {
    let mut call = Script::Revoke.call(&[key]);
    call.arg(window);
    members.for_each(|member| {
        call.arg(member);
    });
    call
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_client_is_stored_by_eight_arguments() {
        let (key, window) = ("k", Duration::from_secs(60));
        let args =
            ParkArgs { key, node: 31, record: b"r".into(), window, ended: true, unclaimed: false };
        let sent = arguments(&args.call(&[]));
        let bytes = MAX_BYTES.to_string();
        assert_eq!(sent, ["k", "000000000000001f", "r", "60000000", "1", "0", "240", &bytes]);
        let sent = arguments(&claim(&[], key, 31, window));
        assert_eq!(sent, ["k", "000000000000001f", "60000000", "240"]);
    }

    #[test]
    fn a_claim_says_whose_the_client_was() {
        let reply = |owner: &str, record: &str| {
            Value::Array(vec![text(owner), text(record), text("5"), Value::Int(1)])
        };
        let value = reply("000000000000001f", "0000000000000007sealed");
        let read = ClaimReply::parse(&value).unwrap();
        assert_eq!((read.owner, read.record), (Some(31), Some((7, &b"sealed"[..]))));
        assert_eq!((read.since, read.withdrawals), (5, true));
        let value = reply("", "");
        let nobody = ClaimReply::parse(&value).unwrap();
        assert_eq!((nobody.owner, nobody.record), (None, None));
        assert!(ClaimReply::parse(&Value::Nil).is_none());
    }

    #[test]
    fn what_was_deleted_is_told_by_its_form() {
        let pair = Value::Array(vec![Value::Int(2), Value::Int(3)]);
        let swept = SweepReply { expired: 2, crowded: 0, waiting: Some(3) };
        assert_eq!(SweepReply::parse(&pair), Some(swept));
        let parked = SweepReply { expired: 0, crowded: 4, waiting: None };
        assert_eq!(SweepReply::parse(&Value::Int(4)), Some(parked));
        assert_eq!(SweepReply::parse(&Value::Nil), None);
    }
}
