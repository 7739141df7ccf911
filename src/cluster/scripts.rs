//! The scripts, and the layout of the keys that they change. Each script is atomic and idempotent. All keys of a script
//! share a hash tag, except those of the lease that it writes for, which are on the same server.
//!
//! Of a channel, `P:{app/channel}:` and
//! - `v`: the version of its last change. It never goes back, for it is at least the time in microseconds.
//! - `m`: its members, user → version of joining and info. `r`: who holds them, lease and user → nothing.
//!   `k`: on how many nodes, user → number; the empty user stands for the version of the last change of `m`, as
//!   against what else takes versions.
//! - `c`: its cached event, as an envelope. `l`: the log of its last events, as envelopes, for nodes whose link
//!   dropped, and `lt`: it was cut off for its bytes; `P:{all}:l` is that of orders to all nodes.
//!
//! Of an app, `P:{app}:` and `t`: channel → subscriptions on all nodes; `n:LEASE`: on one node. The empty
//! channel name stands for the app's connections.
//!
//! Of an app whose clients may come back to any node, `s`, `q`, `z` and `x`: see `clients.rs`.
//!
//! While a slot of a Redis Cluster is on its way to another server, a key that a script has deleted is one that it may
//! not ask for any more, and the script ends halfway. One that deletes keys therefore names one that is never there,
//! `0`, or only the beginning of a name: Redis refuses it as a whole until the slot has moved.
//!
//! For webhooks, of an app that has some: `o`: how many leases hold a channel or a member; `h:LEASE`: which one does;
//! `w`: the log of what is to be told; `b`: the node that tells it, under which lease with which tag, and ` z` if it is to
//! be woken; `e`: since when Redis has had these; `s:NODE`: the last that a node said has happened.
//!
//! Of each server, with a number whose slot is its own: `P:fence:{N}`, which leases hold (`fencing.rs`), and
//! `P:lease:{N}:LEASE`, of what a lease may have something: `c` and a channel, `a` or `w` and an app. One server has
//! all slots, but those of a Redis Cluster have some each; what is in braces decides. `P:tags`: the numbers in use.
//! `P:back:{N}`: nothing, for a second.

use crate::protocol::hex;
use std::sync::LazyLock;

use sha1::{Digest as _, Sha1};

use super::webhook_scripts::{LOGGING, OFFICE, READ, SAID_KEPT, SAY};
use super::{clients, fencing, seal};

/// How long a version outlives its channel's last change; seconds. It may be forgotten, since the next one
/// begins at the time of day.
const VERSION_KEPT: u64 = 3600;

/// How long a log outlives its last entry at least; seconds.
pub(super) const LOGGED: u64 = 60;

/// How much longer it may, so that not each entry need say so; seconds.
pub(super) const LONGER: u64 = 10;

/// The next version of a channel. Lua's numbers hold 53 bits, which microseconds need in the year 2255.
const NEXT: &str = r"
local function next_version(key)
  local now
  if now_us then now = now_us()
  else
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  local last = tonumber(redis.call('GET', key) or '0')
  if now <= last then now = last + 1 end
  local text = string.format('%016.0f', now)
  redis.call('SET', key, text, 'EX', VERSION_KEPT)
  return text
end
";

/// How the node's other leases hold a user.
const REFS: &str = r"
local function refs(user)
  local all = {}
  for i = 1, #others do all[i] = others[i] .. ' ' .. user end
  return all
end
";

/// KEYS v m r k 0; ARGV user info max topic head mac rest place name; fenced. Answers the version from which on the user is
/// present, or nothing if there is no room. `name` is that of the channel in the list of what the lease holds.
const JOIN: &str = r"
local v, m, r, k = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local user, info, max, topic, head, mac, rest, place, name = unpack(ARGV)
local ref = lease .. ' ' .. user
local known, holds = redis.call('HEXISTS', m, user), redis.call('HEXISTS', r, ref)
if known == 0 and redis.call('HLEN', m) >= tonumber(max) then return false end
local also, more = refs(user), 1 - holds
for i = 1, #also do more = more - redis.call('HEXISTS', r, also[i]) end
-- Where Redis refuses one of these for a right that is missing, clearing the lease counts again.
if holds == 0 then redis.call('SADD', held, name) end
if more ~= 0 then redis.call('HINCRBY', k, user, more) end
if holds == 0 then redis.call('HSET', r, ref, '') end
if #also > 0 then redis.call('HDEL', r, unpack(also)) end
if known == 1 then return redis.call('HGET', k, '') or string.format('%016.0f', 0) end
local version = next_version(v)
if place == '' then place = version end
redis.call('HSET', m, user, place .. info)
redis.call('HSET', k, '', version)
redis.call('SPUBLISH', topic, sealed(head, mac, version, '', rest))
return version
";

/// KEYS v m r k 0; ARGV user topic head mac; fenced.
const LEAVE: &str = r"
local v, m, r, k = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local user, topic, head, mac = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ended = redis.call('HDEL', r, lease .. ' ' .. user, unpack(refs(user)))
if ended == 0 or redis.call('HINCRBY', k, user, 0 - ended) > 0 then return 1 end
redis.call('HDEL', k, user)
redis.call('HDEL', m, user)
local version = next_version(v)
if redis.call('EXISTS', m) == 1 then redis.call('HSET', k, '', version)
else redis.call('DEL', k) end
redis.call('SPUBLISH', topic, sealed(head, mac, version, user, user))
return 1
";

/// KEYS v m r k 0; ARGV lease topic head mac. Ends everybody who is present on a lease that does not hold any more, and
/// counts again who holds the others: a script that was refused halfway, for a right that it lacked, has left what it
/// had done.
const CLEAR: &str = r"
local v, m, r, k = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease, counts = ARGV[1] .. ' ', {}
for _, ref in ipairs(redis.call('HKEYS', r)) do
  if string.sub(ref, 1, #lease) == lease then redis.call('HDEL', r, ref)
  else
    local user = string.sub(ref, string.find(ref, ' ', 1, true) + 1)
    counts[user] = (counts[user] or 0) + 1
  end
end
local known, is = redis.call('HGETALL', k), {}
for i = 1, #known, 2 do
  local user = known[i]
  is[user] = tonumber(known[i + 1])
  if user ~= '' and not counts[user] then redis.call('HDEL', k, user) end
end
for user, count in pairs(counts) do
  if is[user] ~= count then redis.call('HSET', k, user, count) end
end
for _, user in ipairs(redis.call('HKEYS', m)) do
  if not counts[user] then
    redis.call('HDEL', m, user)
    local version = next_version(v)
    if redis.call('EXISTS', m) == 1 then redis.call('HSET', k, '', version)
    else redis.call('DEL', k) end
    redis.call('SPUBLISH', ARGV[2], sealed(ARGV[3], ARGV[4], version, user, user))
  end
end
return 1
";

/// KEYS v m; fenced. A version of its own, which is after all changes so far, and the members.
const LOAD: &str = r"
return {next_version(KEYS[1]), redis.call('HGETALL', KEYS[2])}
";

/// Reading a log. An entry is an envelope: the sender and its serial are bytes 5 to 20, the place in the log
/// bytes 29 to 44.
const LOG: &str = r"
local function place_of(entry)
  return tonumber(string.sub(entry, 29, 44)) or 0
end
local function taken_at(log, head)
  local mark = string.sub(head, 5, 20)
  for _, entry in ipairs(redis.call('LRANGE', log, 0, -1)) do
    if string.sub(entry, 5, 20) == mark then return place_of(entry) end
  end
  return nil
end
";

/// KEYS l of each event; ARGV most, then for each event topic head mac rest, the seconds that the log is to last on
/// (negative where it lasts so long already unless it is new), and how many like it there is room for; fenced. Logs
/// events at the time in microseconds and sends them, in order; those that follow each other on one
/// channel are logged at once. A microsecond is less than an event takes, so that no two have the same place. A log
/// is cut when it is a quarter longer than it need be, and lasts on for all events of a while, so that most events
/// cost neither. It may have as many entries as there is room for of the largest, though no more than `most`. Answers
/// how many were cut off for want of room. What one event needs is kept short: most have a script of their own.
const PUBLISH: &str = r"
local call, keys, argv, most = redis.call, KEYS, ARGV, tonumber(ARGV[1])
local place, at, first, cut = now_us(), 2, 1, 0
local log = keys[1]
while log do
  local topic, entries, count, room, lasts, seconds = argv[at], {}, 0, most, false, 0
  repeat
    local text, wish, fit = string.format('%016.0f', place), tonumber(argv[at + 4]), tonumber(argv[at + 5])
    count = count + 1
    entries[count] = sealed(argv[at + 1], argv[at + 2], text, '', argv[at + 3])
    if fit < room then room = fit end
    if wish > 0 then lasts = true else wish = -wish end
    if wish > seconds then seconds = wish end
    place, at, first = place + 1, at + 6, first + 1
  until keys[first] ~= log
  local length = call('RPUSH', log, unpack(entries))
  if length * 4 > room * 5 then cut = cut + trim(log, length, most, room, seconds) end
  if lasts or length == count then call('EXPIRE', log, seconds) end
  for i = 1, count do call('SPUBLISH', topic, entries[i]) end
  log = keys[first]
end
return cut
";

/// Cutting a log off at its beginning, so that it has `keep` entries. That it was cut for want of room is noted beside it,
/// for then fewer entries than it may have do not mean that none is missing.
const TRIM: &str = r"
local function trim(log, length, most, keep, seconds)
  if keep < most then
    local noted = redis.pcall('SET', log .. 't', '', 'EX', seconds)
    if noted.err then
      -- A slot on its way to another server takes no new key: it is cut when it is there.
      if string.find(noted.err, 'non local key', 1, true) then return 0 end
      redis.call('SET', log .. 't', '', 'EX', seconds)
    end
  end
  redis.call('LTRIM', log, -keep, -1)
  return keep < most and length - keep or 0
end
";

/// The same for one event that may have been taken before, since nobody heard the answer: it is not sent
/// if it is in the log.
const AGAIN: &str = r"
if taken_at(KEYS[1], ARGV[3]) then return 0 end
";

/// KEYS l lt; ARGV place most. What the log has after a place, with the place it ends at and whether it reaches
/// back: 2 if the place itself or one before is there, 1 if nothing was ever cut off, else 0.
const MISSED: &str = r"
local log, after, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local function text(place) return string.format('%016.0f', place) end
local last = redis.call('LINDEX', log, -1)
if not last then return {text(after), 1, {}} end
local size, entries, first, exact = 8, {}, 0, 0
repeat
  size = size * 4
  entries = redis.call('LRANGE', log, -size, -1)
  first = #entries
  while first > 0 and place_of(entries[first]) > after do first = first - 1 end
until first > 0 or #entries < size
-- Where the clock was set back until a lease was renewed, the place itself, or what is later, stands further in front.
if first > 0 and place_of(entries[first]) ~= after then
  local all = redis.call('LRANGE', log, 0, -1)
  first = first + #all - #entries
  entries = all
  for i = #all, 1, -1 do
    local place = place_of(all[i])
    if place == after then first = i break end
    if place > after then first = math.min(first, i - 1) end
  end
end
local missed = {}
for i = first + 1, #entries do missed[#missed + 1] = entries[i] end
local is_whole = #entries < most and redis.call('EXISTS', KEYS[2]) == 0
local reaches = first > 0 and 2 or (is_whole and 1 or 0)
return {text(place_of(last)), reaches, missed}
";

/// KEYS v c l; ARGV topic head mac rest ttl (milliseconds) most again time room lasts; fenced. Logs unless `most` is 0. With a time
/// it was taken then, by a server that may have lost it since; a later event stays the last, and it is sent as the plain event that head mac
/// rest say in the end. Answers the version that it has, 0 if it is not taken, and how many were cut off.
const KEEP: &str = r"
local log, most, cut, is_last = KEYS[3], tonumber(ARGV[6]), 0, true
if ARGV[7] == '1' then
  local place = taken_at(log, ARGV[2])
  if place then return {place, 0} end
end
if ARGV[8] ~= '0' then
  local last = redis.call('GET', KEYS[2])
  if last and string.sub(last, 5, 20) == string.sub(ARGV[2], 5, 20) then return {0, 0} end
  is_last = not last or place_of(last) <= tonumber(ARGV[8])
end
local version = next_version(KEYS[1])
local envelope
if is_last then
  envelope = sealed(ARGV[2], ARGV[3], version, '', ARGV[4])
  local kept = envelope
  if ARGV[8] ~= '0' then
    -- As it was then, so that it is told from what others have published since.
    kept = sealed(ARGV[2], ARGV[3], string.format('%016.0f', tonumber(ARGV[8])), '', ARGV[4])
  end
  redis.call('SET', KEYS[2], kept, 'PX', ARGV[5])
else
  -- Whoever missed it hears it, and keeps what is later.
  envelope = sealed(ARGV[11], ARGV[12], version, '', ARGV[13])
end
if most > 0 then
  local length, room = redis.call('RPUSH', log, envelope), math.min(most, tonumber(ARGV[9]))
  if length * 4 > room * 5 then cut = trim(log, length, most, room, ARGV[10]) end
  redis.call('EXPIRE', log, ARGV[10])
end
redis.call('SPUBLISH', ARGV[1], envelope)
return {tonumber(version), cut}
";

/// KEYS c; ARGV mark. Takes the cached event out if it is that one.
const FORGET: &str = r"
if redis.call('GETRANGE', KEYS[1], 4, 19) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
";

/// KEYS c v; the cached event, how long it is kept on, and the version of the last that was sent: one that is said again
/// keeps the version that it had before.
const KEPT: &str = r"
local envelope = redis.call('GET', KEYS[1])
if not envelope then return false end
return {envelope, redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2]) or '0'}
";

/// KEYS t n v w b, where `n` lacks the lease; ARGV name, how long the webhooks' log may be, 0 if they do not ask for
/// counts, their topic, then for each channel its name, the
/// subscriptions on this lease, and `1` if subscribers want to know of a change, `2` in any case, `3` those here in
/// any case; fenced. What the node's other leases had of a channel goes over to this one. What subscribers everywhere
/// are told is logged for webhooks in the same step. Answers each sum, with its version where they want it, a `-` in
/// front where only those here do. Whoever asked tells them, for the channels may be kept by other servers.
const COUNT: &str = r"
local t, n, v = KEYS[1], KEYS[2], KEYS[3]
if held ~= nil then redis.call('SADD', held, ARGV[1]) end
local most, logged, totals, also = tonumber(ARGV[2]), false, {}, {}
for _, other in ipairs(others) do
  if redis.call('EXISTS', n .. other) == 1 then also[#also + 1] = n .. other end
end
for i = 4, #ARGV - 4, 3 do
  local channel, count = ARGV[i], tonumber(ARGV[i + 1])
  local before, total = tonumber(redis.call('HGET', n .. lease, channel) or '0'), nil
  for _, other in ipairs(also) do
    before = before + (tonumber(redis.call('HGET', other, channel) or '0'))
  end
  if count == before then total = tonumber(redis.call('HGET', t, channel) or '0')
  else total = redis.call('HINCRBY', t, channel, count - before) end
  local wish, version, tells = ARGV[i + 2], '', false
  if wish == '2' or (wish ~= '0' and count ~= before) then version, tells = next_version(v), true
  elseif wish == '3' then version = '-' .. next_version(v) end
  local noted
  if most > 0 and total > 0 and tells then
    noted = log(KEYS[4], most, 'N' .. channel .. '\n' .. string.format('%.0f', total) .. '\n' .. version)
    if noted.err then
      redis.call('HINCRBY', t, channel, before - count)
      return noted
    end
    logged = true
  end
  if count == 0 then noted = redis.pcall('HDEL', n .. lease, channel)
  else noted = redis.pcall('HSET', n .. lease, channel, count) end
  if type(noted) == 'table' then
    -- What is refused for a right that is missing must not stand half done.
    redis.call('HINCRBY', t, channel, before - count)
    return noted
  end
  if total <= 0 then redis.call('HDEL', t, channel) end
  for _, other in ipairs(also) do redis.call('HDEL', other, channel) end
  totals[#totals + 1] = total
  totals[#totals + 1] = version
end
if logged then wake(KEYS[5], ARGV[3]) end
return totals
";

/// The scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Script {
    Join,
    Leave,
    Clear,
    Load,
    Publish,
    PublishAgain,
    Missed,
    Keep,
    Kept,
    Forget,
    Count,
    /// The same for a lease that does not hold any more.
    Uncount,
    Say,
    /// The same for a lease that does not hold any more.
    Unsay,
    Read,
    Register,
    Renew,
    Fence,
    ForgetLease,
    Claim,
    Park,
    Sweep,
    Revoke,
}

impl Script {
    pub(super) const ALL: [Self; 23] = [
        Self::Join,
        Self::Leave,
        Self::Clear,
        Self::Load,
        Self::Publish,
        Self::PublishAgain,
        Self::Missed,
        Self::Keep,
        Self::Kept,
        Self::Forget,
        Self::Count,
        Self::Uncount,
        Self::Say,
        Self::Unsay,
        Self::Read,
        Self::Register,
        Self::Renew,
        Self::Fence,
        Self::ForgetLease,
        Self::Claim,
        Self::Park,
        Self::Sweep,
        Self::Revoke,
    ];

    /// Whether it writes for the lease of the node that runs it, and so only while that holds; or goes by the time of the
    /// server that leases are kept by.
    pub(super) fn is_fenced(self) -> bool {
        matches!(
            self,
            Self::Join
                | Self::Leave
                | Self::Load
                | Self::Publish
                | Self::PublishAgain
                | Self::Keep
                | Self::Count
                | Self::Say
                | Self::Read
                | Self::Claim
                | Self::Park
                | Self::Sweep
                | Self::Revoke
        )
    }

    /// Whether it says what is held, of which the node's other leases may have some.
    pub(super) fn says_holds(self) -> bool {
        matches!(self, Self::Join | Self::Leave | Self::Count | Self::Say)
    }

    /// Whether it is told where it is kept what its lease has.
    pub(super) fn names_held(self) -> bool {
        self.says_holds() || self == Self::Read
    }

    /// What Redis calls it: the SHA-1 of its text, in hexadecimal.
    pub(super) fn sha1_name(self) -> &'static str {
        /// By which Redis knows a script that it has run before (`EVALSHA`).
        static NAMES: LazyLock<[String; Script::ALL.len()]> = LazyLock::new(|| {
            Script::ALL.map(|script| hex::encode_hex(Sha1::digest(script.text())))
        });
        NAMES.get(self as usize).map_or("", String::as_str)
    }

    /// The script's text.
    pub(super) fn text(self) -> String {
        let (needs, own): (&[&str], &str) = match self {
            Self::Join => (&[NEXT, seal::SCRIPT, REFS], JOIN),
            Self::Leave => (&[NEXT, seal::SCRIPT, REFS], LEAVE),
            Self::Clear => (&[fencing::UNFENCED, NEXT, seal::SCRIPT], CLEAR),
            Self::Load => (&[NEXT], LOAD),
            Self::Publish => (&[seal::SCRIPT, TRIM], PUBLISH),
            Self::PublishAgain => (&[seal::SCRIPT, LOG, TRIM, AGAIN], PUBLISH),
            Self::Missed => (&[LOG], MISSED),
            Self::Keep => (&[NEXT, seal::SCRIPT, LOG, TRIM], KEEP),
            Self::Kept => (&[], KEPT),
            Self::Forget => (&[], FORGET),
            Self::Count => (&[NEXT, LOGGING], COUNT),
            Self::Uncount => (&[fencing::CLEARING, NEXT, LOGGING], COUNT),
            Self::Say => (&[LOGGING, OFFICE], SAY),
            Self::Unsay => (&[fencing::CLEARING, LOGGING, OFFICE], SAY),
            Self::Read => (&[fencing::HELD, OFFICE], READ),
            Self::Register => (&[], fencing::REGISTER),
            Self::Renew => (&[], &fencing::renew()),
            Self::Fence => (&[], fencing::FENCE),
            Self::ForgetLease => (&[], fencing::FORGET_LEASE),
            Self::Claim => (&[clients::FIRST], clients::CLAIM),
            Self::Park => (&[clients::FIRST], clients::PARK),
            Self::Sweep => (&[clients::FIRST], clients::SWEEP),
            Self::Revoke => (&[], clients::REVOKE),
        };
        let fence = match self {
            Self::Register => fencing::keeping(),
            _ if self.says_holds() => fencing::fenced() + fencing::HELD + fencing::OTHERS,
            _ if self.is_fenced() => fencing::fenced(),
            _ => String::new(),
        };
        let text = fence + &needs.concat() + own;
        text.replace("VERSION_KEPT", &VERSION_KEPT.to_string())
            .replace("SAID_KEPT", &SAID_KEPT.to_string())
    }
}
