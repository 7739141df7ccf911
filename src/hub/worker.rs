//! One thread's connections and the subscribers among them. A worker handles all tasks of its inbox in one turn: each
//! frame is put into the outboxes of its channel's subscribers, and then each touched outbox is flushed once, so that a
//! socket costs one system call however many frames a turn has.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;
use tokio::task::yield_now;

use super::Hub;
use super::channels::WorkerChannels;
use super::connection::Connection;
use super::core_offer::CoreOffer;
use super::directory::Directory;
use super::flush::{Flusher, TracedFlush};
use super::flush_line::{FlushLine, TouchedList};
use super::handles::ConnectionRef;
use super::http_sessions::LeftSessions;
use super::inbox::{Delivery, Inbox, WorkerTask};
use super::leave_throttle::LeaveThrottle;
use super::resume::deliveries::Deliveries;
use super::ring::Ring;
use super::stream::Stream;
use super::turnstile::Turnstile;
use crate::app::App;
use crate::protocol::member::{User, UserId};

/// A thread's part of the hub. Never leaves its thread.
#[derive(Debug)]
pub struct Worker {
    /// Its number among the workers, by which inbox, counts and directory know it.
    index: u16,
    /// State that all workers share.
    hub: Arc<Hub>,
    /// By slot. A slot is reused; the socket's id tells whether it still has the same connection.
    connections: RefCell<Slab<Rc<Connection>>>,
    /// Those of them that are HTTP sessions, by place.
    http_sessions: RefCell<BTreeSet<u32>>,
    /// HTTP sessions without a receiver.
    pub(super) left_sessions: LeftSessions,
    /// Channels with subscribers here, and who those are.
    pub(super) channels: RefCell<WorkerChannels>,
    /// The vectors of a turn, kept for their capacity.
    spare: RefCell<WorkerTurn>,
    /// Writes for many sockets together where the kernel can.
    flusher: RefCell<Flusher>,
    /// Limits how many connections leave in a turn.
    pub leaving: LeaveThrottle,
    /// Those that go on with the next second.
    held_up: RefCell<Vec<ConnectionRef>>,
    /// Limits how much is read in a turn.
    pub turnstile: Turnstile,
    /// How far events of resumable clients are delivered.
    pub(super) deliveries: Deliveries,
    /// Seconds since the worker began, moved by [`Worker::tick_clock`]; begins at 1.
    now: Cell<u32>,
}

/// The gathered tasks of a turn, and the connections concerned.
#[derive(Debug, Default)]
struct WorkerTurn {
    /// When the first of the orders came, and how many were events for crowds.
    came: (Option<Instant>, usize),
    /// Drained in the order in which they were put in.
    orders: Vec<WorkerTask>,
    /// Deliveries that follow each other, until something else has to be done.
    frames: Vec<Delivery>,
    /// Each connection once, whatever it was given.
    touched: TouchedList<Rc<Connection>>,
    /// Told once they were flushed.
    traced: Vec<TracedFlush>,
}

impl Worker {
    pub fn new(hub: Arc<Hub>, index: u16) -> Rc<Self> {
        Rc::new(Self {
            index,
            hub,
            connections: RefCell::default(),
            http_sessions: RefCell::default(),
            left_sessions: LeftSessions::default(),
            channels: RefCell::default(),
            spare: RefCell::default(),
            flusher: RefCell::default(),
            leaving: LeaveThrottle::default(),
            held_up: RefCell::default(),
            turnstile: Turnstile::default(),
            deliveries: Deliveries::default(),
            now: Cell::new(1),
        })
    }

    /// For what other workers have to know as well.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    pub fn index(&self) -> u16 {
        self.index
    }

    /// Seconds of this worker's clock.
    pub fn now_seconds(&self) -> u32 {
        self.now.get()
    }

    /// Moves the clock, and lets those go on that waited for that.
    pub fn tick_clock(&self, now: u32) {
        // Before connections resume: their next commands belong to the new second.
        self.now.set(now);
        for place in self.held_up.take() {
            self.connection_at(place).into_iter().for_each(|one| one.resume_subscription(true));
        }
    }

    /// Resumes the connection with the next second.
    pub fn hold_up(&self, connection: &Connection) {
        self.held_up.borrow_mut().push(connection.connection_ref());
    }

    /// Writes for many sockets go out together from now on.
    pub fn use_ring(&self, ring: Ring) {
        self.inbox().turns.ring.set(1);
        self.flusher.replace(Flusher::new(ring));
    }

    /// Takes a new connection in.
    pub fn add_connection(
        &self,
        app: Arc<App>,
        directory: Arc<Directory>,
        stream: Stream,
        address: IpAddr,
    ) -> Rc<Connection> {
        let is_over_http = stream.is_session();
        // Made here, so that the id says nothing of what the client sent.
        #[cfg(feature = "socketio")]
        let id = match &stream {
            Stream::Engine(_) => self.hub.secret_socket_id(),
            _ => self.hub.next_socket_id(),
        };
        #[cfg(not(feature = "socketio"))]
        let id = self.hub.next_socket_id();
        let connection = Rc::new(Connection::new(
            id,
            app,
            directory,
            stream,
            (address, self.index, self.now_seconds()),
        ));
        connection.life.made.set(self.hub.nanos_since_start(Instant::now()));
        let slot = self.connections.borrow_mut().insert(connection.clone());
        connection.slot.set(slot as u32);
        if is_over_http {
            self.http_sessions.borrow_mut().insert(slot as u32);
        }
        connection
    }

    /// Forgets a connection whose stream is gone.
    pub fn remove_connection(&self, connection: &Connection) {
        // Checked by id: the slot may be another's by now.
        let mut connections = self.connections.borrow_mut();
        let slot = connection.slot.get() as usize;
        if connections.get(slot).is_some_and(|other| other.id == connection.id) {
            connections.remove(slot);
            if connection.is_session() {
                self.http_sessions.borrow_mut().remove(&(slot as u32));
            }
        }
    }

    /// Its HTTP sessions at this moment.
    pub fn http_sessions(&self) -> Vec<Rc<Connection>> {
        let connections = self.connections.borrow();
        let sessions = self.http_sessions.borrow();
        sessions.iter().filter_map(|slot| connections.get(*slot as usize).cloned()).collect()
    }

    /// All connections at this moment, from place `from` on, `most` of them, and the place to go on from
    /// (0 once through).
    pub fn some_connections(&self, from: usize, most: usize) -> (Vec<Rc<Connection>>, usize) {
        let connections = self.connections.borrow();
        // Over the capacity, not the length: slots in between may be free.
        let end = (from + most).min(connections.capacity());
        let some = (from..end).filter_map(|slot| connections.get(slot).cloned()).collect();
        (some, if end >= connections.capacity() { 0 } else { end })
    }

    /// Places that [`Self::some_connections`] goes through.
    pub fn places(&self) -> usize {
        self.connections.borrow().capacity()
    }

    /// Signs a user in or out; returns the one before.
    pub fn set_user(&self, connection: &Connection, user: Option<User>) -> Option<Box<User>> {
        connection.set_user(user)
    }

    /// Carries out orders for ever. Begun again after a panic, it first flushes what that left behind.
    pub async fn deliver_forever(&self) {
        // After a panic some connections may have been given frames and not been flushed.
        let mut part: Vec<_> =
            self.connections.borrow().iter().map(|(_, one)| one.clone()).collect();
        self.flush_touched(&mut part);
        let (mut waiting, mut traced, mut oldest) = (FlushLine::default(), Vec::new(), None);
        let (mut offer, shares_load) = (CoreOffer::default(), self.hub.worker_count() > 1);
        loop {
            // Woken once, however many tasks came.
            if waiting.is_empty() {
                self.inbox().wait_woken(waiting.rest_until()).await;
                // Requests that are at the door already come in first, and their frames go out in this turn.
                yield_now().await;
            }
            // Time that the turn takes is what operators see of a busy worker.
            let begun = Instant::now();
            let mut turn = self.process_inbox();
            oldest = oldest.or(turn.came.0);
            waiting.begin_turn(turn.came, begun);
            // Frames for few connections are flushed at once, before a crowd's, which are flushed in parts. A
            // waiting connection gets everything that was queued for it meanwhile in one write.
            let at_once = waiting.take_touched(&mut turn.touched, |one| one.queued_bytes());
            let mut flushed = at_once.len();
            self.flush_touched(at_once);
            traced.append(&mut turn.traced);
            // Vectors keep their room; a turn allocates nothing once it has been as large as the largest.
            self.spare.replace(turn);
            waiting.give_part(&mut part, |one| one.queued_bytes());
            flushed += part.len();
            self.flush_touched(&mut part);
            let done = if waiting.is_empty() { oldest.take() } else { None };
            waiting.end_turn(flushed, self.inbox().turns.end_turn(done, begun));
            if waiting.is_empty() {
                self.emit_flushed(&mut traced);
            } else {
                if shares_load && waiting.is_outpaced() {
                    offer.offer_core();
                }
                yield_now().await;
            }
        }
    }

    /// Carries out what is in the inbox and flushes, without giving way to anything.
    /// For an answer that must not overtake what came before it.
    pub fn deliver_now(&self) {
        let mut turn = self.process_inbox();
        self.flush_touched(turn.touched.join_lists());
        self.emit_flushed(&mut turn.traced);
        self.spare.replace(turn);
    }

    /// Flushes all of them, which are no longer touched.
    fn flush_touched(&self, touched: &mut Vec<Rc<Connection>>) {
        self.flusher.borrow_mut().flush_all(touched, &self.inbox().turns);
    }

    /// Others fill it.
    pub fn inbox(&self) -> &Inbox {
        self.hub.inbox(self.index)
    }

    /// Takes all orders and carries them out; the connections that are to be flushed.
    fn process_inbox(&self) -> WorkerTurn {
        // Taken out, because a task may deliver at once and so come here again.
        let mut turn = self.spare.take();
        turn.came = self.inbox().take_tasks(&mut turn.orders);
        let WorkerTurn { orders, frames, touched, traced, .. } = &mut turn;
        for order in orders.drain(..) {
            match order {
                // Gathered as long as nothing but deliveries comes, so that frames of a channel can be joined.
                WorkerTask::Deliver(frame) => frames.push(frame),
                WorkerTask::DeliverTraced(one) => {
                    self.deliver_all(frames, touched);
                    traced.extend(self.deliver_traced(*one, frames, touched));
                }
                other => {
                    // Earlier deliveries must arrive before this task.
                    self.deliver_all(frames, touched);
                    self.process_task(other, touched);
                }
            }
        }
        self.deliver_all(frames, touched);
        turn
    }

    /// One task that is no delivery. Those for a connection that has gone do nothing.
    fn process_task(&self, order: WorkerTask, touched: &mut TouchedList<Rc<Connection>>) {
        match order {
            WorkerTask::Deliver(_) | WorkerTask::DeliverTraced(_) => {}
            WorkerTask::Describe(asked) => self.describe_sockets(*asked),
            WorkerTask::CloseUser { directory, user, asked, why } => {
                self.each_of_user(&directory, &user, asked, |connection| {
                    connection.close_with(&why);
                });
            }
            WorkerTask::Withdraw { directory, user, asked, withdrawal } => {
                self.each_of_user(&directory, &user, asked, |connection| {
                    connection.withdraw_rights(withdrawal.clone());
                });
            }
            WorkerTask::Arrive { place, arrival } => {
                if let Some(connection) = self.connection_at(place) {
                    connection.take_request(*arrival);
                }
            }
            #[cfg(feature = "socketio")]
            WorkerTask::ArriveByEngine { place, arrival } => {
                if let Some(connection) = self.connection_at(place) {
                    connection.take_engine_request(*arrival);
                }
            }
            WorkerTask::Resume { place, admitted } => {
                self.connection_at(place)
                    .into_iter()
                    .for_each(|one| one.resume_subscription(admitted));
            }
            WorkerTask::Replay { place, replayed } => {
                if let Some(connection) = self.connection_at(place) {
                    self.replay(&connection, *replayed);
                }
            }
            WorkerTask::CloseOne { place, why } => {
                self.connection_at(place).into_iter().for_each(|one| one.close_with(&why));
            }
            WorkerTask::Tell { place, frame } => {
                let Some(connection) = self.connection_at(place) else { return };
                connection.enqueue(frame);
                if connection.mark_dirty() {
                    touched.add_touched(connection, 1);
                }
            }
        }
    }

    /// The user's connections that were made before something was asked.
    /// A walk over all connections of the worker: rare, and cheaper than an index by user. Those made after it was
    /// asked are spared: they signed anew.
    fn each_of_user(
        &self,
        directory: &Arc<Directory>,
        user: &UserId,
        asked: u64,
        act: impl Fn(&Connection),
    ) {
        for (_, connection) in self.connections.borrow().iter() {
            let is_of_app = Arc::ptr_eq(&connection.directory, directory);
            if is_of_app && connection.life.made.get() <= asked && connection.is_user(user) {
                act(connection);
            }
        }
    }

    /// The connection in that place, unless it has gone.
    /// Slot and id together are a name that never means another connection.
    fn connection_at(&self, place: ConnectionRef) -> Option<Rc<Connection>> {
        let connections = self.connections.borrow();
        connections.get(place.slot as usize).filter(|one| one.id == place.socket).cloned()
    }
}
