//! Reloading: settings on SIGHUP, and watched files. New settings with an error change nothing and are one line in the
//! log.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};

use super::ServerHandle;
use crate::app::Apps;
use crate::config::{Config, Error, LoadedSettings};

/// How often the watched files are looked at.
/// A second is soon enough for a certificate, and one `stat` of a few files is nothing.
pub const LOOK: Duration = Duration::from_secs(1);

/// Files, and what they were like. A change counts once the files have stayed the same from one look to
/// the next, so that one that is still being written is not read half.
#[derive(Debug)]
struct WatchedFiles {
    /// In the order in which their stamps are kept.
    files: Vec<PathBuf>,
    /// When they were read.
    read: Vec<FileStamp>,
    /// At the last look.
    last: Vec<FileStamp>,
}

/// Length and time of change, and the file itself by its device and inode, for another may have been put
/// in its place that has both; none of a file that is not there.
/// Polling instead of inotify: it works on network file systems and on the symbolic links that Kubernetes swaps.
type FileStamp = Option<(u64, SystemTime, (u64, u64))>;

impl WatchedFiles {
    /// They count as read: the server has just started with them.
    fn new(files: Vec<PathBuf>) -> Self {
        let mut watched = Self { files, read: Vec::new(), last: Vec::new() };
        watched.note();
        watched
    }

    /// Takes the files as they are for read.
    /// After a reload that was asked for, so that the same change is not read a second time.
    fn note(&mut self) {
        self.read = self.stamps();
        self.last.clone_from(&self.read);
    }

    /// Whether the files have changed and no write is under way. True once for each change.
    fn have_changed(&mut self) -> bool {
        let now = self.stamps();
        let settled = now == self.last;
        self.last.clone_from(&now);
        let changed = settled && now != self.read;
        if changed {
            self.read = now;
        }
        changed
    }

    /// A file that cannot be looked at is one that is not there: renaming another into its place takes it away for a
    /// moment.
    fn stamps(&self) -> Vec<FileStamp> {
        let stamp = |path: &PathBuf| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.len(), data.modified().ok()?, (data.dev(), data.ino())))
        };
        self.files.iter().map(stamp).collect()
    }
}

/// Changes a running server.
pub struct Reloader<'a> {
    /// The server whose apps and certificates are replaced.
    running: &'a ServerHandle,
    /// The same sources as at the start, in the same order.
    load: Box<dyn Fn() -> Result<LoadedSettings, Error> + 'a>,
    /// Makes the log as talkative as the settings want it.
    set_level: Box<dyn Fn(LevelFilter) + 'a>,
    /// The settings of the start. A change of a setting that only a start reads is reported at each reload until
    /// the restart.
    begun: Config,
    /// The apps were made for the run, so no settings speak of them.
    made: bool,
    /// Chain and key together: they are of use only as a pair.
    certificate: WatchedFiles,
    /// The file of more apps, and how it was.
    watched: Option<PathBuf>,
    /// Its stamps.
    apps: WatchedFiles,
}

impl fmt::Debug for Reloader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("running", self.running).finish_non_exhaustive()
    }
}

impl<'a> Reloader<'a> {
    /// For a server that was started with `config`; `load` reads the settings again.
    /// Reads nothing yet.
    pub fn new(
        running: &'a ServerHandle,
        config: &Config,
        load: impl Fn() -> Result<LoadedSettings, Error> + 'a,
    ) -> Self {
        let tls = config.server.tls.iter().flat_map(|tls| [tls.cert.clone(), tls.key.clone()]);
        Self {
            running,
            load: Box::new(load),
            set_level: Box::new(|_| {}),
            begun: config.clone(),
            made: config.made_app.is_some(),
            certificate: WatchedFiles::new(tls.collect()),
            watched: config.apps_file.clone(),
            apps: WatchedFiles::new(config.apps_file.iter().cloned().collect()),
        }
    }

    /// With a log whose level can be changed.
    /// Without one the level stays as it was.
    pub fn with_level(self, set_level: impl Fn(LevelFilter) + 'a) -> Self {
        Self { set_level: Box::new(set_level), ..self }
    }

    /// Reads everything again, as SIGHUP asks.
    /// Certificate and settings apart: each may be wrong without the other's being.
    pub fn reload(&mut self) {
        // Noted before it is read: a change in between is then read once more.
        self.certificate.note();
        self.reload_certificate();
        self.apps.note();
        self.reload_settings();
    }

    /// Reads again what has changed; to be called every [`LOOK`].
    pub fn look(&mut self) {
        if self.certificate.have_changed() {
            self.reload_certificate();
        }
        if self.apps.have_changed() {
            self.reload_settings();
        }
    }

    /// Connections that are open keep the certificate that they began with.
    fn reload_certificate(&self) {
        let Some(certificates) = &self.running.certificates else { return };
        match certificates.reload() {
            Ok(()) => match certificates.doubt() {
                None => info!("the TLS certificate was read again"),
                Some(doubt) => warn!("the TLS certificate was read again: {doubt}"),
            },
            Err(wrong) => error!("the TLS certificate stays as it was: {}", wrong.problem),
        }
    }

    /// All or nothing: the apps are replaced as one, and connections of apps that are gone are closed by their
    /// workers.
    fn reload_settings(&mut self) {
        let LoadedSettings { config, warnings, .. } = match (self.load)() {
            Ok(loaded) => loaded,
            Err(error) => {
                error!("the settings stay as they were: {error}");
                self.note_reload(false);
                return;
            }
        };
        for warning in warnings {
            warn!("{warning}");
        }
        // Before what is refused below, so that a level for finding out why is set in any case.
        (self.set_level)(config.log.level);
        let waiting = waiting(&self.begun, &config);
        if !waiting.is_empty() {
            warn!("{} changed: this takes effect at the next start", waiting.join(", "));
        }
        // The setting itself may name another file now.
        if config.apps_file != self.watched {
            self.watched.clone_from(&config.apps_file);
            self.apps = WatchedFiles::new(config.apps_file.iter().cloned().collect());
        }
        match (self.made, config.made_app.is_some()) {
            // Those made now are not those that clients know.
            (true, true) => return self.note_reload(true),
            (false, true) => {
                error!("the apps stay as they were: the settings no longer have any");
                self.note_reload(false);
                return;
            }
            (_, false) => self.made = false,
        }
        // Before those that a database has: they are not the settings' to remove.
        let (before, now) = (self.running.configured(), config.apps);
        let missing = |these: &Apps, those: &Apps| {
            these.iter().filter(|app| those.by_id(app.id.as_str()).is_none()).count()
        };
        let (added, removed) = (missing(&now, &before), missing(&before, &now));
        info!(apps = now.len(), added, removed, "the settings were read again");
        self.running.replace_apps(now);
        self.note_reload(true);
    }

    /// For who watches: a reload that changes nothing is seen in the log alone otherwise.
    /// 0 or 1 in a metric, which an alert watches.
    fn note_reload(&self, done: bool) {
        // A figure that nothing is decided by.
        self.running.shared.metrics.reload_failed.store(!done, Ordering::Relaxed);
    }
}

/// The sections that say another thing now, and are read at the start alone.
/// By section, since that is what a person looks for in the file.
fn waiting(begun: &Config, now: &Config) -> Vec<&'static str> {
    let sql = |config: &Config| {
        // No section is the same as one without values.
        let sql = config.sql.clone().unwrap_or_default();
        (sql.url, sql.table, sql.ttl)
    };
    [
        ("[server]", begun.server != now.server),
        ("[limits]", begun.limits != now.limits),
        ("[metrics]", begun.metrics != now.metrics),
        ("[cluster]", begun.cluster != now.cluster),
        ("[webhooks]", begun.webhooks != now.webhooks),
        ("[sql]", sql(begun) != sql(now)),
        ("log.format", begun.log.json != now.log.json),
    ]
    .into_iter()
    .filter_map(|(section, changed)| changed.then_some(section))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_and_only_when_it_is_over() {
        let folder = std::env::temp_dir().join(format!("fanfare-watched-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("watched");
        let mut watched = WatchedFiles::new(vec![file.clone()]);
        assert!(!watched.have_changed());
        std::fs::write(&file, "a").unwrap();
        assert!(!watched.have_changed(), "it may still be written to");
        std::fs::write(&file, "ab").unwrap();
        assert!(!watched.have_changed(), "it was");
        assert!(watched.have_changed());
        assert!(!watched.have_changed());
        // As long, and as old.
        let time = std::fs::metadata(&file).unwrap().modified().unwrap();
        let other = folder.join("other");
        std::fs::write(&other, "cd").unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &file).unwrap();
        assert!(!watched.have_changed());
        assert!(watched.have_changed());
        std::fs::remove_file(&file).unwrap();
        assert!(!watched.have_changed());
        assert!(watched.have_changed());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
