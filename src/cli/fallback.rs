//! The HTTP fallback, for `fanfare doctor`: a streaming session as pusher-js opens it, an event, and which common proxy
//! fault prevents it. WebSockets work when this is checked, so nothing here is worse than a warning.

use std::io;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::CommandError;
use super::client::{ApiResponse, ApiTarget, PATIENCE};
use super::report::{Grade, Report};
use crate::protocol::query::percent_encode;

/// A line that has not come after this is held back by a proxy. pusher-js gives a streaming answer
/// as long before it polls.
const HELD_AFTER: Duration = Duration::from_secs(4);

/// Where pusher-js looks if its options have no `httpPath`.
const DEFAULT_PREFIX: &str = "/pusher";

/// Requests of a session that must all come to the server that has it.
/// With two nodes and a proxy that picks one at random, all succeed by chance once in sixteen.
const TRIES: usize = 4;

/// How a session over HTTP comes out.
enum Crossing {
    /// An event came back after this.
    Heard(Duration),
    /// The server has no such routes.
    NotServed,
    /// Somebody else answers: what.
    Elsewhere(String),
    /// The server lets it open, and no line comes.
    Held,
    /// A later request found no session.
    Astray,
    /// Any other failure.
    Broken(String),
}

/// Tests the prefix of the address first, then pusher-js's default. A page sets the prefix with `httpPath`; without
/// it pusher-js uses `/pusher`.
pub(super) async fn examine_fallback(report: &mut Report, target: &ApiTarget) {
    const SUBJECT: &str = "HTTP fallback";
    let path = &target.path;
    let (first, second) = match path.as_str() {
        "" => (DEFAULT_PREFIX, ""),
        path => (path, DEFAULT_PREFIX),
    };
    let mut crossing = try_prefix(target, first).await;
    let mut advice = String::new();
    if let Crossing::Elsewhere(said) = &crossing {
        let other = try_prefix(target, second).await;
        if !matches!(other, Crossing::Elsewhere(_)) {
            advice = format!("; {first}/app/ is not passed on ({said}): let the proxy pass it");
            if path.is_empty() {
                advice.push_str(", or set httpPath: '/' in Echo or pusher-js");
            }
            crossing = other;
        }
    } else if !path.is_empty() && matches!(crossing, Crossing::Heard(_)) {
        report.add(
            SUBJECT,
            Grade::Ok,
            format!("reached by httpPath: '{path}' in Echo and pusher-js"),
        );
    }
    let (grade, text) = match crossing {
        Crossing::Heard(took) => {
            let text = format!("a streaming client heard an event after {} ms", took.as_millis());
            (if advice.is_empty() { Grade::Ok } else { Grade::Warn }, text)
        }
        Crossing::NotServed => {
            let text = "not served (server.http_fallback = false, or another server), so clients whose WebSockets are blocked cannot connect";
            (Grade::Ok, text.to_owned())
        }
        Crossing::Elsewhere(said) => {
            let text = format!(
                "{said}: the proxy passes on neither POST {DEFAULT_PREFIX}/app/ nor POST {path}/app/, so clients whose WebSockets are blocked cannot connect"
            );
            (Grade::Warn, text)
        }
        Crossing::Held => (Grade::Warn, explain_buffering(target).await),
        Crossing::Astray => {
            let text = "requests of one session come to different nodes: let the proxy hash the session in the path (docs/deploying.md, \"Where WebSockets are blocked\")";
            (Grade::Warn, text.to_owned())
        }
        Crossing::Broken(error) => (Grade::Warn, error),
    };
    report.add(SUBJECT, grade, text + &advice);
}

/// Explains what clients can still use if a proxy buffers streaming responses. The response to a poll ends, so that
/// even a proxy that buffers passes it on.
async fn explain_buffering(target: &ApiTarget) -> String {
    let polls =
        match timeout(HELD_AFTER, TrialSession::new(target, DEFAULT_PREFIX).poll_once()).await {
            Ok(Ok(answer)) => answer.status == 200 && answer.body.starts_with(b"o"),
            _ => false,
        };
    let left = if polls { "clients poll instead" } else { "and polling does not work either" };
    format!(
        "a proxy buffers streaming answers, {left}: let it pass them on as they come (nginx: proxy_buffering off, or no proxy_ignore_headers X-Accel-Buffering; lighttpd: server.stream-response-body = 1; Varnish: no do_gzip; gateways that scan: leave these paths out)"
    )
}

/// The limit around the whole is a second one: within it, each line has [`HELD_AFTER`].
async fn try_prefix(target: &ApiTarget, prefix: &str) -> Crossing {
    match timeout(PATIENCE, open_and_poll(target, prefix)).await {
        Ok(Ok(crossing)) => crossing,
        Ok(Err(CommandError(error))) => Crossing::Broken(error),
        Err(_) => Crossing::Broken("no event came over HTTP in ten seconds".to_owned()),
    }
}

/// Opens a session, says nothing a few times, subscribes, triggers an event and waits for it: the
/// steps of a client, so that the first that fails names the fault.
async fn open_and_poll(target: &ApiTarget, prefix: &str) -> Result<Crossing, CommandError> {
    let session = TrialSession::new(target, prefix);
    let Ok(opened) = timeout(HELD_AFTER, session.open_stream()).await else {
        return Ok(Crossing::Held);
    };
    let mut lines = match opened? {
        Ok(lines) => lines,
        Err(answer) => return Ok(refused_opening(&answer)),
    };
    let Ok(greeting) = timeout(HELD_AFTER, lines.read_greeting()).await else {
        return Ok(Crossing::Held);
    };
    let Some(socket) = greeting? else {
        let text = "the session is refused".to_owned();
        return Ok(Crossing::Broken(text));
    };
    for _ in 0..TRIES {
        if session.send_frames(&[]).await? == 404 {
            return Ok(Crossing::Astray);
        }
    }
    let channel = format!("fanfare-doctor-{}", socket.replace('.', "-"));
    let joining = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
    match session.send_frames(&[joining.to_string()]).await? {
        404 => return Ok(Crossing::Astray),
        200..300 => {}
        status => {
            let text = format!("what a client says over HTTP is answered with {status}");
            return Ok(Crossing::Broken(text));
        }
    }
    lines.skip_until("pusher_internal:subscription_succeeded").await?;
    let begun = Instant::now();
    let body = json!({ "name": "doctor", "channels": [channel], "data": "{}" });
    target.call_api("POST", "events", &[], &body.to_string()).await?;
    Ok(match timeout(HELD_AFTER, lines.skip_until("doctor")).await {
        Ok(heard) => heard.map(|()| Crossing::Heard(begun.elapsed()))?,
        Err(_) => Crossing::Held,
    })
}

/// Interprets the response when a session could not be opened.
fn refused_opening(answer: &ApiResponse) -> Crossing {
    let is_json = answer.json().is_ok_and(|json| json.is_object());
    match answer.status {
        404 if is_json => Crossing::NotServed,
        status => Crossing::Elsewhere(format!("answered with {status}")),
    }
}

/// A session's address, made as pusher-js makes it: a server number of three digits and a name of
/// eight characters, which proxies hash to find the node.
struct TrialSession<'a> {
    /// The server, or the proxy in front of it.
    target: &'a ApiTarget,
    /// The path of the session, without the transport's name.
    path: String,
}

impl<'a> TrialSession<'a> {
    /// A session with a random name, as pusher-js makes one.
    fn new(target: &'a ApiTarget, prefix: &str) -> Self {
        // One random number gives both: forty bits the name, the rest the server number.
        let mut seed = [0; 8];
        // Without chance it is a name all the same; only two at once would be in each other's way.
        let _ = getrandom::fill(&mut seed);
        let seed = u64::from_le_bytes(seed);
        let digit = |place: u32| {
            let five = (seed >> (5 * place)) as u32 % 32;
            char::from_digit(five, 32).unwrap_or('0')
        };
        let name: String = (0..8).map(digit).collect();
        let path =
            format!("{prefix}/app/{}/{}/{name}", percent_encode(&target.key), (seed >> 40) % 1000);
        Self { target, path }
    }

    /// `what` is the kind of request: `xhr_streaming`, `xhr` (a poll) or `xhr_send`.
    fn session_url(&self, what: &str) -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!("{}/{what}?protocol=7&client=fanfare&version={version}", self.path)
    }

    /// Opens the session by a streaming request; its lines, or what else was answered.
    async fn open_stream(&self) -> Result<Result<AnswerLines, ApiResponse>, CommandError> {
        let response = self.target.begin_post(&self.session_url("xhr_streaming"), "").await?;
        if response.status() != 200 {
            return Ok(Err(self.target.read_response(response).await?));
        }
        Ok(Ok(AnswerLines { body: response.into_body(), partial_line: Vec::new() }))
    }

    /// One poll: a POST that is answered once there is a line.
    async fn poll_once(&self) -> Result<ApiResponse, CommandError> {
        let response = self.target.begin_post(&self.session_url("xhr"), "").await?;
        self.target.read_response(response).await
    }

    /// Says these frames; the status of the answer.
    async fn send_frames(&self, frames: &[String]) -> Result<u16, CommandError> {
        let body = json!(frames).to_string();
        let response = self.target.begin_post(&self.session_url("xhr_send"), &body).await?;
        Ok(response.status().as_u16())
    }
}

/// The lines of a streaming answer, as they come.
struct AnswerLines {
    /// The body of the streaming response.
    body: Incoming,
    /// The beginning of a line whose end has not come yet.
    partial_line: Vec<u8>,
}

impl AnswerLines {
    /// One line, without its end. The answer comes in chunks that need not end where lines do.
    async fn next_line(&mut self) -> Result<String, CommandError> {
        loop {
            if let Some(end) = self.partial_line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial_line.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let Some(frame) = self.body.frame().await else {
                return Err(CommandError("the streaming answer ended too early".to_owned()));
            };
            let frame = frame.map_err(io::Error::other).map_err(|error| {
                CommandError(format!("the streaming answer broke off: {error}"))
            })?;
            self.partial_line.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }

    /// The frames of the next line that has any; none at the session's end.
    /// Lines as in `SockJS`: `a` and an array of frames, `c` for the end, `h` and `o` without frames.
    async fn next_frames(&mut self) -> Result<Option<Vec<Value>>, CommandError> {
        loop {
            let line = self.next_line().await?;
            match line.split_at_checked(1) {
                Some(("a", frames)) => {
                    // A line that is no list carries no frames.
                    let texts: Vec<String> = serde_json::from_str(frames).unwrap_or_default();
                    let parsed = texts.iter().map(|text| serde_json::from_str(text));
                    return Ok(Some(parsed.filter_map(Result::ok).collect()));
                }
                Some(("c", _)) => return Ok(None),
                _ => {}
            }
        }
    }

    /// The socket id that the session is greeted with; none if it is refused.
    async fn read_greeting(&mut self) -> Result<Option<String>, CommandError> {
        while let Some(frames) = self.next_frames().await? {
            for frame in frames {
                // Frames without data, such as `pusher:pong`, parse as null and have no socket id.
                let data = frame.get("data").and_then(Value::as_str).unwrap_or_default();
                let data: Value = serde_json::from_str(data).unwrap_or_default();
                if let Some(id) = data.get("socket_id").and_then(Value::as_str) {
                    return Ok(Some(id.to_owned()));
                }
            }
        }
        Ok(None)
    }

    /// Reads on until an event of this name; the caller has a time limit around it.
    async fn skip_until(&mut self, event: &str) -> Result<(), CommandError> {
        while let Some(frames) = self.next_frames().await? {
            let is_it = |frame: &Value| frame.get("event").and_then(Value::as_str) == Some(event);
            if frames.iter().any(is_it) {
                return Ok(());
            }
        }
        Err(CommandError("the server ended the session over HTTP".to_owned()))
    }
}
