//! Publishing an event of the API to the subscribers of a channel. A single server and a cluster take different ways;
//! both begin here. Client events are in `whisper.rs`.

use tracing::debug;

use super::Node;
use crate::app::App;
use crate::console::Kind;
use crate::hub::directory::Directory;
use crate::hub::handles::Sequence;
use crate::hub::traced::EventPlace;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// One event on its way to one channel.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// Borrowed: one event may go to a hundred channels.
    pub channel: &'a ChannelName,
    /// Checked by whoever took it from a backend; here any text goes.
    pub event: &'a str,
    /// The token of the data's JSON string.
    pub data: &'a str,
    /// The connection that is not to get it.
    pub except: Option<SocketId>,
    /// Under which somebody follows it.
    pub trace: Option<&'a Trace>,
}

impl Node {
    /// Publishes an event of the API to one channel.
    /// Returns as soon as the event is queued for the workers and the link. Nothing here waits for a socket or for
    /// Redis; the caller has asked beforehand whether there is room.
    pub fn publish(&self, app: &App, directory: &Directory, publication: Publication<'_>) {
        let Publication { channel, event, trace, .. } = publication;
        let shown = trace.map(Trace::as_str);
        debug!(app = %app.id, ?event, channel = ?channel.as_str(), trace = shown, "published");
        directory.traffic_of(self.worker.index()).published.add(1);
        self.emit_published(Kind::Published, (&app.id, directory), publication);
        match self.shared.scope.others() {
            Some(others) => self.publish_clustered(others, (app, directory), publication),
            None => self.publish_alone(app, directory, publication),
        }
    }

    /// Gives an event to those who are subscribed now; `number` is its place in the channel's log, 0 if it is
    /// in none.
    pub(super) fn publish_to_seats(
        &self,
        app: &App,
        directory: &Directory,
        (publication, message): (Publication<'_>, &Message),
        history: Sequence,
        number: u64,
    ) {
        let Publication { channel, except, trace, .. } = publication;
        let (seats, min) = (directory.targets_of(channel.as_str()), app.compression_min(channel));
        let place = EventPlace { except, history, trace };
        self.hub().publish_event(&seats, message.bytes(), place, min, number);
    }

    /// Gives an event that another process has taken to those here who will not hear it there.
    pub(super) fn publish_to_others(
        &self,
        app: &App,
        directory: &Directory,
        publication: Publication<'_>,
    ) {
        let Publication { channel, event, data, .. } = publication;
        let message = Message::event(channel, event, data);
        self.publish_to_seats(app, directory, (publication, &message), Sequence::None, 0);
    }
}
