//! Clients that come, subscribe, stay a while and go, at a steady rate: what a page load costs, and how
//! long it waits.

use std::collections::VecDeque;
use std::io;

use clap::Args;

use crate::crowd::{Crowd, Heard};
use crate::meter::{Latency, Pace, wait};
use crate::report::Report;
use crate::target::Target;

/// Seconds that those still on their way are waited for.
const PATIENCE: u64 = 5_000_000_000;

#[derive(Args, Clone, Debug)]
pub(crate) struct Churn {
    /// Clients a second
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Clients that come at the same moment
    #[arg(long, default_value_t = 1)]
    burst: u64,
    /// Seconds that each stays
    #[arg(long, default_value_t = 1.0)]
    stay: f64,
    /// Channels; clients are spread over them
    #[arg(long, default_value_t = 100)]
    channels: usize,
    /// What channel names begin with
    #[arg(long, default_value = "private-")]
    kind: String,
    /// Seconds of coming
    #[arg(long, default_value_t = 8.0)]
    secs: f64,
}

/// Who is on the way, and who is there.
#[derive(Debug, Default)]
struct Flow {
    /// When the client of that number was due; 0: subscribed already.
    due: Vec<u64>,
    /// When each is to go.
    leaving: VecDeque<(u64, usize)>,
    begun: u64,
    subscribed: u64,
    failed: u64,
}

impl Churn {
    pub(crate) fn run(&self, target: &Target) -> io::Result<()> {
        let mut crowd = Crowd::new(target, 0)?;
        let clock = crowd.clock;
        let mut report = Report::begin("churn", target);
        let mut latency = Latency::new();
        let mut flow = Flow::default();
        let began = clock.now();
        let stop = began + (self.secs * 1e9) as u64;
        let stay = (self.stay * 1e9) as u64;
        loop {
            let now = clock.now();
            let on_the_way = flow.begun - flow.subscribed - flow.failed;
            if now >= stop && (on_the_way == 0 || now > stop + PATIENCE) {
                break;
            }
            while let Some((when, client)) = flow.leaving.front().copied()
                && when <= now
            {
                flow.leaving.pop_front();
                drop(crowd.clients.try_remove(client));
            }
            let mut next = None;
            if now < stop {
                next = Some(self.come_due(&mut crowd, &mut flow, (began, now))?);
            }
            crowd.turn(wait(next, now), |heard| match heard {
                Heard::Ready { client } => {
                    let at = clock.now();
                    flow.subscribed += 1;
                    latency.record(at.saturating_sub(std::mem::take(&mut flow.due[client])));
                    flow.leaving.push_back((at + stay, client));
                }
                Heard::Gone { ready, client, .. } => {
                    flow.failed += u64::from(!ready);
                    flow.leaving.retain(|(_, leaving)| *leaving != client);
                }
                Heard::Text { .. } | Heard::Answered { .. } => {}
            })?;
        }
        let wall = (clock.now() - began) as f64 / 1e9;
        report.add("rate", self.rate);
        report.add("burst", self.burst);
        report.add("stay_s", self.stay);
        report.add("kind", self.kind.as_str());
        report.add("channels", self.channels);
        report.add("subscribed", flow.subscribed);
        report.add("failed", flow.failed);
        report.add("missing", flow.begun - flow.subscribed - flow.failed);
        report.number("wall_s", wall);
        report.usage(wall, "cpu_us_per_client", flow.subscribed);
        report.latency(&latency);
        report.print().map(drop)
    }

    /// Begins every client that is due; when the next one is.
    fn come_due(
        &self,
        crowd: &mut Crowd,
        flow: &mut Flow,
        (began, now): (u64, u64),
    ) -> io::Result<u64> {
        let pace = Pace { rate: self.rate.max(0.001), burst: self.burst };
        loop {
            let due = began + pace.due(flow.begun).unwrap_or(0);
            if due > now {
                return Ok(due);
            }
            self.come(crowd, flow, due)?;
        }
    }

    fn come(&self, crowd: &mut Crowd, flow: &mut Flow, due: u64) -> io::Result<()> {
        let number = flow.begun as usize;
        flow.begun += 1;
        let channel = format!("{}churn-{}", self.kind, number % self.channels.max(1));
        let client = crowd.connect(number, vec![channel])?;
        if flow.due.len() <= client {
            flow.due.resize(client + 1, 0);
        }
        flow.due[client] = due;
        Ok(())
    }
}
