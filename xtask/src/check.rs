//! Formatting, lints and the direction of dependencies: what a change must pass before its tests are worth running.

use anyhow::Result;

use crate::shell::{self, cargo, step};
use crate::{dependencies, ebpf, tidy};

/// Checks everything; the first failure ends it.
pub(crate) fn run() -> Result<()> {
    step("checking formatting");
    shell::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("checking lints");
    let clippy = ["clippy", "--workspace", "--exclude", "mesh-ebpf"];
    shell::run(cargo(&clippy).args(["--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    ebpf::cargo_bpf(
        "checking lints of the kernel programs",
        "clippy",
        &["--", "-D", "warnings"],
    )?;
    tidy::run()?;
    dependencies::check()
}
