//! Frames queued for one socket, shared with all other sockets that get them, and counted in bytes. It never waits and
//! never drops: pushing reports when it is too full. An empty one owns no memory.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::waiting_frames;
use crate::metrics::HeldBytes;

/// A queue of frames. The front one may be written in part already.
#[derive(Debug, Default)]
pub struct Outbox {
    /// In the order in which it is written.
    queue: OutboxQueue,
    /// Of all that is queued, less what of the first is written.
    bytes: usize,
    /// Where its frames are counted, while the socket does not take them.
    counted: Option<Arc<HeldBytes>>,
}

/// Most often an outbox holds nothing, or one thing for as long as a turn lasts.
#[derive(Debug, Default)]
enum OutboxQueue {
    #[default]
    Empty,
    /// Most often one frame waits, and needs no queue.
    One(Bytes),
    Many(VecDeque<Bytes>),
}

/// Bytes that the shortest frame takes, about: a handle in the queue, and a piece of memory of its own.
const MIN_FRAME_BYTES: usize = 64;

/// How many times the cap a frame may be that waits alone.
const MAX_ALONE_TIMES: usize = 16;

impl Outbox {
    /// Frames that one system call takes; Linux takes 1,024, but more than this gains nothing.
    pub(super) const SLICES: usize = 64;

    /// Whether everything was written.
    pub fn is_empty(&self) -> bool {
        matches!(self.queue, OutboxQueue::Empty)
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether a frame of `bytes` may wait where `max` bytes may. The frame that is being written does not
    /// count, and one alone may be many times as large, for a roster of thousands is larger than a cap that
    /// is right for all else. Each takes its place in the queue however short it is, so that a client that
    /// reads no answer to its pings cannot have many times the bytes kept for it.
    pub fn has_room(&self, bytes: usize, max: usize) -> bool {
        let frames = match &self.queue {
            OutboxQueue::Empty => return bytes <= max.saturating_mul(MAX_ALONE_TIMES),
            OutboxQueue::One(_) => 0,
            OutboxQueue::Many(all) => all.len() - 1,
        };
        let front = self.front().map_or(0, Bytes::len);
        (self.bytes - front).max(frames * MIN_FRAME_BYTES) + bytes <= max
    }

    pub fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        if let Some(held) = &self.counted {
            waiting_frames::hold(&frame, held);
        }
        match std::mem::take(&mut self.queue) {
            OutboxQueue::Empty => self.queue = OutboxQueue::One(frame),
            OutboxQueue::One(first) => {
                // Room for a few more, so that most turns ask for memory once.
                let mut all = VecDeque::with_capacity(4);
                all.extend([first, frame]);
                self.queue = OutboxQueue::Many(all);
            }
            OutboxQueue::Many(mut all) => {
                all.push_back(frame);
                self.queue = OutboxQueue::Many(all);
            }
        }
    }

    /// Counts what waits in `held`, as long as any of it does.
    pub(super) fn begin_counting(&mut self, held: &Arc<HeldBytes>) {
        if self.counted.is_none() && !self.is_empty() {
            self.iter().for_each(|frame| waiting_frames::hold(frame, held));
            self.counted = Some(held.clone());
        }
    }

    /// Drops all but the frame at the front, which the socket may have had a part of.
    pub fn keep_front(&mut self) {
        if let OutboxQueue::Many(all) = &mut self.queue {
            let front = all.pop_front();
            self.release_all();
            self.queue = front.map_or(OutboxQueue::Empty, OutboxQueue::One);
        }
        self.bytes = self.front().map_or(0, Bytes::len);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.release_all();
        (self.queue, self.bytes, self.counted) = (OutboxQueue::Empty, 0, None);
    }

    /// Counts what is in the queue no longer.
    fn release_all(&self) {
        if let Some(held) = &self.counted {
            self.iter().for_each(|frame| waiting_frames::release(frame, held));
        }
    }

    /// The bytes to write next, when they are one piece.
    pub fn single_piece(&self) -> Option<&[u8]> {
        match &self.queue {
            OutboxQueue::One(frame) => Some(frame),
            _ => None,
        }
    }

    /// The bytes to write next, as one call takes them.
    pub fn fill_slices<'a>(&'a self, slices: &mut [IoSlice<'a>; Self::SLICES]) -> usize {
        let mut used = 0;
        for (slot, frame) in slices.iter_mut().zip(self.iter()) {
            *slot = IoSlice::new(frame);
            used += 1;
        }
        used
    }

    /// Room for [`Self::fill_slices`].
    pub fn no_slices<'a>() -> [IoSlice<'a>; Self::SLICES] {
        [IoSlice::new(&[]); Self::SLICES]
    }

    /// Forgets the first `written` bytes. An empty outbox gives its memory back.
    pub fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        if self.bytes == 0 {
            return self.clear();
        }
        match &mut self.queue {
            OutboxQueue::Empty => {}
            OutboxQueue::One(frame) => frame.advance(written.min(frame.len())),
            OutboxQueue::Many(all) => {
                while let Some(front) = all.front_mut() {
                    if written < front.len() {
                        front.advance(written);
                        break;
                    }
                    written -= front.len();
                    if let Some(held) = &self.counted {
                        waiting_frames::release(front, held);
                    }
                    all.pop_front();
                }
            }
        }
    }

    /// The frame that is written next, perhaps in part.
    fn front(&self) -> Option<&Bytes> {
        self.iter().next()
    }

    /// The frames, front first.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many) = match &self.queue {
            OutboxQueue::Empty => (None, None),
            OutboxQueue::One(frame) => (Some(frame), None),
            OutboxQueue::Many(all) => (None, Some(all)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// Frames for a socket that is gone are no longer counted as waiting.
impl Drop for Outbox {
    fn drop(&mut self) {
        self.release_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(outbox: &Outbox) -> String {
        let mut slices = Outbox::no_slices();
        let used = outbox.fill_slices(&mut slices);
        slices[..used].iter().map(|slice| std::str::from_utf8(slice).unwrap()).collect()
    }

    #[test]
    fn frames_leave_in_the_order_they_came_however_they_are_cut() {
        for cut in 1..12 {
            let mut outbox = Outbox::default();
            let mut out = String::new();
            for frame in ["ab", "c", "defg", "hijk"] {
                outbox.push(Bytes::from_static(frame.as_bytes()));
            }
            while !outbox.is_empty() {
                let next: String = text(&outbox).chars().take(cut).collect();
                assert_eq!(outbox.len(), 11 - out.len());
                outbox.advance(next.len());
                out.push_str(&next);
            }
            assert_eq!(out, "abcdefghijk");
            assert_eq!(outbox.len(), 0);
        }
    }

    #[test]
    fn a_slow_outbox_keeps_what_was_begun() {
        let mut outbox = Outbox::default();
        for frame in ["abcd", "efgh"] {
            outbox.push(Bytes::from_static(frame.as_bytes()));
        }
        outbox.advance(1);
        outbox.keep_front();
        assert_eq!((text(&outbox), outbox.len()), ("bcd".to_owned(), 3));
    }

    #[test]
    fn a_frame_that_waits_for_many_sockets_is_held_once() {
        let held = Arc::new(HeldBytes::default());
        let event = Bytes::from(vec![b'x'; 1000]);
        let mut crowd: Vec<Outbox> = (0..50).map(|_| Outbox::default()).collect();
        for outbox in &mut crowd {
            outbox.push(event.clone());
        }
        assert_eq!(held.value(), 0, "on its way to sockets that take it");
        crowd.iter_mut().for_each(|outbox| outbox.begin_counting(&held));
        assert!((1000..1200).contains(&held.value()), "{}", held.value());
        for (at, outbox) in crowd.iter_mut().enumerate() {
            // One that is each socket's own.
            outbox.push(Bytes::from(vec![at as u8; 100]));
            outbox.advance(at);
        }
        assert!((6000..12_000).contains(&held.value()), "{}", held.value());
        crowd[0].keep_front();
        crowd[1].clear();
        for outbox in &mut crowd[2..] {
            outbox.advance(1000);
        }
        let before = held.value();
        assert!(before > 5000, "the others' own, and what the first is in the middle of");
        crowd[0].advance(1000);
        assert!(held.value() <= before - 1000);
        crowd.truncate(2);
        assert_eq!(held.value(), 0, "gone with their sockets");
    }
}
