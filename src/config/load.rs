//! The sources of settings in order, each overriding those before: defaults, the Laravel environment, Soketi's, the
//! file, `FANFARE_*`, flags.

use std::ffi::OsString;
use std::path::Path;

use super::echo_server::EchoServer;
use super::env_file::EnvFile;
use super::environment::Variables;
use super::error::Error;
use super::laravel::{Laravel, LaravelDoubt, PublicAddress};
use super::settings::Settings;
use super::soketi::Soketi;
use super::{CliCommand, Config, ConfigCommand, Flags, GeneratedApp, apps_file, env, file};

/// The settings of a server, as they were loaded.
pub struct LoadedSettings {
    /// The valid configuration.
    pub config: Config,
    /// Every written setting and its origin. Includes secrets, so it must not be logged.
    pub settings: Settings,
    /// Where a Laravel app sends its backend and its clients, if its settings say so.
    pub public: Vec<PublicAddress>,
    /// Faults of a Laravel app and its pages, if they were asked for.
    pub doubts: Vec<LaravelDoubt>,
    /// Warnings for the operator that do not stop the start, a line each.
    pub warnings: Vec<String>,
    /// Variables that begin like settings and were passed over, since a platform makes them.
    pub passed_over: Vec<String>,
}

impl LoadedSettings {
    /// The error of a setting that turned out to be of no use, with where it was written.
    pub fn setting_error(&self, name: &str, problem: &str) -> Error {
        self.settings.setting_error(name, problem)
    }
}

/// Reads all sources. `env` is the process's environment and `folder` its working directory: both are
/// given so that nothing else is read.
///
/// # Errors
/// The first setting that is unknown, has a wrong value, is missing or contradicts another.
/// Everything is read before a socket is opened, so a server either starts with these settings or
/// not at all.
pub fn load_settings<N: Into<OsString>, V: Into<OsString>>(
    flags: &Flags,
    env: impl IntoIterator<Item = (N, V)>,
    folder: &Path,
) -> Result<LoadedSettings, Error> {
    let variables = Variables::new(env);
    let mut settings = Settings::default();
    let mut warnings = Vec::new();
    let given = flags.env_file.as_deref();
    let file = EnvFile::read(given, folder, &variables, &mut warnings)?;
    let echo = flags.echo_server_config.as_deref();
    let mut echo =
        EchoServer::read_sources(echo, folder, &file.laravel, &variables, &mut warnings)?;
    let laravel = Laravel::read_variables(file.laravel, &variables)?;
    laravel.apply_laravel(&mut settings)?;
    let json = flags.soketi_config.as_deref();
    Soketi::read_sources(json, folder, file.soketi, &variables)?.apply_soketi(&mut settings)?;
    if let Some(echo) = &mut echo {
        echo.apply_server(&mut settings)?;
    }
    if let Some(path) = &flags.config {
        file::apply_file(&mut settings, &folder.join(path), &path.display().to_string())?;
    }
    env::apply_env(&mut settings, &variables)?;
    flags.apply_flags(&mut settings)?;
    // After all sources, any of which may name the file.
    if let Some(path) = settings.apps_file() {
        settings.apps.append(&mut apps_file::read_apps(&folder.join(&path), &path)?);
    }
    if settings.apps.is_empty()
        && settings.apps_file().is_none()
        && !settings.has_table()
        && let Some(error) = laravel.incomplete_app()
    {
        return Err(error);
    }
    // Last, for it completes an app that any source may have given.
    if let Some(echo) = echo {
        echo.apply_app(&mut settings)?;
    }
    let made = settings.complete_apps()?;
    let mut config = settings.resolve_config()?;
    config.made_app = made;
    config.app_sources = settings.app_sources();
    config.apps_file = config.apps_file.map(|path| folder.join(path));
    warnings.append(&mut settings.warnings);
    // The other files of a Laravel app are next to its environment file.
    let beside = given.and_then(Path::parent).map_or_else(|| folder.into(), |of| folder.join(of));
    let (public, doubts) = (laravel.public_addresses(), laravel.find_doubts(&beside, &variables));
    let passed_over = variables.passed_over().to_vec();
    Ok(LoadedSettings { config, settings, public, doubts, warnings, passed_over })
}

/// The output of a command about the settings; `None` for other commands.
pub fn answer_command<N: Into<OsString>, V: Into<OsString>>(
    command: &CliCommand,
    flags: &Flags,
    env: impl IntoIterator<Item = (N, V)>,
    folder: &Path,
) -> Result<Option<String>, Error> {
    Ok(Some(match command {
        CliCommand::Keys => GeneratedApp::random()?.credential_lines(),
        CliCommand::Config(ConfigCommand::Check) => {
            load_settings(flags, env, folder)?.summary_line()
        }
        CliCommand::Config(ConfigCommand::Show { json: false }) => {
            load_settings(flags, env, folder)?.settings.show_all()
        }
        CliCommand::Config(ConfigCommand::Show { json: true }) => {
            format!("{:#}\n", load_settings(flags, env, folder)?.settings.show_json())
        }
        CliCommand::Tool(_) => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty folder, so that nothing around the tests is read.
    fn nowhere() -> &'static Path {
        Path::new("/nonexistent")
    }

    fn loaded(env: &[(&str, &str)], flags: Flags) -> Result<Config, String> {
        let env = env.iter().copied();
        match load_settings(&flags, env, nowhere()) {
            Ok(loaded) => Ok(loaded.config),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn with_nothing_set_there_is_one_app_made_for_this_run() {
        let config = loaded(&[], Flags::default()).unwrap();
        assert_eq!((config.server.host.as_str(), config.server.port), ("127.0.0.1", 8080));
        assert!(config.server.workers >= 1);
        let [here, everywhere] = ["127.0.0.1:8080", "0.0.0.0:8080"].map(|at| at.parse().unwrap());
        let shows_page_at = |at| config.server.shows_page_at(at);
        assert!(shows_page_at(Some(here)) && !shows_page_at(Some(everywhere)));
        assert!(!shows_page_at(None), "a Unix socket, behind a proxy");
        let proxied = loaded(&[("FANFARE_SERVER__TRUSTED_PROXIES", "127.0.0.1")], Flags::default());
        assert!(!proxied.unwrap().server.shows_page_at(Some(here)));
        let made = config.made_app.unwrap();
        assert_eq!(config.apps.len(), 1);
        let app = config.apps.by_id(&made.id).unwrap();
        assert_eq!(*app.key, *made.key);
        let signature = app.signer.sign(&["x"]);
        assert_eq!(signature, crate::protocol::auth::Signer::new(&made.secret).sign(&["x"]));
    }

    #[test]
    fn later_sources_win() {
        let port = |env: &[(&str, &str)], flag: Option<&str>| {
            let flags = Flags { port: flag.map(str::to_owned), ..Flags::default() };
            loaded(env, flags).unwrap().server.port
        };
        let reverb = ("REVERB_SERVER_PORT", "1");
        let own = ("FANFARE_SERVER__PORT", "2");
        assert_eq!(port(&[], None), 8080);
        assert_eq!(port(&[reverb], None), 1);
        assert_eq!(port(&[reverb, own], None), 2);
        assert_eq!(port(&[reverb, own], Some("3")), 3);
    }

    #[test]
    fn what_a_later_source_overrides_must_be_right_too() {
        let flags = Flags { port: Some("1".to_owned()), ..Flags::default() };
        assert_eq!(
            loaded(&[("FANFARE_SERVER__PORT", "x")], flags).unwrap_err(),
            "FANFARE_SERVER__PORT: expected a whole number from 0 to 65535, found \"x\""
        );
    }

    #[test]
    fn a_wrong_flag_is_named() {
        let flags = Flags { host: Some("a b".to_owned()), ..Flags::default() };
        assert_eq!(
            loaded(&[], flags).unwrap_err(),
            "--host: expected an address or a host's name, without a port, found \"a b\""
        );
    }

    #[test]
    fn variables_set_apps_by_number() {
        let config = loaded(
            &[
                ("FANFARE_APPS__0__ID", "1"),
                ("FANFARE_APPS__0__KEY", "k"),
                ("FANFARE_APPS__0__SECRET", "s"),
                ("FANFARE_APPS__0__ALLOWED_ORIGINS", "a.test, b.test"),
                ("FANFARE_APPS__0__CACHE_TTL", "1h"),
                ("FANFARE_SERVER__TRUSTED_PROXIES", "10.0.0.0/8"),
            ],
            Flags::default(),
        )
        .unwrap();
        let app = config.apps.by_key("k").unwrap();
        assert_eq!(format!("{:?}", app.allowed_origins), r#"["a.test", "b.test"]"#);
        assert_eq!(app.features.cache_ttl.as_secs(), 3600);
        assert_eq!(config.server.trusted_proxies.len(), 1);
        assert!(config.made_app.is_none());
    }

    #[test]
    fn a_variable_that_sets_nothing_is_refused_with_the_nearest() {
        for (name, line) in [
            ("FANFARE_SERVER__PROT", "unknown setting; did you mean FANFARE_SERVER__PORT?"),
            ("FANFARE_SERVER_PORT", "unknown setting; did you mean FANFARE_SERVER__PORT?"),
            ("FANFARE_APPS__0__SCERET", "unknown setting; did you mean FANFARE_APPS__0__SECRET?"),
            ("FANFARE_ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ", "unknown setting"),
        ] {
            assert_eq!(
                loaded(&[(name, "1")], Flags::default()).unwrap_err(),
                format!("{name}: {line}")
            );
        }
        assert_eq!(
            loaded(&[("FANFARE_APPS__1__ID", "1")], Flags::default()).unwrap_err(),
            "FANFARE_APPS__1__ID: there is no apps[0] before apps[1]"
        );
        assert_eq!(
            loaded(&[("FANFARE_APPS__0__ID", "1")], Flags::default()).unwrap_err(),
            "FANFARE_APPS__0__ID: apps[0].key: missing, and it has no default"
        );
    }
}
