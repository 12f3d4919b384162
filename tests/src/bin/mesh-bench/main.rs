//! The bench: what the mesh costs beside the same cabling without it, in one run. README.md beside this file tells how to
//! read it and how to profile.

#![forbid(unsafe_code)]
#![expect(
    clippy::cast_precision_loss,
    reason = "figures are printed with three digits"
)]

mod bare;
mod cpu;
mod load;
mod machine;
mod memory;
mod plugin;
mod programs;
mod references;
mod report;
mod row;
mod soak;
mod stage;
mod statistics;
mod telemetry;
mod traffic;
mod world;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use mesh_tests::app::raise_descriptor_limit;
use mesh_tests::supervise::{begin, supervise};

use crate::machine::Machine;
use crate::report::Report;

/// Measures Mesh CNI beside pods that are not enrolled, on the same cabling and in the same run.
#[derive(Parser)]
#[command(name = "mesh-bench")]
struct Args {
    /// Measure only rows whose key contains this, as `cross.bulk`, `cni` or `world`
    filter: Option<String>,
    /// Three short pairs a row in place of five
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Load the mesh for so long, in place of all rows, and tell how the agents' memory and descriptors went
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..))]
    soak: Option<u64>,
    /// Measure, under the eyes of a parent
    #[arg(long, hide = true)]
    measure: bool,
}

/// What is measured, and how thoroughly.
struct Plan {
    filter: String,
    pairs: usize,
    /// How long one side of a pair is loaded.
    seconds: f64,
}

impl Plan {
    /// Whether a row is asked for, or a group that a row belongs to.
    fn wants(&self, key: &str) -> bool {
        key.contains(&self.filter) || self.filter.starts_with(&format!("{key}."))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.measure {
        run(&args).map(|()| ExitCode::SUCCESS)
    } else {
        supervised()
    };
    done.unwrap_or_else(|error| {
        eprintln!("bench: error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs this again in a child.
fn supervised() -> Result<ExitCode> {
    let mut work = Command::new(std::env::current_exe()?);
    work.args(std::env::args_os().skip(1)).arg("--measure");
    supervise(&mut work, &[stage::LAB, world::LAB], false)
}

fn run(args: &Args) -> Result<()> {
    begin()?;
    raise_descriptor_limit()?;
    if let Some(minutes) = args.soak {
        return stage::with(|stage| soak::run(stage, minutes));
    }
    let plan = Plan {
        filter: args.filter.clone().unwrap_or_default(),
        pairs: if args.quick { 3 } else { 5 },
        seconds: if args.quick { 1.0 } else { 2.0 },
    };
    let mut report = Report::new(Machine::look()?);
    measure(&plan, &mut report)?;
    ensure!(
        !report.is_empty(),
        "no row has {:?} in its key; the rows are cross.*, same.*, telemetry.*, bare.*, mem.*, cni.*, tc.* and world.*",
        plan.filter
    );
    report.print();
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", report.json()?))
            .with_context(|| format!("cannot write --json {}", path.display()))?;
    }
    Ok(())
}

fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    if stage::is_wanted(plan) {
        stage::with(|stage| {
            // Memory first: what load leaves behind is not idle.
            memory::measure(plan, stage, report)?;
            plugin::measure(plan, stage.lab, report)?;
            traffic::measure(plan, stage, report)?;
            telemetry::measure(plan, stage, report)?;
            bare::measure(plan, stage, report)
        })?;
    }
    if plan.wants(programs::KEY) {
        programs::measure(report)?;
    }
    if plan.wants(world::KEY) {
        world::measure(plan, report)?;
    }
    Ok(())
}
