//! That the judge notices what is wrong: each kind of wrong is made on purpose, by clients, events and promises that
//! one side of the comparison knows nothing of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::ledger::{Ledger, Outcome};
use super::node::ask;
use super::round::known;
use super::tab::Tab;
use super::verdict::{Kind, look, settle};
use super::view::View;
use super::world::{Kinds, World};
use super::{LEASE, backend};
use crate::support::{Chance, DEADLINE, eventually};

/// Two tabs that watch for a user whom there is not, and all that the judge says is right.
fn quiet() -> Option<World> {
    let world = World::start(Kinds::Single, LEASE, &mut Chance::new("judge"))?;
    for tab in &world.tabs[..2] {
        for channel in ["presence-a", "private-a", "pub-a", "cache-a"] {
            tab.toggle(channel);
        }
        tab.open(Some(vec!["9".to_owned()]));
    }
    is_right(&world);
    Some(world)
}

fn is_right(world: &World) {
    let mut marks = Vec::new();
    let settled = settle(world, Instant::now(), DEADLINE, &known("any"), &mut marks);
    assert!(settled.is_ok() && marks.is_empty(), "{settled:?}, {marks:?}");
}

/// Waits until each of these kinds has been seen.
fn sees(world: &World, expected: &[Kind]) {
    let mut seen = BTreeSet::new();
    eventually(|| {
        seen.extend(look(world).into_iter().map(|wrong| wrong.kind));
        match expected.iter().find(|kind| !seen.contains(kind)) {
            None => Ok(()),
            Some(kind) => Err(format!("{kind:?} is not noticed")),
        }
    })
    .unwrap();
}

#[test]
fn clients_that_the_model_does_not_know_are_noticed_everywhere() {
    let Some(world) = quiet() else { return };
    let ledger = Arc::new(Ledger::default());
    let ghost = Tab::start(99, "9".to_owned(), &world.doors, &ledger, 1);
    ghost.toggle("presence-a");
    ghost.toggle("pub-a");
    ghost.open(Some(Vec::new()));
    sees(&world, &[Kind::Roster, Kind::Count, Kind::Watchlist, Kind::Query, Kind::Webhook]);
    ghost.end();
    is_right(&world);
    // A node that says nothing is not ready, and neither is a tab that gets no answer.
    let key = world.keys()[0];
    world.put_to_sleep(key);
    let addr = world.address(key);
    world.doors.lock().unwrap().insert(key, addr);
    sees(&world, &[Kind::Unready]);
    world.wake(key);
    is_right(&world);
}

#[test]
fn events_that_are_lost_doubled_moved_or_made_up_are_noticed() {
    let Some(world) = quiet() else { return };
    let doors = world.doors.lock().unwrap().clone();
    let (key, addr) = doors.into_iter().next().unwrap();
    let (by, channels) = (key.to_string(), ["pub-a".to_owned()]);
    let publish = |number: usize| {
        let body = json!({ "name": "e", "channel": "pub-a", "data": number.to_string() });
        let answer = ask(addr, "POST", "events", &body.to_string(), DEADLINE);
        assert_eq!(answer.map(|(status, _)| status), Ok(200));
    };
    publish(1_000_000);
    sees(&world, &[Kind::Foreign]);
    let [first, second] = [(); 2].map(|()| world.ledger.publish(&by, &channels, None));
    [first, second].into_iter().for_each(|number| world.ledger.answer(number, Outcome::Taken));
    sees(&world, &[Kind::Lost]);
    publish(second);
    publish(first);
    publish(first);
    sees(&world, &[Kind::Disordered, Kind::Doubled]);
    world.ledger.settle();
    world.tabs.iter().for_each(|tab| tab.forget_settled());
    let refused = world.ledger.publish(&by, &channels, None);
    sees(&world, &[Kind::Waiting]);
    world.ledger.answer(refused, Outcome::Refused);
    publish(refused);
    sees(&world, &[Kind::Foreign]);
    // Kept, and then said to have been overwritten.
    backend::publish(&world, key, addr, "cache-a").unwrap();
    let newer = world.ledger.publish(&by, &["cache-a".to_owned()], None);
    world.ledger.answer(newer, Outcome::Taken);
    sees(&world, &[Kind::Cache]);
    let victim = world.tabs[0].sight().view.unwrap().socket_id;
    let thrown = world.ledger.terminate(&by, "1", vec![victim]);
    world.ledger.answer_termination(thrown, Outcome::Taken);
    sees(&world, &[Kind::Termination]);
    world.tabs[1].toggle("no channel");
    sees(&world, &[Kind::Refused, Kind::Waiting]);
}

#[test]
fn changes_that_are_none_are_noticed() {
    let mut view = View::new(0, "1", "1.1".to_owned(), 1);
    view.channels.entry("presence-a".to_owned()).or_default();
    let frame = json!({ "channel": "presence-a" });
    let mut hear = |event: &str, data: serde_json::Value| {
        let name = format!("pusher_internal:{event}");
        view.hear(&name, &frame, &data);
        std::mem::take(&mut view.wrongs).into_iter().map(|wrong| wrong.kind).collect::<Vec<_>>()
    };
    let presence = json!({ "presence": { "ids": ["1", "2"], "hash": { "1": {}, "2": {} } } });
    assert_eq!(hear("subscription_succeeded", presence), []);
    assert_eq!(hear("member_added", json!({ "user_id": "3" })), []);
    assert_eq!(hear("member_removed", json!({ "user_id": "2" })), []);
    for (event, user) in [("member_added", "3"), ("member_removed", "2"), ("member_removed", "1")] {
        assert_eq!(hear(event, json!({ "user_id": user })), [Kind::Notice], "{event} {user}");
    }
    let online = json!({ "events": [{ "name": "online", "user_ids": ["5"] }] });
    assert_eq!(hear("watchlist_events", online.clone()), []);
    assert_eq!(hear("watchlist_events", online), [Kind::Notice]);
}

#[test]
fn a_process_that_does_not_end_is_noticed() {
    let Some(world) = quiet() else { return };
    let key = world.keys()[0];
    world.put_to_sleep(key);
    world.stop_node(key, Duration::from_secs(1));
    assert_eq!(world.marks.lock().unwrap()[0].kind, Kind::Endless);
}
