//! Sessions in memory, told nonsense: whatever a client says, every answer is a frame that all clients
//! can read, the count of subscriptions stays right, and no one else hears of it.

use crate::dialogue::expect::is_sound;
use crate::support::Chance;
use crate::support::memory::Memory;
use crate::support::websocket::Heard;

const ROUNDS: usize = 20_000;

/// What texts are made of: mostly the protocol's own words, so that much of it is nearly right.
const WORDS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "-1e999",
    "7",
    " ",
    "\"event\":",
    "\"data\":",
    "\"channel\":",
    "\"auth\":",
    "\"channel_data\":",
    "\"user_data\":",
    "\"user_id\":",
    "\"id\":",
    "\"watchlist\":",
    "\"pusher:subscribe\"",
    "\"pusher:unsubscribe\"",
    "\"pusher:signin\"",
    "\"pusher:ping\"",
    "\"pusher:pong\"",
    "\"client-x\"",
    "\"pub\"",
    "\"presence-x\"",
    "\"private-x\"",
    "\"cache-x\"",
    "\"#server-to-user-1\"",
    "\"\"",
    "\"ü🎉\"",
    "\"{\\\"user_id\\\":1}\"",
    "{\"channel\":\"pub\"}",
    "\u{7f}",
];

/// Frames that are right, to be spoilt in one place.
const FRAMES: [&str; 6] = [
    r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"pub"}}"#,
    r##"{"event":"pusher:subscribe","data":{"auth":"k:00","channel_data":"{\"user_id\":\"1\",\"user_info\":{\"a\":[1]}}","channel":"presence-x"}}"##,
    r#"{"event":"pusher:unsubscribe","data":{"channel":"pub"}}"#,
    r#"{"event":"pusher:signin","data":{"auth":"k:00","user_data":"{\"id\":\"1\",\"watchlist\":[\"2\"]}"}}"#,
    r#"{"event":"client-x","channel":"pub","data":{"k":[1.0,"\u00fc"]}}"#,
    r#"{"event":"pusher:ping","data":"{}"}"#,
];

fn nonsense(chance: &mut Chance) -> String {
    if chance.below(2) == 0 {
        let count = chance.below(25);
        return (0..count).map(|_| WORDS[chance.below(WORDS.len())]).collect();
    }
    let frame = FRAMES[chance.below(FRAMES.len())];
    let mut chars: Vec<char> = frame.chars().collect();
    for _ in 0..=chance.below(3) {
        let at = chance.below(chars.len());
        match chance.below(3) {
            0 => drop(chars.remove(at)),
            1 => chars.insert(at, ['"', '\\', '{', '}', ',', '\u{0}', 'ü', '🎉'][chance.below(8)]),
            _ => chars.swap(at, frame.len() % (at + 1)),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn nonsense_is_answered_and_harms_no_one() {
    let memory = Memory::new(2, |app| app.features.watchlist = true);
    let mut chance = Chance::new("nonsense");
    let mut bystander = memory.connect(1);
    bystander.subscribe("bystander", "");
    bystander.heard();
    let mut talk = memory.connect(0);
    for round in 0..ROUNDS {
        let text = nonsense(&mut chance);
        talk.say(&text);
        for heard in talk.heard() {
            let Heard::Text(answer) = heard else { panic!("{heard:?} after {text}") };
            assert_eq!(is_sound(&answer), Ok(()), "{answer} after {text}");
        }
        if round % 100 == 99 {
            talk = memory.connect(0);
            memory.deliver_all();
            assert_eq!(bystander.heard(), []);
            assert_eq!(memory.inspect("pub").0, 0, "somebody who has gone is still subscribed");
        }
    }
    memory.publish(0, "bystander", "e", "1");
    memory.deliver_all();
    assert_eq!(bystander.heard().len(), 1);
}

/// Nesting is refused or followed, but never down the stack of the thread that carries everyone.
#[test]
fn depth_is_no_danger() {
    let memory = Memory::new(1, |_| {});
    let mut talk = memory.connect(0);
    for deep in [
        "[".repeat(100_000),
        r#"{"a":"#.repeat(50_000),
        format!(
            r#"{{"event":"client-x","channel":"pub","data":{}{}}}"#,
            "[".repeat(9000),
            "]".repeat(9000)
        ),
        format!(r#"{{"event":"pusher:subscribe","data":"{}"}}"#, r"{\\".repeat(20_000)),
    ] {
        talk.say(&deep);
        assert_eq!(talk.heard().len(), 1);
    }
}

/// Each answer is short, but each has a place in memory: 20,000 of them are under the limit by their bytes.
#[test]
fn short_answers_that_nobody_reads_count_for_what_they_take() {
    let memory = Memory::new(1, |app| app.limits.outbox_bytes = 1 << 20);
    let mut talk = memory.connect(0);
    for _ in 0..16_000 {
        talk.say(r#"{"event":"pusher:ping"}"#);
    }
    assert_eq!(talk.heard().len(), 16_000);
    for _ in 0..20_000 {
        talk.say(r#"{"event":"pusher:ping"}"#);
    }
    let heard = talk.heard();
    assert!(matches!(heard.last(), Some(Heard::Close(Some((4100, _))))), "{:?}", heard.last());
    assert_eq!(heard.len(), 3, "the frame that was begun, the reason and the close");
}

/// What is said while a subscription waits for other nodes is kept, and each text has a place there.
#[test]
fn empty_texts_are_not_kept_without_end() {
    let (memory, _far) = Memory::of_several(1, |_| {});
    let mut talk = memory.connect(0);
    talk.subscribe("pub", "");
    let mut said = 0;
    while !talk.session.is_ahead() {
        talk.say("");
        said += 1;
        assert!(said < 10_000, "{said} texts are kept");
    }
    assert!(said > 1000, "no more is read after {said} texts");
}
