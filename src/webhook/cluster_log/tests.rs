//! Tests of a log's entries: the events they lead to, and when they are acknowledged.

use std::sync::Mutex;

use super::*;
use crate::app::WebhookEvent;

struct Stage {
    door: Rc<AckSink>,
    done: Arc<Mutex<Vec<String>>>,
    ends: HeldEnds,
    app: Arc<App>,
    /// In milliseconds, by the clock of Redis.
    now: u64,
    next: u64,
}

impl Stage {
    fn new() -> Self {
        let done = Arc::new(Mutex::new(Vec::new()));
        let noted = done.clone();
        let door: EntryAcknowledger =
            Box::new(move |_, id| noted.lock().unwrap().push(id.to_owned()));
        let (door, app) = (AckSink::new(Some(door)), Arc::new(App::new("1", "k", "s")));
        Self { door, done, ends: HeldEnds::default(), app, now: 1000, next: 0 }
    }

    /// An entry of now; what is told of it.
    fn turn(&mut self, is: bool) -> String {
        let (what, receipt) = self.entry(is);
        words(&self.ends.turn(&self.app, what, receipt))
    }

    /// The same of an entry that says how it was told before a failover.
    fn restate(&mut self, told: Option<bool>, is: bool) -> String {
        let (what, receipt) = self.entry(is);
        words(&self.ends.restate(&self.app, told, what, receipt))
    }

    fn entry(&mut self, is: bool) -> ((bool, ChannelName, Option<UserId>), Rc<LogAck>) {
        self.next += 1;
        let id = format!("{}-{}", self.now, self.next);
        let what = (is, ChannelName::parse("a", 200).unwrap(), None);
        (what, LogAck::new(&self.door, &self.app.id, &id))
    }

    /// The log is read so much later; how many ends are due.
    fn wait(&mut self, millis: u64) -> usize {
        self.now += millis;
        self.ends.due(&self.app.id, self.now).len()
    }

    fn done(&self) -> String {
        self.done.lock().unwrap().join(" ")
    }
}

/// Beginnings and ends, in order.
fn words(told: &[DueEvent]) -> String {
    let words = told.iter().map(|(_, event, _)| match event.kind() {
        WebhookEvent::ChannelOccupied => "+",
        _ => "-",
    });
    words.collect()
}

#[test]
fn an_end_that_is_taken_back_is_done_with_its_taking_back() {
    let mut stage = Stage::new();
    assert_eq!(stage.turn(true), "+");
    assert_eq!(stage.done(), "1000-1");
    assert_eq!(stage.turn(false), "");
    assert_eq!((stage.wait(2_900), stage.done().as_str()), (0, "1000-1"));
    assert_eq!(stage.turn(true), "");
    assert_eq!((stage.wait(5_000), stage.done().as_str()), (0, "1000-1 1000-2 3900-3"));
    stage.turn(false);
    stage.turn(true);
    stage.turn(false);
    assert_eq!((stage.wait(2_900), stage.wait(200)), (0, 1), "the last one alone is due");
    assert!(stage.ends.due.is_empty() && stage.ends.waiting.is_empty());
}

#[test]
fn what_was_told_before_a_failover_is_told_anew_where_it_is_not_so() {
    // Its beginning was told, and its end was lost with a server.
    let mut stage = Stage::new();
    assert_eq!(stage.restate(Some(true), false), "");
    assert_eq!(stage.wait(3_000), 1);
    // Its end was told, and its return was lost.
    assert_eq!(stage.restate(Some(false), true), "+");
    // What is told is so.
    assert_eq!(stage.restate(Some(true), true), "");
    assert_eq!((stage.restate(Some(false), false), stage.wait(9_000)), (String::new(), 0));
    // Nobody knows.
    assert_eq!(stage.restate(None, true), "+");
    assert_eq!((stage.restate(None, false), stage.wait(3_000)), (String::new(), 1));
}

#[test]
fn an_end_that_was_told_before_a_failover_is_not_taken_back_by_a_return() {
    // The new master had it still, so that its log has the end once more.
    for told in [Some(false), None] {
        let mut stage = Stage::new();
        assert_eq!((stage.turn(false), stage.restate(told, false)), (String::new(), String::new()));
        stage.now += 1_000;
        assert_eq!(stage.turn(true), "+");
    }
    let mut stage = Stage::new();
    assert_eq!((stage.turn(false), stage.restate(Some(true), false)), Default::default());
    assert_eq!(stage.turn(true), "", "the end was not told");
    // The node that told the beginning speaks after another one that has told the end.
    assert_eq!(stage.restate(Some(true), false), "");
    assert_eq!(stage.turn(true), "+");
    assert!(stage.ends.waiting.is_empty());
}

#[test]
fn how_soon_somebody_came_back_does_not_depend_on_when_that_is_read() {
    let mut stage = Stage::new();
    stage.turn(false);
    // Both entries are read at once, after a time without Redis.
    stage.now += 3_000;
    assert_eq!(stage.turn(true), "-+", "the end was news, and so is the return");
    stage.turn(false);
    stage.now += 2_999;
    assert_eq!(stage.turn(true), "");
    assert_eq!(stage.wait(10_000), 0);
}

#[test]
fn what_is_left_to_another_node_stays_in_the_log() {
    let mut stage = Stage::new();
    stage.turn(false);
    stage.door.lose(&AppId::new("1"));
    stage.ends.leave(&AppId::new("1"));
    assert_eq!((stage.wait(4_000), stage.done().as_str()), (0, ""));
    stage.turn(false);
    stage.door.close();
    stage.ends = HeldEnds::default();
    assert_eq!(stage.done(), "");
}

#[test]
fn what_was_read_is_told_while_the_office_is_sure() {
    let stage = Stage::new();
    let receipt = LogAck::new(&stage.door, &stage.app.id, "1-0");
    assert_eq!(receipt.office(), OfficeHold::Unsure);
    stage.door.hold(&stage.app.id, Instant::now() + DELAY);
    assert_eq!(receipt.office(), OfficeHold::Sure);
    stage.door.lose(&stage.app.id);
    stage.door.hold(&stage.app.id, Instant::now() + DELAY);
    assert_eq!(receipt.office(), OfficeHold::Lost, "it is read again");
    drop(receipt);
    assert_eq!(stage.done(), "");
}

#[test]
fn an_end_of_long_ago_in_an_older_log_was_the_last_word() {
    let mut stage = Stage::new();
    let restated = |stage: &mut Stage| {
        let (app, id) = (stage.app.clone(), format!("{}-0", stage.now));
        let receipt = LogAck::new(&stage.door, &app.id, &id);
        let turned = (true, ChannelName::parse("a", 200).unwrap(), None);
        stage.ends.restate(&app, Some(true), turned, receipt).len()
    };
    assert_eq!(restated(&mut stage), 0, "it was told so");
    stage.turn(false);
    assert_eq!(restated(&mut stage), 1, "the end waits");
    assert_eq!(stage.wait(10_000), 0);
    stage.turn(false);
    assert_eq!(stage.wait(10_000), 1);
    assert_eq!(restated(&mut stage), 1, "the end was told");
    assert_eq!(restated(&mut stage), 0);
    stage.turn(false);
    assert_eq!(stage.wait(10_000), 1);
    assert_eq!(stage.turn(true), "+");
    assert_eq!(restated(&mut stage), 0, "a beginning came after it");
}

fn count(stage: &Stage, text: &str) -> ((u64, usize), DueEvent) {
    let Some(ParsedEntry::Count(count, event)) = read(text) else { panic!("{text}") };
    let id = format!("{}-0", count.0);
    (count, (stage.app.clone(), event, LogAck::new(&stage.door, &stage.app.id, &id)))
}

#[test]
fn a_count_of_before_is_no_news() {
    let (mut counts, stage, now) = (LatestCounts::default(), Stage::new(), Instant::now());
    let mut is_news = |channel: &str, version| {
        let (count, told) = count(&stage, &format!("N{channel}\n7\n{version}"));
        counts.take(now, count, told).is_some()
    };
    assert!(is_news("a", 5) && is_news("b", 4) && !is_news("a", 4) && is_news("a", 6));
}

#[test]
fn a_crowd_is_told_its_last_count_after_a_pause() {
    let (mut counts, stage, now) = (LatestCounts::default(), Stage::new(), Instant::now());
    let take = |counts: &mut LatestCounts, after, people, version| {
        let (count, told) = count(&stage, &format!("Na\n{people}\n{version}"));
        counts.take(now + after, count, told).is_some()
    };
    let second = Duration::from_secs(1);
    assert!(take(&mut counts, second, 101, 1));
    assert!(!take(&mut counts, second * 2, 102, 2) && !take(&mut counts, second * 3, 103, 3));
    assert_eq!(stage.done(), "1-0 2-0", "the last one stands for the one before");
    assert_eq!(counts.next(), Some(now + second * 6));
    assert!(counts.due(now + second * 5).is_empty());
    let told = counts.due(now + second * 6);
    assert!(matches!(told.as_slice(), [(_, event, _)] if event.what == MessageContent::Count(103)));
    assert!(take(&mut counts, second * 7, 100, 4), "a crowd no longer");
    assert!(counts.next().is_none());
}

#[test]
fn counts_are_read_as_they_were_written() {
    let read = |text: &str| match read(text) {
        Some(ParsedEntry::Count((version, 7), event)) => {
            (version, event.what == MessageContent::Count(7))
        }
        _ => (0, false),
    };
    assert_eq!(read("Nc\n7\n12"), (12, true));
    assert_eq!(read("Nc\n7"), (0, false));
}
