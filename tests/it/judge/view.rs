//! The view of one connection, kept as a page keeps it: rosters, counts, events, and who of those it watches is
//! online. Frames that no server may send to a page, whatever broke, are noted here at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::Value;

use super::verdict::{Kind, Wrong};

/// One connection's.
#[derive(Clone, Debug)]
pub struct View {
    pub tab: usize,
    pub user: String,
    pub socket_id: String,
    /// The node's key.
    pub node: u64,
    pub begun: Instant,
    pub signed_in: Option<Instant>,
    /// Whom it watches, and whether it was told that they are online.
    pub watched: BTreeMap<String, bool>,
    /// Those it asked to be subscribed to.
    pub channels: BTreeMap<String, Told>,
    pub wrongs: Vec<Wrong>,
}

/// What was told of one channel since it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// When the subscription was confirmed.
    pub confirmed: Option<Instant>,
    pub roster: BTreeSet<String>,
    /// How many subscribers it was told there are.
    pub count: Option<u64>,
    /// The numbers of the events that it heard, in order.
    pub heard: Vec<usize>,
    /// The same of all times.
    known: BTreeSet<usize>,
}

impl View {
    pub fn new(tab: usize, user: &str, socket_id: String, node: u64) -> Self {
        Self {
            tab,
            user: user.to_owned(),
            socket_id,
            node,
            begun: Instant::now(),
            signed_in: None,
            watched: BTreeMap::new(),
            channels: BTreeMap::new(),
            wrongs: Vec::new(),
        }
    }

    /// Whether the connection has been its user's ever since then: signed in, or present in a channel.
    pub fn is_users_since(&self, then: Instant) -> bool {
        let mut present = self.channels.iter().filter(|(name, _)| name.starts_with("presence-"));
        let is_before = |at: Option<Instant>| at.is_some_and(|at| at <= then);
        is_before(self.signed_in) || present.any(|(_, told)| is_before(told.confirmed))
    }

    pub fn hear(&mut self, event: &str, frame: &Value, data: &Value) {
        let channel = frame["channel"].as_str().unwrap_or_default();
        match event {
            "pusher:signin_success" => self.signed_in = Some(Instant::now()),
            "pusher_internal:watchlist_events" => self.watch(data),
            // Said before a close, which is noted where it is not expected.
            "pusher:error" if is_farewell(data) => {}
            "pusher:error" | "pusher:subscription_error" => {
                self.note(Kind::Refused, frame.to_string());
            }
            _ => {
                let Some(told) = self.channels.get_mut(channel) else { return };
                if let Some((kind, text)) = told.hear(event, data, &self.user) {
                    self.note(kind, format!("{channel}: {text}"));
                }
            }
        }
    }

    fn watch(&mut self, data: &Value) {
        for event in data["events"].as_array().into_iter().flatten() {
            let users =
                event["user_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
            for user in users {
                let is_online = event["name"] == "online";
                if self.watched.insert(user.to_owned(), is_online) == Some(is_online) {
                    let text = format!("{user} is {} already", event["name"]);
                    self.wrongs.push(wrong(self.tab, Kind::Notice, &text));
                }
            }
        }
    }

    /// Whether it is subscribed to it, and knows.
    pub fn is_in(&self, channel: &str) -> bool {
        self.channels.get(channel).is_some_and(|told| told.confirmed.is_some())
    }

    /// Whom it was told to be online.
    pub fn online(&self) -> BTreeSet<String> {
        let online = self.watched.iter().filter(|(_, is_online)| **is_online);
        online.map(|(user, _)| user.clone()).collect()
    }

    fn note(&mut self, kind: Kind, text: String) {
        self.wrongs.push(wrong(self.tab, kind, &text));
    }
}

impl Told {
    /// What is wrong with it.
    fn hear(&mut self, event: &str, data: &Value, own: &str) -> Option<(Kind, String)> {
        if event == "pusher_internal:subscription_succeeded" {
            let ids = data["presence"]["ids"].as_array().into_iter().flatten();
            self.roster = ids.filter_map(Value::as_str).map(str::to_owned).collect();
            self.confirmed = Some(Instant::now());
            let hash = data["presence"]["hash"].as_object();
            let keys = hash.map(|hash| hash.keys().cloned().collect::<BTreeSet<_>>());
            let known = keys.is_none_or(|keys| keys == self.roster);
            return (!known).then(|| (Kind::Notice, format!("ids and hash differ: {data}")));
        }
        // Of what was left and is asked for anew nothing is told before it is confirmed.
        self.confirmed?;
        let user = data["user_id"].as_str().unwrap_or_default();
        match event {
            "pusher_internal:member_added" | "pusher_internal:member_removed" if user == own => {
                Some((Kind::Notice, format!("told of itself: {event}")))
            }
            "pusher_internal:member_added" if !self.roster.insert(user.to_owned()) => {
                Some((Kind::Notice, format!("{user} came, and was there already")))
            }
            "pusher_internal:member_removed" if !self.roster.remove(user) => {
                Some((Kind::Notice, format!("{user} went, and was not there")))
            }
            "pusher_internal:subscription_count" => {
                self.count = data["subscription_count"].as_u64();
                None
            }
            "e" | "client-e" => match data.as_u64() {
                Some(number) if self.known.insert(number as usize) => {
                    self.heard.push(number as usize);
                    None
                }
                Some(number) => Some((Kind::Doubled, format!("event {number} came twice"))),
                None => Some((Kind::Foreign, format!("an event with the data {data}"))),
            },
            _ => None,
        }
    }
}

/// Errors that are followed by a close: thrown out, stopped, over capacity.
fn is_farewell(data: &Value) -> bool {
    let message = data["message"].as_str().unwrap_or_default();
    matches!(data["code"].as_u64(), Some(4100 | 4200..=4299)) || message.contains("erminat")
}

fn wrong(tab: usize, kind: Kind, text: &str) -> Wrong {
    Wrong { kind, text: format!("tab {tab}: {text}") }
}
