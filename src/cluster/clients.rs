//! Resumable clients in Redis: the layout of their keys and the scripts on them. The record of a client is opaque here:
//! bytes sealed with the app's secret, whose content `node/client_record.rs` defines.
//!
//! Of an app, `P:{app}:` and `s`: the key of a token → when it was kept, and the sealed record; the empty key stands for
//! the bytes of all. `q`: the same key → the node that has the client's connection; the empty one: since when
//! there is this. `z`: the keys by when they are forgotten. `x`: users and channels by when a right was taken back.

use std::time::Duration;

use bytes::Bytes;

use super::{SubscribeTicket, Topic};
use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// Bytes of records that Redis keeps of an app at most; beyond it those go first that are forgotten first.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// How many clients are forgotten at once.
pub(super) const SWEPT: usize = 1000;

/// What a client holds, to be kept for its next connection.
#[derive(Clone, Debug)]
pub struct Parked {
    pub app: AppId,
    /// Of its token.
    pub key: String,
    /// Empty where nothing is to be kept.
    pub record: Bytes,
    /// How long it may take to come back.
    pub window: Duration,
    /// Its connection has ended, so that it is nobody's now.
    pub ended: bool,
    /// It came while Redis was away, and whose it was is not known.
    pub unclaimed: bool,
}

/// What Redis knows of a client that has come.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct ClaimedClient {
    /// The node that had its connection and has not ended it.
    pub owner: Option<u64>,
    /// What it held, and when that was kept; by this node's clock of Redis.
    pub record: Option<(u64, Bytes)>,
    /// Since when clients are known.
    pub since: u64,
    /// Rights were taken back of late.
    pub withdrawals: bool,
}

/// A client that came back is to be told what it has missed of a topic.
#[derive(Debug, Clone)]
pub struct Replay {
    pub topic: Topic,
    /// The connection that it is for.
    pub ticket: SubscribeTicket,
    /// The place of the last event that it has acknowledged.
    pub after: u64,
    /// When it was certain last that Redis had its data; what was lost since may have been missed.
    pub alive: u64,
}

/// What it has missed.
#[derive(Debug)]
pub struct Missed {
    pub topic: Topic,
    pub ticket: SubscribeTicket,
    pub events: Vec<MissedEvent>,
    /// There were more.
    pub gap: bool,
    /// The place that the log ended at.
    pub last: u64,
}

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissedEvent {
    /// Its place in the channel's log, by which what was told before is left out.
    pub place: u64,
    /// The connection that published it, which does not hear it.
    pub except: Option<SocketId>,
    /// As subscribers got it.
    pub frame: Bytes,
}

/// What stands for a user and a channel that it may not hold any longer.
pub fn withdrawn_member(user: &UserId, channel: &ChannelName) -> String {
    format!("{}\n{}", user.as_str(), channel.as_str())
}

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
