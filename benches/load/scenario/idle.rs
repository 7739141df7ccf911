//! Connections that subscribe and then stay quiet: what one costs to make, to keep and to lose. Memory is
//! what the kernel says that the server holds.

use std::io;

use clap::Args;

use crate::crowd::Crowd;
use crate::report::Report;
use crate::target::Target;
use crate::usage::Usage;

#[derive(Args, Clone, Debug)]
pub(crate) struct Idle {
    /// Connections
    #[arg(long, default_value_t = 8000)]
    conns: usize,
    /// Private channels that each has for itself
    #[arg(long, default_value_t = 1)]
    subscriptions: usize,
    /// Seconds of quiet
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Seconds that the server is given to forget them
    #[arg(long, default_value_t = 3.0)]
    after: f64,
}

impl Idle {
    pub(crate) fn run(&self, target: &Target) -> io::Result<()> {
        let mut report = Report::begin("idle", target);
        let before = Usage::of(&target.pids);
        let mut crowd = Crowd::new(target, 0)?;
        let began = crowd.clock.now();
        let channels = |client| {
            let all = 0..self.subscriptions;
            all.map(|number| format!("private-idle-{client}-{number}")).collect()
        };
        crowd.gather(self.conns, channels, |_| {})?;
        let connecting = (crowd.clock.now() - began) as f64 / 1e9;
        let connected = Usage::of(&target.pids);
        let mut told = 0u64;
        crowd.listen(self.secs, |_| told += 1)?;
        let quiet = Usage::of(&target.pids);
        let mut after = Crowd::new(target, 0)?;
        drop(crowd);
        after.listen(self.after, |_| {})?;
        let gone = Usage::of(&target.pids);
        let each = |total: f64| total / self.conns as f64;
        report.add("conns", self.conns);
        report.add("subscriptions", self.subscriptions);
        report.number("connects_per_s", self.conns as f64 / connecting);
        report.add("told", told);
        if report.has_pids() {
            report.number("cpu_us_per_connect", each((connected.cpu - before.cpu) * 1e6));
            report.number("cpu_us_per_leave", each((gone.cpu - quiet.cpu) * 1e6));
            report.number("idle_cores", (quiet.cpu - connected.cpu) / self.secs);
            report.number("bytes_per_conn", each(quiet.rss as f64 - before.rss as f64));
            report.number("rss_before_mb", before.rss as f64 / 1e6);
            report.number("rss_mb", quiet.rss as f64 / 1e6);
            report.number("rss_after_mb", gone.rss as f64 / 1e6);
            report.number("peak_mb", gone.peak as f64 / 1e6);
        }
        report.print().map(drop)
    }
}
