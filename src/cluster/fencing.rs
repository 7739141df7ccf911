//! The scripts that keep leases. A lease holds on one server, from its registration until it is fenced. Every script
//! that writes for a lease refuses one that does not hold, in the same step, so that nothing is written under a
//! lease that may have been cleared. A lease is fenced first, cleared then, and forgotten last; it is never
//! registered a second time.
//!
//! `P:fence:{N}` has on each server: lease → how often it was renewed; `+` and a lease → the node has said all it
//! holds; `x` and a lease → it is fenced, and being cleared; the empty field: since when the server has its data.
//! `+^` is the time of the last renewal, and `+~` what is added to the server's time so that it never goes back,
//! though its clock is set back or a server takes over whose clock is behind; both in microseconds.

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

/// In front of those that say what is held: one more before that has the node's other leases. What it holds under
/// one of them goes over to this one, or ends with it, in the same step, so that it is held once however often a slot
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

/// KEYS fence; ARGV lease. The lease does not hold from now on, and is to be cleared by somebody.
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

pub(super) fn renew() -> String {
    RENEW.replace("CLOCK", CLOCK)
}
