//! The first process of a virtual machine: prepares it as a node is, runs test binaries one after another, and ends it.
//!
//! `cargo xtask vm-test` puts it into an initramfs beside a plan, and reads the verdict from the console.

#![forbid(unsafe_code)]

mod binaries;
mod machine;

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::reboot::{RebootMode, reboot};
use serde_json::Value;

/// What to do, as JSON: `modules` to load in order, `tests` as command lines, `environment`, `seconds` until the end.
const PLAN: &str = "/plan.json";

/// What the line with the verdict begins with; a JSON object follows.
const VERDICT: &str = "mesh-vm: verdict: ";

fn main() {
    let verdict = match run() {
        Ok(verdict) => verdict,
        Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
    };
    println!("\n{VERDICT}{verdict}");
    power_off();
}

fn run() -> Result<Value> {
    machine::mount_all()?;
    let plan = fs::read(PLAN).with_context(|| format!("cannot read {PLAN}"))?;
    let plan: Value = serde_json::from_slice(&plan)?;
    let seconds = plan["seconds"].as_u64().context("a deadline")?;
    thread::spawn(move || {
        // Whoever started the machine may be gone.
        thread::sleep(Duration::from_secs(seconds));
        power_off();
    });
    machine::load_modules(&texts(&plan["modules"]))?;
    machine::set_up_network()?;
    // As the agent chooses, but by asking.
    let has_tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    let mut verdict = binaries::run(&plan)?;
    verdict["attach"] = if has_tcx { "tcx" } else { "clsact" }.into();
    Ok(verdict)
}

/// Ends the machine, whatever else runs.
fn power_off() -> ! {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    panic!("the first process may end its machine: {error}");
}

/// The texts of a JSON array.
fn texts(array: &Value) -> Vec<&str> {
    let array = array.as_array().into_iter().flatten();
    array.filter_map(Value::as_str).collect()
}
