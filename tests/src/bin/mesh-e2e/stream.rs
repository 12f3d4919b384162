//! A connection that stays open: numbered lines to an echo and back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::calls::Script;
use crate::cluster::Cluster;
use crate::pods::Pod;

/// How long no line may come before a connection counts as stuck.
const STUCK: Duration = Duration::from_secs(3);

/// An open connection of a pod to another's echo. It ends when the value is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    script: Script,
    what: String,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Lines come back.
    Open,
    /// It has an end, which both sides know of.
    Ended,
    /// No line comes back, and no end.
    Stuck,
}

impl Stream {
    /// Opens a connection to one of the echoes of a pod (7001 to 7004, each for one connection), and waits for its first lines.
    pub(crate) fn open(cluster: &Cluster, from: &Pod, to: &Pod, port: u16) -> Result<Self> {
        let script = format!(
            "n=0; while kill -0 $$ 2>/dev/null; do echo $n; n=$((n+1)); sleep 0.1; done | nc {} {port}; echo end",
            to.ip
        );
        let stream = Self {
            script: Script::start(cluster, from, &script)?,
            what: format!("{} to {} port {port}", from.full_name(), to.full_name()),
        };
        stream.advances()?;
        Ok(stream)
    }

    /// The connection is as it was: no line is missing or twice, and more come.
    pub(crate) fn advances(&self) -> Result<usize> {
        let before = self.received()?;
        let deadline = Instant::now() + 2 * STUCK;
        while self.received()? < before + 5 {
            ensure!(
                self.state() != State::Ended,
                "the connection of {} ended after {before} lines",
                self.what
            );
            ensure!(
                Instant::now() < deadline,
                "the connection of {} is stuck after {before} lines",
                self.what
            );
            sleep(Duration::from_millis(20));
        }
        self.received()
    }

    /// How it is.
    pub(crate) fn state(&self) -> State {
        match self.script.lines().last() {
            Some((_, line)) if line == "end" => State::Ended,
            Some((at, _)) if at.elapsed() < STUCK => State::Open,
            _ => State::Stuck,
        }
    }

    /// Number of lines that came back, every one in its place.
    fn received(&self) -> Result<usize> {
        let lines = self.script.lines();
        let numbers: Vec<_> = lines.iter().filter(|(_, line)| line != "end").collect();
        for (expected, (_, line)) in numbers.iter().enumerate() {
            if *line != expected.to_string() {
                bail!(
                    "the connection of {} lost line {expected}: {line}",
                    self.what
                );
            }
        }
        Ok(numbers.len())
    }
}
