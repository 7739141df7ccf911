//! The apps loaded so far: those of the settings and those found in the table. A loaded app stays until the table says
//! otherwise, so it keeps working while the database is unreachable.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tracing::{info, warn};

use super::AppName;
use crate::app::{App, AppId, Apps};

/// For how long a name that the table does not have is not asked for again: enough that a crowd that comes
/// back again and again is one question a second.
const ABSENT_FOR: Duration = Duration::from_secs(1);

/// Most names that are remembered as absent. With more, all are forgotten: only made-up names reach this number,
/// and memory matters more than some extra queries.
const MAX_ABSENT: usize = 10_000;

/// One row of the table, by its columns.
pub type AppRow = Map<String, Value>;

/// Makes an app of a row, and says what it did without; the error says what is wrong with it. Neither shows
/// a secret.
pub type RowParser = Box<dyn Fn(&AppRow) -> Result<(App, Vec<String>), String> + Send + Sync>;

/// Is given the apps when they have changed, and whether connected clients are concerned.
pub type AppsPublisher = Box<dyn Fn(Apps, bool) + Send + Sync>;

/// Which apps are known.
pub struct AppRegistry {
    /// The apps, behind a lock that is never held across a query.
    known: Mutex<KnownApps>,
    /// Builds an app from a row.
    read: RowParser,
    /// Puts a new set of apps in force.
    publish: AppsPublisher,
}

/// The state behind the lock.
#[derive(Default)]
struct KnownApps {
    /// Never replaced by a row of the table, whatever that says.
    configured: Apps,
    /// By id, with what came of their rows.
    found: HashMap<AppId, FoundApp>,
    /// The negative cache: names without a row, and when the table said so.
    absent: HashMap<AppName, Instant>,
    /// Rows that cannot be used and were logged already, so that each is logged once.
    logged_faults: HashSet<String>,
}

/// The row is kept to see whether it has changed: apps have no equality, since secrets have none.
struct FoundApp {
    /// The row as it was read, to notice changes.
    row: AppRow,
    /// The app that was built from it.
    app: Arc<App>,
}

impl fmt::Debug for AppRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl AppRegistry {
    /// Knows the apps of the settings alone. `publish` is called under the lock, so that two
    /// changes are published in their order.
    pub fn new(configured: Apps, read: RowParser, publish: AppsPublisher) -> Self {
        let known = KnownApps { configured, ..KnownApps::default() };
        Self { known: Mutex::new(known), read, publish }
    }

    /// Changes the apps of the settings, which come before those of the table.
    pub fn set_configured(&self, configured: Apps) {
        let mut known = self.lock();
        known.configured = configured;
        // One of them may be among the new ones.
        known.absent.clear();
        (self.publish)(known.apps(), true);
    }

    /// The apps of the settings.
    pub fn configured(&self) -> Apps {
        self.lock().configured.clone()
    }

    /// Whether the table was asked for the name less than a second ago and does not have it.
    pub fn is_absent(&self, name: &AppName) -> bool {
        self.lock().absent.get(name).is_some_and(|since| since.elapsed() < ABSENT_FOR)
    }

    /// Takes in what the table has of the names that it was asked for.
    pub fn learn_rows(&self, names: &[AppName], rows: Vec<AppRow>) {
        let mut known = self.lock();
        let mut has_changed = false;
        for row in rows {
            if let Some(app) = self.parse_row(&row, &mut known.logged_faults) {
                known.found.insert(app.id.clone(), FoundApp { row, app });
                has_changed = true;
            }
        }
        let apps = known.apps();
        if known.absent.len() > MAX_ABSENT {
            known.absent.clear();
        }
        for name in names {
            let is_known = match name {
                AppName::Id(id) => apps.by_id(id).is_some(),
                AppName::Key(key) => apps.by_key(key).is_some(),
            };
            if !is_known {
                known.absent.insert(name.clone(), Instant::now());
            }
        }
        if has_changed {
            (self.publish)(apps, false);
        }
    }

    /// The ids of the apps that came of the table.
    pub fn found_ids(&self) -> Vec<AppId> {
        self.lock().found.keys().cloned().collect()
    }

    /// Takes in what the table has now of apps that it had before.
    pub fn refresh_rows(&self, ids: &[AppId], rows: Vec<AppRow>) {
        let mut known = self.lock();
        let mut gone: HashSet<&AppId> = ids.iter().collect();
        let mut has_changed = false;
        for row in rows {
            // The row exists, whatever else is wrong with it.
            let id = match row.get("id") {
                Some(Value::String(id)) => AppId::new(id),
                Some(Value::Number(id)) => AppId::new(&id.to_string()),
                _ => continue,
            };
            gone.remove(&id);
            if known.found.get(&id).is_some_and(|found| found.row == row) {
                continue;
            }
            // A row that cannot be used any more leaves the app as it was.
            if let Some(app) = self.parse_row(&row, &mut known.logged_faults) {
                info!(app = %app.id, "the app has changed in the database");
                known.found.insert(app.id.clone(), FoundApp { row, app });
                has_changed = true;
            }
        }
        for id in gone {
            info!(app = %id, "the app is no longer in the database");
            has_changed |= known.found.remove(id).is_some();
        }
        if has_changed {
            (self.publish)(known.apps(), true);
        }
    }

    /// Reads a row. A fault in it is logged once, and the app is used as far as possible.
    fn parse_row(&self, row: &AppRow, logged_faults: &mut HashSet<String>) -> Option<Arc<App>> {
        let read = (self.read)(row);
        let lines = match &read {
            Ok((_, passed_over)) => passed_over.clone(),
            Err(error) => vec![error.clone()],
        };
        let kind = if read.is_ok() { "is passed over" } else { "cannot be used" };
        for line in lines {
            if logged_faults.len() > MAX_ABSENT {
                logged_faults.clear();
            }
            if logged_faults.insert(line.clone()) {
                warn!("part of the table of apps {kind}: {line}");
            }
        }
        read.ok().map(|(app, _)| Arc::new(app))
    }

    /// Also after a panic: what is known is whole after each step.
    fn lock(&self) -> std::sync::MutexGuard<'_, KnownApps> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownApps {
    /// All known apps, those of the settings first.
    fn apps(&self) -> Apps {
        self.configured.with_others(self.found.values().map(|found| &found.app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, key: &str, secret: &str) -> AppRow {
        let pairs = [("id", id), ("key", key), ("secret", secret)];
        pairs.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect()
    }

    type Published = Arc<Mutex<Vec<(Apps, bool)>>>;

    /// A keeper with app 1 in its settings, and what it published.
    fn keeper() -> (AppRegistry, Published) {
        let published = Arc::new(Mutex::new(Vec::new()));
        let read = |row: &AppRow| {
            let text = |name: &str| row.get(name).and_then(Value::as_str).ok_or("no text");
            Ok((App::new(text("id")?, text("key")?, text("secret")?), Vec::new()))
        };
        let publish = {
            let published = published.clone();
            move |apps, concerned| published.lock().unwrap().push((apps, concerned))
        };
        let configured = Apps::new([App::new("1", "one", "s")]).unwrap();
        (AppRegistry::new(configured, Box::new(read), Box::new(publish)), published)
    }

    fn keys(apps: &Apps) -> Vec<String> {
        let mut keys: Vec<_> = apps.iter().map(|app| app.key.to_string()).collect();
        keys.sort();
        keys
    }

    #[test]
    fn what_is_found_is_known_until_the_table_says_otherwise() {
        let (keeper, published) = keeper();
        let last = || published.lock().unwrap().last().map(|(apps, told)| (keys(apps), *told));
        let (two, nobody) = (AppName::Key("two".to_owned()), AppName::Id("9".to_owned()));
        keeper.learn_rows(&[two.clone(), nobody.clone()], vec![row("2", "two", "s")]);
        assert_eq!(last(), Some((vec!["one".to_owned(), "two".to_owned()], false)));
        assert!(keeper.is_absent(&nobody) && !keeper.is_absent(&two));
        let ids = keeper.found_ids();
        assert_eq!(ids, [AppId::new("2")]);
        keeper.refresh_rows(&ids, vec![row("2", "two", "s")]);
        assert_eq!(published.lock().unwrap().len(), 1, "nothing has changed");
        keeper.refresh_rows(&ids, vec![row("2", "zwei", "s")]);
        assert_eq!(last(), Some((vec!["one".to_owned(), "zwei".to_owned()], true)));
        // What cannot be read changes nothing.
        keeper.refresh_rows(&ids, vec![[("id".to_owned(), "2".into())].into_iter().collect()]);
        assert_eq!(published.lock().unwrap().len(), 2);
        keeper.set_configured(Apps::default());
        assert_eq!(last(), Some((vec!["zwei".to_owned()], true)));
        keeper.refresh_rows(&ids, Vec::new());
        assert_eq!(last(), Some((Vec::new(), true)));
    }

    #[test]
    fn the_settings_come_first() {
        let (keeper, published) = keeper();
        let names = [AppName::Id("1".to_owned()), AppName::Key("x".to_owned())];
        keeper.learn_rows(&names, vec![row("1", "x", "s"), row("3", "one", "s")]);
        assert_eq!(keys(&published.lock().unwrap()[0].0), ["one"]);
        assert!(keeper.is_absent(&names[1]), "another app has its id");
    }
}
