//! One run of a virtual machine: QEMU with its console as our source.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What the guest's line with the verdict begins with.
const VERDICT: &str = "mesh-vm: verdict: ";

/// Boots a kernel and returns the verdict; what the console says goes to a log.
///
/// Emulated: on many machines `/dev/kvm` opens and guests hang. It proves verifier, attachment and packets, not speed.
pub(crate) fn run(image: &Path, initramfs: &Path, log: &Path, within: Duration) -> Result<Value> {
    let mut command = Command::new(QEMU);
    command
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "1536",
        ])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
        .args(["-nic", "none", "-no-reboot", "-kernel"])
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
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
    let began = Instant::now();
    // The sender goes when the console is closed.
    let json = verdict.recv_timeout(within);
    if json.is_err() || began.elapsed() > within {
        let _ = machine.kill();
    }
    machine.wait()?;
    match json {
        Ok(json) => serde_json::from_str(&json).with_context(|| format!("the verdict is {json}")),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("no verdict within {} s", within.as_secs()),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended without a verdict"),
    }
}

/// The program that runs virtual machines.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
