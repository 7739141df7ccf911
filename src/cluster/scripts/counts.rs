//! Counts of subscribers and connections. `scripts/mod.rs` has the layout of the keys.

use redis::Value;

use super::{Script, ScriptCall};
use crate::app::AppId;
use crate::cluster::reply;
use crate::cluster::topics::CountInterest;

/// KEYS t n v w b, where `n` lacks the lease; ARGV name, how long the webhooks' log may be, 0 if they do not ask for
/// counts, their topic, then for each channel its name, the
/// subscriptions on this lease, and `1` if subscribers want to know of a change, `2` in any case, `3` those here in
/// any case; fenced. Holds of the node's other leases go over to this one. A count that subscribers everywhere
/// are told is logged for webhooks in the same step. Answers each sum, with its version where they want it, a `-` in
/// front where only those here do. The asking node tells them, for the channels may be kept by other servers.
pub(super) const COUNT: &str = r"
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

/// Counts of some channels of an app on this node.
pub(in crate::cluster) struct CountArgs<'a> {
    /// The app whose channels are counted.
    pub(in crate::cluster) app: &'a AppId,
    /// How long the app's webhook log may be; 0: no webhook asks for counts.
    pub(in crate::cluster) most_logged: usize,
    /// The topic that wakes the reader of that log.
    pub(in crate::cluster) wakeup_topic: String,
    /// A lease that no longer holds, whose counts these are; else they are this node's.
    pub(in crate::cluster) cleared: Option<&'a str>,
}

impl CountArgs<'_> {
    /// With the keys `t n v w b` of the app. Channels have their names, connections the empty one.
    pub(in crate::cluster) fn call<'a>(
        self,
        keys: &[String],
        counts: impl Iterator<Item = (&'a str, usize, CountInterest)>,
    ) -> ScriptCall {
        let script = self.cleared.map_or(Script::Count, |_| Script::Uncount);
        let mut call = script.call(keys);
        call.arg(format!("a{}", self.app)).arg(self.most_logged).arg(self.wakeup_topic);
        for (channel, count, interest) in counts {
            call.arg(channel).arg(count).arg(interest as u8);
        }
        if let Some(lease) = self.cleared {
            call.add_cleared_lease(lease);
        }
        call
    }
}

/// The total of one channel over all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) struct CountTotal {
    /// Subscriptions on all nodes.
    pub(in crate::cluster) total: usize,
    /// Which subscribers are told.
    pub(in crate::cluster) audience: CountAudience,
}

/// The subscribers that get a total, with its version by Redis's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cluster) enum CountAudience {
    /// None: the total has not changed, or nobody asked.
    Nobody,
    /// Only subscribers of this node: the others have it.
    Here(u64),
    /// Subscribers on all nodes, with the total's version.
    Everybody(u64),
}

impl CountTotal {
    /// In the order in which the channels were sent.
    pub(in crate::cluster) fn parse_all(value: &Value) -> impl Iterator<Item = Option<Self>> {
        reply::as_list(value).chunks(2).map(|pair| {
            let [total, version] = pair else { return None };
            // Without a version nobody wants to know the count.
            let text = reply::as_text(version).unwrap_or_default();
            let audience = match text.strip_prefix('-') {
                Some(version) => version.parse().map(CountAudience::Here),
                None => text.parse().map(CountAudience::Everybody),
            };
            let audience = audience.unwrap_or(CountAudience::Nobody);
            // A sum that Redis does not have is one of nothing.
            Some(Self { total: reply::as_number(total).unwrap_or_default() as usize, audience })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    #[test]
    fn channels_stand_between_three_arguments_and_the_lease() {
        let app = AppId::new("app");
        let args =
            |cleared| CountArgs { app: &app, most_logged: 5, wakeup_topic: "t".into(), cleared };
        let counts = || [("a", 3, CountInterest::No), ("", 4, CountInterest::No)].into_iter();
        let own = ["aapp", "5", "t", "a", "3", "0", "", "4", "0"];
        assert_eq!(arguments(&args(None).call(&[], counts())), own);
        let cleared = args(Some("lease")).call(&[], counts());
        assert_eq!(cleared.script, Script::Uncount);
        assert_eq!(arguments(&cleared)[own.len()..], ["", "lease", "", ""]);
    }

    #[test]
    fn a_total_says_who_gets_it() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let reply = Value::Array(vec![
            Value::Int(3),
            text(""),
            Value::Int(4),
            text("12"),
            Value::Int(5),
            text("-13"),
            Value::Int(-1),
            text(""),
            Value::Int(9),
        ]);
        let read: Vec<_> = CountTotal::parse_all(&reply)
            .map(|one| one.map(|CountTotal { total, audience }| (total, audience)))
            .collect();
        let all = [
            Some((3, CountAudience::Nobody)),
            Some((4, CountAudience::Everybody(12))),
            Some((5, CountAudience::Here(13))),
            Some((0, CountAudience::Nobody)),
            None,
        ];
        assert_eq!(read, all);
    }
}
