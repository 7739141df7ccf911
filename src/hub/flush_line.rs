//! In which order, and how many at a time, the connections are flushed that a worker's turns have given something:
//! who is in a small room does not wait behind a crowd. The writes themselves are made in `flush.rs`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Sockets, and bytes queued for them, that are flushed before others on the worker get a turn.
/// A socket costs a system call and its bytes are copied, so these bound how long a turn stands still: 4 MiB take a few
/// milliseconds, and are 16 KiB for each of 256 sockets.
const SOCKETS_PER_PART: usize = 256;
const PART_BYTES: usize = 4 << 20;

/// The same, in sockets, while events come faster than they are written. Others get their turn so much sooner, and what
/// they publish in it leaves in one write with what those further back wait for.
const BUSY_SOCKETS_PER_PART: usize = 32;

/// Events for crowds in one burst after which the next ones wait for each other, and for how long at most.
const MANY_EVENTS: usize = 8;
const LONGEST_REST: Duration = Duration::from_millis(2);

/// Whether a channel has more subscribers than are written to at once.
pub(super) fn is_crowd(subscribers: usize) -> bool {
    subscribers > SOCKETS_PER_PART
}

/// The connections to which a turn has given something, each once.
#[derive(Debug)]
pub(super) struct TouchedList<T> {
    /// By what went to few.
    few: Vec<T>,
    /// By what went to more than a part has.
    crowd: Vec<T>,
}

impl<T> Default for TouchedList<T> {
    fn default() -> Self {
        Self { few: Vec::new(), crowd: Vec::new() }
    }
}

impl<T> TouchedList<T> {
    /// Adds one that was given what goes to so many.
    pub(super) fn add_touched(&mut self, one: T, subscribers: usize) {
        if is_crowd(subscribers) { &mut self.crowd } else { &mut self.few }.push(one);
    }

    /// All that are in it, to be taken out.
    pub(super) fn join_lists(&mut self) -> &mut Vec<T> {
        self.few.append(&mut self.crowd);
        &mut self.few
    }
}

/// Connections that are flushed in more than one turn. Those with little do not wait behind those with much: who was
/// sent a short frame in the same moment in which a room was sent a large one would hear it last of all.
#[derive(Debug)]
pub(super) struct FlushLine<T> {
    few: VecDeque<T>,
    light: VecDeque<T>,
    heavy: VecDeque<T>,
    /// How many sockets make a part now.
    part: usize,
    /// How many were flushed since something last came before all was flushed.
    quiet: usize,
    /// When the first turn began since nothing waited.
    begun: Option<Instant>,
    /// Until when it is soon after all was flushed.
    soon: Option<Instant>,
    /// Events for crowds that came since nothing waited.
    gathered: usize,
    /// Until when events for crowds wait.
    rest: Option<Instant>,
}

impl<T> Default for FlushLine<T> {
    fn default() -> Self {
        let (few, light, heavy) = Default::default();
        let (begun, soon, rest) = Default::default();
        Self { few, light, heavy, part: SOCKETS_PER_PART, quiet: 0, begun, soon, gathered: 0, rest }
    }
}

impl<T> FlushLine<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.few.is_empty() && self.light.is_empty() && self.heavy.is_empty()
    }

    /// Whether events come faster than they are written.
    pub(super) fn is_outpaced(&self) -> bool {
        self.part == BUSY_SOCKETS_PER_PART
    }

    /// A turn begins, with orders that came at `since`, so many of them events for crowds. Makes parts small as soon as
    /// some come while others wait to be flushed, or sooner after than that took; and large again once nothing has for a
    /// while.
    pub(super) fn begin_turn(
        &mut self,
        (since, for_crowds): (Option<Instant>, usize),
        begun: Instant,
    ) {
        self.gathered += for_crowds;
        let is_soon = |since| self.soon.is_some_and(|soon| since < soon);
        // What arrived before the last events were written shows that events outpace the sockets.
        if since.is_some_and(|since| self.begun.is_some() || is_soon(since)) {
            (self.part, self.quiet) = (BUSY_SOCKETS_PER_PART, 0);
        } else if self.quiet >= SOCKETS_PER_PART {
            // Small parts cost a calm worker turns, so one quiet part of full size is enough to leave them.
            self.part = SOCKETS_PER_PART;
        }
        self.begun.get_or_insert(begun);
    }

    /// The turn is over, at `end`, in which so many sockets were flushed.
    pub(super) fn end_turn(&mut self, flushed: usize, end: Instant) {
        self.quiet += flushed;
        if self.is_empty()
            && let Some(begun) = self.begun.take()
        {
            // As long as the burst took: a worker that is busy half of the time is still busy.
            let took = end - begun;
            self.soon = Some(end + took);
            let is_crowded = std::mem::take(&mut self.gathered) >= MANY_EVENTS;
            self.rest = is_crowded.then(|| end + took.min(LONGEST_REST));
        }
    }

    /// Until when events for crowds wait for others, after a burst of many. With several workers each is done with a
    /// burst before the publishers have sent the next one. Without a rest it would begin anew with the first event, and
    /// a single event costs it as many writes as all of them together.
    pub(super) fn rest_until(&self) -> Option<Instant> {
        self.rest
    }

    /// Takes in whom a turn has touched, but for those that are flushed at once, which it returns: few, or a crowd
    /// that is no larger than a part while nobody waits. A crowd whose front was flushed a moment ago goes behind
    /// its end, where more comes together for it before it is written to again. `queued` are the bytes for one.
    pub(super) fn take_touched<'a>(
        &mut self,
        touched: &'a mut TouchedList<T>,
        queued: impl Fn(&T) -> usize,
    ) -> &'a mut Vec<T> {
        let fits = |few: &[T], crowd: &[T], part| {
            let all = few.iter().chain(crowd).map(&queued);
            part_by_bytes(all, part, PART_BYTES) == few.len() + crowd.len()
        };
        // Of what comes fast, much gathers for everybody.
        let is_light = |one: &T| queued(one) <= PART_BYTES / self.part;
        // The usual case of a calm worker: nobody waits, and one part has room for all.
        if self.is_empty() && fits(&touched.few, &touched.crowd, self.part) {
            return touched.join_lists();
        }
        for one in touched.crowd.drain(..) {
            if is_light(&one) { &mut self.light } else { &mut self.heavy }.push_back(one);
        }
        // Small channels pass the crowd, for whose last member they would wait otherwise.
        if self.few.is_empty() && fits(&touched.few, &[], self.part) {
            return &mut touched.few;
        }
        let goes_first = fits(&touched.few, &[], SOCKETS_PER_PART);
        for one in touched.few.drain(..) {
            let is_first = goes_first || is_light(&one);
            if is_first { &mut self.few } else { &mut self.heavy }.push_back(one);
        }
        &mut touched.few
    }

    /// Gives `part` what a turn can flush, of all of them.
    pub(super) fn give_part(&mut self, part: &mut Vec<T>, queued: impl Fn(&T) -> usize) {
        // No more at a time where parts are small, or there would be more of it for each of the others.
        let heavy_bytes = PART_BYTES / SOCKETS_PER_PART * self.part;
        for (line, bytes) in [
            (&mut self.few, PART_BYTES),
            (&mut self.light, PART_BYTES),
            (&mut self.heavy, heavy_bytes),
        ] {
            let some = part_by_bytes(line.iter().map(&queued), self.part, bytes);
            part.extend(line.drain(..some));
        }
    }
}

/// How many from the front a part of so many sockets and bytes has: at least one, and the one with which the bytes are
/// too many is the last.
fn part_by_bytes(queued: impl Iterator<Item = usize>, sockets: usize, bytes: usize) -> usize {
    let fits = |sum: &mut usize, queued| {
        let before = *sum;
        *sum += queued;
        (before < bytes).then_some(())
    };
    queued.take(sockets).scan(0, fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(
        few: impl IntoIterator<Item = usize>,
        crowd: impl IntoIterator<Item = usize>,
    ) -> TouchedList<usize> {
        let mut all = TouchedList::default();
        few.into_iter().for_each(|bytes| all.add_touched(bytes, SOCKETS_PER_PART));
        crowd.into_iter().for_each(|bytes| all.add_touched(bytes, SOCKETS_PER_PART + 1));
        all
    }

    fn at_once(line: &mut FlushLine<usize>, mut touched: TouchedList<usize>) -> usize {
        let flushed = line.take_touched(&mut touched, |bytes| *bytes).len();
        assert!(flushed == 0 || touched.crowd.is_empty());
        flushed
    }

    /// Sockets of each turn until nothing waits.
    fn parts(line: &mut FlushLine<usize>) -> Vec<usize> {
        let mut parts = Vec::new();
        while !line.is_empty() {
            let mut part = Vec::new();
            line.give_part(&mut part, |bytes| *bytes);
            parts.push(part.len());
        }
        parts
    }

    #[test]
    fn a_turn_flushes_so_many_sockets_or_bytes() {
        let part = |sockets, bytes| {
            part_by_bytes(std::iter::repeat_n(bytes, sockets), SOCKETS_PER_PART, PART_BYTES)
        };
        assert_eq!((part(0, 1), part(7, 100), part(10_000, 100)), (0, 7, SOCKETS_PER_PART));
        assert_eq!(part(10_000, 16 << 10), SOCKETS_PER_PART);
        assert_eq!(part(2_000, 100 << 10), 41);
        assert_eq!(part(2, 64 << 20), 1, "it is not cut");
    }

    #[test]
    fn a_short_frame_waited_behind_a_large_one_for_a_room() {
        let (mut line, mut part) = (FlushLine::default(), Vec::new());
        let both = touched([], std::iter::repeat_n(100 << 10, 500).chain([7; 16]));
        assert_eq!(at_once(&mut line, both), 0);
        line.give_part(&mut part, |bytes| *bytes);
        assert_eq!(part.iter().filter(|bytes| **bytes == 7).count(), 16);
        assert_eq!(part.len(), 16 + 41, "and those of the room go on meanwhile");
        // What is little altogether is flushed at once.
        assert_eq!(at_once(&mut line, touched([7; SOCKETS_PER_PART], [])), SOCKETS_PER_PART);
        assert_eq!(parts(&mut line).len(), 12);
    }

    #[test]
    fn few_pass_a_crowd_and_a_crowd_goes_behind_its_own_end() {
        let mut line = FlushLine::default();
        assert_eq!(at_once(&mut line, touched([1; 2], [7; 200])), 202, "nobody waits");
        assert_eq!(at_once(&mut line, touched([], [7; 1000])), 0);
        // Its front was flushed, and is given something again.
        line.give_part(&mut Vec::new(), |bytes| *bytes);
        assert_eq!(at_once(&mut line, touched([1; 20], [8; SOCKETS_PER_PART])), 20);
        assert_eq!(line.light.iter().position(|bytes| *bytes == 8), Some(1000 - SOCKETS_PER_PART));
        // Few that are many together come before the crowd, not instead of it.
        assert_eq!(at_once(&mut line, touched([1; 300], [])), 0);
        assert_eq!(at_once(&mut line, touched([2; 10], [])), 0, "in their order");
        assert_eq!(
            parts(&mut line),
            [
                2 * SOCKETS_PER_PART,
                54 + SOCKETS_PER_PART,
                SOCKETS_PER_PART,
                1000 - 3 * SOCKETS_PER_PART
            ]
        );
    }

    #[test]
    fn parts_are_small_while_events_come_faster_than_they_are_written() {
        let (mut line, start) = (FlushLine::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        // A turn that begins and ends then, with what came at `since`, and the part that it goes by.
        let mut turn = |since: Option<u64>, begun, end, flushed, waits: bool| {
            line.begin_turn((since.map(at), 0), at(begun));
            line.light = (0..usize::from(waits)).collect();
            line.end_turn(flushed, at(end));
            line.part
        };
        assert_eq!(turn(Some(10), 10, 12, SOCKETS_PER_PART, true), SOCKETS_PER_PART);
        assert_eq!(turn(None, 12, 14, SOCKETS_PER_PART, false), SOCKETS_PER_PART);
        // All was flushed in 4 ms: after 5 more that is long ago.
        assert_eq!(turn(Some(19), 19, 21, SOCKETS_PER_PART, false), SOCKETS_PER_PART);
        assert_eq!(
            turn(Some(22), 22, 23, SOCKETS_PER_PART, true),
            BUSY_SOCKETS_PER_PART,
            "after one that took two"
        );
        assert_eq!(turn(Some(23), 23, 24, 10, true), BUSY_SOCKETS_PER_PART, "while others wait");
        assert_eq!(turn(None, 24, 25, SOCKETS_PER_PART - 11, true), BUSY_SOCKETS_PER_PART);
        assert_eq!(
            turn(None, 25, 26, 1, true),
            BUSY_SOCKETS_PER_PART,
            "it has not been quiet for long"
        );
        assert_eq!(turn(None, 26, 27, 1, false), SOCKETS_PER_PART);
    }

    #[test]
    fn a_crowd_rests_for_as_long_as_many_events_took_and_not_after_few() {
        let (mut line, start) = (FlushLine::<usize>::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let mut burst = |for_crowds, begun, end| {
            line.begin_turn((Some(at(begun)), for_crowds), at(begun));
            line.begin_turn((Some(at(begun)), for_crowds), at(begun));
            line.end_turn(SOCKETS_PER_PART + 1, at(end));
            line.rest_until()
        };
        assert_eq!(burst(MANY_EVENTS / 2, 10, 11), Some(at(12)));
        assert_eq!(burst(MANY_EVENTS / 2, 20, 25), Some(at(25) + LONGEST_REST));
        assert_eq!(burst(MANY_EVENTS / 2 - 1, 30, 31), None);
    }
}
