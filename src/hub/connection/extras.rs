//! State that only some connections have: a signed-in user, withdrawn channels, presence channels that were left
//! recently. Others have no room for it.

use std::cell::{Cell, RefCell};
use std::fmt;

use super::Connection;
use crate::hub::rejoins::Rejoins;
use crate::hub::withdrawal::Restrictions;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::User;

/// State that few connections need, allocated when it is first used.
#[derive(Default)]
pub(super) struct ConnectionExtras {
    /// The one that has signed in.
    user: RefCell<Option<Box<User>>>,
    /// Rights that a backend has withdrawn.
    restrictions: Cell<Option<Box<Restrictions>>>,
    /// Presence channels that were left in this second.
    rejoins: Rejoins,
}

impl fmt::Debug for ConnectionExtras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionExtras(…)")
    }
}

impl Connection {
    /// The extras, allocated now if they were not.
    fn extras(&self) -> &ConnectionExtras {
        self.extras.get_or_init(Box::default)
    }

    /// The signed-in user, if any.
    pub fn with_user<T>(&self, read: impl FnOnce(Option<&User>) -> T) -> T {
        match self.extras.get() {
            Some(extras) => read(extras.user.borrow().as_deref()),
            None => read(None),
        }
    }

    /// Signs the user in or out; returns the one before.
    pub(in crate::hub) fn set_user(&self, user: Option<User>) -> Option<Box<User>> {
        if user.is_none() && self.extras.get().is_none() {
            return None;
        }
        self.extras().user.replace(user.map(Box::new))
    }

    /// Reads or changes its restrictions, which take memory only while there are any.
    pub(in crate::hub) fn with_restrictions<T>(
        &self,
        act: impl FnOnce(&mut Restrictions) -> T,
    ) -> T {
        let mut kept = self.extras.get().and_then(|extras| extras.restrictions.take());
        let mut none = Restrictions::default();
        let result = act(kept.as_deref_mut().unwrap_or(&mut none));
        match &kept {
            Some(all) if all.is_empty() => kept = None,
            None if !none.is_empty() => kept = Some(Box::new(none)),
            _ => {}
        }
        if kept.is_some() {
            self.extras().restrictions.set(kept);
        }
        result
    }

    /// Notes that it left a presence channel at second `now` of the worker's clock.
    pub fn note_leave(&self, name: &ChannelName, now: u32) {
        self.extras().rejoins.note_leave(name, now);
    }

    /// Whether joining that channel must wait for the next second.
    pub fn must_wait(&self, name: &str, now: u32) -> bool {
        self.extras.get().is_some_and(|extras| extras.rejoins.must_wait(name, now))
    }

    /// Frees what it left in past seconds.
    pub fn forget_leaves(&self, now: u32) {
        if let Some(extras) = self.extras.get() {
            extras.rejoins.forget_past(now);
        }
    }
}
