//! EDGE: what this process takes of the node, as Prometheus' own clients tell it.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::unistd::{SysconfVar, sysconf};

use super::page::{Kind, Page};

/// Writes what can be read; the rest is absent.
pub(super) fn write(page: &mut Page) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let (user, system) = (usage.user_time(), usage.system_time());
        let microseconds = |it: nix::sys::time::TimeVal| {
            u32::try_from(it.tv_usec()).map_or(0.0, f64::from) / 1e6
                + i32::try_from(it.tv_sec()).map_or(0.0, f64::from)
        };
        let help = "Total user and system CPU time spent in seconds";
        let seconds = microseconds(user) + microseconds(system);
        page.single("process_cpu_seconds", Kind::Counter, help, seconds);
    }
    if let Some((size, resident)) = memory() {
        let help = "Virtual memory size in bytes";
        page.single("process_virtual_memory_bytes", Kind::Gauge, help, size);
        let help = "Resident memory size in bytes";
        page.single("process_resident_memory_bytes", Kind::Gauge, help, resident);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let help = "Number of open file descriptors";
        page.single("process_open_fds", Kind::Gauge, help, open.count());
    }
    if let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let help = "Maximum number of open file descriptors";
        page.single("process_max_fds", Kind::Gauge, help, limit);
    }
    if let Some(start) = start_time() {
        let help = "Start time of the process since unix epoch in seconds";
        page.single("process_start_time_seconds", Kind::Gauge, help, start);
    }
}

/// Virtual and resident bytes (`proc_pid_statm(5)`).
fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let page = constant(SysconfVar::PAGE_SIZE)?;
    let mut pages = text.split_whitespace().map(str::parse::<u64>);
    Some((pages.next()?.ok()? * page, pages.next()?.ok()? * page))
}

/// Seconds since 1970 (field 22 of `proc_pid_stat(5)`, from the boot on).
fn start_time() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let ticks: u64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<u64>().ok()? + ticks / constant(SysconfVar::CLK_TCK)?)
}

fn constant(name: SysconfVar) -> Option<u64> {
    u64::try_from(sysconf(name).ok()??).ok()
}
