//! The link to the other nodes on the metrics page: names, help texts and labels. The counters themselves are in
//! `figures.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::link::{Link, LinkMetrics};
use crate::metrics::MetricsPage;

/// Which of the counts a family shows.
type LinkMetric = fn(&LinkMetrics) -> &AtomicU64;

/// The counters: name, help text, and where to read them.
const COUNTERS: [(&str, &str, LinkMetric); 20] = [
    ("published_total", "Events sent to other nodes.", |f| &f.published),
    (
        "dropped_total",
        "Events not sent to other nodes: they waited longer than queue_age, or queue_bytes was reached.",
        |f| &f.dropped,
    ),
    ("throttled_total", "Requests that waited because Redis takes events too slowly.", |f| {
        &f.throttled
    }),
    ("received_total", "Messages received from other nodes, including presence and counts.", |f| {
        &f.received
    }),
    ("deliveries_total", "Deliveries here of events that were published on other nodes.", |f| {
        &f.deliveries
    }),
    ("replayed_total", "Events read from logs after the link was down.", |f| &f.replayed),
    (
        "missed_total",
        "Channels whose log did not reach back far enough: events may be lost.",
        |f| &f.gaps,
    ),
    ("duplicates_total", "Events received a second time and dropped.", |f| &f.duplicates),
    ("invalid_total", "Messages on cluster topics that are no valid envelope.", |f| &f.invalid),
    ("log_cut_total", "Events cut from logs because an app's logs were too large.", |f| &f.cut),
    ("unsealed_total", "Messages whose seal did not verify.", |f| &f.unsealed),
    ("unknown_kind_total", "Messages of a kind that only newer versions know.", |f| {
        &f.unknown_kind
    }),
    (
        "unconfirmed_total",
        "Nodes that did not confirm within a second that they revoked a right.",
        |f| &f.unconfirmed,
    ),
    ("connects_total", "Times that the link to Redis was established.", |f| &f.connects),
    ("renewals_total", "Renewals of this node's lease.", |f| &f.renewals),
    (
        "nodes_expired_total",
        "Other nodes whose lease lapsed and whose state this node cleared.",
        |f| &f.nodes_expired,
    ),
    ("webhook_facts_total", "Facts that this node wrote to webhook logs.", |f| &f.news_said),
    (
        "webhook_facts_dropped_total",
        "Facts not written to webhook logs because too many waited.",
        |f| &f.webhook_facts_dropped,
    ),
    ("commands_total", "Commands sent to Redis.", |f| &f.commands),
    ("round_trips_total", "Round trips to Redis.", |f| &f.round_trips),
];

impl Link {
    /// Adds everything there is to tell.
    pub fn add_metrics(&self, page: &mut MetricsPage) {
        let figures = self.figures();
        for (name, help, read) in COUNTERS {
            // Relaxed: counters of one page need not be of one instant.
            let value = read(figures).load(Ordering::Relaxed) as f64;
            page.add_counters(&format!("cluster_{name}"), help, [(&[][..], value)]);
        }
        let up = f64::from(u8::from(self.is_up()));
        page.add_gauges("cluster_up", "1 while Redis answers.", [(&[][..], up)]);
        let help = "Masters, or slots on their way, of a Redis Cluster that are away while the rest answers.";
        let away = self.away_parts().len() as f64;
        page.add_gauges("cluster_parts_away", help, [(&[][..], away)]);
        for (name, help, value) in [
            (
                "apps",
                "Apps whose webhooks this node posts; one node does for each app.",
                &figures.webhook_apps,
            ),
            ("backlog", "Entries in the webhook logs of these apps.", &figures.webhook_backlog),
        ] {
            // Relaxed: gauges of one page need not be of one instant.
            let value = value.load(Ordering::Relaxed) as f64;
            page.add_gauges(&format!("cluster_webhook_{name}"), help, [(&[][..], value)]);
        }
        let help = "Bytes of events that wait to be sent to Redis.";
        let queued = self.queued_bytes() + self.stranded_bytes();
        page.add_gauges("cluster_queue_bytes", help, [(&[][..], queued as f64)]);
        let help = "Limit of the bytes that may wait for Redis (cluster.queue_bytes).";
        page.add_gauges("cluster_queue_limit_bytes", help, [(&[][..], self.max_queued() as f64)]);
        for (name, help, histogram) in [
            (
                "cluster_lag_seconds",
                "Time from sending on another node to arrival here, by both nodes' clocks.",
                &figures.lag,
            ),
            (
                "cluster_round_trip_seconds",
                "Time of one round trip to Redis, with all its commands and scripts.",
                &figures.round_trip,
            ),
        ] {
            page.add_histograms(name, help, [(&[][..], vec![histogram])]);
        }
    }
}
