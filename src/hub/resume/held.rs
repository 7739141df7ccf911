//! The channels of one client, sorted by name in one allocation: most clients have few, and there may be as many
//! clients as connections.

use super::clients::HeldChannel;
use crate::protocol::channel::ChannelName;
use crate::protocol::socket_id::SocketId;

/// Places that are made one by one, before there are as many again each time.
const FEW: usize = 4;

/// What a channel takes beside its name: its place, of which there may be half as many again in vain, and the counts
/// of the name.
const CHANNEL_BYTES: usize = size_of::<(ChannelName, HeldChannel)>() * 3 / 2 + 32;

/// Bytes that are counted for a channel that a client holds.
pub(super) fn channel_bytes(name: &ChannelName) -> usize {
    CHANNEL_BYTES + name.as_str().len()
}

#[derive(Debug, Default)]
pub(super) struct HeldChannels(Vec<(ChannelName, HeldChannel)>);

impl HeldChannels {
    /// A sorted list: most clients hold a few channels, and a table would take more memory.
    fn find(&self, name: &ChannelName) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(name))
    }

    pub(super) fn get(&self, name: &ChannelName) -> Option<&HeldChannel> {
        self.0.get(self.find(name).ok()?).map(|(_, held)| held)
    }

    pub(super) fn get_mut(&mut self, name: &ChannelName) -> Option<&mut HeldChannel> {
        let place = self.find(name).ok()?;
        self.0.get_mut(place).map(|(_, held)| held)
    }

    /// Adds a channel that is not held yet.
    pub(super) fn insert(&mut self, name: ChannelName, held: HeldChannel) {
        match self.find(&name) {
            Ok(place) => {
                if let Some(one) = self.0.get_mut(place) {
                    one.1 = held;
                }
            }
            Err(place) => {
                if self.0.len() < FEW {
                    self.0.reserve_exact(1);
                }
                self.0.insert(place, (name, held));
            }
        }
    }

    /// Whether it was held.
    pub(super) fn remove(&mut self, name: &ChannelName) -> bool {
        let found = self.find(name).map(|place| self.0.remove(place));
        found.is_ok()
    }

    /// Bytes that are counted for all.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(name, _)| channel_bytes(name)).sum()
    }

    /// The same of those that `socket` has not subscribed to.
    pub(super) fn bytes_beside(&self, socket: SocketId) -> usize {
        let others = self.0.iter().filter(|(_, held)| held.socket != socket);
        others.map(|(name, _)| channel_bytes(name)).sum()
    }

    /// Takes those out.
    pub(super) fn take_beside(&mut self, socket: SocketId) -> Vec<ChannelName> {
        let others = self.0.extract_if(.., |(_, held)| held.socket != socket);
        others.map(|(name, _)| name).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelName, &HeldChannel)> {
        self.0.iter().map(|(name, held)| (name, held))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<(ChannelName, HeldChannel)> for HeldChannels {
    fn from_iter<I: IntoIterator<Item = (ChannelName, HeldChannel)>>(all: I) -> Self {
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        all.dedup_by(|one, other| one.0 == other.0);
        Self(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found_until_it_is_taken_out() {
        let name = |number: u64| ChannelName::parse(&format!("c{number}"), 200).unwrap();
        let held = |acked| HeldChannel { acked, socket: SocketId { node: 1, number: 1 } };
        let mut all: HeldChannels = [(name(5), held(5)), (name(3), held(3))].into_iter().collect();
        (0..10).for_each(|number| all.insert(name(number), held(number)));
        assert_eq!(all.len(), 10);
        assert_eq!(all.get(&name(3)).map(|held| held.acked), Some(3));
        all.get_mut(&name(3)).unwrap().acked = 7;
        assert!(all.iter().any(|(_, held)| held.acked == 7));
        assert!(all.remove(&name(3)) && !all.remove(&name(3)));
        assert!(all.get(&name(3)).is_none() && all.get_mut(&name(3)).is_none());
    }
}
