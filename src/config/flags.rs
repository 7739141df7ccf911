//! The command line: the commands, and flags for settings that people type. Every other setting is set in a file or in
//! the environment. The doc comments here are the help texts.

use std::fmt;
use std::num::NonZero;
use std::path::PathBuf;

use super::error::{Error, SettingOrigin};
use super::settings::{Setting, Settings};
use super::value::Value;
use super::version::VERSION;

/// The heading of the flags that every command has.
const SETTINGS: &str = "Settings";

/// The heading of the flags that choose a server.
const SERVER: &str = "Server";

/// Help text below the flags and commands.
const MORE: &str = "\
Without a command, the server runs until it is stopped.

Each setting has a key in the file and an environment variable, such as server.port and FANFARE_SERVER__PORT. REVERB_* \
and SOKETI_* are read too. `fanfare config show` prints all settings and where each comes from.

Signals: HUP reads the settings again, USR2 hands over to a new process, TERM and INT stop.
Exit codes: 78 wrong settings, 77 a file that may not be read, 69 an address that cannot be listened on, 71 a failure of \
the system, 1 a command that failed, 2 wrong usage.";

/// A broadcast server for the Pusher protocol: a drop-in for Laravel Reverb and Soketi.
#[derive(clap::Parser, Clone, Default, Debug)]
#[command(name = "fanfare", version = VERSION, after_help = MORE)]
pub struct Flags {
    /// Read settings from a TOML file.
    #[arg(long, value_name = "FILE", global = true, help_heading = SETTINGS)]
    pub config: Option<PathBuf>,
    /// Read a Laravel app's environment file [default: .env, if it holds an app's credentials].
    #[arg(long, value_name = "FILE", global = true, help_heading = SETTINGS)]
    pub env_file: Option<PathBuf>,
    /// Read a Soketi server's JSON file.
    #[arg(long, value_name = "FILE", global = true, help_heading = SETTINGS)]
    pub soketi_config: Option<PathBuf>,
    /// Read a laravel-echo-server's JSON file.
    #[arg(long, value_name = "FILE", global = true, help_heading = SETTINGS)]
    pub echo_server_config: Option<PathBuf>,
    /// Listen on this address.
    #[arg(long, global = true, help_heading = SETTINGS)]
    pub host: Option<String>,
    /// Listen on this port; 0 is any free one.
    #[arg(long, global = true, help_heading = SETTINGS)]
    pub port: Option<String>,
    /// Serve all routes under this path.
    #[arg(long, global = true, help_heading = SETTINGS)]
    pub path: Option<String>,
    /// Minimum log level: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", global = true, help_heading = SETTINGS)]
    pub log_level: Option<String>,
    /// Log format: text or json.
    #[arg(long, value_name = "FORMAT", global = true, help_heading = SETTINGS)]
    pub log_format: Option<String>,
    /// Minimum log level: debug, with each frame's event and channel.
    #[arg(long, conflicts_with = "log_level", global = true, help_heading = SETTINGS)]
    pub debug: bool,
    /// The command; `None` serves.
    #[command(subcommand)]
    pub command: Option<CliCommand>,
}

/// A command other than serving.
#[expect(clippy::large_enum_variant, reason = "there is one, read once")]
#[derive(clap::Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum CliCommand {
    /// Check or print the settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print new credentials for an app.
    Keys,
    /// A command that mostly talks to a running server.
    #[command(flatten)]
    Tool(Tool),
}

/// Commands that mostly talk to a running server.
#[derive(clap::Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum Tool {
    /// Trigger an event on a channel.
    Trigger {
        /// The channel's name, as clients subscribe to it: orders, private-orders, presence-room.
        channel: String,
        /// The event's name, as clients listen for it.
        event: String,
        /// The event's data, most often JSON.
        data: String,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// Print the events of channels as they arrive.
    Listen {
        /// The channels' names. Private and presence channels are joined with the app's secret.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        channels: Vec<String>,
        /// Every event of every app, from the debug console's feed.
        #[arg(long)]
        all: bool,
        /// The user id to join presence channels with.
        #[arg(long, value_name = "ID")]
        user: Option<String>,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// List the occupied channels.
    Channels {
        /// Only channels whose names begin with this.
        #[arg(long)]
        prefix: Option<String>,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// Close all connections of a user.
    Terminate {
        /// The id that the user is signed in with, or present on a channel.
        user: String,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// Remove a user from channels; its connections stay open.
    Revoke {
        /// The id that the user is signed in with, or present on a channel.
        user: String,
        /// 1 to 100 channels. The user cannot join them again before it reconnects.
        #[arg(required = true)]
        channels: Vec<String>,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// Close all connections of a user so that its clients reconnect at once, with new signatures.
    Reconnect {
        /// The id that the user is signed in with, or present on a channel.
        user: String,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// Print what happens on a server as it happens, from the debug console's feed.
    Watch {
        #[command(flatten)]
        args: WatchArgs,
        #[command(flatten)]
        at: ConsoleArgs,
    },
    /// Show a server's figures once a second, from the debug console's feed; q quits.
    Top {
        #[command(flatten)]
        at: ConsoleArgs,
    },
    /// Check a server, from its settings to an event that arrives, and say how to fix what is wrong.
    Doctor {
        /// Check again and again until interrupted, and print what changes.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        at: TargetArgs,
    },
    /// Print how many sockets this machine can carry, and which limit is reached first.
    Capacity {
        /// How many addresses of this server a proxy connects to; each has its own ephemeral ports.
        #[arg(long, value_name = "COUNT", default_value = "1")]
        upstreams: NonZero<u32>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Exit with 0 if the server of the settings answers, for health checks of containers.
    Healthcheck,
    /// Print the completion script of a shell.
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Man { folder: PathBuf },
}

/// Which server and which app: those of the settings unless given.
#[derive(clap::Args, Clone, PartialEq, Eq, Default)]
pub struct TargetArgs {
    /// URL of the server as clients reach it, http:// or https:// [default: from the settings].
    #[arg(long, help_heading = SERVER)]
    pub url: Option<String>,
    /// URL of its HTTP API, if that is another, or `unix:` and a path [default: with --url, the same].
    #[arg(long, value_name = "URL", help_heading = SERVER)]
    pub api_url: Option<String>,
    /// The app's id, if the settings have several apps.
    #[arg(long, value_name = "ID", help_heading = SERVER)]
    pub app_id: Option<String>,
    /// The app's key, if the app is not in the settings.
    #[arg(long, help_heading = SERVER)]
    pub key: Option<String>,
    /// The app's secret. Other users of this machine can see it: a file or a variable is safer.
    #[arg(long, help_heading = SERVER)]
    pub secret: Option<String>,
    /// The Origin header of sockets [default: one that the app allows].
    #[arg(long, help_heading = SERVER)]
    pub origin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which debug console: that of the server of the settings unless given.
#[derive(clap::Args, Clone, PartialEq, Eq, Default)]
pub struct ConsoleArgs {
    /// URL of the server, http:// or https:// [default: from the settings].
    #[arg(long, help_heading = SERVER)]
    pub url: Option<String>,
    /// The console's token. Other users of this machine can see it: the setting or its variable is safer.
    #[arg(long, help_heading = SERVER)]
    pub token: Option<String>,
}

impl fmt::Debug for ConsoleArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsoleArgs {{ url: {:?}, .. }}", self.url)
    }
}

/// The filter of `fanfare watch`; in each text `*` stands for any characters.
#[derive(clap::Args, Clone, PartialEq, Eq, Default, Debug)]
pub struct WatchArgs {
    /// Only of the app with this id.
    #[arg(long, value_name = "ID")]
    pub app: Option<String>,
    /// Only of channels with this name, such as "private-*".
    #[arg(long, value_name = "NAME")]
    pub channel: Option<String>,
    /// Only events with this name.
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Only of the socket with this id.
    #[arg(long, value_name = "ID")]
    pub socket: Option<String>,
    /// Only of the user with this id.
    #[arg(long, value_name = "ID")]
    pub user: Option<String>,
    /// Only of these kinds, such as refused,closed. An unknown kind prints the list of them.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<String>,
    /// Show the events' data, too.
    #[arg(long)]
    pub payloads: bool,
    /// Print lines of JSON, figures included.
    #[arg(long)]
    pub json: bool,
}

/// The subcommands of `fanfare config`.
#[derive(clap::Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum ConfigCommand {
    /// Check whether the settings are valid.
    Check,
    /// Print every setting and where it comes from; secrets are masked.
    Show {
        /// Print JSON: the settings by name, and under "sources" where each comes from.
        #[arg(long)]
        json: bool,
    },
}

impl fmt::Debug for TargetArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, app_id, json, .. } = self;
        write!(f, "At {{ url: {url:?}, app_id: {app_id:?}, json: {json}, .. }}")
    }
}

/// A hint for a mistyped command: the command of another server, or a name that Fanfare could have had for it.
pub fn right_word(command: &str) -> Option<String> {
    let sentence = match command {
        "serve" | "start" | "run" | "up" | "server" | "reverb:start" | "websockets:serve" => {
            "`fanfare` without a command serves, with the same flags; Soketi's --config is --soketi-config"
        }
        "reload" => "`kill -HUP` its process, or `systemctl reload fanfare`",
        "restart" | "reverb:restart" | "websockets:restart" => {
            "`kill -USR2` its process starts a new one that takes over, or `systemctl restart fanfare`"
        }
        "stop" => "`kill` its process, or `systemctl stop fanfare`",
        _ => return None,
    };
    Some(format!("{command} is no command: {sentence}"))
}

impl Flags {
    /// Writes the flags over `settings`.
    pub(super) fn apply_flags(&self, settings: &mut Settings) -> Result<(), Error> {
        let debug = self.debug.then(|| "debug".to_owned());
        let level = if self.debug { ("--debug", &debug) } else { ("--log-level", &self.log_level) };
        for ((flag, value), key) in [
            (("--host", &self.host), "server.host"),
            (("--port", &self.port), "server.port"),
            (("--path", &self.path), "server.path"),
            (level, "log.level"),
            (("--log-format", &self.log_format), "log.format"),
        ] {
            if let Some(value) = value {
                let value = Value::Raw(value.clone());
                settings.set_key(key, Setting { value, origin: SettingOrigin::Flag(flag) })?;
            }
        }
        Ok(())
    }
}
