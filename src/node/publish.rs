//! Publishing: an API event goes to all subscribers, a client event to all but its sender. A single server and a
//! cluster take different ways; both begin here.

use std::borrow::Cow;

use tracing::debug;

use super::Node;
use crate::app::{App, ClientEvents};
use crate::cluster::Topic;
use crate::cluster::link::{Manner, OutgoingEvent};
use crate::console::Kind;
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::directory::Directory;
use crate::hub::handles::Sequence;
use crate::hub::traced::EventPlace;
use crate::protocol::channel::{Access, ChannelName};
use crate::protocol::command::ClientEvent;
use crate::protocol::error::{self, Error};
use crate::protocol::event::Message;
use crate::protocol::json;
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;
use crate::webhook::Fact;

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

    /// Passes a client event on to the other subscribers. It is never cached and never echoed.
    /// Checked in the order in which Pusher refuses: whether the app allows client events, whether the sender is on
    /// the channel, and then what it sends.
    /// # Errors
    /// What the sender is told; the event goes nowhere then.
    pub fn whisper(
        &self,
        connection: &Connection,
        client_event: &ClientEvent<'_>,
    ) -> Result<(), Error> {
        let app = connection.app();
        let ClientEvent { event, channel, data } = client_event;
        let data = match (app.client_events, data) {
            (ClientEvents::None, _) => return Err(error::CLIENT_EVENTS_OFF),
            (_, Some(data)) => json::string_token(data).ok_or(error::INVALID_MESSAGE)?,
            // `whisper("typing")` has none, which Reverb and Soketi take and Pusher does not.
            (ClientEvents::Members, None) => Cow::Borrowed(r#""null""#),
            (ClientEvents::Private, None) => return Err(error::INVALID_CLIENT_EVENT),
        };
        let Ok(name) = ChannelName::parse(channel, app.limits.max_channel_name) else {
            return Err(error::NOT_A_MEMBER);
        };
        let access = name.kind().access;
        if access == Access::ServerToUser {
            return Err(error::NOT_TO_USERS);
        }
        // A subscription is the right to speak: for private channels it was signed.
        let Some(user) = self.worker.subscribed_as(connection, name.as_str()) else {
            return Err(error::NOT_A_MEMBER);
        };
        if access == Access::Public && app.client_events == ClientEvents::Private {
            return Err(error::NOT_PRIVATE);
        }
        if event.chars().count() > app.limits.max_event_name {
            let message = format!(
                "The event name exceeds the allowed maximum ({} characters)",
                app.limits.max_event_name
            );
            return Err(Error { code: 4301, message: message.into() });
        }
        // No more than a backend may send, even where only one of the two limits was lowered.
        let max = app.limits.max_client_event_data.min(app.limits.max_event_data);
        if json::longer_than(&data, max).is_some() {
            let message =
                format!("The data of the event exceeds the allowed maximum ({max} bytes)");
            return Err(Error { code: 4301, message: message.into() });
        }
        let message = Message::client_event(&name, event, &data, user.as_ref());
        connection.traffic().published.add(1);
        self.emit_fact(Kind::Whispered, connection, |fact| {
            // The channel has at least the sender, unless it left in this instant.
            let here = connection.directory.occupancy(name.as_str()).unwrap_or_default();
            let fact = fact.channel(name.as_str()).event(&**event).data_token(&data);
            fact.count(here.subscriptions.saturating_sub(1))
        });
        self.report_fact(&app, Some(user), |user| {
            Fact::client_event(&name, event, &data, connection.id, user)
        });
        let seats = connection.directory.targets_of(name.as_str());
        let subscribers: usize = seats.iter().map(|seat| seat.subscribers.get() as usize).sum();
        // One small frame to a crowd is the dearest thing that a client can ask for.
        connection.budget.spend(WorkKind::Bytes(subscribers * message.bytes().len()));
        let place = (Some(connection.id), Sequence::None);
        self.hub().publish_event(&seats, message.bytes(), place, app.compression_min(&name), 0);
        self.shared.scope.publish_to_others(false, || {
            let (frame, except) = (message.into_bytes(), Some(connection.id));
            let topic = Topic { app: app.id.clone(), channel: name };
            OutgoingEvent::Event { topic, except, frame, manner: Manner::Whisper }
        });
        Ok(())
    }
}
