//! How often the heap is asked on the path of a message, for fixed conversations in memory. Counts do not
//! depend on the machine, so they are held to the figures below, with 5 % of room for what a dependency's
//! new version may do. A binary of its own, because it brings a counting allocator with it.

#[path = "../benches/micro/stage.rs"]
mod stage;

use std::io::Read;

use allocation_counter::{AllocationInfo, measure};
use fanfare::hub::ring::Ring;
use fanfare::hub::stream::Stream;
use stage::{Stage, data, name};
use tokio::net::UnixStream;
use tokio::runtime::Builder;

const SUBSCRIBERS: usize = 1_000;

/// Fails if `counted` is more than the figure and its room.
fn hold(what: &str, counted: u64, figure: u64) {
    assert!(
        counted <= figure + figure / 20,
        "{what}: {counted}, where {figure} were enough. If there is a good reason, it belongs in the \
         commit that changes the figure"
    );
}

/// What one turn asks of the heap in which `events` come to each of `channels`, once it has had a turn to
/// grow its own buffers.
fn turn(stage: &Stage, channels: &[&str], events: usize) -> AllocationInfo {
    let (names, data): (Vec<_>, _) = (channels.iter().map(|text| name(text)).collect(), data(256));
    let once = || {
        for _ in 0..events {
            names.iter().for_each(|name| stage.publish(name, &data));
        }
        stage.deliver();
    };
    once();
    let bytes = stage.settle();
    let counted = measure(once);
    assert_eq!(stage.settle(), bytes, "everybody gets everything, the second time too");
    assert!(bytes > SUBSCRIBERS * events * channels.len() * 256);
    counted
}

#[test]
fn an_event_costs_its_own_bytes_and_nothing_a_subscriber() {
    let stage = Stage::new(SUBSCRIBERS, &["orders"]);
    hold("one event to 1,000", turn(&stage, &["orders"], 1).count_total, 12);
    hold("ten events of one turn to 1,000", turn(&stage, &["orders"], 10).count_total, 35);
}

#[test]
fn several_channels_of_one_turn_cost_each_socket_its_queue() {
    let channels: Vec<String> = (0..4).map(|number| format!("orders-{number}")).collect();
    let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
    let stage = Stage::new(SUBSCRIBERS, &channels);
    let counted = turn(&stage, &channels, 1).count_total;
    hold("four events on four channels to 1,000", counted, 2_018);
}

/// Sockets that are written to together.
const SOCKETS: usize = 200;

#[test]
fn sockets_that_are_written_to_together_cost_two_lists_a_call() {
    let ring = match Ring::new() {
        Ok(ring) => ring,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "what was not counted is said")]
            let () = eprintln!("no io_uring here, so nothing was counted of it: {error}");
            return;
        }
    };
    let runtime = Builder::new_current_thread().enable_io().build().unwrap();
    let _entered = runtime.enter();
    let mut stage = Stage::new(0, &[]);
    stage.node.worker.use_ring(ring);
    let mut far_ends = Vec::new();
    for _ in 0..SOCKETS {
        let (near, far) = UnixStream::pair().unwrap();
        let connection = stage.connect_over(Stream::Unix(near));
        stage.subscribe(&connection, "orders");
        connection.flush();
        stage.connections.push(connection);
        far_ends.push(far.into_std().unwrap());
    }
    let (orders, data) = (name("orders"), data(256));
    let once = || {
        stage.publish(&orders, &data);
        stage.deliver();
        let mut scratch = [0; 4096];
        far_ends.iter().map(|mut far| far.read(&mut scratch).unwrap()).sum::<usize>()
    };
    assert!(once() > SOCKETS * 256);
    let counted = measure(|| assert!(once() > SOCKETS * 256));
    hold("one event to 200 sockets in one call", counted.count_total, 11);
    let turns = &stage.node.worker.inbox().turns;
    assert_eq!(
        (turns.submissions.value(), turns.submitted_writes.value()),
        (2, 2 * SOCKETS as u64)
    );
}

#[test]
fn an_event_for_nobody_costs_nothing() {
    let stage = Stage::new(0, &[]);
    let (name, data) = (name("nobody"), data(256));
    hold("an event for nobody", measure(|| stage.publish(&name, &data)).count_total, 0);
}

#[test]
fn a_connection_owns_little() {
    let mut stage = Stage::new(0, &[]);
    // Channels of their own, and lists that have room.
    let names: Vec<String> = (0..SUBSCRIBERS).map(|number| format!("own-{number}")).collect();
    let mut connections = Vec::with_capacity(SUBSCRIBERS);
    let counted = measure(|| {
        for name in &names {
            let connection = stage.connect();
            stage.subscribe(&connection, name);
            connection.take_queued();
            connections.push(connection);
        }
    });
    let each = counted.bytes_current.unsigned_abs() / SUBSCRIBERS as u64;
    // How full the shards of the directory are is left to chance: eight bytes more or less.
    hold("bytes of a connection with a channel", each, 498);
    stage.connections = connections;
    assert_eq!(stage.settle(), 0);
}
