//! Whether events arrive, for `fanfare doctor`: a signed request, a WebSocket, and a triggered event that the
//! socket receives. If a proxy passes only some paths, or changes them, the report names them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::answers::is_page;
use super::client::{ApiResponse, ApiTarget, PATIENCE};
use super::hints::{explain_refusal, with_hint};
use super::reach::{ReachResult, examine_reach};
use super::report::{Grade, Report};
use super::socket::{ClientSocket, SocketError};
use super::{CommandError, fallback, http2, listen};

/// The error for an app that the server does not have, in Reverb's wording and in ours.
const NO_APP: &str = "No matching application";

/// Part of the error when the HTTP API is at another address.
const ELSEWHERE: &str = "(server.api)";

/// How far a request gets.
enum AccessResult {
    /// To the server, which takes it.
    Taken,
    /// To the server, which refuses it: why, and what to do.
    Refused(String),
    /// To the server, but without the prefix that the client wrote and signed.
    Stripped,
    /// To a server that has no such path: what was answered.
    NoSuchPath(u16),
    /// The request reached something else: this is its response.
    Elsewhere(String),
    /// Nowhere, and nothing else will.
    Nowhere(String),
}

/// Looks at an address; whether requests of the app are taken there.
/// The API and the socket are tried before either is reported: which of a proxy's faults it is
/// shows only in both together.
pub(super) async fn examine_address(report: &mut Report, target: &ApiTarget) -> bool {
    let reached = examine_reach(report, target).await;
    if reached == ReachResult::Nothing {
        return false;
    }
    let api = try_api(target).await;
    if let AccessResult::Nowhere(error) = api {
        report.add("API", Grade::Fail, error);
        return false;
    }
    let opened = listen::open_established(target).await;
    // Answered like any request: a proxy without the upgrade, where the HTTP fallback may still
    // work.
    let is_cut = matches!(opened, Err(SocketError::NotUpgraded(_)));
    let (socket, passage) = match opened {
        Ok(opened) => (Some(opened), AccessResult::Taken),
        Err(error) => (None, socket_passage(error, target)),
    };
    if reached == ReachResult::Page && !report_page(report, &api, &passage) {
        return false;
    }
    let served = matches!(api, AccessResult::Taken);
    report_access(report, target, &api, &passage);
    let Some((socket, id)) = socket else {
        if served && is_cut {
            fallback::examine_fallback(report, target).await;
        }
        return served;
    };
    report.add("WebSocket", Grade::Ok, format!("connected as {id}"));
    http2::examine_http2(report, target).await;
    examine_compression(report, target).await;
    if served {
        examine_round_trip(report, target, (socket, id)).await;
        fallback::examine_fallback(report, target).await;
    }
    served
}

/// Says what a web page in the place of the server means, by what else gets through; false if nothing does.
fn report_page(report: &mut Report, api: &AccessResult, socket: &AccessResult) -> bool {
    if let (AccessResult::Elsewhere(_), AccessResult::Elsewhere(_)) = (api, socket) {
        let text = "a web page is there in its place: the address or port is another program's, or the proxy does not pass these paths on";
        report.add("server", Grade::Fail, text);
        return false;
    }
    let text = "it answers; the proxy in front has a page of its own at /up, so let health checks ask the server itself";
    report.add("server", Grade::Ok, text);
    true
}

/// Says how far a request and a socket get, a fault that both share only once.
/// The pairs of results that have a sentence of their own are those that proxies make: one prefix
/// passed on and not the other, or the path changed on the way.
fn report_access(
    report: &mut Report,
    target: &ApiTarget,
    api: &AccessResult,
    socket: &AccessResult,
) {
    use AccessResult::{Elsewhere, NoSuchPath, Refused, Stripped, Taken};

    let path = &target.path;
    let of_api = match (api, socket) {
        (Taken, _) => Ok(match &target.api {
            None => "a signed request is taken".to_owned(),
            Some(api) => format!("a signed request is taken at {}, its own address", api.url()),
        }),
        (Stripped, _) => Err(format!(
            "a proxy takes {path} away before the server sees it, so that signatures do not fit: leave the path as it is (nginx: proxy_pass without a slash at its end) and set server.path = \"{path}\""
        )),
        (Elsewhere(said), Elsewhere(_) | NoSuchPath(_)) => Err(format!(
            "{said}: the proxy passes neither {path}/apps/ nor {path}/app/ on, or server.path is another"
        )),
        (Elsewhere(said), _) => Err(format!(
            "{said}: the proxy passes {path}/app/ on, where sockets are, and not {path}/apps/, where backends trigger events: let it pass both"
        )),
        (NoSuchPath(status), Elsewhere(_) | NoSuchPath(_)) => Err(format!(
            "refused with {status}: a server answers, and has neither {path}/apps/ nor {path}/app/: is server.path another, or does a proxy change the path?"
        )),
        (NoSuchPath(status), _) => Err(format!(
            "refused with {status}: the server has {path}/app/, where sockets are, and not {path}/apps/: does a proxy change the path?"
        )),
        (Refused(text) | AccessResult::Nowhere(text), _) => Err(text.clone()),
    };
    let passes = of_api.is_ok();
    match of_api {
        Ok(text) => report.add("API", Grade::Ok, text),
        Err(text) => report.add("API", Grade::Fail, text),
    }
    let text = match (socket, api) {
        (Taken, _) => return,
        // Said already.
        (Elsewhere(_) | NoSuchPath(_), Elsewhere(_) | NoSuchPath(_) | Stripped) => return,
        (NoSuchPath(status), _) if path.is_empty() => format!(
            "answered with {status}: the server has no /app/ without a prefix: write that of server.path into the address (--url, wsPath of Echo and pusher-js)"
        ),
        (NoSuchPath(status), _) => format!(
            "answered with {status}: the server has no {path}/app/: is server.path another, or does a proxy take {path} away (nginx: proxy_pass with a slash at its end)?"
        ),
        (Elsewhere(said), _) if passes => format!(
            "{said}: the proxy passes {path}/apps/ on, where backends trigger events, and not {path}/app/, where sockets are: let it pass both"
        ),
        (Elsewhere(said), _) => format!("{said}: the proxy does not pass {path}/app/ on"),
        (Refused(text) | AccessResult::Nowhere(text), _) => text.clone(),
        (Stripped, _) => return,
    };
    report.add("WebSocket", Grade::Fail, text);
}

/// How far a signed request gets: `GET /apps/ID/channels`, which changes nothing.
async fn try_api(target: &ApiTarget) -> AccessResult {
    let answer = match target.send_signed("GET", "channels", &[], "").await {
        Ok(answer) => answer,
        Err(error) => return AccessResult::Nowhere(with_hint(&error.0)),
    };
    let passage = access_of(answer);
    // A signature is over the path as it was written.
    if let (AccessResult::Refused(_), false) = (&passage, target.of_api().path.is_empty())
        && let Ok(ApiResponse { status: 200, .. }) = target.send_signed_without_prefix().await
    {
        return AccessResult::Stripped;
    }
    passage
}

/// Interprets the response to a signed request. An error page in HTML comes from a proxy, one in JSON from the
/// server. The text of a 404 in JSON tells a missing app from a missing route.
fn access_of(answer: ApiResponse) -> AccessResult {
    let ApiResponse { status, .. } = answer;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let is_json = answer.json().is_ok_and(|json| json.is_object());
    let Err(CommandError(said)) = answer.require_success() else {
        return if is_page(&text) {
            AccessResult::Elsewhere("a web page is there in its place".to_owned())
        } else {
            AccessResult::Taken
        };
    };
    let advice = match status {
        404 if text.contains(ELSEWHERE) => ": say where with --api-url",
        404 if text.contains(NO_APP) => ": the server does not have this app: is the id right?",
        404 if is_json && text.contains("Not found.") => return AccessResult::NoSuchPath(status),
        404 if is_json => ": the server does not have this app: is the id right?",
        _ if !is_json && status != 401 && status != 403 => return AccessResult::Elsewhere(said),
        // A clock that is off answers 401 as well; `examine_reach` has looked at that before.
        401 => ": are key and secret those of this app on that server?",
        403 => ": the app is disabled, or a firewall stands in front",
        _ => "",
    };
    AccessResult::Refused(format!("{said}{advice}"))
}

/// Interprets a failed handshake. A 404 with JSON comes from the server, so the path is wrong. Without JSON
/// something else has answered.
fn socket_passage(error: SocketError, target: &ApiTarget) -> AccessResult {
    match error {
        SocketError::NotUpgraded(answer) => {
            let text = String::from_utf8_lossy(&answer.body);
            let status = answer.status;
            let json = answer.json().is_ok_and(|json| json.is_object());
            match status {
                404 if json => AccessResult::NoSuchPath(status),
                404 | 405 => AccessResult::Elsewhere(format!("answered with {status}")),
                200 if is_page(&text) => {
                    AccessResult::Elsewhere("answered with a web page".to_owned())
                }
                _ => AccessResult::Refused(CommandError::from(SocketError::NotUpgraded(answer)).0),
            }
        }
        SocketError::Closed(code, reason) => {
            AccessResult::Refused(explain_refusal(code, &reason, target.origin.as_deref()))
        }
        SocketError::Unreachable(CommandError(error)) => AccessResult::Refused(with_hint(&error)),
        other => AccessResult::Refused(CommandError::from(other).0),
    }
}

/// Reports whether a proxy removes the offer of compression. Nothing is reported if compression is off.
async fn examine_compression(report: &mut Report, target: &ApiTarget) {
    const SUBJECT: &str = "compression";
    match (target.agrees_on_compression().await, target.compresses) {
        (Ok(true), _) => {
            report.add(SUBJECT, Grade::Ok, "agreed on with sockets that offer it");
        }
        (Ok(false), true) => {
            let text = "the app has it on, and a socket that offers it is not taken up on it: a proxy takes Sec-WebSocket-Extensions away, or the server that answers has other settings (fanfare reload?)";
            report.add(SUBJECT, Grade::Warn, text);
        }
        (Ok(false), false) => {}
        (Err(CommandError(error)), _) => report.add(SUBJECT, Grade::Warn, error),
    }
}

/// Triggers an event that a socket must receive: the whole way from a backend to a client. The channel is named
/// after the socket, so that two doctors at once do not receive each other's events.
async fn examine_round_trip(
    report: &mut Report,
    target: &ApiTarget,
    (mut socket, id): (ClientSocket, String),
) {
    let channel = format!("fanfare-doctor-{}", id.replace('.', "-"));
    let made = async {
        listen::request_subscription(&mut socket, target, &channel, (&id, None)).await?;
        // The clock starts before the trigger, so its request is part of the time that is shown.
        let mut begun = None;
        loop {
            let Some(frame) = listen::next_event(&mut socket).await? else { continue };
            match frame.get("event").and_then(Value::as_str) {
                Some("pusher_internal:subscription_succeeded") => {
                    begun = Some(Instant::now());
                    let body = json!({ "name": "doctor", "channels": [channel], "data": "{}" });
                    target.call_api("POST", "events", &[], &body.to_string()).await?;
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
        Ok(Err(CommandError(error))) => report.add("event", Grade::Fail, error),
        Err(_) => {
            let text = "a triggered event did not reach the socket in ten seconds: do both reach the same server, or servers that share a Redis?";
            report.add("event", Grade::Fail, text);
        }
    }
}
