//! The judge: real nodes, a real Redis behind proxies that misbehave, tabs and backends that do what people do, and
//! a naive model that knows what one server would say. After any fault that ends, everything that anybody is told
//! is what the model has, within [`round::LIMIT`].
//!
//! `cargo test` judges one quiet round, and that the judge notices what is wrong. `tests/run judge` sets
//! `JUDGE_SECONDS`, for as long as which faults are dealt from a shuffled deck, over each kind of Redis.
//! `JUDGE_FAULTS` names some of them, separated by semicolons; `TEST_SEED` repeats a deck and what
//! happens in its rounds; `JUDGE_LOGS` keeps the nodes' logs.
//!
//! A short run asks what a change has broken, and that shows itself again: where something was wrong, the same round is
//! played twice more. A long run asks for what goes wrong once in a hundred rounds, and each counts.

mod backend;
mod bystanders;
mod cluster_faults;
mod fault;
mod forger;
mod hooks;
mod ledger;
mod node;
mod node_faults;
mod notices;
pub mod proxy;
mod redis_faults;
mod report;
mod round;
mod storm;
mod tab;
mod truth;
mod verdict;
mod view;
mod world;

use std::time::{Duration, Instant};

use fault::{FAULTS, Fault};
use report::{Row, table};
use verdict::Kind;
use world::{Kinds, World};

use crate::support::Chance;

const LEASE: Duration = Duration::from_secs(4);

/// From this budget on each round that fails is a failure.
const LONG: Duration = Duration::from_secs(300);

/// How often a round that failed is played again in a shorter run, of which one must fail too.
const AGAIN: usize = 2;

/// Rounds in which something known is seen if it is there.
const ENOUGH: usize = 30;

/// What is known to be wrong still, after which fault (or after any), and why. It is judged, told of, and no failure.
const KNOWN: &[(&str, &[Kind], &str)] = &[];

/// How long a run is to be; none where nobody asked for one.
fn budget() -> Option<Duration> {
    let seconds = std::env::var("JUDGE_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("JUDGE_SECONDS is a number")))
}

fn lease() -> Duration {
    let seconds = std::env::var("JUDGE_LEASE").ok();
    seconds.map_or(LEASE, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// A world where everything is right.
fn begin(kind: Kinds, chance: &mut Chance) -> Option<World> {
    let world = World::start(kind, lease(), chance)?;
    storm::rise(&world, chance);
    Some(world)
}

/// The faults that can happen to `world`, in an order left to chance.
fn deck(world: &World, chance: &mut Chance) -> Vec<&'static Fault> {
    let wanted = std::env::var("JUDGE_FAULTS").unwrap_or_default();
    let is_wanted = |fault: &Fault| {
        wanted.is_empty() || wanted.split(';').any(|name| name.trim() == fault.name)
    };
    let can_happen = FAULTS.iter().filter(|fault| fault.can_happen(world));
    let mut deck: Vec<&Fault> = can_happen.filter(|fault| is_wanted(fault)).collect();
    for at in (1..deck.len()).rev() {
        deck.swap(at, chance.below(at + 1));
    }
    deck
}

/// Plays rounds for as long as is asked for.
fn judge(kind: Kinds) {
    let Some(budget) = budget() else {
        println!("no storm: JUDGE_SECONDS is not set, as `tests/run judge` does");
        return;
    };
    let end = Instant::now() + budget;
    let mut chance = Chance::new(&format!("judge, {kind:?}"));
    let base = chance.below(usize::MAX) as u64;
    let mut world = None;
    let mut rows: Vec<Row> = Vec::new();
    let mut cards = Vec::new();
    let mut failed = Vec::new();
    for number in 0.. {
        if world.is_none() {
            world = begin(kind, &mut chance);
        }
        let Some(judged) = &world else { return };
        if cards.is_empty() {
            cards = deck(judged, &mut chance);
        }
        let Some(fault) = cards.pop() else { return };
        let played = rows.iter().filter(|row| row.fault == fault.name).count() as u64;
        let place = FAULTS.iter().position(|other| other.name == fault.name).unwrap() as u64;
        let seed = base ^ (place << 32) ^ (played + 1);
        let row = play(judged, fault, seed, &number.to_string());
        if row.has_failed() || !row.known.is_empty() || fault.leaves_clock() {
            world = None;
        }
        let fails =
            row.has_failed() && (budget >= LONG || fails_again(kind, &row, fault, &mut chance));
        failed.extend(fails.then_some(fault.name));
        rows.push(row);
        // A round takes some ten seconds.
        if Instant::now() + Duration::from_secs(8) > end {
            break;
        }
    }
    println!("{kind:?}, lease {:?}:\n{}", lease(), table(&rows));
    assert_known_still(&rows);
    assert!(failed.is_empty(), "not right after: {failed:?}");
}

/// Plays a round and prints what came of it, under its name in this run.
fn play(world: &World, fault: &'static Fault, seed: u64, name: &str) -> Row {
    let row = round::play(world, fault, seed);
    println!("{:?} {name}: {}", world.kind, row.line());
    if row.has_failed() {
        println!("    logs in {}", world.folder.display());
    }
    row
}

/// Whether something is wrong once more if what happened in a round happens to worlds of their own.
fn fails_again(kind: Kinds, row: &Row, fault: &'static Fault, chance: &mut Chance) -> bool {
    (1..=AGAIN).any(|time| {
        let world = begin(kind, chance).expect("there was one before");
        play(&world, fault, row.seed, &format!("again {time} of {AGAIN}")).has_failed()
    }) || {
        println!("WRONG ONCE, and not in {AGAIN} rounds after it: {}", row.line());
        false
    }
}

/// What is known to be wrong is taken off the list once many rounds have not seen it.
fn assert_known_still(rows: &[Row]) {
    for (fault, kinds, why) in KNOWN {
        let of: Vec<&Row> = rows.iter().filter(|row| [row.fault, "any"].contains(fault)).collect();
        for kind in kinds.iter().filter(|_| !of.is_empty()) {
            let seen = of.iter().filter(|row| row.known.contains(kind)).count();
            println!("known, {seen} of {} rounds: {kind:?} after {fault}: {why}", of.len());
            assert!(seen > 0 || of.len() < ENOUGH, "{kind:?} after {fault} is known no longer");
        }
    }
}

#[test]
fn all_is_right_after_any_fault_over_one_redis() {
    judge(Kinds::Single);
}

#[test]
fn all_is_right_after_any_fault_over_sentinels() {
    judge(Kinds::Watched);
}

#[test]
fn all_is_right_after_any_fault_over_a_redis_cluster() {
    judge(Kinds::Sharded);
}
