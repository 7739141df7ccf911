//! The meaning of a Laravel app's variables.

use super::*;
use crate::app::ClientEvents;
use crate::config::Config;
use crate::config::env_file::parse_env_file;

const CREDENTIALS: &str = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=s\n";

/// The configuration of a file and variables, with the warnings.
fn read(file: &str, env: &[(&str, &str)]) -> Result<(Config, Vec<String>), String> {
    let variables = Variables::new(env.iter().copied());
    let with = |error: Error| error.to_string();
    let file = parse_env_file(file, ".env", &variables).map_err(with)?;
    let laravel = Laravel::read_variables(file.laravel, &variables).map_err(with)?;
    let mut settings = Settings::default();
    laravel.apply_laravel(&mut settings).map_err(with)?;
    settings.complete_apps().map_err(with)?;
    Ok((settings.resolve_config().map_err(with)?, settings.warnings))
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
    assert!(!config.server.shows_page_at(Some("0.0.0.0:8080".parse().unwrap())));
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
        let limits = &app.limits;
        assert_eq!(limits.client_events_per_second, 0);
        let rate = (limits.messages_per_second, limits.messages_seconds);
        (rate.0, rate.1, limits.messages_close, warnings.len())
    };
    assert_eq!(rate("REVERB_APP_RATE_LIMITING_ENABLED=false"), (0, 1, false, 0));
    assert_eq!(rate("REVERB_APP_RATE_LIMITING_ENABLED=1"), (0, 1, false, 1));
    assert_eq!(rate("REVERB_APP_RATE_LIMITING_ENABLED=true"), (60, 60, false, 0));
    assert_eq!(
        rate(
            "REVERB_APP_RATE_LIMITING_ENABLED=true\nREVERB_APP_RATE_LIMIT_MAX_ATTEMPTS=100\n\
             REVERB_APP_RATE_LIMIT_DECAY_SECONDS=3\nREVERB_APP_RATE_LIMIT_TERMINATE=true"
        ),
        (100, 3, true, 0)
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

/// The URL of Redis that these variables make, or the error.
fn redis(pairs: &[(&str, &str)]) -> Result<String, String> {
    let found = pairs.iter().map(|(name, value)| {
        (name.to_string(), (value.to_string(), SettingOrigin::Variable(name.to_string())))
    });
    let laravel = Laravel { found: found.collect() };
    laravel.redis_url(&mut Vec::new()).map(|url| url.text()).map_err(|error| error.to_string())
}

fn redis_url(pairs: &[(&str, &str)]) -> String {
    redis(pairs).unwrap()
}

#[test]
fn redis_is_where_laravel_has_it() {
    let url = redis_url;
    assert_eq!(url(&[]), "redis://127.0.0.1:6379/0");
    assert_eq!(url(&[("REDIS_URL", "tls://a:1")]), "rediss://a:1/0");
    assert_eq!(url(&[("REDIS_URL", "tcp://a:1")]), "redis://a:1/0");
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
    assert_eq!(url(&[("REDIS_HOST", "::1")]), "redis://[::1]:6379/0");
    assert_eq!(url(&[("REDIS_HOST", "[::1]")]), "redis://[::1]:6379/0");
}

#[test]
fn certificates_for_redis_are_named_as_predis_has_them() {
    let env = "REVERB_SCALING_ENABLED=true\nREDIS_URL=\"tls://r?ssl[cafile]=/ca.pem&ssl%5Blocal_cert%5D=c&local_pk=k\"";
    let cluster = config(env).cluster;
    assert_eq!(cluster.redis, ["rediss://r:6379/0"]);
    let tls = cluster.tls;
    assert_eq!([&*tls.ca, &tls.cert, &tls.key], ["/ca.pem", "c", "k"]);
    // Whoever names an issuer wants TLS, whatever the scheme.
    let env = "REVERB_SCALING_ENABLED=true\nREDIS_URL=\"redis://r?cafile=/ca.pem\"";
    assert_eq!(config(env).cluster.redis, ["rediss://r:6379/0"]);
}

/// Each as Laravel's `ConfigurationUrlParser` merges it, where that connects at all.
#[test]
fn a_redis_url_goes_over_the_single_variables_part_by_part() {
    let single = [
        ("REDIS_HOST", "h"),
        ("REDIS_PORT", "1"),
        ("REDIS_USERNAME", "u"),
        ("REDIS_PASSWORD", "p"),
        ("REDIS_DB", "2"),
    ];
    for (written, merged) in [
        ("redis://r", "redis://u:p@r:1/2"),
        ("redis://r:6380", "redis://u:p@r:6380/2"),
        ("redis://r/5", "redis://u:p@r:1/5"),
        ("redis://:q@r", "redis://:q@r:1/2"),
        ("redis://v:q%40@r", "redis://v:q%40@r:1/2"),
        ("redis://r?password=q%26+x", "redis://u:q%26%20x@r:1/2"),
        ("redis://r?username=v&database=3&timeout=5", "redis://v:p@r:1/3"),
        ("rediss://r", "rediss://u:p@r:1/2"),
        ("TLS://r:7", "rediss://u:p@r:7/2"),
        ("redis://r?tls=true", "rediss://u:p@r:1/2"),
        ("r:6380", "redis://u:p@r:6380/2"),
        ("r", "redis://u:p@r:1/2"),
        ("r:6380/4", "redis://u:p@r:6380/4"),
        (":q@r:6380", "redis://:q@r:6380/2"),
        ("127.0.0.1:6380?password=q", "redis://u:q@127.0.0.1:6380/2"),
        ("redis://[::1]:6380", "redis://u:p@[::1]:6380/2"),
        ("::1", "redis://u:p@[::1]:1/2"),
        ("redis://r?scheme=tls", "redis://u:p@r:1/2"),
        ("r:6380?scheme=tls", "rediss://u:p@r:6380/2"),
    ] {
        let mut all = single.to_vec();
        all.push(("REDIS_URL", written));
        assert_eq!(redis_url(&all), merged, "{written}");
    }
}

#[test]
fn an_error_about_redis_names_the_variable_that_is_wrong_and_no_password() {
    for (name, value) in [
        ("REDIS_HOST", "redis.test:6379"),
        ("REDIS_HOST", "redis://:s3cr3t@redis.test"),
        ("REDIS_HOST", "/run/redis.sock"),
        ("REDIS_PORT", "tcp"),
        ("REDIS_PORT", "70000"),
        ("REDIS_DB", "cache"),
        ("REDIS_URL", "unix:///run/redis.sock"),
        ("REDIS_URL", "http://u:s3cr3t@h"),
        ("REDIS_URL", "redis://:s3cr3t@h/cache"),
        ("REDIS_URL", "redis://h:s3cr3t"),
    ] {
        let line = redis(&[(name, value)]).unwrap_err();
        assert!(line.starts_with(&format!("{name}: expected ")), "{line}");
        assert!(!line.contains("s3cr3t"), "{line}");
    }
    let lines = "REVERB_SCALING_ENABLED=true\nREDIS_HOST=a b";
    assert_eq!(error(&lines.replace("a b", "a:1")).split(": ").nth(1), Some("REDIS_HOST"));
}

#[test]
fn redis_without_the_tls_that_was_asked_for_is_told() {
    let lines = "REVERB_SCALING_ENABLED=true\nREDIS_SCHEME=tls\nREDIS_URL=redis://h";
    let (config, warnings) = read(&(CREDENTIALS.to_owned() + lines), &[]).unwrap();
    assert_eq!(config.cluster.redis, ["redis://h:6379/0"]);
    assert!(warnings.len() == 1 && warnings[0].contains("without TLS"), "{warnings:?}");
}

const PUSHER_APP: &str = "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\nPUSHER_APP_SECRET=s\n";

#[test]
fn an_app_of_laravel_websockets_is_listened_for_where_it_calls() {
    let port = |lines: &str| read(&(PUSHER_APP.to_owned() + lines), &[]).unwrap().0.server.port;
    let local = "PUSHER_PORT=6001\nPUSHER_SCHEME=http\nPUSHER_HOST=";
    for host in ["127.0.0.1", "localhost", "::1", "0.0.0.0"] {
        assert_eq!(port(&format!("{local}{host}")), 6001, "{host}");
    }
    for host in ["", "soketi", "ws.example.test", "192.0.2.1"] {
        assert_eq!(port(&format!("{local}{host}")), 8080, "{host}");
    }
    assert_eq!(port("PUSHER_HOST=127.0.0.1\nPUSHER_PORT=443"), 8080);
    assert_eq!(port(&format!("{local}127.0.0.1\nREVERB_SERVER_PORT=7000")), 7000);
    let both = format!("{CREDENTIALS}{local}127.0.0.1");
    assert_eq!(read(&both, &[]).unwrap().0.server.port, 8080);
}

#[test]
fn addresses_of_an_app_of_pushers_are_known_as_reverbs_are() {
    let public = |lines: &str| {
        let variables = Variables::new([("PUSHER_HOST", "127.0.0.1")]);
        let file = parse_env_file(&(PUSHER_APP.to_owned() + lines), ".env", &variables).unwrap();
        let public = Laravel::read_variables(file.laravel, &variables).unwrap().public_addresses();
        public.into_iter().map(|one| (one.said_by, one.url)).collect::<Vec<_>>()
    };
    let page = "VITE_PUSHER_HOST=ws.example.test\nVITE_PUSHER_PORT=443\n";
    assert_eq!(
        public(&format!("PUSHER_PORT=6001\nPUSHER_SCHEME=http\n{page}")),
        [
            ("PUSHER_", "http://127.0.0.1:6001/".to_owned()),
            ("VITE_PUSHER_", "https://ws.example.test:443/".to_owned())
        ]
    );
}

#[test]
fn an_address_in_brackets_was_put_into_two_pairs_of_them() {
    for host in ["::1", "[::1]"] {
        let file =
            format!("{CREDENTIALS}REVERB_HOST=\"{host}\"\nREVERB_SCHEME=http\nREVERB_PORT=80");
        let variables = Variables::new([("PATH", "/bin")]);
        let file = parse_env_file(&file, ".env", &variables).unwrap();
        let laravel = Laravel::read_variables(file.laravel, &variables).unwrap();
        assert_eq!(laravel.public_addresses()[0].url, "http://[::1]:80/");
    }
}
