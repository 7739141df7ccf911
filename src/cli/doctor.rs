//! `fanfare doctor`: what is wrong with a server as its clients and backends see it, from the settings to
//! an event that makes the whole round, and how to mend it, in one sentence each.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::client::{PATIENCE, Target};
use super::mend::{files, mended, not_the_server};
use super::report::{Grade, Report};
use super::{Failure, listen, redis, webhooks};
use crate::config::{self, At, Loaded, Public};
use crate::server;

/// Open files below which a server cannot carry a crowd.
pub(super) const FILES: u64 = 4096;

/// What there is to do about fewer.
pub(super) const FEW: &str = "may be open, and each connection is one: raise LimitNOFILE= (systemd), minfds (supervisor) or ulimit -n";

/// Looks at everything in the order in which one thing rests on the other, as far as that goes.
pub(super) async fn examine(
    at: &At,
    load: impl FnOnce() -> Result<Loaded, config::Error>,
) -> Result<(), Failure> {
    let mut report = Report::new(at.json);
    let mut ours = None;
    let target = Target::find_one(at, true, || {
        let loaded = load()?;
        for warning in &loaded.warnings {
            report.add("settings", Grade::Warn, warning);
        }
        for doubt in loaded.doubts.iter().filter(|_| at.url.is_none()) {
            report.add("pages", Grade::Warn, doubt);
        }
        if let (Err(wrong), None) = (server::check(&loaded.config), &at.url) {
            let line = loaded.wrong(wrong.setting, &wrong.problem).to_string();
            report.add("settings", Grade::Fail, files(&line));
        }
        open_files(&mut report, loaded.config.server.max_connections);
        let Loaded { config, public, .. } = &loaded;
        ours = Some((config.metrics.clone(), config.cluster.clone(), public.clone()));
        Ok(loaded)
    });
    let target = match target.await {
        Ok(target) => target,
        Err(error) => {
            report.add("settings", Grade::Fail, error.0);
            return report.end();
        }
    };
    report.add("settings", Grade::Ok, format!("app {} on {}", target.id, target.url()));
    let (metrics, cluster, public) = ours
        .filter(|_| at.url.is_none())
        .map_or_else(Default::default, |(metrics, cluster, public)| {
            (Some(metrics), Some(cluster), public)
        });
    if let Some(cluster) = cluster {
        redis::examine(&mut report, &cluster).await;
    }
    if events(&mut report, &target).await {
        webhooks::examine(&mut report, &target, metrics.as_ref()).await;
    }
    for public in &public {
        from_outside(&mut report, &target, public).await;
    }
    report.end()
}

/// Whether requests and sockets are served there.
async fn events(report: &mut Report, target: &Target) -> bool {
    let served = reach(report, target).await && api(report, target).await;
    if served {
        round(report, target).await;
    }
    served
}

/// The same at the address that the app gives to its clients and its backend, unless that is this one.
async fn from_outside(report: &mut Report, target: &Target, public: &Public) {
    const SUBJECT: &str = "public address";
    let Public { url, said_by } = public;
    let public = match target.elsewhere(url) {
        Ok(public) => public,
        Err(error) => return report.add(SUBJECT, Grade::Fail, error.0),
    };
    if public.url() == target.url() {
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
    events(report, &public).await;
}

fn open_files(report: &mut Report, wanted: usize) {
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if limit < (wanted as u64).max(FILES) {
        report.add("open files", Grade::Warn, format!("at most {limit} {FEW}"));
    } else {
        report.add("open files", Grade::Ok, format!("up to {limit} for what is started here"));
    }
}

/// The port, TLS, and the clock, by a request that needs no signature.
async fn reach(report: &mut Report, target: &Target) -> bool {
    if target.tls {
        match timeout(PATIENCE, target.connect()).await {
            Ok(Ok((_, true))) => {
                report.add("TLS", Grade::Warn, "the certificate ends within two weeks: renew it");
            }
            Ok(Ok((_, false))) => {
                let text = "the certificate is trusted and lasts two weeks or more";
                report.add("TLS", Grade::Ok, text);
            }
            // The request below says what is wrong.
            Ok(Err(_)) => {}
            Err(_) => {
                let text = "nothing answers TLS in ten seconds: a firewall drops what is sent there, or it speaks no TLS (REVERB_SCHEME, --url) and waits for more";
                report.add("TLS", Grade::Fail, text);
                return false;
            }
        }
    }
    let answer = match target.request("GET", &format!("{}/up", target.path), "").await {
        Ok(answer) => answer,
        Err(error) => {
            report.add("server", Grade::Fail, mended(&error.0));
            return false;
        }
    };
    if let Some(sentence) = not_the_server(&answer, target.tls) {
        report.add("server", Grade::Fail, sentence);
        return false;
    }
    match answer.status {
        200 => report.add("server", Grade::Ok, "it answers"),
        // Other servers have no such path.
        404 => report.add("server", Grade::Ok, "it answers, though it does not know /up"),
        status => report.add("server", Grade::Warn, format!("it answers {status} to GET /up")),
    }
    ready(report, target).await;
    if let Some(apart) = answer.date.as_deref().and_then(seconds_apart) {
        if apart > 60 {
            let text = format!(
                "it is {apart} seconds off the server's: signatures hold for ten minutes, so let NTP set both"
            );
            report.add("clock", if apart > 600 { Grade::Fail } else { Grade::Warn }, text);
        } else {
            report.add("clock", Grade::Ok, "it agrees with the server's");
        }
    }
    true
}

/// Whether it wants new sockets; servers that have no such path are not asked.
async fn ready(report: &mut Report, target: &Target) {
    let Ok(answer) = target.request("GET", &format!("{}/ready", target.path), "").await else {
        return;
    };
    if answer.status != 503 {
        return;
    }
    let body = answer.json().unwrap_or_default();
    let text = match body.get("reason").and_then(Value::as_str) {
        Some("draining") => "it is stopping".to_owned(),
        Some("redis") => "it cannot reach its Redis: look at cluster.redis and its log".to_owned(),
        Some("memory") => {
            "it holds as much memory as limits.memory lets it: give it more, or add a node"
                .to_owned()
        }
        Some("connections") => {
            "it has as many connections as server.max_connections or the open-file limit let it"
                .to_owned()
        }
        other => format!("it is not: {}", other.unwrap_or("it does not say why")),
    };
    report.add("ready", Grade::Fail, text);
}

/// How far the date of an answer is from this machine's clock.
fn seconds_apart(date: &str) -> Option<u64> {
    // `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that RFC 9110 section 5.6.7 lets servers send.
    let parts: Vec<&str> = date.split([' ', ':']).collect();
    let &[_, day, month, year, hour, minute, second, "GMT"] = parts.as_slice() else { return None };
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = months.find(month)? as i64 / 3 + 1;
    let [day, year, hour, minute, second] =
        [day, year, hour, minute, second].map(|number| number.parse::<i64>().ok());
    let (year, day) = (year? - i64::from(month < 3), day?);
    // Days since 1970 in the calendar whose years begin in March.
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day
            - 719_469;
    let then = u64::try_from(days * 86_400 + hour? * 3600 + minute? * 60 + second?).ok()?;
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs().abs_diff(then))
}

async fn api(report: &mut Report, target: &Target) -> bool {
    let answer = match target.send("GET", "channels", &[], "").await {
        Ok(answer) => answer,
        Err(error) => {
            report.add("API", Grade::Fail, error.0);
            return false;
        }
    };
    let status = answer.status;
    let Err(error) = answer.accepted() else {
        report.add("API", Grade::Ok, "a signed request is taken");
        return true;
    };
    let advice = match status {
        401 => ": are key and secret those of this app on that server?",
        403 => ": the app is disabled, or a firewall stands in front",
        404 => ": the server does not have this app, or a proxy or server.path changes the path",
        _ => "",
    };
    report.add("API", Grade::Fail, format!("{error}{advice}"));
    false
}

/// A trigger that a socket hears.
async fn round(report: &mut Report, target: &Target) {
    let late = || Failure("no greeting came in ten seconds".to_owned());
    let begun = timeout(PATIENCE, listen::begin(target)).await;
    let (mut socket, id) = match begun.unwrap_or_else(|_| Err(late())) {
        Ok(begun) => begun,
        Err(error) => {
            report.add("WebSocket", Grade::Fail, error.0);
            return;
        }
    };
    report.add("WebSocket", Grade::Ok, format!("connected as {id}"));
    let channel = format!("fanfare-doctor-{}", id.replace('.', "-"));
    let made = async {
        listen::join(&mut socket, target, &channel, (&id, None)).await?;
        let mut begun = None;
        loop {
            let Some(frame) = listen::next(&mut socket).await? else { continue };
            match frame.get("event").and_then(Value::as_str) {
                Some("pusher_internal:subscription_succeeded") => {
                    begun = Some(Instant::now());
                    let body = json!({ "name": "doctor", "channels": [channel], "data": "{}" });
                    target.ask("POST", "events", &[], &body.to_string()).await?;
                }
                Some("doctor") => return Ok(begun.map_or(Duration::ZERO, |begun| begun.elapsed())),
                _ => {}
            }
        }
    };
    match timeout(PATIENCE, made).await {
        Ok(Ok(took)) => {
            let text = format!("a triggered event came back after {} ms", took.as_millis());
            report.add("event", Grade::Ok, text);
        }
        Ok(Err(Failure(error))) => report.add("event", Grade::Fail, error),
        Err(_) => {
            let text = "a triggered event did not reach the socket in ten seconds: do both reach the same server, or servers that share a Redis?";
            report.add("event", Grade::Fail, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for (date, then) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800),
            ("Fri, 01 Mar 2024 00:00:00 GMT", 1_709_251_200),
        ] {
            let apart = seconds_apart(date).unwrap();
            assert!(apart.abs_diff(now - then) <= 1, "{date}");
        }
        assert_eq!(seconds_apart("yesterday"), None);
    }
}
