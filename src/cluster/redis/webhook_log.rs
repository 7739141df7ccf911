//! Writing and reading the webhook logs. Every node writes its facts; one node per app holds an office under its lease,
//! renewed as it reads, and takes entries out. An entry stays until it is acknowledged, so that the next holder
//! continues where the last one stopped.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::batch::CommandBatch;
use super::lease::RENEWALS_PER_LEASE;
use super::leases::Lease;
use super::server::LeasedCommand;
use super::session::LinkWriter;
use super::slots::of_name;
use super::{LinkError, LinkState, PATIENCE};
use crate::app::AppId;
use crate::cluster::link::{LinkEvent, LinkMetrics};
use crate::cluster::reply;
use crate::cluster::scripts::webhook_log::{
    LogReadArgs, LogReadReply, LogWriteArgs, LogWriteReply, OfficeGrant, OfficeWish,
};
use crate::cluster::webhook_log::{AppHooks, AppLog, LogBatch, LogRequest, MAX_LOGGED};

/// Most entries that one script writes or reads.
const MAX_ENTRIES: usize = 1000;

/// How often the log is looked at by who has the office, when nothing has been in it for a while.
const IDLE: Duration = Duration::from_millis(500);

/// How long after an entry a log is read as often as counts are announced.
const BUSY: Duration = Duration::from_secs(10);

impl LinkState {
    /// Takes what there is to say.
    pub(super) fn queue_log_request(&mut self, request: LogRequest, figures: &LinkMetrics) {
        if !self.webhook_log.take_request(request) {
            LinkMetrics::add_count(&figures.webhook_facts_dropped, 1);
        }
    }
}

impl LinkWriter<'_> {
    /// Says what is to be said, and looks into the logs where it is time to.
    pub(super) async fn sync_webhook_logs(&mut self) -> Result<(), LinkError> {
        self.subscribe_wakeups().await?;
        self.kept.webhook_log.queue_restated(false);
        self.write_logs().await?;
        for (app, anew) in self.dedup.borrow_mut().take_wakeups() {
            self.kept.webhook_log.wake(&app, anew);
        }
        let (now, lease) = (Instant::now(), self.settings.lease);
        let due = |of: &AppLog| {
            let busy = of.busy.is_some_and(|at| now - at < BUSY);
            let pause = match (of.owned, of.asleep) {
                (true, false) if busy => Duration::ZERO,
                (true, false) => IDLE.min(lease / RENEWALS_PER_LEASE),
                // Something wakes it, but for what may be lost.
                _ => lease,
            };
            !of.done.is_empty() || of.looked.is_none_or(|at| now - at >= pause)
        };
        let apps = self.kept.webhook_log.apps.iter().filter(|(_, of)| due(of));
        let apps = apps.filter(|(app, _)| !self.is_app_away(app));
        let apps: Vec<AppId> = apps.map(|(app, _)| app.clone()).collect();
        self.read_logs(apps, false).await?;
        let figures = &self.status.figures;
        let owned = || self.kept.webhook_log.apps.values().filter(|of| of.owned);
        // Relaxed: gauges for the metrics page.
        figures.webhook_apps.store(owned().count() as u64, Ordering::Relaxed);
        let backlog = owned().map(|of| of.backlog).sum();
        figures.webhook_backlog.store(backlog, Ordering::Relaxed);
        Ok(())
    }

    /// Says all that is held of some apps, under a new lease.
    pub(super) async fn resend_holds(
        &mut self,
        is_of: impl Fn(&AppId) -> bool,
    ) -> Result<(), LinkError> {
        let apps = self.kept.webhook_log.apps.keys();
        let away: BTreeSet<AppId> = apps.filter(|app| self.is_app_away(app)).cloned().collect();
        self.kept.webhook_log.resend_holds(away, is_of);
        self.write_logs().await
    }

    /// Gives up this node's offices, so that other nodes need not wait until they expire.
    pub(super) async fn release_offices(&mut self) -> Result<(), LinkError> {
        self.kept.webhook_log.queue_restated(true);
        self.write_logs().await?;
        let apps =
            self.kept.webhook_log.apps.iter().filter(|(_, of)| of.owned || !of.done.is_empty());
        let apps = apps.map(|(app, _)| app.clone()).collect();
        self.read_logs(apps, true).await
    }

    /// The server with that tag has lost its data, which was found so long ago.
    pub(super) fn note_emptied_logs(&mut self, tag: u16, since: Duration) {
        let place = |name: &str| self.servers.slots.get(usize::from(of_name(name.as_bytes())));
        let (own, keys) = (self.keys.fence_key(tag), self.keys);
        let is_its = |app: &AppId| place(&keys.app_key(app, 't')) == place(&own);
        let now = Instant::now();
        let began = now.checked_sub(since).unwrap_or(now);
        // Others take a node for gone that was silent for four renewals; it may take another until all is said.
        let patience = self.settings.lease * 3 / RENEWALS_PER_LEASE;
        self.kept.webhook_log.note_emptied(is_its, began, patience);
    }

    /// Subscribes to the wake-up topics of all apps with webhooks.
    async fn subscribe_wakeups(&mut self) -> Result<(), LinkError> {
        let new = self
            .kept
            .webhook_log
            .apps
            .iter()
            .filter(|(_, of)| of.hooks != AppHooks::None && !of.listening)
            .filter(|(app, _)| !self.is_app_away(app));
        let new: Vec<AppId> = new.map(|(app, _)| app.clone()).collect();
        let gone = std::mem::take(&mut self.kept.webhook_log.forgotten);
        if new.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let name = |app: &AppId| self.keys.wakeup_topic(app);
        let (names, gone) = (new.iter().map(name), gone.iter().map(name));
        let (names, gone): (Vec<String>, Vec<String>) = (names.collect(), gone.collect());
        if !gone.is_empty() {
            // Where a master is lost meanwhile a wake-up too many may come.
            timeout(PATIENCE, self.servers.unsubscribe_topics(&gone)).await??;
        }
        if !names.is_empty() {
            timeout(PATIENCE, self.servers.subscribe_topics(&names)).await??;
        }
        for app in new {
            if let Some(of) = self.kept.webhook_log.apps.get_mut(&app) {
                // It may have been woken before.
                (of.listening, of.looked) = (true, None);
            }
        }
        Ok(())
    }

    /// The topics of some slots have to be subscribed to anew.
    pub(super) fn follow_moved_wakeups(&mut self, has_moved: impl Fn(&str) -> bool) {
        for (app, of) in &mut self.kept.webhook_log.apps {
            of.listening &= !has_moved(&self.keys.wakeup_topic(app));
        }
    }

    /// The reader of these apps' logs may have gone.
    pub(super) fn recheck_offices<'a>(&mut self, apps: impl Iterator<Item = &'a str>) {
        for app in apps {
            if let Some(of) = self.kept.webhook_log.apps.get_mut(&AppId::new(app)) {
                of.looked = None;
            }
        }
    }

    /// Writes waiting entries of all apps to their logs, in batches.
    pub(super) async fn write_logs(&mut self) -> Result<(), LinkError> {
        loop {
            let mut batch = CommandBatch::new();
            let (servers, keys) = (&self.servers, self.keys);
            let is_there = |app: &AppId| !servers.is_away(&keys.app_key(app, 't'));
            // From here on Redis may have them, whether or not it answers.
            let asked = self.kept.webhook_log.apps.iter_mut().filter(|(app, _)| is_there(app));
            asked.for_each(|(_, of)| of.queue.note_asked(MAX_ENTRIES));
            let apps = self.kept.webhook_log.apps.iter().filter(|(_, of)| !of.queue.is_empty());
            for (app, of) in apps.filter(|(app, _)| !self.is_app_away(app)) {
                let count = of.queue.len().min(MAX_ENTRIES);
                let said = of.queue.iter().take(count);
                let said = said.map(|entry| (entry.signed(), &*entry.text));
                batch.add_command(
                    self.add_log_writes(app, (None, &of.marker), said),
                    (app.clone(), count),
                );
            }
            if batch.is_empty() {
                return Ok(());
            }
            for ((app, count), value) in batch.send_all(&mut self.servers, self.status).await? {
                self.confirm_writes(&app, count, &value)?;
            }
        }
    }

    /// The script call that writes entries of one app, under this node's lease or under a `cleared` one.
    fn add_log_writes<'a>(
        &self,
        app: &AppId,
        (cleared, marker): (Option<&str>, &str),
        said: impl Iterator<Item = (String, &'a str)>,
    ) -> LeasedCommand {
        let keys = [
            self.keys.app_key(app, 'o'),
            self.keys.held_of_leases(app),
            self.keys.app_key(app, 'w'),
            self.keys.app_key(app, 'e'),
            self.keys.app_key(app, 'b'),
            self.keys.said(app),
        ];
        let write = LogWriteArgs {
            marker,
            new_marker: self.servers.current_leases().next().map_or("", |lease| &lease.id),
            most: MAX_LOGGED,
            held_key: format!("w{app}"),
            wakeup_topic: self.keys.wakeup_topic(app),
            node: format!("{:x}", self.kept.node),
            cleared,
        };
        write.call(&keys, said).into()
    }

    /// Reads the reply to a write: removes what was written, and notes what did not fit.
    fn confirm_writes(
        &mut self,
        app: &AppId,
        count: usize,
        value: &Value,
    ) -> Result<(), LinkError> {
        let reply = LogWriteReply::parse(value).ok_or(LinkError::Unexpected)?;
        let Some(of) = self.kept.webhook_log.apps.get_mut(app) else { return Ok(()) };
        let is_new = reply.marker.is_some_and(|marker| *marker != of.marker);
        let refused = if is_new { of.restated_of(count) } else { Vec::new() };
        of.note_written(count);
        of.note_refused(refused);
        // This node's own entries need not wake it.
        if of.owned || !reply.has_reader {
            of.looked = None;
        }
        LinkMetrics::add_count(&self.status.figures.news_said, count as u64);
        LinkMetrics::add_count(&self.status.figures.webhook_facts_dropped, reply.dropped);
        if let Some(marker) = reply.marker.filter(|marker| *marker != of.marker) {
            // The log is a new one too.
            of.read = None;
            of.marker = marker.to_owned();
        }
        Ok(())
    }

    /// Looks into the logs of some apps, as who has the office as long as the lease lasts, or gives it up.
    pub(super) async fn read_logs(
        &mut self,
        apps: Vec<AppId>,
        gives_up: bool,
    ) -> Result<(), LinkError> {
        let reads = apps.into_iter().map(|app| (app, String::new())).collect();
        let elsewhere = self.read_logs_of(reads, gives_up).await?;
        if elsewhere.is_empty() {
            return Ok(());
        }
        let fences = self.look_at(elsewhere.iter().map(|(_, lease)| lease.tag).collect()).await?;
        let is_held = |of: &Lease| {
            // The state of a lease on a master that is away is unknown.
            if self.servers.is_away(&self.keys.fence_key(of.tag)) {
                return true;
            }
            let mut fences = fences.iter().filter(|(tag, _)| *tag == of.tag);
            fences.any(|(_, fence)| fence.knows(&of.id))
        };
        let lapsed = elsewhere.into_iter().filter(|(_, lease)| !is_held(lease));
        let lapsed = lapsed.map(|(app, lease)| (app, lease.id)).collect();
        self.read_logs_of(lapsed, gives_up).await.map(drop)
    }

    /// The same, each with a lease that is known to hold no more. Where another node has the office under a lease that
    /// its script cannot see, that is answered.
    async fn read_logs_of(
        &mut self,
        reads: Vec<(AppId, String)>,
        gives_up: bool,
    ) -> Result<Vec<(AppId, Lease)>, LinkError> {
        let mut batch = CommandBatch::new();
        let node = format!("{:x}", self.kept.node);
        for (app, lapsed) in reads {
            let keys = [self.keys.app_key(&app, 'b'), self.keys.app_key(&app, 'w')];
            let Some(of) = self.kept.webhook_log.apps.get(&app) else { continue };
            let busy = of.busy.is_some_and(|at| at.elapsed() < BUSY);
            let sleeps = of.owned && of.listening && !busy;
            let wish = match (gives_up || of.is_over(), sleeps) {
                (true, _) => OfficeWish::Release,
                (false, true) => OfficeWish::Sleep,
                (false, false) => OfficeWish::Hold,
            };
            let done = of.done.len().min(MAX_ENTRIES);
            let read = LogReadArgs {
                node: &node,
                wish,
                wakeup_topic: self.keys.wakeup_topic(&app),
                held_key: format!("w{app}"),
                after: of.read.as_deref(),
                most: MAX_ENTRIES,
                lapsed,
            };
            let read = read.call(&keys, of.done.iter().take(done).map(|id| &**id));
            batch.add_command(read, (app, done, sleeps));
        }
        // The lease was renewed a sixth of it ago at most, and lapses after four. The rest of the time is left for what
        // is being posted when it has passed.
        let until = Instant::now() + self.settings.lease * 2 / RENEWALS_PER_LEASE;
        let mut elsewhere = Vec::new();
        for ((app, done, sleeps), value) in batch.send_all(&mut self.servers, self.status).await? {
            let mut reply = LogReadReply::parse(&value).ok_or(LinkError::Unexpected)?;
            if let Some((id, tag)) = reply.elsewhere.take() {
                elsewhere.push((app.clone(), Lease { tag, id }));
            }
            self.note_read(app, (done, sleeps, until), reply).await?;
        }
        Ok(elsewhere)
    }

    /// Reads the reply to a read: hands entries out, and notes whether this node holds the office.
    async fn note_read(
        &mut self,
        app: AppId,
        (done, sleeps, until): (usize, bool, Instant),
        reply: LogReadReply,
    ) -> Result<(), LinkError> {
        let Some(of) = self.kept.webhook_log.apps.get_mut(&app) else { return Ok(()) };
        let now = Instant::now();
        of.looked = Some(now);
        let LogReadReply { office, backlog, entries, time, .. } = reply;
        of.taken_out(done);
        of.backlog = backlog;
        let had = std::mem::replace(&mut of.owned, office != OfficeGrant::No);
        of.asleep = sleeps && office == OfficeGrant::Still && of.backlog == 0;
        if had && office != OfficeGrant::Still {
            // Another had it, or may have: what was read is read again by who has it now.
            of.read = None;
            of.looked = None;
            return self.send_event(LinkEvent::WebhookLog(LogBatch::Lost(app))).await;
        }
        if !of.owned {
            self.kept.webhook_log.forget_if_done(&app);
            return Ok(());
        }
        let mut read_up_to = time;
        if let Some(last) = entries.last() {
            of.read = Some(last.id.clone());
            of.busy = Some(now);
            of.note_read(&entries);
            if entries.len() == MAX_ENTRIES {
                let at = last.id.split('-').next().and_then(|at| at.parse().ok());
                // A full page may not be the whole log, so only what its last entry covers is known to be read.
                read_up_to = at.unwrap_or_default();
            }
            let app = app.clone();
            self.send_event(LinkEvent::WebhookLog(LogBatch::Entries { app, entries })).await?;
        } else {
            self.kept.webhook_log.forget_if_done(&app);
        }
        self.send_event(LinkEvent::WebhookLog(LogBatch::Held { app, until, read_up_to })).await
    }

    /// Ends what a lease held.
    pub(super) async fn clear_webhook_log(
        &mut self,
        app: &AppId,
        lease: &str,
    ) -> Result<(), LinkError> {
        let mut batch = CommandBatch::new();
        let mut all = cmd("SMEMBERS");
        all.arg(self.keys.lease_held(app, lease));
        batch.add_command(all, ());
        let answers = batch.send_all(&mut self.servers, self.status).await?;
        // One command, one answer: without it there is nothing to compare.
        let all = answers.first().map(|(_, value)| reply::as_list(value)).unwrap_or_default();
        let mut names: Vec<&str> = all.iter().filter_map(reply::as_text).collect();
        debug!(%app, lease, names = names.len(), "holds of a lease end");
        // Members leave before their channel is empty.
        names.sort_unstable_by(|one, other| other.cmp(one));
        let mut batch = CommandBatch::new();
        for some in names.chunks(MAX_ENTRIES) {
            let said = some.iter().map(|name| ("-".to_owned(), *name));
            batch.add_command(self.add_log_writes(app, (Some(lease), ""), said), ());
        }
        batch.send_all(&mut self.servers, self.status).await?;
        Ok(())
    }
}
