//! Sends one webhook's events: in order, one request at a time, retried with growing pauses for five minutes, in
//! bounded memory. A dead endpoint delays only its own queue.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::cluster_log::OfficeHold;
use super::delivery::{DeliveryFailure, WebhookClient};
use super::line::{EventLine, Persistence, QueuedContent, QueuedEvent};
use super::message::{MessageContent, WebhookMessage};
use super::queue_metrics::QueueMetrics;
use super::spool::{Spool, SpooledEvent};
use super::{jittered, millis};
use crate::app::{App, Webhook};
use crate::console::Kind;
use crate::metrics::HeldBytes;

/// Events and bytes of their texts that may wait in one line. Beyond them the newest are left out.
/// At a few hundred bytes each a few megabytes: what an endpoint can be behind without being dead.
const MAX_EVENTS: usize = 10_000;
/// Bytes of events that wait in a queue.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// As much again for what is there and what is not. Of a channel or a member one event waits at most, so that there
/// are no more than there are channels and members, and a stranger cannot fill the line with what comes to nothing. A
/// cluster's log may have several, but keeps no more entries than this itself, and what is dropped here is gone from it.
const MAX_TURNS: usize = 200_000;
/// Bytes of such events in one queue.
const MAX_TURN_BYTES: usize = 64 << 20;

/// Events and bytes of one request with several.
const MAX_BATCH_EVENTS: usize = 1_000;
/// Bytes of events in one request.
const MAX_BATCH_BYTES: usize = 256 << 10;

/// For how long after it happened an event is tried again; milliseconds.
pub(super) const RETRY_FOR_MS: u64 = 300_000;

/// The pause after the first try that failed; it doubles with each up to the longest.
/// Half a second hides a restart; 30 s is polite to an endpoint that is down.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A line, as the desk holds it. Dropped, it ends.
pub(super) struct WebhookQueue {
    /// Shared with the task that sends.
    state: Rc<QueueState>,
    /// Ends with the line.
    task: AbortHandle,
}

impl Drop for WebhookQueue {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The state of a queue, shared with its task.
struct QueueState {
    /// As they are configured now.
    /// Replaced on reload; a request that is under way keeps what it began with.
    hook: RefCell<(Arc<App>, Webhook)>,
    line: RefCell<EventLine>,
    /// Bytes that are counted for the app.
    counted: Cell<usize>,
    /// The app's held memory.
    held: Arc<HeldBytes>,
    figures: Arc<QueueMetrics>,
    /// Wakes the task: something came, or what held it up is over.
    more: Notify,
    /// Wakes tasks that wait for the queue to empty.
    emptied: Notify,
    /// The queue on disk, if there is one.
    spool: Option<Rc<Spool>>,
    /// The server ends: no more pauses to gather events.
    is_ending: Cell<bool>,
}

impl WebhookQueue {
    /// Starts the task that sends; one for each queue, so that a slow endpoint delays no other.
    pub(super) fn begin(
        app: Arc<App>,
        index: usize,
        webhook: Webhook,
        (post, held): (WebhookClient, Arc<HeldBytes>),
        spool: Option<Rc<Spool>>,
    ) -> Self {
        let figures = QueueMetrics { app: app.id.to_string(), index, ..QueueMetrics::default() };
        let state = Rc::new(QueueState {
            hook: RefCell::new((app, webhook)),
            line: RefCell::default(),
            counted: Cell::new(0),
            held,
            figures: Arc::new(figures),
            more: Notify::new(),
            emptied: Notify::new(),
            spool,
            is_ending: Cell::new(false),
        });
        let task = spawn_local(run(state.clone(), post)).abort_handle();
        Self { state, task }
    }

    /// For the metrics, which outlive the line's present settings.
    pub(super) fn figures(&self) -> Arc<QueueMetrics> {
        self.state.figures.clone()
    }

    /// Goes on with the webhook as it is configured now.
    pub(super) fn renew(&self, app: &Arc<App>, webhook: &Webhook) {
        let mut hook = self.state.hook.borrow_mut();
        if !Arc::ptr_eq(&hook.0, app) {
            *hook = (app.clone(), webhook.clone());
        }
    }

    /// Queues an event that happened at `at`. One that is not kept elsewhere is spooled. An event that undoes a
    /// waiting one removes that instead.
    pub(super) fn put(&self, at: u64, event: &WebhookMessage, persistence: Persistence) {
        // A cluster's log has settled that before.
        if !matches!(persistence, Persistence::Logged(_)) {
            let undone = self.state.line.borrow_mut().take_back(event);
            if let Some(undone) = undone {
                self.state.let_go(undone);
                self.state.update_metrics();
                return self.state.let_go(persistence);
            }
        }
        self.enter(QueuedEvent { at, content: QueuedContent::Message(event.clone()), persistence });
    }

    /// Puts in an event that the spool has kept under the number `spooled`.
    pub(super) fn put_again(&self, at: u64, json: Box<str>, spooled: u64) {
        let (content, persistence) = (QueuedContent::Json(json), Persistence::Spooled(spooled));
        self.enter(QueuedEvent { at, content, persistence });
    }

    /// Comings and goings have a bound of their own, so that client events and counts cannot push them out.
    fn enter(&self, mut event: QueuedEvent) {
        let state = &self.state;
        let bytes = state.line.borrow().text_bytes() + event.content.text_bytes();
        let is_turn = match &event.content {
            QueuedContent::Message(message) => {
                matches!(message.what, MessageContent::Turned { .. })
            }
            QueuedContent::Json(_) | QueuedContent::TakenBack => false,
        };
        let turns = usize::from(is_turn);
        let (most, most_bytes) =
            (MAX_EVENTS + turns * MAX_TURNS, MAX_EVENT_BYTES + turns * MAX_TURN_BYTES);
        if self.len() >= most || bytes > most_bytes {
            // Told once for each line; the metric has the number.
            if state.figures.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                let (app, index) = (&state.figures.app, state.figures.index);
                warn!(%app, index, "a webhook's queue is full: its newest events are dropped");
            }
            return state.let_go(event.persistence);
        }
        if matches!(event.persistence, Persistence::Not) {
            // Only now, when it is sure to be in line.
            let kept = state.keep(event.at, &event.content);
            event.persistence = kept.map_or(Persistence::Not, Persistence::Spooled);
        }
        state.line.borrow_mut().push(event);
        state.update_metrics();
        state.more.notify_one();
    }

    /// Events that waited for a certain office may continue.
    pub(super) fn go_on(&self) {
        self.state.more.notify_one();
    }

    /// Sends without gathering from now on.
    pub(super) fn flush_now(&self) {
        self.state.is_ending.set(true);
        self.state.more.notify_one();
    }

    /// Waits until nothing is in line.
    pub(super) async fn emptied(&self) {
        while !self.state.line.borrow().is_empty() {
            self.state.emptied.notified().await;
        }
    }

    /// How many events are in line.
    pub(super) fn len(&self) -> usize {
        self.state.line.borrow().len()
    }
}

impl QueueState {
    /// Puts an event into the spool, if there is one; its number there.
    /// `None` where there is no spool.
    fn keep(&self, at: u64, content: &QueuedContent) -> Option<u64> {
        let spool = self.spool.as_ref()?;
        let mut json = Vec::new();
        content.write_json(&mut json);
        let hook = self.hook.borrow();
        let mut kept = SpooledEvent {
            n: 0,
            app: self.figures.app.clone(),
            index: self.figures.index,
            url: hook.1.url.clone(),
            at,
            event: RawValue::from_string(String::from_utf8(json).ok()?).ok()?,
        };
        spool.keep(&mut kept);
        Some(kept.n)
    }

    /// Gives up what kept an event that is not to be sent.
    fn let_go(&self, persistence: Persistence) {
        if let (Some(spool), Persistence::Spooled(number)) = (&self.spool, persistence) {
            spool.done(vec![number]);
        }
    }

    /// Called whenever the line has changed.
    fn update_metrics(&self) {
        let line = self.line.borrow();
        // Relaxed: gauges for the metrics page.
        self.figures.queued.store(line.len() as u64, Ordering::Relaxed);
        let oldest = line.front().map_or(0, |waiting| waiting.at);
        self.figures.oldest.store(oldest, Ordering::Relaxed);
        let bytes = line.held_bytes();
        self.held.replace_bytes(self.counted.replace(bytes), bytes);
    }

    /// Removes events that another node reports; returns whether the first may be sent now. Only events of a
    /// cluster's log can be in doubt.
    fn may_send(&self) -> bool {
        let lost_in_front = self.line.borrow().iter().take_while(|one| one.is_lost()).count();
        self.remove(lost_in_front);
        match self.line.borrow().front().map(|one| &one.persistence) {
            Some(Persistence::Logged(receipt)) => receipt.office() == OfficeHold::Sure,
            _ => true,
        }
    }

    /// How many places of the line the next request takes, how many events it has, and its body.
    /// `None` if nothing is left.
    fn next(&self) -> Option<(usize, usize, Vec<u8>)> {
        let together = !self.hook.borrow().1.batch.is_zero();
        let line = self.line.borrow();
        let mut body = format!("{{\"time_ms\":{},\"events\":[", millis()).into_bytes();
        let most = if together { MAX_BATCH_EVENTS } else { 1 };
        let (mut places, mut count) = (0, 0);
        for QueuedEvent { content, .. } in line.iter().take_while(|one| !one.is_lost()) {
            let before = body.len();
            if !matches!(content, QueuedContent::TakenBack) {
                if count == most {
                    break;
                }
                if count > 0 {
                    body.push(b',');
                }
                content.write_json(&mut body);
                // One event alone may be larger.
                if count > 0 && body.len() > MAX_BATCH_BYTES {
                    body.truncate(before);
                    break;
                }
                count += 1;
            }
            places += 1;
        }
        body.extend_from_slice(b"]}");
        (places > 0).then_some((places, count, body))
    }

    /// Takes the first `count` out.
    /// They are done with: the spool and the log may forget them.
    fn remove(&self, count: usize) {
        let spooled = self.line.borrow_mut().remove(count);
        if let Some(spool) = self.spool.as_ref().filter(|_| !spooled.is_empty()) {
            spool.done(spooled);
        }
        self.update_metrics();
        if self.line.borrow().is_empty() {
            self.emptied.notify_one();
        }
    }

    /// Gives up those in front that are too old to be tried again.
    /// By when they happened, not by how often they were tried.
    fn give_up(&self) {
        let before = millis().saturating_sub(RETRY_FOR_MS);
        let old = self.line.borrow().iter().take_while(|one| one.at <= before).count();
        if old > 0 {
            // Relaxed: a counter for the metrics page.
            self.figures.dropped.fetch_add(old as u64, Ordering::Relaxed);
            self.remove(old);
            let (app, index) = (&self.figures.app, self.figures.index);
            warn!(%app, index, dropped = old, "webhook events were tried for five minutes");
        }
    }

    /// One request; whether it was taken.
    async fn try_once(&self, post: &WebhookClient) -> bool {
        let Some((places, count, body)) = self.next() else { return true };
        // All of them were taken back.
        if count == 0 {
            self.remove(places);
            return true;
        }
        // Noted before it is sent.
        self.line.borrow_mut().note_tried(places);
        let (app, webhook) = self.hook.borrow().clone();
        // Relaxed: as the other counters.
        self.figures.tries.fetch_add(1, Ordering::Relaxed);
        let sent = post.send(&app, &webhook, body).await;
        let (id, index) = (&self.figures.app, self.figures.index);
        // Relaxed: only this task writes it.
        let failed_before = self.figures.failing.swap(sent.is_err(), Ordering::Relaxed);
        match sent {
            Ok(()) => {
                // Relaxed: as the other counters.
                self.figures.sent.fetch_add(count as u64, Ordering::Relaxed);
                self.remove(places);
                post.console.send(Kind::WebhookSent, |fact| {
                    fact.app(id.as_str()).count(count).more("webhook", index.to_string())
                });
                if failed_before {
                    warn!(app = %id, index, "a webhook's endpoint answers again");
                }
                true
            }
            Err(failure) => {
                // Relaxed: as the other counters.
                self.figures.failures.fetch_add(1, Ordering::Relaxed);
                // Neither the URL, in which a token may stand, nor what was sent is logged.
                let problem = match &failure {
                    DeliveryFailure::Status(status) => format!("it answered {status}"),
                    DeliveryFailure::Time => "it did not answer in time".to_owned(),
                    DeliveryFailure::Connection(problem) => problem.clone(),
                };
                post.console.send(Kind::WebhookFailed, |fact| {
                    let fact = fact.app(id.as_str()).count(count).why(problem.as_str());
                    fact.more("webhook", index.to_string())
                });
                if failed_before {
                    debug!(app = %id, index, "a webhook's endpoint fails: {problem}");
                } else {
                    warn!(app = %id, index, "a webhook's endpoint fails: {problem}");
                }
                false
            }
        }
    }
}

/// Events of a queue that ends are no longer counted.
impl Drop for QueueState {
    fn drop(&mut self) {
        self.held.sub_bytes(self.counted.get());
    }
}

/// Sends what is in line for as long as the line is.
/// One request at a time keeps the order; the next begins when the last is answered.
async fn run(state: Rc<QueueState>, post: WebhookClient) {
    let mut pause = FIRST_RETRY;
    loop {
        if state.line.borrow().is_empty() {
            state.more.notified().await;
            let batch = state.hook.borrow().1.batch;
            // Gathers what follows the first, for as long as the webhook's `batch` says.
            if !batch.is_zero() && !state.is_ending.get() {
                sleep(batch).await;
            }
            continue;
        }
        if !state.may_send() {
            // Woken by `go_on` once the lease is renewed.
            state.more.notified().await;
            continue;
        }
        if state.try_once(&post).await {
            pause = FIRST_RETRY;
            continue;
        }
        state.give_up();
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

#[cfg(test)]
mod tests;
