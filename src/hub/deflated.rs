//! The compressed form of an event beside the plain one: made once, for the first subscriber that takes it, and shared
//! by all others. The handshake negotiated who takes it.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::protocol::deflate::{self, Deflater};

thread_local! {
    /// Made when the thread first compresses something.
    static DEFLATER: Cell<Option<Box<Deflater>>> = const { Cell::new(None) };
}

/// Whether messages may be compressed (RFC 7692), and in which direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Neither side compresses.
    #[default]
    Off,
    /// The client's may; it has no room for the window of ours.
    Incoming,
    /// Both sides may compress.
    Both,
}

/// An event's compressed form, which its workers share; none where that is no smaller.
#[derive(Debug, Default)]
pub struct DeflatedEvent(OnceLock<Option<Bytes>>);

impl DeflatedEvent {
    /// For a frame that may be compressed: one whose text has `min` bytes.
    pub(super) fn for_frame(frame: &[u8], min: usize) -> Option<Arc<Self>> {
        (deflate::frame_payload(frame)?.len() >= min).then(Arc::default)
    }

    /// The form, made by whichever worker asks first; another that asks meanwhile waits, for it would have
    /// to do the same.
    pub(super) fn deflated_form(&self, frame: &[u8]) -> Option<&Bytes> {
        let make = || {
            // Taken out of its cell; the first use on a thread makes one.
            let mut deflater = DEFLATER.take().unwrap_or_default();
            let deflated = deflater.deflate(frame);
            DEFLATER.set(Some(deflater));
            deflated
        };
        self.0.get_or_init(make).as_ref()
    }
}
