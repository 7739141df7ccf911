//! Queries over all nodes: one or two round trips to Redis, whatever the number of nodes. `node/query.rs` answers what
//! a node knows itself.

use redis::{Value, cmd};

use super::batch::CommandBatch;
use super::connections::RedisConnections;
use super::opening::open_cached;
use super::trust::EnvelopeTrust;
use super::{LinkError, claims};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::cluster::envelope::{Envelope, EnvelopeBody};
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::{ClusterOccupancy, LinkQuery, LinkReply, LinkStatus};
use crate::cluster::redis_clock::now_us;
use crate::cluster::reply;
use crate::cluster::scripts::events::{CachedReply, read_cached};
use crate::cluster::scripts::presence;
use crate::cluster::topics::Topics;
use crate::protocol::channel::ChannelName;

/// Answers one question; nothing if Redis answers with what it should not.
///
/// # Errors
/// Redis is away or answers with an error; the API then answers from what this node knows.
pub(super) async fn answer_query(
    servers: &mut RedisConnections,
    (status, topics): (&LinkStatus, &Topics),
    (trust, node, question): (EnvelopeTrust<'_>, u64, LinkQuery),
) -> Result<Option<LinkReply>, LinkError> {
    let keys = trust.keys;
    // Local knowledge answers instead.
    if servers.is_partial() && is_about_away(servers, keys, &question) {
        return Ok(None);
    }
    let question = match question {
        LinkQuery::Claim { .. } | LinkQuery::Withdrawn { .. } | LinkQuery::TakeOver { .. } => {
            return ask_of_client(servers, status, (trust, node, question)).await;
        }
        question => question,
    };
    let mut batch = CommandBatch::new();
    match &question {
        // One hash has the counts of all of an app's channels: no key is searched for.
        LinkQuery::Channels { app, .. } => {
            let mut all = cmd("HGETALL");
            all.arg(keys.app_key(app, 't'));
            batch.add_command(all, ());
        }
        LinkQuery::Counts(asked) => {
            asked.iter().for_each(|topic| add_occupancy(&mut batch, keys, topic));
        }
        // Three answers, read below by their places: subscribers, users, the cached event.
        LinkQuery::Channel(topic) => {
            add_occupancy(&mut batch, keys, topic);
            batch.add_command(
                read_cached(&['c', 'v'].map(|part| keys.channel_key(topic, part))),
                (),
            );
        }
        LinkQuery::Users(topic) => {
            let mut all = cmd("HGETALL");
            all.arg(keys.channel_key(topic, 'm'));
            batch.add_command(all, ());
        }
        LinkQuery::Connections(app) => {
            let mut one = cmd("HGET");
            // A channel's name is never empty, so that field is free for the connections.
            one.arg(keys.app_key(app, 't')).arg("");
            batch.add_command(one, ());
        }
        _ => {}
    }
    let answers = batch.send_all(servers, status).await?;
    let answers: Vec<Value> = answers.into_iter().map(|(_, value)| value).collect();
    // Nothing was asked, for example for the counts of no topics.
    let Some(first) = answers.first() else { return Ok(None) };
    Ok(Some(match question {
        LinkQuery::Channels { app, prefix, users } => {
            let mut channels = read_channels(first, &prefix);
            if users {
                count_users(servers, (keys, status, topics), &app, &mut channels).await?;
            }
            LinkReply::Channels(channels)
        }
        // In the order in which the topics were asked for.
        LinkQuery::Counts(topics) => LinkReply::Counts(read_occupancy(&topics, &answers)),
        LinkQuery::Channel(topic) => {
            // A channel that Redis does not know is empty.
            let asked = std::slice::from_ref(&topic);
            let counted = read_occupancy(asked, &answers).first().copied().unwrap_or_default();
            let name = keys.topic_name(&topic);
            let cached = answers.get(2).and_then(CachedReply::parse);
            let kept = cached.and_then(|cached| open_cached(cached, &name, trust, &status.clock));
            LinkReply::Channel(counted, kept.map(|(kept, ..)| kept))
        }
        LinkQuery::Users(_) => {
            let members = presence::read_members(first);
            LinkReply::Users(members.into_iter().map(|(_, member)| member.user_id).collect())
        }
        LinkQuery::Connections(_) => {
            // An app without a counter in Redis has no connection.
            LinkReply::Connections(reply::as_number(first).unwrap_or_default() as usize)
        }
        _ => return Ok(None),
    }))
}

/// The same of one that is about a client that may come back, whose record may be in Redis or with
/// another node.
async fn ask_of_client(
    servers: &mut RedisConnections,
    status: &LinkStatus,
    (trust, own, question): (EnvelopeTrust<'_>, u64, LinkQuery),
) -> Result<Option<LinkReply>, LinkError> {
    Ok(match question {
        LinkQuery::Claim { app, key, window } => {
            let of = (own, &app, key.as_str(), window);
            claims::claim(servers, trust, status, of).await?.map(LinkReply::Claimed)
        }
        LinkQuery::Withdrawn { app, members } => {
            let times = claims::withdrawn(servers, trust.keys, status, (&app, &members)).await?;
            Some(LinkReply::Withdrawn(times))
        }
        LinkQuery::TakeOver { app, key, node, request } => {
            let body = EnvelopeBody::TakeOver { request, app: app.clone(), key: key.into() };
            // 0: it is for one node and has no place in the order of what nodes publish.
            let (serial, sent, delivered) = (0, now_us(), false);
            let (whisper, again) = (false, false);
            let (origin, version) = (own, 0);
            let envelope =
                Envelope { origin, serial, version, sent, delivered, whisper, again, body };
            let receivers =
                claims::take_over(servers, trust, status, (envelope, &app, node)).await?;
            Some(LinkReply::Told(receivers))
        }
        _ => None,
    })
}

/// Two commands a channel: its subscribers, and its users.
fn add_occupancy(batch: &mut CommandBatch<()>, keys: &RedisKeys, topic: &Topic) {
    let mut subscriptions = cmd("HGET");
    subscriptions.arg(keys.app_key(&topic.app, 't')).arg(topic.channel.as_str());
    batch.add_command(subscriptions, ());
    let mut users = cmd("HLEN");
    users.arg(keys.channel_key(topic, 'm'));
    batch.add_command(users, ());
}

/// The answers to [`add_occupancy`], in its order. A channel that Redis does not know is empty.
fn read_occupancy(topics: &[Topic], answers: &[Value]) -> Vec<ClusterOccupancy> {
    // Redis answers nil for a channel that it does not know.
    let number = |value: &Value| reply::as_number(value).unwrap_or_default() as usize;
    let one = |(topic, pair): (&Topic, &[Value])| match pair {
        [subscriptions, users] => {
            let (subscriptions, users) = (number(subscriptions), number(users));
            ClusterOccupancy { subscriptions: subscriptions_of(topic, subscriptions, users), users }
        }
        _ => ClusterOccupancy::default(),
    };
    topics.iter().zip(answers.chunks_exact(2)).map(one).collect()
}

/// The count of a channel follows its members by a round trip; an answer must not contradict itself. A channel with members
/// is occupied, and nobody subscribes to a presence channel without being present. Members of a node that stops are there
/// for a while, although they are not subscribed.
fn subscriptions_of(topic: &Topic, counted: usize, users: usize) -> usize {
    match (users, counted) {
        (0, _) if topic.channel.kind().is_presence() => 0,
        (_, 0) => users,
        _ => counted,
    }
}

/// Out of an app's hash of counts, those that begin with `prefix`; users are counted afterwards,
/// where they are wanted. A name that cannot be a channel's is passed over.
fn read_channels(all: &Value, prefix: &str) -> Vec<(ChannelName, ClusterOccupancy)> {
    let one = |(name, count): (&Value, &Value)| {
        // The empty name is the app's connections.
        let name = reply::as_text(name)?;
        let subscriptions = reply::as_number(count)? as usize;
        let wanted = !name.is_empty() && name.starts_with(prefix) && subscriptions > 0;
        let name = wanted.then(|| ChannelName::parse(name, usize::MAX).ok())??;
        Some((name, ClusterOccupancy { subscriptions, users: 0 }))
    };
    reply::hash_pairs(all).into_iter().filter_map(one).collect()
}

/// Whether the owner of the queried keys is away.
fn is_about_away(servers: &RedisConnections, keys: &RedisKeys, question: &LinkQuery) -> bool {
    let is_app_away = |app: &AppId| servers.is_away(&keys.app_key(app, 't'));
    let is_away = |topic: &Topic| servers.is_away(&keys.topic_name(topic));
    match question {
        LinkQuery::Channels { app, .. }
        | LinkQuery::Connections(app)
        | LinkQuery::Claim { app, .. }
        | LinkQuery::Withdrawn { app, .. } => is_app_away(app),
        LinkQuery::Counts(topics) => {
            topics.iter().any(|topic| is_app_away(&topic.app) || is_away(topic))
        }
        LinkQuery::Channel(topic) => is_app_away(&topic.app) || is_away(topic),
        LinkQuery::Users(topic) => is_away(topic),
        LinkQuery::TakeOver { node, .. } => servers.is_away(&keys.node_topic(*node)),
    }
}

/// How many users each channel has; where its master is away, as far as this node knows.
/// One batch for all channels, however many: a command each, on its way at once.
async fn count_users(
    servers: &mut RedisConnections,
    (keys, status, topics): (&RedisKeys, &LinkStatus, &Topics),
    app: &AppId,
    channels: &mut [(ChannelName, ClusterOccupancy)],
) -> Result<(), LinkError> {
    let mut batch = CommandBatch::new();
    for (channel, counted) in channels.iter_mut() {
        let topic = Topic { app: app.clone(), channel: channel.clone() };
        let known = topics.read_topic(&topic, |entry| entry.roster.count());
        counted.users = known.filter(|_| servers.is_away(&keys.topic_name(&topic))).unwrap_or(0);
        let mut users = cmd("HLEN");
        users.arg(keys.channel_key(&topic, 'm'));
        batch.add_command(users, counted);
    }
    for (counted, users) in batch.send_all(servers, status).await? {
        // As above: nil is nobody.
        counted.users = reply::as_number(&users).unwrap_or_default() as usize;
    }
    Ok(())
}
