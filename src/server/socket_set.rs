//! All sockets of a worker in one task of the runtime: which were woken, their turns, and panics, which end only
//! the socket concerned. A task for each socket would take 144 bytes aligned to 128, which wastes nearly as much
//! again. The sockets' own work is not known here.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

/// Sockets that are polled before the worker's other tasks get a turn.
/// Deliveries are among those: the more sockets were read before, the more goes out in one write.
const SOCKETS_PER_TURN: usize = 256;

/// Places that are kept for sockets to come.
const KEPT_PLACES: usize = 1024;

/// A worker's sockets.
pub(super) struct SocketSet<S> {
    /// A place is empty while its socket is polled.
    sockets: RefCell<Slab<Option<S>>>,
    /// The sockets to poll next.
    woken: Arc<WokenSockets>,
    /// Those that were woken before the last turn ended and had none in it.
    waiting: RefCell<VecDeque<Arc<SocketWaker>>>,
}

/// The sockets that are to be polled, in the order in which they were woken. Others than this thread may wake them.
#[derive(Default)]
struct WokenSockets(Mutex<WokenLine>);

/// Woken sockets, in order.
#[derive(Default)]
struct WokenLine {
    /// Each at most once.
    sockets: VecDeque<Arc<SocketWaker>>,
    /// Of the task that polls them.
    task: Option<Waker>,
    /// The task has ended, and nothing is polled any more.
    is_over: bool,
}

/// Wakes one socket. A clone may outlive the socket; it then wakes nothing, even if the place has a new socket.
struct SocketWaker {
    /// The line to join when woken.
    woken: Arc<WokenSockets>,
    /// The socket's place in the set.
    place: u32,
    /// Whether it sleeps, waits in line, or has ended.
    state: AtomicU8,
}

/// States of a [`SocketWaker`]: its socket waits for something,
const ASLEEP: u8 = 0;
/// is in line,
const WOKEN: u8 = 1;
/// or has ended.
const ENDED: u8 = 2;

impl WokenSockets {
    /// The line. A poisoned lock is used on: a push cannot leave it half-done.
    fn lock(&self) -> MutexGuard<'_, WokenLine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a socket in line, and wakes the task.
    fn push(&self, socket: Arc<SocketWaker>) {
        let mut line = self.lock();
        if line.is_over {
            return;
        }
        let is_first = line.sockets.is_empty();
        line.sockets.push_back(socket);
        // One wake for all that come until they are taken.
        let task = line.task.as_ref().filter(|_| is_first).cloned();
        drop(line);
        task.into_iter().for_each(Waker::wake);
    }

    /// Swaps those that were woken for `empty`; from now on `task` is woken for others.
    fn take_woken(&self, empty: &mut VecDeque<Arc<SocketWaker>>, task: &Waker) {
        let mut line = self.lock();
        std::mem::swap(&mut line.sockets, empty);
        if !line.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            line.task = Some(task.clone());
        }
    }
}

impl Wake for SocketWaker {
    fn wake(self: Arc<Self>) {
        // Acquire and release: who polls sees what was done before it was woken.
        let was = self.state.compare_exchange(ASLEEP, WOKEN, Ordering::AcqRel, Ordering::Relaxed);
        if was.is_ok() {
            let woken = self.woken.clone();
            woken.push(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Most often it is in line already: then it need not be counted once more.
        if self.state.load(Ordering::Acquire) != ASLEEP {
            return;
        }
        self.clone().wake();
    }
}

impl<S> fmt::Debug for SocketSet<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketSet").field("places", &self.sockets.borrow().len()).finish()
    }
}

impl<S> Default for SocketSet<S> {
    fn default() -> Self {
        Self { sockets: RefCell::default(), woken: Arc::default(), waiting: RefCell::default() }
    }
}

impl<S: Future<Output = ()> + Unpin> SocketSet<S> {
    /// Polls it in the next turn, and from then on whenever it is woken, to its end.
    pub(super) fn add_socket(&self, socket: S) {
        let place = self.sockets.borrow_mut().insert(Some(socket)) as u32;
        // Its first poll has its turn like any other.
        let (woken, state) = (self.woken.clone(), AtomicU8::new(ASLEEP));
        Arc::new(SocketWaker { woken, place, state }).wake();
    }

    /// Polls a part of those that were woken. The task of `cx` is woken for the others.
    fn poll_part(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.take();
        if waiting.is_empty() {
            self.woken.take_woken(&mut waiting, cx.waker());
        }
        let part = waiting.len().min(SOCKETS_PER_TURN);
        waiting.drain(..part).for_each(|woken| self.poll_one(woken));
        if waiting.is_empty() {
            // The room that a crowd took is no longer needed.
            waiting.shrink_to(KEPT_PLACES);
            // Only the first in an empty line wakes this task, and that may have been while others were polled.
            self.woken.take_woken(&mut waiting, cx.waker());
        }
        if !waiting.is_empty() {
            cx.waker().wake_by_ref();
        }
        self.waiting.replace(waiting);
    }

    /// Polls one socket. If it panics, only that socket ends.
    fn poll_one(&self, woken: Arc<SocketWaker>) {
        // From here on it may be woken again, also by what it does itself.
        let was = woken.state.compare_exchange(WOKEN, ASLEEP, Ordering::AcqRel, Ordering::Relaxed);
        let place = woken.place as usize;
        // Taken out, since what a socket does when polled may add another one to the set.
        let taken = was.ok().and_then(|_| self.sockets.borrow_mut().get_mut(place)?.take());
        let Some(mut socket) = taken else { return };
        let waker = Waker::from(woken.clone());
        // A socket that panics is dropped while it unwinds, and so records the reason. The others are still polled.
        let polled = catch_unwind(AssertUnwindSafe(move || {
            let mut cx = Context::from_waker(&waker);
            Pin::new(&mut socket).poll(&mut cx).is_pending().then_some(socket)
        }));
        let mut sockets = self.sockets.borrow_mut();
        if let Ok(Some(socket)) = polled
            && let Some(empty) = sockets.get_mut(place)
        {
            *empty = Some(socket);
            return;
        }
        // Release: pairs with the acquire with which a waker reads the state.
        woken.state.store(ENDED, Ordering::Release);
        sockets.try_remove(place);
        if sockets.capacity() > KEPT_PLACES && sockets.len() < sockets.capacity() / 4 {
            sockets.shrink_to_fit();
        }
    }

    /// Ends all of them where they are.
    fn end_all(&self) {
        self.waiting.take();
        // None of these is dropped while something is locked, for each may wake others.
        let over = WokenLine { is_over: true, ..WokenLine::default() };
        drop(std::mem::replace(&mut *self.woken.lock(), over));
        drop(self.sockets.take());
    }
}

/// The task that polls a worker's sockets, for ever. When it ends they do.
pub(super) struct SocketTurns<S: Future<Output = ()> + Unpin>(Rc<SocketSet<S>>);

impl<S: Future<Output = ()> + Unpin> SocketTurns<S> {
    /// Runs the sockets of a set.
    pub(super) fn new(sockets: Rc<SocketSet<S>>) -> Self {
        Self(sockets)
    }
}

impl<S: Future<Output = ()> + Unpin> Future for SocketTurns<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_part(cx);
        Poll::Pending
    }
}

impl<S: Future<Output = ()> + Unpin> Drop for SocketTurns<S> {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// The socket as the tests see it.
    #[derive(Default)]
    struct Seen {
        polls: Cell<usize>,
        ends: Cell<bool>,
        panics: Cell<bool>,
        waker: Cell<Option<Waker>>,
        /// Whether it went by a panic.
        gone: Cell<Option<bool>>,
    }

    impl Seen {
        fn wake(&self) {
            self.waker.take().unwrap().wake();
        }
    }

    struct Spy(Rc<Seen>);

    impl Future for Spy {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.0.polls.set(self.0.polls.get() + 1);
            self.0.waker.set(Some(cx.waker().clone()));
            assert!(!self.0.panics.get(), "as the test wants it");
            if self.0.ends.get() { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    impl Drop for Spy {
        fn drop(&mut self) {
            self.0.gone.set(Some(std::thread::panicking()));
        }
    }

    fn add(set: &SocketSet<Spy>) -> Rc<Seen> {
        let seen = Rc::<Seen>::default();
        set.add_socket(Spy(seen.clone()));
        seen
    }

    fn turn(set: &SocketSet<Spy>) {
        set.poll_part(&Context::from_waker(Waker::noop()));
    }

    #[test]
    fn only_those_that_were_woken_are_polled_and_once() {
        let set = SocketSet::default();
        let all: Vec<_> = (0..10).map(|_| add(&set)).collect();
        turn(&set);
        assert!(all.iter().all(|one| one.polls.get() == 1));
        for _ in 0..3 {
            let waker = all[3].waker.take().unwrap();
            waker.wake_by_ref();
            all[3].waker.set(Some(waker));
        }
        turn(&set);
        turn(&set);
        let polls: Vec<_> = all.iter().map(|one| one.polls.get()).collect();
        assert_eq!(polls, [1, 1, 1, 2, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_panic_ends_one_socket_and_the_others_go_on() {
        let set = SocketSet::default();
        let all: Vec<_> = (0..3).map(|_| add(&set)).collect();
        turn(&set);
        all[1].panics.set(true);
        all.iter().for_each(|one| one.wake());
        turn(&set);
        assert_eq!(all[1].gone.get(), Some(true), "it saw that it panicked");
        all[2].wake();
        turn(&set);
        assert_eq!((all[0].polls.get(), all[2].polls.get()), (2, 3));
    }

    #[test]
    fn who_wakes_a_socket_that_is_gone_does_not_wake_the_next_in_its_place() {
        let set = SocketSet::default();
        let old = add(&set);
        turn(&set);
        let waker = old.waker.take().unwrap();
        old.ends.set(true);
        waker.wake_by_ref();
        turn(&set);
        assert_eq!(old.gone.get(), Some(false));
        let new = add(&set);
        turn(&set);
        waker.wake();
        turn(&set);
        assert_eq!((new.polls.get(), new.gone.get()), (1, None));
    }

    #[test]
    fn a_crowd_is_polled_in_parts_and_each_of_it_has_a_turn() {
        let set = SocketSet::default();
        let all: Vec<_> = (0..3 * SOCKETS_PER_TURN + 1).map(|_| add(&set)).collect();
        for part in 1..=4 {
            turn(&set);
            let polled = all.iter().filter(|one| one.polls.get() == 1).count();
            assert_eq!(polled, all.len().min(part * SOCKETS_PER_TURN));
        }
        drop(SocketTurns::new(Rc::new(set)));
        assert!(all.iter().all(|one| one.gone.get() == Some(false)), "gone with their task");
        all.iter().for_each(|one| one.wake());
    }

    /// Whether the task is to be polled.
    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_was_woken_while_a_crowd_had_its_turns_was_never_polled() {
        let set = SocketSet::default();
        let flag = Arc::<Flag>::default();
        let waker = Waker::from(flag.clone());
        let cx = Context::from_waker(&waker);
        // As a runtime does it: one poll for all wakes since the last.
        let poll = || {
            let is_due = flag.0.swap(false, Ordering::Relaxed);
            if is_due {
                set.poll_part(&cx);
            }
            is_due
        };
        set.poll_part(&cx);
        let all: Vec<_> = (0..2 * SOCKETS_PER_TURN + 1).map(|_| add(&set)).collect();
        assert!(poll() && all[0].polls.get() == 1);
        // While others have yet to be polled, in more than one turn.
        all[0].wake();
        assert!(poll());
        all[1].wake();
        while poll() {}
        all[2].wake();
        while poll() {}
        let polls: Vec<_> = all.iter().map(|one| one.polls.get()).collect();
        assert_eq!(polls[..4], [2, 2, 2, 1]);
        assert!(polls[4..].iter().all(|polls| *polls == 1));
    }

    #[tokio::test]
    async fn another_thread_wakes_a_socket_of_this_one() {
        let set = Rc::new(SocketSet::default());
        let (seen, turns) = (add(&set), SocketTurns::new(set.clone()));
        let woken = async {
            while seen.polls.get() < 2 {
                if let Some(waker) = seen.waker.take() {
                    std::thread::spawn(move || waker.wake()).join().unwrap();
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = turns => {}
            () = woken => {}
        }
        assert_eq!(seen.gone.get(), Some(false));
    }

    #[test]
    fn what_wakes_a_socket_is_small() {
        assert!(size_of::<SocketWaker>() <= 16, "each socket has one");
    }
}
