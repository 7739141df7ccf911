//! The topics that this node is subscribed to: for each one how many connections hold it, which subscriptions wait for
//! it, its members over all nodes, and its cached event. Requests to the link are sent under the entry's lock, so that
//! their order is that of the changes; one entry is locked at a time.

use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Place;
use dashmap::mapref::one::RefMut;
use tokio::time::Instant;

use super::link::{Link, LinkRequest, OutgoingEvent};
use super::roster::{JoinClaim, Roster};
use super::topic_cache::TopicCache;
use super::webhook_log::{LogRequest, WebhookInterest};
use super::{SubscribeOutcome, SubscribeTicket, Topic};
use crate::app::{ChannelFull, PresenceBounds};
use crate::metrics::{HeldByApp, HeldBytes, HeldShare};
use crate::protocol::member::{Member, UserId};

/// Bytes that are counted for a topic beside its name: its entry, and its places in the link's tables and in those of
/// the connections to Redis.
const TOPIC_BYTES: usize = size_of::<TopicEntry>() + 512;

/// How often a topic's name is kept: here and, with prefix and app, for the link.
const NAME_COPIES: usize = 3;

/// All topics of a node.
#[derive(Debug)]
pub struct Topics {
    /// The topics of this node, each locked by its entry.
    entries: DashMap<Topic, TopicEntry>,
    /// Takes requests for Redis.
    link: Link,
    pub held: Arc<HeldByApp>,
}

/// One topic.
#[derive(Debug, Default)]
pub struct TopicEntry {
    /// Connections here that are subscribed, and those on their way.
    subscribed: usize,
    /// Subscriptions that wait for Redis.
    pending: usize,
    /// Events come in, or would if Redis were there.
    live: bool,
    /// When it was made, by the time of Redis.
    since: u64,
    /// The waiting subscriptions, each with the user it waits for on a presence channel.
    waiting: Vec<(SubscribeTicket, Option<UserId>)>,
    /// The members over all nodes, on a presence channel.
    pub roster: Roster,
    /// The last event, on a cache channel.
    cached: Option<TopicCache>,
    /// The version of the event that was kept when the topic was opened last.
    opened_at: u64,
    /// Events that this node has published to a cache channel and that have not come back yet.
    in_flight: usize,
    /// Subscribers on all nodes, by the last announcement.
    pub total: TopicTotal,
    /// The link knows that it is to count again.
    changed: bool,
    /// The place of the last event that came in, where clients that come back are to know it.
    reached: u64,
    /// The app's held memory.
    held: Arc<HeldBytes>,
    /// The share of this topic, given back when it is closed.
    _own: HeldShare,
}

/// A member that is to come in.
#[derive(Clone, Copy, Debug)]
pub struct MemberClaim<'a> {
    /// The member that wants to join.
    pub member: &'a Member,
    /// The limits of the channel.
    pub bounds: PresenceBounds,
    /// The user as whom the connection was present before.
    pub leaving: Option<&'a UserId>,
}

/// How many subscribe on all nodes.
#[derive(Clone, Copy, Default, Debug)]
pub struct TopicTotal {
    pub count: usize,
    /// The version of that.
    pub version: u64,
    /// Whether a subscriber here does not have the current count.
    pub untold: bool,
    wish: CountInterest,
}

/// The subscribers that want the count of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum CountInterest {
    #[default]
    No,
    /// Its subscribers do, if that has changed.
    Changed,
    /// A new subscriber here has no count yet.
    Now,
    /// Subscribers here, who may have missed an announcement.
    Here,
}

impl CountInterest {
    /// Combined with the app's wish that subscribers get counts.
    pub fn or_clients(self, tell: bool) -> Self {
        if self == Self::No && tell { Self::Changed } else { self }
    }
}

/// The parties that want to know of changes in a topic's subscribers.
#[derive(Clone, Copy, Default, Debug)]
pub struct TopicInterest {
    /// Whether subscribers get counts.
    pub count: bool,
    /// The events that webhooks want.
    pub news: WebhookInterest,
}

/// Its last event goes with it.
impl Drop for TopicEntry {
    fn drop(&mut self) {
        self.held.sub_bytes(self.cached.as_ref().map_or(0, TopicCache::held_bytes));
    }
}

impl TopicEntry {
    fn new(topic: &Topic, since: u64, held: Arc<HeldBytes>) -> Self {
        let bytes = TOPIC_BYTES + NAME_COPIES * topic.channel.as_str().len();
        let mut entry = Self::default();
        entry.since = since;
        entry.roster = Roster::new(held.clone());
        entry._own = HeldShare::new(held.clone(), bytes);
        entry.held = held;
        entry
    }

    fn is_idle(&self) -> bool {
        self.subscribed == 0 && self.pending == 0
    }

    fn is_ready(&self, user: Option<&UserId>) -> bool {
        self.live && self.in_flight == 0 && user.is_none_or(|user| self.roster.is_ready(user))
    }

    /// Connections here that are subscribed.
    pub fn subscribed_here(&self) -> usize {
        self.subscribed
    }

    /// Whether any user is present; `None` until it is known. A user held here is present before Redis has it.
    pub fn is_anybody_there(&self) -> Option<bool> {
        let is_known = self.live && self.roster.is_known();
        let is_held = self.roster.local_members().next().is_some();
        is_held.then_some(true).or_else(|| is_known.then(|| self.roster.count() > 0))
    }

    /// Events come in from now on.
    pub fn go_live(&mut self) {
        self.live = true;
    }

    /// Redis's time since which events must be received, if a subscription exists or is pending.
    pub fn since_subscribed(&self) -> Option<u64> {
        self.live.then_some(self.since)
    }

    /// When it was made.
    pub fn made_at(&self) -> u64 {
        self.since
    }

    /// Notes the place of an event that has come in.
    pub fn reach(&mut self, place: u64) {
        self.reached = self.reached.max(place);
    }

    /// The place of the last event that did.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// A published event of a cache channel has come back. A client that subscribes between the publish and this
    /// waits for it.
    pub fn came_back(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// None of them will come back.
    pub fn lost_link(&mut self) {
        self.in_flight = 0;
    }

    /// The topic was opened, with an event of this version that was kept, 0 for none: what comes in of before is no news.
    pub fn note_opened(&mut self, kept: u64) {
        self.opened_at = kept;
    }

    /// Whether a new event is later than the state with which the topic was opened. A later event from another
    /// server says nothing about that: two servers may both be master for a while.
    pub fn is_newer_than_opened(&self, version: u64) -> bool {
        version > self.opened_at
    }

    /// Keeps an event as the last, if it is; the version that its channel is at.
    pub fn keep_cached(&mut self, cached: TopicCache) {
        if self.cached.as_ref().is_none_or(|kept| kept.version < cached.version) {
            self.set_cached(cached);
        }
    }

    /// Keeps an event that Redis has not seen, one version on, which is returned.
    pub fn keep_alone(&mut self, frame: Bytes, data: Bytes, expires: Instant) -> u64 {
        let version = self.cached.as_ref().map_or(0, |kept| kept.version) + 1;
        self.set_cached(TopicCache { version, frame, data, expires });
        version
    }

    fn set_cached(&mut self, cached: TopicCache) {
        let before = self.cached.as_ref().map_or(0, TopicCache::held_bytes);
        self.held.replace_bytes(before, cached.held_bytes());
        self.cached = Some(cached);
    }

    /// The last event, if it has not expired.
    pub fn cached(&self) -> Option<&TopicCache> {
        self.cached.as_ref().filter(|cached| cached.expires > Instant::now())
    }

    /// The version of the last cached event that subscribers have, expired or not.
    pub fn cache_version(&self) -> u64 {
        self.cached.as_ref().map_or(0, |cached| cached.version)
    }

    /// The channel has no room for the user: returns the waiting subscriptions as that user, which give up their
    /// reservation then.
    pub fn refuse_user(&mut self, user: &UserId) -> Vec<(SubscribeTicket, SubscribeOutcome)> {
        self.roster.refuse_user(user);
        let refused = self.waiting.extract_if(.., |(_, other)| other.as_ref() == Some(user));
        refused.map(|(ticket, _)| (ticket, SubscribeOutcome::Full)).collect()
    }

    /// Those who waited and need not any longer.
    pub fn take_ready(&mut self) -> Vec<(SubscribeTicket, SubscribeOutcome)> {
        let (live, roster) = (self.live && self.in_flight == 0, &self.roster);
        let is_ready =
            |user: &Option<UserId>| live && user.as_ref().is_none_or(|user| roster.is_ready(user));
        let ready: Vec<_> = self.waiting.extract_if(.., |(_, user)| is_ready(user)).collect();
        // They are subscribed a little later.
        for user in ready.iter().filter_map(|(_, user)| user.as_ref()) {
            self.roster.note_let_in(user);
        }
        ready.into_iter().map(|(ticket, _)| (ticket, SubscribeOutcome::Ready)).collect()
    }

    /// The users of waiting subscriptions.
    pub fn waiting_users(&self) -> Vec<Option<UserId>> {
        self.waiting.iter().map(|(_, user)| user.clone()).collect()
    }

    fn count_again(&mut self, topic: &Topic, link: &Link, tell: bool) {
        if !std::mem::replace(&mut self.changed, true) {
            link.send_counted(LinkRequest::Changed { topic: topic.clone(), tell }, &self.held);
        }
    }
}

impl Topics {
    /// None yet; their bytes are counted in `held`.
    pub fn new(link: Link, held: Arc<HeldByApp>) -> Self {
        Self { entries: DashMap::new(), link, held }
    }

    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Reserves the topic for one more connection, on a presence channel as a member if there is room. Returns
    /// whether it may subscribe at once; otherwise its ticket is returned once the topic is ready.
    pub fn reserve_topic(
        &self,
        topic: &Topic,
        ticket: SubscribeTicket,
        claim: Option<MemberClaim<'_>>,
    ) -> Result<bool, ChannelFull> {
        let mut entry = self.take_part(topic, claim)?;
        let entry = entry.value_mut();
        entry.pending += 1;
        let user = claim.map(|claim| &claim.member.user_id);
        if entry.is_ready(user) {
            user.into_iter().for_each(|user| entry.roster.note_let_in(user));
            return Ok(true);
        }
        entry.waiting.push((ticket, user.cloned()));
        Ok(false)
    }

    /// Joins the topic for a reader that need not wait, as `member` or without one, and calls `read` in the same
    /// step. [`Self::leave_topic`] ends it. For watchlists: state that is unknown now is reported later.
    pub fn watch_topic<T>(
        &self,
        topic: &Topic,
        member: Option<&Member>,
        read: impl FnOnce(&TopicEntry) -> T,
    ) -> T {
        let bounds = PresenceBounds { members: usize::MAX, bytes: usize::MAX };
        let claim = member.map(|member| MemberClaim { member, bounds, leaving: None });
        // With such bounds there always is room.
        let entry = self.take_part(topic, claim).ok();
        let Some(mut entry) = entry else { return read(&TopicEntry::default()) };
        entry.subscribed += 1;
        read(&entry)
    }

    /// The topic's entry, with the member claimed there.
    /// The first connection that wants the topic has Redis asked for it. The order is put in under the entry's lock,
    /// so that it comes before everything that follows from it.
    fn take_part(
        &self,
        topic: &Topic,
        claim: Option<MemberClaim<'_>>,
    ) -> Result<RefMut<'_, Topic, TopicEntry>, ChannelFull> {
        let mut entry = match self.entries.entry(topic.clone()) {
            Place::Occupied(entry) => entry.into_ref(),
            Place::Vacant(entry) => {
                let held = self.held.of_app(&topic.app);
                self.link.send_counted(LinkRequest::Open(topic.clone()), &held);
                entry.insert(TopicEntry::new(topic, self.link.clock().now(), held))
            }
        };
        let Some(MemberClaim { member, bounds, leaving }) = claim else {
            return Ok(entry);
        };
        if !entry.roster.has_room_for(member, leaving, bounds.bytes) {
            // A topic without subscribers is closed when it is next counted.
            entry.count_again(topic, &self.link, false);
            return Err(ChannelFull::Bytes);
        }
        let max = bounds.members;
        // Others of the user here have asked before.
        if entry.roster.claim_member(member, max) == JoinClaim::First {
            let (topic, member) = (topic.clone(), member.clone());
            let join = LinkRequest::Join { topic, member, max, place: 0 };
            self.link.send_counted(join, &entry.held);
        }
        Ok(entry)
    }

    /// Sends a cached event to the link. Counted under the entry's lock: a client that subscribes meanwhile waits
    /// until the event has come back.
    pub fn publish_cached(&self, topic: &Topic, publish: OutgoingEvent) {
        match self.entries.get_mut(topic) {
            Some(mut entry) => {
                // Only if it was taken: what was not cannot come back.
                entry.in_flight += usize::from(self.link.queue_publish(publish, true));
            }
            None => {
                self.link.queue_publish(publish, true);
            }
        }
    }

    /// Makes a held topic a subscribed one, together with what `subscribe` does, in one step that no change
    /// of the topic comes between.
    pub fn commit_subscription<T>(
        &self,
        topic: &Topic,
        (user, wants): (Option<&UserId>, TopicInterest),
        subscribe: impl FnOnce(&TopicEntry) -> T,
    ) -> Option<T> {
        let mut entry = self.entries.get_mut(topic)?;
        // The reservation becomes a subscription; the sum of both never passes zero.
        entry.pending -= 1;
        entry.subscribed += 1;
        // The new subscriber gets the count in any case.
        entry.total.wish = if wants.count { CountInterest::Now } else { CountInterest::No };
        entry.total.untold |= wants.count;
        let is_first = user.is_some_and(|user| entry.roster.note_subscribed(user));
        // The first here is news for Redis only; whether it is the first anywhere is decided there.
        if wants.news.channels && entry.subscribed == 1 {
            self.log_hold(topic, &entry.held, (None, true));
        }
        if wants.news.members && is_first {
            self.log_hold(topic, &entry.held, (user, true));
        }
        // Last: webhooks hear that a channel is occupied before they hear by how many.
        entry.count_again(topic, &self.link, wants.count);
        Some(subscribe(&entry))
    }

    /// Gives up a held topic that was never subscribed to.
    /// Its member leaves Redis, if no other connection here has it.
    pub fn cancel_reservation(&self, topic: &Topic, user: Option<&UserId>) {
        if let Some(mut entry) = self.entries.get_mut(topic) {
            entry.pending -= 1;
            // It is closed when it is next counted.
            entry.count_again(topic, &self.link, false);
            self.release_claim(topic, &mut entry, user);
        }
    }

    /// One subscribed connection less.
    pub fn leave_topic(&self, topic: &Topic, user: Option<&UserId>, wants: TopicInterest) {
        if let Some(mut entry) = self.entries.get_mut(topic) {
            entry.subscribed -= 1;
            entry.count_again(topic, &self.link, wants.count);
            let is_last = user.is_some_and(|user| entry.roster.note_unsubscribed(user));
            self.release_claim(topic, &mut entry, user);
            // A node that stops ends all it holds at once, when others hold it.
            if self.link.keeps_everybody() {
                return;
            }
            if wants.news.members && is_last {
                self.log_hold(topic, &entry.held, (user, false));
            }
            if wants.news.channels && entry.subscribed == 0 {
                self.log_hold(topic, &entry.held, (None, false));
            }
        }
    }

    /// Under the entry's lock, so that entries are written in order. Redis decides from the holds of all nodes what
    /// webhooks report.
    fn log_hold(&self, topic: &Topic, held: &Arc<HeldBytes>, (user, is): (Option<&UserId>, bool)) {
        let (Topic { app, channel }, user) = (topic.clone(), user.cloned());
        let hold = LogRequest::Held { app, channel, user, is };
        self.link.send_counted(LinkRequest::WebhookLog(hold), held);
    }

    /// The user's last connection here is gone. Other nodes are told, unless the node stops and the client is about
    /// to reconnect.
    fn release_claim(&self, topic: &Topic, entry: &mut TopicEntry, user: Option<&UserId>) {
        if let Some(user) = user
            && entry.roster.release_claim(user)
            && !self.link.keeps_everybody()
        {
            let leave = LinkRequest::Leave { topic: topic.clone(), user: user.clone() };
            self.link.send_counted(leave, &entry.held);
        }
    }

    /// Reads a topic that this node takes part in.
    /// `None` if this node has no part in it. Short: the entry is locked meanwhile.
    pub fn read_topic<T>(&self, topic: &Topic, read: impl FnOnce(&TopicEntry) -> T) -> Option<T> {
        self.entries.get(topic).map(|entry| read(&entry))
    }

    /// Changes a topic that this node takes part in, by what came from other nodes; otherwise like `read_topic`.
    pub fn change_topic<T>(
        &self,
        topic: &Topic,
        change: impl FnOnce(&mut TopicEntry) -> T,
    ) -> Option<T> {
        self.entries.get_mut(topic).map(|mut entry| change(&mut entry))
    }

    /// The topics there are, for taking part in them anew.
    pub fn all_topics(&self) -> Vec<Topic> {
        self.entries.iter().map(|entry| entry.key().clone()).collect()
    }

    /// Subscribers here may have missed how many they are.
    pub fn count_anew(&self, topic: &Topic) {
        if let Some(mut entry) = self.entries.get_mut(topic)
            && entry.total.wish == CountInterest::Changed
        {
            entry.total.wish = CountInterest::Here;
        }
    }

    /// The subscribers here, and whether they get counts. The next change is sent to the link again.
    pub fn count_here(&self, topic: &Topic) -> (usize, CountInterest) {
        self.entries.get_mut(topic).map_or((0, CountInterest::No), |mut entry| {
            entry.changed = false;
            let wish = entry.total.wish;
            entry.total.wish = CountInterest::No.or_clients(wish != CountInterest::No);
            (entry.subscribed, wish)
        })
    }

    /// A topic without subscribers is closed a little later, with the next count, since most clients return soon.
    pub fn is_idle(&self, topic: &Topic) -> bool {
        self.entries.get(topic).is_some_and(|entry| entry.is_idle())
    }

    /// Closes a topic without subscribers; returns whether it did. Checked again under the lock, since a client may
    /// have subscribed meanwhile.
    pub fn close_if_idle(&self, topic: &Topic) -> bool {
        self.entries.remove_if(topic, |_, entry| entry.is_idle()).is_some()
    }

    /// Whether a topic that is about to be opened is still wanted; otherwise it is forgotten. A client that
    /// subscribes meanwhile requests it again.
    pub fn is_still_wanted(&self, topic: &Topic) -> bool {
        !self.close_if_idle(topic) && self.entries.contains_key(topic)
    }
}
