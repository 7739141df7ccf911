//! The naive model: what one server would know that had all these connections. It knows nothing of nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::tab::Sight;

/// Who is where, by the tabs' own word.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Truth {
    pub connections: u64,
    /// How many connections are subscribed to each channel.
    pub subscriptions: BTreeMap<String, u64>,
    /// The users in each presence channel that has some.
    pub members: BTreeMap<String, BTreeSet<String>>,
    /// Users who are signed in.
    pub online: BTreeSet<String>,
}

impl Truth {
    pub fn of(sights: &[Sight]) -> Self {
        let mut truth = Self::default();
        for sight in sights {
            let Some(view) = &sight.view else { continue };
            truth.connections += 1;
            if view.signed_in.is_some() {
                truth.online.insert(sight.user.clone());
            }
            for channel in view.channels.iter().filter(|(_, told)| told.confirmed.is_some()) {
                let channel = channel.0;
                *truth.subscriptions.entry(channel.clone()).or_default() += 1;
                if channel.starts_with("presence-") {
                    truth.members.entry(channel.clone()).or_default().insert(sight.user.clone());
                }
            }
        }
        truth
    }
}

/// Whether subscribers of such a channel are told how many they are.
pub fn is_counted(channel: &str) -> bool {
    !["presence-", "private-encrypted-", "#"].iter().any(|start| channel.starts_with(start))
}

/// Whether the last event of such a channel is kept.
pub fn is_cached(channel: &str) -> bool {
    ["cache-", "private-cache-", "presence-cache-"].iter().any(|start| channel.starts_with(start))
}
