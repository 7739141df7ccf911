//! The budget of open files: for sockets, for other connections, and a reserve for the server itself, so that clients
//! cannot keep it from reaching Redis or accepting.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Files that are no connections of clients: listeners, logs, Redis, webhooks, and some that stay free.
const OWN_FILES: u64 = 64;

/// Those of each worker.
const FILES_PER_WORKER: u64 = 4;

/// File descriptors for clients.
#[derive(Debug)]
pub(super) struct FileShares {
    /// Sockets that may be open at a time.
    pub sockets: u64,
    /// Connections of any kind that may be.
    pub connections: usize,
}

/// Shares them out, once the limit is raised as far as it goes; `max_connections` is what was configured, 0: as
/// many as the limit bears.
pub(super) fn share_out(workers: usize, max_connections: usize) -> FileShares {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current < limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        warn!(%error, "the open-file limit stays as it is");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let (configured, shared) = (max_connections as u64, shares(files, workers));
    if configured == 0 {
        return shared;
    }
    let bears = shared.sockets;
    if configured > bears {
        warn!(configured, bears, "the open-file limit allows fewer connections than configured");
    }
    FileShares { sockets: configured.min(bears), ..shared }
}

/// Files that may be open once the limit is raised as far as it goes; none: any number.
pub(super) fn hard_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Shares out so many files.
pub(super) fn shares(files: u64, workers: usize) -> FileShares {
    let connections = files.saturating_sub(OWN_FILES + FILES_PER_WORKER * workers as u64);
    // Backends, probes, and refused clients use descriptors for a moment only.
    let requests = (files / 32).clamp(16, 1024);
    FileShares {
        sockets: connections.saturating_sub(requests).max(1),
        connections: usize::try_from(connections).unwrap_or(usize::MAX).max(16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_left_for_everybody() {
        for (files, sockets, connections) in [
            (1024, 920, 952),
            (65_536, 64_440, 65_464),
            (1 << 20, 1_047_480, 1_048_504),
            (512, 424, 440),
            (64, 1, 16),
        ] {
            let shared = shares(files, 2);
            assert_eq!((shared.sockets, shared.connections), (sockets, connections), "{files}");
        }
    }
}
