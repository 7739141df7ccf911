//! Events and requests, as the judge knows them: who owes what to whom, and what nobody may hear.
//! The events that each subscriber did hear are in its view (`tab.rs`).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// All that was published, numbered; the number is the event's data.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    publications: Vec<Publication>,
    /// Publications before this number are owed to nobody any more.
    settled: usize,
    terminations: Vec<Termination>,
}

#[derive(Clone, Debug)]
pub struct Publication {
    /// The node's key, or the socket id of a whisper's sender: what comes from one comes in order.
    pub by: String,
    pub channels: Vec<String>,
    /// The socket id that is not to hear it.
    pub except: Option<String>,
    pub begun: Instant,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not answered yet.
    Pending,
    /// Everybody must hear it.
    Taken,
    /// Nobody may hear it.
    Refused,
    /// It may be heard or not.
    Unknown,
}

/// A user's connections that were to be closed.
#[derive(Clone, Debug)]
pub struct Termination {
    /// The node's key.
    pub by: String,
    pub begun: Instant,
    pub user: String,
    /// Socket ids of the connections that were the user's when it was asked.
    pub victims: Vec<String>,
    pub outcome: Outcome,
}

impl Publication {
    /// Whether it was said by a client, and so is never kept.
    pub fn is_whisper(&self) -> bool {
        self.except.as_ref() == Some(&self.by)
    }
}

impl Ledger {
    /// Its number.
    pub fn publish(&self, by: &str, channels: &[String], except: Option<String>) -> usize {
        let mut state = self.state.lock().unwrap();
        let (by, channels) = (by.to_owned(), channels.to_vec());
        let (begun, outcome) = (Instant::now(), Outcome::Pending);
        state.publications.push(Publication { by, channels, except, begun, outcome });
        state.publications.len() - 1
    }

    pub fn answer(&self, number: usize, outcome: Outcome) {
        let publication = &mut self.state.lock().unwrap().publications[number];
        if publication.outcome != Outcome::Unknown {
            publication.outcome = outcome;
        }
    }

    pub fn terminate(&self, by: &str, user: &str, victims: Vec<String>) -> usize {
        let terminations = &mut self.state.lock().unwrap().terminations;
        let (by, user) = (by.to_owned(), user.to_owned());
        let (begun, outcome) = (Instant::now(), Outcome::Pending);
        terminations.push(Termination { by, begun, user, victims, outcome });
        terminations.len() - 1
    }

    pub fn answer_termination(&self, number: usize, outcome: Outcome) {
        let termination = &mut self.state.lock().unwrap().terminations[number];
        // It may have been settled meanwhile.
        if termination.outcome == Outcome::Pending {
            termination.outcome = outcome;
        }
    }

    /// Of what this one published since `since`, nothing is owed: it was killed, and took with it what it had
    /// answered and not passed on yet.
    pub fn excuse(&self, by: &str, since: Instant) {
        let mut state = self.state.lock().unwrap();
        let of = state.publications.iter_mut().rev().take_while(|one| one.begun >= since);
        of.filter(|one| one.by == by).for_each(|one| one.outcome = Outcome::Unknown);
        let of = state.terminations.iter_mut().filter(|one| one.by == by && one.begun >= since);
        of.for_each(|one| one.outcome = Outcome::Unknown);
    }

    /// Nothing that was published so far is owed any more.
    pub fn settle(&self) {
        let mut state = self.state.lock().unwrap();
        state.settled = state.publications.len();
        state.terminations.iter_mut().for_each(|one| one.outcome = Outcome::Unknown);
    }

    pub fn terminations(&self) -> Vec<Termination> {
        self.state.lock().unwrap().terminations.clone()
    }

    /// Those that are not settled, with their numbers, and all that were before them by `of_old`.
    pub fn owed(&self) -> BTreeMap<usize, Publication> {
        let state = self.state.lock().unwrap();
        let open = state.publications.iter().enumerate().skip(state.settled);
        open.map(|(number, publication)| (number, publication.clone())).collect()
    }

    /// Any publication that there ever was.
    pub fn find(&self, number: usize) -> Option<Publication> {
        self.state.lock().unwrap().publications.get(number).cloned()
    }
}
