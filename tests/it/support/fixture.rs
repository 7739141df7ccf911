//! A server started for one test on a free port of the loopback, with the app that the protocol's
//! published signatures were made for, and changed as the test needs it.

use std::net::SocketAddr;
use std::time::Duration;

use fanfare::app::{App, Apps, Webhook, WebhookEvent};
use fanfare::config::{self, Config, MetricsConfig, ServerConfig, TryOut};
use fanfare::server::{self, ServerHandle};

use super::http::{Http, Response, await_readiness};
use super::sign::Request;
use super::websocket::Client;
use super::{DEADLINE, redis};

pub const ID: &str = "3";
pub const KEY: &str = "278d425bdf160c739803";
pub const SECRET: &str = "7ad3773142a6692b25b8";

/// A running server; it begins to stop when the fixture is dropped.
pub struct Fixture {
    running: Option<ServerHandle>,
    pub addr: SocketAddr,
}

impl Fixture {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// With one app, changed by `change`.
    pub fn with(change: impl FnOnce(&mut App)) -> Self {
        let mut app = App::new(ID, KEY, SECRET);
        change(&mut app);
        Self::with_apps(vec![app], |_| {})
    }

    pub fn with_apps(apps: Vec<App>, change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::with_config(apps, |config| change(&mut config.server))
    }

    pub fn with_config(apps: Vec<App>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(apps);
        change(&mut config);
        Self::of(config)
    }

    /// With these settings.
    pub fn of(config: Config) -> Self {
        let clustered = !config.cluster.redis.is_empty() && config.server.tls.is_none();
        let running = server::start(config).expect("the server starts");
        // Tests on a Unix socket know its path.
        let addr = running.address().tcp().unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let node = Self { addr, running: Some(running) };
        if clustered {
            node.is_ready();
        }
        node
    }

    /// Whether anybody looks at the debug console.
    pub fn is_watched(&self) -> bool {
        let running = self.running.as_ref().expect("it runs");
        running.shared().hub.console.is_watched()
    }

    /// A connection that has read its `connection_established`, and its socket id.
    pub fn connect(&self) -> (Client, String) {
        let mut client = Client::open(self.addr, &target(KEY), &[]).expect("a WebSocket");
        let text = client.hear_text();
        let socket_id = established(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        (client, socket_id)
    }

    /// A connection that is subscribed to the public channel `channel`.
    pub fn subscribed(&self, channel: &str) -> Client {
        let (mut client, _) = self.connect();
        subscribe(&mut client, channel);
        client
    }

    /// A signed request to `/apps/3/{path}`.
    pub fn api(&self, method: &str, path: &str, body: &str) -> Response {
        let target = format!("/apps/{ID}/{path}");
        Http::connect(self.addr).ask_signed(&Request::new(method, &target, body, KEY, SECRET))
    }

    /// Publishes one event to one channel, and asserts that it was taken.
    pub fn publish(&self, channel: &str, event: &str, data: &str) {
        let response = self.api("POST", "events", &trigger(channel, event, data));
        assert_eq!((response.status, response.text()), (200, "{}"));
    }

    /// Asserts that the server still does its work for everyone else.
    pub fn is_well(&self) {
        let mut client = self.subscribed("still-here");
        self.publish("still-here", "e", "1");
        assert_eq!(client.hear_text(), r#"{"event":"e","channel":"still-here","data":"1"}"#);
    }

    /// Waits until new sockets are welcome.
    pub fn is_ready(&self) {
        await_readiness(self.addr, 200);
    }

    pub fn running(&self) -> &ServerHandle {
        self.running.as_ref().expect("not yet stopped")
    }

    pub fn drain(&self) {
        self.running().drain();
    }

    /// Drains and waits until the server has ended.
    pub fn stop(mut self) {
        self.drain();
        self.running.take().expect("not yet stopped").wait().expect("no worker panicked");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.drain();
        }
    }
}

/// The settings of a server with `apps`, as far from real time and the real network as they go.
pub fn config(apps: Vec<App>) -> Config {
    Config {
        server: ServerConfig {
            host: "127.0.0.1".to_owned(),
            workers: 2,
            io_uring: true,
            handshake_timeout: 2 * DEADLINE,
            http_fallback: true,
            cors_origins: vec!["*".to_owned()],
            try_out: TryOut::Off,
            ..ServerConfig::default()
        },
        metrics: MetricsConfig {
            host: "127.0.0.1".to_owned(),
            prefix: "fanfare_".to_owned(),
            ..MetricsConfig::default()
        },
        cluster: redis::alone(),
        webhooks: config::WebhooksConfig { allow_private: true, ..Default::default() },
        apps: Apps::new(apps).expect("ids and keys given once"),
        ..Config::default()
    }
}

/// A webhook that asks for everything.
pub fn webhook(url: &str) -> Webhook {
    Webhook {
        url: url.to_owned(),
        events: vec![
            WebhookEvent::ChannelOccupied,
            WebhookEvent::ChannelVacated,
            WebhookEvent::MemberAdded,
            WebhookEvent::MemberRemoved,
            WebhookEvent::ClientEvent,
            WebhookEvent::CacheMiss,
            WebhookEvent::SubscriptionCount,
        ],
        channel_prefix: String::new(),
        channel_suffix: String::new(),
        headers: Vec::new(),
        batch: Duration::ZERO,
    }
}

/// Where pusher-js connects for the app with this key.
pub fn target(key: &str) -> String {
    format!("/app/{key}?protocol=7&client=js&version=8.6.0&flash=false")
}

/// The body of `POST events` for one channel.
pub fn trigger(channel: &str, event: &str, data: &str) -> String {
    serde_json::json!({ "name": event, "channels": [channel], "data": data }).to_string()
}

pub fn subscribe(client: &mut Client, channel: &str) {
    client
        .send_text(&format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#));
    assert_eq!(
        client.hear_text(),
        format!(
            r#"{{"event":"pusher_internal:subscription_succeeded","channel":"{channel}","data":"{{}}"}}"#
        )
    );
}

/// The socket id in a `connection_established`, if the frame is what every SDK accepts (case H01).
pub fn established(text: &str) -> Result<String, String> {
    let frame: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let keys: Vec<_> =
        frame.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    if sorted != ["data", "event"] || frame["event"] != "pusher:connection_established" {
        return Err("not a connection_established".to_owned());
    }
    let data = frame["data"].as_str().ok_or("data is not a string")?;
    let data: serde_json::Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
    let timeout = data["activity_timeout"].as_u64().ok_or("activity_timeout is not a number")?;
    let id = data["socket_id"].as_str().ok_or("socket_id is not a string")?;
    let (left, right) = id.split_once('.').ok_or("a socket_id without its point")?;
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if timeout == 0 || !number(left) || !number(right) {
        return Err("activity_timeout or socket_id is none".to_owned());
    }
    Ok(id.to_owned())
}
