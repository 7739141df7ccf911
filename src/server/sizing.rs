//! How many idle sockets this machine can carry with given settings, by each limit. `hub/capacity.rs` enforces limits;
//! docs/sizing.md says how the figures were measured.

use std::fs;
use std::net::IpAddr;

use super::{files, process_limits};
use crate::config::{Config, ServerConfig};

/// Bytes that the process holds before the first socket.
const BASE_BYTES: u64 = 10 << 20;

/// Bytes that the process holds for an idle socket with one channel.
const PLAIN_BYTES: u64 = 1_500;

/// The same where the server itself speaks TLS.
const TLS_BYTES: u64 = 8_750;

/// Bytes that the kernel holds for one, which no limit on the process counts.
const KERNEL_BYTES: u64 = 4_300;

/// Percent of the machine's memory for sockets; the rest is the system's.
const MACHINE_SHARE: u64 = 90;

/// One thing that bounds the sockets.
#[derive(Debug)]
pub struct SocketBound {
    /// As it is printed: a setting, or what the machine calls it.
    pub name: &'static str,
    /// Sockets that it bears; none: it bounds nothing here.
    pub sockets: Option<u64>,
    /// Whether every socket meets this limit. If not, only those through a proxy do.
    pub is_certain: bool,
    /// Where the figure comes from.
    pub reason: String,
    /// How to raise it.
    pub remedy: &'static str,
}

/// Finds what bounds the sockets here; a proxy, if there is one, connects to so many `upstreams`: addresses of
/// this server.
pub fn find_bounds(config: &Config, upstreams: u64) -> Vec<SocketBound> {
    let ServerConfig { workers, max_connections, tls, .. } = &config.server;
    let own = if tls.is_some() { TLS_BYTES } else { PLAIN_BYTES };
    let mut bounds = vec![
        of_machine(process_limits::machine_memory(), own),
        of_process(process_limits::limit(config.limits.memory), own),
        of_files(files::hard_limit(), *workers),
        of_ports(&config.server, free_ports(), upstreams),
    ];
    if *max_connections > 0 {
        bounds.push(SocketBound {
            name: "server.max_connections",
            sockets: Some(*max_connections as u64),
            is_certain: true,
            reason: "as configured".to_owned(),
            remedy: "raise server.max_connections, or leave it at 0",
        });
    }
    bounds
}

/// The bound that is met first: of those that every socket meets.
pub fn first_bound(bounds: &[SocketBound]) -> Option<(&SocketBound, u64)> {
    let certain = bounds.iter().filter(|bound| bound.is_certain);
    certain.filter_map(|bound| Some((bound, bound.sockets?))).min_by_key(|(_, sockets)| *sockets)
}

/// The kernel's memory for sockets counts too: it belongs to the machine, or to the control group.
fn of_machine(machine: Option<u64>, own: u64) -> SocketBound {
    let each = own + KERNEL_BYTES;
    let sockets =
        machine.map(|bytes| (bytes / 100 * MACHINE_SHARE).saturating_sub(BASE_BYTES) / each);
    let reason = machine.map_or_else(
        || "not known on this system".to_owned(),
        |bytes| {
            let mebibytes = bytes >> 20;
            format!(
                "{MACHINE_SHARE} % of {mebibytes} MiB, {own} bytes a socket in the process and {KERNEL_BYTES} in the kernel"
            )
        },
    );
    let remedy = "give the machine or container more memory, or add a node";
    SocketBound { name: "memory", sockets, is_certain: true, reason, remedy }
}

/// `limits.memory` is about the process alone, so the kernel's share is left out.
fn of_process(limit: u64, own: u64) -> SocketBound {
    let (sockets, reason) = match limit {
        0 => (None, "no limit".to_owned()),
        bytes => {
            let sockets = bytes.saturating_sub(BASE_BYTES) / own;
            (Some(sockets), format!("{} MiB, {own} bytes a socket", bytes >> 20))
        }
    };
    let remedy = "raise limits.memory";
    SocketBound { name: "limits.memory", sockets, is_certain: true, reason, remedy }
}

/// By the same shares as the server's own: see `files.rs`.
fn of_files(limit: Option<u64>, workers: usize) -> SocketBound {
    let sockets = limit.map(|limit| files::shares(limit, workers).sockets);
    let reason = limit.map_or_else(
        || "no limit".to_owned(),
        |limit| format!("{limit} may be open, less what the server and requests need"),
    );
    let remedy = "raise LimitNOFILE= (systemd), minfds (supervisor), --ulimit nofile (containers) or ulimit -n";
    SocketBound { name: "open files", sockets, is_certain: true, reason, remedy }
}

/// Each connection of a proxy to one address of the server takes one of its machine's ephemeral ports.
fn of_ports(server: &ServerConfig, ports: Option<u64>, upstreams: u64) -> SocketBound {
    let is_local = |host: &str| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let ports = ports.filter(|_| server.unix_socket.is_none());
    let reason = match ports {
        _ if server.unix_socket.is_some() => "a Unix socket needs none".to_owned(),
        None => "not known on this system".to_owned(),
        Some(ports) => format!(
            "{ports} ephemeral ports for each address that a proxy connects to, {upstreams} given; only for sockets through a proxy"
        ),
    };
    SocketBound {
        name: "proxy's ports",
        sockets: ports.map(|ports| ports.saturating_mul(upstreams)),
        // Nobody else can come to a loopback address.
        is_certain: server.proxy_protocol || is_local(&server.host),
        reason,
        remedy: "widen net.ipv4.ip_local_port_range, give the proxy more addresses of this server (--upstreams), or use server.unix_socket",
    }
}

/// Ports that connections from this machine may be given.
fn free_ports() -> Option<u64> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let reserved = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
    // Linux reserves no ports unless told to, so an unreadable list is an empty one.
    count_ports(&range, &reserved.unwrap_or_default())
}

/// Ports of `range` (`32768 60999`) without the `reserved` ones (`40000,50000-50010`).
fn count_ports(range: &str, reserved: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    let all = (last + 1).saturating_sub(first);
    let taken = reserved.trim().split(',').filter_map(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        Some((to.min(last) + 1).saturating_sub(from.max(first)))
    });
    Some(all.saturating_sub(taken.sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_without_the_reserved_ones() {
        for (range, reserved, ports) in [
            ("32768\t60999\n", "\n", Some(28_232)),
            ("32768\t60999\n", "40000,50000-50009\n", Some(28_221)),
            ("1024 65535", "80,1000-1033,65530-65535", Some(64_496)),
            ("", "", None),
        ] {
            assert_eq!(count_ports(range, reserved), ports, "{range} {reserved}");
        }
    }

    #[test]
    fn the_kernel_counts_against_the_machine_alone() {
        let gibibyte = 1 << 30;
        assert_eq!(of_process(gibibyte, PLAIN_BYTES).sockets, Some(708_837));
        assert_eq!(of_machine(Some(gibibyte), PLAIN_BYTES).sockets, Some(164_807));
        assert_eq!(of_process(0, PLAIN_BYTES).sockets, None);
        assert_eq!(of_machine(None, PLAIN_BYTES).sockets, None);
    }
}
