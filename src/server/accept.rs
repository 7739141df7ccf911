//! Taking in connections: one acceptor for all workers, which hands each new socket to the worker that
//! carries the fewest. What happens on a socket is none of its business.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::ServerPhase;
use super::listener::{IncomingStream, Listener, UnregisteredStream};
use crate::hub::loads::WorkerLoads;
use crate::hub::stream::Stream;

/// How long to wait when no more files can be opened: some are sure to be closed soon.
const PAUSE: Duration = Duration::from_millis(100);

/// How long there is no other line about that.
const SILENCE: Duration = Duration::from_secs(60);

/// A new connection, on its way to its worker.
#[derive(Debug)]
pub(super) struct AcceptedConnection {
    stream: StreamRegistration,
    pub peer: SocketAddr,
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
    pub listener: Listener,
    /// One for each worker.
    pub doors: Vec<mpsc::UnboundedSender<AcceptedConnection>>,
    pub loads: Arc<WorkerLoads>,
    pub phase: watch::Receiver<ServerPhase>,
}

impl Acceptor {
    /// Accepts until another process does.
    pub(super) async fn run(self) -> io::Result<()> {
        let loads = self.loads.clone();
        let ended = self.accept().await;
        // After the last one was counted.
        loads.complete();
        ended
    }

    async fn accept(mut self) -> io::Result<()> {
        let listener = self.listener.register()?;
        let mut told = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.phase.wait_for(|phase| *phase == ServerPhase::HandingOver) => return Ok(()),
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = hand_over(&self.doors, &self.loads, stream, peer) {
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
}

fn hand_over(
    doors: &[mpsc::UnboundedSender<AcceptedConnection>],
    loads: &WorkerLoads,
    stream: IncomingStream,
    peer: SocketAddr,
) -> io::Result<()> {
    stream.set_nodelay()?;
    let worker = loads.lightest();
    let stream = match worker {
        0 => StreamRegistration::Registered(stream),
        _ => StreamRegistration::Bare(stream.into_bare()?),
    };
    loads.add(worker);
    let handed = doors.get(worker).map(|door| door.send(AcceptedConnection { stream, peer }));
    if !matches!(handed, Some(Ok(()))) {
        loads.remove(worker);
    }
    Ok(())
}
