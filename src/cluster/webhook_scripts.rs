//! The scripts of the webhook logs: writing entries, and reading them as the node that holds the office. `scripts.rs`
//! documents their keys, `webhook_log.rs` uses them.

/// For how long it is known after the last what a node said has happened; seconds.
pub(super) const SAID_KEPT: u64 = 600;

/// Adding to the log; it answers with an error if it may not. And waking the node that tells what is in it, which has
/// the office as long as its lease holds, or is being cleared.
pub(super) const LOGGING: &str = r"
local function log(w, most, text)
  local id = '*'
  if now_us then id = string.format('%.0f-*', math.floor(now_us() / 1000)) end
  local answer = redis.pcall('XADD', w, 'MAXLEN', '~', most * 2, id, 'f', text)
  if type(answer) == 'table' and answer.err and string.find(answer.err, 'smaller', 1, true) then
    answer = redis.pcall('XADD', w, 'MAXLEN', '~', most * 2, '*', 'f', text)
  end
  if type(answer) == 'table' then return answer end
  return {}
end
local function wake(b, topic)
  local owner = redis.call('GET', b)
  if owner and string.sub(owner, -2) == ' z' then
    redis.call('SET', b, string.sub(owner, 1, -3))
    redis.call('SPUBLISH', topic, 'w')
  end
  return owner
end
";

/// KEYS o h w e b s, where `h` lacks the lease and `s` the node; ARGV marker new most name topic node, then of each a sign and a text;
/// fenced. `+` is held from now on, `=` was held before and is said again, `-` is held no longer, `!` with a number
/// happened, and is taken once. Where Redis has lost what it had, which the marker shows, what is said again is no
/// news. Answers the marker, how many did not fit, and whether some node tells what is in the log.
pub(super) const SAY: &str = r"
local o, h, w, most = KEYS[1], KEYS[2] .. lease, KEYS[3], tonumber(ARGV[3])
local own = {h}
for _, other in ipairs(others) do
  if redis.call('EXISTS', KEYS[2] .. other) == 1 then own[#own + 1] = KEYS[2] .. other end
end
local before, said, logged = KEYS[6] .. ARGV[6], nil, false
if held ~= nil then redis.call('SADD', held, ARGV[4]) end
redis.call('SET', KEYS[4], ARGV[2], 'NX')
local marker = redis.call('GET', KEYS[4])
local lost = ARGV[1] ~= '' and ARGV[1] ~= marker
local dropped = 0
local function refused(answer) return type(answer) == 'table' and answer.err end
for i = 7, #ARGV - 4, 2 do
  local sign, text = string.sub(ARGV[i], 1, 1), ARGV[i + 1]
  if sign == '+' or sign == '=' then
    if redis.call('SISMEMBER', h, text) == 0 then
      -- What is refused for a right that is missing must not stand half done.
      local held_by = redis.call('HINCRBY', o, text, 1)
      local answer = redis.pcall('SADD', h, text)
      if not refused(answer) and held_by == 1 and not (lost and sign == '=') then
        answer = log(w, most, '+' .. text)
        logged = true
        if refused(answer) then redis.call('SREM', h, text) end
      end
      if refused(answer) then redis.call('HINCRBY', o, text, -1) return answer end
    end
    for i = 2, #own do
      if redis.call('SREM', own[i], text) == 1 then redis.call('HINCRBY', o, text, -1) end
    end
  elseif sign == '-' then
    local ended = {}
    for i = 1, #own do
      if redis.call('SISMEMBER', own[i], text) == 1 then ended[#ended + 1] = own[i] end
    end
    if #ended > 0 then
      local held_by, answer = redis.call('HINCRBY', o, text, 0 - #ended), nil
      for i = 1, #ended do answer = redis.pcall('SREM', ended[i], text) end
      if not refused(answer) and held_by <= 0 then
        answer = log(w, most, '-' .. text)
        logged = true
        if refused(answer) then for i = 1, #ended do redis.call('SADD', ended[i], text) end
        else redis.call('HDEL', o, text) end
      end
      if refused(answer) then redis.call('HINCRBY', o, text, #ended) return answer end
    end
  else
    local number = tonumber(string.sub(ARGV[i], 2))
    if said == nil then said = tonumber(redis.call('GET', before) or '0') end
    if number > said then
      said = number
      if redis.call('XLEN', w) < most then
        local answer = log(w, most, text)
        if refused(answer) then return answer end
        logged = true
      else dropped = dropped + 1 end
      redis.call('SET', before, number, 'EX', SAID_KEPT)
    end
  end
end
local owner, told = nil, 1
if logged then owner = wake(KEYS[5], ARGV[5]) else owner = redis.call('GET', KEYS[5]) end
if held ~= nil and office_of(owner) == 'free' then told = 0 end
return {marker, dropped, told}
";

/// Whether the office is had by a node that lives: `held`, `free`, or the lease under which it is had and its tag, where
/// that lease is kept with another key than the lease of this script: after slots have moved nodes may have leases with
/// several tags on one server, of which a script can see but its own. For fenced scripts. An office without a lease is of
/// a version before, and ends by itself.
pub(super) const OFFICE: &str = r"
local function tag_of(key) return string.match(key, '{(%d+)}$') or '' end
local function office_of(owner)
  if not owner then return 'free' end
  local of, tag = string.match(owner, '^%x+ (%x+) ?(%d*)')
  if not of then return 'held' end
  if tag ~= '' and tag ~= tag_of(fence) then return of .. ' ' .. tag end
  local state = redis.call('HMGET', fence, of, 'x' .. of)
  return (state[1] or state[2]) and 'held' or 'free'
end
";

/// KEYS b w; ARGV node wish topic name from most lapsed, then entries that are done with; fenced. Takes or keeps the
/// office of telling what is in the log; with the wish `z` it is to be woken if there is nothing, with `0` it gives the
/// office up and wakes all. `lapsed` is a lease that does not hold any more, by whoever has looked. Answers 2 if this node
/// had it all along, 1 if it has it anew, else 0; how long the log is; the entries from a place on; the time in
/// milliseconds; and the lease and tag under which another has it, if that is for others to look at.
pub(super) const READ: &str = r"
local b, w, me, wish = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
for i = 8, #ARGV - 3 do redis.call('XDEL', w, ARGV[i]) end
local owner = redis.call('GET', b)
local mine = owner and string.match(owner, '^%x+') == me
local length = redis.call('XLEN', w)
if wish == '0' then
  if mine then
    redis.call('DEL', b)
    redis.call('SPUBLISH', ARGV[3], 'g')
  end
  return {0, length, {}, '0', ''}
end
if not mine then
  local state = office_of(owner)
  local of = string.match(state, '^(%x+) %d+$')
  if state == 'held' or of and of ~= ARGV[7] then return {0, length, {}, '0', of and state or ''} end
end
local now = string.format('%.0f', math.floor(now_us() / 1000))
local next, entries = me .. ' ' .. lease .. ' ' .. tag_of(fence), {}
if length > 0 then entries = redis.call('XRANGE', w, ARGV[5], '+', 'COUNT', ARGV[6])
elseif wish == 'z' then next = next .. ' z' end
if next ~= owner then redis.call('SET', b, next) end
if not mine then redis.call('SADD', held, ARGV[4]) end
return {mine and 2 or 1, length, entries, now, ''}
";
