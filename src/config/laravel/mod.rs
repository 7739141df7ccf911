//! Settings of a Laravel app with Reverb or Pusher: its `.env` file, and variables of the process, which override the
//! file. `env_file.rs` finds the file, `dotenv.rs` has its grammar.

mod doubts;
mod redis;

use super::dotenv;
use super::environment::FoundVariables;
use super::environment::Variables;
use super::error::{Error, SettingOrigin};
use super::redis_url::url_host;
use super::settings::{AppSettings, DropInFor, Setting, Settings};
use super::value::Value;
pub use doubts::LaravelDoubt;

/// Variables by name, as Laravel's `env()` answers them: those that are null are left out.
/// Each with where it is written, since messages name the file and line or the variable.
pub(super) struct Laravel {
    /// Variables that were found, with their origins.
    found: FoundVariables,
}

/// The prefixes of variables that are read from the process's environment. Those of pages are read only to compare
/// addresses.
const PREFIXES: [&str; 6] =
    ["REVERB_", "PUSHER_", "REDIS_", "VITE_REVERB_", "VITE_PUSHER_", "MIX_PUSHER_"];

/// The three that make an app, for Reverb and for Pusher.
/// Reverb's own come first: an app that was moved from Pusher may still have the others.
const REVERB: AppVariables = AppVariables {
    id: "REVERB_APP_ID",
    key: "REVERB_APP_KEY",
    secret: "REVERB_APP_SECRET",
    addresses: &["REVERB_", "VITE_REVERB_"],
    drop_in: &DropInFor { name: "REVERB_APP_ID", port: None },
};
/// The names that an app of the broadcaster `pusher` uses.
const PUSHER: AppVariables = AppVariables {
    id: "PUSHER_APP_ID",
    key: "PUSHER_APP_KEY",
    secret: "PUSHER_APP_SECRET",
    addresses: &["PUSHER_", "VITE_PUSHER_", "MIX_PUSHER_"],
    drop_in: &DropInFor { name: "PUSHER_APP_ID", port: None },
};

/// An address of the server as an app's settings have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicAddress {
    /// As a browser or a backend would go there.
    pub url: String,
    /// The prefix of the variables that have it.
    pub said_by: &'static str,
}

/// Both servers name them alike, so that the rest need not tell them apart.
struct AppVariables {
    /// The variable with the app's id.
    id: &'static str,
    /// The variable with the app's key.
    key: &'static str,
    /// The variable with the app's secret.
    secret: &'static str,
    /// The prefixes of the variables with the server's address, for its backend and its pages.
    addresses: &'static [&'static str],
    /// The server that this one replaces, for the origin of defaults.
    drop_in: &'static DropInFor,
}

impl AppVariables {
    /// In the order in which they are missed.
    fn all_three(&self) -> [&'static str; 3] {
        [self.id, self.key, self.secret]
    }
}

/// Bytes that Fanfare's limits are raised from, never lowered below, by limits of other meanings.
/// The default of `max_event_data`.
const DEFAULT_EVENT_BYTES: u64 = 100 << 10;

impl Laravel {
    /// The variables of the file, and over them those of the process.
    /// # Errors
    /// A variable of the process is not UTF-8.
    pub(super) fn read_variables(
        mut found: FoundVariables,
        variables: &Variables,
    ) -> Result<Self, Error> {
        for prefix in PREFIXES {
            for (name, value) in variables.with_prefix(prefix) {
                let origin = SettingOrigin::Variable(name.to_owned());
                match dotenv::laravel_cast(value?) {
                    Some(value) => found.insert(name.to_owned(), (value.to_owned(), origin)),
                    // `NULL` in the process takes the file's value away, as it does in Laravel.
                    None => found.remove(name),
                };
            }
        }
        Ok(Self { found })
    }

    /// Writes what the variables mean over `settings`.
    /// # Errors
    /// A variable's value is none that the setting takes; it names the variable.
    pub(super) fn apply_laravel(&self, settings: &mut Settings) -> Result<(), Error> {
        for (variable, key) in [
            ("REVERB_SERVER_HOST", "server.host"),
            ("REVERB_SERVER_PORT", "server.port"),
            ("REVERB_SERVER_PATH", "server.path"),
        ] {
            if let Some(setting) = self.variable_setting(variable) {
                settings.set_key(key, setting)?;
            }
        }
        if let Some(names) = self.app_variables() {
            let mut app = AppSettings::new(self.variable_origin(names.id));
            app.drop_in = Some(names.drop_in);
            for (variable, key) in [(names.id, "id"), (names.key, "key"), (names.secret, "secret")]
            {
                self.set_from(&mut app, key, variable)?;
            }
            if names.id == REVERB.id {
                self.reverb_app(&mut app, &mut settings.warnings)?;
            } else {
                self.listen_as_pusher(settings)?;
            }
            // The app of the environment stands in the place of those of other sources: it is the one that this
            // folder's backend uses.
            settings.apps = vec![app];
        }
        self.apply_scaling(settings)
    }

    /// The three variables of the app that is served.
    /// All three, or none: with two there is no app, and the third is asked for.
    fn app_variables(&self) -> Option<AppVariables> {
        [REVERB, PUSHER].into_iter().find(|names| self.has_all(names))
    }

    /// The addresses that the app's own settings have for the server, with Laravel's defaults: its backend's,
    /// and what its pages are built with. An app of Pusher's without a host is for Pusher's own servers.
    pub(super) fn public_addresses(&self) -> Vec<PublicAddress> {
        let Some(names) = self.app_variables() else { return Vec::new() };
        // Without a path Reverb serves at the root.
        let path = self.variable_text("REVERB_SERVER_PATH").unwrap_or_default().trim_matches('/');
        let at = |said_by: &&'static str| {
            let text = |name: &str| self.variable_text(&format!("{said_by}{name}"));
            let host = text("HOST")?;
            let scheme = text("SCHEME").unwrap_or("https");
            let port = text("PORT").unwrap_or("443");
            // One that is no host is told to the operator as it is written.
            let host = url_host(host).unwrap_or_else(|_| host.to_owned());
            Some(PublicAddress { url: format!("{scheme}://{host}:{port}/{path}"), said_by })
        };
        let mut found: Vec<PublicAddress> = names.addresses.iter().filter_map(at).collect();
        found.dedup_by(|page, backend| page.url == backend.url);
        found
    }

    /// An app of laravel-websockets or Soketi on the same machine finds its server by `PUSHER_HOST` and
    /// `PUSHER_PORT`; there is no other variable for the port to listen on. Ports 80 and 443 are a proxy's.
    fn listen_as_pusher(&self, settings: &mut Settings) -> Result<(), Error> {
        let is_local = self.variable_text("PUSHER_HOST").is_some_and(is_this_machine);
        // A Pusher server on another machine has an address of its own.
        let port = self.variable_setting("PUSHER_PORT").filter(|_| is_local);
        match port.filter(|_| !matches!(self.variable_text("PUSHER_PORT"), Some("80" | "443"))) {
            Some(port) if !settings.server.contains_key("server.port") => {
                settings.set_key("server.port", port)
            }
            _ => Ok(()),
        }
    }

    /// The error of an app of which only some of the three variables are there.
    /// For the message of a server that has no app.
    pub(super) fn incomplete_app(&self) -> Option<Error> {
        [REVERB, PUSHER].into_iter().find_map(|names| {
            let present =
                names.all_three().into_iter().find(|name| self.variable_text(name).is_some())?;
            let missing =
                names.all_three().into_iter().find(|name| self.variable_text(name).is_none())?;
            let problem = format!("{missing} is missing: an app has an id, a key and a secret");
            Some(Error::at_setting(&self.variable_origin(present), present, problem))
        })
    }

    /// Translates the limits that Reverb gives an app. A limit with a different meaning only ever raises Fanfare's
    /// own, so that an app that worked with Reverb still works.
    fn reverb_app(&self, app: &mut AppSettings, warnings: &mut Vec<String>) -> Result<(), Error> {
        self.set_from(app, "activity_timeout", "REVERB_APP_ACTIVITY_TIMEOUT")?;
        self.set_from(app, "max_connections", "REVERB_APP_MAX_CONNECTIONS")?;
        self.set_from(app, "max_message_size", "REVERB_APP_MAX_MESSAGE_SIZE")?;
        self.client_events(app, warnings)?;
        self.set_rate_limit(app, warnings)?;
        // Reverb limits whole requests and messages, and Fanfare an event's data. Raised limits mean that the app
        // sends larger events.
        for variable in ["REVERB_MAX_REQUEST_SIZE", "REVERB_APP_MAX_MESSAGE_SIZE"] {
            let Some(setting) = self.variable_setting(variable) else { continue };
            let size = parse_number(&setting, variable)?;
            let before = app.values.get("max_event_data").map(|setting| &setting.value);
            // The larger of the two counts.
            let before = if let Some(Value::Integer(size)) = before { *size } else { 0 };
            if size > DEFAULT_EVENT_BYTES && i64::try_from(size).is_ok_and(|size| size > before) {
                self.set_from(app, "max_event_data", variable)?;
            }
        }
        if self.variable_text("REVERB_APP_PING_INTERVAL").is_some_and(|interval| interval != "60") {
            warnings.push(
                "REVERB_APP_PING_INTERVAL has no effect: a connection is pinged after its \
                 activity timeout and 25 seconds more of silence"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Reverb accepts client events from members by default; Fanfare's own default differs.
    fn client_events(
        &self,
        app: &mut AppSettings,
        warnings: &mut Vec<String>,
    ) -> Result<(), Error> {
        let variable = "REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM";
        let (value, origin) = match self.variable_setting(variable) {
            None => ("members", SettingOrigin::Implied(REVERB.id)),
            Some(Setting { value: Value::Raw(text), origin }) => match text.as_str() {
                "members" => ("members", origin),
                "none" => ("none", origin),
                "all" => {
                    warnings.push(format!(
                        "{variable}=all is taken as members: who sends to a channel must be \
                         subscribed to it"
                    ));
                    ("members", origin)
                }
                other => {
                    let problem =
                        format!("expected \"members\", \"all\" or \"none\", found {other:?}");
                    return Err(Error::at_setting(&origin, variable, problem));
                }
            },
            Some(other) => return Err(Error::at_setting(&other.origin, variable, "expected text")),
        };
        let value = Value::Text(value.to_owned());
        app.set_key("apps[0]", "client_events", Setting { value, origin })
    }

    /// Translates Reverb's rate limit. Reverb counts every message of a connection over a window of seconds. Here
    /// the same number is a bucket's size, which refills in that time. Whispers have no other limit then.
    fn set_rate_limit(
        &self,
        app: &mut AppSettings,
        warnings: &mut Vec<String>,
    ) -> Result<(), Error> {
        let variable = "REVERB_APP_RATE_LIMITING_ENABLED";
        let none = Setting { value: Value::Integer(0), origin: SettingOrigin::Implied(REVERB.id) };
        // Reverb has one limit for all messages.
        app.set_key("apps[0]", "client_events_per_second", none)?;
        if self.variable_text(variable) != Some("true") {
            if self.variable_text(variable).is_some_and(|text| !matches!(text, "false" | "0")) {
                warnings.push(format!("{variable}: only true switches the limit on"));
            }
            return Ok(());
        }
        let of = |variable| match self.variable_setting(variable) {
            Some(setting) => parse_number(&setting, variable),
            None => Ok(60),
        };
        // Zero would close every connection with its first message.
        let attempts = of("REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS")?.max(1);
        let seconds = of("REVERB_APP_RATE_LIMIT_DECAY_SECONDS")?.max(1);
        let terminate = "REVERB_APP_RATE_LIMIT_TERMINATE";
        // PHP takes for true whatever is not empty and not 0.
        if self.variable_text(terminate).is_some_and(|text| !matches!(text, "false" | "0")) {
            let value = Value::Text("close".to_owned());
            let setting = Setting { value, origin: self.variable_origin(terminate) };
            app.set_key("apps[0]", "messages_over_limit", setting)?;
        }
        let value = Value::Text(format!("{attempts}/{seconds}s"));
        let setting = Setting { value, origin: self.variable_origin(variable) };
        app.set_key("apps[0]", "messages_per_second", setting)
    }

    /// Each with a text in it.
    fn has_all(&self, names: &AppVariables) -> bool {
        names.all_three().into_iter().all(|name| self.variable_text(name).is_some())
    }

    /// A variable's text; one that is empty counts as not set.
    fn variable_text(&self, variable: &str) -> Option<&str> {
        let (text, _) = self.found.get(variable)?;
        Some(text.as_str()).filter(|text| !text.is_empty())
    }

    /// Where it was written, for messages and `config show`.
    fn variable_origin(&self, variable: &str) -> SettingOrigin {
        self.found.get(variable).map_or(SettingOrigin::Default, |(_, origin)| origin.clone())
    }

    /// Untyped: the key decides what it has to be.
    fn variable_setting(&self, variable: &str) -> Option<Setting> {
        let value = Value::Raw(self.variable_text(variable)?.to_owned());
        Some(Setting { value, origin: self.variable_origin(variable) })
    }

    /// Nothing if the variable is not set.
    fn set_from(&self, app: &mut AppSettings, key: &str, variable: &str) -> Result<(), Error> {
        match self.variable_setting(variable) {
            Some(setting) => app.set_key("apps[0]", key, setting),
            None => Ok(()),
        }
    }
}

/// By which a `.env` of an app on the same machine is known.
fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// For the few numbers that are compared before they are set.
fn parse_number(setting: &Setting, variable: &str) -> Result<u64, Error> {
    super::value::count(&setting.value, 0).map_err(|wanted| {
        let problem = format!("expected {wanted}, found {}", setting.value);
        Error::at_setting(&setting.origin, variable, problem)
    })
}

/// Whether a text may contain an app's credentials. A cheap check before a file is parsed: most `.env` files do
/// not.
pub(super) fn mentions_app(text: &str) -> bool {
    [REVERB, PUSHER]
        .iter()
        .any(|names| names.all_three().into_iter().all(|name| text.contains(name)))
}

/// Something if there is no app among these variables, with what is wrong with the one that is there in part.
pub(super) fn no_app(found: &FoundVariables) -> Option<Option<Error>> {
    let laravel = Laravel { found: found.clone() };
    let has_app = [REVERB, PUSHER].iter().any(|names| laravel.has_all(names));
    (!has_app).then(|| laravel.incomplete_app())
}

#[cfg(test)]
mod tests;
