//! The app of a server without settings, for commands in the next terminal: a file in the user's runtime directory that
//! only this user can read. The server keeps it locked, so a file left by a killed server is recognised by its missing
//! lock.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::CommandError;
use crate::config::{GeneratedApp, ServerConfig};
use crate::server::ListenAddress;

/// The suffix of the files. Other files in the folder are left alone.
const SUFFIX: &str = ".json";

/// The app that a server made for its run, and where it serves.
/// Nothing that the person who started the server was not shown on the terminal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningApp {
    /// As clients on this machine reach it.
    pub url: String,
    /// Where the HTTP API is, if that is another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// The port, which tells servers apart and names the file.
    pub port: u16,
    /// As its backend names it.
    pub id: String,
    /// As its clients name it.
    pub key: String,
    /// The app's secret; because of it only the user may read the file.
    pub secret: String,
}

/// The file of a running app, which goes when this does.
pub struct RunningAppFile {
    /// Removed when this is dropped.
    path: PathBuf,
    /// Locked until then.
    file: File,
}

impl RunningApp {
    /// The app of a server that listens at `addr`, and maybe at another address for its API.
    /// Everything but TCP is written as an absolute path: the command may run in another folder.
    pub fn new(
        made: &GeneratedApp,
        addr: SocketAddr,
        api: Option<&ListenAddress>,
        server: &ServerConfig,
    ) -> Self {
        let GeneratedApp { id, key, secret } = made.clone();
        let scheme = if server.tls.is_some() { "https" } else { "http" };
        let url = |addr| format!("{scheme}://{}{}", reachable(addr), server.path);
        let api = api.map(|api| match api.tcp() {
            Some(addr) => url(addr),
            None => absolute(api).to_string(),
        });
        Self { url: url(addr), api, port: addr.port(), id, key, secret }
    }

    /// Writes the file, in place of that of a server which had the port before.
    ///
    /// # Errors
    /// Those of the file system, and a directory that others can write to.
    pub fn write_file(&self) -> io::Result<RunningAppFile> {
        self.publish_in(&user_directory().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Writes a temporary file, locks it and renames it into place. So nobody reads half a file, or takes the file
    /// of a running server for a stale one.
    fn publish_in(&self, directory: &Path) -> io::Result<RunningAppFile> {
        // The whole path is ours; a folder that others can write to could have links in it.
        DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
        if !is_private(&fs::symlink_metadata(directory)?) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let path = directory.join(format!("{}{SUFFIX}", self.port));
        let new = directory.join(format!("{}.new", std::process::id()));
        // The temporary file of an earlier process with the same id, which was killed in between.
        let _ = fs::remove_file(&new);
        // `create_new` follows no symbolic link that another user may have put there.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        // Locked before it is renamed, so that a reader that opens it by its name finds it locked.
        let text = serde_json::to_string(self)?;
        let written = flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&new, &path));
        match written {
            Ok(()) => Ok(RunningAppFile { path, file }),
            Err(error) => {
                // The temporary file must not stay behind; that it cannot be removed changes nothing.
                let _ = fs::remove_file(&new);
                Err(error)
            }
        }
    }

    /// Those that run now, by port.
    /// Nobody's where the folder is not private.
    pub(super) fn list_running() -> Vec<Self> {
        // A folder that others can write to may name anybody's server, so it names none.
        user_directory().map(|directory| Self::all_in(&directory)).unwrap_or_default()
    }

    /// The running servers with a file in this folder.
    /// Empty if another user could have written there.
    fn all_in(directory: &Path) -> Vec<Self> {
        // Another user's would lead the commands, and the secrets typed after them, astray.
        if !fs::symlink_metadata(directory).is_ok_and(|about| is_private(&about)) {
            return Vec::new();
        }
        let paths = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut all: Vec<Self> = paths.filter_map(|entry| Self::read_file(&entry.path())).collect();
        all.sort_by_key(|running| running.port);
        all
    }

    /// Reads the app of a file whose server runs, and removes the file of a killed one. A lock can be taken only if
    /// the server has ended, since it holds one while it runs.
    fn read_file(path: &Path) -> Option<Self> {
        if !path.to_str()?.ends_with(SUFFIX) {
            return None;
        }
        let mut file = File::open(path).ok()?;
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            remove_if_same(path, &file);
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The one at `url`, the only one, or of several the one on `port`.
    /// # Errors
    /// There are several, and nothing says which one is meant.
    pub(super) fn choose(
        all: Vec<Self>,
        url: Option<&str>,
        port: u16,
    ) -> Result<Option<Self>, CommandError> {
        let wanted = match url {
            Some(url) => url.parse::<hyper::Uri>().ok().and_then(|url| url.port_u16()),
            None => Some(port),
        };
        // One alone is meant whatever the port.
        if let [only] = all.as_slice() {
            return Ok(Some(only.clone()));
        }
        if all.is_empty() {
            return Ok(None);
        }
        let urls: Vec<_> = all.iter().map(|running| running.url.clone()).collect();
        let found = all.into_iter().find(|running| Some(running.port) == wanted);
        let several =
            || format!("several servers run here: say which with --url: {}", urls.join(", "));
        found.map(Some).ok_or_else(|| CommandError(several()))
    }
}

/// Where a server can be reached that listens at `addr`: one that listens everywhere listens here.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr
}

/// The same address for a process in another folder.
fn absolute(address: &ListenAddress) -> ListenAddress {
    match address {
        ListenAddress::Unix(Some(path)) => {
            ListenAddress::Unix(Some(std::path::absolute(path).unwrap_or_else(|_| path.clone())))
        }
        other => other.clone(),
    }
}

impl Drop for RunningAppFile {
    fn drop(&mut self) {
        remove_if_same(&self.path, &self.file);
    }
}

/// Removes a file if it is still `file` that is there: a process that took the port over has put its own there.
/// Compared by device and inode, between which and the removal nothing is sure; the worst is a file that is written
/// again at the next start.
fn remove_if_same(path: &Path, file: &File) {
    let is_same = match (fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(own)) => (there.dev(), there.ino()) == (own.dev(), own.ino()),
        _ => false,
    };
    if is_same {
        // Removed only while it still names this process: another may have replaced it.
        let _ = fs::remove_file(path);
    }
}

/// The folder of this user's running servers.
/// The user's own folder for what does not outlive the session (XDG), or one below the temporary folder that carries
/// the user's number.
fn user_directory() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    // `XDG_RUNTIME_DIR` is not set without a login session: under su, in containers and in cron.
    let usual = || Some(PathBuf::from(format!("/run/user/{user}"))).filter(|path| path.is_dir());
    let own = given.filter(|path| path.is_absolute() && path.is_dir()).or_else(usual);
    Some(match own {
        Some(own) => own.join("fanfare"),
        None => std::env::temp_dir().join(format!("fanfare-{user}")),
    })
}

/// Whether a folder belongs to this user and is closed to others. Checked each time, since everybody may write to a
/// temporary folder.
fn is_private(about: &Metadata) -> bool {
    about.is_dir()
        && about.uid() == rustix::process::geteuid().as_raw()
        && about.mode() & 0o077 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn running(port: u16) -> RunningApp {
        let made = GeneratedApp { id: "1".into(), key: "k".into(), secret: "s".into() };
        let mut server = Settings::default().resolve_config().unwrap().server;
        server.path = "/ws".to_owned();
        RunningApp::new(&made, ([0, 0, 0, 0], port).into(), None, &server)
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("fanfare-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn a_file_is_there_as_long_as_its_server() {
        let folder = folder("running");
        let one = running(1).publish_in(&folder).unwrap();
        assert_eq!(fs::metadata(&one.path).unwrap().mode() & 0o777, 0o600);
        let two = running(2).publish_in(&folder).unwrap();
        let ports = || RunningApp::all_in(&folder).iter().map(|one| one.port).collect::<Vec<_>>();
        assert_eq!(ports(), [1, 2]);
        drop(two);
        assert_eq!(ports(), [1]);
        // The end of the server before does not take away what its successor wrote.
        let successor = running(1).publish_in(&folder).unwrap();
        drop(one);
        assert_eq!(ports(), [1]);
        drop(successor);
        assert!(fs::read_dir(&folder).unwrap().next().is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_killed_server_left_is_not_taken_for_one() {
        let folder = folder("killed");
        let killed = running(1).publish_in(&folder).unwrap();
        // As if the process had ended: the lock goes, the file stays.
        flock(&killed.file, FlockOperation::Unlock).unwrap();
        assert!(RunningApp::all_in(&folder).is_empty());
        assert!(!killed.path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_of_others_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;

        let folder = folder("others");
        let _one = running(1).publish_in(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(RunningApp::all_in(&folder).is_empty());
        assert!(running(2).publish_in(&folder).is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn of_several_the_one_on_the_port_is_meant() {
        let choose = |ports: &[u16], url: Option<&str>| {
            let all = ports.iter().map(|port| running(*port)).collect();
            RunningApp::choose(all, url, 8080).map(|found| found.map(|running| running.port))
        };
        assert_eq!(choose(&[], None).unwrap(), None);
        assert_eq!(choose(&[9], None).unwrap(), Some(9));
        assert_eq!(choose(&[9, 8080], None).unwrap(), Some(8080));
        assert_eq!(choose(&[9, 8080], Some("http://localhost:9")).unwrap(), Some(9));
        let error = choose(&[9, 10], None).unwrap_err().to_string();
        assert!(error.contains("--url: http://127.0.0.1:9/ws, http://127.0.0.1:10/ws"), "{error}");
    }
}
