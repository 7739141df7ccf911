//! What a cluster's log says, for the one node that tells backends of it. The log has the comings and goings
//! over all nodes in their order, so that nothing need be counted: an end is held back, and what follows it soon takes it
//! back. An entry stays in the log until all that it led to is done with; whoever reads the log next begins with what is
//! left, and may tell a backend twice.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;

use super::news::{self, DELAY, Key};
use super::{Event, Fact};
use crate::app::{App, AppId, WebhookEvent};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// Takes entries, by app and place, that are done with.
pub type Done = Box<dyn Fn(&AppId, &str) + Send>;

/// Where entries go that are done with, until the node leaves them to others.
pub(super) struct Door {
    done: Option<Done>,
    open: Cell<bool>,
}

impl Door {
    pub(super) fn new(done: Option<Done>) -> Rc<Self> {
        Rc::new(Self { done, open: Cell::new(true) })
    }

    pub(super) fn is_to_a_log(&self) -> bool {
        self.done.is_some()
    }

    /// What is not done yet stays in the log.
    pub(super) fn close(&self) {
        self.open.set(false);
    }
}

/// An entry of the log. With the last that was to be done for it, it is done with.
pub(super) struct Receipt {
    door: Rc<Door>,
    app: AppId,
    id: Box<str>,
}

impl Receipt {
    pub(super) fn new(door: &Rc<Door>, app: &AppId, id: &str) -> Rc<Self> {
        Rc::new(Self { door: door.clone(), app: app.clone(), id: id.into() })
    }

    /// When the entry was written, in milliseconds since 1970, by the clock of Redis.
    pub(super) fn at(&self) -> u64 {
        self.id.split('-').next().and_then(|at| at.parse().ok()).unwrap_or(u64::MAX)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(done) = self.door.done.as_ref().filter(|_| self.door.open.get()) {
            done(&self.app, &self.id);
        }
    }
}

/// An event, and the entry that it is from.
pub(super) type Told = (Arc<App>, Event, Rc<Receipt>);

/// Ends that are held back.
#[derive(Default)]
pub(super) struct Ends {
    due: VecDeque<(Instant, Key, u64)>,
    held: HashMap<Key, (u64, Arc<App>, Rc<Receipt>)>,
    number: u64,
}

impl Ends {
    /// A channel or member is there from now on, or is not; what is to be told of it at once.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        app: &Arc<App>,
        (is, channel, user): (bool, ChannelName, Option<UserId>),
        receipt: Rc<Receipt>,
    ) -> Option<Told> {
        let key = (app.id.clone(), channel, user);
        if is {
            // Who comes back soon was never away.
            let was_away = self.held.remove(&key).is_some();
            return (!was_away).then(|| (app.clone(), news::event(&key, true), receipt));
        }
        self.number += 1;
        self.due.push_back((now + DELAY, key.clone(), self.number));
        self.held.insert(key, (self.number, app.clone(), receipt));
        None
    }

    /// When the next end is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.front().map(|(due, ..)| *due)
    }

    /// The ends that nobody has come back from by `now`.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Told> {
        let mut told = Vec::new();
        while self.due.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, key, number)) = self.due.pop_front() else { break };
            if self.held.get(&key).is_some_and(|(held, ..)| *held == number)
                && let Some((_, app, receipt)) = self.held.remove(&key)
            {
                told.push((app, news::event(&key, false), receipt));
            }
        }
        told
    }

    /// Another node reads the app's log from now on; what is held back is for it to tell.
    pub(super) fn leave(&mut self, app: &AppId, door: &Door) {
        let before = door.open.replace(false);
        self.held.retain(|(other, ..), _| other != app);
        door.open.set(before);
    }
}

impl Fact {
    /// As the log has it; `None` for what nodes hold, of which the log has more to say.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Occupied(_) | Self::Vacated(_) | Self::Joined(..) | Self::Left(..) => None,
            Self::CacheMiss(channel) => Some(format!("X{channel}")),
            Self::Count(channel, count) => Some(format!("N{channel}\n{count}")),
            Self::ClientEvent(whisper) => {
                Some(format!("E{}\n{}", whisper.channel, news::client_event(whisper)))
            }
        }
    }
}

/// Reads what [`Fact::text`] wrote. A cache miss is none yet, for it may be one of many.
pub(super) enum Read {
    Miss(ChannelName),
    Event(Event),
}

pub(super) fn read(text: &str) -> Option<Read> {
    let (kind, rest) = text.split_at_checked(1)?;
    let (name, rest) = rest.split_once('\n').unwrap_or((rest, ""));
    let channel = ChannelName::parse(name, usize::MAX).ok()?;
    match kind {
        "X" => Some(Read::Miss(channel)),
        "N" => {
            let count: usize = rest.parse().ok()?;
            let kind = WebhookEvent::SubscriptionCount;
            let json = json!({
                "name": "subscription_count",
                "channel": channel.as_str(),
                "subscription_count": count,
            });
            Some(Read::Event(Event { kind, channel, json: json.to_string() }))
        }
        "E" => {
            let (kind, json) = (WebhookEvent::ClientEvent, rest.to_owned());
            Some(Read::Event(Event { kind, channel, json }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    struct Stage {
        door: Rc<Door>,
        done: Arc<Mutex<Vec<String>>>,
        ends: Ends,
        app: Arc<App>,
        now: Instant,
        next: u64,
    }

    impl Stage {
        fn new() -> Self {
            let done = Arc::new(Mutex::new(Vec::new()));
            let noted = done.clone();
            let door: Done = Box::new(move |_, id| noted.lock().unwrap().push(id.to_owned()));
            let (door, app) = (Door::new(Some(door)), Arc::new(App::new("1", "k", "s")));
            Self { door, done, ends: Ends::default(), app, now: Instant::now(), next: 0 }
        }

        fn turn(&mut self, is: bool) -> Option<String> {
            self.next += 1;
            let receipt = Receipt::new(&self.door, &self.app.id, &format!("{}-0", self.next));
            let what = (is, ChannelName::parse("a", 200).unwrap(), None);
            self.ends.turn(self.now, &self.app, what, receipt).map(|(_, event, _)| event.json)
        }

        fn wait(&mut self, millis: u64) -> usize {
            self.now += Duration::from_millis(millis);
            self.ends.due(self.now).len()
        }

        fn done(&self) -> String {
            self.done.lock().unwrap().join(" ")
        }
    }

    #[test]
    fn an_end_that_is_taken_back_is_done_with_its_taking_back() {
        let mut stage = Stage::new();
        assert!(stage.turn(true).unwrap().contains("occupied"));
        assert_eq!(stage.done(), "1-0");
        assert_eq!(stage.turn(false), None);
        assert_eq!((stage.wait(2_900), stage.done().as_str()), (0, "1-0"));
        assert_eq!(stage.turn(true), None);
        assert_eq!((stage.wait(5_000), stage.done().as_str()), (0, "1-0 2-0 3-0"));
        stage.turn(false);
        stage.turn(true);
        stage.turn(false);
        assert_eq!((stage.wait(2_900), stage.wait(200)), (0, 1), "the last one alone is due");
        assert!(stage.ends.next().is_none() && stage.ends.held.is_empty());
    }

    #[test]
    fn what_is_left_to_another_node_stays_in_the_log() {
        let mut stage = Stage::new();
        stage.turn(false);
        stage.ends.leave(&AppId::new("1"), &stage.door);
        assert_eq!((stage.wait(4_000), stage.done().as_str()), (0, ""));
        stage.turn(false);
        stage.door.close();
        stage.ends = Ends::default();
        assert_eq!(stage.done(), "");
    }
}
