//! Writing webhook logs over lost links.

use super::*;
use crate::cluster::told_states;

fn hold(board: &mut WebhookLog, user: &str, is: bool) {
    let channel = ChannelName::parse("presence-a", 200).unwrap();
    board.take_request(LogRequest::Held {
        app: AppId::new("1"),
        channel,
        user: UserId::parse(user),
        is,
    });
}

/// Where nobody waits for Redis.
fn held_bytes(board: &WebhookLog) -> u64 {
    board.counted.total()
}

fn queued(board: &WebhookLog) -> String {
    let queue = &board.apps[&AppId::new("1")].queue;
    queue.iter().map(|word| format!("{}{} ", word.signed(), word.text.replace('\n', "/"))).collect()
}

#[test]
fn what_was_said_before_is_told_from_what_is_new() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    hold(&mut board, "1", true);
    hold(&mut board, "1", true);
    hold(&mut board, "2", true);
    assert_eq!(queued(&board), "+mpresence-a/1 +mpresence-a/2 ");
    board.apps.get_mut(&app).unwrap().note_written(1);
    board.note_link_lost();
    hold(&mut board, "3", true);
    hold(&mut board, "4", true);
    hold(&mut board, "4", false);
    board.take_request(LogRequest::Happened { app: app.clone(), text: "x".to_owned() });
    board.resend_holds(BTreeSet::new(), |_| true);
    let all = "=mpresence-a/1 +mpresence-a/2 +mpresence-a/3 !1x ";
    assert_eq!(queued(&board), all);
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), all);
    hold(&mut board, "9", false);
    assert_eq!(queued(&board), all, "it was never held");
}

#[test]
fn who_toggles_while_redis_is_slow_leaves_one_word_at_most() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    hold(&mut board, "steady", true);
    let before = held_bytes(&board);
    for number in 0..20_000 {
        for is in [true, false] {
            hold(&mut board, "same", is);
            hold(&mut board, &number.to_string(), is);
        }
    }
    assert_eq!(queued(&board), "+mpresence-a/steady ");
    assert_eq!(held_bytes(&board), before);
    // What happened has a bound of its own, which comings and goings cannot fill.
    for number in 0..2 * MAX_WAITING {
        hold(&mut board, &number.to_string(), true);
    }
    let happened = |text: &str| LogRequest::Happened { app: app.clone(), text: text.to_owned() };
    assert!(board.take_request(happened("x")));
    let large = "y".repeat(MAX_WAITING_BYTES);
    assert!(!board.take_request(happened(&large)));
    for number in 0..2 * MAX_WAITING {
        hold(&mut board, &number.to_string(), false);
    }
    assert_eq!(queued(&board), "+mpresence-a/steady !1x ");
    board.apps.get_mut(&app).unwrap().note_written(2);
    hold(&mut board, "steady", false);
    assert_eq!(queued(&board), "-mpresence-a/steady ");
    hold(&mut board, "steady", true);
    assert_eq!(queued(&board), "", "Redis holds it as before");
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), "=mpresence-a/steady ", "and was told so");
    board.apps.remove(&app);
    assert_eq!(held_bytes(&board), 0);
}

#[test]
fn what_redis_may_have_is_not_taken_back() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    hold(&mut board, "1", true);
    hold(&mut board, "2", true);
    // A request that is not answered yet.
    board.apps.get_mut(&app).unwrap().queue.note_asked(1);
    hold(&mut board, "1", false);
    hold(&mut board, "2", false);
    assert_eq!(queued(&board), "+mpresence-a/1 -mpresence-a/1 ");
    hold(&mut board, "1", true);
    assert_eq!(queued(&board), "+mpresence-a/1 ");
    hold(&mut board, "1", false);
    board.apps.get_mut(&app).unwrap().note_written(1);
    assert_eq!(queued(&board), "-mpresence-a/1 ");
    // Said again under a new lease, of which it is not known whether Redis had the first.
    hold(&mut board, "3", true);
    board.note_link_lost();
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), "+mpresence-a/3 ");
    hold(&mut board, "3", false);
    assert_eq!(queued(&board), "+mpresence-a/3 -mpresence-a/3 ");
}

#[test]
fn what_happened_last_is_said_again_with_its_number() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    for text in ["x", "y", "z"] {
        board.take_request(LogRequest::Happened { app: app.clone(), text: text.to_owned() });
    }
    board.apps.get_mut(&app).unwrap().note_written(2);
    assert_eq!(queued(&board), "!3z ");
    drop(board.requeue_recent(|_| true));
    assert_eq!(queued(&board), "!1x !2y !3z ");
    board.apps.get_mut(&app).unwrap().note_written(3);
    board.take_request(LogRequest::Done { app: app.clone(), id: "1-0".into() });
    board.apps.get_mut(&app).unwrap().taken_out(1);
    drop(board.requeue_recent(|_| true));
    assert_eq!(board.apps[&app].done, [Box::from("1-0")]);
    drop(board.requeue_recent(|_| true));
    assert_eq!(queued(&board), "!1x !2y !3z ");
}

#[tokio::test(start_paused = true)]
async fn who_came_just_before_a_failover_and_left_during_it_is_told_to_have_left() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    for user in ["1", "2", "3"] {
        hold(&mut board, user, true);
        board.apps.get_mut(&app).unwrap().note_written(1);
        tokio::time::advance(RECENT * 2 / 5).await;
    }
    board.note_link_lost();
    hold(&mut board, "1", false);
    hold(&mut board, "2", false);
    tokio::time::advance(RECENT).await;
    drop(board.requeue_recent(|_| true));
    let all = "=mpresence-a/3 +mpresence-a/2 -mpresence-a/2 ";
    // The first is in Redis for long, and ends with the lease that holds it there.
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), all);
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), all, "until Redis has it");
    board.apps.get_mut(&app).unwrap().note_written(3);
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), "=mpresence-a/3 ");
}

#[tokio::test(start_paused = true)]
async fn how_long_the_next_link_takes_does_not_decide_what_may_be_lost() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    let happened = |text: &str| LogRequest::Happened { app: app.clone(), text: text.to_owned() };
    board.take_request(happened("old"));
    board.apps.get_mut(&app).unwrap().note_written(1);
    tokio::time::advance(RECENT).await;
    hold(&mut board, "1", true);
    board.apps.get_mut(&app).unwrap().note_written(1);
    hold(&mut board, "2", true);
    // Redis has it, and the answer is lost.
    board.apps.get_mut(&app).unwrap().queue.note_asked(1);
    board.note_loss();
    hold(&mut board, "1", false);
    hold(&mut board, "2", false);
    tokio::time::advance(RECENT * 2).await;
    // The next link is to the same server, and is lost before anything is said.
    board.note_loss();
    board.note_link_lost();
    drop(board.requeue_recent(|_| true));
    board.resend_holds(BTreeSet::new(), |_| true);
    let both = "+mpresence-a/1 +mpresence-a/2 -mpresence-a/2 -mpresence-a/1 ";
    assert_eq!(queued(&board), both, "and not what happened long before");
}

#[tokio::test(start_paused = true)]
async fn what_was_told_is_said_once_all_are_back() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    hold(&mut board, "1", true);
    board.apps.get_mut(&app).unwrap().note_written(1);
    let entry = |id: &str, text: &str| LogEntry { id: id.into(), text: text.to_owned() };
    let read = [entry("1-0", "+mpresence-a\n1"), entry("2-0", "Nb\n3\n7")];
    board.apps.get_mut(&app).unwrap().note_read(&read);
    board.take_request(LogRequest::Done { app: app.clone(), id: "1-0".into() });
    board.note_link_lost();
    let topic = Topic { app: app.clone(), channel: ChannelName::parse("b", 200).unwrap() };
    assert_eq!(board.requeue_recent(|_| true).1, [topic], "its count is told again");
    for _ in 0..2 {
        board.resend_holds(BTreeSet::new(), |_| true);
        board.queue_restated(false);
        assert_eq!(queued(&board), "=mpresence-a/1 ");
        tokio::time::advance(RESTATE_AFTER).await;
        board.queue_restated(false);
        board.queue_restated(false);
        assert_eq!(queued(&board), "=mpresence-a/1 ?1mpresence-a/1 ", "until Redis has it");
    }
    board.apps.get_mut(&app).unwrap().note_written(2);
    board.resend_holds(BTreeSet::new(), |_| true);
    tokio::time::advance(RESTATE_AFTER).await;
    board.queue_restated(true);
    assert_eq!(queued(&board), "=mpresence-a/1 ");
}

#[tokio::test(start_paused = true)]
async fn what_redis_lost_is_said_once_all_is_there_again() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.take_request(LogRequest::Apps(vec![(app.clone(), true)]));
    board.resend_holds(BTreeSet::new(), |_| true);
    for (user, wait) in [("1", RECENT), ("2", Duration::ZERO), ("3", RECENT), ("4", RECENT / 2)] {
        hold(&mut board, user, true);
        board.apps.get_mut(&app).unwrap().note_written(1);
        tokio::time::advance(wait).await;
    }
    board.held_until_now(Instant::now());
    // One leaves and Redis knows, one leaves while it is away, and one that has just come.
    hold(&mut board, "2", false);
    board.apps.get_mut(&app).unwrap().note_written(1);
    board.note_loss();
    hold(&mut board, "3", false);
    board.note_link_lost();
    hold(&mut board, "5", true);
    hold(&mut board, "5", false);
    let topic = Topic { app: app.clone(), channel: ChannelName::parse("b", 200).unwrap() };
    board.note_counted(&topic);
    let now = Instant::now();
    board.note_emptied(|_| true, now, RECENT);
    board.resend_holds(BTreeSet::new(), |_| true);
    let held = "=mpresence-a/1 +mpresence-a/4 ";
    assert_eq!(queued(&board), held, "what began of late may not have been told");
    tokio::time::advance(RESTATE_AFTER * 2).await;
    board.queue_restated(true);
    assert_eq!(queued(&board), held, "it is not known yet how it is");
    board.apps.get_mut(&app).unwrap().note_written(2);
    assert_eq!(board.note_restored(), [topic], "its count is told again");
    board.queue_restated(false);
    let restated = "?1mpresence-a/2 ?1mpresence-a/3 ";
    assert_eq!(queued(&board), restated);
    // The log is another than this node knows, and takes nothing.
    let of = board.apps.get_mut(&app).unwrap();
    let refused = of.restated_of(5);
    of.note_written(2);
    of.note_refused(refused);
    board.queue_restated(false);
    assert_eq!(queued(&board), restated);
    board.apps.get_mut(&app).unwrap().note_written(2);
    board.queue_restated(false);
    assert_eq!((queued(&board).as_str(), board.note_restored().len()), ("", 0));
    // Whoever tells that a silent node is gone remembers that for a while.
    for (silent, held) in [
        (RECENT * 2, "=mpresence-a/1 +mpresence-a/4 "),
        (told_states::KEPT, "+mpresence-a/1 +mpresence-a/4 "),
    ] {
        tokio::time::advance(silent).await;
        board.note_emptied(|_| true, Instant::now(), RECENT);
        board.resend_holds(BTreeSet::new(), |_| true);
        assert_eq!(queued(&board), held, "after {silent:?}");
    }
    board.apps.get_mut(&app).unwrap().note_written(2);
    board.resend_holds(BTreeSet::new(), |_| true);
    assert_eq!(queued(&board), "=mpresence-a/1 =mpresence-a/4 ");
    for user in ["1", "4"] {
        hold(&mut board, user, false);
    }
    board.apps.get_mut(&app).unwrap().note_written(4);
    let of = &board.apps[&app];
    assert_eq!((of.name_bytes, of.held.len()), (0, 0));
}

#[test]
fn an_app_without_anything_is_forgotten() {
    let (mut board, app) = (WebhookLog::default(), AppId::new("1"));
    board.resend_holds(BTreeSet::new(), |_| true);
    board.take_request(LogRequest::Apps(vec![(app.clone(), true)]));
    hold(&mut board, "1", true);
    board.apps.get_mut(&app).unwrap().note_written(1);
    board.take_request(LogRequest::Apps(Vec::new()));
    hold(&mut board, "1", false);
    board.forget_if_done(&app);
    assert_eq!(board.apps.len(), 1, "Redis is to be told");
    board.apps.get_mut(&app).unwrap().note_written(1);
    board.forget_if_done(&app);
    assert!(board.apps.is_empty());
}
