//! Timeouts of requests, kept for all connections of a worker together, so that none needs a timer of its own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::node::ServerState;

/// How long a backend may leave its connection unused; seconds.
const IDLE_SECONDS: u32 = 120;

/// How long a connection that has just come has for its first request while the server stops; seconds.
const FIRST_REQUEST_SECONDS: u32 = 3;

/// The connections of one worker that requests come on.
/// A slab: a connection knows its own place, so that leaving costs no search.
#[derive(Debug, Default)]
pub struct RequestTimers {
    /// The timers of the worker's connections.
    pub(super) timers: RefCell<Slab<Rc<RequestTimer>>>,
    /// Where those of each address are that are counted as visits.
    pub(super) visits: RefCell<HashMap<IpAddr, Vec<usize>>>,
    /// Bytes of the buffers that they have.
    pub(super) buffered: Cell<usize>,
    /// The most that its connections took since that was asked last, in bytes.
    pub(super) most_held: Cell<usize>,
    /// Counts the steps of all. Orders connections by when they began their step, where seconds are too coarse.
    steps: Rc<Cell<u64>>,
}

/// One connection's timer: what its client is at, and since when.
#[derive(Debug, Default)]
pub struct RequestTimer {
    pub(super) place: Cell<usize>,
    /// Second of the worker's clock at which the present step began.
    since: Cell<u32>,
    /// How many steps others had begun before it.
    turn: Cell<u64>,
    /// Steps taken on the worker, which order the timers by idleness.
    steps: Rc<Cell<u64>>,
    /// Counted among its address's until something signed has come.
    /// Dropping it counts the connection no longer.
    pub(super) visit: RefCell<Option<AddressVisit>>,
    /// The address whose buffers it has, and their bytes; those that only read whole requests have none.
    pub(super) buffers: Cell<Option<(IpAddr, usize)>>,
    /// Whether a backend signed a request on it. Backends' connections are evicted last and exempt from limits by
    /// address.
    is_known: Cell<bool>,
    /// The phase of the current request.
    step: Cell<RequestPhase>,
    /// Set once, taken by the connection's task.
    end: Cell<Option<TimeoutReason>>,
    /// Of that task, as it was polled last.
    waker: RefCell<Option<Waker>>,
}

/// A connection counted among its address's for as long as this lives.
#[derive(Debug)]
pub(super) struct AddressVisit {
    /// Counts the connection for its address.
    shared: Arc<ServerState>,
    pub(super) address: IpAddr,
}

impl AddressVisit {
    /// Counts a connection for its address, until this is dropped.
    pub(super) fn new(shared: &Arc<ServerState>, address: IpAddr) -> Self {
        shared.addresses.visit(address);
        Self { shared: shared.clone(), address }
    }
}

impl Drop for AddressVisit {
    fn drop(&mut self) {
        self.shared.addresses.depart(self.address);
    }
}

/// The phases of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RequestPhase {
    /// Connected, and has not sent a whole request yet.
    #[default]
    New,
    /// Its request is answered; another may follow.
    Idle,
    /// Part of another request has come.
    Head,
    /// The body is on its way.
    Body,
    /// A session holds the request, and decides when to answer it.
    Held,
}

/// Why a connection is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeoutReason {
    /// It takes too long with a request, or has none.
    Late,
    /// The server stops: after the request at hand.
    Draining,
    /// Others need its place.
    Crowded,
}

impl RequestTimers {
    /// A new connection, at second `now`.
    /// It counts as `New` until a whole head has come.
    pub fn begin_connection(self: &Rc<Self>, now: u32) -> TimerGuard {
        let timer = Rc::new(RequestTimer { steps: self.steps.clone(), ..RequestTimer::default() });
        timer.enter_phase(RequestPhase::New, now);
        let place = self.timers.borrow_mut().insert(timer.clone());
        timer.place.set(place);
        TimerGuard { timers: self.clone(), timer }
    }

    /// Ends those that have been at one step for too long: `timeout` seconds where a request is due.
    /// Called once a second by the worker, for all at once.
    pub fn check_timeouts(&self, now: u32, timeout: u32) {
        for (_, timer) in self.timers.borrow().iter() {
            let limit = match timer.step.get() {
                // A session over HTTP may hold its request open for as long as it likes.
                RequestPhase::Idle => IDLE_SECONDS,
                RequestPhase::Held => continue,
                RequestPhase::New | RequestPhase::Head | RequestPhase::Body => timeout,
            };
            // More than, for the clock's second may have just begun.
            if now.saturating_sub(timer.since.get()) > limit {
                timer.end_connection(TimeoutReason::Late);
            }
        }
    }

    /// Ends idle connections, and others once their requests are answered. A connection without a first request
    /// still gets to send one: it was accepted before the drain began.
    pub fn end_idle(&self, now: u32) {
        for (_, timer) in self.timers.borrow().iter() {
            let age = now.saturating_sub(timer.since.get());
            if timer.step.get() != RequestPhase::New || age >= FIRST_REQUEST_SECONDS {
                timer.end_connection(TimeoutReason::Draining);
            }
        }
    }
}

impl RequestTimer {
    /// Every step restarts the clock, so that a slow request is not cut while it makes progress from one step to the
    /// next.
    pub fn enter_phase(&self, step: RequestPhase, now: u32) {
        self.step.set(step);
        self.since.set(now);
        self.turn.set(self.steps.replace(self.steps.get() + 1));
    }

    /// Bytes have come, perhaps the first of a request.
    /// The first byte of a further request ends its idling, and from then on the shorter time holds.
    pub fn note_bytes(&self, now: u32) {
        if self.step.get() == RequestPhase::Idle {
            self.enter_phase(RequestPhase::Head, now);
        }
    }

    /// For `eviction`, which ends no connection in the middle of its work.
    pub fn current_phase(&self) -> RequestPhase {
        self.step.get()
    }

    /// Which of several began its step first.
    pub(super) fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// Seconds that its step has lasted.
    pub(super) fn seconds(&self, now: u32) -> u32 {
        now.saturating_sub(self.since.get())
    }

    /// Whether a backend signed a request on the connection.
    pub(super) fn is_known(&self) -> bool {
        self.is_known.get()
    }

    /// For as long as the connection lives: who signed one request is who has the secret.
    pub(super) fn make_known(&self) {
        self.is_known.set(true);
    }

    /// Whether it was told to end and has not ended yet.
    pub(super) fn is_ending(&self) -> bool {
        self.end.get().is_some()
    }

    /// Takes effect when the connection's task is polled, which it is woken for.
    pub(super) fn end_connection(&self, end: TimeoutReason) {
        self.end.set(Some(end));
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Returns once why the connection must end; wakes its task then.
    pub fn poll_end(&self, cx: &Context<'_>) -> Option<TimeoutReason> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
            // The task polls often and seldom moves: the same waker is not cloned again.
        }
        self.end.take()
    }

    /// Runs `work` unless the connection must end before. Pinned in place: a future that was passed by value would
    /// take its room twice.
    pub async fn unless_ended<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        poll_fn(|cx| match self.poll_end(cx) {
            Some(_) => Poll::Ready(None),
            None => work.as_mut().poll(cx).map(Some),
        })
        .await
    }
}

/// Keeps a timer among its worker's for as long as its connection lives.
#[derive(Debug)]
pub struct TimerGuard {
    pub(super) timers: Rc<RequestTimers>,
    /// The connection's own.
    pub timer: Rc<RequestTimer>,
}

impl Drop for TimerGuard {
    fn drop(&mut self) {
        self.timers.forget_visit(&self.timer);
        self.timers.forget_buffers(&self.timer);
        self.timers.timers.borrow_mut().remove(self.timer.place.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_time() {
        let timers = Rc::new(RequestTimers::default());
        let kept = timers.begin_connection(1);
        let cx = Context::from_waker(Waker::noop());
        let ends = |now: u32| {
            timers.check_timeouts(now, 10);
            kept.timer.poll_end(&cx)
        };
        assert_eq!((ends(11), ends(12)), (None, Some(TimeoutReason::Late)));
        kept.timer.enter_phase(RequestPhase::Idle, 20);
        assert_eq!((ends(140), ends(141)), (None, Some(TimeoutReason::Late)));
        kept.timer.note_bytes(141);
        kept.timer.note_bytes(150);
        assert_eq!((ends(151), ends(152)), (None, Some(TimeoutReason::Late)));
        timers.end_idle(152);
        assert_eq!(kept.timer.poll_end(&cx), Some(TimeoutReason::Draining));
        let new = timers.begin_connection(152);
        timers.end_idle(154);
        assert_eq!(new.timer.poll_end(&cx), None);
        timers.end_idle(155);
        assert_eq!(new.timer.poll_end(&cx), Some(TimeoutReason::Draining));
        drop((kept, new));
        assert!(timers.timers.borrow().is_empty());
    }
}
