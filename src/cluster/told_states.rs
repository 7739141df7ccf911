//! The last entries of a webhook log that this node handed out, and whether they are done with: so it knows what
//! backends were told. A master that should not have been one any more takes its log with it, but backends remember.
//! Over the next master this node says how they were told, and the log there gets how it is now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::log_entries::{LogEntry, ToldAs};
use crate::protocol::channel::ChannelName;

/// For how long it is remembered. A node leaves a master that was replaced within seconds, if it reaches a Sentinel.
pub(super) const KEPT: Duration = Duration::from_secs(60);

/// Names and counts that are remembered for each app; beyond that, those of the last seconds.
const MAX_NAMES: usize = 10_000;
/// For how long at least.
const KEPT_OF_MANY: Duration = Duration::from_secs(10);

/// Bytes that are counted for a name beside its text: its place in the tables, and the id.
const NAME_BYTES: usize = 160;

/// The last entry of a name that was handed out.
#[derive(Debug)]
struct LastEntry {
    id: Box<str>,
    /// Whether it is a beginning.
    is: bool,
    /// Whether it is done with, and so was told, or came to what was told before.
    done: bool,
    at: Instant,
}

/// Of one app.
#[derive(Debug, Default)]
pub(super) struct ToldStates {
    names: HashMap<Arc<str>, LastEntry>,
    /// The names of entries that are not done with, by id.
    under_way: HashMap<Box<str>, Arc<str>>,
    /// Channels whose counts were handed out.
    counts: HashMap<ChannelName, Instant>,
    /// How many there were when the old ones were last forgotten.
    pruned: usize,
    /// Of all names.
    text_bytes: usize,
}

impl ToldStates {
    /// Bytes that are counted for all of it.
    pub(super) fn held_bytes(&self) -> usize {
        self.text_bytes + (self.names.len() + self.counts.len()) * NAME_BYTES
    }

    /// Entries are handed out to be posted.
    pub(super) fn note_read(&mut self, entries: &[LogEntry]) {
        let now = Instant::now();
        for LogEntry { id, text } in entries {
            let Some((sign, name)) = text.split_at_checked(1) else { continue };
            match sign {
                "+" | "-" => self.note_turn(id, name, sign == "+", now),
                // How it was told, and how it is from now on.
                "?" => {
                    let Some((digits, name)) = name.split_at_checked(2) else { continue };
                    self.note_turn(id, name, digits.ends_with('1'), now);
                }
                "N" => {
                    let name = name.split_once('\n').map_or(name, |(name, _)| name);
                    let Ok(channel) = ChannelName::parse(name, usize::MAX) else { continue };
                    if self.has_room() && self.counts.insert(channel, now).is_none() {
                        self.text_bytes += name.len();
                    }
                }
                _ => {}
            }
        }
        self.prune(now);
    }

    /// A name begins or ends.
    fn note_turn(&mut self, id: &str, name: &str, is: bool, at: Instant) {
        let last = LastEntry { id: id.into(), is, done: false, at };
        if let Some(before) = self.names.get_mut(name) {
            let before = std::mem::replace(before, last);
            let name = self.under_way.remove(&before.id).unwrap_or_else(|| name.into());
            self.under_way.insert(id.into(), name);
        } else if self.has_room() {
            let name: Arc<str> = name.into();
            self.text_bytes += name.len();
            self.under_way.insert(id.into(), name.clone());
            self.names.insert(name, last);
        }
    }

    fn has_room(&self) -> bool {
        self.names.len() + self.counts.len() < 2 * MAX_NAMES
    }

    /// An entry is done with.
    pub(super) fn note_done(&mut self, id: &str) {
        let Some(name) = self.under_way.remove(id) else { return };
        if let Some(last) = self.names.get_mut(&name) {
            (last.done, last.at) = (true, Instant::now());
        }
    }

    /// Forgets what is old, once there is twice as much as after the last time.
    fn prune(&mut self, now: Instant) {
        let count = self.names.len() + self.counts.len();
        if count < 2 * self.pruned.max(64) {
            return;
        }
        let kept = if count > MAX_NAMES { KEPT_OF_MANY } else { KEPT };
        self.names.retain(|_, last| now - last.at < kept);
        self.counts.retain(|_, at| now - *at < kept);
        let names = &self.names;
        self.under_way.retain(|_, name| names.contains_key(name));
        self.pruned = self.names.len() + self.counts.len();
        let texts = self.names.keys().map(|name| name.len());
        let channels = self.counts.keys().map(|channel| channel.as_str().len());
        self.text_bytes = texts.chain(channels).sum();
    }

    /// A link was lost at that time, and the next leads to a server that may lack what the log had: what of it was told,
    /// and the channels whose counts were. It is forgotten here.
    pub(super) fn take_told(
        &mut self,
        lost: Instant,
    ) -> (BTreeMap<Arc<str>, ToldAs>, Vec<ChannelName>) {
        let Self { names, counts, .. } = std::mem::take(self);
        let is_young = |at: Instant| lost.saturating_duration_since(at) < KEPT;
        let names = names.into_iter().filter(|(_, last)| is_young(last.at));
        let names = names.map(|(name, last)| match (last.done, last.is) {
            (true, true) => (name, ToldAs::Begun),
            (true, false) => (name, ToldAs::Ended),
            (false, _) => (name, ToldAs::Unknown),
        });
        let counts = counts.into_iter().filter(|(_, at)| is_young(*at));
        (names.collect(), counts.map(|(channel, _)| channel).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, text: &str) -> LogEntry {
        LogEntry { id: id.into(), text: text.to_owned() }
    }

    #[test]
    fn what_is_done_was_told_and_what_is_not_may_have_been() {
        let mut told = ToldStates::default();
        told.note_read(&[entry("1-0", "+ca"), entry("2-0", "+cb"), entry("3-0", "-cb")]);
        told.note_read(&[entry("4-0", "+cc"), entry("5-0", "Nd\n3\n7"), entry("6-0", "Xe")]);
        for id in ["1-0", "2-0", "4-0", "5-0", "9-9"] {
            told.note_done(id);
        }
        told.note_read(&[entry("7-0", "-cc")]);
        told.note_done("7-0");
        let (names, counts) = told.take_told(Instant::now());
        let names: Vec<(&str, ToldAs)> = names.iter().map(|(name, is)| (&**name, *is)).collect();
        let expected = [("ca", ToldAs::Begun), ("cb", ToldAs::Unknown), ("cc", ToldAs::Ended)];
        assert_eq!(names, expected);
        assert_eq!(counts, [ChannelName::parse("d", 200).unwrap()]);
        assert_eq!((told.held_bytes(), told.under_way.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_long_ago_is_forgotten() {
        let mut told = ToldStates::default();
        for number in 0..3 * MAX_NAMES {
            let id = format!("{number}-0");
            told.note_read(&[entry(&id, &format!("+c{number}"))]);
            told.note_done(&id);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(told.names.len() <= 2 * MAX_NAMES, "{}", told.names.len());
        tokio::time::advance(KEPT_OF_MANY).await;
        for number in 0..2 * MAX_NAMES {
            told.note_read(&[entry(&format!("x{number}"), "+clast")]);
        }
        told.note_read(&[entry("y", "+cnew"), entry("z", "Nnew\n1\n1")]);
        assert!(told.names.contains_key("cnew") && told.under_way.len() <= told.names.len());
        let lost = Instant::now() + KEPT;
        assert_eq!(told.take_told(lost).0.len(), 0);
    }
}
