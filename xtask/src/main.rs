//! `cargo xtask`: builds, demonstrates, tests, measures and checks Mesh CNI.
//!
//! Whatever a step needs and the machine lacks is prepared under `target/`, with one line of progress a step.

mod bench;
mod build;
mod chaos;
mod check;
mod demo;
mod dependencies;
mod e2e;
mod ebpf;
mod fuzz;
mod image;
mod prometheus;
mod shell;
mod test;
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, demonstrates, tests and checks Mesh CNI.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel programs, the agent and the CNI plugin into `target/`
    Build(build::Args),
    /// Show the mesh at work: two nodes as network namespaces, pods, encrypted and refused connections (needs root)
    Demo(demo::Args),
    /// Run the unit tests, the packet tests of the real object and the scenarios (the last two need root)
    Test(test::Args),
    /// Let a fuzzer choose the input of everything that reads what others wrote
    Fuzz(fuzz::Args),
    /// Run the packet tests and some scenarios on other kernels, in virtual machines
    VmTest(vm::Args),
    /// Do one random fault after another to a lab, and check after each what must hold (needs root)
    Chaos(chaos::Args),
    /// Run the scenarios on a cluster that has Mesh CNI installed
    E2e(e2e::Args),
    /// Measure what the mesh costs, beside the same pods without it (needs root)
    Bench(bench::Args),
    /// Make the container image as a tar file, without a container tool
    Image(image::Args),
    /// Check formatting, lints and the direction of dependencies
    Check,
    /// Check only the direction of dependencies
    Tidy,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Build(args) => build::run(&args).map(drop),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::VmTest(args) => vm::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Check => check::run(),
        Command::Tidy => tidy::run(),
    }
}
