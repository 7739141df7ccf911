//! The members of one channel in join order, each with a count of connections, so that a user's second tab is not a
//! second member. It lives in the directory, under its lock.

use std::collections::{BTreeMap, HashMap};

use crate::app::{ChannelFull, PresenceBounds};
use crate::protocol::channel::ChannelName;
use crate::protocol::event::{MemberText, Message};
use crate::protocol::member::{Member, UserId};

/// Bytes that are counted for a member beside what it says of itself.
const MEMBER_BYTES: usize = 200;

/// The members of one channel.
#[derive(Debug, Default)]
pub struct Presence {
    /// By the number they joined under, which keeps the order stable.
    members: BTreeMap<u64, PresentUser>,
    /// The number that each user joined under.
    by_user: HashMap<UserId, u64>,
    /// The number of the next one that joins.
    next: u64,
    /// Bytes of the roster, as a new member receives it.
    bytes: usize,
}

/// Bytes that are counted for a member.
pub fn member_bytes(text: &MemberText) -> usize {
    text.roster_bytes() + MEMBER_BYTES
}

/// A user with at least one connection in the channel.
#[derive(Debug)]
struct PresentUser {
    /// The user's part of a roster.
    text: MemberText,
    /// How many of the user's connections are here: with the last it leaves.
    connections: usize,
}

impl Presence {
    /// Users, not connections.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// Bytes of the roster, as a new member receives it.
    pub fn roster_bytes(&self) -> usize {
        self.bytes
    }

    /// Checks whether `member` may join, once one connection of `leaving` has left.
    pub fn check_room(
        &self,
        member: &Member,
        leaving: &UserId,
        room: PresenceBounds,
    ) -> Result<(), ChannelFull> {
        if self.by_user.contains_key(&member.user_id) {
            return Ok(());
        }
        let number = self.by_user.get(leaving);
        let present = number.and_then(|number| self.members.get(number));
        let gone = present.filter(|present| present.connections == 1);
        let members = self.count() - usize::from(gone.is_some());
        let bytes = self.bytes - gone.map_or(0, |gone| gone.text.roster_bytes());
        room.check_size(members + 1, bytes + MemberText::new(member).roster_bytes())
    }

    /// Counts one more connection of the user, if there is room; the member's text if it is its first.
    pub fn join_user(
        &mut self,
        member: &Member,
        room: PresenceBounds,
    ) -> Result<Option<MemberText>, ChannelFull> {
        if let Some(present) =
            self.by_user.get(&member.user_id).and_then(|number| self.members.get_mut(number))
        {
            present.connections += 1;
            return Ok(None);
        }
        let text = MemberText::new(member);
        room.check_size(self.count() + 1, self.bytes + text.roster_bytes())?;
        self.bytes += text.roster_bytes();
        self.by_user.insert(member.user_id.clone(), self.next);
        self.members.insert(self.next, PresentUser { text: text.clone(), connections: 1 });
        self.next += 1;
        Ok(Some(text))
    }

    /// Counts one connection less; the member's text if it was its last.
    pub fn leave_user(&mut self, user: &UserId) -> Option<MemberText> {
        let number = *self.by_user.get(user)?;
        let present = self.members.get_mut(&number)?;
        present.connections -= 1;
        if present.connections > 0 {
            return None;
        }
        self.by_user.remove(user);
        let text = self.members.remove(&number)?.text;
        self.bytes -= text.roster_bytes();
        if self.by_user.len() < self.by_user.capacity() / 4 {
            self.by_user.shrink_to(2 * self.by_user.len());
        }
        Some(text)
    }

    /// The confirmation with the roster, for a new member.
    pub fn roster(&self, channel: &ChannelName) -> Message {
        let texts = self.members.values().map(|present| &present.text);
        Message::subscribed_presence(channel, self.members.len(), texts)
    }

    /// The users, in the order they came.
    pub fn users(&self) -> Vec<UserId> {
        let mut users: Vec<(&u64, &UserId)> =
            self.by_user.iter().map(|(user, number)| (number, user)).collect();
        users.sort_unstable_by_key(|(number, _)| **number);
        users.into_iter().map(|(_, user)| user.clone()).collect()
    }
}
