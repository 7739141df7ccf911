//! The table of apps in MySQL, MariaDB or PostgreSQL, with Soketi's schema: queried for unknown apps, several at a
//! time, and repeatedly for loaded ones. While the database is unreachable it is retried at most once a second, and all
//! other look-ups fail at once.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Row as _, TypeInfo};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tracing::{info, warn};

use super::known_apps::{AppRegistry, AppRow};
use super::{AppName, LookupRequest, LookupResult};

/// How long the database may take to answer before it is taken for away.
const PATIENCE: Duration = Duration::from_secs(3);

/// For how long a database that is away is not asked.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// In the words of the driver's other errors, which follow the same colon.
const SILENT: &str = "no answer in three seconds";

/// Apps that are asked for at once.
/// One query for all of them: databases bound how many parameters one may have.
const NAMES_PER_QUERY: usize = 200;

/// Rows that are read where any would do.
const SAMPLE_ROWS: usize = 20;

/// A database's table of apps.
#[derive(Debug)]
pub struct Database {
    server: SqlServer,
    /// The name as it stands in a query.
    table: String,
}

/// How to connect, and the connection if there is one. While it is in use it is not here, so that one on
/// which an answer is still to come is never used again.
#[derive(Debug)]
enum SqlServer {
    /// MariaDB too, which speaks the same protocol.
    MySql(MySqlConnectOptions, Option<MySqlConnection>),
    /// PostgreSQL, and the connection to it once it was used.
    Postgres(PgConnectOptions, Option<PgConnection>),
}

impl Database {
    /// Connects when it is first asked. `table` may have a schema in front: letters, digits and underscores,
    /// with a point between.
    ///
    /// # Errors
    /// A URL that is none; the error does not repeat it, for it may hold a password.
    pub fn new(url: &str, table: &str) -> Result<Self, String> {
        let quoted = |quote: &str| {
            let parts: Vec<_> =
                table.split('.').map(|part| format!("{quote}{part}{quote}")).collect();
            parts.join(".")
        };
        // Which of its parts is wrong is left unsaid.
        let wrong = |_: sqlx::Error| "the URL cannot be read".to_owned();
        if url.starts_with("postgres") {
            let options = PgConnectOptions::from_str(url).map_err(wrong)?;
            let server = SqlServer::Postgres(options.disable_statement_logging(), None);
            Ok(Self { server, table: quoted("\"") })
        } else {
            let options = MySqlConnectOptions::from_str(url).map_err(wrong)?;
            let server = SqlServer::MySql(options.disable_statement_logging(), None);
            Ok(Self { server, table: quoted("`") })
        }
    }

    /// The row of the app with this id.
    ///
    /// # Errors
    /// The message of the database, or of the way to it.
    pub async fn row(&mut self, id: &str) -> Result<Option<AppRow>, String> {
        let rows = match timeout(PATIENCE, self.rows(&[id.to_owned()], &[])).await {
            Ok(rows) => rows.map_err(|error| error.to_string())?,
            Err(_) => return Err(SILENT.to_owned()),
        };
        let is_it = |row: &AppRow| match row.get("id") {
            Some(Value::String(own)) => own == id,
            Some(Value::Number(own)) => own.to_string() == id,
            _ => false,
        };
        Ok(rows.into_iter().find(is_it))
    }

    /// Some rows, by id, to see whether the table can be read.
    ///
    /// # Errors
    /// The error of the database or of the connection to it.
    pub async fn first_rows(&mut self) -> Result<Vec<AppRow>, String> {
        let asked = async {
            let table = &self.table;
            match &self.server {
                SqlServer::Postgres(options, _) => {
                    let text = format!(
                        "SELECT row_to_json(t)::text FROM {table} t ORDER BY t.\"id\" LIMIT {SAMPLE_ROWS}"
                    );
                    let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(text));
                    let rows = query.fetch_all(&mut options.connect().await?).await?;
                    Ok(rows.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
                }
                SqlServer::MySql(options, _) => {
                    let text = format!("SELECT * FROM {table} ORDER BY `id` LIMIT {SAMPLE_ROWS}");
                    let query = sqlx::query(AssertSqlSafe(text)).persistent(false);
                    let rows = query.fetch_all(&mut options.connect().await?).await?;
                    Ok(rows.iter().map(row_of).collect())
                }
            }
        };
        match timeout(PATIENCE, asked).await {
            Ok(rows) => rows.map_err(|error: sqlx::Error| error.to_string()),
            Err(_) => Err(SILENT.to_owned()),
        }
    }

    /// The rows with one of these ids or keys. A connection that the other side has ended since it was last
    /// used is made again.
    async fn rows(&mut self, ids: &[String], keys: &[String]) -> Result<Vec<AppRow>, sqlx::Error> {
        let was_connected = match &self.server {
            SqlServer::MySql(_, connection) => connection.is_some(),
            SqlServer::Postgres(_, connection) => connection.is_some(),
        };
        match self.ask(ids, keys).await {
            // Databases end idle connections, and it shows only at the next query.
            Err(_) if was_connected => self.ask(ids, keys).await,
            asked => asked,
        }
    }

    /// One query. The connection is put back only once the answer is complete: a future that is
    /// dropped halfway takes the connection with it.
    async fn ask(&mut self, ids: &[String], keys: &[String]) -> Result<Vec<AppRow>, sqlx::Error> {
        let table = &self.table;
        match &mut self.server {
            SqlServer::Postgres(options, kept) => {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => options.connect().await?,
                };
                let text = format!(
                    "SELECT row_to_json(t)::text FROM {table} t WHERE t.\"id\" = ANY($1) OR t.\"key\" = ANY($2)"
                );
                let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(text));
                let rows = query.bind(ids).bind(keys).fetch_all(&mut connection).await?;
                *kept = Some(connection);
                let row = |text: &String| match serde_json::from_str(text) {
                    Ok(Value::Object(row)) => Some(row),
                    _ => None,
                };
                Ok(rows.iter().filter_map(row).collect())
            }
            SqlServer::MySql(options, kept) => {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => options.connect().await?,
                };
                let places = |count: usize| vec!["?"; count.max(1)].join(", ");
                let text = format!(
                    "SELECT * FROM {table} WHERE `id` IN ({}) OR `key` IN ({})",
                    places(ids.len()),
                    places(keys.len())
                );
                let mut query = sqlx::query(AssertSqlSafe(text)).persistent(false);
                for names in [ids, keys] {
                    // No app has an empty name.
                    let none = names.is_empty().then(String::new);
                    for name in names.iter().cloned().chain(none) {
                        query = query.bind(name);
                    }
                }
                let rows = query.fetch_all(&mut connection).await?;
                *kept = Some(connection);
                Ok(rows.iter().map(row_of).collect())
            }
        }
    }
}

/// The columns that hold numbers and texts; times and the like mean nothing here. One that cannot be read is
/// what no column may be, so that the reader of the row names it.
fn row_of(from: &MySqlRow) -> AppRow {
    let is_one = |kind: &str, of: &[&str]| of.iter().any(|one| kind.contains(one));
    let mut row = AppRow::new();
    for column in from.columns() {
        let kind = column.type_info().name();
        let place = column.ordinal();
        let value = if kind.contains("UNSIGNED") || kind == "BIT" {
            from.try_get_unchecked::<Option<u64>, _>(place).map(|one| one.map(Value::from))
        } else if kind.contains("INT") || kind == "BOOLEAN" {
            from.try_get_unchecked::<Option<i64>, _>(place).map(|one| one.map(Value::from))
        } else if is_one(kind, &["FLOAT", "DOUBLE"]) {
            from.try_get_unchecked::<Option<f64>, _>(place).map(|one| one.map(Value::from))
        } else if is_one(kind, &["CHAR", "TEXT", "JSON", "BLOB", "BINARY", "ENUM", "DECIMAL"]) {
            from.try_get_unchecked::<Option<String>, _>(place).map(|one| one.map(Value::from))
        } else {
            continue;
        };
        let value = value.map(|value| value.unwrap_or(Value::Null));
        let unreadable =
            |error: sqlx::Error| serde_json::json!({ "unreadable": error.to_string() });
        row.insert(column.name().to_owned(), value.unwrap_or_else(unreadable));
    }
    row
}

/// Answers lookups until all senders are gone, and refreshes known apps every `ttl`.
pub async fn run(
    database: Database,
    keeper: Arc<AppRegistry>,
    mut questions: mpsc::Receiver<LookupRequest>,
    ttl: Duration,
) {
    let mut asker = SqlAsker { database, keeper, away_until: None };
    let mut looks = interval_at(Instant::now() + ttl, ttl);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            question = questions.recv() => {
                let Some(first) = question else { return };
                let mut asked = vec![first];
                while asked.len() < NAMES_PER_QUERY && let Ok(next) = questions.try_recv() {
                    asked.push(next);
                }
                asker.answer(asked).await;
            }
            _ = looks.tick() => asker.look_again().await,
        }
    }
}

/// The thread's state: one connection, and what it knows of the database.
struct SqlAsker {
    database: Database,
    /// Known apps, to be refreshed.
    keeper: Arc<AppRegistry>,
    /// Set while the database is away.
    away_until: Option<Instant>,
}

impl SqlAsker {
    /// Answers all of them by one query, without those that were absent a moment ago.
    async fn answer(&mut self, asked: Vec<LookupRequest>) {
        let names: Vec<AppName> = asked.iter().map(|question| question.name.clone()).collect();
        let open: Vec<AppName> =
            names.into_iter().filter(|name| !self.keeper.is_absent(name)).collect();
        let (mut ids, mut keys) = (Vec::new(), Vec::new());
        for name in &open {
            match name {
                AppName::Id(id) => ids.push(id.clone()),
                AppName::Key(key) => keys.push(key.clone()),
            }
        }
        let rows = if open.is_empty() { Some(Vec::new()) } else { self.rows(&ids, &keys).await };
        let is_away = rows.is_none();
        if let Some(rows) = rows {
            self.keeper.learn_rows(&open, rows);
        }
        for question in asked {
            let away = is_away && open.contains(&question.name);
            // The requester may have gone meanwhile.
            let _ = question.answer.send(if away {
                LookupResult::Away
            } else {
                LookupResult::Answered
            });
        }
    }

    /// Reads again what is known, every `sql.ttl`. A database that is away leaves everything as it
    /// is.
    async fn look_again(&mut self) {
        for ids in self.keeper.found_ids().chunks(NAMES_PER_QUERY) {
            let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let Some(rows) = self.rows(&texts, &[]).await else { return };
            self.keeper.refresh_rows(ids, rows);
        }
    }

    /// Asks the database; nothing if it is away.
    async fn rows(&mut self, ids: &[String], keys: &[String]) -> Option<Vec<AppRow>> {
        if self.away_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let problem = match timeout(PATIENCE, self.database.rows(ids, keys)).await {
            Ok(Ok(rows)) => {
                if self.away_until.take().is_some() {
                    info!("the apps' database can be read again");
                }
                return Some(rows);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => SILENT.to_owned(),
        };
        if self.away_until.is_none() {
            warn!(problem, "the apps' database cannot be read; the apps that are known go on");
        }
        self.away_until = Some(Instant::now() + RETRY_PAUSE);
        None
    }
}
