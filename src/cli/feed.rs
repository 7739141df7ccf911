//! Reads the feed of a debug console line by line, for `watch.rs` and `top.rs`. The server's side is
//! `http/console/stream.rs`.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use serde_json::Value;

use super::client::ApiTarget;
use super::running::RunningApp;
use super::{CommandError, without_controls};
use crate::app::App;
use crate::config::{self, LoadedSettings};
use crate::protocol::query::percent_encode;

/// The parameters of a feed: name and value.
pub(super) type FeedQuery = Vec<(&'static str, String)>;

/// How long a command waits before it opens a feed again that has ended.
/// A server that restarts is back within a few of these.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where a console is, and what opens it.
pub(super) struct ConsoleTarget {
    /// The server that has the console.
    target: ApiTarget,
    /// `console.token`, sent as a bearer token; empty where the console asks for none.
    token: String,
}

/// An open feed.
/// `bytes` holds the part of a line that has come; `lines` those that came with others in one
/// chunk.
pub(super) struct FeedLines {
    /// The body of the feed's response.
    body: Incoming,
    /// Received bytes that are no whole line yet.
    bytes: Vec<u8>,
    /// Whole lines that were not returned yet.
    lines: VecDeque<Value>,
}

impl ConsoleTarget {
    /// Finds the console: at `url`, or at the server of the settings, or at a server that runs here without
    /// settings. A token given as a flag takes precedence over the settings. A server that made its own app is
    /// found by its runtime file.
    pub(super) fn find(
        url: Option<&str>,
        token: Option<&str>,
        load: impl FnOnce() -> Result<LoadedSettings, config::Error>,
    ) -> Result<Self, CommandError> {
        let nobody = App::new("", "", "");
        let loaded = load();
        let configured = loaded.as_ref().map_or("", |loaded| &loaded.config.console.token);
        let token = token.unwrap_or(configured).to_owned();
        if let Some(url) = url {
            return Ok(Self { target: ApiTarget::from_url(url, &nobody)?, token });
        }
        let config = loaded?.config;
        // Without settings of its own this command takes the app of a server that runs here.
        let running = config.made_app.is_some().then(RunningApp::list_running).unwrap_or_default();
        let running = RunningApp::choose(running, None, config.server.port)?;
        let target = match running {
            Some(running) => {
                ApiTarget::from_url(running.api.as_ref().unwrap_or(&running.url), &nobody)?
            }
            None => ApiTarget::of_own(&config.server)?,
        };
        Ok(Self { target, token })
    }

    /// Where the console is asked, for people.
    pub(super) fn url(&self) -> String {
        self.target.of_api().url()
    }

    /// Opens the feed.
    ///
    /// # Errors
    /// The server cannot be reached, has no console open to this machine, or wants another token.
    pub(super) async fn open(&self, query: &FeedQuery) -> Result<FeedLines, CommandError> {
        let target = self.target.of_api();
        let pairs: Vec<_> =
            query.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
        let path = format!("{}/console/feed?{}", target.path, pairs.join("&"));
        // The token goes into a header: a query would be in the access logs of proxies.
        let mut request = Request::get(path);
        if !self.token.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {}", self.token));
        }
        let request = request.body(Full::<Bytes>::default()).map_err(std::io::Error::other);
        let response = target.in_time(async { target.exchange(request?).await }).await?;
        match response.status().as_u16() {
            200 => {
                let (bytes, lines) = (Vec::new(), VecDeque::new());
                Ok(FeedLines { body: response.into_body(), bytes, lines })
            }
            401 => Err(CommandError(
                "the console wants its token: FANFARE_CONSOLE__TOKEN, console.token in the settings, or --token"
                    .to_owned(),
            )),
            404 => Err(CommandError(format!(
                "there is no console at {}: console.access is \"off\", or it is another server",
                target.url()
            ))),
            _ => {
                target.read_response(response).await?.require_success()?;
                Err(CommandError("the server answers with something else than a feed".to_owned()))
            }
        }
    }
}

impl FeedLines {
    /// The next line; none once the server has ended the feed.
    ///
    /// # Errors
    /// A line is not JSON. How the connection ends does not matter.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, CommandError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            // However the connection ended, no more lines will come.
            let Some(Ok(frame)) = self.body.frame().await else { return Ok(None) };
            let Ok(data) = frame.into_data() else { continue };
            self.bytes.extend_from_slice(&data);
            while let Some(end) = memchr::memchr(b'\n', &self.bytes) {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let line = serde_json::from_slice(&line)
                    .map_err(|_| CommandError("the feed has a line that is not JSON".to_owned()))?;
                self.lines.push_back(line);
            }
        }
    }
}

/// The text of a line's field, harmless to a terminal; empty where there is none.
pub(super) fn field(line: &Value, name: &str) -> String {
    match line.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => without_controls(text),
        Some(other) => other.to_string(),
    }
}

/// A count of a line; 0 where there is none.
pub(super) fn count(line: &Value, name: &str) -> u64 {
    // A server of another version may lack the field.
    line.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// The time of a line in UTC, in the format of the log: `13:05:59.123`.
pub(super) fn time_of(line: &Value) -> String {
    // A line without a time is shown as midnight rather than left out.
    let millis = line.get("at").and_then(Value::as_u64).unwrap_or_default();
    let since = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, millis % 1000)
}
