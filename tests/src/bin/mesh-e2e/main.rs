//! Proves on a cluster that the installed Mesh CNI does what it says, scenario by scenario.
//!
//! Everything is done by `kubectl`, as a user would. The scenarios run in a child process; this one waits for it and for
//! signals, and removes what they made whatever became of them. One run at a time on a cluster.

#![forbid(unsafe_code)]

mod calls;
mod cluster;
mod installed;
mod kubectl;
mod objects;
mod pods;
mod report;
mod scenarios;
mod stream;
mod wire;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

use cluster::Cluster;
use kubectl::Kubectl;
use report::Report;

/// Runs the cluster scenarios on a cluster that has Mesh CNI installed.
#[derive(Parser)]
#[command(name = "mesh-e2e", bin_name = "cargo xtask e2e")]
struct Args {
    /// The scenarios whose name has this in it [default: all]
    filter: Option<String>,
    /// The cluster [default: as kubectl finds it]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The client of the cluster
    #[arg(long, value_name = "PROGRAM", default_value = "kubectl")]
    kubectl: PathBuf,
    /// Image of the pods that the scenarios make: one with sh and busybox
    #[arg(long, value_name = "NAME", default_value = "busybox:1.36")]
    image: String,
    /// When nodes fetch that image: Always, `IfNotPresent` or Never
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent")]
    pull: String,
    /// The namespace that Mesh CNI is installed in
    #[arg(long, value_name = "NAME", default_value = "mesh-system")]
    system: String,
    /// Pods of scenario `churn`
    #[arg(long, value_name = "N", default_value_t = 100)]
    pods: usize,
    /// What ends agents in scenario `restart`, such as a script that kills one, in place of a rolling update
    #[arg(long, value_name = "PROGRAM")]
    restart_by: Option<PathBuf>,
    /// Where the traffic between the first two nodes passes on this machine, to look at it there (needs root)
    #[arg(long, value_name = "NETNS:DEVICE")]
    link: Option<String>,
    /// Only tell the scenarios
    #[arg(long)]
    list: bool,
    /// Only remove what a run that was killed has left
    #[arg(long, conflicts_with = "list")]
    clean: bool,
    /// Run the scenarios, under the eyes of a parent
    #[arg(long, hide = true)]
    child: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let kubectl = Kubectl::new(&args.kubectl, args.kubeconfig.as_deref());
    let result = if args.list {
        list();
        Ok(ExitCode::SUCCESS)
    } else if args.clean {
        cluster::clean(&kubectl, &args.system).map(|()| ExitCode::SUCCESS)
    } else if args.child {
        run(&args, kubectl)
    } else {
        supervise(&args, &kubectl)
    };
    result.unwrap_or_else(|error| {
        eprintln!("e2e: error: {error:#}");
        ExitCode::FAILURE
    })
}

fn list() {
    for scenario in scenarios::ALL {
        println!("{:<16} {}", scenario.name, scenario.about);
    }
}

/// Runs the scenarios in a child, and cleans up when it has ended or when we are told to stop.
fn supervise(args: &Args, kubectl: &Kubectl) -> Result<ExitCode> {
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let mut signals = SigSet::from_iter(ends);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    // In a group of its own: Ctrl-C is ours alone, and the `kubectl`s that the child has started end with it.
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--child")
        .process_group(0)
        .spawn()
        .context("cannot start the scenarios")?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let ended = loop {
        let signal = signals.wait()?;
        if ends.contains(&signal) {
            eprintln!("\ninterrupted");
            let _ = killpg(group, Signal::SIGKILL);
            child.wait()?;
            break ExitCode::from(130);
        }
        if let Some(status) = child.try_wait()? {
            let _ = killpg(group, Signal::SIGKILL);
            break if status.success() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
    };
    signals.thread_unblock()?;
    eprintln!("removing what the scenarios made ...");
    cluster::clean(kubectl, &args.system)?;
    Ok(ended)
}

fn run(args: &Args, kubectl: Kubectl) -> Result<ExitCode> {
    // The parent holds them back; what is started from here wants them.
    SigSet::all().thread_unblock()?;
    cluster::clean(&kubectl, &args.system).context("what an earlier run has left")?;
    let wanted = |name: &str| {
        args.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    };
    let scenarios: Vec<_> = scenarios::ALL.iter().filter(|it| wanted(it.name)).collect();
    anyhow::ensure!(
        !scenarios.is_empty(),
        "no scenario has {:?} in its name; --list tells them",
        args.filter.as_deref().unwrap_or_default()
    );
    let cluster = Cluster::find(kubectl, args)?;
    println!("{cluster}");
    let mut report = Report::default();
    for scenario in scenarios {
        let held = report.scenario(scenario.name, scenario.about, |report| {
            (scenario.run)(&cluster, report)
        });
        if !held {
            cluster.explain();
        }
        cluster.forget_namespaces()?;
    }
    Ok(if report.table() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
