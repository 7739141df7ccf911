//! The members of a presence channel over all nodes, as this node knows them, and those that it holds itself. Versions
//! come from Redis and only grow, so duplicates and late messages change nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::app::{ChannelFull, PresenceBounds};
use crate::metrics::HeldBytes;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::{MemberText, Message};
use crate::protocol::member::{Member, UserId};

/// Bytes that are counted for a member beside what it says of itself.
/// The two entries, and what allocating them costs.
const MEMBER_BYTES: usize = 300;

/// The same for a user with connections of this node.
const LOCAL_BYTES: usize = 250;

/// The members of one channel, and this node's part in them.
#[derive(Debug, Default)]
pub struct Roster {
    /// By the version they came with, which keeps their order stable and equal on all nodes.
    members: BTreeMap<(u64, UserId), MemberText>,
    /// Which of them a user is.
    by_user: HashMap<UserId, u64>,
    /// Up to which change this is true.
    version: u64,
    /// Whether the members were read from Redis once.
    loaded: bool,
    /// The users with connections of this node.
    own: HashMap<UserId, LocalUser>,
    /// Bytes of the members as a new member receives them, those that this node has claimed included.
    bytes: usize,
    /// The part of that which Redis has not confirmed.
    claimed_bytes: usize,
    /// Where that is counted for the app.
    held: Arc<HeldBytes>,
}

/// A user with connections here.
#[derive(Debug)]
struct LocalUser {
    /// As it was first claimed; other connections of the user count as the same.
    member: Member,
    /// Bytes counted for the claim: 0 once the roster has the member.
    bytes: usize,
    /// The channel's bound, for joining without Redis.
    max: usize,
    /// Subscribed or about to be.
    connections: usize,
    /// Those that are subscribed.
    entered: usize,
    /// The version from which on the roster has it; `None` while Redis has not answered.
    joined: Option<u64>,
    /// There was no room for it when Redis was last asked.
    refused: bool,
    /// It was in the roster already when it was claimed, and has neither been heard to come since nor been let in. Held
    /// by others, it is not said to leave; if this node's own connection had left before, that is still to be heard,
    /// and true.
    came_again: bool,
}

impl LocalUser {
    /// Bytes that are counted for it, whether Redis has confirmed it or not.
    fn held_bytes(&self) -> usize {
        LOCAL_BYTES + self.member.user_id.as_str().len() + self.member.user_info.len()
    }
}

/// The members of a channel in Redis.
#[derive(Clone, Default, Debug)]
pub struct LoadedRoster {
    /// Up to which change this is true.
    pub version: u64,
    /// With the versions that they came with.
    pub members: Vec<(u64, Member)>,
}

/// A difference to the roster that clients have.
#[derive(Debug)]
pub enum RosterChange {
    /// Somebody came.
    Added(MemberText),
    /// Somebody left.
    Removed(MemberText),
}

/// The effect of one more connection.
#[derive(PartialEq, Eq, Debug)]
pub enum JoinClaim {
    /// The user is the node's already.
    Known,
    /// The user's first here: Redis must be asked.
    First,
}

impl Roster {
    /// An empty one, whose bytes are counted in `held`.
    pub fn new(held: Arc<HeldBytes>) -> Self {
        let mut roster = Self::default();
        roster.held = held;
        roster
    }

    /// Bytes of the roster, as a new member receives it.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether `member` may join, within `max` bytes, as far as this node knows: users may be joining on other
    /// nodes. A connection that joins as another user makes room by `leaving`.
    pub fn has_room_for(&self, member: &Member, leaving: Option<&UserId>, max: usize) -> bool {
        let user = &member.user_id;
        let is_there = self.own.contains_key(user) || self.by_user.contains_key(user);
        let freed = leaving.filter(|leaving| !self.own.contains_key(*leaving));
        // Claims count as well, so that two who come at once are not both let into room for one.
        let bytes = self.bytes + self.claimed_bytes - freed.map_or(0, |user| self.told_bytes(user));
        is_there || bytes + MemberText::new(member).roster_bytes() <= max
    }

    /// Checks whether a connection that is present as `leaving` may be present as `member` instead. As far as this
    /// node knows: a user whose only connection here leaves is taken as leaving.
    /// # Errors
    /// The limit that would be exceeded.
    pub fn check_change(
        &self,
        member: &Member,
        leaving: &UserId,
        bounds: PresenceBounds,
    ) -> Result<(), ChannelFull> {
        if self.by_user.contains_key(&member.user_id) {
            return Ok(());
        }
        let is_last = self.own.get(leaving).is_some_and(|own| own.connections == 1);
        let gone = is_last && self.by_user.contains_key(leaving);
        let members = self.members.len() - usize::from(gone);
        let freed = if gone { self.told_bytes(leaving) } else { 0 };
        let bytes = self.bytes + self.claimed_bytes - freed;
        bounds.check_size(members + 1, bytes + MemberText::new(member).roster_bytes())
    }

    /// Bytes of a user in the roster; 0 for one who is not in it.
    fn told_bytes(&self, user: &UserId) -> usize {
        let place = self.by_user.get(user).map(|place| (*place, user.clone()));
        place.and_then(|place| self.members.get(&place)).map_or(0, MemberText::roster_bytes)
    }

    /// The version, by which subscribers skip changes that they have.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether it was read, or there is no Redis to read it from.
    pub fn is_known(&self) -> bool {
        self.loaded
    }

    /// Continues with local knowledge.
    pub fn go_alone(&mut self) {
        self.loaded = true;
    }

    /// Users, not connections.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// Counts one more connection of the user here. The caller asks Redis if the result says so.
    pub fn claim_member(&mut self, member: &Member, max: usize) -> JoinClaim {
        if let Some(own) = self.own.get_mut(&member.user_id) {
            own.connections += 1;
            let refused = std::mem::take(&mut own.refused);
            return if refused { JoinClaim::First } else { JoinClaim::Known };
        }
        // A user that other nodes hold already needs no more room.
        let is_there = self.by_user.contains_key(&member.user_id);
        let bytes = if is_there { 0 } else { MemberText::new(member).roster_bytes() };
        self.claimed_bytes += bytes;
        let own = LocalUser {
            member: member.clone(),
            bytes,
            max,
            connections: 1,
            entered: 0,
            joined: None,
            refused: false,
            came_again: is_there,
        };
        self.held.add_bytes(own.held_bytes());
        self.own.insert(member.user_id.clone(), own);
        JoinClaim::First
    }

    /// Counts one connection less; returns whether it was the user's last here. The caller then tells Redis.
    pub fn release_claim(&mut self, user: &UserId) -> bool {
        let Some(own) = self.own.get_mut(user) else { return false };
        own.connections -= 1;
        if own.connections > 0 {
            return false;
        }
        if let Some(own) = self.own.remove(user) {
            self.claimed_bytes -= own.bytes;
            self.held.sub_bytes(own.held_bytes());
        }
        true
    }

    /// One of the user's connections is subscribed; whether it is the first. Claimed connections
    /// may still be refused, so that these are counted apart.
    pub fn note_subscribed(&mut self, user: &UserId) -> bool {
        let Some(own) = self.own.get_mut(user) else { return false };
        own.entered += 1;
        own.entered == 1
    }

    /// One that was subscribed is not any more; whether it was the last.
    pub fn note_unsubscribed(&mut self, user: &UserId) -> bool {
        let Some(own) = self.own.get_mut(user) else { return false };
        own.entered = own.entered.saturating_sub(1);
        own.entered == 0
    }

    /// A connection of the user is let in, and about to be subscribed.
    /// The roster has everything up to its joining: what is said to have left from now on has not.
    pub fn note_let_in(&mut self, user: &UserId) {
        if let Some(own) = self.own.get_mut(user) {
            own.came_again = false;
        }
    }

    /// There is no room for the user; who claims it next asks again.
    pub fn refuse_user(&mut self, user: &UserId) {
        if let Some(own) = self.own.get_mut(user) {
            own.refused = true;
            self.claimed_bytes -= std::mem::take(&mut own.bytes);
        }
    }

    /// A user of this node who is let in already.
    pub fn admitted_member(&self, user: &UserId) -> Option<&Member> {
        let own = self.own.get(user).filter(|own| own.joined.is_some())?;
        Some(&own.member)
    }

    /// Redis has the user since `version`. The node may not have received that version yet; waiting subscriptions
    /// are confirmed all the same.
    pub fn confirm_user(&mut self, user: &UserId, version: u64) {
        if let Some(own) = self.own.get_mut(user) {
            own.joined = Some(version);
        }
    }

    /// Whether the roster has the user, and everything up to its joining. A user that left while the link was down
    /// and is held by another node is missing until the roster is read again.
    pub fn is_ready(&self, user: &UserId) -> bool {
        let own = self.own.get(user).and_then(|own| own.joined);
        let is_told = own.is_some_and(|joined| joined <= self.version);
        self.loaded && is_told && self.by_user.contains_key(user)
    }

    /// The users with connections here, for telling Redis again.
    pub fn local_members(&self) -> impl Iterator<Item = &Member> {
        self.own.values().map(|own| &own.member)
    }

    /// The version that a user came with; 0 if it has not.
    pub fn join_version(&self, user: &UserId) -> u64 {
        // 0 lies before every version.
        self.by_user.get(user).copied().unwrap_or_default()
    }

    /// A user came, at `version`; its text if that is news.
    pub fn apply_join(&mut self, version: u64, member: &Member) -> Option<RosterChange> {
        // Heard before, or read since.
        if version <= self.version {
            return None;
        }
        self.version = version;
        // A user that is said to have joined again never left, and keeps its place.
        let place = self.by_user.get(&member.user_id).copied().unwrap_or(version);
        self.insert_member(place, member)
    }

    /// Adds or replaces a member. It is a change for clients only if the user was absent.
    fn insert_member(&mut self, place: u64, member: &Member) -> Option<RosterChange> {
        let user = &member.user_id;
        let text = MemberText::new(member);
        let before = self.by_user.insert(user.clone(), place);
        let replaced = before.and_then(|before| self.members.remove(&(before, user.clone())));
        if let Some(own) = self.own.get_mut(user) {
            self.claimed_bytes -= std::mem::take(&mut own.bytes);
            own.came_again = false;
        }
        self.count_member(replaced.as_ref(), Some(&text));
        self.members.insert((place, user.clone()), text.clone());
        before.is_none().then_some(RosterChange::Added(text))
    }

    /// A user left at `version`; returns the change for clients, if it is one. A user that this node holds has not
    /// left: it has joined again already, or is about to, maybe with another `user_info`.
    pub fn apply_leave(&mut self, version: u64, user: &UserId) -> Option<RosterChange> {
        if version <= self.version {
            return None;
        }
        self.version = version;
        let is_held = self.own.get(user).is_some_and(|own| own.joined.is_some() && !own.came_again);
        if is_held { None } else { self.remove_user(user) }
    }

    /// The member that must join again, if Redis dropped it at `version` after it had confirmed it to this node.
    /// That happens when this node was taken for dead.
    pub fn must_join_again(&self, version: u64, user: &UserId) -> Option<&Member> {
        let own = self.own.get(user)?;
        own.joined.is_some_and(|joined| joined < version).then_some(&own.member)
    }

    /// Nothing if it was not there: it may be said twice.
    fn remove_user(&mut self, user: &UserId) -> Option<RosterChange> {
        let place = self.by_user.remove(user)?;
        let text = self.members.remove(&(place, user.clone()))?;
        self.count_member(Some(&text), None);
        Some(RosterChange::Removed(text))
    }

    /// Counts one member in the place of another.
    fn count_member(&mut self, before: Option<&MemberText>, after: Option<&MemberText>) {
        let bytes = |text: Option<&MemberText>| text.map_or(0, MemberText::roster_bytes);
        let all = |text: Option<&MemberText>| text.map_or(0, |_| bytes(text) + MEMBER_BYTES);
        self.bytes = self.bytes + bytes(after) - bytes(before);
        self.held.replace_bytes(all(before), all(after));
    }

    /// Whether the channel is full for a user that joins without Redis. As far as this node knows; over all nodes
    /// there may be more members.
    pub fn is_full_for(&self, user: &UserId) -> bool {
        let max = self.own.get(user).map_or(usize::MAX, |own| own.max);
        !self.by_user.contains_key(user) && self.members.len() >= max
    }

    /// Joins without Redis, one version on; what changed.
    /// # Versions
    /// Redis will give later ones, since its versions begin at the time of day.
    pub fn join_alone(&mut self, user: &UserId) -> Option<RosterChange> {
        self.loaded = true;
        let own = self.own.get_mut(user)?;
        if self.by_user.contains_key(user) {
            // There already, by a connection of another node: nothing to tell.
            own.joined = Some(self.version);
            return None;
        }
        self.version += 1;
        own.joined = Some(self.version);
        let member = own.member.clone();
        self.insert_member(self.version, &member)
    }

    /// Leaves without Redis, one version on; what changed. Nothing if the user has connections here
    /// still.
    pub fn leave_alone(&mut self, user: &UserId) -> Option<RosterChange> {
        if self.own.contains_key(user) {
            return None;
        }
        let change = self.remove_user(user);
        self.version += u64::from(change.is_some());
        change
    }

    /// Takes over the members in Redis; returns the differences. Users that Redis lacks stay for now, unless other
    /// nodes have had the time to register (`settled`).
    pub fn apply_load(&mut self, loaded: &LoadedRoster, settled: bool) -> Vec<RosterChange> {
        self.loaded = true;
        // The read state is older than changes that were received since.
        if loaded.version < self.version {
            return Vec::new();
        }
        self.version = loaded.version;
        let mut changes = Vec::new();
        let mut gone: Vec<UserId> = Vec::new();
        // Redis may have lost its data, and other nodes may still be registering.
        if settled {
            let here: std::collections::HashSet<&UserId> =
                loaded.members.iter().map(|(_, member)| &member.user_id).collect();
            gone.extend(self.by_user.keys().filter(|user| !here.contains(user)).cloned());
        }
        // A user that this node holds is about to be registered again, whatever was read; not one whose join is
        // undecided.
        let is_held = |user: &UserId| self.own.get(user).is_some_and(|own| own.joined.is_some());
        gone.retain(|user| !is_held(user));
        changes.extend(gone.iter().filter_map(|user| self.remove_user(user)));
        for (place, member) in &loaded.members {
            changes.extend(self.insert_member(*place, member));
        }
        changes
    }

    /// The confirmation with the roster. Built for each new member: it is as large as the channel.
    pub fn subscribed_message(&self, channel: &ChannelName) -> Message {
        Message::subscribed_presence(channel, self.members.len(), self.members.values())
    }

    /// The users, in the order they came.
    pub fn users(&self) -> Vec<UserId> {
        self.members.keys().map(|(_, user)| user.clone()).collect()
    }
}

/// Nobody holds it any more.
impl Drop for Roster {
    fn drop(&mut self) {
        let own: usize = self.own.values().map(LocalUser::held_bytes).sum();
        self.held.sub_bytes(self.bytes + self.members.len() * MEMBER_BYTES + own);
    }
}

#[cfg(test)]
mod tests;
