//! The channels with subscribers on one worker, and those subscribers. Slots are reused; a stale handle does not match
//! the new owner of its slot.

use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;
use smallvec::SmallVec;

use super::connection::Connection;
use super::directory::Directory;
use super::handles::ChannelHandle;
use super::subscriptions::Subscriptions;
use crate::protocol::channel::ChannelName;

/// All of one worker's channels.
#[derive(Debug, Default)]
pub(super) struct WorkerChannels {
    /// By place, which handles name.
    places: Slab<ChannelSlot>,
    /// How many channels were ever opened; numbers them.
    opened: u32,
    /// The most that were open since memory was last given back.
    most: usize,
    /// Places by directory and name.
    index: HashTable<u32>,
    /// One for the table, seeded anew in each process: names are chosen by clients.
    hasher: DefaultHashBuilder,
}

/// A place for a channel, free or used.
#[derive(Debug)]
struct ChannelSlot {
    /// Which channel it is of all that were opened.
    generation: u32,
    /// How many of the channel's subscribers are subscribed to another channel too.
    shared: u32,
    /// The part that deliveries need.
    channel: WorkerChannel,
}

/// Places below which no memory is given back.
/// A small table is not worth the copying.
const KEPT_PLACES: usize = 1024;

/// A channel's subscribers on this worker.
#[derive(Debug)]
pub(super) struct WorkerChannel {
    /// Of the app; two apps may have channels of one name.
    pub directory: Arc<Directory>,
    /// By which the directory knows it.
    pub name: ChannelName,
    /// In no order; a connection knows its own position, so that leaving moves only the last one.
    pub subscribers: SmallVec<[Rc<Connection>; 2]>,
}

impl WorkerChannels {
    /// Of app and name together.
    fn hash(hasher: &DefaultHashBuilder, directory: &Arc<Directory>, name: &str) -> u64 {
        // By the directory's address: one app has one directory for as long as the server runs.
        hasher.hash_one((Arc::as_ptr(directory) as usize, name))
    }

    /// The handle of an app's channel, if it has subscribers here.
    pub(super) fn find(&self, directory: &Arc<Directory>, name: &str) -> Option<ChannelHandle> {
        // Asked with a borrowed name, so that looking allocates nothing.
        let hash = Self::hash(&self.hasher, directory, name);
        let slot = *self.index.find(hash, |&slot| {
            self.at(slot).is_some_and(|channel| {
                channel.name.as_str() == name && Arc::ptr_eq(&channel.directory, directory)
            })
        })?;
        let generation = self.places.get(slot as usize)?.generation;
        Some(ChannelHandle { slot, generation })
    }

    /// The channel in that slot now; a stored handle needs `get`, which checks the generation.
    pub(super) fn at(&self, slot: u32) -> Option<&WorkerChannel> {
        Some(&self.places.get(slot as usize)?.channel)
    }

    /// The channel in that slot, to be changed.
    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut WorkerChannel> {
        Some(&mut self.places.get_mut(slot as usize)?.channel)
    }

    /// The channel an order was meant for, if it is still there.
    /// Deliveries name a channel by its handle, and may be late.
    pub(super) fn get(&self, local: ChannelHandle) -> Option<&WorkerChannel> {
        let place = self.places.get(local.slot as usize)?;
        (place.generation == local.generation).then_some(&place.channel)
    }

    /// A slot of a channel that was closed is used again, with another generation.
    pub(super) fn find_or_open(
        &mut self,
        directory: &Arc<Directory>,
        name: &ChannelName,
    ) -> ChannelHandle {
        if let Some(local) = self.find(directory, name.as_str()) {
            return local;
        }
        let channel = WorkerChannel {
            directory: directory.clone(),
            name: name.clone(),
            subscribers: SmallVec::new(),
        };
        // Wraps after four billion channels; a handle of then is long gone.
        self.opened = self.opened.wrapping_add(1);
        let generation = self.opened;
        let slot = self.places.insert(ChannelSlot { generation, shared: 0, channel }) as u32;
        self.most = self.most.max(self.places.len());
        let hash = Self::hash(&self.hasher, directory, name.as_str());
        let (places, hasher) = (&self.places, &self.hasher);
        self.index.insert_unique(hash, slot, |&slot| {
            places.get(slot as usize).map_or(0, |place| place.hash(hasher))
        });
        ChannelHandle { slot, generation }
    }

    /// Notes that a connection, subscribed to `others` already, is subscribed to the channel at `slot` too.
    pub(super) fn note_shared(&mut self, slot: u32, others: &Subscriptions) {
        self.each_shared(slot, others, |shared| *shared += 1);
    }

    /// Ends what [`Self::note_shared`] began.
    pub(super) fn note_unshared(&mut self, slot: u32, others: &Subscriptions) {
        self.each_shared(slot, others, |shared| *shared -= 1);
    }

    /// A connection's second channel makes its first a shared one as well.
    fn each_shared(&mut self, slot: u32, others: &Subscriptions, change: impl Fn(&mut u32)) {
        let first = others.only_slot();
        let own = (!others.is_empty()).then_some(slot);
        for slot in first.into_iter().chain(own) {
            let place = self.places.get_mut(slot as usize);
            place.into_iter().for_each(|place| change(&mut place.shared));
        }
    }

    /// Whether none of the channel's subscribers has another channel.
    pub(super) fn is_alone(&self, local: ChannelHandle) -> bool {
        self.places.get(local.slot as usize).is_some_and(|place| place.shared == 0)
    }

    /// Frees the place of a channel without subscribers on this worker.
    pub(super) fn close_if_empty(&mut self, slot: u32) -> bool {
        let Some(channel) = self.at(slot).filter(|channel| channel.subscribers.is_empty()) else {
            return false;
        };
        let hash = Self::hash(&self.hasher, &channel.directory, channel.name.as_str());
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.places.remove(slot as usize);
        self.shrink();
        true
    }

    /// Gives memory back when three quarters of it are unused, and again each time that half of the rest is closed:
    /// only places behind the last one in use can go.
    fn shrink(&mut self) {
        let (room, used) = (self.places.capacity(), self.places.len());
        if room <= KEPT_PLACES || used >= room / 4 || used > self.most / 2 {
            return;
        }
        self.most = used;
        self.places.shrink_to_fit();
        let (places, hasher) = (&self.places, &self.hasher);
        self.index.shrink_to(2 * used, |&slot| {
            places.get(slot as usize).map_or(0, |place| place.hash(hasher))
        });
    }
}

impl ChannelSlot {
    /// The hash by which the channel is found.
    fn hash(&self, hasher: &DefaultHashBuilder) -> u64 {
        WorkerChannels::hash(hasher, &self.channel.directory, self.channel.name.as_str())
    }
}

impl WorkerChannel {
    /// Takes out the subscriber at `position`; the one that has moved there.
    pub(super) fn remove(&mut self, position: usize) -> Option<&Rc<Connection>> {
        if position < self.subscribers.len() {
            self.subscribers.swap_remove(position);
        }
        if self.subscribers.spilled() && self.subscribers.len() < self.subscribers.capacity() / 4 {
            self.subscribers.shrink_to_fit();
        }
        self.subscribers.get(position)
    }
}
