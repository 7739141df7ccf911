//! The verbs about users: signing in, hearing of each other, being thrown out. Who is online over several
//! nodes is in `online.rs`.

use std::sync::Arc;
use std::time::Instant;

use super::Node;
use crate::app::AppId;
use crate::console::Kind;
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::metrics::Signed;
use crate::protocol::auth;
use crate::protocol::command::SignIn;
use crate::protocol::error::{self, Error, close};
use crate::protocol::event::Message;
use crate::protocol::member::{User, UserId};

impl Node {
    /// Makes the connection a user's, once; the same user again succeeds again (case U04).
    pub fn sign_in(&self, connection: &Connection, request: &SignIn) -> Result<(), Error> {
        let app = connection.app();
        auth::verify_sign_in(
            &app.signer,
            &app.key,
            request.auth.as_deref(),
            &connection.id.to_string(),
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
        connection.enqueue_message(Message::signed_in(&user.data));
        if before.is_some() {
            return Ok(());
        }
        if self.shared.cluster.is_none() {
            let online = Message::watchlist_events(std::slice::from_ref(&user.id), &[]);
            let (mut told, now) = (0, self.worker.now_seconds());
            connection.directory.users.sign_in(&user.id, now, |place| {
                told += 1;
                self.hub().send_to(place, online.bytes().clone());
            });
            connection.budget.spend(WorkKind::Notices(told));
        }
        if app.features.watchlist {
            self.watch_users(connection, &user);
        }
        self.worker.set_user(connection, Some(user));
        self.tell_console(Kind::SignedIn, connection, |fact| fact);
        self.note_users(connection);
        Ok(())
    }

    pub(super) fn sign_out(&self, connection: &Connection, user: &User) {
        if let Some(cluster) = &self.shared.cluster {
            return self.go_offline(cluster, connection, user);
        }
        // Whether or not the app has watchlists now: it may have had them then.
        for watched in &user.watchlist.ids {
            connection.directory.users.unwatch_user(watched, connection.id);
        }
        let offline = Message::watchlist_events(&[], std::slice::from_ref(&user.id));
        connection.directory.users.sign_out(&user.id, self.worker.now_seconds(), |place| {
            self.hub().send_to(place, offline.bytes().clone());
        });
    }

    /// Begins to watch the users of the watchlist, and tells who of them is online.
    fn watch_users(&self, connection: &Connection, user: &User) {
        if let Some(cluster) = &self.shared.cluster {
            return self.go_online(cluster, connection, user);
        }
        if !user.watchlist.ids.is_empty() {
            let (mut online, mut offline) = (Vec::new(), Vec::new());
            for watched in &user.watchlist.ids {
                let is_online =
                    connection.directory.users.watch_user(watched, connection.connection_ref());
                if is_online { &mut online } else { &mut offline }.push(watched.clone());
            }
            connection.enqueue_message(Message::watchlist_events(&online, &offline));
        }
        if user.watchlist.cut {
            connection.enqueue_message(Message::error(&error::WATCHLIST_CUT, None));
        }
    }

    /// Tells watchers of users who come and go too often for each time to be told.
    pub fn tell_due_watchers(&self) {
        for (_, directory) in self.hub().directories() {
            directory.users.tell_due(self.worker.now_seconds(), |user, is_online, place| {
                let users = std::slice::from_ref(user);
                let (online, offline) = if is_online { (users, &[][..]) } else { (&[][..], users) };
                let message = Message::watchlist_events(online, offline);
                match &self.shared.cluster {
                    Some(cluster) => {
                        self.shared.tell_watcher(cluster, (user, is_online), &message, place);
                    }
                    None => self.hub().send_to(place, message.into_bytes()),
                }
            });
        }
    }

    /// Closes every connection that is signed in as the user, or present as it in a channel.
    pub fn terminate_user(&self, app: &AppId, directory: &Arc<Directory>, user: &UserId) {
        let now = Instant::now();
        self.console().tell(Kind::Terminated, |fact| {
            fact.app(app.as_str().to_owned()).user(user.as_str().to_owned())
        });
        self.hub().close_user(directory, user, now, &close::TERMINATED);
        if let Some(cluster) = &self.shared.cluster {
            cluster.terminate_user(app, user, now);
        }
    }
}
