//! Settings as written: for each key the last source's value and its place. A value is checked when it is written, so
//! that a wrong one is an error even if a later source overrides it. `resolve.rs` combines them.

use std::collections::BTreeMap;

use super::Config;
use super::error::{Error, SettingOrigin, suggestion};
use super::keys::{APP, SERVER, SettingKey, WEBHOOK};
use super::value::{Value, parse_value};
use crate::app::{App, Webhook};

/// One written value.
#[derive(Clone)]
pub(super) struct Setting {
    /// Not turned into what the key wants yet, so that `config show` can print what was written.
    pub(super) value: Value,
    /// For messages, and for `config show`.
    pub(super) origin: SettingOrigin,
}

/// A value of another server's settings, as that reads it.
#[derive(Clone)]
pub(super) struct GivenValue {
    /// As JSON, since Soketi's file and the columns of its tables are.
    pub(super) value: serde_json::Value,
    /// Where the value was written.
    pub(super) origin: SettingOrigin,
}

/// The written values of one table, by the names of its keys.
pub(super) type SettingGroup = BTreeMap<&'static str, Setting>;

/// Everything that was written. Not `Debug`: it holds secrets.
#[derive(Clone, Default)]
pub struct Settings {
    /// `server.*`, `cluster.*` and all others that are not an app's.
    pub(super) server: SettingGroup,
    /// In the order in which they were written.
    pub(super) apps: Vec<AppSettings>,
    /// The server whose settings were taken over, if its apps are elsewhere.
    pub(super) drop_in: Option<&'static DropInFor>,
    /// Whether any setting came from Soketi's variables or file.
    pub(super) soketi: bool,
    /// Another server's settings for all apps of a table, under their names there.
    pub(super) row_defaults: Vec<(String, GivenValue)>,
    /// Warnings for the operator that do not stop the start.
    pub(super) warnings: Vec<String>,
}

/// One of `[[apps]]` as written.
#[derive(Clone)]
pub(super) struct AppSettings {
    /// Where the app as a whole begins; named when a key is missing.
    pub(super) origin: SettingOrigin,
    /// The server whose settings it was taken from, if they are another's.
    pub(super) drop_in: Option<&'static DropInFor>,
    /// Its own keys.
    pub(super) values: SettingGroup,
    /// Its `[[apps.webhooks]]`.
    pub(super) webhooks: Vec<WebhookSettings>,
}

/// A server whose settings are taken over. It listens on all addresses by default.
pub(super) struct DropInFor {
    /// Its name in the origin of such a default.
    pub(super) name: &'static str,
    /// Its own default port, where it is not Fanfare's.
    pub(super) port: Option<i64>,
}

/// One of `[[apps.webhooks]]` as written.
#[derive(Clone)]
pub(super) struct WebhookSettings {
    /// Named when a key is missing.
    pub(super) origin: SettingOrigin,
    /// Its keys.
    pub(super) values: SettingGroup,
}

impl Settings {
    /// Writes a key of the server over what was written before.
    /// # Errors
    /// The key is unknown, or the value is none that it takes; later sources do not make that good.
    pub(super) fn set_key(&mut self, name: &str, setting: Setting) -> Result<(), Error> {
        // Parsed into a configuration that is thrown away, only to report a fault at its line.
        write_key(&mut self.server, SERVER, &mut Config::default(), ("", name), setting)
    }

    /// Whether apps are in a database.
    pub(super) fn has_table(&self) -> bool {
        // An empty URL takes back what an earlier source has set.
        let url = self.server.get("sql.url").map(|setting| &setting.value);
        matches!(url, Some(Value::Text(url) | Value::Raw(url)) if !url.is_empty())
    }

    /// Where the apps were written: files, the environment, a database; each source once.
    pub(super) fn app_sources(&self) -> String {
        let written = self.apps.iter().map(|app| app.origin.source().to_owned());
        let table = self.has_table().then(|| "database".to_owned());
        let mut sources: Vec<String> = Vec::new();
        for source in written.chain(self.apps_file()).chain(table) {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        sources.join(", ")
    }

    /// The file of more apps, if one is set.
    pub(super) fn apps_file(&self) -> Option<String> {
        match &self.server.get("apps_file.path")?.value {
            Value::Text(path) | Value::Raw(path) => {
                Some(path.clone()).filter(|path| !path.is_empty())
            }
            _ => None,
        }
    }

    /// The app at `index`, begun at `origin` if it is the next one.
    pub(super) fn app_at(
        &mut self,
        index: usize,
        origin: &SettingOrigin,
    ) -> Result<&mut AppSettings, Error> {
        item_at(&mut self.apps, "apps", (index, origin), AppSettings::new)
    }
}

impl AppSettings {
    /// Without any key: reading it as a whole finds out which are missing.
    pub(super) fn new(origin: SettingOrigin) -> Self {
        Self { origin, drop_in: None, values: SettingGroup::new(), webhooks: Vec::new() }
    }

    /// Writes a key of this app, which messages call `place`: `apps[0]`.
    pub(super) fn set_key(
        &mut self,
        place: &str,
        name: &str,
        setting: Setting,
    ) -> Result<(), Error> {
        write_key(&mut self.values, APP, &mut App::new("", "", ""), (place, name), setting)
    }

    /// The webhook at `index`, begun at `origin` if it is the next one.
    pub(super) fn webhook_at(
        &mut self,
        index: usize,
        origin: &SettingOrigin,
    ) -> Result<&mut WebhookSettings, Error> {
        item_at(&mut self.webhooks, "webhooks", (index, origin), |origin| WebhookSettings {
            origin,
            values: SettingGroup::new(),
        })
    }
}

impl WebhookSettings {
    /// Writes a key of this webhook, which messages call `place`: `apps[0].webhooks[0]`.
    pub(super) fn set_key(
        &mut self,
        place: &str,
        name: &str,
        setting: Setting,
    ) -> Result<(), Error> {
        write_key(&mut self.values, WEBHOOK, &mut Webhook::default(), (place, name), setting)
    }
}

/// The item of `what` at `index`, begun at `origin` if it is the next one.
/// Variables come with numbers, and may leave one out.
/// # Errors
/// There is a gap before `index`.
fn item_at<'a, T>(
    items: &'a mut Vec<T>,
    what: &str,
    (index, origin): (usize, &SettingOrigin),
    begin: impl FnOnce(SettingOrigin) -> T,
) -> Result<&'a mut T, Error> {
    // Never more than one ahead: a slip such as `APPS__100__ID` would otherwise make a hundred
    // apps.
    if index == items.len() {
        items.push(begin(origin.clone()));
    }
    let count = items.len();
    items.get_mut(index).ok_or_else(|| {
        let gap = format!("there is no {what}[{count}] before {what}[{index}]");
        Error::at_setting(origin, what, gap)
    })
}

/// `name` below `place`, as messages call it.
/// `apps[0].webhooks[1].url`, as the variables and the file have it.
pub(super) fn key_below(place: &str, name: &str) -> String {
    if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") }
}

/// Checks a value and keeps it as it was written.
fn write_key<T>(
    group: &mut SettingGroup,
    keys: &'static [SettingKey<T>],
    scratch: &mut T,
    (place, name): (&str, &str),
    setting: Setting,
) -> Result<(), Error> {
    let Some(key) = keys.iter().find(|key| key.name == name) else {
        return Err(unknown_key(keys, place, name, &setting.origin));
    };
    read_key(key, scratch, place, &setting)?;
    group.insert(key.name, setting);
    Ok(())
}

/// The error of a name that is no key, with the nearest that is one.
pub(super) fn unknown_key<T>(
    keys: &[SettingKey<T>],
    place: &str,
    name: &str,
    origin: &SettingOrigin,
) -> Error {
    let near = suggestion(name, keys.iter().map(|key| key.name));
    Error::at_setting(origin, &key_below(place, name), format!("unknown key{near}"))
}

/// Reads one setting into its place, and says where it was written if that fails.
///
/// # Errors
/// The value is none that the key takes. The error says what it wants, and what it found unless
/// that may be a secret.
fn read_key<T>(
    key: &SettingKey<T>,
    target: &mut T,
    place: &str,
    setting: &Setting,
) -> Result<(), Error> {
    // A secret is not repeated, not even when it is wrong.
    (key.read)(target, &setting.value).map_err(|wanted| {
        let problem = if key.secret {
            format!("expected {wanted}")
        } else {
            format!("expected {wanted}, found {}", setting.value.without_credentials())
        };
        Error::at_setting(&setting.origin, &key_below(place, key.name), problem)
    })
}

/// Reads every key of a table into `target`: what was written, else the default.
/// # Errors
/// A key without a default was not written.
pub(super) fn fill_keys<T>(
    target: &mut T,
    keys: &[SettingKey<T>],
    group: &SettingGroup,
    (place, begin): (&str, &SettingOrigin),
) -> Result<(), Error> {
    for key in keys {
        match effective_setting(key, group) {
            Some(setting) => read_key(key, target, place, &setting)?,
            None => {
                let problem =
                    format!("{}: missing, and it has no default", key_below(place, key.name));
                return Err(Error::of_file(begin, problem));
            }
        }
    }
    Ok(())
}

/// The setting that applies to a key: the written one, otherwise the default, if there is one.
pub(super) fn effective_setting<T>(key: &SettingKey<T>, group: &SettingGroup) -> Option<Setting> {
    group.get(key.name).cloned().or_else(|| {
        // Defaults stand in the table as TOML, so that they read as in the example file.
        let value = parse_value(key.default?)?;
        Some(Setting { value, origin: SettingOrigin::Default })
    })
}
