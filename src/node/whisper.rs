//! Publishing a client event to all subscribers of a channel but its sender.

use std::borrow::Cow;

use super::Node;
use crate::app::ClientEvents;
use crate::cluster::Topic;
use crate::cluster::link::{Manner, OutgoingEvent};
use crate::console::Kind;
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::handles::Sequence;
use crate::protocol::channel::{Access, ChannelName};
use crate::protocol::command::ClientEvent;
use crate::protocol::error::{self, Error};
use crate::protocol::event::Message;
use crate::protocol::json;
use crate::webhook::Fact;

impl Node {
    /// Passes a client event on to the other subscribers. It is never cached and never echoed.
    /// Checked in the order in which Pusher refuses: whether the app allows client events, whether the sender is on
    /// the channel, and then what it sends.
    /// # Errors
    /// The refusal that the sender gets; the event goes nowhere then.
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
