//! The scripts, and the layout of the keys that they change. Each script is atomic and idempotent. All keys of a script
//! share a hash tag, except those of the lease that it writes for, which are on the same server.
//!
//! Of a channel, `P:{app/channel}:` and
//! - `v`: the version of its last change. It never goes back, for it is at least the time in microseconds.
//! - `m`: its members, user → version of joining and info. `r`: who holds them, lease and user → nothing.
//!   `k`: on how many nodes, user → number; the empty user stands for the version of the last change of `m`, as
//!   against what else takes versions.
//! - `c`: its cached event, as an envelope. `l`: the log of its last events, as envelopes, for nodes whose link
//!   dropped, and `lt`: it was cut off for its bytes; `P:{all}:l` is that of orders to all nodes.
//!
//! Of an app, `P:{app}:` and `t`: channel → subscriptions on all nodes; `n:LEASE`: on one node. The empty
//! channel name stands for the app's connections. `g:N`: which logs of its channels nodes publish to, of the minute `N`, as
//! a `HyperLogLog`, which takes 12 kB at most.
//!
//! Of an app whose clients may come back to any node, `s`, `q`, `z` and `x`: see `cluster/clients.rs`.
//!
//! While a slot of a Redis Cluster is on its way to another server, a key that a script has deleted is one that it may
//! not ask for any more, and the script ends halfway. One that deletes keys therefore names one that is never there,
//! `0`, or only the beginning of a name: Redis refuses it as a whole until the slot has moved.
//!
//! For webhooks, of an app that has some: `o`: how many leases hold a channel or a member; `h:LEASE`: which one does;
//! `w`: the log of what is to be told; `b`: the node that tells it, under which lease with which tag, and ` z` if it is to
//! be woken; `e`: since when Redis has had these; `s:NODE`: the last that a node said has happened.
//!
//! Of each server, with a number whose slot is its own: `P:fence:{N}`, which leases hold (`leases.rs`), and
//! `P:lease:{N}:LEASE`, of what a lease may have something: `c` and a channel, `a` or `w` and an app. One server has
//! all slots, but those of a Redis Cluster have some each; what is in braces decides. `P:tags`: the numbers in use.
//! `P:back:{N}`: nothing, for a second.

pub(super) mod clients;
pub(super) mod counts;
pub(super) mod events;
pub(super) mod leases;
pub(super) mod presence;
pub(super) mod webhook_log;

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};
use sha1::{Digest as _, Sha1};

use super::seal;
use crate::protocol::hex;

/// How long a version outlives its channel's last change; seconds. It may be forgotten, since the next one
/// begins at the time of day.
const VERSION_KEPT: u64 = 3600;

/// The next version of a channel. Lua's numbers hold 53 bits, which microseconds need in the year 2255.
const NEXT: &str = r"
local function next_version(key)
  local now
  if now_us then now = now_us()
  else
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  local last = tonumber(redis.call('GET', key) or '0')
  if now <= last then now = last + 1 end
  local text = string.format('%016.0f', now)
  redis.call('SET', key, text, 'EX', VERSION_KEPT)
  return text
end
";

/// A script with its keys and arguments; the sender adds those of the lease.
#[derive(Debug)]
pub(super) struct ScriptCall {
    pub(super) script: Script,
    /// The command with its keys and arguments.
    pub(super) command: Cmd,
}

impl ScriptCall {
    /// Adds an argument.
    fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// In place of the lease's arguments, where what a lapsed lease held is cleared.
    fn add_cleared_lease(&mut self, lease: &str) {
        self.arg("").arg(lease).arg("").arg("");
    }
}

/// The scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Script {
    /// A user joins a presence channel.
    Join,
    /// A user leaves a presence channel.
    Leave,
    /// Ends the members of a lease that no longer holds.
    Clear,
    /// Reads the members of a presence channel.
    Load,
    /// Logs and publishes events.
    Publish,
    /// The same for one event that may have been taken already.
    PublishAgain,
    /// Reads what a log has after a place.
    Missed,
    /// Notes logs of an app, and counts those of all nodes.
    CountLogs,
    /// Caches, logs and publishes an event of a cache channel.
    Cache,
    /// Reads the cached event.
    Cached,
    /// Deletes a cached event.
    Uncache,
    /// Changes counts of subscribers or connections, and returns the totals.
    Count,
    /// The same for a lease that no longer holds.
    Uncount,
    /// Writes entries to a webhook log.
    WriteLog,
    /// The same for a lease that no longer holds.
    ClearLog,
    /// Reads a webhook log as the holder of its office.
    ReadLog,
    /// Registers a lease.
    Register,
    /// Renews a lease.
    Renew,
    /// Fences a lease: it no longer holds, and may be cleared.
    Fence,
    /// Forgets a lease that was cleared.
    ForgetLease,
    /// Claims a resumable client for a node.
    Claim,
    /// Stores the state of a resumable client.
    Park,
    /// Deletes resumable clients that are late.
    Sweep,
    /// Notes that channels are withdrawn from a user.
    Revoke,
}

impl Script {
    /// All scripts, to be loaded when a link is made.
    pub(super) const ALL: [Self; 24] = [
        Self::Join,
        Self::Leave,
        Self::Clear,
        Self::Load,
        Self::Publish,
        Self::PublishAgain,
        Self::Missed,
        Self::CountLogs,
        Self::Cache,
        Self::Cached,
        Self::Uncache,
        Self::Count,
        Self::Uncount,
        Self::WriteLog,
        Self::ClearLog,
        Self::ReadLog,
        Self::Register,
        Self::Renew,
        Self::Fence,
        Self::ForgetLease,
        Self::Claim,
        Self::Park,
        Self::Sweep,
        Self::Revoke,
    ];

    /// Whether it writes under the node's lease, and so only while that is valid; or uses the fence's clock.
    pub(super) fn is_fenced(self) -> bool {
        matches!(
            self,
            Self::Join
                | Self::Leave
                | Self::Load
                | Self::Publish
                | Self::PublishAgain
                | Self::Cache
                | Self::Count
                | Self::WriteLog
                | Self::ReadLog
                | Self::Claim
                | Self::Park
                | Self::Sweep
                | Self::Revoke
        )
    }

    /// Whether it adds or removes holds, some of which may be under other leases of the node.
    pub(super) fn changes_holds(self) -> bool {
        matches!(self, Self::Join | Self::Leave | Self::Count | Self::WriteLog)
    }

    /// Whether it needs the key that lists what its lease holds.
    pub(super) fn needs_held_key(self) -> bool {
        self.changes_holds() || self == Self::ReadLog
    }

    /// A call of it. The arguments follow, in the order that the script's own file gives.
    pub(super) fn call(self, keys: &[impl ToRedisArgs]) -> ScriptCall {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.sha1_name()).arg(keys.len()).arg(keys);
        ScriptCall { script: self, command }
    }

    /// Its name in Redis: the SHA-1 of its text, in hexadecimal.
    pub(super) fn sha1_name(self) -> &'static str {
        /// By which Redis knows a script that it has run before (`EVALSHA`).
        static NAMES: LazyLock<[String; Script::ALL.len()]> = LazyLock::new(|| {
            Script::ALL.map(|script| hex::encode_hex(Sha1::digest(script.text())))
        });
        NAMES.get(self as usize).map_or("", String::as_str)
    }

    /// The script's text.
    pub(super) fn text(self) -> String {
        let (needs, own): (&[&str], &str) = match self {
            Self::Join => (&[NEXT, seal::SCRIPT, presence::REFS], presence::JOIN),
            Self::Leave => (&[NEXT, seal::SCRIPT, presence::REFS], presence::LEAVE),
            Self::Clear => (&[leases::UNFENCED, NEXT, seal::SCRIPT], presence::CLEAR),
            Self::Load => (&[NEXT], presence::LOAD),
            Self::Publish => (&[seal::SCRIPT, events::TRIM], events::PUBLISH),
            Self::PublishAgain => {
                (&[seal::SCRIPT, events::LOG, events::TRIM, events::AGAIN], events::PUBLISH)
            }
            Self::Missed => (&[events::LOG], events::MISSED),
            Self::CountLogs => (&[], events::COUNT_LOGS),
            Self::Cache => (&[NEXT, seal::SCRIPT, events::LOG, events::TRIM], events::KEEP),
            Self::Cached => (&[], events::KEPT),
            Self::Uncache => (&[], events::FORGET),
            Self::Count => (&[NEXT, webhook_log::LOGGING], counts::COUNT),
            Self::Uncount => (&[leases::CLEARING, NEXT, webhook_log::LOGGING], counts::COUNT),
            Self::WriteLog => (&[webhook_log::LOGGING, webhook_log::OFFICE], webhook_log::SAY),
            Self::ClearLog => {
                (&[leases::CLEARING, webhook_log::LOGGING, webhook_log::OFFICE], webhook_log::SAY)
            }
            Self::ReadLog => (&[leases::HELD, webhook_log::OFFICE], webhook_log::READ),
            Self::Register => (&[], leases::REGISTER),
            Self::Renew => (&[], &leases::renew()),
            Self::Fence => (&[], leases::FENCE),
            Self::ForgetLease => (&[], leases::FORGET_LEASE),
            Self::Claim => (&[clients::FIRST], clients::CLAIM),
            Self::Park => (&[clients::FIRST], clients::PARK),
            Self::Sweep => (&[clients::FIRST], clients::SWEEP),
            Self::Revoke => (&[], clients::REVOKE),
        };
        let fence = match self {
            Self::Register => leases::keeping(),
            _ if self.changes_holds() => leases::fenced() + leases::HELD + leases::OTHERS,
            _ if self.is_fenced() => leases::fenced(),
            _ => String::new(),
        };
        let text = fence + &needs.concat() + own;
        text.replace("VERSION_KEPT", &VERSION_KEPT.to_string())
            .replace("LOGS_WINDOW", &events::LOGS_WINDOW.to_string())
            .replace("FACT_KEPT", &webhook_log::FACT_KEPT.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use redis::Arg;

    use super::*;

    /// The arguments that a call sends behind its keys.
    pub(super) fn arguments(call: &ScriptCall) -> Vec<String> {
        let text = |arg: Arg<&[u8]>| match arg {
            Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => String::new(),
        };
        let all: Vec<String> = call.command.args_iter().map(text).collect();
        let keys: usize = all[2].parse().unwrap();
        all[3 + keys..].to_vec()
    }

    /// The names that a script gives all its arguments at once.
    pub(super) fn names_of(script: &str) -> Vec<&str> {
        let line = script.lines().find(|line| line.ends_with("= unpack(ARGV)")).unwrap();
        let names = line.strip_prefix("local ").unwrap().split(" = ").next().unwrap();
        names.split(", ").collect()
    }

    #[test]
    fn each_script_has_a_text_and_a_name_of_its_own() {
        let names: BTreeSet<&str> = Script::ALL.iter().map(|script| script.sha1_name()).collect();
        assert_eq!(names.len(), Script::ALL.len());
        for (place, script) in Script::ALL.into_iter().enumerate() {
            assert_eq!(script as usize, place, "names are looked up by place");
            let text = script.text();
            assert!(
                !text.contains("_KEPT") && !text.contains("_WINDOW") && !text.contains("CLOCK"),
                "{script:?}"
            );
        }
    }

    /// One that lapsed may have been cleared: nothing is written for it any more.
    #[test]
    fn scripts_that_write_for_a_lease_look_at_the_fence_first() {
        for script in Script::ALL.into_iter().filter(|script| script.is_fenced()) {
            let text = script.text();
            let (fence, writes) = (text.find("FENCED").unwrap(), ["'SADD'", "'HSET', m", "'XADD'"]);
            for write in writes.into_iter().filter_map(|write| text.find(write)) {
                assert!(fence < write, "{script:?}");
            }
        }
    }
}
