//! Processes that a lab starts: recorded on disk, so that the next run finds what a killed one left.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process inside a network namespace; dropping the value ends it, unless it was let go.
#[derive(Debug)]
pub struct Process {
    child: Child,
    record: PathBuf,
    kept: bool,
}

impl Process {
    /// Starts a process in a process group of its own, with its output appended to a log, and records it in a directory.
    pub fn spawn(netns: &Netns, command: &mut Command, log: &Path, records: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = netns
            .run(|| command.spawn())
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let record = records.join(child.id().to_string());
        let process = Self {
            child,
            record,
            kept: false,
        };
        // One that has ended already is none to end later; why it has, its log says.
        if let Some(started) = started(process.child.id()) {
            fs::create_dir_all(records)?;
            fs::write(&process.record, started)?;
        }
        Ok(process)
    }

    /// Its number.
    pub fn pid(&self) -> Result<Pid> {
        pid(self.child.id())
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Asks it to end (SIGTERM), and ends it when it does not.
    pub fn stop(mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Asks it to end (SIGTERM), and does not wait.
    pub fn ask_to_stop(&self) -> Result<()> {
        // Not yet waited for, so the number is still its own.
        Ok(kill(self.pid()?, Signal::SIGTERM)?)
    }

    /// Leaves it running when the value is dropped; the record stays.
    pub fn keep(mut self) {
        self.kept = true;
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // Not yet waited for, so the number is still its own.
        kill(pid(self.child.id())?, signal)?;
        while self.is_running() {
            if Instant::now() > deadline {
                self.child.kill()?;
            }
            sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_file(&self.record);
        Ok(())
    }

    /// Ends every process that is recorded in a directory and still runs.
    pub fn end_recorded(records: &Path) {
        let entries = fs::read_dir(records).into_iter().flatten().flatten();
        let alive: Vec<_> = entries
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.parse().ok()?;
                let recorded = fs::read_to_string(entry.path()).ok()?;
                // A number that was given again belongs to a process that started later.
                (started(id)? == recorded).then_some((id, recorded))
            })
            .collect();
        let still = |(id, recorded): &(u32, String)| started(*id).as_ref() == Some(recorded);
        for (signal, patience) in [
            (Signal::SIGTERM, PATIENCE),
            (Signal::SIGKILL, Duration::from_secs(1)),
        ] {
            let deadline = Instant::now() + patience;
            for process in alive.iter().filter(|process| still(process)) {
                if let Ok(pid) = pid(process.0) {
                    let _ = kill(pid, signal);
                }
            }
            while alive.iter().any(still) && Instant::now() < deadline {
                sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept && self.is_running() {
            let _ = self.end(Signal::SIGTERM);
        }
    }
}

fn pid(id: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(id)?))
}

/// When a process started, in clock ticks since boot; `None` when it has ended.
fn started(id: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Fields are counted behind the name, which may hold anything (proc(5): state is the third, start time the 22nd).
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    (*fields.first()? != "Z").then(|| fields.get(19).map(|&ticks| ticks.to_owned()))?
}
