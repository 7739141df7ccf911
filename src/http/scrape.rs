//! The metrics page: the counters of all workers added up, and the current state of directories, runtimes and the
//! process. Nothing here iterates over connections or channels, and no label names a channel, so a scrape costs the
//! same however many there are.

mod last_page;
mod process;
mod soketi;
mod webhooks;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

pub use self::last_page::LastPage;
use self::soketi::SOKETI;
use crate::config;
use crate::hub::directory::{AppTotals, Directory};
use crate::hub::resume::ResumeFigures;
use crate::metrics::{
    AppTraffic, Call, Counter, Doubt, Limited, MetricsPage, Reason, Signed, Status, Transport,
    TurnTimes, Unreadable, Unready,
};
use crate::node::ServerState;

/// A server to be looked at.
#[derive(Debug)]
pub struct Scrape {
    pub shared: Arc<ServerState>,
    /// The prefix of all metrics.
    pub prefix: String,
    /// Where the server listens; Soketi's metrics name it.
    pub port: u16,
    /// When its certificate ends, in seconds since 1970, if it has one.
    pub certificate: Option<Arc<AtomicU64>>,
    /// The last page, for readers that ask too often.
    pub last: LastPage,
}

/// The figures of one app. Read once for each scrape, so that all families of a page agree.
struct AppFigures {
    /// The app's id, as the label of its series.
    id: String,
    /// Its channels and users.
    directory: Arc<Directory>,
    totals: AppTotals,
}

impl AppFigures {
    /// Each worker counts for itself; a sum may be late by what is being written just now.
    fn sum_counter(&self, read: impl Fn(&AppTraffic) -> &Counter) -> f64 {
        let all = self.directory.all_traffic().iter();
        all.map(|traffic| read(traffic).value()).fold(0, u64::wrapping_add) as f64
    }

    /// Of the clients that come back.
    fn resume_count(&self, read: impl Fn(&ResumeFigures) -> &AtomicU64) -> f64 {
        // Relaxed: what is displayed need not be of one moment.
        read(&self.directory.resume.figures).load(Ordering::Relaxed) as f64
    }
}

/// How a figure is read off an app; one function for each line of the tables below.
type AppMetric = fn(&AppFigures) -> f64;

/// Gauges of each app.
/// In the order of the page. The text is HELP, a sentence for operators.
const GAUGES: [(&str, &str, AppMetric); 9] = [
    ("connections", "Connections open now.", |app| app.directory.connection_count() as f64),
    ("compressed_connections", "Connections open now that agreed on compression.", |app| {
        app.sum_counter(|t| &t.compressed)
    }),
    ("subscriptions", "Subscriptions now, over all channels.", |app| {
        app.totals.subscriptions as f64
    }),
    ("held_bytes", "Bytes held for clients, as limits.memory counts them.", |app| {
        app.directory.held().value() as f64
    }),
    ("channels", "Channels with subscribers now.", |app| app.totals.channels as f64),
    ("presence_members", "Distinct users present now, over all presence channels.", |app| {
        app.totals.members as f64
    }),
    ("cache_bytes", "Bytes of cached events.", |app| app.directory.cache.figures().1 as f64),
    ("resume_waiting", "Disconnected clients that may still resume.", |app| {
        app.directory.resume.occupancy().0 as f64
    }),
    ("resume_log_bytes", "Bytes of events kept for clients that resume.", |app| {
        app.directory.resume.occupancy().1 as f64
    }),
];

/// Counters of each app.
const COUNTERS: [(&str, &str, AppMetric); 20] = [
    ("connects_total", "Connections accepted.", |app| app.sum_counter(|t| &t.connected)),
    ("disconnects_total", "Accepted connections that have ended.", |app| {
        app.sum_counter(|t| &t.disconnected)
    }),
    ("received_messages_total", "Messages received from clients.", |app| {
        app.sum_counter(|t| &t.received)
    }),
    ("received_bytes_total", "Bytes received from clients.", |app| {
        app.sum_counter(|t| &t.received_bytes)
    }),
    ("deliveries_total", "Events delivered, one for each subscriber.", |app| {
        app.sum_counter(|t| &t.deliveries)
    }),
    (
        "direct_messages_total",
        "Frames for a single connection, such as confirmations and errors.",
        |app| app.sum_counter(|t| &t.answers),
    ),
    ("sent_bytes_total", "Bytes sent to clients.", |app| app.sum_counter(|t| &t.sent_bytes)),
    ("compressed_plain_bytes_total", "Bytes of compressed messages before compression.", |app| {
        app.sum_counter(|t| &t.plain_bytes)
    }),
    ("compressed_bytes_total", "Bytes of compressed messages after compression.", |app| {
        app.sum_counter(|t| &t.deflated_bytes)
    }),
    (
        "held_up_total",
        "Times that a connection was held up: it asked for more than its share.",
        |app| app.sum_counter(|t| &t.held_up),
    ),
    ("published_total", "Events published, one for each channel.", |app| {
        app.sum_counter(|t| &t.published)
    }),
    ("request_bytes_total", "Bytes of request bodies received by the API.", |app| {
        app.sum_counter(|t| &t.call_bytes)
    }),
    ("response_bytes_total", "Bytes of response bodies sent by the API.", |app| {
        app.sum_counter(|t| &t.answer_bytes)
    }),
    ("cache_evicted_total", "Cached events evicted because cache_bytes was reached.", |app| {
        app.directory.cache.figures().0 as f64
    }),
    ("resume_resumed_total", "Connections that resumed where an earlier one had ended.", |app| {
        app.resume_count(|figures| &figures.resumed)
    }),
    ("resume_expired_total", "Clients forgotten because they did not resume in time.", |app| {
        app.resume_count(|figures| &figures.expired)
    }),
    ("resume_crowded_total", "Clients forgotten early because too many waited.", |app| {
        app.resume_count(|figures| &figures.crowded)
    }),
    ("resume_replayed_total", "Missed events sent to clients that resumed.", |app| {
        app.resume_count(|figures| &figures.replayed)
    }),
    ("resume_gaps_total", "Channels whose log did not reach back far enough.", |app| {
        app.resume_count(|figures| &figures.gaps)
    }),
    (
        "resume_dropped_total",
        "Events dropped from the logs because resume_bytes was reached.",
        |app| app.resume_count(|figures| &figures.dropped),
    ),
];

/// The same of a worker.
type TurnMetric = fn(&TurnTimes) -> &Counter;

/// Writes that workers made together.
const RING: [(&str, &str, TurnMetric); 2] = [
    ("io_uring_submissions_total", "System calls that wrote to many sockets at once.", |turns| {
        &turns.submissions
    }),
    ("io_uring_writes_total", "Writes to sockets that these calls carried out.", |turns| {
        &turns.submitted_writes
    }),
];

impl Scrape {
    /// The page, as it is now; where it is asked for again and again, as it was a moment ago.
    pub fn page(&self) -> Bytes {
        self.last.take(Instant::now, || self.page_text().into())
    }

    /// The page as text, for a thread that may take its time.
    pub fn page_text(&self) -> String {
        let mut page = MetricsPage::new(&self.prefix);
        // A gauge that is always 1: its labels are joined to other series (Prometheus' `*_info`).
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", config::REVISION),
            ("features", config::FEATURES),
        ];
        let help = "1, with the version that runs, its commit and its features.";
        page.add_gauges("build_info", help, [(&build[..], 1.0)]);
        let apps = self.app_figures();
        write_apps(&mut page, &apps);
        if self.prefix == SOKETI {
            self.write_as_soketi(&mut page, &apps);
        }
        self.write_certificate(&mut page);
        self.write_reload(&mut page);
        self.write_transports(&mut page);
        self.write_sockets(&mut page);
        self.write_api(&mut page);
        self.write_workers(&mut page);
        self.write_webhooks(&mut page);
        self.shared.scope.add_metrics(&mut page);
        process::write_process(&mut page);
        page.text()
    }

    /// Every app there is, and those that are gone but still have connections. Sorted by ID, so
    /// that two scrapes can be compared line by line.
    fn app_figures(&self) -> Vec<AppFigures> {
        let hub = &self.shared.hub;
        for app in self.shared.apps.load().iter() {
            // So that an app without connections has its zeros, too.
            hub.directory(&app.id);
        }
        let mut apps: Vec<AppFigures> = hub
            .directories()
            .into_iter()
            .map(|(id, directory)| {
                let totals = directory.totals();
                AppFigures { id: id.to_string(), directory, totals }
            })
            .collect();
        apps.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        apps
    }

    /// Days and not a date, so that an alert is one comparison. Nothing where no TLS is spoken, or
    /// the certificate's time cannot be read.
    fn write_certificate(&self, page: &mut MetricsPage) {
        let Some(end) = &self.certificate else { return };
        let end = count(end);
        // A clock before 1970 only makes the certificate look valid for longer.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let days = (end > 0.0).then_some((&[][..], (end - now) / (24.0 * 3600.0)));
        let help = "Days until the TLS certificate, or one of its chain, expires; below 0, it has.";
        page.add_gauges("certificate_days_left", help, days);
    }

    /// By this an alert finds a reload that changed nothing, which the log alone would show.
    fn write_reload(&self, page: &mut MetricsPage) {
        // Relaxed: the page may show the last reload a moment late.
        let failed = self.shared.metrics.reload_failed.load(Ordering::Relaxed);
        let help = "0 if the settings could not be used when they were last read again.";
        let value = f64::from(u8::from(!failed));
        page.add_gauges("config_last_reload_successful", help, [(&[][..], value)]);
    }

    /// How connections' bytes travel: all that are not over HTTP are sockets.
    fn write_transports(&self, page: &mut MetricsPage) {
        let workers = self.shared.metrics.all_workers();
        let of = |transport: Transport| {
            let counts = workers.iter().map(|counts| counts.over_http.value(transport as usize));
            counts.sum::<u64>()
        };
        let others = Transport::ALL.iter().filter(|one| **one != Transport::WebSocket);
        let others: u64 = others.map(|transport| of(*transport)).sum();
        // Two counts that are not read in one moment: the difference must not wrap around.
        let sockets = self.shared.connection_count().saturating_sub(others);
        let transports: Vec<_> = Transport::ALL
            .iter()
            .map(|transport| {
                let is_socket = *transport == Transport::WebSocket;
                let value = if is_socket { sockets } else { of(*transport) };
                ([("transport", transport.label())], value as f64)
            })
            .collect();
        page.add_gauges(
            "connections_by_transport",
            "Connections open now, by transport.",
            transports.iter().map(|(labels, value)| (&labels[..], *value)),
        );
    }

    /// Sockets and readiness. Every label of the closed lists has its line, also at 0, so that a rate can be
    /// computed from the first event on.
    fn write_sockets(&self, page: &mut MetricsPage) {
        let workers = self.shared.metrics.all_workers();
        let count = |reason: Reason| self.shared.metrics.ended_for(reason) as f64;
        let labels = |reason: &Reason| [("code", reason.close_code()), ("reason", reason.label())];
        let told = |reasons: &[Reason]| -> Vec<_> {
            reasons.iter().map(|reason| (labels(reason), count(*reason))).collect()
        };
        let ends = told(Reason::end_reasons());
        let ends = ends.iter().map(|(labels, value)| (&labels[..], *value));
        let help = "Connections that ended, by close code and reason.";
        page.add_counters("closes_total", help, ends);
        let refusals = told(Reason::refusal_reasons());
        let refusals = refusals.iter().map(|(labels, value)| (&labels[..], *value));
        page.add_counters(
            "refused_connections_total",
            "Connections refused, by close code and reason.",
            refusals,
        );
        let all = |read: fn(&crate::metrics::WorkerCounts) -> &Counter| {
            [(&[][..], self.shared.metrics.sum_counter(read) as f64)]
        };
        let help = "Messages from clients that were answered with an error.";
        page.add_counters("refused_messages_total", help, all(|counts| &counts.refused_messages));
        let help = "Tasks that panicked, each of which cost one connection.";
        page.add_counters("panics_total", help, all(|counts| &counts.panics));
        let limited = Limited::ALL.iter().map(|limited| {
            let counts = workers.iter().map(|counts| counts.limited.value(*limited as usize));
            ([("what", limited.label())], counts.sum::<u64>() as f64)
        });
        let limited: Vec<_> = limited.collect();
        page.add_counters(
            "rate_limited_total",
            "Refusals because a rate limit was reached, by which limit.",
            limited.iter().map(|(labels, value)| (&labels[..], *value)),
        );
        let unreadable = Unreadable::ALL.iter().map(|kind| {
            let counts = workers.iter().map(|counts| counts.unreadable.value(*kind as usize));
            ([("kind", kind.label())], counts.sum::<u64>() as f64)
        });
        let unreadable: Vec<_> = unreadable.collect();
        page.add_counters(
            "unreadable_requests_total",
            "Connections whose first bytes were no HTTP request, by what they were.",
            unreadable.iter().map(|(labels, value)| (&labels[..], *value)),
        );
        let is = |yes: bool| f64::from(u8::from(yes));
        let ready = is(self.shared.unready_reason().is_none());
        page.add_gauges(
            "ready",
            "1 while new connections should come here, as /ready says.",
            [(&[][..], ready)],
        );
        let unready = Unready::ALL.iter();
        let unready: Vec<_> = unready
            .map(|why| ([("reason", why.label())], is(self.shared.is_unready(*why))))
            .collect();
        let unready = unready.iter().map(|(labels, value)| (&labels[..], *value));
        page.add_gauges(
            "unready",
            "1 for each reason why new connections should go elsewhere.",
            unready,
        );
        // No series where there is no limit: 0 would read as one that is always exceeded.
        let memory = Some(self.shared.capacity.max_memory()).filter(|bytes| *bytes > 0);
        let memory = memory.map(|bytes| (&[][..], bytes as f64));
        let help = "Memory that the process may hold before new sockets are refused.";
        page.add_gauges("memory_limit_bytes", help, memory);
    }

    /// Requests by route and status, their duration, and invalid signatures. A route is a word of a closed list and
    /// never a path, so that clients cannot create series.
    fn write_api(&self, page: &mut MetricsPage) {
        let workers = self.shared.metrics.all_workers();
        let (mut counts, mut seconds) = (Vec::new(), Vec::new());
        for (place, call) in Call::ALL.iter().enumerate() {
            let of_call: Vec<_> =
                workers.iter().filter_map(|counts| counts.calls.get(place)).collect();
            for status in Status::ALL {
                let values = of_call.iter().map(|call| call.by_status.value(*status as usize));
                let value = values.sum::<u64>();
                // Most never happen; `200` always has a series, so that rates begin at 0.
                if value > 0 || *status == Status::Ok {
                    let labels = [("route", call.label()), ("status", status.label())];
                    counts.push((labels, value as f64));
                }
            }
            let of_call: Vec<_> = of_call.into_iter().map(|call| &call.seconds).collect();
            seconds.push(([("route", call.label())], of_call));
        }
        let counts = counts.iter().map(|(labels, value)| (&labels[..], *value));
        page.add_counters("api_requests_total", "Requests to the API.", counts);
        let seconds = seconds.iter().map(|(labels, all)| (&labels[..], all.clone()));
        let help = "Time from a request's head to its answer.";
        page.add_histograms("api_request_duration_seconds", help, seconds);
        let mut doubts = Vec::new();
        for (place, signed) in Signed::ALL.iter().enumerate() {
            for doubt in Doubt::ALL {
                let of_signed = workers.iter().filter_map(|counts| counts.doubts.get(place));
                let value: u64 = of_signed.map(|doubts| doubts.value(*doubt as usize)).sum();
                doubts.push(([("of", signed.label()), ("cause", doubt.label())], value as f64));
            }
        }
        let doubts = doubts.iter().map(|(labels, value)| (&labels[..], *value));
        page.add_counters(
            "refused_signatures_total",
            "Signatures that were refused, by what was signed and why.",
            doubts,
        );
    }

    /// How busy each worker is, what waits, and how long a delivery takes from the inbox to the
    /// sockets.
    fn write_workers(&self, page: &mut MetricsPage) {
        let inboxes = self.shared.hub.inboxes();
        let names: Vec<String> = (0..inboxes.len()).map(|index| index.to_string()).collect();
        let labels: Vec<[(&str, &str); 1]> =
            names.iter().map(|name| [("worker", name.as_str())]).collect();
        let labels = || labels.iter().map(|labels| &labels[..]);
        let busy = labels().zip(self.shared.metrics.busy_seconds());
        let help = "Seconds that a worker was busy; the rate is its share of a core.";
        page.add_counters("worker_busy_seconds_total", help, busy);
        let depth = labels().zip(inboxes.iter().map(|inbox| inbox.depth() as f64));
        page.add_gauges("worker_inbox_depth", "Tasks that wait in a worker's inbox.", depth);
        let longest = inboxes.iter().map(|inbox| inbox.turns.longest.value() as f64 / 1e9);
        let help = "Longest time that a worker took to empty its inbox, over the last half minute.";
        page.add_gauges("worker_longest_turn_seconds", help, labels().zip(longest));
        let ring = inboxes.iter().map(|inbox| inbox.turns.ring.value() as f64);
        let help = "1 where a worker writes to many sockets in one system call.";
        page.add_gauges("worker_io_uring", help, labels().zip(ring));
        for (name, help, read) in RING {
            let sum: u64 = inboxes.iter().map(|inbox| read(&inbox.turns).value()).sum();
            page.add_counters(name, help, [(&[][..], sum as f64)]);
        }
        let waiting: u64 = inboxes.iter().map(|inbox| inbox.turns.waiting.value()).sum();
        let help = "Bytes queued for clients; the figure is at most five seconds old.";
        page.add_gauges("outbox_bytes", help, [(&[][..], waiting as f64)]);
        let fan_out = inboxes.iter().map(|inbox| &inbox.turns.fan_out).collect();
        let help = "From the first event that a turn of a worker takes up until all subscribers of \
                    that turn are written to.";
        page.add_histograms("fan_out_duration_seconds", help, [(&[][..], fan_out)]);
        let crowded = inboxes.iter().map(|inbox| &inbox.turns.crowded).collect();
        let help = "Time of one turn of a worker while it has more than fits into a turn.";
        page.add_histograms("crowded_turn_duration_seconds", help, [(&[][..], crowded)]);
    }
}

/// Relaxed: a figure for display. Prometheus has no other numbers than floats.
fn count(number: &AtomicU64) -> f64 {
    number.load(Ordering::Relaxed) as f64
}

/// A family at a time, as the format wants it, and in it a line for each app.
fn write_apps(page: &mut MetricsPage, apps: &[AppFigures]) {
    let labels: Vec<[(&str, &str); 1]> =
        apps.iter().map(|app| [("app", app.id.as_str())]).collect();
    let of_all = |read: AppMetric| {
        labels.iter().zip(apps).map(move |(labels, app)| (&labels[..], read(app)))
    };
    for (name, help, read) in GAUGES {
        page.add_gauges(name, help, of_all(read));
    }
    for (name, help, read) in COUNTERS {
        page.add_counters(name, help, of_all(read));
    }
}
