//! Apps from the tables of real databases: found by id and by key, changed and deleted under connected
//! clients, and a database that goes, hangs and comes back. Each test needs the server it is about.

use std::process::Command;
use std::time::Duration;

use fanfare::app::ClientEvents;
use fanfare::config::{self, Config, Flags, LoadedSettings, SqlConfig};

use crate::support::database::{Database, Kind};
use crate::support::eventually;
use crate::support::fixture::{Fixture, established, subscribe, target, trigger};
use crate::support::http::{Http, Response};
use crate::support::ports::free_port;
use crate::support::sign::Request;
use crate::support::websocket::{Client, Heard};
use crate::support::wire::file;

/// The table as Soketi's own documents have it, and one row of strange columns more.
fn make_table(database: &Database, table: &str) {
    let mariadb = database.kind == Kind::MariaDb;
    let (small, quote) = if mariadb { ("tinyint(1)", '`') } else { ("smallint", '"') };
    let limit = if mariadb { "tinyint(1)" } else { "integer" };
    database.run(&format!(
        "CREATE TABLE {table} (id varchar(255) PRIMARY KEY, {quote}key{quote} varchar(255) NOT NULL, \
         secret varchar(255) NOT NULL, max_connections integer NOT NULL, enabled {small} NOT NULL, \
         enable_client_messages {small} NOT NULL, max_backend_events_per_sec integer NOT NULL, \
         max_client_events_per_sec integer NOT NULL, max_read_req_per_sec integer NOT NULL, webhooks json, \
         max_presence_members_per_channel {limit} DEFAULT NULL, max_event_batch_size {limit} DEFAULT NULL, \
         max_event_payload_in_kb {limit} DEFAULT NULL, enable_user_authentication {small} DEFAULT NULL, \
         created_at timestamp NULL DEFAULT CURRENT_TIMESTAMP)"
    ));
}

fn insert(database: &Database, id: &str, key: &str, more: &str) {
    let quote = if database.kind == Kind::MariaDb { '`' } else { '"' };
    database.run(&format!(
        "INSERT INTO apps (id, {quote}key{quote}, secret, enabled, max_connections, enable_client_messages, \
         max_backend_events_per_sec, max_client_events_per_sec, max_read_req_per_sec, webhooks, \
         max_presence_members_per_channel) VALUES ('{id}', '{key}', 'secret', {more})"
    ));
}

/// An app without limits.
const PLAIN: &str = "1, -1, 0, -1, -1, -1, NULL, NULL";

/// A server with the apps of that database and no others.
fn serve(database: &Database) -> Fixture {
    Fixture::with_config(Vec::new(), |config| config.sql = Some(table_of(database)))
}

fn table_of(database: &Database) -> SqlConfig {
    SqlConfig {
        url: database.url(),
        table: "apps".to_owned(),
        ttl: Duration::from_secs(1),
        rows: config::RowReader::default(),
    }
}

/// A socket and what it is greeted with.
fn open(fixture: &Fixture, key: &str) -> (Client, String) {
    let mut client = Client::open(fixture.addr, &target(key), &[]).unwrap();
    let text = client.hear_text();
    (client, text)
}

fn is_refused(fixture: &Fixture, key: &str, code: u16) -> Result<(), String> {
    let (mut client, text) = open(fixture, key);
    if !text.contains(&format!("\"code\":{code}")) {
        return Err(text);
    }
    assert!(matches!(client.hear(), Heard::Close(Some((closed, _))) if closed == code));
    Ok(())
}

fn publish(fixture: &Fixture, (id, key, secret): (&str, &str, &str), channel: &str) -> Response {
    let path = format!("/apps/{id}/events");
    let request = Request::new("POST", &path, &trigger(channel, "e", "1"), key, secret);
    Http::connect(fixture.addr).ask_signed(&request)
}

fn apps_are_looked_up(kind: Kind) {
    let Some(mut database) = Database::start(kind) else { return };
    make_table(&database, "apps");
    insert(&database, "1", "one", PLAIN);
    let hooks = r#"'[{"url":"http://127.0.0.1:1/","event_types":["channel_occupied"]}]'"#;
    insert(&database, "2", "two", &format!("1, 100, 1, 7, 8, 9, {hooks}, 77"));
    insert(&database, "3", "three", "0, -1, 0, -1, -1, -1, '[]', NULL");
    insert(&database, "4", "four", "1, 0, 0, -1, -1, -1, NULL, NULL");
    let fixture = serve(&database);

    // By key, and then by an id that is not known yet.
    let (mut client, text) = open(&fixture, "one");
    established(&text).unwrap();
    subscribe(&mut client, "c");
    assert_eq!(publish(&fixture, ("2", "two", "secret"), "c").status, 200);
    assert_eq!(publish(&fixture, ("1", "one", "secret"), "c").status, 200);
    assert_eq!(client.hear_text(), r#"{"event":"e","channel":"c","data":"1"}"#);
    assert_eq!(publish(&fixture, ("1", "one", "another"), "c").status, 401);
    the_columns_are_read(&fixture);

    // No limit of connections is written as 0, too.
    established(&open(&fixture, "four").1).unwrap();
    // Whom the database does not know, or has switched off.
    for (key, code) in [("nobody", 4001), ("ONE", 4001), ("three", 4003)] {
        is_refused(&fixture, key, code).unwrap_or_else(|text| panic!("{key}: {text}"));
    }
    assert_eq!(publish(&fixture, ("9", "one", "secret"), "c").status, 404);
    let terminate = |key: &str| {
        let request = Request::new("POST", "/users/u/terminate_connections", "{}", key, "secret");
        Http::connect(fixture.addr).ask_signed(&request).status
    };
    insert(&database, "5", "five", PLAIN);
    assert_eq!((terminate("five"), terminate("nobody")), (200, 401));
    the_database_is_looked_at(&database, &fixture);

    // What changes there changes here, for those who are connected too.
    database.run("UPDATE apps SET secret = 'another' WHERE id = '1'");
    eventually(|| match publish(&fixture, ("1", "one", "another"), "c").status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .unwrap();
    client.hear_text();
    let (mut gone, text) = open(&fixture, "two");
    established(&text).unwrap();
    database.run("DELETE FROM apps WHERE id = '2'");
    assert!(gone.hear_text().contains("4001"));
    gone.hear_close(4001, "");
    is_refused(&fixture, "two", 4001).unwrap();

    // Away: who is known goes on, of others nobody can tell.
    database.kill();
    is_refused(&fixture, "six", 4100).unwrap();
    let away = publish(&fixture, ("6", "six", "secret"), "c");
    assert_eq!(away.error(503), "The application cannot be looked up just now.");
    assert_eq!(publish(&fixture, ("1", "one", "another"), "c").status, 200);
    client.hear_text();
    established(&open(&fixture, "one").1).unwrap();
    database.restart();
    insert(&database, "6", "six", PLAIN);
    eventually(|| {
        let (_, text) = open(&fixture, "six");
        established(&text).map(drop).map_err(|error| format!("{error}: {text}"))
    })
    .unwrap();

    // Hanging: the same, after a while for the first. PostgreSQL has a process for each connection.
    if kind == Kind::MariaDb {
        database.signal("STOP");
        is_refused(&fixture, "seven", 4100).unwrap();
        assert_eq!(publish(&fixture, ("1", "one", "another"), "c").status, 200);
        client.hear_text();
        database.signal("CONT");
        eventually(|| is_refused(&fixture, "seven", 4001)).unwrap();
    }
    fixture.stop();
}

/// App 2, which has something in every column.
fn the_columns_are_read(fixture: &Fixture) {
    let apps = fixture.running().shared().apps.load_full();
    let two = apps.by_key("two").unwrap();
    let limits = &two.limits;
    assert_eq!(limits.max_connections, 100);
    assert_eq!(two.client_events, ClientEvents::Members);
    let rates =
        (limits.events_per_second, limits.client_events_per_second, limits.reads_per_second);
    assert_eq!(rates, (7, 8, 9));
    assert_eq!((limits.max_presence_members, two.webhooks.len()), (77, 1));
}

/// `fanfare doctor` for the fixture, which has its apps in a database; for any of them where no id is given.
fn doctor(fixture: &Fixture, id: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let port = fixture.addr.port().to_string();
    let which: &[&str] = if id.is_empty() { &[] } else { &["--app-id", id] };
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .arg("doctor")
        .args(which)
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .env("FANFARE_SERVER__PORT", port)
        .env("FANFARE_METRICS__ENABLED", "false")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// What is wrong with a database is said in a sentence, without its password.
fn the_database_is_looked_at(database: &Database, fixture: &Fixture) {
    let url = database.url();
    let (is_well, text) = doctor(fixture, "5", &[("FANFARE_SQL__URL", &url)]);
    assert!(is_well, "{text}");
    // Nobody said which app.
    let (is_well, text) = doctor(fixture, "", &[("FANFARE_SQL__URL", &url)]);
    assert!(is_well && text.contains("a triggered event came back"), "{text}");
    let nobody = format!("127.0.0.1:{}", free_port());
    let (before, address) = url.rsplit_once('@').unwrap();
    let address = address.trim_end_matches("/main");
    for (id, url, table, sentence) in [
        ("99", url.clone(), "apps", "there is no app 99 in the table apps"),
        (
            "5",
            format!("{before}@{nobody}/main"),
            "apps",
            "start the database, or correct the address",
        ),
        ("5", url.replace("pass", "false"), "apps", "correct the user and the password"),
        ("5", url.clone(), "tenants", "correct sql.table"),
        ("", url.clone(), "tenants", "correct sql.table"),
    ] {
        let variables = [("FANFARE_SQL__URL", url.as_str()), ("FANFARE_SQL__TABLE", table)];
        let (is_well, text) = doctor(fixture, id, &variables);
        assert!(!is_well && text.contains(sentence), "{sentence}: {text}");
        assert!(!text.contains("w%40rd") && !text.contains("w@rd"), "{text}");
    }
    // Over TLS, with a certificate that is looked at if that is wanted.
    let modes = if database.kind == Kind::Postgres {
        ["require", "verify-full"]
    } else {
        ["REQUIRED", "VERIFY_IDENTITY"]
    };
    let tls = |mode: &str, issuer: &str| {
        let issuer = file(issuer, "crt");
        let url = format!("{url}?ssl-mode={mode}&ssl-ca={}", issuer.display());
        doctor(fixture, "5", &[("FANFARE_SQL__URL", url.as_str())])
    };
    for mode in modes {
        let (is_well, text) = tls(mode, "one");
        assert!(is_well, "{mode}: {text}");
    }
    let (is_well, text) = tls(modes[1], "two");
    assert!(!is_well && text.contains("name a file with its issuer"), "{text}");
    if database.kind == Kind::Postgres {
        let url = format!("{before}@{address}/nowhere");
        let (_, text) = doctor(fixture, "5", &[("FANFARE_SQL__URL", url.as_str())]);
        assert!(text.contains("correct the name of the database"), "{text}");
    }
}

#[test]
fn apps_are_looked_up_in_mariadb() {
    apps_are_looked_up(Kind::MariaDb);
}

#[test]
fn apps_are_looked_up_in_postgresql() {
    apps_are_looked_up(Kind::Postgres);
}

fn loaded(env: &[(&str, &str)]) -> Result<Config, String> {
    let nowhere = std::path::Path::new("/nonexistent");
    match config::load_settings(&Flags::default(), env.iter().copied(), nowhere) {
        Ok(LoadedSettings { config, .. }) => Ok(config),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn soketis_settings_of_a_database_are_enough() {
    let config = loaded(&[
        ("SOKETI_APP_MANAGER_DRIVER", "mysql"),
        ("SOKETI_APP_MANAGER_MYSQL_TABLE", "tenants"),
        ("SOKETI_APP_MANAGER_CACHE_ENABLED", "true"),
        ("SOKETI_APP_MANAGER_CACHE_TTL", "90"),
        ("SOKETI_DB_MYSQL_HOST", "db.test"),
        ("SOKETI_DB_MYSQL_USERNAME", "u"),
        ("SOKETI_DB_MYSQL_PASSWORD", "p@ss/word"),
        ("SOKETI_DB_MYSQL_DATABASE", "soketi"),
        ("SOKETI_EVENT_MAX_BATCH_SIZE", "25"),
    ])
    .unwrap();
    let sql = config.sql.as_ref().unwrap();
    assert_eq!(sql.url, "mysql://u:p%40ss%2Fword@db.test:3306/soketi");
    assert_eq!((sql.table.as_str(), sql.ttl.as_secs()), ("tenants", 90));
    assert!(!format!("{config:?}").contains("p%40ss"));
    assert_eq!((config.server.host.as_str(), config.server.port), ("0.0.0.0", 6001));
    assert!(config.apps.is_empty() && config.made_app.is_none());
    assert!(!config.webhooks.allow_private);
    // What holds for all apps holds for those of the table, unless a row says otherwise.
    let row = |text: &str| serde_json::from_str(text).unwrap();
    let app =
        sql.rows.read_app(&row(r#"{"id":"1","key":"k","secret":"s","enabled":1}"#)).unwrap().0;
    assert_eq!((app.limits.max_batch, app.client_events), (25, ClientEvents::None));
    let more = r#"{"id":"1","key":"k","secret":4711,"max_event_batch_size":5,"webhooks":"[]"}"#;
    assert_eq!(sql.rows.read_app(&row(more)).unwrap().0.limits.max_batch, 5);
    let odd = r#"{"id":"1","key":"k","secret":"s","max_connections":"x"}"#;
    let (app, passed_over) = sql.rows.read_app(&row(odd)).unwrap();
    assert_eq!(app.limits.max_connections, 0);
    let begin = "the row of \"1\", column max_connections: expected ";
    assert!(passed_over.len() == 1 && passed_over[0].starts_with(begin), "{passed_over:?}");

    let config = loaded(&[("SOKETI_APP_MANAGER_DRIVER", "postgres")]).unwrap();
    let url = config.sql.unwrap().url;
    assert_eq!(url, "postgres://postgres:password@127.0.0.1:5432/main");
    let private = ("FANFARE_WEBHOOKS__ALLOW_PRIVATE", "true");
    let config = loaded(&[("SOKETI_APP_MANAGER_DRIVER", "postgres"), private]).unwrap();
    assert!(config.webhooks.allow_private);
}

#[test]
fn a_table_is_named_without_tricks() {
    for (name, value) in [
        ("FANFARE_SQL__URL", "sqlite://a"),
        ("FANFARE_SQL__TABLE", "apps; DROP TABLE apps"),
        ("FANFARE_SQL__TABLE", "a.b.c"),
        ("FANFARE_SQL__TABLE", "`a`"),
    ] {
        assert!(loaded(&[(name, value)]).unwrap_err().starts_with(name), "{value}");
    }
    let error = loaded(&[("FANFARE_SQL__URL", "sqlite://u:s3cr3t@a")]).unwrap_err();
    assert!(!error.contains("s3cr3t"), "{error}");
}
