//! The scripts that keep leases. A lease holds on one server, from its registration until it is fenced. Every script
//! that writes for a lease refuses one that does not hold, in the same step, so that nothing is written under a
//! lease that may have been cleared. A lease is fenced first, cleared then, and forgotten last; it is never
//! registered a second time.
//!
//! `P:fence:{N}` has on each server: lease → how often it was renewed; `+` and a lease → the node has said all it
//! holds; `x` and a lease → it is fenced, and being cleared; the empty field: since when the server has its data.
//! `+^` is the time of the last renewal, and `+~` what is added to the server's time so that it never goes back,
//! though its clock is set back or a server takes over whose clock is behind; both in microseconds.

use std::collections::HashSet;

use redis::Value;

use super::{Script, ScriptCall};
use crate::cluster::reply;

/// The time of the server in microseconds, which does not go back behind the last renewal.
const CLOCK: &str = r"
local function now_us()
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2] + skew
  if now < floor then
    skew, now = skew + floor - now, floor
    redis.call('HSET', fence, '+~', string.format('%.0f', skew))
  end
  return now
end
";

/// In front of scripts that write for a lease: the last two arguments are the lease and the key of the fence.
pub(super) fn fenced() -> String {
    r"
local lease, fence = ARGV[#ARGV - 1], ARGV[#ARGV]
local state = redis.call('HMGET', fence, lease, '+~', '+^')
if not state[1] then return redis.error_reply('FENCED the lease does not hold') end
local skew, floor = tonumber(state[2] or '0'), tonumber(state[3] or '0')
"
    .to_owned()
        + CLOCK
}

/// In front of those that hold something for the lease: the argument before these is the key of what it holds.
pub(super) const HELD: &str = r"
local held = ARGV[#ARGV - 2]
";

/// In front of those that say what is held: one more before that has the node's other leases. Holds under
/// one of them go over to this one, or end with it, in the same step, so that each is held once however often a slot
/// has moved and back, and whatever lease it was said under.
pub(super) const OTHERS: &str = r"
local others = {}
for other in string.gmatch(ARGV[#ARGV - 3], '%S+') do others[#others + 1] = other end
";

/// In front of the same scripts where they clear a lease away, which does not hold any more.
pub(super) const CLEARING: &str = r"
local lease, held, now_us, others = ARGV[#ARGV - 2], nil, nil, {}
";

/// In front of what gives versions without a lease, which go on from the channel's last.
pub(super) const UNFENCED: &str = r"
local now_us = nil
";

/// In front of those that keep leases.
pub(super) fn keeping() -> String {
    r"
local fence = KEYS[1]
local state = redis.call('HMGET', fence, '+~', '+^')
local skew, floor = tonumber(state[1] or '0'), tonumber(state[2] or '0')
"
    .to_owned()
        + CLOCK
}

/// KEYS fence; ARGV lease. The lease is invalid from now on, and must be cleared by some node.
pub(super) const FENCE: &str = r"
redis.call('HDEL', KEYS[1], ARGV[1], '+' .. ARGV[1])
redis.call('HSET', KEYS[1], 'x' .. ARGV[1], '')
return 1
";

/// KEYS fence held; ARGV lease. The lease is cleared.
pub(super) const FORGET_LEASE: &str = r"
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[1], 'x' .. ARGV[1])
return 1
";

/// KEYS fence; ARGV lease. Answers as [`RENEW`] does.
pub(super) const REGISTER: &str = r"
local now = string.format('%.0f', now_us())
redis.call('HSETNX', KEYS[1], '', now)
redis.call('HSET', KEYS[1], ARGV[1], 1)
return {now, redis.call('HGETALL', KEYS[1])}
";

/// KEYS fence; ARGV lease, `1` if the node has said all it holds. Answers the time in microseconds, and the fence as it
/// was before.
const RENEW: &str = r"
local fence, lease, all = KEYS[1], ARGV[1], redis.call('HGETALL', KEYS[1])
local known = {}
for i = 1, #all, 2 do known[all[i]] = all[i + 1] end
if not known[lease] then return redis.error_reply('FENCED the lease does not hold') end
local skew, floor = tonumber(known['+~'] or '0'), tonumber(known['+^'] or '0')
CLOCK
local now = string.format('%.0f', now_us())
local change = {lease, known[lease] + 1, '+^', now}
if ARGV[2] == '1' and not known['+' .. lease] then
  change[5], change[6] = '+' .. lease, ''
end
redis.call('HSET', fence, unpack(change))
return {now, all}
";

/// The script that renews a lease, with the clock's code in it.
pub(super) fn renew() -> String {
    RENEW.replace("CLOCK", CLOCK)
}

/// Registers a lease, with the key of the fence. [`FenceReply`] reads the reply.
pub(in crate::cluster) fn register_lease(fence: String, lease: &str) -> ScriptCall {
    let mut call = Script::Register.call(&[fence]);
    call.arg(lease);
    call
}

/// Renews a lease, with the key of the fence; `whole` if the node has registered all it holds. [`FenceReply`] reads the
/// reply.
pub(in crate::cluster) fn renew_lease(fence: String, lease: &str, whole: bool) -> ScriptCall {
    let mut call = Script::Renew.call(&[fence]);
    call.arg(lease).arg(u8::from(whole));
    call
}

/// Fences a lease, with the key of the fence. Answers 1.
pub(in crate::cluster) fn fence_lease(fence: String, lease: &str) -> ScriptCall {
    let mut call = Script::Fence.call(&[fence]);
    call.arg(lease);
    call
}

/// Forgets a cleared lease, with the keys of the fence and of what it held. Answers 1.
pub(in crate::cluster) fn forget_lease(fence: String, held: String, lease: &str) -> ScriptCall {
    let mut call = Script::ForgetLease.call(&[fence, held]);
    call.arg(lease);
    call
}

/// A server's reply about all its leases, when one is registered or renewed.
#[derive(Default, PartialEq, Eq, Debug)]
pub(in crate::cluster) struct FenceReply {
    /// The time of the server, in microseconds since 1970.
    pub(in crate::cluster) now: u64,
    /// Since when it has its data.
    pub(in crate::cluster) epoch: u64,
    /// Leases that hold, each with what changes whenever it is renewed.
    pub(in crate::cluster) valid: Vec<(String, String)>,
    /// Leases that do not hold any more and are being cleared.
    pub(in crate::cluster) fenced: Vec<String>,
    /// Nodes that have said all they hold.
    pub(in crate::cluster) whole: HashSet<String>,
}

impl FenceReply {
    /// Reads what `REGISTER` and `RENEW` answer.
    pub(in crate::cluster) fn parse_reply(value: &Value) -> Option<Self> {
        let [now, fields] = reply::as_list(value) else { return None };
        let mut fence = Self { now: reply::as_number(now)?, ..Self::default() };
        for (field, value) in reply::hash_pairs(fields) {
            let (field, value) = (reply::as_text(field)?, reply::as_text(value)?);
            match field.split_at_checked(1) {
                None => fence.epoch = value.parse().ok()?,
                // The field's first character says what it is about: `x` a fence, `+` a node that
                // is whole.
                Some(("x", lease)) => fence.fenced.push(lease.to_owned()),
                // Of no lease are `+^` and `+~`, which are shorter.
                Some(("+", lease)) => {
                    fence.whole.extend(lease.get(..8).map(str::to_owned));
                }
                Some(_) => fence.valid.push((field.to_owned(), value.to_owned())),
            }
        }
        Some(fence)
    }

    /// Whether a lease is valid, or still being cleared.
    pub(in crate::cluster) fn knows(&self, lease: &str) -> bool {
        self.valid.iter().any(|(id, _)| id == lease) || self.fenced.iter().any(|id| id == lease)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    #[test]
    fn what_a_server_says_of_leases_is_read() {
        let word = |word: &str| Value::BulkString(word.into());
        let fields = ["", "5", "0000000a00000001", "3", "+0000000a00000001", "", "x1", ""];
        let fields = Value::Array(fields.map(word).into());
        let fence = FenceReply::parse_reply(&Value::Array(vec![word("12"), fields])).unwrap();
        assert_eq!((fence.now, fence.epoch), (12, 5));
        assert_eq!(fence.valid, [("0000000a00000001".to_owned(), "3".to_owned())]);
        assert_eq!(fence.fenced, ["1"]);
        assert!(fence.whole.contains("0000000a"));
        assert_eq!(FenceReply::parse_reply(&Value::Nil), None);
    }

    #[test]
    fn a_renewal_says_whether_all_is_registered() {
        assert_eq!(arguments(&renew_lease("f".into(), "l", true)), ["l", "1"]);
        assert_eq!(arguments(&renew_lease("f".into(), "l", false)), ["l", "0"]);
        assert_eq!(arguments(&forget_lease("f".into(), "h".into(), "l")), ["l"]);
    }
}
