//! `sd_notify(3)` and the watchdog: datagrams of `NAME=value` lines to `NOTIFY_SOCKET`. Without systemd nothing is
//! sent.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, sockopt};
use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

/// How long a notice waits for room. Systemd reads at once, but another supervisor may not, and signals are not heard
/// meanwhile.
const NOTICE_WAIT: Duration = Duration::from_millis(100);

/// The line to systemd, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    /// The socket of `NOTIFY_SOCKET`; `None` without systemd.
    socket: Option<UnixDatagram>,
    /// The time within which systemd wants to hear of life, by `WATCHDOG_USEC`.
    watchdog: Option<Duration>,
    /// The last notice failed, which is logged once until one arrives again.
    is_unheard: Cell<bool>,
}

impl Systemd {
    /// By the variables that systemd sets.
    pub(crate) fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let Some(path) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let connected = address(&path).and_then(|addr| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&addr)?;
            socket.set_write_timeout(Some(NOTICE_WAIT))?;
            Ok(socket)
        });
        let socket = connected.inspect_err(|error| warn!(%error, "systemd cannot be told")).ok();
        // Meant for another process if it names one.
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let within = variable("WATCHDOG_USEC").and_then(|usec| usec.parse().ok());
        let watchdog = within.filter(|_| ours).map(Duration::from_micros);
        Self { socket, watchdog, ..Self::default() }
    }

    /// How often to say [`Self::alive`]: twice in the time that systemd waits for it.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|within| within / 2)
    }

    /// Reports that the server serves (`Type=notify`).
    pub(crate) fn ready(&self) {
        self.notify("READY=1");
    }

    /// Resets the watchdog.
    pub(crate) fn alive(&self) {
        self.notify("WATCHDOG=1");
    }

    /// Until the next [`Self::ready`].
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// It may take so long, whatever systemd expects.
    pub(crate) fn stopping(&self, within: Duration) {
        self.notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", within.as_micros()));
    }

    /// Another process goes on for this one.
    pub(crate) fn succeeded_by(&self, pid: u32) {
        self.notify(&format!("MAINPID={pid}"));
    }

    /// Sends a state. A failure is only logged, since the server works without systemd's attention.
    fn notify(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        let failed = socket.send(state.as_bytes()).err();
        let was_unheard = self.is_unheard.replace(failed.is_some());
        if let Some(error) = failed.filter(|_| !was_unheard) {
            warn!(%error, "systemd cannot be told {state}");
        }
    }
}

/// The listening sockets that systemd opened for this process (`sd_listen_fds(3)`) and their names, none if it did not. To
/// be called once, for it owns what it finds; a process started from here does not inherit them.
///
/// # Errors
/// A variable that is not a number, and a file that is no such socket.
pub(crate) fn sockets() -> io::Result<Vec<(Option<String>, OwnedFd)>> {
    let given = sd_listen_fds::get().map_err(io::Error::other)?;
    given.into_iter().map(|(name, given)| Ok((name, listener(given.into_std())?))).collect()
}

/// A listener that systemd passed, closed on exec.
/// # Errors
/// The descriptor is no listening socket.
fn listener(given: OwnedFd) -> io::Result<OwnedFd> {
    fcntl_setfd(&given, FdFlags::CLOEXEC)?;
    let family = sockopt::socket_domain(&given)?;
    let served = [AddressFamily::INET, AddressFamily::INET6, AddressFamily::UNIX].contains(&family);
    if !served || !sockopt::socket_acceptconn(&given)? {
        let problem = "the socket that was passed does not listen for TCP or on a Unix socket";
        return Err(io::Error::other(problem));
    }
    Ok(given)
}

/// A path, or a name without one after an `@`.
fn address(path: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix('@') {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(path)
}
