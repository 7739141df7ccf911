//! The users of one app: how many signed-in connections each has on this node, and which connections watch it. One user
//! is locked at a time; notices to watchers are put into inboxes while the user is locked, so that none overtakes
//! another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::handles::ConnectionRef;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// One app's users.
#[derive(Debug, Default)]
pub struct AppUsers {
    /// Users who are signed in or watched.
    users: DashMap<UserId, OnlineUser>,
    /// Users whose change is announced in a later second.
    due: Mutex<Vec<UserId>>,
}

/// A user with signed-in connections, or with connections that watch it.
#[derive(Debug, Default)]
struct OnlineUser {
    /// Signed in as the user, on this node.
    connections: usize,
    /// Connections that watch this user.
    watchers: HashMap<SocketId, Watcher>,
    /// Whether the user is online, as watchers are to know it.
    is: bool,
    /// The second of the last announcement to many watchers.
    told_at: u32,
    /// Whether an announcement is due in a later second.
    is_due: bool,
}

/// Watchers up to which every change is announced at once. More get the result once a second.
const FEW_WATCHERS: usize = 100;

/// A connection that watches a user.
#[derive(Clone, Copy, Debug)]
struct Watcher {
    /// The watching connection.
    place: ConnectionRef,
    /// The last state that the watcher was sent, if any.
    last_sent: Option<bool>,
}

impl AppUsers {
    /// Gives memory back that is not used.
    pub fn shrink(&self) {
        self.users.shrink_to_fit();
    }

    /// Counts one more signed-in connection, in second `now`. If it is the user's first, each watcher is given to
    /// `tell`, while the user is locked: no change overtakes another.
    pub fn sign_in(&self, user: &UserId, now: u32, tell: impl FnMut(ConnectionRef)) {
        let mut online = self.users.entry(user.clone()).or_default();
        online.connections += 1;
        let becomes_due = online.set_online(true, now, tell);
        drop(online);
        self.note_due(user, becomes_due);
    }

    /// Counts one signed-in connection less. If it was the user's last, each watcher is given to `tell`.
    pub fn sign_out(&self, user: &UserId, now: u32, tell: impl FnMut(ConnectionRef)) {
        let Entry::Occupied(mut entry) = self.users.entry(user.clone()) else { return };
        let online = entry.get_mut();
        online.connections = online.connections.saturating_sub(1);
        if online.connections > 0 {
            return;
        }
        let becomes_due = online.set_online(false, now, tell);
        if online.watchers.is_empty() {
            entry.remove();
        } else {
            drop(entry);
        }
        self.note_due(user, becomes_due);
    }

    /// Notes whether a user is online on any node. Each watcher with another state is given to `tell`.
    pub fn set_online(&self, user: &str, online: bool, now: u32, tell: impl FnMut(ConnectionRef)) {
        // Neither watched nor signed in on this node.
        let Some(mut entry) = self.users.get_mut(user) else { return };
        let becomes_due = entry.set_online(online, now, tell);
        let user = entry.key().clone();
        drop(entry);
        self.note_due(&user, becomes_due);
    }

    /// Looked at once a second.
    fn note_due(&self, user: &UserId, becomes_due: bool) {
        if becomes_due {
            self.due.lock().unwrap_or_else(PoisonError::into_inner).push(user.clone());
        }
    }

    /// Announces changes that were not announced in an earlier second, with the user's state now.
    pub fn notify_due(&self, now: u32, mut tell: impl FnMut(&UserId, bool, ConnectionRef)) {
        let due = std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner));
        for user in due {
            if let Some(mut online) = self.users.get_mut(&user) {
                (online.is_due, online.told_at) = (false, now);
                let is = online.is;
                online.notify_watchers(|place| tell(&user, is, place));
            }
        }
    }

    /// Makes the connection `watcher` watch `user`; returns whether the user is online now.
    pub fn watch_user(&self, user: &UserId, watcher: ConnectionRef) -> bool {
        let mut online = self.users.entry(user.clone()).or_default();
        let is_online = online.connections > 0;
        let last_sent = Some(is_online);
        online.watchers.insert(watcher.socket, Watcher { place: watcher, last_sent });
        is_online
    }

    /// The same for a user whose connections are counted over all nodes; `told` is the state that the watcher was
    /// sent.
    pub fn watch_known(&self, user: &UserId, watcher: ConnectionRef, last_sent: Option<bool>) {
        let mut online = self.users.entry(user.clone()).or_default();
        online.watchers.insert(watcher.socket, Watcher { place: watcher, last_sent });
    }

    /// Ends what [`Self::watch_user`] began.
    pub fn unwatch_user(&self, user: &UserId, watcher: SocketId) {
        let Entry::Occupied(mut entry) = self.users.entry(user.clone()) else { return };
        let online = entry.get_mut();
        online.watchers.remove(&watcher);
        if online.connections == 0 && online.watchers.is_empty() {
            entry.remove();
        }
    }
}

impl OnlineUser {
    /// Sets the user's state, and tells the watchers if they are few or were told nothing in second `now`. Returns
    /// whether an announcement is due later that was not noted yet.
    fn set_online(&mut self, online: bool, now: u32, tell: impl FnMut(ConnectionRef)) -> bool {
        self.is = online;
        let many = self.watchers.len() > FEW_WATCHERS;
        if many && self.told_at == now {
            return !std::mem::replace(&mut self.is_due, true);
        }
        if many {
            self.told_at = now;
        }
        self.notify_watchers(tell);
        false
    }

    /// Only those that know something else.
    fn notify_watchers(&mut self, mut tell: impl FnMut(ConnectionRef)) {
        let online = self.is;
        for watcher in self.watchers.values_mut() {
            if watcher.last_sent.replace(online) != Some(online) {
                tell(watcher.place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_watchers_hear_once_a_second_what_it_has_come_to() {
        let users = AppUsers::default();
        let user = UserId::parse("7").unwrap();
        for number in 0..200 {
            let socket = SocketId { node: 1, number };
            let _ = users.watch_user(&user, ConnectionRef { worker: 0, slot: 0, socket });
        }
        let mut told = 0;
        for _ in 0..1000 {
            users.sign_in(&user, 1, |_| told += 1);
            users.sign_out(&user, 1, |_| told += 1);
        }
        assert_eq!(told, 200, "of the first sign-in");
        let mut due = Vec::new();
        users.notify_due(2, |user, is, _| due.push((user.clone(), is)));
        assert_eq!(due.len(), 200);
        assert!(due.iter().all(|one| *one == (user.clone(), false)), "it is offline in the end");
        users.sign_in(&user, 2, |_| told += 1);
        assert_eq!(told, 200, "there was something to tell in this second");
        users.sign_out(&user, 2, |_| told += 1);
        due.clear();
        users.notify_due(3, |user, is, _| due.push((user.clone(), is)));
        assert!(due.is_empty(), "it has come to what they know");
        users.sign_in(&user, 4, |_| told += 1);
        assert_eq!(told, 400);
    }
}
