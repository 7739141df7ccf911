//! State of one app that all workers share: which workers have subscribers of a channel and how many, its members,
//! and signed-in users. Only the worker knows its subscribers individually. One entry is locked at a time, never
//! across an await. Notices of a presence change are put into inboxes while the channel is locked, so that none
//! overtakes another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cache::EventCache;
use super::count_throttle::CountThrottle;
use super::handles::ChannelHandle;
use super::presence::{Presence, member_bytes};
use super::rate_limit::RateLimit;
use super::resume::ResumeRegistry;
use super::seats::{ChannelSeats, WorkerTarget, WorkerTargets};
use super::users::AppUsers;
use crate::app::{ChannelFull, PresenceBounds};
use crate::metrics::{AppTraffic, HeldBytes};
use crate::protocol::channel::ChannelName;
use crate::protocol::event::{MemberText, Message};
use crate::protocol::member::{Member, UserId};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Subscriptions below which no memory is given back.
const KEPT_SUBSCRIPTIONS: usize = 1024;

/// One app's channels and users.
#[derive(Debug)]
pub struct Directory {
    /// Occupied channels, in shards of which one is locked at a time.
    channels: DashMap<ChannelName, Channel>,
    /// Of all workers; the app's limit holds for it.
    connections: AtomicUsize,
    /// Of all channels.
    subscriptions: AtomicUsize,
    /// Distinct users of each presence channel.
    members: AtomicUsize,
    /// The memory held for the app's clients.
    held: Arc<HeldBytes>,
    /// The most subscriptions since memory was last given back.
    peak: AtomicUsize,
    /// One for each worker.
    traffic: Box<[AppTraffic]>,
    /// Signed-in users, and watchers.
    pub users: AppUsers,
    /// The last event of each cache channel.
    pub cache: EventCache,
    /// When crowded channels were last told their count.
    pub counting: CountThrottle,
    /// Clients that may come back.
    pub resume: ResumeRegistry,
    /// Events published through the API.
    pub events: RateLimit,
    /// Queries answered by it.
    pub reads: RateLimit,
}

/// An occupied channel. One without subscribers is not in the directory.
#[derive(Debug, Default)]
struct Channel {
    /// The workers with subscribers, and how many each has.
    seats: ChannelSeats,
    /// Boxed: most channels have none.
    presence: Option<Box<VersionedPresence>>,
}

/// The members of a channel.
#[derive(Debug, Default)]
struct VersionedPresence {
    presence: Presence,
    /// The number of changes. A notice that a roster already includes is recognised by it.
    version: u64,
}

/// The effects of a new subscription.
#[derive(Debug)]
pub struct Subscribed {
    /// It is the channel's first.
    pub occupied: bool,
    /// Subscriptions of the channel, this one included.
    pub count: usize,
    /// Only on a presence channel.
    pub joined: Option<Joined>,
}

/// The effects on a presence channel.
#[derive(Debug)]
pub struct Joined {
    /// The answer to the joiner: everybody, itself included.
    pub roster: Message,
    /// Its text, if it is the user's first connection there.
    pub member: Option<MemberText>,
    /// Of the channel, with this change in it.
    pub version: u64,
}

/// The effects of the end of a subscription.
#[derive(Debug)]
pub struct Unsubscribed {
    /// It was the channel's last.
    pub vacated: bool,
    /// Subscriptions that are left.
    pub count: usize,
    /// It was the user's last connection there.
    pub member_left: bool,
}

/// A channel as queries see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occupancy {
    /// Connections, each counted once a channel.
    pub subscriptions: usize,
    /// Distinct users of a presence channel.
    pub users: usize,
}

/// How much an app has of what its channels have.
#[derive(Clone, Copy, Debug)]
pub struct AppTotals {
    /// Channels with a subscriber or more.
    pub channels: usize,
    /// Of all channels together.
    pub subscriptions: usize,
    /// Distinct users of each presence channel.
    pub members: usize,
}

impl Channel {
    /// One more connection of a member, if it is of one; its text, if that is news.
    /// The channel's version moves only where members do: tabs of one user change nothing that others see.
    fn join_member(
        &mut self,
        member: Option<(&Member, PresenceBounds)>,
    ) -> Result<Option<MemberText>, ChannelFull> {
        let Some((member, room)) = member else { return Ok(None) };
        let VersionedPresence { presence, version } =
            self.presence.get_or_insert_default().as_mut();
        let text = presence.join_user(member, room)?;
        *version += u64::from(text.is_some());
        Ok(text)
    }

    /// The subscriptions and users of the channel.
    fn occupancy(&self) -> Occupancy {
        let users = self.presence().map_or(0, Presence::count);
        Occupancy { subscriptions: self.seats.subscriber_count(), users }
    }

    /// The members, on a presence channel.
    fn presence(&self) -> Option<&Presence> {
        self.presence.as_ref().map(|known| &known.presence)
    }
}

impl Directory {
    /// An empty one, for `workers` workers, whose bytes are counted in `held`.
    pub fn new(workers: usize, held: Arc<HeldBytes>) -> Self {
        Self {
            channels: DashMap::new(),
            users: AppUsers::default(),
            connections: AtomicUsize::new(0),
            subscriptions: AtomicUsize::new(0),
            members: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            resume: ResumeRegistry::new(held.clone()),
            traffic: (0..workers.max(1)).map(|_| AppTraffic::default()).collect(),
            cache: EventCache::new(held.clone()),
            counting: CountThrottle::default(),
            events: RateLimit::default(),
            reads: RateLimit::default(),
            held,
        }
    }

    /// The app's traffic on one worker.
    pub fn traffic_of(&self, worker: u16) -> &AppTraffic {
        #[expect(clippy::indexing_slicing, reason = "there is always a worker")]
        self.traffic.get(usize::from(worker)).unwrap_or(&self.traffic[0])
    }

    /// The app's traffic on all workers.
    pub fn all_traffic(&self) -> &[AppTraffic] {
        &self.traffic
    }

    /// All channels and their subscriptions and members together.
    pub fn totals(&self) -> AppTotals {
        AppTotals {
            channels: self.channels.len(),
            // Relaxed: totals for display; the channels themselves are counted under their locks.
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            members: self.members.load(Ordering::Relaxed),
        }
    }

    /// The memory held for the app's clients.
    pub fn held(&self) -> &Arc<HeldBytes> {
        &self.held
    }

    /// Gives memory back once three quarters of the subscriptions that there were are gone. Called once a
    /// second, by one worker.
    pub fn shrink(&self) {
        // Relaxed: the map is shrunk a second later if a count was missed.
        let now = self.subscriptions.load(Ordering::Relaxed);
        let peak = self.peak.fetch_max(now, Ordering::Relaxed).max(now);
        // Small ones are left alone: giving back and taking again would cost more than it saves.
        if peak > KEPT_SUBSCRIPTIONS && now < peak / 4 {
            self.peak.store(now, Ordering::Relaxed);
            self.channels.shrink_to_fit();
            self.users.shrink();
        }
    }

    /// Takes the place of one more connection, unless `max` (0: no limit) are there already.
    pub fn admit_connection(&self, max: usize) -> bool {
        // Taken first and given back if that was one too many, so that no two workers take the last place.
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        if max > 0 && before >= max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Gives a connection's place back.
    pub fn release_connection(&self) {
        // Relaxed: the place is free for whoever counts next.
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// The app's connections on this node. Relaxed: limits are kept by `admit_connection`, this is
    /// for display.
    pub fn connection_count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// One more subscriber in `seat`; on a presence channel as `member`, if there is room. A member that was not
    /// there is announced to `tell`.
    /// Called by a worker that has the subscriber already.
    /// # Errors
    /// The presence channel has no room.
    pub fn add_subscriber(
        &self,
        name: &ChannelName,
        seat: (u16, ChannelHandle),
        member: Option<(&Member, PresenceBounds)>,
        tell: impl FnOnce(&[WorkerTarget], &MemberText, u64),
    ) -> Result<Subscribed, ChannelFull> {
        let (mut entry, text) = match self.channels.entry(name.clone()) {
            Entry::Occupied(mut entry) => {
                let text = entry.get_mut().join_member(member)?;
                (entry.into_ref(), text)
            }
            Entry::Vacant(entry) => {
                let mut channel = Channel::default();
                let text = channel.join_member(member)?;
                (entry.insert(channel), text)
            }
        };
        if let Some(text) = &text {
            // While the entry is locked: a leave of the same member cannot be counted before this.
            self.members.fetch_add(1, Ordering::Relaxed);
            self.held.add_bytes(member_bytes(text));
        }
        let channel = entry.value_mut();
        let presence = channel.presence.as_ref().filter(|_| member.is_some());
        let joined = presence.map(|known| {
            let roster = known.presence.roster(name);
            Joined { roster, member: text, version: known.version }
        });
        let occupied = channel.seats.is_empty();
        // To those who were there before: the joiner has the roster.
        if let Some(Joined { member: Some(member), version, .. }) = &joined {
            tell(channel.seats.as_slice(), member, *version);
        }
        // Only now, so that it is not announced to itself.
        channel.seats.take_seat(seat.0, seat.1);
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        Ok(Subscribed { occupied, count: channel.seats.subscriber_count(), joined })
    }

    /// One subscriber less on `worker`, who was present as `user`. `None` if there was no such channel. A
    /// member that is gone is announced to `tell`.
    pub fn remove_subscriber(
        &self,
        name: &ChannelName,
        worker: u16,
        user: Option<&UserId>,
        tell: impl FnOnce(&[WorkerTarget], &MemberText, u64),
    ) -> Option<Unsubscribed> {
        // Locked to the end: a concurrent subscription finds either the channel or none, never one that is about to
        // be removed.
        let Entry::Occupied(mut entry) = self.channels.entry(name.clone()) else { return None };
        let channel = entry.get_mut();
        if channel.seats.leave_seat(worker) {
            // Relaxed: changed under the entry's lock, read without it for display alone.
            self.subscriptions.fetch_sub(1, Ordering::Relaxed);
        }
        let known = channel.presence.as_mut();
        let left = user.zip(known).and_then(|(user, known)| {
            let text = known.presence.leave_user(user)?;
            known.version += 1;
            Some((text, known.version))
        });
        if let Some((text, version)) = &left {
            // Relaxed: for display; the channel's lock orders the members themselves.
            self.members.fetch_sub(1, Ordering::Relaxed);
            self.held.sub_bytes(member_bytes(text));
            // Announced before the empty channel is removed: the remaining seats get the notice.
            tell(channel.seats.as_slice(), text, *version);
        }
        // Counted after the leave, so that webhooks and clients get the same number.
        let count = channel.seats.subscriber_count();
        let vacated = channel.seats.is_empty();
        if vacated {
            entry.remove();
        }
        Some(Unsubscribed { vacated, count, member_left: left.is_some() })
    }

    /// The workers that have subscribers of `name`. Copied, so that the channel is not locked while inboxes are
    /// filled. The copy may be one change behind, which workers notice by the channel's generation.
    pub fn targets_of(&self, name: &str) -> WorkerTargets {
        let channel = self.channels.get(name);
        // A channel without an entry has no subscriber, so no worker is a target.
        channel.map(|channel| channel.seats.as_slice().into()).unwrap_or_default()
    }

    /// Lets `tell` announce the current number of subscriptions. The channel stays locked meanwhile, so that two
    /// announcements cannot change places.
    pub fn announce_count(&self, name: &str, tell: impl FnOnce(&[WorkerTarget], usize)) {
        if let Some(channel) = self.channels.get(name) {
            tell(channel.seats.as_slice(), channel.seats.subscriber_count());
        }
    }

    /// The subscriptions and users of one channel; `None` without subscribers.
    pub fn occupancy(&self, name: &str) -> Option<Occupancy> {
        self.channels.get(name).map(|channel| channel.occupancy())
    }

    /// The roster for a subscriber of a presence channel, and its version; `None` without members.
    pub fn roster(&self, name: &ChannelName) -> Option<(Message, u64)> {
        let channel = self.channels.get(name.as_str())?;
        let known = channel.presence.as_ref()?;
        Some((known.presence.roster(name), known.version))
    }

    /// Bytes of the roster, as a new member receives it.
    pub fn roster_bytes(&self, name: &str) -> usize {
        let channel = self.channels.get(name);
        let presence = channel.as_ref().and_then(|channel| channel.presence());
        presence.map_or(0, Presence::roster_bytes)
    }

    /// Checks whether a connection that is present as `leaving` may be present as `member` instead.
    ///
    /// # Errors
    /// The channel has its most members, or its roster would be too long.
    pub fn check_room(
        &self,
        name: &str,
        member: &Member,
        leaving: &UserId,
        room: PresenceBounds,
    ) -> Result<(), ChannelFull> {
        let channel = self.channels.get(name);
        let presence = channel.as_ref().and_then(|channel| channel.presence());
        presence.map_or(Ok(()), |presence| presence.check_room(member, leaving, room))
    }

    /// The users present in a channel, in the order they came.
    pub fn present_users(&self, name: &str) -> Vec<UserId> {
        let channel = self.channels.get(name);
        // A channel that is gone, or is no presence channel, has nobody present.
        channel.and_then(|channel| Some(channel.presence()?.users())).unwrap_or_default()
    }

    /// Every occupied channel whose name begins with `prefix`.
    /// Walks all channels of the app, shard by shard; a channel that comes or goes meanwhile may be missing or not.
    pub fn occupied_channels(&self, prefix: &str) -> Vec<(ChannelName, Occupancy)> {
        let matching =
            self.channels.iter().filter(|entry| entry.key().as_str().starts_with(prefix));
        matching.map(|entry| (entry.key().clone(), entry.value().occupancy())).collect()
    }
}
