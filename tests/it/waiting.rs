//! Clients that are away and may come back take a bounded share of memory, whoever fills it, and who had to be
//! forgotten for it is told that it may have missed something.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fanfare::app::AppId;
use fanfare::hub::resume::LogBounds;

use crate::support::fixture::ID;
use crate::support::memory::{Memory, Talk};
use crate::support::websocket::Heard;

/// Half of it is for clients that hold little, a quarter for those that hold much.
const RESUME_BYTES: usize = 1 << 20;

fn memory() -> Memory {
    Memory::new(1, |app| {
        app.features.resume = Duration::from_secs(120);
        app.limits.resume_bytes = RESUME_BYTES;
    })
}

/// Of a page that was loaded `ago` seconds before the test began.
fn token(ago: u64, number: usize) -> String {
    static START: OnceLock<u64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    format!("{}-page-{number:08}", START.get_or_init(now) - ago)
}

fn held(memory: &Memory) -> usize {
    memory.shared.hub.directory(&AppId::new(ID)).held().value() as usize
}

/// Forgotten before their time.
fn crowded(memory: &Memory) -> u64 {
    memory.shared.hub.directory(&AppId::new(ID)).resume.figures.crowded.load(Ordering::Relaxed)
}

/// Comes, subscribes to channels of the longest names, and goes.
fn visit(memory: &Memory, token: &str, channels: std::ops::Range<usize>) {
    let mut talk = memory.connect_as(0, token);
    for channel in channels {
        talk.subscribe(&format!("{token:x<180}{channel:08}"), "");
        talk.heard();
    }
    memory.nodes[0].expire_clients();
}

/// Whether a channel that is subscribed to has a gap.
fn has_gap(talk: &mut Talk, channel: &str) -> bool {
    talk.subscribe(channel, "");
    let told = talk.heard();
    assert!(
        matches!(&told[0], Heard::Text(text) if text.contains("subscription_succeeded")),
        "{told:?}"
    );
    matches!(told.get(1), Some(Heard::Text(text)) if text.contains("resume:gap"))
}

/// Forgets everybody who waits.
fn much_later(memory: &Memory) {
    let bounds = LogBounds { bytes: RESUME_BYTES, seconds: 120 };
    let later = memory.shared.hub.seconds_since_start() + 200;
    let resume = &memory.shared.hub.directory(&AppId::new(ID)).resume;
    resume.expire_clients(later, Duration::from_secs(120), bounds);
    assert_eq!(resume.occupancy(), (0, 0));
}

/// They were bounded by the number of their channels, and 107 MB came in five seconds over one connection after the
/// other.
#[test]
fn clients_that_came_once_with_ever_new_tokens_took_memory_without_end() {
    let memory = memory();
    let mut first = memory.connect_as(0, &token(10, 0));
    first.subscribe("first", "");
    drop(first);
    let one = held(&memory);
    assert!(one > 0, "who waits is counted");
    // Its token says no time, so that it is not older than this server.
    let mut new = memory.connect_as(0, "0123456789abcdef");
    assert!(!has_gap(&mut new, "new"), "nobody is forgotten yet");
    drop(new);
    for number in 2..2000 {
        visit(&memory, &token(5, number), 0..1);
    }
    assert!(crowded(&memory) > 500, "{}", crowded(&memory));
    let all = held(&memory);
    assert!(all > RESUME_BYTES / 4 && all < RESUME_BYTES, "{all}");
    let mut first = memory.connect_as(0, &token(10, 0));
    assert!(has_gap(&mut first, "first"), "it was forgotten");
    let mut last = memory.connect_as(0, &token(5, 1_999));
    assert!(!has_gap(&mut last, &format!("{:x<180}{:08}", token(5, 1_999), 0)), "it was not");
    drop((first, last));
    much_later(&memory);
    assert_eq!(held(&memory), 0);
}

#[test]
fn who_waits_with_few_channels_is_not_pushed_out_by_those_with_many() {
    let memory = memory();
    let mut first = memory.connect_as(0, &token(10, 0));
    first.subscribe("first", "");
    drop(first);
    for number in 1..60 {
        visit(&memory, &token(5, number), 0..100);
    }
    assert!(crowded(&memory) > 40, "{}", crowded(&memory));
    assert!(held(&memory) < RESUME_BYTES, "{}", held(&memory));
    memory.publish(0, "first", "e", "missed");
    let mut first = memory.connect_as(0, &token(10, 0));
    first.subscribe("first", "");
    let told = first.heard();
    assert!(
        matches!(&told[1..], [Heard::Text(text)] if text.contains(r#""data":"missed""#)),
        "{told:?}"
    );
    drop(first);
    much_later(&memory);
    assert_eq!(held(&memory), 0);
}

/// What it held before was kept for as long as it came back.
#[test]
fn a_client_that_came_again_and_again_held_more_each_time() {
    let memory = Memory::new(1, |app| app.features.resume = Duration::from_secs(120));
    let page = token(10, 0);
    visit(&memory, &page, 0..100);
    let once = held(&memory);
    visit(&memory, &page, 100..200);
    assert!(held(&memory) > once * 3 / 2, "cut off while it came back, it holds both");
    for round in 2..50 {
        visit(&memory, &page, round * 100..(round + 1) * 100);
    }
    assert!(held(&memory) < once * 6, "{} after {once}", held(&memory));
    let mut back = memory.connect_as(0, &page);
    assert!(has_gap(&mut back, &format!("{page:x<180}{:08}", 0)), "nobody knows");
    assert!(!has_gap(&mut back, &format!("{page:x<180}{:08}", 4_999)), "held till the end");
    for channel in 0..1000 {
        memory.publish(0, &format!("{page:x<180}{channel:08}"), "e", "1");
    }
    drop(back);
    much_later(&memory);
    assert_eq!(held(&memory), 0);
}

#[test]
fn the_next_process_counts_what_it_is_left_and_this_one_no_more() {
    let memory = memory();
    for number in 0..20 {
        visit(&memory, &token(5, number), 0..number);
    }
    let before = held(&memory);
    let next = memory.hand_over();
    assert_eq!((held(&memory), held(&next)), (0, before));
    much_later(&next);
    assert_eq!(held(&next), 0);
}
