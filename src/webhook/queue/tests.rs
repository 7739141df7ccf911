//! Tests of a webhook's queue: what has room in it.

use tokio::task::LocalSet;

use super::super::cluster_log::{AckSink, LogAck};
use super::*;
use crate::app::WebhookEvent;
use crate::metrics::HeldByApp;
use crate::protocol::channel::ChannelName;

/// A queue whose task has no turn, so that nothing is sent.
fn queue() -> (WebhookQueue, Arc<App>) {
    let app = Arc::new(App::new("1", "k", "s"));
    let webhook = Webhook {
        url: "http://127.0.0.1:9/".to_owned(),
        events: vec![WebhookEvent::ChannelVacated],
        channel_prefix: String::new(),
        channel_suffix: String::new(),
        headers: Vec::new(),
        batch: Duration::ZERO,
    };
    let post = WebhookClient::new(true, Arc::default());
    let held = HeldByApp::default().of_app(&app.id);
    (WebhookQueue::begin(app.clone(), 0, webhook, (post, held), None), app)
}

fn vacated(number: usize) -> WebhookMessage {
    let channel = ChannelName::parse(&format!("c{number}"), 200).unwrap();
    WebhookMessage::turned((channel, None), false)
}

#[tokio::test]
async fn channels_of_a_cluster_that_were_left_at_once_stayed_occupied() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (queue, app) = queue();
            let door = AckSink::new(Some(Box::new(|_, _| {})));
            for number in 0..3 * MAX_EVENTS {
                let logged =
                    Persistence::Logged(LogAck::new(&door, &app.id, &format!("{number}-0")));
                queue.put(0, &vacated(number), logged);
            }
            assert_eq!(queue.len(), 3 * MAX_EVENTS);
            assert_eq!(queue.figures().dropped.load(Ordering::Relaxed), 0);
            // Client events have the room that is left below their own bound.
            let what = MessageContent::ClientEvent("{}".into());
            queue.put(0, &WebhookMessage { what, ..vacated(0) }, Persistence::Not);
            assert_eq!(queue.figures().dropped.load(Ordering::Relaxed), 1);
        })
        .await;
}
