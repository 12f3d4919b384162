//! Work in a child process, under the eyes of a parent that removes the labs whatever became of it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::site;

/// Runs the work in a child, and removes its labs when the child has ended, unless they are to be kept, or when we are told
/// to stop. To be called before there are threads; the child calls [`begin`].
pub fn supervise(work: &mut Command, labs: &[&str], keep: bool) -> Result<ExitCode> {
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let mut signals = SigSet::from_iter(ends);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    // Agents whose parent is killed become our children: not every init waits for orphans.
    set_child_subreaper(true)?;
    // In a group of its own, so that Ctrl-C is ours alone.
    let mut child = work
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", work.get_program().display()))?;
    loop {
        let signal = signals.wait()?;
        if ends.contains(&signal) {
            eprintln!("\ninterrupted: removing what was made");
            child.kill()?;
            child.wait()?;
            remove(labs)?;
            return Ok(ExitCode::from(130));
        }
        if let Some(status) = child.try_wait()? {
            if !keep {
                remove(labs)?;
            }
            if let Some(signal) = status.signal() {
                eprintln!("the work was ended by signal {signal}");
            }
            return Ok(if status.success() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
}

/// In the child, first of all: the parent holds signals back, and the agents that are started from here want them.
pub fn begin() -> Result<()> {
    Ok(SigSet::all().thread_unblock()?)
}

/// Removes the labs, and takes leave of the processes that the child left to us.
fn remove(labs: &[&str]) -> Result<()> {
    labs.iter().try_for_each(|lab| site::down(lab))?;
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
    Ok(())
}
