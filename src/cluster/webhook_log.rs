//! What a node says for webhooks, and what it keeps of that. Of each app there is a log in Redis, to which all nodes
//! add, and one node that reads it and tells backends. Whether a channel is occupied or a user is a member is
//! decided where the log is, in one step with the entry about it: each node says what it holds, once, and
//! the first hold and the last end of one over all nodes are news. To hold twice under one lease changes
//! nothing, so that all of it can be said again after a lost link.

use std::collections::{BTreeSet, HashMap, VecDeque};
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
pub fn parse_held(text: &str) -> Option<(bool, ChannelName, Option<UserId>)> {
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
    /// When a link over which it had been was lost.
    lost: Option<Instant>,
}

/// Whether an app has webhooks, and whether they ask for counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum AppHooks {
    #[default]
    None,
    Some,
    Counting,
}

/// Of one app.
#[derive(Debug, Default)]
pub(super) struct AppLog {
    /// What the node knows of webhooks of the app.
    pub(super) hooks: AppHooks,
    /// Shows whether Redis has what was said to it.
    pub(super) marker: String,
    /// What is held here, and whether Redis was told so.
    held: HashMap<String, bool>,
    /// What is to be said, in order.
    pub(super) queue: VecDeque<Word>,
    /// The number of the last that happened.
    number: u64,
    /// What is not in the log any more, since when.
    recent_done: VecDeque<(Instant, Box<str>)>,
    /// What happened and is in Redis, since when.
    recent: VecDeque<(Instant, Word)>,
    /// What was told to be held last, since when.
    recent_held: VecDeque<(Instant, String)>,
    /// What may have been told to backends and then been lost, both that it was held and that it is no longer.
    doubtful: BTreeSet<String>,
    /// Entries that are done with.
    pub(super) done: Vec<Box<str>>,
    /// This node tells what is in the log.
    pub(super) owned: bool,
    /// It is subscribed to what wakes it, and is to be woken.
    pub(super) listening: bool,
    pub(super) asleep: bool,
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
    pub(super) fn take_request(&mut self, news: LogRequest) -> bool {
        match news {
            LogRequest::Apps(apps) => {
                self.apps.values_mut().for_each(|of| of.hooks = AppHooks::None);
                for (app, counts) in apps {
                    let hooks = if counts { AppHooks::Counting } else { AppHooks::Some };
                    self.apps.entry(app).or_default().hooks = hooks;
                }
            }
            LogRequest::Held { app, channel, user, is } => {
                let up = self.up;
                self.apps.entry(app).or_default().note_held(
                    name_of(&channel, user.as_ref()),
                    is,
                    up,
                );
            }
            LogRequest::Happened { app, text } => {
                return self.apps.entry(app).or_default().queue_happening(text);
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
    pub(super) fn note_link_lost(&mut self) {
        if std::mem::take(&mut self.up) {
            self.lost = Some(Instant::now());
        }
        for of in self.apps.values_mut() {
            (of.listening, of.asleep) = (false, false);
        }
    }

    /// What happened within the last seconds before the link was lost may be lost; what is not is known by its number.
    /// So may be what was held in them.
    /// The apps whose logs this node tells: they are read from the beginning, since another server's entries may stand
    /// before the last that was read.
    pub(super) fn say_recent_again(&mut self) -> Vec<AppId> {
        let mut owned = Vec::new();
        let lost = self.lost.unwrap_or_else(Instant::now);
        for (app, of) in &mut self.apps {
            of.read = None;
            let held = of.recent_held.drain(..);
            let held = held.filter(|(at, _)| lost.saturating_duration_since(*at) < RECENT);
            of.doubtful.extend(held.map(|(_, name)| name));
            if of.owned {
                owned.push(app.clone());
            }
            // What was taken out of the log may be in it again, without what came after it.
            of.done.extend(of.recent_done.drain(..).map(|(_, id)| id));
            let recent = std::mem::take(&mut of.recent);
            let Some((last, _)) = recent.back() else { continue };
            let last = *last;
            let young = recent.into_iter().filter(|(at, _)| last - *at < RECENT);
            young.rev().for_each(|(_, word)| of.queue.push_front(word));
        }
        owned
    }

    /// The topic of an app says that there is something to tell, or with `anew` that nobody tells it.
    pub(super) fn wake(&mut self, app: &str, anew: bool) {
        if let Some(of) = self.apps.get_mut(&AppId::new(app))
            && (of.owned || anew)
        {
            of.looked = None;
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
            // Members leave before their channel is empty.
            let ended = || of.doubtful.iter().filter(|name| !of.held.contains_key(*name)).cloned();
            let mut words: Vec<Word> = ended().map(|name| Word::new('+', name)).collect();
            words.extend(ended().rev().map(|name| Word::new('-', name)));
            of.queue.extend(words);
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
    fn note_held(&mut self, name: String, is: bool, up: bool) {
        let changed = if is {
            !self.held.contains_key(&name) && self.held.insert(name.clone(), false).is_none()
        } else {
            self.held.remove(&name).is_some()
        };
        if changed && up {
            self.queue.push_back(Word::new(if is { '+' } else { '-' }, name));
        }
    }

    fn queue_happening(&mut self, text: String) -> bool {
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
    pub(super) fn note_written(&mut self, count: usize) {
        let now = Instant::now();
        for word in self.queue.drain(..count.min(self.queue.len())) {
            if word.sign == '!' {
                self.recent.push_back((now, word));
                continue;
            }
            if let Some(told) = self.held.get_mut(&word.text) {
                *told = true;
            }
            match word.sign {
                '+' => self.recent_held.push_back((now, word.text)),
                _ => drop(self.doubtful.remove(&word.text)),
            }
        }
        let held = &mut self.recent_held;
        while held.len() > MOST_RECENT || held.front().is_some_and(|(at, _)| now - *at >= RECENT) {
            held.pop_front();
        }
        while self.recent.front().is_some_and(|(at, _)| now - *at >= RECENT)
            || self.recent.len() > MOST_RECENT
        {
            self.recent.pop_front();
        }
    }

    /// The first `count` of what is done with are not in the log any more.
    pub(super) fn taken_out(&mut self, count: usize) {
        let now = Instant::now();
        self.recent_done.extend(self.done.drain(..count).map(|id| (now, id)));
        while self.recent_done.len() > MOST_RECENT
            || self.recent_done.front().is_some_and(|(at, _)| now - *at >= RECENT)
        {
            self.recent_done.pop_front();
        }
    }

    /// Nothing is left to be said or told, and nobody here has webhooks for it.
    pub(super) fn is_over(&self) -> bool {
        let idle = self.held.is_empty() && self.queue.is_empty() && self.done.is_empty();
        self.hooks == AppHooks::None && idle && (!self.owned || self.backlog == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(board: &mut WebhookLog, user: &str, is: bool) {
        let channel = ChannelName::parse("presence-a", 200).unwrap();
        board.take_request(LogRequest::Held {
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
        assert_eq!(parse_held(&text), Some((false, channel.clone(), Some(user))));
        assert_eq!(
            parse_held(&format!("+{}", name_of(&channel, None))),
            Some((true, channel, None))
        );
        for other in ["", "+", "+x", "+c#y", "!cx", "+mx", "Xcache-a"] {
            assert_eq!(parse_held(other), None, "{other}");
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
        board.apps.get_mut(&app).unwrap().note_written(1);
        board.note_link_lost();
        hold(&mut board, "3", true);
        hold(&mut board, "4", true);
        hold(&mut board, "4", false);
        board.take_request(LogRequest::Happened { app: app.clone(), text: "x".to_owned() });
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
            board.take_request(LogRequest::Happened { app: app.clone(), text: text.to_owned() });
        }
        board.apps.get_mut(&app).unwrap().note_written(2);
        assert_eq!(queued(&board), "!3z ");
        drop(board.say_recent_again());
        assert_eq!(queued(&board), "!1x !2y !3z ");
        board.apps.get_mut(&app).unwrap().note_written(3);
        board.take_request(LogRequest::Done { app: app.clone(), id: "1-0".into() });
        board.apps.get_mut(&app).unwrap().taken_out(1);
        drop(board.say_recent_again());
        assert_eq!(board.apps[&app].done, [Box::from("1-0")]);
        drop(board.say_recent_again());
        assert_eq!(queued(&board), "!1x !2y !3z ");
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_just_before_a_failover_and_left_during_it_is_told_to_have_left() {
        let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
        board.say_again();
        for user in ["1", "2", "3"] {
            hold(&mut board, user, true);
            board.apps.get_mut(&app).unwrap().note_written(1);
            tokio::time::advance(RECENT * 2 / 5).await;
        }
        board.note_link_lost();
        hold(&mut board, "1", false);
        hold(&mut board, "2", false);
        tokio::time::advance(RECENT).await;
        drop(board.say_recent_again());
        let all = "=mpresence-a/3 +mpresence-a/2 -mpresence-a/2 ";
        // The first is in Redis for long, and ends with the lease that holds it there.
        board.say_again();
        assert_eq!(queued(&board), all);
        board.say_again();
        assert_eq!(queued(&board), all, "until Redis has it");
        board.apps.get_mut(&app).unwrap().note_written(3);
        board.say_again();
        assert_eq!(queued(&board), "=mpresence-a/3 ");
    }

    #[test]
    fn an_app_without_anything_is_forgotten() {
        let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
        board.say_again();
        board.take_request(LogRequest::Apps(vec![(app.clone(), true)]));
        hold(&mut board, "1", true);
        board.take_request(LogRequest::Apps(Vec::new()));
        hold(&mut board, "1", false);
        board.forget_if_done(&app);
        assert_eq!(board.apps.len(), 1, "Redis is to be told");
        board.apps.get_mut(&app).unwrap().note_written(2);
        board.forget_if_done(&app);
        assert!(board.apps.is_empty());
    }
}
