//! Where Soketi's nodes meet: its several settings of one Redis server, of Sentinels or of a Redis
//! Cluster, as the URLs that Fanfare takes.

use serde_json::Value as Json;

use super::{Form, Soketi, boolean, text, whole};
use crate::config::error::Error;
use crate::config::laravel::percent_encode;
use crate::config::value::Value;

impl Soketi {
    /// The URL of the server or of the Sentinels, or those of a cluster's nodes.
    pub(super) fn redis(&mut self) -> Result<Value, Error> {
        let user = self.part("username")?.unwrap_or_default();
        let password = self.part("password")?.unwrap_or_default();
        let host = self.part("host")?.unwrap_or_else(|| "127.0.0.1".to_owned());
        let port = self.part("port")?.unwrap_or_else(|| "6379".to_owned());
        let database = self.part("db")?.unwrap_or_else(|| "0".to_owned());
        let name = self.part("name")?.unwrap_or_else(|| "mymaster".to_owned());
        let sentinels = self.nodes("database.redis.sentinels")?;
        let nodes = self.nodes("database.redis.clusterNodes")?;
        let scheme = if self.tls() { "rediss" } else { "redis" };
        let login = if user.is_empty() && password.is_empty() {
            String::new()
        } else {
            format!("{}:{}@", percent_encode(&user), percent_encode(&password))
        };
        let clustered = self.take("adapter.redis.clusterMode");
        if clustered.is_some_and(|given| boolean(&given.value) == Some(true)) {
            let urls = nodes.iter().map(|node| format!("{scheme}://{login}{node}"));
            return Ok(Value::List(urls.map(Value::Text).collect()));
        }
        Ok(Value::Text(if sentinels.is_empty() {
            format!("{scheme}://{login}{host}:{port}/{database}")
        } else {
            let own = match self.part("sentinelPassword")? {
                Some(password) => format!("?sentinel_password={}", percent_encode(&password)),
                None => String::new(),
            };
            format!("{scheme}+sentinel://{login}{}/{name}/{database}{own}", sentinels.join(","))
        }))
    }

    fn part(&mut self, name: &str) -> Result<Option<String>, Error> {
        let setting = self.setting(&format!("database.redis.{name}"), Form::Text)?;
        Ok(setting.and_then(|setting| match setting.value {
            Value::Text(text) => Some(text),
            _ => None,
        }))
    }

    /// A list of `{"host", "port"}`, as `host:port`.
    fn nodes(&mut self, key: &str) -> Result<Vec<String>, Error> {
        let Some(given) = self.take(key) else { return Ok(Vec::new()) };
        let node = |node: &Json| {
            let port = node.get("port").map_or(Some(6379), whole)?;
            Some(format!("{}:{port}", text(node.get("host")?)?))
        };
        let nodes = given.value.as_array().and_then(|nodes| nodes.iter().map(node).collect());
        nodes.ok_or_else(|| {
            let wanted = "expected a list such as [{\"host\": \"a\", \"port\": 6379}]";
            Error::at(&given.origin, key, wanted)
        })
    }

    /// Whether the options of either connection ask for TLS, which is the only way Soketi has.
    fn tls(&mut self) -> bool {
        let subscriber = self.take("adapter.redis.redisSubOptions.tls");
        let publisher = self.take("adapter.redis.redisPubOptions.tls");
        subscriber.or(publisher).is_some()
    }
}
