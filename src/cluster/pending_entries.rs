//! Entries that wait to be written to an app's webhook log, in order. A hold and its end cancel out as long as neither
//! was sent to Redis, so a client that toggles leaves one entry at most, however slow Redis is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes that are counted for a word beside its text: its place in the queue, and in the table of what may be undone.
const ENTRY_BYTES: usize = 128;

/// The place of the first word. There is as much room before it as behind.
const MIDDLE: u64 = 1 << 63;

/// One thing to say: a sign and a text, and of what happened its number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PendingEntry {
    /// `+` held, `=` still held, `-` no longer held, `!` happened, `?` told in a certain way before a failover.
    pub(super) sign: char,
    /// A name that is held, or the JSON of an event.
    pub(super) text: Arc<str>,
    /// The number of an event, by which a repeated one is recognised; how a name was told; 0 for holds.
    pub(super) number: u64,
}

/// All that is to be said.
#[derive(Debug)]
pub(super) struct PendingEntries {
    /// By place.
    entries: BTreeMap<u64, PendingEntry>,
    /// The place of the next one, and the first that was in no request.
    next: u64,
    /// The first place that was in no request yet.
    unasked: u64,
    /// Names whose last entry may be undone: its place, and whether Redis has the name as held.
    undoable: HashMap<Arc<str>, (u64, bool)>,
    /// How many are of what happened, and the bytes of their texts.
    happened: (usize, usize),
    /// Of all texts.
    text_bytes: usize,
}

impl Default for PendingEntries {
    fn default() -> Self {
        let (entries, undoable) = (BTreeMap::new(), HashMap::new());
        Self { entries, next: MIDDLE, unasked: MIDDLE, undoable, happened: (0, 0), text_bytes: 0 }
    }
}

impl PendingEntry {
    /// An entry without a number.
    pub(super) fn new(sign: char, text: Arc<str>) -> Self {
        Self { sign, text, number: 0 }
    }

    /// The sign, with the number of an event or how it was told, as the script reads it.
    pub(super) fn signed(&self) -> String {
        match self.sign {
            '!' | '?' => format!("{}{}", self.sign, self.number),
            sign => sign.to_string(),
        }
    }

    /// Bytes that are counted for it.
    pub(super) fn held_bytes(&self) -> usize {
        ENTRY_BYTES + self.text.len()
    }

    /// How many events it counts as in the bound, and their bytes; holds count as none.
    fn happened_bytes(&self) -> (usize, usize) {
        if self.sign == '!' { (1, self.text.len()) } else { (0, 0) }
    }
}

impl PendingEntries {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry waits.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// From the front.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &PendingEntry> {
        self.entries.values()
    }

    /// Those that Redis was asked to take, and may have.
    pub(super) fn asked(&self) -> impl Iterator<Item = &PendingEntry> {
        self.entries.range(..self.unasked).map(|(_, entry)| entry)
    }

    /// How many are of what happened, and the bytes of their texts.
    pub(super) fn happened(&self) -> (usize, usize) {
        self.happened
    }

    /// Bytes that are counted for all of it.
    pub(super) fn held_bytes(&self) -> usize {
        self.text_bytes + self.entries.len() * ENTRY_BYTES
    }

    pub(super) fn push_back(&mut self, entry: PendingEntry) {
        let place = self.next;
        self.next += 1;
        self.insert(place, entry);
    }

    /// Adds that a name is held or no longer held; `told` is whether Redis has it as held.
    pub(super) fn push_undoable(&mut self, entry: PendingEntry, told: bool) {
        self.undoable.insert(entry.text.clone(), (self.next, told));
        self.push_back(entry);
    }

    /// In front of all others. Nothing undoes it.
    pub(super) fn push_front(&mut self, entry: PendingEntry) {
        let first = self.entries.first_key_value().map_or(self.next, |(place, _)| *place);
        self.insert(first - 1, entry);
    }

    /// Inserts an entry at its place, and counts it.
    fn insert(&mut self, place: u64, entry: PendingEntry) {
        let (count, bytes) = entry.happened_bytes();
        self.happened = (self.happened.0 + count, self.happened.1 + bytes);
        self.text_bytes += entry.text.len();
        self.entries.insert(place, entry);
    }

    /// Subtracts an entry that was removed.
    fn note_gone(&mut self, entry: &PendingEntry) {
        let (count, bytes) = entry.happened_bytes();
        self.happened = (self.happened.0 - count, self.happened.1 - bytes);
        self.text_bytes -= entry.text.len();
    }

    /// Removes the last entry of a name, unless it may have been sent; returns whether Redis has the name as held.
    pub(super) fn undo(&mut self, name: &str) -> Option<bool> {
        let (place, told) = *self.undoable.get(name)?;
        if place < self.unasked {
            return None;
        }
        self.undoable.remove(name);
        let entry = self.entries.remove(&place)?;
        self.note_gone(&entry);
        self.give_back();
        Some(told)
    }

    /// Redis is asked to take the first `count`.
    pub(super) fn note_asked(&mut self, count: usize) {
        let all = self.entries.last_key_value().map(|(place, _)| *place);
        let last = self.entries.keys().nth(count.saturating_sub(1)).copied().or(all);
        self.unasked = last.map_or(self.unasked, |last| self.unasked.max(last + 1));
    }

    /// Takes out the first `count`, which Redis has.
    pub(super) fn drain_said(&mut self, count: usize) -> Vec<PendingEntry> {
        let said = std::iter::from_fn(|| self.entries.pop_first()).take(count);
        let said: Vec<(u64, PendingEntry)> = said.collect();
        for (place, entry) in &said {
            if self.undoable.get(&entry.text).is_some_and(|(last, _)| last == place) {
                self.undoable.remove(&entry.text);
            }
            self.note_gone(entry);
        }
        self.give_back();
        said.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Leaves what happened alone; what is held is to be said anew.
    pub(super) fn drop_held(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        *self = Self { next: self.next, unasked: self.unasked, ..Self::default() };
        entries.into_iter().filter(|(_, entry)| entry.sign == '!').for_each(|(place, entry)| {
            self.insert(place, entry);
        });
    }

    /// Room that a crowd has needed is not kept.
    fn give_back(&mut self) {
        if self.undoable.is_empty() {
            self.undoable = HashMap::new();
        }
    }
}
