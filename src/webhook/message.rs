//! Webhook events and their JSON. A queue keeps the fact and not its JSON: for a crowd that joins and leaves it holds
//! little more than the names, which are shared. Names and fields of the events are Pusher's.

use std::sync::Arc;

use serde::Serialize;

use crate::app::{Webhook, WebhookEvent};
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// One event of a webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct WebhookMessage {
    pub channel: ChannelName,
    /// The event itself.
    pub what: MessageContent,
}

/// The event on the channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum MessageContent {
    /// The channel, or a member of it, is there from now on, or is not.
    Turned { user: Option<UserId>, is: bool },
    /// A subscriber found no cached event.
    CacheMiss,
    /// The number of subscriptions has changed.
    Count(usize),
    /// A client event, as JSON: most of that is its data. Shared by all lines that tell it.
    ClientEvent(Arc<str>),
}

/// The JSON of all but client events; fields in the order of the alphabet.
#[derive(Serialize)]
struct MessageJson<'a> {
    channel: &'a str,
    /// The event's name in Pusher's documentation.
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_count: Option<usize>,
    /// For `member_added` and `member_removed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
}

impl WebhookMessage {
    /// That a channel, or a member of it, is there or is not any more.
    pub(super) fn turned((channel, user): (ChannelName, Option<UserId>), is: bool) -> Self {
        Self { channel, what: MessageContent::Turned { user, is } }
    }

    /// Which of the events it is.
    pub(super) fn kind(&self) -> WebhookEvent {
        match &self.what {
            MessageContent::Turned { user: None, is: true } => WebhookEvent::ChannelOccupied,
            MessageContent::Turned { user: None, is: false } => WebhookEvent::ChannelVacated,
            MessageContent::Turned { user: Some(_), is: true } => WebhookEvent::MemberAdded,
            MessageContent::Turned { user: Some(_), is: false } => WebhookEvent::MemberRemoved,
            MessageContent::CacheMiss => WebhookEvent::CacheMiss,
            MessageContent::Count(_) => WebhookEvent::SubscriptionCount,
            MessageContent::ClientEvent(_) => WebhookEvent::ClientEvent,
        }
    }

    /// Whether the webhook wants it.
    pub(super) fn is_for(&self, webhook: &Webhook) -> bool {
        let channel = self.channel.as_str();
        webhook.events.contains(&self.kind())
            && channel.starts_with(&webhook.channel_prefix)
            && channel.ends_with(&webhook.channel_suffix)
    }

    /// Bytes of its texts.
    pub(super) fn text_bytes(&self) -> usize {
        let more = match &self.what {
            MessageContent::Turned { user, .. } => user.as_ref().map_or(0, |id| id.as_str().len()),
            MessageContent::CacheMiss | MessageContent::Count(_) => 0,
            MessageContent::ClientEvent(json) => json.len(),
        };
        self.channel.as_str().len() + more
    }

    /// Adds one object of a request's `events`.
    pub(super) fn write_json(&self, out: &mut Vec<u8>) {
        let name = match self.kind() {
            WebhookEvent::ChannelOccupied => "channel_occupied",
            WebhookEvent::ChannelVacated => "channel_vacated",
            WebhookEvent::MemberAdded => "member_added",
            WebhookEvent::MemberRemoved => "member_removed",
            WebhookEvent::CacheMiss => "cache_miss",
            WebhookEvent::SubscriptionCount => "subscription_count",
            WebhookEvent::ClientEvent => "client_event",
        };
        let (subscription_count, user_id) = match &self.what {
            MessageContent::ClientEvent(json) => return out.extend_from_slice(json.as_bytes()),
            MessageContent::Turned { user, .. } => (None, user.as_ref().map(UserId::as_str)),
            MessageContent::CacheMiss => (None, None),
            MessageContent::Count(count) => (Some(*count), None),
        };
        let json =
            MessageJson { channel: self.channel.as_str(), name, subscription_count, user_id };
        // Texts and numbers are always written.
        let _ = serde_json::to_writer(out, &json);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_written_as_pusher_has_it() {
        let channel = ChannelName::parse("presence-a", 200).unwrap();
        let user = UserId::parse("7\n\"x").unwrap();
        let written = |what| {
            let mut json = Vec::new();
            WebhookMessage { channel: channel.clone(), what }.write_json(&mut json);
            String::from_utf8(json).unwrap()
        };
        let turned =
            |user: Option<&UserId>, is| written(MessageContent::Turned { user: user.cloned(), is });
        assert_eq!(turned(None, true), r#"{"channel":"presence-a","name":"channel_occupied"}"#);
        assert_eq!(turned(None, false), r#"{"channel":"presence-a","name":"channel_vacated"}"#);
        assert_eq!(
            turned(Some(&user), true),
            r#"{"channel":"presence-a","name":"member_added","user_id":"7\n\"x"}"#
        );
        assert_eq!(
            turned(Some(&user), false),
            r#"{"channel":"presence-a","name":"member_removed","user_id":"7\n\"x"}"#
        );
        assert_eq!(
            written(MessageContent::CacheMiss),
            r#"{"channel":"presence-a","name":"cache_miss"}"#
        );
        assert_eq!(
            written(MessageContent::Count(3)),
            r#"{"channel":"presence-a","name":"subscription_count","subscription_count":3}"#
        );
        assert_eq!(written(MessageContent::ClientEvent("{}".into())), "{}");
    }
}
