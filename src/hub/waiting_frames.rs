//! Memory of frames queued for sockets that take no more. A frame queued for many sockets of a worker exists once and
//! is counted once: added with its first socket, subtracted with its last. Frames on their way are not counted, so a
//! normal delivery costs nothing.

use std::cell::RefCell;

use bytes::Bytes;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::metrics::HeldBytes;

/// Bytes that are counted for a frame beside its own: its place here, and the piece of memory that it is.
const FRAME_BYTES: usize = 96;

/// Places below which no memory is given back.
const KEPT_PLACES: usize = 1024;

/// How many sockets a frame waits for, and the bytes that are counted for it.
#[derive(Debug)]
struct WaitingFrame {
    /// How many of them have the frame queued.
    sockets: u32,
    bytes: usize,
}

thread_local! {
    /// By where they end, which stays as it is while a socket takes a part.
    static WAITING: RefCell<HashMap<usize, WaitingFrame>> = RefCell::default();
}

/// Frames that share memory and end alike are one frame, of which some sockets have taken a part.
fn end_of(frame: &Bytes) -> usize {
    frame.as_ptr() as usize + frame.len()
}

/// Notes one more socket that the frame waits for.
pub(super) fn hold(frame: &Bytes, held: &HeldBytes) {
    let bytes = frame.len() + FRAME_BYTES;
    WAITING.with_borrow_mut(|waiting| match waiting.entry(end_of(frame)) {
        Entry::Occupied(mut entry) => entry.get_mut().sockets += 1,
        Entry::Vacant(entry) => {
            held.add_bytes(bytes);
            entry.insert(WaitingFrame { sockets: 1, bytes });
        }
    });
}

/// Ends what [`hold`] began.
pub(super) fn release(frame: &Bytes, held: &HeldBytes) {
    // A thread that ends may have forgotten them before its sockets.
    let _ = WAITING.try_with(|waiting| {
        let mut waiting = waiting.borrow_mut();
        let Entry::Occupied(mut entry) = waiting.entry(end_of(frame)) else { return };
        entry.get_mut().sockets -= 1;
        if entry.get().sockets == 0 {
            held.sub_bytes(entry.remove().bytes);
            let room = waiting.capacity();
            if room > KEPT_PLACES && waiting.len() < room / 8 {
                waiting.shrink_to(room / 4);
            }
        }
    });
}
