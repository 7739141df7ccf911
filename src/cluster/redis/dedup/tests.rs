//! Which received envelopes are news, and from where a topic's log is read. The tests in `trust.rs` ask which are
//! believed at all.

use bytes::Bytes;

use super::super::topic_senders::{SENDERS, SERIALS};
use super::*;

fn event(origin: u64, serial: u64, version: u64) -> Envelope {
    let body = EnvelopeBody::Event { except: None, frame: Bytes::new() };
    Envelope {
        origin,
        serial,
        version,
        sent: 0,
        delivered: true,
        whisper: false,
        again: false,
        body,
    }
}

fn hear(dedup: &mut Deduplicator, envelope: Envelope) -> EnvelopeVerdict {
    let mark = MessageId::from(&envelope);
    let verdict = dedup.judge_envelope("t", envelope);
    if matches!(verdict, EnvelopeVerdict::New(_)) {
        dedup.note_delivered("t", mark);
    }
    verdict
}

fn caught_up(dedup: &mut Deduplicator) -> Vec<u64> {
    let mut serials = Vec::new();
    while let Some(envelope) = dedup.next_waiting("t", 0) {
        let mark = MessageId::from(&envelope);
        if !dedup.is_known("t", mark) {
            dedup.note_delivered("t", mark);
            serials.push(envelope.serial);
        }
    }
    serials
}

#[test]
fn what_is_sent_again_is_heard_once() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("t", 1);
    assert_eq!(caught_up(&mut dedup), [0; 0]);
    for serial in [5, 6] {
        assert!(matches!(
            hear(&mut dedup, event(2, serial, 100 + serial)),
            EnvelopeVerdict::New(_)
        ));
    }
    for serial in [5, 6] {
        let verdict = hear(&mut dedup, event(2, serial, 200 + serial));
        assert_eq!(verdict, EnvelopeVerdict::Doubled);
    }
    // Of another sender, and on another topic, they are others.
    assert!(matches!(hear(&mut dedup, event(3, 5, 300)), EnvelopeVerdict::New(_)));
    assert!(matches!(dedup.judge_envelope("u", event(2, 5, 300)), EnvelopeVerdict::New(_)));
    // Without a serial nothing is known.
    for _ in 0..2 {
        assert!(matches!(hear(&mut dedup, event(2, 0, 0)), EnvelopeVerdict::New(_)));
    }
}

#[test]
fn what_a_failover_brings_again_is_heard_once() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("t", 1);
    dedup.note_kept("t", MessageId::from(&event(2, 5, 100)));
    assert_eq!(dedup.misses_after("t"), Some(0), "nothing was senders on the topic yet");
    assert_eq!(caught_up(&mut dedup), [0; 0]);
    assert_eq!(hear(&mut dedup, event(2, 5, 3 * OVERLAP)), EnvelopeVerdict::Doubled);
    hear(&mut dedup, event(2, 6, 3 * OVERLAP));
    dedup.begin_catch_up();
    dedup.step_back(|_| true);
    assert_eq!(dedup.misses_after("t"), Some(2 * OVERLAP));
}

#[test]
fn who_came_since_does_not_hear_old_events_said_again_behind_later_ones() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("t", 3 * OVERLAP);
    caught_up(&mut dedup);
    hear(&mut dedup, event(2, 8, 3 * OVERLAP + 5));
    let again = |serial| Envelope { again: true, ..event(2, serial, 5 * OVERLAP) };
    assert_eq!(hear(&mut dedup, again(7)), EnvelopeVerdict::Doubled);
    assert!(matches!(hear(&mut dedup, again(9)), EnvelopeVerdict::New(_)), "it was lost");
    // Of another sender nothing follows from that.
    let other = Envelope { origin: 3, ..again(7) };
    assert!(matches!(hear(&mut dedup, other), EnvelopeVerdict::New(_)));
}

#[test]
fn a_failover_brings_nothing_from_before_anybody_came() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("opened", 3 * OVERLAP);
    dedup.begin_at("begun", 4 * OVERLAP);
    while dedup.next_waiting("opened", 0).is_some() {}
    dedup.begin_catch_up();
    dedup.step_back(|_| true);
    assert_eq!(dedup.misses_after("opened"), Some(3 * OVERLAP));
    assert_eq!(dedup.misses_after("begun"), Some(4 * OVERLAP));
}

#[test]
fn what_was_sent_while_a_topic_was_opened_does_not_come_behind_later_events_after_a_failover() {
    let mut dedup = Deduplicator::new(1);
    for name in ["t", "begun"] {
        dedup.open_topic(name, 3 * OVERLAP);
    }
    dedup.begin_at("begun", 3 * OVERLAP);
    for name in ["t", "begun"] {
        // One was sent at `+ 1`, before the subscription held.
        while dedup.next_waiting(name, 3 * OVERLAP + 2).is_some() {}
        dedup.note_delivered(name, MessageId::from(&event(2, 9, 3 * OVERLAP + 9)));
    }
    dedup.begin_catch_up();
    dedup.step_back(|_| true);
    assert_eq!(dedup.misses_after("t"), Some(3 * OVERLAP + 2));
    assert_eq!(dedup.misses_after("begun"), Some(3 * OVERLAP), "somebody was there");
}

#[test]
fn a_nodes_own_event_came_behind_a_later_one_that_subscribers_had_without_redis() {
    let mut dedup = Deduplicator::new(1);
    dedup.begin_at("t", 1);
    let is_news = |dedup: &Deduplicator, envelope| dedup.filter_duplicate("t", envelope);
    assert!(is_news(&dedup, event(1, 5, 100)).is_some());
    dedup.note_local_delivery("t", 6);
    assert!(is_news(&dedup, event(1, 5, 100)).is_none());
    let body = EnvelopeBody::Cached { except: None, frame: Bytes::new(), data: Bytes::new() };
    let cached = Envelope { delivered: false, body, ..event(1, 5, 100) };
    assert!(is_news(&dedup, cached).is_some_and(|kept| kept.delivered));
    assert!(is_news(&dedup, event(1, 7, 100)).is_some());
    // Another node's serials are others, and messages without one have no order.
    assert!(is_news(&dedup, event(2, 5, 100)).is_some());
    assert!(is_news(&dedup, event(1, 0, 100)).is_some());
}

#[test]
fn a_node_is_new_once() {
    let mut dedup = Deduplicator::new(1);
    dedup.note_node(1);
    assert!(!dedup.take_newcomer(), "it is this one");
    dedup.note_node(2);
    assert!(dedup.take_newcomer() && !dedup.take_newcomer());
    dedup.note_node(2);
    assert!(!dedup.take_newcomer());
    (0..10_000).for_each(|node| dedup.note_node(node));
    assert!(dedup.others.len() <= NODES);
}

#[test]
fn one_serial_out_of_line_hides_no_other() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("t", 1);
    caught_up(&mut dedup);
    assert!(matches!(hear(&mut dedup, event(2, u64::MAX, 1)), EnvelopeVerdict::New(_)));
    for serial in 1..=SERIALS as u64 {
        let verdict = hear(&mut dedup, event(2, serial, 1));
        assert!(matches!(verdict, EnvelopeVerdict::New(_)), "{serial}");
    }
    // What is older than all that are remembered was heard too.
    assert_eq!(hear(&mut dedup, event(2, 1, 1)), EnvelopeVerdict::Doubled);
    assert_eq!(hear(&mut dedup, event(2, 2, 1)), EnvelopeVerdict::Doubled);
}

#[test]
fn what_was_missed_comes_before_what_comes_in() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("t", 1);
    assert_eq!(dedup.misses_after("t"), Some(0), "a new topic has missed nothing");
    dedup.note_log_end("t", 50);
    assert_eq!(caught_up(&mut dedup), [0; 0]);
    assert_eq!(dedup.misses_after("t"), None);
    hear(&mut dedup, event(2, 1, 101));
    dedup.begin_catch_up();
    assert_eq!(dedup.misses_after("t"), Some(101));
    // The fourth came in before the log was read, the fifth after.
    assert_eq!(dedup.judge_envelope("t", event(2, 4, 104)), EnvelopeVerdict::Waits);
    for serial in 2..=4 {
        let mark = MessageId::from(&event(2, serial, 100 + serial));
        assert!(!dedup.is_known("t", mark));
        dedup.note_delivered("t", mark);
    }
    dedup.note_log_end("t", 104);
    assert_eq!(dedup.judge_envelope("t", event(2, 5, 105)), EnvelopeVerdict::Waits);
    assert_eq!(caught_up(&mut dedup), [5]);
    assert_eq!(hear(&mut dedup, event(2, 4, 104)), EnvelopeVerdict::Doubled);
    dedup.begin_catch_up();
    assert_eq!(dedup.misses_after("t"), Some(105));
}

#[test]
fn places_that_begin_again_hide_nothing() {
    let mut dedup = Deduplicator::new(1);
    dedup.begin_at("t", 1000);
    dedup.begin_catch_up();
    assert_eq!(dedup.misses_after("t"), Some(1000));
    assert_eq!(caught_up(&mut dedup), [0; 0]);
    assert!(matches!(hear(&mut dedup, event(2, 7, 10)), EnvelopeVerdict::New(_)));
    dedup.begin_catch_up();
    assert_eq!(dedup.misses_after("t"), Some(10));
}

#[test]
fn it_knows_its_own_and_forgets_old_senders() {
    let mut dedup = Deduplicator::new(1);
    dedup.open_topic("t", 1);
    caught_up(&mut dedup);
    hear(&mut dedup, event(1, 9, 0));
    assert!(dedup.has_own("t", 9) && !dedup.has_own("t", 10));
    assert!(!dedup.has_own("u", 1), "another topic may be another server's");
    dedup.note_local_delivery("t", 12);
    assert!(!dedup.has_own("t", 12), "it has not come back");
    assert_eq!(hear(&mut dedup, event(1, 12, 0)), EnvelopeVerdict::Doubled);
    for sender in 0..1000 {
        hear(&mut dedup, event(sender, 1, 0));
    }
    assert_eq!(dedup.topics["t"].senders.len(), SENDERS);
}
