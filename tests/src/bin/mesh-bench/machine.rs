//! Where it was measured, and whether that was a quiet place.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What is told of the machine.
#[derive(Debug)]
pub(crate) struct Machine {
    cpus: usize,
    model: String,
    kernel: String,
    memory_gb: f64,
    commit: String,
    load_before: f64,
}

impl Machine {
    /// Looks, and warns when others are at work.
    pub(crate) fn look() -> Result<Self> {
        let cpus = available_parallelism()?.get();
        let load_before = load()?;
        if load_before > cpus as f64 * 0.3 {
            eprintln!(
                "bench: warning: the load is {load_before:.1} on {cpus} cores before we begin: trust ratios and CPU for a \
                 unit of work, not rates"
            );
        }
        Ok(Self {
            cpus,
            model: field("/proc/cpuinfo", "model name")?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            memory_gb: kilobytes("/proc/meminfo", "MemTotal")? / f64::from(1 << 20),
            commit: commit().unwrap_or_default(),
            load_before,
        })
    }

    /// One line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} x {}, {:.0} GB, Linux {}, commit {}, load {:.1} before",
            self.cpus, self.model, self.memory_gb, self.kernel, self.commit, self.load_before
        )
    }

    pub(crate) fn json(&self) -> Result<Value> {
        Ok(json!({
            "cpus": self.cpus, "model": self.model, "kernel": self.kernel, "memory_gb": self.memory_gb,
            "commit": self.commit, "load_before": self.load_before, "load_after": load()?,
        }))
    }
}

/// The load of the last minute.
pub(crate) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let first = text.split_whitespace().next();
    Ok(first.context("/proc/loadavg is empty")?.parse()?)
}

/// A field of a file of `name: value` lines.
fn field(path: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let found = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    found.with_context(|| format!("{path} has no {name}"))
}

/// A field that is a number of kilobytes.
pub(crate) fn kilobytes(path: &str, name: &str) -> Result<f64> {
    let value = field(path, name)?;
    let number = value.split_whitespace().next();
    Ok(number
        .with_context(|| format!("{path}: {name} is empty"))?
        .parse()?)
}

fn commit() -> Option<String> {
    let mut git = Command::new("git");
    let git = git.args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always"]);
    let output = git.arg("--dirty").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
