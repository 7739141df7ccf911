//! Settings from variables named `FANFARE_` and the key in capitals, two underscores between levels:
//! `FANFARE_SERVER__PORT`, `FANFARE_APPS__0__SECRET`. A variable that names no key stops the start.

use super::environment::Variables;
use super::error::{Error, SettingOrigin, suggestion};
use super::keys::{APP, SERVER, SettingKey, WEBHOOK};
use super::settings::{Setting, Settings};
use super::value::Value;

/// Of every variable that is a setting, and of no other: `FANFARE_` and anything else is an error.
const PREFIX: &str = "FANFARE_";

/// The setting that a variable sets. Ordered so that apps and webhooks are read by their numbers.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SettingTarget {
    /// A key of the server.
    Server(&'static str),
    /// A key of the app with that number.
    App(usize, &'static str),
    /// A key of an app's webhook.
    Webhook(usize, usize, &'static str),
}

/// Writes the variables over `settings`.
/// Apps and webhooks are sorted by their numbers first: the environment has no order.
/// # Errors
/// A variable with this prefix names no key, or its value cannot be read.
pub(super) fn apply_env(settings: &mut Settings, variables: &Variables) -> Result<(), Error> {
    let mut targets = Vec::new();
    for (name, value) in variables.with_prefix(PREFIX) {
        let origin = SettingOrigin::Variable(name.to_owned());
        // A misspelt variable must not be ignored: the server would run with a default instead.
        let target = setting_target(name).ok_or_else(|| {
            let near = suggestion(name, candidate_names(name).iter().map(String::as_str));
            Error::at_setting(&origin, name, format!("unknown setting{near}"))
        })?;
        let value = value?;
        if ['"', '\'']
            .iter()
            .any(|quote| value.len() > 1 && value.starts_with(*quote) && value.ends_with(*quote))
        {
            // Systemd and shells take quotes off; Compose's lists and `docker run --env-file` do not.
            let problem = "the quotes around the value are part of it: leave them out";
            return Err(Error::at_setting(&origin, name, problem));
        }
        targets.push((target, Setting { value: Value::Raw(value.to_owned()), origin }));
    }
    targets.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (target, setting) in targets {
        let origin = setting.origin.clone();
        match target {
            SettingTarget::Server(name) => settings.set_key(name, setting)?,
            SettingTarget::App(app, name) => {
                settings.app_at(app, &origin)?.set_key(&format!("apps[{app}]"), name, setting)?;
            }
            SettingTarget::Webhook(app, webhook, name) => {
                let place = format!("apps[{app}].webhooks[{webhook}]");
                let app = settings.app_at(app, &origin)?;
                app.webhook_at(webhook, &origin)?.set_key(&place, name, setting)?;
            }
        }
    }
    Ok(())
}

/// `None` for a name that no key has.
fn setting_target(variable: &str) -> Option<SettingTarget> {
    let path = variable.strip_prefix(PREFIX)?;
    let parts: Vec<&str> = path.split("__").collect();
    match *parts.as_slice() {
        ["APPS", app, "WEBHOOKS", webhook, name] => Some(SettingTarget::Webhook(
            plain_number(app)?,
            plain_number(webhook)?,
            key_named(WEBHOOK, name)?,
        )),
        ["APPS", app, .., _] => {
            let name = path.splitn(3, "__").nth(2)?;
            Some(SettingTarget::App(plain_number(app)?, key_named(APP, name)?))
        }
        _ => key_named(SERVER, path).map(SettingTarget::Server),
    }
}

/// A number without leading zeros, so that no two variables set the same.
fn plain_number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}

/// Both ways are tried by making the variable's name of each key, so that there is one rule for names.
fn key_named<T>(keys: &'static [SettingKey<T>], path: &str) -> Option<&'static str> {
    keys.iter().map(|key| key.name).find(|name| to_capitals(name) == path)
}

/// `server.port` becomes `SERVER__PORT`; one underscore stays within a name.
fn to_capitals(name: &str) -> String {
    name.replace('.', "__").to_uppercase()
}

/// Every variable there could be instead of `variable`, with its numbers.
/// With the numbers of `variable`, so that the suggestion can be copied as it is.
fn candidate_names(variable: &str) -> Vec<String> {
    let mut numbers = variable.split("__").filter(|part| plain_number(part).is_some());
    let app = numbers.next().unwrap_or("0");
    let webhook = numbers.next().unwrap_or("0");
    let server = SERVER.iter().map(|key| to_capitals(key.name));
    let apps = APP.iter().map(|key| format!("APPS__{app}__{}", to_capitals(key.name)));
    let webhooks = WEBHOOK
        .iter()
        .map(|key| format!("APPS__{app}__WEBHOOKS__{webhook}__{}", to_capitals(key.name)));
    server.chain(apps).chain(webhooks).map(|name| PREFIX.to_owned() + &name).collect()
}
