//! Facts that wait to be processed, per app. Joins and leaves are kept as their sum, one change for each channel and
//! member, so a client that toggles leaves nothing. Apps take turns. `debounce.rs` decides which facts become events.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::app::{App, AppId, Webhook, WebhookEvent};
use crate::metrics::{HeldByApp, HeldBytes};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// Facts of one app that may wait, comings and goings aside.
/// Client events and counts; comings and goings are bounded by what there is.
const MAX_EVENTS: usize = 16_384;

/// Facts of one app that are looked at before it is another's turn.
const FACTS_PER_TURN: usize = 256;

/// Facts of one app up to which each begin and end is kept, so that a backend also learns of short visits. Of more,
/// only the sum is kept.
const MAX_KEPT_APART: usize = 1024;

/// Changes that came to nothing, of which so many may wait among the others.
const MAX_SETTLED: usize = 1024;

/// Bytes that are counted for a fact beside its texts: its place in the line, and in the table of changes.
const FACT_BYTES: usize = 96;

/// A channel, or a member of one.
pub(super) type FactSubject = (ChannelName, Option<UserId>);

/// Something that happened.
#[derive(Debug)]
pub enum Fact {
    /// A first subscriber came.
    Occupied(ChannelName),
    /// The last one went.
    Vacated(ChannelName),
    /// A user's first connection came.
    Joined(ChannelName, UserId),
    /// A user's last connection went.
    Left(ChannelName, UserId),
    /// Nothing was cached for a new subscriber.
    CacheMiss(ChannelName),
    /// This many subscribers there are.
    Count(ChannelName, usize),
    /// Boxed: it is much larger than the others, and rarer.
    ClientEvent(Box<Whisper>),
}

/// A client event.
#[derive(Debug)]
pub struct Whisper {
    /// Where it was sent.
    pub channel: ChannelName,
    /// `client-…`.
    pub event: String,
    /// The token of the data's JSON string.
    pub data: String,
    /// The sending connection.
    pub socket: SocketId,
    /// On presence channels.
    pub user: Option<UserId>,
}

impl Fact {
    /// A client event; `data` is the token of its JSON string.
    pub fn client_event(
        channel: &ChannelName,
        event: &str,
        data: &str,
        socket: SocketId,
        user: Option<UserId>,
    ) -> Self {
        let (channel, event, data) = (channel.clone(), event.to_owned(), data.to_owned());
        Self::ClientEvent(Box::new(Whisper { channel, event, data, socket, user }))
    }

    /// The events it may lead to.
    fn events(&self) -> &'static [WebhookEvent] {
        match self {
            // A pair, of which either may be wanted.
            Self::Occupied(_) | Self::Vacated(_) => {
                &[WebhookEvent::ChannelOccupied, WebhookEvent::ChannelVacated]
            }
            Self::Joined(..) | Self::Left(..) => {
                &[WebhookEvent::MemberAdded, WebhookEvent::MemberRemoved]
            }
            Self::CacheMiss(_) => &[WebhookEvent::CacheMiss],
            Self::Count(..) => &[WebhookEvent::SubscriptionCount],
            Self::ClientEvent(_) => &[WebhookEvent::ClientEvent],
        }
    }

    /// Whether a webhook of the app wants the event that it may lead to.
    pub fn is_asked_for(&self, app: &App) -> bool {
        let events = self.events();
        let asks = |webhook: &Webhook| webhook.events.iter().any(|event| events.contains(event));
        app.webhooks.iter().any(asks)
    }
}

/// One thing to look at.
#[derive(Debug)]
pub(super) enum Happening {
    /// Comings less goings.
    Change(FactSubject, i64),
    /// A fact that is neither a beginning nor an end.
    Event(Fact),
}

/// All that waits.
#[derive(Debug, Default)]
pub(super) struct FactQueue {
    waiting: Mutex<PendingFacts>,
    /// Wakes the thread that takes them.
    some: Notify,
    /// Memory counted by app.
    held: Arc<HeldByApp>,
}

/// Locked for a push or a share at a time.
#[derive(Debug, Default)]
struct PendingFacts {
    /// Apps with facts that wait.
    apps: HashMap<AppId, AppFacts>,
    /// Apps that have something, in the order of their turns.
    turns: VecDeque<AppId>,
}

/// The waiting facts of one app; removed when there are none.
#[derive(Debug)]
struct AppFacts {
    /// The app, as it was with the latest fact.
    app: Arc<App>,
    /// In the order in which it happened.
    order: VecDeque<NextFact>,
    /// Sums of comings and goings that stand in `order` once.
    changes: HashMap<FactSubject, i64>,
    /// Changes that have come to nothing.
    settled: usize,
    /// Those that are no comings and goings, for their bound.
    events: usize,
    /// The app's held memory.
    held: Arc<HeldBytes>,
}

/// One place in the order.
#[derive(Debug)]
enum NextFact {
    /// A coming or going by itself.
    Single(FactSubject, i64),
    /// As the changes have it.
    Change(FactSubject),
    Event(Fact),
}

/// Bytes counted for a waiting fact of a channel or member.
pub(super) fn subject_bytes(channel: &ChannelName, user: Option<&UserId>) -> usize {
    FACT_BYTES + channel.as_str().len() + user.map_or(0, |user| user.as_str().len())
}

impl NextFact {
    /// Bytes counted in `limits.memory`; the same when it is added and when it is removed.
    fn held_bytes(&self) -> usize {
        match self {
            Self::Single((channel, user), _) | Self::Change((channel, user)) => {
                subject_bytes(channel, user.as_ref())
            }
            Self::Event(Fact::ClientEvent(whisper)) => {
                let Whisper { channel, event, data, user, .. } = &**whisper;
                subject_bytes(channel, user.as_ref()) + event.len() + data.len()
            }
            Self::Event(_) => FACT_BYTES,
        }
    }
}

impl AppFacts {
    /// Nothing waits yet.
    fn new(app: Arc<App>, held: Arc<HeldBytes>) -> Self {
        let (order, changes) = (VecDeque::new(), HashMap::new());
        Self { app, order, changes, settled: 0, events: 0, held }
    }

    /// Counted, and last in the order.
    fn push(&mut self, next: NextFact) {
        self.held.add_bytes(next.held_bytes());
        self.order.push_back(next);
    }

    /// A coming or a going. Where few facts wait it has a place of its own, where many do one with
    /// all others of the same subject.
    fn change(&mut self, place: FactSubject, by: i64) {
        if self.order.len() < MAX_KEPT_APART {
            return self.push(NextFact::Single(place, by));
        }
        let Some(sum) = self.changes.get_mut(&place) else {
            self.push(NextFact::Change(place.clone()));
            self.changes.insert(place, by);
            return;
        };
        self.settled -= usize::from(*sum == 0);
        *sum += by;
        self.settled += usize::from(*sum == 0);
        if self.settled > MAX_SETTLED && self.settled > self.changes.len() / 2 {
            self.changes.retain(|_, sum| *sum != 0);
            self.settled = 0;
            let (changes, held) = (&self.changes, &self.held);
            self.order.retain(|next| {
                let stays = match next {
                    NextFact::Change(place) => changes.contains_key(place),
                    NextFact::Single(..) | NextFact::Event(_) => true,
                };
                held.sub_bytes(if stays { 0 } else { next.held_bytes() });
                stays
            });
            // Room that a flood has needed is given back.
            self.order.shrink_to(2 * self.order.len());
            let room = 2 * self.changes.len();
            self.changes.shrink_to(room);
        }
    }

    /// The first in the order.
    fn next(&mut self) -> Option<Happening> {
        let next = self.order.pop_front()?;
        self.held.sub_bytes(next.held_bytes());
        Some(match next {
            NextFact::Single(place, by) => Happening::Change(place, by),
            NextFact::Change(place) => {
                // The sum may have been taken already; then nothing has changed.
                let sum = self.changes.remove(&place).unwrap_or_default();
                self.settled -= usize::from(sum == 0);
                Happening::Change(place, sum)
            }
            NextFact::Event(fact) => {
                self.events -= 1;
                Happening::Event(fact)
            }
        })
    }
}

impl FactQueue {
    /// An empty one, whose bytes are counted in `held`.
    pub(super) fn new(held: Arc<HeldByApp>) -> Self {
        Self { held, ..Self::default() }
    }

    /// Leaves a fact; whether there was room for it. There always is for comings and goings, for they are no
    /// more than there are channels and members.
    pub(super) fn put(&self, app: &Arc<App>, fact: Fact) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let PendingFacts { apps, turns } = &mut *waiting;
        let of_app = apps.entry(app.id.clone()).or_insert_with(|| {
            turns.push_back(app.id.clone());
            AppFacts::new(app.clone(), self.held.of_app(&app.id))
        });
        if !Arc::ptr_eq(&of_app.app, app) {
            of_app.app = app.clone();
        }
        match fact {
            Fact::Occupied(channel) => of_app.change((channel, None), 1),
            Fact::Vacated(channel) => of_app.change((channel, None), -1),
            Fact::Joined(channel, user) => of_app.change((channel, Some(user)), 1),
            Fact::Left(channel, user) => of_app.change((channel, Some(user)), -1),
            _ if of_app.events >= MAX_EVENTS => return false,
            event => {
                of_app.events += 1;
                of_app.push(NextFact::Event(event));
            }
        }
        // Before the thread is woken, or it would wait for the lock.
        drop(waiting);
        self.some.notify_one();
        true
    }

    /// Waits until something is there.
    pub(super) async fn some(&self) {
        while self.waiting.lock().unwrap_or_else(PoisonError::into_inner).turns.is_empty() {
            self.some.notified().await;
        }
    }

    /// The share of the app whose turn it is.
    pub(super) fn take(&self) -> Option<(Arc<App>, Vec<Happening>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let id = waiting.turns.pop_front()?;
        let of_app = waiting.apps.get_mut(&id)?;
        let app = of_app.app.clone();
        let share: Vec<Happening> =
            std::iter::from_fn(|| of_app.next()).take(FACTS_PER_TURN).collect();
        if of_app.order.is_empty() {
            waiting.apps.remove(&id);
        } else {
            waiting.turns.push_back(id);
        }
        Some((app, share))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.apps.values().map(|of_app| of_app.order.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(number: usize) -> ChannelName {
        ChannelName::parse(&format!("c{number}"), 200).unwrap()
    }

    fn app(id: &str) -> Arc<App> {
        Arc::new(App::new(id, id, "s"))
    }

    #[test]
    fn who_toggles_without_end_leaves_one_change_at_most() {
        let (facts, app) = (FactQueue::default(), app("1"));
        for number in 0..100_000 {
            assert!(facts.put(&app, Fact::Occupied(channel(0))));
            assert!(facts.put(&app, Fact::Vacated(channel(0))));
            // Ever new ones, that come to nothing.
            assert!(facts.put(&app, Fact::Occupied(channel(number))));
            assert!(facts.put(&app, Fact::Vacated(channel(number))));
            assert!(facts.len() <= MAX_KEPT_APART + 2 * MAX_SETTLED, "{}", facts.len());
            assert!(facts.held.total() <= (facts.len() * 200) as u64, "{}", facts.held.total());
        }
        assert!(facts.put(&app, Fact::Occupied(channel(7))));
        let mut sums = HashMap::new();
        while let Some((_, share)) = facts.take() {
            for happened in share {
                let Happening::Change((name, _), by) = happened else { panic!("{happened:?}") };
                *sums.entry(name).or_insert(0) += by;
            }
        }
        let there = sums.iter().filter(|(_, sum)| **sum != 0).collect::<Vec<_>>();
        assert_eq!(there, [(&channel(7), &1)]);
        assert_eq!((facts.len(), facts.held.total()), (0, 0));
    }

    #[test]
    fn an_app_with_much_to_tell_does_not_hold_up_another() {
        let (facts, many, few) = (FactQueue::default(), app("1"), app("2"));
        for number in 0..10_000 {
            assert!(facts.put(&many, Fact::Occupied(channel(number))));
        }
        assert!(facts.put(&few, Fact::Occupied(channel(0))));
        let turns: Vec<_> = std::iter::from_fn(|| facts.take())
            .map(|(app, share)| (app.id.clone(), share.len()))
            .collect();
        let place = turns.iter().position(|(id, _)| *id == few.id);
        assert_eq!(place, Some(1), "right behind the first share");
        assert_eq!(turns.iter().map(|(_, share)| share).sum::<usize>(), 10_001);
        let misses = (0..2 * MAX_EVENTS).map(|_| facts.put(&many, Fact::CacheMiss(channel(0))));
        assert_eq!(misses.filter(|taken| *taken).count(), MAX_EVENTS);
        assert!(facts.put(&few, Fact::CacheMiss(channel(0))), "its room is its own");
    }
}
