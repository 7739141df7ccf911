//! The verbs of the product. Socket, API and other nodes are doors to the same room: whatever
//! happens to a channel happens here, once. A verb asks the hub, turns the facts it answers with into
//! frames, and tells whoever is concerned.

mod client_record;
mod clustered;
mod publish;
mod readiness;
mod receive;
mod requests;
mod resume;
mod room;
mod travelling;
mod users;
pub mod watched;
mod watchlist;
mod webhooks;
mod withdraw;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tracing::debug;

use crate::app::{App, AppId, Apps};
use crate::hub::Hub;
use crate::hub::addresses::ConnectionsPerAddress;
use crate::hub::budget::WorkKind;
use crate::hub::cache::CachedEvent;
use crate::hub::capacity::Capacity;
use crate::hub::connection::Connection;
use crate::hub::deflated::Compression;
use crate::hub::directory::{Directory, Joined, Occupancy};
use crate::hub::inbox::Sequence;
use crate::hub::stream::Stream;
use crate::hub::subscriptions::SeenVersions;
use crate::hub::worker::{EndedSubscription, Worker};
use crate::lookup::Lookup;
use crate::metrics::{Doubt, Metrics, Reason, Signed, WorkerCounts};
use crate::protocol::auth::{self, AuthError};
use crate::protocol::channel::{Access, ChannelName};
use crate::protocol::command::Subscribe;
use crate::protocol::error::{Error, SubscriptionError, close};
use crate::protocol::event::Message;
use crate::protocol::member::Member;
use crate::webhook::{Fact, Webhooks};

pub use clustered::{Clustered, PendingSubscription};
pub use publish::Publication;
pub use receive::take_arrivals;
use room::{no_room, presence_bounds};
pub use travelling::ClientClaim;
pub use webhooks::acknowledger;
pub use withdraw::{Acknowledgement, PendingWithdrawal};

/// What all workers of one server share.
#[derive(Debug)]
pub struct ServerState {
    /// Replaced as a whole on reload.
    pub apps: Arc<ArcSwap<Apps>>,
    pub hub: Arc<Hub>,
    pub metrics: Metrics,
    /// No new sockets: the server is stopping.
    pub draining: AtomicBool,
    /// New sockets should go elsewhere, for it will soon drain. They are served until then.
    pub retiring: AtomicBool,
    pub capacity: Capacity,
    pub addresses: ConnectionsPerAddress,
    pub webhooks: Webhooks,
    /// The other nodes, if there may be any.
    pub cluster: Option<Clustered>,
    /// Who knows of apps that are not among `apps`, if anybody does.
    pub lookup: Option<Lookup>,
}

impl ServerState {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes a place for one more socket of `address`, or says why there is none.
    fn admit_socket(&self, address: IpAddr) -> Result<(), Reason> {
        if self.is_draining() {
            return Err(Reason::Stopping);
        }
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

    /// How occupied a channel is, as far as this node knows; nobody there is all zeros.
    pub fn inspect_channel(&self, app: &AppId, directory: &Directory, name: &str) -> Occupancy {
        let mut occupancy = directory.occupancy(name).unwrap_or_default();
        if let Some(cluster) = &self.cluster {
            occupancy.users = cluster.user_count(app, name);
        }
        occupancy
    }
}

/// One worker's door to everything.
#[derive(Debug)]
pub struct Node {
    pub shared: Arc<ServerState>,
    pub worker: Rc<Worker>,
}

impl Node {
    pub fn new(shared: Arc<ServerState>, worker: Rc<Worker>) -> Rc<Self> {
        Rc::new(Self { shared, worker })
    }

    pub fn counts(&self) -> &WorkerCounts {
        self.shared.metrics.of_worker(self.worker.index())
    }

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
        let directory = self.hub().directory(&app.id);
        let max = app.limits.max_connections;
        let elsewhere =
            shared.cluster.as_ref().map_or(0, |cluster| cluster.connections_elsewhere(&app.id));
        // What others have is known a second late; one that takes the place of another is none more.
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
        // the client says something, which pusher-js does not before it is greeted.
        if !answer.is_empty() {
            connection.enqueue(answer);
            connection.flush();
        }
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
    pub fn renew_app(&self, connection: &Connection, apps: &Apps) {
        let id = connection.app().id.clone();
        match apps.by_id(id.as_str()) {
            None => connection.close_with(&close::UNKNOWN_APP),
            Some(app) if !app.enabled => connection.close_with(&close::DISABLED),
            Some(app) => connection.set_app(app),
        }
    }

    /// Ends what a connection had part in, `most` of its subscriptions; whether that was all. What it was
    /// subscribed to, others see it leave.
    pub fn leave_some(&self, connection: &Connection, most: usize) -> bool {
        self.suspend_client(connection);
        for _ in 0..most {
            let Some(ended) = self.worker.unsubscribe_next(connection) else { break };
            self.tell_of_end(&connection.directory, &ended, &connection.app());
        }
        if connection.channel_count() > 0 {
            return false;
        }
        if let Some(user) = self.worker.set_user(connection, None) {
            self.sign_out(connection, &user);
        }
        // Unless that was done when a newer connection of its client took over.
        if connection.resumption().is_none_or(|one| one.connection.take_release()) {
            connection.directory.release_connection();
            self.shared.release_socket(connection.address);
        }
        connection.traffic().disconnected.add(1);
        if connection.life.compression.get() != Compression::Off {
            connection.traffic().compressed.sub(1);
        }
        let (app, socket) = (&connection.app().id, connection.id);
        debug!(%app, %socket, reason = connection.end_reason().word(), "disconnected");
        self.counts().connections.sub(1);
        self.tell_of_leaving(connection);
        true
    }

    /// Subscribes, and tells the connection so before anything that the channel brings. Subscribing again
    /// succeeds again and changes nothing. What is returned waits for other nodes, and the connection's later
    /// frames with it, until [`Self::resume_pending`] or [`Self::cancel_pending`].
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
        let member = self.authorize_subscription(connection, &name, request)?;
        if kind.access != Access::Public {
            connection.life.authorized.set(true);
        }
        if let Some(present_as) = self.worker.subscribed_as(connection, name.as_str()) {
            // A presence channel can be joined again as somebody else: then the first one leaves.
            if member.as_ref().map(|member| &member.user_id) == present_as.as_ref() {
                self.confirm_again(connection, &name);
                return Ok(None);
            }
            if let Some((member, leaving)) = member.as_ref().zip(present_as.as_ref())
                && self.shared.cluster.is_none()
            {
                let (name, bounds) = (name.as_str(), presence_bounds(&app));
                let room = connection.directory.check_room(name, member, leaving, bounds);
                room.map_err(|full| no_room(&app, full))?;
            }
            self.unsubscribe(connection, name.as_str());
        } else {
            self.check_budget(connection, &name)?;
        }
        if let Some(cluster) = &self.shared.cluster {
            return Ok(self.reserve_subscription(cluster, connection, name, member));
        }
        let mut cached = None;
        let present = member.as_ref().map(|member| (member, presence_bounds(&app)));
        let subscribed = self
            .worker
            .subscribe_connection(connection, &name, present, |facts| {
                // Only now, so that an event is either kept already or finds this subscriber.
                cached = kind.cache.then(|| connection.directory.cache.last_event(&name)).flatten();
                SeenVersions {
                    presence: facts.joined.as_ref().map_or(0, |joined| joined.version),
                    cache: cached.as_ref().map_or(0, |cached: &CachedEvent| cached.version.get()),
                }
            })
            .map_err(|full| no_room(&app, full))?;
        let caught = self.catch_up(connection, &name);
        self.report_fact(&app, subscribed.occupied.then_some(()), |()| {
            Fact::Occupied(name.clone())
        });
        let is_new = subscribed.joined.as_ref().is_some_and(|joined| joined.member.is_some());
        if subscribed.occupied {
            connection.budget.spend(WorkKind::NewChannel);
        }
        connection.budget.spend(WorkKind::Notices(if is_new { subscribed.count } else { 0 }));
        self.report_fact(&app, member.filter(|_| is_new), |new| {
            Fact::Joined(name.clone(), new.user_id)
        });
        match subscribed.joined {
            Some(Joined { roster, .. }) => connection.enqueue_message(roster),
            None => connection.enqueue_message(Message::subscription_succeeded(&name)),
        }
        if !self.tell_missed(connection, &name, caught) && kind.cache {
            let misses = cached.is_none().then_some(());
            self.report_fact(&app, misses, |()| Fact::CacheMiss(name.clone()));
            connection.enqueue_message(
                cached.map_or_else(|| Message::cache_miss(&name), |cached| cached.message),
            );
        }
        let told = self.tell_count(&connection.directory, &name, subscribed.count, &app);
        connection.budget.spend(WorkKind::Notices(told));
        Ok(None)
    }

    /// Whether the connection may subscribe, and as whom on a presence channel.
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
            &connection.id.to_string(),
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

    /// Tells a subscriber again what it was told when it subscribed, as of now.
    fn confirm_again(&self, connection: &Connection, name: &ChannelName) {
        if let Some(cluster) = &self.shared.cluster {
            return clustered::confirm_again(cluster, connection, name);
        }
        match connection.directory.roster(name) {
            Some((roster, version)) => {
                connection.enqueue_message(roster);
                self.worker.update_seen(connection, name.as_str(), |told| told.presence = version);
            }
            None => connection.enqueue_message(Message::subscription_succeeded(name)),
        }
        if !name.kind().cache {
            return;
        }
        // What is on its way comes first, so that the cached event is neither doubled nor skips any.
        let cached = connection.directory.cache.last_after(name, || self.worker.deliver_now());
        if let Some(cached) = &cached {
            let version = cached.version.get();
            self.worker.update_seen(connection, name.as_str(), |told| told.cache = version);
        }
        connection.enqueue_message(
            cached.map_or_else(|| Message::cache_miss(name), |cached| cached.message),
        );
    }

    /// Ends a subscription, if there is one. There is no answer.
    pub fn unsubscribe(&self, connection: &Connection, name: &str) {
        if let Some(ended) = self.worker.unsubscribe_connection(connection, name) {
            if ended.user.is_some() {
                connection.life.rejoins.note_leave(&ended.channel, self.worker.now_seconds());
            }
            self.give_up(connection, &ended.channel);
            let told = self.tell_of_end(&connection.directory, &ended, &connection.app());
            connection.budget.spend(WorkKind::Notices(told));
        }
    }

    /// Tells of a subscription that ended; to how many subscribers here.
    fn tell_of_end(
        &self,
        directory: &Arc<Directory>,
        ended: &EndedSubscription,
        app: &Arc<App>,
    ) -> usize {
        if let Some(cluster) = &self.shared.cluster {
            cluster.leave_topic(app, ended);
            return 0;
        }
        let name = &ended.channel;
        let left = ended.user.as_ref().filter(|_| ended.change.left);
        self.report_fact(app, left, |user| Fact::Left(name.clone(), user.clone()));
        self.report_fact(app, ended.change.vacated.then_some(()), |()| Fact::Vacated(name.clone()));
        let told = self.tell_count(directory, name, ended.change.count, app);
        told + left.map_or(0, |_| ended.change.count)
    }

    /// Tells subscribers how many they are, where they are told; how many were.
    fn tell_count(
        &self,
        directory: &Directory,
        name: &ChannelName,
        count: usize,
        app: &Arc<App>,
    ) -> usize {
        let told =
            tells_count(app, name) && count > 0 && directory.counting.is_told_now(name, count);
        if told {
            self.tell_count_now(directory, name, app);
        }
        if told { count } else { 0 }
    }

    fn tell_count_now(&self, directory: &Directory, name: &ChannelName, app: &Arc<App>) {
        directory.announce_count(name.as_str(), |seats, count| {
            self.report_fact(app, Some(count), |count| Fact::Count(name.clone(), count));
            let message = Message::subscription_count(name, count);
            self.hub().publish_frame(seats, message.bytes(), None, Sequence::None);
        });
    }

    /// Tells crowded channels the count that has changed since they were told.
    pub fn tell_due_counts(&self) {
        let apps = self.shared.apps.load();
        for (id, directory) in self.hub().directories() {
            let Some(app) = apps.by_id(id.as_str()) else { continue };
            for name in directory.counting.take_due() {
                match &self.shared.cluster {
                    Some(cluster) => self.tell_total(cluster, &id, &directory, &name),
                    None => self.tell_count_now(&directory, &name, app),
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

/// Whether subscribers of the channel are told how many they are: where the app wants it, but never on
/// presence channels, which know their members, nor on encrypted ones, where Java would try to decrypt it
/// (case K11).
fn tells_count(app: &App, name: &ChannelName) -> bool {
    let untold = matches!(name.kind().access, Access::Presence | Access::Encrypted);
    app.features.subscription_count && !untold
}
