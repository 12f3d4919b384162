//! Chaos is a binary of `mesh-tests`, next to the lab that it torments; this builds everything and becomes it.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::shell::{cargo, command, require_root, run as run_command, step, target};
use crate::{build, test};

/// What it is told; the binary says more with `--help`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the faults are drawn from; the same seed draws the same faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// More of its flags: `--from STEP`, `--only KIND,KIND`, `--lab NAME`, `--keep`, `--help`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Builds what it needs, then becomes it, so that signals and the exit code are its own.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("chaos")?;
    test::install_packages(&[("tc", "iproute2"), ("prlimit", "util-linux")])?;
    let binaries = build::run(&build::Args::DEBUG)?;
    step("building chaos");
    let chaos = [
        "build",
        "-p",
        "mesh-tests",
        "--bin",
        "mesh-chaos",
        "--quiet",
    ];
    run_command(&mut cargo(&chaos))?;
    let mut chaos = command(target().join("debug/mesh-chaos"), &[]);
    chaos.env("MESH_BIN_DIR", binaries).args(&args.more);
    chaos.args(["--seed", &args.seed.to_string()]);
    chaos.args(["--steps", &args.steps.to_string()]);
    Err(chaos.exec()).context("cannot start target/debug/mesh-chaos")
}
