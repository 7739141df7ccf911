//! From written settings to the configuration: checks combinations of settings, and fills in what depends on the
//! machine. Single values are checked in `settings.rs` when they are written.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Error, SettingOrigin};
use super::keys::{APP, SERVER, WEBHOOK};
use super::settings::{AppSettings, Setting, Settings, fill_keys, key_below};
use super::soketi::RowReader;
use super::value::{Value, duration};
use super::{
    ApiAddress, ClusterConfig, Config, ConsoleAccess, GeneratedApp, RedisTlsConfig, ServerConfig,
    TlsFiles, TryOut, UnixSocket,
};
use crate::app::{App, Apps, Duplicate, Webhook};

/// The default of `cluster.replay` if an app has `resume`. A client that was away for 20 seconds then gets 200
/// events a second of a channel. The logs are limited by bytes in any case.
const REPLAY_FOR_RESUME: i64 = 4096;

impl Settings {
    /// Adds settings that follow from others: an app made for this run if there is none, and the listen address of
    /// a server whose settings were taken over. They are added as settings with an origin, so that `config show`
    /// lists them.
    pub(super) fn complete_apps(&mut self) -> Result<Option<GeneratedApp>, Error> {
        let none = self.apps.is_empty() && self.apps_file().is_none() && !self.has_table();
        let made = if none { Some(self.make_app()?) } else { None };
        let drop_in = self.apps.iter().find_map(|app| app.drop_in).or(self.drop_in);
        if let Some(drop_in) = drop_in {
            let host = Value::Text("0.0.0.0".to_owned());
            let port = drop_in.port.map(Value::Integer);
            for (name, value) in [("server.host", Some(host)), ("server.port", port)] {
                if let (Some(value), false) = (value, self.server.contains_key(name)) {
                    let origin = SettingOrigin::Implied(drop_in.name);
                    self.set_key(name, Setting { value, origin })?;
                }
            }
        }
        self.apps.iter_mut().try_for_each(AppSettings::keep_client_events)?;
        let replay = "cluster.replay";
        let is_open =
            self.server.contains_key("cluster.redis") && !self.server.contains_key(replay);
        if is_open && self.apps.iter().any(AppSettings::resumes) {
            let value = Value::Integer(REPLAY_FOR_RESUME);
            self.set_key(replay, Setting { value, origin: SettingOrigin::Implied("resume") })?;
        }
        // A person who may write to the table is not always allowed to reach this network.
        let private = "webhooks.allow_private";
        if self.has_table() && !self.server.contains_key(private) {
            let origin = SettingOrigin::Implied("sql.url");
            self.set_key(private, Setting { value: Value::Bool(false), origin })?;
        }
        Ok(made)
    }

    /// Makes the app of a server that was given none, with credentials by chance.
    ///
    /// # Errors
    /// The system has no randomness to give.
    fn make_app(&mut self) -> Result<GeneratedApp, Error> {
        let made = GeneratedApp::random()?;
        let mut app = AppSettings::new(SettingOrigin::Made);
        for (name, value) in [("id", &made.id), ("key", &made.key), ("secret", &made.secret)] {
            let value = Value::Text(value.clone());
            app.set_key("apps[0]", name, Setting { value, origin: SettingOrigin::Made })?;
        }
        self.apps.push(app);
        Ok(made)
    }

    /// Turns the settings into a configuration.
    ///
    /// # Errors
    /// The first setting that is missing or contradicts another.
    pub fn resolve_config(&self) -> Result<Config, Error> {
        let mut config = Config::default();
        fill_keys(&mut config, SERVER, &self.server, ("", &SettingOrigin::Default))?;
        config.server.tls = self.resolve_tls(&config)?;
        let named = |socket: &UnixSocket| !socket.path.as_os_str().is_empty();
        config.server.unix_socket = config.server.unix_socket.filter(named);
        // TLS would not apply to the Unix socket, which the operator would not notice.
        if config.server.unix_socket.is_some() && config.server.tls.is_some() {
            let problem = "TLS is for the proxy to speak, not for a Unix socket";
            return Err(self.setting_error("server.unix_socket.path", problem));
        }
        config.server.api = self.api(&config.server)?;
        // Without a trusted proxy every connection would be closed, since no PROXY header is accepted.
        if config.server.proxy_protocol && config.server.trusted_proxies.is_empty() {
            return Err(self.needs_error("server.proxy_protocol", "server.trusted_proxies"));
        }
        if config.console.access == ConsoleAccess::On && config.console.token.is_empty() {
            return Err(self.needs_error("console.access", "console.token"));
        }
        if config.server.workers == 0 {
            config.server.workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        }
        // Soketi's second port is public. Metrics that were not turned on there are served to this machine alone.
        if self.soketi {
            config.metrics.probes = true;
            if !self.server.contains_key("metrics.host") {
                "0.0.0.0".clone_into(&mut config.metrics.host);
                config.metrics.local = true;
            }
        }
        self.redis_tls(&config.cluster)?;
        config.sql = config.sql.filter(|sql| !sql.url.is_empty());
        if let Some(sql) = &mut config.sql {
            if !cfg!(feature = "sql") {
                return Err(self.setting_error("sql.url", WITHOUT_SQL));
            }
            sql.rows = RowReader::new(self.row_defaults.clone());
        }
        config.apps = self.resolve_apps()?;
        // A client may come back to another node, which reads what it missed from the channel's
        // replay.
        let resumes = config.apps.iter().any(|app| !app.features.resume.is_zero());
        if resumes && !config.cluster.redis.is_empty() && config.cluster.replay == 0 {
            let problem =
                "must not be 0 with an app's resume, whose missed events are read from there";
            return Err(self.setting_error("cluster.replay", problem));
        }
        Ok(config)
    }

    /// A certificate needs its key, and a key its certificate. `server::check` reads the files and tells whether
    /// they can be used.
    fn resolve_tls(&self, config: &Config) -> Result<Option<TlsFiles>, Error> {
        let Some(tls) = config.server.tls.clone() else { return Ok(None) };
        let empty = |path: &PathBuf| path.as_os_str().is_empty();
        match (empty(&tls.cert), empty(&tls.key)) {
            (false, false) => Ok(Some(tls)),
            (true, true) => Ok(None),
            (true, false) => Err(self.needs_error("server.tls.key", "server.tls.cert")),
            (false, true) => Err(self.needs_error("server.tls.cert", "server.tls.key")),
        }
    }

    /// Protection that was asked for is not dropped without a word.
    fn redis_tls(&self, cluster: &ClusterConfig) -> Result<(), Error> {
        let RedisTlsConfig { ca, cert, key } = &cluster.tls;
        match (cert.is_empty(), key.is_empty()) {
            (false, true) => return Err(self.needs_error("cluster.tls.cert", "cluster.tls.key")),
            (true, false) => return Err(self.needs_error("cluster.tls.key", "cluster.tls.cert")),
            _ => {}
        }
        let plain = cluster.redis.iter().any(|url| !url.trim().starts_with("rediss"));
        let name = if ca.is_empty() { "cluster.tls.cert" } else { "cluster.tls.ca" };
        if plain && !(ca.is_empty() && cert.is_empty()) {
            let problem =
                "is for TLS, and cluster.redis asks for none: rediss:// or rediss+sentinel:// does";
            return Err(self.setting_error(name, problem));
        }
        Ok(())
    }

    /// Where the API is, if that is another place than the sockets'.
    ///
    /// # Errors
    /// It is given in two ways, in part, or is where the sockets are.
    fn api(&self, server: &ServerConfig) -> Result<Option<ApiAddress>, Error> {
        let Some(mut api) = server.api.clone() else { return Ok(None) };
        api.unix_socket = api.unix_socket.filter(|socket| !socket.path.as_os_str().is_empty());
        if let Some(socket) = &api.unix_socket {
            let name = "server.api.unix_socket.path";
            if !api.host.is_empty() || api.port != 0 {
                let problem = "stands in the place of server.api.host and server.api.port: give one of the two";
                return Err(self.setting_error(name, problem));
            }
            if server.unix_socket.as_ref().is_some_and(|sockets| sockets.path == socket.path) {
                return Err(self.setting_error(name, TAKEN));
            }
            return Ok(Some(api));
        }
        if api.host.is_empty() {
            return if api.port == 0 {
                Ok(None)
            } else {
                Err(self.needs_error("server.api.port", "server.api.host"))
            };
        }
        let same = (&api.host, api.port) == (&server.host, server.port) && api.port != 0;
        if same && server.unix_socket.is_none() {
            return Err(self.setting_error("server.api.port", TAKEN));
        }
        Ok(Some(api))
    }

    /// The error of a setting that means nothing without another.
    fn needs_error(&self, name: &str, other: &str) -> Error {
        self.setting_error(name, &format!("needs {other} beside it"))
    }

    /// The error of a setting whose value is possible and does not fit, with where it was written.
    pub(super) fn setting_error(&self, name: &str, problem: &str) -> Error {
        let origin = self.server.get(name).map_or(SettingOrigin::Default, |s| s.origin.clone());
        Error::at_setting(&origin, name, problem)
    }

    /// Builds each app with its webhooks from its settings.
    ///
    /// # Errors
    /// An app is incomplete, or two share an id or a key: the id identifies requests, the key sockets.
    fn resolve_apps(&self) -> Result<Apps, Error> {
        let mut apps = Vec::new();
        for (index, written) in self.apps.iter().enumerate() {
            apps.push(written.resolve_app(&format!("apps[{index}]"))?);
        }
        Apps::new(apps).map_err(|duplicate| match duplicate {
            Duplicate::Id(id) => self.duplicate_error("id", &id),
            Duplicate::Key(key) => self.duplicate_error("key", &key),
        })
    }

    /// The error of the second app whose `name` is `value`.
    fn duplicate_error(&self, name: &'static str, value: &str) -> Error {
        let same = |app: &AppSettings| match app.values.get(name).map(|setting| &setting.value) {
            Some(Value::Text(text) | Value::Raw(text)) => text == value,
            _ => false,
        };
        let mut twins = self.apps.iter().enumerate().filter(|(_, app)| same(app));
        let first = twins.next().map_or(0, |(index, _)| index);
        let second = twins.next().map_or(first, |(index, _)| index);
        let origin = self.apps.get(second).and_then(|app| app.values.get(name));
        let origin = origin.map_or(SettingOrigin::Default, |setting| setting.origin.clone());
        let problem = format!("{value:?} is apps[{first}].{name} already");
        Error::at_setting(&origin, &format!("apps[{second}].{name}"), problem)
    }
}

/// Words of the errors above, which more than one check has.
const TAKEN: &str = "is where the sockets are: the HTTP API is there too if server.api is left out";

/// The error for a database without the feature `sql`.
const WITHOUT_SQL: &str = "this program was built without databases: build it with --features sql, or install the Debian package";

/// The error for `socketio` without the feature.
const WITHOUT_SOCKETIO: &str = "this program was built without Socket.IO: build it with --features socketio, or install the Debian package";

impl AppSettings {
    /// Neither Reverb nor Soketi has a limit of its own for the data of client events: what is taken over from
    /// them goes by the one for all events.
    pub(super) fn keep_client_events(&mut self) -> Result<(), Error> {
        let name = "max_client_event_data";
        let Some(drop_in) = self.drop_in.filter(|_| !self.values.contains_key(name)) else {
            return Ok(());
        };
        let all = self.values.get("max_event_data").map(|setting| setting.value.clone());
        let value = all.unwrap_or_else(|| Value::Text("100KiB".to_owned()));
        self.set_key("apps", name, Setting { value, origin: SettingOrigin::Implied(drop_in.name) })
    }

    /// Whether `resume` is on. A value that is no duration is refused when the app is resolved.
    fn resumes(&self) -> bool {
        let resume = self
            .values
            .get("resume")
            .map(|setting| duration(&setting.value, Duration::ZERO..=Duration::MAX));
        resume.is_some_and(|resume| resume.is_ok_and(|resume| !resume.is_zero()))
    }

    /// One app with its webhooks, complete; `place` is what messages call it.
    pub(super) fn resolve_app(&self, place: &str) -> Result<App, Error> {
        let mut app = App::new("", "", "");
        fill_keys(&mut app, APP, &self.values, (place, &self.origin))?;
        if app.features.socketio.enabled && !cfg!(feature = "socketio") {
            let name = "socketio.enabled";
            let origin = self.values.get(name).map_or(&self.origin, |setting| &setting.origin);
            return Err(Error::at_setting(origin, &key_below(place, name), WITHOUT_SOCKETIO));
        }
        for (index, written) in self.webhooks.iter().enumerate() {
            let mut webhook = Webhook::default();
            let place = format!("{place}.webhooks[{index}]");
            fill_keys(&mut webhook, WEBHOOK, &written.values, (&place, &written.origin))?;
            app.webhooks.push(webhook);
        }
        Ok(app)
    }
}

impl ServerConfig {
    /// Whether the try-out page is served at the address where the server really listens: `None` is a Unix socket,
    /// which is for a proxy.
    pub fn shows_page_at(&self, address: Option<SocketAddr>) -> bool {
        match self.try_out {
            TryOut::On => true,
            TryOut::Off => false,
            TryOut::Loopback => {
                let is_behind_proxy = !self.trusted_proxies.is_empty() || self.proxy_protocol;
                let is_local = |at: SocketAddr| at.ip().to_canonical().is_loopback();
                !is_behind_proxy && address.is_some_and(is_local)
            }
        }
    }
}
