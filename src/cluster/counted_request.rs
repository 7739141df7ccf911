//! Requests to the link that clients cause, counted as held for their app from when they are queued until Redis has
//! answered, so that `limits.memory` sees them while it is slow. Publishes have limits of their own in `link.rs`.

use std::sync::Arc;

use super::link::{Link, LinkRequest};
use super::webhook_log::LogRequest;
use crate::metrics::{HeldBytes, HeldShare};

/// Bytes that are counted for a request beside its texts: its place in the queue and its part of a round trip.
const REQUEST_BYTES: usize = 256;

impl Link {
    /// Sends a request that a client has caused, which counts in `held` until it is carried out.
    pub fn send_counted(&self, request: LinkRequest, held: &Arc<HeldBytes>) {
        let share = HeldShare::new(held.clone(), request.held_bytes());
        self.requests.send(request, Some(share));
    }
}

impl LinkRequest {
    /// Bytes that are counted for it. A channel's name is shared with the topic's entry, but may outlive it here.
    fn held_bytes(&self) -> usize {
        let texts = match self {
            Self::Open(topic) | Self::Changed { topic, .. } => topic.channel.as_str().len(),
            Self::Join { topic, member, .. } => {
                let member = member.user_id.as_str().len() + member.user_info.len();
                topic.channel.as_str().len() + member
            }
            Self::Leave { topic, user } => topic.channel.as_str().len() + user.as_str().len(),
            Self::WebhookLog(LogRequest::Held { channel, user, .. }) => {
                channel.as_str().len() + user.as_ref().map_or(0, |user| user.as_str().len())
            }
            Self::WebhookLog(LogRequest::Happened { text, .. }) => text.len(),
            // Counted elsewhere, or not of a client's making.
            _ => 0,
        };
        REQUEST_BYTES + texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{AppId, PresenceBounds};
    use crate::cluster::link::new_link;
    use crate::cluster::topics::{MemberClaim, Topics};
    use crate::cluster::{SubscribeTicket, Topic};
    use crate::metrics::HeldByApp;
    use crate::protocol::channel::ChannelName;
    use crate::protocol::member::{Member, UserId};
    use crate::protocol::socket_id::SocketId;

    #[tokio::test]
    async fn what_waits_for_a_slow_redis_is_held_until_it_is_carried_out() {
        let held = Arc::new(HeldBytes::default());
        let (link, mut driver, _arriving) = new_link(1000);
        let far = &mut driver.requests;
        let topic = presence("presence-c");
        let user = UserId::parse("u").unwrap();
        let member = Member { user_id: user.clone(), user_info: "x".repeat(10_000).into() };
        for _ in 0..3 {
            let (topic, member) = (topic.clone(), member.clone());
            let join = LinkRequest::Join { topic, member, max: 1, place: 0 };
            link.send_counted(join, &held);
        }
        let waiting = held.value();
        assert!((30_000..32_000).contains(&waiting), "{waiting}");
        link.send_counted(LinkRequest::Leave { topic: topic.clone(), user }, &held);
        link.send_request(LinkRequest::Open(topic));
        let mut batch = Vec::new();
        assert_eq!(far.recv_many(&mut batch, 2).await, 2);
        assert!(held.value() > waiting, "they are on their way to Redis");
        assert!(matches!(far.try_recv(), Ok(LinkRequest::Join { .. })));
        assert!((10_000..11_000).contains(&held.value()), "one, and a leave that waits");
        assert_eq!(far.recv_many(&mut batch, 10).await, 2);
        assert!(matches!(batch.last(), Some(LinkRequest::Open(_))));
        assert!(far.try_recv().is_err());
        assert_eq!(held.value(), 0);
        // What nobody carries out any more is not held either.
        link.send_counted(LinkRequest::Open(presence("presence-c")), &held);
        drop(driver);
        assert_eq!(held.value(), 0);
    }

    #[test]
    fn channels_that_are_left_before_they_are_opened_leave_nothing() {
        let (link, mut far, _arriving) = new_link(1000);
        let topics = Topics::new(link, Arc::new(HeldByApp::default()));
        let socket = SocketId { node: 1, number: 1 };
        let ticket = SubscribeTicket { worker: 0, slot: 0, socket };
        let named = |number: usize| presence(&format!("presence-{number:0>180}"));
        let member =
            Member { user_id: UserId::parse("u").unwrap(), user_info: "x".repeat(1000).into() };
        let bounds = PresenceBounds { members: 10, bytes: 10_000 };
        for number in 0..100 {
            let claim = MemberClaim { member: &member, bounds, leaving: None };
            assert_eq!(topics.reserve_topic(&named(number), ticket, Some(claim)), Ok(false));
        }
        assert!(topics.held.total() > 100 * (2 * 1000 + 4 * 180), "{}", topics.held.total());
        for number in 1..100 {
            topics.cancel_reservation(&named(number), Some(&member.user_id));
        }
        let mut opened = Vec::new();
        while let Ok(request) = far.requests.try_recv() {
            if let LinkRequest::Open(topic) = request
                && topics.is_still_wanted(&topic)
            {
                opened.push(topic);
            }
        }
        assert_eq!((&opened, topics.all_topics()), (&vec![named(0)], opened.clone()));
        topics.cancel_reservation(&named(0), Some(&member.user_id));
        while far.requests.try_recv().is_ok() {}
        assert!(!topics.is_still_wanted(&named(0)));
        assert_eq!(topics.held.total(), 0);
    }

    fn presence(name: &str) -> Topic {
        Topic { app: AppId::new("a"), channel: ChannelName::parse(name, 200).unwrap() }
    }
}
