//! Soketi's metrics under its own names, for its dashboards: exported if `metrics.prefix` is Soketi's. Those without a
//! counterpart are 0.

use super::{AppFigures, AppMetric, Scrape};
use crate::metrics::MetricsPage;

/// The prefix by which Soketi's own names are asked for.
pub(super) const SOKETI: &str = "soketi_";

/// The metrics of each app under Soketi's names, with its help texts, which end in a full stop there too.
const SOKETI_COUNTERS: [(&str, &str, AppMetric); 14] = [
    ("new_connections_total", "Total amount of soketi connection requests.", |app| {
        app.sum_counter(|t| &t.connected)
    }),
    ("new_disconnections_total", "Total amount of soketi disconnections.", |app| {
        app.sum_counter(|t| &t.disconnected)
    }),
    ("socket_received_bytes", "Total amount of bytes that soketi received.", |app| {
        app.sum_counter(|t| &t.received_bytes)
    }),
    ("socket_transmitted_bytes", "Total amount of bytes that soketi transmitted.", |app| {
        app.sum_counter(|t| &t.sent_bytes)
    }),
    (
        "ws_messages_received_total",
        "The total amount of WS messages received from connections by the server.",
        |app| app.sum_counter(|t| &t.received),
    ),
    (
        "ws_messages_sent_total",
        "The total amount of WS messages sent to the connections from the server.",
        |app| app.sum_counter(|t| &t.deliveries) + app.sum_counter(|t| &t.answers),
    ),
    ("http_received_bytes", "Total amount of bytes that soketi's REST API received.", |app| {
        app.sum_counter(|t| &t.call_bytes)
    }),
    ("http_transmitted_bytes", "Total amount of bytes that soketi's REST API sent back.", |app| {
        app.sum_counter(|t| &t.answer_bytes)
    }),
    ("http_calls_received_total", "Total amount of received REST API calls.", |app| {
        app.sum_counter(|t| &t.calls)
    }),
    // Requests between Soketi's nodes; here nodes send each other none.
    (
        "horizontal_adapter_resolved_promises",
        "The total amount of promises that were fulfilled by other nodes.",
        |_| 0.0,
    ),
    (
        "horizontal_adapter_uncomplete_promises",
        "The total amount of promises that were not fulfilled entirely by other nodes.",
        |_| 0.0,
    ),
    (
        "horizontal_adapter_sent_requests",
        "The total amount of sent requests to other nodes.",
        |_| 0.0,
    ),
    (
        "horizontal_adapter_received_requests",
        "The total amount of received requests from other nodes.",
        |_| 0.0,
    ),
    (
        "horizontal_adapter_received_responses",
        "The total amount of received responses from other nodes.",
        |_| 0.0,
    ),
];

impl Scrape {
    /// Adds them. Soketi labels its metrics with the app's id and the server's port.
    pub(super) fn write_as_soketi(&self, page: &mut MetricsPage, apps: &[AppFigures]) {
        let port = self.port.to_string();
        let labels: Vec<[(&str, &str); 2]> =
            apps.iter().map(|app| [("app_id", app.id.as_str()), ("port", &port)]).collect();
        let of_all = |read: AppMetric| {
            labels.iter().zip(apps).map(move |(labels, app)| (&labels[..], read(app)))
        };
        let connected = of_all(|app| app.directory.connection_count() as f64);
        page.add_gauges("connected", "The number of currently connected sockets.", connected);
        for (name, help, read) in SOKETI_COUNTERS {
            page.add_counters(name, help, of_all(read));
        }
        page.add_histograms(
            "horizontal_adapter_resolve_time",
            "The average resolve time for requests to other nodes.",
            labels.iter().map(|labels| (&labels[..], Vec::new())),
        );
    }
}
