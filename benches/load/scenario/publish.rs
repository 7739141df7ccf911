//! The backend publishes to channels that nobody subscribes to: the cost of the API by itself, without a
//! single delivery.

use std::io;

use clap::Args;

use crate::crowd::{Crowd, Heard};
use crate::meter::{Latency, Pace, payload, wait};
use crate::report::Report;
use crate::scenario::fan_out::body;
use crate::target::Target;

#[derive(Args, Clone, Debug)]
pub(crate) struct Publish {
    /// Connections of the backend, each with one request under way
    #[arg(long, default_value_t = 16)]
    publishers: usize,
    /// Requests a second; 0: as fast as they are answered
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Events a request; more than 1 are sent as a batch
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Bytes of an event's data
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Seconds of sending
    #[arg(long, default_value_t = 8.0)]
    secs: f64,
}

impl Publish {
    pub(crate) fn run(&self, target: &Target) -> io::Result<()> {
        let mut crowd = Crowd::new(target, self.publishers)?;
        let mut report = Report::begin("publish", target);
        let mut latency = Latency::new();
        let (mut sent, mut answered, mut refused) = (0, 0u64, 0u64);
        // When what each publisher is sending was due.
        let mut under_way = vec![0; self.publishers];
        let path = if self.batch > 1 { "/batch_events" } else { "/events" };
        let pace = Pace { rate: self.rate, burst: 1 };
        let began = crowd.clock.now();
        let stop = began + (self.secs * 1e9) as u64;
        loop {
            let now = crowd.clock.now();
            if now >= stop {
                break;
            }
            let mut next = None;
            while let Some(publisher) = crowd.free_publisher() {
                next = pace.due(sent).map(|due| began + due);
                if next.is_some_and(|due| due > now) {
                    break;
                }
                let due = next.unwrap_or_else(|| crowd.clock.now());
                under_way[publisher] = due;
                let channel = format!("nobody-{}", sent % 1000);
                crowd.publish(
                    publisher,
                    path,
                    &body(&channel, &payload(due, self.size), self.batch),
                )?;
                sent += 1;
            }
            let clock = crowd.clock;
            crowd.turn(wait(next, now), |heard| {
                if let Heard::Answered { publisher, status } = heard {
                    answered += 1;
                    refused += u64::from(status != 200);
                    latency.record(clock.now().saturating_sub(under_way[publisher]));
                }
            })?;
        }
        let wall = (crowd.clock.now() - began) as f64 / 1e9;
        report.add("publishers", self.publishers);
        report.add("rate", self.rate);
        report.add("batch", self.batch);
        report.add("size", self.size);
        report.add("requests", answered);
        report.add("refused", refused);
        report.add("connects", crowd.publishers.iter().map(|one| one.connects).sum::<u64>());
        report.number("requests_per_s", answered as f64 / wall);
        report.number("events_per_s", answered as f64 * self.batch as f64 / wall);
        report.usage(wall, "cpu_us_per_request", answered);
        report.latency(&latency);
        report.print().map(drop)
    }
}
