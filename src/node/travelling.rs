//! Resuming clients on any node: a client that connects here is claimed, its connection elsewhere is closed and its
//! state handed over, and the state of local clients is stored in Redis, at once when they end and periodically before,
//! so that a killed node loses little.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::catch_up::{CatchUp, START_SLACK, may_be_forgotten};
use super::client_record::{self, ClientRecord, Times};
use super::clustered::Clustered;
use super::travellers::{Name, Traveller, is_left_later};
use super::{Node, ServerState};
use crate::app::{App, AppId};
use crate::cluster::clients::{
    ClaimedClient, Missed, Parked, Replay, counted_record, withdrawn_member,
};
use crate::cluster::link::{LinkQuery, LinkReply, LinkRequest, OutgoingEvent};
use crate::cluster::topics::TopicEntry;
use crate::cluster::{SubscribeTicket, Topic};
use crate::console::Kind;
use crate::hub::connection::Connection;
use crate::hub::handles::ConnectionRef;
use crate::hub::resume::{
    ClientArrival, ClientState, OpenConnection, Replayed, ReplayedEvent, ResumeFigures, TakenUp,
    UNKNOWN,
};
use crate::protocol::resume_token::{PresentedToken, ResumeToken};

/// How long a handshake waits for Redis, and for another node that has the client's connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// A node that does not answer in that time is dead, or cut off.
const HANDING_OVER: Duration = Duration::from_secs(1);

/// For how long what a client held that has gone is kept for a node that asks: Redis may have been told too late.
const PARTING: Duration = Duration::from_secs(5);

/// Ticks of the link between two looks at what has changed, and between two at whose time is over; the second a
/// multiple of the first.
const KEEP_EVERY: u32 = 2;
/// About five seconds.
const SWEEP_EVERY: u32 = 26;

/// How old a token is that may have been elsewhere while Redis cannot be asked.
const YOUNG: Duration = Duration::from_secs(5);

/// Microseconds that Redis's clock, as it is known here, may be behind; little of the second by which it is set late.
const CLOCK_ERROR: u64 = 100_000;

/// By how much a withdrawal may have come to a node later than it was noted in Redis; microseconds.
const LATE: u64 = 1_000_000;

/// A client that comes to this node, as far as it is known.
#[derive(Debug)]
pub struct ClientClaim {
    /// The nodes that it was found out from.
    others: Arc<Clustered>,
    /// Its state on another node; none if nobody knows.
    state: Option<ClientState>,
    /// When that was certain, by the clock of Redis as who said it knows that.
    alive: u64,
    /// When it was asked, if another node has handed the client over.
    asked: Option<Instant>,
    /// It may hold channels that nobody knows of.
    is_unsure: bool,
    /// Redis could not be asked whose it is.
    unclaimed: bool,
    last: LastConnection,
}

/// Where a client was connected when a claim was made.
#[derive(Debug, PartialEq, Eq)]
enum LastConnection {
    /// Nowhere, as far as is known.
    Gone,
    /// Here, which may have ended since.
    Here,
    /// On another node, where it has ended for this one, so that limits over all nodes count none more.
    Elsewhere,
}

impl ClientClaim {
    /// Of a client that nobody knows; all is certain as of `alive`.
    fn new(others: &Arc<Clustered>, alive: u64) -> Self {
        let (others, state) = (others.clone(), None);
        let (is_unsure, unclaimed, last) = (false, false, LastConnection::Gone);
        Self { others, state, alive, asked: None, is_unsure, unclaimed, last }
    }

    /// Then limits over all nodes need not find room for it.
    pub(super) fn replaces(&self) -> bool {
        self.last == LastConnection::Elsewhere
    }
}

/// By how much a page's clock may be fast before its token's time says nothing.
const CLOCK_LEAD: Duration = Duration::from_secs(5);

/// `None` for a token without a time in it. A page whose clock is fast may be of any age: it is told of a gap rather
/// than of none where nobody knows it.
pub(super) fn token_age(presented: &PresentedToken) -> Option<Duration> {
    // A clock before 1970 is wrong by years; the token then seems to be of the future.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let made = Duration::from_secs(presented.made_at?);
    let is_fast = made > now.saturating_add(CLOCK_LEAD);
    Some(if is_fast { Duration::MAX } else { now.saturating_sub(made) })
}

impl Node {
    /// Makes the client this node's, before its connection is let in.
    /// Redis says who has the client; a node that has it is asked to end it and to hand over what it holds; what was
    /// withdrawn from its users since is taken out. Each step has a time limit, and failing only makes the client
    /// fetch once more.
    pub async fn claim(
        &self,
        cluster: &Arc<Clustered>,
        app: &App,
        presented: &PresentedToken,
    ) -> ClientClaim {
        let (token, begun) = (&presented.token, Instant::now());
        let name = (app.id.clone(), token.key());
        let alive = cluster.link().clock().now();
        let directory = self.hub().directory(&app.id);
        if directory.resume.is_connected(token) {
            return ClientClaim { last: LastConnection::Here, ..ClientClaim::new(cluster, alive) };
        }
        let window = app.features.resume;
        let question = LinkQuery::Claim { app: name.0.clone(), key: name.1.clone(), window };
        let Some(LinkReply::Claimed(claimed)) = cluster.ask_of_client(question).await else {
            let is_unsure = token_age(presented).is_some_and(|age| age > YOUNG);
            return ClientClaim { is_unsure, unclaimed: true, ..ClientClaim::new(cluster, 0) };
        };
        let (since, had) = (claimed.since, claimed.owner.is_some());
        let is_others = claimed.owner.is_some_and(|owner| owner != self.hub().node_number());
        let (record, has_ended) = self.find_record(cluster, &name, claimed).await;
        let Some(ClientRecord { mut state, at, .. }) = record else {
            // It is to come where somebody was forgotten just now for want of room. Whoever is the first of its app has
            // just set it.
            let is_crowded = since > cluster.link().clock().now().saturating_add(CLOCK_ERROR);
            // Those that went from here while this node waited for nobody are in no record.
            let complete_for = directory.resume.complete_for(self.hub().seconds_since_start());
            let is_before = |age: Duration| {
                let known = Duration::from_micros(alive.saturating_sub(since));
                let is_older = age > window || age > known.saturating_add(START_SLACK);
                is_crowded || is_older || may_be_forgotten(age, complete_for)
            };
            let is_unsure = token_age(presented).is_some_and(is_before) || !has_ended;
            return ClientClaim { is_unsure, ..ClientClaim::new(cluster, alive) };
        };
        // Those that it came to hold since would not be in it.
        let last = if had && has_ended { LastConnection::Elsewhere } else { LastConnection::Gone };
        let is_unsure = !has_ended;
        let state = Some(std::mem::take(&mut state));
        let asked = (is_others && has_ended).then_some(begun);
        ClientClaim { state, asked, is_unsure, last, ..ClientClaim::new(cluster, at) }
    }

    /// The latest record of the client; and whether it is the last of a connection that has ended, rather than of
    /// one that a dead node had.
    /// A connection that is open knows more than what was written of it, so that its node is asked first; the record
    /// in Redis is for when that node is dead.
    async fn find_record(
        &self,
        cluster: &Clustered,
        name: &Name,
        claimed: ClaimedClient,
    ) -> (Option<ClientRecord>, bool) {
        let times = self.shared.times(cluster);
        let kept = claimed.record.and_then(|(_, bytes)| client_record::read(&bytes, times));
        let (mut record, mut has_ended) = (kept, true);
        if let Some(owner) = claimed.owner.filter(|owner| *owner != self.hub().node_number()) {
            let handed = cluster.have_handed_over(name, owner).await;
            let handed = handed.and_then(|bytes| client_record::read(&bytes, times));
            has_ended = handed.is_some();
            record = handed.or(record);
        }
        if let Some(record) = record.as_mut().filter(|_| claimed.withdrawals) {
            cluster.leave_withdrawn(&name.0, record).await;
        }
        (record, has_ended)
    }

    /// Puts in what was found out of a client; how it came, whether it may have missed what nobody knows of, and
    /// since when nothing was lost.
    /// From here on the client is this node's, and the next node that asks is told by this one.
    pub(super) fn settle_claim(
        &self,
        connection: &Connection,
        open: OpenConnection,
        (token, claim): (&ResumeToken, ClientClaim),
    ) -> (ClientArrival, bool, u64) {
        let ClientClaim { others, state, mut alive, asked, is_unsure, unclaimed, last } = claim;
        let was_here = last == LastConnection::Here;
        let name = (connection.app().id.clone(), token.key());
        let traveller = Traveller { token: token.clone(), unclaimed };
        let resume = &connection.directory.resume;
        let now = self.hub().seconds_since_start();
        let times = self.shared.times(&others);
        // A connection that was here when the claim was made, or has been since, may have ended meanwhile, of itself
        // or for this one: then what it left is the latest.
        let parted = || {
            let (since, left) = others.travellers.parting.find(&name)?;
            Some((since, client_record::read(&left, times)?))
        };
        let mut returned = None;
        let arrived = resume.arrive(token, open, now, || {
            let is_latest = |(since, left): &(Instant, ClientRecord)| {
                was_here || is_left_later((*since, left.at), (asked, alive))
            };
            let Some((_, left)) = parted().filter(is_latest) else {
                return state;
            };
            alive = left.at;
            returned = Some(client_record::write(&left.state, false, times));
            Some(left.state)
        });
        // It has gone to another node in between, and what it holds is known there.
        let is_unsure = is_unsure || (was_here && !arrived.known);
        let window = connection.app().features.resume;
        let is_forgotten = resume.note_forgotten(token, is_unsure, (now, window));
        others.travellers.parting.remove(&name);
        others.travellers.here.insert(name.clone(), traveller);
        if let Some(record) = returned {
            // Redis was told that it had gone. Nobody would ask this node.
            let record = counted_record(record, others.topics.held.of_app(&name.0));
            let ((app, key), window) = (name, lasting(window));
            send_parked(&others, Parked { app, key, record, window, ended: false, unclaimed });
        }
        (arrived, is_forgotten, alive)
    }

    /// Asks for the events that a client missed which was just subscribed, if it held the channel.
    /// Events of the channel are held back meanwhile, so that the client gets all in order.
    pub(super) fn take_up(
        &self,
        cluster: &Clustered,
        connection: &Rc<Connection>,
        (topic, entry): (&Topic, &TopicEntry),
    ) -> CatchUp {
        let Some(resumption) = connection.resumption() else { return CatchUp::Up };
        let (resume, name) = (&connection.directory.resume, &topic.channel);
        let end = entry.reached().max(cluster.link().clock().now().saturating_sub(1));
        let shared = self.worker.shared_name(connection, name);
        match resume.take_up(&resumption.token, connection.id, &shared, end) {
            TakenUp::Held(after) => {
                self.worker.hold_back(connection, name);
                let ConnectionRef { worker, slot, socket } = connection.connection_ref();
                let (topic, ticket) = (topic.clone(), SubscribeTicket { worker, slot, socket });
                let alive = resumption.alive();
                let held = cluster.topics.held.of_app(&topic.app);
                let replay = LinkRequest::Replay(Replay { topic, ticket, after, alive });
                cluster.link().send_counted(replay, &held);
                CatchUp::Missed(Vec::new(), false)
            }
            found if found.may_miss(resumption.is_forgotten) && resumption.note_gap(name) => {
                ResumeFigures::add_count(&resume.figures.gaps, 1);
                CatchUp::Gap
            }
            TakenUp::New | TakenUp::Unknown | TakenUp::Told => CatchUp::Up,
        }
    }
}

impl Clustered {
    /// Nothing where Redis is away or too slow: a handshake does not wait for long.
    async fn ask_of_client(&self, question: LinkQuery) -> Option<LinkReply> {
        timeout(PATIENCE, self.link().send_query(question)?).await.ok()?.ok()
    }

    /// Has the node of that number end the client's connection; what it held there. Nothing where that node is dead.
    /// The request travels over Redis to that node alone, and its answer back to this one.
    async fn have_handed_over(&self, (app, key): &Name, node: u64) -> Option<Bytes> {
        // Relaxed: uniqueness needs atomicity alone. Numbers begin at 1.
        let request = self.travellers.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, record) = oneshot::channel();
        self.travellers.asked.insert(request, sender);
        let question = LinkQuery::TakeOver { app: app.clone(), key: key.clone(), node, request };
        let told = self.ask_of_client(question).await;
        let record = match told {
            Some(LinkReply::Told(1..)) => {
                timeout(HANDING_OVER, record).await.ok().and_then(Result::ok)
            }
            _ => None,
        };
        self.travellers.asked.remove(&request);
        record.filter(|record| !record.is_empty())
    }

    /// Takes out of a record what was taken back from its users since. A client may have entered a channel again a moment
    /// after, with a new signature: then, and where nothing can be found out, it holds the channel still, and is told
    /// of a gap once it was authorized anew.
    async fn leave_withdrawn(&self, app: &AppId, record: &mut ClientRecord) {
        let ClientRecord { state, at, .. } = record;
        let of_users = |name| state.users.iter().map(move |user| withdrawn_member(user, name));
        let members: Vec<String> =
            state.channels.iter().flat_map(|(name, _)| of_users(name)).collect();
        if members.is_empty() {
            return;
        }
        let question = LinkQuery::Withdrawn { app: app.clone(), members };
        let Some(LinkReply::Withdrawn(times)) = self.ask_of_client(question).await else {
            return state.channels.iter_mut().for_each(|(_, acked)| *acked = UNKNOWN);
        };
        let mut times = times.chunks(state.users.len());
        state.channels.retain_mut(|(_, acked)| {
            // A channel without times had no right withdrawn: 0 is before everything.
            let last = times.next().unwrap_or_default().iter().copied().max().unwrap_or_default();
            if last.saturating_add(LATE) >= *at {
                *acked = UNKNOWN;
            }
            last < *at
        });
    }
}

impl ServerState {
    /// The time by both clocks, for writing ages that another node can read.
    fn times<'a>(&self, cluster: &'a Clustered) -> Times<'a> {
        Times { clock: cluster.link().clock(), seconds: self.hub.seconds_since_start() }
    }

    /// Keeps what a client holds whose connection here has ended, for a few seconds, for a newer connection and for a
    /// node that asks before Redis has it. Redis is told at once: the client may come back to another node in the next
    /// moment. Called before anybody can see that it has ended, so that what a newer connection does comes after.
    pub(super) fn park(
        &self,
        cluster: &Clustered,
        app: &App,
        token: &ResumeToken,
        state: &ClientState,
    ) {
        let name = (app.id.clone(), token.key());
        let traveller = cluster.travellers.here.remove(&name).map(|(_, traveller)| traveller);
        let record = client_record::write(state, true, self.times(cluster));
        let record = counted_record(record, cluster.topics.held.of_app(&app.id));
        cluster.travellers.parting.put(name.clone(), record.clone());
        let record = if state.is_empty() { Bytes::new() } else { record };
        let unclaimed = traveller.is_some_and(|traveller| traveller.unclaimed);
        let (app, key, window) = (name.0, name.1, app.features.resume);
        send_parked(cluster, Parked { app, key, record, window, ended: true, unclaimed });
    }

    /// Ends the connection of a client that has come to another node, and tells that what the client holds.
    /// The answer is empty where this node knows nothing of the client.
    pub(super) fn hand_over(&self, cluster: &Clustered, name: Name, node: u64, request: u64) {
        let (directory, travellers) = (self.hub.directory(&name.0), &cluster.travellers);
        let token = travellers.here.get(&name).map(|traveller| traveller.token.clone());
        let held = token
            .and_then(|token| directory.resume.hand_over(&token, self.hub.seconds_since_start()));
        let record = match held {
            Some((open, state)) => {
                travellers.here.remove(&name);
                self.end_previous(&directory, &open);
                client_record::write(&state, true, self.times(cluster)).into()
            }
            // An empty record says that this node knows nothing of the client.
            None => travellers.parting.find(&name).map(|(_, record)| record).unwrap_or_default(),
        };
        cluster
            .link()
            .queue_publish(OutgoingEvent::HandedOver { app: name.0, node, request, record }, true);
    }

    /// Tells a connection what its client has missed.
    /// Goes into the inbox of the connection's worker; what was held back there follows.
    pub(super) fn replay(&self, missed: Missed) {
        let Missed { topic, ticket: SubscribeTicket { worker, slot, socket }, events, gap, last } =
            missed;
        let event = |one: crate::cluster::clients::MissedEvent| ReplayedEvent {
            number: one.place,
            except: one.except,
            frame: one.frame,
        };
        self.hub.console.send(Kind::Resumed, |fact| {
            let gap = if gap { "older ones are gone" } else { "" };
            let fact =
                fact.app(topic.app.as_str().to_owned()).channel(topic.channel.as_str().to_owned());
            fact.socket(socket).count(events.len()).why(gap)
        });
        let events = events.into_iter().map(event).collect();
        let replayed = Replayed { channel: topic.channel, events, gap, last };
        self.hub.replay(ConnectionRef { worker, slot, socket }, replayed);
    }

    /// Redis counts for all nodes, and each node shows its part.
    pub(super) fn note_swept(
        &self,
        app: &AppId,
        (expired, crowded): (u64, u64),
        waiting: Option<u64>,
    ) {
        let figures = &self.hub.directory(app).resume.figures;
        ResumeFigures::add_count(&figures.expired, expired);
        ResumeFigures::add_count(&figures.crowded, crowded);
        if let Some(waiting) = waiting {
            // Relaxed: a gauge for the metrics page.
            figures.waiting.store(waiting, Ordering::Relaxed);
        }
    }

    /// Keeps in Redis what has changed of clients here, and has those forgotten whose time is over.
    /// Called by the link's own clock, a few times a second; most calls do nothing.
    pub(super) fn look_after_travellers(&self, cluster: &Clustered, tick: u32) {
        let (travellers, is_up) = (&cluster.travellers, cluster.link().is_up());
        // A Redis that was away may have lost all of them.
        let is_back = is_up && travellers.was_down.swap(!is_up, Ordering::Relaxed);
        if !is_up {
            // Relaxed: one task asks, once a second.
            travellers.was_down.store(true, Ordering::Relaxed);
            return;
        }
        if !is_back && !tick.is_multiple_of(KEEP_EVERY) {
            return;
        }
        travellers.parting.expire(PARTING);
        for (id, directory) in self.hub.directories() {
            let apps = self.apps.load();
            let Some(app) = apps.by_id(id.as_str()) else { continue };
            if app.features.resume.is_zero() {
                continue;
            }
            self.keep_changed(cluster, app, &directory.resume, is_back);
            if tick.is_multiple_of(SWEEP_EVERY) {
                cluster.link().send_request(LinkRequest::Sweep(id));
            }
        }
    }

    /// A record is written when something has changed, and again after a third of the time that it lasts, so that it
    /// never lapses while the client is here.
    fn keep_changed(
        &self,
        cluster: &Clustered,
        app: &Arc<App>,
        resume: &crate::hub::resume::ResumeRegistry,
        all: bool,
    ) {
        let window = app.features.resume;
        // Well within the time that a record lasts, should one of them be lost.
        let every = u32::try_from(window.as_secs() / 3).unwrap_or(u32::MAX).max(1);
        let changed =
            resume.take_changed(self.hub.seconds_since_start(), if all { 0 } else { every });
        for (token, state) in changed {
            let name = (app.id.clone(), token.key());
            // Its owner may be another by now, whom only the first word of this node displaces.
            let here = cluster.travellers.here.get_mut(&name);
            let Some(unclaimed) = here.map(|mut one| std::mem::take(&mut one.unclaimed)) else {
                continue;
            };
            let record = client_record::write(&state, false, self.times(cluster));
            let record = counted_record(record, cluster.topics.held.of_app(&app.id));
            let (app, key) = name;
            let window = lasting(window);
            let parked = Parked { app, key, record, window, ended: false, unclaimed };
            send_parked(cluster, parked);
        }
    }
}

/// For how long a record of a client lasts that is connected: it is written again after a third of the window.
fn lasting(window: Duration) -> Duration {
    window.saturating_add(window / 3)
}

/// Has Redis keep what a client holds. Where too much of its app waits for Redis it does not, and whoever comes back to
/// another node is told of a gap; what is to be deleted is deleted all the same.
fn send_parked(cluster: &Clustered, parked: Parked) {
    if parked.record.is_empty() || !cluster.link().is_crowded(&parked.app) {
        let held = cluster.topics.held.of_app(&parked.app);
        cluster.link().send_counted(LinkRequest::Park(parked), &held);
    }
}
