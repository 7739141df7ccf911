//! Asks Sentinels which server is the master. All of them are asked for each link and the latest election counts: a
//! Sentinel that has not seen a failover yet names the old master, which may accept writes that the new one will never
//! have. `address.rs` handles other addresses.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, cmd};
use tokio::time::{sleep, timeout};

use super::LinkError;
use super::slots::HostPort;
use super::tls::RedisTls;

/// How long a Sentinel may take to answer.
const SENTINEL_PATIENCE: Duration = Duration::from_secs(1);

/// How much longer than the first to answer the others may take.
const OTHERS_PATIENCE: Duration = Duration::from_millis(250);

/// How often one of them, each in its turn, is asked whether the master is still the same.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// The usual port of Sentinels.
const SENTINEL_PORT: u16 = 26_379;

/// Sentinels, and the name of what they watch over.
pub(super) struct Sentinels {
    /// All that the URL names; those that do not answer are passed over.
    sentinels: Vec<Client>,
    /// Of the master, as the Sentinels know it.
    name: String,
    /// The part of a server's URL before its host, and behind its port.
    head: String,
    /// The part of the master's URL behind host and port.
    tail: String,
    /// Certificates for connections to Sentinels and masters.
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

/// A Sentinel's answer: the master, and the number of the election that made it one.
type Nomination = (HostPort, u64);

/// Never with the URL in it, which may hold a password.
fn invalid_url(problem: &'static str) -> RedisError {
    (ErrorKind::InvalidClientConfig, problem).into()
}

/// The master by the latest election that any Sentinel knows. If Sentinels differ about that election, because it
/// is under way, the majority counts.
fn latest(named: &[Nomination]) -> Option<HostPort> {
    let last = named.iter().map(|(_, election)| *election).max()?;
    let mut votes: Vec<(&HostPort, usize)> = Vec::new();
    for (master, _) in named.iter().filter(|(_, election)| *election == last) {
        match votes.iter_mut().find(|(other, _)| *other == master) {
            Some((_, count)) => *count += 1,
            None => votes.push((master, 1)),
        }
    }
    // Of several with as many the first that answered.
    votes.into_iter().rev().max_by_key(|(_, count)| *count).map(|(master, _)| master.clone())
}

impl Sentinels {
    /// Reads what follows the scheme: `[user:password@]host[:port],…/name[/database]`, with the Sentinels'
    /// own `?sentinel_username=…&sentinel_password=…`.
    pub(super) fn parse(scheme: &str, rest: &str, tls: &Arc<RedisTls>) -> Result<Self, RedisError> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err(invalid_url("a Sentinel URL needs the master's name as its path"));
        }
        // This login is the Redis server's; the Sentinels' own stands in the query.
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
            // The colons of an IPv6 address stand in brackets; only one behind them is a port's.
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

    /// The master's client, by the address that a Sentinel gives, with the login of the URL.
    fn client_for(&self, host: &str, port: u16) -> Result<Client, RedisError> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Client::open(format!("{}{host}:{port}{}", self.head, self.tail))
    }

    /// Each of them.
    pub(super) fn clients(&self) -> impl Iterator<Item = &Client> {
        self.sentinels.iter()
    }

    /// The name of the master at the Sentinels.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How they and the servers are spoken to over TLS.
    pub(super) fn tls(&self) -> &Arc<RedisTls> {
        &self.tls
    }

    /// The master, which the next look at the Sentinels is compared with.
    ///
    /// # Errors
    /// None of them answers, or knows one.
    pub(super) async fn find_master(&mut self) -> Result<Client, LinkError> {
        let (host, port) = self.ask_all().await.ok_or(LinkError::NoMaster)?;
        let client = self.client_for(&host, port)?;
        self.master = Some((host, port));
        Ok(client)
    }

    /// The master that most Sentinels name; `None` if none names one.
    async fn ask_all(&self) -> Option<HostPort> {
        let mut answers: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| self.ask_election(sentinel)).collect();
        let mut named = Vec::with_capacity(self.sentinels.len());
        while named.is_empty() {
            named.extend(answers.next().await?);
        }
        let others = async {
            while let Some(answer) = answers.next().await {
                named.extend(answer);
            }
        };
        // Those that are not there do not hold up the link.
        let _ = timeout(OTHERS_PATIENCE, others).await;
        latest(&named)
    }

    /// Asks a Sentinel who the master is, and since which election.
    async fn ask_election(&self, sentinel: &Client) -> Option<Nomination> {
        let mut kept = None;
        let master = self.ask_sentinel(sentinel, &mut kept).await?;
        let mut details = cmd("SENTINEL");
        details.arg("MASTER").arg(&self.name);
        // It may refuse, where this user lacks the right: then there are none.
        let details: Option<HashMap<String, String>> =
            details.query_async(&mut kept?).await.unwrap_or_default();
        // `config-epoch` grows with each failover (Redis' Sentinel documentation, "Configuration
        // epochs").
        let election = details.and_then(|all| all.get("config-epoch")?.parse().ok());
        Some((master, election.unwrap_or_default()))
    }

    /// Asks a Sentinel who the master is, over a connection that is kept. `None` where it does not
    /// answer in time, or knows no master of the name.
    async fn ask_sentinel(
        &self,
        sentinel: &Client,
        kept: &mut Option<MultiplexedConnection>,
    ) -> Option<HostPort> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(SENTINEL_PATIENCE))
                    .set_response_timeout(Some(SENTINEL_PATIENCE));
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

    /// Waits until they have another master than the one that was found last.
    pub(super) async fn wait_replaced(&self) {
        let mut kept: Vec<Option<MultiplexedConnection>> = vec![None; self.sentinels.len()];
        loop {
            for (sentinel, kept) in self.sentinels.iter().zip(&mut kept) {
                sleep(ASKED_EVERY).await;
                let said = self.ask_sentinel(sentinel, kept).await;
                // It may not know the latest election yet.
                if said.is_some()
                    && said != self.master
                    && self.ask_all().await.is_some_and(|master| Some(master) != self.master)
                {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::redis::address::RedisAddress;
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

    #[test]
    fn a_sentinel_that_has_not_heard_of_a_failover_is_not_believed() {
        let says = |host: &str, election| ((host.to_owned(), 6379), election);
        let master = |named: &[Nomination]| latest(named).map(|(host, _)| host);
        assert_eq!(master(&[]), None);
        assert_eq!(master(&[says("old", 3), says("old", 3), says("new", 4)]), Some("new".into()));
        // One that may not be asked for it says 0.
        assert_eq!(master(&[says("old", 0), says("new", 4)]), Some("new".into()));
        // While the election goes on only the one that holds it names the next.
        assert_eq!(master(&[says("new", 3), says("old", 3), says("old", 3)]), Some("old".into()));
        assert_eq!(master(&[says("a", 0), says("b", 0)]), Some("a".into()));
    }
}
