//! Facts for webhooks. A single server passes them to `webhook` directly. A node of a cluster writes them to the app's
//! log, and the node that reads that log passes them on. Topics of watchlists produce no webhooks.

use std::sync::Arc;

use tracing::trace;

use super::{Node, ServerState, sends_count};
use crate::app::{App, AppId, Apps, Webhook, WebhookEvent};
use crate::cluster::link::{Link, LinkMetrics, LinkRequest};
use crate::cluster::log_entries::{LogEntry, RestatedHold, ToldAs, parse_held, parse_restated};
use crate::cluster::topics::TopicInterest;
use crate::cluster::webhook_log::{LogBatch, LogRequest, WebhookInterest};
use crate::protocol::channel::ChannelName;
use crate::webhook::{EntryContent, Fact, LoggedEntry};

/// The changes of a channel that webhooks and subscribers want. Sent to Redis with each change, so that it need not
/// know the app's settings; unwanted ones cost nothing there.
pub(super) fn topic_interest(app: &App, channel: &ChannelName) -> TopicInterest {
    let asks = |events: [WebhookEvent; 2]| {
        app.webhooks.iter().any(|webhook| events.iter().any(|one| webhook.events.contains(one)))
    };
    TopicInterest {
        count: sends_count(app, channel),
        news: WebhookInterest {
            channels: asks([WebhookEvent::ChannelOccupied, WebhookEvent::ChannelVacated]),
            members: asks([WebhookEvent::MemberAdded, WebhookEvent::MemberRemoved]),
        },
    }
}

/// Says which apps have webhooks, whenever the apps have changed since they were last looked at.
#[derive(Default)]
pub(super) struct WebhookAppsNotifier(Option<Arc<Apps>>);

impl WebhookAppsNotifier {
    /// Compared by pointer: apps are replaced as a whole on reload, and looked up ones too.
    pub(super) fn notify_if_changed(&mut self, apps: &Arc<Apps>, link: &Link) {
        if self.0.as_ref().is_some_and(|before| Arc::ptr_eq(before, apps)) {
            return;
        }
        let with = apps.iter().filter(|app| !app.webhooks.is_empty());
        let counts = |app: &App| {
            let asks =
                |webhook: &Webhook| webhook.events.contains(&WebhookEvent::SubscriptionCount);
            app.features.subscription_count && app.webhooks.iter().any(asks)
        };
        let with = with.map(|app| (app.id.clone(), counts(app)));
        link.send_request(LinkRequest::WebhookLog(LogRequest::Apps(with.collect())));
        self.0 = Some(apps.clone());
    }
}

impl Node {
    /// Leaves a fact for the app's webhooks.
    pub(super) fn report_fact<T>(
        &self,
        app: &Arc<App>,
        what: Option<T>,
        fact: impl FnOnce(T) -> Fact,
    ) {
        if let Some(what) = what.filter(|_| !app.webhooks.is_empty()) {
            self.shared.report_fact(app, fact(what));
        }
    }
}

impl ServerState {
    /// Reports a fact to webhooks. In a cluster only facts with a text are written by this node. Begins and ends
    /// follow from the holds in Redis, and are reported by the node that reads the app's log.
    pub(super) fn report_fact(&self, app: &Arc<App>, fact: Fact) {
        let Some(others) = self.scope.others() else { return self.webhooks.send(app, fact) };
        if let Some(text) = fact.text().filter(|_| fact.is_asked_for(app)) {
            let link = others.link();
            if link.is_crowded(&app.id) {
                return LinkMetrics::add_count(&link.figures().webhook_facts_dropped, 1);
            }
            let (app, held) = (app.id.clone(), others.topics.held.of_app(&app.id));
            let happened = LinkRequest::WebhookLog(LogRequest::Happened { app, text });
            link.send_counted(happened, &held);
        }
    }

    /// Leaves what an app's log says at the webhooks' door.
    /// The link knows nothing of webhooks but texts; here they become what webhooks understand.
    pub(super) fn process_log_batch(&self, told: LogBatch) {
        match told {
            LogBatch::Entries { app, entries } => {
                let known = self.apps.load().by_id(app.as_str()).cloned();
                let entries = entries.into_iter().map(|LogEntry { id, text }| {
                    trace!(%id, text, "an entry of the webhook log");
                    let turned = parse_held(&text)
                        .map(|(is, channel, user)| EntryContent::Turned(is, channel, user));
                    let what = turned.or_else(|| parse_restated(&text).map(restated));
                    LoggedEntry { id, what: what.unwrap_or(EntryContent::Text(text)) }
                });
                self.webhooks.read(app, known, entries.collect());
            }
            LogBatch::Held { app, until, read_up_to } => self.webhooks.hold(app, until, read_up_to),
            LogBatch::Lost(app) => self.webhooks.leave_to_others(app),
        }
    }
}

/// An entry that says how something was told before a failover.
fn restated((told, is, channel, user): RestatedHold) -> EntryContent {
    let told = match told {
        ToldAs::Begun => Some(true),
        ToldAs::Ended => Some(false),
        ToldAs::Unknown => None,
    };
    EntryContent::Restated { told, turned: (is, channel, user) }
}

/// Takes entries of logs that are done with back to the link.
/// An entry stays in the log until every endpoint has taken, or given up, what it led to.
pub fn acknowledger(link: Link) -> impl Fn(&AppId, &str) + Send {
    move |app, id| {
        link.send_request(LinkRequest::WebhookLog(LogRequest::Done {
            app: app.clone(),
            id: id.into(),
        }));
    }
}
