//! Lines shared by several HTTP sessions of a worker, made once. An event is one allocation in all their outboxes, so
//! its address is the cache's key.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::fallback::{AnswerFraming, FallbackLines};

/// A piece, and its lines.
type SharedLines = (Bytes, Arc<FallbackLines>);

thread_local! {
    /// Lines of pieces that several sessions share, by the address of the piece. Each entry keeps its piece, so
    /// that no other can have the same address.
    static SHARED: RefCell<Vec<Option<SharedLines>>> = RefCell::new(vec![None; SHARED_PLACES]);
}

/// Pieces whose lines are kept.
const SHARED_PLACES: usize = 64;

/// Makes the lines of a piece, once a turn for all sessions that get it.
pub(super) fn lines_of(piece: &Bytes, framing: AnswerFraming) -> Arc<FallbackLines> {
    let address = piece.as_ptr() as usize;
    let place = (address >> 4 ^ address >> 10) % SHARED_PLACES;
    SHARED.with_borrow_mut(|shared| {
        let kept = shared.get_mut(place);
        if let Some(Some((of, lines))) = &kept
            && of.as_ptr() == piece.as_ptr()
            && of.len() == piece.len()
            && lines.framing == framing
        {
            return lines.clone();
        }
        let lines = Arc::new(FallbackLines::of_frames(piece, framing));
        // A piece that only this session gets is not cached.
        if !piece.is_unique()
            && let Some(kept) = kept
        {
            *kept = Some((piece.clone(), lines.clone()));
        }
        lines
    })
}

/// Lets go of the lines that are kept, and the pieces that they were made of.
pub fn forget_shared_lines() {
    SHARED.with_borrow_mut(|shared| shared.iter_mut().for_each(|kept| *kept = None));
}
