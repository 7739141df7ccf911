//! Soketi's settings, variable by variable, and the forms of its file.

mod asked;

use super::*;
use crate::app::{App, ClientEvents};
use crate::config::Config;

type Env<'a> = [(&'a str, &'a str)];

/// Variables that make an app.
const APP: [(&str, &str); 3] = [
    ("SOKETI_DEFAULT_APP_ID", "1"),
    ("SOKETI_DEFAULT_APP_KEY", "k"),
    ("SOKETI_DEFAULT_APP_SECRET", "s3cr3t"),
];

fn read(file: &str, env: &Env<'_>) -> Result<(Config, Vec<String>), String> {
    let with = |error: Error| error.to_string();
    let mut soketi = Soketi::default();
    if !file.is_empty() {
        soketi.read_file(file, "s.json").map_err(with)?;
    }
    soketi.read_variables(&Variables::new(env.iter().copied())).map_err(with)?;
    let mut settings = Settings::default();
    soketi.apply_soketi(&mut settings).map_err(with)?;
    settings.complete_apps().map_err(with)?;
    Ok((settings.resolve_config().map_err(with)?, settings.warnings))
}

fn with(env: &Env<'_>) -> Result<(Config, Vec<String>), String> {
    read("", &[&APP, env].concat())
}

fn file(text: &str) -> Result<(Config, Vec<String>), String> {
    read(text, &[])
}

fn only(config: &Config) -> &App {
    let mut apps = config.apps.iter();
    let app = apps.next().unwrap();
    assert!(apps.next().is_none());
    app
}

#[test]
fn an_app_has_soketis_defaults() {
    let (config, warnings) = with(&[]).unwrap();
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 6001));
    let app = only(&config);
    assert_eq!((app.id.as_str(), &*app.key), ("1", "k"));
    assert_eq!(app.client_events, ClientEvents::None);
    assert_eq!(app.limits.client_events_per_second, 0);
    assert_eq!(app.features.cache_ttl.as_secs(), 3600);
    // Health checks come from anywhere; metrics that nobody switched on are this machine's.
    let metrics = &config.metrics;
    assert_eq!((metrics.host.as_str(), metrics.probes, metrics.local), ("0.0.0.0", true, true));
    assert!(app.features.authorization_timeout.is_zero());
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn known_credentials_are_no_default() {
    let (config, _) = read("", &[("SOKETI_PORT", "7000")]).unwrap();
    assert!(config.apps.by_id("app-id").is_none());
    assert_eq!((config.server.host.as_str(), config.server.port), ("127.0.0.1", 7000));
    assert_eq!(
        read("", &APP[..2]).unwrap_err(),
        "SOKETI_DEFAULT_APP_ID: apps[0].secret: missing, and it has no default"
    );
    assert_eq!(
        file(r#"{"appManager":{"array":{"apps":[{"id":"1","secret":"s"}]}}}"#).unwrap_err(),
        "s.json: appManager.array.apps.0.id: apps[0].key: missing, and it has no default"
    );
}

#[test]
fn a_secret_of_digits_stays_text() {
    let env = [APP[0], ("SOKETI_DEFAULT_APP_KEY", "007"), ("SOKETI_DEFAULT_APP_SECRET", "1e3")];
    let (config, _) = read("", &env).unwrap();
    let app = only(&config);
    assert_eq!(&*app.key, "007");
    assert_eq!(app.signer.sign(&["x"]), crate::protocol::auth::Signer::new("1e3").sign(&["x"]));
    let (config, _) = file(r#"{"appManager.array.apps":[{"id":1,"key":2,"secret":12}]}"#).unwrap();
    let app = only(&config);
    assert_eq!((app.id.as_str(), &*app.key), ("1", "2"));
    assert_eq!(app.signer.sign(&["x"]), crate::protocol::auth::Signer::new("12").sign(&["x"]));
}

/// Every variable is read, refused or named in the warning; these are the ones that mean something.
#[test]
fn every_variable_has_a_meaning_or_is_named_as_having_none() {
    let mut meant = Vec::new();
    for (name, _) in NAMES {
        let variable = format!("SOKETI_{name}");
        let mut env = APP.to_vec();
        env.retain(|(name, _)| *name != variable);
        env.push((&variable, "1"));
        match read("", &env) {
            Ok((_, warnings)) if warnings.is_empty() => meant.push(name),
            Ok((_, warnings)) => {
                let line = format!("of Soketi's settings these have no effect: {variable}");
                assert_eq!(warnings, [line]);
            }
            Err(error) => {
                assert!(error.starts_with(&variable), "{variable}: {error}");
                meant.push(name);
            }
        }
    }
    let expected = [
        "ADAPTER_DRIVER",
        "ADAPTER_REDIS_PREFIX",
        "APP_MANAGER_DRIVER",
        "CHANNEL_LIMITS_MAX_NAME_LENGTH",
        "CHANNEL_CACHE_TTL",
        "DEBUG",
        "DEFAULT_APP_ID",
        "DEFAULT_APP_KEY",
        "DEFAULT_APP_SECRET",
        "DEFAULT_APP_MAX_CONNS",
        "DEFAULT_APP_ENABLE_CLIENT_MESSAGES",
        "DEFAULT_APP_ENABLED",
        "DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC",
        "DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC",
        "DEFAULT_APP_MAX_READ_REQ_PER_SEC",
        "DEFAULT_APP_USER_AUTHENTICATION",
        "DEFAULT_APP_WEBHOOKS",
        "EVENT_MAX_BATCH_SIZE",
        "EVENT_MAX_CHANNELS_AT_ONCE",
        "EVENT_MAX_NAME_LENGTH",
        "EVENT_MAX_SIZE_IN_KB",
        "HOST",
        "METRICS_ENABLED",
        "METRICS_DRIVER",
        "METRICS_HOST",
        "METRICS_PROMETHEUS_PREFIX",
        "METRICS_SERVER_PORT",
        "MODE",
        "PORT",
        "PATH_PREFIX",
        "PRESENCE_MAX_MEMBER_SIZE",
        "PRESENCE_MAX_MEMBERS",
        "SHUTDOWN_GRACE_PERIOD",
        "SSL_CERT",
        "SSL_KEY",
        "USER_AUTHENTICATION_TIMEOUT",
        "WEBHOOKS_BATCHING",
        "WEBHOOKS_BATCHING_DURATION",
    ];
    assert_eq!(meant, expected);
}

#[test]
fn what_has_no_meaning_is_named_once() {
    let env = [
        ("SOKETI_QUEUE_DRIVER", "sync"),
        ("SOKETI_ADAPTER_REDIS_SUB_OPTIONS", r#"{"a":1,"b":{"c":2}}"#),
        ("SOKETI_CLUSTER_PORT", ""),
    ];
    let (_, warnings) = with(&env).unwrap();
    let line = "of Soketi's settings these have no effect: \
                SOKETI_ADAPTER_REDIS_SUB_OPTIONS, SOKETI_QUEUE_DRIVER";
    assert_eq!(warnings, [line]);
    let (_, warnings) = with(&[("SOKETI_PROT", "1")]).unwrap();
    assert_eq!(warnings, ["SOKETI_PROT is no variable of Soketi's; did you mean SOKETI_PORT?"]);
}

#[test]
fn variables_have_their_types() {
    let (config, _) = with(&[
        ("SOKETI_PORT", "1e3"),
        ("SOKETI_PATH_PREFIX", "/ws"),
        ("SOKETI_SHUTDOWN_GRACE_PERIOD", "1500"),
        ("SOKETI_DEBUG", "1"),
        ("SOKETI_METRICS_ENABLED", "true"),
        ("SOKETI_METRICS_SERVER_PORT", "9700"),
        ("SOKETI_METRICS_PROMETHEUS_PREFIX", "p_"),
        ("SOKETI_EVENT_MAX_SIZE_IN_KB", "0.5"),
        ("SOKETI_PRESENCE_MAX_MEMBERS", "7"),
        ("SOKETI_CHANNEL_MAX_NAME_LENGTH", "8"),
        ("SOKETI_CHANNEL_CACHE_TTL", "9"),
        ("SOKETI_DEFAULT_APP_MAX_CONNS", "-1"),
        ("SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC", "10"),
        ("SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "true"),
        ("SOKETI_DEFAULT_APP_USER_AUTHENTICATION", "true"),
        ("SOKETI_USER_AUTHENTICATION_TIMEOUT", "2500"),
    ])
    .unwrap();
    assert_eq!((config.server.port, config.server.path.as_str()), (1000, "/ws"));
    assert_eq!(config.server.shutdown_grace.as_millis(), 1500);
    assert_eq!(config.log.level, tracing::level_filters::LevelFilter::DEBUG);
    assert_eq!((config.metrics.host.as_str(), config.metrics.port), ("0.0.0.0", 9700));
    assert_eq!(config.metrics.prefix, "p_");
    assert!(config.metrics.probes && !config.metrics.local);
    let app = only(&config);
    assert_eq!(app.limits.max_event_data, 512);
    assert_eq!(app.limits.max_client_event_data, 512);
    assert_eq!(app.limits.max_presence_members, 7);
    assert_eq!(app.limits.max_channel_name, 8);
    assert_eq!(app.features.cache_ttl.as_secs(), 9);
    assert_eq!(app.limits.max_connections, 0);
    assert_eq!(app.limits.events_per_second, 10);
    assert_eq!(app.client_events, ClientEvents::Members);
    assert_eq!(app.features.authorization_timeout.as_millis(), 2500);
}

#[test]
fn what_is_wrong_is_named_without_its_value() {
    for (name, value, problem) in [
        ("PORT", "s3cr3t", "expected a whole number"),
        ("PORT", "70000", "expected a whole number from 0 to 65535, found 70000"),
        ("DEBUG", "maybe", "expected true or false"),
        ("EVENT_MAX_SIZE_IN_KB", "0", "expected a number of kilobytes, more than 0"),
        ("SHUTDOWN_GRACE_PERIOD", "-1", "expected a whole number of milliseconds"),
        (
            "DEFAULT_APP_MAX_READ_REQ_PER_SEC",
            "0",
            "expected -1, which is no limit, or a whole number from 1",
        ),
        ("ADAPTER_DRIVER", "nats", "not available; expected \"local\" or \"redis\""),
        (
            "APP_MANAGER_DRIVER",
            "dynamodb",
            "not available; expected \"array\" or \"mysql\" or \"postgres\"",
        ),
        ("SSL_CERT", "c.pem", "needs server.tls.key beside it"),
    ] {
        let variable = format!("SOKETI_{name}");
        let error = with(&[(&variable, value)]).unwrap_err();
        assert_eq!(error, format!("{variable}: {problem}"));
    }
}

#[test]
fn a_file_may_be_dotted_and_nested_and_is_merged_deeply() {
    let text = r#"{
        "port": 7000,
        "metrics": {"enabled": true},
        "metrics.port": 9700,
        "appManager": {"array": {"apps": [{"id": "1", "key": "k", "secret": "s"}]}},
        "appManager.array.apps.0.maxConnections": 5,
        "appManager.cache": {"enabled": true},
        "cors": {"origin": ["https://a.test"]}
    }"#;
    let env = [("SOKETI_PORT", "7001"), ("SOKETI_DEFAULT_APP_KEY", "l")];
    let (config, warnings) = read(text, &env).unwrap();
    assert_eq!(config.server.port, 7001);
    assert!(config.metrics.enabled);
    assert_eq!(config.metrics.port, 9700);
    assert_eq!(config.server.cors_origins, ["https://a.test"]);
    let app = only(&config);
    assert_eq!((&*app.key, app.limits.max_connections), ("l", 5));
    assert_eq!(warnings, ["of Soketi's settings these have no effect: appManager.cache.enabled"]);
}

#[test]
fn a_broken_file_is_refused_with_its_line() {
    assert_eq!(file("{\n\"port\": s3cr3t}").unwrap_err(), "s.json:2: expected value");
    assert_eq!(file("[]").unwrap_err(), "s.json: expected an object");
    assert_eq!(
        file("{\"metrics\": {\"port\": \"x\"}}").unwrap_err(),
        "s.json: metrics.port: expected a whole number"
    );
}

#[test]
fn apps_are_spelled_in_three_ways_and_the_last_counts() {
    let (config, warnings) = file(
        r#"{"presence": {"maxMembersPerChannel": 50}, "appManager.array.apps": [
            {"id": "1", "key": "a", "secret": "s", "maxPresenceMembersPerChannel": 9},
            {"AppId": "2", "AppKey": "b", "AppSecret": "s", "EnableClientMessages": true,
             "MaxEventPayloadInKb": 20, "MaxReadRequestsPerSecond": null},
            {"id": "3", "key": "c", "secret": "s", "maxConnections": 1, "max_connections": 2,
             "enable_client_messages": 1, "max_read_req_per_sec": "4", "colour": "red"}
        ]}"#,
    )
    .unwrap();
    let app = |key| config.apps.by_key(key).unwrap();
    assert_eq!(app("a").limits.max_presence_members, 9);
    assert_eq!(app("b").limits.max_presence_members, 50);
    assert_eq!(app("b").id.as_str(), "2");
    assert_eq!(app("b").client_events, ClientEvents::Members);
    assert_eq!(app("b").limits.max_event_data, 20 << 10);
    assert_eq!(app("c").limits.max_connections, 2);
    assert_eq!(app("c").limits.reads_per_second, 4);
    assert_eq!(app("c").client_events, ClientEvents::Members);
    let line = "of Soketi's settings these have no effect: appManager.array.apps.2.colour";
    assert_eq!(warnings, [line]);
}

/// A webhook as it would be read; whether the server can post to it is not asked here.
fn webhook(written: &str, env: &Env<'_>) -> Result<crate::app::Webhook, String> {
    let mut soketi = Soketi::default();
    let env = [&APP, env, &[("SOKETI_DEFAULT_APP_WEBHOOKS", written)]].concat();
    let with = |error: Error| error.to_string();
    soketi.read_variables(&Variables::new(env)).map_err(with)?;
    let apps = soketi.take_apps().map_err(with)?;
    let hook = &apps[0].webhooks[0];
    let mut webhook = crate::app::Webhook::default();
    let place = ("apps[0].webhooks[0]", &SettingOrigin::Default);
    crate::config::settings::fill_keys(&mut webhook, crate::config::WEBHOOK, &hook.values, place)
        .map_err(with)?;
    Ok(webhook)
}

#[test]
fn webhooks_are_read() {
    let written = r#"[{"url": "https://a.test", "event_types": ["member_added"],
        "filter": {"channel_name_starts_with": "a"}, "headers": {"X": "s3cr3t", "Y": 1}}]"#;
    let read = webhook(written, &[("SOKETI_WEBHOOKS_BATCHING", "true")]).unwrap();
    assert_eq!(read.url, "https://a.test");
    assert_eq!(read.events, [crate::app::WebhookEvent::MemberAdded]);
    assert_eq!(read.channel_prefix, "a");
    assert_eq!(read.headers.len(), 2);
    assert_eq!(read.batch.as_millis(), 50);
    let error = |written| webhook(written, &[]).unwrap_err();
    assert_eq!(
        error(r#"[{"lambda_function": "f"}]"#),
        "SOKETI_DEFAULT_APP_WEBHOOKS: lambda_function is not available; expected a url"
    );
    assert_eq!(error("x"), "SOKETI_DEFAULT_APP_WEBHOOKS: expected a list of webhooks");
    assert_eq!(
        error(r#"[{"url": "https://a.test", "headers": {"X": ["s3cr3t"]}}]"#),
        "SOKETI_DEFAULT_APP_WEBHOOKS: expected a table of texts such as { Name = \"value\" }"
    );
}

#[test]
fn certificates_for_redis_are_texts_as_ioredis_has_them() {
    let mut soketi = Soketi::default();
    let options = r#"{"tls":{"ca":["-----BEGIN A","-----BEGIN B"],"cert":"-----BEGIN C","key":"-----BEGIN K","servername":"r"}}"#;
    let env = [("SOKETI_ADAPTER_REDIS_SUB_OPTIONS", options)];
    soketi.read_variables(&Variables::new(env.iter().copied())).unwrap();
    let settings = soketi.take_redis(SettingOrigin::Default).unwrap();
    let text = |name: &str| {
        let found = settings.iter().find(|(key, _)| *key == name);
        found.map(|(_, setting)| setting.value.to_string()).unwrap_or_default()
    };
    assert_eq!(text("cluster.redis"), "\"rediss://127.0.0.1:6379/0\"");
    assert!(
        text("cluster.tls.ca").contains("BEGIN A\\n-----BEGIN B"),
        "{}",
        text("cluster.tls.ca")
    );
    assert_eq!(text("cluster.tls.cert"), "\"-----BEGIN C\"");
    assert_eq!(text("cluster.tls.key"), "\"-----BEGIN K\"");
    assert!(soketi.warnings.concat().ends_with("without effect are servername"));
}

#[test]
fn redis_is_where_soketi_has_it() {
    let url = |env: &Env<'_>| {
        let mut soketi = Soketi::default();
        soketi.read_variables(&Variables::new(env.iter().copied())).unwrap();
        soketi.take_redis(SettingOrigin::Default).unwrap()[0].1.value.to_string()
    };
    assert_eq!(url(&[]), "\"redis://127.0.0.1:6379/0\"");
    assert_eq!(
        url(&[
            ("SOKETI_DB_REDIS_HOST", "r"),
            ("SOKETI_DB_REDIS_PORT", "1"),
            ("SOKETI_DB_REDIS_DB", "2"),
            ("SOKETI_DB_REDIS_PASSWORD", "p@"),
            ("SOKETI_ADAPTER_REDIS_SUB_OPTIONS", r#"{"tls":{}}"#),
        ]),
        "\"rediss://:p%40@r:1/2\""
    );
    assert_eq!(
        url(&[
            ("SOKETI_DB_REDIS_SENTINELS", r#"[{"host":"a","port":1},{"host":"b"}]"#),
            ("SOKETI_DB_REDIS_INSTANCE_NAME", "m"),
        ]),
        "\"redis+sentinel://a:1,b:6379/m/0\""
    );
    assert_eq!(
        url(&[
            ("SOKETI_DB_REDIS_SENTINELS", r#"[{"host":"a"}]"#),
            ("SOKETI_DB_REDIS_SENTINEL_PASSWORD", "s@"),
            ("SOKETI_DB_REDIS_PASSWORD", "p"),
            ("SOKETI_ADAPTER_REDIS_PUB_OPTIONS", r#"{"tls":{}}"#),
        ]),
        "\"rediss+sentinel://:p@a:6379/mymaster/0?sentinel_password=s%40\""
    );
    assert_eq!(
        url(&[
            ("SOKETI_DB_REDIS_CLUSTER_NODES", r#"[{"host":"a","port":1},{"host":"b","port":2}]"#),
            ("SOKETI_ADAPTER_REDIS_CLUSTER_MODE", "1"),
        ]),
        "[\"redis://a:1\", \"redis://b:2\"]"
    );
}

/// Each variable has an effect exactly if the document says so.
#[test]
fn the_document_judges_every_variable_as_it_is() {
    let document = include_str!("../../../docs/migrating-from-soketi.md");
    let (with, without) = document.split_once("## Without effect").unwrap();
    // Read only together with others.
    let together = [
        "SOKETI_DB_",
        "SOKETI_ADAPTER_REDIS_",
        "SOKETI_APP_MANAGER_CACHE_",
        "SOKETI_APP_MANAGER_MYSQL_TABLE",
        "SOKETI_APP_MANAGER_POSTGRES_TABLE",
    ];
    for (name, _) in NAMES.iter().chain(&DOCUMENTED) {
        let quoted = format!("`{PREFIX}{name}`");
        assert!(with.contains(&quoted) != without.contains(&quoted), "{quoted}");
        if together.iter().any(|group| quoted.contains(group)) {
            continue;
        }
        let variables = [
            ("SOKETI_DEFAULT_APP_ID".to_owned(), "i"),
            ("SOKETI_DEFAULT_APP_KEY".to_owned(), "k"),
            ("SOKETI_DEFAULT_APP_SECRET".to_owned(), "s"),
            (format!("{PREFIX}{name}"), "1"),
        ];
        let mut settings = Settings::default();
        let applied = Soketi::read_sources(
            None,
            Path::new("/"),
            FoundVariables::new(),
            &Variables::new(variables),
        )
        .and_then(|soketi| soketi.apply_soketi(&mut settings));
        // An error shows that it is read as well.
        let ignored = settings.warnings.iter().any(|warning| warning.contains("no effect"));
        assert_eq!(ignored && applied.is_ok(), without.contains(&quoted), "{quoted}");
    }
}
