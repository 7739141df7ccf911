//! Events that a webhook's queue keeps, returns and counts.

use super::*;

fn turned(number: usize, is: bool) -> WebhookMessage {
    let channel = ChannelName::parse(&format!("{number:0190}"), 200).unwrap();
    WebhookMessage::turned((channel, None), is)
}

fn put(line: &mut EventLine, message: WebhookMessage, persistence: Persistence) -> bool {
    if line.take_back(&message).is_some() {
        return false;
    }
    line.push(QueuedEvent { at: 0, content: QueuedContent::Message(message), persistence });
    true
}

/// The events to send, as channel and sign.
fn waiting(line: &EventLine) -> Vec<(usize, bool)> {
    let sent = line.iter().filter_map(|one| match &one.content {
        QueuedContent::Message(WebhookMessage {
            channel,
            what: MessageContent::Turned { is, .. },
        }) => Some((channel.as_str().parse().unwrap(), *is)),
        _ => None,
    });
    sent.collect()
}

#[test]
fn a_line_holds_names_and_no_texts() {
    let mut line = EventLine::default();
    for number in 0..10_000 {
        put(&mut line, turned(number, true), Persistence::Not);
    }
    // The JSON of each was 240 bytes, beside a name that others have as well.
    assert_eq!(line.text_bytes(), 10_000 * 190);
    assert!(size_of::<QueuedEvent>() <= 64, "{}", size_of::<QueuedEvent>());
    assert!(line.held_bytes() <= 10_000 * (190 + 80), "{}", line.held_bytes());
    assert_eq!(line.remove(10_000).len(), 0);
    assert_eq!((line.held_bytes(), line.turns.len()), (0, 0));
    assert!(line.events.capacity() <= KEPT_PLACES && line.turns.capacity() <= KEPT_PLACES);
}

#[test]
fn what_was_tried_is_not_taken_back() {
    let mut line = EventLine::default();
    assert!(put(&mut line, turned(1, true), Persistence::Not));
    assert!(put(&mut line, turned(2, true), Persistence::Not));
    line.note_tried(1);
    assert!(put(&mut line, turned(1, false), Persistence::Not), "it may have been heard");
    assert!(!put(&mut line, turned(2, false), Persistence::Not));
    assert_eq!(waiting(&line), [(1, true), (1, false)]);
    assert!(!put(&mut line, turned(1, true), Persistence::Not), "the end was not tried");
    line.remove(1);
    assert_eq!((line.len(), line.text_bytes()), (0, 0));
}

#[test]
fn what_the_spool_has_is_named_when_it_is_done_with() {
    let mut line = EventLine::default();
    put(&mut line, turned(1, true), Persistence::Spooled(5));
    put(&mut line, turned(2, true), Persistence::Spooled(6));
    let undone = line.take_back(&turned(1, false));
    assert!(matches!(undone, Some(Persistence::Spooled(5))));
    let json = r#"{"name":"x"}"#;
    line.push(QueuedEvent {
        at: 0,
        content: QueuedContent::Json(json.into()),
        persistence: Persistence::Spooled(7),
    });
    let mut text = Vec::new();
    line.iter().for_each(|one| one.content.write_json(&mut text));
    let name = turned(2, true).channel;
    let expected = format!(r#"{{"channel":"{name}","name":"channel_occupied"}}{json}"#);
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    assert_eq!(line.remove(3), [6, 7]);
    assert_eq!(line.held_bytes(), 0);
}

#[test]
fn a_line_is_as_a_plain_list_would_be() {
    let (mut line, mut model) = (EventLine::default(), VecDeque::<(usize, bool, bool)>::new());
    let (mut random, mut there) = (7_u64, vec![false; 300]);
    let mut next = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % bound
    };
    for step in 0..40_000 {
        // Times in which nothing is sent, so that gaps are closed, and times in which much is.
        let sends = (step / 5000) % 2 == 1 && next(3) == 0;
        if sends {
            let tried = line.iter().take(next(8) as usize).count();
            line.note_tried(tried);
            let sent = waiting(&line);
            if next(2) == 0 {
                line.remove(tried);
                let left = waiting(&line).len();
                model.drain(..sent.len() - left);
            } else {
                let in_front = line.iter().take(tried);
                let told = in_front.filter(|one| !one.content.is_taken_back()).count();
                model.iter_mut().take(told).for_each(|one| one.2 = true);
            }
        } else {
            let number = next(there.len() as u64) as usize;
            there[number] = !there[number];
            put(&mut line, turned(number, there[number]), Persistence::Not);
            match model.iter().rposition(|one| one.0 == number && !one.2) {
                Some(at) => drop(model.remove(at)),
                None => model.push_back((number, there[number], false)),
            }
        }
        if step % 50 == 0 {
            assert!(waiting(&line).into_iter().eq(model.iter().map(|one| (one.0, one.1))));
        }
        assert_eq!((line.len(), line.text_bytes()), (model.len(), model.len() * 190));
    }
    assert!(line.events.len() <= 2 * line.len() + MAX_TAKEN_BACK);
}
