//! What a Laravel app's variables become, one meaning a test.

use super::*;
use crate::app::ClientEvents;
use crate::config::Config;

const CREDENTIALS: &str = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=s\n";

/// What a file and variables make, with the warnings.
fn read(file: &str, env: &[(&str, &str)]) -> Result<(Config, Vec<String>), String> {
    let variables = Variables::new(env.iter().copied());
    let with = |error: Error| error.to_string();
    let found = parse(file, ".env", &variables).map_err(with)?;
    let mut laravel = Laravel::read(None, Path::new("/nonexistent"), &variables, &mut Vec::new())
        .map_err(with)?;
    for (name, value) in found {
        laravel.found.entry(name).or_insert(value);
    }
    let mut settings = Settings::default();
    laravel.apply(&mut settings).map_err(with)?;
    settings.complete().map_err(with)?;
    Ok((settings.resolve().map_err(with)?, settings.warnings))
}

fn config(lines: &str) -> Config {
    read(&(CREDENTIALS.to_owned() + lines), &[]).unwrap().0
}

fn error(lines: &str) -> String {
    read(&(CREDENTIALS.to_owned() + lines), &[]).unwrap_err()
}

#[test]
fn an_app_has_reverbs_defaults() {
    let config = config("");
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 8080));
    assert!(!config.server.try_out);
    let app = config.apps.by_id("1").unwrap();
    assert_eq!(&*app.key, "k");
    assert_eq!(app.client_events, ClientEvents::Members);
    assert_eq!(app.limits.client_events_per_second, 0);
    assert_eq!(app.activity_timeout, 30);
}

#[test]
fn an_app_of_pusher_has_pushers_defaults() {
    let text = "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\nPUSHER_APP_SECRET=s";
    let (config, _) = read(text, &[]).unwrap();
    let app = config.apps.by_id("1").unwrap();
    assert_eq!(app.client_events, ClientEvents::Private);
    assert_eq!(config.server.host, "0.0.0.0");
    let (config, _) = read(&(text.replace("=1", "=2") + "\n" + CREDENTIALS), &[]).unwrap();
    assert!(config.apps.by_id("1").is_some());
}

#[test]
fn the_server_binds_where_reverb_would_and_never_the_public_address() {
    let config = config(
        "REVERB_SERVER_HOST=127.0.0.2\nREVERB_SERVER_PORT=9000\nREVERB_SERVER_PATH=ws\n\
         REVERB_HOST=ws.example.test\nREVERB_PORT=443\nREVERB_SCHEME=https",
    );
    assert_eq!(config.server.host, "127.0.0.2");
    assert_eq!((config.server.port, config.server.path.as_str()), (9000, "/ws"));
}

#[test]
fn variables_of_the_process_go_before_the_file() {
    let (config, _) = read(CREDENTIALS, &[("REVERB_APP_ID", "2")]).unwrap();
    assert!(config.apps.by_id("2").is_some());
}

#[test]
fn limits_are_taken_over() {
    let config = config(
        "REVERB_APP_MAX_CONNECTIONS=5\nREVERB_APP_MAX_MESSAGE_SIZE=20000\n\
         REVERB_APP_ACTIVITY_TIMEOUT=60\nREVERB_MAX_REQUEST_SIZE=1000000",
    );
    let app = config.apps.by_id("1").unwrap();
    assert_eq!(app.limits.max_connections, 5);
    assert_eq!(app.limits.max_message_size, 20_000);
    assert_eq!(app.limits.max_event_data, 1_000_000);
    assert_eq!(app.limits.max_client_event_data, 1_000_000);
    assert_eq!(app.activity_timeout, 60);
}

#[test]
fn small_bounds_on_requests_lower_nothing() {
    let config = config("REVERB_MAX_REQUEST_SIZE=10000\nREVERB_APP_MAX_CONNECTIONS=");
    let app = config.apps.by_id("1").unwrap();
    assert_eq!(app.limits.max_event_data, 100 << 10);
    assert_eq!(app.limits.max_client_event_data, 100 << 10);
    assert_eq!(app.limits.max_connections, 0);
}

#[test]
fn client_events_come_from_members_or_nobody() {
    let from = |value: &str| {
        let file = format!("{CREDENTIALS}REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM={value}");
        let (config, warnings) = read(&file, &[]).unwrap();
        (config.apps.by_id("1").unwrap().client_events, warnings.len())
    };
    assert_eq!(from("members"), (ClientEvents::Members, 0));
    assert_eq!(from("none"), (ClientEvents::None, 0));
    assert_eq!(from("all"), (ClientEvents::Members, 1));
    assert_eq!(
        error("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=some"),
        ".env:4: REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM: expected \"members\", \"all\" or \"none\", found \"some\""
    );
}

#[test]
fn a_rate_is_taken_over_only_where_reverb_would_keep_it() {
    let rate = |lines: &str| {
        let (config, warnings) = read(&(CREDENTIALS.to_owned() + lines), &[]).unwrap();
        let app = config.apps.by_id("1").unwrap().clone();
        (app.limits.client_events_per_second, warnings.len())
    };
    assert_eq!(rate("REVERB_APP_RATE_LIMITING_ENABLED=false"), (0, 0));
    assert_eq!(rate("REVERB_APP_RATE_LIMITING_ENABLED=1"), (0, 1));
    assert_eq!(rate("REVERB_APP_RATE_LIMITING_ENABLED=true"), (1, 1));
    assert_eq!(
        rate(
            "REVERB_APP_RATE_LIMITING_ENABLED=true\nREVERB_APP_RATE_LIMIT_MAX_ATTEMPTS=100\n\
             REVERB_APP_RATE_LIMIT_DECAY_SECONDS=3\nREVERB_APP_RATE_LIMIT_TERMINATE=true"
        ),
        (34, 2)
    );
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    assert_eq!(
        error("\nREVERB_SERVER_PORT=http"),
        ".env:5: REVERB_SERVER_PORT: expected a whole number from 0 to 65535, found \"http\""
    );
    assert_eq!(
        error("REVERB_APP_MAX_CONNECTIONS=1_000"),
        ".env:4: REVERB_APP_MAX_CONNECTIONS: expected a whole number from 0 to 4294967295, found \"1_000\""
    );
    assert_eq!(error("X=a b"), ".env:4: a value with blanks or quotes in it must be quoted");
}

#[test]
fn scaling_goes_over_the_apps_redis() {
    let config_with = config("REVERB_SCALING_ENABLED=true\nREDIS_PASSWORD=s3cr3t");
    assert_eq!(config_with.cluster.redis, ["redis://:s3cr3t@127.0.0.1:6379/0"]);
    let config_with = config("REVERB_SCALING_ENABLED=true\nREDIS_SCHEME=tls\nREDIS_HOST=r");
    assert_eq!(config_with.cluster.redis, ["rediss://r:6379/0"]);
    assert_eq!(config("REVERB_SCALING_ENABLED=false").cluster.redis.len(), 0);
}

#[test]
fn redis_is_where_laravel_has_it() {
    let url = |pairs: &[(&str, &str)]| {
        let found = pairs
            .iter()
            .map(|(name, value)| (name.to_string(), (value.to_string(), Origin::Default)));
        Laravel { found: found.collect() }.redis()
    };
    assert_eq!(url(&[]), "redis://127.0.0.1:6379/0");
    assert_eq!(url(&[("REDIS_URL", "tls://a:1")]), "rediss://a:1");
    assert_eq!(url(&[("REDIS_URL", "tcp://a:1")]), "redis://a:1");
    assert_eq!(
        url(&[
            ("REDIS_HOST", "tls://r"),
            ("REDIS_PORT", "1"),
            ("REDIS_USERNAME", "u"),
            ("REDIS_PASSWORD", "p@/"),
            ("REDIS_DB", "2")
        ]),
        "rediss://u:p%40%2F@r:1/2"
    );
    for (scheme, expected) in [("tls", "rediss"), ("rediss", "rediss"), ("tcp", "redis")] {
        assert_eq!(url(&[("REDIS_SCHEME", scheme)]), format!("{expected}://127.0.0.1:6379/0"));
    }
}
