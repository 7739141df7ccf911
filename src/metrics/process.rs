//! The process's figures from the kernel: memory, CPU time, open files, start time. Read from `/proc` on demand;
//! without it they are unknown.

use std::fs;

/// A look at the process.
#[derive(Clone, Copy, Default, Debug)]
pub struct ProcessStats {
    /// Bytes of memory; `VmRSS`.
    pub resident_bytes: f64,
    /// Bytes of addresses.
    pub virtual_bytes: f64,
    /// Time on processors in the program itself.
    pub user_seconds: f64,
    /// Time on processors in the kernel on its behalf.
    pub system_seconds: f64,
    /// Since 1970.
    pub start_seconds: f64,
    /// Sockets are files.
    pub open_files: f64,
    /// The soft limit.
    pub max_files: f64,
    pub threads: f64,
}

/// Ticks a second in `/proc`, on every Linux whatever its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessStats {
    /// Bytes of memory that the process holds now; cheaper than a look at everything.
    pub fn memory_bytes() -> Option<u64> {
        statm_bytes(1)
    }

    /// Bytes of addresses that it has taken, whether or not there is memory behind them.
    pub fn mapped_bytes() -> Option<u64> {
        statm_bytes(0)
    }

    /// `None` where there is no `/proc`, as on macOS. The fields are those of `proc_pid_stat(5)`.
    pub fn read_all() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name before may hold anything, a parenthesis too. Fields after it are numbered from 3.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<f64> =
            fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        let page = rustix::param::page_size() as f64;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Some(Self {
            resident_bytes: field(24) * page,
            virtual_bytes: field(23),
            user_seconds: field(14) / TICKS_PER_SECOND,
            system_seconds: field(15) / TICKS_PER_SECOND,
            start_seconds: boot_time()? + field(22) / TICKS_PER_SECOND,
            open_files: open_files()?,
            max_files: limit.map_or(f64::INFINITY, |limit| limit as f64),
            threads: field(20),
        })
    }
}

/// The figure at that place of the kernel's line on memory.
fn statm_bytes(place: usize) -> Option<u64> {
    let line = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = line.split_whitespace().nth(place)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Files that are open. Linux 6.2 and later say how many; before, they are counted, which takes milliseconds
/// where there are thousands.
fn open_files() -> Option<f64> {
    let known = fs::metadata("/proc/self/fd").ok()?.len();
    // The directory itself is open while it is read.
    let counted = || Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1));
    Some(if known > 0 { known as f64 } else { counted()? as f64 })
}

/// When the machine was started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn this_process_is_seen() {
        let Some(process) = ProcessStats::read_all() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(process.resident_bytes > 1e5 && process.virtual_bytes > process.resident_bytes);
        assert!(process.open_files >= 3.0 && process.max_files >= process.open_files);
        assert!(process.threads >= 1.0);
        assert!(ProcessStats::memory_bytes().is_some_and(|bytes| bytes > 100_000));
        let age = now - process.start_seconds;
        assert!((-2.0..86_400.0).contains(&age), "{age} s old");
    }
}
