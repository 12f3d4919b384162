//! What a process holds of the machine.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::Pid;

/// At one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Resident memory in bytes.
    pub memory: usize,
}

impl Usage {
    /// Of a process.
    ///
    /// # Errors
    /// There is none any more.
    pub fn of(pid: Pid) -> Result<Self> {
        let place = format!("/proc/{pid}");
        let descriptors = fs::read_dir(format!("{place}/fd"))
            .with_context(|| format!("{place} is gone"))?
            .count();
        let status = fs::read_to_string(format!("{place}/status"))?;
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|it| it.split_whitespace().next());
        let kilobytes: usize = kilobytes.context("no VmRSS")?.parse()?;
        Ok(Self {
            descriptors,
            memory: kilobytes << 10,
        })
    }
}
