//! Tasks for a worker. Any thread may add some; the worker takes all of them at once, so it is woken once however many
//! there are, and handles them in one turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time;

use super::deflated::DeflatedEvent;
use super::described::DescribeTask;
use super::directory::Directory;
use super::handles::{ChannelHandle, ConnectionRef, Sequence};
use super::http_stream::SessionRequest;
use super::resume::Replayed;
#[cfg(feature = "socketio")]
use super::stream::engine::EngineRequest;
use super::withdrawal::Withdrawal;
use crate::metrics::TurnTimes;
use crate::protocol::error::Error;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// The pause between two notices of members. If many join one by one, each notice would otherwise cost a write to
/// every member.
const NOTICE_PAUSE: Duration = Duration::from_millis(5);

/// One worker's orders.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Tasks that the worker has not taken yet.
    orders: Mutex<QueuedTasks>,
    wake: Notify,
    /// How long turns take, and when the last one ended.
    pub turns: TurnTimes,
}

/// The tasks, and since when they wait.
#[derive(Debug, Default)]
struct QueuedTasks {
    /// In the order in which they were put in.
    orders: Vec<WorkerTask>,
    /// When the first of them came that does not wait for others.
    since: Option<Instant>,
    /// One of those is for few connections.
    is_pressing: bool,
    /// How many are events for crowds.
    for_crowds: usize,
    /// Until when notices wait for others of their kind.
    notices_due: Option<time::Instant>,
}

/// One thing to do.
#[derive(Debug)]
pub enum WorkerTask {
    /// Deliver a frame to a channel's subscribers here.
    Deliver(Delivery),
    /// The same for a traced event.
    DeliverTraced(Box<TracedDelivery>),
    /// Close every connection of the user, signed in or present, that was made before it was asked, by
    /// `Hub::nanos_since_start`.
    CloseUser { directory: Arc<Directory>, user: UserId, asked: u64, why: Error },
    /// Close some channels to each of them.
    Withdraw { directory: Arc<Directory>, user: UserId, asked: u64, withdrawal: Withdrawal },
    /// A connection that waited for its subscription may go on, or is refused.
    Resume { place: ConnectionRef, admitted: bool },
    /// Events that a resumed client has missed.
    Replay { place: ConnectionRef, replayed: Box<Replayed> },
    /// Close one connection, and say why.
    CloseOne { place: ConnectionRef, why: Error },
    /// Give one connection a frame.
    Tell { place: ConnectionRef, frame: Bytes },
    /// Say which sockets there are.
    Describe(Box<DescribeTask>),
    /// A request has come for the HTTP session there.
    Arrive { place: ConnectionRef, arrival: Box<SessionRequest> },
    /// One has come for the session of Engine.IO there.
    #[cfg(feature = "socketio")]
    ArriveByEngine { place: ConnectionRef, arrival: Box<EngineRequest> },
}

impl WorkerTask {
    /// Whether it announces members, which may wait a moment for more of the kind.
    pub(super) fn is_notice(&self) -> bool {
        matches!(self, Self::Deliver(Delivery { history: Sequence::Presence(_), .. }))
    }

    /// Whether it may wait for more of the kind while many come: alone it costs as many writes as with others.
    fn is_for_crowd(&self) -> bool {
        matches!(self, Self::Deliver(Delivery { is_for_crowd: true, .. }))
    }
}

/// A frame for the worker's subscribers of one channel.
#[derive(Debug)]
pub struct Delivery {
    pub channel: ChannelHandle,
    pub frame: Bytes,
    /// Its other form, where it may be compressed.
    pub deflated: Option<Arc<DeflatedEvent>>,
    /// The connection that sent it does not get it.
    pub except: Option<SocketId>,
    /// The frame's place in the channel's history.
    pub history: Sequence,
    /// Its place in the channel's log for clients that come back; 0: it is in none.
    pub number: u64,
    /// The worker has more subscribers of the channel than it writes to at once, and others have some, too.
    pub is_for_crowd: bool,
}

impl Delivery {
    /// Their frames in one piece.
    pub(super) fn join_frames(run: &[Self]) -> Bytes {
        let mut all = BytesMut::with_capacity(run.iter().map(|one| one.frame.len()).sum());
        for one in run {
            all.extend_from_slice(&one.frame);
        }
        all.freeze()
    }
}

/// The delivery of a traced event.
#[derive(Debug)]
pub struct TracedDelivery {
    pub delivery: Delivery,
    pub trace: Trace,
}

impl Inbox {
    /// Adds a task, and wakes the worker unless it is awake or the task may wait.
    pub fn put_task(&self, order: WorkerTask) {
        let (is_notice, is_for_crowd) = (order.is_notice(), order.is_for_crowd());
        let mut waiting = self.lock();
        let first = waiting.orders.is_empty();
        waiting.orders.push(order);
        let is_first_urgent = !is_notice && waiting.since.is_none();
        if is_first_urgent {
            waiting.since = Some(Instant::now());
        }
        let is_first_pressing = !is_notice && !is_for_crowd && !waiting.is_pressing;
        waiting.is_pressing |= is_first_pressing;
        waiting.for_crowds += usize::from(is_for_crowd);
        drop(waiting);
        if first || is_first_urgent || is_first_pressing {
            self.wake.notify_one();
        }
    }

    /// Waits until there may be orders. Shortly after notices of members, further ones wait for each other, or for the
    /// first order of another kind. Events for crowds wait until `rest`, or for the first order that is not for a crowd.
    pub async fn wait_woken(&self, rest: Option<Instant>) {
        self.wake.notified().await;
        // Not in the condition itself, which would keep the lock across the wait.
        let notices_due = self.lock().notices_due.take();
        let rest = rest.map(time::Instant::from_std);
        while let Some(due) = self.due(notices_due, rest) {
            tokio::select! {
                () = time::sleep_until(due) => break,
                () = self.wake.notified() => {}
            }
        }
    }

    /// Until when all orders wait for others of their kind; `None` if one of them does not wait.
    fn due(
        &self,
        notices_due: Option<time::Instant>,
        rest: Option<time::Instant>,
    ) -> Option<time::Instant> {
        let waiting = self.lock();
        match waiting.since {
            Some(_) if waiting.is_pressing => None,
            Some(_) => rest,
            None => notices_due,
        }
    }

    /// The queue. A poisoned lock is used on: a push cannot leave it half-done.
    fn lock(&self) -> MutexGuard<'_, QueuedTasks> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps what has come for `empty`; when the first of it came, or was no longer to wait, and how many were events
    /// for crowds.
    pub fn take_tasks(&self, empty: &mut Vec<WorkerTask>) -> (Option<Instant>, usize) {
        let mut waiting = self.lock();
        std::mem::swap(&mut waiting.orders, empty);
        if empty.iter().any(WorkerTask::is_notice) {
            waiting.notices_due = Some(time::Instant::now() + NOTICE_PAUSE);
        }
        waiting.is_pressing = false;
        let since = waiting.since.take().or_else(|| (!empty.is_empty()).then(Instant::now));
        (since, std::mem::take(&mut waiting.for_crowds))
    }

    /// Orders that wait.
    pub fn depth(&self) -> usize {
        self.lock().orders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an event for a crowd.
    const CROWD: Sequence = Sequence::Cache(u64::MAX);

    fn order(history: Sequence) -> WorkerTask {
        let channel = ChannelHandle { slot: 0, generation: 0 };
        let (frame, deflated, except) = (Bytes::new(), None, None);
        let (number, is_for_crowd) = (0, history == CROWD);
        WorkerTask::Deliver(Delivery {
            channel,
            frame,
            deflated,
            except,
            history,
            number,
            is_for_crowd,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn notices_wait_for_each_other_and_for_nothing_else() {
        let (inbox, mut taken) = (Inbox::default(), Vec::new());
        let wait = async |after: u64, more: Option<WorkerTask>| {
            inbox.put_task(order(Sequence::Presence(1)));
            let begun = time::Instant::now();
            let more = async {
                time::sleep(Duration::from_millis(after)).await;
                more.into_iter().for_each(|task| inbox.put_task(task));
            };
            let waited = async {
                inbox.wait_woken(None).await;
                begun.elapsed().as_millis()
            };
            tokio::join!(waited, more).0
        };
        // The first is told of at once, and those that come next together.
        assert_eq!(wait(0, None).await, 0);
        assert!(inbox.take_tasks(&mut taken).0.is_some() && taken.len() == 1);
        taken.clear();
        assert!((4..=5).contains(&wait(2, Some(order(Sequence::Presence(2)))).await));
        assert!(inbox.take_tasks(&mut taken).0.is_some() && taken.len() == 2);
        for urgent in [order(Sequence::None), order(Sequence::Cache(1))] {
            taken.clear();
            assert_eq!(wait(2, Some(urgent)).await, 2);
            assert!(inbox.take_tasks(&mut taken).0.is_some() && taken.len() == 2);
        }
        assert!(inbox.take_tasks(&mut Vec::new()).0.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_for_a_crowd_waits_for_more_and_not_beside_what_is_for_few() {
        let inbox = Inbox::default();
        let wait = async |first: WorkerTask, rest: u64, more: Option<WorkerTask>| {
            let begun = time::Instant::now();
            inbox.put_task(first);
            let more = async {
                time::sleep(Duration::from_millis(2)).await;
                more.into_iter().for_each(|task| inbox.put_task(task));
            };
            let waited = async {
                let rest = begun + Duration::from_millis(rest);
                inbox.wait_woken(Some(rest.into_std())).await;
                begun.elapsed().as_millis()
            };
            let waited = tokio::join!(waited, more).0;
            inbox.take_tasks(&mut Vec::new());
            waited
        };
        assert_eq!(wait(order(CROWD), 5, Some(order(CROWD))).await, 5);
        assert_eq!(wait(order(CROWD), 5, Some(order(Sequence::None))).await, 2);
        assert_eq!(wait(order(Sequence::None), 5, Some(order(CROWD))).await, 0);
        assert_eq!(wait(order(CROWD), 0, None).await, 0);
    }
}
