//! `POST /apps/{id}/batch_events`: several events in one request, all of them or none.

use serde_json::{Value, json};

use super::api::SignedCall;
use super::error::Error;
use super::events::{
    Parameters, Trigger, check_room, parse_object, parse_trigger, publish_trigger, take_quota,
};
use super::requested_info::channel_counts;
use super::response::AnswerBody;
use crate::protocol::json::BatchBody;

/// Several events, each to one channel.
///
/// # Errors
/// As for one event; one wrong event refuses all of them.
pub(super) fn batch_events(call: &SignedCall<'_>, body: &str) -> Result<AnswerBody, Error> {
    // Two readers: a quick one for what is right, and the one that finds out what is wrong.
    let wrong = || Error::mistyped_parameter("batch", "an array of events");
    // The cause is searched for only once the fast reader has failed.
    let Some(BatchBody(batch)) = BatchBody::parse(body) else {
        return Err(parse_object(body).map_or_else(|error| error, |_| wrong()));
    };
    let batch = batch.ok_or_else(|| Error::missing_parameter("batch"))?;
    let max = call.app.limits.max_batch;
    if batch.len() > max {
        let text = format!("Batch too large ({} > {max}).", batch.len());
        return Err(Error::BadRequest(text));
    }
    let mut triggers = Vec::with_capacity(batch.len());
    for body in batch {
        triggers.push(parse_trigger(&Parameters { body, call: None }, call.app)?);
    }
    check_room(call, &triggers)?;
    // Each event of a batch counts.
    take_quota(call, triggers.len() as u32)?;
    Ok(publish_trigger(call, &triggers, || {
        if !triggers.iter().any(|trigger| trigger.info.is_asked()) {
            // As Pusher answers: Go's SDK takes `batch` for a list or nothing.
            return json!({});
        }
        let info = |trigger: &Trigger<'_>| match trigger.channels.first() {
            Some(name) if trigger.info.is_asked() => channel_counts(call, name, &trigger.info),
            _ => json!({}),
        };
        let infos: Vec<Value> = triggers.iter().map(info).collect();
        json!({ "batch": infos })
    }))
}
