//! The output of `fanfare config show`, `fanfare config check` and `fanfare keys`. No secret is shown except the new
//! credentials of `keys`.

use std::fmt::Write;

use serde_json::{Map, Value as Json};

use super::error::SettingOrigin;
use super::keys::{APP, SERVER, SettingKey, WEBHOOK};
use super::settings::{Setting, SettingGroup, Settings, effective_setting};
use super::value::{Value, parse_value, texts};
use super::{ApiAddress, Config, GeneratedApp, LoadedSettings};
use crate::app::{App, Webhook};

/// Of one length, so that it says nothing of the secret's.
const MASK: &str = "********";

impl LoadedSettings {
    /// One line that says what would be served, after those of the warnings. For example `The
    /// settings are right: one app, on 127.0.0.1:8080`.
    pub fn summary_line(&self) -> String {
        let Config { server, apps, .. } = &self.config;
        let mut text = String::new();
        for warning in &self.warnings {
            _ = writeln!(text, "warning: {warning}");
        }
        let count = match apps.len() {
            1 if self.config.made_app.is_some() => "one app made for the run".to_owned(),
            0 if self.config.sql.is_some() => "the apps of a database".to_owned(),
            1 => "one app".to_owned(),
            count => format!("{count} apps"),
        };
        let path = &server.path;
        let place = match &server.unix_socket {
            Some(socket) => format!("{}, below {path}/", socket.path.display()),
            None => format!("{}{path}", address_of(&server.host, server.port)),
        };
        let api = match &server.api {
            Some(ApiAddress { unix_socket: Some(socket), .. }) => {
                format!(", the API on {}", socket.path.display())
            }
            Some(api) => format!(", the API on {}", address_of(&api.host, api.port)),
            None => String::new(),
        };
        _ = writeln!(text, "The settings are right: {count}, on {place}{api}");
        text
    }
}

/// With the brackets that an IPv6 address has in front of a port.
fn address_of(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Settings {
    /// Every setting that is in force, as TOML, each with where it comes from.
    pub fn show_all(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in SERVER {
            let (table, name) = key.name.split_once('.').unwrap_or(("", key.name));
            // Keys stand in the order of the file, so that each table has its heading once.
            if table != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                _ = writeln!(text, "{gap}[{table}]");
                section = table;
            }
            show_line(&mut text, key, name, &self.server, &mut Config::default());
        }
        for app in &self.apps {
            text.push('\n');
            annotate_origin(&mut text, "[[apps]]", &app.origin);
            show_table(&mut text, APP, &app.values, &mut App::new("", "", ""));
            for webhook in &app.webhooks {
                text.push('\n');
                annotate_origin(&mut text, "[[apps.webhooks]]", &webhook.origin);
                show_table(&mut text, WEBHOOK, &webhook.values, &mut Webhook::default());
            }
        }
        text
    }
}

impl Settings {
    /// The same for programs: an object as the file's tables are, with `sources` beside them, which has where
    /// each comes from by its whole name.
    pub fn show_json(&self) -> Json {
        let (mut all, mut sources) = (Map::new(), Map::new());
        for key in SERVER {
            let shown = shown(key, &self.server, &mut Config::default());
            let Some((value, origin)) = shown else { continue };
            insert(&mut all, key.name, value.json());
            sources.insert(key.name.to_owned(), origin.to_string().into());
        }
        let mut apps = Vec::new();
        for (index, app) in self.apps.iter().enumerate() {
            let place = format!("apps[{index}]");
            let blank = &mut App::new("", "", "");
            let mut shown = group_json(APP, &app.values, blank, (&place, &mut sources));
            let mut webhooks = Vec::new();
            for (index, webhook) in app.webhooks.iter().enumerate() {
                let place = format!("{place}.webhooks[{index}]");
                let blank = &mut Webhook::default();
                webhooks.push(group_json(WEBHOOK, &webhook.values, blank, (&place, &mut sources)));
            }
            insert(&mut shown, "webhooks", webhooks.into_iter().map(Json::Object).collect());
            apps.push(Json::Object(shown));
        }
        all.insert("apps".to_owned(), Json::Array(apps));
        all.insert("sources".to_owned(), Json::Object(sources));
        Json::Object(all)
    }
}

/// One app's or webhook's settings; where each comes from goes into `sources` by its whole name.
fn group_json<T>(
    keys: &[SettingKey<T>],
    group: &SettingGroup,
    scratch: &mut T,
    (place, sources): (&str, &mut Map<String, Json>),
) -> Map<String, Json> {
    let mut all = Map::new();
    for key in keys {
        let Some((value, origin)) = shown(key, group, scratch) else { continue };
        insert(&mut all, key.name, value.json());
        sources.insert(format!("{place}.{}", key.name), origin.to_string().into());
    }
    all
}

/// Puts a value where its dotted name says.
fn insert(all: &mut Map<String, Json>, name: &str, value: Json) {
    match name.split_once('.') {
        None => drop(all.insert(name.to_owned(), value)),
        Some((table, rest)) => {
            let table = all.entry(table).or_insert_with(|| Json::Object(Map::new()));
            if let Some(table) = table.as_object_mut() {
                insert(table, rest, value);
            }
        }
    }
}

/// `scratch` is something to read values into; what it holds afterwards is of no use.
fn show_table<T>(text: &mut String, keys: &[SettingKey<T>], group: &SettingGroup, scratch: &mut T) {
    for key in keys {
        show_line(text, key, key.name, group, scratch);
    }
}

/// Nothing for a setting that was not given and has no default.
fn show_line<T>(
    text: &mut String,
    key: &SettingKey<T>,
    name: &str,
    group: &SettingGroup,
    scratch: &mut T,
) {
    let Some((value, origin)) = shown(key, group, scratch) else { return };
    annotate_origin(text, &format!("{name} = {value}"), &origin);
}

/// The shown value of a setting, and its origin.
fn shown<T>(
    key: &SettingKey<T>,
    group: &SettingGroup,
    scratch: &mut T,
) -> Option<(Value, SettingOrigin)> {
    let Setting { value, origin } = effective_setting(key, group)?;
    let value = typed_value(key, value, scratch);
    let empty = matches!(&value, Value::Text(text) if text.is_empty());
    // A secret that is empty says that there is none; that may be shown.
    let value = match value {
        value if key.secret && origin != SettingOrigin::Default && !empty => match key.name {
            "cluster.redis" | "sql.url" => mask_urls(&value),
            // The path of a key is no secret; the key itself is.
            "cluster.tls.key" if !is_pem(&value) => value,
            _ => Value::Text(MASK.to_owned()),
        },
        value => value.without_credentials(),
    };
    Some((value, origin))
}

/// Whether a value is the PEM text of a key, and not the path of a file.
fn is_pem(value: &Value) -> bool {
    matches!(value, Value::Text(text) | Value::Raw(text) if text.contains("-----BEGIN"))
}

/// URLs without what may be a secret in them: all before the host, and the parameters.
fn mask_urls(value: &Value) -> Value {
    match value {
        Value::Text(url) | Value::Raw(url) => Value::Text(mask_url(url)),
        Value::List(urls) => Value::List(urls.iter().map(mask_urls).collect()),
        _ => Value::Text(MASK.to_owned()),
    }
}

/// The host stays: it is what people look for who ask why a server does not reach its Redis.
fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return MASK.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // Where a password was not encoded, its end may be anywhere.
    if path.contains('@') {
        return MASK.to_owned();
    }
    let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
    let query = if query.is_empty() { "" } else { "?…" };
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASK}@{host}{path}{query}"),
        None => format!("{scheme}://{authority}{path}{query}"),
    }
}

/// As a comment behind the setting, so that lines can be copied into a settings file.
fn annotate_origin(text: &mut String, line: &str, origin: &SettingOrigin) {
    _ = writeln!(text, "{line:<40} # {origin}");
}

/// Gives a text without a type the type that its key accepts. `8080` from the environment is shown as a number and
/// `["a"]` as a list, since a file would have them so.
fn typed_value<T>(key: &SettingKey<T>, value: Value, scratch: &mut T) -> Value {
    let Value::Raw(raw) = &value else { return value };
    let list = texts(&value).ok().map(|items| items.into_iter().map(Value::Text).collect());
    let candidates = [Some(Value::Text(raw.clone())), parse_value(raw), list.map(Value::List)];
    let fits = |candidate: &Value| (key.read)(scratch, candidate).is_ok();
    candidates.into_iter().flatten().find(fits).unwrap_or(value)
}

impl GeneratedApp {
    /// The credentials for a file of Fanfare's and for a Laravel app's environment.
    pub fn credential_lines(&self) -> String {
        let Self { id, key, secret } = self;
        format!(
            "# For Fanfare's configuration file:\n\
             [[apps]]\n\
             id = \"{id}\"\n\
             key = \"{key}\"\n\
             secret = \"{secret}\"\n\
             \n\
             # For the .env file of a Laravel app:\n\
             REVERB_APP_ID={id}\n\
             REVERB_APP_KEY={key}\n\
             REVERB_APP_SECRET={secret}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_addresses_only_the_place_is_shown() {
        for (url, shown) in [
            ("redis://10.0.0.7:6379/2", "redis://10.0.0.7:6379/2"),
            ("rediss://u:s3cr3t@host", "rediss://********@host"),
            ("redis://:s3@cr3t@host/1", "redis://********@host/1"),
            ("redis://:s3/cr3t@host", MASK),
            ("redis://:s3?cr3t@host", MASK),
            ("redis://:s3#cr3t@host", MASK),
            ("redis+sentinel://a,b/m?sentinel_password=s3cr3t", "redis+sentinel://a,b/m?…"),
            ("redis+sentinel://a/m?sentinel_password=s3@cr3t", MASK),
            ("mysql://u:s3cr3t@db/main?ssl-mode=REQUIRED", "mysql://********@db/main?…"),
            ("s3cr3t", MASK),
        ] {
            assert_eq!(mask_url(url), shown, "{url}");
        }
        let list =
            Value::List(["redis://a", "redis://:s3cr3t@b"].map(|u| Value::Text(u.into())).to_vec());
        assert_eq!(mask_urls(&list).to_string(), r#"["redis://a", "redis://********@b"]"#);
    }

    #[test]
    fn texts_are_shown_as_what_they_are_taken_for() {
        let mut settings = Settings::default();
        for (name, written, shown) in [
            ("server.port", "9000", "port = 9000 "),
            ("server.host", "::1", "host = \"::1\" "),
            (
                "server.cors_origins",
                "https://a,https://b",
                "cors_origins = [\"https://a\", \"https://b\"] ",
            ),
            ("metrics.enabled", "false", "enabled = false "),
            ("cluster.prefix", "1", "prefix = \"1\" "),
        ] {
            let value = Value::Raw(written.to_owned());
            let origin = SettingOrigin::Variable("V".to_owned());
            settings.set_key(name, Setting { value, origin }).unwrap();
            assert!(settings.show_all().contains(shown), "{}", settings.show_all());
        }
    }
}
