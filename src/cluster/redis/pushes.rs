//! Messages from the subscribed connections of all servers, in one order, and subscriptions that a server ended. The
//! connections are made in `server.rs`; `reader.rs` decodes the messages.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use redis::{Msg, PushInfo, PushKind};
use tokio::sync::mpsc;

use super::slots;
use crate::cluster::reply;

/// Subscriptions that have ended because their slot moved.
#[derive(Default)]
pub(super) struct SlotMoves {
    /// Those that this node is ending, and how many times.
    /// Counted, for a topic may be left and joined again before the first end is confirmed.
    ending: HashMap<String, usize>,
    /// Slots whose topics are to be subscribed to anew, and of which all is to be said again.
    pub(super) moved: BTreeSet<u16>,
}

/// Everything that comes in on the connections that listen.
pub(super) struct PushStream {
    /// Pushes of all connections of the link.
    pushes: mpsc::UnboundedReceiver<PushInfo>,
    /// Slots whose subscriptions have ended because they moved.
    moves: Rc<RefCell<SlotMoves>>,
}

impl PushStream {
    /// The pushes of a link.
    pub(super) fn new(
        pushes: mpsc::UnboundedReceiver<PushInfo>,
        moves: Rc<RefCell<SlotMoves>>,
    ) -> Self {
        Self { pushes, moves }
    }

    /// The next message of any connection; `None` once one has ended. One that breaks ends the link, since messages
    /// on it were lost.
    pub(super) async fn next_push(&mut self) -> Option<Msg> {
        loop {
            let push = self.pushes.recv().await?;
            if push.kind == PushKind::Disconnection {
                return None;
            }
            if let Some(message) = self.read_push(push) {
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
    fn read_push(&self, push: PushInfo) -> Option<Msg> {
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
        let (sender, pushes) = mpsc::unbounded_channel();
        let mut stream = PushStream::new(pushes, Rc::default());
        let word = |word: &str| redis::Value::BulkString(word.into());
        for kind in [PushKind::Disconnection, PushKind::SMessage] {
            let data = vec![word("topic"), word("text")];
            sender.send(PushInfo { kind, data }).unwrap();
        }
        assert_eq!(stream.next_waiting().unwrap().get_payload_bytes(), b"text");
        assert!(stream.next_waiting().is_none());
    }
}
