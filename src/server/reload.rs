//! What changes while the server runs: settings on SIGHUP, and files that are watched. Whatever is wrong
//! with the new changes nothing and is one line in the log.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tracing::{error, info};

use super::Running;

/// How often the watched files are looked at.
pub const LOOK: Duration = Duration::from_secs(1);

/// Files, and what they were like. A change counts once the files have stayed the same from one look to
/// the next, so that one that is still being written is not read half.
#[derive(Debug)]
struct Watched {
    files: Vec<PathBuf>,
    /// When they were read.
    read: Vec<Stamp>,
    /// At the last look.
    last: Vec<Stamp>,
}

/// Length and time of change; none of a file that is not there.
type Stamp = Option<(u64, SystemTime)>;

impl Watched {
    fn new(files: Vec<PathBuf>) -> Self {
        let mut watched = Self { files, read: Vec::new(), last: Vec::new() };
        watched.note();
        watched
    }

    /// Takes the files as they are for read.
    fn note(&mut self) {
        self.read = self.stamps();
        self.last.clone_from(&self.read);
    }

    /// Whether they have changed since they were read, and are done changing.
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

    fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path: &PathBuf| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.len(), data.modified().ok()?))
        };
        self.files.iter().map(stamp).collect()
    }
}

/// Changes a running server.
#[derive(Debug)]
pub struct Reloader<'a> {
    running: &'a Running,
    certificate: Watched,
}

impl<'a> Reloader<'a> {
    pub fn new(running: &'a Running) -> Self {
        let files = running.certificates.as_ref().map(|certificates| certificates.files());
        Self { running, certificate: Watched::new(files.into_iter().flatten().collect()) }
    }

    /// Reads everything again, as SIGHUP asks.
    pub fn reload(&mut self) {
        self.certificate.note();
        self.reload_certificate();
    }

    /// Reads again what has changed; to be called every [`LOOK`].
    pub fn look(&mut self) {
        if self.certificate.have_changed() {
            self.reload_certificate();
        }
    }

    fn reload_certificate(&self) {
        let Some(certificates) = &self.running.certificates else { return };
        match certificates.reload() {
            Ok(()) => info!("the TLS certificate was read again"),
            Err(problem) => error!("the TLS certificate stays as it was: {problem}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_and_only_when_it_is_over() {
        let folder = std::env::temp_dir().join(format!("fanfare-watched-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("watched");
        let mut watched = Watched::new(vec![file.clone()]);
        assert!(!watched.have_changed());
        std::fs::write(&file, "a").unwrap();
        assert!(!watched.have_changed(), "it may still be written to");
        std::fs::write(&file, "ab").unwrap();
        assert!(!watched.have_changed(), "it was");
        assert!(watched.have_changed());
        assert!(!watched.have_changed());
        std::fs::remove_file(&file).unwrap();
        assert!(!watched.have_changed());
        assert!(watched.have_changed());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
