//! The events that wait for one webhook, in order; opposite events cancel out. `queue.rs` sends them.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::rc::Rc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::cluster_log::{LogAck, OfficeHold};
use super::message::{MessageContent, WebhookMessage};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// Events that were taken back, of which so many may be in line among the others.
const MAX_TAKEN_BACK: usize = 1024;

/// Bytes that are counted for an event in line beside its texts: its place there, and in the table of comings and
/// goings.
const PLACE_BYTES: usize = size_of::<QueuedEvent>() + size_of::<u64>() + 1;

/// Places below which no memory is given back.
const KEPT_PLACES: usize = 1024;

/// An event in line.
pub(super) struct QueuedEvent {
    /// When it happened.
    pub at: u64,
    /// The event to send.
    pub content: QueuedContent,
    /// The acknowledgement to give when the event is done.
    pub persistence: Persistence,
}

/// The content of a queued event.
pub(super) enum QueuedContent {
    /// An event of this run.
    Message(WebhookMessage),
    /// The JSON of an event that an earlier process spooled.
    Json(Box<str>),
    /// Nothing: what came later has undone it.
    TakenBack,
}

/// Where a waiting event survives a crash.
pub(super) enum Persistence {
    /// Nothing but the line.
    Not,
    /// The spool, under that number.
    Spooled(u64),
    /// A cluster's log.
    Logged(Rc<LogAck>),
}

/// All that waits.
#[derive(Default)]
pub(super) struct EventLine {
    /// Front to back.
    events: VecDeque<QueuedEvent>,
    /// The number of the first in line; they are numbered one after the other.
    first: u64,
    /// The number of the first event that was in no request yet. Events in a request may have arrived, whatever the
    /// response.
    untried: u64,
    /// The numbers of those that tell of a coming or a going, the last of each channel and member, by whose it is.
    turns: HashTable<u64>,
    /// Hashes channels and members.
    hasher: DefaultHashBuilder,
    /// How many in line were taken back.
    taken_back: usize,
    /// Of the texts in line.
    text_bytes: usize,
}

impl QueuedContent {
    /// Bytes of its texts.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.text_bytes(),
            Self::Json(json) => json.len(),
            Self::TakenBack => 0,
        }
    }

    /// Adds one object of a request's `events`.
    pub(super) fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Message(message) => message.write_json(out),
            Self::Json(json) => out.extend_from_slice(json.as_bytes()),
            Self::TakenBack => {}
        }
    }

    /// Whether its opposite has taken it back.
    fn is_taken_back(&self) -> bool {
        matches!(self, Self::TakenBack)
    }
}

impl QueuedEvent {
    /// The channel or member that begins or ends. A cluster's log has settled that before.
    fn subject(&self) -> Option<(&ChannelName, Option<&UserId>)> {
        match (&self.content, &self.persistence) {
            (_, Persistence::Logged(_)) => None,
            (QueuedContent::Message(message), _) => message.subject(),
            (QueuedContent::Json(_) | QueuedContent::TakenBack, _) => None,
        }
    }

    /// Whether another node reports it.
    pub(super) fn is_lost(&self) -> bool {
        matches!(&self.persistence, Persistence::Logged(receipt) if receipt.office() == OfficeHold::Lost)
    }
}

impl WebhookMessage {
    /// The channel or member that begins or ends.
    fn subject(&self) -> Option<(&ChannelName, Option<&UserId>)> {
        match &self.what {
            MessageContent::Turned { user, .. } => Some((&self.channel, user.as_ref())),
            MessageContent::CacheMiss
            | MessageContent::Count(_)
            | MessageContent::ClientEvent(_) => None,
        }
    }
}

impl EventLine {
    /// How many are to be sent.
    pub(super) fn len(&self) -> usize {
        self.events.len() - self.taken_back
    }

    /// Bytes of the texts in line.
    pub(super) fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// Bytes that are counted for all of it.
    pub(super) fn held_bytes(&self) -> usize {
        self.text_bytes + self.events.len() * PLACE_BYTES
    }

    /// All in line, from the front, those that were taken back included.
    pub(super) fn iter(&self) -> impl Iterator<Item = &QueuedEvent> {
        self.events.iter()
    }

    /// The event that is sent next.
    pub(super) fn front(&self) -> Option<&QueuedEvent> {
        self.events.front()
    }

    /// Nothing is in line, not even what was taken back.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Appends an event, unless it takes one back that waits.
    pub(super) fn push(&mut self, event: QueuedEvent) {
        let number = self.first + self.events.len() as u64;
        let subject = event.subject().map(|subject| self.hasher.hash_one(subject));
        self.text_bytes += event.content.text_bytes();
        self.events.push_back(event);
        if let Some(hash) = subject {
            self.note_turn(hash, number);
        }
    }

    /// Notes the last event of a channel or member.
    fn note_turn(&mut self, hash: u64, number: u64) {
        let Self { events, first, turns, hasher, .. } = self;
        let event = |number: u64| events.get(number.checked_sub(*first)? as usize);
        let subject = event(number).and_then(QueuedEvent::subject);
        let is_it = |other: &u64| event(*other).and_then(QueuedEvent::subject) == subject;
        let hash_of = |other: &u64| {
            event(*other).and_then(QueuedEvent::subject).map_or(0, |one| hasher.hash_one(one))
        };
        match turns.entry(hash, is_it, hash_of) {
            hashbrown::hash_table::Entry::Occupied(mut entry) => *entry.get_mut() = number,
            hashbrown::hash_table::Entry::Vacant(entry) => drop(entry.insert(number)),
        }
    }

    /// Takes back the event that `undoing` undoes, if that is in line and was not tried yet; what has kept it. In a
    /// line comings and goings of one channel or member take turns, so it is the last one of it.
    pub(super) fn take_back(&mut self, undoing: &WebhookMessage) -> Option<Persistence> {
        let subject = undoing.subject()?;
        let Self { events, first, untried, turns, hasher, text_bytes, .. } = &mut *self;
        let is_it = |number: &u64| {
            let event = number.checked_sub(*first).and_then(|at| events.get(at as usize));
            event.and_then(QueuedEvent::subject) == Some(subject)
        };
        let entry = turns.find_entry(hasher.hash_one(subject), is_it).ok()?;
        // It may have arrived, whatever the response: its opposite has to be sent as well.
        if *entry.get() < *untried {
            return None;
        }
        let (number, _) = entry.remove();
        let waiting = events.get_mut((number - *first) as usize)?;
        *text_bytes -= waiting.content.text_bytes();
        waiting.content = QueuedContent::TakenBack;
        let persistence = std::mem::replace(&mut waiting.persistence, Persistence::Not);
        self.taken_back += 1;
        // Their places cost little until there are many.
        if self.taken_back > MAX_TAKEN_BACK && self.taken_back > self.events.len() / 2 {
            self.close_up();
        }
        Some(persistence)
    }

    /// Closes the gaps that events have left which were taken back, behind those that were tried.
    /// Numbers stay right because those that were tried keep their places.
    fn close_up(&mut self) {
        let (mut number, untried) = (self.first, self.untried);
        self.events.retain(|waiting| {
            number += 1;
            number <= untried || !waiting.content.is_taken_back()
        });
        self.events.shrink_to(2 * self.events.len());
        self.taken_back = self.events.iter().filter(|one| one.content.is_taken_back()).count();
        self.turns = HashTable::new();
        let numbered = (self.first..).zip(&self.events);
        let turns: Vec<(u64, u64)> = numbered
            .filter_map(|(number, one)| Some((self.hasher.hash_one(one.subject()?), number)))
            .collect();
        turns.into_iter().for_each(|(hash, number)| self.note_turn(hash, number));
    }

    /// The first `count` go out in a request.
    pub(super) fn note_tried(&mut self, count: usize) {
        self.untried = self.untried.max(self.first + count as u64);
    }

    /// Takes the first `count` out; the numbers under which the spool has kept those of them that it has.
    pub(super) fn remove(&mut self, count: usize) -> Vec<u64> {
        let mut spooled = Vec::new();
        for _ in 0..count.min(self.events.len()) {
            let number = self.first;
            let subject = self.events.front().and_then(QueuedEvent::subject);
            // A later event of the same one has taken its place in the table.
            if let Some(hash) = subject.map(|subject| self.hasher.hash_one(subject))
                && let Ok(entry) = self.turns.find_entry(hash, |other| *other == number)
            {
                entry.remove();
            }
            let Some(done) = self.events.pop_front() else { break };
            self.first += 1;
            self.text_bytes -= done.content.text_bytes();
            self.taken_back -= usize::from(done.content.is_taken_back());
            if let Persistence::Spooled(number) = done.persistence {
                spooled.push(number);
            }
        }
        if self.events.capacity() > KEPT_PLACES && self.events.len() < self.events.capacity() / 4 {
            let room = 2 * self.events.len();
            self.events.shrink_to(room);
            let Self { events, first, turns, hasher, .. } = self;
            turns.shrink_to(room, |number| {
                let event = number.checked_sub(*first).and_then(|at| events.get(at as usize));
                event.and_then(QueuedEvent::subject).map_or(0, |subject| hasher.hash_one(subject))
            });
        }
        spooled
    }
}

#[cfg(test)]
mod tests;
