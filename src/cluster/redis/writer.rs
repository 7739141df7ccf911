//! What goes to Redis: orders, gathered for one round trip at a time, and the counts that have changed.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSubSink};
use redis::{Value, cmd};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::batch::{Batch, script};
use super::lease::PART;
use super::reply::{self, now_us};
use super::{Held, Kept, Lost, PATIENCE, Settings};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Body, DIGITS, Envelope};
use crate::cluster::link::{Alone, Answer, Arrival, Figures, Order, Publish, Question, Status};
use crate::cluster::scripts::{Keys, Script};
use crate::cluster::topics::Topics;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::{Member, UserId};

/// Orders that are carried out in one round trip.
pub(super) const MOST: usize = 1024;

/// Bytes of publishes in one.
const MOST_BYTES: usize = 1 << 20;

/// Channels whose counts one script takes.
const COUNTED: usize = 500;

/// How often changed counts are told.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// How long a topic that nobody holds is kept, since whoever left often comes back.
const LINGER: Duration = Duration::from_secs(1);

/// The half that gives commands.
pub(super) struct Writer<'a> {
    pub(super) commands: MultiplexedConnection,
    pub(super) sink: PubSubSink,
    pub(super) lease: String,
    pub(super) settings: &'a Settings,
    pub(super) keys: &'a Keys,
    pub(super) topics: &'a Topics,
    pub(super) orders: &'a mut mpsc::UnboundedReceiver<Order>,
    pub(super) arrivals: &'a mpsc::Sender<Arrival>,
    pub(super) status: &'a Status,
    pub(super) kept: &'a mut Kept,
    pub(super) link: Memory,
    pub(super) heard: &'a Cell<Instant>,
}

/// What lasts as long as the link.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Orders that are being carried out.
    pub(super) batch: Vec<Order>,
    pub(super) stopping: bool,
    /// Topics to be counted, and whether subscribers want to know.
    pub(super) changed: HashMap<Topic, bool>,
    /// Apps whose connections are to be counted.
    pub(super) connections: HashSet<AppId>,
    /// Apps that this lease is known to have something of.
    pub(super) apps: HashSet<AppId>,
    /// Topics that nobody holds, since when.
    pub(super) idle: HashMap<Topic, Instant>,
}

/// What an answer is for.
pub(super) enum Expected {
    Nothing,
    Joined {
        topic: Topic,
        user: UserId,
    },
    Loaded {
        opening: usize,
    },
    Kept {
        opening: usize,
    },
    /// Each channel's sum.
    Counted {
        app: AppId,
        channels: Vec<Option<ChannelName>>,
    },
}

/// A topic that is being taken part in.
pub(super) struct Opening {
    topic: Topic,
    loaded: Option<crate::cluster::roster::Loaded>,
    cached: Option<crate::cluster::link::Kept>,
}

impl Writer<'_> {
    /// Carries out orders until the link is lost.
    pub(super) async fn run(&mut self) -> Lost {
        match self.work().await {
            Ok(()) => Lost::Stopped,
            Err(lost) => lost,
        }
    }

    async fn work(&mut self) -> Result<(), Lost> {
        self.begin().await?;
        let part = self.settings.lease / PART;
        let (mut counts, mut signs) = (interval(COUNT_EVERY), interval(part));
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut batch = std::mem::take(&mut self.link.batch);
            tokio::select! {
                count = self.orders.recv_many(&mut batch, MOST) => {
                    self.link.batch = batch;
                    if count == 0 {
                        return self.end().await;
                    }
                    self.carry_out().await?;
                    if self.link.stopping {
                        return self.end().await;
                    }
                }
                _ = counts.tick() => {
                    self.count().await?;
                    self.close_idle().await?;
                    if self.kept.settles.is_some_and(|settles| settles <= Instant::now()) {
                        self.settle().await?;
                    }
                }
                _ = signs.tick() => self.give_sign(part).await?,
            }
        }
    }

    pub(super) fn envelope(&self, serial: u64, told: bool, body: Body) -> Envelope {
        Envelope { origin: self.kept.node, serial, sent: now_us(), told, body }
    }

    /// What stands before and behind a version in the envelope that a script publishes.
    fn around(&self, body: Body) -> (Vec<u8>, Vec<u8>) {
        self.envelope(0, false, body).encode_around_version()
    }

    pub(super) fn parts(&self, topic: &Topic, parts: &str) -> Vec<String> {
        parts.chars().map(|part| self.keys.channel(topic, part)).collect()
    }

    /// Carries out what is in the batch, and sends publishes that wait.
    pub(super) async fn carry_out(&mut self) -> Result<(), Lost> {
        let opened = self.subscribe().await?;
        let mut batch = Batch::new();
        let mut questions = Vec::new();
        let orders = std::mem::take(&mut self.link.batch);
        let mut unsure = Vec::new();
        for order in orders {
            match order {
                Order::Open(_) => {}
                Order::Join { topic, member, max, place } => {
                    self.join(&mut batch, topic, &member, (max, place));
                }
                Order::Leave { topic, user } => {
                    self.leave(&mut batch, &topic, &user);
                    unsure.push(Order::Leave { topic, user });
                }
                Order::Changed { topic, tell } => {
                    *self.link.changed.entry(topic).or_default() |= tell;
                }
                Order::Connections { app, count } => {
                    self.kept.connections.insert(app.clone(), count);
                    self.link.connections.insert(app);
                }
                Order::Publish(publish) => self.kept.hold(publish, false),
                Order::Ask(question, asker) => questions.push((question, asker)),
                Order::Stop => self.link.stopping = true,
            }
        }
        // Until Redis has answered, they are not done.
        self.link.batch = unsure;
        // What was published before a topic was opened is there when it is read.
        let up = self.status.up.load(Ordering::Relaxed);
        let (held, bytes) = if up { self.publish(&mut batch) } else { (0, 0) };
        let mut openings = self.load(&mut batch, opened);
        if !batch.is_empty() {
            let answers = batch.send(&mut self.commands, self.status).await?;
            self.link.batch.clear();
            self.kept.held.drain(..held);
            self.status.queued.fetch_sub(bytes, Ordering::Relaxed);
            Figures::add(&self.status.figures.published, held as u64);
            self.take(answers, &mut openings).await?;
            for Opening { topic, loaded, cached } in openings {
                let settled = self.kept.settles.is_none();
                self.arrive(Arrival::Opened { topic, loaded, cached, settled }).await?;
            }
        }
        self.answer(questions).await?;
        if up && !self.kept.held.is_empty() {
            return Box::pin(self.carry_out()).await;
        }
        Ok(())
    }

    async fn arrive(&self, arrival: Arrival) -> Result<(), Lost> {
        self.arrivals.send(arrival).await.map_err(|_| Lost::Stopped)
    }

    /// Subscribes to the topics that are to be opened.
    async fn subscribe(&mut self) -> Result<Vec<Topic>, Lost> {
        let opens = self.link.batch.iter().filter_map(|order| match order {
            Order::Open(topic) => Some(topic.clone()),
            _ => None,
        });
        let topics: Vec<Topic> = opens.collect();
        if !topics.is_empty() {
            let names: Vec<String> = topics.iter().map(|topic| self.keys.topic(topic)).collect();
            Figures::add(&self.status.figures.commands, 1);
            Figures::add(&self.status.figures.round_trips, 1);
            timeout(PATIENCE, self.sink.subscribe(&names)).await??;
            for topic in &topics {
                self.link.idle.remove(topic);
            }
        }
        Ok(topics)
    }

    fn join(
        &self,
        batch: &mut Batch<Expected>,
        topic: Topic,
        member: &Member,
        (max, place): (usize, u64),
    ) {
        let user = member.user_id.clone();
        let body = Body::Joined { version: 0, user: user.clone(), info: member.user_info.clone() };
        let (head, rest) = self.around(body);
        let mut join = script(Script::Join, &self.parts(&topic, "vmrk"));
        join.arg(&self.lease).arg(user.as_str()).arg(&*member.user_info).arg(max);
        join.arg(self.keys.topic(&topic)).arg(head).arg(rest);
        join.arg(if place == 0 { String::new() } else { format!("{place:0DIGITS$}") });
        batch.add(join, Expected::Joined { topic, user });
    }

    fn leave(&self, batch: &mut Batch<Expected>, topic: &Topic, user: &UserId) {
        let (head, _) = self.around(Body::Left { version: 0, user: user.clone() });
        let mut leave = script(Script::Leave, &self.parts(topic, "vmrk"));
        leave.arg(&self.lease).arg(user.as_str()).arg(self.keys.topic(topic)).arg(head);
        batch.add(leave, Expected::Nothing);
    }

    /// Reads what Redis has of topics, behind the joins of the same batch.
    fn load(&self, batch: &mut Batch<Expected>, topics: Vec<Topic>) -> Vec<Opening> {
        let mut openings = Vec::with_capacity(topics.len());
        for topic in topics {
            let (kind, opening) = (topic.channel.kind(), openings.len());
            if kind.is_presence() {
                let mut held = cmd("SADD");
                let channel = format!("c{}/{}", topic.app, topic.channel);
                held.arg(self.keys.lease(&self.lease)).arg(channel);
                batch.add(held, Expected::Nothing);
                let load = script(Script::Load, &self.parts(&topic, "vm"));
                batch.add(load, Expected::Loaded { opening });
            }
            if kind.cache {
                let kept = script(Script::Kept, &self.parts(&topic, "c"));
                batch.add(kept, Expected::Kept { opening });
            }
            openings.push(Opening { topic, loaded: None, cached: None });
        }
        if batch.is_empty() && !openings.is_empty() {
            // Nothing to read; only the answers are to go out.
            batch.add(cmd("PING"), Expected::Nothing);
        }
        openings
    }

    /// Adds publishes that wait; how many, and their bytes.
    fn publish(&self, batch: &mut Batch<Expected>) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for held in &self.kept.held {
            if bytes > MOST_BYTES || count == MOST {
                break;
            }
            count += 1;
            bytes += held.publish.bytes();
            batch.add(self.publishing(held), Expected::Nothing);
        }
        (count, bytes)
    }

    fn publishing(&self, held: &Held) -> redis::Cmd {
        let envelope = |body| self.envelope(held.serial, held.told, body);
        let mut publish = cmd("PUBLISH");
        match &held.publish {
            Publish::Event { topic, except, frame } => {
                let body = Body::Event { except: *except, frame: frame.clone() };
                publish.arg(self.keys.topic(topic)).arg(envelope(body).encode());
            }
            Publish::Cached { topic, except, frame, data, ttl } => {
                let (frame, data) = (frame.clone(), data.clone());
                let body = Body::Cached { version: 0, except: *except, frame, data };
                let (head, rest) = envelope(body).encode_around_version();
                let mut keep = script(Script::Keep, &self.parts(topic, "vc"));
                keep.arg(self.keys.topic(topic)).arg(head).arg(rest);
                keep.arg((ttl.as_millis() as u64).max(1));
                return keep;
            }
            Publish::Terminate { app, user } => {
                let body = Body::Terminate { app: app.clone(), user: user.clone() };
                publish.arg(self.keys.all()).arg(envelope(body).encode());
            }
        }
        publish
    }

    /// Does what answers say.
    pub(super) async fn take(
        &self,
        answers: Vec<(Expected, Value)>,
        openings: &mut [Opening],
    ) -> Result<(), Lost> {
        for (expected, value) in answers {
            match expected {
                Expected::Nothing => {}
                Expected::Joined { topic, user } => {
                    let arrival = match (&value, reply::number(&value)) {
                        (_, Some(version)) => Arrival::Joined { topic, user, version },
                        (Value::ServerError(_), None) => {
                            Arrival::Alone(Alone::Join { topic, user })
                        }
                        _ => Arrival::Full { topic, user },
                    };
                    self.arrive(arrival).await?;
                }
                Expected::Loaded { opening } => {
                    if let Some(opening) = openings.get_mut(opening) {
                        opening.loaded = reply::loaded(&value);
                    }
                }
                Expected::Kept { opening } => {
                    if let Some(opening) = openings.get_mut(opening) {
                        opening.cached = reply::kept(&value);
                    }
                }
                Expected::Counted { app, channels } => {
                    let totals = channels.into_iter().zip(reply::list(&value));
                    for (channel, total) in totals {
                        let total = reply::number(total).unwrap_or_default() as usize;
                        if channel.is_none() {
                            let app = app.clone();
                            self.arrive(Arrival::Connections { app, total }).await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells Redis the counts that have changed.
    pub(super) async fn count(&mut self) -> Result<(), Lost> {
        let mut by_app: HashMap<AppId, Vec<(Option<ChannelName>, usize, bool)>> = HashMap::new();
        for (topic, tell) in std::mem::take(&mut self.link.changed) {
            let count = self.topics.count(&topic);
            if self.topics.is_idle(&topic) {
                self.link.idle.entry(topic.clone()).or_insert_with(Instant::now);
            }
            by_app.entry(topic.app).or_default().push((Some(topic.channel), count, tell));
        }
        for app in std::mem::take(&mut self.link.connections) {
            let count = self.kept.connections.get(&app).copied().unwrap_or_default();
            by_app.entry(app).or_default().push((None, count, false));
        }
        let mut batch = Batch::new();
        for (app, counts) in by_app {
            if self.link.apps.insert(app.clone()) {
                let mut held = cmd("SADD");
                held.arg(self.keys.lease(&self.lease)).arg(format!("a{app}"));
                batch.add(held, Expected::Nothing);
            }
            let lease = self.lease.clone();
            self.add_counts(&mut batch, &app, &lease, counts);
        }
        let answers = batch.send(&mut self.commands, self.status).await?;
        self.take(answers, &mut []).await
    }

    pub(super) fn add_counts(
        &self,
        batch: &mut Batch<Expected>,
        app: &AppId,
        lease: &str,
        mut counts: Vec<(Option<ChannelName>, usize, bool)>,
    ) {
        let keys = [self.keys.app(app, 't'), self.keys.counts(app, lease), self.keys.app(app, 'v')];
        let (head, _) = self.around(Body::Count { version: 0, count: 0 });
        while !counts.is_empty() {
            let some: Vec<_> = counts.drain(..counts.len().min(COUNTED)).collect();
            let mut count = script(Script::Count, &keys);
            count.arg(self.keys.topic_prefix(app)).arg(&head);
            for (channel, number, tell) in &some {
                let channel = channel.as_ref().map_or("", |channel| channel.as_str());
                count.arg(channel).arg(*number).arg(u8::from(*tell));
            }
            let channels = some.into_iter().map(|(channel, ..)| channel).collect();
            batch.add(count, Expected::Counted { app: app.clone(), channels });
        }
    }

    /// Ends the part in topics that nobody has held for a while.
    async fn close_idle(&mut self) -> Result<(), Lost> {
        let old = |since: &Instant| since.elapsed() >= LINGER;
        let idle: Vec<Topic> =
            self.link.idle.extract_if(|_, since| old(since)).map(|(topic, _)| topic).collect();
        let closed = idle.into_iter().filter(|topic| self.topics.close_if_idle(topic));
        let names: Vec<String> = closed.map(|topic| self.keys.topic(&topic)).collect();
        if !names.is_empty() {
            Figures::add(&self.status.figures.commands, 1);
            timeout(PATIENCE, self.sink.unsubscribe(&names)).await??;
        }
        Ok(())
    }

    /// Hands out what was not done when the link was lost, to be done with what is known here. Publishes
    /// wait on, but for those that did arrive.
    pub(super) async fn unanswered(&mut self, arrived: u64) {
        for order in std::mem::take(&mut self.link.batch) {
            if let Order::Leave { topic, user } = order {
                let _ = self.arrivals.send(Arrival::Alone(Alone::Leave { topic, user })).await;
            }
        }
        let queued = &self.status.queued;
        self.kept.held.retain(|held| {
            let waits = held.told || held.serial > arrived;
            if !waits {
                queued.fetch_sub(held.publish.bytes(), Ordering::Relaxed);
            }
            waits
        });
        for held in &mut self.kept.held {
            let Publish::Cached { topic, except, frame, data, .. } = &held.publish else {
                continue;
            };
            if !std::mem::replace(&mut held.told, true) {
                let (topic, except) = (topic.clone(), *except);
                let (frame, data) = (frame.clone(), data.clone());
                let local = Alone::Publish { topic, except, frame, data };
                let _ = self.arrivals.send(Arrival::Alone(local)).await;
            }
        }
    }

    async fn answer(
        &mut self,
        questions: Vec<(Question, tokio::sync::oneshot::Sender<Answer>)>,
    ) -> Result<(), Lost> {
        if questions.is_empty() {
            return Ok(());
        }
        // Whoever asks sees what it was told before.
        self.count().await?;
        for (question, asker) in questions {
            let answer = super::ask::ask(&mut self.commands, self.keys, self.status, question);
            if let Some(answer) = answer.await? {
                // It may have gone meanwhile.
                let _ = asker.send(answer);
            }
        }
        Ok(())
    }
}
