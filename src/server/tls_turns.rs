//! The order of a worker's TLS handshakes: each address has its turn, however many handshakes another one has begun.
//! `tls.rs` computes them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::sync::oneshot;
use tokio::task::yield_now;

use crate::hub::handshakes::counted_address;

/// Flights that are answered before deliveries get a turn. With a key of ECDSA that is less than 1 ms, with one of RSA
/// of 2048 bits about 3 ms.
const FLIGHTS_PER_TURN: usize = 4;

/// Handshakes of an address that may be unfinished on a worker: each keeps some KiB until its client answers.
const MAX_BEGUN: usize = 1024;

/// A worker's TLS handshakes.
#[derive(Debug, Default)]
pub(super) struct HandshakeTurns {
    /// Flights that were answered since others last had a turn.
    answered: Cell<usize>,
    lines: RefCell<AddressLines>,
    keeper: RefCell<Option<Waker>>,
    /// Counts handshakes.
    begun: Cell<u64>,
}

/// Those that wait, by address.
#[derive(Debug, Default)]
struct AddressLines {
    by_address: HashMap<IpAddr, AddressLine>,
    /// The addresses with handshakes that wait, whose turn is next in front.
    waiting: VecDeque<IpAddr>,
}

/// The handshakes of one address.
#[derive(Debug, Default)]
struct AddressLine {
    /// Those that wait for their turn, in the order they came. Some may have given up.
    waiting: VecDeque<oneshot::Sender<()>>,
    /// Those that have begun, the oldest first. Dropping one's sender ends it.
    begun: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A handshake that has begun, counted for its address until it is dropped.
#[derive(Debug)]
pub(super) struct BegunHandshake {
    turns: Rc<HandshakeTurns>,
    address: IpAddr,
    number: u64,
    ended: oneshot::Receiver<()>,
}

impl BegunHandshake {
    /// Ready once it has to make way for later ones of its address.
    pub(super) async fn wait_for_end(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

impl Drop for BegunHandshake {
    fn drop(&mut self) {
        self.turns.lines.borrow_mut().end_handshake(self.address, self.number);
    }
}

impl AddressLines {
    fn wait(&mut self, address: IpAddr) -> oneshot::Receiver<()> {
        let (granted, turn) = oneshot::channel();
        let line = self.by_address.entry(address).or_default();
        if line.waiting.is_empty() {
            self.waiting.push_back(address);
        }
        line.waiting.push_back(granted);
        turn
    }

    /// Lets the first of the next address go on; false if nobody waits.
    fn grant_next(&mut self) -> bool {
        while let Some(address) = self.waiting.pop_front() {
            let Some(line) = self.by_address.get_mut(&address) else { continue };
            // Those that have given up meanwhile take no turn.
            let is_granted =
                std::iter::from_fn(|| line.waiting.pop_front()).any(|one| one.send(()).is_ok());
            if !line.waiting.is_empty() {
                self.waiting.push_back(address);
            }
            self.forget_unused(address);
            if is_granted {
                return true;
            }
        }
        false
    }

    fn begin_handshake(&mut self, address: IpAddr, number: u64) -> oneshot::Receiver<()> {
        let (end, ended) = oneshot::channel();
        let line = self.by_address.entry(address).or_default();
        line.begun.push_back((number, end));
        if line.begun.len() > MAX_BEGUN {
            line.begun.pop_front();
        }
        ended
    }

    fn end_handshake(&mut self, address: IpAddr, number: u64) {
        if let Some(line) = self.by_address.get_mut(&address) {
            if let Ok(place) = line.begun.binary_search_by_key(&number, |(number, _)| *number) {
                line.begun.remove(place);
            }
            self.forget_unused(address);
        }
    }

    /// Only addresses that are shaking hands take memory.
    fn forget_unused(&mut self, address: IpAddr) {
        let is_unused = |line: &AddressLine| line.waiting.is_empty() && line.begun.is_empty();
        if self.by_address.get(&address).is_some_and(is_unused) {
            self.by_address.remove(&address);
        }
    }
}

impl HandshakeTurns {
    /// Waits until a flight of `address` may be answered. Not at all while little was computed in this turn.
    pub(super) async fn wait_for_turn(&self, address: IpAddr) {
        if self.answered.get() < FLIGHTS_PER_TURN {
            self.answered.set(self.answered.get() + 1);
            return;
        }
        let turn = self.lines.borrow_mut().wait(counted_address(address));
        self.keeper.take().into_iter().for_each(Waker::wake);
        let _ = turn.await;
    }

    /// Counts one more handshake of `address`. Where it has too many, its oldest makes way.
    pub(super) fn begin_handshake(self: &Rc<Self>, address: IpAddr) -> BegunHandshake {
        let (address, number) = (counted_address(address), self.begun.get());
        self.begun.set(number + 1);
        let ended = self.lines.borrow_mut().begin_handshake(address, number);
        BegunHandshake { turns: self.clone(), address, number, ended }
    }

    /// Begins one turn after the other for as long as somebody waits, for ever.
    pub(super) async fn run_turns(&self) {
        loop {
            poll_fn(|cx| {
                if !self.lines.borrow().waiting.is_empty() {
                    return Poll::Ready(());
                }
                self.keeper.replace(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
            yield_now().await;
            let mut lines = self.lines.borrow_mut();
            self.answered.set((0..FLIGHTS_PER_TURN).take_while(|_| lines.grant_next()).count());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_with_thousands_of_handshakes_takes_only_its_turns() {
        let turns = Rc::new(HandshakeTurns::default());
        let keeper = turns.clone();
        let all = LocalSet::new();
        all.spawn_local(async move { keeper.run_turns().await });
        all.run_until(async {
            let answered = Rc::new(Cell::new(0));
            let shake = |from: String| {
                let (turns, answered) = (turns.clone(), answered.clone());
                spawn_local(async move {
                    turns.wait_for_turn(address(&from)).await;
                    answered.set(answered.get() + 1);
                    answered.get()
                })
            };
            // A host may give itself any address of its network.
            let flood: Vec<_> = (0..1000).map(|n| shake(format!("2001:db8::{n:x}"))).collect();
            yield_now().await;
            flood.iter().take(100).for_each(|one| one.abort());
            let others: Vec<_> = (0..4).map(|n| shake(format!("10.0.0.{n}"))).collect();
            for other in others {
                let place = other.await.unwrap();
                assert!(place <= 3 * FLIGHTS_PER_TURN + 4, "it was answered after {place}");
            }
            for one in flood {
                let _ = one.await;
            }
            assert!((900..1004).contains(&answered.get()), "{}", answered.get());
        })
        .await;
        assert!(turns.lines.borrow().by_address.is_empty());
    }

    #[tokio::test]
    async fn unfinished_handshakes_make_way_for_later_ones_of_their_address() {
        let turns = Rc::new(HandshakeTurns::default());
        let mut other = turns.begin_handshake(address("10.0.0.2"));
        let begin = |_| turns.begin_handshake(address("10.0.0.1"));
        let mut begun: Vec<_> = (0..MAX_BEGUN + 2).map(begin).collect();
        assert!(begun.iter_mut().take(2).all(|one| one.ended.try_recv().is_err_and(is_closed)));
        let is_open = |one: &mut BegunHandshake| !one.ended.try_recv().is_err_and(is_closed);
        assert!(begun.iter_mut().skip(2).all(is_open) && is_open(&mut other));
        // Those that are finished count no longer.
        begun.truncate(10);
        begun.extend((10..MAX_BEGUN).map(begin));
        assert!(begun.iter_mut().skip(2).all(is_open));
        drop((begun, other));
        assert!(turns.lines.borrow().by_address.is_empty());
    }

    fn is_closed(error: oneshot::error::TryRecvError) -> bool {
        error == oneshot::error::TryRecvError::Closed
    }
}
