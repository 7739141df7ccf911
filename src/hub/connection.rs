//! One connection as its worker knows it: its socket id, outbox, subscriptions and end. It lives on one thread, so
//! nothing here is locked. The meaning of its messages is decided above.

mod closing;
mod extras;

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::{WorkBudget, WorkKind};
use super::deflated::Compression;
use super::directory::Directory;
use super::handles::ConnectionRef;
use super::http_stream::{HttpStream, SessionRequest};
use super::outbox::Outbox;
use super::resume::resumption::Resumption;
use super::shown;
use super::stream::Stream;
#[cfg(feature = "socketio")]
use super::stream::engine::{EngineRequest, EngineStream};
use super::subscriptions::{Subscription, Subscriptions};
use crate::app::App;
use crate::metrics::{AppTraffic, Reason};
use crate::protocol::event::Message;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;
use extras::ConnectionExtras;

/// A connection of one app.
pub struct Connection {
    /// Its id, which clients see.
    pub id: SocketId,
    /// Its app; replaced by a reload.
    app: RefCell<Arc<App>>,
    /// The channels of its app on this node.
    pub directory: Arc<Directory>,
    /// Of its client.
    pub address: IpAddr,
    /// Of the worker that carries it.
    worker: u16,
    /// Its place in the worker's list.
    pub(super) slot: Cell<u32>,
    /// The socket, with TLS if it has any; or the HTTP session.
    pub(super) stream: RefCell<Stream>,
    /// Frames that wait to be written.
    pub(super) outbox: RefCell<Outbox>,
    /// How far it is from its end.
    phase: Cell<ConnectionPhase>,
    /// The socket would not take more; the task waits until it does.
    pub(super) blocked: Cell<bool>,
    /// Among those to be flushed at the end of the worker's turn.
    touched: Cell<bool>,
    /// Of the connection's own task.
    waker: Cell<Option<Waker>>,
    /// The channels that it is subscribed to.
    pub(super) subscriptions: RefCell<Subscriptions>,
    /// Why it ends; the first reason counts.
    ending: Cell<Option<Reason>>,
    /// None for most.
    extras: OnceCell<Box<ConnectionExtras>>,
    /// Its part in a client that may come back.
    pub(super) resumption: OnceCell<Box<Resumption>>,
    /// Bytes of a message of its client that is not whole yet.
    partial: Cell<u32>,
    /// The decision on the subscription that it waits for, until its task has read it.
    resumed: Cell<Option<bool>>,
    /// Times and flags for the liveness check.
    pub life: Liveness,
    /// The work that it may cause.
    pub budget: WorkBudget,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

/// State of the liveness check; seconds of the worker's clock.
#[derive(Debug, Default)]
pub struct Liveness {
    /// When the connection was made, or, once it is closing, when that began.
    pub since: Cell<u32>,
    /// When the connection was made, by [`Hub::nanos_since_start`](super::Hub::nanos_since_start).
    pub(super) made: Cell<u64>,
    /// When something was last received.
    pub heard: Cell<u32>,
    /// When it was pinged; 0: not since something was received.
    pub asked: Cell<u32>,
    /// Whether its client answers `pusher:ping`. Then only a message shows that the program lives: a browser
    /// answers WebSocket pings also for a suspended page.
    pub answers_pings: Cell<bool>,
    /// Whether it has signed in or joined a channel with a signature.
    pub authorized: Cell<bool>,
    /// Whether other nodes know that its user is online.
    pub online: Cell<bool>,
    /// Whether the liveness check has seen it closing.
    pub ends: Cell<bool>,
    /// Whether its leaves were announced.
    pub has_left: Cell<bool>,
    /// The compression that the handshake agreed on.
    pub compression: Cell<Compression>,
}

impl Liveness {
    /// Notes a sign of life at second `now`.
    pub fn note_alive(&self, now: u32) {
        self.heard.set(now);
        self.asked.set(0);
    }

    /// Whether only a message counts as a sign of life at the moment.
    pub fn wants_data(&self) -> bool {
        self.answers_pings.get() && self.asked.get() > 0
    }
}

/// The phases of a connection, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum ConnectionPhase {
    /// Messages and frames pass.
    Open,
    /// Its client resumes at another process. Nothing more is sent to it before it is closed.
    Frozen,
    /// A close frame is queued or sent. Nothing more is sent or read.
    Closing,
    /// The stream is broken or its time is up: the task ends at once.
    Over,
}

impl Connection {
    /// A connection that was just accepted.
    pub(super) fn new(
        id: SocketId,
        app: Arc<App>,
        directory: Arc<Directory>,
        stream: Stream,
        (address, worker, now): (IpAddr, u16, u32),
    ) -> Self {
        let life = Liveness::default();
        life.since.set(now);
        life.heard.set(now);
        Self {
            id,
            app: RefCell::new(app),
            directory,
            address,
            worker,
            slot: Cell::new(0),
            stream: RefCell::new(stream),
            outbox: RefCell::default(),
            phase: Cell::new(ConnectionPhase::Open),
            blocked: Cell::new(false),
            touched: Cell::new(false),
            waker: Cell::default(),
            subscriptions: RefCell::default(),
            ending: Cell::default(),
            extras: OnceCell::new(),
            resumption: OnceCell::new(),
            partial: Cell::new(0),
            resumed: Cell::default(),
            life,
            budget: WorkBudget::default(),
        }
    }

    /// Its app as it is now; not to be held across an await, for a reload replaces it.
    pub fn app(&self) -> Ref<'_, Arc<App>> {
        self.app.borrow()
    }

    /// Goes on with its app as it was set anew.
    pub fn set_app(&self, app: &Arc<App>) {
        self.app.borrow_mut().clone_from(app);
    }

    /// Queues a frame. Over the cap, the connection is closed as too slow, but not before the socket was
    /// asked to take what waits: a turn may bring more than the cap to a client that reads at once. Closing,
    /// nothing is queued.
    pub fn enqueue(&self, frame: Bytes) {
        if !self.has_room(frame.len()) {
            // Also where it took no more a moment ago, for its own task may not have had its turn since.
            self.write_out();
            self.flush();
        }
        if self.phase.get() >= ConnectionPhase::Frozen {
            return;
        }
        if self.has_room(frame.len()) {
            self.outbox.borrow_mut().push(frame);
        } else {
            self.close_slow();
        }
    }

    /// Whether the outbox may take `bytes` more.
    fn has_room(&self, bytes: usize) -> bool {
        self.outbox.borrow().has_room(bytes, self.app().limits.outbox_bytes)
    }

    /// Its app's traffic on this worker.
    pub fn traffic(&self) -> &AppTraffic {
        self.directory.traffic_of(self.worker)
    }

    /// Queues an answer.
    pub fn enqueue_message(&self, message: Message) {
        self.traffic().answers.add(1);
        self.budget.spend(WorkKind::Bytes(message.bytes().len()));
        if shown::is_wanted() {
            shown::log_sent_frame(&self.app().id, self.id, message.bytes());
        }
        self.enqueue(message.into_bytes());
    }

    /// Marks it as one to be flushed; returns whether it was not marked before.
    pub(super) fn mark_dirty(&self) -> bool {
        !self.touched.replace(true)
    }

    /// The worker has flushed it.
    pub(super) fn clear_dirty(&self) {
        self.touched.set(false);
    }

    /// Writes queued frames as far as the socket takes them. The task writes the rest.
    pub fn flush(&self) {
        if self.blocked.get() {
            return;
        }
        self.write_out();
        if !self.is_written() {
            self.blocked.set(true);
            self.count_waiting();
            self.wake_task();
        }
    }

    /// Counts what the socket does not take.
    fn count_waiting(&self) {
        self.outbox.borrow_mut().begin_counting(self.directory.held());
    }

    /// Whether the socket has taken all queued frames.
    fn is_written(&self) -> bool {
        self.outbox.borrow().is_empty() && !self.stream.borrow().is_holding()
    }

    /// Writes the outbox, and then missed events that wait, as far as the socket takes them.
    fn write_out(&self) {
        self.write_outbox();
        while self.feed_backlog() {
            self.write_outbox();
        }
    }

    /// Writes the outbox as far as the socket takes it.
    fn write_outbox(&self) {
        let (mut outbox, mut stream) = (self.outbox.borrow_mut(), self.stream.borrow_mut());
        while !outbox.is_empty() || stream.is_holding() {
            let written = stream.try_write(&outbox);
            if !self.note_write(&mut outbox, written) {
                break;
            }
        }
    }

    /// Notes what became of a write of what is in its outbox; whether the socket may take more.
    pub(super) fn note_write(&self, outbox: &mut Outbox, written: io::Result<usize>) -> bool {
        match written {
            Ok(written) => {
                self.traffic().sent_bytes.add(written as u64);
                outbox.advance(written);
                written > 0
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    outbox.clear();
                    self.phase.set(ConnectionPhase::Over);
                }
                false
            }
        }
    }

    /// Goes on writing once the socket takes more; ready when nothing is left to write.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.blocked.get() && !self.is_over() {
            // Not in the match itself, which would keep the stream borrowed while it is written to.
            let writable = self.stream.borrow().poll_writable(cx);
            match writable {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {
                    self.write_out();
                    if self.is_written() {
                        self.blocked.set(false);
                    } else {
                        self.count_waiting();
                    }
                }
                Poll::Ready(Err(_)) => self.abort(),
            }
        }
        Poll::Ready(())
    }

    /// Reads what there is; nothing in `buffer` means the client has ended its half.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buffer);
        if self.stream.borrow().is_holding() {
            // Some records of TLS are answered by others.
            self.flush();
        }
        read
    }

    /// Acts on its stream where its client asks by HTTP requests.
    pub fn over_http<T>(&self, act: impl FnOnce(&mut HttpStream) -> T) -> Option<T> {
        match &mut *self.stream.borrow_mut() {
            Stream::Http(stream) => Some(act(stream)),
            _ => None,
        }
    }

    /// Acts on its stream where its client speaks Engine.IO.
    #[cfg(feature = "socketio")]
    pub fn over_engine<T>(&self, act: impl FnOnce(&mut EngineStream) -> T) -> Option<T> {
        match &mut *self.stream.borrow_mut() {
            Stream::Engine(stream) => Some(act(stream)),
            _ => None,
        }
    }

    /// Takes a request of Engine.IO, and wakes the session.
    #[cfg(feature = "socketio")]
    pub(super) fn take_engine_request(&self, arrival: EngineRequest) {
        self.over_engine(|stream| stream.take_request(arrival));
        self.wake_task();
    }

    /// Whether its stream is an HTTP session, which may go without a request for a while.
    pub fn is_session(&self) -> bool {
        self.stream.borrow().is_session()
    }

    /// A request of its client has come.
    pub(super) fn take_request(&self, arrival: SessionRequest) {
        self.over_http(|stream| stream.take_request(arrival));
        self.wake_task();
    }

    /// Ends our half of the stream.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }

    /// Leaves the waker of the connection's own task, for those who change its state.
    pub fn set_waker(&self, cx: &Context<'_>) {
        let mine = self.waker.take().filter(|waker| waker.will_wake(cx.waker()));
        self.waker.set(Some(mine.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Where others find it.
    pub fn connection_ref(&self) -> ConnectionRef {
        ConnectionRef { worker: self.worker, slot: self.slot.get(), socket: self.id }
    }

    /// Lets it go on with the subscription that it waited for, or refuses that.
    pub fn resume_subscription(&self, admitted: bool) {
        self.resumed.set(Some(admitted));
        self.wake_task();
    }

    /// Takes the decision of [`Self::resume_subscription`].
    pub fn take_resumed(&self) -> Option<bool> {
        self.resumed.take()
    }

    /// Wakes the task that reads its socket.
    pub(super) fn wake_task(&self) {
        self.waker.set(self.waker.take().inspect(Waker::wake_by_ref));
    }

    /// Channels it is subscribed to.
    pub fn channel_count(&self) -> usize {
        self.subscriptions.borrow().len()
    }

    /// Bytes that are counted for them.
    pub fn subscription_bytes(&self) -> usize {
        self.subscriptions.borrow().counted_bytes()
    }

    /// Counts `bytes` of a message of its client that is not whole yet, where others were counted before.
    pub fn count_partial(&self, bytes: usize) {
        let before = self.partial.replace(bytes as u32) as usize;
        self.directory.held().replace_bytes(before, bytes);
    }

    /// Bytes that are there for it: its subscriptions, what waits for it, and what it has begun to say.
    pub fn held_bytes(&self) -> usize {
        self.subscription_bytes() + self.queued_bytes() + self.partial.get() as usize
    }

    /// Notes what its handshake said of compression.
    pub fn agree_on(&self, compression: Compression) {
        self.life.compression.set(compression);
        self.traffic().compressed.add(u64::from(compression != Compression::Off));
    }

    /// Bytes that wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.borrow().len()
    }

    /// Takes the queued bytes, for tests of a detached connection.
    pub fn take_queued(&self) -> Vec<u8> {
        let mut outbox = self.outbox.borrow_mut();
        let mut slices = Outbox::no_slices();
        let mut all = Vec::with_capacity(outbox.len());
        while !outbox.is_empty() {
            let used = outbox.fill_slices(&mut slices);
            let before = all.len();
            for slice in slices.iter().take(used) {
                all.extend_from_slice(slice);
            }
            slices = Outbox::no_slices();
            outbox.advance(all.len() - before);
        }
        self.blocked.set(false);
        all
    }

    /// Notes the user as whom it is present in the channel that it just joined, if other nodes decided that.
    pub fn make_present(&self, user: UserId) {
        if let Some(last) = self.subscriptions.borrow_mut().last_mut() {
            last.set_user(user);
        }
    }

    /// Whether the connection belongs to the user: signed in, present in any channel, or about to be.
    pub(super) fn is_user(&self, id: &UserId) -> bool {
        let present = |subscription: &Subscription| subscription.user() == Some(id);
        self.with_user(|user| user.is_some_and(|user| user.id == *id))
            || self.subscriptions.borrow().iter().any(present)
            || self.with_restrictions(|all| all.is_joining_as(id))
    }
}
