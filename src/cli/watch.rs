//! `fanfare watch` and `listen --all`: what happens on a server, one line each, from the feed of its debug console.

use std::io::{self, Write};

use serde_json::Value;

use super::feed::{ConsoleTarget, FeedQuery, RETRY_AFTER, count, field, time_of};
use super::{CommandError, coloured};
use crate::config::WatchArgs;

/// The flags as parameters of the console's feed (docs/console.md).
pub(super) fn query(args: &WatchArgs) -> FeedQuery {
    let texts = [
        ("app", &args.app),
        ("channel", &args.channel),
        ("event", &args.event),
        ("socket", &args.socket),
        ("user", &args.user),
    ];
    let mut query: FeedQuery =
        texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))).collect();
    if !args.kind.is_empty() {
        query.push(("kind", args.kind.join(",")));
    }
    if args.payloads {
        query.push(("payloads", "1".to_owned()));
    }
    query
}

/// Every event that is published, as `listen` prints those of a channel. The rate is the most that
/// the console allows.
pub(super) fn query_of_all() -> FeedQuery {
    vec![
        ("kind", "published,whispered".to_owned()),
        ("payloads", "1".to_owned()),
        ("rate", "2000".to_owned()),
    ]
}

/// Prints until it is interrupted. A server that goes is waited for, since deployments are watched.
///
/// # Errors
/// It was never there, or the console refuses the token.
pub(super) async fn watch(
    console: &ConsoleTarget,
    query: &FeedQuery,
    line_of: impl Fn(&Value) -> Option<String>,
) -> Result<(), CommandError> {
    let mut feed = console.open(query).await?;
    loop {
        while let Some(line) = feed.next().await? {
            let Some(text) = line_of(&line) else { continue };
            let mut out = io::stdout();
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                // A reader that closes the pipe early has read enough; that is no error.
                return Ok(());
            }
        }
        note("the server has ended the feed: waiting for it");
        feed = loop {
            tokio::time::sleep(RETRY_AFTER).await;
            if let Ok(feed) = console.open(query).await {
                break feed;
            }
        };
        note("it is back");
    }
}

/// For a person, apart from what a program reads.
fn note(text: &str) {
    // On stderr, so that stdout has nothing but facts.
    let _ = writeln!(io::stderr(), "fanfare: {text}");
}

/// A line as it was received. The figures of each second are included, since a program may want them.
pub(super) fn as_json(line: &Value) -> Option<String> {
    Some(format!("{line}\n"))
}

/// A line for a person; figures have one only where something is not shown, or while the server drains.
pub(super) fn as_text(line: &Value) -> Option<String> {
    let kind = field(line, "kind");
    match kind.as_str() {
        "hello" => None,
        "figures" => {
            let unseen = count(line, "unseen");
            let is_draining = line.get("draining") == Some(&Value::Bool(true));
            let text = match (unseen, is_draining) {
                (0, false) => return None,
                (0, true) => format!("draining: {} still connected", count(line, "connections")),
                _ => format!("{unseen} more in the last second that are not shown"),
            };
            Some(format!("{}  {}\n", time_of(line), coloured(33, &text)))
        }
        _ => {
            let is_wrong =
                matches!(kind.as_str(), "refused" | "closed" | "held_up" | "webhook_failed");
            // Padded before it is coloured, for a terminal does not count what colours it.
            let kind = coloured(if is_wrong { 31 } else { 32 }, &format!("{kind:<14}"));
            let shown = ["app", "channel", "event", "socket", "user", "address"];
            let words = shown.iter().map(|name| field(line, name)).filter(|text| !text.is_empty());
            let mut text = format!("{}  {kind}", time_of(line));
            for word in words {
                text.push(' ');
                text.push_str(&word);
            }
            for (name, before) in [("count", "×"), ("bytes", "B="), ("code", "")] {
                let value = field(line, name);
                if !value.is_empty() {
                    text.push_str(&format!(" {before}{value}"));
                }
            }
            for name in ["why", "signed", "trace", "data"] {
                let value = field(line, name);
                if !value.is_empty() {
                    let name = if name == "why" { String::new() } else { format!("{name}: ") };
                    text.push_str(&format!("  {name}{value}"));
                }
            }
            text.push('\n');
            Some(text)
        }
    }
}

/// An event as `listen` prints it: channel, event and data, with tabs between them.
pub(super) fn as_event(line: &Value) -> Option<String> {
    if line.get("kind").and_then(Value::as_str) == Some("figures") {
        let unseen = count(line, "unseen");
        let text = format!("{unseen} more events in the last second that are not shown");
        if unseen > 0 {
            note(&text);
        }
        return None;
    }
    let channel = field(line, "channel");
    if channel.is_empty() {
        return None;
    }
    let event = coloured(1, &field(line, "event"));
    Some(format!("{channel}\t{event}\t{}\n", field(line, "data")))
}

/// The same for a program: facts alone, as they came.
pub(super) fn as_event_json(line: &Value) -> Option<String> {
    line.get("channel")?;
    Some(format!("{line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_tells_a_terminal_nothing_to_obey() {
        let line = json!({
            "kind": "published", "at": 1, "channel": "c\u{1b}[2J", "event": "e\n", "data": "d\u{7}",
        });
        for text in [as_text(&line), as_event(&line)] {
            let text = text.unwrap();
            assert_eq!(text.matches(|c: char| c.is_control() && c != '\t').count(), 1, "{text:?}");
        }
    }

    #[test]
    fn figures_are_told_only_where_they_say_something() {
        let quiet = json!({ "kind": "figures", "at": 0, "unseen": 0, "draining": false });
        assert_eq!(as_text(&quiet), None);
        let flood = json!({ "kind": "figures", "at": 0, "unseen": 7, "draining": false });
        assert!(as_text(&flood).unwrap().contains("7 more"));
        let drain = json!({ "kind": "figures", "at": 0, "draining": true, "connections": 3 });
        assert!(as_text(&drain).unwrap().contains("3 still connected"));
    }
}
