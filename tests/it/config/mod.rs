//! The settings from outside: the example file, every key in every source, every refusal, and what the
//! commands about settings print. Which keys there are is asked of the library, never listed here.

mod echo_server;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use fanfare::config::{
    self, APP, Config, Error, Flags, LoadedSettings, SERVER, SettingKey, WEBHOOK,
};

/// A folder of a test's own, gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("config-{name}"));
        _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(self, file: &str, text: &str) -> Self {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// What the server would run with, started here with these arguments and variables.
    fn load(&self, arguments: &[&str], env: &[(&str, &str)]) -> Result<LoadedSettings, Error> {
        config::load_settings(&flags(arguments), env.iter().copied(), &self.0)
    }

    fn config(&self, arguments: &[&str], env: &[(&str, &str)]) -> Config {
        match self.load(arguments, env) {
            Ok(loaded) => loaded.config,
            Err(error) => panic!("{error}"),
        }
    }

    fn error(&self, arguments: &[&str], env: &[(&str, &str)]) -> String {
        let Err(error) = self.load(arguments, env) else { panic!("nothing is refused") };
        assert_eq!(error.exit_code(), 78);
        let line = error.to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    fn answer(&self, arguments: &[&str], env: &[(&str, &str)]) -> String {
        let flags = flags(arguments);
        let command = flags.command.clone().unwrap();
        config::answer_command(&command, &flags, env.iter().copied(), &self.0).unwrap().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn flags(arguments: &[&str]) -> Flags {
    Flags::try_parse_from(["fanfare"].iter().chain(arguments)).unwrap()
}

const EXAMPLE: &str = include_str!("../../../config.example.toml");
const FILE: [&str; 2] = ["--config", "f.toml"];
const CREDENTIALS: [(&str, &str); 3] = [
    ("FANFARE_APPS__0__ID", "app-id"),
    ("FANFARE_APPS__0__KEY", "app-key"),
    ("FANFARE_APPS__0__SECRET", "app-secret"),
];

/// The example with what it only suggests put in force: prose is `# text`, a setting `#key = value`.
fn whole_example() -> toml::Table {
    let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
        _ => line,
    });
    uncommented.collect::<Vec<_>>().join("\n").parse().unwrap()
}

/// The names of the values in a table, dotted, with the values.
fn leaves(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) if name != "headers" => {
                let below = leaves(inner).into_iter();
                found.extend(below.map(|(rest, value)| (format!("{name}.{rest}"), value)));
            }
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {}
            value => found.push((name.clone(), value.clone())),
        }
    }
    found
}

/// That a table has each of the keys at its default, and nothing else.
fn has_all<T>(keys: &[SettingKey<T>], table: &toml::Table) {
    let mut written = leaves(table);
    for key in keys {
        let at = written.iter().position(|(name, _)| name == key.name);
        let at = at.unwrap_or_else(|| panic!("the example does not name {}", key.name));
        let (_, value) = written.remove(at);
        if let Some(default) = key.default {
            assert_eq!(value, parse(default), "{}", key.name);
        }
    }
    assert_eq!(written, [], "the example names what is no key");
}

fn parse(value: &str) -> toml::Value {
    format!("v = {value}").parse::<toml::Table>().unwrap().remove("v").unwrap()
}

fn first<'a>(table: &'a toml::Table, name: &str) -> &'a toml::Table {
    table[name].as_array().unwrap()[0].as_table().unwrap()
}

#[test]
fn the_example_names_every_key_with_its_default() {
    let example = whole_example();
    has_all(SERVER, &example);
    let app = first(&example, "apps");
    has_all(APP, app);
    has_all(WEBHOOK, first(app, "webhooks"));
}

#[test]
fn the_example_changes_nothing() {
    let folder = Folder::new("example").with("f.toml", EXAMPLE);
    let shown = |config: &Config| {
        let Config { server, metrics, cluster, webhooks, log, apps_file, .. } = config;
        format!("{server:?} {metrics:?} {cluster:?} {webhooks:?} {log:?} {apps_file:?}")
    };
    let config = folder.config(&FILE, &[]);
    assert_eq!(shown(&config), shown(&folder.config(&[], &[])));
    assert!(config.made_app.is_some());
}

#[test]
fn an_app_with_nothing_but_credentials_is_as_the_code_has_it() {
    let config = Folder::new("defaults").config(&[], &CREDENTIALS);
    let app = config.apps.by_id("app-id").unwrap();
    let expected = fanfare::app::App::new("app-id", "app-key", "app-secret");
    assert_eq!(format!("{app:?}"), format!("{expected:?}"));
}

/// A file with a wrong value, a date, for one key.
fn wrong(header: &str, name: &str) -> String {
    format!("# A comment, so that lines count.\n{header}\n{name} = 1979-05-27\n")
}

#[test]
fn every_key_refuses_a_wrong_type_with_its_place() {
    let folder = Folder::new("wrong");
    let refused = |text: &str, place: String| {
        fs::write(folder.0.join("f.toml"), text).unwrap();
        let line = folder.error(&FILE, &[]);
        assert!(line.starts_with(&(place + ": expected ")), "{line}");
    };
    for key in SERVER {
        let (section, name) = key.name.split_once('.').unwrap();
        refused(&wrong(&format!("[{section}]"), name), format!("f.toml:3: {}", key.name));
    }
    for key in APP {
        refused(&wrong("[[apps]]", key.name), format!("f.toml:3: apps[0].{}", key.name));
    }
    for key in WEBHOOK {
        let place = format!("f.toml:4: apps[0].webhooks[0].{}", key.name);
        refused(&wrong("[[apps]]\n[[apps.webhooks]]", key.name), place);
    }
}

#[test]
fn every_key_has_a_variable() {
    let folder = Folder::new("variables");
    let expected = format!("{:?}", folder.config(&[], &CREDENTIALS));
    let defaults = SERVER
        .iter()
        .map(|key| (key.name.to_owned(), key.default))
        .chain(APP.iter().map(|key| (format!("apps.0.{}", key.name), key.default)));
    for (name, default) in defaults {
        let Some(default) = default else { continue };
        let value = match parse(default) {
            toml::Value::String(text) => text,
            _ => default.to_owned(),
        };
        let variable = format!("FANFARE_{}", name.replace('.', "__").to_uppercase());
        let mut env = CREDENTIALS.to_vec();
        env.push((&variable, &value));
        assert_eq!(format!("{:?}", folder.config(&[], &env)), expected, "{variable}={value}");
        let shown = folder.answer(&["config", "show"], &env);
        assert!(shown.contains(&format!("# {variable}\n")), "{variable} is not in force");
    }
    for key in WEBHOOK {
        let variable = format!("FANFARE_APPS__0__WEBHOOKS__0__{}", key.name.to_uppercase());
        let line = folder.error(&[], &[(&variable, "\u{1}")]);
        assert!(!line.contains("unknown"), "{line}");
    }
}

#[test]
fn what_contradicts_is_refused_with_its_place() {
    let app = |id: &str, key: &str| {
        format!("[[apps]]\nid = \"{id}\"\nkey = \"{key}\"\nsecret = \"s3cr3t\"\n")
    };
    for (text, line) in [
        (app("1", "k") + &app("1", "l"), "f.toml:6: apps[1].id: \"1\" is apps[0].id already"),
        (app("1", "k") + &app("2", "k"), "f.toml:7: apps[1].key: \"k\" is apps[0].key already"),
        (
            "[[apps]]\nid = \"1\"\nkey = \"k\"".to_owned(),
            "f.toml:1: apps[0].secret: missing, and it has no default",
        ),
        (
            app("1", "k") + "[[apps.webhooks]]\nbatch = \"1s\"",
            "f.toml:5: apps[0].webhooks[0].url: missing, and it has no default",
        ),
        (
            "[server]\ntls = { cert = \"c.pem\" }".to_owned(),
            "f.toml:2: server.tls.cert: needs server.tls.key beside it",
        ),
        (
            "[server]\nunix_socket = { path = \"s\" }\ntls = { cert = \"c\", key = \"k\" }"
                .to_owned(),
            "f.toml:2: server.unix_socket.path: TLS is for the proxy to speak, not for a Unix socket",
        ),
        (
            "[server]\napi = { port = 9000 }".to_owned(),
            "f.toml:2: server.api.port: needs server.api.host beside it",
        ),
        (
            "[server]\nport = 9\napi = { host = \"127.0.0.1\", port = 9 }".to_owned(),
            "f.toml:3: server.api.port: is where the sockets are: the HTTP API is there too if server.api is left out",
        ),
        (
            "[server]\napi = { host = \"::1\", unix_socket = { path = \"s\" } }".to_owned(),
            "f.toml:2: server.api.unix_socket.path: stands in the place of server.api.host and server.api.port: give one of the two",
        ),
        #[cfg(not(feature = "sql"))]
        (
            "[sql]\nurl = \"mysql://u:s3cr3t@a/b\"".to_owned(),
            "f.toml:2: sql.url: this program was built without databases: build it with --features sql, or install the Debian package",
        ),
        (
            "[server]\nproxy_protocol = true".to_owned(),
            "f.toml:2: server.proxy_protocol: needs server.trusted_proxies beside it",
        ),
        (
            "[cluster]\nredis = [\"redis://:s3cr3t@h\", \"redis+sentinel://i/m\"]".to_owned(),
            "f.toml:2: cluster.redis: expected a redis://, rediss:// or redis+sentinel:// URL \
             without #, or a list of a cluster's nodes",
        ),
    ] {
        let folder = Folder::new("contradicts").with("f.toml", &text);
        assert_eq!(folder.error(&FILE, &[]), line);
    }
}

#[test]
fn clients_that_come_back_to_several_nodes_find_longer_logs() {
    let app = "[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"s\"\n";
    let redis = "[cluster]\nredis = \"redis://127.0.0.1\"\n";
    for (text, replay) in [
        (format!("{redis}{app}"), 256),
        (format!("{redis}{app}resume = \"0s\"\n"), 256),
        (format!("{redis}{app}resume = \"2m\"\n"), 4096),
        (format!("{redis}replay = 300\n{app}resume = \"2m\"\n"), 300),
    ] {
        let folder = Folder::new("replay").with("f.toml", &text);
        assert_eq!(folder.config(&FILE, &[]).cluster.replay, replay, "{text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = Folder::new("absent");
    assert!(folder.error(&FILE, &[]).starts_with("f.toml: "));
    assert!(folder.error(&["--env-file", "e"], &[]).starts_with("e: "));
}

const ENV_FILE: &str =
    "APP_NAME=Shop\nREVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=s3cr3t\n";

#[test]
fn the_environment_file_of_a_laravel_app_is_enough() {
    let folder = Folder::new("laravel").with(".env", ENV_FILE);
    let config = folder.config(&[], &[]);
    assert_eq!(config.server.host, "0.0.0.0");
    assert!(config.apps.by_key("k").is_some());
    assert!(config.made_app.is_none());
    assert_eq!(folder.config(&["--host", "::1"], &[]).server.host, "::1");
}

#[test]
fn another_programs_environment_file_is_left_alone() {
    for text in ["not = a file of Laravel's", "PORT=1\nREVERB_SERVER_PORT=1\nREVERB_APP_ID=1"] {
        let folder = Folder::new("other").with(".env", text);
        let config = folder.config(&[], &[]);
        assert!(config.made_app.is_some());
        assert_eq!((config.server.host.as_str(), config.server.port), ("127.0.0.1", 8080));
    }
}

#[test]
fn an_environment_file_with_credentials_in_part_is_warned_of() {
    let warnings = |text: &str| {
        let folder = Folder::new("forgotten").with(".env", text);
        let loaded = folder.load(&[], &[]).ok().unwrap();
        assert!(loaded.config.made_app.is_some());
        loaded.warnings
    };
    let line = ".env is not read: .env:1: REVERB_APP_ID: REVERB_APP_SECRET is missing: \
                an app has an id, a key and a secret";
    assert_eq!(warnings("REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET="), [line]);
    assert_eq!(warnings("PUSHER_APP_ID=\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET="), [""; 0]);
}

#[test]
fn a_broken_environment_file_is_refused_with_its_line() {
    let folder = Folder::new("broken").with(".env", &(ENV_FILE.to_owned() + "X=s3cr3t b"));
    let line = folder.error(&[], &[]);
    assert!(line.starts_with(".env:5: ") && !line.contains("s3cr3t"), "{line}");
}

#[test]
fn another_environment_file_can_be_named() {
    let folder = Folder::new("named").with("e", ENV_FILE).with(".env.testing", ENV_FILE);
    assert!(folder.config(&["--env-file", "e"], &[]).apps.by_key("k").is_some());
    assert!(folder.config(&[], &[("APP_ENV", "testing")]).apps.by_key("k").is_some());
    assert!(folder.config(&[], &[("APP_ENV", "local")]).made_app.is_some());
}

#[test]
fn a_cached_configuration_is_warned_of() {
    let folder = Folder::new("cached").with(".env", ENV_FILE);
    assert!(folder.load(&[], &[]).ok().unwrap().warnings.is_empty());
    let folder = folder.with("bootstrap/cache/config.php", "<?php");
    let warnings = folder.load(&[], &[]).ok().unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("config.php"), "{warnings:?}");
}

#[test]
fn credentials_in_part_are_refused_unless_others_are_there() {
    let folder = Folder::new("part").with("f.toml", "[server]\nport = 1");
    let env = [("REVERB_APP_ID", "1"), ("REVERB_APP_KEY", "k")];
    let line = folder.error(&FILE, &env);
    assert!(line.starts_with("REVERB_APP_ID: REVERB_APP_SECRET is missing"), "{line}");
    let both: Vec<_> = env.into_iter().chain(CREDENTIALS).collect();
    assert!(folder.config(&FILE, &both).apps.by_key("app-key").is_some());
}

#[test]
fn the_apps_of_a_file_take_the_place_of_those_before() {
    let text = "[[apps]]\nid = \"2\"\nkey = \"l\"\nsecret = \"s\"";
    let folder = Folder::new("replaced").with(".env", ENV_FILE).with("f.toml", text);
    let config = folder.config(&FILE, &[]);
    assert!(config.apps.by_id("1").is_none() && config.apps.by_id("2").is_some());
    assert_eq!(config.server.host, "127.0.0.1");
}

#[test]
fn a_soketi_server_gives_its_file_and_its_variables() {
    let text =
        r#"{"port": 7000, "appManager.array.apps": [{"id": "1", "key": "k", "secret": 1234567}]}"#;
    let folder = Folder::new("soketi").with("s.json", text);
    let file = ["--soketi-config", "s.json"];
    let config = folder.config(&file, &[("SOKETI_PORT", "7001")]);
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 7001));
    assert!(config.apps.by_key("k").is_some());
    let shown = folder.answer(&["config", "show", file[0], file[1]], &[]);
    assert!(shown.contains("# s.json: port") && !shown.contains("1234567"), "{shown}");
    assert!(folder.error(&["--soketi-config", "t.json"], &[]).starts_with("t.json: "));
    let folder = folder.with("f.toml", "[server]\nport = 1");
    let all = [file[0], file[1], FILE[0], FILE[1]];
    assert_eq!(folder.config(&all, &[("SOKETI_PORT", "7001")]).server.port, 1);
}

#[test]
fn what_is_shown_is_what_is_in_force_without_secrets() {
    let folder = Folder::new("show").with(".env", ENV_FILE);
    let env = [("FANFARE_SERVER__PORT", "9000"), ("REVERB_APP_MAX_CONNECTIONS", "7")];
    let shown = folder.answer(&["config", "show", "--path", "ws"], &env);
    assert!(!shown.contains("s3cr3t"), "{shown}");
    for (setting, origin) in [
        ("host = \"0.0.0.0\"", "default with REVERB_APP_ID"),
        ("port = 9000", "FANFARE_SERVER__PORT"),
        ("path = \"ws\"", "--path"),
        ("workers = 0", "default"),
        ("id = \"1\"", ".env:2: REVERB_APP_ID"),
        ("secret = \"********\"", ".env:4: REVERB_APP_SECRET"),
        ("max_connections = 7", "REVERB_APP_MAX_CONNECTIONS"),
        ("client_events = \"members\"", "default with REVERB_APP_ID"),
    ] {
        let line = format!("{setting:<40} # {origin}");
        assert!(shown.lines().any(|shown| shown == line), "{line}\nis not in\n{shown}");
    }
    let mut expected = folder.config(&["--path", "ws"], &env);
    let folder = Folder::new("shown").with("f.toml", &shown);
    expected.made_app = None;
    // Where the apps were written is the one thing that differs.
    expected.app_sources = "f.toml".to_owned();
    assert_eq!(format!("{:?}", folder.config(&FILE, &[])), format!("{expected:?}"));
}

#[test]
fn a_check_says_what_would_be_served() {
    let folder = Folder::new("check").with(".env", ENV_FILE);
    let env = [("REVERB_APP_PING_INTERVAL", "5")];
    let text = folder.answer(&["config", "check"], &env);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1..], ["The settings are right: one app, on 0.0.0.0:8080"]);
    assert!(lines[0].starts_with("warning: REVERB_APP_PING_INTERVAL has no effect"), "{text}");
}

#[test]
fn new_keys_fit_both_of_their_places() {
    let folder = Folder::new("keys");
    let text = folder.answer(&["keys"], &[]);
    let (file, env_file) = text.split_once("\n\n").unwrap();
    let folder = folder.with("f.toml", file).with("e", env_file);
    let from_file = folder.config(&FILE, &[]);
    let from_env = folder.config(&["--env-file", "e"], &[]);
    let id = |config: &Config| config.apps.iter().next().unwrap().id.clone();
    assert_eq!(id(&from_file), id(&from_env));
    assert_ne!(folder.answer(&["keys"], &[]), text);
}

#[test]
fn nothing_that_is_printed_for_debugging_holds_a_secret() {
    let folder = Folder::new("debug").with(".env", ENV_FILE);
    let shown = format!("{:?}", folder.config(&[], &[]));
    assert!(!shown.contains("s3cr3t"), "{shown}");
    let made = folder.config(&["--env-file", "/dev/null"], &[]);
    let secret = made.made_app.as_ref().unwrap().secret.clone();
    assert!(!format!("{made:?}").contains(&secret));
}

#[test]
fn a_file_of_apps_adds_to_the_others() {
    let app = |id: &str| format!("[[apps]]\nid = {id:?}\nkey = \"k{id}\"\nsecret = \"s\"\n");
    let settings = app("1") + "[apps_file]\npath = \"more.toml\"";
    let folder = Folder::new("more").with("f.toml", &settings).with("more.toml", &app("2"));
    let config = folder.config(&FILE, &[]);
    assert_eq!((config.apps.len(), config.made_app.is_some()), (2, false));
    assert_eq!(config.apps_file, Some(folder.0.join("more.toml")));
    let json = r#"{"apps": [{"id": "3", "key": "k3", "secret": "s", "max_connections": 7,
        "webhooks": []}]}"#;
    let folder = folder.with("more.json", json);
    let config = folder.config(&FILE, &[("FANFARE_APPS_FILE__PATH", "more.json")]);
    assert_eq!(config.apps.by_id("3").map(|app| app.limits.max_connections), Some(7));
    // None are none: no app is made in their place.
    let folder = folder.with("more.toml", "").with("f.toml", "[apps_file]\npath = \"more.toml\"");
    let config = folder.config(&FILE, &[]);
    assert_eq!((config.apps.len(), config.made_app.is_some()), (0, false));
}

#[test]
fn a_file_of_apps_holds_nothing_else_and_nothing_twice() {
    let app = "[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"s3cr3t\"\n";
    let settings = app.to_owned() + "[apps_file]\npath = \"more.toml\"";
    let mut folder = Folder::new("more-wrong").with("f.toml", &settings);
    assert!(folder.error(&FILE, &[]).starts_with("more.toml: "));
    for (text, line) in [
        ("[server]\nport = 1", "more.toml:1: server: expected nothing but [[apps]] in this file"),
        (app, "more.toml:3: apps[1].key: \"k\" is apps[0].key already"),
        (
            "[[apps]]\nsceret = \"s3cr3t\"",
            "more.toml:2: apps[0].sceret: unknown key; did you mean secret?",
        ),
    ] {
        folder = folder.with("more.toml", text);
        assert_eq!(folder.error(&FILE, &[]), line);
    }
}
