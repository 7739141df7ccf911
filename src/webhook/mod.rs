//! Webhooks. Callers leave facts here and go on; a separate thread decides which of them become events, and each
//! webhook has its own queue that keeps the order and retries, so that a slow or dead endpoint delays nothing else.
//! Knows no hub: facts are data.

#[cfg(feature = "socketio")]
pub mod channel_auth;
mod cluster_log;
mod debounce;
mod delivery;
mod facts;
mod line;
mod message;
mod queue;
mod queue_metrics;
mod spool;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use crate::app::{App, AppId, Apps, Webhook};
use crate::console::Console;
use crate::metrics::HeldByApp;
use cluster_log::{AckSink, HeldEnds, LatestCounts, LogAck, ParsedEntry};
use debounce::Debouncer;
use delivery::WebhookClient;
use facts::{FactQueue, Happening};
use line::Persistence;
use message::WebhookMessage;
use queue::WebhookQueue;
use spool::{Spool, SpooledEvent};

pub use cluster_log::{EntryAcknowledger, EntryContent, LoggedEntry};
pub use facts::{Fact, Whisper};
pub use queue_metrics::QueueMetrics;

/// Apps that have their turn before the spool is written.
const TURNS_PER_WRITE: usize = 4;

/// How often it is looked for what other processes have left.
const LOOK: Duration = Duration::from_secs(1);

/// How the webhooks of all apps are served.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// Whether endpoints may have private addresses.
    pub allow_private: bool,
    /// Where what waits is kept, in case the process ends before it is sent; none: it is lost.
    pub spool: Option<PathBuf>,
    /// Reports requests to the debug console.
    pub console: Arc<Console>,
    /// Where the bytes are counted that are held for them.
    pub held: Arc<HeldByApp>,
}

/// A message to the thread.
#[derive(Debug)]
enum DispatcherMessage {
    /// Entries of a cluster's log; the app as the node knows it.
    Entries(AppId, Option<Arc<App>>, Vec<LoggedEntry>),
    /// The app's log is this node's to tell until then, and was read up to a time.
    Held(AppId, Instant, u64),
    /// Another node reads the app's log.
    Lost(AppId),
}

/// The sender to the webhooks' thread. Without a thread nothing is reported.
#[derive(Debug, Default)]
pub struct Webhooks {
    facts: Arc<FactQueue>,
    /// Entries of a cluster's logs; `None` without a thread.
    logged: Option<mpsc::UnboundedSender<DispatcherMessage>>,
    /// Facts that were left out.
    dropped: AtomicU64,
    figures: Arc<Mutex<Vec<Arc<QueueMetrics>>>>,
    /// Ends the thread, and waits for it.
    thread: Mutex<Option<(oneshot::Sender<Instant>, JoinHandle<()>)>>,
}

impl Webhooks {
    /// Starts the thread, and goes on with what an earlier run has left for `apps`.
    /// In a cluster, `done` takes the entries of its log that are done with.
    pub fn start(
        options: WebhookOptions,
        apps: &Apps,
        done: Option<EntryAcknowledger>,
    ) -> io::Result<Self> {
        let (logged, received) = mpsc::unbounded_channel();
        let (finish, finishing) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (figures, facts) = (Arc::default(), Arc::new(FactQueue::new(options.held.clone())));
        let seen = (Arc::clone(&figures), Arc::clone(&facts));
        let apps = apps.clone();
        let thread = std::thread::Builder::new().name("webhooks".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                let mut desk = Dispatcher {
                    post: WebhookClient::new(options.allow_private, options.console),
                    news: Debouncer::new(options.held.clone()),
                    ends: HeldEnds::default(),
                    counts: LatestCounts::default(),
                    door: AckSink::new(done),
                    lines: HashMap::new(),
                    figures: seen.0,
                    facts: seen.1,
                    held: options.held,
                    spool: options.spool.as_deref().and_then(opened),
                    unclaimed: Vec::new(),
                    known: apps.iter().map(|app| (app.id.clone(), app.clone())).collect(),
                };
                desk.adopt_orphans();
                let end = desk.serve(received, finishing).await;
                desk.finish(end).await;
            });
        })?;
        let thread = Mutex::new(Some((finish, thread)));
        let dropped = AtomicU64::new(0);
        Ok(Self { facts, logged: Some(logged), dropped, figures, thread })
    }

    /// Leaves a fact, if a webhook of the app may ask for it. Never waits.
    pub fn send(&self, app: &Arc<App>, fact: Fact) {
        // Without a thread no fact would be taken.
        if self.logged.is_none() || !fact.is_asked_for(app) || self.facts.put(app, fact) {
            return;
        }
        // Relaxed: only the first is logged, and the exact count is on the metrics page.
        if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            warn!(app = %app.id, "events for webhooks come faster than they are sorted: some are left out");
        }
    }

    /// Leaves entries of a cluster's log; the app as it is now, if the node knows it.
    pub fn read(&self, id: AppId, app: Option<Arc<App>>, entries: Vec<LoggedEntry>) {
        if let Some(logged) = &self.logged {
            // The receiver is gone only while the server stops, when the log keeps the entries.
            let _ = logged.send(DispatcherMessage::Entries(id, app, entries));
        }
    }

    /// This node is the reader of the app's log until then; everything up to a time of Redis, in milliseconds, was
    /// read.
    pub fn hold(&self, app: AppId, until: Instant, read_up_to: u64) {
        if let Some(logged) = &self.logged {
            // As above: the log still has what was to be held.
            let _ = logged.send(DispatcherMessage::Held(app, until, read_up_to));
        }
    }

    /// Another node reads the app's log.
    pub fn leave_to_others(&self, app: AppId) {
        if let Some(logged) = &self.logged {
            // As above.
            let _ = logged.send(DispatcherMessage::Lost(app));
        }
    }

    /// Facts that wait to be looked at, and those that were left out.
    pub fn facts(&self) -> (usize, u64) {
        // Relaxed: a figure for display.
        (self.facts.len(), self.dropped.load(Ordering::Relaxed))
    }

    /// The metrics of each webhook.
    pub fn figures(&self) -> Vec<Arc<QueueMetrics>> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends what can be sent until `end`, keeps the rest if there is a place for it, and ends the thread.
    pub fn finish(&self, end: std::time::Instant) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((finish, thread)) = thread else { return };
        // The thread may have ended by itself after a panic; `join` below reports that.
        let _ = finish.send(end.into());
        if thread.join().is_err() {
            warn!("the webhooks ended in a panic");
        }
    }
}

/// The thread's own.
struct Dispatcher {
    /// Sends requests.
    post: WebhookClient,
    /// Holds ends back, and drops those with an opposite.
    news: Debouncer,
    /// Those of a cluster's log.
    ends: HeldEnds,
    /// Limits the counts of crowds.
    counts: LatestCounts,
    /// Deletes entries of a cluster's log once they are sent.
    door: Rc<AckSink>,
    /// The queue of each webhook, by app and URL.
    lines: HashMap<(AppId, String), WebhookQueue>,
    figures: Arc<Mutex<Vec<Arc<QueueMetrics>>>>,
    /// Facts that workers have reported.
    facts: Arc<FactQueue>,
    /// Memory counted by app.
    held: Arc<HeldByApp>,
    /// The queue on disk, if there is one.
    spool: Option<Rc<Spool>>,
    /// Spooled events of other processes, for apps that are not known yet.
    unclaimed: Vec<SpooledEvent>,
    /// The apps, as they were with their latest fact.
    known: HashMap<AppId, Arc<App>>,
}

impl Dispatcher {
    /// Turns facts into events until the server is about to end; when it must have ended.
    async fn serve(
        &mut self,
        mut logged: mpsc::UnboundedReceiver<DispatcherMessage>,
        mut finishing: oneshot::Receiver<Instant>,
    ) -> Instant {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let facts = self.facts.clone();
        let end = loop {
            let next = [self.news.next(), self.counts.next()].into_iter().flatten().min();
            tokio::select! {
                biased;
                end = &mut finishing => break end.unwrap_or_else(|_| Instant::now()),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.put_due();
                }
                left = logged.recv() => match left {
                    Some(left) => self.take(left),
                    // The server is gone without saying so.
                    None => break Instant::now(),
                },
                () = facts.some() => {
                    (0..TURNS_PER_WRITE).map_while(|_| facts.take()).for_each(|share| self.look_at(share));
                }
                _ = looks.tick(), if self.spool.is_some() => self.adopt_orphans(),
            }
            // Before any of it is sent, and once for all.
            self.flush();
            // There may be more at once, and what is in line is to be sent all the same.
            yield_now().await;
        };
        while let Ok(left) = logged.try_recv() {
            self.take(left);
        }
        while let Some(share) = facts.take() {
            self.look_at(share);
        }
        // Nobody can come back to this server any more.
        for (app, event) in self.news.all() {
            self.put(&app, &event, None);
        }
        self.flush();
        end
    }

    /// Writes what was spooled in this turn to disk.
    fn flush(&self) {
        if let Some(spool) = &self.spool {
            spool.flush();
        }
    }

    /// Carries out what was left at the door, of a cluster's log alone.
    fn take(&mut self, left: DispatcherMessage) {
        match left {
            DispatcherMessage::Entries(id, app, entries) => {
                app.iter().for_each(|app| self.know(app));
                let app = self.known.get(&id).cloned();
                for LoggedEntry { id: place, what } in entries {
                    let receipt = LogAck::new(&self.door, &id, &place);
                    app.iter().for_each(|app| self.take_logged(app, &what, &receipt));
                }
            }
            DispatcherMessage::Held(app, until, read_up_to) => {
                self.door.hold(&app, until);
                for (app, event, receipt) in self.ends.due(&app, read_up_to) {
                    self.put(&app, &event, Some(&receipt));
                }
                self.lines.values().for_each(WebhookQueue::go_on);
            }
            DispatcherMessage::Lost(app) => {
                self.door.lose(&app);
                self.ends.leave(&app);
                self.counts.leave(&app);
            }
        }
    }

    /// Tells what is news of what has happened in one app.
    fn look_at(&mut self, (app, share): (Arc<App>, Vec<Happening>)) {
        let now = Instant::now();
        for happened in share {
            if let Some(event) = self.news.take(now, &app, happened) {
                self.put(&app, &event, None);
            }
        }
    }

    /// One entry of the log: what is news of it goes into the queues with the entry's receipt.
    fn take_logged(&mut self, app: &Arc<App>, what: &EntryContent, receipt: &Rc<LogAck>) {
        let event = match what {
            EntryContent::Turned(is, channel, user) => {
                let what = (*is, channel.clone(), user.clone());
                let due = self.ends.turn(app, what, receipt.clone());
                return due.iter().for_each(|(app, event, from)| self.put(app, event, Some(from)));
            }
            EntryContent::Restated { told, turned } => {
                let due = self.ends.restate(app, *told, turned.clone(), receipt.clone());
                return due.iter().for_each(|(app, event, from)| self.put(app, event, Some(from)));
            }
            EntryContent::Text(text) => match cluster_log::read(text) {
                Some(ParsedEntry::Miss(channel)) => self.news.misses(Instant::now(), app, channel),
                Some(ParsedEntry::Count(count, event)) => {
                    let due = (app.clone(), event, receipt.clone());
                    let due = self.counts.take(Instant::now(), count, due);
                    return due
                        .iter()
                        .for_each(|(app, event, from)| self.put(app, event, Some(from)));
                }
                Some(ParsedEntry::Event(event)) => Some(event),
                None => None,
            },
        };
        event.iter().for_each(|event| self.put(app, event, Some(receipt)));
    }

    /// Queues ends whose time has come.
    fn put_due(&mut self) {
        for (app, event, receipt) in self.counts.due(Instant::now()) {
            self.put(&app, &event, Some(&receipt));
        }
        for (app, event) in self.news.due(Instant::now()) {
            self.put(&app, &event, None);
        }
    }

    /// Puts an event into the line of each webhook that asks for it.
    fn put(&mut self, app: &Arc<App>, event: &WebhookMessage, from: Option<&Rc<LogAck>>) {
        let now = millis();
        self.know(app);
        for (index, webhook) in app.webhooks.iter().enumerate() {
            if event.is_for(webhook) {
                let persistence =
                    from.map_or(Persistence::Not, |receipt| Persistence::Logged(receipt.clone()));
                let at = from.map_or(now, |receipt| receipt.at().min(now));
                self.line(app, index, webhook).put(at, event, persistence);
            }
        }
    }

    /// The line of an app's webhook: its own, though another has the same URL.
    fn line(&mut self, app: &Arc<App>, index: usize, webhook: &Webhook) -> &WebhookQueue {
        let Self { post, figures, spool, held, lines, .. } = self;
        let key = (app.id.clone(), format!("{index} {}", webhook.url));
        let line = lines.entry(key).or_insert_with(|| {
            let (post, spool) = ((post.clone(), held.of_app(&app.id)), spool.clone());
            let line = WebhookQueue::begin(app.clone(), index, webhook.clone(), post, spool);
            let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
            // A queue whose URL has changed sends its events, but has no metrics beside its successor's.
            figures.retain(|old| old.index != index || old.app != app.id.as_str());
            figures.push(line.figures());
            line
        });
        line.renew(app, webhook);
        line
    }

    /// Notes the app as it is now; the first time, what an earlier run left for it is put in line.
    fn know(&mut self, app: &Arc<App>) {
        if self.known.get(&app.id).is_some_and(|known| Arc::ptr_eq(known, app)) {
            return;
        }
        self.known.insert(app.id.clone(), app.clone());
        self.claim(app);
    }

    /// Puts in line what processes that have ended have left.
    fn adopt_orphans(&mut self) {
        let Some(spool) = &self.spool else { return };
        let taken = spool.adopt_orphans();
        if !taken.is_empty() {
            info!(events = taken.len(), "webhook events of another run are taken over");
            self.unclaimed.extend(taken);
            let known: Vec<Arc<App>> = self.known.values().cloned().collect();
            known.iter().for_each(|app| self.claim(app));
        }
        // The rest belongs to apps that may be looked up, until it is too old.
        let before = millis().saturating_sub(queue::RETRY_FOR_MS);
        self.forget(|one| one.at <= before);
    }

    /// Puts in line what was left for the app.
    /// By its place and URL, so that an event does not go to another endpoint that has moved into the place.
    fn claim(&mut self, app: &Arc<App>) {
        let of_it = self.unclaimed.extract_if(.., |one| one.app == app.id.as_str());
        let of_it: Vec<SpooledEvent> = of_it.collect();
        for one in of_it {
            let mut hooks = app.webhooks.iter().enumerate();
            let hook = hooks.find(|(index, hook)| *index == one.index && hook.url == one.url);
            match hook {
                Some((index, hook)) => {
                    let json = one.event.get().into();
                    self.line(app, index, hook).put_again(one.at, json, one.n);
                }
                // Nobody asks for it any more.
                None => self.spool.iter().for_each(|spool| spool.done(vec![one.n])),
            }
        }
    }

    /// Counted in one line, not in one for each.
    fn forget(&mut self, is_forgotten: impl Fn(&SpooledEvent) -> bool) {
        let lost: Vec<u64> =
            self.unclaimed.extract_if(.., |one| is_forgotten(one)).map(|one| one.n).collect();
        if let Some(spool) = self.spool.as_ref().filter(|_| !lost.is_empty()) {
            warn!(
                lost = lost.len(),
                "webhook events kept from an earlier run are dropped: their apps are gone"
            );
            spool.done(lost);
        }
    }

    /// Each line is hurried, and waited for until `end`.
    async fn finish(&self, end: Instant) {
        for line in self.lines.values() {
            line.flush_now();
        }
        let all = async {
            for line in self.lines.values() {
                line.emptied().await;
            }
        };
        // The number of those that do not end in time is logged below.
        let _ = tokio::time::timeout_at(end, all).await;
        // A cluster's log has what is left for the next node.
        // From now on nothing that is dropped counts as done.
        self.door.close();
        let left: usize = self.lines.values().map(WebhookQueue::len).sum();
        match &self.spool {
            Some(spool) => {
                spool.end();
                if spool.count() > 0 {
                    info!(kept = spool.count(), "webhook events are kept for the next run");
                }
            }
            None if left > 0 && !self.door.is_to_a_log() => {
                warn!(lost = left, "webhook events were not sent; webhooks.spool would keep them");
            }
            None => {}
        }
    }
}

/// The server starts without it: webhooks are not worth refusing clients.
fn opened(folder: &Path) -> Option<Rc<Spool>> {
    match Spool::open(folder) {
        Ok(spool) => Some(Rc::new(spool)),
        Err(error) => {
            let folder = folder.display();
            warn!(%error, %folder, "the webhook spool cannot be used: what waits is lost with a crash");
            None
        }
    }
}

/// Milliseconds since 1970.
fn millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Between half and all of `pause`, so that lines that failed together do not try together.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without chance it is the whole pause.
    let _ = getrandom::fill(&mut byte);
    pause - pause / 2 * u32::from(byte[0]) / 255
}
