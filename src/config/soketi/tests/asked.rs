//! TLS, apps and webhooks in unusual forms of Soketi's settings, and rows with unusual columns.

use super::*;
use crate::app::ClientEvents;

/// The address of Redis that a set of Soketi's settings results in.
fn redis_of(file: &str, env: &Env<'_>) -> Result<Vec<String>, String> {
    let env = [&APP[..], &[("SOKETI_ADAPTER_DRIVER", "redis")], env].concat();
    read(file, &env).map(|(config, _)| config.cluster.redis)
}

#[test]
fn tls_to_redis_is_never_dropped_however_it_is_asked_for() {
    let secure = ["rediss://:s3cr3t@r:6379/0"];
    let env = [("SOKETI_DB_REDIS_HOST", "r"), ("SOKETI_DB_REDIS_PASSWORD", "s3cr3t")];
    for options in [
        r#"{"tls":{}}"#,
        r#"{"tls":true}"#,
        r#"{"tls":"true"}"#,
        r#"{"tls":{"rejectUnauthorized":false}}"#,
        r#"{"tls":{"servername":"r","ca":"x"}}"#,
        r#"{"connectTimeout":1,"tls":{"servername":"r"}}"#,
        r#"{"redisOptions":{"tls":{"servername":"r"}}}"#,
    ] {
        for name in [
            "SOKETI_ADAPTER_REDIS_SUB_OPTIONS",
            "SOKETI_ADAPTER_REDIS_PUB_OPTIONS",
            "SOKETI_QUEUE_REDIS_OPTIONS",
            "SOKETI_CACHE_REDIS_OPTIONS",
            "SOKETI_RATE_LIMITER_REDIS_OPTIONS",
        ] {
            let env = [&env[..], &[(name, options)]].concat();
            assert_eq!(
                redis_of("", &env),
                Ok(secure.map(str::to_owned).to_vec()),
                "{name}={options}"
            );
        }
    }
    for text in [
        r#"{"database": {"redis": {"tls": {}}}}"#,
        r#"{"database": {"redis": {"tls": {"rejectUnauthorized": false}}}}"#,
        r#"{"database.redis.tls": true}"#,
        r#"{"database.redis": {"tls": {"servername": "r"}}}"#,
        r#"{"adapter.redis.redisSubOptions.tls": {"servername": "r"}}"#,
        r#"{"adapter": {"redis": {"redisPubOptions": {"tls": {"servername": "r"}}}}}"#,
    ] {
        assert_eq!(redis_of(text, &env), Ok(secure.map(str::to_owned).to_vec()), "{text}");
    }
    for (text, key) in [
        (r#"{"database.redis.tls": "on my honour"}"#, "database.redis.tls"),
        (r#"{"database.redis.TLS": {"a": 1}}"#, "database.redis.TLS"),
        (r#"{"database.redis.ssl": true}"#, "database.redis.ssl"),
        (r#"{"database.redis": "rediss://r"}"#, "database.redis"),
        (r#"{"database": {"redis": {"path": "/run/redis.sock"}}}"#, "database.redis.path"),
        (r#"{"adapter.redis.redisSubOptions": "tls"}"#, "adapter.redis.redisSubOptions"),
        (r#"{"adapter.redis.redisSubOptions": ["tls"]}"#, "adapter.redis.redisSubOptions"),
    ] {
        let line = redis_of(text, &env).unwrap_err();
        assert!(line.starts_with(&format!("s.json: {key}: ")) || line.contains(key), "{line}");
        assert!(!line.contains("s3cr3t"), "{line}");
    }
    for text in [r#"{"database.redis.tls": null}"#, r#"{"database.redis.tls": false}"#] {
        assert_eq!(redis_of(text, &env).unwrap(), ["redis://:s3cr3t@r:6379/0"], "{text}");
    }
    let broken = [("SOKETI_ADAPTER_REDIS_SUB_OPTIONS", "{tls:{}}")];
    assert!(redis_of("", &broken).unwrap_err().starts_with("SOKETI_ADAPTER_REDIS_SUB_OPTIONS: "));
}

#[test]
fn options_of_the_connections_go_over_the_servers_keys() {
    let options = r#"{"host":"o","password":"p","db":3,"keepAlive":1}"#;
    let env = [("SOKETI_DB_REDIS_HOST", "r"), ("SOKETI_ADAPTER_REDIS_SUB_OPTIONS", options)];
    assert_eq!(redis_of("", &env).unwrap(), ["redis://:p@o:6379/3"]);
    let other = [&env[..], &[("SOKETI_ADAPTER_REDIS_PUB_OPTIONS", r#"{"host":"q"}"#)]].concat();
    assert!(redis_of("", &other).unwrap_err().contains("differs"));
}

#[test]
fn a_cluster_without_nodes_begins_at_the_host() {
    let mode = ("SOKETI_ADAPTER_REDIS_CLUSTER_MODE", "true");
    let env = [mode, ("SOKETI_DB_REDIS_HOST", "r"), ("SOKETI_DB_REDIS_PORT", "7000")];
    assert_eq!(redis_of("", &env).unwrap(), ["redis://r:7000"]);
    let empty = [&env[..], &[("SOKETI_DB_REDIS_CLUSTER_NODES", "[]")]].concat();
    assert_eq!(redis_of("", &empty).unwrap(), ["redis://r:7000"]);
    assert_eq!(redis_of("", &[mode]).unwrap(), ["redis://127.0.0.1:6379"]);
    let v6 = [mode, ("SOKETI_DB_REDIS_CLUSTER_NODES", r#"[{"host":"::1","port":7000}]"#)];
    assert_eq!(redis_of("", &v6).unwrap(), ["redis://[::1]:7000"]);
}

#[test]
fn an_error_about_redis_names_the_variable_that_holds_it() {
    for (name, value) in [
        ("SOKETI_DB_REDIS_HOST", "redis.test:6379"),
        ("SOKETI_DB_REDIS_PORT", "x"),
        ("SOKETI_DB_REDIS_DB", "main"),
        ("SOKETI_DB_REDIS_SENTINELS", "a:1"),
        ("SOKETI_DB_REDIS_SENTINELS", "[]"),
        ("SOKETI_DB_REDIS_SENTINELS", r#"{"host":"a","port":1}"#),
        ("SOKETI_DB_REDIS_SENTINELS", r#"[{"host":"a","port":"x"}]"#),
        ("SOKETI_DB_REDIS_CLUSTER_NODES", r#"[{"hostname":"a"}]"#),
    ] {
        let line = redis_of("", &[(name, value)]).unwrap_err();
        assert!(line.starts_with(&format!("{name}: expected ")), "{line}");
    }
    assert_eq!(redis_of("", &[("SOKETI_DB_REDIS_HOST", "::1")]).unwrap(), ["redis://[::1]:6379/0"]);
}

#[test]
fn a_shape_that_nobody_expected_is_refused_where_something_hangs_on_it() {
    let app = r#""appManager.array.apps": [{"id": "1", "key": "k", "secret": "s"}]"#;
    for (text, key) in [
        (format!(r#"{{{app}, "ssl": true}}"#), "ssl"),
        (format!(r#"{{{app}, "ssl": "c.pem"}}"#), "ssl"),
        (format!(r#"{{{app}, "ssl": {{"cert": "c.pem", "key": "k.pem"}}}}"#), "ssl.cert"),
        (format!(r#"{{{app}, "ssl": {{"certPath": {{"file": "c.pem"}}}}}}"#), "ssl.certPath"),
        (format!(r#"{{{app}, "metrics": true}}"#), "metrics"),
        (format!(r#"{{{app}, "port": {{"http": 1}}}}"#), "port"),
        (format!(r#"{{{app}, "adapter": "redis"}}"#), "adapter"),
        (format!(r#"{{{app}, "adapter.driver": {{"name": "redis"}}}}"#), "adapter.driver"),
        (format!(r#"{{{app}, "appManager.driver": ["mysql"]}}"#), "appManager.driver"),
        (r#"{"appManager.array.apps": []}"#.to_owned(), "appManager.array.apps"),
        (r#"{"appManager.array.apps": "x"}"#.to_owned(), "appManager.array.apps"),
        (r#"{"appManager.array.apps": ["x"]}"#.to_owned(), "appManager.array.apps.0"),
        (r#"{"appManager.array.apps.1.id": "x"}"#.to_owned(), "appManager.array.apps.1.id"),
    ] {
        let line = file(&text).unwrap_err();
        assert!(line.starts_with(&format!("s.json: {key}: ")), "{text}: {line}");
    }
}

#[test]
fn webhooks_that_would_be_delivered_elsewhere_or_without_their_headers_are_refused() {
    for written in [
        r#"{"url": "https://a.test"}"#,
        r#"["https://a.test"]"#,
        r#"[{"url": "https://a.test", "eventTypes": []}]"#,
        r#"[{"url": "https://a.test", "headers": ["X: 1"]}]"#,
        r#"[{"url": "https://a.test", "headers": "X: 1"}]"#,
        r#"[{"url": "https://a.test", "filter": "private-"}]"#,
        r#"[{"url": "https://a.test", "filter": {"starts_with": "private-"}}]"#,
    ] {
        let line = webhook(written, &[]).unwrap_err();
        assert!(line.starts_with("SOKETI_DEFAULT_APP_WEBHOOKS: "), "{line}");
    }
    let plain = r#"[{"url": "https://a.test", "filter": [], "headers": []}]"#;
    assert!(webhook(plain, &[]).is_ok());
}

#[test]
fn quotes_that_compose_left_are_no_part_of_a_value() {
    let quoted = [
        ("SOKETI_DEFAULT_APP_ID", "\"1\""),
        ("SOKETI_DEFAULT_APP_KEY", "\"k\""),
        ("SOKETI_DEFAULT_APP_SECRET", "\"12\""),
        ("SOKETI_PORT", "\"7000\""),
        ("SOKETI_DEBUG", "\"true\""),
    ];
    let (config, _) = read("", &quoted).unwrap();
    let app = only(&config);
    assert_eq!((app.id.as_str(), &*app.key, config.server.port), ("1", "k", 7000));
    assert_eq!(app.signer.sign(&["x"]), crate::protocol::auth::Signer::new("12").sign(&["x"]));
    // Soketi keeps these, so nobody's key works there either.
    let line = with(&[("SOKETI_DEFAULT_APP_KEY", "'k'")]).unwrap_err();
    assert!(line.starts_with("SOKETI_DEFAULT_APP_KEY: expected "), "{line}");
}

#[test]
fn truths_are_words_and_numbers() {
    for (word, truth) in
        [("true", true), ("1", true), ("yes", true), ("ON", true), ("no", false), ("off", false)]
    {
        let (config, _) = with(&[("SOKETI_METRICS_ENABLED", word)]).unwrap();
        assert_eq!(config.metrics.enabled, truth, "{word}");
    }
}

fn row(text: &str) -> serde_json::Map<String, Json> {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_column_that_cannot_be_read_costs_that_feature_and_not_the_app() {
    let env = [("SOKETI_EVENT_MAX_BATCH_SIZE", "7")];
    let mut soketi = Soketi::default();
    soketi.read_variables(&Variables::new(env)).unwrap();
    let rows = RowReader::of_settings(&soketi);
    let (app, passed_over) = rows
        .read_app(&row(
            r#"{"id": 12, "key": "k", "secret": "s", "max_connections": 0, "enabled": 0,
                "max_event_batch_size": {"unreadable": "x"}, "max_client_events_per_sec": "many",
                "max_presence_members_per_channel": 5, "enable_client_messages": 1,
                "webhooks": "s3cr3t", "created_at": "2024-01-01"}"#,
        ))
        .unwrap();
    assert_eq!((app.id.as_str(), app.limits.max_connections, app.enabled), ("12", 0, false));
    assert_eq!((app.limits.max_batch, app.limits.max_presence_members), (7, 5));
    assert_eq!(app.limits.client_events_per_second, 0);
    assert_eq!(app.client_events, ClientEvents::Members);
    assert!(app.webhooks.is_empty());
    let columns: Vec<_> = passed_over
        .iter()
        .map(|line| {
            line.strip_prefix("the row of \"12\", column ").unwrap().split(':').next().unwrap()
        })
        .collect();
    assert_eq!(columns, ["max_event_batch_size", "max_client_events_per_sec", "webhooks"]);
    assert!(!format!("{passed_over:?}").contains("s3cr3t"));
    let error = rows.read_app(&row(r#"{"id": "1", "key": "k"}"#)).unwrap_err().to_string();
    assert!(error.starts_with("the row of \"1\": "), "{error}");
    let error = rows.read_app(&row(r#"{"id": "1", "key": "a/b", "secret": "s"}"#)).unwrap_err();
    assert!(error.to_string().starts_with("the row of \"1\", column key: "), "{error}");
}

#[cfg(feature = "sql")]
#[test]
fn what_the_settings_have_for_all_rows_is_refused_at_the_start() {
    let env = [("SOKETI_APP_MANAGER_DRIVER", "mysql"), ("SOKETI_EVENT_MAX_SIZE_IN_KB", "x")];
    let line = read("", &env).unwrap_err();
    assert!(line.starts_with("SOKETI_EVENT_MAX_SIZE_IN_KB: "), "{line}");
}

#[test]
fn tls_to_the_database_is_never_dropped() {
    let url = |text: &str| {
        let mut soketi = Soketi::default();
        soketi.read_file(text, "s.json").unwrap();
        let mut settings = Settings::default();
        let driver = if text.contains("mysql") { "mysql" } else { "postgres" };
        soketi.take_tables(driver, &SettingOrigin::Default, &mut settings).unwrap();
        settings.server["sql.url"].value.to_string()
    };
    let mysql = url(r#"{"database.mysql.ssl": {"ca": "x"}, "database.mysql.host": "::1"}"#);
    assert!(mysql.contains("@[::1]:3306") && mysql.ends_with("?ssl-mode=REQUIRED\""), "{mysql}");
    let postgres = url(r#"{"database": {"postgres": {"ssl": true}}}"#);
    assert!(postgres.ends_with("?sslmode=require\""), "{postgres}");
    assert!(url(r#"{"database.mysql.ssl": false}"#).ends_with("/main\""));
}
