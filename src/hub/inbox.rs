//! What others ask of a worker. Anyone puts orders in; the worker takes them all at once, so that it is
//! woken once however many there are, and what has gathered meanwhile is done in one turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

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

/// One worker's orders.
#[derive(Debug, Default)]
pub struct Inbox {
    orders: Mutex<QueuedTasks>,
    wake: Notify,
    pub turns: TurnTimes,
}

#[derive(Debug, Default)]
struct QueuedTasks {
    orders: Vec<WorkerTask>,
    /// When the first of them came.
    since: Option<Instant>,
}

/// One thing to do.
#[derive(Debug)]
pub enum WorkerTask {
    Deliver(Delivery),
    /// The same of an event that somebody follows.
    DeliverTraced(Box<TracedDelivery>),
    /// Close every connection of the user, signed in or present, that was made before it was asked, by
    /// `Hub::centis_since_start`.
    CloseUser {
        directory: Arc<Directory>,
        user: UserId,
        asked: u32,
        why: Error,
    },
    /// Close some channels to each of them.
    Withdraw {
        directory: Arc<Directory>,
        user: UserId,
        asked: u32,
        withdrawal: Withdrawal,
    },
    /// A connection that waited for its subscription may go on, or is refused.
    Resume {
        place: ConnectionRef,
        admitted: bool,
    },
    /// What the client of a connection has missed of a channel.
    Replay {
        place: ConnectionRef,
        replayed: Box<Replayed>,
    },
    /// Close one connection, and say why.
    CloseOne {
        place: ConnectionRef,
        why: Error,
    },
    /// Give one connection a frame.
    Tell {
        place: ConnectionRef,
        frame: Bytes,
    },
    /// Say which sockets there are.
    Describe(Box<DescribeTask>),
    /// A request has come for the HTTP session there.
    Arrive {
        place: ConnectionRef,
        arrival: Box<SessionRequest>,
    },
    /// One has come for the session of Engine.IO there.
    #[cfg(feature = "socketio")]
    ArriveByEngine {
        place: ConnectionRef,
        arrival: Box<EngineRequest>,
    },
}

/// A frame for the worker's subscribers of one channel.
#[derive(Debug)]
pub struct Delivery {
    pub channel: ChannelHandle,
    pub frame: Bytes,
    /// Its other form, where it may be compressed.
    pub deflated: Option<Arc<DeflatedEvent>>,
    /// Whoever sent it does not get it back.
    pub except: Option<SocketId>,
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

/// The delivery of an event that somebody follows.
#[derive(Debug)]
pub struct TracedDelivery {
    pub delivery: Delivery,
    pub trace: Trace,
}

impl Inbox {
    pub fn put_task(&self, order: WorkerTask) {
        let mut waiting = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.orders.push(order);
        let first = waiting.orders.len() == 1;
        if first {
            waiting.since = Some(Instant::now());
        }
        drop(waiting);
        if first {
            self.wake.notify_one();
        }
    }

    /// Waits until there may be orders.
    pub async fn wait_woken(&self) {
        self.wake.notified().await;
    }

    /// Swaps what has come for `empty`; when the first of it came.
    pub fn take_tasks(&self, empty: &mut Vec<WorkerTask>) -> Option<Instant> {
        let mut waiting = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.orders, empty);
        waiting.since.take()
    }

    /// Orders that wait.
    pub fn depth(&self) -> usize {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).orders.len()
    }
}
