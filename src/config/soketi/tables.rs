//! Soketi's database settings, as the URL and table that Fanfare takes.

use serde_json::Value as Json;

use super::{Soketi, ValueForm, app, boolean};
use crate::config::error::{Error, SettingOrigin};
use crate::config::redis_url::{url_host, url_port};
use crate::config::settings::{Setting, Settings};
use crate::config::value::{self, Value, WantedForm};
use crate::protocol::query::percent_encode;

impl Soketi {
    /// Writes the settings of the database that was chosen at `origin`: `mysql` or `postgres`.
    pub(super) fn take_tables(
        &mut self,
        driver: &str,
        origin: &SettingOrigin,
        settings: &mut Settings,
    ) -> Result<(), Error> {
        // Soketi's own defaults, which are those of the databases.
        let (port, user) = if driver == "mysql" { ("3306", "root") } else { ("5432", "postgres") };
        let host = self.checked_text(driver, "host", "127.0.0.1", url_host)?;
        let port = self.checked_text(driver, "port", port, url_port)?;
        let user = percent_encode(&self.of_database(driver, "user", user)?);
        let password = percent_encode(&self.of_database(driver, "password", "password")?);
        let database = percent_encode(&self.of_database(driver, "database", "main")?);
        let tls = self.database_tls(driver)?;
        let url = format!("{driver}://{user}:{password}@{host}:{port}/{database}{tls}");
        settings.set_key("sql.url", Setting { value: Value::Text(url), origin: origin.clone() })?;
        let table = self.take_setting(&format!("appManager.{driver}.table"), ValueForm::Text)?;
        if let Some(table) = table {
            settings.set_key("sql.table", table)?;
        }
        let is_cached = self.take_key("appManager.cache.enabled");
        let ttl = self.take_setting("appManager.cache.ttl", ValueForm::Seconds)?;
        if let Some(ttl) = ttl
            && is_cached.is_some_and(|given| boolean(&given.value) == Some(true))
        {
            settings.set_key("sql.ttl", ttl)?;
        }
        settings.drop_in = Some(app::SOKETI);
        Ok(())
    }

    /// The suffix of the URL that turns on TLS to the database.
    fn database_tls(&mut self, driver: &str) -> Result<&'static str, Error> {
        let key = format!("database.{driver}.ssl");
        let Some(given) = self.take_key(&key) else { return Ok("") };
        let is_asked = match &given.value {
            Json::Object(_) => true,
            value => boolean(value)
                .ok_or_else(|| given.wrong_value(&key, "an object, or true or false"))?,
        };
        Ok(match driver {
            _ if !is_asked => "",
            "mysql" => "?ssl-mode=REQUIRED",
            _ => "?sslmode=require",
        })
    }

    /// One part of the address, or what Soketi has in its place.
    fn checked_text(
        &mut self,
        driver: &str,
        name: &str,
        or: &str,
        check: fn(&str) -> Result<String, WantedForm>,
    ) -> Result<String, Error> {
        let key = format!("database.{driver}.{name}");
        let Some(setting) = self.take_setting(&key, ValueForm::Text)? else {
            return Ok(or.to_owned());
        };
        // The value was checked when it was read, so it is text.
        let text = value::text(&setting.value).unwrap_or_default();
        check(&text).map_err(|wanted| {
            Error::at_setting(&setting.origin, &key, format!("expected {wanted}"))
        })
    }

    /// A part that may be any text.
    fn of_database(&mut self, driver: &str, name: &str, or: &str) -> Result<String, Error> {
        let setting = self.take_setting(&format!("database.{driver}.{name}"), ValueForm::Text)?;
        Ok(match setting.map(|setting| setting.value) {
            Some(Value::Text(text)) => text,
            _ => or.to_owned(),
        })
    }
}
