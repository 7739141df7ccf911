//! The loss of one master of a Redis Cluster costs the channels of the others nothing. Two nodes publish and join on
//! these every millisecond, while that master fails in every way it can.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{event, joined, nodes};
use crate::shards::{kept_by, links_made, name_of, says_away, takes_over};
use crate::support::eventually;
use crate::support::fixture::Fixture;
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::websocket::Client;

/// The master that fails; the only one with a replica.
const LOST: usize = 2;

/// Channels of each kind that nodes hold besides.
const HELD: usize = 25;

/// What the events on one channel felt, which is printed.
#[derive(Debug)]
#[expect(dead_code, reason = "it is printed")]
struct Felt {
    events: usize,
    /// The longest that one took from node to node.
    slowest: Duration,
    /// When that was sent.
    at: Duration,
    /// How many took longer than 10 ms.
    slow: usize,
}

/// Waits until so many more events were published.
fn more_are_published(published: &AtomicUsize, count: usize) {
    let enough = published.load(Ordering::SeqCst) + count;
    eventually(|| match published.load(Ordering::SeqCst) {
        events if events >= enough => Ok(()),
        events => Err(format!("{events} of {enough}")),
    })
    .unwrap();
}

/// Publishes on some channels until `during` is over, and hears on another node that each event arrives once and in
/// order.
fn publish_meanwhile(
    channels: &[String],
    [one, two]: [&Fixture; 2],
    during: impl FnOnce(&AtomicUsize),
) -> Vec<Felt> {
    let mut clients: Vec<Client> = channels.iter().map(|channel| one.subscribed(channel)).collect();
    let (ended, begun) = (AtomicBool::new(false), Instant::now());
    let published = AtomicUsize::new(0);
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut sent = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                sent.push(begun.elapsed());
                for channel in channels {
                    two.publish(channel, "e", &(sent.len() - 1).to_string());
                }
                published.store(sent.len(), Ordering::SeqCst);
                thread::park_timeout(Duration::from_millis(1));
            }
            channels.iter().for_each(|channel| two.publish(channel, "e", "last"));
            sent
        });
        let hear = |(channel, client): (&'_ String, &'_ mut Client)| {
            let mut heard = Vec::new();
            loop {
                let text = client.hear_text();
                if text == event(channel, "last") {
                    return heard;
                }
                assert_eq!(text, event(channel, &heard.len().to_string()));
                heard.push(begun.elapsed());
            }
        };
        let hearing: Vec<_> =
            channels.iter().zip(&mut clients).map(|of| scope.spawn(move || hear(of))).collect();
        during(&published);
        ended.store(true, Ordering::SeqCst);
        let sent = publishing.join().unwrap();
        hearing.into_iter().map(|heard| felt(&sent, &heard.join().unwrap())).collect()
    })
}

fn felt(sent: &[Duration], heard: &[Duration]) -> Felt {
    assert_eq!(heard.len(), sent.len(), "each arrives once");
    let took: Vec<_> =
        sent.iter().zip(heard).map(|(sent, heard)| (*heard - *sent, *sent)).collect();
    let slow = took.iter().filter(|(took, _)| *took > Duration::from_millis(10)).count();
    let (slowest, at) = took.into_iter().max().unwrap();
    Felt { events: sent.len(), slowest, at, slow }
}

/// Joins presence channels until it is told to stop: how often, and the longest that it took.
fn join_meanwhile(channels: &[String], node: &Fixture, ended: &AtomicBool) -> (usize, Duration) {
    let (mut joins, mut longest) = (0, Duration::ZERO);
    while !ended.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let user = joins.to_string();
        let (_client, ids) = joined(node, &channels[joins % channels.len()], &user);
        assert!(ids.as_array().unwrap().contains(&user.into()), "{ids}");
        (joins, longest) = (joins + 1, longest.max(begun.elapsed()));
    }
    (joins, longest)
}

/// The leases that nodes have on the masters that stay.
fn leases(shards: &Shards) -> Vec<String> {
    let of = |redis: &Redis| {
        let keys = redis.ask(&["KEYS", "*:fence:*"]);
        let fields = keys.lines().map(|key| redis.ask(&["HKEYS", key]) + "\n");
        fields.collect::<String>()
    };
    let all: String = shards.masters.iter().take(LOST).map(of).collect();
    let mut all: Vec<String> =
        all.lines().filter(|field| field.len() == 16).map(str::to_owned).collect();
    all.sort_unstable();
    all
}

/// How often nodes have subscribed to something on the masters that stay.
fn subscriptions(shards: &Shards) -> usize {
    let of = |redis: &Redis| {
        let stats = redis.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_ssubscribe:calls="));
        line.and_then(|rest| rest.split(',').next()?.parse::<usize>().ok()).unwrap_or_default()
    };
    shards.masters.iter().take(LOST).map(of).sum()
}

/// Has one master fail, and asserts what it costs the channels of the others: while events on them get from node to
/// node, and users join, no link is made anew, no lease is taken, and no topic is subscribed to again.
fn costs_nothing(
    what: &str,
    (replicated, loses_data): (bool, bool),
    fault: impl FnOnce(&mut Shards, [&Fixture; 2]),
) {
    let Some(mut shards) = Shards::start(3, replicated) else { return };
    let [one, two]: [Fixture; 2] = nodes(&shards.cluster());
    // What the lost master has of them is registered anew.
    let mut held = Vec::new();
    for number in 0..HELD {
        held.push(one.subscribed(&format!("held-{number}")));
        held.push(joined(&two, &format!("presence-held-{number}"), "a").0);
    }
    let kept = |prefix| (0..LOST).map(|master| kept_by(&shards, master, prefix)).collect();
    let (public, presence): (Vec<String>, Vec<String>) = (kept("pub-"), kept("presence-"));
    let opened: Vec<Client> = public.iter().map(|channel| one.subscribed(channel)).collect();
    let joined = presence.iter().map(|channel| joined(&one, channel, "z").0);
    let joined: Vec<Client> = joined.collect();
    let (before, ended) = (leases(&shards), AtomicBool::new(false));
    assert_eq!(before.len(), 2 * LOST, "of each node on each master");
    let subscribed = subscriptions(&shards);
    let (felt, (joins, longest)) = thread::scope(|scope| {
        let joining = scope.spawn(|| join_meanwhile(&presence, &one, &ended));
        let felt = publish_meanwhile(&public, [&one, &two], |published| {
            more_are_published(published, 100);
            fault(&mut shards, [&one, &two]);
            more_are_published(published, 100);
        });
        ended.store(true, Ordering::SeqCst);
        (felt, joining.join().unwrap())
    });
    println!("{what}: {felt:?}; {joins} joins, the longest {longest:?}");
    assert_eq!((links_made(&one), links_made(&two)), (1, 1), "{what}");
    assert_eq!(leases(&shards), before, "{what}");
    // Each node speaks to itself over one of the others, if it was this one that is lost. All rosters are read again if
    // one of the masters has lost its data.
    let most = if loses_data { 10 + HELD * 2 } else { 10 };
    let again = subscriptions(&shards) - subscribed;
    assert!(again < most, "{what}: {again} topics of the others are subscribed to again");
    drop((held, opened, joined));
}

#[test]
fn a_master_whose_connections_are_cut_costs_the_others_nothing() {
    costs_nothing("cut", (false, false), |shards, _| {
        let lost = &shards.masters[LOST];
        // Two nodes, and who asks.
        for (kind, count) in [("pubsub", 2), ("normal", 3), ("pubsub", 2), ("normal", 3)] {
            lost.ask(&["CLIENT", "KILL", "TYPE", kind]);
            eventually(|| match lost.ask(&["CLIENT", "LIST", "TYPE", kind]).lines().count() {
                connections if connections >= count => Ok(()),
                connections => Err(format!("{connections} of {count}")),
            })
            .unwrap();
        }
    });
}

#[test]
fn a_master_that_dies_costs_the_others_nothing() {
    costs_nothing("killed", (false, true), |shards, [one, two]| {
        shards.masters[LOST].kill();
        let away = [name_of(&shards.masters[LOST])];
        says_away(one, &away);
        says_away(two, &away);
        shards.masters[LOST].restart();
        says_away(one, &[]);
        says_away(two, &[]);
    });
}

#[test]
fn a_master_that_fails_over_costs_the_others_nothing() {
    costs_nothing("failed over", (true, false), |shards, [one, two]| {
        let replica = shards.replica.take().unwrap();
        shards.masters[LOST].kill();
        takes_over(&replica);
        says_away(one, &[]);
        says_away(two, &[]);
        shards.masters[LOST] = replica;
    });
}

#[test]
fn a_master_that_sleeps_costs_the_others_no_link() {
    costs_nothing("asleep", (false, false), |shards, [one, two]| {
        shards.masters[LOST].signal("STOP");
        let away = [name_of(&shards.masters[LOST])];
        says_away(one, &away);
        says_away(two, &away);
        shards.masters[LOST].signal("CONT");
        says_away(one, &[]);
        says_away(two, &[]);
    });
}
