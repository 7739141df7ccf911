//! What a node says for webhooks, and what it keeps of that. Of each app there is a log in Redis, to which all nodes
//! add, and one node that reads it and tells backends. Whether a channel is occupied or a user is a member is
//! decided where the log is, in one step with the entry about it: each node says what it holds, once, and
//! the first hold and the last end of one over all nodes are news. To hold twice under one lease changes
//! nothing, so that all of it can be said again after a lost link.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::app::AppId;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// Entries that an app's log holds before those are left out that no later one depends on.
pub(super) const MOST_LOGGED: usize = 100_000;

/// What happened to an app while Redis was away, and waits; the newest are left out.
const MOST_WAITING: usize = 10_000;

/// KEYS o h w e, where `h` lacks the lease; ARGV marker new most name, then of each a sign and a text; fenced. `+` is held from now on, `=` was held
/// before and is said again, `-` is held no longer, `!` happened. Where Redis has lost what it had, which the
/// marker shows, what is said again is no news. Answers the marker, and how many did not fit.
pub(super) const SAY: &str = r"
local o, h, w, most = KEYS[1], KEYS[2] .. lease, KEYS[3], tonumber(ARGV[3])
if held ~= nil then redis.call('SADD', held, ARGV[4]) end
redis.call('SET', KEYS[4], ARGV[2], 'NX')
local marker = redis.call('GET', KEYS[4])
local lost = ARGV[1] ~= '' and ARGV[1] ~= marker
local dropped = 0
local function log(text) return redis.pcall('XADD', w, 'MAXLEN', '~', most * 2, '*', 'f', text) end
local function refused(answer) return type(answer) == 'table' and answer.err end
for i = 5, #ARGV - 3, 2 do
  local sign, text = ARGV[i], ARGV[i + 1]
  if sign == '+' or sign == '=' then
    if redis.call('SISMEMBER', h, text) == 0 then
      -- What is refused for a right that is missing must not stand half done.
      local held_by = redis.call('HINCRBY', o, text, 1)
      local answer = redis.pcall('SADD', h, text)
      if not refused(answer) and held_by == 1 and not (lost and sign == '=') then
        answer = log('+' .. text)
        if refused(answer) then redis.call('SREM', h, text) end
      end
      if refused(answer) then redis.call('HINCRBY', o, text, -1) return answer end
    end
  elseif sign == '-' then
    if redis.call('SISMEMBER', h, text) == 1 then
      local held_by = redis.call('HINCRBY', o, text, -1)
      local answer = redis.pcall('SREM', h, text)
      if not refused(answer) and held_by <= 0 then
        answer = log('-' .. text)
        if refused(answer) then redis.call('SADD', h, text)
        else redis.call('HDEL', o, text) end
      end
      if refused(answer) then redis.call('HINCRBY', o, text, 1) return answer end
    end
  elseif redis.call('XLEN', w) < most then
    local answer = log(text)
    if refused(answer) then return answer end
  else dropped = dropped + 1 end
end
return {marker, dropped}
";

/// KEYS b w; ARGV node milliseconds from most, then entries that are done with. Takes or renews the office of
/// telling what is in the log, or with 0 milliseconds gives it up. Answers 2 if this node had it all along, 1 if it has
/// it anew, else 0; how long the log is; the entries from a place on; and the time in milliseconds.
pub(super) const READ: &str = r"
local b, w, me, lasts = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
for i = 5, #ARGV do redis.call('XDEL', w, ARGV[i]) end
local owner = redis.call('GET', b)
if lasts == '0' then
  if owner == me then redis.call('DEL', b) end
  owner = ''
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if owner and owner ~= me then return {0, redis.call('XLEN', w), {}, now} end
redis.call('SET', b, me, 'PX', lasts)
local entries = redis.call('XRANGE', w, ARGV[3], '+', 'COUNT', ARGV[4])
return {owner == me and 2 or 1, redis.call('XLEN', w), entries, now}
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
    /// These are all apps with webhooks that the node knows of.
    Apps(Vec<AppId>),
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
    /// All that is held has been said over this link.
    up: bool,
}

/// Of one app.
#[derive(Debug, Default)]
pub(super) struct AppLog {
    /// The node knows of webhooks of the app.
    pub(super) known: bool,
    /// Shows whether Redis has what was said to it.
    pub(super) marker: String,
    /// What is held here, and whether Redis was told so.
    held: HashMap<String, bool>,
    /// What is to be said, in order.
    pub(super) queue: VecDeque<(char, String)>,
    /// Entries that are done with.
    pub(super) done: Vec<Box<str>>,
    /// This node tells what is in the log.
    pub(super) owned: bool,
    /// The last entry that was read.
    pub(super) read: Option<Box<str>>,
    /// When the log was looked at last, and when there was something to do.
    pub(super) looked: Option<Instant>,
    pub(super) busy: Option<Instant>,
    /// Entries of the log.
    pub(super) backlog: u64,
}

impl WebhookLog {
    /// Takes what is to be said. Whether there was room for it.
    pub(super) fn take(&mut self, news: LogRequest) -> bool {
        match news {
            LogRequest::Apps(apps) => {
                self.apps.values_mut().for_each(|of| of.known = false);
                apps.into_iter().for_each(|app| self.apps.entry(app).or_default().known = true);
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
    }

    /// Everything is to be said again.
    pub(super) fn say_again(&mut self) {
        self.up = true;
        for of in self.apps.values_mut() {
            of.queue.retain(|(sign, _)| *sign == '!');
            let again =
                |(name, told): (&String, &bool)| (if *told { '=' } else { '+' }, name.clone());
            let mut all: Vec<_> = of.held.iter().map(again).collect();
            // Channels before their members.
            all.sort_unstable_by(|one, other| one.1.cmp(&other.1));
            all.into_iter().rev().for_each(|one| of.queue.push_front(one));
            of.looked = None;
        }
    }

    /// Forgets an app that nothing is left of.
    pub(super) fn forget_if_done(&mut self, app: &AppId) {
        if self.apps.get(app).is_some_and(AppLog::is_over) {
            self.apps.remove(app);
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
            self.queue.push_back((if is { '+' } else { '-' }, name));
        }
    }

    fn happen(&mut self, text: String) -> bool {
        // A crowd that misses the same says so once.
        if text.starts_with('X') && self.queue.iter().rev().take(64).any(|(_, one)| *one == text) {
            return true;
        }
        let room = self.queue.len() < MOST_WAITING;
        if room {
            self.queue.push_back(('!', text));
        }
        room
    }

    /// The first `count` of the queue are in Redis.
    pub(super) fn said(&mut self, count: usize) {
        for (sign, name) in self.queue.drain(..count.min(self.queue.len())) {
            if let Some(told) = self.held.get_mut(&name).filter(|_| sign != '!') {
                *told = true;
            }
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
        queue.iter().map(|(sign, name)| format!("{sign}{} ", name.replace('\n', "/"))).collect()
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
        let all = "=mpresence-a/1 +mpresence-a/2 +mpresence-a/3 !x ";
        assert_eq!(queued(&board), all);
        board.say_again();
        assert_eq!(queued(&board), all);
        hold(&mut board, "9", false);
        assert_eq!(queued(&board), all, "it was never held");
    }

    #[test]
    fn an_app_without_anything_is_forgotten() {
        let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
        board.say_again();
        board.take(LogRequest::Apps(vec![app.clone()]));
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
