//! Requests to the link that clients cause, counted for their app from when they are queued until Redis has answered: as
//! held, so that `limits.memory` sees them while it is slow, and as waiting, which has a limit of its own. Publishes
//! have theirs in `link.rs`.

use std::sync::Arc;

use super::clients::{Parked, Replay};
use super::link::{Link, LinkRequest};
use super::link_queue::RequestShare;
use super::webhook_log::LogRequest;
use crate::app::AppId;
use crate::metrics::{HeldBytes, HeldShare};

/// Bytes that are counted for a request beside its texts: its place in the queue and its part of a round trip.
const REQUEST_BYTES: usize = 256;

/// Bytes of a topic's entry, about, beside its name, and how often that is kept; `topics.rs` counts them as held.
const TOPIC_BYTES: usize = 1 << 10;
const NAME_COPIES: usize = 3;

/// Bytes of requests that may wait however few bytes of events may: clients that come back all at once need them.
const LEAST_WAITING: usize = 16 << 20;

impl Link {
    /// Sends a request that a client has caused, which counts in `held` until it is carried out.
    pub fn send_counted(&self, request: LinkRequest, held: &Arc<HeldBytes>) {
        let (bytes, more) = request.held_bytes();
        let waiting = request.app_id().map(|app| self.figures().waiting.of_app(app));
        let share = RequestShare {
            _held: HeldShare::new(held.clone(), bytes),
            _waiting: waiting.map(|waiting| HeldShare::new(waiting, bytes + more)),
        };
        self.requests.send(request, Some(share));
    }

    /// Whether so much of the app waits for Redis that its clients have to wait before they ask for more. A request
    /// that ends something is asked for all the same. Each app may have as much waiting as is left for others
    /// (Choudhury and Hahne, "Dynamic queue length thresholds", 1998), so that one alone never has all.
    pub fn is_crowded(&self, app: &AppId) -> bool {
        let waiting = &self.figures().waiting;
        let (total, max) = (waiting.total(), self.max_queued().max(LEAST_WAITING) as u64);
        // As most of the time: no app has more than all have. Figures that others change meanwhile, so that each worker
        // may let one more through.
        2 * total >= max && waiting.of_app(app).value() + total >= max
    }
}

impl LinkRequest {
    /// Bytes that are counted for it as held, and those beside them that something else counts. A channel's name is
    /// shared with the topic's entry, but may outlive it here.
    fn held_bytes(&self) -> (usize, usize) {
        let (texts, more) = match self {
            // Nobody may hold the topic any more, but its entry goes only once the request is carried out.
            Self::Open(topic) => {
                let name = topic.channel.as_str().len();
                (name, TOPIC_BYTES + NAME_COPIES * name)
            }
            Self::Changed { topic, .. } => (topic.channel.as_str().len(), 0),
            Self::Join { topic, member, .. } => {
                let member = member.user_id.as_str().len() + member.user_info.len();
                (topic.channel.as_str().len() + member, 0)
            }
            Self::Leave { topic, user } => (topic.channel.as_str().len() + user.as_str().len(), 0),
            Self::WebhookLog(LogRequest::Held { channel, user, .. }) => {
                let user = user.as_ref().map_or(0, |user| user.as_str().len());
                (channel.as_str().len() + user, 0)
            }
            Self::WebhookLog(LogRequest::Happened { text, .. }) => (text.len(), 0),
            Self::Park(parked) => (parked.key.len(), parked.record.len()),
            Self::Replay(replay) => (replay.topic.channel.as_str().len(), 0),
            // Counted elsewhere, or not of a client's making.
            _ => (0, 0),
        };
        (REQUEST_BYTES + texts, more)
    }

    /// The app whose client has caused it.
    fn app_id(&self) -> Option<&AppId> {
        match self {
            Self::Open(topic)
            | Self::Changed { topic, .. }
            | Self::Join { topic, .. }
            | Self::Leave { topic, .. }
            | Self::Replay(Replay { topic, .. }) => Some(&topic.app),
            Self::WebhookLog(LogRequest::Held { app, .. } | LogRequest::Happened { app, .. })
            | Self::Park(Parked { app, .. }) => Some(app),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::PresenceBounds;
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

    #[test]
    fn an_app_that_waits_for_redis_has_no_more_than_it_leaves_to_others() {
        let topics = |app: &str, count: usize| -> Vec<_> {
            (0..count)
                .map(|at| Topic { app: AppId::new(app), ..presence(&format!("c{at:05}")) })
                .collect()
        };
        let (link, mut far, _arriving) = new_link(0);
        let held = Arc::new(HeldBytes::default());
        let fill = |app: &str| -> usize {
            let asked = topics(app, 30_000).into_iter();
            let asked = asked.take_while(|_| !link.is_crowded(&AppId::new(app)));
            asked.map(|topic| link.send_counted(LinkRequest::Open(topic), &held)).count()
        };
        let (loud, quiet, third) = (fill("loud"), fill("quiet"), fill("third"));
        assert!(loud > 100 && (loud / 2 - 1..=loud / 2 + 1).contains(&quiet), "{loud} {quiet}");
        assert!((quiet / 2 - 1..=quiet / 2 + 1).contains(&third), "{quiet} {third}");
        // Whoever goes does not wait.
        let user = UserId::parse("u").unwrap();
        let leave = LinkRequest::Leave { topic: topics("loud", 1).remove(0), user };
        link.send_counted(leave, &held);
        let mut left = 0;
        while let Ok(request) = far.requests.try_recv() {
            left += usize::from(matches!(request, LinkRequest::Leave { .. }));
        }
        assert_eq!((left, link.figures().waiting.total(), held.value()), (1, 0, 0));
        assert!(!link.is_crowded(&AppId::new("loud")));
    }

    fn presence(name: &str) -> Topic {
        Topic { app: AppId::new("a"), channel: ChannelName::parse(name, 200).unwrap() }
    }
}
