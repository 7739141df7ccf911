//! `GET /apps/{id}/channels`, `/channels/{name}`, `/channels/{name}/users` and `/connections`. The error texts are
//! Pusher's.

use serde_json::{Map, Value, json};

use super::api::SignedCall;
use super::channel_list::{ChannelList, ListFields, ListQuery};
use super::deferred::DeferredAnswer;
use super::error::Error;
use super::requested_info::RequestedInfo;
use super::response::AnswerBody;
use crate::hub::rate_limit::RateTaken;
use crate::protocol::channel::ChannelName;

/// All occupied channels, or those whose name begins with `filter_by_prefix`.
/// `GET /channels`. `info` may ask for `user_count`, then only with a prefix of presence channels, and for
/// `subscription_count`.
/// # Errors
/// 400 in the hosted API's words; 429 over `reads_per_second`.
pub(super) fn list_channels(call: &SignedCall<'_>) -> Result<AnswerBody, Error> {
    take_quota(call)?;
    // An empty prefix matches every channel.
    let prefix = call.parameter("filter_by_prefix").unwrap_or_default();
    let info = RequestedInfo::new(call.parameter("info").unwrap_or_default());
    if info.has_fact("user_count") && !prefix.starts_with("presence-") {
        return Err(Error::BadRequest(
            "user_count may only be requested for presence channels - please supply \
             filter_by_prefix beginning with presence-"
                .to_owned(),
        ));
    }
    let (users, subscriptions) = (info.has_fact("user_count"), info.has_fact("subscription_count"));
    let shown = ListFields { users, subscriptions };
    let wanted = ListQuery { app: call.app.id.clone(), prefix: prefix.to_owned(), shown };
    Ok(match call.occupied_channels(wanted) {
        ChannelList::Made(list) => AnswerBody::Text(list),
        ChannelList::Awaited(list) => call.answer_later(DeferredAnswer::Listing(list)),
    })
}

/// One channel: `GET /channels/{name}`. A channel without subscribers is reported as not occupied, which is no
/// error.
/// # Errors
/// 400 for an invalid name, or a count that the channel's kind does not have.
pub(super) fn show_channel(call: &SignedCall<'_>, name: &str) -> Result<Value, Error> {
    take_quota(call)?;
    let name = parse_channel(call, name)?;
    // No `info` asks for no facts but `occupied`.
    let info = RequestedInfo::new(call.parameter("info").unwrap_or_default());
    if info.has_fact("user_count") && !name.kind().is_presence() {
        return Err(Error::BadRequest(
            "Cannot retrieve the user count unless the channel is a presence channel".to_owned(),
        ));
    }
    let occupancy = call.channel_occupancy(&name);
    let mut answer = Map::new();
    answer.insert("occupied".into(), (occupancy.subscriptions > 0).into());
    if info.has_fact("user_count") {
        answer.insert("user_count".into(), occupancy.users.into());
    }
    if info.has_fact("subscription_count") {
        answer.insert("subscription_count".into(), occupancy.subscriptions.into());
    }
    if info.has_fact("cache") {
        answer.insert("cache".into(), cached_event(call, &name));
    }
    Ok(Value::Object(answer))
}

/// The last event of a cache channel, with the seconds it is kept on; `null` where there is none.
fn cached_event(call: &SignedCall<'_>, name: &ChannelName) -> Value {
    call.last_event(name).map_or(Value::Null, |(data, ttl)| {
        // Cached data is a JSON string that this server wrote, so it always parses.
        let data: Value = serde_json::from_str(&data).unwrap_or_default();
        json!({ "data": data, "ttl": ttl })
    })
}

/// The users of a presence channel, each once.
/// `GET /channels/{name}/users`: ids alone, in the order in which the users came.
/// # Errors
/// 400 for a channel without presence, or a parameter that the hosted API does not know either.
pub(super) fn list_users(call: &SignedCall<'_>, name: &str) -> Result<AnswerBody, Error> {
    take_quota(call)?;
    let name = parse_channel(call, name)?;
    if !name.kind().is_presence() {
        return Err(Error::BadRequest("Users can only be retrieved for presence channels".into()));
    }
    let known = |name: &str| name.to_ascii_lowercase().starts_with("auth_") || name == "body_md5";
    if let Some(extra) = call.query().names().find(|name| !known(name)) {
        let text = format!("The following query string parameters are extraneous: {extra}");
        return Err(Error::BadRequest(text));
    }
    // Written as they come: there may be ten thousand.
    let mut text = String::from("{\"users\":[");
    for (at, user) in call.present_users(&name).iter().enumerate() {
        text.push_str(if at == 0 { "{\"id\":" } else { ",{\"id\":" });
        text.push_str(&Value::from(user.as_str()).to_string());
        text.push('}');
    }
    text.push_str("]}");
    Ok(AnswerBody::Text(text.into()))
}

/// How many sockets the app has; Laravel Pulse asks this.
/// `GET /connections`: all sockets and sessions of the app, on all nodes.
pub(super) fn count_connections(call: &SignedCall<'_>) -> Result<Value, Error> {
    take_quota(call)?;
    Ok(json!({ "connections": call.connection_count() }))
}

/// By the app's own limit for names.
fn parse_channel(call: &SignedCall<'_>, name: &str) -> Result<ChannelName, Error> {
    ChannelName::parse(name, call.app.limits.max_channel_name)
        .map_err(|error| Error::BadRequest(format!("Invalid channel name: {error}.")))
}

/// One query of this second. Counted before anything is looked up, so that being refused is cheap.
fn take_quota(call: &SignedCall<'_>) -> Result<(), Error> {
    let limit = call.app.limits.reads_per_second;
    if limit == 0 {
        return Ok(());
    }
    match call.directory.reads.take_from(call.now, 1, limit) {
        RateTaken::Left(left) => {
            call.rate.set(Some((limit, left)));
            Ok(())
        }
        RateTaken::TooMany => Err(Error::TooManyRequests(limit)),
    }
}
