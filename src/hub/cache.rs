//! The last event of each cache channel of an app. It is kept whether or not anyone is subscribed, for as
//! long as the app says, in bounded memory: what was used longest ago goes first.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;

/// What one entry costs beside its frame, about: the name, the map's and the list's part of it.
const OVERHEAD: usize = 200;

/// One app's cached events.
#[derive(Debug)]
pub struct EventCache(Mutex<CacheEntries>);

#[derive(Debug)]
struct CacheEntries {
    events: LruCache<ChannelName, CachedEvent>,
    bytes: usize,
    version: u64,
    evicted: u64,
}

/// How long an event is kept, and how many bytes all of the app's may take.
#[derive(Clone, Copy, Debug)]
pub struct CacheTerms {
    pub ttl: Duration,
    pub max_bytes: usize,
}

/// An event as it was sent, and its data for whoever asks through the API.
#[derive(Clone, Debug)]
pub struct CachedEvent {
    pub message: Message,
    /// The token of the data's JSON string.
    pub data: Box<str>,
    pub expires: Instant,
    /// Grows with each event of the app: tells a subscriber's copy from the one on its way.
    pub version: NonZeroU64,
}

impl Default for EventCache {
    fn default() -> Self {
        Self(Mutex::new(CacheEntries {
            events: LruCache::unbounded(),
            bytes: 0,
            version: 0,
            evicted: 0,
        }))
    }
}

impl CachedEvent {
    fn cost(&self) -> usize {
        self.message.bytes().len() + self.data.len() + OVERHEAD
    }
}

impl EventCache {
    /// Keeps `message` as the channel's last and has it delivered under its version, before another can take
    /// its place: so the event that is kept is the one that subscribers got last.
    pub fn store_event(
        &self,
        name: &ChannelName,
        (message, data): (&Message, &str),
        keep: CacheTerms,
        deliver: impl FnOnce(u64),
    ) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.version += 1;
        let version = NonZeroU64::new(kept.version).unwrap_or(NonZeroU64::MIN);
        let cached = CachedEvent {
            message: message.clone(),
            data: data.into(),
            expires: Instant::now() + keep.ttl,
            version,
        };
        kept.bytes += cached.cost();
        if let Some(old) = kept.events.put(name.clone(), cached) {
            kept.bytes -= old.cost();
        }
        while kept.bytes > keep.max_bytes {
            let Some((_, old)) = kept.events.pop_lru() else { break };
            kept.bytes -= old.cost();
            kept.evicted += 1;
        }
        deliver(version.get());
    }

    /// The channel's last event, if it has not expired.
    pub fn last_event(&self, name: &ChannelName) -> Option<CachedEvent> {
        self.last_after(name, || ())
    }

    /// As [`Self::last_event`], but `first` is done before, while no other event can be delivered.
    pub fn last_after(&self, name: &ChannelName, first: impl FnOnce()) -> Option<CachedEvent> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first();
        let cached = kept.events.get(name)?;
        if cached.expires > Instant::now() {
            return Some(cached.clone());
        }
        let old = kept.events.pop(name)?;
        kept.bytes -= old.cost();
        None
    }

    /// Drops what has expired, looking only at those used longest ago.
    pub fn drop_expired(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while kept.events.peek_lru().is_some_and(|(_, cached)| cached.expires <= now) {
            let Some((_, old)) = kept.events.pop_lru() else { break };
            kept.bytes -= old.cost();
        }
    }

    /// Events dropped for want of room, and bytes held.
    pub fn figures(&self) -> (u64, usize) {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.evicted, kept.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: CacheTerms = CacheTerms { ttl: Duration::from_secs(60), max_bytes: 8 << 20 };
    const GONE: CacheTerms = CacheTerms { ttl: Duration::ZERO, ..KEEP };

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let cache = EventCache::default();
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
        let cache = EventCache::default();
        let name = ChannelName::parse("cache-a", 200).unwrap();
        let message = Message::event(&name, "e", "\"\"");
        cache.store_event(&name, (&message, "\"\""), GONE, |version| assert_eq!(version, 1));
        assert!(cache.last_event(&name).is_none());
        cache.store_event(&name, (&message, "\"\""), GONE, |version| assert_eq!(version, 2));
        cache.drop_expired();
        assert_eq!(cache.figures(), (0, 0));
    }
}
