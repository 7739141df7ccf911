//! A folder of a test's own, for Unix sockets: its path is short, as a socket's must be.

use std::fs;
use std::path::PathBuf;

use super::http::Http;
use super::wire;

/// The folder. It goes with the test.
pub struct Place {
    pub folder: PathBuf,
}

impl Place {
    pub fn new(name: &str) -> Self {
        // Not below the target folder, whose path may be longer than a socket's may be.
        let folder = std::env::temp_dir().join(format!("fanfare-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// The socket in it.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    pub fn http(&self) -> Http {
        Http::over(wire::unix(&self.socket()).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
