//! Accepts connections: one acceptor for all listeners and workers, which hands each new socket to the worker with the
//! fewest.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
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
/// Accepting in a loop meanwhile would only keep the worker busy.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond those that may be open, at which workers first close some before more are accepted: they are
/// of the files that stay free.
const PAUSE_BEYOND: usize = 32;

/// How long they have for that.
const MOMENT: Duration = Duration::from_millis(5);

/// How long there is no other line about that.
const SILENCE: Duration = Duration::from_secs(60);

/// A new connection, on its way to its worker.
#[derive(Debug)]
pub(super) struct AcceptedConnection {
    /// On the first worker's own runtime it stays registered.
    stream: StreamRegistration,
    /// The other side's address.
    pub peer: SocketAddr,
    /// The routes that its address serves.
    pub role: AddressRole,
}

/// A stream is woken by the runtime that it is registered with, so it must change its registration when
/// it changes threads.
#[derive(Debug)]
enum StreamRegistration {
    /// With the acceptor's runtime, which is the first worker's.
    Registered(IncomingStream),
    /// With none yet: the worker registers it.
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
    /// How many connections each worker carries.
    pub loads: Arc<WorkerLoads>,
    /// Ends the accepting when another process takes over.
    pub phase: watch::Receiver<ServerPhase>,
}

/// Listens, counts, hands over; nothing is read here.
impl Acceptor {
    /// Accepts on all listeners until another process does.
    ///
    /// # Errors
    /// A listener cannot be registered, which happens at the start alone.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let open = std::mem::take(&mut self.open);
        let accepting = open.into_iter().map(|(listener, role)| self.accept(listener, role));
        let ended = join_all(accepting).await;
        // After the last one was counted.
        // Workers wait for this before they take an empty list of connections for the end.
        self.loads.note_complete();
        ended.into_iter().collect()
    }

    /// One listener. An error that concerns one connection does not end it; running out of files makes it wait.
    async fn accept(&self, listener: Listener, role: AddressRole) -> io::Result<()> {
        let listener = listener.register()?;
        let (mut told, mut phase) = (None, self.phase.clone());
        // Until then the kernel keeps those that come.
        let _ = phase.wait_for(|phase| *phase != ServerPhase::Inheriting).await;
        // One for all, so that it is not begun anew with each connection.
        let mut handing_over = pin!(phase.wait_for(|phase| *phase == ServerPhase::HandingOver));
        loop {
            // Over the limit the workers close idle connections first; without the wait new ones would come faster
            // than those go.
            if self.loads.excess() >= PAUSE_BEYOND {
                tokio::time::sleep(MOMENT).await;
            }
            let accepted = tokio::select! {
                // Before one more is taken in, only to be sent away.
                biased;
                _ = &mut handing_over => return Ok(()),
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
                    // A flood of failures is one line a minute.
                    if told.is_none_or(|told: Instant| told.elapsed() > SILENCE) {
                        warn!(%error, "new connections cannot be accepted at the moment");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// The connection is counted before it is sent, so that the next one already sees it.
    fn hand_over(
        &self,
        stream: IncomingStream,
        peer: SocketAddr,
        role: AddressRole,
    ) -> io::Result<()> {
        let worker = self.loads.lightest_worker();
        let stream = match worker {
            // Worker 0 runs on this thread.
            0 => StreamRegistration::Registered(stream),
            _ => StreamRegistration::Bare(stream.into_bare()?),
        };
        self.loads.add_connection(worker);
        let accepted = AcceptedConnection { stream, peer, role };
        let handed = self.inboxes.get(worker).map(|inbox| inbox.send(accepted));
        if !matches!(handed, Some(Ok(()))) {
            // The worker has ended in a panic: the connection is dropped, and must not count for ever.
            self.loads.remove_connection(worker);
        }
        Ok(())
    }
}
