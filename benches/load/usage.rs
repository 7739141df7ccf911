//! What processes have used, from `/proc`: CPU time holds on a busy machine where wall time does not. Of
//! memory, what is resident.

use std::fs;

/// Of some processes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Seconds of user and system time, threads that have ended included.
    pub cpu: f64,
    /// Resident bytes.
    pub rss: u64,
    /// The most there ever were.
    pub peak: u64,
}

impl Usage {
    /// Now; what cannot be read counts nothing.
    pub(crate) fn of(pids: &[u32]) -> Self {
        let all = pids.iter().filter_map(|pid| Self::read(&pid.to_string()));
        all.fold(Self::default(), |sum, one| Self {
            cpu: sum.cpu + one.cpu,
            rss: sum.rss + one.rss,
            peak: sum.peak + one.peak,
        })
    }

    /// Of the generator itself.
    pub(crate) fn own() -> Self {
        Self::read("self").unwrap_or_default()
    }

    fn read(pid: &str) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in brackets, which may hold anything. Of the others,
        // utime and stime are the 14th and 15th (proc_pid_stat(5)).
        let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || times.next()?.parse::<u64>().ok();
        let ticks = (ticks()? + ticks()?) as f64 / rustix::param::clock_ticks_per_second() as f64;
        // To the nanosecond, but of threads that are still there alone; ticks are 10 ms and count all.
        let cpu = thread_seconds(pid).unwrap_or(0.0).max(ticks);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
        };
        Some(Self { cpu, rss: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
    }
}

/// Seconds that the threads of a process have run, which are still there.
fn thread_seconds(pid: &str) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let nanos = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(nanos.sum::<u64>() as f64 / 1e9)
}
