//! The compressed form of an event beside its plain one: made once, when the first subscriber is met that
//! takes it, and the same for all of them. Who takes it was agreed on in the connection's handshake.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::connection::Connection;
use super::inbox::Delivery;
use crate::metrics::AppTraffic;
use crate::protocol::deflate::{self, Deflater};

thread_local! {
    /// Made when the thread first compresses something.
    static DEFLATER: Cell<Option<Box<Deflater>>> = const { Cell::new(None) };
}

/// Whether messages may be compressed (RFC 7692).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    #[default]
    Off,
    /// The client's may; it has no room for the window of ours.
    Incoming,
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
    fn deflated_form(&self, frame: &[u8]) -> Option<&Bytes> {
        let make = || {
            let mut deflater = DEFLATER.take().unwrap_or_default();
            let deflated = deflater.deflate(frame);
            DEFLATER.set(Some(deflater));
            deflated
        };
        self.0.get_or_init(make).as_ref()
    }
}

/// What a connection that takes compressed events is given of these, which follow each other. It is a copy of
/// the worker's own, so that workers do not count references on one shared cache line.
pub(super) fn join_deflated(run: &[Delivery]) -> Bytes {
    let forms = run.iter().map(smallest_form);
    let mut all = BytesMut::with_capacity(forms.clone().map(<[u8]>::len).sum());
    forms.for_each(|form| all.extend_from_slice(form));
    all.freeze()
}

fn smallest_form(one: &Delivery) -> &[u8] {
    one.deflated
        .as_ref()
        .and_then(|deflated| deflated.deflated_form(&one.frame))
        .unwrap_or(&one.frame)
}

/// Frames that follow each other, for those of a channel's subscribers that take them compressed.
#[derive(Debug, Default)]
pub(super) struct CompressedRun {
    /// Of all of them together.
    all: Option<Bytes>,
    plain_bytes: usize,
    deflated_bytes: usize,
}

impl CompressedRun {
    /// What `connection` is given instead of `plain`, which is `run` in one piece; `all`: of everything that is
    /// delivered now.
    pub(super) fn pick_form(
        &mut self,
        connection: &Connection,
        run: &[Delivery],
        plain: &Bytes,
        all: bool,
    ) -> Bytes {
        if connection.life.compression.get() != Compression::Both
            || run.iter().all(|one| one.deflated.is_none())
        {
            return plain.clone();
        }
        let form = match &self.all {
            Some(form) if all => form.clone(),
            _ => join_deflated(run),
        };
        if all {
            self.all = Some(form.clone());
        }
        self.plain_bytes += plain.len();
        self.deflated_bytes += form.len();
        form
    }

    pub(super) fn count_bytes(&self, traffic: &AppTraffic) {
        if self.plain_bytes > 0 {
            traffic.plain_bytes.add(self.plain_bytes as u64);
            traffic.deflated_bytes.add(self.deflated_bytes as u64);
        }
    }
}
