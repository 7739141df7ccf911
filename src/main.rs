//! The program: reads its settings, starts the log and the server, says what it serves, and waits for the
//! signal to stop. Every failure to start is one line and an exit code.

mod greeting;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use fanfare::config::{self, Flags, Loaded};
use fanfare::server;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// The exit code for a server that cannot listen, `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: u8 = 69;

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
    let at = format!("{}:{}", config.server.host, config.server.port);
    match serve(config, &at, |addr| {
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

/// Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.
fn serve(
    config: config::Config,
    at: &str,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), (String, u8)> {
    let os_error = |error: io::Error| (error.to_string(), OS_ERROR);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(os_error)?.block_on(async {
        // Before anybody can see that the server is up and tell it to stop.
        let mut terminate = signal(SignalKind::terminate()).map_err(os_error)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(os_error)?;
        let running = server::start(config)
            .map_err(|error| (format!("cannot listen on {at}: {error}"), UNAVAILABLE))?;
        listening(running.addr());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
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
