//! `POST /apps/{id}/events`: parsing and checking an event, and publishing it. Everything is checked before anything is
//! published. Large events are published in chunks. Several events in one request are in `batch.rs`.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use smallvec::SmallVec;

use super::api::SignedCall;
use super::deferred::{CHUNK_BYTES, DeferredAnswer, OwnedTrigger, PacedPublish};
use super::error::Error;
use super::requested_info::{RequestedInfo, channel_counts};
use super::response::AnswerBody;
use crate::app::App;
use crate::hub::rate_limit::RateTaken;
use crate::node::Publication;
use crate::protocol::channel::ChannelName;
use crate::protocol::json::{self, JsonList, JsonObject, NotAString};
use crate::protocol::socket_id::SocketId;

/// One event to publish.
#[derive(Debug)]
pub(super) struct Trigger<'a> {
    /// Borrowed from the body unless it holds escapes.
    name: Cow<'a, str>,
    /// The token of the data's JSON string, copied from the request where it is one.
    data: Cow<'a, str>,
    /// Each once, in the order they came.
    pub(super) channels: SmallVec<[ChannelName; 1]>,
    /// The publisher's own connection, which does not get the event.
    except: Option<SocketId>,
    /// The facts that the response has of each channel.
    pub(super) info: RequestedInfo<'a>,
}

impl Trigger<'_> {
    /// For what is published in parts, after the request that it was borrowed from is gone.
    fn to_owned_one(&self) -> OwnedTrigger {
        OwnedTrigger {
            name: self.name.as_ref().to_owned(),
            data: self.data.as_ref().to_owned(),
            channels: self.channels.to_vec(),
            except: self.except,
        }
    }
}

/// Where a trigger's parameters come from: the body, and, since the API lets them stand there too, the
/// query (case T11).
pub(super) struct Parameters<'a, 'c, 'q> {
    pub(super) body: JsonObject<'a>,
    /// `None` for a batch, whose events share the query, so that none of their parameters can stand there.
    pub(super) call: Option<&'c SignedCall<'q>>,
}

impl<'a> Parameters<'a, '_, '_> {
    /// A parameter that is a text, from the body or else from the query.
    ///
    /// # Errors
    /// It is there and is something else than a string.
    fn string_parameter(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, Error> {
        match self.body.get_string(name) {
            Ok(Some(text)) => Ok(Some(text)),
            Ok(None) => Ok(self.in_query(name).map(|text| Cow::Owned(text.to_owned()))),
            Err(NotAString(name)) => Err(Error::mistyped_parameter(name, "a string")),
        }
    }

    /// Nothing for events of a batch.
    fn in_query(&self, name: &str) -> Option<&str> {
        self.call?.parameter(name)
    }

    /// The data as the token of a JSON string, quotes and escapes included.
    fn event_data(&self) -> Result<Cow<'a, str>, Error> {
        // In the body it is a JSON string; its token goes into the frame unchanged, so that nothing is escaped
        // twice.
        if let Some(data) = self.body.get_value("data") {
            return json::string_token(data)
                .ok_or_else(|| Error::mistyped_parameter("data", "Unicode text"));
        }
        let text = self.in_query("data").ok_or_else(|| Error::missing_parameter("data"))?;
        Ok(Cow::Owned(Value::from(text).to_string()))
    }

    /// The channels from `channels` and `channel` together, each once, in the order they came.
    ///
    /// # Errors
    /// There is none, there are too many, or one has no valid name.
    fn event_channels(&self, app: &App) -> Result<SmallVec<[ChannelName; 1]>, Error> {
        let mut names = SmallVec::new();
        let mut add = |name: &str| {
            // One name is the common case and needs no allocation.
            let name = ChannelName::parse(name, app.limits.max_channel_name)
                .map_err(|error| Error::BadRequest(format!("Invalid channel name: {error}.")))?;
            // A channel that is named twice gets the event once.
            if !names.contains(&name) {
                names.push(name);
            }
            Ok::<(), Error>(())
        };
        if let Some(list) = self.body.get_value("channels") {
            let list = JsonList::parse(list)
                .ok_or_else(|| Error::mistyped_parameter("channels", "an array of strings"))?;
            // Before the names are read, so that a long list of bad ones costs little.
            too_many(list.len(), app)?;
            for name in list {
                add(&json::string_text(name).ok_or_else(|| {
                    Error::mistyped_parameter("channels", "an array of strings")
                })?)?;
            }
        } else if let Some(call) = self.call {
            let list = call.parameters("channels");
            too_many(list.len(), app)?;
            list.into_iter().try_for_each(&mut add)?;
        }
        if let Some(name) = self.string_parameter("channel")? {
            add(&name)?;
        }
        if names.is_empty() {
            return Err(Error::BadRequest(
                "The channels parameter, or channel, is required.".to_owned(),
            ));
        }
        too_many(names.len(), app)?;
        Ok(names)
    }
}

/// 100 as hosted Pusher has it, unless the app says otherwise.
fn too_many(channels: usize, app: &App) -> Result<(), Error> {
    let max = app.limits.max_channels_per_event;
    if channels <= max {
        return Ok(());
    }
    Err(Error::BadRequest(format!("An event may go to {max} channels, not {channels}.")))
}

/// In the order in which hosted Pusher refuses: name, channels, data, sender.
pub(super) fn parse_trigger<'a>(
    parameters: &Parameters<'a, '_, '_>,
    app: &App,
) -> Result<Trigger<'a>, Error> {
    let name =
        parameters.string_parameter("name")?.ok_or_else(|| Error::missing_parameter("name"))?;
    let max = app.limits.max_event_name;
    // Characters, not bytes: that is what the limit means to those who set it.
    if name.is_empty() || name.chars().count() > max {
        return Err(Error::mistyped_parameter("name", &format!("1 to {max} characters")));
    }
    // `resume:` is only the server's own where the app's clients may come back.
    let resumes = !app.features.resume.is_zero();
    let own = ["pusher:", "pusher_internal:", "resume:"];
    let own = if resumes { &own[..] } else { &own[..2] };
    if let Some(prefix) = own.iter().find(|prefix| name.starts_with(**prefix)) {
        return Err(Error::BadRequest(format!(
            "Event names that begin with {prefix} are the protocol's own."
        )));
    }
    let channels = parameters.event_channels(app)?;
    let data = parameters.event_data()?;
    let max = app.limits.max_event_data;
    if let size @ Some(_) = json::longer_than(&data, max) {
        return Err(Error::TooLarge { what: "data content of this event", size, max });
    }
    let except = match parameters.string_parameter("socket_id")? {
        None => None,
        Some(id) => Some(SocketId::parse(&id).ok_or_else(|| {
            Error::mistyped_parameter("socket_id", "two numbers with a dot between")
        })?),
    };
    let info = parameters
        .string_parameter("info")?
        .map_or_else(RequestedInfo::default, RequestedInfo::new);
    Ok(Trigger { name, data, channels, except, info })
}

/// One event, to one channel or several. The answer is `{}`, or the counts that were asked for.
///
/// # Errors
/// 400 for what is wrong with it, 413 for its size, 429 over `events_per_second`, 503 where the
/// other nodes would miss it. Then nothing was published.
pub(super) fn publish_events(call: &SignedCall<'_>, body: &str) -> Result<AnswerBody, Error> {
    let body = parse_object(body)?;
    let trigger = parse_trigger(&Parameters { body, call: Some(call) }, call.app)?;
    // Room and quota are checked when nothing more can be wrong, so that a refused request uses up neither.
    check_room(call, std::slice::from_ref(&trigger))?;
    take_quota(call, 1)?;
    Ok(publish_trigger(call, std::slice::from_ref(&trigger), || {
        if !trigger.info.is_asked() {
            return json!({});
        }
        let counts =
            |name: &ChannelName| (name.to_string(), channel_counts(call, name, &trigger.info));
        let channels: Map<String, Value> = trigger.channels.iter().map(counts).collect();
        json!({ "channels": channels })
    }))
}

/// Found without decoding: values stay the bytes that they are until they are read.
pub(super) fn parse_object(body: &str) -> Result<JsonObject<'_>, Error> {
    // An empty body is one whose parameters all stand in the query.
    let body = if body.is_empty() { "{}" } else { body };
    JsonObject::parse(body)
        .ok_or_else(|| Error::BadRequest("The body must be a JSON object.".into()))
}

/// Whether the event fits into the queue to other nodes, if there are any. Otherwise it is refused for all
/// subscribers, so that the backend knows, rather than lost for some.
pub(super) fn check_room(call: &SignedCall<'_>, triggers: &[Trigger<'_>]) -> Result<(), Error> {
    let events = triggers.iter().map(|trigger| trigger.channels.len()).sum();
    let fits = call.node.shared.scope.has_publish_room(events, bytes(triggers));
    if fits { Ok(()) } else { Err(Error::Crowded) }
}

/// Bytes of data that all channels together get.
fn bytes(triggers: &[Trigger<'_>]) -> usize {
    triggers.iter().map(|trigger| trigger.channels.len() * trigger.data.len()).sum()
}

/// Publishes all of them, and says what is answered then.
pub(super) fn publish_trigger(
    call: &SignedCall<'_>,
    triggers: &[Trigger<'_>],
    answer: impl FnOnce() -> Value,
) -> AnswerBody {
    // Much for many channels would hold the worker up; others get a turn between parts.
    if bytes(triggers) > 2 * CHUNK_BYTES {
        let events = triggers.iter().map(Trigger::to_owned_one).collect();
        return call.answer_later(DeferredAnswer::Publishing(Box::new(PacedPublish::new(
            (events, call.trace.clone()),
            answer(),
        ))));
    }
    for trigger in triggers {
        let Trigger { name: event, data, except, .. } = trigger;
        for channel in &trigger.channels {
            let trace = call.trace.as_ref();
            let publication = Publication { channel, event, data, except: *except, trace };
            call.node.publish(call.app, &call.directory, publication);
        }
    }
    AnswerBody::Json(answer())
}

/// Events of this second; `limit` 0 means no limit, and no headers.
pub(super) fn take_quota(call: &SignedCall<'_>, n: u32) -> Result<(), Error> {
    let limit = call.app.limits.events_per_second;
    if limit == 0 {
        return Ok(());
    }
    match call.directory.events.take_from(call.now, n, limit) {
        RateTaken::Left(left) => {
            call.rate.set(Some((limit, left)));
            Ok(())
        }
        RateTaken::TooMany => Err(Error::TooManyRequests(limit)),
    }
}
