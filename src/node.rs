//! The product's operations. Sockets, the API and other nodes all use them, so each change of a channel is
//! implemented once. An operation calls the hub, turns the resulting facts into frames, and sends them. The
//! differences between a single server and a node of a cluster are in `alone.rs` and `clustered.rs`; an operation
//! here chooses between them once.

mod alone;
mod bequest;
mod catch_up;
mod client_record;
mod clustered;
mod pending_watchlist;
mod publish;
mod query;
mod readiness;
mod receive;
mod requests;
mod resume;
mod room;
mod scope;
mod succession;
mod travellers;
mod travelling;
mod users;
pub mod watched;
mod watchlist;
mod webhooks;
mod whisper;
mod withdraw;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tracing::debug;

use crate::app::{App, Apps};
use crate::hub::Hub;
use crate::hub::addresses::ConnectionsPerAddress;
use crate::hub::budget::WorkKind;
use crate::hub::capacity::Capacity;
use crate::hub::connection::Connection;
use crate::hub::deflated::Compression;
use crate::hub::directory::Directory;
use crate::hub::stream::Stream;
use crate::hub::subscribing::EndedSubscription;
use crate::hub::worker::Worker;
use crate::lookup::Lookup;
use crate::metrics::{Doubt, Metrics, Reason, Signed, WorkerCounts};
use crate::protocol::auth::{self, AuthError};
use crate::protocol::channel::{Access, ChannelName};
use crate::protocol::command::Subscribe;
use crate::protocol::error::{Error, SubscriptionError, close};
use crate::protocol::event::Message;
use crate::protocol::member::Member;
use crate::webhook::Webhooks;

pub use clustered::{Clustered, PendingSubscription};
pub use publish::Publication;
pub use query::{NodeQuery, NodesReply, PendingReply};
pub use receive::handle_link_events;
use room::no_room;
pub use scope::Scope;
pub use succession::{LateRequest, Succession};
pub use travelling::ClientClaim;
pub use webhooks::acknowledger;
pub use withdraw::{Acknowledgement, PendingWithdrawal};

/// State that all workers of one server share.
#[derive(Debug)]
pub struct ServerState {
    /// Replaced as a whole on reload.
    pub apps: Arc<ArcSwap<Apps>>,
    /// Connections, channels and users on this node.
    pub hub: Arc<Hub>,
    /// One set of counters for each worker, summed by readers.
    pub metrics: Metrics,
    /// No new sockets: the server is stopping.
    pub draining: AtomicBool,
    /// New sockets should go elsewhere, for it will soon drain. They are served until then.
    pub retiring: AtomicBool,
    /// How many sockets there may be, and how much memory.
    pub capacity: Capacity,
    /// How many of them come from each address, and how fast.
    pub addresses: ConnectionsPerAddress,
    /// Takes facts for backends. It never waits for one.
    pub webhooks: Webhooks,
    /// Whether there may be other nodes.
    pub scope: Scope,
    /// Looks up apps that are not among `apps`, if there is a database.
    pub lookup: Option<Lookup>,
    /// State for handing clients over to the next process.
    pub succession: Succession,
}

impl ServerState {
    /// Once true it stays true: a server that stops does not change its mind.
    pub fn is_draining(&self) -> bool {
        // Relaxed: a socket that slips in is closed with all others.
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes a place for one more socket of `address`, or says why there is none.
    fn admit_socket(&self, address: IpAddr) -> Result<(), Reason> {
        // Asked first, so that the refusal says why: clients come back elsewhere at once.
        if self.is_draining() {
            return Err(Reason::Stopping);
        }
        // Taken before the address is asked, and given back if that refuses.
        self.capacity.take_place()?;
        if self.addresses.admit(address) {
            return Ok(());
        }
        self.capacity.free_place();
        Err(Reason::Address)
    }

    /// Gives it back.
    fn release_socket(&self, address: IpAddr) {
        self.capacity.free_place();
        self.addresses.release(address);
    }

    /// Connections open now.
    pub fn connection_count(&self) -> u64 {
        self.metrics.sum_counter(|counts| &counts.connections)
    }
}

/// One worker's door to everything.
#[derive(Debug)]
pub struct Node {
    /// The same for every worker.
    pub shared: Arc<ServerState>,
    /// The worker that this door is on; its connections never leave it.
    pub worker: Rc<Worker>,
}

impl Node {
    /// Called on the worker's own thread, once.
    pub fn new(shared: Arc<ServerState>, worker: Rc<Worker>) -> Rc<Self> {
        Rc::new(Self { shared, worker })
    }

    /// This worker's counts: only it writes them, so adding costs no synchronisation.
    pub fn counts(&self) -> &WorkerCounts {
        self.shared.metrics.of_worker(self.worker.index())
    }

    /// The hub, shared by all workers of this server.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.shared.hub
    }

    /// Lets a connection in and greets it, or says why not. The greeting comes after `answer`, what the
    /// client's handshake is to be answered with.
    pub fn connect_new(
        &self,
        app: &Arc<App>,
        stream: Stream,
        address: IpAddr,
        answer: Bytes,
    ) -> Result<Rc<Connection>, (Error, Stream)> {
        self.connect_client(app, stream, address, answer, None)
    }

    /// The same for a client that may have come from another node.
    pub fn connect_client(
        &self,
        app: &Arc<App>,
        stream: Stream,
        address: IpAddr,
        answer: Bytes,
        claim: Option<&ClientClaim>,
    ) -> Result<Rc<Connection>, (Error, Stream)> {
        let shared = &self.shared;
        // Handshakes wait: for a slow client, for a database, or for Redis.
        // As it is now: it may have changed since the request was read.
        let apps = shared.apps.load();
        let app = match apps.by_id(app.id.as_str()) {
            None => {
                return Err((self.count_refusal(Reason::UnknownApp, close::UNKNOWN_APP), stream));
            }
            Some(app) if !app.enabled => {
                return Err((self.count_refusal(Reason::Disabled, close::DISABLED), stream));
            }
            Some(app) => app,
        };
        if let Err(reason) = shared.admit_socket(address) {
            let error =
                if reason == Reason::Stopping { close::STOPPING } else { close::OVER_CAPACITY };
            return Err((self.count_refusal(reason, error), stream));
        }
        // The app's own quota comes last, so that it is not taken by a socket that is refused for another reason.
        let directory = self.hub().directory(&app.id);
        let max = app.limits.max_connections;
        let elsewhere = shared.scope.connections_elsewhere(&app.id);
        // Other nodes' counts are a second late. A client that replaces its old connection is not one more.
        let elsewhere = if claim.is_some_and(ClientClaim::replaces) { 0 } else { elsewhere };
        if (max > 0 && elsewhere >= max)
            || !directory.admit_connection(max.saturating_sub(elsewhere))
        {
            shared.release_socket(address);
            return Err((self.count_refusal(Reason::Quota, close::OVER_QUOTA), stream));
        }
        let connection = self.worker.add_connection(app.clone(), directory, stream, address);
        connection.traffic().connected.add(1);
        self.counts().connections.add(1);
        connection.traffic().answers.add(1);
        // Two writes: Apache holds back what comes with the 101 where WebSockets are carried by HTTP/2, until
        // the client says something, which pusher-js does not before it is greeted; and clients of small devices
        // lose what they read together with the 101 (espressif/esp-protocols#396, zephyr#89193, websocket-sharp#669).
        if !answer.is_empty() {
            connection.enqueue(answer);
            connection.flush();
        }
        // The first frame that a client of the protocol reads; without it nothing else is understood.
        connection.enqueue(Message::established(connection.id, app.activity_timeout).into_bytes());
        debug!(app = %app.id, socket = %connection.id, %address, "connected");
        Ok(connection)
    }

    /// Counts a socket that is not let in.
    fn count_refusal(&self, reason: Reason, error: Error) -> Error {
        self.counts().ends.count(reason as usize);
        error
    }

    /// Goes on with the connection's app as `apps` have it now, or ends the connection with the app.
    /// Called for each connection once the apps were replaced, by a reload or by what a database says.
    pub fn renew_app(&self, connection: &Connection, apps: &Apps) {
        let id = connection.app().id.clone();
        match apps.by_id(id.as_str()) {
            None => connection.close_with(&close::UNKNOWN_APP),
            Some(app) if !app.enabled => connection.close_with(&close::DISABLED),
            Some(app) => connection.set_app(app),
        }
    }

    /// Ends up to `most` subscriptions of a connection; returns whether those were all. Each end is announced.
    pub fn leave_some(&self, connection: &Connection, most: usize) -> bool {
        self.suspend_client(connection);
        for _ in 0..most {
            // In parts, since each end may be announced to a crowd, and the worker has other connections.
            let Some(ended) = self.worker.unsubscribe_next(connection) else { break };
            self.announce_leave(&connection.directory, &ended, &connection.app());
        }
        if connection.channel_count() > 0 {
            return false;
        }
        // After the last channel, so that watchers learn of it after members do.
        if let Some(user) = self.worker.set_user(connection, None) {
            self.sign_out(connection, &user);
        }
        // Unless that was done when a newer connection of its client took over.
        let resume = &connection.directory.resume;
        if connection.resumption().is_none() || resume.take_place(connection.id) {
            connection.directory.release_connection();
            self.shared.release_socket(connection.address);
        }
        // Counted once all is done, so that connects less disconnects is what is open.
        connection.traffic().disconnected.add(1);
        if connection.life.compression.get() != Compression::Off {
            connection.traffic().compressed.sub(1);
        }
        let (app, socket) = (&connection.app().id, connection.id);
        debug!(%app, %socket, reason = connection.end_reason().label(), "disconnected");
        self.counts().connections.sub(1);
        self.emit_disconnected(connection);
        true
    }

    /// Subscribes, and queues the confirmation before any frame of the channel. Subscribing again succeeds again
    /// and changes nothing. The returned subscription waits for other nodes, and the connection's later messages
    /// wait with it, until [`Self::resume_pending`] or [`Self::cancel_pending`]. On a single server the result is
    /// always ready.
    /// Checks are ordered: name and signature first, which cost others nothing; then the limits of the connection
    /// and the channel; then the subscription itself.
    /// # Errors
    /// The `pusher:subscription_error` for the client; nothing has changed then.
    pub fn subscribe(
        &self,
        connection: &Rc<Connection>,
        request: &Subscribe,
    ) -> Result<Option<PendingSubscription>, SubscriptionError> {
        let app = connection.app();
        let name = ChannelName::parse(&request.channel, app.limits.max_channel_name)
            .map_err(SubscriptionError::Name)?;
        if connection.is_closed_to(&name) {
            return Err(SubscriptionError::Withdrawn);
        }
        let kind = name.kind();
        // Before it is looked up whether there is a subscription: a wrong signature must not be answered as if it
        // were right.
        let member = self.authorize_subscription(connection, &name, request)?;
        if kind.access != Access::Public {
            connection.life.authorized.set(true);
        }
        let mut leaving = None;
        if let Some(present_as) = self.worker.subscribed_as(connection, name.as_str()) {
            // A client may rejoin a presence channel as another user: the first one leaves then.
            if member.as_ref().map(|member| &member.user_id) == present_as.as_ref() {
                self.confirm_again(connection, &name);
                return Ok(None);
            }
            if let Some((member, leaving)) = member.as_ref().zip(present_as.as_ref()) {
                let room = self.shared.scope.check_change(connection, &name, member, leaving);
                room.map_err(|full| no_room(&app, full))?;
            }
            // Others see the first member leave and the second come.
            self.unsubscribe(connection, name.as_str());
            leaving = present_as;
        } else {
            self.check_budget(connection, &name, member.as_ref())?;
        }
        match self.shared.scope.others() {
            Some(others) => {
                self.reserve_subscription(others, connection, name, member, leaving.as_ref())
            }
            None => self.subscribe_alone(connection, &name, member).map(|()| None),
        }
    }

    /// Checks whether the connection may subscribe; returns the member for a presence channel. Verifies the
    /// signature over socket, channel and member data. Public channels need none. A user's own channel needs a
    /// connection that is signed in as that user.
    /// # Errors
    /// The reason for the client. An invalid signature is counted by its cause.
    fn authorize_subscription(
        &self,
        connection: &Connection,
        name: &ChannelName,
        request: &Subscribe,
    ) -> Result<Option<Member>, SubscriptionError> {
        let app = connection.app();
        match name.kind().access {
            Access::Public => return Ok(None),
            Access::ServerToUser => {
                let own = connection.with_user(|user| {
                    user.is_some_and(|user| name.own_user() == Some(user.id.as_str()))
                });
                return if own { Ok(None) } else { Err(SubscriptionError::NotThatUser) };
            }
            Access::Private | Access::Encrypted | Access::Presence => {}
        }
        auth::verify_subscription(
            &app.signer,
            &app.key,
            request.auth.as_deref(),
            // The socket's id is signed too, so that a signature is of no use to another connection.
            &connection.id.to_text(),
            name.as_str(),
            request.channel_data.as_deref(),
        )
        .map_err(|error| {
            self.count_doubt(Signed::Subscription, error);
            SubscriptionError::Auth(error)
        })?;
        if !name.kind().is_presence() {
            return Ok(None);
        }
        let max = app.limits.max_member_size;
        // Data that was sent wins over the signed-in user (case P25).
        let member = match &request.channel_data {
            Some(data) => Member::parse(data, max),
            None => connection.with_user(|user| {
                let user = user.ok_or(SubscriptionError::NoMember)?;
                Ok(Member::of_user(user, max))
            })?,
        };
        member.map(Some).map_err(SubscriptionError::Member)
    }

    /// Sends a subscriber the confirmation again, with the current state.
    fn confirm_again(&self, connection: &Connection, name: &ChannelName) {
        match self.shared.scope.others() {
            Some(others) => clustered::confirm_again(others, connection, name),
            None => self.confirm_alone(connection, name),
        }
    }

    /// Ends a subscription, if there is one. There is no answer.
    /// A client that comes and goes on a presence channel is noted: it may have to wait before it joins again.
    pub fn unsubscribe(&self, connection: &Connection, name: &str) {
        if let Some(ended) = self.worker.unsubscribe_connection(connection, name) {
            if ended.user.is_some() {
                connection.note_leave(&ended.channel, self.worker.now_seconds());
            }
            self.give_up(connection, &ended.channel);
            let told = self.announce_leave(&connection.directory, &ended, &connection.app());
            connection.budget.spend(WorkKind::Notices(told));
        }
    }

    /// Tells of a subscription that ended; to how many subscribers here.
    fn announce_leave(
        &self,
        directory: &Arc<Directory>,
        ended: &EndedSubscription,
        app: &Arc<App>,
    ) -> usize {
        let Some(others) = self.shared.scope.others() else {
            return self.announce_leave_alone(directory, ended, app);
        };
        // Subscribers get the leave once Redis has it.
        others.leave_topic(app, ended);
        0
    }

    /// Announces changed counts of crowded channels. Called once a second by the first worker.
    pub fn announce_due_counts(&self) {
        let apps = self.shared.apps.load();
        for (id, directory) in self.hub().directories() {
            let Some(app) = apps.by_id(id.as_str()) else { continue };
            for name in directory.counting.take_due() {
                match self.shared.scope.subscriber_count(&id, &name) {
                    Some(total) => self.announce_total(&directory, &name, total),
                    None => self.announce_count_now(&directory, &name, app),
                }
            }
        }
    }

    /// Counts a signature that does not hold.
    fn count_doubt(&self, signed: Signed, error: AuthError) {
        let doubt = match error {
            AuthError::Missing => Doubt::Missing,
            AuthError::Key => Doubt::Key,
            AuthError::Signature => Doubt::Signature,
        };
        self.counts().count_doubt(signed, doubt);
    }
}

/// Whether the channel's subscribers get counts: if the app wants it, but never on presence channels, which have
/// members, nor on encrypted ones, where the Java SDK would try to decrypt it (case K11).
fn sends_count(app: &App, name: &ChannelName) -> bool {
    let untold = matches!(name.kind().access, Access::Presence | Access::Encrypted);
    app.features.subscription_count && !untold
}
