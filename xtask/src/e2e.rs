//! The scenarios on a cluster are a binary of `mesh-tests`; this builds it and becomes it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::shell::{cargo, command, run as run_command, step, target};

/// What is handed on to the scenarios.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// As `cargo xtask e2e --help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds the scenarios, then becomes them, so that signals and the exit code are their own.
pub(crate) fn run(args: &Args) -> Result<()> {
    step("building the scenarios");
    let scenarios = ["build", "-p", "mesh-tests", "--bin", "mesh-e2e", "--quiet"];
    run_command(&mut cargo(&scenarios))?;
    let mut scenarios = command(target().join("debug/mesh-e2e"), &[]);
    // Files are named as they are seen from where this was called.
    scenarios.current_dir(std::env::current_dir()?);
    Err(scenarios.args(&args.arguments).exec()).context("cannot start target/debug/mesh-e2e")
}
