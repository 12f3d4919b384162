//! The demo is a binary of `mesh-tests`, next to the harness it is told with; this builds everything and becomes it.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::shell::{cargo, command, require_root, run as run_command, step, target};
use crate::{build, test};

/// How to run the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the nodes and pods up at the end, and print how to use them
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove what `--keep`, or a run that was killed, left
    #[arg(long)]
    down: bool,
}

/// Builds what the demo needs, then becomes the demo, so that signals and the exit code are its own.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("the demo")?;
    let binaries = if args.down {
        target().join("debug")
    } else {
        test::install_packages(&[])?;
        build::run(&build::Args::DEBUG)?
    };
    step("building the demo");
    let demo = ["build", "-p", "mesh-tests", "--bin", "mesh-demo", "--quiet"];
    run_command(&mut cargo(&demo))?;
    let mut demo = command(target().join("debug/mesh-demo"), &[]);
    demo.env("MESH_BIN_DIR", binaries);
    if args.keep {
        demo.arg("--keep");
    }
    if args.down {
        demo.arg("--down");
    }
    Err(demo.exec()).context("cannot start target/debug/mesh-demo")
}
