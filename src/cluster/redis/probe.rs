//! One look at Redis for whoever asks what is wrong with it: whether it is there, lets this node in, is new
//! enough, keeps what it is given, and passes on what is published. Changes nothing there.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, cmd};
use tokio::time::timeout;

use super::address::Address;
use super::{Lost, PATIENCE};

/// What Redis is like.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its name and version: `Redis 7.2.4`.
    pub version: String,
    /// Whether it has all that nodes ask of it: Redis from 7 on, and any Valkey.
    pub is_recent: bool,
    /// Whether it takes no writes.
    pub is_replica: bool,
    /// The policy by which it throws keys away when its memory is full; none if it keeps them all.
    pub evicts: Option<String>,
    /// How long a message took to come back.
    pub round_trip: Duration,
}

/// Looks at the first of the Redis servers at `urls`, the nodes of a cluster if there are several, with the names that begin with `prefix`.
///
/// # Errors
/// What is wrong and how to mend it, in a sentence without the URL, for that may hold a password.
pub async fn probe(urls: &[String], prefix: &str) -> Result<Found, String> {
    match look(urls, prefix).await {
        Ok(found) => Ok(found),
        Err(lost) => Err(sentence(&lost, urls.iter().any(|url| url.starts_with("rediss")))),
    }
}

async fn look(urls: &[String], prefix: &str) -> Result<Found, Lost> {
    let mut address = Address::parse(urls)?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let server = address.server().await?;
    let made = server.get_multiplexed_async_connection_with_config(&config);
    let mut commands = timeout(PATIENCE, made).await??;
    let is_cluster = address.is_cluster(&mut commands).await?;
    let () = cmd("PING").query_async(&mut commands).await?;
    let info: String = cmd("INFO").query_async(&mut commands).await?;
    let mut found = read(&info);
    if is_cluster {
        found.version += ", a cluster";
        // It knows the masters.
        found.is_replica = false;
    }
    let topic = format!("{prefix}:doctor:{:016x}", super::random());
    let mut listening = timeout(PATIENCE, server.get_async_pubsub()).await??;
    timeout(PATIENCE, listening.subscribe(&topic)).await??;
    let begun = Instant::now();
    let () = cmd("PUBLISH").arg(&topic).arg("").query_async(&mut commands).await?;
    let mut messages = listening.into_on_message();
    timeout(PATIENCE, messages.next()).await?.ok_or(Lost::Deaf)?;
    found.round_trip = begun.elapsed();
    Ok(found)
}

/// Reads the answer to `INFO`.
fn read(info: &str) -> Found {
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
    let is_bounded = field("maxmemory").is_some_and(|bytes| bytes != "0");
    Found {
        version,
        is_recent,
        is_replica: field("role") == Some("slave"),
        evicts: policy.filter(|_| is_bounded).map(str::to_owned),
        round_trip: Duration::ZERO,
    }
}

const SILENT: &str =
    "no answer in three seconds: a firewall drops what is sent there, or it is no Redis";
const SILENT_TLS: &str = "no answer in three seconds: a firewall drops what is sent there, or it speaks no TLS there (redis://)";
const LOGIN: &str = "it refuses the user or the password: correct them in cluster.redis, redis://USER:PASSWORD@HOST";

/// What is wrong, and how to mend it.
fn sentence(lost: &Lost, tls: bool) -> String {
    let silent = if tls { SILENT_TLS } else { SILENT };
    let text = match lost {
        Lost::Redis(error) if error.is_timeout() => silent,
        Lost::Silent => silent,
        Lost::Redis(error) => return refused(error),
        Lost::NoMaster => {
            "no Sentinel names a master: are their addresses right, and the name at the end of the URL?"
        }
        Lost::Replica => {
            "the Sentinels name a replica: a failover is under way, or they do not agree"
        }
        Lost::NoCluster => {
            "several servers are named, and this one is of no Redis Cluster: name one, or the Sentinels"
        }
        Lost::Uncovered => {
            "the Redis Cluster has slots without a server: mend it (redis-cli --cluster fix)"
        }
        Lost::Deaf => {
            "a message that was published does not come back: does a proxy stand in between?"
        }
        Lost::Unexpected => "it does not answer as Redis does: is it another program's port?",
        Lost::Lapsed | Lost::Replaced | Lost::Stopped => "the connection was lost",
    };
    text.to_owned()
}

/// The same for what Redis itself or the way to it says.
fn refused(error: &RedisError) -> String {
    // Matched and never shown.
    let detail = error.to_string();
    let text = match error.kind() {
        _ if error.is_connection_refusal() => {
            "nothing listens there: start Redis, or correct cluster.redis"
        }
        _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => LOGIN,
        ErrorKind::AuthenticationFailed => LOGIN,
        ErrorKind::Io if detail.contains("lookup") => {
            "its name is not known here: correct cluster.redis, or the DNS"
        }
        ErrorKind::Io if detail.contains("UnknownIssuer") => {
            "the issuer of its certificate is not trusted here: name a file with it in SSL_CERT_FILE"
        }
        ErrorKind::Io if detail.contains("not valid for name") => {
            "its certificate is for another name: use that name in cluster.redis"
        }
        ErrorKind::Io if detail.contains("certificate") => {
            "its certificate cannot be accepted: has it expired?"
        }
        ErrorKind::Server(ServerErrorKind::NoPerm) => {
            "its user may not do what nodes do: give it all commands, the keys and the channels that begin with cluster.prefix (ACL SETUSER)"
        }
        ErrorKind::Server(ServerErrorKind::BusyLoading) => "it is loading its data: wait a moment",
        ErrorKind::Io | ErrorKind::Parse => {
            "it does not answer as Redis does: is it another program's port, or one that wants TLS (rediss://)?"
        }
        ErrorKind::InvalidClientConfig => "the URL is none that can be used: correct cluster.redis",
        kind => return format!("it refuses with {kind:?} {}", error.code().unwrap_or_default()),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_says_of_itself_is_read() {
        let found = |version: &str, rest: &str| read(&format!("# Server\r\n{version}\r\n{rest}"));
        let well = found("redis_version:7.0.15", "role:master\r\nmaxmemory:0\r\n");
        assert_eq!((well.version.as_str(), well.is_recent), ("Redis 7.0.15", true));
        assert!(!well.is_replica && well.evicts.is_none());
        assert!(!found("redis_version:6.2.14", "").is_recent);
        assert!(found("redis_version:10.0.0", "").is_recent);
        let valkey = found("redis_version:7.2.4\r\nvalkey_version:8.0.1", "role:slave\r\n");
        assert_eq!((valkey.version.as_str(), valkey.is_recent), ("Valkey 8.0.1", true));
        assert!(valkey.is_replica);
        // A policy holds only where memory has a bound.
        let policy = "maxmemory_policy:allkeys-lru";
        assert_eq!(found("", &format!("maxmemory:0\r\n{policy}\r\n")).evicts, None);
        let evicting = found("", &format!("maxmemory:1000\r\n{policy}\r\n"));
        assert_eq!(evicting.evicts.as_deref(), Some("allkeys-lru"));
    }
}
