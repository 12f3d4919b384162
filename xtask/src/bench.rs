//! The bench is a binary of `mesh-tests`, next to the harness it measures with; this builds everything and becomes it.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{cargo, command, require_root, run as run_command, step, target};
use crate::{build, test};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measure only rows whose key contains this, as `cross.bulk`, `cni` or `world`
    filter: Option<String>,
    /// Three short pairs a row in place of five
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Load the mesh for so long, in place of all rows, and tell how the agents' memory and descriptors went
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
}

/// The plugins that ours is measured beside, and the Debian package that has them.
const PEER: (&str, &str) = ("/usr/lib/cni/ptp", "containernetworking-plugins");

/// Builds with optimisation, then becomes the bench, so that signals and the exit code are its own.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("the bench")?;
    test::install_packages(&[PEER])?;
    let binaries = build::run(&build::Args::of(false))?;
    step("building the bench");
    let bench = [
        "build",
        "-p",
        "mesh-tests",
        "--bin",
        "mesh-bench",
        "--release",
        "--quiet",
    ];
    run_command(&mut cargo(&bench))?;
    let mut bench = command(target().join("release/mesh-bench"), &[]);
    bench.env("MESH_BIN_DIR", binaries).args(&args.filter);
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(minutes) = args.soak {
        bench.args(["--soak", &minutes.to_string()]);
    }
    if let Some(path) = &args.json {
        // The bench runs in the workspace, whoever started us elsewhere.
        bench.arg("--json").arg(std::path::absolute(path)?);
    }
    Err(bench.exec()).context("cannot start target/release/mesh-bench")
}
