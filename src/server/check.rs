//! Checks before a start, and further ones for `fanfare config check`: that certificates are valid now, and that what
//! the settings name can be used on this machine.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use super::{certificates, cluster, lookup, resolve};
use crate::config::{self, Config, UnixSocket};
use crate::hub::Hub;

/// `EX_CONFIG`, `EX_NOPERM` and `EX_UNAVAILABLE` of sysexits.h.
const CONFIG: u8 = 78;
/// `EX_NOPERM` of sysexits.h.
const NO_PERMISSION: u8 = 77;
/// `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// A setting that turned out to be of no use.
#[derive(Debug)]
pub struct UnusableSetting {
    /// Its dotted name.
    pub setting: &'static str,
    /// The fault, in words that follow the setting's name and a colon.
    pub problem: String,
    /// By sysexits.h.
    pub exit_code: u8,
}

impl UnusableSetting {
    /// `problem` follows the setting's name and a colon.
    pub(super) fn new(setting: &'static str, problem: impl fmt::Display) -> Self {
        Self { setting, problem: problem.to_string(), exit_code: CONFIG }
    }

    /// The system's error about a path that a setting names.
    pub(super) fn path(setting: &'static str, path: &Path, error: &io::Error) -> Self {
        let mut wrong = Self::new(setting, format_args!("{}: {error}", path.display()));
        if error.kind() == io::ErrorKind::PermissionDenied {
            // Told apart for service managers: it is the installation that is wrong, not the
            // settings.
            wrong.exit_code = NO_PERMISSION;
        }
        wrong
    }
}

/// Why a server did not start, as one line.
#[derive(Debug)]
pub enum StartError {
    /// It has to be corrected before another try.
    Setting(UnusableSetting),
    /// The address cannot be listened on, or the machine gave out.
    Listen(io::Error),
}

impl StartError {
    /// The exit code, by sysexits.h. 69 tells a service manager that a retry may help; 77 and 78 that a person has
    /// to act.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting(wrong) => wrong.exit_code,
            Self::Listen(_) => UNAVAILABLE,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(wrong) => write!(f, "{}: {}", wrong.setting, wrong.problem),
            Self::Listen(error) => write!(f, "cannot listen: {error}"),
        }
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Listen(error)
    }
}

impl From<UnusableSetting> for StartError {
    fn from(wrong: UnusableSetting) -> Self {
        Self::Setting(wrong)
    }
}

/// Looks for what would keep a server from starting with these settings, whatever the machine is like.
///
/// # Errors
/// The setting, and what is wrong with it.
pub fn check(config: &Config) -> Result<(), UnusableSetting> {
    certificates(&config.server)?;
    cluster::prepare(&config.cluster, 1, &Arc::default(), &Hub::new(1, 1))?;
    lookup::check(config.sql.as_ref())
}

/// Checks everything that a start checks, and also faults that a start would only warn about. For `config check`.
///
/// # Errors
/// The setting, and its fault.
pub fn examine(config: &Config) -> Result<(), UnusableSetting> {
    check(config)?;
    if let Some(certificates) = certificates(&config.server)? {
        certificates
            .doubt()
            .map_or(Ok(()), |doubt| Err(UnusableSetting::new("server.tls.cert", doubt)))?;
    }
    if let Some(spool) = &config.webhooks.spool {
        spool_is_usable(spool)
            .map_err(|error| UnusableSetting::path("webhooks.spool", spool, &error))?;
    }
    match &config.server.unix_socket {
        Some(socket) => has_folder("server.unix_socket.path", socket)?,
        None => host_is_here("server.host", &config.server.host)?,
    }
    if let Some(api) = &config.server.api {
        match &api.unix_socket {
            Some(socket) => has_folder("server.api.unix_socket.path", socket)?,
            None => host_is_here("server.api.host", &api.host)?,
        }
    }
    let config::MetricsConfig { enabled, host, port, .. } = &config.metrics;
    if *enabled && *port > 0 { host_is_here("metrics.host", host) } else { Ok(()) }
}

/// Checks that the folder of a socket's file exists.
fn has_folder(setting: &'static str, socket: &UnixSocket) -> Result<(), UnusableSetting> {
    let folder = socket.path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let listed = folder.map_or(Ok(()), |folder| fs::metadata(folder).map(drop));
    listed.map_err(|error| UnusableSetting::path(setting, folder.unwrap_or(&socket.path), &error))
}

/// Checks that an address belongs to this machine. Its port may be in use by the running server.
fn host_is_here(setting: &'static str, host: &str) -> Result<(), UnusableSetting> {
    let bound = resolve(host, 0).and_then(TcpListener::bind);
    bound.map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            UnusableSetting::new(setting, format_args!("{host}: this machine has no such address"))
        }
        _ => UnusableSetting::new(setting, format_args!("{host}: {error}")),
    })
}

/// Checks that files can be created in the spool's folder, or in the folder that it would be created in. It is not
/// created here, since the server may run as another user.
fn spool_is_usable(folder: &Path) -> io::Result<()> {
    let there = folder.ancestors().find(|path| path.exists());
    let there = there.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if !there.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let probe = there.join(format!(".fanfare-check-{}", std::process::id()));
    OpenOptions::new().write(true).create_new(true).open(&probe)?;
    fs::remove_file(probe)
}
