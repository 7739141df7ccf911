//! Settings from what a Soketi server is given: `SOKETI_*` variables and its JSON file. Both are brought
//! to the dotted keys of the file first, and each key is read by the type of the setting it becomes, so
//! that a secret of digits stays a text. The apps among them are `app`'s.

mod app;
mod names;
mod redis;
mod rows;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use self::names::{DOCUMENTED, NAMES, PREFIX};
pub use self::rows::Rows;
use super::error::{Error, Origin, one_line, suggestion};
use super::settings::{Setting, Settings};
use super::value::Value;
use super::variables::Variables;

/// What was given, by the dotted keys of Soketi's JSON file. A key is taken out when it is read; what
/// is left in the end has no meaning here.
#[derive(Default)]
pub(super) struct Soketi {
    given: BTreeMap<String, Given>,
    warnings: Vec<String>,
}

#[derive(Clone)]
struct Given {
    value: Json,
    origin: Origin,
}

/// How a value of Soketi's is turned into one of Fanfare's.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Number,
    Boolean,
    Texts,
    /// Bytes, in units of 1024 and with a point where it pleases.
    Kilobytes,
    Seconds,
    Milliseconds,
    /// A number below zero is no limit, which is 0 here.
    Limit,
}

/// The keys of the server that have the same meaning in both.
const SERVER: [(&str, &str, Form); 12] = [
    ("host", "server.host", Form::Text),
    ("port", "server.port", Form::Number),
    ("pathPrefix", "server.path", Form::Text),
    ("shutdownGracePeriod", "server.shutdown_grace", Form::Milliseconds),
    ("ssl.certPath", "server.tls.cert", Form::Text),
    ("ssl.keyPath", "server.tls.key", Form::Text),
    ("cors.origin", "server.cors_origins", Form::Texts),
    ("metrics.enabled", "metrics.enabled", Form::Boolean),
    ("metrics.host", "metrics.host", Form::Text),
    ("metrics.port", "metrics.port", Form::Number),
    ("metrics.prometheus.prefix", "metrics.prefix", Form::Text),
    ("adapter.redis.prefix", "cluster.prefix", Form::Text),
];

/// Choices of which Fanfare has one alone, or does without: any other would change what the server
/// does, so it is refused.
const DRIVERS: [(&str, &[&str]); 4] = [
    ("adapter.driver", &["local", "redis"]),
    ("appManager.driver", &["array", "mysql", "postgres"]),
    ("metrics.driver", &["prometheus"]),
    ("mode", &["full", "server"]),
];

/// What was chosen beside the usual, and where.
#[derive(Default)]
struct Drivers {
    redis: Option<Origin>,
    /// The database that has the apps.
    table: Option<(&'static str, Origin)>,
}

impl Soketi {
    /// Reads the file, if one is given, and the variables over it.
    pub(super) fn read(
        file: Option<&Path>,
        folder: &Path,
        variables: &Variables,
    ) -> Result<Self, Error> {
        let mut soketi = Self::default();
        if let Some(path) = file {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(folder.join(path))
                .map_err(|error| Error::of(&name, error))?;
            soketi.read_file(&text, &name)?;
        }
        soketi.read_variables(variables)?;
        Ok(soketi)
    }

    fn read_file(&mut self, text: &str, name: &str) -> Result<(), Error> {
        let json: Json = serde_json::from_str(text).map_err(|error| {
            // Its own text ends with the place, which stands in front here.
            let problem = error.to_string();
            let problem = problem.split(" at line ").next().unwrap_or_default();
            Error::of(format!("{name}:{}", error.line()), problem)
        })?;
        if !json.is_object() {
            return Err(Error::of(name, "expected an object"));
        }
        let path: Arc<str> = name.into();
        self.insert("", json, &|key| Origin::Json { path: path.clone(), key: key.to_owned() });
        Ok(())
    }

    fn read_variables(&mut self, variables: &Variables) -> Result<(), Error> {
        for (name, value) in variables.with_prefix(PREFIX) {
            let value = value?;
            let short = name.strip_prefix(PREFIX).unwrap_or(name);
            let known = NAMES.iter().chain(&DOCUMENTED).find(|(name, _)| *name == short);
            let Some((_, key)) = known else {
                let near = suggestion(short, NAMES.iter().map(|(name, _)| *name));
                let near = near.replace("mean ", "mean SOKETI_");
                let name = one_line(name);
                self.warnings.push(format!("{name} is no variable of Soketi's{near}"));
                continue;
            };
            // As with Soketi, what is empty is not set.
            if value.is_empty() {
                continue;
            }
            let structured = serde_json::from_str(value).ok();
            let structured = structured.filter(|json: &Json| json.is_object() || json.is_array());
            let value = structured.unwrap_or_else(|| Json::String(value.to_owned()));
            let origin = Origin::Variable(name.to_owned());
            self.insert(key, value, &|_| origin.clone());
        }
        Ok(())
    }

    /// Puts a value in its place, an object key by key, so that what was given before for other keys
    /// stays.
    fn insert(&mut self, key: &str, value: Json, origin: &dyn Fn(&str) -> Origin) {
        let below =
            |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        match value {
            Json::Object(entries) if !entries.is_empty() => {
                for (name, value) in entries {
                    self.insert(&below(&name), value, origin);
                }
            }
            Json::Array(apps) if key == app::APPS => {
                let before = format!("{key}.");
                self.given.retain(|key, _| !key.starts_with(&before));
                for (index, app) in apps.into_iter().enumerate() {
                    self.insert(&below(&index.to_string()), app, origin);
                }
            }
            value => {
                self.given.insert(key.to_owned(), Given { value, origin: origin(key) });
            }
        }
    }

    /// Takes a key out, unless it was not given or says nothing.
    fn take(&mut self, key: &str) -> Option<Given> {
        self.given.remove(key).filter(|given| match &given.value {
            Json::Null => false,
            Json::String(text) => !text.is_empty(),
            _ => true,
        })
    }

    /// The value of a key as a setting.
    fn setting(&mut self, key: &str, form: Form) -> Result<Option<Setting>, Error> {
        self.take(key).map(|given| given.setting(key, form)).transpose()
    }

    /// Writes what was given over `settings`.
    pub(super) fn apply(mut self, settings: &mut Settings) -> Result<(), Error> {
        let Drivers { redis, table } = self.drivers()?;
        settings.rows = Rows::new(&self);
        for (key, name, form) in SERVER {
            if let Some(setting) = self.setting(key, form)? {
                settings.set(name, setting)?;
            }
        }
        // Soketi's metrics, once enabled, are for everyone.
        let enabled = settings.server.get("metrics.enabled").map(|setting| &setting.value);
        if enabled == Some(&Value::Bool(true)) && !settings.server.contains_key("metrics.host") {
            let value = Value::Text("0.0.0.0".to_owned());
            let origin = Origin::Implied("SOKETI_METRICS_ENABLED");
            settings.set("metrics.host", Setting { value, origin })?;
        }
        if let Some(debug) = self.setting("debug", Form::Boolean)?
            && debug.value == Value::Bool(true)
        {
            let value = Value::Text("debug".to_owned());
            settings.set("log.level", Setting { value, ..debug })?;
        }
        if let Some(origin) = redis {
            settings.set("cluster.redis", Setting { value: self.redis()?, origin })?;
        }
        if let Some((driver, origin)) = table {
            self.tables(driver, &origin, settings)?;
            // Read once the rows are.
            self.general()?;
        } else {
            let apps = self.apps()?;
            if !apps.is_empty() {
                settings.apps = apps;
            }
        }
        self.ignored();
        settings.warnings.append(&mut self.warnings);
        Ok(())
    }

    /// Refuses what Fanfare does not do.
    fn drivers(&mut self) -> Result<Drivers, Error> {
        let mut drivers = Drivers::default();
        for (key, choices) in DRIVERS {
            let Some(given) = self.take(key) else { continue };
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
                    return Err(Error::at(&given.origin, key, problem));
                }
            }
        }
        Ok(drivers)
    }

    /// Names once, in one line, what was given to no effect.
    fn ignored(&mut self) {
        let mut names: Vec<_> = self
            .given
            .values()
            .map(|given| match &given.origin {
                Origin::Json { key, .. } => key.clone(),
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

impl Given {
    fn setting(self, key: &str, form: Form) -> Result<Setting, Error> {
        match convert(&self.value, form) {
            Ok(value) => Ok(Setting { value, origin: self.origin }),
            // The value is left out: it may be a secret in the wrong place.
            Err(wanted) => Err(Error::at(&self.origin, key, format!("expected {wanted}"))),
        }
    }
}

fn convert(value: &Json, form: Form) -> Result<Value, &'static str> {
    let time = |unit: &str, wanted| match whole(value) {
        Some(number) if number >= 0 => Ok(Value::Text(format!("{number}{unit}"))),
        _ => Err(wanted),
    };
    match form {
        Form::Text => text(value).map(Value::Text).ok_or("a text"),
        Form::Number => whole(value).map(Value::Integer).ok_or("a whole number"),
        Form::Boolean => boolean(value).map(Value::Bool).ok_or("true or false"),
        Form::Texts => match value {
            Json::Array(items) => items.iter().map(text).collect::<Option<Vec<_>>>(),
            value => text(value).map(|text| vec![text]),
        }
        .map(|items| Value::List(items.into_iter().map(Value::Text).collect()))
        .ok_or("a list of texts"),
        Form::Kilobytes => float(value)
            .map(|kilobytes| (kilobytes * 1024.0).round())
            .filter(|bytes| (1.0..=f64::from(1 << 30)).contains(bytes))
            .map(|bytes| Value::Raw(bytes.to_string()))
            .ok_or("a number of kilobytes, more than 0"),
        Form::Seconds => time("s", "a whole number of seconds"),
        Form::Milliseconds => time("ms", "a whole number of milliseconds"),
        Form::Limit => match whole(value) {
            Some(..=-1) => Ok(Value::Integer(0)),
            Some(number @ 1..) => Ok(Value::Integer(number)),
            _ => Err("-1, which is no limit, or a whole number from 1"),
        },
    }
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

fn boolean(value: &Json) -> Option<bool> {
    match text(value)?.as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

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
