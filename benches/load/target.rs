//! The server under test: where it is, whose app is used, and which processes it runs as; and everything
//! that is signed for it, for which the product's own signer serves.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use fanfare::protocol::auth::{Signer, md5_hex};
use serde_json::json;

/// The options that all scenarios share.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Where the server listens. Publishing goes here.
    #[arg(long, global = true, default_value = "127.0.0.1:6001")]
    pub addr: SocketAddr,
    /// More nodes of the same cluster; clients are spread over all of them
    #[arg(long, global = true)]
    pub peer: Vec<SocketAddr>,
    #[arg(long, global = true, default_value = "app-id")]
    pub app_id: String,
    #[arg(long, global = true, default_value = "app-key")]
    pub app_key: String,
    #[arg(long, global = true, default_value = "app-secret")]
    pub app_secret: String,
    /// Process ids of the server, for its CPU time and memory
    #[arg(long, global = true, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// What the results are called
    #[arg(long, global = true, default_value = "server")]
    pub label: String,
    /// Connections that may be in the making at once
    #[arg(long, global = true, default_value_t = 32)]
    pub together: usize,
    /// How clients connect
    #[arg(long, global = true, value_enum, default_value = "websocket")]
    pub transport: Transport,
    /// Clients offer permessage-deflate
    #[arg(long, global = true)]
    pub compress: bool,
}

/// How clients connect.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    Websocket,
    /// As pusher-js does where WebSockets are blocked
    #[value(name = "xhr_streaming")]
    Streaming,
}

/// The server and the app.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub addresses: Vec<SocketAddr>,
    pub id: String,
    pub key: String,
    signer: Signer,
    pub pids: Vec<u32>,
    pub label: String,
    pub together: usize,
    pub transport: Transport,
    pub compress: bool,
}

impl Target {
    pub(crate) fn new(options: Options) -> Self {
        let mut addresses = vec![options.addr];
        addresses.extend(options.peer);
        Self {
            addresses,
            id: options.app_id,
            key: options.app_key,
            signer: Signer::new(&options.app_secret),
            pids: options.pid,
            label: options.label,
            together: options.together.max(1),
            transport: options.transport,
            compress: options.compress,
        }
    }

    /// Where the backend publishes.
    pub(crate) fn api(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where the client of that number connects.
    pub(crate) fn address(&self, client: usize) -> SocketAddr {
        self.addresses[client % self.addresses.len()]
    }

    /// The message that subscribes, signed where the channel asks for it.
    pub(crate) fn subscribe(&self, socket_id: &str, channel: &str, user: usize) -> String {
        let mut data = json!({ "channel": channel });
        let mut sign = |parts: &[&str]| {
            data["auth"] = format!("{}:{}", self.key, self.signer.sign(parts)).into();
        };
        if channel.starts_with("presence-") {
            let member =
                format!(r#"{{"user_id":"member-{user}","user_info":{{"name":"Member {user}"}}}}"#);
            sign(&[socket_id, ":", channel, ":", &member]);
            data["channel_data"] = member.into();
        } else if channel.starts_with("private-") {
            sign(&[socket_id, ":", channel]);
        }
        json!({ "event": "pusher:subscribe", "data": data }).to_string()
    }

    /// A signed request of the HTTP API, as Pusher's backend libraries send it. `path` is what follows
    /// `/apps/{id}`.
    pub(crate) fn post(&self, path: &str, body: &str) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = format!("/apps/{}{path}", self.id);
        let query = format!(
            "auth_key={}&auth_timestamp={now}&auth_version=1.0&body_md5={}",
            self.key,
            md5_hex(body.as_bytes())
        );
        let signature = self.signer.sign(&["POST\n", &path, "\n", &query]);
        format!(
            "POST {path}?{query}&auth_signature={signature} HTTP/1.1\r\nHost: {}\r\n\
             Accept: application/json\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.api(),
            body.len()
        )
        .into_bytes()
    }
}
