//! A pod that calls an address again and again, and when it got which answer.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::pods::{Answer, Pod, get};

/// A script in a pod whose lines are kept with the time they came. It ends when the value is dropped.
#[derive(Debug)]
pub(crate) struct Script {
    child: Child,
    /// The script ends with it.
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
    reader: Option<JoinHandle<()>>,
}

impl Script {
    /// Starts a script in a pod.
    pub(crate) fn start(cluster: &Cluster, pod: &Pod, script: &str) -> Result<Self> {
        // A background job has no standard input of its own, so that is handed to it as 3.
        let script = format!("exec 3<&0; (cat <&3 >/dev/null; kill $$) & {script}");
        let mut child = cluster.kubectl.start(pod, &script)?;
        let stdout = child.stdout.take().context("a pipe")?;
        let lines = Arc::<Mutex<Vec<_>>>::default();
        let written = lines.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut lines = written.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push((Instant::now(), line));
            }
        });
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            lines,
            reader: Some(reader),
        })
    }

    /// Its lines so far.
    pub(crate) fn lines(&self) -> Vec<(Instant, String)> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Calls without end.
#[derive(Debug)]
pub(crate) struct Calls {
    script: Script,
    what: String,
}

/// What came of calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) answered: usize,
    /// The longest time between two answers.
    pub(crate) longest: Duration,
}

impl Calls {
    /// Starts calling an address from a pod, each call for at most so many seconds, and waits for the first answer.
    pub(crate) fn start(cluster: &Cluster, from: &Pod, to: &str, patience: u32) -> Result<Self> {
        let script = format!(
            "while :; do if page=$({}) 2>/dev/null; then echo \"0 $page\"; else echo \"$?\"; fi; sleep 0.03; done",
            get(to, patience)
        );
        let calls = Self {
            script: Script::start(cluster, from, &script)?,
            what: format!("{} calls {to}", from.full_name()),
        };
        let began = Instant::now();
        calls.wait_for(began, Duration::from_secs(15), |_| true)?;
        Ok(calls)
    }

    /// How long after a moment the first answer of a kind came.
    pub(crate) fn wait_for(
        &self,
        since: Instant,
        within: Duration,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Result<Duration> {
        loop {
            let answers = self.answers();
            let mut later = answers.iter().filter(|(at, _)| *at >= since);
            if let Some((at, _)) = later.clone().find(|(_, answer)| wanted(answer)) {
                return Ok(*at - since);
            }
            if since.elapsed() > within {
                bail!(
                    "{}: not within {within:?}; last {:?}",
                    self.what,
                    later.next_back()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Checks that every answer since a moment is of a kind, and that there are some.
    pub(crate) fn all(&self, since: Instant, wanted: impl Fn(&Answer) -> bool) -> Result<usize> {
        let answers = self.answers();
        let later: Vec<_> = answers.iter().filter(|(at, _)| *at >= since).collect();
        if let Some((at, answer)) = later.iter().find(|(_, answer)| !wanted(answer)) {
            bail!("{}: {answer:?} after {:?}", self.what, *at - since);
        }
        anyhow::ensure!(!later.is_empty(), "{}: no answers at all", self.what);
        Ok(later.len())
    }

    /// What came of the calls since a moment.
    pub(crate) fn count(&self, since: Instant) -> Count {
        let mut count = Count::default();
        let mut last = since;
        for (at, answer) in self.answers().iter().filter(|(at, _)| *at >= since) {
            count.answered += usize::from(matches!(answer, Answer::Page(_)));
            count.longest = count.longest.max(*at - last);
            last = *at;
        }
        count
    }

    /// The calls that failed since a moment: how long each took at most, and the client's code.
    pub(crate) fn failures(&self, since: Instant) -> Vec<(Duration, i32)> {
        let answers = self.answers();
        let took = answers.windows(2).filter(|pair| pair[1].0 >= since);
        took.filter_map(|pair| match pair[1].1 {
            Answer::Failed(code) => Some((pair[1].0 - pair[0].0, code)),
            Answer::Page(_) => None,
        })
        .collect()
    }

    fn answers(&self) -> Vec<(Instant, Answer)> {
        let answer = |line: &str| match line.split_once(' ') {
            Some(("0", page)) => Answer::Page(page.to_owned()),
            _ => Answer::Failed(line.trim().parse().unwrap_or(-1)),
        };
        let lines = self.script.lines();
        lines.iter().map(|(at, line)| (*at, answer(line))).collect()
    }
}
