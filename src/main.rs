//! The program: reads its settings, starts the log and the server, says what it serves, and waits for the
//! signal to stop. Every failure to start is one line and an exit code.

mod greeting;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use fanfare::config::{self, Flags, Loaded};
use fanfare::server;
use fanfare::server::reload::{self, Reloader};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// The exit code for a failure of the machine, `EX_OSERR` of sysexits.h.
const OS_ERROR: u8 = 71;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let folder = std::env::current_dir().unwrap_or_default();
    if let Some(command) = &flags.command {
        return match config::answer(command, &flags, std::env::vars_os(), &folder) {
            Ok(text) => {
                // Whoever closes the pipe has read enough.
                let _ = write!(io::stdout(), "{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error, error.exit_code()),
        };
    }
    let Loaded { config, warnings, .. } = match config::load(&flags, std::env::vars_os(), &folder) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error, error.exit_code()),
    };
    start_log(&config.log);
    for warning in warnings {
        warn!("{warning}");
    }
    let (made, path, try_out) =
        (config.made_app.clone(), config.server.path.clone(), config.server.try_out);
    let load = || config::load(&flags, std::env::vars_os(), &folder);
    match serve(config, load, |addr| {
        let Some(made) = made else { return };
        let greeting = greeting::text(&made, addr, &path, try_out);
        let text = if io::stdout().is_terminal() { greeting.pretty() } else { greeting.plain() };
        let _ = io::stdout().write_all(text.as_bytes());
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, code)) => fail(&error, code),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "fanfare: {error}");
    ExitCode::from(code)
}

/// Serves until SIGTERM or SIGINT, then drains; SIGHUP reloads. A second signal to stop ends the process
/// at once.
fn serve(
    config: config::Config,
    load: impl Fn() -> Result<Loaded, config::Error>,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), (String, u8)> {
    let os_error = |error: io::Error| (error.to_string(), OS_ERROR);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(os_error)?.block_on(async {
        // Before anybody can see that the server is up and tell it to stop.
        let mut terminate = signal(SignalKind::terminate()).map_err(os_error)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(os_error)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(os_error)?;
        let running = server::start(config.clone())
            .map_err(|error| (error.to_string(), error.exit_code()))?;
        listening(running.addr());
        let mut looks = tokio::time::interval(reload::LOOK);
        let mut reloader = Reloader::new(&running, &config, load);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reloader.reload(),
                _ = looks.tick() => reloader.look(),
            }
        }
        drop(reloader);
        info!(connections = running.shared().connections(), "stopping");
        running.drain();
        let ended = tokio::task::spawn_blocking(|| running.wait());
        tokio::select! {
            ended = ended => ended.unwrap_or_else(|error| Err(error.into())).map_err(os_error)?,
            _ = terminate.recv() => std::process::exit(128 + 15),
            _ = interrupt.recv() => std::process::exit(128 + 2),
        }
        info!("stopped");
        Ok(())
    })
}

/// Starts the log on standard error, so that what the program prints for people stays apart from it.
fn start_log(log: &config::Log) {
    let format = tracing_subscriber::fmt()
        .with_max_level(log.level)
        .with_target(false)
        .with_writer(io::stderr);
    if log.json {
        format.json().flatten_event(true).init();
    } else {
        format.with_ansi(io::stderr().is_terminal()).init();
    }
}
