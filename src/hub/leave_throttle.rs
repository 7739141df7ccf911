//! How many connections of a worker may leave before others get a turn. Leaving costs about ten times as much as
//! noticing that a stream has ended; so when thousands end at once, others are read in between, not after the last.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use tokio::task::yield_now;

/// Connections that leave before others get a turn.
const LEAVES_PER_TURN: usize = 32;

/// A worker's door out.
#[derive(Debug, Default)]
pub struct LeaveThrottle {
    /// How many have left since others last had a turn.
    left_in_turn: Cell<usize>,
    /// The waiting ones, in order of arrival. One that has ended meanwhile is still in here.
    waiting: RefCell<VecDeque<Waker>>,
    /// The task that lets the waiting ones go on.
    keeper: RefCell<Option<Waker>>,
}

impl LeaveThrottle {
    /// Ready when the task may leave, once; until then it is woken when it should ask again.
    pub fn poll_turn(&self, cx: &Context<'_>) -> Poll<()> {
        let left = self.left_in_turn.get();
        if left >= LEAVES_PER_TURN {
            self.waiting.borrow_mut().push_back(cx.waker().clone());
            return Poll::Pending;
        }
        self.left_in_turn.set(left + 1);
        if left == 0 {
            self.keeper.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(())
    }

    /// Lets one part after the other leave, for ever.
    pub async fn run_throttle(&self) {
        loop {
            poll_fn(|cx| {
                if self.left_in_turn.get() > 0 || !self.waiting.borrow().is_empty() {
                    return Poll::Ready(());
                }
                self.keeper.replace(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
            yield_now().await;
            self.left_in_turn.set(0);
            let mut waiting = self.waiting.borrow_mut();
            let part = waiting.len().min(LEAVES_PER_TURN);
            waiting.drain(..part).for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[tokio::test]
    async fn who_comes_meanwhile_is_heard_before_the_last_has_left() {
        let (leaving, left) = (Rc::new(LeaveThrottle::default()), Rc::new(Cell::new(0)));
        let keeper = leaving.clone();
        let all = LocalSet::new();
        all.spawn_local(async move { keeper.run_throttle().await });
        all.run_until(async {
            let several = 10 * LEAVES_PER_TURN;
            let leave = || {
                let (leaving, left) = (leaving.clone(), left.clone());
                spawn_local(async move {
                    poll_fn(|cx| leaving.poll_turn(cx)).await;
                    left.set(left.get() + 1);
                })
            };
            let mut tasks: Vec<_> = (0..several).map(|_| leave()).collect();
            // One that gives up: the place that it had is not waited for.
            tasks.swap_remove(several / 2).abort();
            let seen = left.clone();
            let heard = spawn_local(async move { seen.get() }).await.unwrap();
            assert_eq!(
                heard, LEAVES_PER_TURN,
                "who came after them was heard with or after them all"
            );
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(left.get(), several - 1);
            // And once more, when all was quiet.
            leave().await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn a_part_of_which_nobody_is_left_does_not_hold_the_rest_up() {
        let leaving = Rc::new(LeaveThrottle::default());
        let nobody = Context::from_waker(Waker::noop());
        for _ in 0..3 * LEAVES_PER_TURN {
            let _ = leaving.poll_turn(&nobody);
        }
        let (all, keeper) = (LocalSet::new(), leaving.clone());
        all.spawn_local(async move { keeper.run_throttle().await });
        all.run_until(async { poll_fn(|cx| leaving.poll_turn(cx)).await }).await;
    }
}
