//! Metrics of the process: memory, files, threads and CPU time, from the kernel.

use super::soketi::SOKETI;
use crate::metrics::{MetricsPage, ProcessStats};

/// The process, by the names that every exporter has for it; Soketi puts its prefix before them.
pub(super) fn write_process(page: &mut MetricsPage) {
    let Some(process) = ProcessStats::read_all() else { return };
    let one = |value: f64| [(&[][..], value)];
    let soketi = page.prefix() == SOKETI;
    page.set_prefix(if soketi { "soketi_process_" } else { "process_" });
    let (user, system) = (process.user_seconds, process.system_seconds);
    let help = "CPU seconds of the process.";
    page.add_counters("cpu_seconds_total", help, one(user + system));
    if soketi {
        page.add_counters("cpu_user_seconds_total", "CPU seconds in user mode.", one(user));
        page.add_counters("cpu_system_seconds_total", "CPU seconds in the kernel.", one(system));
    }
    for (name, help, value) in [
        ("resident_memory_bytes", "Memory that the process holds.", process.resident_bytes),
        ("virtual_memory_bytes", "Memory that the process may address.", process.virtual_bytes),
        ("start_time_seconds", "When the process began, since 1970.", process.start_seconds),
        ("open_fds", "Open files, sockets included.", process.open_files),
        ("max_fds", "Files that may be open.", process.max_files),
        ("threads", "Threads of the process.", process.threads),
    ] {
        page.add_gauges(name, help, one(value));
    }
}
