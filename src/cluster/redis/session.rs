//! The writing half of a link: gathers requests for one round trip at a time, and sends counts that have changed.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::away::FoundParts;
use super::batch::CommandBatch;
use super::connections::RedisConnections;
use super::dedup::Deduplicator;
use super::opening::{TopicOpening, open_cached};
use super::trust::EnvelopeTrust;
use super::{LinkError, LinkSettings, LinkState};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::clients::Replay;
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::keys::{RedisKeys, held_topic};
use crate::cluster::link::{
    LinkEvent, LinkMetrics, LinkQuery, LinkReply, LinkRequest, LinkStatus, RequestReceiver,
};
use crate::cluster::redis_clock::now_us;
use crate::cluster::reply;
use crate::cluster::scripts::counts::CountTotal;
use crate::cluster::scripts::events::{CacheReply, CachedReply, MissedEntries};
use crate::cluster::scripts::leases::FenceReply;
use crate::cluster::scripts::presence::{self, JoinArgs, JoinReply};
use crate::cluster::seal::{EnvelopeParts, EnvelopeSeals};
use crate::cluster::topics::{CountInterest, Topics};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::{Member, UserId};

/// Orders that are carried out in one round trip.
/// Large enough that a round trip is shared by many, small enough that a lease is renewed in between.
pub(super) const MAX_REQUESTS: usize = 1024;

/// The shortest interval between announcements of counts; the first after a pause is sent at once. Subscribers get
/// the current number, not each change.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// A channel, or an app's connections, with how many there are here and who wants to know of all.
pub(super) type CountUpdate = (Option<ChannelName>, usize, CountInterest);

/// The half that sends commands. It borrows state that survives a link; only [`WriterState`] belongs to this one.
/// The methods of each subject are in that subject's file.
pub(super) struct LinkWriter<'a> {
    /// To all servers of Redis.
    pub(super) servers: RedisConnections,
    /// The topic of this node's words to itself.
    pub(super) probe: String,
    /// Limits and intervals from the settings.
    pub(super) settings: &'a LinkSettings,
    pub(super) keys: &'a RedisKeys,
    /// The topics of this node, shared with the workers.
    pub(super) topics: &'a Topics,
    /// Seals what is sent.
    pub(super) seals: &'a EnvelopeSeals,
    /// Decides what of the logs is believed.
    pub(super) trust: EnvelopeTrust<'a>,
    /// Requests from the workers.
    pub(super) requests: &'a mut RequestReceiver<LinkRequest>,
    pub(super) events: &'a mpsc::Sender<LinkEvent>,
    /// Shared with the senders of requests.
    pub(super) status: &'a LinkStatus,
    /// Bytes that may wait for what is away.
    pub(super) max_queued: usize,
    /// Lasts from one link to the next: what waits, and what was said.
    pub(super) kept: &'a mut LinkState,
    /// State of this link alone.
    pub(super) link: WriterState,
    /// Shared with the half that listens.
    pub(super) dedup: &'a RefCell<Deduplicator>,
}

/// A question, and who asks it.
type WaitingQuestion = (LinkQuery, tokio::sync::oneshot::Sender<LinkReply>);

/// State of one link.
#[derive(Default)]
pub(super) struct WriterState {
    /// Orders that are being carried out. Where a master of a Redis Cluster is lost meanwhile, those of the others are
    /// carried out again, which changes nothing.
    pub(super) batch: Vec<LinkRequest>,
    /// Questions that are not answered yet.
    pub(super) questions: VecDeque<WaitingQuestion>,
    /// Topics to be counted, and whether subscribers want to know; and when some were last.
    pub(super) changed: HashMap<Topic, bool>,
    /// When counts were last sent.
    pub(super) counted: LastRun,
    /// Apps whose connections are to be counted.
    pub(super) connections: HashSet<AppId>,
    /// When the leases are to be renewed.
    pub(super) beat: Option<Instant>,
    /// How often they were.
    pub(super) beats: u32,
    /// Tags with which nodes have leases, or had, but this one has none.
    pub(super) tags: Vec<u16>,
    /// All that this node holds has been said.
    pub(super) whole: bool,
    /// When it was looked last whether what others held is there again.
    pub(super) looked: LastRun,
    /// Results of requests whose owner is away, to be handed out.
    pub(super) alone: Vec<LinkEvent>,
    /// Looks at what is away.
    pub(super) looking: Option<JoinHandle<FoundParts>>,
    /// When parts that are away were last checked.
    pub(super) looked_away: LastRun,
    /// Lapsed leases are being cleared.
    pub(super) reaping: bool,
    /// Topics without subscribers, and since when.
    pub(super) idle: HashMap<Topic, Instant>,
    /// Topics that may have missed something for good.
    pub(super) gaps: usize,
    /// Clients that came back and wait for what they have missed, in the order in which that is asked.
    pub(super) replays: VecDeque<Replay>,
}

/// When something was done last.
/// Never is longer ago than any time that is asked for.
#[derive(Debug, Default)]
pub(super) struct LastRun(Option<Instant>);

impl LastRun {
    pub(super) fn note_now(&mut self) {
        self.0 = Some(Instant::now());
    }

    /// Time since the last run; for ever if there was none.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.map_or(Duration::MAX, |last| last.elapsed())
    }
}

/// The purpose of a reply.
pub(super) enum ExpectedReply {
    /// A number, whichever.
    Done,
    /// How many entries of logs were cut off for their bytes.
    Published,
    /// How many logs an app has on all nodes.
    LogsCounted {
        app: AppId,
    },
    /// The version of a cached event, and the same.
    Placed {
        serial: u64,
    },
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
    Missed {
        opening: usize,
    },
    /// The living leases, for a request that all nodes must answer.
    Living {
        request: u64,
    },
    /// How many clients had to go for one that is kept.
    Parked {
        app: AppId,
    },
    /// The missed events of the first waiting client.
    Replayed,
    /// How many clients were forgotten, and how many are left.
    Swept {
        app: AppId,
    },
    /// Each channel's sum.
    Counted {
        app: AppId,
        channels: Vec<Option<ChannelName>>,
    },
}

impl LinkWriter<'_> {
    /// Handles requests until the link is lost. The returned error is the reason; being told to stop is one.
    pub(super) async fn run(&mut self) -> LinkError {
        match self.work_loop().await {
            Ok(()) => LinkError::Stopped,
            Err(lost) => lost,
        }
    }

    /// One task, so that whatever is said to Redis is in one order: a join before the count that has it, an event
    /// before the end of its subscription.
    async fn work_loop(&mut self) -> Result<(), LinkError> {
        self.take_leases().await?;
        let mut counts = interval(COUNT_EVERY);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.take_turn(&mut counts).await {
                Ok(true) => {}
                Ok(false) => return self.give_up_leases().await,
                Err(lost) => self.go_on_after(lost).await?,
            }
        }
    }

    /// Waits for something to do, and does it. Returns whether the node goes on.
    async fn take_turn(&mut self, counts: &mut Interval) -> Result<bool, LinkError> {
        // Before any order: a node that slept may have to learn first that its leases have lapsed.
        self.renew_if_due().await?;
        self.look_at_ended()?;
        if self.has_left_over() {
            self.send_batch().await?;
        }
        if self.link.looking.as_ref().is_some_and(JoinHandle::is_finished) {
            self.look_for_away().await?;
        }
        let (beat, woken) = (self.link.beat, self.servers.woken());
        let mut batch = Vec::new();
        tokio::select! {
            count = self.requests.recv_many(&mut batch, MAX_REQUESTS) => {
                self.link.batch.append(&mut batch);
                if count == 0 {
                    return Ok(false);
                }
                self.send_batch().await?;
                if self.kept.stopping {
                    return Ok(false);
                }
                if !self.link.changed.is_empty() && self.link.counted.elapsed() >= COUNT_EVERY {
                    // Counts that are only announced periodically are sent at once.
                    self.report_counts().await?;
                }
            }
            _ = counts.tick() => {
                self.report_counts().await?;
                self.look_for_unsealed().await?;
                self.look_at_newcomers().await?;
                self.sync_webhook_logs().await?;
                self.close_idle().await?;
                self.count_logs().await?;
                self.resubscribe_moved_slots().await?;
                self.look_whether_restored().await?;
                self.look_for_away().await?;
            }
            () = woken.notified() => {}
            () = sleep_until(beat.unwrap_or_else(Instant::now)) => {}
        }
        Ok(!self.kept.stopping)
    }

    /// The time is this node's own: it only shows how long messages take.
    pub(super) fn new_envelope(
        &self,
        serial: u64,
        delivered: bool,
        body: EnvelopeBody,
    ) -> Envelope {
        let (origin, whisper, again) = (self.kept.node, false, false);
        Envelope { origin, serial, version: 0, sent: now_us(), delivered, whisper, again, body }
    }

    /// The parts of an envelope for a script. It has no serial, since the script gives it a version.
    pub(super) fn sealed_parts(&self, topic: &Topic, body: EnvelopeBody) -> EnvelopeParts {
        let envelope = self.new_envelope(0, false, body);
        self.seals.sealed_parts(&topic.app, &self.keys.topic_name(topic), &envelope)
    }

    /// The keys of a channel, by their letters (see `scripts/mod.rs`).
    pub(super) fn channel_keys(&self, topic: &Topic, parts: &str) -> Vec<String> {
        parts.chars().map(|part| self.keys.channel_key(topic, part)).collect()
    }

    /// Handles the batch, and sends queued publishes. The order within a round trip: topics are subscribed to,
    /// publishes and joins are sent, then topics are read. So a new subscriber finds in the log whatever it did not
    /// receive, and nothing twice.
    pub(super) async fn send_batch(&mut self) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        // Each goes to where it outlives the link before anything is waited for, since the link may be lost meanwhile.
        let requests = std::mem::take(&mut self.link.batch);
        let (mut opened, mut unsure) = (Vec::new(), Vec::new());
        // Dropped with the rest, when all is done or lost.
        let mut rooms = Vec::new();
        for request in requests {
            if self.is_request_away(&request) {
                self.answer_alone(request);
                continue;
            }
            unsure.extend(self.repeatable(&request));
            match request {
                LinkRequest::Open(topic) => opened.extend(self.wanted_topic(topic)),
                LinkRequest::Join { topic, member, max, place } => {
                    self.add_join(&mut batch, topic, &member, (max, place));
                }
                LinkRequest::Leave { topic, user } => {
                    self.add_leave(&mut batch, &topic, &user);
                }
                LinkRequest::Changed { topic, tell } => {
                    *self.link.changed.entry(topic).or_default() |= tell;
                }
                LinkRequest::Connections { app, count } => {
                    self.kept.connections.insert(app.clone(), count);
                    self.link.connections.insert(app);
                }
                LinkRequest::Publish(publish) => self.kept.hold_publish(publish, false),
                LinkRequest::Room(sender) => rooms.push(sender),
                LinkRequest::WebhookLog(request) => {
                    self.kept.queue_log_request(request, &self.status.figures);
                }
                LinkRequest::Ask(question, asker) => {
                    self.link.questions.push_back((question, asker));
                }
                LinkRequest::Park(parked) => self.kept.parked.put(parked),
                LinkRequest::Replay(replay) => self.link.replays.push_back(replay),
                LinkRequest::Sweep(app) => self.sweep(&mut batch, app),
                LinkRequest::Stop => self.kept.stopping = true,
            }
        }
        // Until Redis has answered, they are not done.
        self.link.batch = unsure;
        self.forward_offline().await?;
        self.open_topics(&opened).await?;
        // Publishes from before a topic was opened are in its log when it is read.
        let up = self.status.up.load(Ordering::Relaxed);
        let (count, bytes) = if up { self.add_publishes(&mut batch) } else { (0, 0) };
        let mut openings = self.load_topics(&mut batch, opened);
        self.ask_for_missed(&mut batch);
        let parked = self.park(&mut batch);
        if !batch.is_empty() {
            let answers = batch.send_all(&mut self.servers, self.status).await?;
            self.note_published((count, bytes), &answers);
            self.forget_parked(parked);
            self.take_replies(answers, &mut openings).await?;
        }
        self.link.batch.clear();
        for opening in openings {
            self.finish_opening(opening).await?;
        }
        self.send_reply().await?;
        let waits = !self.link.replays.is_empty() || self.is_parking();
        if up && (waits || !self.kept.publishes.is_empty()) {
            return Box::pin(self.send_batch()).await;
        }
        Ok(())
    }

    /// Waits where the node is slower than the link: then less is read from Redis.
    pub(super) async fn send_event(&self, arrival: LinkEvent) -> Result<(), LinkError> {
        self.events.send(arrival).await.map_err(|_| LinkError::Stopped)
    }

    /// The script decides whether there is room, gives the version and publishes, in one step.
    fn add_join(
        &self,
        batch: &mut CommandBatch<ExpectedReply>,
        topic: Topic,
        member: &Member,
        (max, place): (usize, u64),
    ) {
        let user = member.user_id.clone();
        let body = EnvelopeBody::Joined { user: user.clone(), info: member.user_info.clone() };
        let (parts, name) = (self.sealed_parts(&topic, body), self.keys.topic_name(&topic));
        let (place, held_key) = (self.status.clock.to_redis(place), held_topic(&topic));
        let join = JoinArgs { member, max, topic: &name, parts: &parts, place, held_key };
        let join = join.call(&self.channel_keys(&topic, "vmrk0"));
        batch.add_command(join, ExpectedReply::Joined { topic, user });
    }

    /// Repeating it changes nothing, so it may be sent again when an answer was lost.
    fn add_leave(&self, batch: &mut CommandBatch<ExpectedReply>, topic: &Topic, user: &UserId) {
        let left = EnvelopeBody::Left { user: user.clone() };
        let (parts, name) = (self.sealed_parts(topic, left), self.keys.topic_name(topic));
        let leave = presence::leave(&self.channel_keys(topic, "vmrk0"), user, &name, &parts);
        batch.add_command(leave, ExpectedReply::Done);
    }

    /// Every node with a lease now must answer; nodes that start later did not get the request.
    async fn take_living(&self, request: u64, value: Value) -> Result<(), LinkError> {
        let fence = FenceReply::parse_reply(&Value::Array(vec![Value::Int(0), value]));
        let leases = fence.ok_or(LinkError::Unexpected)?.valid.into_iter();
        let tags = self.servers.current_leases().map(|lease| lease.tag).collect();
        let own = (self.kept.node, &tags);
        let nodes = self.kept.peers.living_nodes(own, leases.map(|(id, _)| id));
        self.send_event(LinkEvent::Living { request, nodes }).await
    }

    /// Does what answers say.
    /// In the order of the commands. An answer of an unexpected form ends the link: what it was for is then not
    /// done, and is said again.
    pub(super) async fn take_replies(
        &mut self,
        answers: Vec<(ExpectedReply, Value)>,
        openings: &mut [TopicOpening],
    ) -> Result<(), LinkError> {
        for (expected, value) in answers {
            match expected {
                ExpectedReply::Done => {
                    reply::as_number(&value).ok_or(LinkError::Unexpected)?;
                }
                ExpectedReply::Published => {
                    let cut = reply::as_number(&value).ok_or(LinkError::Unexpected)?;
                    LinkMetrics::add_count(&self.status.figures.cut, cut);
                }
                ExpectedReply::Placed { .. } => {
                    let reply = CacheReply::parse(&value).ok_or(LinkError::Unexpected)?;
                    LinkMetrics::add_count(&self.status.figures.cut, reply.cut);
                }
                ExpectedReply::Joined { topic, user } => {
                    let event = match JoinReply::parse(&value).ok_or(LinkError::Unexpected)? {
                        JoinReply::Joined(version) => {
                            let version = self.status.clock.to_local(version);
                            LinkEvent::Joined { topic, user, version }
                        }
                        JoinReply::Full => LinkEvent::Full { topic, user },
                    };
                    self.send_event(event).await?;
                }
                ExpectedReply::Loaded { opening } => {
                    if let Some(opening) = openings.get_mut(opening) {
                        let mut loaded =
                            presence::read_roster(&value).ok_or(LinkError::Unexpected)?;
                        loaded.version = self.status.clock.to_local(loaded.version);
                        for (place, _) in &mut loaded.members {
                            *place = self.status.clock.to_local(*place);
                        }
                        opening.loaded = Some(loaded);
                    }
                }
                ExpectedReply::Kept { opening } => {
                    if let Some(opening) = openings.get_mut(opening) {
                        let name = self.keys.topic_name(&opening.topic);
                        opening.cached = CachedReply::parse(&value).and_then(|cached| {
                            open_cached(cached, &name, self.trust, &self.status.clock)
                        });
                    }
                }
                ExpectedReply::Missed { opening } => {
                    if let Some(opening) = openings.get_mut(opening) {
                        let missed = MissedEntries::parse(&value).ok_or(LinkError::Unexpected)?;
                        opening.missed = Some(missed);
                    }
                }
                ExpectedReply::LogsCounted { app } => self.note_logs(&app, &value)?,
                ExpectedReply::Living { request } => self.take_living(request, value).await?,
                ExpectedReply::Replayed => self.take_missed(&value).await?,
                ExpectedReply::Parked { app } | ExpectedReply::Swept { app } => {
                    self.take_forgotten(app, &value).await?;
                }
                ExpectedReply::Counted { app, channels } => {
                    for (channel, total) in channels.into_iter().zip(CountTotal::parse_all(&value))
                    {
                        let total = total.map_or(0, |total| total.total);
                        if channel.is_none() {
                            self.send_event(LinkEvent::Connections { app: app.clone(), total })
                                .await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Dropping the asker is the answer where Redis has none.
    async fn send_reply(&mut self) -> Result<(), LinkError> {
        if self.link.questions.is_empty() {
            return Ok(());
        }
        // The caller sees the counts that were sent before.
        self.report_counts().await?;
        while let Some((question, asker)) = self.link.questions.pop_front() {
            if let LinkQuery::Channel(topic) = &question {
                self.kept.cache_budget.note_used(topic);
            }
            let asked = (self.trust, self.kept.node, question);
            if let Some(answer) =
                super::query::answer_query(&mut self.servers, (self.status, self.topics), asked)
                    .await?
            {
                // It may have gone meanwhile.
                let _ = asker.send(answer);
            }
        }
        Ok(())
    }
}
