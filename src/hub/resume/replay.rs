//! Missed events that are read from Redis: the connection is subscribed first, and new events wait until the missed
//! ones are known. So none is lost in between, and none is sent twice.

use std::rc::Rc;

use bytes::Bytes;

use super::{Replayed, ReplayedEvent, ResumeFigures};
use crate::hub::connection::Connection;
use crate::hub::handles::ChannelHandle;
use crate::hub::worker::Worker;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;

impl Worker {
    /// The channel's name as its subscribers here share it.
    pub fn shared_name(&self, connection: &Connection, name: &ChannelName) -> ChannelName {
        let channels = self.channels.borrow();
        let local = channels.find(&connection.directory, name.as_str());
        let channel = local.and_then(|local| channels.get(local));
        channel.map_or_else(|| name.clone(), |channel| channel.name.clone())
    }

    /// Events of the channel wait from now on, for the connection, until the log was read.
    pub fn hold_back(&self, connection: &Rc<Connection>, name: &ChannelName) {
        let local = self.channels.borrow().find(&connection.directory, name.as_str());
        if let (Some(local), Some(resumption)) = (local, connection.resumption()) {
            resumption.hold_back(local);
            self.deliveries.hold_back(local);
        }
    }

    /// Events of the channel wait no longer; returns those that have.
    pub(in crate::hub) fn let_go(
        &self,
        connection: &Connection,
        local: ChannelHandle,
    ) -> Option<Vec<(u64, Bytes)>> {
        let held = connection.resumption()?.let_go(local)?;
        self.deliveries.let_go(local);
        Some(held)
    }

    /// Tells a connection what its client has missed, and then what has come in since.
    pub(in crate::hub) fn replay(&self, connection: &Rc<Connection>, replayed: Replayed) {
        let Replayed { channel, events, gap, last } = replayed;
        let local = self.channels.borrow().find(&connection.directory, channel.as_str());
        let (Some(local), Some(resumption)) = (local, connection.resumption()) else { return };
        let Some(held) = self.let_go(connection, local) else { return };
        let (token, resume) = (&resumption.token, &connection.directory.resume);
        let sockets = resume.sockets(token, connection.id);
        let is_for = |event: &ReplayedEvent| !event.except.is_some_and(|id| sockets.contains(&id));
        let missed = events.into_iter().filter(is_for).map(|event| event.frame);
        let missed: Vec<Bytes> = missed.collect();
        if gap {
            ResumeFigures::add_count(&resume.figures.gaps, 1);
            connection.enqueue_message(Message::resume_gap(&channel));
        }
        ResumeFigures::add_count(&resume.figures.replayed, missed.len() as u64);
        let newer: Vec<(u64, Bytes)> =
            held.into_iter().filter(|(number, _)| *number > last).collect();
        let told = newer.last().map_or(last, |(number, _)| (*number).max(last));
        resumption.set_delivered(local, told);
        self.deliveries.note_caught_up(local, told);
        if !missed.is_empty() || !newer.is_empty() {
            connection.push_missed(missed);
            newer.into_iter().for_each(|(_, frame)| connection.push_logged(frame));
            self.expect_acknowledgement(connection);
        }
        connection.flush();
    }
}
