//! `fanfare doctor` on the debug console: who may open it according to the settings, and whether it is open without a
//! token at the public address.

use super::client::ApiTarget;
use super::report::{Grade, Report};
use crate::config::{Config, ConsoleAccess};

/// The subject of these findings in the report.
const SUBJECT: &str = "console";

/// Reports the console's settings.
pub(super) fn report_settings(report: &mut Report, config: &Config) {
    let console = &config.console;
    let (grade, text) = match console.access {
        ConsoleAccess::Loopback => (
            Grade::Ok,
            "open to whoever comes from this machine to a loopback address, and not through a proxy",
        ),
        ConsoleAccess::On if console.allow_plain_http => (
            Grade::Warn,
            "open to whoever knows its token, which is taken over plain HTTP too: others on the way can read it",
        ),
        ConsoleAccess::On => (Grade::Ok, "open to whoever knows its token, over HTTPS"),
        ConsoleAccess::Off => (Grade::Ok, "switched off"),
    };
    report.add(SUBJECT, grade, text);
}

/// Checks whether the console is open without a token at a public address. A proxy on the same machine makes every
/// visitor look local. The server refuses requests with a forwarding header, so only a proxy that sends none
/// exposes the console.
pub(super) async fn examine_public(report: &mut Report, target: &ApiTarget) {
    let api = target.of_api();
    let path = format!("{}/console/state", api.path);
    // That nothing answers there was said already.
    let Ok(answer) = api.send_plain("GET", &path, "").await else { return };
    let is_console =
        answer.status == 200 && answer.json().is_ok_and(|state| state.get("is_by_token").is_some());
    if is_console {
        let text = format!(
            "anybody who can reach {} can open it: the proxy there hides that it is one. Let it send X-Forwarded-For, or \
             set console.access to \"off\", or to \"on\" with a token",
            api.url()
        );
        report.add(SUBJECT, Grade::Fail, text);
    }
}
