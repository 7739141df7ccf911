//! Lists of an app's channels as JSON, written directly from the directory. Long ones are built on a separate thread,
//! so that workers do not stall: identical concurrent requests share one list, and apps take turns.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use rustix::process::setpriority_process;
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::debug;

use crate::app::AppId;
use crate::hub::directory::{Directory, Occupancy};
use crate::node::ServerState;
use crate::protocol::channel::ChannelName;

/// Channels up to which a list is made where it is asked for, in less than a millisecond.
/// Above that the request waits for the thread, and the worker serves others meanwhile.
const LISTED_AT_ONCE: usize = 1000;

/// How much less than a worker's the thread's work matters.
/// Workers come first where there are no more cores than workers.
const NICENESS: i32 = 10;

/// The facts that a list has of each channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ListFields {
    /// `user_count`, of presence channels alone.
    pub users: bool,
    /// `subscription_count`.
    pub subscriptions: bool,
}

/// Which list.
/// Two that are equal get one list, made once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListQuery {
    /// The app whose channels are listed.
    pub app: AppId,
    /// The prefix of the channels' names.
    pub prefix: String,
    /// The facts to list for each channel.
    pub shown: ListFields,
}

/// The door to the thread.
#[derive(Debug, Clone)]
pub struct ChannelLists(Sender<ListRequest>);

/// One list to be made.
/// Answered by the thread, or never if that is gone.
#[derive(Debug)]
struct ListRequest {
    wanted: ListQuery,
    /// Where it is found.
    source: ListSource,
    /// Gets the list, unless the requester has gone.
    answer: oneshot::Sender<Bytes>,
}

/// Where its channels are found.
#[derive(Debug)]
enum ListSource {
    /// Read when it is this list's turn, so that it is as new as can be.
    Here(Arc<Directory>),
    /// These are those of all nodes.
    Known(Vec<(ChannelName, Occupancy)>),
}

/// A list, or when it will be there.
pub(super) enum ChannelList {
    /// There were few.
    Made(Bytes),
    /// There are many; the thread sends it.
    Awaited(oneshot::Receiver<Bytes>),
}

impl ChannelLists {
    /// Starts the thread. It ends with the last door to it.
    pub fn start(shared: Arc<ServerState>) -> io::Result<Self> {
        let (door, orders) = channel();
        std::thread::Builder::new().name("lists".to_owned()).spawn(move || {
            // Of this thread alone, as Linux has it.
            if let Err(error) = setpriority_process(None, NICENESS) {
                debug!(%error, "lists matter as much as workers");
            }
            make_all(&orders, &shared);
        })?;
        Ok(Self(door))
    }

    /// The list of the channels here; at once where they are few.
    pub(super) fn of_here(
        &self,
        shared: &ServerState,
        wanted: ListQuery,
        directory: &Arc<Directory>,
    ) -> ChannelList {
        if directory.totals().channels <= LISTED_AT_ONCE {
            return ChannelList::Made(write(
                &channels_of(shared, &wanted, directory),
                wanted.shown,
            ));
        }
        self.order(wanted, ListSource::Here(directory.clone()))
    }

    /// The list of channels that are known.
    pub(super) fn of(
        &self,
        wanted: ListQuery,
        channels: Vec<(ChannelName, Occupancy)>,
    ) -> ChannelList {
        if channels.len() <= LISTED_AT_ONCE {
            return ChannelList::Made(write(&channels, wanted.shown));
        }
        self.order(wanted, ListSource::Known(channels))
    }

    /// Never blocks: the queue has no end, and each waiting request stands for one entry.
    fn order(&self, wanted: ListQuery, source: ListSource) -> ChannelList {
        let (answer, awaited) = oneshot::channel();
        // If the thread has ended, the dropped sender tells the requester.
        let _ = self.0.send(ListRequest { wanted, source, answer });
        ChannelList::Awaited(awaited)
    }
}

/// Builds lists until all senders are gone. Apps take turns, so that one with a million channels and many requests
/// does not delay the rest.
fn make_all(orders: &Receiver<ListRequest>, shared: &ServerState) {
    let mut apps: VecDeque<VecDeque<ListRequest>> = VecDeque::new();
    loop {
        if apps.is_empty() {
            let Ok(first) = orders.recv() else { return };
            queue(&mut apps, first);
        }
        // Collects the orders that arrived meanwhile, so that one list answers all requests for it.
        orders.try_iter().for_each(|order| queue(&mut apps, order));
        // One list of each app in its turn.
        let Some(mut app) = apps.pop_front() else { continue };
        if let Some(order) = app.pop_front() {
            make(order, &mut app, shared);
        }
        if !app.is_empty() {
            apps.push_back(app);
        }
    }
}

/// Puts an order to those of its app.
/// A new app comes last.
fn queue(apps: &mut VecDeque<VecDeque<ListRequest>>, order: ListRequest) {
    let is_same = |app: &VecDeque<ListRequest>| {
        app.front().is_some_and(|other| other.wanted.app == order.wanted.app)
    };
    match apps.iter().position(is_same).and_then(|at| apps.get_mut(at)) {
        Some(app) => app.push_back(order),
        None => apps.push_back(VecDeque::from([order])),
    }
}

/// Builds one list for all requests that want the same. Only requests from before it was begun share it: later ones
/// get a newer list.
fn make(order: ListRequest, others: &mut VecDeque<ListRequest>, shared: &ServerState) {
    let ListRequest { wanted, source, answer } = order;
    let channels = match source {
        ListSource::Known(channels) => {
            // Fails only if the requester has gone.
            let _ = answer.send(write(&channels, wanted.shown));
            return;
        }
        ListSource::Here(directory) => channels_of(shared, &wanted, &directory),
    };
    let list = write(&channels, wanted.shown);
    // The request may have been cancelled meanwhile; the list is still good for the others.
    let _ = answer.send(list.clone());
    let all = std::mem::take(others);
    for other in all {
        if matches!(other.source, ListSource::Here(_)) && other.wanted == wanted {
            // Requests for the same list share one, so that a crowd of them costs one walk.
            let _ = other.answer.send(list.clone());
        } else {
            others.push_back(other);
        }
    }
}

/// The channels of one list, read off the directory now.
fn channels_of(
    shared: &ServerState,
    wanted: &ListQuery,
    directory: &Directory,
) -> Vec<(ChannelName, Occupancy)> {
    shared.occupied_channels(&wanted.app, directory, &wanted.prefix, wanted.shown.users)
}

/// `{"channels":{name:{…}}}`.
/// Names need no escape but those of users' own channels; numbers are written as they are. One allocation, of about
/// the size that is needed.
fn write(channels: &[(ChannelName, Occupancy)], shown: ListFields) -> Bytes {
    let names: usize = channels.iter().map(|(name, _)| name.as_str().len() + 8).sum();
    let counts = usize::from(shown.users) * 18 + usize::from(shown.subscriptions) * 26;
    let mut text = String::with_capacity(16 + names + channels.len() * counts);
    text.push_str("{\"channels\":{");
    for (at, (name, occupancy)) in channels.iter().enumerate() {
        text.push_str(if at == 0 { "" } else { "," });
        // Only those of users, whose ids are anything, may need to be escaped.
        match name.own_user() {
            None => text.extend(["\"", name.as_str(), "\""]),
            Some(_) => text.push_str(&Value::from(name.as_str()).to_string()),
        }
        text.push_str(":{");
        // To a string nothing fails to be written.
        if shown.subscriptions {
            let _ = write!(text, "\"subscription_count\":{}", occupancy.subscriptions);
        }
        if shown.users {
            let comma = if shown.subscriptions { "," } else { "" };
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{comma}\"user_count\":{}", occupancy.users);
        }
        text.push('}');
    }
    text.push_str("}}");
    text.into()
}
