//! The memory available to this process: the machine's, a control group's or that of `ulimit -v`. Read from the kernel
//! once at the start; if it is unknown, there is no limit.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::config::MemoryLimit;
use crate::metrics::ProcessStats;

/// Percent of the addresses of which as many may be mapped: the rest is for what a thread or an allocation takes at once.
const MAX_ADDRESS_PERCENT: u64 = 90;

/// Bytes that the process may hold before new sockets are refused; 0: no limit.
pub(super) fn limit(limit: MemoryLimit) -> u64 {
    match limit {
        MemoryLimit::Bytes(bytes) => bytes,
        MemoryLimit::Share(percent) => {
            machine_memory().map_or(0, |bytes| bytes / 100 * u64::from(percent))
        }
    }
}

/// Bytes of memory that the machine, or the control group, has; none where that is not known.
pub(super) fn machine_memory() -> Option<u64> {
    there_is(Path::new("/")).into_iter().chain(addresses()).min()
}

/// Bytes of addresses that the process may take (`ulimit -v`); none where that is not bounded.
fn addresses() -> Option<u64> {
    getrlimit(Resource::As).current
}

/// Bytes that the process holds of the `limit` that it may. Where its addresses are bounded, they run out before memory
/// does, for not all that is mapped is used: then what it has mapped comes as near to the limit as it is to that bound.
pub(super) fn held_bytes(limit: u64) -> Option<u64> {
    let (resident, mapped) = (ProcessStats::memory_bytes()?, ProcessStats::mapped_bytes()?);
    Some(nearer_to_limit(limit, resident, addresses().map(|all| (all, mapped))))
}

/// For example, with 10 GB of addresses and a limit of 8 GB: of the 9 GB that may be mapped, 8.5
/// count as 7.5 held, since as much is left.
fn nearer_to_limit(limit: u64, resident: u64, addresses: Option<(u64, u64)>) -> u64 {
    addresses.map_or(resident, |(all, mapped)| {
        resident.max(mapped.saturating_sub((all / 100 * MAX_ADDRESS_PERCENT).saturating_sub(limit)))
    })
}

/// Bytes that the machine below `root` has for this process.
fn there_is(root: &Path) -> Option<u64> {
    let machine = || {
        let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes: u64 = total.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kibibytes << 10)
    };
    // Without control groups (an old kernel, no /proc) no such limit applies.
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().flat_map(|line| limits_of(root, line));
    // The smallest limit counts: a control group may have less than its parents, and the machine less than a group
    // without a limit.
    groups.chain(machine()).min()
}

/// The limits of one line of `/proc/self/cgroup`: of the group that it names and of those around it. In a
/// container the name may be that outside, and the container's own group is the root.
fn limits_of(root: &Path, line: &str) -> Vec<u64> {
    // `0::/path` is of version 2, `7:memory:/path` of version 1.
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (folder, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let folder = root.join(folder);
    // `max`, which is no number, is no limit.
    let limit = |group: &Path| {
        let path = folder.join(group.strip_prefix("/").unwrap_or(group)).join(file);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Path::new(path).ancestors().filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit that these files result in.
    fn with(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = std::env::temp_dir().join(format!("fanfare-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = there_is(&root);
        let _ = fs::remove_dir_all(&root);
        found
    }

    #[test]
    fn the_least_that_any_group_has_counts() {
        let machine = ("proc/meminfo", "MemFree: 7 kB\nMemTotal:       1000 kB\nX: 1 kB\n");
        assert_eq!(with("machine", &[machine]), Some(1_024_000));
        let group = ("proc/self/cgroup", "0::/system.slice/fanfare.service\n");
        let own = ("sys/fs/cgroup/system.slice/fanfare.service/memory.max", "max\n");
        let around = ("sys/fs/cgroup/system.slice/memory.max", "5000\n");
        assert_eq!(with("group", &[machine, group, own, around]), Some(5000));
        assert_eq!(with("no-limit", &[machine, group, own]), Some(1_024_000));
        let first = ("proc/self/cgroup", "9:cpu:/x\n7:memory,hugetlb:/docker/abc\n0::/\n");
        let of_first = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "6000\n");
        assert_eq!(with("first", &[machine, first, of_first]), Some(6000));
        let endless = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(with("endless", &[machine, first, endless]), Some(1_024_000));
        assert_eq!(with("nothing", &[]), None);
    }

    #[test]
    fn bounded_addresses_count_as_memory_does() {
        assert_eq!(nearer_to_limit(900, 300, None), 300);
        assert_eq!(nearer_to_limit(900, 300, Some((1000, 700))), 700);
        assert_eq!(nearer_to_limit(900, 300, Some((1000, 900))), 900, "at its limit");
        // One that is far from it does not count in the place of a lower limit of memory.
        assert_eq!(nearer_to_limit(400, 300, Some((8000, 700))), 300);
        assert_eq!(nearer_to_limit(400, 300, Some((8000, 7200))), 400, "at its limit");
    }
}
