//! Settings from a laravel-echo-server's file and variables.

use super::{ENV_FILE, Folder};

#[cfg(not(feature = "socketio"))]
#[test]
fn a_laravel_echo_server_needs_a_program_that_speaks_to_its_clients() {
    let folder = Folder::new("echo").with("e.json", "{}").with(".env", ENV_FILE);
    let error = folder.error(&["--echo-server-config", "e.json"], &[]);
    assert!(error.contains("apps[0].socketio.enabled") && error.contains("--features socketio"));
}

#[cfg(feature = "socketio")]
#[test]
fn a_laravel_echo_server_gives_its_file_and_its_variables() {
    let text = r#"{
        "authHost": ["https://app.example.test/", "https://b.example.test"], "host": null, "port": "6002",
        "devMode": true, "clients": [{"appId": "x", "key": "y"}], "database": "redis", "prot": "https",
        "databaseConfig": {"redis": {}}, "socketio": {}, "subscribers": {"http": true, "redis": true},
        "apiOriginAllow": {"allowCors": true, "allowOrigin": "https://page.example.test"}
    }"#;
    let folder = Folder::new("echo").with("e.json", text).with(".env", ENV_FILE);
    let file = ["--echo-server-config", "e.json"];
    let loaded = folder.load(&file, &[("LARAVEL_ECHO_SERVER_PROT", "1")]).ok().unwrap();
    let app = loaded.config.apps.iter().next().unwrap();
    assert!(app.features.socketio.enabled);
    assert_eq!(app.features.socketio.auth_url, "https://app.example.test/broadcasting/auth");
    let server = &loaded.config.server;
    assert_eq!((server.host.as_str(), server.port), ("0.0.0.0", 6002));
    assert_eq!(server.cors_origins, ["https://page.example.test"]);
    assert_eq!(loaded.config.log.level, tracing::level_filters::LevelFilter::DEBUG);
    let told = loaded.warnings.join("\n");
    for words in [
        "prot is no setting of laravel-echo-server's; did you mean port?",
        "LARAVEL_ECHO_SERVER_PROT is no variable of laravel-echo-server's; did you mean LARAVEL_ECHO_SERVER_PROTO?",
        "only the first is asked",
        "redis broadcaster publishes is not read",
        "these have no effect: clients, database",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let env = [
        ("LARAVEL_ECHO_SERVER_PORT", "${ECHO_PORT}"),
        ("ECHO_PORT", "7001"),
        ("LARAVEL_ECHO_SERVER_AUTH_HOST", "http://127.0.0.1:8000"),
        ("FANFARE_APPS__0__SOCKETIO__AUTH_TIMEOUT", "3s"),
    ];
    let config = folder.config(&file, &env);
    let app = config.apps.iter().next().unwrap();
    assert_eq!(app.features.socketio.auth_url, "http://127.0.0.1:8000/broadcasting/auth");
    assert_eq!((config.server.port, app.features.socketio.auth_timeout.as_secs()), (7001, 3));
    let own = ("FANFARE_APPS__0__SOCKETIO__AUTH_URL", "http://127.0.0.1:1/own");
    let config = folder.config(&file, &[own]);
    assert_eq!(config.apps.iter().next().unwrap().features.socketio.auth_url, own.1);
}

#[cfg(feature = "socketio")]
#[test]
fn what_a_laravel_echo_server_asks_for_and_cannot_have_stops_the_start() {
    for (text, line) in [
        ("{", "e.json:1: "),
        ("[]", "e.json: expected an object"),
        (r#"{"port": "x"}"#, "e.json: port: expected a whole number"),
        (r#"{"authHost": "app.test"}"#, "e.json: authHost: expected an http:// or https:// URL"),
        (r#"{"authHost": {}}"#, "e.json: authHost: expected a URL"),
        (r#"{"protocol": "https"}"#, "sslCertPath: missing"),
        (r#"{"protocol": "https", "sslPassphrase": "s3cr3t"}"#, "e.json: sslPassphrase: keys with"),
    ] {
        let folder = Folder::new("echo-wrong").with("e.json", text).with(".env", ENV_FILE);
        let error = folder.error(&["--echo-server-config", "e.json"], &[]);
        assert!(error.starts_with(line) && !error.contains("s3cr3t"), "{text}: {error}");
    }
    let folder = Folder::new("echo-alone").with("e.json", "{}");
    let error = folder.error(&["--echo-server-config", "e.json"], &[]);
    assert!(error.contains("names no app with a secret"), "{error}");
    let lone = folder.load(&[], &[("LARAVEL_ECHO_SERVER_PORT", "1")]).ok().unwrap();
    assert!(lone.warnings[0].contains("has no effect without --echo-server-config"));
    assert_eq!(lone.config.server.port, 8080);
}
