//! Which workers have subscribers of a channel. Most channels have subscribers on one worker only, and there may be as
//! many channels as connections, so a single seat takes no memory of its own.

use std::num::NonZeroU32;
use std::slice;

use smallvec::SmallVec;

use super::handles::ChannelHandle;

/// The workers that have subscribers of a channel, as they were at one moment.
pub type WorkerTargets = SmallVec<[WorkerTarget; 1]>;

/// One worker's part of a channel.
#[derive(Clone, Copy, Debug)]
pub struct WorkerTarget {
    pub worker: u16,
    /// How the worker itself calls the channel.
    pub channel: ChannelHandle,
    /// How many, for the counts.
    pub subscribers: NonZeroU32,
}

/// The same as the directory keeps it.
#[derive(Debug)]
pub(super) enum ChannelSeats {
    /// One worker, the usual case, without an allocation.
    One(WorkerTarget),
    /// None, or several. The box is smaller than the list.
    #[expect(clippy::box_collection, reason = "every channel has room for this")]
    Others(Option<Box<Vec<WorkerTarget>>>),
}

impl Default for ChannelSeats {
    fn default() -> Self {
        Self::Others(None)
    }
}

impl ChannelSeats {
    pub(super) fn as_slice(&self) -> &[WorkerTarget] {
        match self {
            Self::One(seat) => slice::from_ref(seat),
            Self::Others(seats) => seats.as_ref().map_or(&[], |seats| seats.as_slice()),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [WorkerTarget] {
        match self {
            Self::One(seat) => slice::from_mut(seat),
            Self::Others(seats) => seats.as_mut().map_or(&mut [], |seats| seats.as_mut_slice()),
        }
    }

    /// Whether no worker has a subscriber.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Others(None))
    }

    pub(super) fn subscriber_count(&self) -> usize {
        self.as_slice().iter().map(|seat| seat.subscribers.get() as usize).sum()
    }

    /// One more subscriber. The worker's first brings the worker in.
    pub(super) fn take_seat(&mut self, worker: u16, channel: ChannelHandle) {
        let found = self.as_mut_slice().iter_mut().find(|seat| seat.worker == worker);
        if let Some(seat) = found {
            seat.subscribers = seat.subscribers.saturating_add(1);
            return;
        }
        let seat = WorkerTarget { worker, channel, subscribers: NonZeroU32::MIN };
        *self = match std::mem::take(self) {
            Self::One(first) => Self::Others(Some(Box::new(vec![first, seat]))),
            Self::Others(None) => Self::One(seat),
            Self::Others(Some(mut seats)) => {
                seats.push(seat);
                Self::Others(Some(seats))
            }
        };
    }

    /// One less; whether there was one.
    pub(super) fn leave_seat(&mut self, worker: u16) -> bool {
        let all = self.as_mut_slice();
        let Some(at) = all.iter().position(|seat| seat.worker == worker) else { return false };
        let Some(seat) = all.get_mut(at) else { return false };
        match NonZeroU32::new(seat.subscribers.get() - 1) {
            Some(left) => seat.subscribers = left,
            None => self.remove(at),
        }
        true
    }

    /// Removes a worker without subscribers.
    fn remove(&mut self, at: usize) {
        if let Self::Others(Some(seats)) = self {
            // Order among the workers does not matter.
            seats.swap_remove(at);
            if let [last] = *seats.as_slice() {
                *self = Self::One(last);
            }
        } else {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_come_and_go_and_the_last_leaves_nothing() {
        let channel = |slot| ChannelHandle { slot, generation: 1 };
        let mut seats = ChannelSeats::default();
        let mut model = std::collections::BTreeMap::<u16, u32>::new();
        let mut random = 11_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let worker = (random >> 40) as u16 % 5;
            if random >> 63 == 0 {
                seats.take_seat(worker, channel(worker.into()));
                *model.entry(worker).or_default() += 1;
            } else {
                assert_eq!(seats.leave_seat(worker), model.contains_key(&worker));
                model.entry(worker).and_modify(|count| *count -= 1);
                model.retain(|_, count| *count > 0);
            }
            let mut found: Vec<_> = seats.as_slice().to_vec();
            found.sort_by_key(|seat| seat.worker);
            assert!(found.iter().map(|one| (one.worker, one.subscribers.get())).eq(model.clone()));
            assert!(found.iter().all(|one| one.channel == channel(one.worker.into())));
            assert_eq!(seats.is_empty(), model.is_empty());
            assert_eq!(seats.subscriber_count(), model.values().sum::<u32>() as usize);
        }
        assert_eq!(size_of::<ChannelSeats>(), 16, "every channel has one");
    }
}
