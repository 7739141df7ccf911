//! The link's thread. It has its own runtime, so that no worker waits for Redis: it sends requests and handles link
//! events.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime;
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::UnusableSetting;
use crate::app::Apps;
use crate::cluster::link::{self, LinkEvent};
use crate::cluster::redis::tls::{RedisTls, TlsSources, UnusableTlsFile};
use crate::cluster::redis::{LinkSettings, RedisDriver};
use crate::cluster::topics::Topics;
use crate::config;
use crate::hub::Hub;
use crate::node::{Clustered, ServerState, handle_link_events};

/// The error for a malformed URL. The URL itself may have a password, and is not repeated.
const URL: &str = "the URL cannot be read: expected redis://USER:PASSWORD@HOST:PORT/DATABASE or redis+sentinel://HOST,HOST/MASTER, with %XX for marks in a password";

/// A link that is to be started once there is a node to take what comes out of it.
#[derive(Debug)]
pub(super) struct UnstartedLink {
    /// State that workers and the link share.
    others: Arc<Clustered>,
    /// The link, until its thread starts.
    redis: RedisDriver,
    events: mpsc::Receiver<LinkEvent>,
}

/// The link to other nodes, if the settings want one.
///
/// # Errors
/// The URL or a certificate cannot be used. Redis itself is not asked: a server starts without it.
pub(super) fn prepare(
    config: &config::ClusterConfig,
    node: u64,
    apps: &Arc<ArcSwap<Apps>>,
    hub: &Hub,
) -> Result<Option<UnstartedLink>, UnusableSetting> {
    if config.redis.is_empty() {
        return Ok(None);
    }
    let (link, far, events) = link::new_link(config.queue_bytes);
    let topics = Arc::new(Topics::new(link, hub.held.clone()));
    let tls = redis_tls(&config.tls)
        .map_err(|wrong| UnusableSetting::path(wrong.setting, &wrong.file, &wrong.error))?;
    let settings = LinkSettings {
        urls: config.redis.clone(),
        tls,
        prefix: config.prefix.clone(),
        lease: config.lease,
        max_age: config.queue_age,
        replay: config.replay,
        console: hub.console.clone(),
    };
    let redis = RedisDriver::new(settings, node, topics.clone(), apps.clone(), far);
    // The error may repeat the URL with its password.
    let redis = redis.map_err(|_| UnusableSetting::new("cluster.redis", URL))?;
    let others = Arc::new(Clustered::new(topics));
    Ok(Some(UnstartedLink { others, redis, events }))
}

/// How TLS is spoken to Redis.
pub(crate) fn redis_tls(config: &config::RedisTlsConfig) -> Result<Arc<RedisTls>, UnusableTlsFile> {
    let config::RedisTlsConfig { ca, cert, key } = config.clone();
    RedisTls::new(TlsSources { ca, cert, key })
}

impl UnstartedLink {
    /// The node's state about other nodes.
    pub(super) fn others(&self) -> &Arc<Clustered> {
        &self.others
    }

    /// Starts the thread. It ends when the link is stopped and has sent all queued publishes.
    pub(super) fn start(self, shared: Arc<ServerState>) -> io::Result<JoinHandle<()>> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            let taking = handle_link_events(shared, self.others, self.events);
            runtime.block_on(async {
                tokio::select! {
                    () = self.redis.run() => {}
                    () = taking => error!("the cluster link has ended: events of other nodes no longer arrive"),
                }
            });
        })
    }
}

/// Waits for the link's thread to end, but not for a Redis that hangs; whether it did not panic.
pub(super) fn join_in_time(link: JoinHandle<()>, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while !link.is_finished() {
        if Instant::now() > end {
            warn!("Redis does not answer; what waits for it is lost");
            return true;
        }
        // A thread cannot be joined with a time limit, so it is looked at.
        std::thread::park_timeout(Duration::from_millis(10));
    }
    link.join().is_ok()
}
