//! Commands for a running server: trigger an event, listen, list channels, diagnose. They work with any server of the
//! Pusher protocol, given by `--url` and credentials, or with the one of the local settings.

mod answers;
mod capacity;
mod client;
mod console;
mod database;
mod doctor;
mod doctor_watch;
mod events;
mod fallback;
mod feed;
mod find;
mod hints;
mod http2;
mod listen;
mod reach;
mod redis;
mod report;
mod root_certs;
pub mod running;
mod socket;
mod top;
mod watch;
mod webhooks;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::config::{self, Flags, Tool};
use crate::protocol::query::percent_encode;
use client::{ApiResponse, ApiTarget};
use feed::ConsoleTarget;

/// Why a command did not do what it was asked, in one line.
#[derive(Debug)]
pub struct CommandError(String);

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<config::Error> for CommandError {
    fn from(error: config::Error) -> Self {
        Self(error.to_string())
    }
}

/// Does what `tool` asks and writes what comes of it to the standard output.
/// Runs on a runtime of one thread, as a command has at most a socket and a timer. `env` and
/// `folder` are given rather than read here, so that tests need not change those of their process.
///
/// # Errors
/// The reason why it was not done, in one line for the standard error.
pub fn run_tool<N: Into<OsString>, V: Into<OsString>>(
    tool: &Tool,
    flags: &Flags,
    env: impl IntoIterator<Item = (N, V)>,
    folder: &Path,
) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let env: Vec<(OsString, OsString)> =
        env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    // Read only by the commands that need them: some work on machines without settings.
    let load = || config::load_settings(flags, env.iter().cloned(), folder);
    runtime.block_on(async {
        match tool {
            Tool::Trigger { channel, event, data, at } => {
                let body = json!({ "name": event, "channels": [channel], "data": data });
                let target = ApiTarget::find_server(at, load).await?;
                let answer = target.call_api("POST", "events", &[], &body.to_string()).await?;
                print_result(at.json, &answer.json()?, || {
                    format!("{event} was triggered on {channel}.\n")
                })
            }
            Tool::Listen { all: true, at, .. } => {
                let console = ConsoleTarget::find(at.url.as_deref(), None, load)?;
                let line = if at.json { watch::as_event_json } else { watch::as_event };
                watch::watch(&console, &watch::query_of_all(), line).await
            }
            Tool::Watch { args, at } => {
                let console = ConsoleTarget::find(at.url.as_deref(), at.token.as_deref(), load)?;
                let line = if args.json { watch::as_json } else { watch::as_text };
                watch::watch(&console, &watch::query(args), line).await
            }
            Tool::Top { at } => {
                let console = ConsoleTarget::find(at.url.as_deref(), at.token.as_deref(), load)?;
                top::top(&console).await
            }
            Tool::Listen { channels, user, at, .. } => {
                let target = ApiTarget::find_server(at, load).await?;
                listen::listen(&target, channels, user.as_deref(), at.json).await
            }
            Tool::Channels { prefix, at } => {
                let target = ApiTarget::find_server(at, load).await?;
                let list = fetch_channels(&target, prefix.as_deref()).await?;
                print_result(at.json, &list, || channel_table(&list))
            }
            Tool::Terminate { user, at } => {
                let target = ApiTarget::find_server(at, load).await?;
                let answer = ask_of_user(&target, user, "terminate_connections", "{}").await?;
                print_result(at.json, &answer, || format!("Connections of {user} are closed.\n"))
            }
            Tool::Revoke { user, channels, at } => {
                let target = ApiTarget::find_server(at, load).await?;
                let body = json!({ "channels": channels }).to_string();
                let answer = ask_of_user(&target, user, "unsubscribe", &body).await?;
                let channels = channels.join(", ");
                print_result(at.json, &answer, || format!("{user} has left {channels}.\n"))
            }
            Tool::Reconnect { user, at } => {
                let target = ApiTarget::find_server(at, load).await?;
                let answer = ask_of_user(&target, user, "reconnect", "{}").await?;
                print_result(at.json, &answer, || {
                    format!("Clients of {user} are told to come back.\n")
                })
            }
            Tool::Doctor { watch: false, at } => doctor::examine_all(at, load).await,
            Tool::Doctor { watch: true, at } => doctor_watch::watch(at, load).await,
            Tool::Healthcheck => {
                let target = ApiTarget::of_own(&load()?.config.server)?;
                let up = format!("{}/up", target.path);
                target.send_plain("GET", &up, "").await?.require_success().map(drop)
            }
            Tool::Capacity { upstreams, json } => {
                capacity::print_bounds(&load()?.config, *upstreams, *json)
            }
            Tool::Completions { shell } => complete(*shell),
            Tool::Man { folder } => write_manuals(folder),
        }
    })
}

/// Prints the completions of a shell, for `source <(fanfare completions bash)`.
fn complete(shell: clap_complete::Shell) -> Result<(), CommandError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Flags::command(), "fanfare", &mut text);
    // A closed stdout (`fanfare completions bash | head`) is no error.
    let _ = io::stdout().write_all(&text);
    Ok(())
}

/// The pages of the commands, and that of the settings.
fn write_manuals(folder: &Path) -> Result<(), CommandError> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("fanfare.toml.5"), config::manual())?;
    Ok(clap_mangen::generate_to(Flags::command(), folder)?)
}

/// Posts what is to be done with a user's connections, for example `terminate_connections`.
///
/// # Errors
/// The server cannot be reached, or refuses: most often a wrong secret.
async fn ask_of_user(
    target: &ApiTarget,
    user: &str,
    verb: &str,
    body: &str,
) -> Result<Value, CommandError> {
    let path = format!("users/{}/{verb}", percent_encode(user));
    target.call_api("POST", &path, &[], body).await?.json()
}

/// The channels and their counts; without counts from a server that does not give them.
async fn fetch_channels(target: &ApiTarget, prefix: Option<&str>) -> Result<Value, CommandError> {
    let prefix = prefix.map(|prefix| ("filter_by_prefix", prefix));
    let counted: Vec<_> = prefix.into_iter().chain([("info", "subscription_count")]).collect();
    match target.send_signed("GET", "channels", &counted, "").await? {
        ApiResponse { status: 400, .. } => {
            let plain: Vec<_> = prefix.into_iter().collect();
            target.call_api("GET", "channels", &plain, "").await?.json()
        }
        answer => answer.require_success()?.json(),
    }
}

/// Names in one column and counts, where there are any, in another.
fn channel_table(list: &Value) -> String {
    let none = serde_json::Map::new();
    let channels = list.get("channels").and_then(Value::as_object).unwrap_or(&none);
    if channels.is_empty() {
        return "No channel is occupied.\n".to_owned();
    }
    // There is a longest name, as the list is not empty.
    let width = channels.keys().map(|name| name.chars().count()).max().unwrap_or_default();
    channels.iter().fold(String::new(), |text, (name, info)| {
        let count = info.get("subscription_count").map_or_else(String::new, Value::to_string);
        text + format!("{name:width$}  {count:>8}").trim_end() + "\n"
    })
}

/// Says `value` to a program, or the text to a person, who reads it on a terminal.
fn print_result(
    as_json: bool,
    value: &Value,
    text: impl FnOnce() -> String,
) -> Result<(), CommandError> {
    let text = if as_json { format!("{value}\n") } else { text() };
    // A reader that closes the pipe early has read enough; that is no error.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// `text` in bold or a colour where a person reads it: `1` is bold, `31` red, `32` green, `33`
/// yellow (SGR, ECMA-48). A pipe gets the text alone.
fn coloured(colour: u8, text: &str) -> String {
    if io::stdout().is_terminal() {
        format!("\u{1b}[{colour}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// A text from elsewhere on one line, without control characters. Otherwise an event's data could move the cursor,
/// set the title or write to the clipboard of the terminal.
fn without_controls(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, character| {
        if character.is_control() {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_a_table() {
        let list = json!({ "channels": { "a": { "subscription_count": 12 }, "presence-b": {} } });
        assert_eq!(channel_table(&list), "a                 12\npresence-b\n");
        assert_eq!(channel_table(&json!({ "channels": {} })), "No channel is occupied.\n");
    }

    #[test]
    fn a_terminal_is_told_nothing_to_obey() {
        assert_eq!(without_controls("a\u{1b}[2J\nb é"), "a\\u{1b}[2J\\nb é");
    }
}
