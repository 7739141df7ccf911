//! Debouncing: a channel that is empty for a moment was not vacated, a member that reloads its page did not leave, and
//! a crowd that finds nothing cached is one cache miss. Facts of one channel may arrive out of order, since workers do
//! not wait for each other; so joins and leaves are counted, and only the count decides.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::facts::{FactSubject, Happening, subject_bytes};
use super::message::{MessageContent, WebhookMessage};
use super::{Fact, Whisper};
use crate::app::{App, AppId};
use crate::metrics::HeldByApp;
use crate::protocol::channel::ChannelName;

/// How long an end is held back: as long as Pusher does at most.
pub(super) const DELAY: Duration = Duration::from_secs(3);

/// For how long one cache miss of a channel stands for all.
const MISS: Duration = Duration::from_secs(3);

/// Facts that are not reported yet, and the state that decides about them.
#[derive(Debug, Default)]
pub(super) struct Debouncer {
    /// Of every channel and member that is there, or was a moment ago. An app of which nothing is known has no table.
    states: HashMap<AppId, HashMap<FactSubject, DebounceState>>,
    /// Ends that are held back, in the order they are due.
    ends: VecDeque<(Instant, Arc<App>, FactSubject)>,
    /// Reported cache misses, and until when further ones are dropped.
    misses: HashMap<(AppId, ChannelName), Instant>,
    /// The same in the order in which they end.
    miss_order: VecDeque<(Instant, (AppId, ChannelName))>,
    /// Memory counted by app.
    held: Arc<HeldByApp>,
}

/// The state of a channel or member.
#[derive(Debug, Default)]
struct DebounceState {
    /// Comings less goings.
    /// May be below zero for a moment, since facts of two workers can change places.
    count: i32,
    /// The backend knows of it.
    reported: bool,
    /// It is among the ends.
    ending: bool,
}

impl Debouncer {
    /// Knows nothing yet; its bytes are counted in `held`.
    pub(super) fn new(held: Arc<HeldByApp>) -> Self {
        Self { held, ..Self::default() }
    }

    /// Notes comings less goings of a channel or a member; what is known of it from now on.
    fn add(&mut self, app: &AppId, subject: &FactSubject, sum: i64) -> &mut DebounceState {
        let (held, states) = (&self.held, self.states.entry(app.clone()).or_default());
        let state = states.entry(subject.clone()).or_insert_with(|| {
            held.of_app(app).add_bytes(subject_bytes(&subject.0, subject.1.as_ref()));
            DebounceState::default()
        });
        // There are fewer connections than that.
        state.count = state.count.saturating_add(i32::try_from(sum).unwrap_or(0));
        state
    }

    /// Takes a fact; returns its event if it is reported at once. Begins and ends are counted even if no webhook
    /// wants that event: one may want its opposite.
    pub(super) fn take(
        &mut self,
        now: Instant,
        app: &Arc<App>,
        happened: Happening,
    ) -> Option<WebhookMessage> {
        match happened {
            Happening::Change(subject, sum) => match sum {
                1.. => self.comes(app, subject, sum),
                // Came and went within what was gathered.
                0 => None,
                _ => {
                    self.goes(now, app, subject, sum);
                    None
                }
            },
            Happening::Event(Fact::CacheMiss(channel)) => self.misses(now, app, channel),
            Happening::Event(Fact::Count(channel, count)) => {
                Some(WebhookMessage { channel, what: MessageContent::Count(count) })
            }
            Happening::Event(Fact::ClientEvent(whisper)) => {
                let what = MessageContent::ClientEvent(client_event(&whisper).into());
                Some(WebhookMessage { channel: whisper.channel, what })
            }
            // These are changes.
            Happening::Event(
                Fact::Occupied(_) | Fact::Vacated(_) | Fact::Joined(..) | Fact::Left(..),
            ) => None,
        }
    }

    /// Told at once, unless the backend knows of it or an end is held back: then it was never away.
    fn comes(&mut self, app: &App, subject: FactSubject, sum: i64) -> Option<WebhookMessage> {
        let state = self.add(&app.id, &subject, sum);
        if state.reported || state.ending || state.count <= 0 {
            return None;
        }
        state.reported = true;
        Some(WebhookMessage::turned(subject, true))
    }

    /// Holds an end back; a begin within [`DELAY`] undoes it.
    fn goes(&mut self, now: Instant, app: &Arc<App>, subject: FactSubject, sum: i64) {
        let state = self.add(&app.id, &subject, sum);
        if state.count <= 0 && !state.ending {
            state.ending = true;
            self.ends.push_back((now + DELAY, app.clone(), subject));
        }
    }

    /// One for all who missed the same, on whatever connection.
    pub(super) fn misses(
        &mut self,
        now: Instant,
        app: &App,
        channel: ChannelName,
    ) -> Option<WebhookMessage> {
        while self.miss_order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.miss_order.pop_front() {
                self.held.of_app(&key.0).sub_bytes(subject_bytes(&key.1, None));
                self.misses.remove(&key);
            }
        }
        let key = (app.id.clone(), channel.clone());
        if self.misses.contains_key(&key) {
            return None;
        }
        self.held.of_app(&app.id).add_bytes(subject_bytes(&channel, None));
        self.misses.insert(key.clone(), now + MISS);
        self.miss_order.push_back((now + MISS, key));
        Some(WebhookMessage { channel, what: MessageContent::CacheMiss })
    }

    /// When the next end is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.ends.front().map(|(due, ..)| *due)
    }

    /// The ends without a begin by `now`, and begins that were held back by an end.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Arc<App>, WebhookMessage)> {
        let mut events = Vec::new();
        while self.ends.front().is_some_and(|(due, ..)| *due <= now) {
            events.extend(self.end());
        }
        events
    }

    /// All ends, due or not.
    pub(super) fn all(&mut self) -> Vec<(Arc<App>, WebhookMessage)> {
        let mut events = Vec::new();
        while !self.ends.is_empty() {
            events.extend(self.end());
        }
        events
    }

    /// The end if no begin followed; or a begin that an earlier end had held back.
    fn end(&mut self) -> Option<(Arc<App>, WebhookMessage)> {
        let (_, app, subject) = self.ends.pop_front()?;
        let states = self.states.get_mut(&app.id)?;
        let state = states.get_mut(&subject)?;
        state.ending = false;
        let (is, was) = (state.count > 0, state.reported);
        state.reported = is;
        // Nothing is left to be known of it.
        if state.count == 0 {
            states.remove(&subject);
            self.held.of_app(&app.id).sub_bytes(subject_bytes(&subject.0, subject.1.as_ref()));
        }
        if states.is_empty() {
            self.states.remove(&app.id);
        }
        if self.ends.is_empty() {
            // Room that a crowd has needed is not kept.
            self.ends = VecDeque::new();
            self.states.values_mut().for_each(HashMap::shrink_to_fit);
        }
        (is != was).then(|| (app, WebhookMessage::turned(subject, is)))
    }
}

/// The JSON of a client event. Written by hand, since the data must not be encoded a second time.
pub(super) fn client_event(whisper: &Whisper) -> String {
    let Whisper { channel, event, data, socket, user } = whisper;
    let quoted = |text: &str| json!(text).to_string();
    // The data is a JSON string already, byte for byte as subscribers get it.
    let mut json = format!(
        r#"{{"name":"client_event","channel":{},"event":{},"data":{data},"socket_id":"{socket}""#,
        quoted(channel.as_str()),
        quoted(event),
    );
    if let Some(user) = user {
        json.push_str(",\"user_id\":");
        json.push_str(&quoted(user.as_str()));
    }
    json.push('}');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::member::UserId;

    struct Stage {
        news: Debouncer,
        app: Arc<App>,
        now: Instant,
        heard: Vec<String>,
    }

    impl Stage {
        fn new() -> Self {
            let app = Arc::new(App::new("1", "k", "s"));
            Self { news: Debouncer::default(), app, now: Instant::now(), heard: Vec::new() }
        }

        fn tell(&mut self, fact: Fact) -> &mut Self {
            let happened = match fact {
                Fact::Occupied(channel) => Happening::Change((channel, None), 1),
                Fact::Vacated(channel) => Happening::Change((channel, None), -1),
                Fact::Joined(channel, user) => Happening::Change((channel, Some(user)), 1),
                Fact::Left(channel, user) => Happening::Change((channel, Some(user)), -1),
                event => Happening::Event(event),
            };
            let event = self.news.take(self.now, &self.app, happened);
            self.heard.extend(event.map(|event| json(&event)));
            self
        }

        fn wait(&mut self, millis: u64) -> &mut Self {
            self.now += Duration::from_millis(millis);
            let due = self.news.due(self.now);
            self.heard.extend(due.into_iter().map(|(_, event)| json(&event)));
            self
        }

        fn names(&self) -> Vec<String> {
            let name = |json: &String| {
                let json: serde_json::Value = serde_json::from_str(json).unwrap();
                json["name"].as_str().unwrap().to_owned()
            };
            self.heard.iter().map(name).collect()
        }
    }

    fn json(event: &WebhookMessage) -> String {
        let mut json = Vec::new();
        event.write_json(&mut json);
        String::from_utf8(json).unwrap()
    }

    fn channel() -> ChannelName {
        ChannelName::parse("presence-a", 200).unwrap()
    }

    #[test]
    fn whoever_comes_back_soon_was_never_away() {
        let mut stage = Stage::new();
        let user = UserId::parse("1").unwrap();
        stage.tell(Fact::Occupied(channel())).tell(Fact::Joined(channel(), user.clone()));
        assert_eq!(stage.names(), ["channel_occupied", "member_added"]);
        stage.tell(Fact::Left(channel(), user.clone())).tell(Fact::Vacated(channel()));
        stage.wait(2_900).tell(Fact::Occupied(channel()));
        stage.tell(Fact::Joined(channel(), user.clone())).wait(5_000);
        assert_eq!(stage.heard.len(), 2, "{:?}", stage.heard);
        stage.tell(Fact::Left(channel(), user)).tell(Fact::Vacated(channel())).wait(2_900);
        assert_eq!(stage.heard.len(), 2);
        stage.wait(200);
        assert_eq!(
            stage.heard[2..],
            [
                r#"{"channel":"presence-a","name":"member_removed","user_id":"1"}"#,
                r#"{"channel":"presence-a","name":"channel_vacated"}"#
            ]
        );
        assert!(stage.news.states.is_empty() && stage.news.next().is_none());
        assert_eq!(stage.news.held.total(), 0);
    }

    #[test]
    fn facts_that_overtake_each_other_come_to_the_same() {
        let mut stage = Stage::new();
        stage.tell(Fact::Occupied(channel()));
        // The end of the first stay comes after the begin of the second.
        stage.tell(Fact::Occupied(channel())).tell(Fact::Vacated(channel())).wait(10_000);
        assert_eq!(stage.names(), ["channel_occupied"]);
        stage.tell(Fact::Vacated(channel())).wait(10_000);
        assert_eq!(stage.names(), ["channel_occupied", "channel_vacated"]);
        // The end comes before the begin.
        stage.tell(Fact::Vacated(channel())).tell(Fact::Occupied(channel())).wait(10_000);
        assert_eq!(stage.heard.len(), 2);
        stage.tell(Fact::Vacated(channel())).tell(Fact::Occupied(channel()));
        stage.tell(Fact::Occupied(channel())).wait(10_000);
        assert_eq!(stage.names()[2..], ["channel_occupied"]);
        stage.tell(Fact::Vacated(channel()));
        assert_eq!(stage.news.all().len(), 1);
        assert!(stage.news.states.is_empty());
    }

    #[test]
    fn w06_a_crowd_that_misses_is_told_of_once() {
        let mut stage = Stage::new();
        for _ in 0..50 {
            stage.tell(Fact::CacheMiss(channel()));
        }
        assert_eq!(stage.names(), ["cache_miss"]);
        stage.wait(3_000).tell(Fact::CacheMiss(channel()));
        assert_eq!(stage.heard.len(), 2);
        assert_eq!(stage.news.misses.len(), 1);
    }
}
