//! When to send subscription counts: on each change to small channels, and at most every five seconds to large ones, so
//! that a joining crowd does not notify everybody of everybody.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::channel::ChannelName;

/// Subscribers up to which every change is announced (Pusher's documentation, "Subscription counting").
const UNTHROTTLED_SUBSCRIBERS: usize = 100;

/// The least time between two counts of a crowd.
const CROWD_INTERVAL: Duration = Duration::from_secs(5);

/// The crowded channels of one app whose count was announced recently.
#[derive(Debug, Default)]
pub struct CountThrottle(Mutex<HashMap<ChannelName, LastNotice>>);

/// The last count that a channel's subscribers were sent.
#[derive(Debug)]
struct LastNotice {
    /// When it was announced.
    at: Instant,
    /// The count has changed since.
    stale: bool,
}

impl CountThrottle {
    /// Whether a change to `count` subscribers is announced now. If not, [`Self::take_due`] returns the channel
    /// later.
    pub fn is_due_now(&self, name: &ChannelName, count: usize) -> bool {
        if count <= UNTHROTTLED_SUBSCRIBERS {
            return true;
        }
        let now = Instant::now();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.get_mut(name)
            && now - told.at < CROWD_INTERVAL
        {
            told.stale = true;
            return false;
        }
        told.insert(name.clone(), LastNotice { at: now, stale: false });
        true
    }

    /// The channels whose pause is over and whose count has changed in it.
    pub fn take_due(&self) -> Vec<ChannelName> {
        let now = Instant::now();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        told.retain(|name, told| {
            if now - told.at < CROWD_INTERVAL {
                return true;
            }
            if told.stale {
                due.push(name.clone());
                *told = LastNotice { at: now, stale: false };
                return true;
            }
            false
        });
        if told.len() < told.capacity() / 4 {
            let room = 2 * told.len();
            told.shrink_to(room);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_told_every_five_seconds() {
        let counting = CountThrottle::default();
        let name = ChannelName::parse("a", 200).unwrap();
        assert!(counting.is_due_now(&name, 100) && counting.is_due_now(&name, 100));
        assert!(counting.is_due_now(&name, 101));
        assert!(!counting.is_due_now(&name, 102));
        assert!(counting.take_due().is_empty());
        tokio::time::advance(CROWD_INTERVAL).await;
        assert_eq!(counting.take_due(), std::slice::from_ref(&name));
        assert!(!counting.is_due_now(&name, 103), "told by being due");
        tokio::time::advance(CROWD_INTERVAL).await;
        assert_eq!(counting.take_due().len(), 1);
        tokio::time::advance(CROWD_INTERVAL).await;
        assert!(counting.take_due().is_empty());
        assert!(counting.is_due_now(&name, 104));
    }
}
