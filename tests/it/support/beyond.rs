//! One of several nodes without Redis: what is on its way to and from it, and how it hears what comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{SystemTime, UNIX_EPOCH};

use fanfare::app::App;
use fanfare::cluster::Topic;
use fanfare::cluster::envelope::{Envelope, EnvelopeBody};
use fanfare::cluster::link::{LinkDriver, LinkEvent, LinkRequest, OfflineFallback, OutgoingEvent};

use super::kept_holds::Hold;
use super::memory::Memory;

/// A node, and what is on its way to and from it.
pub struct Beyond {
    pub memory: Memory,
    pub number: u64,
    pub(super) far: LinkDriver,
    /// What it holds members by; each link has one of its own.
    pub(super) lease: u64,
    /// Those that it had before.
    pub(super) old: Vec<u64>,
    pub(super) is_cut: bool,
    /// Nothing is taken from it or brought to it.
    pub(super) is_asleep: bool,
    /// What becomes of its next order.
    pub(super) fate: OrderFate,
    pub(super) subscribed: BTreeSet<Topic>,
    /// Topics that are subscribed to and have not been read yet, and whether they were before.
    pub(super) unread: VecDeque<(Topic, bool)>,
    /// What was published on its topics, and answers to its orders.
    pub(super) published: VecDeque<(Topic, Sent)>,
    pub(super) answers: VecDeque<Answer>,
    /// What came in on topics that have been subscribed to and not handed out.
    pub(super) opening: BTreeMap<Topic, Vec<Sent>>,
    pub(super) arrivals: VecDeque<LinkEvent>,
    /// What all nodes were told while its link was cut.
    pub(super) orders: Vec<LinkEvent>,
    /// What others have asked of it, until it is done.
    pub(super) asked: Vec<Pin<Box<dyn Future<Output = Option<OutgoingEvent>>>>>,
    /// How much of each topic's log was handed on.
    pub(super) heard: BTreeMap<Topic, usize>,
    /// The last serial of its own that its subscribers got on each without Redis.
    pub(super) alone: BTreeMap<Topic, u64>,
    /// The events of others that it has heard on each, by sender and serial.
    pub(super) known: BTreeMap<Topic, BTreeSet<(u64, u64)>>,
    /// What it published and Redis has taken since all was settled, with its versions; and whether Redis may have lost
    /// that, and is to be told again.
    pub(super) recent: Vec<(u64, OutgoingEvent, u64)>,
    pub(super) is_doubtful: bool,
    /// What it has to say again since its link is made anew, before anything else.
    pub(super) again: VecDeque<LinkRequest>,
    /// Sums that it is to tell, each with its version; and the topics of those that it has not told yet.
    pub(super) sums: VecDeque<(Topic, u64, usize)>,
    pub(super) untold: BTreeSet<Topic>,
    /// What it has for webhooks.
    pub(super) holds: BTreeSet<Hold>,
    pub(super) serial: u64,
    /// What it published while its link was cut.
    pub(super) held: VecDeque<(u64, OutgoingEvent)>,
    /// Its cached events that have not come back, and those that its subscribers have without that.
    pub(super) flying: Vec<(u64, OutgoingEvent)>,
    pub(super) delivered: BTreeSet<u64>,
}

/// What becomes of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrderFate {
    Done,
    /// The answer is an error, and nothing was done.
    Refused,
    /// It was done, and the link is lost before the answer comes.
    Unanswered,
}

/// Something that was published; for what is in the channel's log, where.
pub(super) type Sent = (Option<usize>, Envelope);

/// What comes of an order, behind what was missed on the topic before.
pub(super) struct Answer {
    pub(super) missed: Vec<Sent>,
    pub(super) arrival: LinkEvent,
    /// Up to which serial it has what the node has published there, where the topic is new.
    pub(super) has_own: Option<u64>,
    /// The cached event that was read, by its sender and serial.
    pub(super) known: Option<(u64, u64)>,
}

impl Beyond {
    pub(super) fn new(number: u64, change: fn(&mut App)) -> Self {
        let (memory, far) = Memory::of_several(number, change);
        far.go_up();
        let (subscribed, opening, heard, delivered, holds) = Default::default();
        let (alone, known, recent, sums, untold) = Default::default();
        let (unread, published, answers, arrivals) = Default::default();
        let (old, again, held, flying, orders, asked) = Default::default();
        Self {
            memory,
            number,
            far,
            lease: number,
            old,
            is_cut: false,
            is_asleep: false,
            fate: OrderFate::Done,
            subscribed,
            unread,
            published,
            answers,
            opening,
            arrivals,
            orders,
            asked,
            heard,
            alone,
            known,
            recent,
            is_doubtful: false,
            again,
            sums,
            untold,
            holds,
            serial: 0,
            held,
            flying,
            delivered,
        }
    }

    /// Takes what one arrival says, in a runtime's context.
    pub(super) fn take(&mut self, arrival: LinkEvent) {
        let shared = &self.memory.shared;
        let asked = shared.receive_event(shared.scope.others().unwrap(), arrival);
        if let Some(asked) = asked {
            self.asked.push(Box::pin(asked.done()));
        }
    }

    /// Answers what it was asked to do and has done; whether there was any.
    pub(super) fn acknowledge(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let before = self.asked.len();
        let link = self.memory.shared.scope.others().unwrap().link();
        self.asked.retain_mut(|asked| match asked.as_mut().poll(&mut cx) {
            Poll::Ready(done) => !link.queue_publish(done.expect("it was done in time"), true),
            Poll::Pending => true,
        });
        self.asked.len() < before
    }

    pub(super) fn answer(&mut self, arrival: LinkEvent) {
        let (missed, has_own, known) = Default::default();
        self.answers.push_back(Answer { missed, arrival, has_own, known });
    }

    pub(super) fn hand_on(&mut self, Answer { missed, arrival, has_own, known }: Answer) {
        let opened = match &arrival {
            LinkEvent::Opened { topic, .. } => Some(topic.clone()),
            _ => None,
        };
        for sent in missed {
            self.hear(opened.as_ref().expect("a topic that was opened"), sent, true);
        }
        self.arrivals.push_back(arrival);
        if let (Some(topic), Some(known)) = (&opened, known) {
            self.known.entry(topic.clone()).or_default().insert(known);
        }
        if let (Some(last), Some(opened)) = (has_own, &opened) {
            let is_on = |publish: &OutgoingEvent| matches!(publish, OutgoingEvent::Cached { topic, .. } if topic == opened);
            self.flying.retain(|(serial, publish)| *serial > last || !is_on(publish));
        }
        if let Some(topic) = opened.filter(|topic| !self.is_read_again(topic)) {
            for sent in self.opening.remove(&topic).unwrap_or_default() {
                self.hear(&topic, sent, true);
            }
        }
    }

    /// Whether the topic is yet to be read, or was and the answer has not been handed on.
    fn is_read_again(&self, topic: &Topic) -> bool {
        let is_of = |answer: &Answer| is_opened(&answer.arrival, topic);
        self.unread.iter().any(|(other, _)| other == topic) || self.answers.iter().any(is_of)
    }

    /// The same, or the node has not taken in what was read.
    pub(super) fn is_being_read(&self, topic: &Topic) -> bool {
        self.is_read_again(topic) || self.arrivals.iter().any(|arrival| is_opened(arrival, topic))
    }

    /// Hands on what was published, unless it was before.
    pub(super) fn hear(&mut self, topic: &Topic, (place, mut envelope): Sent, late: bool) {
        if let (Some(place), Some(heard)) = (place, self.heard.get_mut(topic)) {
            if place < *heard {
                return;
            }
            *heard = place + 1;
        }
        if envelope.origin == self.number {
            // Its own subscribers were given it when it was sent, but for what clients that come back hear in its place.
            if matches!(envelope.body, EnvelopeBody::Event { .. }) && envelope.delivered {
                return;
            }
            // Behind a later one, which its subscribers had without Redis, it is only kept.
            let is_late = self.alone.get(topic).is_some_and(|last| envelope.serial < *last);
            envelope.delivered = is_late || self.delivered.contains(&envelope.serial);
            self.flying.retain(|(serial, _)| *serial != envelope.serial);
        } else if envelope.serial > 0 && !self.note_known(topic, &envelope) {
            return;
        }
        let topic = topic.clone();
        self.arrivals.push_back(match late {
            true => LinkEvent::Late(topic, envelope),
            false => LinkEvent::Topic(topic, envelope),
        });
    }

    /// Notes an event of another node; whether it is news. What is said again is not, behind later ones of its sender.
    fn note_known(&mut self, topic: &Topic, envelope: &Envelope) -> bool {
        let known = self.known.entry(topic.clone()).or_default();
        let (origin, serial) = (envelope.origin, envelope.serial);
        let mut later = known.range((origin, serial + 1)..(origin + 1, 0));
        (!envelope.again || later.next().is_none()) && known.insert((origin, serial))
    }

    /// What is on its way to it of a topic's log.
    pub(super) fn is_on_its_way(&self, topic: &Topic, place: usize) -> bool {
        let is_it = |sent: &Sent| sent.0 == Some(place);
        let published = self.published.iter().filter(|(other, _)| other == topic);
        let read = self.answers.iter().filter(|answer| is_opened(&answer.arrival, topic));
        published.map(|(_, sent)| sent).any(is_it)
            || self.opening.get(topic).is_some_and(|waiting| waiting.iter().any(is_it))
            || read.flat_map(|answer| &answer.missed).any(is_it)
    }

    /// Its own subscribers are given a cached event that will not come back.
    pub(super) fn publish_alone(&mut self, serial: u64, publish: &OutgoingEvent) {
        if let OutgoingEvent::Cached { topic, except, frame, data, .. } = publish {
            if self.heard.contains_key(topic) {
                self.alone.insert(topic.clone(), serial);
            }
            let (topic, except) = (topic.clone(), *except);
            let (frame, data) = (frame.clone(), data.clone());
            let alone = OfflineFallback::Publish { topic, except, frame, data: Some(data) };
            self.arrivals.push_back(LinkEvent::Alone(alone));
        }
    }
}

/// Whether it is what was read of that topic.
fn is_opened(arrival: &LinkEvent, topic: &Topic) -> bool {
    matches!(arrival, LinkEvent::Opened { topic: other, .. } if other == topic)
}

/// The time of Redis, to which the clocks of nodes are set as they begin.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}
