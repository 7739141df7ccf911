//! Whether the Redis that joins the nodes of a cluster is as they need it, for `fanfare doctor`.

use super::doctor::{Grade, Report};
use crate::cluster::redis::probe::{Found, probe};
use crate::config::Cluster;

const SUBJECT: &str = "Redis";

/// Looks at it if there is to be one.
pub(super) async fn examine(report: &mut Report, cluster: &Cluster) {
    if cluster.redis.is_empty() {
        return;
    }
    let found = match probe(&cluster.redis, &cluster.prefix).await {
        Ok(found) => found,
        Err(sentence) => {
            report.add(SUBJECT, Grade::Ill, sentence);
            return;
        }
    };
    let Found { version, is_recent, is_replica, evicts, round_trip } = found;
    if !is_recent {
        let text = format!("{version} is too old: nodes need Redis 7 or later, or a Valkey");
        report.add(SUBJECT, Grade::Ill, text);
    }
    if is_replica {
        let text = "it is a replica, which takes no writes: give the master's address, or the Sentinels' (redis+sentinel://)";
        report.add(SUBJECT, Grade::Ill, text);
    }
    if let Some(policy) = evicts {
        let text = format!(
            "it throws keys away when its memory is full ({policy}), and members with them: set maxmemory-policy noeviction"
        );
        report.add(SUBJECT, Grade::Ill, text);
    }
    if is_recent && !is_replica {
        let took = round_trip.as_micros() as f64 / 1000.0;
        let text = format!("{version}; a message came back after {took:.1} ms");
        report.add(SUBJECT, Grade::Well, text);
    }
}
