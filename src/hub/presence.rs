//! Who is present in one channel: its members in the order they came, each counted by connections, so
//! that a user's second tab is not a second member. Lives in the directory, under its lock.

use std::collections::{BTreeMap, HashMap};

use crate::protocol::channel::ChannelName;
use crate::protocol::event::{MemberText, Message};
use crate::protocol::member::{Member, UserId};

/// The members of one channel.
#[derive(Debug, Default)]
pub struct Presence {
    /// By the number they joined under, which keeps the order stable.
    members: BTreeMap<u64, Present>,
    by_user: HashMap<UserId, u64>,
    next: u64,
}

#[derive(Debug)]
struct Present {
    text: MemberText,
    connections: usize,
}

impl Presence {
    pub fn count(&self) -> usize {
        self.members.len()
    }

    pub fn has(&self, user: &UserId) -> bool {
        self.by_user.contains_key(user)
    }

    /// Whether `user` may come in once one connection of `leaving` has gone, where there may be `max`.
    pub fn has_room(&self, user: &UserId, leaving: &UserId, max: usize) -> bool {
        let number = self.by_user.get(leaving);
        let present = number.and_then(|number| self.members.get(number));
        let gone = present.is_some_and(|present| present.connections == 1);
        self.has(user) || self.count() - usize::from(gone) < max
    }

    /// Counts one more connection of the user; the member's text if it is its first.
    pub fn join(&mut self, member: &Member) -> Option<MemberText> {
        if let Some(present) =
            self.by_user.get(&member.user_id).and_then(|number| self.members.get_mut(number))
        {
            present.connections += 1;
            return None;
        }
        let text = MemberText::new(member);
        self.by_user.insert(member.user_id.clone(), self.next);
        self.members.insert(self.next, Present { text: text.clone(), connections: 1 });
        self.next += 1;
        Some(text)
    }

    /// Counts one connection less; the member's text if it was its last.
    pub fn leave(&mut self, user: &UserId) -> Option<MemberText> {
        let number = *self.by_user.get(user)?;
        let present = self.members.get_mut(&number)?;
        present.connections -= 1;
        if present.connections > 0 {
            return None;
        }
        self.by_user.remove(user);
        self.members.remove(&number).map(|present| present.text)
    }

    /// What someone who just joined is told.
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
