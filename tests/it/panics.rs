//! A fault of ours must cost one connection and no more: what unwinds through a connection's task leaves
//! the channels as if its client had gone, and is counted.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::memory::Memory;
use crate::support::websocket::Heard;

#[test]
fn a_panic_costs_the_connection_it_came_from() {
    let memory = Memory::new(1, |_| {});
    let (mut witness, mut doomed) = (memory.connect(0), memory.connect(0));
    witness.subscribe("presence-room", "1");
    doomed.subscribe("presence-room", "2");
    memory.deliver_all();
    witness.heard();
    assert_eq!(memory.inspect("presence-room"), (2, 2));

    let task = AssertUnwindSafe(|| {
        let _socket = memory.carry(doomed);
        panic!("as a bug of ours would");
    });
    assert!(catch_unwind(task).is_err());

    assert_eq!(memory.shared.metrics.sum_counter(|counts| &counts.panics), 1);
    assert_eq!(memory.shared.connection_count(), 1);
    assert_eq!(memory.inspect("presence-room"), (1, 1));
    memory.deliver_all();
    let told = witness.heard();
    assert!(
        matches!(told.as_slice(), [Heard::Text(text)] if text.contains("member_removed")),
        "{told:?}"
    );
    witness.say(r#"{"event":"pusher:ping"}"#);
    assert_eq!(witness.heard().len(), 1, "the others go on");
}
