//! Withdrawing access: a user's connections leave some channels for good, or reconnect with new signatures. A signature
//! does not expire, so a subscription once authorized lasts as long as its connection unless it is ended here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep, timeout};
use tracing::warn;

use super::catch_up::log_seconds;
use super::{Clustered, Node, ServerState};
use crate::app::AppId;
use crate::cluster::link::{LinkMetrics, OutgoingEvent, Withdraw};
use crate::console::Kind;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::hub::withdrawal::Withdrawal;
use crate::protocol::channel::ChannelName;
use crate::protocol::error::close;
use crate::protocol::member::UserId;

/// How long a backend waits for a withdrawal at most.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A withdrawal under way. Ready once every connection concerned has left, on all nodes, or a second has passed.
#[derive(Debug)]
pub struct PendingWithdrawal {
    /// Resolves once the last connection here has left.
    here: Option<oneshot::Receiver<()>>,
    /// The same for all other nodes together.
    elsewhere: Option<Elsewhere>,
    /// The request is answered then in any case.
    deadline: Pin<Box<Sleep>>,
}

/// A request that other nodes must confirm.
#[derive(Debug)]
struct Elsewhere {
    /// The cluster state with its requests.
    others: Arc<Clustered>,
    app: AppId,
    request: u64,
    /// Resolves once all nodes have confirmed.
    answered: oneshot::Receiver<()>,
}

impl Future for PendingWithdrawal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.here.as_mut().is_some_and(|here| Pin::new(here).poll(cx).is_ready()) {
            // Not polled again: it was ready.
            self.here = None;
        }
        let elsewhere = self.elsewhere.as_mut();
        if elsewhere.is_some_and(|one| Pin::new(&mut one.answered).poll(cx).is_ready()) {
            self.elsewhere = None;
        }
        if self.here.is_none() && self.elsewhere.is_none() {
            return Poll::Ready(());
        }
        if self.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.warn_unconfirmed();
        }
        Poll::Ready(())
    }
}

impl Elsewhere {
    /// Says in the log that not all nodes have done it.
    fn warn_unconfirmed(&self) {
        let Self { others, app, request, .. } = self;
        let missing = others.requests.give_up(*request);
        LinkMetrics::add_count(&others.link().figures().unconfirmed, missing.unwrap_or(1) as u64);
        match missing {
            Some(nodes) => warn!(%app, nodes, "nodes have not confirmed that they revoked a right"),
            None => warn!(%app, "Redis is down: other nodes revoke the right once it is back"),
        }
    }
}

impl Drop for Elsewhere {
    /// A backend that hung up waits for no confirmation.
    fn drop(&mut self) {
        self.others.requests.give_up(self.request);
    }
}

/// A request from another node, which gets a confirmation once it is done.
#[derive(Debug)]
pub struct Acknowledgement {
    /// Resolves once this node is done.
    completed: oneshot::Receiver<()>,
    /// The answer that goes to the node which asked.
    done: OutgoingEvent,
}

impl Acknowledgement {
    /// The confirmation; `None` if it was not done in the time that the other node waits.
    pub async fn done(self) -> Option<OutgoingEvent> {
        // Resolves to an error: nothing is sent on it.
        timeout(MAX_WAIT, self.completed).await.ok().map(|_| self.done)
    }
}

impl Node {
    /// Withdraws `channels` from every connection that is signed in as the user or present as it, on all nodes.
    /// Here it takes effect at once; each connection's session leaves the channels in its own turn. Disconnected
    /// resumable clients lose them too.
    pub fn withdraw_channels(
        &self,
        (app, directory): (&AppId, &Arc<Directory>),
        user: &UserId,
        channels: Arc<[ChannelName]>,
    ) -> PendingWithdrawal {
        let (app, user, asked) = (app.clone(), user.clone(), Instant::now());
        let apps = self.shared.apps.load();
        let window = apps.by_id(app.as_str()).map_or(0, |app| log_seconds(app));
        let mut order = Withdraw { app: app.clone(), user, channels, asked, request: 0, window };
        self.shared.pass_withdrawal_on(&app, &order.user, &order.channels);
        let here = self.shared.withdraw_here(directory, &order);
        let asked = self.shared.scope.ask_others(|request| {
            order.request = request;
            OutgoingEvent::Withdraw(order)
        });
        let elsewhere =
            asked.map(|(others, request, answered)| Elsewhere { others, app, request, answered });
        PendingWithdrawal { here: Some(here), elsewhere, deadline: Box::pin(sleep(MAX_WAIT)) }
    }

    /// Closes every connection that is signed in as the user or present as it. Clients reconnect at once (4200),
    /// and must sign again.
    pub fn reconnect_user(&self, app: &AppId, directory: &Arc<Directory>, user: &UserId) {
        self.console().send(Kind::Terminated, |fact| {
            let why = "its clients are to come back with new signatures";
            fact.app(app.as_str().to_owned()).user(user.as_str().to_owned()).why(why)
        });
        let asked = Instant::now();
        self.hub().close_user(directory, user, asked, &close::RECONNECT);
        self.shared.scope.publish_to_others(true, || {
            let (app, user) = (app.clone(), user.clone());
            OutgoingEvent::Reconnect { app, user, asked }
        });
    }

    /// Ends a subscription that the client did not ask to end; whether there was one.
    pub fn leave_channel(&self, connection: &Connection, name: &ChannelName) -> bool {
        let Some(ended) = self.worker.unsubscribe_connection(connection, name.as_str()) else {
            return false;
        };
        self.give_up(connection, name);
        self.announce_leave(&connection.directory, &ended, &connection.app());
        true
    }
}

impl ServerState {
    /// Takes a right back from the connections of this node; what resolves once all concerned have left.
    fn withdraw_here(&self, directory: &Arc<Directory>, order: &Withdraw) -> oneshot::Receiver<()> {
        directory.resume.withdraw_channels(&order.user, &order.channels);
        let (withdrawal, completed) = Withdrawal::new(order.channels.clone());
        self.hub.withdraw_channels(directory, &order.user, order.asked, &withdrawal);
        completed
    }

    /// The same, as the node of that number was asked to.
    pub(super) fn withdraw_for(&self, node: u64, order: &Withdraw) -> Acknowledgement {
        let completed = self.withdraw_here(&self.hub.directory(&order.app), order);
        let (app, request) = (order.app.clone(), order.request);
        Acknowledgement { completed, done: OutgoingEvent::Done { app, node, request } }
    }
}
