//! Resuming: a new connection continues where the last one ended. The hub knows what was published meanwhile and what
//! is acknowledged; here it becomes frames.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::catch_up::{CatchUp, START_SLACK, log_bounds, may_be_forgotten};
use super::travelling::{ClientClaim, token_age};
use super::{Node, Publication, ServerState};
use crate::app::App;
use crate::console::Kind;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::hub::handles::Sequence;
use crate::hub::resume::resumption::Resumption;
use crate::hub::resume::{
    ClientState, LogBounds, OpenConnection, ReplacedConnection, ResumeFigures, SubscriptionState,
};
use crate::protocol::channel::ChannelName;
use crate::protocol::error::close;
use crate::protocol::event::Message;
use crate::protocol::resume_token::{PresentedToken, ResumeToken};

impl ServerState {
    /// Ends a connection whose client has a newer one, which gives back what limits count for it.
    /// Its place is given back at once, so that the new connection finds room; the connection itself leaves in its
    /// own time.
    pub(super) fn end_previous(&self, directory: &Directory, previous: &ReplacedConnection) {
        if previous.gives_back {
            self.release_socket(previous.address);
            directory.release_connection();
        }
        self.hub.close_one(previous.place, close::TAKEN_OVER);
    }
}

impl Node {
    /// Ends the connection that the client has open, before limits count the new one.
    /// A browser that lost its network opens a new connection long before the server notices that the old one is
    /// dead.
    pub fn take_over(&self, directory: &Directory, token: &ResumeToken) {
        if let Some(previous) = directory.resume.replace_connection(token) {
            self.shared.end_previous(directory, &previous);
        }
    }

    /// Makes a new connection the client's; with several nodes, by what was found out of it.
    /// Without a claim, on a server of its own, what is remembered here decides; with one, what other nodes said.
    pub fn go_on(
        &self,
        connection: &Connection,
        presented: &PresentedToken,
        claim: Option<ClientClaim>,
    ) {
        if self.shared.succession.is_leaving() {
            return connection.close_with(&close::DRAINING);
        }
        let (directory, app, token) = (&connection.directory, connection.app(), &presented.token);
        let open = OpenConnection::new(connection.connection_ref(), connection.address);
        let (arrived, is_forgotten, alive) = match claim {
            Some(claim) => self.settle_claim(connection, open, (token, claim)),
            None => {
                let arrived = directory.resume.connect_client(token, open);
                let window = app.features.resume;
                let now = self.hub().seconds_since_start();
                let complete_for = directory.resume.complete_for(now);
                let is_unsure =
                    !arrived.known && self.may_have_missed(presented, window, complete_for);
                let is_forgotten = directory.resume.note_forgotten(token, is_unsure, (now, window));
                (arrived, is_forgotten, 0)
            }
        };
        if let Some(previous) = &arrived.previous {
            self.shared.end_previous(directory, previous);
        }
        let resumption = Resumption::new(token.clone(), is_forgotten);
        resumption.set_earlier(arrived.earlier);
        // Nobody else asks for it.
        if arrived.known && alive > 0 {
            resumption.set_alive(alive);
        }
        connection.set_resumption(resumption);
    }

    /// Whether a client that nobody knows may have been here before: by its token's time it is older than
    /// what is remembered, than this server, or than the `complete_for` seconds in which nobody was forgotten who may
    /// come back.
    /// Such a client is told of a gap on each channel, and fetches what it shows; one that is new has missed
    /// nothing.
    fn may_have_missed(
        &self,
        presented: &PresentedToken,
        window: Duration,
        complete_for: Option<u32>,
    ) -> bool {
        let Some(age) = token_age(presented) else { return false };
        let is_incomplete = may_be_forgotten(age, complete_for);
        age > window || is_incomplete || age > self.hub().age().saturating_add(START_SLACK)
    }

    /// The events that a client has missed on a channel that it has just subscribed to. Read under the log's lock:
    /// an event is either among these or delivered later, never both.
    pub(super) fn catch_up(&self, connection: &Rc<Connection>, name: &ChannelName) -> CatchUp {
        let Some(resumption) = connection.resumption() else { return CatchUp::Up };
        let resume = &connection.directory.resume;
        match resume.subscribe_client(&resumption.token, connection.id, name) {
            SubscriptionState::Held(missed) => {
                self.worker.note_caught_up(connection, name, missed.last);
                if !missed.frames.is_empty() {
                    self.worker.expect_acknowledgement(connection);
                }
                if missed.gap {
                    ResumeFigures::add_count(&resume.figures.gaps, 1);
                }
                self.emit_fact(Kind::Resumed, connection, |fact| {
                    let gap = if missed.gap { "older ones are gone" } else { "" };
                    fact.channel(name.as_str()).count(missed.frames.len()).why(gap)
                });
                CatchUp::Missed(missed.frames, missed.gap)
            }
            SubscriptionState::New if resumption.is_forgotten && resumption.note_gap(name) => {
                ResumeFigures::add_count(&resume.figures.gaps, 1);
                CatchUp::Gap
            }
            SubscriptionState::New | SubscriptionState::Told => CatchUp::Up,
        }
    }

    /// Tells what was missed, right behind what answers the subscription; whether that is in the place of a
    /// cached event.
    /// A gap first, so that the client knows that what follows is not all.
    pub(super) fn send_missed(
        &self,
        connection: &Connection,
        name: &ChannelName,
        caught: CatchUp,
    ) -> bool {
        match caught {
            CatchUp::Up => false,
            CatchUp::Gap => {
                connection.enqueue_message(Message::resume_gap(name));
                false
            }
            CatchUp::Missed(frames, gap) => {
                if gap {
                    connection.enqueue_message(Message::resume_gap(name));
                }
                connection.push_missed(frames);
                true
            }
        }
    }

    /// Publishes an event that resuming clients must get too. Numbered and published under one lock: subscribers
    /// get events in the order of the log.
    pub(super) fn publish_logged(
        &self,
        app: &App,
        directory: &Directory,
        (publication, message): (Publication<'_>, &Message),
        history: Sequence,
    ) {
        let Publication { channel, except, .. } = publication;
        let event = (channel, message.bytes(), except);
        let is_kept = directory.resume.publish_numbered(
            event,
            self.hub().seconds_since_start(),
            log_bounds(app),
            |number| {
                // Asked only now: who has subscribed since has looked into the log after this, or will.
                self.publish_to_seats(app, directory, (publication, message), history, number);
            },
        );
        if !is_kept {
            self.pass_publication_on(app, publication);
            self.publish_to_others(app, directory, publication);
        }
    }

    /// Notes the events that the client has acknowledged by answering a ping. They need not be replayed, and may be
    /// forgotten.
    pub fn note_acknowledged(&self, connection: &Connection) {
        let Some(acknowledged) = self.worker.take_acknowledged(connection) else { return };
        if let Some(resumption) = connection.resumption() {
            let resume = &connection.directory.resume;
            resume.note_acknowledged(&resumption.token, connection.id, acknowledged.into_iter());
        }
    }

    /// Notes that the client gave a channel up, or had to.
    pub(super) fn give_up(&self, connection: &Connection, name: &ChannelName) {
        if let Some(resumption) = connection.resumption() {
            connection.directory.resume.give_up(&resumption.token, connection.id, name);
        }
    }

    /// Keeps what the client holds for its next connection, once; whether limits still count this one.
    /// Called before its subscriptions end, which would take its channels from what is kept.
    pub(super) fn suspend_client(&self, connection: &Connection) {
        let Some(resumption) = connection.resumption().filter(|one| one.take_end()) else { return };
        let patience = Duration::from_secs(connection.app().activity_timeout.into());
        let unanswered = resumption.is_unanswered(Instant::now(), patience);
        let end = (connection.id, self.hub().seconds_since_start());
        let (token, resume) = (&resumption.token, &connection.directory.resume);
        if let Some(others) = self.shared.scope.others() {
            let (app, last) = (connection.app(), (connection.users(), unanswered));
            let park = |state: &ClientState| self.shared.park(others, &app, token, state);
            return resume.depart(token, end, last, park);
        }
        let bounds = log_bounds(&connection.app());
        resume.note_ended(token, end, connection.users(), (unanswered, bounds));
    }

    /// Forgets the clients that did not come back in time, and the events that are of no use.
    /// Called once a second by the first worker.
    pub fn expire_clients(&self) {
        let (apps, now) = (self.shared.apps.load(), self.hub().seconds_since_start());
        for (id, directory) in self.hub().directories() {
            let app = apps.by_id(id.as_str());
            let window = app.map_or(Duration::ZERO, |app| app.features.resume);
            let bounds = app.map_or(LogBounds { bytes: 0, seconds: 0 }, |app| log_bounds(app));
            directory.resume.expire_clients(now, window, bounds);
        }
    }
}
