//! The report on the rounds: a line for each, and the table of all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::verdict::{Kind, Wrong};

/// One round.
#[derive(Debug)]
pub struct Row {
    pub fault: &'static str,
    pub seed: u64,
    /// How long after the fault everything was right; none if something was not, in time.
    pub right: Option<Duration>,
    /// The same with the webhooks.
    pub all_right: Option<Duration>,
    /// When it was right after all, if it was not in time.
    pub late: String,
    /// Deliveries of events, and how many of them never came.
    pub owed: usize,
    pub lost: usize,
    pub doubled: usize,
    pub disordered: usize,
    /// What was wrong and is known to be.
    pub known: BTreeSet<Kind>,
    /// What makes it a failure.
    pub wrongs: Vec<Wrong>,
}

impl Row {
    pub fn new(fault: &'static str, seed: u64) -> Self {
        Self {
            fault,
            seed,
            right: None,
            all_right: None,
            late: String::new(),
            owed: 0,
            lost: 0,
            doubled: 0,
            disordered: 0,
            known: BTreeSet::new(),
            wrongs: Vec::new(),
        }
    }

    pub fn has_failed(&self) -> bool {
        !self.wrongs.is_empty()
    }

    /// What there is to say of it; of each kind of wrong the first ones.
    pub fn line(&self) -> String {
        let seconds = |time: Option<Duration>| {
            let late = || format!("NOT IN TIME ({})", self.late);
            time.map_or_else(late, |time| format!("{:.1} s", time.as_secs_f64()))
        };
        let mut text = format!("{}, round {}: right after ", self.fault, self.seed);
        text += &format!("{}, webhooks {}", seconds(self.right), seconds(self.all_right));
        text += &format!(", {} of {} lost, {} doubled", self.lost, self.owed, self.doubled);
        if !self.known.is_empty() {
            text += &format!("; known: {:?}", self.known);
        }
        let mut kinds: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for wrong in &self.wrongs {
            kinds.entry(wrong.kind).or_default().push(&wrong.text);
        }
        for (kind, texts) in kinds {
            text += &format!("\n    {kind:?}, {}:", texts.len());
            for some in texts.iter().take(4) {
                text += &format!("\n        {some}");
            }
        }
        text
    }
}

/// The table of all rounds, fault by fault; `docs/cluster.md` has its sums.
pub fn table(rows: &[Row]) -> String {
    let mut faults: Vec<&str> = Vec::new();
    for row in rows {
        if !faults.contains(&row.fault) {
            faults.push(row.fault);
        }
    }
    let mut text =
        "| fault | rounds | right after (longest) | webhooks too | deliveries | lost | doubled | \
                    out of order | failed |\n|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for fault in faults {
        let of: Vec<&Row> = rows.iter().filter(|row| row.fault == fault).collect();
        let sum = |what: fn(&Row) -> usize| of.iter().map(|row| what(row)).sum::<usize>();
        text += &format!(
            "| {fault} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            of.len(),
            spread(of.iter().filter_map(|row| row.right)),
            spread(of.iter().filter_map(|row| row.all_right)),
            sum(|row| row.owed),
            sum(|row| row.lost),
            sum(|row| row.doubled),
            sum(|row| row.disordered),
            of.iter().filter(|row| row.has_failed()).count(),
        );
    }
    text
}

/// The median in seconds, and the longest.
fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(longest)) => format!("{median:.1} s ({longest:.1})"),
        _ => "-".to_owned(),
    }
}
