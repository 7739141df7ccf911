//! Diagnoses Redis over the same connections that a node uses: whether it is reachable, accepts this node, is new
//! enough, keeps its data, and runs everything that nodes need. The keys that it writes have names of their own and are
//! deleted again.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, Value, cmd};
use tokio::time::timeout;

use super::address::RedisAddress;
use super::away::AwayParts;
use super::connections::RedisConnections;
use super::tls::RedisTls;
use super::{LinkError, PATIENCE, slots};
use crate::cluster::keys::RedisKeys;
use crate::cluster::reply;
use crate::cluster::scripts::Script;

/// The properties of a Redis server.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct RedisFinding {
    /// Its name and version: `Redis 7.2.4`.
    pub version: String,
    /// Whether it has every command that nodes use: Redis from 7 on, and any Valkey.
    pub is_recent: bool,
    /// Whether it accepts no writes.
    pub is_replica: bool,
    /// The policy by which it throws keys away when its memory is full; none if it keeps them all.
    pub evicts: Option<String>,
    /// Percent of its memory's bound that is used.
    pub memory: Option<u64>,
    /// Refusals of commands that nodes use, a sentence each.
    pub refuses: Vec<String>,
    /// The parts of a Redis Cluster that are away, and why. Nodes work without them.
    pub away: Vec<(String, String)>,
    /// How long a message took to come back. None if it was not tried: because of one of the others, or because
    /// the server that was to be tried is away.
    pub round_trip: Option<Duration>,
}

/// Looks at the first of the Redis servers at `urls`, the nodes of a cluster if there are several, with the names that begin with `prefix`.
///
/// # Errors
/// The fault and its remedy, in a sentence without the URL, for that may hold a password.
pub async fn probe_servers(
    urls: &[String],
    tls: &Arc<RedisTls>,
    prefix: &str,
) -> Result<RedisFinding, String> {
    match examine_server(urls, tls, prefix).await {
        Ok(found) => Ok(found),
        Err(lost) => Err(sentence(&lost, urls.iter().any(|url| url.starts_with("rediss")))),
    }
}

/// Connects as a node does, and examines the server.
/// # Errors
/// The connection fails, or Redis refuses something that every node needs.
async fn examine_server(
    urls: &[String],
    tls: &Arc<RedisTls>,
    prefix: &str,
) -> Result<RedisFinding, LinkError> {
    let mut address = RedisAddress::parse(urls, tls)?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let server = tls.client(address.pick_server().await?.get_connection_info().clone())?;
    let made = server.get_multiplexed_async_connection_with_config(&config);
    let mut commands = timeout(PATIENCE, made).await??;
    let is_cluster = address.is_cluster(&mut commands).await?;
    let () = cmd("PING").query_async(&mut commands).await?;
    // Nodes do without it, and so its user may.
    let info: String = cmd("INFO").query_async(&mut commands).await.unwrap_or_default();
    let mut found = parse_info(&info);
    if is_cluster {
        found.version += ", a cluster";
        // It knows the masters.
        found.is_replica = false;
    }
    if found.is_replica {
        return Ok(found);
    }
    match try_everything(&mut address, prefix, &mut found).await {
        // Its version says more than any command that it does not know.
        Err(LinkError::Redis(error)) if !found.is_recent && is_unknown(&error) => Ok(found),
        Err(lost) => Err(lost),
        Ok(()) => Ok(found),
    }
}

/// Does what a node does: loads the scripts, listens to a topic, and runs every command of the scripts.
async fn try_everything(
    address: &mut RedisAddress,
    prefix: &str,
    found: &mut RedisFinding,
) -> Result<(), LinkError> {
    let of = (RedisKeys::new(prefix), super::random_number());
    // As a node does: without what is away.
    let connecting = RedisConnections::connect_all(address, of, AwayParts::default());
    let (mut servers, mut heard) = timeout(PATIENCE, connecting).await??;
    found.away = servers.away.describe();
    let tag = probe_tag(servers.is_cluster());
    let topic = format!("{prefix}:on:{tag}");
    if servers.is_away(&topic) {
        return Ok(());
    }
    timeout(PATIENCE, servers.subscribe_topics(std::slice::from_ref(&topic))).await??;
    let mut load = cmd("SCRIPT");
    load.arg("LOAD").arg(every_command());
    let name = single_answer(timeout(PATIENCE, servers.send_commands(vec![load.into()])).await??)?;
    let mut script = cmd("EVALSHA");
    script.arg(reply::as_text(&name)).arg(KEYS.len());
    for part in KEYS {
        script.arg(format!("{prefix}:{tag}:{part}"));
    }
    script.arg(&topic);
    let begun = Instant::now();
    let refused =
        single_answer(timeout(PATIENCE, servers.send_commands(vec![script.into()])).await??)?;
    found.refuses = refusals(&refused);
    if found.refuses.is_empty() {
        timeout(PATIENCE, heard.next_push()).await?.ok_or(LinkError::Deaf)?;
        found.round_trip = Some(begun.elapsed());
    }
    timeout(PATIENCE, servers.unsubscribe_topics(&[topic])).await?
}

/// The hash tag of the probe's topic and keys, as a channel's has one: a single slot, and on a Redis Cluster one of
/// the server that gets the script.
fn probe_tag(is_cluster: bool) -> String {
    loop {
        let tag = format!("{{doctor/{:016x}}}", super::random_number());
        if !is_cluster || slots::of_name(tag.as_bytes()) == slots::of_name(b"LOAD") {
            return tag;
        }
    }
}

/// The answer to one command.
fn single_answer(answers: Vec<Value>) -> Result<Value, LinkError> {
    match answers.into_iter().next() {
        Some(Value::ServerError(error)) => Err(LinkError::Redis(error.into())),
        Some(answer) => Ok(answer),
        None => Err(LinkError::Silent),
    }
}

/// The keys of the probe by their kinds: a hash, a list, a `HyperLogLog`, a set, a stream, a text and a sorted set.
const KEYS: [&str; 7] = ["hash", "list", "log", "set", "stream", "text", "zset"];

/// How each command that scripts call is tried, on keys by their kinds.
const TRIED: [(&str, &str); 49] = [
    ("TIME", ""),
    ("SET", "text, '1', 'PX', '10000'"),
    ("SETEX", "text, '10', '1'"),
    ("PSETEX", "text, '10000', '1'"),
    ("GET", "text"),
    ("GETRANGE", "text, '0', '0'"),
    ("STRLEN", "text"),
    ("INCR", "text"),
    ("EXISTS", "text"),
    ("EXPIRE", "text, '10'"),
    ("PEXPIRE", "text, '10000'"),
    ("TTL", "text"),
    ("PTTL", "text"),
    ("HSET", "hash, 'f', '1'"),
    ("HSETNX", "hash, 'f', '1'"),
    ("HGET", "hash, 'f'"),
    ("HMGET", "hash, 'f'"),
    ("HEXISTS", "hash, 'f'"),
    ("HLEN", "hash"),
    ("HSTRLEN", "hash, 'f'"),
    ("HINCRBY", "hash, 'f', '1'"),
    ("HGETALL", "hash"),
    ("HKEYS", "hash"),
    ("HDEL", "hash, 'f'"),
    ("RPUSH", "list, '1'"),
    ("LLEN", "list"),
    ("LRANGE", "list, '0', '-1'"),
    ("LINDEX", "list, '0'"),
    ("LTRIM", "list, '0', '0'"),
    ("LPOP", "list"),
    ("PFADD", "log, '1'"),
    ("PFCOUNT", "log"),
    ("SADD", "set, '1'"),
    ("SMEMBERS", "set"),
    ("SISMEMBER", "set, '1'"),
    ("SREM", "set, '1'"),
    ("XADD", "stream, '*', 'f', '1'"),
    ("XLEN", "stream"),
    ("XRANGE", "stream, '-', '+'"),
    ("XDEL", "stream, '0-1'"),
    ("ZADD", "zset, '1', '1'"),
    ("ZSCORE", "zset, '1'"),
    ("ZRANGEBYSCORE", "zset, '-inf', '1'"),
    ("ZCARD", "zset"),
    ("ZMSCORE", "zset, '1'"),
    ("ZRANGE", "zset, '0', '-1'"),
    ("ZREMRANGEBYSCORE", "zset, '-inf', '0'"),
    ("ZREM", "zset, '1'"),
    ("DEL", "hash, list, log, set, stream, text, zset"),
];

/// The commands on keys that nodes call without a script.
const DIRECT: [&str; 13] = [
    "DEL", "EXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "SADD", "SET", "SMEMBERS", "SREM",
    "ZMSCORE", "ZRANGE", "ZREM",
];

/// The commands on keys and topics that nodes and their scripts call.
fn script_commands() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = DIRECT.map(str::to_owned).into();
    for script in Script::ALL {
        let text = script.text();
        let calls = text.split("call('").skip(1).filter_map(|rest| rest.split('\'').next());
        names.extend(calls.map(str::to_owned));
    }
    names
}

/// A script that runs each of them, says which were refused and how, and leaves nothing.
fn every_command() -> String {
    let mut text = "local refused = {}\n\
        local function try(name, ...)\n\
          local reply = redis.pcall(name, ...)\n\
          if type(reply) == 'table' and reply.err then\n\
            refused[#refused + 1] = name .. '\\n' .. reply.err\n\
          end\n\
        end\n"
        .to_owned();
    // Writing to a `String` cannot fail, here and below.
    let _ = writeln!(text, "local {} = unpack(KEYS)", KEYS.join(", "));
    let called = script_commands();
    for (name, arguments) in TRIED.iter().filter(|(name, _)| called.contains(*name)) {
        let comma = if arguments.is_empty() { "" } else { ", " };
        let _ = writeln!(text, "try('{name}'{comma}{arguments})");
    }
    text + "try('SPUBLISH', ARGV[1], '')\nreturn refused\n"
}

/// The refused commands of the probe script, a sentence for each reason.
fn refusals(answer: &Value) -> Vec<String> {
    let refused = reply::as_list(answer).iter().filter_map(reply::as_text);
    let refused: Vec<_> = refused.filter_map(|refused| refused.split_once('\n')).collect();
    // A reason that concerns the whole server is reported once for all commands.
    if let Some(reason) = refused.iter().find_map(|(_, words)| refusal_state(words)) {
        return vec![reason.to_owned()];
    }
    let named = |wanted: fn(&str) -> bool| {
        let names: Vec<_> =
            refused.iter().filter(|(_, words)| wanted(words)).map(|(name, _)| *name).collect();
        Some(names.join(", ")).filter(|names| !names.is_empty())
    };
    let mut sentences = Vec::new();
    if let Some(names) = named(is_of_rights) {
        sentences.push(format!(
            "its user may not do {names} inside a script (NOPERM), as nodes do: give it these commands, the keys and the channels that begin with cluster.prefix (ACL SETUSER; docs/cluster.md lists the least)"
        ));
    }
    let other = refused.iter().find(|(_, words)| !is_of_rights(words));
    if let Some((name, words)) = other {
        sentences.push(format!("it refuses {name}, which nodes use: {}", one_line(words)));
    }
    sentences
}

/// Whether a script's error, in the words of Redis or Valkey, means a missing right to a command, key or channel.
fn is_of_rights(words: &str) -> bool {
    let signs = ["NOPERM", "The user executing the script can't", "ACL failure in script"];
    signs.iter().any(|sign| words.contains(sign))
}

/// The reason why Redis accepts no writes, by the code of its refusal, and the remedy.
fn refusal_state(words: &str) -> Option<&'static str> {
    // Redis puts the code first: `OOM command not allowed …`, `-READONLY You can't write …`.
    let code = words.split(' ').next().unwrap_or_default().trim_start_matches('-');
    Some(match code {
        "OOM" => {
            "its memory is full (maxmemory), so that it takes nothing more: give it more, or look at what fills it (redis-cli --bigkeys)"
        }
        "READONLY" => {
            "it is a replica, which takes no writes: give the master's address, or the Sentinels' (redis+sentinel://)"
        }
        "MISCONF" => {
            "it cannot save its data to disk and so takes no writes: mend the disk, or set stop-writes-on-bgsave-error no"
        }
        "NOREPLICAS" => {
            "it has too few replicas to take writes: bring them back, or lower min-replicas-to-write"
        }
        "BUSY" => "a script keeps it busy: wait, or end it (SCRIPT KILL)",
        "MASTERDOWN" => "it is a replica that has lost its master: mend that link",
        "LOADING" => "it is loading its data: wait a moment",
        "CLUSTERDOWN" => {
            "the Redis Cluster has slots without a server: mend it (redis-cli --cluster fix)"
        }
        _ => return None,
    })
}

/// Reads the answer to `INFO`.
fn parse_info(info: &str) -> RedisFinding {
    let field = |name: &str| {
        let mut fields = info.lines().filter_map(|line| line.trim_end().split_once(':'));
        fields.find(|(field, _)| *field == name).map(|(_, value)| value)
    };
    let (version, is_recent) = match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => (format!("Valkey {version}"), true),
        (None, Some(version)) => {
            let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            (format!("Redis {version}"), major.is_some_and(|major| major >= 7))
        }
        (None, None) => ("Redis of an unknown version".to_owned(), true),
    };
    let policy = field("maxmemory_policy").filter(|policy| *policy != "noeviction");
    let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok());
    let bound = number("maxmemory").filter(|bytes| *bytes > 0);
    let used = number("used_memory");
    RedisFinding {
        version,
        is_recent,
        is_replica: field("role") == Some("slave"),
        evicts: policy.filter(|_| bound.is_some()).map(str::to_owned),
        memory: used.zip(bound).map(|(used, bound)| used.saturating_mul(100) / bound),
        refuses: Vec::new(),
        away: Vec::new(),
        round_trip: None,
    }
}

/// The remedy for a server that does not answer a connection with TLS.
const SILENT: &str =
    "no answer in three seconds: a firewall drops what is sent there, or it is no Redis";
/// The remedy for a server that does not answer a connection without TLS.
const SILENT_TLS: &str = "no answer in three seconds: a firewall drops what is sent there, or it speaks no TLS there (redis://)";
/// The remedy for a refused login.
const LOGIN: &str = "it refuses the user or the password: correct them in cluster.redis, redis://USER:PASSWORD@HOST";

/// The fault and its remedy.
pub(super) fn sentence(lost: &LinkError, tls: bool) -> String {
    let silent = if tls { SILENT_TLS } else { SILENT };
    let text = match lost {
        LinkError::Redis(error) if error.is_timeout() => silent,
        LinkError::Silent => silent,
        LinkError::Redis(error) => return explain_error(error),
        LinkError::NoMaster => {
            "no Sentinel names a master: are their addresses right, and the name at the end of the URL?"
        }
        LinkError::Replica => {
            "the Sentinels name a replica: a failover is under way, or they do not agree"
        }
        LinkError::NoCluster => {
            "several servers are named, and this one is of no Redis Cluster: name one, or the Sentinels"
        }
        LinkError::Uncovered => {
            "the Redis Cluster has slots without a server: mend it (redis-cli --cluster fix)"
        }
        LinkError::Deaf => {
            "a message that was published does not come back: does a proxy stand in between?"
        }
        LinkError::Unexpected => "it does not answer as Redis does: is it another program's port?",
        LinkError::OfMaster(_, why) => return sentence(why, tls),
        _ => return lost.to_string(),
    };
    text.to_owned()
}

/// Whether Redis does not know a command or subcommand.
fn is_unknown(error: &RedisError) -> bool {
    // A refusal without a text is taken for one of the other kinds.
    let detail = error.detail().unwrap_or_default();
    detail.contains("unknown command") || detail.contains("nknown subcommand")
}

/// The server's own words, on one line; nothing for an error that is not the server's, for that may repeat the URL with
/// its password.
fn server_words(error: &RedisError) -> Option<String> {
    let is_servers = matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
    let code = error.code().filter(|_| is_servers)?;
    // The code alone (`NOPERM`) is worth showing even if Redis gave no text with it.
    Some(one_line(&format!("{code} {}", error.detail().unwrap_or_default())))
}

/// Error text on one line, cut to a length for the log.
fn one_line(words: &str) -> String {
    const MAX_REQUESTS: usize = 200;
    let words: String =
        words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    words.chars().take(MAX_REQUESTS).collect()
}

/// The same for what Redis itself or the way to it says.
fn explain_error(error: &RedisError) -> String {
    // Matched and never shown.
    let detail = error.to_string();
    let code = error.code().unwrap_or_default();
    let text = match error.kind() {
        _ if error.is_connection_refusal() => {
            "nothing listens there: start Redis, or correct cluster.redis"
        }
        _ if matches!(code, "NOAUTH" | "WRONGPASS") => LOGIN,
        ErrorKind::AuthenticationFailed => LOGIN,
        ErrorKind::Io if detail.contains("lookup") => {
            "its name is not known here: correct cluster.redis, or the DNS"
        }
        ErrorKind::Io if detail.contains("UnknownIssuer") => {
            "the issuer of its certificate is not trusted here: name a file with it in cluster.tls.ca (or SSL_CERT_FILE)"
        }
        ErrorKind::Io if detail.contains("not valid for name") => {
            "its certificate is for another name: use that name in cluster.redis"
        }
        // The errors of TLS 1.3 and OpenSSL for a missing client certificate.
        ErrorKind::Io
            if ["CertificateRequired", "HandshakeFailure"].iter().any(|w| detail.contains(w)) =>
        {
            "it wants a client certificate: name one and its key in cluster.tls.cert and cluster.tls.key"
        }
        ErrorKind::Io if ["UnknownCA", "DecryptError"].iter().any(|w| detail.contains(w)) => {
            "it does not take the client certificate of cluster.tls.cert: is its issuer known there?"
        }
        ErrorKind::Io if detail.contains("certificate") => {
            "its certificate cannot be accepted: has it expired?"
        }
        ErrorKind::Io | ErrorKind::Parse => {
            "it does not answer as Redis does: is it another program's port, or one that wants TLS (rediss://)?"
        }
        ErrorKind::InvalidClientConfig => "the URL is none that can be used: correct cluster.redis",
        _ => return refused_by_server(error),
    };
    text.to_owned()
}

/// The same for what only Redis can have said, with its own words.
fn refused_by_server(error: &RedisError) -> String {
    // An error without a code gets the general advice.
    let code = error.code().unwrap_or_default();
    let advice = match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) => Some(
            "its user may not do what nodes do: give it the commands that docs/cluster.md lists, the keys and the channels that begin with cluster.prefix (ACL SETUSER)",
        ),
        _ if is_unknown(error) => {
            Some("it is too old, or not quite Redis: nodes need Redis 7 or later, or a Valkey")
        }
        _ => refusal_state(code),
    };
    let said = server_words(error).unwrap_or_else(|| format!("{:?} {code}", error.kind()));
    match advice {
        Some(advice) => format!("{advice} (it says: {said})"),
        None => format!("it refuses: {said}"),
    }
}

#[cfg(test)]
mod tests;
