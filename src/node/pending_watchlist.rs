//! A watchlist that is not complete yet. A connection gets the status of all watched users at once, so nothing is sent
//! until other nodes have said who is online.

use crate::protocol::error;
use crate::protocol::event::Message;
use crate::protocol::member::UserId;

/// Whom a connection watches of whom it is not known yet whether they are online; it is told of all at once.
#[derive(Debug)]
pub(super) struct PendingWatchlist {
    /// In the list's order; `None` while it is not known whether the user is online.
    pub(super) users: Vec<(UserId, Option<bool>)>,
    /// It would watch more than it may, which it is told after that.
    pub(super) cut: bool,
}

impl PendingWatchlist {
    /// What was known is not forgotten by an answer that knows nothing.
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
