//! Finds files with secrets that every user of the machine can read; the server warns about them at its start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Config, Flags};

/// The right of everybody else to read.
/// Group rights are left alone: `chmod 640` with the service's group is how packages install them.
const READABLE: u32 = 0o004;

/// Those of the files that the settings came from, and that they name, which everybody can read. A `.env` that was
/// found and not given is the application's, whose owner decides.
pub fn readable_secrets(flags: &Flags, config: &Config, folder: &Path) -> Vec<PathBuf> {
    let given =
        [&flags.config, &flags.env_file].into_iter().flatten().map(|path| folder.join(path));
    let named = config.apps_file.iter().chain(config.server.tls.as_ref().map(|tls| &tls.key));
    let mut all: Vec<PathBuf> = given.chain(named.cloned()).collect();
    all.retain(|path| {
        fs::metadata(path).is_ok_and(|about| about.permissions().mode() & READABLE != 0)
    });
    all
}
