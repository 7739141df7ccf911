//! `fanfare doctor` on the Redis of a cluster: its version, role, eviction policy, memory, rights and round trip.
//! `cluster/redis/diagnose.rs` gathers the facts; they are judged here.

use super::report::{Grade, Report};
use crate::cluster::redis::diagnose::{RedisFinding, probe_servers};
use crate::cluster::redis::tls::UnusableTlsFile;
use crate::config::ClusterConfig;
use crate::server::redis_tls;

/// The subject of these findings in the report.
const SUBJECT: &str = "Redis";

/// Looks at the Redis of the settings, and at each of the nodes of a cluster that they name. Each
/// node that the settings name is asked by itself: a client that starts with one finds the others,
/// and a wrong address among them would stay unseen until that one is gone.
pub(super) async fn examine_redis(report: &mut Report, cluster: &ClusterConfig) {
    let mut urls = cluster.redis.clone();
    let tls = match redis_tls(&cluster.tls) {
        Ok(tls) => tls,
        Err(UnusableTlsFile { setting, file, error }) => {
            let text = format!("{setting}: {}: {error}", file.display());
            return report.add(SUBJECT, Grade::Fail, text);
        }
    };
    for _ in 0..urls.len() {
        // Only the first URL is checked. Several URLs can only be nodes of a Redis Cluster.
        let place = urls
            .first()
            .filter(|_| urls.len() > 1)
            .map(|url| server_label(url))
            // One server needs no label to tell its findings from another's.
            .unwrap_or_default();
        match probe_servers(&urls, &tls, &cluster.prefix).await {
            Ok(found) => report_finding(report, &place, found),
            Err(sentence) => report.add(SUBJECT, Grade::Fail, format!("{place}{sentence}")),
        }
        urls.rotate_left(1);
    }
}

/// Host and port of a URL, in front of what is said of it.
/// Never the user or the password, which stand before the last `@`.
fn server_label(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    // A password may hold anything but what ends the whole.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    format!("{}: ", rest.split(['/', '?']).next().unwrap_or_default())
}

/// Percent of its memory from which on a Redis is worth a look.
/// Only without eviction: with it, a full Redis is the usual state, and the policy the fault.
const NEARLY_FULL_PERCENT: u64 = 90;

/// Reports all faults, not only the first: each needs a change of Redis's settings, and those are best made
/// together. The round trip is shown only if the server is usable.
fn report_finding(report: &mut Report, place: &str, found: RedisFinding) {
    let RedisFinding { version, is_recent, is_replica, evicts, memory, refuses, away, round_trip } =
        found;
    let mut ill = Vec::new();
    if !is_recent {
        ill.push(format!("{version} is too old: nodes need Redis 7 or later, or a Valkey"));
    }
    if is_replica {
        ill.push(
            "it is a replica, which takes no writes: give the master's address, or the Sentinels' (redis+sentinel://)".to_owned(),
        );
    }
    if let Some(policy) = &evicts {
        ill.push(format!(
            "it throws keys away when its memory is full ({policy}), and members with them: set maxmemory-policy noeviction"
        ));
    }
    ill.extend(refuses);
    for text in &ill {
        report.add(SUBJECT, Grade::Fail, format!("{place}{text}"));
    }
    for (part, why) in away {
        let text = format!(
            "{place}{part} is away ({why}): channels that it has are as without Redis, the others are not affected; \
             /ready says 200 and names it"
        );
        report.add(SUBJECT, Grade::Warn, text);
    }
    if let Some(percent) =
        memory.filter(|percent| *percent >= NEARLY_FULL_PERCENT && evicts.is_none())
    {
        let text = format!(
            "{place}{percent} % of its memory is used, and once it is full it takes nothing more: raise maxmemory"
        );
        report.add(SUBJECT, Grade::Warn, text);
    }
    if let Some(took) = round_trip.filter(|_| is_recent && !is_replica) {
        let took = took.as_micros() as f64 / 1000.0;
        let text = format!("{place}{version}; a message came back after {took:.1} ms");
        report.add(SUBJECT, Grade::Ok, text);
    }
}
