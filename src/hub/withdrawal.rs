//! Withdrawing channels: which channels are closed to a connection for the rest of its life, and when all connections
//! concerned have left them. `restrictions.rs` applies it to a connection; the worker finds the connections.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// Channels closed to one connection beyond which it must begin anew: a limit for what a backend that
/// withdraws without end can have kept.
pub const MAX_CLOSED_CHANNELS: usize = 10_000;

/// One request to take rights back, on its way to every connection that it concerns. It is complete once
/// its last copy is dropped.
#[derive(Clone, Debug)]
pub struct Withdrawal {
    /// The channels, shared by all connections concerned.
    channels: Arc<[ChannelName]>,
    /// Never sent on: dropping the last copy is the message.
    _completion: Arc<oneshot::Sender<()>>,
}

impl Withdrawal {
    /// The withdrawal, and what resolves, to an error, when it is complete.
    pub fn new(channels: Arc<[ChannelName]>) -> (Self, oneshot::Receiver<()>) {
        let (completion, completed) = oneshot::channel();
        (Self { channels, _completion: Arc::new(completion) }, completed)
    }

    pub fn channels(&self) -> &[ChannelName] {
        &self.channels
    }
}

/// Withdrawn channels of a connection, and the user as whom it waits to join. Most connections have none.
#[derive(Default, Debug)]
pub(super) struct Restrictions {
    /// For as long as the connection lives: what was signed once would open them again.
    closed: HashSet<ChannelName>,
    /// Withdrawals that the connection's session has yet to carry out.
    due: Vec<Withdrawal>,
    /// The member of a presence channel whose roster other nodes have not confirmed yet. It counts as
    /// present: otherwise a right could be taken back just before it takes effect.
    joining: Option<UserId>,
}

impl Restrictions {
    /// Closes the channels, and leaves the rest to the session; whether the connection has too many closed.
    pub(super) fn close_channels(&mut self, withdrawal: Withdrawal) -> bool {
        self.closed.extend(withdrawal.channels().iter().cloned());
        self.due.push(withdrawal);
        self.closed.len() > MAX_CLOSED_CHANNELS
    }

    /// Takes the withdrawals that the connection's own task has yet to tell its client.
    pub(super) fn take_due(&mut self) -> Vec<Withdrawal> {
        std::mem::take(&mut self.due)
    }

    /// Whether the channel was withdrawn.
    pub(super) fn is_closed(&self, name: &ChannelName) -> bool {
        self.closed.contains(name)
    }

    /// Notes the user as whom it waits to join; `None` once that is decided.
    pub(super) fn set_joining(&mut self, user: Option<UserId>) {
        self.joining = user;
    }

    /// Whether it waits to join as that user.
    pub(super) fn is_joining_as(&self, user: &UserId) -> bool {
        self.joining.as_ref() == Some(user)
    }

    /// Then a connection needs no memory for it.
    pub(super) fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.due.is_empty() && self.joining.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Arc<[ChannelName]> {
        names.iter().map(|name| ChannelName::parse(name, 200).unwrap()).collect()
    }

    #[test]
    fn a_withdrawal_is_complete_once_its_last_copy_is_gone() {
        let (withdrawal, mut completed) = Withdrawal::new(names(&["private-a"]));
        let mut restrictions = Restrictions::default();
        assert!(!restrictions.close_channels(withdrawal.clone()));
        drop(withdrawal);
        assert!(restrictions.is_closed(&names(&["private-a"])[0]));
        assert_eq!(completed.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(restrictions.take_due().len(), 1);
        assert_eq!(completed.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(restrictions.is_closed(&names(&["private-a"])[0]), "for the rest of its life");
    }

    #[test]
    fn closed_channels_are_kept_once_and_bounded() {
        let mut restrictions = Restrictions::default();
        let all: Vec<String> = (0..MAX_CLOSED_CHANNELS).map(|n| format!("private-{n}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert!(!restrictions.close_channels(Withdrawal::new(names(&all)).0));
        assert!(!restrictions.close_channels(Withdrawal::new(names(&["private-7"])).0));
        assert!(restrictions.close_channels(Withdrawal::new(names(&["private-more"])).0));
    }
}
