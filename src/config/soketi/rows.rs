//! Apps from the rows of Soketi's tables, with the limits that Soketi's settings have for all apps. `lookup/sql.rs`
//! reads the rows.

use serde_json::{Map, Value as Json};

use super::{Soketi, app};
use crate::app::App;
use crate::config::error::{Error, SettingOrigin};
use crate::config::settings::GivenValue;

/// How rows are read. Holds no secret.
#[derive(Clone, Default)]
pub struct RowReader {
    /// The settings for all apps, as they were given.
    general: Vec<(String, GivenValue)>,
}

impl RowReader {
    /// As the settings were left by [`Self::into_defaults`].
    pub(in crate::config) fn new(general: Vec<(String, GivenValue)>) -> Self {
        Self { general }
    }

    /// Before anything is taken out of them. Neither apps nor databases are for all apps.
    pub(super) fn of_settings(soketi: &Soketi) -> Self {
        let is_general =
            |key: &String| !["appManager.", "database."].iter().any(|s| key.starts_with(s));
        let general = soketi.given.iter().filter(|(key, _)| is_general(key));
        Self { general: general.map(|(key, given)| (key.clone(), given.clone())).collect() }
    }

    /// Reads the app of a row, and a warning for each column that cannot be read. Such a column disables only the
    /// feature that it configures. A missing or null column has Soketi's default.
    pub fn read_app(&self, row: &Map<String, Json>) -> Result<(App, Vec<String>), Error> {
        let given = self.general.iter().cloned().collect();
        let mut soketi = Soketi { given, passed_over: Some(Vec::new()), ..Soketi::default() };
        // Only names the row in messages; an app without an id is refused below.
        let id = row.get("id").and_then(super::text).unwrap_or_default();
        let origin =
            |column: &str| SettingOrigin::Row { id: id.clone(), column: column.to_owned() };
        for (name, value) in row {
            // An empty list or object says nothing, and neither does an empty text.
            let given = GivenValue { value: value.clone(), origin: origin(name) };
            soketi.given.insert(format!("{}.0.{name}", app::APPS), given);
        }
        let mut apps = soketi.take_apps()?;
        let app = apps.first_mut().ok_or_else(|| Error::of_file(origin(""), "the row is empty"))?;
        app.origin = origin("");
        // Set above, so it is there.
        Ok((app.resolve_app("apps")?, soketi.passed_over.unwrap_or_default()))
    }

    /// The settings for all apps.
    pub(super) fn into_defaults(self) -> Vec<(String, GivenValue)> {
        self.general
    }

    /// Checks once that the settings for all apps can be read, so that they do not fail for every row.
    pub(super) fn check_settings(&self) -> Result<(), Error> {
        let given = self.general.iter().cloned().collect();
        let mut soketi = Soketi { given, ..Soketi::default() };
        let origin = SettingOrigin::Row { id: String::new(), column: String::new() };
        // An app that has all that the settings for all apps could be about.
        for name in ["id", "key", "secret", "enable_user_authentication"] {
            let given = GivenValue { value: Json::from("1"), origin: origin.clone() };
            soketi.given.insert(format!("{}.0.{name}", app::APPS), given);
        }
        soketi.take_apps().map(drop)
    }
}
