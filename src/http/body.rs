//! The body of a request as it comes in. Nothing is bounded here: whoever adds to it has counted first.
//! Most bodies come in one piece, and are not copied.

use bytes::{Bytes, BytesMut};

/// The body so far; most come in one piece, which is not copied.
#[derive(Debug)]
pub(super) enum Received {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Received {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes,
        }
    }

    pub(super) fn add(&mut self, more: Bytes) {
        match self {
            Self::Nothing => *self = Self::One(more),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + more.len()));
                all.extend_from_slice(first);
                all.extend_from_slice(&more);
                *self = Self::Many(all);
            }
            Self::Many(all) => all.extend_from_slice(&more),
        }
    }
}
