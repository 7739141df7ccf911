//! Publishes that Redis confirmed within the last seconds. A replica that takes over, or a server that restarts from an
//! older snapshot, may have lost them; they are then published again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::PendingPublish;

/// For how long what was taken may be lost.
const LOST_WITHIN: Duration = Duration::from_secs(5);

/// Bytes of it that are remembered.
const MAX_BYTES: usize = 8 << 20;

/// The last publishes that Redis has answered.
#[derive(Debug, Default)]
pub(super) struct RecentPublishes {
    /// The oldest first; after [`LOST_WITHIN`] they count as safe.
    publishes: VecDeque<(Instant, PendingPublish)>,
    /// Against a bound: a failover is rare.
    bytes: usize,
    /// When the link was lost, over which they were taken.
    cut: Option<Instant>,
}

impl RecentPublishes {
    /// The link is lost: however long that lasts, what was taken last before is what may be lost.
    pub(super) fn note_link_lost(&mut self) {
        self.cut.get_or_insert_with(Instant::now);
    }

    /// It is made again, to the servers that it was made to before.
    pub(super) fn note_link_made(&mut self) {
        self.cut = None;
    }

    /// A publish was taken at this time of Redis; a cached one got it as its version.
    pub(super) fn note_taken(&mut self, pending: &PendingPublish, taken: u64) {
        let now = Instant::now();
        let taken = if pending.taken > 0 { pending.taken } else { taken };
        self.bytes += pending.publish.queued_bytes();
        let pending = PendingPublish { sent: true, delivered: true, taken, ..pending.clone() };
        self.publishes.push_back((now, pending));
        while let Some((since, oldest)) = self.publishes.front() {
            if now - *since <= LOST_WITHIN && self.bytes <= MAX_BYTES {
                break;
            }
            self.bytes -= oldest.publish.queued_bytes();
            self.publishes.pop_front();
        }
    }

    /// Takes out what may have been lost now of what one master took, in its order.
    pub(super) fn take_doubtful(
        &mut self,
        is_its: impl Fn(&PendingPublish) -> bool,
    ) -> Vec<PendingPublish> {
        let end = self.cut.unwrap_or_else(Instant::now);
        let (its, others) = std::mem::take(&mut self.publishes)
            .into_iter()
            .partition(|(_, pending)| is_its(pending));
        self.publishes = others;
        self.bytes = self.publishes.iter().map(|(_, pending)| pending.publish.queued_bytes()).sum();
        let its: VecDeque<(Instant, PendingPublish)> = its;
        // It may have taken as long again to find out.
        let young =
            its.into_iter().filter(|(at, _)| end.duration_since(*at) <= LOST_WITHIN + LOST_WITHIN);
        young.map(|(_, pending)| pending).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::app::AppId;
    use crate::cluster::Topic;
    use crate::cluster::link::{Manner, OutgoingEvent};
    use crate::protocol::channel::ChannelName;

    fn pending(serial: u64, bytes: usize) -> PendingPublish {
        let channel = ChannelName::parse("c", 200).unwrap();
        let topic = Topic { app: AppId::new("a"), channel };
        let (frame, manner) = (Bytes::from(vec![0; bytes]), Manner::AtOnce);
        let publish = OutgoingEvent::Event { topic, except: None, frame, manner };
        PendingPublish {
            since: Instant::now(),
            serial,
            delivered: false,
            sent: false,
            taken: 0,
            publish,
        }
    }

    #[test]
    fn what_was_taken_last_is_remembered_in_its_order() {
        let mut recent = RecentPublishes::default();
        for serial in 1..=20 {
            recent.note_taken(&pending(serial, 1 << 20), serial);
        }
        let again: Vec<_> = recent
            .take_doubtful(|_| true)
            .iter()
            .map(|pending| (pending.serial, pending.taken))
            .collect();
        assert_eq!(again, (14..=20).map(|serial| (serial, serial)).collect::<Vec<_>>());
        assert!(recent.take_doubtful(|_| true).is_empty());
        let again = PendingPublish { taken: 3, ..pending(21, 1) };
        recent.note_taken(&again, 9);
        assert_eq!(recent.take_doubtful(|_| true)[0].taken, 3, "when it was taken first");
    }

    #[test]
    fn what_one_master_took_is_said_again_alone() {
        let mut recent = RecentPublishes::default();
        (1..=4).for_each(|serial| recent.note_taken(&pending(serial, 1), serial));
        let its = recent.take_doubtful(|pending| pending.serial % 2 == 0);
        assert_eq!(its.iter().map(|pending| pending.serial).collect::<Vec<_>>(), [2, 4]);
        let others = recent.take_doubtful(|_| true);
        assert_eq!(others.iter().map(|pending| pending.serial).collect::<Vec<_>>(), [1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_however_long_forgets_nothing() {
        let mut recent = RecentPublishes::default();
        recent.note_taken(&pending(1, 1), 1);
        tokio::time::advance(LOST_WITHIN * 3).await;
        recent.note_taken(&pending(2, 1), 2);
        recent.note_link_lost();
        tokio::time::advance(LOST_WITHIN * 9).await;
        recent.note_link_lost();
        let again = recent.take_doubtful(|_| true);
        assert_eq!(again.iter().map(|pending| pending.serial).collect::<Vec<_>>(), [2]);
    }
}
