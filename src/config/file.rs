//! Settings from a TOML file, with the line of each key. `keys.rs` has the keys and their values.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::{Error, SettingOrigin, suggestion};
use super::keys::{APP, SERVER};
use super::settings::{AppSettings, Setting, Settings, key_below};
use super::value::to_value;

/// Reads the file at `path`, which messages call `name`, over `settings`. Its `[[apps]]`, if it has
/// any, take the place of all apps before.
///
/// # Errors
/// The file cannot be read or is not TOML, has an unknown key, or a value that its key does not
/// take. Each names the line.
pub(super) fn apply_file(settings: &mut Settings, path: &Path, name: &str) -> Result<(), Error> {
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json")) {
        let problem = "--config reads TOML; --soketi-config reads Soketi's JSON";
        return Err(Error::of_file(name, problem));
    }
    let text = std::fs::read_to_string(path).map_err(|error| Error::unreadable(name, &error))?;
    apply_text(settings, name, &text)
}

/// The same of a text.
pub(super) fn apply_text(settings: &mut Settings, name: &str, text: &str) -> Result<(), Error> {
    let source = TomlSource { name: name.into(), text };
    for (key, value) in source.parse()?.get_ref() {
        match key.get_ref().as_ref() {
            "apps" => {
                settings.apps = source.read_apps(value)?;
                // As if there were none, an app would be made up.
                if settings.apps.is_empty() {
                    let origin = source.origin_at(key.span().start);
                    return Err(Error::at_setting(&origin, "apps", "expected one app or more"));
                }
            }
            _ => source.read_server_key(settings, "", key, value)?,
        }
    }
    Ok(())
}

/// The apps of a text that holds nothing else.
/// The file of `apps_file.path`, where a setting of the server would seem to be set and could not
/// be changed by a reload as the apps are.
pub(super) fn parse_apps(name: &str, text: &str) -> Result<Vec<AppSettings>, Error> {
    let source = TomlSource { name: name.into(), text };
    let mut apps = Vec::new();
    for (key, value) in source.parse()?.get_ref() {
        match key.get_ref().as_ref() {
            "apps" => apps = source.read_apps(value)?,
            other => {
                let origin = source.origin_at(key.span().start);
                return Err(Error::at_setting(
                    &origin,
                    other,
                    "expected nothing but [[apps]] in this file",
                ));
            }
        }
    }
    Ok(apps)
}

/// A text with the name that its origins carry.
struct TomlSource<'a> {
    /// The file's name, for origins and errors.
    name: Arc<str>,
    text: &'a str,
}

/// The key has the place, not the value: a value may begin on a later line.
type TomlKey<'a> = Spanned<DeString<'a>>;

impl<'a> TomlSource<'a> {
    /// Parses the file as TOML. Each value keeps its place, so that errors name the line.
    ///
    /// # Errors
    /// The file is not TOML. Only the message and the place are reported, since the line itself may contain a
    /// secret.
    fn parse(&self) -> Result<Spanned<DeTable<'a>>, Error> {
        DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            // The message alone: the error's own text quotes the line, which may hold a secret.
            let problem = error.message().lines().collect::<Vec<_>>().join(", ");
            Error::of_file(self.origin_at(at), problem)
        })
    }

    /// `at` is a byte of the text; its line is counted anew each time, which a start can afford.
    fn origin_at(&self, at: usize) -> SettingOrigin {
        let before = self.text.as_bytes().iter().take(at);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        SettingOrigin::File { path: self.name.clone(), line }
    }

    /// A value and its line.
    fn read_setting(&self, key: &TomlKey<'_>, value: &Spanned<DeValue<'_>>) -> Setting {
        Setting { value: to_value(value.get_ref()), origin: self.origin_at(key.span().start) }
    }

    /// A key outside `[[apps]]`: one of `SERVER`, or a table on the way to some of them.
    fn read_server_key(
        &self,
        settings: &mut Settings,
        place: &str,
        key: &TomlKey<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), Error> {
        let name = key_below(place, key.get_ref());
        let inside = format!("{name}.");
        if !SERVER.iter().any(|key| key.name.starts_with(&inside)) {
            if place.is_empty() {
                let problem = format!("unknown section{}", section_near(&name));
                return Err(Error::at_setting(&self.origin_at(key.span().start), &name, problem));
            }
            return settings.set_key(&name, self.read_setting(key, value));
        }
        let DeValue::Table(table) = value.get_ref() else {
            let problem = format!("expected a table, found {}", to_value(value.get_ref()));
            return Err(Error::at_setting(&self.origin_at(key.span().start), &name, problem));
        };
        for (key, value) in table {
            self.read_server_key(settings, &name, key, value)?;
        }
        Ok(())
    }

    /// Each `[[apps]]` with its webhooks, in the order of the file.
    fn read_apps(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<AppSettings>, Error> {
        let mut apps = Vec::new();
        for (index, (origin, table)) in self.array_of_tables("apps", value)?.into_iter().enumerate()
        {
            let place = format!("apps[{index}]");
            let mut app = AppSettings::new(origin);
            for (key, value) in table {
                match key.get_ref().as_ref() {
                    "webhooks" => self.read_webhooks(&mut app, &place, value)?,
                    name => self.read_app_key(&mut app, &place, name, (key, value))?,
                }
            }
            apps.push(app);
        }
        Ok(apps)
    }

    /// A key of an app, or a table of some of them.
    fn read_app_key(
        &self,
        app: &mut AppSettings,
        place: &str,
        name: &str,
        (key, value): (&TomlKey<'_>, &Spanned<DeValue<'_>>),
    ) -> Result<(), Error> {
        let inside = format!("{name}.");
        if !APP.iter().any(|key| key.name.starts_with(&inside)) {
            return app.set_key(place, name, self.read_setting(key, value));
        }
        let DeValue::Table(table) = value.get_ref() else {
            let problem = format!("expected a table, found {}", to_value(value.get_ref()));
            let name = key_below(place, name);
            return Err(Error::at_setting(&self.origin_at(key.span().start), &name, problem));
        };
        for (key, value) in table {
            let name = key_below(name, key.get_ref());
            app.set_key(place, &name, self.read_setting(key, value))?;
        }
        Ok(())
    }

    /// The `[[apps.webhooks]]` below one app.
    fn read_webhooks(
        &self,
        app: &mut AppSettings,
        place: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), Error> {
        let name = key_below(place, "webhooks");
        for (index, (origin, table)) in self.array_of_tables(&name, value)?.into_iter().enumerate()
        {
            let webhook = app.webhook_at(index, &origin)?;
            for (key, value) in table {
                let place = format!("{name}[{index}]");
                webhook.set_key(&place, key.get_ref(), self.read_setting(key, value))?;
            }
        }
        Ok(())
    }

    /// The items of an array of tables, with where each begins.
    fn array_of_tables<'t, 'd>(
        &self,
        name: &str,
        value: &'t Spanned<DeValue<'d>>,
    ) -> Result<Vec<(SettingOrigin, &'t DeTable<'d>)>, Error> {
        let wrong = |at: usize, found: &DeValue<'_>| {
            // Messages say what stands in the file: `[[apps.webhooks]]`, without the number of the
            // app.
            let table = name.split('[').next().unwrap_or(name);
            let section = if table == name { name.to_owned() } else { "apps.webhooks".to_owned() };
            let problem = format!("expected tables, each under [[{section}]], found ");
            Error::at_setting(&self.origin_at(at), name, problem + found.type_str())
        };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(wrong(value.span().start, value.get_ref()));
        };
        items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::Table(table) => Ok((self.origin_at(item.span().start), table)),
                other => Err(wrong(item.span().start, other)),
            })
            .collect()
    }
}

/// A suggestion for an unknown name at the top of a file: a key without its section, or a misspelt section.
fn section_near(name: &str) -> String {
    let inside = format!(".{name}");
    let lost = SERVER.iter().map(|key| key.name).find(|key| key.ends_with(&inside));
    let sections = SERVER.iter().filter_map(|key| key.name.split('.').next());
    match lost {
        Some(key) => format!("; did you mean {key}?"),
        None => suggestion(name, sections.chain(["apps"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::parse_value;

    fn error(text: &str) -> String {
        apply_text(&mut Settings::default(), "f.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_key_is_named_with_its_place() {
        for (text, line) in [
            ("[server]\nprot = 1", "f.toml:2: server.prot: unknown key; did you mean server.port?"),
            ("port = 1", "f.toml:1: port: unknown section; did you mean server.port?"),
            ("\n[sever]\nport = 1", "f.toml:2: sever: unknown section; did you mean server?"),
            ("server = 1", "f.toml:1: server: expected a table, found 1"),
            (
                "[server]\nport = \"x\"",
                "f.toml:2: server.port: expected a whole number from 0 to 65535, found \"x\"",
            ),
            (
                "[server]\n\ntls = { cert = 1 }",
                "f.toml:3: server.tls.cert: expected text in quotes, found 1",
            ),
            (
                "[[apps]]\nid = \"1\"\nsceret = \"s3cr3t\"",
                "f.toml:3: apps[0].sceret: unknown key; did you mean secret?",
            ),
            (
                "[[apps]]\nid = \"1\"\n[[apps]]\nsecret = 4711",
                "f.toml:4: apps[1].secret: expected text in quotes, not empty",
            ),
            (
                "[[apps]]\n[[apps.webhooks]]\nurl = \"ftp://x\"",
                "f.toml:3: apps[0].webhooks[0].url: expected an http:// or https:// URL, found \"ftp://x\"",
            ),
            (
                "[server]\nhost = \"ftp://u:s3cr3t@x\"",
                "f.toml:2: server.host: expected an address or a host's name, without a port, found \"ftp://…@x\"",
            ),
            ("apps = []", "f.toml:1: apps: expected one app or more"),
            (
                "[cluster]\nredis = []",
                "f.toml:2: cluster.redis: expected a redis://, rediss:// or redis+sentinel:// URL \
                 without #, or a list of a cluster's nodes",
            ),
            (
                "[apps]\nid = \"1\"",
                "f.toml:1: apps: expected tables, each under [[apps]], found table",
            ),
        ] {
            assert_eq!(error(text), line, "{text}");
        }
    }

    #[test]
    fn a_broken_file_is_named_with_its_line_and_nothing_of_its_text() {
        let line = error("[server]\nport = 1\n[[apps]]\nsecret = \"s3cr3t");
        assert!(line.starts_with("f.toml:4: "), "{line}");
        assert!(!line.contains("s3cr3t"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn values_keep_their_types() {
        let text = "[1, 0x10, 1_000, true, 'a', 1.5, {a = 'b'}]";
        assert_eq!(
            parse_value(text).map(|value| value.to_string()).as_deref(),
            Some(r#"[1, 16, 1000, true, "a", a number with a point, { "a" = "b" }]"#)
        );
    }
}
