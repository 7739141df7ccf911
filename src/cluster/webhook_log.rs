//! What a node says for webhooks, and what it keeps of that. Of each app there is a log in Redis, to which all nodes
//! add, and one node that reads it and tells backends. Whether a channel is occupied or a user is a member is
//! decided where the log is, in one step with the entry about it: each node says what it holds, once, and
//! the first hold and the last end of one over all nodes are news. To hold twice under one lease changes
//! nothing, so that all of it can be said again after a lost link.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// Entries that an app's log holds before those are left out that no later one depends on.
pub(super) const MOST_LOGGED: usize = 100_000;

/// What happened to an app while Redis was away, and waits; the newest are left out.
const MOST_WAITING: usize = 10_000;

/// What may be said again is remembered for as long; of what happened, so many.
const RECENT: Duration = Duration::from_secs(10);
const MOST_RECENT: usize = 1000;

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
local before, said, logged = KEYS[6] .. ARGV[6], nil, false
if held ~= nil then redis.call('SADD', held, ARGV[4]) end
redis.call('SET', KEYS[4], ARGV[2], 'NX')
local marker = redis.call('GET', KEYS[4])
local lost = ARGV[1] ~= '' and ARGV[1] ~= marker
local dropped = 0
local function refused(answer) return type(answer) == 'table' and answer.err end
for i = 7, #ARGV - 3, 2 do
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
  elseif sign == '-' then
    if redis.call('SISMEMBER', h, text) == 1 then
      local held_by = redis.call('HINCRBY', o, text, -1)
      local answer = redis.pcall('SREM', h, text)
      if not refused(answer) and held_by <= 0 then
        answer = log(w, most, '-' .. text)
        logged = true
        if refused(answer) then redis.call('SADD', h, text)
        else redis.call('HDEL', o, text) end
      end
      if refused(answer) then redis.call('HINCRBY', o, text, 1) return answer end
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
if held ~= nil and not is_held(owner) then told = 0 end
return {marker, dropped, told}
";

/// Whether the node that has the office, if any, lives; for fenced scripts. One without a lease is of a version before,
/// whose office ends by itself.
pub(super) const OFFICE: &str = r"
local function is_held(owner)
  if not owner then return false end
  local of = string.match(owner, '^%x+ (%x+)')
  if not of then return true end
  if fence == nil then return true end
  local state = redis.call('HMGET', fence, of, 'x' .. of)
  return (state[1] or state[2]) and true or false
end
";

/// KEYS b w; ARGV node wish topic name from most, then entries that are done with; fenced. Takes or keeps the office of
/// telling what is in the log; with the wish `z` it is to be woken if there is nothing, with `0` it gives the office
/// up and wakes all. Answers 2 if this node had it all along, 1 if it has it anew, else 0; how long the log is; the
/// entries from a place on; and the time in milliseconds.
pub(super) const READ: &str = r"
local b, w, me, wish = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
for i = 7, #ARGV - 3 do redis.call('XDEL', w, ARGV[i]) end
local owner = redis.call('GET', b)
local mine = owner and string.match(owner, '^%x+') == me
local length = redis.call('XLEN', w)
if wish == '0' then
  if mine then
    redis.call('DEL', b)
    redis.call('SPUBLISH', ARGV[3], 'g')
  end
  return {0, length, {}, '0'}
end
if not mine and is_held(owner) then return {0, length, {}, '0'} end
local now = string.format('%.0f', math.floor(now_us() / 1000))
local next, entries = me .. ' ' .. lease, {}
if length > 0 then entries = redis.call('XRANGE', w, ARGV[5], '+', 'COUNT', ARGV[6])
elseif wish == 'z' then next = next .. ' z' end
if next ~= owner then redis.call('SET', b, next) end
if not mine then redis.call('SADD', held, ARGV[4]) end
return {mine and 2 or 1, length, entries, now}
";

/// Which comings and goings an app's webhooks ask for.
#[derive(Clone, Copy, Default, Debug)]
pub struct WebhookInterest {
    pub channels: bool,
    pub members: bool,
}

/// What a node has to say.
#[derive(Debug)]
pub enum LogRequest {
    /// These are all apps with webhooks that the node knows of, and whether they ask for counts.
    Apps(Vec<(AppId, bool)>),
    /// A channel, or a user in it, is here from now on, or is no longer.
    Held { app: AppId, channel: ChannelName, user: Option<UserId>, is: bool },
    /// Something happened; what it is, the log does not know.
    Happened { app: AppId, text: String },
    /// An entry of the log is done with.
    Done { app: AppId, id: Box<str> },
}

/// What comes of it.
#[derive(Debug)]
pub enum LogBatch {
    /// Entries of an app's log, which this node is to tell backends of.
    Entries { app: AppId, entries: Vec<LogEntry> },
    /// This node surely tells them until then, and has read all that was logged up to a time of Redis, in
    /// milliseconds.
    Held { app: AppId, until: Instant, read_up_to: u64 },
    /// Another node may do that from now on.
    Lost(AppId),
}

/// One entry, by its place in the log.
#[derive(Debug)]
pub struct LogEntry {
    pub id: Box<str>,
    pub text: String,
}

/// What stands for a channel, or for a user in one, among what nodes hold.
fn name_of(channel: &ChannelName, user: Option<&UserId>) -> String {
    match user {
        None => format!("c{channel}"),
        // No channel's name has a line's end.
        Some(user) => format!("m{channel}\n{}", user.as_str()),
    }
}

/// Reads a text of the log that says what is held or is not: whether it is, the channel, and the user.
pub fn held(text: &str) -> Option<(bool, ChannelName, Option<UserId>)> {
    let (sign, name) = text.split_at_checked(1)?;
    let (kind, name) = name.split_at_checked(1)?;
    let is = match sign {
        "+" => true,
        "-" => false,
        _ => return None,
    };
    let (channel, user) = match kind {
        "c" => (name, None),
        "m" => {
            let (channel, user) = name.split_once('\n')?;
            (channel, Some(UserId::parse(user)?))
        }
        _ => return None,
    };
    Some((is, ChannelName::parse(channel, usize::MAX).ok()?, user))
}

/// What a node has to say of all apps, and where it is in their logs.
#[derive(Debug, Default)]
pub(super) struct WebhookLog {
    pub(super) apps: HashMap<AppId, AppLog>,
    /// Apps that nothing is left of, whose topics are subscribed to still.
    pub(super) forgotten: Vec<AppId>,
    /// All that is held has been said over this link.
    up: bool,
}

/// Of one app.
#[derive(Debug, Default)]
pub(super) struct AppLog {
    /// The node knows of webhooks of the app, and they ask for counts.
    pub(super) known: bool,
    pub(super) counts: bool,
    /// Shows whether Redis has what was said to it.
    pub(super) marker: String,
    /// What is held here, and whether Redis was told so.
    held: HashMap<String, bool>,
    /// What is to be said, in order.
    pub(super) queue: VecDeque<Word>,
    /// The number of the last that happened.
    number: u64,
    /// What happened and is in Redis, since when.
    recent: VecDeque<(Instant, Word)>,
    /// Entries that are done with.
    pub(super) done: Vec<Box<str>>,
    /// This node tells what is in the log.
    pub(super) owned: bool,
    /// It is subscribed to what wakes it; it is to be woken, and is.
    pub(super) listening: bool,
    pub(super) asleep: bool,
    pub(super) woken: bool,
    /// The last entry that was read.
    pub(super) read: Option<Box<str>>,
    /// When the log was looked at last, and when there was something to do.
    pub(super) looked: Option<Instant>,
    pub(super) busy: Option<Instant>,
    /// Entries of the log.
    pub(super) backlog: u64,
}

/// One thing to say: a sign and a text, and of what happened its number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub(super) sign: char,
    pub(super) text: String,
    pub(super) number: u64,
}

impl Word {
    fn new(sign: char, text: String) -> Self {
        Self { sign, text, number: 0 }
    }

    /// The sign as the script is told it.
    pub(super) fn signed(&self) -> String {
        match self.sign {
            '!' => format!("!{}", self.number),
            sign => sign.to_string(),
        }
    }
}

impl WebhookLog {
    /// Takes what is to be said. Whether there was room for it.
    pub(super) fn take(&mut self, news: LogRequest) -> bool {
        match news {
            LogRequest::Apps(apps) => {
                self.apps.values_mut().for_each(|of| (of.known, of.counts) = (false, false));
                for (app, counts) in apps {
                    let of = self.apps.entry(app).or_default();
                    (of.known, of.counts) = (true, counts);
                }
            }
            LogRequest::Held { app, channel, user, is } => {
                let up = self.up;
                self.apps.entry(app).or_default().hold(name_of(&channel, user.as_ref()), is, up);
            }
            LogRequest::Happened { app, text } => {
                return self.apps.entry(app).or_default().happen(text);
            }
            LogRequest::Done { app, id } => {
                if let Some(of) = self.apps.get_mut(&app) {
                    of.done.push(id);
                }
            }
        }
        true
    }

    /// The link is lost: what is held from now on is said with everything else.
    pub(super) fn cut(&mut self) {
        self.up = false;
        for of in self.apps.values_mut() {
            (of.listening, of.asleep) = (false, false);
        }
    }

    /// What happened within the last seconds before the link was lost may be lost; what is not is known by its number.
    pub(super) fn say_recent_again(&mut self) {
        for of in self.apps.values_mut() {
            let recent = std::mem::take(&mut of.recent);
            let Some((last, _)) = recent.back() else { continue };
            let last = *last;
            let young = recent.into_iter().filter(|(at, _)| last - *at < RECENT);
            young.rev().for_each(|(_, word)| of.queue.push_front(word));
        }
    }

    /// The topic of an app says that there is something to tell, or with `anew` that nobody tells it.
    pub(super) fn wake(&mut self, app: &str, anew: bool) {
        if let Some(of) = self.apps.get_mut(&AppId::new(app)) {
            of.woken |= of.owned || anew;
        }
    }

    /// Everything is to be said again.
    pub(super) fn say_again(&mut self) {
        self.up = true;
        for of in self.apps.values_mut() {
            of.queue.retain(|word| word.sign == '!');
            let again = |(name, told): (&String, &bool)| {
                Word::new(if *told { '=' } else { '+' }, name.clone())
            };
            let mut all: Vec<_> = of.held.iter().map(again).collect();
            // Channels before their members.
            all.sort_unstable_by(|one, other| one.text.cmp(&other.text));
            all.into_iter().rev().for_each(|one| of.queue.push_front(one));
            of.looked = None;
        }
    }

    /// Forgets an app that nothing is left of.
    pub(super) fn forget_if_done(&mut self, app: &AppId) {
        if self.apps.get(app).is_some_and(AppLog::is_over) {
            self.apps.remove(app);
            self.forgotten.push(app.clone());
        }
    }
}

impl AppLog {
    fn hold(&mut self, name: String, is: bool, up: bool) {
        let changed = if is {
            !self.held.contains_key(&name) && self.held.insert(name.clone(), false).is_none()
        } else {
            self.held.remove(&name).is_some()
        };
        if changed && up {
            self.queue.push_back(Word::new(if is { '+' } else { '-' }, name));
        }
    }

    fn happen(&mut self, text: String) -> bool {
        // A crowd that misses the same says so once.
        let mut last = self.queue.iter().rev().take(64);
        if text.starts_with('X') && last.any(|word| word.text == text) {
            return true;
        }
        let room = self.queue.len() < MOST_WAITING;
        if room {
            self.number += 1;
            self.queue.push_back(Word { sign: '!', text, number: self.number });
        }
        room
    }

    /// The first `count` of the queue are in Redis.
    pub(super) fn said(&mut self, count: usize) {
        let now = Instant::now();
        for word in self.queue.drain(..count.min(self.queue.len())) {
            if word.sign == '!' {
                self.recent.push_back((now, word));
            } else if let Some(told) = self.held.get_mut(&word.text) {
                *told = true;
            }
        }
        while self.recent.front().is_some_and(|(at, _)| now - *at >= RECENT)
            || self.recent.len() > MOST_RECENT
        {
            self.recent.pop_front();
        }
    }

    /// Nothing is left to be said or told, and nobody here has webhooks for it.
    pub(super) fn is_over(&self) -> bool {
        let idle = self.held.is_empty() && self.queue.is_empty() && self.done.is_empty();
        !self.known && idle && (!self.owned || self.backlog == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(board: &mut WebhookLog, user: &str, is: bool) {
        let channel = ChannelName::parse("presence-a", 200).unwrap();
        board.take(LogRequest::Held {
            app: AppId::new("1"),
            channel,
            user: UserId::parse(user),
            is,
        });
    }

    fn queued(board: &WebhookLog) -> String {
        let queue = &board.apps[&AppId::new("1")].queue;
        queue
            .iter()
            .map(|word| format!("{}{} ", word.signed(), word.text.replace('\n', "/")))
            .collect()
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let channel = ChannelName::parse("presence-a", 200).unwrap();
        let user = UserId::parse("7\n\"x").unwrap();
        let text = format!("-{}", name_of(&channel, Some(&user)));
        assert_eq!(held(&text), Some((false, channel.clone(), Some(user))));
        assert_eq!(held(&format!("+{}", name_of(&channel, None))), Some((true, channel, None)));
        for other in ["", "+", "+x", "+c#y", "!cx", "+mx", "Xcache-a"] {
            assert_eq!(held(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_said_before_is_told_from_what_is_new() {
        let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
        board.say_again();
        hold(&mut board, "1", true);
        hold(&mut board, "1", true);
        hold(&mut board, "2", true);
        assert_eq!(queued(&board), "+mpresence-a/1 +mpresence-a/2 ");
        board.apps.get_mut(&app).unwrap().said(1);
        board.cut();
        hold(&mut board, "3", true);
        hold(&mut board, "4", true);
        hold(&mut board, "4", false);
        board.take(LogRequest::Happened { app: app.clone(), text: "x".to_owned() });
        board.say_again();
        let all = "=mpresence-a/1 +mpresence-a/2 +mpresence-a/3 !1x ";
        assert_eq!(queued(&board), all);
        board.say_again();
        assert_eq!(queued(&board), all);
        hold(&mut board, "9", false);
        assert_eq!(queued(&board), all, "it was never held");
    }

    #[test]
    fn what_happened_last_is_said_again_with_its_number() {
        let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
        for text in ["x", "y", "z"] {
            board.take(LogRequest::Happened { app: app.clone(), text: text.to_owned() });
        }
        board.apps.get_mut(&app).unwrap().said(2);
        assert_eq!(queued(&board), "!3z ");
        board.say_recent_again();
        assert_eq!(queued(&board), "!1x !2y !3z ");
        board.apps.get_mut(&app).unwrap().said(3);
        board.say_recent_again();
        board.say_recent_again();
        assert_eq!(queued(&board), "!1x !2y !3z ");
    }

    #[test]
    fn an_app_without_anything_is_forgotten() {
        let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
        board.say_again();
        board.take(LogRequest::Apps(vec![(app.clone(), true)]));
        hold(&mut board, "1", true);
        board.take(LogRequest::Apps(Vec::new()));
        hold(&mut board, "1", false);
        board.forget_if_done(&app);
        assert_eq!(board.apps.len(), 1, "Redis is to be told");
        board.apps.get_mut(&app).unwrap().said(2);
        board.forget_if_done(&app);
        assert!(board.apps.is_empty());
    }
}
