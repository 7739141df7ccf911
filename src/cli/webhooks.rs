//! The state of a server's webhooks and its open-file limit, from its metrics: `fanfare doctor` queries the metrics
//! port, or the server itself if they are served there.

use std::collections::BTreeMap;

use super::client::ApiTarget;
use super::hints::{MIN_OPEN_FILES, MORE_OPEN_FILES};
use super::report::{Grade, Report};
use super::without_controls;
use crate::config::MetricsConfig;

/// The subject of these findings in the report.
const SUBJECT: &str = "webhooks";

/// One webhook: an app's id, and the webhook's place among those of its app.
type WebhookRef = (String, String);

/// The health of one webhook, by the metrics page.
#[derive(Default, PartialEq, Debug)]
struct WebhookHealth {
    /// Whether its last request failed.
    failing: bool,
    /// Events that wait to be sent.
    queue: f64,
    /// For how many seconds the first of them has waited.
    oldest: f64,
    /// Events given up since the server started.
    dropped: f64,
}

/// The health of all webhooks of a server.
#[derive(Default, PartialEq, Debug)]
struct WebhookHealths {
    /// The webhooks by app and place.
    hooks: BTreeMap<WebhookRef, WebhookHealth>,
    /// Facts that the server had to leave out for want of room.
    facts_dropped: f64,
    /// The server's limit on open files; 0 if the page does not have it.
    max_files: f64,
}

/// Looks at them if they can be seen. `metrics` are those of the settings, if the server is that of the
/// settings.
pub(super) async fn examine_webhooks(
    report: &mut Report,
    target: &ApiTarget,
    metrics: Option<&MetricsConfig>,
) {
    let answer = match metrics {
        Some(metrics) if !metrics.enabled => return,
        Some(metrics) if metrics.port != 0 => {
            let answer = target.of_its_metrics(metrics).send_plain("GET", "/metrics", "").await;
            if let Err(error) = &answer {
                let text = format!("the metrics, which tell of them, cannot be read: {}", error.0);
                report.add(SUBJECT, Grade::Warn, text);
            }
            answer
        }
        _ => target.of_api().send_plain("GET", "/metrics", "").await,
    };
    // Another server may have no metrics, and a proxy need not pass them on.
    let Some(answer) = answer.ok().filter(|answer| answer.status == 200) else { return };
    report_health(report, &parse_metrics(&String::from_utf8_lossy(&answer.body)));
}

/// Reports webhooks that need attention; one line if there are none.
fn report_health(report: &mut Report, states: &WebhookHealths) {
    let files = states.max_files;
    if files > 0.0 && files < MIN_OPEN_FILES as f64 {
        report.add(
            "open files",
            Grade::Warn,
            format!("at most {files} of the server's {MORE_OPEN_FILES}"),
        );
    }
    let (mut waiting, mut well) = (0.0, true);
    for ((app, place), state) in &states.hooks {
        let which = format!("webhook {} of app {}", without_controls(place), without_controls(app));
        waiting += state.queue;
        if state.failing {
            let WebhookHealth { queue, oldest, .. } = state;
            let text = format!(
                "the endpoint of {which} fails, {queue} events wait and the first for {oldest:.0} s: the log says what it answers, and after 300 s they are given up"
            );
            report.add(SUBJECT, Grade::Fail, text);
            well = false;
        }
        if state.dropped > 0.0 {
            let text = format!("{} events of {which} were given up", state.dropped);
            report.add(SUBJECT, Grade::Warn, text);
            well = false;
        }
    }
    if states.facts_dropped > 0.0 {
        let text = format!("{} events came faster than they are sorted", states.facts_dropped);
        report.add(SUBJECT, Grade::Warn, text);
        well = false;
    }
    if well && !states.hooks.is_empty() {
        let count = states.hooks.len();
        let text = format!("{count} take what they are sent; {waiting} events wait");
        report.add(SUBJECT, Grade::Ok, text);
    }
}

/// Reads a page of metrics; what their names begin with is a setting.
fn parse_metrics(page: &str) -> WebhookHealths {
    let mut states = WebhookHealths::default();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        // Numbers of the text format are floats, also where they count (Prometheus' exposition
        // formats).
        let value: f64 = value.parse().unwrap_or_default();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        if name.ends_with("webhook_facts_dropped_total") {
            states.facts_dropped = value;
            continue;
        }
        if name.ends_with("process_max_fds") {
            states.max_files = value;
            continue;
        }
        let (Some(app), Some(place)) = (label_value(labels, "app"), label_value(labels, "webhook"))
        else {
            continue;
        };
        let state = states.hooks.entry((app, place)).or_default();
        if name.ends_with("webhook_failing") {
            state.failing = value > 0.0;
        } else if name.ends_with("webhook_queue") {
            state.queue = value;
        } else if name.ends_with("webhook_oldest_seconds") {
            state.oldest = value;
        } else if name.ends_with("webhook_dropped_total") {
            state.dropped = value;
        }
    }
    states
}

/// The value of a label; one with a quote in it only up to there.
fn label_value(labels: &str, name: &str) -> Option<String> {
    let value = labels.split(&format!("{name}=\"")).nth(1)?;
    Some(value.split('"').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_metrics_is_read() {
        let page = "# HELP f_webhook_queue Events that wait.\n\
            f_webhook_queue{app=\"1\",webhook=\"0\"} 7\n\
            f_webhook_queue{app=\"1\",webhook=\"1\"} 0\n\
            f_webhook_oldest_seconds{app=\"1\",webhook=\"0\"} 12.5\n\
            f_webhook_failing{app=\"1\",webhook=\"0\"} 1\n\
            f_webhook_dropped_total{app=\"1\",webhook=\"1\"} 3\n\
            f_webhook_facts_dropped_total 2\n\
            f_process_max_fds 1024\n\
            f_connections{app=\"1\"} 9\n";
        let states = parse_metrics(page);
        let hook = |place: &str| ("1".to_owned(), place.to_owned());
        let failing = WebhookHealth { failing: true, queue: 7.0, oldest: 12.5, dropped: 0.0 };
        assert_eq!(states.hooks.get(&hook("0")), Some(&failing));
        assert_eq!(states.hooks.get(&hook("1")).map(|state| state.dropped), Some(3.0));
        assert_eq!((states.hooks.len(), states.facts_dropped), (2, 2.0));
        assert_eq!(states.max_files, 1024.0);
    }
}
