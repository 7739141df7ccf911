//! The subscriptions of one connection. A connection with one channel, as most have, allocates nothing; one with many
//! finds each in constant time, and frees memory when it leaves them. `channels.rs` has the other direction.

use hashbrown::HashTable;

use super::handles::ChannelHandle;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// Subscriptions up to which a list is searched faster than a table.
const MAX_SEARCHED: usize = 16;

/// Subscriptions from which on the list grows by a quarter.
const SLOW_GROWTH_FROM: usize = 64;

/// Bytes that are counted for a subscription beside its channel's name: its place in the list of its connection
/// and in that of its channel, and the channel itself, here and in the directory.
const SUBSCRIPTION_BYTES: usize = 320;

/// Bytes that are counted for a subscription to the channel, whether or not others are subscribed to it: so what a
/// client may have does not depend on who leaves.
pub fn counted_bytes(name: &ChannelName) -> usize {
    SUBSCRIPTION_BYTES + name.as_str().len()
}

/// The versions of a channel's two histories that a subscriber knows.
#[derive(Clone, Copy, Default, Debug)]
pub struct SeenVersions {
    /// Of who is present.
    pub presence: u64,
    /// Of the cached event; on other channels, the time that Redis had.
    pub cache: u64,
}

/// One channel that a connection is subscribed to.
#[derive(Debug)]
pub(super) struct Subscription {
    pub channel: ChannelHandle,
    /// Its place in the channel's list.
    pub position: u32,
    /// Bytes that are counted for it.
    pub bytes: u32,
    /// The second of [`SeenVersions`], as of when it subscribed.
    seen_cache: u64,
    /// On channels whose members are known.
    presence: Option<Box<SeenPresence>>,
}

/// State of subscriptions to presence channels.
#[derive(Debug, Default)]
struct SeenPresence {
    /// The user as whom it is present.
    user: Option<UserId>,
    /// The first of [`SeenVersions`].
    version: u64,
}

impl Subscription {
    /// A subscriber at `position` of the channel's list, for which so many `bytes` are counted.
    pub(super) fn new(channel: ChannelHandle, position: u32, bytes: u32) -> Self {
        Self { channel, position, bytes, seen_cache: 0, presence: None }
    }

    /// The versions that the client has from its confirmation.
    pub(super) fn told(&self) -> SeenVersions {
        let presence = self.presence.as_ref().map_or(0, |presence| presence.version);
        SeenVersions { presence, cache: self.seen_cache }
    }

    /// Notes the versions that the client has seen.
    pub(super) fn set_told(&mut self, told: SeenVersions) {
        self.seen_cache = told.cache;
        if told.presence > 0 || self.presence.is_some() {
            self.presence.get_or_insert_default().version = told.presence;
        }
    }

    /// The user as whom it is present.
    pub(super) fn user(&self) -> Option<&UserId> {
        self.presence.as_ref()?.user.as_ref()
    }

    /// Notes the user as whom it is present.
    pub(super) fn set_user(&mut self, user: UserId) {
        self.presence.get_or_insert_default().user = Some(user);
    }

    /// The user as whom it was present, once it has ended.
    pub(super) fn into_user(self) -> Option<UserId> {
        self.presence?.user
    }
}

/// All of a connection's subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(SubscriptionList);

/// The subscriptions, without an allocation for none or one.
#[derive(Debug, Default)]
enum SubscriptionList {
    #[default]
    Empty,
    /// Most connections have one channel, and no table.
    One(Subscription),
    /// Boxed, so that the usual one costs no more for it.
    Many(Box<SubscriptionTable>),
}

/// Two or more.
#[derive(Debug, Default)]
struct SubscriptionTable {
    /// In no order: leaving moves the last one into the gap.
    list: Vec<Subscription>,
    /// Bytes counted against `subscription_bytes`.
    bytes: usize,
    /// Indices into `all` by the channel's slot; empty while `all` is searched.
    index: HashTable<u32>,
}

/// Slots are assigned by the worker, so that clients cannot choose colliding ones.
fn hash(slot: u32) -> u64 {
    u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl SubscriptionTable {
    /// Searched one by one while there are few, by a table from then on.
    fn at(&self, slot: u32) -> Option<usize> {
        if self.index.is_empty() {
            return self.list.iter().position(|one| one.channel.slot == slot);
        }
        let is_it =
            |&at: &u32| self.list.get(at as usize).is_some_and(|one| one.channel.slot == slot);
        self.index.find(hash(slot), is_it).map(|at| *at as usize)
    }

    /// Makes the table once it is worth its memory.
    fn push(&mut self, subscription: Subscription) {
        self.bytes += subscription.bytes as usize;
        if self.list.len() == self.list.capacity() && self.list.len() > SLOW_GROWTH_FROM {
            // Twice the room would stand half empty for as long as the connection does.
            self.list.reserve_exact(self.list.len() / 4);
        }
        self.list.push(subscription);
        let all = &self.list;
        let rehash = |&at: &u32| all.get(at as usize).map_or(0, |one| hash(one.channel.slot));
        let new = if self.index.is_empty() { 0 } else { all.len() - 1 };
        if all.len() > MAX_SEARCHED {
            for (at, one) in all.iter().enumerate().skip(new) {
                self.index.insert_unique(hash(one.channel.slot), at as u32, rehash);
            }
        }
    }

    /// Keeps the table right: two entries of it change.
    fn remove(&mut self, at: usize) -> Subscription {
        let last = self.list.len() - 1;
        let removed = self.list.swap_remove(at);
        self.bytes -= removed.bytes as usize;
        if !self.index.is_empty() {
            let slot = removed.channel.slot;
            if let Ok(entry) = self.index.find_entry(hash(slot), |&other| other as usize == at) {
                entry.remove();
            }
            // The last one has moved to the free place.
            if let Some(moved) = self.list.get(at) {
                let moved = hash(moved.channel.slot);
                if let Some(place) = self.index.find_mut(moved, |&other| other as usize == last) {
                    *place = at as u32;
                }
            }
        }
        self.shrink();
        removed
    }

    /// Gives back what three quarters of is unused.
    fn shrink(&mut self) {
        if self.list.len() <= MAX_SEARCHED / 2 {
            self.index = HashTable::new();
        }
        if self.list.len() >= MAX_SEARCHED && self.list.len() < self.list.capacity() / 4 {
            let room = 2 * self.list.len();
            self.list.shrink_to(room);
            let all = &self.list;
            let rehash = |&at: &u32| all.get(at as usize).map_or(0, |one| hash(one.channel.slot));
            self.index.shrink_to(room, rehash);
        }
    }
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            SubscriptionList::Empty => 0,
            SubscriptionList::One(_) => 1,
            SubscriptionList::Many(many) => many.list.len(),
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that are counted for all of them.
    pub(super) fn counted_bytes(&self) -> usize {
        match &self.0 {
            SubscriptionList::Empty => 0,
            SubscriptionList::One(one) => one.bytes as usize,
            SubscriptionList::Many(many) => many.bytes,
        }
    }

    /// The slot of the channel, if it is the only one.
    pub(super) fn only_slot(&self) -> Option<u32> {
        match &self.0 {
            SubscriptionList::One(one) => Some(one.channel.slot),
            SubscriptionList::Empty | SubscriptionList::Many(_) => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        let (one, many) = match &self.0 {
            SubscriptionList::Empty => (None, [].as_slice()),
            SubscriptionList::One(one) => (Some(one), [].as_slice()),
            SubscriptionList::Many(many) => (None, many.list.as_slice()),
        };
        one.into_iter().chain(many)
    }

    /// The subscription to the channel in that slot.
    pub(super) fn find(&self, slot: u32) -> Option<&Subscription> {
        match &self.0 {
            SubscriptionList::One(one) if one.channel.slot == slot => Some(one),
            SubscriptionList::Empty | SubscriptionList::One(_) => None,
            SubscriptionList::Many(many) => many.list.get(many.at(slot)?),
        }
    }

    /// The subscription to the channel in that slot.
    pub(super) fn find_mut(&mut self, slot: u32) -> Option<&mut Subscription> {
        match &mut self.0 {
            SubscriptionList::One(one) if one.channel.slot == slot => Some(one),
            SubscriptionList::Empty | SubscriptionList::One(_) => None,
            SubscriptionList::Many(many) => {
                let at = many.at(slot)?;
                many.list.get_mut(at)
            }
        }
    }

    /// Adds one to a channel that there is none to yet.
    pub(super) fn push(&mut self, subscription: Subscription) {
        match std::mem::take(&mut self.0) {
            SubscriptionList::Empty => self.0 = SubscriptionList::One(subscription),
            SubscriptionList::One(first) => {
                let mut many = Box::new(SubscriptionTable::default());
                many.push(first);
                many.push(subscription);
                self.0 = SubscriptionList::Many(many);
            }
            SubscriptionList::Many(mut many) => {
                many.push(subscription);
                self.0 = SubscriptionList::Many(many);
            }
        }
    }

    /// Takes the subscription to the channel in that slot out.
    pub(super) fn take(&mut self, slot: u32) -> Option<Subscription> {
        match &mut self.0 {
            SubscriptionList::One(one) if one.channel.slot != slot => None,
            SubscriptionList::Empty | SubscriptionList::One(_) => self.pop(),
            SubscriptionList::Many(many) => {
                let at = many.at(slot)?;
                let taken = many.remove(at);
                self.settle_single();
                Some(taken)
            }
        }
    }

    /// Takes the last one out.
    pub(super) fn pop(&mut self) -> Option<Subscription> {
        if let SubscriptionList::Many(many) = &mut self.0 {
            let last = many.list.len() - 1;
            let taken = many.remove(last);
            self.settle_single();
            return Some(taken);
        }
        match std::mem::take(&mut self.0) {
            SubscriptionList::One(one) => Some(one),
            _ => None,
        }
    }

    /// The one that was added last.
    pub(super) fn last_mut(&mut self) -> Option<&mut Subscription> {
        match &mut self.0 {
            SubscriptionList::Empty => None,
            SubscriptionList::One(one) => Some(one),
            SubscriptionList::Many(many) => many.list.last_mut(),
        }
    }

    /// A list of one is none.
    fn settle_single(&mut self) {
        if let SubscriptionList::Many(many) = &mut self.0
            && many.list.len() == 1
            && let Some(one) = many.list.pop()
        {
            self.0 = SubscriptionList::One(one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(slot: u32) -> Subscription {
        Subscription::new(ChannelHandle { slot, generation: 0 }, 0, slot)
    }

    #[test]
    fn each_is_found_however_many_come_and_go() {
        let mut all = Subscriptions::default();
        let mut model = std::collections::BTreeSet::new();
        let mut random = 7_u64;
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let slot = (random >> 33) as u32 % 100;
            let third = random.is_multiple_of(3);
            let grows = if (step / 2_000_u32).is_multiple_of(2) { !third } else { third };
            if grows && model.insert(slot) {
                all.push(subscription(slot));
                assert_eq!(all.last_mut().map(|one| one.channel.slot), Some(slot));
            } else if !grows && random.is_multiple_of(16) {
                let popped = all.pop().map(|one| one.channel.slot);
                assert_eq!(popped.is_some_and(|slot| model.remove(&slot)), popped.is_some());
            } else if !grows {
                assert_eq!(all.take(slot).is_some(), model.remove(&slot));
            }
            assert_eq!((all.len(), all.is_empty()), (model.len(), model.is_empty()));
            assert_eq!(all.counted_bytes(), model.iter().map(|slot| *slot as usize).sum::<usize>());
            let found = (0..100).filter(|slot| all.find(*slot).is_some());
            assert!(found.eq(model.iter().copied()), "{model:?}");
            assert!((0..100).all(|slot| all.find_mut(slot).is_some() == model.contains(&slot)));
            assert_eq!(all.only_slot().is_some(), model.len() == 1);
        }
    }

    #[test]
    fn what_many_channels_took_is_given_back() {
        let mut all = Subscriptions::default();
        (0..10_000).for_each(|slot| all.push(subscription(slot)));
        let SubscriptionList::Many(many) = &all.0 else { panic!("all are many") };
        assert!(many.list.capacity() <= 10_000 * 5 / 4, "{}", many.list.capacity());
        while all.len() > 20 {
            all.pop();
        }
        let SubscriptionList::Many(many) = &all.0 else { panic!("twenty are many") };
        assert!(many.list.capacity() < 200 && many.index.capacity() < 200);
        assert!(size_of::<Subscriptions>() <= 40, "an idle connection has one");
    }
}
