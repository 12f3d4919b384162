//! Who used how much of the processors.
//!
//! A process's CPU clock has every thread of it, ended ones too, in nanoseconds, and the softirq work that was done on its
//! time. What softirq threads of the kernel did is nobody's, and is counted to everything.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use mesh_tests::lab::Lab;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Reads the clocks of the load (this process), the agents and the kernel's softirq threads.
#[derive(Debug)]
pub(crate) struct Meter {
    agents: Vec<ClockId>,
    softirq: Vec<ClockId>,
}

/// A reading, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    agents: f64,
    all: f64,
    machine: f64,
    at: Instant,
}

/// CPU seconds between two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// By the agents.
    pub(crate) agents: f64,
    /// By load, agents and softirq threads.
    pub(crate) all: f64,
    /// Cores that others had.
    pub(crate) others: f64,
}

impl Meter {
    /// For the agents of a lab, as they run now.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let agents = lab.nodes().iter().filter_map(|node| node.agent().pid());
        Ok(Self {
            agents: clocks(agents).context("an agent has no CPU clock")?,
            softirq: clocks(softirq_threads()).unwrap_or_default(),
        })
    }

    pub(crate) fn read(&self) -> Result<Reading> {
        let agents = sum(&self.agents)?;
        let load = seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
        Ok(Reading {
            agents,
            all: agents + load + sum(&self.softirq)?,
            machine: busy()?,
            at: Instant::now(),
        })
    }
}

impl Reading {
    pub(crate) fn since(&self, before: &Self) -> Used {
        let all = self.all - before.all;
        let wall = (self.at - before.at).as_secs_f64();
        Used {
            agents: self.agents - before.agents,
            all,
            others: ((self.machine - before.machine - all) / wall).max(0.0),
        }
    }
}

fn clocks(pids: impl IntoIterator<Item = Pid>) -> nix::Result<Vec<ClockId>> {
    pids.into_iter().map(clock_getcpuclockid).collect()
}

fn sum(clocks: &[ClockId]) -> Result<f64> {
    clocks.iter().copied().map(seconds).sum()
}

/// What a CPU clock says.
pub(crate) fn seconds(clock: ClockId) -> Result<f64> {
    let now = clock
        .now()
        .context("a process whose CPU time is measured has ended")?;
    Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}

/// `ksoftirqd/0` and so on; none where the kernel's threads are not seen.
fn softirq_threads() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            name.starts_with("ksoftirqd/").then(|| Pid::from_raw(id))
        })
        .collect()
}

/// Seconds that the processors were busy since boot (proc(5), `/proc/stat`).
fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    // user, nice, system, idle, iowait, irq, softirq, steal
    let ticks = line.split_whitespace().skip(1).take(8);
    let ticks: Vec<f64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok((ticks.iter().sum::<f64>() - idle) / per_second as f64)
}
