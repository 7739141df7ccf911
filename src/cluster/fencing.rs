//! The scripts that keep leases. A lease holds on one server, from its registration until it is fenced. Every script
//! that writes for a lease refuses one that does not hold, in the same step, so that nothing is written under a
//! lease that may have been cleared. A lease is fenced first, cleared then, and forgotten last; it is never
//! registered a second time.
//!
//! `P:fence:{N}` has on each server: lease → how often it was renewed; `+` and a lease → the node has said all it
//! holds; `x` and a lease → it is fenced, and being cleared; the empty field: since when the server has its data.

/// In front of scripts that write for a lease: the last three arguments are the lease, the key of the fence, and that
/// of what the lease holds.
pub(super) const FENCED: &str = r"
local lease, fence, held = ARGV[#ARGV - 2], ARGV[#ARGV - 1], ARGV[#ARGV]
if redis.call('HEXISTS', fence, lease) == 0 then
  return redis.error_reply('FENCED the lease does not hold')
end
";

/// In front of the same scripts where they clear a lease away, which does not hold any more.
pub(super) const CLEARING: &str = r"
local lease, held = ARGV[#ARGV - 2], nil
";

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
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSETNX', KEYS[1], '', now)
redis.call('HSET', KEYS[1], ARGV[1], 1)
return {now, redis.call('HGETALL', KEYS[1])}
";

/// KEYS fence; ARGV lease, `1` if the node has said all it holds. Answers the time in microseconds, and the fence.
pub(super) const RENEW: &str = r"
if redis.call('HINCRBY', KEYS[1], ARGV[1], 1) == 1 then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return redis.error_reply('FENCED the lease does not hold')
end
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], '+' .. ARGV[1], '') end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
return {now, redis.call('HGETALL', KEYS[1])}
";
