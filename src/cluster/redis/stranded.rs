//! Publishes that wait while Redis, or a master of a Redis Cluster, is away: in order, bounded in bytes and age. Those
//! of a single master wait separately, so that others neither wait behind them nor lose their room. `away.rs` decides
//! what is away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::connections::RedisConnections;
use super::{LinkState, PendingPublish, URGENT_AGE};
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::{LinkMetrics, LinkStatus};

/// Moves bytes from one count to another.
fn shift_bytes(from: &AtomicUsize, to: &AtomicUsize, bytes: usize) {
    // Relaxed: the two counts are shown side by side, and nothing depends on their sum.
    from.fetch_sub(bytes, Ordering::Relaxed);
    to.fetch_add(bytes, Ordering::Relaxed);
}

/// Removes publishes beyond the age limit. Urgent ones move to `urgent`. Returns the bytes of those, and of the
/// dropped ones.
fn take_old(
    queue: &mut VecDeque<PendingPublish>,
    urgent: &mut Vec<PendingPublish>,
    (max_age, status): (Duration, &LinkStatus),
) -> (usize, usize) {
    let (mut kept, mut dropped) = (0, 0);
    while let Some(pending) = queue.pop_front_if(|pending| pending.since.elapsed() > max_age) {
        let bytes = pending.publish.queued_bytes();
        // A withdrawal must reach the other nodes however late.
        if pending.publish.is_urgent() && pending.since.elapsed() <= URGENT_AGE {
            kept += bytes;
            urgent.push(pending);
            continue;
        }
        dropped += bytes;
        LinkMetrics::add_count(&status.figures.dropped, 1);
    }
    (kept, dropped)
}

impl LinkState {
    /// Drops publishes that have waited too long.
    pub(super) fn drop_old(&mut self, max_age: Duration, status: &LinkStatus) {
        let (_, dropped) = take_old(&mut self.publishes, &mut self.urgent, (max_age, status));
        // Relaxed: counts of bytes order nothing else.
        status.queued.fetch_sub(dropped, Ordering::Relaxed);
    }

    /// The same with those that wait for what is away.
    pub(super) fn drop_old_stranded(&mut self, max_age: Duration, status: &LinkStatus) {
        let (kept, dropped) = take_old(&mut self.stranded, &mut self.urgent, (max_age, status));
        // Relaxed: only the link's thread changes it, others show it.
        status.stranded.fetch_sub(dropped, Ordering::Relaxed);
        shift_bytes(&status.stranded, &status.queued, kept);
    }

    /// Sets publishes aside whose owner is away. The owner's last confirmed publishes may be lost, and are sent
    /// again before later ones.
    pub(super) fn strand_away(
        &mut self,
        servers: &RedisConnections,
        keys: &RedisKeys,
        (status, max_bytes): (&LinkStatus, usize),
    ) {
        if !servers.is_partial() {
            return;
        }
        let is_away = |pending: &PendingPublish| servers.is_publish_away(keys, &pending.publish);
        let since = Instant::now();
        for pending in self.recent.take_doubtful(is_away) {
            // Relaxed: as above.
            status.stranded.fetch_add(pending.publish.queued_bytes(), Ordering::Relaxed);
            self.stranded.push_back(PendingPublish { since, ..pending });
        }
        for pending in std::mem::take(&mut self.publishes) {
            if is_away(&pending) {
                self.strand(pending, (status, max_bytes));
            } else {
                self.publishes.push_back(pending);
            }
        }
    }

    /// A publish waits for what is away, if there is room.
    pub(super) fn strand(
        &mut self,
        pending: PendingPublish,
        (status, max_bytes): (&LinkStatus, usize),
    ) {
        let bytes = pending.publish.queued_bytes();
        // Relaxed: as above.
        if status.stranded.load(Ordering::Relaxed) + bytes > max_bytes
            && !pending.publish.is_urgent()
        {
            // Dropped for the limit. Urgent publishes pass it: a right that was revoked must not outlive it.
            status.queued.fetch_sub(bytes, Ordering::Relaxed);
            LinkMetrics::add_count(&status.figures.dropped, 1);
            return;
        }
        shift_bytes(&status.queued, &status.stranded, bytes);
        self.stranded.push_back(pending);
    }

    /// Publishes that were set aside wait with the others again, and come first: after a lost link all, or those
    /// whose owner is there.
    pub(super) fn gather_stranded(
        &mut self,
        status: &LinkStatus,
        is_there: impl Fn(&PendingPublish) -> bool,
    ) {
        let stranded = std::mem::take(&mut self.stranded);
        let (there, away): (VecDeque<_>, VecDeque<_>) = stranded.into_iter().partition(is_there);
        self.stranded = away;
        for pending in there.into_iter().rev() {
            shift_bytes(&status.stranded, &status.queued, pending.publish.queued_bytes());
            self.publishes.push_front(pending);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::AppId;
    use crate::cluster::Topic;
    use crate::cluster::link::{Manner, OutgoingEvent};
    use crate::protocol::channel::ChannelName;
    use crate::protocol::member::UserId;

    fn pending(serial: u64, publish: OutgoingEvent) -> PendingPublish {
        let since = Instant::now();
        PendingPublish { since, serial, delivered: false, sent: false, taken: 0, publish }
    }

    #[test]
    fn what_is_set_aside_comes_back_in_front_once_its_master_is_there() {
        let topic =
            |app| Topic { app: AppId::new(app), channel: ChannelName::parse("c", 200).unwrap() };
        let waits = |serial, app| {
            let (except, frame, manner) = (None, bytes::Bytes::new(), Manner::AtOnce);
            pending(serial, OutgoingEvent::Event { topic: topic(app), except, frame, manner })
        };
        let mut kept = LinkState::of_node(7, std::sync::Arc::default());
        let status = LinkStatus::default();
        kept.publishes.push_back(waits(9, "b"));
        for (serial, app) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
            kept.strand(waits(serial, app), (&status, usize::MAX));
        }
        let bytes = status.stranded.load(Ordering::Relaxed);
        kept.gather_stranded(&status, |pending| pending.publish.app_id().as_str() == "b");
        let serials = |all: &VecDeque<PendingPublish>| -> Vec<u64> {
            all.iter().map(|pending| pending.serial).collect()
        };
        assert_eq!(
            (serials(&kept.publishes), serials(&kept.stranded)),
            (vec![2, 4, 9], vec![1, 3])
        );
        assert_eq!(status.stranded.load(Ordering::Relaxed), bytes / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_waited_too_long_is_dropped_but_not_what_is_urgent() {
        let app = AppId::new("a");
        let topic = Topic { app: app.clone(), channel: ChannelName::parse("c", 200).unwrap() };
        let (except, frame, manner) = (None, bytes::Bytes::new(), Manner::AtOnce);
        let event = OutgoingEvent::Event { topic, except, frame, manner };
        let (user, asked) = (UserId::parse("u").unwrap(), std::time::Instant::now());
        let terminate = OutgoingEvent::Terminate { app, user, asked };
        let mut queue: VecDeque<_> =
            [pending(1, event.clone()), pending(2, terminate), pending(3, event.clone())].into();
        let age = Duration::from_secs(60);
        tokio::time::advance(age).await;
        queue.push_back(pending(4, event));
        let (status, mut urgent) = (LinkStatus::default(), Vec::new());
        assert_eq!(take_old(&mut queue, &mut urgent, (age, &status)), (0, 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        let (kept, dropped) = take_old(&mut queue, &mut urgent, (age, &status));
        assert_eq!(urgent.iter().map(|pending| pending.serial).collect::<Vec<_>>(), [2]);
        assert_eq!(queue.iter().map(|pending| pending.serial).collect::<Vec<_>>(), [4]);
        assert_eq!(dropped, 2 * kept, "as large each");
        assert_eq!(status.figures.dropped.load(Ordering::Relaxed), 2);
    }
}
