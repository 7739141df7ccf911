//! A single server hands its resumable clients to the process that replaces it: their state and the logs, in one step
//! between two events. Requests that reach the old process afterwards are forwarded, and acknowledged before they are
//! answered. Nodes with Redis keep this state there.

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};

use super::bequest::{Bequest, LatePublish};
use super::{Node, Publication, ServerState};
use crate::app::{App, AppId};
use crate::hub::connection::Connection;
use crate::hub::resume::ResumeEstate;
use crate::lookup::AppName;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// How long either process waits for the other to take or say something.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long what a backend asks for waits to be taken: its answer waits for that.
const ACKNOWLEDGED: Duration = Duration::from_secs(1);

/// How long a database has to say which app it is whose clients were handed on.
const LOOKED_UP: Duration = Duration::from_secs(2);

/// Bytes that are written at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// The answer once a message was carried out.
const DONE: u8 = b'.';

/// Where this process stands between the one before it and the one after it.
#[derive(Debug, Default)]
pub struct Succession {
    /// Clients that come back are another process's to take.
    leaves: AtomicBool,
    /// Workers that have ended all of theirs.
    frozen: Mutex<usize>,
    /// Signals that a worker has frozen its clients.
    is_frozen: Condvar,
    /// The stream to the next process.
    successor: OnceLock<SuccessorLink>,
}

/// The stream to the process that goes on; none once it has failed.
#[derive(Debug)]
struct SuccessorLink(Mutex<Option<UnixStream>>);

/// A request to the process before this one, to be carried out by a worker.
#[derive(Debug)]
pub struct LateRequest {
    request: Bequest,
    /// Confirms it to the process that asked.
    done: oneshot::Sender<()>,
}

impl Succession {
    /// Clients that come back are to go to the process that goes on, from now on.
    pub fn begin_leaving(&self) {
        // Workers see it with the change of phase that follows.
        self.leaves.store(true, Ordering::Release);
    }

    /// Whether clients that come here are sent on to the next process.
    pub fn is_leaving(&self) -> bool {
        // Acquire: pairs with the release in `begin_leaving`.
        self.leaves.load(Ordering::Acquire)
    }

    /// Waits until so many workers have ended what clients that may come back have with them, or the time is over.
    pub fn wait_frozen(&self, workers: usize, time: Duration) {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.is_frozen.wait_timeout_while(frozen, time, |frozen| *frozen < workers);
        // One that is stuck is not waited for: its clients are told some events twice.
        drop(waited);
    }

    /// One worker more has ended what clients have here; called once by each.
    fn note_frozen(&self) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.is_frozen.notify_all();
    }
}

impl SuccessorLink {
    /// Has the other process do it, and waits until it is done.
    fn pass_on(&self, request: &Bequest) {
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It has failed before, and was told of then.
        let Some(stream) = line.as_mut() else { return };
        let mut done = [0];
        // The worker waits, for at most `ACKNOWLEDGED`: its answer to a backend promises that it is
        // done.
        let passed = stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut done));
        if let Err(error) = passed {
            warn!(%error, "requests that still reach this process are no longer passed on to the next one");
            *line = None;
        }
    }
}

impl Node {
    /// Ends what clients that may come back have with their connections here, which are closed one after the other
    /// later: nothing more is told to them, and they are told it all where they come back.
    pub fn freeze_clients(&self) {
        let succession = &self.shared.succession;
        if succession.is_leaving() {
            let (all, _) = self.worker.some_connections(0, self.worker.places());
            for connection in all.iter().filter(|one| one.resumption().is_some()) {
                self.suspend_client(connection);
                connection.freeze();
            }
        }
        succession.note_frozen();
    }

    /// Passes an event on to the process that keeps the logs now; whether there is one.
    pub(super) fn pass_publication_on(&self, app: &App, publication: Publication<'_>) -> bool {
        if app.features.resume.is_zero() {
            return false;
        }
        let Some(successor) = self.shared.succession.successor.get() else { return false };
        let Publication { channel, event, data, except, .. } = publication;
        successor.pass_on(&Bequest::Publish(LatePublish {
            app: app.id.clone(),
            channel: channel.clone(),
            event: event.to_owned(),
            data: data.to_owned(),
            except,
        }));
        true
    }

    /// A client whose connection is frozen has left a channel.
    pub fn pass_leave_on(&self, connection: &Connection, channel: &str) {
        let (Some(successor), Some(resumption)) =
            (self.shared.succession.successor.get(), connection.resumption())
        else {
            return;
        };
        let Ok(channel) = ChannelName::parse(channel, usize::MAX) else { return };
        let (app, token) = (connection.app().id.clone(), resumption.token.clone());
        successor.pass_on(&Bequest::GiveUp { app, token, channel });
    }

    /// Carries out, for ever, what the process before this one is asked for.
    pub async fn keep_inheriting(&self, mut requests: mpsc::UnboundedReceiver<LateRequest>) {
        while let Some(LateRequest { request, done }) = requests.recv().await {
            self.perform_request(request);
            // Whether its process is still there to hear it is its own affair.
            let _ = done.send(());
        }
    }

    /// Other kinds come only before this, and mean nothing here.
    fn perform_request(&self, request: Bequest) {
        match request {
            Bequest::Publish(LatePublish { app, channel, event, data, except }) => {
                let apps = self.shared.apps.load();
                let Some(app) = apps.by_id(app.as_str()) else { return };
                let directory = self.hub().directory(&app.id);
                let (channel, event, data) = (&channel, event.as_str(), data.as_str());
                let publication = Publication { channel, event, data, except, trace: None };
                self.publish(app, &directory, publication);
            }
            Bequest::Withdraw { app, user, channels } => {
                let directory = self.hub().directory(&app);
                // Who asked for it does not wait for connections of this process.
                drop(self.withdraw_channels((&app, &directory), &user, channels.into()));
            }
            Bequest::GiveUp { app, token, channel } => {
                self.hub().directory(&app).resume.give_up_waiting(&token, &channel);
            }
            _ => {}
        }
    }
}

impl ServerState {
    /// Hands on, over `line`, all that is known of clients that may come back, and what comes in from then on.
    ///
    /// # Errors
    /// The other process is gone, or does not read. Clients are then told of a gap where they come
    /// back.
    pub fn bequeath(&self, mut line: UnixStream) -> io::Result<()> {
        line.set_write_timeout(Some(PATIENCE))?;
        line.set_read_timeout(Some(ACKNOWLEDGED))?;
        if !self.scope.keeps_clients() {
            // Redis has it all.
            let mut out = Vec::new();
            Bequest::Complete { known_for: 0 }.write(&mut out);
            return line.write_all(&out);
        }
        let link = self.succession.successor.get_or_init(|| SuccessorLink(Mutex::new(Some(line))));
        // What is passed on waits behind this.
        let mut line = link.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = line.as_mut() else { return Ok(()) };
        let written = self.write_estates(stream);
        if written.is_err() {
            *line = None;
        }
        let (clients, events) = written?;
        if clients > 0 {
            info!(
                clients,
                events,
                "clients that may resume were handed to the next process, with what they missed"
            );
        }
        Ok(())
    }

    /// How many clients and events were written. In pieces of [`CHUNK_BYTES`], so that a large estate is
    /// never in memory twice.
    fn write_estates(&self, stream: &mut UnixStream) -> io::Result<(usize, usize)> {
        let (mut counts, mut out) = ((0, 0), Vec::with_capacity(CHUNK_BYTES));
        for (app, directory) in self.hub.directories() {
            let estate = directory.resume.leave_estate(self.hub.seconds_since_start());
            let ResumeEstate { highest, complete_for, channels, events, clients } = estate;
            counts.0 += clients.len();
            counts.1 += events.len();
            let channels =
                channels.into_iter().map(|(channel, last)| Bequest::Channel { channel, last });
            let all = std::iter::once(Bequest::App { app, highest, complete_for })
                .chain(channels)
                .chain(events.into_iter().map(Bequest::Event))
                .chain(clients.into_iter().map(Bequest::Client));
            for message in all {
                message.write(&mut out);
                if out.len() >= CHUNK_BYTES {
                    stream.write_all(&out)?;
                    out.clear();
                }
            }
        }
        let known_for = u64::try_from(self.hub.age().as_millis()).unwrap_or(u64::MAX);
        Bequest::Complete { known_for }.write(&mut out);
        stream.write_all(&out)?;
        Ok(counts)
    }

    /// Takes in, from `line`, what the process before this one knows of clients that may come back. To be called
    /// before anybody connects.
    ///
    /// # Errors
    /// The stream ends or is not understood before it is complete; nothing of it is taken in then.
    pub fn inherit(&self, line: &mut BufReader<UnixStream>) -> io::Result<()> {
        line.get_ref().set_read_timeout(Some(PATIENCE))?;
        let mut estates: Vec<(AppId, ResumeEstate)> = Vec::new();
        loop {
            let estate = estates.last_mut().map(|(_, estate)| estate);
            match (Bequest::read_from(line)?, estate) {
                (Some(Bequest::App { app, highest, complete_for }), _) => {
                    let estate = ResumeEstate { highest, complete_for, ..ResumeEstate::default() };
                    estates.push((app, estate));
                }
                (Some(Bequest::Channel { channel, last }), Some(estate)) => {
                    estate.channels.push((channel, last));
                }
                (Some(Bequest::Event(event)), Some(estate)) => estate.events.push(event),
                (Some(Bequest::Client(client)), Some(estate)) => estate.clients.push(client),
                (Some(Bequest::Complete { known_for }), _) => {
                    self.hub.continue_clock(Duration::from_millis(known_for));
                    break;
                }
                (None, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        let (mut clients, mut events) = (0, 0);
        for (app, estate) in estates {
            let now = self.hub.seconds_since_start();
            if self.is_resumable(&app) {
                clients += estate.clients.len();
                events += estate.events.len();
                self.hub.directory(&app).resume.enter_estate(estate, now);
            } else if !estate.clients.is_empty() {
                // It may be found later, or be given a window again.
                self.hub.directory(&app).resume.note_incomplete(now);
            }
        }
        if clients > 0 {
            info!(clients, events, "this process goes on with the clients of the previous one");
        }
        Ok(())
    }

    /// Whether the app's clients may come back; asks for an app that is not known yet.
    fn is_resumable(&self, id: &AppId) -> bool {
        let resumes =
            || self.apps.load().by_id(id.as_str()).map(|app| !app.features.resume.is_zero());
        if let (None, Some(lookup)) = (resumes(), &self.lookup) {
            let pending = lookup.ask_for(AppName::Id(id.as_str().to_owned()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            if let Ok(runtime) = runtime {
                // Without an answer they are told of a gap.
                let _ = runtime.block_on(async { timeout(LOOKED_UP, pending).await });
            }
        }
        resumes().unwrap_or(false)
    }

    /// Takes what the process before this one is asked for, until it ends.
    ///
    /// # Errors
    /// The stream breaks off, or the worker that carries requests out is gone.
    pub fn take_late_requests(
        line: &mut BufReader<UnixStream>,
        requests: &mpsc::UnboundedSender<LateRequest>,
    ) -> io::Result<()> {
        // From here on it waits for what may never come.
        line.get_ref().set_read_timeout(None)?;
        while let Some(request) = Bequest::read_from(line)? {
            let (done, carried_out) = oneshot::channel();
            let is_taken = requests.send(LateRequest { request, done }).is_ok();
            if !is_taken || carried_out.blocking_recv().is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            line.get_ref().write_all(&[DONE])?;
        }
        Ok(())
    }

    /// Passes on that a right was taken back.
    pub(super) fn pass_withdrawal_on(&self, app: &AppId, user: &UserId, channels: &[ChannelName]) {
        if let Some(successor) = self.succession.successor.get() {
            let (app, user, channels) = (app.clone(), user.clone(), channels.to_vec());
            successor.pass_on(&Bequest::Withdraw { app, user, channels });
        }
    }
}
