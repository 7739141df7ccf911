//! One presence channel that members join, each of whom everybody else is to hear of, and that half of
//! them leave.

use std::io;

use clap::Args;
use memchr::memmem;

use crate::crowd::{Crowd, Heard};
use crate::report::Report;
use crate::target::Target;

#[derive(Args, Clone, Debug)]
pub(crate) struct Presence {
    /// Members; how many of them join at once is what --together says
    #[arg(long, default_value_t = 500)]
    members: usize,
}

impl Presence {
    pub(crate) fn run(&self, target: &Target) -> io::Result<()> {
        let mut report = Report::begin("presence", target);
        let mut crowd = Crowd::new(target, 0)?;
        let clock = crowd.clock;
        let began = clock.now();
        let (mut added, mut last) = (0, began);
        let channel = |_| vec!["presence-hall".to_owned()];
        crowd.gather(self.members, channel, |text| {
            if memmem::find(text, b"member_added").is_some() {
                added += 1;
                last = clock.now();
            }
        })?;
        let pairs = (self.members * (self.members - 1) / 2) as u64;
        // Those who join together find each other in the roster or hear of each other, never both.
        let (more, heard) = settle(&mut crowd, b"member_added")?;
        let joined = report.cpu();
        report.add("members", self.members);
        report.add("together", target.together.min(self.members));
        report.add("added", added + more);
        report.add("added_if_one_by_one", pairs);
        report.number("join_s", (heard.unwrap_or(last) - began) as f64 / 1e9);
        if report.has_pids() {
            report.number("join_cpu_s", joined);
        }
        report.restart();
        let leaving = self.members / 2;
        let began = clock.now();
        let keys: Vec<_> = crowd.clients.iter().map(|(key, _)| key).take(leaving).collect();
        for key in keys {
            drop(crowd.clients.remove(key));
        }
        let (removed, heard) = settle(&mut crowd, b"member_removed")?;
        let left = report.cpu();
        report.add("left", leaving);
        report.add("removed", removed);
        report.add("removed_expected", leaving * (self.members - leaving));
        report.number("leave_s", (heard.unwrap_or(began) - began) as f64 / 1e9);
        if report.has_pids() {
            report.number("leave_cpu_s", left);
        }
        report.print().map(drop)
    }
}

/// Listens until a second has brought none of these notices; how many there were, and when the last.
fn settle(crowd: &mut Crowd, notice: &[u8]) -> io::Result<(u64, Option<u64>)> {
    let (mut count, mut last) = (0, None);
    loop {
        let before = count;
        crowd.listen(1.0, |heard| {
            if let Heard::Text { text, at, .. } = heard
                && memmem::find(text, notice).is_some()
            {
                count += 1;
                last = Some(at);
            }
        })?;
        if count == before {
            return Ok((count, last));
        }
    }
}
