//! Metrics of webhooks: the state of each queue, and facts that wait.

use super::{Scrape, count};
use crate::metrics::MetricsPage;
use crate::webhook;

impl Scrape {
    /// By app and the webhook's place among those of its app: its URL may hold a token.
    pub(super) fn write_webhooks(&self, page: &mut MetricsPage) {
        let hooks = self.shared.webhooks.figures();
        let places: Vec<String> = hooks.iter().map(|hook| hook.index.to_string()).collect();
        let labels: Vec<[(&str, &str); 2]> = hooks
            .iter()
            .zip(&places)
            .map(|(hook, place)| [("app", hook.app.as_str()), ("webhook", place.as_str())])
            .collect();
        let of_all = |read: fn(&webhook::QueueMetrics) -> f64| {
            labels.iter().zip(&hooks).map(move |(labels, hook)| (&labels[..], read(hook)))
        };
        let (waiting, dropped) = self.shared.webhooks.facts();
        let help = "Facts that wait to be turned into webhook events.";
        page.add_gauges("webhook_facts", help, [(&[][..], waiting as f64)]);
        let help = "Facts dropped because too many waited.";
        page.add_counters("webhook_facts_dropped_total", help, [(&[][..], dropped as f64)]);
        let help = "Events that wait for a webhook's endpoint.";
        page.add_gauges("webhook_queue", help, of_all(|hook| count(&hook.queued)));
        let help = "Age of the oldest event that waits.";
        page.add_gauges("webhook_oldest_seconds", help, of_all(webhook::QueueMetrics::age));
        let help = "1 while a webhook's endpoint fails.";
        let failing = |hook: &webhook::QueueMetrics| f64::from(u8::from(hook.is_failing()));
        page.add_gauges("webhook_failing", help, of_all(failing));
        let help = "Events that a webhook's endpoint accepted.";
        page.add_counters("webhook_sent_total", help, of_all(|hook| count(&hook.sent)));
        let help = "Events dropped: older than five minutes, or too many.";
        page.add_counters("webhook_dropped_total", help, of_all(|hook| count(&hook.dropped)));
        let help = "Requests to a webhook's endpoint.";
        page.add_counters("webhook_tries_total", help, of_all(|hook| count(&hook.tries)));
        let help = "Requests to a webhook's endpoint that failed or were not answered with 2xx.";
        page.add_counters("webhook_failures_total", help, of_all(|hook| count(&hook.failures)));
    }
}
