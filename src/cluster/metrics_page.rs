//! What Prometheus is told of the link to the other nodes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::link::{Link, LinkMetrics};
use crate::metrics::MetricsPage;

type LinkMetric = fn(&LinkMetrics) -> &AtomicU64;

/// What is counted.
const COUNTERS: [(&str, &str, LinkMetric); 20] = [
    ("published_total", "Events sent to other nodes.", |f| &f.published),
    ("dropped_total", "Events that waited for Redis too long, or were too many.", |f| &f.dropped),
    ("throttled_total", "Requests that waited because Redis takes events too slowly.", |f| {
        &f.throttled
    }),
    ("received_total", "Messages of other nodes, presence and counts among them.", |f| &f.received),
    ("deliveries_total", "Events given to subscribers here that came to another node.", |f| {
        &f.deliveries
    }),
    ("replayed_total", "Events read from a log, missed while the link was down.", |f| &f.replayed),
    ("missed_total", "Channels whose log did not reach back, so that events may be lost.", |f| {
        &f.gaps
    }),
    ("duplicates_total", "Events that came a second time and were dropped.", |f| &f.duplicates),
    ("invalid_total", "Messages that no node of this kind sent.", |f| &f.invalid),
    ("log_cut_total", "Events that logs for lost links had to forget for their bytes.", |f| &f.cut),
    ("unsealed_total", "Messages of nobody with the app's secret, or changed on their way.", |f| {
        &f.unsealed
    }),
    ("unknown_kind_total", "Messages of a kind that only newer versions know.", |f| {
        &f.unknown_kind
    }),
    (
        "unconfirmed_total",
        "Nodes that did not say in a second that they had taken a right back.",
        |f| &f.unconfirmed,
    ),
    ("connects_total", "Times that the link to Redis was made.", |f| &f.connects),
    ("renewals_total", "Times that the lease of this node was renewed.", |f| &f.renewals),
    ("nodes_expired_total", "Other nodes whose lease lapsed and that were cleared away.", |f| {
        &f.nodes_expired
    }),
    ("webhook_facts_total", "What this node said for webhooks.", |f| &f.news_said),
    ("webhook_facts_dropped_total", "What it left out because too much waited.", |f| {
        &f.news_dropped
    }),
    ("commands_total", "Commands sent to Redis.", |f| &f.commands),
    ("round_trips_total", "Round trips that they took.", |f| &f.round_trips),
];

impl Link {
    /// Adds everything there is to tell.
    pub fn add_metrics(&self, page: &mut MetricsPage) {
        let figures = self.figures();
        for (name, help, read) in COUNTERS {
            let value = read(figures).load(Ordering::Relaxed) as f64;
            page.add_counters(&format!("cluster_{name}"), help, [(&[][..], value)]);
        }
        let up = f64::from(u8::from(self.is_up()));
        page.add_gauges("cluster_up", "1 while Redis answers.", [(&[][..], up)]);
        for (name, help, value) in [
            (
                "apps",
                "Apps whose webhooks this node tells; of all nodes one does.",
                &figures.news_apps,
            ),
            (
                "backlog",
                "What waits in their logs, held back ends included.",
                &figures.news_backlog,
            ),
        ] {
            let value = value.load(Ordering::Relaxed) as f64;
            page.add_gauges(&format!("cluster_webhook_{name}"), help, [(&[][..], value)]);
        }
        let help = "Bytes of events that wait for Redis.";
        page.add_gauges("cluster_queue_bytes", help, [(&[][..], self.queued_bytes() as f64)]);
        let help = "Bytes of events that may wait for Redis.";
        page.add_gauges("cluster_queue_limit_bytes", help, [(&[][..], self.max_queued() as f64)]);
        for (name, help, histogram) in [
            (
                "cluster_lag_seconds",
                "From the sending of a message by another node to its coming, by both nodes' clocks.",
                &figures.lag,
            ),
            (
                "cluster_round_trip_seconds",
                "How long Redis took for the commands and scripts of one round trip.",
                &figures.round_trip,
            ),
        ] {
            page.add_histograms(name, help, [(&[][..], vec![histogram])]);
        }
    }
}
