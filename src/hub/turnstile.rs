//! How much of the connections' work is done before others on the worker get a turn. Connections are read until the
//! turn's share is used up; the rest wait in line for the next turn. Work is counted, not timed, so it is the same on
//! every machine.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::task::yield_now;

use crate::metrics::TurnTimes;

/// Pieces of work a turn: a frame is one, and so is each KiB that was read.
const WORK_PER_TURN: usize = 256;

/// Connections that are let in at once, of those that wait.
const ADMITTED_PER_TURN: usize = 64;

/// A worker's door in.
#[derive(Debug, Default)]
pub struct Turnstile {
    /// Work done since others last had a turn.
    done: Cell<usize>,
    /// The waiting ones, in order of arrival. One that has gone meanwhile is still in here.
    waiting: RefCell<VecDeque<Waker>>,
    /// The task that lets the waiting ones go on.
    keeper: RefCell<Option<Waker>>,
}

impl Turnstile {
    /// Ready when the task may go on; until then it is woken when it should ask again.
    pub fn poll_turn(&self, cx: &Context<'_>) -> Poll<()> {
        if self.done.get() < WORK_PER_TURN {
            return Poll::Ready(());
        }
        self.waiting.borrow_mut().push_back(cx.waker().clone());
        self.keeper.take().into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    /// Counts work that was done.
    pub fn count_work(&self, work: usize) {
        self.done.set(self.done.get().saturating_add(work));
    }

    /// Runs turns for ever, as long as anything waits. Each turn is added to `turns`, with all work that other
    /// tasks did in it.
    pub async fn run_turnstile(&self, turns: &TurnTimes) {
        loop {
            poll_fn(|cx| {
                if !self.waiting.borrow().is_empty() {
                    return Poll::Ready(());
                }
                self.keeper.replace(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
            let begun = Instant::now();
            yield_now().await;
            turns.crowded.observe(begun.elapsed());
            self.done.set(0);
            let mut waiting = self.waiting.borrow_mut();
            let part = waiting.len().min(ADMITTED_PER_TURN);
            waiting.drain(..part).for_each(Waker::wake);
            if waiting.is_empty() && waiting.capacity() > 1024 {
                *waiting = VecDeque::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn who_has_little_to_say_is_heard_between_floods() {
        let (turnstile, turns) = (Rc::new(Turnstile::default()), Rc::new(TurnTimes::default()));
        let (keeper, seen) = (turnstile.clone(), turns.clone());
        let all = LocalSet::new();
        all.spawn_local(async move { keeper.run_turnstile(&seen).await });
        all.run_until(async {
            let done = Rc::new(Cell::new(0));
            let flood = || {
                let (turnstile, done) = (turnstile.clone(), done.clone());
                spawn_local(async move {
                    for _ in 0..10 {
                        poll_fn(|cx| turnstile.poll_turn(cx)).await;
                        turnstile.count_work(WORK_PER_TURN / 4);
                        done.set(done.get() + 1);
                        yield_now().await;
                    }
                })
            };
            let floods: Vec<_> = (0..100).map(|_| flood()).collect();
            let seen = done.clone();
            let heard = spawn_local(async move {
                yield_now().await;
                seen.get()
            });
            assert!(heard.await.unwrap() <= 8, "as much as two turns have");
            for one in floods {
                one.await.unwrap();
            }
            assert_eq!(done.get(), 1000, "and all is done in the end");
        })
        .await;
    }
}
