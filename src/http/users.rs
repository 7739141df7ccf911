//! Requests about one user, `/apps/{id}/users/{user}/…`: terminate, unsubscribe, reconnect. The node finds the
//! connections, on all nodes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::api::SignedCall;
use super::deferred::DeferredAnswer;
use super::error::Error;
use super::response::AnswerBody;
use crate::protocol::channel::ChannelName;
use crate::protocol::json::{self, JsonList, JsonObject};
use crate::protocol::member::UserId;

/// Channels that one request may take from a user.
/// As many as an event may go to.
const MAX_CHANNELS: usize = 100;

/// The path is decoded by now, so that any id can be named.
fn parse_user(text: &str) -> Result<UserId, Error> {
    let should = || format!("1 to {} characters", UserId::MAX);
    UserId::parse(text).ok_or_else(|| Error::mistyped_parameter("user_id", &should()))
}

/// Closes every connection of the user. That there is none is no error (case U16).
/// Answered at once; the connections close a moment later.
pub(super) fn terminate_user(call: &SignedCall<'_>, user: &str) -> Result<Value, Error> {
    call.node.terminate_user(&call.app.id, &call.directory, &parse_user(user)?);
    Ok(json!({}))
}

/// Closes them so that their clients come back at once, with new signatures.
/// With close code 4200, after which pusher-js connects again without delay.
pub(super) fn reconnect_user(call: &SignedCall<'_>, user: &str) -> Result<Value, Error> {
    call.node.reconnect_user(&call.app.id, &call.directory, &parse_user(user)?);
    Ok(json!({}))
}

/// Makes every connection of the user leave the channels of the body, for as long as it lives.
/// The answer waits until it has happened on all nodes, for a second at most.
/// # Errors
/// Nothing is taken from the user if one of the names is wrong.
pub(super) fn unsubscribe_user(
    call: &SignedCall<'_>,
    user: &str,
    body: &str,
) -> Result<AnswerBody, Error> {
    let (user, channels) = (parse_user(user)?, parse_channels(call, body)?);
    let withdrawing = call.node.withdraw_channels((&call.app.id, &call.directory), &user, channels);
    Ok(call.answer_later(DeferredAnswer::Withdrawing(withdrawing)))
}

/// All the names, or none of them.
/// From the body, or as in other requests from the query.
fn parse_channels(call: &SignedCall<'_>, body: &str) -> Result<Arc<[ChannelName]>, Error> {
    let no_list =
        || Error::mistyped_parameter("channels", &format!("an array of 1 to {MAX_CHANNELS} names"));
    let body = if body.is_empty() { "{}" } else { body };
    let body = JsonObject::parse(body)
        .ok_or_else(|| Error::BadRequest("The body must be a JSON object with channels.".into()))?;
    let names: Vec<String> = match body.get_value("channels") {
        Some(list) => {
            let list = JsonList::parse(list).ok_or_else(no_list)?;
            let name = |one| json::string_text(one).map(String::from).ok_or_else(no_list);
            list.into_iter().map(name).collect::<Result<_, _>>()?
        }
        None => call.parameters("channels").into_iter().map(str::to_owned).collect(),
    };
    if names.is_empty() || names.len() > MAX_CHANNELS {
        return Err(no_list());
    }
    let parse = |name: &String| {
        ChannelName::parse(name, call.app.limits.max_channel_name)
            .map_err(|error| Error::BadRequest(format!("Invalid name in channels: {error}.")))
    };
    names.iter().map(parse).collect()
}
