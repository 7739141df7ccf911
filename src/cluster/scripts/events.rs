//! Events and their logs: publishing, cached events, and reading what a log has after a place. `scripts/mod.rs` has the
//! layout of the keys.

use bytes::Bytes;
use redis::Value;

use super::{Script, ScriptCall};
use crate::cluster::reply;
use crate::cluster::seal::EnvelopeParts;

/// How long a log outlives its last entry at least; seconds.
pub(in crate::cluster) const LOG_LASTS: u64 = 60;

/// How much longer it may, so that not each entry need say so; seconds.
pub(in crate::cluster) const LOG_SLACK: u64 = 10;

/// Nodes say once in so many seconds which logs there are.
pub(in crate::cluster) const LOGS_WINDOW: u64 = 60;

/// Reading a log. An entry is an envelope: the sender and its serial are bytes 5 to 20, the place in the log
/// bytes 29 to 44.
pub(super) const LOG: &str = r"
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
/// how many were cut off for want of room. The way of one event is kept short: most have a script of their own.
pub(super) const PUBLISH: &str = r"
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
pub(super) const TRIM: &str = r"
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

/// The same for one event that may have been published before, since its reply was lost: it is not sent if it is in
/// the log.
pub(super) const AGAIN: &str = r"
if taken_at(KEYS[1], ARGV[3]) then return 0 end
";

/// KEYS l lt; ARGV place most. The entries of the log after a place, the place of its end, and whether it reaches
/// back: 2 if the place itself or an earlier one is there, 1 if nothing was ever cut off, else 0.
pub(super) const MISSED: &str = r"
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

/// KEYS g, which lacks the number of the window; ARGV logs. Notes them, and answers about how many there are: what was
/// noted in this window and the one before. Where that is refused, for a right that is missing or since the slot is on its
/// way to another server, the answer is 0: not known.
pub(super) const COUNT_LOGS: &str = r"
local window = math.floor(redis.call('TIME')[1] / LOGS_WINDOW)
local now = KEYS[1] .. string.format('%.0f', window)
if #ARGV > 0 then
  local noted = redis.pcall('PFADD', now, unpack(ARGV))
  if type(noted) == 'table' then return 0 end
  redis.call('EXPIRE', now, 2 * LOGS_WINDOW)
end
local count = redis.pcall('PFCOUNT', now, KEYS[1] .. string.format('%.0f', window - 1))
if type(count) == 'table' then return 0 end
return count
";

/// KEYS v c l; ARGV topic head mac rest ttl (milliseconds) most again time room lasts; fenced. Logs unless `most` is 0. With a time
/// it was taken then, by a server that may have lost it since; a later event stays the last, and it is sent as the plain event that head mac
/// rest say in the end. Answers the version that it has, 0 if it is not taken, and how many were cut off.
pub(super) const KEEP: &str = r"
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
pub(super) const FORGET: &str = r"
if redis.call('GETRANGE', KEYS[1], 4, 19) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
";

/// KEYS c v; the cached event, how long it is kept on, and the version of the last that was sent: one that is said again
/// keeps the version that it had before.
pub(super) const KEPT: &str = r"
local envelope = redis.call('GET', KEYS[1])
if not envelope then return false end
return {envelope, redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2]) or '0'}
";

/// One event that is logged and sent.
pub(in crate::cluster) struct EventArgs {
    pub(in crate::cluster) topic: String,
    /// The sealed envelope, around its version.
    pub(in crate::cluster) parts: EnvelopeParts,
    /// Seconds that its log must last; negative if it is known to last so long already.
    pub(in crate::cluster) lasts: i64,
    /// How many entries of its size the log has room for.
    pub(in crate::cluster) room: usize,
}

/// Publishes events, each with the key of its log (`l`); a log has at most `most` entries. Answers how many entries were
/// cut off for want of room.
pub(in crate::cluster) fn publish(
    logs: &[String],
    most: usize,
    events: &[EventArgs],
) -> ScriptCall {
    add_events(Script::Publish.call(logs), most, events)
}

/// The same for one event that may have been taken already: it is not published twice.
pub(in crate::cluster) fn publish_again(log: String, most: usize, event: EventArgs) -> ScriptCall {
    add_events(Script::PublishAgain.call(&[log]), most, &[event])
}

/// Adds the arguments of each event.
fn add_events(mut call: ScriptCall, most: usize, events: &[EventArgs]) -> ScriptCall {
    call.arg(most);
    for EventArgs { topic, parts: EnvelopeParts { head, mac, rest }, lasts, room } in events {
        call.arg(topic).arg(head).arg(mac).arg(rest).arg(*lasts).arg(*room);
    }
    call
}

/// Notes logs of an app, with the beginning of the keys for that (`g`). Answers how many it has on all nodes, 0 if that is
/// not known.
pub(in crate::cluster) fn count_logs(key: String, logs: &[&str]) -> ScriptCall {
    let mut call = Script::CountLogs.call(&[key]);
    call.arg(logs);
    call
}

/// An event of a cache channel.
pub(in crate::cluster) struct CacheArgs<'a> {
    /// The envelope with the event's data, which the cache keeps.
    pub(in crate::cluster) event: EventArgs,
    /// Milliseconds for which it is cached.
    pub(in crate::cluster) ttl: u64,
    /// Most entries of the log; 0: it is not logged.
    pub(in crate::cluster) most: usize,
    /// It may have been taken already.
    pub(in crate::cluster) again: bool,
    /// When it was taken by a server that may have lost it since; 0: never. And it as a plain event, which is sent if
    /// a later one is cached by now.
    pub(in crate::cluster) taken: u64,
    /// The envelope without the data, for a repeated event that is no longer the last.
    pub(in crate::cluster) plain: Option<&'a EnvelopeParts>,
}

impl CacheArgs<'_> {
    /// With the keys `vcl` of the channel.
    pub(in crate::cluster) fn call(&self, keys: &[String]) -> ScriptCall {
        let EventArgs { topic, parts: EnvelopeParts { head, mac, rest }, lasts, room } =
            &self.event;
        let mut call = Script::Cache.call(keys);
        call.arg(topic).arg(head).arg(mac).arg(rest).arg(self.ttl).arg(self.most);
        call.arg(u8::from(self.again)).arg(self.taken).arg(*room).arg(lasts.abs());
        if let Some(EnvelopeParts { head, mac, rest }) = self.plain {
            call.arg(head).arg(mac).arg(rest);
        }
        call
    }
}

/// The outcome for an event of a cache channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) struct CacheReply {
    /// The version that it has, 0 if it was not taken.
    pub(in crate::cluster) version: u64,
    /// Entries that were cut off its log for want of room.
    pub(in crate::cluster) cut: u64,
}

impl CacheReply {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &Value) -> Option<Self> {
        let [version, cut] = reply::as_list(value) else { return None };
        Some(Self { version: reply::as_number(version)?, cut: reply::as_number(cut)? })
    }
}

/// Deletes the cached event with this id (`Envelope::id_bytes`), with the channel's key `c`. Answers how many.
pub(in crate::cluster) fn uncache(key: String, id: &[u8]) -> ScriptCall {
    let mut call = Script::Uncache.call(&[key]);
    call.arg(id);
    call
}

/// Reads the cached event, with the keys `cv` of the channel. [`CachedReply`] reads the reply.
pub(in crate::cluster) fn read_cached(keys: &[String]) -> ScriptCall {
    Script::Cached.call(keys)
}

/// The cached event of a channel.
pub(in crate::cluster) struct CachedReply {
    /// The cached event's envelope.
    pub(in crate::cluster) envelope: Bytes,
    /// Milliseconds for which it is cached on.
    pub(in crate::cluster) ttl: u64,
    /// The version of the last event that was sent.
    pub(in crate::cluster) last: u64,
}

impl CachedReply {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &Value) -> Option<Self> {
        let [envelope, ttl, last] = reply::as_list(value) else { return None };
        let envelope = Bytes::copy_from_slice(reply::as_bytes(envelope)?);
        Some(Self { envelope, ttl: reply::as_number(ttl)?, last: reply::as_number(last)? })
    }
}

/// Reads what a log has after a place, by Redis's clock; with the keys `l` and `lt`. [`MissedEntries`] reads the reply.
pub(in crate::cluster) fn read_missed(keys: &[String], after: u64, most: usize) -> ScriptCall {
    let mut call = Script::Missed.call(keys);
    call.arg(after).arg(most);
    call
}

/// The entries of a log after a place.
#[derive(PartialEq, Eq, Debug)]
pub(in crate::cluster) struct MissedEntries {
    /// The place that the log ends at.
    pub(in crate::cluster) last: u64,
    /// Whether entries before these were cut off.
    pub(in crate::cluster) reaches: LogCoverage,
    /// Envelopes, the oldest first.
    pub(in crate::cluster) entries: Vec<Bytes>,
}

/// Whether a log has every entry after a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) enum LogCoverage {
    /// The place itself, or one before it, is in the log.
    Back,
    /// Nothing was ever cut off, so it has everything unless it has expired since.
    Begin,
    /// Entries are missing.
    Short,
}

impl MissedEntries {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &Value) -> Option<Self> {
        let [last, reaches, entries] = reply::as_list(value) else { return None };
        let reaches = match reply::as_number(reaches)? {
            2 => LogCoverage::Back,
            1 => LogCoverage::Begin,
            _ => LogCoverage::Short,
        };
        let entries = reply::as_list(entries).iter().filter_map(reply::as_bytes);
        let entries = entries.map(Bytes::copy_from_slice).collect();
        // An empty log has no last entry.
        Some(Self { last: reply::as_number(last).unwrap_or_default(), reaches, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn event(topic: &str, lasts: i64) -> EventArgs {
        let parts = EnvelopeParts { head: b"h".into(), mac: b"m".into(), rest: b"r".into() };
        EventArgs { topic: topic.to_owned(), parts, lasts, room: 5 }
    }

    #[test]
    fn each_event_has_six_arguments_behind_the_first() {
        let call = publish(&["l1".into(), "l2".into()], 9, &[event("a", 70), event("b", -70)]);
        let sent = arguments(&call);
        assert_eq!(sent, ["9", "a", "h", "m", "r", "70", "5", "b", "h", "m", "r", "-70", "5"]);
        assert!(PUBLISH.contains("at + 6") && AGAIN.contains("ARGV[3]"), "head is the third");
        assert_eq!(arguments(&publish_again("l".into(), 9, event("a", 70)))[2], "h");
    }

    #[test]
    fn a_cached_event_has_its_plain_form_behind_ten_arguments() {
        let (event, plain) = (event("t", -70), event("t", 1).parts);
        let args =
            CacheArgs { event, ttl: 1000, most: 9, again: true, taken: 42, plain: Some(&plain) };
        let sent = arguments(&args.call(&[]));
        let all = ["t", "h", "m", "r", "1000", "9", "1", "42", "5", "70", "h", "m", "r"];
        assert_eq!(sent, all);
        let args = CacheArgs { taken: 0, plain: None, ..args };
        assert_eq!(arguments(&args.call(&[])).len(), 10);
    }

    #[test]
    fn replies_about_cached_events_are_whole_or_none() {
        let pair = |a: Value, b: Value| Value::Array(vec![a, b]);
        let read = CacheReply::parse(&pair(Value::Int(7), Value::Int(2)));
        assert_eq!(read, Some(CacheReply { version: 7, cut: 2 }));
        assert_eq!(CacheReply::parse(&pair(Value::Int(7), Value::Nil)), None);
        let cached = Value::Array(vec![text("envelope"), Value::Int(-1), text("5")]);
        assert!(CachedReply::parse(&cached).is_none(), "it is about to expire, or never does");
        let cached = Value::Array(vec![text("envelope"), Value::Int(30), text("5")]);
        let cached = CachedReply::parse(&cached).unwrap();
        assert_eq!((&*cached.envelope, cached.ttl, cached.last), (&b"envelope"[..], 30, 5));
    }

    #[test]
    fn a_log_is_read_with_how_far_it_reaches_back() {
        let reply = |reaches: i64| {
            let entries = Value::Array(vec![text("e1"), Value::Nil, text("e2")]);
            MissedEntries::parse(&Value::Array(vec![text("5"), Value::Int(reaches), entries]))
        };
        let covers = [(2, LogCoverage::Back), (1, LogCoverage::Begin), (0, LogCoverage::Short)];
        for (number, coverage) in covers {
            let missed = reply(number).unwrap();
            assert_eq!((missed.reaches, missed.entries.len()), (coverage, 2));
        }
        assert!(reply(-1).is_none());
        assert!(MissedEntries::parse(&Value::Array(vec![text("5")])).is_none());
    }
}
