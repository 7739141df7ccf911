//! Which server and app a command uses: those given by `--url` and credentials, those of the settings, or else a server
//! without settings that runs on this machine.

use std::sync::Arc;

use super::answers::reachable_host;
use super::client::ApiTarget;
use super::running::RunningApp;
use super::{CommandError, database, root_certs};
use crate::app::App;
use crate::config::{self, Config, LoadedSettings, ServerConfig, TargetArgs};
use crate::protocol::origin::{self as origins, OriginPattern};

/// The error if there are neither settings nor a running server on this machine.
const NOTHING: &str = "no app is configured here and no server without settings runs: give --config, or --url with --app-id, --key and --secret";

impl ApiTarget {
    /// The server that `at` names, or the one that the settings are for.
    ///
    /// # Errors
    /// The settings cannot be read, or do not tell which app is meant.
    pub(super) async fn find_server(
        at: &TargetArgs,
        load: impl FnOnce() -> Result<LoadedSettings, config::Error>,
    ) -> Result<Self, CommandError> {
        Self::find_one(at, false, load).await
    }

    /// The same; of several apps the first that is enabled will do if `any` is set. `load` is
    /// called only if the settings are needed, so a command with complete credentials works beside
    /// broken ones.
    pub(super) async fn find_one(
        at: &TargetArgs,
        any: bool,
        load: impl FnOnce() -> Result<LoadedSettings, config::Error>,
    ) -> Result<Self, CommandError> {
        let given = (&at.app_id, &at.key, &at.secret);
        let mut target = if let ((Some(id), Some(key), Some(secret)), Some(url)) = (given, &at.url)
        {
            Self::from_url(url, &App::new(id, key, secret))?
        } else if at.key.is_some() || at.secret.is_some() {
            let missing = "--key and --secret need --url and --app-id beside them";
            return Err(CommandError(missing.to_owned()));
        } else {
            let LoadedSettings { config, .. } = load()?;
            Self::of_settings(at, any, &config).await?
        };
        if at.origin.is_some() {
            target.origin.clone_from(&at.origin);
        }
        match &at.api_url {
            Some(url) => target.with_api(url),
            None => Ok(target),
        }
    }

    /// The target by the settings: the app of the run, the one asked for, the only one, or one that
    /// only the database has.
    async fn of_settings(
        at: &TargetArgs,
        any: bool,
        config: &Config,
    ) -> Result<Self, CommandError> {
        // The app of the settings was made for this process. The one that is meant is the server's.
        if config.made_app.is_some() {
            let of_config = config.server.port;
            let running =
                RunningApp::choose(RunningApp::list_running(), at.url.as_deref(), of_config)?;
            let RunningApp { url, api, id, key, secret, .. } =
                running.ok_or_else(|| CommandError(NOTHING.to_owned()))?;
            let app = App::new(&id, &key, &secret);
            return match (&at.url, api) {
                (Some(url), _) => Self::from_url(url, &app),
                (None, Some(api)) => Self::from_url(&url, &app)?.with_api(&api),
                (None, None) => Self::from_url(&url, &app),
            };
        }
        let configured = match &at.app_id {
            Some(id) => config.apps.by_id(id),
            None if any || config.apps.len() == 1 => {
                // Sorted, so that the same command is about the same app each time.
                config.apps.iter().min_by_key(|app| (!app.enabled, app.id.clone()))
            }
            None => None,
        };
        let app = match (configured, &at.app_id, &config.sql) {
            (Some(app), ..) => app.clone(),
            (None, Some(id), Some(sql)) => Arc::new(database::app(sql, Some(id)).await?),
            (None, None, Some(sql)) if any && config.apps.is_empty() => {
                Arc::new(database::app(sql, None).await?)
            }
            (None, None, Some(_)) if config.apps.is_empty() => {
                let none = "the apps are in a database: say which with --app-id";
                return Err(CommandError(none.to_owned()));
            }
            (None, ..) => {
                let mut ids: Vec<_> = config.apps.iter().map(|app| app.id.as_str()).collect();
                ids.sort_unstable();
                return Err(CommandError(format!(
                    "say which app with --app-id: {}",
                    ids.join(", ")
                )));
            }
        };
        Self::of_server(&config.server, at.url.as_deref(), &app)
    }

    /// The server that is set so, for what needs no app.
    pub(super) fn of_own(server: &ServerConfig) -> Result<Self, CommandError> {
        Self::of_server(server, None, &App::new("", "", ""))
    }

    /// The server that is set so, or the one at `url` in its place.
    fn of_server(
        server: &ServerConfig,
        url: Option<&str>,
        app: &App,
    ) -> Result<Self, CommandError> {
        let own = || format!("{}{}", origin(server, &server.host, server.port), server.path);
        let mut target = Self::from_url(&url.map_or_else(own, str::to_owned), app)?;
        if url.is_none() {
            // A server on a Unix socket has no port of its own, so a request by TCP would miss it.
            target.unix_socket = server.unix_socket.as_ref().map(|socket| socket.path.clone());
            // Reached by its address, it is there for another name.
            target.name = server.tls.as_ref().and_then(|tls| root_certs::name_in(&tls.cert));
            if let Some(api) = &server.api {
                target = target.with_api(&match &api.unix_socket {
                    Some(socket) => format!("unix:{}", socket.path.display()),
                    None => origin(server, &api.host, api.port),
                })?;
                let name = target.name.clone();
                if let Some(api) = &mut target.api {
                    api.name = name;
                }
            }
        }
        target.origin = origin_among(&app.allowed_origins);
        Ok(target)
    }
}

/// The origin, and the path prefix, of a server that listens at `host` and `port`.
fn origin(server: &ServerConfig, host: &str, port: u16) -> String {
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let host = reachable_host(host);
    // An IPv6 address needs brackets in a URL: RFC 3986 section 3.2.2.
    let is_bare = host.contains(':') && !host.starts_with('[');
    let host = if is_bare { format!("[{host}]") } else { host.to_owned() };
    format!("{scheme}://{host}:{port}")
}

/// An `Origin` that an app with these patterns lets in; none where it lets everybody in.
fn origin_among(patterns: &[OriginPattern]) -> Option<String> {
    // An app that allows clients without an Origin needs none from this command.
    if origins::allowed(patterns, None) {
        return None;
    }
    // One that is a whole name is more certain than one with something in the place of an asterisk.
    let pattern = patterns.iter().min_by_key(|pattern| pattern.to_string().contains('*'))?;
    Some(pattern.example())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_chosen_that_the_app_lets_in() {
        let among = |patterns: &[&str]| {
            let patterns: Vec<OriginPattern> =
                patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
            let origin = origin_among(&patterns);
            assert!(origins::allowed(&patterns, origin.as_deref()), "{origin:?}");
            origin
        };
        assert_eq!(among(&["*"]), None);
        assert_eq!(among(&["app.example.test", "*"]), None);
        assert_eq!(among(&["*.example.test", "b.test"]).as_deref(), Some("https://b.test"));
        assert!(among(&["*.example.test"]).is_some_and(|origin| origin.ends_with(".example.test")));
    }
}
