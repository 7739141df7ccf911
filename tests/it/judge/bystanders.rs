//! The bounds of a lost master's cost in a Redis Cluster: on channels of the others, events and joins go from node
//! to node all the while. Clients of its own look at that, on channels that no tab has.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::backend::post_event;
use super::node::away_parts;
use super::verdict::{Kind, Wrong};
use super::world::World;
use crate::cluster::{event, join};
use crate::support::eventually;
use crate::support::fixture::{KEY, established, subscribe, target};
use crate::support::websocket::Client;

/// Waits until every node knows that something is away, and goes on without it.
pub fn all_know(world: &World, away: &str) {
    for addr in doors(world) {
        let known = eventually(|| {
            let parts = away_parts(addr)?;
            if parts.iter().any(|part| part == away) { Ok(()) } else { Err(format!("{parts:?}")) }
        });
        note(world, known.map_err(|parts| format!("{away} is lost, a node says: {parts}")));
    }
}

/// Events and joins get from one node to another on these channels. Their users are none that the storm closes.
pub fn go_on(world: &World, channels: &[(String, String)]) {
    let doors = doors(world);
    let [one, .., two] = doors[..] else { return };
    for (public, presence) in channels {
        let looked = catch_unwind(AssertUnwindSafe(|| {
            events_arrive(one, two, public);
            joins_are_seen(one, two, presence);
        }));
        let said = looked.map_err(|panic| match panic.downcast_ref::<String>() {
            Some(text) => format!("{public}, {presence}: {text}"),
            None => format!("{public}, {presence} do not go on"),
        });
        note(world, said);
    }
}

fn doors(world: &World) -> Vec<SocketAddr> {
    world.doors.lock().unwrap().values().copied().collect()
}

fn note(world: &World, looked: Result<(), String>) {
    if let Err(text) = looked {
        world.marks.lock().unwrap().push(Wrong { kind: Kind::Bystander, text });
    }
}

fn connect(addr: SocketAddr) -> (Client, String) {
    let mut client = Client::open(addr, &target(KEY), &[]).expect("a WebSocket");
    let socket_id = established(&client.hear_text()).unwrap();
    (client, socket_id)
}

fn events_arrive(one: SocketAddr, two: SocketAddr, channel: &str) {
    let (mut client, _) = connect(one);
    subscribe(&mut client, channel);
    for number in 0..3 {
        assert!(post_event(two, channel, number), "event {number} is refused");
        hears(&mut client, &event(channel, &number.to_string()));
    }
}

fn joins_are_seen(one: SocketAddr, two: SocketAddr, channel: &str) {
    let ((mut a, own), (mut b, other)) = (connect(one), connect(two));
    join(&mut a, &own, channel, "by-1");
    join(&mut b, &other, channel, "by-2");
    hears(&mut a, "member_added");
    drop(b);
    hears(&mut a, "member_removed");
}

/// The next of what it is told that has this in it: counts come in between.
fn hears(client: &mut Client, text: &str) {
    while !client.hear_text().contains(text) {}
}
