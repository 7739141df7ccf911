//! The verbs by which a backend takes rights back: a user's connections leave some channels for good, or come
//! back with new signatures. Signatures have no age, so what was signed once opens a channel for as long as
//! the connection lives, unless it is closed here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::Node;
use crate::app::AppId;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::hub::withdrawal::Withdrawal;
use crate::protocol::channel::ChannelName;
use crate::protocol::error::close;
use crate::protocol::member::UserId;

/// How long a backend waits for a withdrawal at most.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A withdrawal under way. Ready once every connection concerned has left, or a second has passed.
#[derive(Debug)]
pub struct Withdrawing {
    completed: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
}

impl Future for Withdrawing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.completed).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.deadline.as_mut().poll(cx)
    }
}

impl Node {
    /// Takes the right to `channels` from every connection that is signed in as the user, or present as it.
    pub fn withdraw(
        &self,
        directory: &Arc<Directory>,
        user: &UserId,
        channels: Arc<[ChannelName]>,
    ) -> Withdrawing {
        directory.resume.withdraw(user, &channels);
        let (withdrawal, completed) = Withdrawal::new(channels);
        self.hub().withdraw(directory, user, Instant::now(), &withdrawal);
        Withdrawing { completed, deadline: Box::pin(sleep(MAX_WAIT)) }
    }

    /// Closes every connection that is signed in as the user, or present as it, so that it comes back.
    pub fn reconnect(&self, app: &AppId, directory: &Arc<Directory>, user: &UserId) {
        let _ = app;
        self.hub().close_user(directory, user, Instant::now(), &close::RECONNECT);
    }

    /// Ends a subscription that the client did not ask to end; whether there was one.
    pub fn leave_channel(&self, connection: &Connection, name: &ChannelName) -> bool {
        let Some(ended) = self.worker.unsubscribe(connection, name.as_str()) else { return false };
        self.give_up(connection, name);
        self.tell_of_end(&connection.directory, &ended, &connection.app());
        true
    }
}
