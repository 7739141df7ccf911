//! The table of all settings: for each one its name, its default, how it is parsed, and the field that it sets. Files,
//! variables, `config show` and the example file are all driven by these tables. The public structs with the values are
//! in `config` and `app`.

use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::value::{
    Value, WantedForm, boolean, choice, count, duration, host, memory, networks, number, pairs,
    path, size, text, texts,
};
use super::{ApiAddress, Config, ConsoleAccess, MIN_CONSOLE_TOKEN, TryOut, UnixSocket};
use crate::app::{App, AppId, ClientEvents, Webhook, WebhookEvent};
use crate::protocol::auth::Signer;
use crate::protocol::origin::OriginPattern;

/// One setting, read into its place in a `T`.
pub struct SettingKey<T> {
    /// Dotted, without its array: `server.port`, and `id` for an app's.
    pub name: &'static str,
    /// As TOML; none if the setting is required.
    pub default: Option<&'static str>,
    /// Whether it is a secret. Secrets are never shown, and never repeated in an error.
    pub secret: bool,
    /// Parses a value and sets the field; the error says what was expected.
    pub(super) read: fn(&mut T, &Value) -> Result<(), WantedForm>,
}

/// A row of the tables.
const fn key<T>(
    name: &'static str,
    default: &'static str,
    read: fn(&mut T, &Value) -> Result<(), WantedForm>,
) -> SettingKey<T> {
    SettingKey { name, default: Some(default), secret: false, read }
}

/// A required setting.
const fn required<T>(key: SettingKey<T>) -> SettingKey<T> {
    SettingKey { default: None, ..key }
}

/// A setting that is a secret.
const fn hidden<T>(key: SettingKey<T>) -> SettingKey<T> {
    SettingKey { secret: true, ..key }
}

/// The last step of each row: sets the field, or returns what was expected.
fn put_read<T>(place: &mut T, read: Result<T, WantedForm>) -> Result<(), WantedForm> {
    *place = read?;
    Ok(())
}

/// Limits of durations, which reject slips such as `10000h`.
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The settings of the server as a whole.
pub const SERVER: &[SettingKey<Config>] = &[
    key("server.host", r#""127.0.0.1""#, |c, v| put_read(&mut c.server.host, host(v))),
    key("server.port", "8080", |c, v| put_read(&mut c.server.port, number(v, 0..=65_535))),
    key("server.path", r#""""#, |c, v| put_read(&mut c.server.path, path(v))),
    key("server.workers", "0", |c, v| put_read(&mut c.server.workers, number(v, 0..=1024))),
    key("server.io_uring", r#""auto""#, |c, v| {
        put_read(&mut c.server.io_uring, choice(v, &[("auto", true), ("off", false)]))
    }),
    key("server.max_connections", "0", |c, v| put_read(&mut c.server.max_connections, count(v, 0))),
    key("server.shutdown_grace", r#""10s""#, |c, v| {
        put_read(&mut c.server.shutdown_grace, duration(v, Duration::ZERO..=HOUR))
    }),
    key("server.shutdown_delay", r#""0s""#, |c, v| {
        put_read(&mut c.server.shutdown_delay, duration(v, Duration::ZERO..=HOUR))
    }),
    key("server.handshake_timeout", r#""10s""#, |c, v| {
        put_read(&mut c.server.handshake_timeout, duration(v, MILLISECOND..=HOUR))
    }),
    key("server.trusted_proxies", "[]", |c, v| {
        put_read(&mut c.server.trusted_proxies, networks(v))
    }),
    key("server.proxy_protocol", "false", |c, v| {
        put_read(&mut c.server.proxy_protocol, boolean(v))
    }),
    key("server.connections_per_ip", "0", |c, v| {
        put_read(&mut c.server.connections_per_ip, count(v, 0))
    }),
    key("server.handshakes_per_ip", "0", |c, v| {
        put_read(&mut c.server.handshakes_per_ip, number(v, 0..=1_000_000))
    }),
    key("server.http_fallback", "true", |c, v| put_read(&mut c.server.http_fallback, boolean(v))),
    key("server.cors_origins", r#"["*"]"#, |c, v| put_read(&mut c.server.cors_origins, origins(v))),
    key("server.tls.cert", r#""""#, |c, v| {
        put_read(&mut c.server.tls.get_or_insert_default().cert, text(v).map(PathBuf::from))
    }),
    key("server.tls.key", r#""""#, |c, v| {
        put_read(&mut c.server.tls.get_or_insert_default().key, text(v).map(PathBuf::from))
    }),
    key("server.unix_socket.path", r#""""#, |c, v| {
        put_read(&mut c.server.unix_socket.get_or_insert_default().path, text(v).map(PathBuf::from))
    }),
    key("server.unix_socket.mode", r#""0660""#, |c, v| {
        put_read(&mut c.server.unix_socket.get_or_insert_default().mode, mode(v))
    }),
    key("server.api.host", r#""""#, |c, v| put_read(&mut api(c).host, or_none(v, host))),
    key("server.api.port", "0", |c, v| put_read(&mut api(c).port, number(v, 0..=65_535))),
    key("server.api.unix_socket.path", r#""""#, |c, v| {
        put_read(&mut api_socket(c).path, text(v).map(PathBuf::from))
    }),
    key("server.api.unix_socket.mode", r#""0660""#, |c, v| {
        put_read(&mut api_socket(c).mode, mode(v))
    }),
    key("server.try_out", r#""loopback""#, |c, v| {
        let words = [("loopback", TryOut::Loopback), ("on", TryOut::On), ("off", TryOut::Off)];
        put_read(&mut c.server.try_out, choice(v, &words))
    }),
    key("console.access", r#""loopback""#, |c, v| {
        let words = [
            ("loopback", ConsoleAccess::Loopback),
            ("on", ConsoleAccess::On),
            ("off", ConsoleAccess::Off),
        ];
        put_read(&mut c.console.access, choice(v, &words))
    }),
    hidden(key("console.token", r#""""#, |c, v| put_read(&mut c.console.token, console_token(v)))),
    key("console.allow_plain_http", "false", |c, v| {
        put_read(&mut c.console.allow_plain_http, boolean(v))
    }),
    key("limits.memory", r#""90%""#, |c, v| put_read(&mut c.limits.memory, memory(v))),
    key("metrics.enabled", "true", |c, v| put_read(&mut c.metrics.enabled, boolean(v))),
    key("metrics.host", r#""127.0.0.1""#, |c, v| put_read(&mut c.metrics.host, host(v))),
    key("metrics.port", "9601", |c, v| put_read(&mut c.metrics.port, number(v, 0..=65_535))),
    key("metrics.prefix", r#""fanfare_""#, |c, v| {
        put_read(&mut c.metrics.prefix, metric_prefix(v))
    }),
    hidden(key("cluster.redis", r#""""#, |c, v| put_read(&mut c.cluster.redis, redis(v)))),
    key("cluster.tls.ca", r#""""#, |c, v| put_read(&mut c.cluster.tls.ca, text(v))),
    key("cluster.tls.cert", r#""""#, |c, v| put_read(&mut c.cluster.tls.cert, text(v))),
    // Most often a file, but it may be the key itself.
    hidden(key("cluster.tls.key", r#""""#, |c, v| put_read(&mut c.cluster.tls.key, text(v)))),
    key("cluster.prefix", r#""fanfare""#, |c, v| put_read(&mut c.cluster.prefix, text(v))),
    key("cluster.lease", r#""15s""#, |c, v| {
        put_read(&mut c.cluster.lease, duration(v, SECOND..=HOUR))
    }),
    key("cluster.queue_bytes", r#""64MiB""#, |c, v| put_read(&mut c.cluster.queue_bytes, size(v))),
    key("cluster.queue_age", r#""1m""#, |c, v| {
        put_read(&mut c.cluster.queue_age, duration(v, Duration::ZERO..=HOUR))
    }),
    key("cluster.replay", "256", |c, v| put_read(&mut c.cluster.replay, number(v, 0..=100_000))),
    key("log.level", r#""info""#, |c, v| put_read(&mut c.log.level, level(v))),
    key("log.format", r#""text""#, |c, v| {
        put_read(&mut c.log.json, choice(v, &[("text", false), ("json", true)]))
    }),
    key("webhooks.allow_private", "true", |c, v| {
        put_read(&mut c.webhooks.allow_private, boolean(v))
    }),
    key("webhooks.spool", r#""""#, |c, v| put_read(&mut c.webhooks.spool, text(v).map(file_path))),
    hidden(key("sql.url", r#""""#, |c, v| {
        put_read(&mut c.sql.get_or_insert_default().url, database(v))
    })),
    key("sql.table", r#""apps""#, |c, v| {
        put_read(&mut c.sql.get_or_insert_default().table, table(v))
    }),
    key("sql.ttl", r#""60s""#, |c, v| {
        put_read(&mut c.sql.get_or_insert_default().ttl, duration(v, SECOND..=YEAR))
    }),
    key("apps_file.path", r#""""#, |c, v| put_read(&mut c.apps_file, text(v).map(file_path))),
];

/// The settings of one of `[[apps]]`.
pub const APP: &[SettingKey<App>] = &[
    required(key("id", "", |a, v| put_read(&mut a.id, app_name(v).map(|id| AppId::new(&id))))),
    required(key("key", "", |a, v| put_read(&mut a.key, app_name(v).map(Into::into)))),
    hidden(required(key("secret", "", |a, v| put_read(&mut a.signer, secret(v))))),
    // After the secret, whose signer it completes.
    hidden(key("previous_secrets", "[]", |a, v| {
        let previous = secrets(v)?;
        a.signer = a.signer.clone().with_previous(previous.iter().map(String::as_str));
        Ok(())
    })),
    key("name", r#""""#, |a, v| put_read(&mut a.name, text(v).map(Into::into))),
    key("enabled", "true", |a, v| put_read(&mut a.enabled, boolean(v))),
    key("max_connections", "0", |a, v| put_read(&mut a.limits.max_connections, count(v, 0))),
    key("allowed_origins", r#"["*"]"#, |a, v| put_read(&mut a.allowed_origins, patterns(v))),
    key("activity_timeout", "30", |a, v| put_read(&mut a.activity_timeout, number(v, 1..=86_400))),
    key("client_events", r#""private""#, |a, v| put_read(&mut a.client_events, client_events(v))),
    key("client_events_per_second", "10", |a, v| {
        let (events, seconds) = client_rate(v)?;
        a.limits.client_events_per_second = events;
        a.limits.client_events_seconds = seconds;
        Ok(())
    }),
    key("messages_per_second", "0", |a, v| {
        let (messages, seconds) = client_rate(v)?;
        a.limits.messages_per_second = messages;
        a.limits.messages_seconds = seconds;
        Ok(())
    }),
    key("messages_over_limit", r#""refuse""#, |a, v| {
        put_read(&mut a.limits.messages_close, choice(v, &[("refuse", false), ("close", true)]))
    }),
    key("events_per_second", "0", |a, v| put_read(&mut a.limits.events_per_second, count(v, 0))),
    key("reads_per_second", "0", |a, v| put_read(&mut a.limits.reads_per_second, count(v, 0))),
    key("max_message_size", r#""100KiB""#, |a, v| {
        put_read(&mut a.limits.max_message_size, size(v))
    }),
    key("max_event_data", r#""100KiB""#, |a, v| put_read(&mut a.limits.max_event_data, size(v))),
    key("max_client_event_data", r#""10KiB""#, |a, v| {
        put_read(&mut a.limits.max_client_event_data, size(v))
    }),
    key("max_event_name", "200", |a, v| put_read(&mut a.limits.max_event_name, count(v, 1))),
    key("max_channel_name", "200", |a, v| put_read(&mut a.limits.max_channel_name, count(v, 1))),
    key("max_channels_per_event", "100", |a, v| {
        put_read(&mut a.limits.max_channels_per_event, count(v, 1))
    }),
    key("max_channels_per_connection", "10000", |a, v| {
        put_read(&mut a.limits.max_channels_per_connection, count(v, 1))
    }),
    key("subscription_bytes", r#""512KiB""#, |a, v| {
        put_read(&mut a.limits.subscription_bytes, size(v))
    }),
    key("max_batch", "10", |a, v| put_read(&mut a.limits.max_batch, count(v, 1))),
    key("max_presence_members", "10000", |a, v| {
        put_read(&mut a.limits.max_presence_members, count(v, 1))
    }),
    key("max_member_size", r#""10KiB""#, |a, v| put_read(&mut a.limits.max_member_size, size(v))),
    key("presence_bytes", r#""4MiB""#, |a, v| put_read(&mut a.limits.presence_bytes, size(v))),
    key("subscription_count", "false", |a, v| {
        put_read(&mut a.features.subscription_count, boolean(v))
    }),
    key("watchlist", "false", |a, v| put_read(&mut a.features.watchlist, boolean(v))),
    key("authorization_timeout", r#""0s""#, |a, v| {
        put_read(&mut a.features.authorization_timeout, duration(v, Duration::ZERO..=HOUR))
    }),
    key("resume", r#""0s""#, |a, v| {
        put_read(&mut a.features.resume, duration(v, Duration::ZERO..=HOUR))
    }),
    key("resume_bytes", r#""64MiB""#, |a, v| put_read(&mut a.limits.resume_bytes, size(v))),
    key("cache_ttl", r#""30m""#, |a, v| {
        put_read(&mut a.features.cache_ttl, duration(v, MILLISECOND..=YEAR))
    }),
    key("cache_bytes", r#""64MiB""#, |a, v| put_read(&mut a.limits.cache_bytes, size(v))),
    key("outbox_bytes", r#""1MiB""#, |a, v| put_read(&mut a.limits.outbox_bytes, size(v))),
    key("compression", "false", |a, v| put_read(&mut a.features.compression, boolean(v))),
    key("compression_min", r#""512B""#, |a, v| put_read(&mut a.limits.compression_min, size(v))),
    key("timestamp_tolerance", r#""600s""#, |a, v| {
        put_read(&mut a.limits.timestamp_tolerance, duration(v, Duration::ZERO..=YEAR))
    }),
    key("require_tls", "false", |a, v| put_read(&mut a.require_tls, boolean(v))),
    key("socketio.enabled", "false", |a, v| put_read(&mut a.features.socketio.enabled, boolean(v))),
    key("socketio.auth_url", r#""""#, |a, v| {
        put_read(&mut a.features.socketio.auth_url, or_none(v, webhook_url))
    }),
    key("socketio.auth_timeout", r#""10s""#, |a, v| {
        put_read(&mut a.features.socketio.auth_timeout, duration(v, MILLISECOND..=HOUR))
    }),
];

/// The settings of one of `[[apps.webhooks]]`.
pub const WEBHOOK: &[SettingKey<Webhook>] = &[
    required(key("url", "", |w, v| put_read(&mut w.url, webhook_url(v)))),
    key(
        "events",
        r#"["channel_occupied", "channel_vacated", "member_added", "member_removed", "client_event", "cache_miss", "subscription_count"]"#,
        |w, v| put_read(&mut w.events, webhook_events(v)),
    ),
    key("channel_prefix", r#""""#, |w, v| put_read(&mut w.channel_prefix, text(v))),
    key("channel_suffix", r#""""#, |w, v| put_read(&mut w.channel_suffix, text(v))),
    // Headers are where a receiver's token goes.
    hidden(key("headers", "{}", |w, v| put_read(&mut w.headers, pairs(v)))),
    key("batch", r#""0ms""#, |w, v| put_read(&mut w.batch, duration(v, Duration::ZERO..=HOUR))),
];

fn api(config: &mut Config) -> &mut ApiAddress {
    config.server.api.get_or_insert_default()
}

fn api_socket(config: &mut Config) -> &mut UnixSocket {
    api(config).unix_socket.get_or_insert_default()
}

/// Such a text, or an empty one for none.
fn or_none(
    value: &Value,
    read: fn(&Value) -> Result<String, WantedForm>,
) -> Result<String, WantedForm> {
    match text(value) {
        Ok(text) if text.is_empty() => Ok(text),
        _ => read(value),
    }
}

fn file_path(text: String) -> Option<PathBuf> {
    if text.is_empty() { None } else { Some(text.into()) }
}

/// An app's id or key: both are used in URLs, and the key is followed by a colon in signatures.
fn app_name(value: &Value) -> Result<String, WantedForm> {
    text(value)
        .ok()
        .filter(|name| !name.is_empty())
        .filter(|name| name.chars().all(|c| c.is_ascii_graphic() && !"/?#%:\"'`".contains(c)))
        .ok_or_else(|| "text of letters, digits and marks but / ? # % : and quotes".to_owned())
}

fn secret(value: &Value) -> Result<Signer, WantedForm> {
    match text(value) {
        Ok(secret) if !secret.is_empty() => Ok(Signer::new(&secret)),
        _ => Err("text in quotes, not empty".to_owned()),
    }
}

/// The token is empty, or long enough that it cannot be guessed.
fn console_token(value: &Value) -> Result<String, WantedForm> {
    text(value)
        .ok()
        .filter(|token| token.is_empty() || token.chars().count() >= MIN_CONSOLE_TOKEN)
        .ok_or_else(|| format!("text in quotes of {MIN_CONSOLE_TOKEN} characters or more"))
}

/// Earlier secrets that are still accepted.
fn secrets(value: &Value) -> Result<Vec<String>, WantedForm> {
    texts(value)
        .ok()
        .filter(|secrets| secrets.iter().all(|secret| !secret.is_empty()))
        .ok_or_else(|| "a list of texts in quotes, none empty".to_owned())
}

/// A rate per second (`10`), or a burst and the seconds in which it is regained (`60/60s`).
fn client_rate(value: &Value) -> Result<(u32, u32), WantedForm> {
    if let Ok(rate) = count(value, 0) {
        return Ok((rate, 1));
    }
    let text = text(value).ok();
    let parts = text.as_deref().and_then(|text| text.split_once('/'));
    parts
        .and_then(|(events, time)| {
            let events = count(&Value::Raw(events.trim().to_owned()), 1).ok()?;
            let time = Value::Raw(time.trim().to_owned());
            let time = duration(&time, SECOND..=Duration::from_secs(24 * 3600)).ok()?;
            Some((events, u32::try_from(time.as_secs()).ok()?))
        })
        .ok_or_else(|| {
            "a whole number from 0, or how many over which time, such as \"60/60s\"".to_owned()
        })
}

fn patterns(value: &Value) -> Result<Vec<OriginPattern>, WantedForm> {
    let wanted = "a list of \"*\", hosts such as \"*.example.test\", or origins such as \"https://app.example.test\"";
    let written = texts(value).ok().filter(|all| !all.is_empty()).ok_or(wanted)?;
    let parse = |text: &String| {
        text.parse().map_err(|why| format!("what can match an Origin header ({text:?}: {why})"))
    };
    written.iter().map(parse).collect()
}

fn client_events(value: &Value) -> Result<ClientEvents, WantedForm> {
    choice(
        value,
        &[
            ("none", ClientEvents::None),
            ("private", ClientEvents::Private),
            ("members", ClientEvents::Members),
        ],
    )
}

/// Webhook events by Pusher's names, in the order of the default.
pub(super) const WEBHOOK_EVENTS: [(&str, WebhookEvent); 7] = [
    ("channel_occupied", WebhookEvent::ChannelOccupied),
    ("channel_vacated", WebhookEvent::ChannelVacated),
    ("member_added", WebhookEvent::MemberAdded),
    ("member_removed", WebhookEvent::MemberRemoved),
    ("client_event", WebhookEvent::ClientEvent),
    ("cache_miss", WebhookEvent::CacheMiss),
    ("subscription_count", WebhookEvent::SubscriptionCount),
];

fn webhook_events(value: &Value) -> Result<Vec<WebhookEvent>, WantedForm> {
    let names = WEBHOOK_EVENTS.map(|(name, _)| name).join(", ");
    let wanted = || format!("a list of one or more of {names}");
    let written = texts(value).map_err(|_| wanted())?;
    if written.is_empty() {
        return Err(wanted());
    }
    written
        .into_iter()
        .map(|name| choice(&Value::Text(name), &WEBHOOK_EVENTS).map_err(|_| wanted()))
        .collect()
}

fn webhook_url(value: &Value) -> Result<String, WantedForm> {
    text(value)
        .ok()
        .filter(|url| {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
                && url.chars().all(|c| c.is_ascii_graphic())
        })
        .ok_or_else(|| "an http:// or https:// URL".to_owned())
}

/// Patterns that are compared with the whole `Origin` header.
fn origins(value: &Value) -> Result<Vec<String>, WantedForm> {
    texts(value)
        .ok()
        .filter(|origins| {
            origins.iter().all(|origin| match origin.split_once("://") {
                Some((_, host)) => !host.is_empty() && !host.contains('/'),
                None => origin == "*",
            })
        })
        .ok_or_else(|| "a list of \"*\" or origins such as \"https://app.example.test\"".to_owned())
}

/// The URL of a database with apps, or empty.
fn database(value: &Value) -> Result<String, WantedForm> {
    let schemes = ["mysql://", "mariadb://", "postgres://", "postgresql://"];
    text(value)
        .ok()
        .filter(|url| url.is_empty() || schemes.iter().any(|scheme| url.starts_with(scheme)))
        .ok_or_else(|| "a mysql://, mariadb:// or postgres:// URL".to_owned())
}

/// A table's name that needs no escaping, optionally with its schema.
fn table(value: &Value) -> Result<String, WantedForm> {
    let is_plain = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    text(value)
        .ok()
        .filter(|name| name.split('.').count() <= 2 && name.split('.').all(is_plain))
        .ok_or_else(|| {
            "a table's name of letters, digits and _, as \"apps\" or \"schema.apps\"".to_owned()
        })
}

/// A file's permissions in octal digits, as for `chmod`.
fn mode(value: &Value) -> Result<u32, WantedForm> {
    text(value)
        .ok()
        .and_then(|digits| u32::from_str_radix(&digits, 8).ok())
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "the rights of a file in digits and quotes, such as \"0660\"".to_owned())
}

fn metric_prefix(value: &Value) -> Result<String, WantedForm> {
    text(value)
        .ok()
        .filter(|prefix| !prefix.starts_with(|c: char| c.is_ascii_digit()))
        .filter(|prefix| prefix.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c)))
        .ok_or_else(|| "the start of a metric's name: letters, digits, _ and :".to_owned())
}

fn level(value: &Value) -> Result<LevelFilter, WantedForm> {
    choice(
        value,
        &[
            ("off", LevelFilter::OFF),
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ],
    )
}

/// Schemes of Sentinel URLs; with the second, they and the servers use TLS.
const SENTINELS: [&str; 2] = ["redis+sentinel://", "rediss+sentinel://"];

/// One URL or, for a Redis Cluster, several; empty for a single server.
fn redis(value: &Value) -> Result<Vec<String>, WantedForm> {
    let sentinels = |url: &str| SENTINELS.iter().any(|scheme| url.trim().starts_with(scheme));
    let nodes = match value {
        Value::Text(url) | Value::Raw(url) if url.trim().is_empty() => return Ok(Vec::new()),
        // A Sentinel URL names several, separated by commas.
        Value::Raw(url) if sentinels(url) => Ok(vec![url.trim().to_owned()]),
        Value::Text(url) => Ok(vec![url.clone()]),
        _ => texts(value),
    };
    let servers = |url: &str| ["redis://", "rediss://"].iter().any(|s| url.starts_with(s));
    nodes
        .ok()
        // An empty list is a mistake.
        .filter(|nodes| match nodes.as_slice() {
            [] => false,
            [url] => servers(url) || sentinels(url),
            nodes => nodes.iter().all(|node| servers(node)),
        })
        // The only fragment that the library knows turns certificate checks off.
        .filter(|nodes| !nodes.iter().any(|node| node.contains('#')))
        .ok_or_else(|| {
            "a redis://, rediss:// or redis+sentinel:// URL without #, or a list of a cluster's nodes"
                .to_owned()
        })
}
