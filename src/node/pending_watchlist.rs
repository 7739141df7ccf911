//! A watchlist that is not complete yet. A connection gets the status of all watched users at once, so nothing is sent
//! until other nodes have said who is online.

use crate::protocol::error;
use crate::protocol::event::Message;
use crate::protocol::member::UserId;

/// A watchlist with users whose state is not known yet; the connection gets all states at once.
#[derive(Debug)]
pub(super) struct PendingWatchlist {
    /// In the list's order; `None` while it is not known whether the user is online.
    pub(super) users: Vec<(UserId, Option<bool>)>,
    /// Whether the list exceeds its limit, which is reported after the states.
    pub(super) cut: bool,
}

impl PendingWatchlist {
    /// An unknown answer does not replace a known state.
    pub(super) fn learn_user(&mut self, user: &UserId, is_online: Option<bool>) {
        let its = self.users.iter_mut().filter(|(other, _)| other == user);
        its.for_each(|(_, known)| *known = is_online.or(*known));
    }

    /// One message for all of the list, as on a server of its own.
    pub(super) fn take_messages(&self) -> Vec<Message> {
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for (user, is_online) in &self.users {
            if *is_online == Some(true) { &mut online } else { &mut offline }.push(user.clone());
        }
        let list = (!self.users.is_empty()).then(|| Message::watchlist_events(&online, &offline));
        let cut = self.cut.then(|| Message::error(&error::WATCHLIST_CUT, None));
        list.into_iter().chain(cut).collect()
    }
}
