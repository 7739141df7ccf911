//! The last event of each cache channel of an app. It is kept with or without subscribers, for the app's `cache_ttl`,
//! in bounded memory: the least recently used is dropped first.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::metrics::HeldBytes;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;

/// Approximate bytes of an entry beside its frame: the name, and its parts of the map and the list.
const ENTRY_BYTES: usize = 200;

/// One app's cached events.
#[derive(Debug)]
pub struct EventCache {
    /// Held for an event to be kept and published in one step.
    entries: Mutex<CacheEntries>,
    /// The app's held memory, in which entries count.
    held: Arc<HeldBytes>,
}

/// The cached events of an app, least recently used first.
#[derive(Debug)]
struct CacheEntries {
    /// The one that was read or written longest ago goes first.
    events: LruCache<ChannelName, CachedEvent>,
    /// Bytes of all entries, with overhead.
    bytes: usize,
    /// Of the last event that was kept, over all channels of the app.
    version: u64,
    /// How many went before their time, for the metrics.
    evicted: u64,
}

/// How long an event is kept, and how many bytes all of the app's may take.
#[derive(Clone, Copy, Debug)]
pub struct CacheTerms {
    /// The app's `cache_ttl`.
    pub ttl: Duration,
    /// The app's `cache_bytes`.
    pub max_bytes: usize,
    /// Without memory for it, it is not kept, and neither is the one before it, which is the last no longer.
    pub has_memory: bool,
}

/// A cached event as it was sent, and its data for the HTTP API.
#[derive(Clone, Debug)]
pub struct CachedEvent {
    /// As subscribers got it.
    pub message: Message,
    /// The token of the data's JSON string.
    pub data: Box<str>,
    /// Looked at when it is read: nothing happens at that moment.
    pub expires: Instant,
    /// Grows with each event of the app. Subscribers skip a frame whose version they have already.
    pub version: NonZeroU64,
}

impl CachedEvent {
    /// Bytes that it counts for.
    fn cost(&self) -> usize {
        counted_bytes(&self.message, &self.data)
    }
}

/// Bytes that are counted for an event that is kept.
pub fn counted_bytes(message: &Message, data: &str) -> usize {
    message.bytes().len() + data.len() + ENTRY_BYTES
}

impl CacheEntries {
    /// Removes a channel's event, and its bytes.
    fn remove(&mut self, name: &ChannelName) {
        if let Some(old) = self.events.pop(name) {
            self.bytes -= old.cost();
        }
    }

    /// Removes the least recently used event.
    fn drop_oldest(&mut self) {
        if let Some((_, old)) = self.events.pop_lru() {
            self.bytes -= old.cost();
        }
    }
}

impl EventCache {
    /// An empty one, whose bytes are counted in `held` too.
    pub fn new(held: Arc<HeldBytes>) -> Self {
        let (events, bytes, version, evicted) = (LruCache::unbounded(), 0, 0, 0);
        Self { entries: Mutex::new(CacheEntries { events, bytes, version, evicted }), held }
    }

    /// Changes the entries and counts what that came to.
    fn change_entries<T>(&self, change: impl FnOnce(&mut CacheEntries) -> T) -> T {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.bytes;
        let changed = change(&mut entries);
        self.held.replace_bytes(before, entries.bytes);
        changed
    }

    /// Keeps `message` as the channel's last and has it delivered under its version, before another can take
    /// its place: so the event that is kept is the one that subscribers got last.
    pub fn store_event(
        &self,
        name: &ChannelName,
        (message, data): (&Message, &str),
        keep: CacheTerms,
        deliver: impl FnOnce(u64),
    ) {
        self.change_entries(|kept| {
            kept.version += 1;
            let version = NonZeroU64::new(kept.version).unwrap_or(NonZeroU64::MIN);
            kept.remove(name);
            if keep.has_memory {
                let cached = CachedEvent {
                    message: message.clone(),
                    data: data.into(),
                    expires: Instant::now() + keep.ttl,
                    version,
                };
                kept.bytes += cached.cost();
                kept.events.put(name.clone(), cached);
            } else {
                kept.evicted += 1;
            }
            while kept.bytes > keep.max_bytes {
                kept.drop_oldest();
                kept.evicted += 1;
            }
            deliver(version.get());
        });
    }

    /// The channel's last event, if it has not expired.
    pub fn last_event(&self, name: &ChannelName) -> Option<CachedEvent> {
        self.last_after(name, || ())
    }

    /// As [`Self::last_event`], but `first` is done before, while no other event can be delivered.
    pub fn last_after(&self, name: &ChannelName, first: impl FnOnce()) -> Option<CachedEvent> {
        self.change_entries(|kept| {
            first();
            let cached = kept.events.get(name)?;
            if cached.expires > Instant::now() {
                return Some(cached.clone());
            }
            kept.remove(name);
            None
        })
    }

    /// Drops what has expired, looking only at those used longest ago.
    pub fn drop_expired(&self) {
        let now = Instant::now();
        self.change_entries(|kept| {
            while kept.events.peek_lru().is_some_and(|(_, cached)| cached.expires <= now) {
                kept.drop_oldest();
            }
        });
    }

    /// Events dropped for want of room, and bytes held.
    pub fn figures(&self) -> (u64, usize) {
        let kept = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.evicted, kept.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: CacheTerms =
        CacheTerms { ttl: Duration::from_secs(60), max_bytes: 8 << 20, has_memory: true };
    const GONE: CacheTerms = CacheTerms { ttl: Duration::ZERO, ..KEEP };

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let cache = EventCache::new(Arc::default());
        let name = |n: usize| ChannelName::parse(&format!("cache-{n}"), 200).unwrap();
        let data = format!("\"{}\"", "x".repeat(1 << 20));
        for n in 0..40 {
            let message = Message::event(&name(n), "e", &data);
            cache.store_event(&name(n), (&message, &data), KEEP, |_| ());
            assert!(cache.last_event(&name(0)).is_some(), "used all the time");
        }
        let (evicted, bytes) = cache.figures();
        assert!(evicted > 0 && bytes <= KEEP.max_bytes, "{evicted} {bytes}");
        assert!(cache.last_event(&name(1)).is_none());
        assert!(cache.last_event(&name(39)).is_some());
    }

    #[test]
    fn what_has_expired_is_gone() {
        let cache = EventCache::new(Arc::default());
        let name = ChannelName::parse("cache-a", 200).unwrap();
        let message = Message::event(&name, "e", "\"\"");
        cache.store_event(&name, (&message, "\"\""), GONE, |version| assert_eq!(version, 1));
        assert!(cache.last_event(&name).is_none());
        cache.store_event(&name, (&message, "\"\""), GONE, |version| assert_eq!(version, 2));
        cache.drop_expired();
        assert_eq!(cache.figures(), (0, 0));
    }

    #[test]
    fn without_memory_nothing_is_kept_and_nothing_outdated_either() {
        let held = Arc::new(HeldBytes::default());
        let cache = EventCache::new(held.clone());
        let names = ["cache-a", "cache-b"].map(|name| ChannelName::parse(name, 200).unwrap());
        for name in &names {
            let message = Message::event(name, "e", "\"1\"");
            cache.store_event(name, (&message, "\"1\""), KEEP, |_| ());
        }
        assert_eq!(held.value(), cache.figures().1 as u64);
        let without = CacheTerms { has_memory: false, ..KEEP };
        let message = Message::event(&names[0], "e", "\"2\"");
        let mut delivered = 0;
        cache.store_event(&names[0], (&message, "\"2\""), without, |version| delivered = version);
        assert_eq!(delivered, 3, "subscribers get it all the same");
        assert!(cache.last_event(&names[0]).is_none(), "the first is the last no longer");
        assert!(cache.last_event(&names[1]).is_some());
        assert_eq!((cache.figures().0, held.value()), (1, cache.figures().1 as u64));
    }
}
