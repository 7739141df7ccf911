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
        let is_notice = order.is_notice();
        let mut waiting = self.lock();
        let first = waiting.orders.is_empty();
        waiting.orders.push(order);
        let is_first_urgent = !is_notice && waiting.since.is_none();
        if is_first_urgent {
            waiting.since = Some(Instant::now());
        }
        drop(waiting);
        if first || is_first_urgent {
            self.wake.notify_one();
        }
    }

    /// Waits until there may be orders. Where members came or went a moment ago, those that come next wait for each
    /// other, or for the first order of another kind.
    pub async fn wait_woken(&self) {
        self.wake.notified().await;
        // Not in the condition itself, which would keep the lock across the wait.
        let due = self.lock().notices_due.take();
        let Some(due) = due else { return };
        let mut pause = std::pin::pin!(time::sleep_until(due));
        while !self.has_urgent() {
            tokio::select! {
                () = &mut pause => break,
                () = self.wake.notified() => {}
            }
        }
    }

    /// Whether a task waits that is no notice.
    fn has_urgent(&self) -> bool {
        self.lock().since.is_some()
    }

    /// The queue. A poisoned lock is used on: a push cannot leave it half-done.
    fn lock(&self) -> MutexGuard<'_, QueuedTasks> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps what has come for `empty`; when the first of it came, or was no longer to wait.
    pub fn take_tasks(&self, empty: &mut Vec<WorkerTask>) -> Option<Instant> {
        let mut waiting = self.lock();
        std::mem::swap(&mut waiting.orders, empty);
        if empty.iter().any(WorkerTask::is_notice) {
            waiting.notices_due = Some(time::Instant::now() + NOTICE_PAUSE);
        }
        waiting.since.take().or_else(|| (!empty.is_empty()).then(Instant::now))
    }

    /// Orders that wait.
    pub fn depth(&self) -> usize {
        self.lock().orders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(history: Sequence) -> WorkerTask {
        let channel = ChannelHandle { slot: 0, generation: 0 };
        let (frame, deflated, except) = (Bytes::new(), None, None);
        WorkerTask::Deliver(Delivery { channel, frame, deflated, except, history, number: 0 })
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
                inbox.wait_woken().await;
                begun.elapsed().as_millis()
            };
            tokio::join!(waited, more).0
        };
        // The first is told of at once, and those that come next together.
        assert_eq!(wait(0, None).await, 0);
        assert!(inbox.take_tasks(&mut taken).is_some() && taken.len() == 1);
        taken.clear();
        assert!((4..=5).contains(&wait(2, Some(order(Sequence::Presence(2)))).await));
        assert!(inbox.take_tasks(&mut taken).is_some() && taken.len() == 2);
        for urgent in [order(Sequence::None), order(Sequence::Cache(1))] {
            taken.clear();
            assert_eq!(wait(2, Some(urgent)).await, 2);
            assert!(inbox.take_tasks(&mut taken).is_some() && taken.len() == 2);
        }
        assert!(inbox.take_tasks(&mut Vec::new()).is_none());
    }
}
