//! `fanfare doctor`: checks a server as its clients and backends see it, from the settings to an event that makes the
//! whole round, with a one-sentence remedy for each fault.

use std::net::IpAddr;

use rustix::process::{Resource, getrlimit};

use super::client::ApiTarget;
use super::hints::{MIN_OPEN_FILES, MORE_OPEN_FILES, explain_start_error};
use super::report::{Grade, Report, ReportForm};
use super::{CommandError, console, events, redis, webhooks};
use crate::config::{self, LoadedSettings, PublicAddress, TargetArgs};
use crate::server;

/// Looks at everything in the order in which one thing rests on the other, as far as that goes.
///
/// # Errors
/// Something is graded `FAIL`; warnings alone end in success.
pub(super) async fn examine_all(
    at: &TargetArgs,
    load: impl FnOnce() -> Result<LoadedSettings, config::Error>,
) -> Result<(), CommandError> {
    let form = if at.json { ReportForm::Json } else { ReportForm::Lines };
    look(at, form, load).await.finish_report()
}

/// One look at everything.
/// Settings first, then the server at its address, then the address that clients are given. With
/// `--url` the settings here may be another server's, so nothing is said of theirs.
pub(super) async fn look(
    at: &TargetArgs,
    form: ReportForm,
    load: impl FnOnce() -> Result<LoadedSettings, config::Error>,
) -> Report {
    let mut report = Report::new(form);
    // Filled by the closure below, which runs only if the settings are read at all.
    let mut ours = None;
    let target = ApiTarget::find_one(at, true, || {
        let loaded = load()?;
        for warning in &loaded.warnings {
            report.add("settings", Grade::Warn, warning);
        }
        for doubt in loaded.doubts.iter().filter(|_| at.url.is_none()) {
            let grade = if doubt.breaks { Grade::Fail } else { Grade::Warn };
            report.add(doubt.subject, grade, &doubt.text);
        }
        if let (Err(wrong), None) = (server::check(&loaded.config), &at.url) {
            let line = loaded.setting_error(wrong.setting, &wrong.problem).to_string();
            report.add("settings", Grade::Fail, explain_start_error(&line));
        }
        open_files(&mut report, loaded.config.server.max_connections);
        let LoadedSettings { config, public, .. } = &loaded;
        if at.url.is_none() {
            console::report_settings(&mut report, config);
        }
        ours = Some((config.metrics.clone(), config.cluster.clone(), public.clone()));
        Ok(loaded)
    });
    let target = match target.await {
        Ok(target) => target,
        Err(error) => {
            report.add("settings", Grade::Fail, error.0);
            return report;
        }
    };
    report.add("settings", Grade::Ok, format!("app {} on {}", target.id, target.url()));
    let (metrics, cluster, public) = ours
        .filter(|_| at.url.is_none())
        .map_or_else(Default::default, |(metrics, cluster, public)| {
            (Some(metrics), Some(cluster), public)
        });
    if let Some(cluster) = cluster {
        redis::examine_redis(&mut report, &cluster).await;
    }
    if events::examine_address(&mut report, &target).await {
        webhooks::examine_webhooks(&mut report, &target, metrics.as_ref()).await;
    }
    if at.url.is_some() && !is_here(&target.of_api().host) {
        console::examine_public(&mut report, &target).await;
    }
    let apart = target.api.is_some() && public.len() > 1;
    for public in &public {
        // Last, for each is a whole look by itself.
        from_outside(&mut report, (&target, apart), public).await;
    }
    report
}

/// Looks at the address that the app gives to its clients and its backend, unless that is this one.
/// Where the API is `apart` each of the two has its own. It may be a proxy's, and a fault of the
/// proxy is found only from there.
async fn from_outside(
    report: &mut Report,
    (target, apart): (&ApiTarget, bool),
    public: &PublicAddress,
) {
    /// The subject of these findings in the report.
    const SUBJECT: &str = "public address";
    let PublicAddress { url, said_by } = public;
    // Vite and Laravel Mix build these variables into pages; the others are the backend's.
    let is_backends = !said_by.starts_with("VITE_") && !said_by.starts_with("MIX_");
    let public = match (apart, is_backends) {
        (true, true) => target.clone().with_api(url),
        (true, false) => {
            target.at_url(url).map(|place| ApiTarget { api: target.api.clone(), ..place })
        }
        (false, _) => target.at_url(url),
    };
    let public = match public {
        Ok(public) => public,
        Err(error) => return report.add(SUBJECT, Grade::Fail, error.0),
    };
    let is_own = is_same_place(&public, target);
    if is_own && is_same_place(public.of_api(), target.of_api()) && !public.tls {
        return;
    }
    if matches!(public.host.as_str(), "0.0.0.0" | "::") {
        let text = format!(
            "{url} is no address that anybody can go to: {said_by}HOST is where clients find the server, REVERB_SERVER_HOST what it listens on"
        );
        return report.add(SUBJECT, Grade::Fail, text);
    }
    report.add(
        SUBJECT,
        Grade::Ok,
        format!("{url}, as {said_by}HOST, {said_by}PORT and {said_by}SCHEME have it; there:"),
    );
    if events::examine_address(report, &public).await && !is_own {
        console::examine_public(report, &public).await;
    }
}

/// Whether both are one port of this machine, by whatever name: Laravel's installer writes `localhost`.
/// Over TLS the name matters, for a certificate is for one.
fn is_same_place(public: &ApiTarget, own: &ApiTarget) -> bool {
    let port = |target: &ApiTarget| (target.unix_socket.is_none(), target.tls, target.port);
    public.url() == own.url()
        || port(public) == port(own)
            && public.path == own.path
            && is_here(&public.host)
            && is_here(&own.host)
}

/// Whether an address is this machine's own, from where the console may be open.
/// `localhost` is one by name: RFC 6761 section 6.3 lets it mean nothing else.
fn is_here(host: &str) -> bool {
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || host.eq_ignore_ascii_case("localhost")
}

/// The limit of this shell, which is the server's only if it is started from it. The hard limit
/// counts, as the server raises its soft one when it starts (`setrlimit(2)`).
fn open_files(report: &mut Report, wanted: usize) {
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if limit < (wanted as u64).max(MIN_OPEN_FILES) {
        report.add("open files", Grade::Warn, format!("at most {limit} {MORE_OPEN_FILES}"));
    } else {
        report.add("open files", Grade::Ok, format!("up to {limit} for what is started here"));
    }
}
