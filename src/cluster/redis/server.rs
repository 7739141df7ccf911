//! One Redis server of a link: its connection for commands, its connection for subscriptions, and the lease under which
//! this node writes there. `connections.rs` knows which server has which slot.

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ProtocolVersion, Value,
};

use super::leases::Lease;
use super::pushes::PushQueue;
use super::slots::{self, HostPort};
use super::tls::RedisTls;
use super::{LinkError, PATIENCE};
use crate::cluster::keys::RedisKeys;
use crate::cluster::scripts::{Script, ScriptCall};

/// One server.
pub(super) struct RedisServer {
    /// As the cluster or the Sentinels name it.
    pub(super) at: HostPort,
    /// Commands of all tasks go out on it together.
    pub(super) commands: MultiplexedConnection,
    /// For subscriptions alone: what Redis pushes must not wait behind answers.
    pub(super) listening: MultiplexedConnection,
    /// The number of that connection.
    pub(super) number: u64,
    /// The link goes on without it.
    pub(super) lost: bool,
    /// Under which this node writes there.
    pub(super) lease: Option<Lease>,
}

/// A command on its way; one that writes for a lease gets that of the server it goes to, and one that says what is held
/// gets the node's other leases too.
#[derive(Clone, Debug)]
pub(super) struct LeasedCommand {
    /// Ready to be sent.
    pub(super) command: Cmd,
    /// Which script it runs, if it does.
    pub(super) script: Option<Script>,
}

impl From<Cmd> for LeasedCommand {
    fn from(command: Cmd) -> Self {
        Self { command, script: None }
    }
}

impl From<ScriptCall> for LeasedCommand {
    fn from(ScriptCall { script, command }: ScriptCall) -> Self {
        Self { command, script: Some(script) }
    }
}

impl LeasedCommand {
    /// Whether Redis refuses it once this node's lease has expired.
    pub(super) fn is_fenced(&self) -> bool {
        self.script.is_some_and(Script::is_fenced)
    }

    /// The slot of a Redis Cluster that it is about.
    pub(super) fn slot(&self) -> Option<u16> {
        slots::of_command(&self.command)
    }

    /// The keys that it names.
    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        slots::keys_of_command(&self.command)
    }
}

/// Which of a server's two connections.
#[derive(Clone, Copy)]
pub(super) enum ConnectionRole {
    /// Commands and their replies.
    Commands,
    /// Subscriptions and their pushes.
    Listening,
}

impl RedisServer {
    /// Connects to the server at an address, as `login` is logged in to.
    pub(super) async fn connect(
        (login, tls): (&Client, &RedisTls),
        at: HostPort,
        pushes: &PushQueue,
    ) -> Result<Self, LinkError> {
        let info = at_address(login, &at);
        let mut commands = tls
            .client(info.clone())?
            .get_multiplexed_async_connection_with_config(&connection_config())
            .await?;
        let mut scripts = redis::pipe();
        for script in Script::ALL {
            scripts.cmd("SCRIPT").arg("LOAD").arg(script.text());
        }
        let loaded = commands.req_packed_commands(&scripts, 0, Script::ALL.len()).await?;
        for answer in loaded {
            // With its own words, which those of the whole pipeline would not be.
            if let Value::ServerError(error) = answer {
                return Err(LinkError::Redis(error.into()));
            }
        }
        // Pushes need RESP3.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let (number, pushes) = pushes.for_connection();
        let listening = tls
            .client(info.set_redis_settings(settings))?
            .get_multiplexed_async_connection_with_config(
                &connection_config().set_push_sender(pushes),
            )
            .await?;
        Ok(Self { at, commands, listening, number, lost: false, lease: None })
    }

    pub(super) fn host(&self) -> &str {
        &self.at.0
    }

    /// The command as it is sent there by a node that has these leases.
    pub(super) fn fenced_command(
        &self,
        keys: &RedisKeys,
        own: &[Lease],
        routed: LeasedCommand,
    ) -> Cmd {
        let (is_fenced, LeasedCommand { mut command, script }) = (routed.is_fenced(), routed);
        if is_fenced && let Some(Lease { tag, id }) = &self.lease {
            if script.is_some_and(Script::changes_holds) {
                let others = own.iter().map(|lease| lease.id.as_str()).filter(|other| other != id);
                command.arg(others.collect::<Vec<_>>().join(" "));
            }
            if script.is_some_and(Script::needs_held_key) {
                command.arg(keys.lease_key(*tag, id));
            }
            command.arg(id).arg(keys.fence_key(*tag));
        }
        command
    }

    /// The connection for commands, or the one for subscriptions.
    pub(super) fn connection_for(&self, which: ConnectionRole) -> MultiplexedConnection {
        match which {
            ConnectionRole::Commands => self.commands.clone(),
            ConnectionRole::Listening => self.listening.clone(),
        }
    }
}

/// With a time limit on everything: a Redis that hangs is one that is away.
pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE))
}

/// User, password, database and TLS of the settings, at an address that a server named.
pub(super) fn at_address(login: &Client, (host, port): &HostPort) -> ConnectionInfo {
    let info = login.get_connection_info().clone();
    let addr = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.clone(), *port),
    };
    // The library would name itself by CLIENT SETINFO, which the least rights do not have.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    info.set_addr(addr).set_redis_settings(settings)
}
