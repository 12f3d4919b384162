//! One run of a virtual machine: QEMU with its console as our source.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What the guest's line with the verdict begins with; a JSON object follows.
const VERDICT: &str = "mesh-vm: verdict: ";

/// Boots a kernel and returns the verdict; what the console says goes to a log.
///
/// Emulated: on many machines `/dev/kvm` opens and guests hang. It proves verifier, attachment and packets, not speed.
pub(crate) fn run(image: &Path, initramfs: &Path, log: &Path, within: Duration) -> Result<Verdict> {
    let mut command = Command::new(QEMU);
    command
        .args(MACHINE.split_whitespace())
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", BOOT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = command
        .spawn()
        .with_context(|| format!("cannot start {QEMU}"))?;
    let console = machine.stdout.take().context("a pipe")?;
    let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (told, verdict) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let _ = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
            let line = String::from_utf8_lossy(&line);
            if let Some((_, json)) = line.split_once(VERDICT) {
                let _ = told.send(json.trim().to_owned());
            }
        }
    });
    let json = verdict.recv_timeout(within);
    if json.is_ok() {
        // The console is closed when the machine is off.
        let _ = verdict.recv_timeout(POWER_OFF);
    }
    let _ = machine.kill();
    machine.wait()?;
    match json {
        Ok(json) => Verdict::parse(&json),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("no verdict within {} s", within.as_secs()),
        // The sender goes when the console is closed.
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended without a verdict"),
    }
}

/// What became of the tests.
pub(crate) struct Verdict {
    /// How programs are attached there: `tcx` or `clsact`.
    attach: String,
    passed: u64,
    /// Names of tests.
    failed: Vec<String>,
}

impl Verdict {
    /// Whether some tests ran, and all of them passed.
    pub(crate) fn is_passed(&self) -> bool {
        self.passed > 0 && self.failed.is_empty()
    }

    fn parse(json: &str) -> Result<Self> {
        let told: Value =
            serde_json::from_str(json).with_context(|| format!("the verdict is {json}"))?;
        if let Some(error) = told["error"].as_str() {
            bail!("{error}");
        }
        let failed = told["failed"].as_array().context("no list of failures")?;
        let failed = failed.iter().filter_map(Value::as_str);
        Ok(Self {
            attach: told["attach"].as_str().unwrap_or_default().to_owned(),
            passed: told["passed"].as_u64().context("no number of tests")?,
            failed: failed.map(str::to_owned).collect(),
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} tests passed", self.attach, self.passed)?;
        if !self.failed.is_empty() {
            write!(f, ", failed: {}", self.failed.join(" "))?;
        }
        Ok(())
    }
}

/// One processor, no devices but a serial console; a panic ends it. Without `cmpxchg16b`, from which QEMU 7.2 sometimes comes
/// back with broken flags (a double fault in the kernel's `kmalloc`).
const MACHINE: &str = "-accel tcg,thread=multi -cpu max,-cx16 -smp 1 -m 1536 -nic none -display none -monitor none \
                       -serial stdio -no-reboot";
const BOOT: &str = "console=ttyS0 quiet panic=-1 mitigations=off";

/// How long a machine may take from its verdict to its end.
const POWER_OFF: Duration = Duration::from_secs(10);

/// The program that runs virtual machines.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
