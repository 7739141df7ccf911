//! The channels that have subscribers on one worker, and who they are. Places are used again; a handle that
//! was late does not find whoever has the place now.

use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use super::connection::{Connection, Subscription};
use super::directory::Directory;
use super::inbox::LocalChannel;
use crate::protocol::channel::ChannelName;

/// All of one worker's channels.
#[derive(Debug, Default)]
pub(super) struct Channels {
    places: Vec<Place>,
    free: Vec<u32>,
    /// Places by directory and name.
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    /// How many of the channel's subscribers are subscribed to another channel too.
    shared: u32,
    channel: Option<Channel>,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub directory: Arc<Directory>,
    pub name: ChannelName,
    pub subscribers: SmallVec<[Rc<Connection>; 2]>,
}

impl Channels {
    fn hash(hasher: &DefaultHashBuilder, directory: &Arc<Directory>, name: &str) -> u64 {
        hasher.hash_one((Arc::as_ptr(directory) as usize, name))
    }

    pub(super) fn find(&self, directory: &Arc<Directory>, name: &str) -> Option<LocalChannel> {
        let hash = Self::hash(&self.hasher, directory, name);
        let slot = *self.index.find(hash, |&slot| {
            self.at(slot).is_some_and(|channel| {
                channel.name.as_str() == name && Arc::ptr_eq(&channel.directory, directory)
            })
        })?;
        let generation = self.places.get(slot as usize)?.generation;
        Some(LocalChannel { slot, generation })
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Channel> {
        self.places.get(slot as usize)?.channel.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Channel> {
        self.places.get_mut(slot as usize)?.channel.as_mut()
    }

    /// The channel an order was meant for, if it is still there.
    pub(super) fn get(&self, local: LocalChannel) -> Option<&Channel> {
        let place = self.places.get(local.slot as usize)?;
        place.channel.as_ref().filter(|_| place.generation == local.generation)
    }

    pub(super) fn find_or_open(
        &mut self,
        directory: &Arc<Directory>,
        name: &ChannelName,
    ) -> LocalChannel {
        if let Some(local) = self.find(directory, name.as_str()) {
            return local;
        }
        let channel = Channel {
            directory: directory.clone(),
            name: name.clone(),
            subscribers: SmallVec::new(),
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.places.push(Place { generation: 0, shared: 0, channel: None });
                (self.places.len() - 1) as u32
            }
        };
        let mut generation = 0;
        if let Some(place) = self.places.get_mut(slot as usize) {
            place.channel = Some(channel);
            generation = place.generation;
        }
        let hash = Self::hash(&self.hasher, directory, name.as_str());
        let (places, hasher) = (&self.places, &self.hasher);
        self.index.insert_unique(hash, slot, |&slot| {
            let channel = places.get(slot as usize).and_then(|place| place.channel.as_ref());
            channel
                .map_or(0, |channel| Self::hash(hasher, &channel.directory, channel.name.as_str()))
        });
        LocalChannel { slot, generation }
    }

    /// Notes that a connection, subscribed to `others` already, is subscribed to the channel at `slot` too.
    pub(super) fn share(&mut self, slot: u32, others: &[Subscription]) {
        self.each_shared(slot, others, |shared| *shared += 1);
    }

    /// Ends what [`Self::share`] began.
    pub(super) fn unshare(&mut self, slot: u32, others: &[Subscription]) {
        self.each_shared(slot, others, |shared| *shared -= 1);
    }

    /// A connection's second channel makes its first a shared one as well.
    fn each_shared(&mut self, slot: u32, others: &[Subscription], change: impl Fn(&mut u32)) {
        let first = if let [only] = others { Some(only.channel.slot) } else { None };
        let own = (!others.is_empty()).then_some(slot);
        for slot in first.into_iter().chain(own) {
            let place = self.places.get_mut(slot as usize);
            place.into_iter().for_each(|place| change(&mut place.shared));
        }
    }

    /// Whether none of the channel's subscribers is subscribed to another one.
    pub(super) fn is_alone(&self, local: LocalChannel) -> bool {
        self.places.get(local.slot as usize).is_some_and(|place| place.shared == 0)
    }

    /// Gives up the place of a channel that nobody here is subscribed to.
    pub(super) fn close_if_empty(&mut self, slot: u32) {
        let Some(channel) = self.at(slot).filter(|channel| channel.subscribers.is_empty()) else {
            return;
        };
        let hash = Self::hash(&self.hasher, &channel.directory, channel.name.as_str());
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        if let Some(place) = self.places.get_mut(slot as usize) {
            place.channel = None;
            place.generation = place.generation.wrapping_add(1);
        }
        self.free.push(slot);
    }
}
