//! Memory held for clients, counted when it is allocated and freed. It is counted per app, whichever part of the server
//! holds it, and in the same step for all apps together, which `limits.memory` uses between two measurements of the
//! process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use crate::app::AppId;

/// Memory held for the clients of each app.
#[derive(Debug, Default)]
pub struct HeldByApp {
    apps: DashMap<AppId, Arc<HeldBytes>>,
    /// The sum of all apps.
    total: Arc<AtomicU64>,
}

/// Memory held for the clients of one app.
#[derive(Debug, Default)]
pub struct HeldBytes {
    /// Several threads write it, so it cannot be a [`Counter`](super::Counter).
    own: AtomicU64,
    /// Shared by all apps.
    total: Arc<AtomicU64>,
}

impl HeldByApp {
    /// The count of one app, made when first asked for.
    pub fn of_app(&self, app: &AppId) -> Arc<HeldBytes> {
        if let Some(held) = self.apps.get(app) {
            return held.clone();
        }
        let new = || Arc::new(HeldBytes { own: AtomicU64::new(0), total: self.total.clone() });
        self.apps.entry(app.clone()).or_insert_with(new).clone()
    }

    /// Bytes held for all apps together.
    pub fn total(&self) -> u64 {
        // Relaxed: the limit on memory is checked once a second.
        self.total.load(Ordering::Relaxed)
    }
}

// A figure that others change meanwhile, whatever the ordering.
impl HeldBytes {
    /// Counts `bytes` more.
    pub fn add_bytes(&self, bytes: usize) {
        // Relaxed, in no order: a reader may see one of the two counts a moment before the other.
        self.own.fetch_add(bytes as u64, Ordering::Relaxed);
        self.total.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts `bytes` less.
    pub fn sub_bytes(&self, bytes: usize) {
        // Relaxed: as in `add_bytes`. What is subtracted was added before, so neither count goes below zero.
        self.own.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.total.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Counts `after` where `before` was counted.
    pub fn replace_bytes(&self, before: usize, after: usize) {
        match after.checked_sub(before) {
            Some(0) => {}
            Some(more) => self.add_bytes(more),
            None => self.sub_bytes(before - after),
        }
    }

    /// In bytes.
    pub fn value(&self) -> u64 {
        // Relaxed: read for display, and for limits that allow a moment's excess.
        self.own.load(Ordering::Relaxed)
    }
}

/// Bytes that count as held for an app until it is dropped.
#[derive(Debug, Default)]
pub struct HeldShare {
    /// The app's count.
    held: Arc<HeldBytes>,
    bytes: usize,
}

impl HeldShare {
    /// Counts `bytes` in `held`.
    pub fn new(held: Arc<HeldBytes>, bytes: usize) -> Self {
        held.add_bytes(bytes);
        Self { held, bytes }
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        self.held.sub_bytes(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_for_its_app_and_for_all() {
        let held = HeldByApp::default();
        let [one, other] = ["1", "2"].map(|id| held.of_app(&AppId::new(id)));
        one.add_bytes(10);
        other.add_bytes(5);
        one.replace_bytes(10, 7);
        held.of_app(&AppId::new("1")).replace_bytes(7, 9);
        assert_eq!((one.value(), other.value(), held.total()), (9, 5, 14));
        one.sub_bytes(9);
        assert_eq!((one.value(), held.total()), (0, 5));
    }
}
