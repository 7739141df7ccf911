//! Requests to all other nodes and their pending confirmations. The caller waits for the last one; the link knows which
//! nodes there are.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use tokio::sync::oneshot;

/// Requests to all nodes that are not answered.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Numbers are this node's own; others answer with them.
    last: AtomicU64,
    /// Removed when answered or given up, so that a node that never answers leaves nothing.
    open: DashMap<u64, Unanswered>,
}

/// Answers may come before it is known who has to answer: requests travel on one topic, the list of nodes is read
/// from Redis.
#[derive(Debug)]
struct Unanswered {
    /// The nodes that have not answered, once it is known which there are.
    missing: Option<HashSet<String>>,
    /// Those that answered before that.
    early: HashSet<String>,
    /// Never sent on: dropping it is the message.
    _answered: oneshot::Sender<()>,
}

impl Requests {
    /// A new request's number, and what resolves, to an error, once all have answered.
    pub(super) fn open_request(&self) -> (u64, oneshot::Receiver<()>) {
        // Relaxed: uniqueness needs atomicity alone. Numbers begin at 1.
        let request = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answered, receiver) = oneshot::channel();
        let early = HashSet::new();
        self.open.insert(request, Unanswered { missing: None, early, _answered: answered });
        (request, receiver)
    }

    /// Sets the nodes that must confirm. If the request is repeated, only nodes that were named each time: later
    /// ones have nothing to do.
    pub(super) fn expect_nodes(&self, request: u64, mut nodes: HashSet<String>) {
        if let Some(mut one) = self.open.get_mut(&request) {
            nodes.retain(|node| !one.early.contains(node));
            match &mut one.missing {
                Some(missing) => missing.retain(|node| nodes.contains(node)),
                None => one.missing = Some(nodes),
            }
        }
        self.end_if_answered(request);
    }

    /// A node has answered.
    pub(super) fn note_answer(&self, request: u64, node: String) {
        if let Some(mut one) = self.open.get_mut(&request) {
            if let Some(missing) = &mut one.missing {
                missing.remove(&node);
            }
            // Kept even if the nodes are known: they may be said again, and it is not to be waited
            // for anew.
            one.early.insert(node);
        }
        self.end_if_answered(request);
    }

    /// Dropping the sender resolves the receiver.
    fn end_if_answered(&self, request: u64) {
        let is_answered = |one: &Unanswered| one.missing.as_ref().is_some_and(HashSet::is_empty);
        self.open.remove_if(&request, |_, one| is_answered(one));
    }

    /// Nobody waits any longer; how many have not answered, `None` where it is not known who there is.
    pub(super) fn give_up(&self, request: u64) -> Option<usize> {
        let (_, one) = self.open.remove(&request)?;
        one.missing.map(|missing| missing.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(all: &[&str]) -> HashSet<String> {
        all.iter().map(|&node| node.to_owned()).collect()
    }

    #[test]
    fn a_request_is_answered_once_all_have_whatever_came_first() {
        let requests = Requests::default();
        let (one, mut first) = requests.open_request();
        let (two, mut second) = requests.open_request();
        requests.note_answer(one, "a".to_owned());
        requests.expect_nodes(one, nodes(&["a", "b"]));
        requests.note_answer(two, "b".to_owned());
        assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        requests.note_answer(one, "b".to_owned());
        assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(second.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(requests.give_up(two), None, "nobody knows who there is");
        let (three, mut third) = requests.open_request();
        requests.expect_nodes(three, nodes(&[]));
        assert_eq!(third.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let (four, _fourth) = requests.open_request();
        requests.expect_nodes(four, nodes(&["a", "b"]));
        requests.expect_nodes(four, nodes(&["b", "c"]));
        assert_eq!(requests.give_up(four), Some(1));
        assert!(requests.open.is_empty());
    }
}
