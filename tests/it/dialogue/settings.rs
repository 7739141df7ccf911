//! The settings a script may change, under the names they have in a configuration file.

use std::str::FromStr;
use std::time::Duration;

use fanfare::app::{App, ClientEvents};
use fanfare::config::{Network, ServerConfig};

/// Sets one setting of an app; `id`, `key` and `secret` are set when the app is made.
pub fn set_app(app: &mut App, name: &str, value: &str) {
    let limits = &mut app.limits;
    match name {
        "id" | "key" | "secret" => {}
        "enabled" => app.enabled = parse(value),
        "require_tls" => app.require_tls = parse(value),
        "allowed_origins" => {
            app.allowed_origins = value.split(',').map(|one| one.parse().unwrap()).collect();
        }
        "activity_timeout" => app.activity_timeout = parse(value),
        "client_events" => {
            app.client_events = match value {
                "none" => ClientEvents::None,
                "private" => ClientEvents::Private,
                "members" => ClientEvents::Members,
                _ => panic!("client_events={value}"),
            }
        }
        "subscription_count" => app.features.subscription_count = parse(value),
        "watchlist" => app.features.watchlist = parse(value),
        "authorization_timeout" => app.features.authorization_timeout = millis(value),
        "resume" => app.features.resume = millis(value),
        "resume_bytes" => limits.resume_bytes = parse(value),
        "cache_ttl" => app.features.cache_ttl = millis(value),
        "max_connections" => limits.max_connections = parse(value),
        "client_events_seconds" => limits.client_events_seconds = parse(value),
        "client_events_per_second" => limits.client_events_per_second = parse(value),
        "messages_per_second" => limits.messages_per_second = parse(value),
        "messages_seconds" => limits.messages_seconds = parse(value),
        "messages_close" => limits.messages_close = parse(value),
        "events_per_second" => limits.events_per_second = parse(value),
        "reads_per_second" => limits.reads_per_second = parse(value),
        "max_message_size" => limits.max_message_size = parse(value),
        "max_client_event_data" => limits.max_client_event_data = parse(value),
        "subscription_bytes" => limits.subscription_bytes = parse(value),
        "presence_bytes" => limits.presence_bytes = parse(value),
        "max_event_data" => limits.max_event_data = parse(value),
        "max_event_name" => limits.max_event_name = parse(value),
        "max_channel_name" => limits.max_channel_name = parse(value),
        "max_channels_per_event" => limits.max_channels_per_event = parse(value),
        "max_channels_per_connection" => limits.max_channels_per_connection = parse(value),
        "max_batch" => limits.max_batch = parse(value),
        "max_presence_members" => limits.max_presence_members = parse(value),
        "max_member_size" => limits.max_member_size = parse(value),
        "cache_bytes" => limits.cache_bytes = parse(value),
        "outbox_bytes" => limits.outbox_bytes = parse(value),
        "timestamp_tolerance" => limits.timestamp_tolerance = millis(value),
        _ => panic!("{name:?} is no setting of an app"),
    }
}

pub fn set_server(server: &mut ServerConfig, name: &str, value: &str) {
    match name {
        "path" => value.clone_into(&mut server.path),
        "max_connections" => server.max_connections = parse(value),
        "handshakes_per_ip" => server.handshakes_per_ip = parse(value),
        "connections_per_ip" => server.connections_per_ip = parse(value),
        "trusted_proxies" => {
            let (address, prefix) = value.split_once('/').expect("ADDRESS/PREFIX");
            let (address, prefix) = (parse(address), parse(prefix));
            server.trusted_proxies = vec![Network { address, prefix }];
        }
        "cors_origins" => server.cors_origins = value.split(',').map(str::to_owned).collect(),
        _ => panic!("{name:?} is no setting of a server"),
    }
}

fn parse<T: FromStr>(value: &str) -> T {
    value.parse().unwrap_or_else(|_| panic!("{value:?} is no value of this setting"))
}

/// `50ms` or `2s`.
fn millis(value: &str) -> Duration {
    match value.strip_suffix("ms") {
        Some(number) => Duration::from_millis(parse(number)),
        None => Duration::from_secs(parse(value.trim_end_matches('s'))),
    }
}
