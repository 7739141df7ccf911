//! Envelopes received on one topic: the last place in its log, and the last serials of each sender, by which
//! duplicates are recognised. `dedup.rs` decides when a topic is opened, catches up, or is forgotten.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::dedup::MessageId;
use crate::cluster::envelope::Envelope;

/// Senders that are remembered for one topic; a node that starts again is a new one.
pub(super) const SENDERS: usize = 256;

/// Serials of one sender that are remembered for one topic.
pub(super) const SERIALS: usize = 128;

/// State of one topic.
#[derive(Debug, Default)]
pub(super) struct TopicSenders {
    /// The place of the last event; `None` before the topic was first subscribed to.
    pub(super) place: Option<u64>,
    /// When it was about to be, by the clock of Redis, which gives the places.
    pub(super) since: u64,
    /// When the subscription was known to hold, by Redis's clock. `None` if the topic was joined while Redis was
    /// away: then everything since counts as new.
    pub(super) opened: Option<u64>,
    /// The last serial of this node's own that came back to it.
    pub(super) own: u64,
    /// The last serial of its own that subscribers here got without Redis.
    pub(super) alone: u64,
    /// Each sender with its last serials.
    pub(super) senders: Vec<(u64, RecentSerials)>,
    /// Envelopes that arrived since the topic was subscribed to, until it has caught up.
    pub(super) waiting: Option<VecDeque<Envelope>>,
    /// Since when it may have missed something.
    pub(super) offline_since: Option<Instant>,
    /// Redis has lost its data since then, and with it the log of what may have been missed.
    pub(super) has_lost_log: bool,
}

/// The last serials of one sender on one topic, in order. A node sends in the order of its serials, and repeats its
/// last ones after a lost link. So a serial older than all of these was received.
#[derive(Debug, Default)]
pub(super) struct RecentSerials(VecDeque<u64>);

impl RecentSerials {
    /// A serial older than all remembered ones counts as received.
    fn contains_serial(&self, serial: u64) -> bool {
        let is_older = self.0.len() == SERIALS && self.0.front().is_some_and(|old| serial < *old);
        is_older || self.0.binary_search(&serial).is_ok()
    }

    /// Kept sorted, the oldest in front.
    fn note_serial(&mut self, serial: u64) {
        if self.contains_serial(serial) {
            return;
        }
        if self.0.len() == SERIALS {
            self.0.pop_front();
        }
        let place = self.0.partition_point(|other| *other < serial);
        self.0.insert(place, serial);
    }

    /// The last.
    fn last(&self) -> Option<u64> {
        self.0.back().copied()
    }
}

impl TopicSenders {
    /// By sender: two nodes number for themselves.
    pub(super) fn contains_message(&self, origin: u64, serial: u64) -> bool {
        let mut of_it = self.senders.iter().filter(|(sender, _)| *sender == origin);
        serial != 0 && of_it.any(|(_, recent)| recent.contains_serial(serial))
    }

    /// Whether a later envelope of the sender was received.
    pub(super) fn knows_later(&self, origin: u64, serial: u64) -> bool {
        let mut of_it = self.senders.iter().filter(|(sender, _)| *sender == origin);
        of_it.any(|(_, recent)| recent.last().is_some_and(|last| last > serial))
    }

    /// Where too many senders are remembered, the one that was met first is forgotten.
    pub(super) fn note_message(&mut self, mark: MessageId) {
        // Where the clock of Redis was set back, places begin again.
        self.place = mark.place.or(self.place);
        if mark.serial == 0 {
            return;
        }
        let known = self.senders.iter().position(|(sender, _)| *sender == mark.origin);
        if known.is_none() {
            if self.senders.len() == SENDERS {
                self.senders.remove(0);
            }
            self.senders.push((mark.origin, RecentSerials::default()));
        }
        let place = known.unwrap_or(self.senders.len() - 1);
        if let Some((_, recent)) = self.senders.get_mut(place) {
            recent.note_serial(mark.serial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(origin: u64, serial: u64) -> MessageId {
        MessageId { origin, serial, place: None }
    }

    #[test]
    fn what_is_older_than_all_remembered_serials_counts_as_received() {
        let mut topic = TopicSenders::default();
        let last = SERIALS as u64 + 10;
        (11..=last).for_each(|serial| topic.note_message(message(1, serial)));
        assert!(topic.contains_message(1, 3), "older than every one of {SERIALS}");
        assert!(topic.contains_message(1, last) && !topic.contains_message(1, last + 1));
        assert!(!topic.contains_message(2, 3), "another sender counts for itself");
    }

    /// Events that were sent again may arrive behind later ones.
    #[test]
    fn a_gap_in_the_serials_is_no_duplicate() {
        let mut topic = TopicSenders::default();
        [1, 2, 5].into_iter().for_each(|serial| topic.note_message(message(1, serial)));
        assert!(!topic.contains_message(1, 3) && topic.knows_later(1, 3));
        topic.note_message(message(1, 3));
        assert!(topic.contains_message(1, 3) && !topic.contains_message(1, 4));
        assert!(!topic.knows_later(1, 5));
    }

    #[test]
    fn the_sender_that_was_met_first_is_forgotten_first() {
        let mut topic = TopicSenders::default();
        (1..=SENDERS as u64).for_each(|origin| topic.note_message(message(origin, 1)));
        topic.note_message(message(1, 2));
        topic.note_message(message(9999, 1));
        assert_eq!(topic.senders.len(), SENDERS);
        assert!(!topic.contains_message(1, 2) && topic.contains_message(2, 1));
        assert!(topic.contains_message(9999, 1));
    }

    #[test]
    fn messages_without_a_serial_are_never_duplicates_but_move_the_place() {
        let mut topic = TopicSenders::default();
        topic.note_message(MessageId { origin: 1, serial: 0, place: Some(40) });
        assert!(topic.senders.is_empty() && !topic.contains_message(1, 0));
        topic.note_message(message(1, 1));
        assert_eq!(topic.place, Some(40), "an event without a place leaves it");
        topic.note_message(MessageId { origin: 1, serial: 2, place: Some(30) });
        assert_eq!(topic.place, Some(30), "the clock of Redis was set back");
    }
}
