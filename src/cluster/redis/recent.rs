//! What Redis took within the last seconds. A server that is replaced by its replica, or begins anew with the data it had
//! saved, may have lost it, although it was answered: then it is said again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Held;

/// For how long what was taken may be lost.
const LOST_WITHIN: Duration = Duration::from_secs(5);

/// Bytes of it that are remembered.
const MAX_BYTES: usize = 8 << 20;

/// The last publishes that Redis has answered.
#[derive(Debug, Default)]
pub(super) struct Recent {
    publishes: VecDeque<(Instant, Held)>,
    bytes: usize,
}

impl Recent {
    /// A publish was taken at a time of Redis.
    pub(super) fn note(&mut self, held: &Held, taken: u64) {
        let now = Instant::now();
        let taken = if held.taken > 0 { held.taken } else { taken };
        self.bytes += held.publish.bytes();
        let held = Held { sent: true, told: true, taken, ..held.clone() };
        self.publishes.push_back((now, held));
        while let Some((since, oldest)) = self.publishes.front() {
            if now - *since <= LOST_WITHIN && self.bytes <= MAX_BYTES {
                break;
            }
            self.bytes -= oldest.publish.bytes();
            self.publishes.pop_front();
        }
    }

    /// Takes out what may have been lost now, in its order.
    pub(super) fn take(&mut self) -> Vec<Held> {
        self.bytes = 0;
        let publishes = std::mem::take(&mut self.publishes).into_iter();
        let young = publishes.filter(|(since, _)| since.elapsed() <= LOST_WITHIN + LOST_WITHIN);
        young.map(|(_, held)| held).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::app::AppId;
    use crate::cluster::Topic;
    use crate::cluster::link::Publish;
    use crate::protocol::channel::ChannelName;

    fn held(serial: u64, bytes: usize) -> Held {
        let channel = ChannelName::parse("c", 200).unwrap();
        let topic = Topic { app: AppId::new("a"), channel };
        let publish = Publish::Event { topic, except: None, frame: Bytes::from(vec![0; bytes]) };
        Held { since: Instant::now(), serial, told: false, sent: false, taken: 0, publish }
    }

    #[test]
    fn what_was_taken_last_is_remembered_in_its_order() {
        let mut recent = Recent::default();
        for serial in 1..=20 {
            recent.note(&held(serial, 1 << 20), serial);
        }
        let again: Vec<_> = recent.take().iter().map(|held| (held.serial, held.taken)).collect();
        assert_eq!(again, (14..=20).map(|serial| (serial, serial)).collect::<Vec<_>>());
        assert!(recent.take().is_empty());
        let again = Held { taken: 3, ..held(21, 1) };
        recent.note(&again, 9);
        assert_eq!(recent.take()[0].taken, 3, "when it was taken first");
    }
}
