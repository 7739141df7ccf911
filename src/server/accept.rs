//! Taking in connections: one acceptor for all listeners and workers, which hands each new socket to the worker that
//! carries the fewest. What happens on a socket is none of its business.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::ServerPhase;
use super::listener::{IncomingStream, Listener, UnregisteredStream};
use crate::http::AddressRole;
use crate::hub::loads::WorkerLoads;
use crate::hub::stream::Stream;

/// How long to wait when no more files can be opened: some are sure to be closed soon.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond those that may be open, at which workers first close some before more are accepted: they are
/// of the files that stay free.
const FAR_TOO_MANY: usize = 32;

/// How long they have for that.
const MOMENT: Duration = Duration::from_millis(5);

/// How long there is no other line about that.
const SILENCE: Duration = Duration::from_secs(60);

/// A new connection, on its way to its worker.
#[derive(Debug)]
pub(super) struct AcceptedConnection {
    stream: StreamRegistration,
    pub peer: SocketAddr,
    /// What is served where it came in.
    pub role: AddressRole,
}

/// A stream is woken by the runtime that it is registered with, so it must change its registration when
/// it changes threads.
#[derive(Debug)]
enum StreamRegistration {
    Registered(IncomingStream),
    Bare(UnregisteredStream),
}

impl AcceptedConnection {
    /// The stream, registered with the thread that calls this.
    pub(super) fn into_stream(self) -> io::Result<Stream> {
        match self.stream {
            StreamRegistration::Registered(stream) => Ok(stream.into()),
            StreamRegistration::Bare(stream) => Ok(stream.register()?.into()),
        }
    }
}

/// Listens for all workers, on the thread of the first.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// The listeners, and what is served on each.
    pub open: Vec<(Listener, AddressRole)>,
    /// One for each worker.
    pub inboxes: Vec<mpsc::UnboundedSender<AcceptedConnection>>,
    pub loads: Arc<WorkerLoads>,
    pub phase: watch::Receiver<ServerPhase>,
}

impl Acceptor {
    /// Accepts on all listeners until another process does.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let open = std::mem::take(&mut self.open);
        let accepting = open.into_iter().map(|(listener, role)| self.accept(listener, role));
        let ended = join_all(accepting).await;
        // After the last one was counted.
        self.loads.note_complete();
        ended.into_iter().collect()
    }

    async fn accept(&self, listener: Listener, role: AddressRole) -> io::Result<()> {
        let listener = listener.register()?;
        let (mut told, mut phase) = (None, self.phase.clone());
        // Until then the kernel keeps those that come.
        let _ = phase.wait_for(|phase| *phase != ServerPhase::Inheriting).await;
        loop {
            if self.loads.excess() >= FAR_TOO_MANY {
                tokio::time::sleep(MOMENT).await;
            }
            let accepted = tokio::select! {
                // Before one more is taken in, only to be sent away.
                biased;
                _ = phase.wait_for(|phase| *phase == ServerPhase::HandingOver) => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = self.hand_over(stream, peer, role) {
                        debug!(%error, "a connection was gone before it began");
                    }
                }
                // The client went before we came to it.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    if told.is_none_or(|told: Instant| told.elapsed() > SILENCE) {
                        warn!(%error, "cannot accept connections just now");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn hand_over(
        &self,
        stream: IncomingStream,
        peer: SocketAddr,
        role: AddressRole,
    ) -> io::Result<()> {
        stream.set_nodelay()?;
        let worker = self.loads.lightest_worker();
        let stream = match worker {
            0 => StreamRegistration::Registered(stream),
            _ => StreamRegistration::Bare(stream.into_bare()?),
        };
        self.loads.add_connection(worker);
        let accepted = AcceptedConnection { stream, peer, role };
        let handed = self.inboxes.get(worker).map(|inbox| inbox.send(accepted));
        if !matches!(handed, Some(Ok(()))) {
            self.loads.remove_connection(worker);
        }
        Ok(())
    }
}
