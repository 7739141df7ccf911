//! The text that a server without a configured app prints at its start: the generated credentials, the lines for a
//! Laravel app's `.env`, and a `curl` command that triggers an event.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use fanfare::config::GeneratedApp;
use fanfare::protocol::auth::{Signer, md5_hex};

/// Title and lines of each part. Every line can be copied as it is.
pub(crate) struct Greeting(Vec<(&'static str, Vec<String>)>);

/// Says how to reach the app that was made for this run, at `addr` and below `path`; on a Unix socket only
/// a proxy can know that, so only the credentials are said.
pub(crate) fn banner_text(
    made: &GeneratedApp,
    addr: Option<SocketAddr>,
    path: &str,
    try_out: bool,
) -> Greeting {
    let GeneratedApp { id, key, secret } = made;
    let credentials = (
        "An app for this run",
        vec![format!("id={id}"), format!("key={key}"), format!("secret={secret}")],
    );
    // A Unix socket is for a proxy, whose public address and path are not known here.
    let Some(addr) = addr else { return Greeting(vec![credentials]) };
    let (host, port) = (addr.ip(), addr.port());
    let mut env = vec![
        "BROADCAST_CONNECTION=reverb".to_owned(),
        format!("REVERB_APP_ID={id}"),
        format!("REVERB_APP_KEY={key}"),
        format!("REVERB_APP_SECRET={secret}"),
        format!("REVERB_HOST={host}"),
        format!("REVERB_PORT={port}"),
        "REVERB_SCHEME=http".to_owned(),
    ];
    if !path.is_empty() {
        env.push(format!("REVERB_SERVER_PATH={path}"));
    }
    let built = ["APP_KEY", "HOST", "PORT", "SCHEME"];
    env.extend(built.map(|name| format!("VITE_REVERB_{name}=\"${{REVERB_{name}}}\"")));
    let mut parts = Vec::new();
    if try_out {
        parts.push((
            "Open this page: it has joined my-channel",
            vec![format!("http://{addr}{path}/")],
        ));
    }
    parts.push((
        "Trigger an event (the signature holds for ten minutes)",
        vec![curl_command(made, addr, path)],
    ));
    parts.push(credentials);
    parts.push(("For the .env of a Laravel app", env));
    let mut echo = format!(
        "new Echo({{ broadcaster: \"reverb\", key: \"{key}\", wsHost: \"{host}\", wsPort: {port}, forceTLS: false, enabledTransports: [\"ws\", \"wss\"]"
    );
    if !path.is_empty() {
        // Writing to a `String` cannot fail, here and below.
        let _ = write!(echo, ", wsPath: \"{path}\"");
    }
    parts.push(("For Laravel Echo on a page", vec![echo + " })"]));
    Greeting(parts)
}

/// A signed request that triggers an event on `my-channel`, as Pusher's "HTTP API reference" has
/// it: MD5 of the body in the query, HMAC-SHA256 over method, path and query.
fn curl_command(made: &GeneratedApp, addr: SocketAddr, path: &str) -> String {
    let body = r#"{"name":"greeting","channels":["my-channel"],"data":"{\"text\":\"Hello\"}"}"#;
    // A clock before 1970 gives 0: the signature is then refused, and the answer names the time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let route = format!("/apps/{}/events", made.id);
    let query = format!(
        "auth_key={}&auth_timestamp={now}&auth_version=1.0&body_md5={}",
        made.key,
        md5_hex(body.as_bytes())
    );
    let signature = Signer::new(&made.secret).sign(&["POST\n", path, &route, "\n", &query]);
    format!(
        "curl -sS -H 'Content-Type: application/json' -d '{body}' \
         'http://{addr}{path}{route}?{query}&auth_signature={signature}'"
    )
}

impl Greeting {
    /// For a terminal: parts with a bold title.
    pub(crate) fn for_terminal(&self) -> String {
        self.0.iter().fold("\n".to_owned(), |mut out, (title, lines)| {
            let _ = write!(out, "  \u{1b}[1m{title}\u{1b}[0m\n\n");
            for line in lines {
                let _ = writeln!(out, "    {line}");
            }
            out.push('\n');
            out
        })
    }

    /// For anything else: the lines alone, each title a comment.
    pub(crate) fn as_comments(&self) -> String {
        self.0.iter().fold(String::new(), |mut out, (title, lines)| {
            let _ = writeln!(out, "# {title}");
            for line in lines {
                let _ = writeln!(out, "{line}");
            }
            out
        })
    }
}
