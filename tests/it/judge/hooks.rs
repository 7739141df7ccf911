//! The state that a backend makes of the webhooks that it is sent: the last word on each channel, member and count,
//! and which whispers it was told of.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ledger::{Outcome, Publication};
use super::truth::{Truth, is_counted};
use super::verdict::{Kind, Wrong};

#[derive(Default)]
pub struct Hooks {
    /// Whether a channel is occupied, or a user in it, by the last word on it.
    states: BTreeMap<Subject, bool>,
    counts: BTreeMap<String, u64>,
    whispers: BTreeSet<usize>,
    /// Whispers that were told twice, and states that were told to be as they were.
    pub doubled: usize,
}

/// A channel, or a channel's user.
type Subject = (String, Option<String>);

impl Hooks {
    pub fn hear(&mut self, event: &Value) {
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let channel = text("channel").unwrap_or_default();
        let name = event["name"].as_str().unwrap_or_default();
        match name {
            "channel_occupied" | "channel_vacated" => {
                self.turn((channel, None), name == "channel_occupied");
            }
            "member_added" | "member_removed" => {
                self.turn((channel, text("user_id")), name == "member_added");
            }
            "subscription_count" => {
                let count = event["subscription_count"].as_u64().unwrap_or_default();
                self.counts.insert(channel, count);
            }
            "client_event" => {
                let number = event["data"].as_str().and_then(|data| data.parse().ok());
                if !number.is_some_and(|number| self.whispers.insert(number)) {
                    self.doubled += 1;
                }
            }
            _ => {}
        }
    }

    fn turn(&mut self, subject: Subject, is_on: bool) {
        if self.states.insert(subject, is_on) == Some(is_on) {
            self.doubled += 1;
        }
    }

    /// Where the last words are not the truth.
    pub fn compare(&self, truth: &Truth) -> Vec<Wrong> {
        let mut wrongs = Vec::new();
        let mut note = |kind, text: String| wrongs.push(Wrong { kind, text });
        let true_states = Self::subjects(truth);
        let all: BTreeSet<&Subject> = self.states.keys().chain(&true_states).collect();
        for subject in all {
            let told = self.states.get(subject).copied().unwrap_or_default();
            let is = true_states.contains(subject);
            if told != is {
                let (channel, user) = subject;
                let user = user.as_deref().unwrap_or("anybody");
                note(Kind::Webhook, format!("{user} in {channel}: told {told}, is {is}"));
            }
        }
        for (channel, count) in truth.subscriptions.iter().filter(|(name, _)| is_counted(name)) {
            let told = self.counts.get(channel);
            if told != Some(count) {
                note(
                    Kind::WebhookCount,
                    format!("{channel} has {count} subscribers, told {told:?}"),
                );
            }
        }
        wrongs
    }

    /// Whispers that it should have been told of.
    pub fn compare_whispers(&self, owed: &BTreeMap<usize, Publication>) -> Vec<Wrong> {
        let lost = owed.iter().filter(|(number, one)| {
            one.is_whisper() && one.outcome == Outcome::Taken && !self.whispers.contains(number)
        });
        lost.map(|(number, one)| {
            let text = format!("the whisper {number} in {} was not told", one.channels[0]);
            Wrong { kind: Kind::WebhookEvent, text }
        })
        .collect()
    }

    fn subjects(truth: &Truth) -> BTreeSet<Subject> {
        let occupied = truth.subscriptions.keys().map(|channel| (channel.clone(), None));
        let members = truth.members.iter().flat_map(|(channel, users)| {
            users.iter().map(|user| (channel.clone(), Some(user.clone())))
        });
        occupied.chain(members).collect()
    }
}
