//! Where Redis is to be found: a server at an address of its own, any of a Redis Cluster's, or the one that
//! Sentinels name. Which of several servers is the master now is asked anew for each link, and while a link
//! lasts, so that a failover is followed even where the old master does not end it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, Value,
    cmd,
};
use tokio::time::{sleep, timeout};

use super::slots::HostPort;
use super::tls::RedisTls;
use super::{LinkError, reply};

/// How long a Sentinel may take to answer before another is asked.
const SENTINEL_PATIENCE: Duration = Duration::from_secs(1);

/// How often Sentinels are asked whether the master is still the same.
const ASKED_EVERY: Duration = Duration::from_secs(1);

const SENTINEL_PORT: u16 = 26_379;

/// Where Redis is.
#[derive(Debug)]
pub(super) enum RedisAddress {
    Servers(Seeds),
    Sentinels(Sentinels),
}

/// One server, or some of a Redis Cluster's, any of which knows the others.
#[derive(Debug)]
pub(super) struct Seeds {
    /// As they were set.
    given: Vec<Client>,
    /// These and those that were learned, the one to be asked next in front.
    seeds: VecDeque<Client>,
    tls: Arc<RedisTls>,
}

/// Sentinels, and the name of what they watch over.
pub(super) struct Sentinels {
    /// The one that is asked first in front.
    sentinels: VecDeque<Client>,
    name: String,
    /// What stands in front of a server's host in its URL, and behind its port.
    head: String,
    tail: String,
    tls: Arc<RedisTls>,
    /// Host and port of the master that was named last.
    master: Option<HostPort>,
}

/// The URLs may hold passwords.
impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Host and port of a server.
pub(super) fn host_port(client: &Client) -> HostPort {
    match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            (host.clone(), *port)
        }
        _ => Default::default(),
    }
}

/// Whoever is asked first is asked last.
fn to_the_end(clients: &mut VecDeque<Client>) {
    let first = clients.pop_front();
    clients.extend(first);
}

fn invalid_url(problem: &'static str) -> RedisError {
    (ErrorKind::InvalidClientConfig, problem).into()
}

/// Hosts and ports, without what else the URLs hold.
impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut places = |clients: &mut dyn Iterator<Item = &Client>| {
            for (number, (host, port)) in clients.map(host_port).enumerate() {
                let comma = if number > 0 { "," } else { "" };
                write!(f, "{comma}{host}:{port}")?;
            }
            Ok(())
        };
        match self {
            Self::Servers(servers) => places(&mut servers.given.iter()),
            Self::Sentinels(sentinels) => {
                places(&mut sentinels.sentinels.iter())?;
                write!(f, "/{}", sentinels.name)
            }
        }
    }
}

impl RedisAddress {
    /// Reads the URL of a server or of Sentinels, or those of a Redis Cluster's servers. Fails on one that is
    /// none.
    pub(super) fn parse(urls: &[String], tls: &Arc<RedisTls>) -> Result<Self, RedisError> {
        let sentinels = ["redis+sentinel://", "rediss+sentinel://"];
        if let [url] = urls
            && let Some(rest) = sentinels.into_iter().find_map(|scheme| url.strip_prefix(scheme))
        {
            let scheme = url.split('+').next().unwrap_or_default();
            return Sentinels::parse(scheme, rest, tls).map(Self::Sentinels);
        }
        let given: Result<Vec<Client>, _> =
            urls.iter().map(|url| Client::open(url.as_str())).collect();
        let given = given?;
        let seeds = given.iter().cloned().collect();
        Ok(Self::Servers(Seeds { seeds, given, tls: tls.clone() }))
    }

    /// How all its servers are spoken to over TLS.
    pub(super) fn tls(&self) -> &Arc<RedisTls> {
        match self {
            Self::Servers(servers) => &servers.tls,
            Self::Sentinels(sentinels) => &sentinels.tls,
        }
    }

    /// The server to speak to now.
    pub(super) async fn pick_server(&mut self) -> Result<Client, LinkError> {
        match self {
            Self::Servers(servers) => servers.seeds.front().cloned().ok_or(LinkError::NoMaster),
            Self::Sentinels(sentinels) => sentinels.find_master().await,
        }
    }

    /// Whether the server is one of a Redis Cluster's. Fails if it is not what it was said to be: an old
    /// master may not know yet that it is one no longer, but one that does says so.
    pub(super) async fn is_cluster(
        &self,
        commands: &mut MultiplexedConnection,
    ) -> Result<bool, LinkError> {
        match self {
            Self::Servers(servers) => {
                let several = servers.given.len() > 1;
                let info: Result<String, _> =
                    cmd("INFO").arg("cluster").query_async(commands).await;
                match info {
                    Ok(info) if info.contains("cluster_enabled:1") => Ok(true),
                    Ok(_) if several => Err(LinkError::NoCluster),
                    Err(error) if error.is_unrecoverable_error() => Err(error.into()),
                    // It may not be asked.
                    Ok(_) | Err(_) => Ok(several),
                }
            }
            Self::Sentinels(_) => {
                let role: Result<Vec<Value>, _> = cmd("ROLE").query_async(commands).await;
                match role {
                    Ok(role) if role.first().and_then(reply::as_text) == Some("master") => {
                        Ok(false)
                    }
                    Ok(_) => Err(LinkError::Replica),
                    Err(error) if error.is_unrecoverable_error() => Err(error.into()),
                    // It may not be asked, and takes no writes if it is a replica.
                    Err(_) => Ok(false),
                }
            }
        }
    }

    /// These servers are a Redis Cluster's now, and any of them can be asked for the others.
    pub(super) fn learn_servers(
        &mut self,
        servers: impl Iterator<Item = ConnectionInfo>,
    ) -> Result<(), RedisError> {
        if let Self::Servers(known) = self {
            let learned: Result<VecDeque<Client>, _> = servers.map(Client::open).collect();
            known.seeds = learned?;
            known.seeds.extend(known.given.iter().cloned());
        }
        Ok(())
    }

    /// The server that was named is not there; somebody else is asked first from now on.
    pub(super) fn try_next(&mut self) {
        match self {
            Self::Servers(servers) => to_the_end(&mut servers.seeds),
            Self::Sentinels(sentinels) => to_the_end(&mut sentinels.sentinels),
        }
    }

    /// Waits until another server is to be spoken to.
    pub(super) async fn wait_replaced(&mut self) {
        match self {
            // One that is replaced says so to who asks it.
            Self::Servers(_) => std::future::pending().await,
            Self::Sentinels(sentinels) => sentinels.wait_replaced().await,
        }
    }
}

impl Sentinels {
    /// Reads what follows the scheme: `[user:password@]host[:port],…/name[/database]`, with the Sentinels'
    /// own `?sentinel_username=…&sentinel_password=…`.
    fn parse(scheme: &str, rest: &str, tls: &Arc<RedisTls>) -> Result<Self, RedisError> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err(invalid_url("a Sentinel URL needs the master's name as its path"));
        }
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), authority),
        };
        let (mut user, mut password) = ("", "");
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sentinel_username", value)) => user = value,
                Some(("sentinel_password", value)) => password = value,
                _ => return Err(invalid_url("a Sentinel URL has a parameter that is not known")),
            }
        }
        let own = if password.is_empty() { String::new() } else { format!("{user}:{password}@") };
        let sentinel = |host: &str| {
            let bare = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
            let port = if bare.contains(':') { "" } else { &format!(":{SENTINEL_PORT}") };
            Client::open(format!("{scheme}://{own}{host}{port}"))
        };
        let sentinels: Result<_, _> = hosts.split(',').map(sentinel).collect();
        let sentinels = Self {
            sentinels: sentinels?,
            name: name.to_owned(),
            head: format!("{scheme}://{login}"),
            tail: format!("/{database}"),
            tls: tls.clone(),
            master: None,
        };
        // So that it is known now whether a server's URL is one.
        sentinels.client_for("localhost", 0)?;
        Ok(sentinels)
    }

    fn client_for(&self, host: &str, port: u16) -> Result<Client, RedisError> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Client::open(format!("{}{host}:{port}{}", self.head, self.tail))
    }

    async fn find_master(&mut self) -> Result<Client, LinkError> {
        for _ in 0..self.sentinels.len() {
            if let Some((host, port)) = self.ask_sentinel(&mut None).await {
                let client = self.client_for(&host, port)?;
                self.master = Some((host, port));
                return Ok(client);
            }
            to_the_end(&mut self.sentinels);
        }
        Err(LinkError::NoMaster)
    }

    /// Asks the first Sentinel who the master is, over a connection that is kept.
    async fn ask_sentinel(&self, kept: &mut Option<MultiplexedConnection>) -> Option<HostPort> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(SENTINEL_PATIENCE))
                    .set_response_timeout(Some(SENTINEL_PATIENCE));
                let sentinel = self.sentinels.front()?;
                let sentinel = self.tls.client(sentinel.get_connection_info().clone()).ok()?;
                let made = sentinel.get_multiplexed_async_connection_with_config(&config);
                timeout(SENTINEL_PATIENCE, made).await.ok()?.ok()?
            }
        };
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        let master: Option<HostPort> = question.query_async(&mut connection).await.ok()?;
        *kept = Some(connection);
        master
    }

    async fn wait_replaced(&mut self) {
        let mut kept = None;
        loop {
            sleep(ASKED_EVERY).await;
            match self.ask_sentinel(&mut kept).await {
                Some(master) if self.master.as_ref() != Some(&master) => return,
                Some(_) => {}
                None => {
                    kept = None;
                    to_the_end(&mut self.sentinels);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::redis::tls::TlsSources;

    fn sentinels(url: &str) -> Option<Sentinels> {
        match RedisAddress::parse(&[url.to_owned()], &RedisTls::new(TlsSources::default()).unwrap())
        {
            Ok(RedisAddress::Sentinels(sentinels)) => Some(sentinels),
            _ => None,
        }
    }

    #[test]
    fn a_url_of_sentinels_names_them_and_the_servers() {
        let of =
            sentinels("redis+sentinel://u:p%40@a,b:7,[::1],[::1]:8/main/3?sentinel_password=s")
                .unwrap();
        let addresses: Vec<String> = of
            .sentinels
            .iter()
            .map(|client| client.get_connection_info().addr().to_string())
            .collect();
        assert_eq!(addresses, ["a:26379", "b:7", "::1:26379", "::1:8"]);
        let settings = of.sentinels[0].get_connection_info().redis_settings().clone();
        assert_eq!((settings.username(), settings.password()), (None, Some("s")));
        assert_eq!(of.name, "main");
        let server = of.client_for("2001:db8::1", 6379).unwrap();
        let settings = server.get_connection_info().redis_settings().clone();
        assert_eq!((settings.username(), settings.password()), (Some("u"), Some("p@")));
        assert_eq!(settings.db(), 3);
        let secret = format!("{:?}", RedisAddress::Sentinels(of));
        assert!(!secret.contains("p%40") && !secret.contains("p@"), "{secret}");
        let tls = sentinels("rediss+sentinel://a/m").unwrap();
        assert_eq!(tls.head, "rediss://");
        for wrong in ["a", "a/", "a/m/x", "/m", "a/m?password=x", "a:x/m"] {
            assert!(sentinels(&format!("redis+sentinel://{wrong}")).is_none(), "{wrong}");
        }
    }
}
