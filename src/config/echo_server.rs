//! Settings of a laravel-echo-server: its JSON file, and the variables `LARAVEL_ECHO_SERVER_*` over it. That server has
//! no secret, so the app comes from elsewhere, usually a Laravel environment; this file gives addresses and the
//! backend. The variables are read only if the file is named, since many environments still have them for a server that
//! is gone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use super::environment::{FoundVariables, Variables};
use super::error::{Error, SettingOrigin, one_line, suggestion};
use super::json_file::parse_settings;
use super::settings::{Setting, Settings};
use super::value::Value;

/// The prefix of its variables.
const PREFIX: &str = "LARAVEL_ECHO_SERVER_";

/// Its variables by the rest of their names, with the key of the file that each stands for.
const VARIABLES: [(&str, &str); 12] = [
    ("AUTH_HOST", "authHost"),
    ("DEBUG", "devMode"),
    ("HOST", "host"),
    ("PORT", "port"),
    ("PROTO", "protocol"),
    ("REDIS_HOST", "databaseConfig"),
    ("REDIS_PASSWORD", "databaseConfig"),
    ("REDIS_PORT", "databaseConfig"),
    ("SSL_CERT", "sslCertPath"),
    ("SSL_CHAIN", "sslCertChainPath"),
    ("SSL_KEY", "sslKeyPath"),
    ("SSL_PASS", "sslPassphrase"),
];

/// The keys of its file that have a meaning here.
const KEYS: [&str; 12] = [
    "apiOriginAllow",
    "authEndpoint",
    "authHost",
    "devMode",
    "host",
    "port",
    "protocol",
    "sslCertChainPath",
    "sslCertPath",
    "sslKeyPath",
    "sslPassphrase",
    "subscribers",
];

/// Those that have none.
const IGNORED: [&str; 6] =
    ["clients", "database", "databaseConfig", "headers", "secureOptions", "socketio"];

/// The flag without which nothing is read.
const FLAG: &str = "--echo-server-config";

/// Said where its Redis was how events came in, as it is unless the file says otherwise.
const NO_REDIS: &str = "what Laravel's redis broadcaster publishes is not read: the app needs BROADCAST_CONNECTION=reverb \
                        or pusher (docs/migrating-from-laravel-echo-server.md)";

/// The given settings, by the keys of the file.
pub(super) struct EchoServer {
    /// Settings that were not read yet; the rest is reported.
    given: BTreeMap<String, GivenSetting>,
    warnings: Vec<String>,
}

/// One value and where it was written, for messages.
struct GivenSetting {
    /// The value as JSON, also where a variable gave it as text.
    value: Json,
    /// Where it was written.
    origin: SettingOrigin,
}

impl EchoServer {
    /// Reads the file, if one is named, and over it the variables of the process and of an environment file.
    pub(super) fn read_sources(
        file: Option<&Path>,
        folder: &Path,
        found: &FoundVariables,
        variables: &Variables,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Self>, Error> {
        let Some(path) = file else {
            let names: Vec<_> = variables.with_prefix(PREFIX).map(|(name, _)| name).collect();
            if !names.is_empty() {
                let names = names.join(", ");
                warnings.push(format!("{names} has no effect without {FLAG}"));
            }
            return Ok(None);
        };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(folder.join(path))
            .map_err(|error| Error::unreadable(&name, &error))?;
        // The file first, the environment file over it, the process's own variables last.
        let mut server = Self { given: BTreeMap::new(), warnings: Vec::new() };
        server.read_file(&text, &name)?;
        for (name, (value, origin)) in found.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            server.read_variable((name, value), origin, variables);
        }
        for (name, value) in variables.with_prefix(PREFIX) {
            let origin = SettingOrigin::Variable(name.to_owned());
            server.read_variable((name, value?), &origin, variables);
        }
        Ok(Some(server))
    }

    /// A key that it never had is warned of, not refused: that server started with it all the same.
    fn read_file(&mut self, text: &str, name: &str) -> Result<(), Error> {
        let path: Arc<str> = name.into();
        for (key, value) in parse_settings(text, name)? {
            let origin = SettingOrigin::Json { path: path.clone(), key: key.clone() };
            if !KEYS.contains(&&*key) && !IGNORED.contains(&&*key) {
                let near = suggestion(&key, KEYS);
                let key = one_line(&key);
                self.warnings
                    .push(format!("{name}: {key} is no setting of laravel-echo-server's{near}"));
                continue;
            }
            self.given.insert(key, GivenSetting { value, origin });
        }
        Ok(())
    }

    /// One of its variables, which counts over the file as it did there. An empty one sets nothing.
    fn read_variable(
        &mut self,
        (name, value): (&str, &str),
        origin: &SettingOrigin,
        variables: &Variables,
    ) {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        let Some((_, key)) = VARIABLES.iter().find(|(name, _)| *name == short) else {
            let near = suggestion(short, VARIABLES.iter().map(|(name, _)| *name));
            let near = near.replace("mean ", &format!("mean {PREFIX}"));
            self.warnings.push(format!("{name} is no variable of laravel-echo-server's{near}"));
            return;
        };
        // The first `${NAME}` of a value took the place of all of it.
        let named = value.split_once("${").and_then(|(_, rest)| rest.split_once('}'));
        let value = match named {
            // An undefined variable gives an empty value, which sets nothing below.
            Some((named, _)) => variables.value(named).unwrap_or_default(),
            None => value,
        };
        if !value.is_empty() {
            let value = Json::String(value.to_owned());
            self.given.insert((*key).to_owned(), GivenSetting { value, origin: origin.clone() });
        }
    }

    /// Takes a key out as a text, unless it says nothing. Numbers and truths are read as texts too.
    fn take_text(&mut self, key: &str) -> Result<Option<(String, SettingOrigin)>, Error> {
        let Some(GivenSetting { value, origin }) = self.given.remove(key) else { return Ok(None) };
        let text = match value {
            Json::Null => return Ok(None),
            Json::String(text) => text,
            Json::Number(number) => number.to_string(),
            Json::Bool(truth) => truth.to_string(),
            Json::Array(_) | Json::Object(_) => {
                return Err(Error::at_setting(&origin, key, "expected text"));
            }
        };
        Ok(Some((text, origin)).filter(|(text, _)| !text.is_empty()))
    }

    /// Writes what is the server's over `settings`.
    /// Where it had a default the default is written too, so that clients find the server where it
    /// was: every address, port 6001.
    pub(super) fn apply_server(&mut self, settings: &mut Settings) -> Result<(), Error> {
        let text = |text: String, origin| Setting { value: Value::Text(text), origin };
        let implied = |text: &str| Setting {
            value: Value::Text(text.to_owned()),
            origin: SettingOrigin::Implied(FLAG),
        };
        let host = self.take_text("host")?;
        settings.set_key(
            "server.host",
            match &host {
                Some((host, origin)) => text(host.clone(), origin.clone()),
                // Fanfare's own default is this machine alone, which clients elsewhere would not
                // reach.
                None => implied("0.0.0.0"),
            },
        )?;
        // Laravel-echo-server asked its own host unless another was set.
        if let Some((host, origin)) = host
            && !self.given.contains_key("authHost")
        {
            let value = Json::String(format!("http://{host}"));
            self.given.insert("authHost".to_owned(), GivenSetting { value, origin });
        }
        let (port, origin) = self
            .take_text("port")?
            .unwrap_or_else(|| ("6001".to_owned(), SettingOrigin::Implied(FLAG)));
        // It took the digits at the end.
        let digits = port.trim_end_matches('/');
        let digits = digits.get(digits.trim_end_matches(|c: char| c.is_ascii_digit()).len()..);
        let value = Value::Raw(digits.unwrap_or_default().to_owned());
        settings.set_key("server.port", Setting { value, origin })?;
        if let Some((debug, origin)) = self.take_text("devMode")?
            && debug == "true"
        {
            settings.set_key("log.level", text("debug".to_owned(), origin))?;
        }
        self.apply_tls(settings)?;
        self.apply_origins(settings)
    }

    /// Applies the certificates, which count only with `protocol` `https`, as in laravel-echo-server. A passphrase
    /// is refused, since ignoring it would break the key.
    fn apply_tls(&mut self, settings: &mut Settings) -> Result<(), Error> {
        let is_https = self.take_text("protocol")?.is_some_and(|(text, _)| text == "https");
        let passphrase = self.take_text("sslPassphrase")?;
        if let Some((_, origin)) = passphrase.filter(|_| is_https) {
            let problem = "keys with a passphrase cannot be read: take it off with openssl pkey";
            return Err(Error::at_setting(&origin, "sslPassphrase", problem));
        }
        if let Some((_, origin)) = self.take_text("sslCertChainPath")?.filter(|_| is_https) {
            self.warnings.push(format!(
                "{origin}: the certificates of the chain belong behind the server's own in its file"
            ));
        }
        for (key, name) in [("sslCertPath", "server.tls.cert"), ("sslKeyPath", "server.tls.key")] {
            match (self.take_text(key)?, is_https) {
                (Some((path, origin)), true) => {
                    settings.set_key(name, Setting { value: Value::Text(path), origin })?;
                }
                (None, true) => {
                    let origin = SettingOrigin::Implied(FLAG);
                    return Err(Error::at_setting(&origin, key, "missing, with protocol https"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Which pages may read the API's answers: `apiOriginAllow` with `allowCors` and one
    /// `allowOrigin`. Its lists of methods and headers need no counterpart.
    fn apply_origins(&mut self, settings: &mut Settings) -> Result<(), Error> {
        let Some(GivenSetting { value, origin }) = self.given.remove("apiOriginAllow") else {
            return Ok(());
        };
        // No `allowOrigin` names no page, so nothing is set below.
        let page = value.get("allowOrigin").and_then(Json::as_str).unwrap_or_default();
        if value.get("allowCors") != Some(&Json::Bool(true)) || page.is_empty() {
            return Ok(());
        }
        let value = Value::List(vec![Value::Text(page.to_owned())]);
        settings.set_key("server.cors_origins", Setting { value, origin })
    }

    /// Lets clients of Socket.IO into the only app, whose backend is asked as before, once all sources are read.
    ///
    /// # Errors
    /// There is no app to let them into, or `authHost` is no URL.
    pub(super) fn apply_app(mut self, settings: &mut Settings) -> Result<(), Error> {
        let hosts = self.given.remove("authHost");
        let hosts = hosts.unwrap_or_else(|| GivenSetting {
            value: Json::String("http://localhost".to_owned()),
            origin: SettingOrigin::Implied(FLAG),
        });
        let (host, others) = match &hosts.value {
            Json::Array(all) => (all.first().and_then(Json::as_str), all.len() > 1),
            one => (one.as_str(), false),
        };
        let host = host.ok_or_else(|| {
            Error::at_setting(&hosts.origin, "authHost", "expected a URL, or a list of them")
        })?;
        if others {
            self.warnings.push(format!(
                "{}: only the first is asked who may subscribe, whatever page a client is on",
                hosts.origin
            ));
        }
        let endpoint = self.take_text("authEndpoint")?;
        let endpoint = endpoint.map_or_else(|| "/broadcasting/auth".to_owned(), |(text, _)| text);
        let url = Value::Text(format!("{}{endpoint}", host.trim_end_matches('/')));
        match settings.apps.as_mut_slice() {
            [app] => {
                let origin = SettingOrigin::Implied(FLAG);
                let enabled = Setting { value: Value::Bool(true), origin };
                let asked = Setting { value: url, origin: hosts.origin.clone() };
                for (name, setting) in [("socketio.enabled", enabled), ("socketio.auth_url", asked)]
                {
                    // Fanfare's own settings take precedence.
                    if !app.values.contains_key(name) {
                        app.set_key("apps[0]", name, setting)?;
                    }
                }
            }
            [] => {
                let problem = "names no app with a secret, for laravel-echo-server had none: set REVERB_APP_ID, \
                               REVERB_APP_KEY and REVERB_APP_SECRET, as the Laravel app does";
                return Err(Error::of_file(FLAG, problem));
            }
            _ => self.warnings.push(format!(
                "{FLAG}: there are several apps, of which none takes clients of Socket.IO by this: set socketio of each"
            )),
        }
        self.warn_ignored();
        settings.warnings.append(&mut self.warnings);
        Ok(())
    }

    /// Warns once of settings without effect. `null` and empty objects have no effect in laravel-echo-server
    /// either, and are left out.
    fn warn_ignored(&mut self) {
        let subscribers = self.given.remove("subscribers").map(|given| given.value);
        let redis = subscribers.as_ref().and_then(|all| all.get("redis"));
        if redis != Some(&Json::Bool(false)) {
            self.warnings.push(NO_REDIS.to_owned());
        }
        // Its `init` command writes empty objects for options that were not chosen.
        let says = |value: &Json| match value {
            Json::Null => false,
            Json::Object(entries) => !entries.is_empty(),
            Json::Array(items) => !items.is_empty(),
            _ => true,
        };
        let left = self.given.iter().filter(|(_, given)| says(&given.value));
        let names: Vec<&str> = left.map(|(key, _)| key.as_str()).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            self.warnings
                .push(format!("of laravel-echo-server's settings these have no effect: {names}"));
        }
    }
}
