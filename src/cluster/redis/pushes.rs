//! Messages from the subscribed connections of all servers, in one order, and subscriptions that a server ended. The
//! connections are made in `server.rs`; `reader.rs` decodes the messages.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::aio::AsyncPushSender;
use redis::{Msg, PushInfo, PushKind};
use tokio::sync::{Notify, mpsc};

use super::slots;
use crate::cluster::reply;

/// The number of a connection that listens, and what it pushed.
type NumberedPush = (u64, PushInfo);

/// The end of the queue that connections write to.
#[derive(Clone)]
pub(super) struct PushQueue {
    queue: mpsc::UnboundedSender<NumberedPush>,
    /// The number of the last connection, and how many pushes there were.
    counts: Arc<(AtomicU64, AtomicU64)>,
}

impl PushQueue {
    /// A new queue, and the end that it is read from.
    pub(super) fn open() -> (Self, mpsc::UnboundedReceiver<NumberedPush>) {
        let (queue, pushes) = mpsc::unbounded_channel();
        (Self { queue, counts: Arc::default() }, pushes)
    }

    /// The number of a new connection, and where it writes to.
    pub(super) fn for_connection(&self) -> (u64, impl AsyncPushSender + use<>) {
        let Self { queue, counts } = self.clone();
        // Relaxed: a number of its own, which orders nothing.
        let number = counts.0.fetch_add(1, Ordering::Relaxed);
        (number, move |push| {
            // Relaxed: the link's thread reads the count, and drives the connections too.
            counts.1.fetch_add(1, Ordering::Relaxed);
            queue.send((number, push))
        })
    }

    /// How many pushes there were.
    pub(super) fn pushed(&self) -> u64 {
        self.counts.1.load(Ordering::Relaxed) // Relaxed: as above.
    }
}

/// Connections and subscriptions that have ended, as the half that listens tells the half that writes.
#[derive(Default)]
pub(super) struct SlotMoves {
    /// The servers are those of a Redis Cluster, and one that ends is not the end of the link.
    pub(super) has_parts: bool,
    /// Connections that have ended.
    pub(super) ended: BTreeSet<u64>,
    /// Connections that are not listened to any more.
    pub(super) passed_over: BTreeSet<u64>,
    /// How many pushes have been handed out.
    pub(super) handed_out: u64,
    /// Wakes the half that writes.
    pub(super) woken: Arc<Notify>,
    /// Those that this node is ending, and how many times.
    /// Counted, for a topic may be left and joined again before the first end is confirmed.
    ending: HashMap<String, usize>,
    /// Slots whose topics are to be subscribed to anew, and of which all is to be said again.
    pub(super) moved: BTreeSet<u16>,
}

/// Everything that comes in on the connections that listen.
pub(super) struct PushStream {
    /// Pushes of all connections of the link.
    pushes: mpsc::UnboundedReceiver<NumberedPush>,
    /// How many were taken out.
    taken: u64,
    /// Slots whose subscriptions have ended because they moved.
    moves: Rc<RefCell<SlotMoves>>,
}

impl PushStream {
    /// The pushes of a link.
    pub(super) fn new(
        pushes: mpsc::UnboundedReceiver<NumberedPush>,
        moves: Rc<RefCell<SlotMoves>>,
    ) -> Self {
        Self { pushes, taken: 0, moves }
    }

    /// The next message of any connection; `None` once the connection to the only server has ended. Messages on one
    /// that breaks were lost: the writer goes on without that server.
    pub(super) async fn next_push(&mut self) -> Option<Msg> {
        loop {
            self.moves.borrow_mut().handed_out = self.taken;
            let (number, push) = self.pushes.recv().await?;
            self.taken += 1;
            if push.kind == PushKind::Disconnection {
                let mut moves = self.moves.borrow_mut();
                if !moves.has_parts {
                    return None;
                }
                moves.ended.insert(number);
                moves.woken.notify_one();
            } else if let Some(message) = self.read_push((number, push)) {
                return Some(message);
            }
        }
    }

    /// The next of those that have come in already.
    pub(super) fn next_waiting(&mut self) -> Option<Msg> {
        while let Ok(push) = self.pushes.try_recv() {
            if let Some(message) = self.read_push(push) {
                return Some(message);
            }
        }
        None
    }

    /// Reads a push. `None` for the end of a subscription, which is noted, and for pushes without a message.
    fn read_push(&self, (number, push): NumberedPush) -> Option<Msg> {
        if self.moves.borrow().passed_over.contains(&number) {
            return None;
        }
        if push.kind == PushKind::SUnsubscribe {
            // A push without a name unsubscribes from no topic that this node has.
            let name = push.data.first().and_then(reply::as_text).unwrap_or_default();
            self.moves.borrow_mut().note_ended(name);
            return None;
        }
        Msg::from_push_info(push)
    }
}

impl SlotMoves {
    /// A server is lost, with these slots: nothing that it says counts any more. Which ends of subscriptions are still
    /// on their way is not known, nor of other servers where the answers to one round are lost. An end too many looks
    /// like a slot that has moved, whose topics are subscribed to again.
    pub(super) fn note_lost(&mut self, number: u64, slots: &BTreeSet<u16>) {
        self.passed_over.insert(number);
        self.moved.retain(|slot| !slots.contains(slot));
        self.ending.clear();
    }

    /// This node ends a subscription.
    pub(super) fn note_ending(&mut self, name: &str) {
        *self.ending.entry(name.to_owned()).or_default() += 1;
    }

    /// A subscription has ended: if not by this node, because its slot is another server's.
    /// Redis ends subscriptions of a slot by itself when the slot moves.
    fn note_ended(&mut self, name: &str) {
        match self.ending.get_mut(name) {
            Some(1) => {
                self.ending.remove(name);
            }
            Some(times) => *times -= 1,
            None => {
                self.moved.insert(slots::of_name(name.as_bytes()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_that_this_node_did_not_end_has_moved() {
        let mut moves = SlotMoves::default();
        moves.note_ending("a");
        moves.note_ending("a");
        moves.note_ended("a");
        moves.note_ended("a");
        assert!(moves.moved.is_empty());
        moves.note_ended("a");
        assert_eq!(moves.moved, [slots::of_name(b"a")].into());
    }

    #[test]
    fn what_has_come_in_is_there_although_a_connection_has_ended() {
        let (queue, pushes) = PushQueue::open();
        let mut stream = PushStream::new(pushes, Rc::default());
        let word = |word: &str| redis::Value::BulkString(word.into());
        for kind in [PushKind::Disconnection, PushKind::SMessage] {
            let data = vec![word("topic"), word("text")];
            queue.for_connection().1.send(PushInfo { kind, data }).unwrap();
        }
        assert_eq!(stream.next_waiting().unwrap().get_payload_bytes(), b"text");
        assert!(stream.next_waiting().is_none());
    }

    #[tokio::test]
    async fn one_of_several_connections_that_ended_was_the_end_of_all() {
        let (queue, pushes) = PushQueue::open();
        let moves = Rc::new(RefCell::new(SlotMoves { has_parts: true, ..SlotMoves::default() }));
        let mut stream = PushStream::new(pushes, moves.clone());
        let ((first, lost), (second, other)) = (queue.for_connection(), queue.for_connection());
        assert_ne!(first, second);
        let word = |word: &str| redis::Value::BulkString(word.into());
        let message =
            |text| PushInfo { kind: PushKind::SMessage, data: vec![word("topic"), word(text)] };
        lost.send(PushInfo { kind: PushKind::Disconnection, data: Vec::new() }).unwrap();
        other.send(message("a")).unwrap();
        assert_eq!(stream.next_push().await.unwrap().get_payload_bytes(), b"a");
        assert_eq!(moves.borrow().ended, [first].into());
        assert_eq!((queue.pushed(), moves.borrow().handed_out), (2, 1), "a is being handed out");
        moves.borrow_mut().note_lost(first, &BTreeSet::new());
        lost.send(message("late")).unwrap();
        other.send(message("b")).unwrap();
        assert_eq!(stream.next_push().await.unwrap().get_payload_bytes(), b"b");
    }
}
