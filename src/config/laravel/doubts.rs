//! Checks of a Laravel app for `fanfare doctor`: why its events may not reach the server, or its pages not receive
//! them, although the server's settings are right. Reads the app's `.env` and neighbouring files.

use std::path::Path;

use serde_json::Value as Json;

use super::super::environment::Variables;
use super::super::error::SettingOrigin;
use super::{AppVariables, Laravel, PUSHER, REVERB};

/// The variables that choose a Laravel app's broadcaster, from Laravel 11 on and before.
const CONNECTION: &str = "BROADCAST_CONNECTION";
/// The variable that Laravel read before version 11.
const DRIVER: &str = "BROADCAST_DRIVER";

/// The first Laravel that reads `BROADCAST_CONNECTION`.
const FIRST_WITH_CONNECTION: u32 = 11;

/// Variables that only a whole Laravel app has, as against a file of the server's settings alone.
const OF_AN_APP: [&str; 6] = ["APP_KEY", "APP_NAME", "APP_ENV", "APP_URL", CONNECTION, DRIVER];

/// Files and folders that stand beside a Laravel app's `.env`.
const APP_FILES: [&str; 4] =
    ["artisan", "composer.json", "composer.lock", "config/broadcasting.php"];

/// One thing that a Laravel app's owner should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaravelDoubt {
    /// The subject in doctor's report: `Laravel` or `pages`.
    pub subject: &'static str,
    /// Whether no event arrives until it is mended.
    pub breaks: bool,
    /// The fault, and the line to write.
    pub text: String,
}

/// The files beside a `.env`, and the process's own variables, which go before it.
struct LaravelFiles<'a> {
    /// The environment of the app.
    laravel: &'a Laravel,
    names: &'a AppVariables,
    /// The broadcaster that speaks to this server, as Laravel calls it.
    wanted: &'static str,
    folder: &'a Path,
    /// Variables of the process and of `.env`.
    variables: &'a Variables,
}

impl Laravel {
    /// Everything that can be seen from `folder`, where the app's `.env` is.
    pub(in crate::config) fn find_doubts(
        &self,
        folder: &Path,
        variables: &Variables,
    ) -> Vec<LaravelDoubt> {
        // As for the server itself: Reverb's variables count first.
        let reverb = (&REVERB, "reverb");
        let Some((names, wanted)) =
            [reverb, (&PUSHER, "pusher")].into_iter().find(|(names, _)| self.has_all(names))
        else {
            return Vec::new();
        };
        let surroundings = LaravelFiles { laravel: self, names, wanted, folder, variables };
        let mut doubts = Vec::new();
        let is_from_file = matches!(self.variable_origin(names.id), SettingOrigin::DotEnv { .. });
        if is_from_file {
            doubts.extend(surroundings.doubt_broadcaster());
            doubts.extend(surroundings.doubt_cached_config());
            doubts.extend(surroundings.doubt_package());
        }
        doubts.extend(surroundings.doubt_pages());
        doubts
    }
}

/// For the last line of a look that found something.
fn some_doubt(
    subject: &'static str,
    breaks: bool,
    text: impl Into<String>,
) -> Option<LaravelDoubt> {
    Some(LaravelDoubt { subject, breaks, text: text.into() })
}

impl LaravelFiles<'_> {
    /// As Laravel reads it: the process's own variables go before the file.
    fn variable_text(&self, name: &str) -> Option<&str> {
        let outside = self.variables.value(name).filter(|text| !text.is_empty());
        outside.or_else(|| self.laravel.variable_text(name))
    }

    /// A file of the app, by its path below the folder; one that cannot be read says nothing.
    fn file_text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.join(name)).ok()
    }

    /// Whether the folder is a Laravel app, rather than a place for the server's settings.
    fn is_app(&self) -> bool {
        // Variables that are null are not among those found.
        let written = match self.laravel.variable_origin(self.names.id) {
            SettingOrigin::DotEnv { path, .. } => Path::new(&*path)
                .file_name()
                .and_then(|name| std::fs::read_to_string(self.folder.join(name)).ok()),
            _ => None,
        };
        // A file that cannot be read names no variable of an app.
        let written = written.unwrap_or_default();
        let is_written = |name: &&str| written.lines().any(|line| line.trim().starts_with(name));
        OF_AN_APP.iter().any(is_written)
            || APP_FILES.iter().any(|name| self.folder.join(name).exists())
    }

    /// The major version of the app's Laravel, by `composer.lock`: what is installed, not what is
    /// asked for.
    fn laravel_version(&self) -> Option<u32> {
        let lock: Json = serde_json::from_str(&self.file_text("composer.lock")?).ok()?;
        let packages = lock.get("packages")?.as_array()?;
        let is_it = |package: &&Json| {
            package.get("name").and_then(Json::as_str) == Some("laravel/framework")
        };
        let version = packages.iter().find(is_it)?.get("version")?.as_str()?;
        version.trim_start_matches('v').split('.').next()?.parse().ok()
    }

    /// The variable that the app reads: as its own configuration says, which an app that was upgraded keeps, else
    /// as its Laravel does.
    fn broadcast_variable(&self) -> &'static str {
        // Without the file the version of Laravel decides below.
        let config = self.file_text("config/broadcasting.php").unwrap_or_default();
        let names = [CONNECTION, DRIVER].into_iter().filter(|name| config.contains(name));
        match (names.collect::<Vec<_>>().as_slice(), self.laravel_version()) {
            ([only], _) => only,
            (_, Some(version)) if version < FIRST_WITH_CONNECTION => DRIVER,
            // Not known: whichever is written, for the other would be missed by everybody.
            (_, None)
                if self.variable_text(CONNECTION).is_none()
                    && self.variable_text(DRIVER).is_some() =>
            {
                DRIVER
            }
            _ => CONNECTION,
        }
    }

    /// Where the app's backend sends its events. Laravel itself says nothing where they go nowhere:
    /// its broadcaster `log` is the default of a new app.
    fn doubt_broadcaster(&self) -> Option<LaravelDoubt> {
        const SUBJECT: &str = "Laravel";
        let Self { wanted, .. } = self;
        let variable = self.broadcast_variable();
        let other = if variable == CONNECTION { DRIVER } else { CONNECTION };
        match self.variable_text(variable) {
            None if self.variable_text(other).is_some() => {
                let version = match self.laravel_version() {
                    Some(version) => format!("Laravel {version}"),
                    None => "this app".to_owned(),
                };
                let text = format!(
                    "{other} is not what {version} reads, so events go nowhere: write {variable}={wanted} into .env"
                );
                some_doubt(SUBJECT, true, text)
            }
            None => {
                let text = format!(
                    "{variable} is not set, so the app's events go nowhere: write {variable}={wanted} into .env"
                );
                some_doubt(SUBJECT, self.is_app(), text)
            }
            Some(value @ ("log" | "null")) => {
                let text = format!(
                    "{variable} is {value}, so the app's events go nowhere: write {variable}={wanted} into .env"
                );
                some_doubt(SUBJECT, true, text)
            }
            Some(value @ ("redis" | "ably")) => {
                let text = format!(
                    "{variable} is {value}, so the app's events do not come to this server: write {variable}={wanted} into .env"
                );
                some_doubt(SUBJECT, true, text)
            }
            Some("pusher") if self.goes_to_pusher() => {
                let text = if *wanted == "reverb" {
                    format!(
                        "{variable} is pusher and PUSHER_HOST is not set, so the app's events go to Pusher's own servers: write {variable}=reverb into .env"
                    )
                } else {
                    "PUSHER_HOST is not set, so the app's events go to Pusher's own servers: write PUSHER_HOST, PUSHER_PORT and PUSHER_SCHEME of this server into .env".to_owned()
                };
                some_doubt(SUBJECT, true, text)
            }
            Some(_) => None,
        }
    }

    /// Whether the broadcaster `pusher` uses its default host, `api-CLUSTER.pusher.com`.
    fn goes_to_pusher(&self) -> bool {
        // Apps of laravel-websockets and Soketi often have the address in this file.
        let config = self.file_text("config/broadcasting.php");
        let is_usual = config.is_none_or(|config| config.contains("PUSHER_HOST"));
        is_usual && self.is_app() && self.variable_text("PUSHER_HOST").is_none()
    }

    /// Reports a cached configuration that is older than `.env`.
    fn doubt_cached_config(&self) -> Option<LaravelDoubt> {
        let cache = self.file_text("bootstrap/cache/config.php")?;
        let key = self.variable_text(self.names.key)?;
        // PHP's `var_export` writes texts in single quotes.
        let is_stale = !cache.contains(&format!("'{key}'"));
        let broadcasting = cache.split("'broadcasting' =>").nth(1);
        let chosen = broadcasting.and_then(|part| part.split("'default' => ").nth(1));
        let chosen = chosen.and_then(|rest| rest.split(['\n', ',']).next());
        let goes_nowhere =
            chosen.is_some_and(|chosen| matches!(chosen, "'log'" | "'null'" | "NULL"));
        let what = match (is_stale, goes_nowhere) {
            (true, _) => format!("has another {}", self.names.key),
            (false, true) => "sends the app's events nowhere".to_owned(),
            (false, false) => return None,
        };
        let text = format!(
            "bootstrap/cache/config.php, which the app reads in the place of .env, {what}: run php artisan config:clear, or config:cache again"
        );
        some_doubt("Laravel", true, text)
    }

    /// Reports an installed Reverb, which may be started in place of this server.
    fn doubt_package(&self) -> Option<LaravelDoubt> {
        let composer: Json = serde_json::from_str(&self.file_text("composer.json")?).ok()?;
        // Either list: some install it for development alone.
        let requires = |package: &str| {
            let lists = ["require", "require-dev"].into_iter();
            let mut lists = lists.filter_map(|list| composer.get(list)?.as_object());
            lists.any(|list| list.contains_key(package))
        };
        if !requires("laravel/reverb") {
            return None;
        }
        // Laravel's broadcaster needs it, and Reverb brought it along.
        let sdk = "composer require pusher/pusher-php-server && ";
        let sdk = if requires("pusher/pusher-php-server") { "" } else { sdk };
        let text = format!(
            "laravel/reverb is still installed, and `php artisan dev` of Laravel 13 starts it on the same port: {sdk}composer remove laravel/reverb"
        );
        some_doubt("Laravel", false, text)
    }

    /// Reports outdated values in built pages. Vite writes `VITE_…` variables into the script when it builds it, so
    /// a later change of `.env` has no effect on it.
    fn doubt_pages(&self) -> Vec<LaravelDoubt> {
        const SUBJECT: &str = "pages";
        let own = self.names.key;
        let prefixes = if self.wanted == "reverb" {
            &["VITE_REVERB_"][..]
        } else {
            &["VITE_PUSHER_", "MIX_PUSHER_"][..]
        };
        let mut doubts = Vec::new();
        for built in prefixes.iter().map(|prefix| format!("{prefix}APP_KEY")) {
            if self.variable_text(&built).is_some_and(|key| Some(key) != self.variable_text(own)) {
                let text = format!(
                    "{built} is not {own}, so pages ask for another app: write {built}=\"${{{own}}}\" into .env, and build the pages again (npm run build)"
                );
                doubts.extend(some_doubt(SUBJECT, true, text));
            }
        }
        if self.wanted == "reverb" {
            doubts.extend(self.doubt_scheme());
        }
        doubts
    }

    /// Browsers block a plain WebSocket of an HTTPS page as mixed content, except to the same
    /// machine.
    fn doubt_scheme(&self) -> Option<LaravelDoubt> {
        let text = |name: &str| {
            let built = self.variable_text(&format!("VITE_REVERB_{name}"));
            built.or_else(|| self.variable_text(&format!("REVERB_{name}")))
        };
        let is_secure =
            self.variable_text("APP_URL").is_some_and(|url| url.starts_with("https://"));
        let is_near = |host: &str| host == "localhost" || host.starts_with("127.");
        if is_secure
            && text("SCHEME") == Some("http")
            && text("HOST").is_some_and(|host| !is_near(host))
        {
            return some_doubt(
                "pages",
                false,
                "APP_URL is https://, and browsers let such pages open nothing but wss://: set \
                 REVERB_SCHEME=https, build the pages again, and speak TLS by server.tls or a proxy",
            );
        }
        None
    }
}
