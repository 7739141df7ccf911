//! States of resumable clients that Redis does not have yet: the latest of each client, within a limit for each
//! app. `clients.rs` sends them.

use std::collections::{HashMap, VecDeque};

use crate::app::AppId;
use crate::cluster::clients::Parked;

/// Bytes that may wait for each app. Beyond that no more is kept, and a client that reconnects gets gaps.
const MAX_BYTES: usize = 16 << 20;

/// Bytes of a waiting state beside its record.
const PARKED_BYTES: usize = 2 * size_of::<Parked>() + 64;

/// A client's app, and the key of its token.
type ClientName = (AppId, String);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct ParkedClients {
    /// In the order in which they are sent.
    order: VecDeque<ClientName>,
    /// The latest state of each client.
    by_name: HashMap<ClientName, Parked>,
    /// Bytes of waiting states, by app.
    bytes: HashMap<AppId, usize>,
}

/// Bytes that a waiting state counts as.
fn bytes_of(parked: &Parked) -> usize {
    PARKED_BYTES + parked.record.len()
}

impl ParkedClients {
    /// Takes what a client holds, in the place of what it held before.
    pub(super) fn put(&mut self, mut parked: Parked) {
        let name = (parked.app.clone(), parked.key.clone());
        let bytes = self.bytes.entry(parked.app.clone()).or_default();
        if let Some(waiting) = self.by_name.get_mut(&name) {
            *bytes = *bytes + bytes_of(&parked) - bytes_of(waiting);
            // Only the first word of a client that was not claimed displaces another node.
            parked.unclaimed |= waiting.unclaimed;
            *waiting = parked;
        } else if *bytes + bytes_of(&parked) <= MAX_BYTES {
            *bytes += bytes_of(&parked);
            self.order.push_back(name.clone());
            self.by_name.insert(name, parked);
        }
    }

    /// The waiting states of apps that Redis can be reached for, oldest first.
    pub(super) fn iter(
        &self,
        can_be_told: impl Fn(&AppId) -> bool,
    ) -> impl Iterator<Item = &Parked> {
        let told = self.order.iter().filter(move |(app, _)| can_be_told(app));
        told.filter_map(|name| self.by_name.get(name))
    }

    /// Redis has the first so many of these.
    pub(super) fn forget(&mut self, mut count: usize, can_be_told: impl Fn(&AppId) -> bool) {
        for name in std::mem::take(&mut self.order) {
            if count == 0 || !can_be_told(&name.0) {
                self.order.push_back(name);
                continue;
            }
            count -= 1;
            if let Some(parked) = self.by_name.remove(&name)
                && let Some(bytes) = self.bytes.get_mut(&name.0)
            {
                *bytes -= bytes_of(&parked);
            }
        }
        // They give their memory back.
        if self.order.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    fn parked(app: &str, key: usize, bytes: usize) -> Parked {
        Parked {
            app: AppId::new(app),
            key: key.to_string(),
            record: Bytes::from(vec![0; bytes]),
            window: Duration::from_secs(1),
            ended: false,
            unclaimed: key == 1,
        }
    }

    fn keys(all: &ParkedClients) -> Vec<(usize, usize)> {
        all.iter(|_| true).map(|one| (one.key.parse().unwrap(), one.record.len())).collect()
    }

    #[test]
    fn the_last_that_a_client_holds_is_told_in_its_place() {
        let mut all = ParkedClients::default();
        (1..4).for_each(|key| all.put(parked("a", key, key)));
        all.put(Parked { unclaimed: false, ..parked("a", 1, 9) });
        assert_eq!(keys(&all), [(1, 9), (2, 2), (3, 3)]);
        assert!(all.iter(|_| true).next().unwrap().unclaimed, "its first word is not said yet");
        all.forget(2, |_| true);
        assert_eq!(keys(&all), [(3, 3)]);
        all.put(parked("away", 4, 4));
        all.forget(5, |app| app.as_str() == "a");
        assert_eq!(keys(&all), [(4, 4)]);
        all.forget(1, |_| true);
        assert!(all.by_name.is_empty() && all.bytes.is_empty());
    }

    #[test]
    fn while_redis_was_slow_they_took_memory_without_end() {
        let mut all = ParkedClients::default();
        (0..1000).for_each(|key| all.put(parked("a", key, 100_000)));
        let kept = keys(&all).len();
        assert!(kept > 100 && kept * 100_000 <= MAX_BYTES, "{kept}");
        all.put(parked("b", 1, 100));
        assert_eq!(keys(&all).len(), kept + 1, "another app has room of its own");
        all.put(parked("a", 0, 10));
        assert_eq!(keys(&all)[0], (0, 10));
    }
}
