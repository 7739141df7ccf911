//! The bytes of one write to a streaming response: lines of a session's queued frames, and how much of them was
//! written. `http_stream.rs` decides when a response ends.

use std::sync::Arc;

use smallvec::SmallVec;

use super::outbox::Outbox;
use crate::protocol::fallback::FallbackLines;

/// A piece of the outbox that is said in part.
#[derive(Debug)]
pub(super) struct PartialPiece {
    pub lines: Arc<FallbackLines>,
    /// Lines that are written as a whole.
    pub done: usize,
    /// Bytes of the next one that are.
    pub sent: usize,
}

/// The lines of one write to a streaming response.
#[derive(Default)]
pub(super) struct LineBatch {
    /// In the order in which they are written.
    pub bytes: Outbox,
    /// Ranges of lines, in order.
    pub parts: SmallVec<[LineRange; 2]>,
    /// The answer is at its end then.
    pub stops: bool,
}

/// Some lines of a piece that a call is to write.
pub(super) struct LineRange {
    pub lines: Arc<FallbackLines>,
    /// Bytes of the piece in the outbox.
    pub piece: usize,
    /// The line at which this connection begins.
    pub first: usize,
    /// Bytes of that line that are written.
    pub sent: usize,
    /// The end of the range, in bytes.
    pub end: usize,
}

impl LineRange {
    /// Whether it includes the last line of the session.
    pub(super) fn is_last(&self) -> bool {
        self.lines.is_last && self.end == self.lines.ends.len()
    }

    /// Takes what was written of it off `left`: how far its piece is said now, none if as a whole, and the
    /// length of the lines that were finished.
    pub(super) fn advance(&self, left: &mut usize) -> (Option<PartialPiece>, usize) {
        let all = self.lines.bytes.len();
        if self.first == 0 && self.sent == 0 && self.end == self.lines.ends.len() && *left >= all {
            *left -= all;
            return (None, self.lines.units);
        }
        let (mut done, mut sent, mut units) = (self.first, self.sent, 0);
        for line in self.lines.ends.iter().take(self.end).skip(self.first) {
            let rest = line.at - self.lines.line_start(done) - sent;
            if *left < rest {
                sent += *left;
                *left = 0;
                break;
            }
            *left -= rest;
            units += line.units;
            done += 1;
            sent = 0;
        }
        let is_whole = done == self.lines.ends.len();
        let front = PartialPiece { lines: self.lines.clone(), done, sent };
        ((!is_whole).then_some(front), units)
    }
}
