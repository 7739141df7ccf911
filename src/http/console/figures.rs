//! The console's figures, once a second: rates since the last time, and current values. They are computed from existing
//! counters, so they cost nothing extra.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::console::unix_millis;
use crate::hub::directory::Directory;
use crate::metrics::{AppTraffic, Counter, Histogram, ProcessStats, Reason};
use crate::node::ServerState;

/// Apps with a row of their own: the largest. A longer page would be no help.
const MAX_APPS: usize = 50;

/// Where a count is among those of an app.
/// A function instead of a name, so that a count that goes away does not compile.
type OfTraffic = fn(&AppTraffic) -> &Counter;

/// Sums over all apps that are shown as rates.
const RATES: [(&str, OfTraffic); 7] = [
    ("deliveries", |traffic| &traffic.deliveries),
    ("published", |traffic| &traffic.published),
    ("received", |traffic| &traffic.received),
    ("answers", |traffic| &traffic.answers),
    ("sent_bytes", |traffic| &traffic.sent_bytes),
    ("connects", |traffic| &traffic.connected),
    ("disconnects", |traffic| &traffic.disconnected),
];

/// The counters at one moment. Counters only grow, so a rate is the difference of two samples divided by the time
/// between.
#[derive(Debug)]
pub(super) struct Sample {
    /// When they were counted.
    at: Instant,
    /// In the order of [`RATES`].
    counts: [u64; RATES.len()],
    /// Sockets and messages that were refused.
    refused: u64,
    /// How many turns kept each bound of the histogram; the last is all of them.
    fan_out: [u64; 15],
    /// Seconds that each worker was busy since it started.
    busy: Vec<f64>,
}

/// Over all apps and workers. It wraps as the counters do, so that differences stay right.
fn sum(directories: &[(String, Arc<Directory>)], read: OfTraffic) -> u64 {
    let all = directories.iter().flat_map(|(_, directory)| directory.all_traffic());
    all.map(|traffic| read(traffic).value()).fold(0, u64::wrapping_add)
}

impl Sample {
    /// Reads all counts, one after the other: they need not be of one moment.
    fn take(shared: &ServerState, directories: &[(String, Arc<Directory>)]) -> Self {
        let turns = shared.hub.inboxes().iter().map(|inbox| &inbox.turns.fan_out);
        let refused_sockets: u64 =
            Reason::refusal_reasons().iter().map(|reason| shared.metrics.ended_for(*reason)).sum();
        Self {
            at: Instant::now(),
            counts: RATES.map(|(_, read)| sum(directories, read)),
            refused: refused_sockets
                + shared.metrics.sum_counter(|counts| &counts.refused_messages),
            fan_out: Histogram::read_all(turns).0,
            busy: shared.metrics.busy_seconds(),
        }
    }
}

/// The line of this moment, and what the next is compared with. Its keys are in docs/console.md,
/// and stay for programs. Without a sample of before, all rates are 0.
pub(super) fn sample_figures(
    shared: &ServerState,
    before: Option<Sample>,
    unseen: u64,
) -> (Value, Sample) {
    for app in shared.apps.load().iter() {
        // An app without connections is shown too, with zeros.
        shared.hub.directory(&app.id);
    }
    let directories: Vec<_> = (shared.hub.directories().into_iter())
        .map(|(id, directory)| (id.to_string(), directory))
        .collect();
    let now = Sample::take(shared, &directories);
    let mut line = json!({
        "kind": "figures",
        "at": unix_millis(),
        "unseen": unseen,
        "connections": shared.connection_count(),
        "draining": shared.is_draining(),
        "memory": ProcessStats::memory_bytes(),
        "waiting_bytes": waiting(shared),
        "apps": apps(shared, &directories),
        "webhooks": webhooks(shared),
    });
    let seconds = before.as_ref().map_or(1.0, |before| (now.at - before.at).as_secs_f64());
    let rate = |now: u64, before: Option<u64>| {
        let passed = before.map_or(0, |before| now.saturating_sub(before));
        (passed as f64 / seconds.max(0.001)).round() as u64
    };
    let totals = directories.iter().map(|(_, directory)| directory.totals());
    let (mut channels, mut subscriptions, mut members) = (0, 0, 0);
    for total in totals {
        channels += total.channels;
        subscriptions += total.subscriptions;
        members += total.members;
    }
    if let Some(object) = line.as_object_mut() {
        for (index, (name, _)) in RATES.iter().enumerate() {
            // Both have a number for each of the rates.
            let count = now.counts.get(index).copied().unwrap_or_default();
            let before = before.as_ref().and_then(|before| before.counts.get(index)).copied();
            object.insert((*name).to_owned(), rate(count, before).into());
        }
        let refused = rate(now.refused, before.as_ref().map(|before| before.refused));
        object.insert("refused".to_owned(), refused.into());
        object.insert("channels".to_owned(), channels.into());
        object.insert("subscriptions".to_owned(), subscriptions.into());
        object.insert("members".to_owned(), members.into());
        object.insert("latency".to_owned(), latency(&now, before.as_ref()));
        object.insert("workers".to_owned(), workers(shared, &now, before.as_ref(), seconds));
        object.insert("redis".to_owned(), shared.scope.is_link_up().into());
    }
    (line, now)
}

/// Bytes queued for clients, as each worker last counted them: up to five seconds ago.
fn waiting(shared: &ServerState) -> u64 {
    shared.hub.inboxes().iter().map(|inbox| inbox.turns.waiting.value()).sum()
}

/// From a publish to the flush, in microseconds: the bound that half of the last second's turns
/// kept, and nearly all. `null` where nothing was published.
fn latency(now: &Sample, before: Option<&Sample>) -> Value {
    let passed: Vec<u64> = (now.fan_out.iter().enumerate())
        .map(|(index, count)| {
            let before = before.and_then(|before| before.fan_out.get(index));
            count.saturating_sub(before.copied().unwrap_or(*count))
        })
        .collect();
    // The last bucket has all of them; without one there were none.
    let all = passed.last().copied().unwrap_or_default();
    if all == 0 {
        return Value::Null;
    }
    let bound = |share: f64| {
        let wanted = (all as f64 * share).ceil() as u64;
        let at = passed.iter().position(|count| *count >= wanted);
        // Beyond the last bound there is only "longer".
        let last = Histogram::BOUNDS.last();
        at.and_then(|at| Histogram::BOUNDS.get(at)).or(last).copied().unwrap_or_default()
    };
    json!({ "p50": bound(0.5), "p99": bound(0.99), "turns": all })
}

/// How many connections each worker has, and which percentage of the last second it was busy.
fn workers(shared: &ServerState, now: &Sample, before: Option<&Sample>, seconds: f64) -> Value {
    let counts = shared.metrics.all_workers().iter().enumerate();
    let all = counts.map(|(index, counts)| {
        // A worker that has not begun has no measurement.
        let busy = now.busy.get(index).copied().unwrap_or_default();
        let before = before.and_then(|before| before.busy.get(index)).copied().unwrap_or(busy);
        let share = ((busy - before) / seconds.max(0.001)).clamp(0.0, 1.0);
        let percent = (share * 100.0).round() as u64;
        json!({ "connections": counts.connections.value(), "busy": percent })
    });
    Value::Array(all.collect())
}

/// The largest apps first. Totals, not rates: a reader computes rates from two lines.
fn apps(shared: &ServerState, directories: &[(String, Arc<Directory>)]) -> Value {
    let known = shared.apps.load();
    let mut all: Vec<_> = directories.iter().collect();
    all.sort_by_key(|(id, directory)| {
        (std::cmp::Reverse(directory.connection_count()), id.clone())
    });
    let apps = all.into_iter().take(MAX_APPS).map(|(id, directory)| {
        let totals = directory.totals();
        let name = known.by_id(id).map(|app| app.name.to_string());
        let total = |read: OfTraffic| {
            let all = directory.all_traffic().iter().map(|traffic| read(traffic).value());
            all.fold(0, u64::wrapping_add)
        };
        json!({
            "id": id,
            "name": name,
            "connections": directory.connection_count(),
            "channels": totals.channels,
            "subscriptions": totals.subscriptions,
            "deliveries_total": total(|traffic| &traffic.deliveries),
            "published_total": total(|traffic| &traffic.published),
            "resume_waiting": directory.resume.occupancy().0,
        })
    });
    Value::Array(apps.collect())
}

/// How the queue of each webhook gets on. Never its URL, which may hold a token.
fn webhooks(shared: &ServerState) -> Value {
    use std::sync::atomic::Ordering::Relaxed;
    let all = shared.webhooks.figures();
    let hooks = all.iter().take(MAX_APPS).map(|hook| {
        json!({
            "app": hook.app,
            "index": hook.index,
            "queued": hook.queued.load(Relaxed),
            "sent_total": hook.sent.load(Relaxed),
            "failures_total": hook.failures.load(Relaxed),
            "dropped_total": hook.dropped.load(Relaxed),
            "failing": hook.is_failing(),
        })
    });
    Value::Array(hooks.collect())
}
