//! Where Soketi has its apps if not in its settings: its several settings of a database, as the URL and the
//! table that Fanfare takes.

use super::{Form, Soketi, app, boolean};
use crate::config::error::{Error, Origin};
use crate::config::laravel::percent_encode;
use crate::config::settings::{Setting, Settings};
use crate::config::value::Value;

impl Soketi {
    /// Writes the settings of the database that was chosen at `origin`: `mysql` or `postgres`.
    pub(super) fn tables(
        &mut self,
        driver: &str,
        origin: &Origin,
        settings: &mut Settings,
    ) -> Result<(), Error> {
        let (port, user) = if driver == "mysql" { ("3306", "root") } else { ("5432", "postgres") };
        let host = self.of_database(driver, "host", "127.0.0.1")?;
        let port = self.of_database(driver, "port", port)?;
        let user = percent_encode(&self.of_database(driver, "user", user)?);
        let password = percent_encode(&self.of_database(driver, "password", "password")?);
        let database = percent_encode(&self.of_database(driver, "database", "main")?);
        let url = format!("{driver}://{user}:{password}@{host}:{port}/{database}");
        settings.set("sql.url", Setting { value: Value::Text(url), origin: origin.clone() })?;
        let table = self.setting(&format!("appManager.{driver}.table"), Form::Text)?;
        if let Some(table) = table {
            settings.set("sql.table", table)?;
        }
        let is_cached = self.take("appManager.cache.enabled");
        let ttl = self.setting("appManager.cache.ttl", Form::Seconds)?;
        if let Some(ttl) = ttl
            && is_cached.is_some_and(|given| boolean(&given.value) == Some(true))
        {
            settings.set("sql.ttl", ttl)?;
        }
        settings.drop_in = Some(app::SOKETI);
        Ok(())
    }

    fn of_database(&mut self, driver: &str, name: &str, or: &str) -> Result<String, Error> {
        let setting = self.setting(&format!("database.{driver}.{name}"), Form::Text)?;
        Ok(match setting.map(|setting| setting.value) {
            Some(Value::Text(text)) => text,
            _ => or.to_owned(),
        })
    }
}
