//! The backend publishes to channels, and every subscriber is to get it: at a given rate for the cost of a
//! delivery and its delay, or as fast as it goes.

use std::io;

use clap::Args;
use serde_json::Value;

use crate::crowd::{Crowd, Heard};
use crate::meter::{Latency, Pace, due, payload, wait};
use crate::report::Report;
use crate::shapes::Shape;
use crate::target::Target;

/// Seconds without a delivery after which the rest is missing.
const PATIENCE: u64 = 3_000_000_000;

#[derive(Args, Clone, Debug)]
pub(crate) struct FanOut {
    /// Subscribers
    #[arg(long, default_value_t = 1000)]
    pub conns: usize,
    /// Channels; subscribers are spread over them, and events go to each in turn
    #[arg(long, default_value_t = 1)]
    pub channels: usize,
    /// Channels that each subscriber subscribes to
    #[arg(long, default_value_t = 1)]
    pub subscriptions: usize,
    /// What channel names begin with: nothing, private-, presence-, cache-
    #[arg(long, default_value = "")]
    pub kind: String,
    /// What follows in channel names; two runs at once need two
    #[arg(long, default_value = "load")]
    pub name: String,
    /// Requests a second; 0: as fast as the window lets
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Requests that are due at the same moment
    #[arg(long, default_value_t = 1)]
    pub burst: u64,
    /// Events a request; more than 1 are sent as a batch, all to one channel
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Without a rate: events that may be under way
    #[arg(long, default_value_t = 64)]
    pub window: usize,
    /// Connections of the backend
    #[arg(long, default_value_t = 8)]
    pub publishers: usize,
    /// Bytes of an event's data
    #[arg(long, default_value_t = 256)]
    pub size: usize,
    /// Events as Laravel apps broadcast them, instead of that size
    #[arg(long, value_enum)]
    pub shape: Option<Shape>,
    /// Seconds of sending
    #[arg(long, default_value_t = 8.0)]
    pub secs: f64,
    /// Further subscribers, which never read
    #[arg(long, default_value_t = 0)]
    pub stuck: usize,
}

/// What was sent and heard.
struct Tally {
    /// Events, by channel.
    sent: Vec<u64>,
    /// Subscribers, by channel.
    subscribers: Vec<u64>,
    /// Deliveries, by client.
    heard: Vec<u64>,
    requests: u64,
    refused: u64,
    expected: u64,
    received: u64,
    /// What came, on the wire.
    bytes: u64,
    missing: u64,
    closed: u64,
    last: u64,
    latency: Latency,
}

impl FanOut {
    fn channel(&self, number: usize) -> String {
        format!("{}{}-{number}", self.kind, self.name)
    }

    /// The numbers of the channels that a client subscribes to.
    fn of_client(&self, client: usize) -> impl Iterator<Item = usize> {
        let (each, all) = (self.subscriptions.clamp(1, self.channels), self.channels);
        (0..each).map(move |nth| (client * each + nth) % all)
    }

    /// Runs and prints; what it printed.
    pub(crate) fn run(&self, target: &Target) -> io::Result<Value> {
        let names = |client| self.of_client(client).map(|channel| self.channel(channel)).collect();
        // A poll of their own, which nobody looks at again.
        let mut stuck = Crowd::new(target, 0)?;
        stuck.gather(self.stuck, names, |_| {})?;
        let mut crowd = Crowd::new(target, self.publishers)?;
        crowd.gather(self.conns, names, |_| {})?;
        // What the subscribing still brings is not part of the run.
        crowd.listen(0.5, |_| {})?;
        let mut report = Report::begin("fanout", target);
        let began = crowd.clock.now();
        let mut tally = self.tally(began);
        self.drive(&mut crowd, &mut tally, began)?;
        let wall = (tally.last - began) as f64 / 1e9;
        self.describe(&mut report, &tally, wall);
        report.usage(wall, "cpu_us_per_delivery", tally.received);
        report.latency(&tally.latency);
        report.print()
    }

    fn tally(&self, began: u64) -> Tally {
        let mut subscribers = vec![0; self.channels];
        for client in 0..self.conns {
            self.of_client(client).for_each(|channel| subscribers[channel] += 1);
        }
        Tally {
            sent: vec![0; self.channels],
            subscribers,
            heard: vec![0; self.conns],
            requests: 0,
            refused: 0,
            expected: 0,
            received: 0,
            bytes: 0,
            missing: 0,
            closed: 0,
            last: began,
            latency: Latency::new(),
        }
    }

    fn drive(&self, crowd: &mut Crowd, tally: &mut Tally, began: u64) -> io::Result<()> {
        let stop = began + (self.secs * 1e9) as u64;
        let pace = Pace { rate: self.rate, burst: self.burst };
        loop {
            let now = crowd.clock.now();
            let whole = tally.received >= tally.expected;
            if now >= stop && (whole || now > tally.last.max(stop) + PATIENCE) {
                return Ok(());
            }
            let mut next = None;
            while now < stop
                && let Some(publisher) = crowd.free_publisher()
            {
                next = pace.due(tally.requests).map(|due| began + due);
                let due = match next {
                    Some(due) if due > now => break,
                    Some(due) => due,
                    None if self.is_full(tally) => break,
                    None => crowd.clock.now(),
                };
                self.publish(crowd, publisher, tally, due)?;
            }
            crowd.turn(wait(next, now), |heard| self.hear(heard, tally))?;
        }
    }

    /// Whether as many deliveries are under way as may be.
    fn is_full(&self, tally: &Tally) -> bool {
        let each = (self.conns * self.subscriptions.clamp(1, self.channels)) / self.channels;
        let under_way = tally.expected.saturating_sub(tally.received);
        under_way >= (self.window * each.max(1)) as u64
    }

    fn publish(
        &self,
        crowd: &mut Crowd,
        publisher: usize,
        tally: &mut Tally,
        due: u64,
    ) -> io::Result<()> {
        let number = (tally.requests % self.channels as u64) as usize;
        let (name, data) = match self.shape {
            Some(shape) => (shape.event(), shape.data(due)),
            None => ("load", payload(due, self.size)),
        };
        let body = named_body(name, &self.channel(number), &data, self.batch);
        let path = if self.batch > 1 { "/batch_events" } else { "/events" };
        crowd.publish(publisher, path, &body)?;
        let events = self.batch.max(1) as u64;
        tally.requests += 1;
        tally.sent[number] += events;
        tally.expected += events * tally.subscribers[number];
        Ok(())
    }

    fn hear(&self, heard: Heard<'_>, tally: &mut Tally) {
        match heard {
            Heard::Text { client, text, at, bytes } => {
                if let Some(due) = due(text) {
                    tally.received += 1;
                    tally.bytes += bytes as u64;
                    tally.heard[client] += 1;
                    tally.last = at;
                    tally.latency.record(at.saturating_sub(due));
                }
            }
            Heard::Gone { client, .. } => {
                tally.closed += 1;
                let owed: u64 = self.of_client(client).map(|channel| tally.sent[channel]).sum();
                let missing = owed - tally.heard[client].min(owed);
                tally.missing += missing;
                tally.expected -= missing;
                self.of_client(client).for_each(|channel| tally.subscribers[channel] -= 1);
            }
            Heard::Answered { status, .. } => tally.refused += u64::from(status != 200),
            Heard::Ready { .. } => {}
        }
    }

    fn describe(&self, report: &mut Report, tally: &Tally, wall: f64) {
        report.add("conns", self.conns);
        report.add("channels", self.channels);
        report.add("subscriptions", self.subscriptions);
        report.add("kind", self.kind.as_str());
        report.add("rate", self.rate);
        report.add("burst", self.burst);
        report.add("batch", self.batch);
        match self.shape {
            Some(shape) => report.add("shape", format!("{shape:?}").to_lowercase()),
            None => report.add("size", self.size),
        }
        report.add("stuck", self.stuck);
        report.add("events", tally.sent.iter().sum::<u64>());
        report.add("refused", tally.refused);
        report.add("received", tally.received);
        report.add("missing", tally.missing + tally.expected.saturating_sub(tally.received));
        report.add("closed", tally.closed);
        report.number("bytes_per_delivery", tally.bytes as f64 / tally.received.max(1) as f64);
        report.number("wall_s", wall);
        report.number("events_per_s", tally.sent.iter().sum::<u64>() as f64 / wall);
        report.number("deliveries_per_s", tally.received as f64 / wall);
    }
}

/// The body of a request: one event, or a batch of the same one.
pub(crate) fn body(channel: &str, data: &str, batch: usize) -> String {
    named_body("load", channel, data, batch)
}

/// The same for an event of that name.
fn named_body(name: &str, channel: &str, data: &str, batch: usize) -> String {
    // The payload has nothing to escape but its quotes.
    let data = data.replace('"', "\\\"");
    if batch <= 1 {
        return format!(r#"{{"name":"{name}","channel":"{channel}","data":"{data}"}}"#);
    }
    let event = format!(r#"{{"name":"{name}","channel":"{channel}","data":"{data}"}}"#);
    let events = vec![event; batch].join(",");
    format!(r#"{{"batch":[{events}]}}"#)
}
