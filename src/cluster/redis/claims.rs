//! Redis commands for a client that reconnects to this node, while its handshake waits: claiming it, reading what was
//! withdrawn from its user, and asking the node that has its old connection to hand it over.

use std::time::Duration;

use bytes::Bytes;
use redis::{Value, cmd};

use super::LinkError;
use super::batch::CommandBatch;
use super::connections::RedisConnections;
use super::trust::EnvelopeTrust;
use crate::app::AppId;
use crate::cluster::clients::ClaimedClient;
use crate::cluster::envelope::Envelope;
use crate::cluster::keys::RedisKeys;
use crate::cluster::link::LinkStatus;
use crate::cluster::reply;
use crate::cluster::scripts::clients::{self, ClaimReply};

/// The keys of a script, a letter for each: see `keys.rs`. All of an app's are in one slot.
pub(super) fn keys_of(keys: &RedisKeys, app: &AppId, parts: &str) -> Vec<String> {
    parts.chars().map(|part| keys.app_key(app, part)).collect()
}

/// Takes a client for a node.
pub(super) async fn claim(
    servers: &mut RedisConnections,
    trust: EnvelopeTrust<'_>,
    status: &LinkStatus,
    (node, app, key, window): (u64, &AppId, &str, Duration),
) -> Result<Option<ClaimedClient>, LinkError> {
    let mut batch = CommandBatch::new();
    let claim = clients::claim(&keys_of(trust.keys, app, "sqzx"), key, node, window);
    batch.add_command(claim, ());
    let answers = batch.send_all(servers, status).await?;
    let reply = answers.first().and_then(|(_, value)| ClaimReply::parse(value));
    let Some(ClaimReply { owner, record, since, withdrawals }) = reply else { return Ok(None) };
    let record = record.and_then(|(time, sealed)| {
        let record = trust.seals.open_record(app, key, sealed)?;
        Some((status.clock.to_local(time), Bytes::copy_from_slice(record)))
    });
    let since = status.clock.to_local(since);
    Ok(Some(ClaimedClient { owner, record, since, withdrawals }))
}

/// When each of these was withdrawn last.
pub(super) async fn withdrawn(
    servers: &mut RedisConnections,
    keys: &RedisKeys,
    status: &LinkStatus,
    (app, members): (&AppId, &[String]),
) -> Result<Vec<u64>, LinkError> {
    let mut batch = CommandBatch::new();
    let mut scores = cmd("ZMSCORE");
    scores.arg(keys.app_key(app, 'x')).arg(members);
    batch.add_command(scores, ());
    let answers = batch.send_all(servers, status).await?;
    let time = |value: &Value| match value {
        Value::Double(score) => status.clock.to_local(*score as u64),
        value => reply::as_text(value)
            .and_then(|text| text.parse::<f64>().ok())
            .map_or(0, |score| status.clock.to_local(score as u64)),
    };
    Ok(answers
        .first()
        .map(|(_, value)| reply::as_list(value).iter().map(time).collect())
        // An unexpected reply has no times. Callers take a missing one for 0: never withdrawn.
        .unwrap_or_default())
}

/// Asks a node to hand a client's state over; returns how many nodes received that.
pub(super) async fn take_over(
    servers: &mut RedisConnections,
    trust: EnvelopeTrust<'_>,
    status: &LinkStatus,
    (envelope, app, node): (Envelope, &AppId, u64),
) -> Result<usize, LinkError> {
    let (topic, mut publish) = (trust.keys.node_topic(node), cmd("SPUBLISH"));
    publish.arg(&topic).arg(trust.seals.encode_sealed(app, &topic, &envelope));
    let mut batch = CommandBatch::new();
    batch.add_command(publish, ());
    let answers = batch.send_all(servers, status).await?;
    // No reply counts as no receiver: the client's old node is then taken to be dead.
    Ok(answers.first().and_then(|(_, value)| reply::as_number(value)).unwrap_or_default() as usize)
}
