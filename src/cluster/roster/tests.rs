//! Rosters whose messages arrive out of order.

use super::*;

fn member(id: &str) -> Member {
    Member { user_id: UserId::parse(id).unwrap(), user_info: "{}".into() }
}

fn users(roster: &Roster) -> String {
    roster.users().iter().map(UserId::as_str).collect()
}

#[test]
fn late_and_doubled_news_changes_nothing() {
    let mut roster = Roster::default();
    roster.apply_load(
        &LoadedRoster { version: 10, members: vec![(3, member("b")), (2, member("a"))] },
        true,
    );
    assert_eq!(users(&roster), "ab");
    assert!(roster.apply_join(10, &member("c")).is_none());
    assert!(roster.apply_leave(9, &UserId::parse("a").unwrap()).is_none());
    assert!(matches!(roster.apply_join(11, &member("c")), Some(RosterChange::Added(_))));
    assert!(roster.apply_join(12, &member("a")).is_none(), "it has never left");
    assert_eq!(users(&roster), "abc");
    assert!(matches!(roster.apply_leave(13, &member("b").user_id), Some(RosterChange::Removed(_))));
    assert!(roster.apply_leave(14, &member("b").user_id).is_none());
}

#[test]
fn only_true_differences_are_told_after_a_reload() {
    let mut roster = Roster::default();
    roster.apply_load(
        &LoadedRoster { version: 10, members: vec![(1, member("a")), (2, member("b"))] },
        true,
    );
    let emptied = LoadedRoster { version: 20, members: vec![(20, member("c"))] };
    assert_eq!(roster.apply_load(&emptied, false).len(), 1, "c came, and a and b may yet");
    assert_eq!(users(&roster), "abc");
    let restored =
        LoadedRoster { version: 30, members: vec![(25, member("a")), (20, member("c"))] };
    let changes = roster.apply_load(&restored, true);
    assert!(matches!(changes.as_slice(), [RosterChange::Removed(text)] if &*text.id == r#"\"b\""#));
    assert_eq!(users(&roster), "ca");
    assert!(roster.apply_load(&emptied, true).is_empty(), "older than what is known");
}

#[test]
fn who_waits_to_come_in_is_not_held() {
    let mut roster = Roster::default();
    let (a, b) = (member("a"), member("b"));
    roster.apply_load(
        &LoadedRoster { version: 10, members: vec![(1, a.clone()), (2, b.clone())] },
        true,
    );
    roster.claim_member(&a, 9);
    roster.claim_member(&b, 9);
    roster.confirm_user(&b.user_id, 10);
    // Another node held a, and has let go of it meanwhile.
    let changes = roster.apply_load(&LoadedRoster { version: 20, members: Vec::new() }, true);
    assert!(matches!(changes.as_slice(), [RosterChange::Removed(text)] if &*text.id == r#"\"a\""#));
    assert_eq!(users(&roster), "b");
}

#[test]
fn a_user_is_ready_once_the_roster_has_it() {
    let mut roster = Roster::default();
    let a = member("a");
    assert_eq!(roster.claim_member(&a, 9), JoinClaim::First);
    assert_eq!(roster.claim_member(&a, 9), JoinClaim::Known);
    roster.confirm_user(&a.user_id, 12);
    assert!(!roster.is_ready(&a.user_id));
    roster.apply_load(&LoadedRoster { version: 11, members: vec![(5, member("b"))] }, true);
    assert!(!roster.is_ready(&a.user_id), "its own joining is still on its way");
    assert!(roster.apply_join(12, &a).is_some());
    assert!(roster.is_ready(&a.user_id));
    assert!(!roster.release_claim(&a.user_id));
    assert!(roster.release_claim(&a.user_id));
    assert!(!roster.release_claim(&a.user_id));
}

#[test]
fn who_left_while_the_link_was_down_is_not_ready_before_the_roster_is_read_again() {
    let mut roster = Roster::default();
    let a = member("a");
    // Another node holds the user, too.
    roster.apply_load(&LoadedRoster { version: 10, members: vec![(5, a.clone())] }, true);
    roster.claim_member(&a, 9);
    roster.confirm_user(&a.user_id, 10);
    roster.release_claim(&a.user_id);
    assert!(roster.leave_alone(&a.user_id).is_some());
    roster.claim_member(&a, 9);
    roster.confirm_user(&a.user_id, 10);
    assert!(!roster.is_ready(&a.user_id), "it is not on it");
    roster.apply_load(&LoadedRoster { version: 12, members: vec![(5, a.clone())] }, true);
    assert!(roster.is_ready(&a.user_id));
}

#[test]
fn nobody_hears_of_its_own_leaving() {
    let mut roster = Roster::default();
    let a = member("a");
    roster.claim_member(&a, 9);
    roster.apply_load(&LoadedRoster { version: 10, members: vec![(5, a.clone())] }, true);
    // It was cleared away with the node's last lease, and is there again under the next.
    roster.confirm_user(&a.user_id, 20);
    assert!(roster.apply_leave(15, &a.user_id).is_none());
    assert!(roster.apply_join(20, &a).is_none());
    assert_eq!(users(&roster), "a");
}

#[test]
fn a_node_alone_goes_on() {
    let mut roster = Roster::default();
    let a = member("a");
    roster.claim_member(&a, 9);
    assert!(roster.join_alone(&a.user_id).is_some());
    assert!(roster.is_ready(&a.user_id));
    assert!(roster.leave_alone(&a.user_id).is_none(), "still claimed");
    roster.release_claim(&a.user_id);
    assert!(roster.leave_alone(&a.user_id).is_some());
    assert_eq!((roster.count(), roster.version()), (0, 2));
}

#[test]
fn a_member_is_refused_before_redis_is_asked_where_the_roster_would_be_too_long() {
    let held = Arc::new(HeldBytes::default());
    let mut roster = Roster::new(held.clone());
    let each = MemberText::new(&member("a")).roster_bytes();
    roster.apply_load(&LoadedRoster { version: 10, members: vec![(5, member("a"))] }, true);
    assert_eq!(roster.held_bytes(), each);
    assert!(roster.has_room_for(&member("b"), None, 2 * each));
    roster.claim_member(&member("b"), 9);
    assert!(!roster.has_room_for(&member("c"), None, 2 * each), "b is about to come in");
    assert!(roster.has_room_for(&member("b"), None, 2 * each), "another connection of it");
    roster.apply_join(11, &member("b"));
    assert!(!roster.has_room_for(&member("c"), None, 2 * each), "b has come in");
    assert!(roster.has_room_for(&member("c"), None, 3 * each));
    roster.claim_member(&member("d"), 9);
    roster.refuse_user(&UserId::parse("d").unwrap());
    assert!(roster.has_room_for(&member("c"), None, 3 * each), "d was not let in");
    // Until its connections have given up, what d has said of itself is held as well.
    let claims = 2 * (LOCAL_BYTES + 1 + member("b").user_info.len());
    assert_eq!(held.value(), (2 * (each + MEMBER_BYTES) + claims) as u64);
    for user in ["b", "d"] {
        assert!(roster.release_claim(&UserId::parse(user).unwrap()));
    }
    assert_eq!(held.value(), (2 * (each + MEMBER_BYTES)) as u64);
    roster.apply_leave(12, &UserId::parse("a").unwrap());
    assert_eq!((roster.held_bytes(), held.value()), (each, (each + MEMBER_BYTES) as u64));
    drop(roster);
    assert_eq!(held.value(), 0);
}

#[test]
fn who_comes_as_somebody_else_leaves_its_place_to_itself() {
    let mut roster = Roster::default();
    let each = MemberText::new(&member("a")).roster_bytes();
    let (a, b) = (UserId::parse("a").unwrap(), UserId::parse("b").unwrap());
    roster.apply_load(
        &LoadedRoster { version: 10, members: vec![(5, member("a")), (6, member("b"))] },
        true,
    );
    roster.claim_member(&member("a"), 9);
    let change = |roster: &Roster, leaving: &UserId, members, bytes| {
        roster.check_change(&member("c"), leaving, PresenceBounds { members, bytes })
    };
    assert_eq!(change(&roster, &a, 2, 2 * each), Ok(()));
    assert_eq!(change(&roster, &b, 2, 9 * each), Err(ChannelFull::Members), "others hold b");
    assert_eq!(change(&roster, &a, 1, 9 * each), Err(ChannelFull::Members));
    assert_eq!(change(&roster, &a, 2, 2 * each - 1), Err(ChannelFull::Bytes));
    assert_eq!(
        roster.check_change(&member("b"), &a, PresenceBounds { members: 0, bytes: 0 }),
        Ok(()),
        "b is there"
    );
    roster.claim_member(&member("a"), 9);
    assert_eq!(change(&roster, &a, 2, 9 * each), Err(ChannelFull::Members), "a has another tab");
    roster.release_claim(&a);
    roster.release_claim(&a);
    // Others have not yet been told that it has left.
    assert!(!roster.has_room_for(&member("c"), None, 2 * each));
    assert!(roster.has_room_for(&member("c"), Some(&a), 2 * each));
}

#[test]
fn who_leaves_and_comes_at_once_is_told_of_with_what_it_says_now() {
    let mut roster = Roster::default();
    let a = UserId::parse("a").unwrap();
    roster.apply_load(&LoadedRoster::default(), true);
    roster.claim_member(&member("a"), 9);
    roster.confirm_user(&a, 10);
    assert!(roster.apply_join(10, &member("a")).is_some());
    // The lease of this node was cleared, and it has said again whom it holds: a has been there all the time.
    roster.confirm_user(&a, 12);
    assert!(roster.apply_leave(11, &a).is_none());
    assert!(roster.apply_join(12, &member("a")).is_none());
    // The client goes and comes; Redis's answer overtakes what all are told.
    roster.release_claim(&a);
    roster.claim_member(&member("a"), 9);
    roster.confirm_user(&a, 14);
    assert!(roster.apply_leave(13, &a).is_some());
    assert!(!roster.is_ready(&a));
    assert!(roster.apply_join(14, &member("a")).is_some());
    assert!(roster.is_ready(&a));
}

#[test]
fn who_came_while_others_held_it_does_not_hear_of_its_own_leaving() {
    let mut roster = Roster::default();
    let a = UserId::parse("a").unwrap();
    roster.apply_load(&LoadedRoster { version: 10, members: vec![(5, member("a"))] }, true);
    roster.claim_member(&member("a"), 9);
    // Nobody is told of another connection of a user who is there.
    roster.confirm_user(&a, 5);
    assert!(roster.is_ready(&a));
    roster.note_let_in(&a);
    // The other node has gone, this one has slept for longer than its lease, and has said again whom it holds.
    roster.confirm_user(&a, 12);
    assert!(roster.apply_leave(11, &a).is_none());
    assert!(roster.apply_join(12, &member("a")).is_none());
}

#[test]
fn who_is_let_in_while_redis_is_away_does_not_hear_of_its_own_leaving() {
    let mut roster = Roster::default();
    let a = UserId::parse("a").unwrap();
    // Another node holds it, and lets go of it while this one has no link.
    roster.apply_load(&LoadedRoster { version: 10, members: vec![(5, member("a"))] }, true);
    roster.claim_member(&member("a"), 9);
    assert!(roster.join_alone(&a).is_none() && roster.is_ready(&a));
    roster.note_let_in(&a);
    assert!(roster.apply_leave(12, &a).is_none(), "it is about to be subscribed");
    assert_eq!(users(&roster), "a");
}
