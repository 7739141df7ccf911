//! The server as a process: signals, systemd notifications, and the end. SIGTERM and SIGINT stop it, SIGHUP reloads,
//! SIGUSR2 hands over to a new process.

use std::future::pending;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fanfare::config::{self, Config, LoadedSettings};
use fanfare::server::reload::{self, Reloader};
use fanfare::server::{self, ListenAddress, PassedListeners, ServerHandle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep};
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};

use crate::handover::{self, Successor};
use crate::systemd::{self, Systemd};

/// The exit code for a failure of the machine, `EX_OSERR` of sysexits.h.
const OS_ERROR: u8 = 71;

/// The exit codes of a process that a second signal ended, as shells count them.
const TERMINATED: i32 = 128 + 15;
/// The same for SIGINT.
const INTERRUPTED: i32 = 128 + 2;

/// Why the process ends with an error: one line, and its exit code.
pub(crate) struct ExitError(pub(crate) String, pub(crate) u8);

impl From<io::Error> for ExitError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string(), OS_ERROR)
    }
}

/// The name by which systemd passes the socket for the HTTP API: set with `FileDescriptorName=`, or the name of its
/// unit (`sd_listen_fds_with_names(3)`).
const API: &str = "api";
/// The name of the API's socket if its unit has no `FileDescriptorName=`.
const API_UNIT: &str = "fanfare-api.socket";

/// How often the log says how many connections are left while they leave.
const PROGRESS: Duration = Duration::from_secs(5);

/// How a server stops.
enum Stop {
    /// For good, once load balancers had the time to notice.
    Retire,
    /// For good and at once.
    Drain,
    /// Another process accepts connections from now on: one that shares the listener, or the one at the other end
    /// of this stream.
    HandOver(Option<UnixStream>),
}

/// Taken together, so that none is missed between two waits.
struct Signals {
    /// SIGTERM: systemd, Docker and Kubernetes stop a service by it.
    terminate: Signal,
    /// SIGINT: Ctrl-C in a terminal.
    interrupt: Signal,
    /// SIGHUP: reads the settings again.
    hangup: Signal,
    /// SIGUSR2: starts the program anew, and hands over to it once that serves.
    successor: Signal,
}

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            successor: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Listeners that were there before this process, and stay when it ends.
pub(crate) struct InheritedListener {
    /// Listeners from systemd or the previous process.
    passed: PassedListeners,
    /// Systemd keeps them, and the files that they may have.
    by_systemd: bool,
}

impl InheritedListener {
    /// Whether the listener stays open when this process has ended.
    fn is_kept(&self) -> bool {
        self.passed.sockets.is_some() && (self.by_systemd || !handover::is_alone())
    }

    /// From systemd (`LISTEN_FDS`), or from the process before. To be called once, for it owns what it finds.
    pub(crate) fn find_inherited() -> io::Result<Self> {
        let given = systemd::sockets()?;
        if given.is_empty() {
            let (sockets, api) = (handover::inherited()?, handover::inherited_api()?);
            let clients_follow = sockets.is_some() && handover::clients_follow();
            let passed = PassedListeners { sockets, api, leave_files: false, clients_follow };
            return Ok(Self { passed, by_systemd: false });
        }
        let count = given.len();
        let mut passed = PassedListeners { leave_files: true, ..PassedListeners::default() };
        for (name, socket) in given {
            let place = match name.as_deref() {
                Some(API | API_UNIT) => &mut passed.api,
                _ => &mut passed.sockets,
            };
            if place.replace(socket).is_some() {
                let problem = format!(
                    "{count} sockets were passed, and served are one and one of the name {API:?}"
                );
                return Err(io::Error::other(problem));
            }
        }
        Ok(Self { passed, by_systemd: true })
    }
}

/// Serves until a signal stops it, then drains. A second signal ends the process at once.
///
/// # Errors
/// The server cannot start, with the matching exit code, or one of its threads failed.
pub(crate) fn run_server(
    config: Config,
    (load, set_level): (impl Fn() -> Result<LoadedSettings, config::Error>, impl Fn(LevelFilter)),
    inherited: InheritedListener,
    listening: impl FnOnce(&ListenAddress, Option<&ListenAddress>),
) -> Result<(), ExitError> {
    let systemd = Systemd::new(|name| std::env::var(name).ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the server accepts, so that a signal sent as soon as it is up is not lost.
        let mut signals = Signals::new()?;
        let (is_inherited, is_kept) = (inherited.passed.sockets.is_some(), inherited.is_kept());
        let clients_follow = inherited.passed.clients_follow;
        let mut running = server::start_on(config.clone(), inherited.passed)
            .map_err(|error| ExitError(error.to_string(), error.exit_code()))?;
        listening(running.address(), running.api_address());
        systemd.ready();
        // It waits for this before it lets go of its connections.
        if is_inherited && !inherited.by_systemd {
            handover::notify_predecessor();
        }
        if clients_follow {
            running.inherit(handover::predecessor_line()?);
        }
        let mut reloader = Reloader::new(&running, &config, load).with_level(set_level);
        let looks = (&systemd, is_kept);
        let mut stop =
            serve_until_end(&running, &mut signals, looks, &mut reloader, pending()).await;
        if !matches!(stop, Stop::HandOver(_)) {
            systemd.stopping(running.longest_end());
        }
        if matches!(stop, Stop::Retire) && !running.delay().is_zero() {
            let delay = running.delay();
            running.retire();
            info!(?delay, "stopping soon: all is served until then, and /ready says 503");
            let over = sleep(delay);
            stop = match serve_until_end(&running, &mut signals, looks, &mut reloader, over).await {
                Stop::Retire => std::process::exit(TERMINATED),
                stop => stop,
            };
        }
        drop(reloader);
        if matches!(stop, Stop::HandOver(_)) {
            running.leave_sockets();
        }
        // If the listener outlives this process, clients wait in its backlog instead of being refused.
        let stop = match stop {
            Stop::Retire | Stop::Drain if is_kept => Stop::HandOver(None),
            stop => stop,
        };
        info!(connections = running.shared().connection_count(), "stopping");
        match stop {
            Stop::Retire | Stop::Drain => running.drain(),
            Stop::HandOver(None) => running.hand_over(),
            Stop::HandOver(Some(line)) => running.hand_over_to(line),
        }
        let shared = running.shared().clone();
        let mut ended = tokio::task::spawn_blocking(|| running.wait());
        // The first after a while: most servers are empty by then.
        let mut progress = interval_at(Instant::now() + PROGRESS, PROGRESS);
        loop {
            tokio::select! {
                ended = &mut ended => break ended.unwrap_or_else(|error| Err(error.into()))?,
                _ = progress.tick() => info!(connections = shared.connection_count(), "draining"),
                _ = signals.terminate.recv() => std::process::exit(TERMINATED),
                _ = signals.interrupt.recv() => std::process::exit(INTERRUPTED),
            }
        }
        info!("stopped");
        Ok(())
    })
}

/// Serves until a signal or `over` ends it. SIGINT comes from a terminal, so there is no load balancer to wait for,
/// and the shutdown delay is skipped.
async fn serve_until_end(
    running: &ServerHandle,
    signals: &mut Signals,
    (systemd, is_kept): (&Systemd, bool),
    reloader: &mut Reloader<'_>,
    over: impl Future<Output = ()>,
) -> Stop {
    tokio::pin!(over);
    let mut looks = interval(reload::LOOK);
    let mut beats = Vec::new();
    let mut pings = interval(systemd.watchdog().unwrap_or(reload::LOOK));
    // Those that a stopped process has missed would all look at the same beats.
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next: Option<Successor> = None;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Stop::Retire,
            _ = signals.interrupt.recv() => return Stop::Drain,
            () = &mut over => return Stop::Drain,
            _ = signals.hangup.recv() => {
                systemd.reloading();
                reloader.reload();
                systemd.ready();
            }
            _ = looks.tick() => reloader.look(),
            _ = pings.tick(), if systemd.watchdog().is_some() => {
                if running.is_alive(&mut beats) {
                    systemd.alive();
                } else {
                    error!("a worker is stuck");
                }
            }
            _ = signals.successor.recv() => next = begin_succession(running, next, !is_kept),
            served = successor_serves(&mut next) => match (served, next.take()) {
                (Ok(line), Some(successor)) => {
                    info!(pid = successor.pid, "another process goes on");
                    systemd.succeeded_by(successor.pid);
                    return Stop::HandOver(Some(line));
                }
                (Err(failure), _) => error!("the new process failed, so this one goes on: {failure}"),
                (Ok(_), None) => {}
            },
        }
    }
}

/// Ready when the next process serves, with the line to it; never where none is being started.
/// `select!` may ask it again and again: nothing is lost between two calls.
async fn successor_serves(
    next: &mut Option<Successor>,
) -> Result<UnixStream, handover::HandoverError> {
    match next {
        Some(successor) => successor.wait_serving().await,
        None => pending().await,
    }
}

/// Starts the next process. A failure to start one costs nothing: this process goes on.
fn begin_succession(
    running: &ServerHandle,
    next: Option<Successor>,
    alone: bool,
) -> Option<Successor> {
    // Two at once would both take the listener, and each tell this process to stop.
    if next.is_some() {
        warn!("a new process is already being started");
        return next;
    }
    let started =
        running.listeners().and_then(|listeners| Successor::start_successor(listeners, alone));
    started.inspect_err(|error| error!(%error, "a new process cannot be started")).ok()
}
