//! The program: loads the settings, starts the log and the server, and prints what it serves. Every failure to start is
//! one line and an exit code.

mod banner;
mod daemon;
mod handover;
mod journald;
mod systemd;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};
use fanfare::cli::running::RunningApp;
use fanfare::config::{self, CliCommand, Config, ConfigCommand, Flags, LoadedSettings};
use fanfare::server::UnusableSetting;
use fanfare::{cli, server};
use tracing::level_filters::LevelFilter;
use tracing::{debug, warn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

use daemon::{ExitError, InheritedListener};
use journald::PriorityFormat;

/// The exit code for what was passed to the program and is of no use, `EX_OSERR` of sysexits.h.
const OS_ERROR: u8 = 71;

/// The exit code for wrong usage, clap's own.
const USAGE: u8 = 2;

/// Commands first, for most of them need no settings; then the server. The exit code is 0, 1 for a
/// command that failed, 2 for wrong usage, or one of sysexits.h: 71 for what was passed to the
/// program, 78 for settings.
fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => return usage_error(&error),
    };
    // A folder that was deleted has no `.env` to read; an empty path finds none either.
    let folder = std::env::current_dir().unwrap_or_default();
    if let Some(CliCommand::Tool(tool)) = &flags.command {
        return match cli::run_tool(tool, &flags, std::env::vars_os(), &folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail_with(&failure, 1),
        };
    }
    if let Some(command) = &flags.command {
        let answer = match command {
            CliCommand::Config(ConfigCommand::Check) => {
                load_checked(&flags, &folder, server::examine)
                    .map(|loaded| Some(loaded.summary_line()))
            }
            _ => config::answer_command(command, &flags, std::env::vars_os(), &folder),
        };
        return match answer {
            Ok(text) => {
                // A command without output prints nothing.
                let text = text.unwrap_or_default();
                // A reader that closes the pipe early (`| head`) has read enough; that is no error.
                let _ = write!(io::stdout(), "{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail_with(&error, error.exit_code()),
        };
    }
    let LoadedSettings { config, warnings, passed_over, .. } =
        match load_checked(&flags, &folder, server::check) {
            Ok(loaded) => loaded,
            Err(error) => return fail_with(&error, error.exit_code()),
        };
    let inherited = match InheritedListener::find_inherited() {
        Ok(inherited) => inherited,
        Err(error) => return fail_with(&error, OS_ERROR),
    };
    // Not before: what is wrong with the settings is one line, whatever the log's format.
    let set_level = start_log(&config.log);
    for warning in warnings {
        warn!("{warning}");
    }
    for file in config::readable_secrets(&flags, &config, &folder) {
        warn!(file = %file.display(), "every user of this machine can read the secrets in it: chmod o-r");
    }
    if !passed_over.is_empty() {
        debug!("a platform's variables are no settings: {}", passed_over.join(", "));
    }
    let (made, own) = (config.made_app.clone(), config.server.clone());
    // For the commands in the next terminal, until this process ends.
    let mut _running = None;
    // A certificate that is being replaced is no reason to leave the apps as they were.
    let load = || config::load_settings(&flags, std::env::vars_os(), &folder);
    match daemon::run_server(config, (load, set_level), inherited, |address, api| {
        let Some(made) = made else { return };
        let shows_page = own.shows_page_at(address.tcp());
        let greeting = banner::banner_text(&made, address.tcp(), &own.path, shows_page);
        let text = if io::stdout().is_terminal() {
            greeting.for_terminal()
        } else {
            greeting.as_comments()
        };
        // A closed stdout (`fanfare | head`) is no reason not to serve.
        let _ = io::stdout().write_all(text.as_bytes());
        let Some(addr) = address.tcp() else { return };
        match RunningApp::new(&made, addr, api, &own).write_file() {
            Ok(file) => _running = Some(file),
            Err(error) => debug!(%error, "other commands will not find this server by themselves"),
        }
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ExitError(error, code)) => fail_with(&error, code),
    }
}

/// The settings, with what they name looked at: files, addresses, the program's own features.
///
/// # Errors
/// The first fault, with the file and the line or the variable where it was written.
fn load_checked(
    flags: &Flags,
    folder: &Path,
    look: fn(&Config) -> Result<(), UnusableSetting>,
) -> Result<LoadedSettings, config::Error> {
    let loaded = config::load_settings(flags, std::env::vars_os(), folder)?;
    look(&loaded.config).map_err(|UnusableSetting { setting, problem, exit_code }| {
        loaded.setting_error(setting, &problem).with_code(exit_code)
    })?;
    Ok(loaded)
}

/// Ends with what clap has to say, or with the right word for a command that is another server's.
fn usage_error(error: &clap::Error) -> ExitCode {
    let word = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(command)) => config::right_word(command),
        _ => None,
    };
    match word {
        Some(sentence) => fail_with(&sentence, USAGE),
        None => error.exit(),
    }
}

/// Prints one line on standard error, since the log may not have started yet. Under journald the line has its
/// priority in front.
fn fail_with(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    let grave = if journald::is_listening() { journald::ERROR } else { "" };
    // Nothing is left to report to if stderr is closed; the exit code still tells.
    let _ = writeln!(io::stderr(), "{grave}fanfare: {error}");
    ExitCode::from(code)
}

/// Starts the log on standard error, apart from the output for people on standard output. Under journald each line
/// has its priority in front (sd-daemon(3)) and no time, which journald adds. The returned function changes the
/// level.
fn start_log(log: &config::LogConfig) -> impl Fn(LevelFilter) + use<> {
    let (level, handle) = reload::Layer::new(log.level);
    let format = fmt::layer().with_target(false).with_writer(io::stderr);
    let format = match (log.json, journald::is_listening()) {
        (true, true) => format.json().flatten_event(true).map_event_format(PriorityFormat).boxed(),
        // `flatten_event`: fields stand beside `message`, where log pipelines look for them.
        (true, false) => format.json().flatten_event(true).boxed(),
        (false, true) => {
            format.with_ansi(false).without_time().map_event_format(PriorityFormat).boxed()
        }
        (false, false) => format.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(level).with(format).init();
    move |level| {
        // It fails only once nothing logs any more.
        let _ = handle.reload(level);
    }
}
