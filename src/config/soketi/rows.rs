//! Apps out of the rows of Soketi's tables, with the limits that Soketi's settings have for all apps.

use serde_json::{Map, Value as Json};

use super::{Given, Soketi, app};
use crate::app::App;
use crate::config::error::{Error, Origin};

/// How rows are read. Holds no secret.
#[derive(Clone, Default)]
pub struct Rows {
    /// What the settings have for all apps, as it was given.
    general: Vec<(String, Given)>,
}

impl Rows {
    pub(super) fn new(soketi: &Soketi) -> Self {
        let is_general =
            |key: &String| !["appManager.", "database."].iter().any(|s| key.starts_with(s));
        let general = soketi.given.iter().filter(|(key, _)| is_general(key));
        Self { general: general.map(|(key, given)| (key.clone(), given.clone())).collect() }
    }

    /// The app that a row describes. What it leaves out, or has as null, is as Soketi has it.
    pub fn app(&self, row: &Map<String, Json>) -> Result<App, Error> {
        let mut soketi =
            Soketi { given: self.general.iter().cloned().collect(), ..Soketi::default() };
        let id = row.get("id").and_then(Json::as_str).unwrap_or_default();
        let origin = Origin::Row(id.to_owned());
        for (name, value) in row {
            // An empty list or object says nothing, and neither does an empty text.
            let given = Given { value: value.clone(), origin: origin.clone() };
            soketi.given.insert(format!("{}.0.{name}", app::APPS), given);
        }
        match soketi.apps()?.first() {
            Some(app) => app.resolve("apps"),
            None => Err(Error::at(&origin, "apps", "the row is empty")),
        }
    }
}
