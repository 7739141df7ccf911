//! The channels of one client, sorted by name in one allocation: most clients have few, and there may be as many
//! clients as connections.

use std::slice;

use crate::protocol::channel::ChannelName;

/// Places that are made one by one, before there are as many again each time.
const SINGLE_PLACES: usize = 4;

/// Bytes of a channel beside its name: its place, of which there may be half as many again in vain, and the counts
/// of the name.
const CHANNEL_BYTES: usize = size_of::<(ChannelName, HeldChannel)>() * 3 / 2 + 32;

/// Bytes that are counted for a channel that a client holds.
pub(super) fn channel_bytes(name: &ChannelName) -> usize {
    CHANNEL_BYTES + name.as_str().len()
}

/// A channel that a client holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldChannel {
    /// The number of the last event that it has acknowledged.
    pub(super) acked: u64,
    /// The client's present connection has subscribed to it; an earlier one has, if not.
    pub(super) is_current: bool,
}

/// One in place, which is what most clients hold, others in a list of their own.
#[derive(Debug)]
pub(super) enum HeldChannels {
    One((ChannelName, HeldChannel)),
    #[expect(clippy::box_collection, reason = "every client has room for this")]
    Others(Option<Box<Vec<(ChannelName, HeldChannel)>>>),
}

impl Default for HeldChannels {
    fn default() -> Self {
        Self::Others(None)
    }
}

impl HeldChannels {
    fn as_slice(&self) -> &[(ChannelName, HeldChannel)] {
        match self {
            Self::One(one) => slice::from_ref(one),
            Self::Others(all) => all.as_ref().map_or(&[], |all| all.as_slice()),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [(ChannelName, HeldChannel)] {
        match self {
            Self::One(one) => slice::from_mut(one),
            Self::Others(all) => all.as_mut().map_or(&mut [], |all| all.as_mut_slice()),
        }
    }

    /// A sorted list: most clients hold a few channels, and a table would take more memory.
    fn find(&self, name: &ChannelName) -> Result<usize, usize> {
        self.as_slice().binary_search_by(|(other, _)| other.cmp(name))
    }

    pub(super) fn get(&self, name: &ChannelName) -> Option<&HeldChannel> {
        self.as_slice().get(self.find(name).ok()?).map(|(_, held)| held)
    }

    pub(super) fn get_mut(&mut self, name: &ChannelName) -> Option<&mut HeldChannel> {
        let place = self.find(name).ok()?;
        self.as_mut_slice().get_mut(place).map(|(_, held)| held)
    }

    /// Adds a channel that is not held yet.
    pub(super) fn insert(&mut self, name: ChannelName, held: HeldChannel) {
        match self.find(&name) {
            Ok(place) => {
                if let Some(one) = self.as_mut_slice().get_mut(place) {
                    one.1 = held;
                }
            }
            Err(place) => {
                let mut all = match std::mem::take(self) {
                    Self::Others(None) => return *self = Self::One((name, held)),
                    Self::One(first) => Box::new(vec![first]),
                    Self::Others(Some(all)) => all,
                };
                if all.len() < SINGLE_PLACES {
                    all.reserve_exact(1);
                }
                all.insert(place, (name, held));
                *self = Self::Others(Some(all));
            }
        }
    }

    /// Whether it was held.
    pub(super) fn remove(&mut self, name: &ChannelName) -> bool {
        let Ok(place) = self.find(name) else { return false };
        match self {
            Self::One(_) => *self = Self::default(),
            Self::Others(all) => all.iter_mut().for_each(|all| drop(all.remove(place))),
        }
        self.settle();
        true
    }

    /// Bytes that are counted for all.
    pub(super) fn bytes(&self) -> usize {
        self.iter().map(|(name, _)| channel_bytes(name)).sum()
    }

    /// The same of those that the present connection has not subscribed to.
    pub(super) fn old_bytes(&self) -> usize {
        let old = self.iter().filter(|(_, held)| !held.is_current);
        old.map(|(name, _)| channel_bytes(name)).sum()
    }

    /// Takes those out.
    pub(super) fn take_old(&mut self) -> Vec<ChannelName> {
        let mut taken = Vec::new();
        let mut kept = Vec::new();
        for (name, held) in self.iter() {
            if held.is_current {
                kept.push((name.clone(), *held));
            } else {
                taken.push(name.clone());
            }
        }
        *self = kept.into_iter().collect();
        taken
    }

    /// A new connection has subscribed to none of them.
    pub(super) fn note_connected(&mut self) {
        self.as_mut_slice().iter_mut().for_each(|(_, held)| held.is_current = false);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelName, &HeldChannel)> {
        self.as_slice().iter().map(|(name, held)| (name, held))
    }

    /// One that is left has no list.
    fn settle(&mut self) {
        if let Self::Others(Some(all)) = self
            && all.len() < 2
        {
            *self = all.pop().map_or_else(Self::default, Self::One);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.as_slice().len()
    }
}

impl FromIterator<(ChannelName, HeldChannel)> for HeldChannels {
    fn from_iter<I: IntoIterator<Item = (ChannelName, HeldChannel)>>(all: I) -> Self {
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        all.dedup_by(|one, other| one.0 == other.0);
        let mut held = Self::Others(Some(Box::new(all)));
        held.settle();
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found_until_it_is_taken_out() {
        let name = |number: u64| ChannelName::parse(&format!("c{number}"), 200).unwrap();
        let held = |acked| HeldChannel { acked, is_current: true };
        let mut all: HeldChannels = [(name(5), held(5)), (name(3), held(3))].into_iter().collect();
        (0..10).for_each(|number| all.insert(name(number), held(number)));
        assert_eq!(all.len(), 10);
        assert_eq!(all.get(&name(3)).map(|held| held.acked), Some(3));
        all.get_mut(&name(3)).unwrap().acked = 7;
        assert!(all.iter().any(|(_, held)| held.acked == 7));
        assert!(all.remove(&name(3)) && !all.remove(&name(3)));
        assert!(all.get(&name(3)).is_none() && all.get_mut(&name(3)).is_none());
    }

    #[test]
    fn one_channel_has_no_list_however_it_came_to_be_the_only_one() {
        let name = |number: u64| ChannelName::parse(&format!("c{number}"), 200).unwrap();
        let held = |number| HeldChannel { acked: 1, is_current: number == 3 };
        let mut all = HeldChannels::default();
        assert!(!all.remove(&name(1)) && all.bytes() == 0);
        for round in 0..3 {
            (1..=3).for_each(|number| all.insert(name(number), held(number)));
            assert!(all.remove(&name(2)) && all.len() == 2);
            assert_eq!(all.take_old(), [name(1)], "{round}");
            assert!(matches!(&all, HeldChannels::One((one, _)) if *one == name(3)));
            assert!(all.get(&name(3)).is_some() && all.get(&name(1)).is_none());
            assert!(all.remove(&name(3)) && all.len() == 0);
        }
        assert!(size_of::<HeldChannels>() <= 32, "each client has one");
    }
}
