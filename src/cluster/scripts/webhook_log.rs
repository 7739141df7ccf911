//! The webhook logs: writing entries, and reading them as the node that holds the office. `scripts/mod.rs` has the
//! layout of the keys.

use redis::Value;

use super::{Script, ScriptCall};
use crate::cluster::log_entries::LogEntry;
use crate::cluster::reply;

/// For how long it is known after the last what a node said has happened; seconds.
pub(super) const FACT_KEPT: u64 = 600;

/// Appends to the log, with an error if that is not allowed, and wakes the log's reader. A reader holds the office
/// as long as its lease is valid or being cleared. The first entry of a script in a millisecond has a number of its
/// lease, so that entries of two servers, both of which some node took for the master, never share an id: what is done with
/// on the one must not be deleted on the other.
pub(super) const LOGGING: &str = r"
local own, last = string.format('%.0f', (tonumber(string.sub(lease, -8), 16) or 0) * 65536), nil
local function log(w, most, text)
  local time, answer = redis.call('TIME'), nil
  local now = now_us and now_us() or time[1] * 1000000 + time[2]
  local at = string.format('%.0f', math.floor(now / 1000))
  local first = at == last and '*' or own
  last = at
  for _, id in ipairs({at .. '-' .. first, at .. '-*', '*'}) do
    answer = redis.pcall('XADD', w, 'MAXLEN', '~', most * 2, id, 'f', text)
    if type(answer) ~= 'table' then return {} end
    if not string.find(answer.err or '', 'smaller', 1, true) then break end
  end
  return answer
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
/// happened, and is taken once. `?` with a digit was told as the digit says over a link that is lost, to a server that
/// may have been replaced; the log gets that with what is so now. Where Redis has lost what it had, which the marker shows, what is said again is no
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
  elseif sign == '?' then
    -- After a loss of all data it is not known yet what the others hold.
    if not lost then
      local is = (tonumber(redis.call('HGET', o, text) or '0') > 0) and '1' or '0'
      local answer = log(w, most, '?' .. string.sub(ARGV[i], 2) .. is .. text)
      if refused(answer) then return answer end
      logged = true
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
      redis.call('SET', before, number, 'EX', FACT_KEPT)
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

/// Entries that a node writes to an app's log.
pub(in crate::cluster) struct LogWriteArgs<'a> {
    /// The marker of the log as it was last seen; empty: never seen.
    pub(in crate::cluster) marker: &'a str,
    /// The marker of a log that is created now.
    pub(in crate::cluster) new_marker: &'a str,
    /// How long the log may be.
    pub(in crate::cluster) most: usize,
    /// The app in the list of what the lease holds.
    pub(in crate::cluster) held_key: String,
    /// The topic that wakes the log's reader.
    pub(in crate::cluster) wakeup_topic: String,
    /// The node that writes, in hexadecimal.
    pub(in crate::cluster) node: String,
    /// A lease that no longer holds, whose holds end; else they are this node's.
    pub(in crate::cluster) cleared: Option<&'a str>,
}

impl LogWriteArgs<'_> {
    /// With the keys `o h w e b s` of the app; each entry is a sign and a text.
    pub(in crate::cluster) fn call<'a>(
        self,
        keys: &[String],
        entries: impl Iterator<Item = (String, &'a str)>,
    ) -> ScriptCall {
        let mut call = self.cleared.map_or(Script::WriteLog, |_| Script::ClearLog).call(keys);
        call.arg(self.marker).arg(self.new_marker).arg(self.most).arg(self.held_key);
        call.arg(self.wakeup_topic).arg(self.node);
        for (sign, text) in entries {
            call.arg(sign).arg(text);
        }
        if let Some(lease) = self.cleared {
            call.add_cleared_lease(lease);
        }
        call
    }
}

/// The outcome of a write.
#[derive(PartialEq, Eq, Debug)]
pub(in crate::cluster) struct LogWriteReply<'a> {
    /// Another than before: Redis has lost its data, and the log is a new one.
    pub(in crate::cluster) marker: Option<&'a str>,
    /// Entries that did not fit.
    pub(in crate::cluster) dropped: u64,
    /// Whether a node holds the office of reading the log.
    pub(in crate::cluster) has_reader: bool,
}

impl<'a> LogWriteReply<'a> {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &'a Value) -> Option<Self> {
        let [marker, dropped, has_reader] = reply::as_list(value) else { return None };
        Some(Self {
            marker: reply::as_text(marker),
            // A figure for display: without it nothing counts as dropped.
            dropped: reply::as_number(dropped).unwrap_or_default(),
            has_reader: reply::as_number(has_reader) != Some(0),
        })
    }
}

/// The wish of a node concerning the office of reading a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) enum OfficeWish {
    /// Takes it, or keeps it.
    Hold,
    /// The same, and is to be woken when there is an entry.
    Sleep,
    /// Gives it up.
    Release,
}

/// Reading a log.
pub(in crate::cluster) struct LogReadArgs<'a> {
    /// The node that reads, in hexadecimal.
    pub(in crate::cluster) node: &'a str,
    /// Whether the office is wanted, kept, or given up.
    pub(in crate::cluster) wish: OfficeWish,
    /// The topic that wakes the log's reader.
    pub(in crate::cluster) wakeup_topic: String,
    /// The app in the list of what the lease holds.
    pub(in crate::cluster) held_key: String,
    /// The last entry that was read; none: from the first on.
    pub(in crate::cluster) after: Option<&'a str>,
    /// Most entries to read.
    pub(in crate::cluster) most: usize,
    /// Another node's lease that is known to hold no more, or empty.
    pub(in crate::cluster) lapsed: String,
}

impl LogReadArgs<'_> {
    /// With the keys `b w` of the app; entries that are done are deleted.
    pub(in crate::cluster) fn call<'a>(
        self,
        keys: &[String],
        done: impl Iterator<Item = &'a str>,
    ) -> ScriptCall {
        let wish = match self.wish {
            OfficeWish::Hold => "1",
            OfficeWish::Sleep => "z",
            OfficeWish::Release => "0",
        };
        let from = self.after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        let mut call = Script::ReadLog.call(keys);
        call.arg(self.node).arg(wish).arg(self.wakeup_topic).arg(self.held_key);
        call.arg(from).arg(self.most).arg(self.lapsed);
        done.for_each(|id| {
            call.arg(id);
        });
        call
    }
}

/// Whether the reader holds the office now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) enum OfficeGrant {
    /// Another node holds it.
    No,
    /// It did not hold it before.
    Anew,
    /// This node has held it since its last read.
    Still,
}

/// The content of a log.
#[derive(Debug)]
pub(in crate::cluster) struct LogReadReply {
    /// Whether this node holds the office.
    pub(in crate::cluster) office: OfficeGrant,
    /// Entries in the log.
    pub(in crate::cluster) backlog: u64,
    /// Entries from the requested place on.
    pub(in crate::cluster) entries: Vec<LogEntry>,
    /// Redis's time in milliseconds.
    pub(in crate::cluster) time: u64,
    /// The lease and tag under which another node holds the office, if this script could not see that lease.
    pub(in crate::cluster) elsewhere: Option<(String, u16)>,
}

impl LogReadReply {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &Value) -> Option<Self> {
        let [office, backlog, entries, time, elsewhere] = reply::as_list(value) else {
            return None;
        };
        let office = match reply::as_number(office) {
            Some(0) => OfficeGrant::No,
            Some(2) => OfficeGrant::Still,
            _ => OfficeGrant::Anew,
        };
        Some(Self {
            office,
            // For display; an empty log has no length.
            backlog: reply::as_number(backlog).unwrap_or_default(),
            entries: reply::as_list(entries).iter().filter_map(read_entry).collect(),
            // Without a time no entry is old enough to be posted yet.
            time: reply::as_number(time).unwrap_or_default(),
            elsewhere: read_holder(elsewhere),
        })
    }
}

/// Reads the lease and tag of another reader.
fn read_holder(value: &Value) -> Option<(String, u16)> {
    let (id, tag) = reply::as_text(value)?.split_once(' ')?;
    Some((id.to_owned(), tag.parse().ok()?))
}

/// Reads an entry of a stream: its id and text.
fn read_entry(value: &Value) -> Option<LogEntry> {
    let [id, fields] = reply::as_list(value) else { return None };
    let [_, text] = reply::as_list(fields) else { return None };
    Some(LogEntry { id: reply::as_text(id)?.into(), text: reply::as_text(text)?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn entries_stand_behind_six_arguments_in_pairs() {
        let args = |cleared| LogWriteArgs {
            marker: "m",
            new_marker: "n",
            most: 5,
            held_key: "wapp".into(),
            wakeup_topic: "t".into(),
            node: "1f".into(),
            cleared,
        };
        let entries = || [("+".to_owned(), "c"), ("!7".to_owned(), "x")].into_iter();
        let own = ["m", "n", "5", "wapp", "t", "1f", "+", "c", "!7", "x"];
        assert_eq!(arguments(&args(None).call(&[], entries())), own);
        let cleared = args(Some("lease")).call(&[], entries());
        assert_eq!(cleared.script, Script::ClearLog);
        assert_eq!(arguments(&cleared)[own.len()..], ["", "lease", "", ""]);
    }

    #[test]
    fn entries_that_are_done_stand_behind_seven_arguments() {
        let args = |wish, after| LogReadArgs {
            node: "1f",
            wish,
            wakeup_topic: "t".into(),
            held_key: "wapp".into(),
            after,
            most: 9,
            lapsed: String::new(),
        };
        let sent =
            arguments(&args(OfficeWish::Sleep, Some("5-1")).call(&[], ["1-1", "2-1"].into_iter()));
        assert_eq!(sent, ["1f", "z", "t", "wapp", "(5-1", "9", "", "1-1", "2-1"]);
        let sent = arguments(&args(OfficeWish::Release, None).call(&[], std::iter::empty()));
        assert_eq!((&*sent[1], &*sent[4]), ("0", "-"));
    }

    #[test]
    fn a_log_is_read_with_who_holds_its_office() {
        let entry =
            |id: &str| Value::Array(vec![text(id), Value::Array(vec![text("f"), text("+c")])]);
        let reply = |office: i64, elsewhere: &str| {
            let entries = Value::Array(vec![entry("1-1"), Value::Nil, entry("2-1")]);
            let all = [Value::Int(office), Value::Int(3), entries, text("99"), text(elsewhere)];
            LogReadReply::parse(&Value::Array(all.into())).unwrap()
        };
        let read = reply(2, "");
        assert_eq!((read.office, read.backlog, read.time), (OfficeGrant::Still, 3, 99));
        assert_eq!(read.entries.iter().map(|entry| &*entry.id).collect::<Vec<_>>(), ["1-1", "2-1"]);
        assert_eq!(reply(1, "").office, OfficeGrant::Anew);
        let other = reply(0, "abc 12");
        assert_eq!(
            (other.office, other.elsewhere),
            (OfficeGrant::No, Some(("abc".to_owned(), 12)))
        );
        assert!(LogReadReply::parse(&Value::Nil).is_none());
    }

    #[test]
    fn a_write_is_confirmed_with_the_marker_of_the_log() {
        let reply = Value::Array(vec![text("m"), Value::Int(2), Value::Int(0)]);
        let read = LogWriteReply::parse(&reply).unwrap();
        assert_eq!(read, LogWriteReply { marker: Some("m"), dropped: 2, has_reader: false });
        assert!(LogWriteReply::parse(&Value::Array(vec![text("m")])).is_none());
    }
}
