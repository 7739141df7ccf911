//! The counts that a request asks for by `info`: which facts of which channels, and their values in the response.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::api::SignedCall;
use crate::protocol::channel::ChannelName;

/// The requested facts, as they were sent: `user_count,subscription_count`. Unknown ones are ignored.
#[derive(Clone, Default, Debug)]
pub(super) struct RequestedInfo<'a>(Cow<'a, str>);

impl<'a> RequestedInfo<'a> {
    /// The names, as they were sent.
    pub(super) fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self(text.into())
    }

    /// Most requests ask for nothing, and are answered `{}`.
    pub(super) fn is_asked(&self) -> bool {
        !self.0.is_empty()
    }

    /// Blanks around the commas do no harm.
    pub(super) fn has_fact(&self, fact: &str) -> bool {
        self.0.split(',').any(|one| one.trim() == fact)
    }
}

/// The channel's counts; the user count only on presence channels. Counted after the event was published, so that
/// clients which join because of it are not included.
pub(super) fn channel_counts(
    call: &SignedCall<'_>,
    name: &ChannelName,
    info: &RequestedInfo<'_>,
) -> Value {
    let occupancy = call.channel_occupancy(name);
    let mut counts = Map::new();
    if info.has_fact("user_count") && name.kind().is_presence() {
        counts.insert("user_count".into(), occupancy.users.into());
    }
    if info.has_fact("subscription_count") {
        counts.insert("subscription_count".into(), occupancy.subscriptions.into());
    }
    Value::Object(counts)
}
