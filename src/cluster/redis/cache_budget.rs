//! The bytes of cached events that this node has in Redis, per app. Beyond the app's limit the least recently used are
//! deleted. Each node limits what it published itself; an event that another node has replaced counts for that one.

use std::collections::HashMap;

use lru::LruCache;
use tokio::time::Instant;

use crate::app::AppId;
use crate::cluster::Topic;
use crate::protocol::channel::ChannelName;

/// Approximate bytes of an entry in Redis beside the event.
const OVERHEAD: usize = 200;

/// Bytes of the cached events that this node has published.
#[derive(Debug, Default)]
pub(super) struct CacheBudget {
    /// Each app has `cache_bytes` of its own.
    apps: HashMap<AppId, BudgetedEvents>,
}

/// The cached events of one app.
#[derive(Debug)]
struct BudgetedEvents {
    /// Least recently published first.
    events: LruCache<ChannelName, BudgetedEvent>,
    bytes: usize,
}

#[derive(Debug)]
struct BudgetedEvent {
    /// Its bytes in Redis, with overhead.
    bytes: usize,
    /// Of the publish: a later one of the same channel has replaced it.
    serial: u64,
    /// From then on Redis has dropped it by itself.
    expires: Instant,
}

impl CacheBudget {
    /// An event of `serial` is kept until `expires`; which others are to be taken out, by their serials.
    pub(super) fn keep_event(
        &mut self,
        topic: &Topic,
        (bytes, max): (usize, usize),
        serial: u64,
        expires: Instant,
    ) -> Vec<(ChannelName, u64)> {
        let new = || BudgetedEvents { events: LruCache::unbounded(), bytes: 0 };
        let app = self.apps.entry(topic.app.clone()).or_insert_with(new);
        let bytes = bytes + OVERHEAD;
        app.bytes += bytes;
        let before =
            app.events.put(topic.channel.clone(), BudgetedEvent { bytes, serial, expires });
        app.bytes -= before.map_or(0, |before| before.bytes);
        let mut out = Vec::new();
        let now = Instant::now();
        while let Some((_, oldest)) = app.events.peek_lru() {
            let has_expired = oldest.expires <= now;
            if app.bytes <= max && !has_expired {
                break;
            }
            let Some((channel, oldest)) = app.events.pop_lru() else { break };
            app.bytes -= oldest.bytes;
            if !has_expired {
                out.push((channel, oldest.serial));
            }
        }
        out
    }

    /// Somebody has asked for a channel's event.
    pub(super) fn note_used(&mut self, topic: &Topic) {
        if let Some(app) = self.apps.get_mut(&topic.app) {
            app.events.promote(&topic.channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn topic(channel: &str) -> Topic {
        let channel = ChannelName::parse(channel, 200).unwrap();
        Topic { app: AppId::new("a"), channel }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let (mut keeping, now) = (CacheBudget::default(), Instant::now());
        let later = now + Duration::from_secs(60);
        let max = 3 * (OVERHEAD + 100);
        let mut keep = |channel, bytes, serial, expires| {
            let out = keeping.keep_event(&topic(channel), (bytes, max), serial, expires);
            keeping.note_used(&topic("one"));
            let out = out.into_iter();
            out.map(|(channel, serial)| (channel.to_string(), serial)).collect::<Vec<_>>()
        };
        let none: Vec<(String, u64)> = Vec::new();
        assert_eq!(keep("one", 100, 1, later), none);
        assert_eq!(keep("two", 100, 2, later), none);
        assert_eq!(keep("two", 100, 3, later), none, "in the place of the other");
        assert_eq!(keep("three", 100, 4, later), none);
        assert_eq!(keep("four", 100, 5, later), [("two".to_owned(), 3)]);
        assert_eq!(keep("five", max, 6, later).len(), 4, "not even itself has room");
        assert_eq!(keep("six", 100, 7, now), none, "it has gone by itself");
        assert_eq!(keep("one", max - OVERHEAD, 8, later), none);
    }
}
