//! Transfer of resumable clients between processes: receives the predecessor's state before anything is accepted, and
//! sends its own to the successor. The node defines the content.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use tracing::{debug, warn};

use super::{ServerHandle, ServerPhase};
use crate::node::ServerState;

/// How long workers have to freeze their resumable clients. A slower worker is left out: its clients then get gaps.
const FREEZING: Duration = Duration::from_secs(1);

impl ServerHandle {
    /// Takes over the previous process's state as it arrives on `line`, and then starts to accept. If that fails,
    /// returning clients get gaps.
    pub fn inherit(&self, line: UnixStream) {
        let (shared, phase) = (self.shared.clone(), self.phase.clone());
        let requests = self.late_requests.clone();
        let inheriting = move || {
            let mut line = BufReader::new(line);
            let inherited = shared.inherit(&mut line);
            phase.send_if_modified(|phase| {
                let is_waiting = *phase == ServerPhase::Inheriting;
                if is_waiting {
                    *phase = ServerPhase::Serving;
                }
                is_waiting
            });
            if let Err(error) = inherited {
                warn!(%error, "clients of the previous process cannot resume here: what it knew of them is lost");
                return;
            }
            if let Err(error) = ServerState::take_late_requests(&mut line, &requests) {
                debug!(%error, "the previous process no longer passes requests on");
            }
        };
        let started = thread::Builder::new().name("predecessor".to_owned()).spawn(inheriting);
        if let Err(error) = started {
            warn!(%error, "clients of the previous process cannot resume here: what it knew of them is lost");
            self.phase.send_replace(ServerPhase::Serving);
        }
    }

    /// Begins to stop while another process accepts on the same listener, and sends it the state of resumable
    /// clients on `line`.
    pub fn hand_over_to(&self, line: UnixStream) {
        if self.shared.scope.keeps_clients() {
            self.shared.succession.begin_leaving();
        }
        // Only now: connections that close come back to the next process.
        self.hand_over();
        let (shared, workers) = (self.shared.clone(), self.threads.len());
        let handing_over = move || {
            shared.succession.wait_frozen(workers, FREEZING);
            if let Err(error) = shared.bequeath(line) {
                warn!(%error, "the next process does not take over this one's clients: they cannot resume there");
            }
        };
        let started = thread::Builder::new().name("successor".to_owned()).spawn(handing_over);
        if let Err(error) = started {
            warn!(%error, "the next process cannot be told of this one's clients: they cannot resume there");
        }
    }
}
