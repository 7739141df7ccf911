//! Soketi's settings of a Redis server, Sentinels or a Redis Cluster, as the URLs that Fanfare takes. TLS has many
//! spellings there; each gives `rediss://` or stops the start.

use serde_json::Value as Json;

use super::{Soketi, boolean, text, whole};
use crate::config::error::{Error, SettingOrigin};
use crate::config::redis_url::{RedisUrl, url_database, url_host, url_port};
use crate::config::settings::{GivenValue, Setting};
use crate::config::value::{Value, WantedForm};
use crate::protocol::query::percent_encode;

/// The prefix of the server's keys.
pub(super) const SERVER: &str = "database.redis";

/// Options of the two connections, which go before what the server's keys say.
const CONNECTIONS: [&str; 2] = ["adapter.redis.redisSubOptions", "adapter.redis.redisPubOptions"];

/// Options of connections that Fanfare does not have. That Redis wants TLS is known from them all the same.
const OTHERS: [&str; 3] =
    ["queue.redis.redisOptions", "cache.redis.redisOptions", "rateLimiter.redis.redisOptions"];

/// Options of ioredis that say how patiently and over which family a connection is made, and nothing of where
/// to, of secrets or of protection.
#[rustfmt::skip]
const HARMLESS: [&str; 49] = [
    "autoPipeliningIgnoredCommands", "autoResendUnfulfilledCommands", "autoResubscribe",
    "clusterRetryStrategy", "commandTimeout", "commandQueue", "connectTimeout", "connectionName",
    "disconnectTimeout", "dnsLookup", "dropBufferSupport", "enableAutoPipelining",
    "enableOfflineQueue", "enableReadyCheck", "failoverDetector", "family", "keepAlive",
    "keyPrefix", "lazyConnect", "maxLoadingRetryTime", "maxRedirections", "maxRetriesPerRequest",
    "monitor", "natMap", "noDelay", "offlineQueue", "preferredSlaves", "readOnly",
    "reconnectOnError", "retryDelayOnClusterDown", "retryDelayOnFailover", "retryDelayOnMoved",
    "retryDelayOnTryAgain", "retryStrategy", "role", "scaleReads", "scripts",
    "sentinelCommandTimeout", "sentinelMaxConnections", "sentinelReconnectStrategy",
    "sentinelRetryStrategy", "shardedSubscribers", "showFriendlyErrorStack",
    "slotsRefreshInterval", "slotsRefreshTimeout", "socketTimeout", "stringNumbers",
    "updateSentinels", "useSRVRecords",
];

/// The options of ioredis that are read here.
const PARTS: [&str; 9] = [
    "host",
    "port",
    "username",
    "password",
    "db",
    "name",
    "sentinelUsername",
    "sentinelPassword",
    "tls",
];

impl Soketi {
    /// The URL of the server or of the Sentinels, or those of a cluster's nodes; `by` is where Redis was
    /// asked for.
    pub(super) fn take_redis(
        &mut self,
        by: SettingOrigin,
    ) -> Result<Vec<(&'static str, Setting)>, Error> {
        self.move_options()?;
        let mut origin = by;
        let mut url = RedisUrl::local_default();
        self.asks_for_tls(&mut url)?;
        // An empty user or password is one that is not sent.
        url.user = self.text_of("username")?.unwrap_or_default();
        url.password = self.text_of("password")?.unwrap_or_default();
        if let Some(host) = self.take_key(&redis_key("host")) {
            origin = host.origin.clone();
            url.host = checked_value(&host, "host", url_host)?;
        }
        if let Some(port) = self.take_key(&redis_key("port")) {
            url.port = checked_value(&port, "port", url_port)?;
        }
        if let Some(database) = self.take_key(&redis_key("db")) {
            url.database = checked_value(&database, "db", url_database)?;
        }
        let value = self.take_servers(&url)?;
        self.refuse_unknown(SERVER, &HARMLESS)?;
        let certificates = url.certificates().map(|(name, text)| (name, Value::Text(text)));
        let all = std::iter::once(("cluster.redis", value)).chain(certificates);
        Ok(all.map(|(name, value)| (name, Setting { value, origin: origin.clone() })).collect())
    }

    /// One URL, or a list of them for a Redis Cluster. Sentinels go into one URL, whose master is
    /// `mymaster` unless it is named, as with ioredis.
    fn take_servers(&mut self, url: &RedisUrl) -> Result<Value, Error> {
        let name = self.text_of("name")?.unwrap_or_else(|| "mymaster".to_owned());
        let own_user = self.text_of("sentinelUsername")?;
        let own_password = self.text_of("sentinelPassword")?;
        let sentinels = self.take_nodes(&redis_key("sentinels"))?;
        // Without nodes it is one server, or Sentinels.
        let nodes = self.take_nodes(&redis_key("clusterNodes"))?.unwrap_or_default();
        let (scheme, login) = (url.scheme(), url.login());
        if self.take_flag("adapter.redis.clusterMode")? {
            // Any node knows the others.
            let seed = format!("{}:{}", url.host, url.port);
            let nodes = if nodes.is_empty() { vec![seed] } else { nodes };
            let urls = nodes.iter().map(|node| format!("{scheme}://{login}{node}"));
            return Ok(Value::List(urls.map(Value::Text).collect()));
        }
        let Some(sentinels) = sentinels else { return Ok(Value::Text(url.text())) };
        let own = [("sentinel_username", own_user), ("sentinel_password", own_password)];
        let own: Vec<_> = own
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", percent_encode(&value?))))
            .collect();
        let own = if own.is_empty() { String::new() } else { format!("?{}", own.join("&")) };
        let (sentinels, database) = (sentinels.join(","), &url.database);
        Ok(Value::Text(format!("{scheme}+sentinel://{login}{sentinels}/{name}/{database}{own}")))
    }

    /// A part of the server's settings that must be a text; a password of digits is one.
    fn text_of(&mut self, name: &str) -> Result<Option<String>, Error> {
        let Some(given) = self.take_key(&redis_key(name)) else { return Ok(None) };
        match text(&given.value) {
            Some(text) => Ok(Some(text)),
            None => Err(given.wrong_value(&redis_key(name), "a text")),
        }
    }

    /// Brings the options of the connections to the server's keys, over which they go. Both connections of
    /// Soketi are one here.
    fn move_options(&mut self) -> Result<(), Error> {
        let mut moved: Vec<(String, GivenValue)> = Vec::new();
        for connection in CONNECTIONS {
            for (name, given) in self.take_below(connection, "an object in JSON")? {
                // Those of a cluster stand one level deeper.
                let name = name.strip_prefix("redisOptions.").unwrap_or(&name).to_owned();
                let before = moved.iter().find(|(other, _)| *other == name);
                if before.is_some_and(|(_, before)| before.value != given.value)
                    && PARTS.contains(&name.as_str())
                {
                    let problem = "differs between redisSubOptions and redisPubOptions, and there is one connection here";
                    return Err(Error::at_setting(
                        &given.origin,
                        &format!("{connection}.{name}"),
                        problem,
                    ));
                }
                moved.push((name, given));
            }
        }
        // Over what the server's keys say, as Soketi merges them.
        for (name, given) in moved {
            self.given.insert(redis_key(&name), given);
        }
        Ok(())
    }

    /// Whether an option asks for TLS, and with which certificates.
    fn asks_for_tls(&mut self, url: &mut RedisUrl) -> Result<(), Error> {
        let mut asked = Vec::new();
        for name in ["sentinelTLS", "tls", "enableTLSForSentinelMode"] {
            let Some(mut given) = self.take_key(&redis_key(name)) else { continue };
            if let Json::Object(options) = &mut given.value {
                for (name, place) in
                    [("ca", &mut url.ca), ("cert", &mut url.cert), ("key", &mut url.key)]
                {
                    match options.get(name).map(pem) {
                        Some(Some(text)) => *place = text,
                        Some(None) => {
                            let wanted = "a text in PEM form, or a list of such";
                            return Err(
                                given.wrong_value(&redis_key(&format!("tls.{name}")), wanted)
                            );
                        }
                        None => continue,
                    }
                    options.remove(name);
                }
            }
            asked.push(given);
        }
        for options in OTHERS {
            let inside = format!("{options}.");
            let is_tls =
                |key: &&String| key.starts_with(&inside) && key.split('.').any(|p| p == "tls");
            let names: Vec<String> = self.given.keys().filter(is_tls).cloned().collect();
            for name in names {
                let Some(mut given) = self.given.remove(&name) else { continue };
                // Any option below `tls` turns TLS on, whatever its value.
                if let Some((_, last)) = name.rsplit_once('.').filter(|(_, last)| *last != "tls") {
                    given.value =
                        Json::Object([(last.to_owned(), given.value)].into_iter().collect());
                }
                asked.push(given);
            }
        }
        for given in asked {
            let options = match &given.value {
                Json::Object(options) => options,
                value => match boolean(value) {
                    Some(truth) => {
                        url.tls |= truth;
                        continue;
                    }
                    None => {
                        return Err(
                            given.wrong_value(&redis_key("tls"), "an object, or true or false")
                        );
                    }
                },
            };
            url.tls = true;
            if !options.is_empty() {
                let names: Vec<_> = options.keys().map(String::as_str).collect();
                self.warnings.push(format!(
                    "{}: Redis is spoken to with TLS and its certificate is checked; without effect are {}",
                    given.origin,
                    names.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// A list of `{"host", "port"}`, as `host:port`; none if it was not given.
    fn take_nodes(&mut self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(given) = self.take_key(key) else { return Ok(None) };
        let wrong = || given.wrong_value(key, "a list such as [{\"host\": \"a\", \"port\": 6379}]");
        let list = match &given.value {
            Json::String(written) => serde_json::from_str(written).map_err(|_| wrong())?,
            other => other.clone(),
        };
        let list = list.as_array().ok_or_else(wrong)?;
        if list.is_empty() && key.ends_with("sentinels") {
            return Err(given.wrong_value(key, "one Sentinel or more"));
        }
        let node = |node: &Json| {
            let port = node.get("port").map_or(Some(6379), whole)?;
            let port = url_port(&port.to_string()).ok()?;
            Some(format!("{}:{port}", url_host(&text(node.get("host")?)?).ok()?))
        };
        list.iter().map(node).collect::<Option<Vec<_>>>().map(Some).ok_or_else(wrong)
    }
}

/// Node's certificates: a text, or a list of texts, which stand one behind the other in a file.
fn pem(value: &Json) -> Option<String> {
    match value {
        Json::Array(list) => {
            let texts: Option<Vec<_>> = list.iter().map(Json::as_str).collect();
            texts.map(|texts| texts.join("\n"))
        }
        value => value.as_str().map(str::to_owned),
    }
}

/// The whole key of one of the server's settings.
fn redis_key(name: &str) -> String {
    format!("{SERVER}.{name}")
}

/// A part of the Redis address that was given, as `check` writes it.
///
/// # Errors
/// It is no text, or not what `check` takes. The value is not repeated: it may be a password.
fn checked_value(
    given: &GivenValue,
    name: &str,
    check: fn(&str) -> Result<String, WantedForm>,
) -> Result<String, Error> {
    let text = text(&given.value).ok_or_else(|| given.wrong_value(&redis_key(name), "a text"))?;
    check(&text).map_err(|wanted| given.wrong_value(&redis_key(name), &wanted))
}
