//! Finding Redis: one server at a fixed address, any server of a Redis Cluster, or the master that Sentinels name. The
//! master is looked up for each new link and while a link lasts, so that a failover is followed even if the old master
//! keeps its connections open. Sentinels' answers are read in `sentinels.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, ConnectionInfo, RedisError, Value, cmd};

use super::LinkError;
use super::away::AwayParts;
use super::sentinels::Sentinels;
use super::slots::HostPort;
use super::tls::RedisTls;
use crate::cluster::reply;

/// Where Redis is.
#[derive(Debug)]
pub(super) enum RedisAddress {
    /// A server, or some nodes of a Redis Cluster.
    Servers(Seeds),
    /// Asked anew for each connection: the master may be another by then.
    Sentinels(Sentinels),
}

/// One server, or some of a Redis Cluster's, any of which knows the others.
#[derive(Debug)]
pub(super) struct Seeds {
    /// As they were set.
    given: Vec<Client>,
    /// These and those that were learned, the one to be asked next in front.
    seeds: VecDeque<Client>,
    /// By which certificates it is spoken to, where the URL asks for TLS.
    tls: Arc<RedisTls>,
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
                places(&mut sentinels.clients())?;
                write!(f, "/{}", sentinels.name())
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
            // `split` yields at least one piece, so the default is never used.
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
            Self::Sentinels(sentinels) => sentinels.tls(),
        }
    }

    /// The server to speak to now.
    pub(super) async fn pick_server(&mut self) -> Result<Client, LinkError> {
        match self {
            Self::Servers(servers) => servers.seeds.front().cloned().ok_or(LinkError::NoMaster),
            Self::Sentinels(sentinels) => sentinels.find_master().await,
        }
    }

    /// Whether the server belongs to a Redis Cluster.
    /// Fails if it is not what the settings say. A former master may not know yet that it is one no longer; one
    /// that does know is refused.
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

    /// Servers that are away are not asked for the others, unless all are away.
    pub(super) fn pass_over(&mut self, away: &mut AwayParts) {
        let Self::Servers(Seeds { seeds, .. }) = self else { return };
        match seeds.iter().position(|seed| !away.has_master(&host_port(seed))) {
            Some(place) => seeds.rotate_left(place),
            None => away.forget_masters(),
        }
    }

    /// The server is unreachable; another is asked first next time.
    pub(super) fn try_next(&mut self) {
        match self {
            Self::Servers(servers) => {
                let first = servers.seeds.pop_front();
                servers.seeds.extend(first);
            }
            // Each of them is asked every time.
            Self::Sentinels(_) => {}
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

#[cfg(test)]
mod tests {
    use super::super::tls::TlsSources;
    use super::*;

    fn no_tls() -> Arc<RedisTls> {
        RedisTls::new(TlsSources::default()).unwrap()
    }

    fn address(urls: &[&str]) -> RedisAddress {
        let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
        RedisAddress::parse(&urls, &no_tls()).unwrap()
    }

    async fn next_port(address: &mut RedisAddress) -> u16 {
        host_port(&address.pick_server().await.unwrap()).1
    }

    #[test]
    fn what_is_logged_of_an_address_has_no_password() {
        let shown = |urls| address(urls).to_string();
        assert_eq!(shown(&["redis://user:secret@one:1/3"]), "one:1");
        assert_eq!(shown(&["redis://:secret@one:1", "redis://two:2"]), "one:1,two:2");
        assert_eq!(shown(&["redis+sentinel://:secret@one:1,two/main/0"]), "one:1,two:26379/main");
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for urls in [&["one:1"][..], &["redis://one:1", "http://two"], &["redis+sentinel://one"]] {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            assert!(RedisAddress::parse(&urls, &no_tls()).is_err(), "{urls:?}");
        }
    }

    #[tokio::test]
    async fn a_seed_that_is_not_there_is_asked_last() {
        let mut address = address(&["redis://h:1", "redis://h:2", "redis://h:3"]);
        assert_eq!(next_port(&mut address).await, 1);
        address.try_next();
        assert_eq!(next_port(&mut address).await, 2);
        address.try_next();
        address.try_next();
        assert_eq!(next_port(&mut address).await, 1);
    }

    /// A Redis Cluster may have left every server of the settings behind.
    #[tokio::test]
    async fn learned_servers_are_asked_first_and_the_given_ones_are_kept() {
        let mut address = address(&["redis://h:1", "redis://h:2"]);
        let learned = ["redis://h:8", "redis://h:9"].map(|url| Client::open(url).unwrap());
        address
            .learn_servers(learned.map(|client| client.get_connection_info().clone()).into_iter())
            .unwrap();
        let mut ports = Vec::new();
        for _ in 0..5 {
            ports.push(next_port(&mut address).await);
            address.try_next();
        }
        assert_eq!(ports, [8, 9, 1, 2, 8]);
    }
}
