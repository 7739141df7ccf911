//! Presence channels: joining, leaving, clearing what a lapsed lease held, and reading the members. `scripts/mod.rs`
//! has the layout of the keys.

use redis::Value;

use super::{Script, ScriptCall};
use crate::cluster::envelope::DIGITS;
use crate::cluster::reply;
use crate::cluster::roster::LoadedRoster;
use crate::cluster::seal::EnvelopeParts;
use crate::protocol::member::{Member, UserId};

/// How the node's other leases hold a user.
pub(super) const REFS: &str = r"
local function refs(user)
  local all = {}
  for i = 1, #others do all[i] = others[i] .. ' ' .. user end
  return all
end
";

/// KEYS v m r k 0; ARGV user info max topic head mac rest place name; fenced. Answers the version from which on the user is
/// present, or nothing if there is no room. `name` is that of the channel in the list of what the lease holds.
pub(super) const JOIN: &str = r"
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
pub(super) const LEAVE: &str = r"
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
pub(super) const CLEAR: &str = r"
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
pub(super) const LOAD: &str = r"
return {next_version(KEYS[1]), redis.call('HGETALL', KEYS[2])}
";

/// A user's first connection on a node joins.
pub(in crate::cluster) struct JoinArgs<'a> {
    pub(in crate::cluster) member: &'a Member,
    /// Most users of the channel.
    pub(in crate::cluster) max: usize,
    pub(in crate::cluster) topic: &'a str,
    /// The envelope that tells other nodes, around its version.
    pub(in crate::cluster) parts: &'a EnvelopeParts,
    /// The version of an earlier join, by Redis's clock; 0: a new one.
    pub(in crate::cluster) place: u64,
    /// The channel in the list of what the lease holds.
    pub(in crate::cluster) held_key: String,
}

impl JoinArgs<'_> {
    /// With the keys `vmrk0` of the channel.
    pub(in crate::cluster) fn call(&self, keys: &[String]) -> ScriptCall {
        let (Member { user_id, user_info }, EnvelopeParts { head, mac, rest }) =
            (self.member, self.parts);
        let place = match self.place {
            0 => String::new(),
            place => format!("{place:0DIGITS$}"),
        };
        let mut call = Script::Join.call(keys);
        call.arg(user_id.as_str()).arg(&**user_info).arg(self.max).arg(self.topic);
        call.arg(head).arg(mac).arg(rest).arg(place).arg(&self.held_key);
        call
    }
}

/// The outcome of a join.
#[derive(PartialEq, Eq, Debug)]
pub(in crate::cluster) enum JoinReply {
    /// The user is a member from this version on.
    Joined(u64),
    /// The channel has as many users as it may.
    Full,
}

impl JoinReply {
    /// Reads a reply; `None` if it has another shape.
    pub(in crate::cluster) fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Nil => Some(Self::Full),
            value => reply::as_number(value).map(Self::Joined),
        }
    }
}

/// A user's last connection on a node leaves; with the keys `vmrk0` of the channel. Answers 1.
pub(in crate::cluster) fn leave(
    keys: &[String],
    user: &UserId,
    topic: &str,
    parts: &EnvelopeParts,
) -> ScriptCall {
    let mut call = Script::Leave.call(keys);
    call.arg(user.as_str()).arg(topic).arg(&parts.head).arg(&parts.mac);
    call
}

/// Removes all members under an expired lease; with the keys `vmrk0` of the channel. Answers 1.
pub(in crate::cluster) fn clear(
    keys: &[String],
    lease: &str,
    topic: &str,
    parts: &EnvelopeParts,
) -> ScriptCall {
    let mut call = Script::Clear.call(keys);
    call.arg(lease).arg(topic).arg(&parts.head).arg(&parts.mac);
    call
}

/// Reads the members; with the keys `vm` of the channel. [`read_roster`] reads the reply.
pub(in crate::cluster) fn load(keys: &[String]) -> ScriptCall {
    Script::Load.call(keys)
}

/// A channel's members: user → version of joining and info.
pub(in crate::cluster) fn read_members(value: &Value) -> Vec<(u64, Member)> {
    let member = |(user, member): (&Value, &Value)| {
        let user_id = UserId::parse(reply::as_text(user)?)?;
        let (version, info) = reply::as_text(member)?.split_at_checked(DIGITS)?;
        Some((version.parse().ok()?, Member { user_id, user_info: info.into() }))
    };
    let mut members: Vec<_> = reply::hash_pairs(value).into_iter().filter_map(member).collect();
    members.sort_unstable_by_key(|(version, _)| *version);
    members
}

/// The reply to [`load`].
pub(in crate::cluster) fn read_roster(value: &Value) -> Option<LoadedRoster> {
    match reply::as_list(value) {
        [version, all] => {
            Some(LoadedRoster { version: reply::as_number(version)?, members: read_members(all) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arguments, names_of};
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    /// The script takes its arguments apart by position.
    #[test]
    fn arguments_stand_where_the_script_looks_for_them() {
        let parts = EnvelopeParts { head: b"h".into(), mac: b"m".into(), rest: b"r".into() };
        let member = Member { user_id: UserId::parse("u").unwrap(), user_info: "{}".into() };
        let join = JoinArgs {
            member: &member,
            max: 9,
            topic: "t",
            parts: &parts,
            place: 7,
            held_key: "c".into(),
        };
        let sent = arguments(&join.call(&[]));
        assert_eq!(sent, ["u", "{}", "9", "t", "h", "m", "r", "0000000000000007", "c"]);
        let names = ["user", "info", "max", "topic", "head", "mac", "rest", "place", "name"];
        assert_eq!(names_of(JOIN), names);
        let user = &member.user_id;
        assert_eq!(arguments(&leave(&[], user, "t", &parts)), ["u", "t", "h", "m"]);
        assert_eq!(arguments(&clear(&[], "lease", "t", &parts)), ["lease", "t", "h", "m"]);
        let again = JoinArgs { place: 0, ..join };
        assert_eq!(arguments(&again.call(&[]))[7], "", "Redis gives the version");
    }

    #[test]
    fn a_full_channel_is_no_error_but_a_strange_reply_is() {
        assert_eq!(JoinReply::parse(&text("12")), Some(JoinReply::Joined(12)));
        assert_eq!(JoinReply::parse(&Value::Nil), Some(JoinReply::Full));
        assert_eq!(JoinReply::parse(&Value::Okay), None);
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
}
