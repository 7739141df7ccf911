//! Whether a server is reachable at an address, for `fanfare doctor`: the port, TLS and its certificate, the clock,
//! and readiness. None of these checks needs an app.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::time::timeout;

use super::answers::is_page;
use super::client::{ApiResponse, ApiTarget, PATIENCE};
use super::hints::{not_the_server, with_hint};
use super::report::{Grade, Report};

/// The result of the check of an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReachResult {
    /// Nothing that events could go through; the report says why.
    Nothing,
    /// A server of the protocol, as far as its response shows.
    Server,
    /// A web page in the place of the server's own answer. A proxy may pass other paths on.
    Page,
}

/// The port, TLS, and the clock, by a request that needs no signature.
pub(super) async fn examine_reach(report: &mut Report, target: &ApiTarget) -> ReachResult {
    if target.tls && !examine_certificate(report, target).await {
        return ReachResult::Nothing;
    }
    let answer = match target.send_plain("GET", &format!("{}/up", target.path), "").await {
        Ok(answer) => answer,
        Err(error) => {
            report.add("server", Grade::Fail, with_hint(&error.0));
            return ReachResult::Nothing;
        }
    };
    if let Some(sentence) = not_the_server(&answer, target.tls) {
        report.add("server", Grade::Fail, sentence);
        return ReachResult::Nothing;
    }
    let is_page = is_page(&String::from_utf8_lossy(&answer.body));
    match answer.status {
        _ if is_page => {}
        200 => report.add("server", Grade::Ok, "it answers"),
        // Other servers have no such path.
        404 => report.add("server", Grade::Ok, "it answers, though it does not know /up"),
        status => report.add("server", Grade::Warn, format!("it answers {status} to GET /up")),
    }
    if !is_page {
        examine_readiness(report, target).await;
    }
    compare_clocks(report, &answer);
    if is_page { ReachResult::Page } else { ReachResult::Server }
}

/// Checks TLS, unless a request reports the failure better. Returns false only if nothing answered in time: a
/// request would then wait as long again.
async fn examine_certificate(report: &mut Report, target: &ApiTarget) -> bool {
    match timeout(PATIENCE, target.connect()).await {
        Ok(Ok((_, true))) => {
            let text = "the certificate ends within two weeks: renew it";
            report.add("TLS", Grade::Warn, text);
        }
        Ok(Ok((_, false))) => {
            let text = "the certificate is trusted and lasts two weeks or more";
            report.add("TLS", Grade::Ok, text);
        }
        // The request says what is wrong.
        Ok(Err(_)) => {}
        Err(_) => {
            let text = "nothing answers TLS in ten seconds: a firewall drops what is sent there, or it speaks no TLS (REVERB_SCHEME, --url) and waits for more";
            report.add("TLS", Grade::Fail, text);
            return false;
        }
    }
    true
}

/// The server refuses a request whose `auth_timestamp` is more than 600 s off its own clock, as
/// Pusher does. The `Date` header has whole seconds, so a minute is near enough.
fn compare_clocks(report: &mut Report, answer: &ApiResponse) {
    let Some(apart) = answer.date.as_deref().and_then(seconds_apart) else { return };
    if apart <= 60 {
        return report.add("clock", Grade::Ok, "it agrees with the server's");
    }
    let text = format!(
        "it is {apart} seconds off the server's: signatures hold for ten minutes, so let NTP set both"
    );
    report.add("clock", if apart > 600 { Grade::Fail } else { Grade::Warn }, text);
}

/// Reports whether the server accepts new sockets. Servers without `/ready` are skipped. The reasons are the closed
/// list of `node/readiness.rs`.
async fn examine_readiness(report: &mut Report, target: &ApiTarget) {
    let Ok(answer) = target.send_plain("GET", &format!("{}/ready", target.path), "").await else {
        return;
    };
    if answer.status != 503 {
        return;
    }
    // A body that is not JSON names no reason.
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
    // January and February count as the end of the year before, so that a leap day comes last.
    let (year, day) = (year? - i64::from(month < 3), day?);
    // Days since 1970 in the calendar whose years begin in March.
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day
            - 719_469;
    let then = u64::try_from(days * 86_400 + hour? * 3600 + minute? * 60 + second?).ok()?;
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs().abs_diff(then))
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
