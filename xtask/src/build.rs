//! Builds everything that runs on a node.

use std::path::PathBuf;

use anyhow::Result;

use crate::ebpf;
use crate::shell::{cargo, step, target};

/// What to build.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the agent and the CNI plugin without optimisation
    #[arg(long)]
    debug: bool,
}

impl Args {
    /// For the demo and the tests: shares what the unit tests have built.
    pub(crate) const DEBUG: Self = Self { debug: true };

    /// With or without optimisation.
    pub(crate) fn of(debug: bool) -> Self {
        Self { debug }
    }
}

/// Builds the kernel programs, the agent and the CNI plugin, and returns the directory of the two binaries.
pub(crate) fn run(args: &Args) -> Result<PathBuf> {
    ebpf::build()?;
    let (profile, flag) = if args.debug {
        ("debug", "--profile=dev")
    } else {
        ("release", "--profile=release")
    };
    step(&format!("building mesh-agent and mesh-cni ({profile})"));
    run_cargo(flag)?;
    let directory = target().join(profile);
    step(&format!(
        "built {0}/mesh-agent and {0}/mesh-cni",
        directory.display()
    ));
    Ok(directory)
}

fn run_cargo(flag: &str) -> Result<()> {
    crate::shell::run(&mut cargo(&[
        "build",
        "-p",
        "mesh-agent",
        "-p",
        "mesh-cni",
        "--bins",
        flag,
    ]))
}
