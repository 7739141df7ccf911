//! The file with more apps: TOML with `[[apps]]` or, if its name ends in `.json`, JSON with the same keys, `{"apps":
//! [{"id": …}]}` or only the list. It contains only apps, since it is reloaded while the server runs.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use super::error::{Error, SettingOrigin};
use super::file;
use super::settings::{AppSettings, Setting};
use super::value::Value;

/// The apps of the file at `path`, which messages call `name`.
///
/// # Errors
/// The file cannot be read, holds anything but apps, or has a value that its key does not take. A
/// reload then keeps the apps that it has.
pub(super) fn read_apps(path: &Path, name: &str) -> Result<Vec<AppSettings>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::unreadable(name, &error))?;
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json")) {
        parse_json(name, &text)
    } else {
        file::parse_apps(name, &text)
    }
}

/// The origin of a value is its path in the JSON, as `apps[0].id`: the parser keeps no lines.
fn parse_json(name: &str, text: &str) -> Result<Vec<AppSettings>, Error> {
    let path: Arc<str> = name.into();
    let origin = |key: &str| SettingOrigin::Json { path: path.clone(), key: key.to_owned() };
    let json: Json = serde_json::from_str(text).map_err(|error| {
        // Not the error's own text, which may quote a secret.
        Error::of_file(format!("{name}:{}", error.line()), "this is not JSON")
    })?;
    let list = match &json {
        Json::Object(entries) => {
            if let Some(other) = entries.keys().find(|key| *key != "apps") {
                return Err(Error::at_setting(
                    &origin(other),
                    other,
                    "expected nothing but \"apps\"",
                ));
            }
            entries.get("apps").unwrap_or(&Json::Null)
        }
        other => other,
    };
    let mut apps = Vec::new();
    for (index, entries) in app_objects(list, "apps", &origin)?.into_iter().enumerate() {
        let place = format!("apps[{index}]");
        let mut app = AppSettings::new(origin(&place));
        for (key, value) in entries {
            let inside = format!("{place}.{key}");
            if key != "webhooks" {
                app.set_key(
                    &place,
                    key,
                    Setting { value: to_value(value), origin: origin(&inside) },
                )?;
                continue;
            }
            for (index, entries) in app_objects(value, &inside, &origin)?.into_iter().enumerate() {
                let place = format!("{inside}[{index}]");
                let webhook = app.webhook_at(index, &origin(&place))?;
                for (key, value) in entries {
                    let origin = origin(&format!("{place}.{key}"));
                    webhook.set_key(&place, key, Setting { value: to_value(value), origin })?;
                }
            }
        }
        apps.push(app);
    }
    Ok(apps)
}

/// A list whose items are all objects, which both apps and webhooks are.
fn app_objects<'j>(
    json: &'j Json,
    key: &str,
    origin: &dyn Fn(&str) -> SettingOrigin,
) -> Result<Vec<&'j serde_json::Map<String, Json>>, Error> {
    let wrong = || Error::at_setting(&origin(key), key, "expected a list of objects");
    let items = json.as_array().ok_or_else(wrong)?;
    items.iter().map(|item| item.as_object().ok_or_else(wrong)).collect()
}

/// A value of a type that no key accepts becomes a [`Value::Other`] with the type's name, so that the key's error
/// can name it.
fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Other("null"),
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => {
            number.as_i64().map_or(Value::Other("a number out of reach"), Value::Integer)
        }
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(to_value).collect()),
        Json::Object(entries) => Value::Table(
            entries.iter().map(|(name, value)| (name.clone(), to_value(value))).collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse_json("a.json", text).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_is_wrong_is_named_without_secrets() {
        for (text, line) in [
            ("{\"apps\": [{\"secret\": \"s3cr3t\"", "a.json:1: this is not JSON"),
            ("{}", "a.json: apps: expected a list of objects"),
            ("[1]", "a.json: apps: expected a list of objects"),
            (r#"{"app": []}"#, "a.json: app: expected nothing but \"apps\""),
            (
                r#"[{"sceret": "s3cr3t"}]"#,
                "a.json: apps[0].sceret: unknown key; did you mean secret?",
            ),
            (r#"[{"secret": 4711}]"#, "a.json: apps[0].secret: expected text in quotes, not empty"),
            (
                r#"[{"webhooks": [{"url": "ftp://x"}]}]"#,
                "a.json: apps[0].webhooks[0].url: expected an http:// or https:// URL, found \"ftp://x\"",
            ),
        ] {
            assert_eq!(error(text), line, "{text}");
        }
        assert_eq!(error(r#"[{"id": "1", "webhooks": [{"url": "http://x/"}]}]"#), "");
    }
}
