//! `fanfare doctor --watch`: repeats all checks every five seconds and prints changes with the time, until interrupted.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::sleep;

use super::CommandError;
use super::doctor::look;
use super::report::ReportForm;
use crate::config::{self, LoadedSettings, TargetArgs};

/// How long nothing is looked at between two looks. Each of them opens a socket and triggers an event.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Repeats all checks for ever. Prints the first report in full, and each later one that differs. With `--json`
/// every report is a line. Texts with a measured time would differ each time, so a finding that is `ok` counts as
/// unchanged whatever its text: see `Report::state`.
pub(super) async fn watch(
    at: &TargetArgs,
    load: impl Fn() -> Result<LoadedSettings, config::Error>,
) -> Result<(), CommandError> {
    let mut before = None;
    loop {
        let report = look(at, ReportForm::Silent, &load).await;
        let time = httpdate::fmt_http_date(SystemTime::now());
        let state = report.state();
        let told = if at.json {
            writeln!(io::stdout(), "{}", json!({ "time": time, "findings": report.json() }))
        } else if before.as_ref() == Some(&state) {
            Ok(())
        } else {
            writeln!(io::stdout(), "{time}\n{}\n", report.lines().join("\n"))
        };
        // Nobody listens any more.
        if told.and_then(|()| io::stdout().flush()).is_err() {
            return Ok(());
        }
        before = Some(state);
        sleep(REPORT_INTERVAL).await;
    }
}
