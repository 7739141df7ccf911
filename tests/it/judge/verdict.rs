//! The judge's comparison: every view, query, webhook and event against the truth. It says all that is wrong at one
//! moment; whether it may be wrong still is for the round to say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ledger::{Ledger, Outcome, Publication};
use super::node::{NO_ANSWER, ask, is_ready};
use super::tab::Sight;
use super::truth::{Truth, is_cached, is_counted};
use super::view::{Told, View};
use super::world::World;

/// How long a node may take for one answer.
const ANSWER: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub kind: Kind,
    pub text: String,
}

/// What kinds of things can be wrong. The first are wrong for ever, the others until they are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An event came twice on one connection.
    Doubled,
    /// Two events of one publisher came the wrong way round.
    Disordered,
    /// An event that was never published, or that was refused.
    Foreign,
    /// A change that was none: somebody who came and was there, or went and was not, or oneself.
    Notice,
    /// An error that was no answer to anything wrong.
    Refused,
    /// Channels that a fault has nothing to do with did not go on.
    Bystander,
    /// The servers of Redis did not become what the fault wants, which says nothing of the nodes.
    Environment,
    /// A process that does not end when it is told to.
    Endless,
    /// A tab that has no connection, or waits for an answer.
    Waiting,
    /// A node that is not ready.
    Unready,
    /// A roster as a subscriber has it.
    Roster,
    /// A count as a subscriber was told it.
    Count,
    /// A subscriber that was told no count since it came.
    Uncounted,
    /// Who is online, as a watcher was told.
    Watchlist,
    /// An answer of the API.
    Query,
    /// The kept event of a cache channel.
    Cache,
    /// An event that a subscriber was owed.
    Lost,
    /// A connection that was to be closed.
    Termination,
    /// The last word of the webhooks on who is where.
    Webhook,
    /// A whisper that they were not told of.
    WebhookEvent,
    /// Their last word on how many subscribers there are.
    WebhookCount,
}

impl Kind {
    pub fn is_for_ever(self) -> bool {
        self <= Self::Endless
    }
}

/// All that is wrong now.
pub fn look(world: &World) -> Vec<Wrong> {
    let sights: Vec<Sight> = world.tabs.iter().map(|tab| tab.sight()).collect();
    let truth = Truth::of(&sights);
    let mut wrongs: Vec<Wrong> = sights.iter().filter_map(waits).collect();
    for tab in &world.tabs {
        wrongs.extend(tab.take_wrongs());
    }
    let owed = world.ledger.owed();
    let pending = owed.iter().filter(|(_, one)| one.outcome == Outcome::Pending);
    wrongs.extend(pending.map(|(number, one)| {
        let text = format!("event {number} of {} is not answered", one.by);
        Wrong { kind: Kind::Waiting, text }
    }));
    wrongs.extend(compare_views(&sights, &truth));
    wrongs.extend(compare_events(&sights, &world.ledger));
    wrongs.extend(compare_terminations(&sights, &world.ledger));
    let hooks = world.hooks();
    wrongs.extend(hooks.compare(&truth));
    wrongs.extend(hooks.compare_whispers(&owed));
    drop(hooks);
    for (key, addr) in world.doors.lock().unwrap().clone() {
        let name = format!("node {key}");
        if let Err(error) = is_ready(addr) {
            let is_mute = error == NO_ANSWER;
            wrongs.push(Wrong { kind: Kind::Unready, text: format!("{name}: {error}") });
            if is_mute {
                continue;
            }
        }
        let get = |path: &str| match ask(addr, "GET", path, "", ANSWER) {
            Ok((200, answer)) => answer,
            other => Value::String(format!("{other:?}")),
        };
        wrongs.extend(compare_queries(&name, &truth, get));
        wrongs.extend(compare_kept(&name, &world.cache_channels(), &world.ledger, get));
    }
    wrongs
}

fn waits(sight: &Sight) -> Option<Wrong> {
    let text = match &sight.view {
        None if sight.is_open => "has no connection".to_owned(),
        None => return None,
        Some(_) if !sight.is_open => "is still connected".to_owned(),
        Some(view) if sight.watchlist.is_some() && view.signed_in.is_none() => {
            format!("is not signed in on node {}", view.node)
        }
        Some(view) => {
            let due = view.channels.iter().find(|(_, told)| told.confirmed.is_none())?;
            format!("waits for {} on node {}", due.0, view.node)
        }
    };
    Some(Wrong { kind: Kind::Waiting, text: format!("tab {} {text}", sight.number) })
}

/// What every connection was told against what is so.
pub fn compare_views(sights: &[Sight], truth: &Truth) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    for sight in sights {
        let Some(view) = &sight.view else { continue };
        let place = format!("tab {} on node {}", sight.number, view.node);
        let mut note = |kind, text: String| {
            wrongs.push(Wrong { kind, text: format!("{place}: {text}") });
        };
        let none = BTreeSet::new();
        for (channel, told) in view.channels.iter().filter(|(_, told)| told.confirmed.is_some()) {
            let members = truth.members.get(channel).unwrap_or(&none);
            if told.roster != *members {
                note(Kind::Roster, format!("{channel} has {members:?}, told {:?}", told.roster));
            }
            let count = truth.subscriptions.get(channel).copied();
            if is_counted(channel) && told.count != count {
                let kind = if told.count.is_none() { Kind::Uncounted } else { Kind::Count };
                note(kind, format!("{channel} has {count:?}, told {:?}", told.count));
            }
        }
        let watched = sight.watchlist.iter().flatten().cloned().collect();
        let online: BTreeSet<String> = truth.online.intersection(&watched).cloned().collect();
        if view.signed_in.is_some() && view.online() != online {
            note(Kind::Watchlist, format!("{online:?} are online, told {:?}", view.online()));
        }
    }
    wrongs
}

/// Events that are owed, and those that came and should not have.
pub fn compare_events(sights: &[Sight], ledger: &Ledger) -> Vec<Wrong> {
    let owed = ledger.owed();
    let mut wrongs = Vec::new();
    for sight in sights {
        let Some(view) = &sight.view else { continue };
        for (channel, told) in &view.channels {
            let Some(confirmed) = told.confirmed else { continue };
            let mut note = |kind, text: String| {
                let place = format!("tab {} on node {}, {channel}", sight.number, view.node);
                wrongs.push(Wrong { kind, text: format!("{place}: {text}") });
            };
            let heard: BTreeSet<usize> = told.heard.iter().copied().collect();
            for (number, one) in &owed {
                let is_meant = one.channels.contains(channel) && one.begun >= confirmed;
                let is_owed = is_meant && one.except.as_ref() != Some(&view.socket_id);
                if is_owed && one.outcome == Outcome::Taken && !heard.contains(number) {
                    let ago = one.begun.elapsed().as_millis();
                    note(Kind::Lost, format!("event {number} of {}, {ago} ms ago", one.by));
                }
            }
            compare_order(channel, told, &view.socket_id, ledger, &mut note);
        }
    }
    wrongs
}

fn compare_order(
    channel: &str,
    told: &Told,
    socket_id: &str,
    ledger: &Ledger,
    note: &mut impl FnMut(Kind, String),
) {
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for number in &told.heard {
        let is_for = |one: &Publication| one.channels.iter().any(|name| name == channel);
        let Some(one) = ledger.find(*number).filter(is_for) else {
            note(Kind::Foreign, format!("event {number} was not published"));
            continue;
        };
        // A kept event is for whoever comes.
        let is_kept = is_cached(channel) && told.confirmed.is_some_and(|since| since > one.begun);
        let is_excluded = one.except.as_deref() == Some(socket_id) && !is_kept;
        if one.outcome == Outcome::Refused || is_excluded {
            note(Kind::Foreign, format!("event {number} was not for it: {:?}", one.outcome));
        }
        // Given up by its publisher, it may have been taken behind the next.
        if one.outcome != Outcome::Taken {
            continue;
        }
        let before = last.insert(one.by.clone(), *number);
        if let Some(before) = before.filter(|before| before > number) {
            note(Kind::Disordered, format!("event {number} of {} after {before}", one.by));
        }
    }
}

fn compare_terminations(sights: &[Sight], ledger: &Ledger) -> Vec<Wrong> {
    let views = || sights.iter().filter_map(|sight| sight.view.as_ref());
    let done = ledger.terminations().into_iter().filter(|one| one.outcome == Outcome::Taken);
    let survivors = done.flat_map(|one| {
        // Where nodes hear of it later, one that has left its channels since and was not signed in is nobody's.
        let is_victim =
            |view: &&View| one.victims.contains(&view.socket_id) && view.is_users_since(one.begun);
        let text = |view: &View| {
            format!(
                "{} of user {} on node {} was to be closed",
                view.socket_id, one.user, view.node
            )
        };
        views().filter(is_victim).map(text).collect::<Vec<_>>()
    });
    survivors.map(|text| Wrong { kind: Kind::Termination, text }).collect()
}

/// What a node says to a backend against what is so.
pub fn compare_queries(name: &str, truth: &Truth, get: impl Fn(&str) -> Value) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    let mut same = |path: &str, said: &Value, is: Value| {
        if *said != is {
            let text = format!("{name}, {path}: says {said}, is {is}");
            wrongs.push(Wrong { kind: Kind::Query, text });
        }
    };
    let path = "channels?info=subscription_count";
    let channels = truth.subscriptions.iter();
    let counts: serde_json::Map<String, Value> = channels
        .map(|(name, count)| (name.clone(), serde_json::json!({ "subscription_count": count })))
        .collect();
    same(path, &get(path), serde_json::json!({ "channels": counts }));
    let path = "channels?filter_by_prefix=presence-&info=user_count";
    let users = |(name, users): (&String, &BTreeSet<String>)| {
        (name.clone(), serde_json::json!({ "user_count": users.len() }))
    };
    let counts: serde_json::Map<String, Value> = truth.members.iter().map(users).collect();
    same(path, &get(path), serde_json::json!({ "channels": counts }));
    for (channel, members) in &truth.members {
        let path = format!("channels/{channel}/users");
        let mut answer = get(&path);
        if let Some(users) = answer.get_mut("users").and_then(Value::as_array_mut) {
            users.sort_by_key(|user| user["id"].as_str().unwrap_or_default().to_owned());
        }
        let users: Vec<Value> =
            members.iter().map(|user| serde_json::json!({ "id": user })).collect();
        same(&path, &answer, serde_json::json!({ "users": users }));
    }
    same(
        "connections",
        &get("connections"),
        serde_json::json!({ "connections": truth.connections }),
    );
    wrongs
}

/// The kept events that a node has: what its publisher has overwritten since must not be there.
fn compare_kept(
    name: &str,
    channels: &[(String, Option<usize>)],
    ledger: &Ledger,
    get: impl Fn(&str) -> Value,
) -> Vec<Wrong> {
    let owed = ledger.owed();
    let mut wrongs = Vec::new();
    for (channel, last) in channels.iter().filter(|(channel, _)| is_cached(channel)) {
        let answer = get(&format!("channels/{channel}?info=cache"));
        let kept = answer["cache"]["data"].as_str().and_then(|data| data.parse::<usize>().ok());
        let mut note = |text: String| {
            let text = format!("{name}, {channel}: {text}");
            wrongs.push(Wrong { kind: Kind::Cache, text });
        };
        if last.is_some() && kept != *last {
            note(format!("kept is {answer}, last was {last:?}"));
        }
        let by = kept.and_then(|kept| ledger.find(kept)).map(|kept| kept.by);
        let newer = owed.iter().rev().find(|(_, one)| {
            let is_its = by.as_ref().is_none_or(|by| *by == one.by);
            let is_kept = !one.is_whisper() && one.channels.contains(channel);
            is_its && is_kept && one.outcome == Outcome::Taken
        });
        if let Some((newer, one)) =
            newer.filter(|(newer, _)| kept.is_none_or(|kept| kept < **newer))
        {
            let ago = one.begun.elapsed().as_millis();
            note(format!("kept is {answer}, {} published {newer}, {ago} ms ago", one.by));
        }
    }
    wrongs
}

/// How many deliveries were owed to those who are still there, and how many of them have not come.
pub fn count_owed(sights: &[Sight], ledger: &Ledger) -> (usize, usize) {
    let owed = ledger.owed();
    let mut sum = 0;
    for view in sights.iter().filter_map(|sight| sight.view.as_ref()) {
        for (channel, told) in &view.channels {
            let Some(confirmed) = told.confirmed else { continue };
            let of = owed.values().filter(|one| {
                let is_other = one.except.as_ref() != Some(&view.socket_id);
                one.outcome == Outcome::Taken && one.begun >= confirmed && is_other
            });
            sum += of.filter(|one| one.channels.contains(channel)).count();
        }
    }
    let lost = compare_events(sights, ledger).iter().filter(|one| one.kind == Kind::Lost).count();
    (sum, lost)
}

/// Waits until nothing is wrong but what may be: the time since `since`, or all that is wrong after `limit`. What
/// is wrong for ever is put into `marks`.
pub fn settle(
    world: &World,
    since: Instant,
    limit: Duration,
    costs: &[Kind],
    marks: &mut Vec<Wrong>,
) -> Result<Duration, Vec<Wrong>> {
    loop {
        let begun = Instant::now();
        let (mut for_ever, mut others): (Vec<Wrong>, Vec<Wrong>) =
            look(world).into_iter().partition(|wrong| wrong.kind.is_for_ever());
        others.retain(|wrong| !costs.contains(&wrong.kind));
        for_ever.retain(|wrong| !marks.contains(wrong));
        marks.append(&mut for_ever);
        if others.is_empty() {
            return Ok(begun.saturating_duration_since(since));
        }
        if begun.saturating_duration_since(since) > limit {
            return Err(others);
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
