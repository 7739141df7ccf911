//! Entries that wait to be written to an app's webhook log, in order. A hold and its end cancel out as long as neither
//! was sent to Redis, so a client that toggles leaves one entry at most, however slow Redis is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes that are counted for a word beside its text: its place in the queue, and in the table of what may be undone.
const WORD_BYTES: usize = 128;

/// The place of the first word. There is as much room before it as behind.
const MIDDLE: u64 = 1 << 63;

/// One thing to say: a sign and a text, and of what happened its number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub(super) sign: char,
    pub(super) text: Arc<str>,
    pub(super) number: u64,
}

/// All that is to be said.
#[derive(Debug)]
pub(super) struct WordQueue {
    /// By place.
    words: BTreeMap<u64, Word>,
    /// The place of the next one, and the first that was in no request.
    next: u64,
    unasked: u64,
    /// Of names whose last word may be undone: its place, and whether Redis was told that the name is held.
    undoable: HashMap<Arc<str>, (u64, bool)>,
    /// How many are of what happened, and the bytes of their texts.
    happened: (usize, usize),
    /// Of all texts.
    text_bytes: usize,
}

impl Default for WordQueue {
    fn default() -> Self {
        let (words, undoable) = (BTreeMap::new(), HashMap::new());
        Self { words, next: MIDDLE, unasked: MIDDLE, undoable, happened: (0, 0), text_bytes: 0 }
    }
}

impl Word {
    pub(super) fn new(sign: char, text: Arc<str>) -> Self {
        Self { sign, text, number: 0 }
    }

    /// The sign as the script is told it.
    pub(super) fn signed(&self) -> String {
        match self.sign {
            '!' => format!("!{}", self.number),
            sign => sign.to_string(),
        }
    }

    /// Bytes that are counted for it.
    pub(super) fn held_bytes(&self) -> usize {
        WORD_BYTES + self.text.len()
    }

    fn happened_bytes(&self) -> (usize, usize) {
        if self.sign == '!' { (1, self.text.len()) } else { (0, 0) }
    }
}

impl WordQueue {
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// From the front.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Word> {
        self.words.values()
    }

    /// How many are of what happened, and the bytes of their texts.
    pub(super) fn happened(&self) -> (usize, usize) {
        self.happened
    }

    /// Bytes that are counted for all of it.
    pub(super) fn held_bytes(&self) -> usize {
        self.text_bytes + self.words.len() * WORD_BYTES
    }

    pub(super) fn push_back(&mut self, word: Word) {
        let place = self.next;
        self.next += 1;
        self.insert(place, word);
    }

    /// Adds that a name is held, or is held no longer; Redis was told before that it is.
    pub(super) fn push_undoable(&mut self, word: Word, told: bool) {
        self.undoable.insert(word.text.clone(), (self.next, told));
        self.push_back(word);
    }

    /// In front of all others. Nothing undoes it.
    pub(super) fn push_front(&mut self, word: Word) {
        let first = self.words.first_key_value().map_or(self.next, |(place, _)| *place);
        self.insert(first - 1, word);
    }

    fn insert(&mut self, place: u64, word: Word) {
        let (count, bytes) = word.happened_bytes();
        self.happened = (self.happened.0 + count, self.happened.1 + bytes);
        self.text_bytes += word.text.len();
        self.words.insert(place, word);
    }

    fn note_gone(&mut self, word: &Word) {
        let (count, bytes) = word.happened_bytes();
        self.happened = (self.happened.0 - count, self.happened.1 - bytes);
        self.text_bytes -= word.text.len();
    }

    /// Takes the last word about a name back, unless Redis may have it; whether Redis was told that the name is held.
    pub(super) fn undo(&mut self, name: &str) -> Option<bool> {
        let (place, told) = *self.undoable.get(name)?;
        if place < self.unasked {
            return None;
        }
        self.undoable.remove(name);
        let word = self.words.remove(&place)?;
        self.note_gone(&word);
        self.give_back();
        Some(told)
    }

    /// Redis is asked to take the first `count`.
    pub(super) fn note_asked(&mut self, count: usize) {
        let all = self.words.last_key_value().map(|(place, _)| *place);
        let last = self.words.keys().nth(count.saturating_sub(1)).copied().or(all);
        self.unasked = last.map_or(self.unasked, |last| self.unasked.max(last + 1));
    }

    /// Takes out the first `count`, which Redis has.
    pub(super) fn drain_said(&mut self, count: usize) -> Vec<Word> {
        let said = std::iter::from_fn(|| self.words.pop_first()).take(count);
        let said: Vec<(u64, Word)> = said.collect();
        for (place, word) in &said {
            if self.undoable.get(&word.text).is_some_and(|(last, _)| last == place) {
                self.undoable.remove(&word.text);
            }
            self.note_gone(word);
        }
        self.give_back();
        said.into_iter().map(|(_, word)| word).collect()
    }

    /// Leaves what happened alone; what is held is to be said anew.
    pub(super) fn drop_held(&mut self) {
        let words = std::mem::take(&mut self.words);
        *self = Self { next: self.next, unasked: self.unasked, ..Self::default() };
        words.into_iter().filter(|(_, word)| word.sign == '!').for_each(|(place, word)| {
            self.insert(place, word);
        });
    }

    /// Room that a crowd has needed is not kept.
    fn give_back(&mut self) {
        if self.undoable.is_empty() {
            self.undoable = HashMap::new();
        }
    }
}
