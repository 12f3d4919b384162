//! Chaos: random faults in a lab of two nodes under light traffic, and after each of them everything that must hold.
//!
//! What is done is drawn from a seed and the step's number, so that a run can be had again. The run is in a child process;
//! this one waits for it and for signals, and removes the lab whatever became of it.

#![forbid(unsafe_code)]

mod draw;
mod faults;
mod invariants;
mod run;
mod stage;
mod tally;
mod traffic;

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Parser;
use mesh_tests::supervise;

use faults::Kind;

/// Random faults in a lab of two nodes; stops at the first that breaks what must hold.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-chaos")]
pub(crate) struct Args {
    /// What the faults are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// The first step, to have the end of an earlier run again
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only faults of these kinds
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// The lab's name
    #[arg(long, default_value = "chaos")]
    lab: String,
    /// Leave the lab up after a violation
    #[arg(long)]
    keep: bool,
    /// The run itself, under the eyes of a parent
    #[arg(long, hide = true)]
    child: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.child {
        supervise::begin().and_then(|()| run::run(&args))
    } else {
        supervised(&args)
    };
    result.unwrap_or_else(|error| {
        eprintln!("chaos: error: {error:#}");
        ExitCode::FAILURE
    })
}

fn supervised(args: &Args) -> Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--child");
    if std::env::var_os("RUST_LOG").is_none() {
        // Not a line for each connection.
        command.env("RUST_LOG", "info,access=off,refused=off");
    }
    supervise::supervise(&mut command, &[&args.lab], args.keep)
}
