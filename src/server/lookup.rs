//! The thread that looks up apps in a database. It has its own runtime, so that no worker waits for a query.
//! `lookup/sql.rs` has the queries.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::watch;

use super::{StartError, UnusableSetting};
use crate::config;
use crate::lookup::known_apps::AppRegistry;
use crate::lookup::{Lookup, LookupRequest};
use crate::node::ServerState;

/// Lookups that wait for the thread to start.
pub(super) type LookupQueue = mpsc::Receiver<LookupRequest>;

/// The door, if the settings name a table.
pub(super) fn prepare(config: Option<&config::SqlConfig>) -> Option<(Lookup, LookupQueue)> {
    config.map(|_| Lookup::new())
}

/// The registry of looked-up apps, which signals `renewed` when connections must be taken through a change. `read`
/// builds an app from a row by the settings' rules, and `publish` puts a new set of apps in force: the two upward
/// calls of `lookup`.
pub(super) fn keeper(
    config: &config::SqlConfig,
    shared: &Arc<ServerState>,
    renewed: &watch::Sender<u64>,
) -> AppRegistry {
    let rows = config.rows.clone();
    // The shared part has the door to this; a strong hold would keep both for ever.
    let (shared, renewed, configured) =
        (Arc::downgrade(shared), renewed.clone(), shared.apps.load().as_ref().clone());
    let read = move |row: &_| rows.read_app(row).map_err(|error| error.to_string());
    let publish = move |apps, concerned| {
        let Some(shared) = shared.upgrade() else { return };
        shared.apps.store(Arc::new(apps));
        if concerned {
            renewed.send_modify(|times| *times += 1);
        }
    };
    AppRegistry::new(configured, Box::new(read), Box::new(publish))
}

/// `problem` never has the URL in it, which holds a password.
#[cfg(feature = "sql")]
fn wrong(problem: String) -> UnusableSetting {
    UnusableSetting::new("sql.url", problem)
}

/// Checks the database's URL.
///
/// # Errors
/// The driver refuses the URL or the table's name.
pub(super) fn check(config: Option<&config::SqlConfig>) -> Result<(), UnusableSetting> {
    #[cfg(feature = "sql")]
    if let Some(config) = config {
        crate::lookup::sql::Database::new(&config.url, &config.table).map_err(wrong)?;
    }
    #[cfg(not(feature = "sql"))]
    // Used only with the feature.
    let _ = config;
    Ok(())
}

/// Starts answering. The thread ends with the last door.
#[cfg(feature = "sql")]
pub(super) fn start(
    config: &config::SqlConfig,
    keeper: Arc<AppRegistry>,
    asked: LookupQueue,
) -> Result<(), StartError> {
    use crate::lookup::sql::{self, Database};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (url, table, ttl) = (config.url.clone(), config.table.clone(), config.ttl);
    let database = Database::new(&url, &table).map_err(wrong)?;
    std::thread::Builder::new()
        .name("lookup".to_owned())
        .spawn(move || runtime.block_on(sql::run(database, keeper, asked, ttl)))?;
    Ok(())
}

/// The settings refuse what this build cannot do.
#[cfg(not(feature = "sql"))]
pub(super) fn start(
    _config: &config::SqlConfig,
    _keeper: Arc<AppRegistry>,
    _asked: LookupQueue,
) -> Result<(), StartError> {
    Err(std::io::Error::other("this program was built without sql").into())
}
