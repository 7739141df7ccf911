//! Operations on users: signing in, messages to a user, termination. `watchlist.rs` has who is online over several
//! nodes.

use std::sync::Arc;
use std::time::Instant;

use super::Node;
use crate::app::AppId;
use crate::cluster::link::OutgoingEvent;
use crate::console::Kind;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::metrics::Signed;
use crate::protocol::auth;
use crate::protocol::command::SignIn;
use crate::protocol::error::{self, Error, close};
use crate::protocol::event::Message;
use crate::protocol::member::{User, UserId};

impl Node {
    /// Signs the connection in as a user; the same user again succeeds again (case U04). A connection stays the
    /// user's until it ends.
    /// # Errors
    /// The reason for the client: the signature is invalid, the data is no user, or the connection is signed in as
    /// another user.
    pub fn sign_in(&self, connection: &Connection, request: &SignIn) -> Result<(), Error> {
        let app = connection.app();
        auth::verify_sign_in(
            &app.signer,
            &app.key,
            request.auth.as_deref(),
            &connection.id.to_text(),
            &request.user_data,
        )
        .map_err(|error| {
            self.count_doubt(Signed::SignIn, error);
            error::SIGN_IN
        })?;
        let user = User::parse(&request.user_data).ok_or(error::USER_DATA)?;
        let before = connection.with_user(|before| before.map(|before| before.id.clone()));
        if before.as_ref().is_some_and(|before| *before != user.id) {
            return Err(error::OTHER_USER);
        }
        connection.life.authorized.set(true);
        // Before anything that follows from it, such as the watchlist.
        connection.enqueue_message(Message::signed_in(&user.data));
        if before.is_some() {
            return Ok(());
        }
        let watches = app.features.watchlist;
        self.shared.scope.announce_online(self, connection, &user, watches);
        self.worker.set_user(connection, Some(user));
        self.emit_fact(Kind::SignedIn, connection, |fact| fact);
        self.shared.scope.note_users(connection);
        Ok(())
    }

    /// At the end of the connection.
    pub(super) fn sign_out(&self, connection: &Connection, user: &User) {
        self.shared.scope.announce_offline(self, connection, user);
    }

    /// Announces changes of users that come and go too often for each change to be sent. Called once a second by
    /// the first worker.
    pub fn notify_due_watchers(&self) {
        for (_, directory) in self.hub().directories() {
            directory.users.notify_due(self.worker.now_seconds(), |user, is_online, place| {
                let users = std::slice::from_ref(user);
                let (online, offline) = if is_online { (users, &[][..]) } else { (&[][..], users) };
                let message = Message::watchlist_events(online, offline);
                self.shared.notify_watcher((user, is_online), &message, place);
            });
        }
    }

    /// Closes every connection that is signed in as the user, or present as it in a channel.
    pub fn terminate_user(&self, app: &AppId, directory: &Arc<Directory>, user: &UserId) {
        let now = Instant::now();
        self.console().send(Kind::Terminated, |fact| {
            fact.app(app.as_str().to_owned()).user(user.as_str().to_owned())
        });
        self.hub().close_user(directory, user, now, &close::TERMINATED);
        self.shared.scope.publish_to_others(true, || {
            let (app, user) = (app.clone(), user.clone());
            OutgoingEvent::Terminate { app, user, asked: now }
        });
    }
}
