//! Settings of a Soketi server: `SOKETI_*` variables and its JSON file. Both become the dotted keys of the file first,
//! and each key is parsed by the type of the setting that it sets, so that a secret of digits stays text. `app.rs` has
//! the apps.

mod app;
pub(super) mod dotenv;
mod names;
mod redis;
mod rows;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

pub(super) use self::names::PREFIX;
use self::names::{DOCUMENTED, NAMES};
pub use self::rows::RowReader;
use super::environment::FoundVariables;
use super::environment::Variables;
use super::error::{Error, SettingOrigin, one_line, suggestion};
use super::json_file::parse_settings;
use super::settings::{GivenValue, Setting, Settings};
use super::value::Value;

/// The given settings, by the dotted keys of Soketi's JSON file. A key is removed when it is read; the remaining
/// ones have no meaning here.
#[derive(Default)]
pub(super) struct Soketi {
    /// Flat: `appManager.array.apps.0.id`.
    given: BTreeMap<String, GivenValue>,
    /// Warnings for the operator that do not stop the start.
    warnings: Vec<String>,
    /// Columns of a table's row that were passed over, while the app is still used. `None` outside tables, where
    /// each fault is an error.
    passed_over: Option<Vec<String>>,
}

/// How a value of Soketi's is turned into one of Fanfare's.
/// Soketi's file has no schema, and its environment no types.
#[derive(Clone, Copy)]
enum ValueForm {
    /// Also a number, which a key of digits may be.
    Text,
    /// Also a text of digits.
    Number,
    /// Also `1` and `0`.
    Boolean,
    /// Also one text alone.
    Texts,
    /// Bytes, in units of 1024 and with a point where it pleases.
    Kilobytes,
    /// Whole ones.
    Seconds,
    Milliseconds,
    /// A number below zero is no limit, which is 0 here. None at all, which 0 is to Soketi, cannot be said
    /// here, and is refused.
    Limit,
    /// The same where 0 is no limit to Soketi either.
    LimitOrNone,
}

/// The keys of the server that have the same meaning in both.
const SERVER: [(&str, &str, ValueForm); 12] = [
    ("host", "server.host", ValueForm::Text),
    ("port", "server.port", ValueForm::Number),
    ("pathPrefix", "server.path", ValueForm::Text),
    ("shutdownGracePeriod", "server.shutdown_grace", ValueForm::Milliseconds),
    ("ssl.certPath", "server.tls.cert", ValueForm::Text),
    ("ssl.keyPath", "server.tls.key", ValueForm::Text),
    ("cors.origin", "server.cors_origins", ValueForm::Texts),
    ("metrics.enabled", "metrics.enabled", ValueForm::Boolean),
    ("metrics.host", "metrics.host", ValueForm::Text),
    ("metrics.port", "metrics.port", ValueForm::Number),
    ("metrics.prometheus.prefix", "metrics.prefix", ValueForm::Text),
    ("adapter.redis.prefix", "cluster.prefix", ValueForm::Text),
];

/// Choices of which Fanfare has one alone, or does without: any other would change what the server
/// does, so it is refused.
const DRIVERS: [(&str, &[&str]); 4] = [
    ("adapter.driver", &["local", "redis"]),
    ("appManager.driver", &["array", "mysql", "postgres"]),
    ("metrics.driver", &["prometheus"]),
    ("mode", &["full", "server"]),
];

/// The chosen drivers other than the default, and where each was chosen.
#[derive(Default)]
struct Drivers {
    /// Where it was asked for, if the nodes meet there.
    redis: Option<SettingOrigin>,
    /// The database that has the apps.
    table: Option<(&'static str, SettingOrigin)>,
}

impl Soketi {
    /// Reads the file, if one is given, over it the variables of an environment file, and those of the
    /// process over both.
    /// # Errors
    /// The file cannot be read, or is no JSON object.
    pub(super) fn read_sources(
        file: Option<&Path>,
        folder: &Path,
        found: FoundVariables,
        variables: &Variables,
    ) -> Result<Self, Error> {
        let mut soketi = Self::default();
        if let Some(path) = file {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(folder.join(path))
                .map_err(|error| Error::unreadable(&name, &error))?;
            soketi.read_file(&text, &name)?;
        }
        for (name, (value, origin)) in found {
            // A variable of the process goes before the same of the file.
            if variables.value(&name).is_none_or(str::is_empty) {
                soketi.read_variable(&name, &value, &origin);
            }
        }
        soketi.read_variables(variables)?;
        Ok(soketi)
    }

    /// Key by key, each with its place in the JSON.
    fn read_file(&mut self, text: &str, name: &str) -> Result<(), Error> {
        let settings = Json::Object(parse_settings(text, name)?);
        let path: Arc<str> = name.into();
        self.insert_value("", settings, &|key| SettingOrigin::Json {
            path: path.clone(),
            key: key.to_owned(),
        });
        Ok(())
    }

    /// Those of the process, over what the file says.
    fn read_variables(&mut self, variables: &Variables) -> Result<(), Error> {
        for (name, value) in variables.with_prefix(PREFIX) {
            self.read_variable(name, value?, &SettingOrigin::Variable(name.to_owned()));
        }
        Ok(())
    }

    /// Soketi ignores what it does not know; here it is said, with the name that was probably meant.
    fn read_variable(&mut self, name: &str, value: &str, origin: &SettingOrigin) {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        let known = NAMES.iter().chain(&DOCUMENTED).find(|(name, _)| *name == short);
        let Some((_, key)) = known else {
            let near = suggestion(short, NAMES.iter().map(|(name, _)| *name));
            let near = near.replace("mean ", "mean SOKETI_");
            let name = one_line(name);
            self.warnings.push(format!("{name} is no variable of Soketi's{near}"));
            return;
        };
        // As with Soketi, what is empty is not set.
        if value.is_empty() {
            return;
        }
        // Soketi reads each as JSON, so that quotes which Compose or `docker run --env-file` left are no part
        // of a text. Numbers and truths are read as their key wants them.
        let structured = serde_json::from_str(value).ok();
        let structured = structured
            .filter(|json: &Json| json.is_object() || json.is_array() || json.is_string());
        let value = structured.unwrap_or_else(|| Json::String(value.to_owned()));
        // One source after the other, so that what an earlier one had below the key goes.
        let inside = format!("{key}.");
        // Otherwise an app of the file would show through under one of the environment.
        self.given.retain(|name, _| !name.starts_with(&inside));
        self.insert_value(key, value, &|_| origin.clone());
    }

    /// Puts a value in its place, an object key by key, so that what was given before for other keys
    /// stays.
    fn insert_value(&mut self, key: &str, value: Json, origin: &dyn Fn(&str) -> SettingOrigin) {
        let below =
            |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        match value {
            Json::Object(entries) if !entries.is_empty() => {
                for (name, value) in entries {
                    self.insert_value(&below(&name), value, origin);
                }
            }
            Json::Array(apps) if key == app::APPS && !apps.is_empty() => {
                // A list of apps replaces a list, and does not mix with it.
                let before = format!("{key}.");
                self.given.retain(|key, _| !key.starts_with(&before));
                for (index, app) in apps.into_iter().enumerate() {
                    self.insert_value(&below(&index.to_string()), app, origin);
                }
            }
            value => {
                self.given.insert(key.to_owned(), GivenValue { value, origin: origin(key) });
            }
        }
    }

    /// Removes and returns a key, unless it is absent or empty. A JSON object is put together again. A removed key
    /// counts as understood; the others are reported at the end.
    fn take_key(&mut self, key: &str) -> Option<GivenValue> {
        let own = self.given.remove(key).filter(|given| match &given.value {
            Json::Null => false,
            Json::String(text) => !text.is_empty(),
            _ => true,
        });
        let inside = format!("{key}.");
        let below = self.given.range(inside.clone()..);
        let names: Vec<String> = below
            .map(|(name, _)| name.clone())
            .take_while(|name| name.starts_with(&inside))
            .collect();
        let (mut entries, mut origin) = (serde_json::Map::new(), None);
        for name in names {
            // The first one's place stands for all.
            let Some(given) = self.given.remove(&name) else { continue };
            entries.insert(name.strip_prefix(&inside).unwrap_or(&name).to_owned(), given.value);
            origin.get_or_insert(given.origin);
        }
        match origin {
            Some(SettingOrigin::Json { path, .. }) => {
                let origin = SettingOrigin::Json { path, key: key.to_owned() };
                Some(GivenValue { value: Json::Object(entries), origin })
            }
            Some(origin) => Some(GivenValue { value: Json::Object(entries), origin }),
            None => own,
        }
    }

    /// Removes and returns the keys below a key whose own value would have to be an object, such as `redisOptions`.
    fn take_below(&mut self, key: &str, wanted: &str) -> Result<Vec<(String, GivenValue)>, Error> {
        let Some(GivenValue { value, origin }) = self.take_key(key) else { return Ok(Vec::new()) };
        let Json::Object(entries) = value else {
            return Err(Error::at_setting(&origin, key, format!("expected {wanted}")));
        };
        // `tls` is one thing, however deep it goes.
        let mut below = BTreeMap::new();
        for (name, value) in entries {
            match name.split_once("tls.") {
                Some((before, rest)) if before.is_empty() || before.ends_with('.') => {
                    let tls = below.entry(format!("{before}tls"));
                    let tls = tls.or_insert_with(|| Json::Object(serde_json::Map::new()));
                    if let Json::Object(options) = tls {
                        options.insert(rest.to_owned(), value);
                    }
                }
                _ => _ = below.insert(name, value),
            }
        }
        let given = |(name, value)| (name, GivenValue { value, origin: origin.clone() });
        Ok(below.into_iter().map(given).collect())
    }

    /// Whether a boolean was given and is true.
    /// # Errors
    /// The value is no boolean.
    fn take_flag(&mut self, key: &str) -> Result<bool, Error> {
        let setting = self.take_setting(key, ValueForm::Boolean)?;
        Ok(setting.is_some_and(|setting| setting.value == Value::Bool(true)))
    }

    /// Refuses what is left below `place`, where protection or the way to others hangs on every word; what
    /// is `harmless` is named as having no effect.
    /// Ignoring an unknown word there could leave a connection unencrypted, or a server without its password.
    fn refuse_unknown(&self, place: &str, harmless: &[&str]) -> Result<(), Error> {
        let inside = format!("{place}.");
        for (key, given) in &self.given {
            let Some(name) = key.strip_prefix(&inside) else { continue };
            let name = name.split('.').next().unwrap_or(name);
            let says_nothing = matches!(&given.value, Json::Null)
                || matches!(&given.value, Json::String(text) if text.is_empty());
            if !harmless.contains(&name) && !says_nothing {
                let problem = format!(
                    "{key} is not known here, and it may ask for protection: leave it out, or say it in Fanfare's own settings"
                );
                return Err(Error::at_setting(&given.origin, key, problem));
            }
        }
        Ok(())
    }

    /// Refuses a value where others have an object whose keys mean something.
    /// # Errors
    /// A key that is an object to Soketi has a value of another kind, which would silently mean nothing.
    fn refuse_shapes(&self) -> Result<(), Error> {
        let known = || NAMES.iter().map(|(_, key)| *key);
        for (key, given) in &self.given {
            let inside = format!("{key}.");
            let says_nothing = match &given.value {
                Json::Null => true,
                Json::String(text) => text.is_empty(),
                Json::Object(entries) => entries.is_empty(),
                _ => false,
            };
            let is_list = key == app::APPS;
            if !says_nothing && !is_list && known().any(|known| known.starts_with(&inside)) {
                let place = if is_app(key) { "an app, an object" } else { "an object" };
                return Err(Error::at_setting(&given.origin, key, format!("expected {place}")));
            }
        }
        Ok(())
    }

    /// The value of a key as a setting.
    fn take_setting(&mut self, key: &str, form: ValueForm) -> Result<Option<Setting>, Error> {
        self.take_key(key).map(|given| given.into_setting(key, form)).transpose()
    }

    /// Writes what was given over `settings`.
    /// After this nothing of Soketi's spelling is left.
    /// # Errors
    /// The start stops at a setting that cannot be read, or be honoured here.
    pub(super) fn apply_soketi(mut self, settings: &mut Settings) -> Result<(), Error> {
        self.refuse_shapes()?;
        settings.soketi = !self.given.is_empty();
        let Drivers { redis, table } = self.check_drivers()?;
        let rows = RowReader::of_settings(&self);
        for (key, name, form) in SERVER {
            if let Some(setting) = self.take_setting(key, form)? {
                settings.set_key(name, setting)?;
            }
        }
        // Soketi's metrics, once enabled, are for everyone.
        let enabled = settings.server.get("metrics.enabled").map(|setting| &setting.value);
        if enabled == Some(&Value::Bool(true)) && !settings.server.contains_key("metrics.host") {
            let value = Value::Text("0.0.0.0".to_owned());
            let origin = SettingOrigin::Implied("SOKETI_METRICS_ENABLED");
            settings.set_key("metrics.host", Setting { value, origin })?;
        }
        if let Some(debug) = self.take_setting("debug", ValueForm::Boolean)?
            && debug.value == Value::Bool(true)
        {
            let value = Value::Text("debug".to_owned());
            settings.set_key("log.level", Setting { value, ..debug })?;
        }
        if let Some(origin) = redis {
            for (name, setting) in self.take_redis(origin)? {
                // The adapter's own settings and `database.redis` together make the URL.
                settings.set_key(name, setting)?;
            }
        }
        if let Some((driver, origin)) = table {
            self.take_tables(driver, &origin, settings)?;
            rows.check_settings()?;
            settings.row_defaults = rows.into_defaults();
            // Read once the rows are.
            self.take_server_wide()?;
        } else {
            let apps = self.take_apps()?;
            if !apps.is_empty() {
                settings.apps = apps;
            }
        }
        self.refuse_unknown("ssl", &["passphrase", "caPath"])?;
        self.warn_ignored();
        settings.warnings.append(&mut self.warnings);
        Ok(())
    }

    /// Refuses what Fanfare does not do.
    /// Another driver would be another server: an app manager of another database, an adapter of NATS.
    fn check_drivers(&mut self) -> Result<Drivers, Error> {
        let mut drivers = Drivers::default();
        for (key, choices) in DRIVERS {
            let Some(given) = self.take_key(key) else { continue };
            let choice = choices.iter().find(|choice| given.value == **choice);
            match choice {
                Some(&"redis") => drivers.redis = Some(given.origin),
                Some(driver @ (&"mysql" | &"postgres")) => {
                    drivers.table = Some((driver, given.origin));
                }
                Some(_) => {}
                None => {
                    let choices: Vec<_> = choices.iter().map(|c| format!("{c:?}")).collect();
                    let problem = format!("not available; expected {}", choices.join(" or "));
                    return Err(Error::at_setting(&given.origin, key, problem));
                }
            }
        }
        Ok(drivers)
    }

    /// Names once, in one line, what was given to no effect.
    /// These change nothing that a client or a backend could notice.
    fn warn_ignored(&mut self) {
        let mut names: Vec<_> = self
            .given
            .values()
            .map(|given| match &given.origin {
                SettingOrigin::Json { key, .. } => key.clone(),
                origin => origin.to_string(),
            })
            .collect();
        names.dedup();
        if !names.is_empty() {
            let names = one_line(&names.join(", "));
            self.warnings.push(format!("of Soketi's settings these have no effect: {names}"));
        }
    }
}

impl GivenValue {
    /// Converts the value.
    /// # Errors
    /// It has another form; the error names its origin.
    fn into_setting(self, key: &str, form: ValueForm) -> Result<Setting, Error> {
        match convert_value(&self.value, form) {
            Ok(value) => Ok(Setting { value, origin: self.origin }),
            // The value is left out: it may be a secret in the wrong place.
            Err(wanted) => Err(self.wrong_value(key, wanted)),
        }
    }

    /// The error of a value that is not what was wanted.
    fn wrong_value(&self, key: &str, wanted: &str) -> Error {
        Error::at_setting(&self.origin, key, format!("expected {wanted}"))
    }
}

/// The text of the error says what was wanted, never what was found.
fn convert_value(value: &Json, form: ValueForm) -> Result<Value, &'static str> {
    let time = |unit: &str, wanted| match whole(value) {
        Some(number) if number >= 0 => Ok(Value::Text(format!("{number}{unit}"))),
        _ => Err(wanted),
    };
    match form {
        ValueForm::Text => text(value).map(Value::Text).ok_or("a text"),
        ValueForm::Number => whole(value).map(Value::Integer).ok_or("a whole number"),
        ValueForm::Boolean => boolean(value).map(Value::Bool).ok_or("true or false"),
        ValueForm::Texts => match value {
            Json::Array(items) => items.iter().map(text).collect::<Option<Vec<_>>>(),
            value => text(value).map(|text| vec![text]),
        }
        .map(|items| Value::List(items.into_iter().map(Value::Text).collect()))
        .ok_or("a list of texts"),
        ValueForm::Kilobytes => float(value)
            .map(|kilobytes| (kilobytes * 1024.0).round())
            .filter(|bytes| (1.0..=f64::from(1 << 30)).contains(bytes))
            .map(|bytes| Value::Raw(bytes.to_string()))
            .ok_or("a number of kilobytes, more than 0"),
        ValueForm::Seconds => time("s", "a whole number of seconds"),
        ValueForm::Milliseconds => time("ms", "a whole number of milliseconds"),
        ValueForm::Limit => match whole(value) {
            Some(..=-1) => Ok(Value::Integer(0)),
            Some(number @ 1..) => Ok(Value::Integer(number)),
            _ => Err("-1, which is no limit, or a whole number from 1"),
        },
        ValueForm::LimitOrNone => match whole(value) {
            Some(number) => Ok(Value::Integer(number.max(0))),
            None => Err("a whole number, of which -1 and 0 are no limit"),
        },
    }
}

/// Whether a key belongs to one of the apps.
fn is_app(key: &str) -> bool {
    let number = key.strip_prefix(app::APPS).and_then(|rest| rest.strip_prefix('.'));
    number.is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
}

/// A text; a number or a truth stands for what was typed, since Soketi makes them of variables too.
fn text(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A boolean in any of the spellings that Soketi accepts.
fn boolean(value: &Json) -> Option<bool> {
    match text(value)?.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A number, also as text.
fn float(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number| number.is_finite())
}

/// A number without a fraction, which JSON may still write as `1e3`.
fn whole(value: &Json) -> Option<i64> {
    let number = float(value).filter(|number| number.fract() == 0.0)?;
    format!("{number:.0}").parse().ok()
}

#[cfg(test)]
mod tests;
