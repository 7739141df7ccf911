//! What a run found: one JSON line on standard output for programs, one table on standard error for people.
//! What was measured, and how, is each scenario's own.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::meter::Latency;
use crate::target::Target;
use crate::usage::Usage;

/// Names and values in the order they are to be read.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<(&'static str, Value)>,
    pids: Vec<u32>,
    before: Usage,
    own: Usage,
}

impl Report {
    /// Begins to measure the server.
    pub(crate) fn begin(scenario: &str, target: &Target) -> Self {
        Self {
            rows: vec![("scenario", scenario.into()), ("label", target.label.as_str().into())],
            before: Usage::of(&target.pids),
            own: Usage::own(),
            pids: target.pids.clone(),
        }
    }

    /// Begins to measure the server afresh.
    pub(crate) fn restart(&mut self) {
        self.before = Usage::of(&self.pids);
        self.own = Usage::own();
    }

    pub(crate) fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.rows.push((name, value.into()));
    }

    /// A number, with as many digits as mean something.
    pub(crate) fn number(&mut self, name: &'static str, value: f64) {
        let digits = match value.abs() {
            large if large >= 1000.0 => 0,
            large if large >= 10.0 => 1,
            _ => 3,
        };
        let scale = 10f64.powi(digits);
        self.add(name, (value * scale).round() / scale);
    }

    pub(crate) fn latency(&mut self, latency: &Latency) {
        self.number("p50_us", latency.micros(0.5));
        self.number("p90_us", latency.micros(0.9));
        self.number("p99_us", latency.micros(0.99));
        self.number("p999_us", latency.micros(0.999));
        self.number("max_us", latency.micros(1.0));
    }

    /// The server's CPU seconds since the report began.
    pub(crate) fn cpu(&self) -> f64 {
        Usage::of(&self.pids).cpu - self.before.cpu
    }

    /// Whether there are processes to be measured.
    pub(crate) fn has_pids(&self) -> bool {
        !self.pids.is_empty()
    }

    /// The server's resources over `wall` seconds and `count` of the things called `per`; and the
    /// generator's own share of its core, which must stay well below 1.
    pub(crate) fn usage(&mut self, wall: f64, per: &'static str, count: u64) {
        if self.has_pids() {
            let after = Usage::of(&self.pids);
            let cpu = after.cpu - self.before.cpu;
            self.number("cpu_s", cpu);
            self.number(per, cpu * 1e6 / count.max(1) as f64);
            self.number("cores", cpu / wall);
            self.number("rss_mb", after.rss as f64 / 1e6);
            self.number("peak_mb", after.peak as f64 / 1e6);
        }
        self.number("generator_cores", (Usage::own().cpu - self.own.cpu) / wall);
    }

    /// Prints it.
    pub(crate) fn print(self) -> io::Result<Value> {
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut table = String::new();
        let mut line = String::new();
        for (name, value) in &self.rows {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            table.push_str(&format!("{name:<width$}  {shown}\n"));
            line.push_str(if line.is_empty() { "{" } else { "," });
            line.push_str(&format!("{}:{value}", json!(name)));
        }
        writeln!(io::stderr(), "{table}")?;
        writeln!(io::stdout(), "{line}}}")?;
        let rows = self.rows.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(Value::Object(rows.collect::<Map<_, _>>()))
    }
}
