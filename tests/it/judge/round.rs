//! One round: a storm, a fault in it, and the time until everything is right again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::backend::publish;
use super::fault::Fault;
use super::report::Row;
use super::storm;
use super::tab::Sight;
use super::verdict::{Kind, Wrong, count_owed, settle};
use super::world::{CHANNELS, STOP, World, last};
use super::{KNOWN, LONG, budget};
use crate::support::Chance;

/// By then everything is right after a fault has ended.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Storm before a fault.
const BEFORE: Duration = Duration::from_millis(1200);
/// For how long everything stays right, at least: in long runs until what was held before may have lapsed.
const AFTER: Duration = Duration::from_millis(300);

pub fn play(world: &World, fault: &'static Fault, seed: u64) -> Row {
    let mut chance = Chance::seeded(seed);
    let mut marks = Vec::new();
    world.finals.lock().unwrap().clear();
    even_out(world);
    storm::refill(world, &mut chance);
    blow(world, &mut chance, BEFORE);
    let fault_seed = chance.below(usize::MAX) as u64;
    std::thread::scope(|scope| {
        let inflicted = scope.spawn(|| (fault.inflict)(world, &mut Chance::seeded(fault_seed)));
        while !inflicted.is_finished() {
            storm::act(world, &mut chance);
        }
    });
    let ended = Instant::now();
    if let Some(row) = spoiled(world, Row::new(fault.name, seed)) {
        return row;
    }
    let known = known(fault.name);
    let limit = limit(world, fault);
    let free = [fault.costs, &known[..]].concat();
    // Webhooks wait for three seconds whether somebody comes back.
    let early = settle(
        world,
        ended,
        limit,
        &[&free[..], &[Kind::Webhook, Kind::WebhookEvent, Kind::WebhookCount]].concat(),
        &mut marks,
    );
    let mut outcome = settle(world, ended, limit, &free, &mut marks);
    // Only what stays away is lost.
    let mut costs = Vec::new();
    if outcome.is_ok() && !fault.costs.is_empty() {
        let waited = settle(world, Instant::now(), Duration::from_secs(4), &[], &mut marks);
        costs = waited.err().unwrap_or_default();
    }
    let mut row = Row::new(fault.name, seed);
    if !known.is_empty() {
        let still = settle(world, ended, limit, fault.costs, &mut marks);
        row.known = still.err().into_iter().flatten().map(|wrong| wrong.kind).collect();
    }
    (row.owed, row.lost) = count_owed(&sights(world), &world.ledger);
    if outcome.is_ok() {
        outcome = stay_right(world, fault, &known, &mut marks).and(outcome);
    } else if let Err(wrongs) = &outcome {
        let until = limit + world.lease * 2;
        let right = settle(world, ended, until, &free, &mut marks);
        row.late =
            right.map_or_else(|_| "not".to_owned(), |at| format!("{:.1} s", at.as_secs_f64()));
        costs.extend(wrongs.iter().filter(|wrong| wrong.kind == Kind::Lost).cloned());
    }
    marks.append(&mut world.marks.lock().unwrap());
    row.doubled = marks.iter().filter(|wrong| wrong.kind == Kind::Doubled).count();
    row.disordered = marks.iter().filter(|wrong| wrong.kind == Kind::Disordered).count();
    match outcome {
        Ok(time) => (row.right, row.all_right) = (early.ok(), Some(time)),
        Err(wrongs) => marks.extend(wrongs),
    }
    row.known.extend(marks.iter().map(|wrong| wrong.kind));
    row.known.retain(|kind| known.contains(kind));
    marks.retain(|wrong| !known.contains(&wrong.kind));
    row.wrongs = marks;
    world.ledger.settle();
    world.tabs.iter().for_each(|tab| tab.forget_settled());
    row
}

/// The row of a round in which the servers did not become what the fault wants. Nothing is said of the nodes.
fn spoiled(world: &World, mut row: Row) -> Option<Row> {
    let marks = world.marks.lock().unwrap();
    let spoils = marks.iter().filter(|wrong| wrong.kind == Kind::Environment);
    row.wrongs = spoils.cloned().collect();
    "not judged".clone_into(&mut row.late);
    row.has_failed().then_some(row)
}

/// By when all is right after the fault has ended: the members of a killed node leave within a lease.
fn limit(world: &World, fault: &Fault) -> Duration {
    if fault.name == "node killed" { LIMIT.max(world.lease) } else { LIMIT }
}

/// Everything goes once more through every channel, and is still right a moment later.
fn stay_right(
    world: &World,
    fault: &Fault,
    known: &[Kind],
    marks: &mut Vec<Wrong>,
) -> Result<Duration, Vec<Wrong>> {
    if !fault.costs.is_empty() {
        world.ledger.settle();
    }
    let doors = world.doors.lock().unwrap().clone();
    let Some((key, addr)) = doors.into_iter().next() else { return Ok(Duration::ZERO) };
    let finals: BTreeMap<String, usize> = CHANNELS
        .iter()
        .filter_map(|channel| Some(((*channel).to_owned(), publish(world, key, addr, channel)?)))
        .collect();
    *world.finals.lock().unwrap() = finals;
    let is_long = budget().is_some_and(|budget| budget >= LONG);
    last(if is_long { world.lease * 5 / 4 } else { AFTER });
    let since = Instant::now();
    settle(world, since, LIMIT, known, marks)
}

fn sights(world: &World) -> Vec<Sight> {
    world.tabs.iter().map(|tab| tab.sight()).collect()
}

fn blow(world: &World, chance: &mut Chance, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        storm::act(world, chance);
    }
}

/// As many nodes as in the beginning, but for one more at times.
fn even_out(world: &World) {
    let keys = world.keys();
    if keys.len() < 3 {
        world.is_up(world.add_node());
    } else if keys.len() > 4 {
        world.stop_node(keys[0], STOP);
        world.stop_node(keys[1], STOP);
    }
}

/// What is known to be wrong after the fault of this name.
pub fn known(fault: &str) -> Vec<Kind> {
    let of = KNOWN.iter().filter(|(name, ..)| *name == fault || *name == "any");
    of.flat_map(|(_, kinds, _)| kinds.iter().copied()).collect()
}
