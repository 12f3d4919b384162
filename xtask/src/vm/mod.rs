//! The tests on other kernels: each boots in a virtual machine and runs this machine's test binaries.
//!
//! Nothing but the kernel is the guest's own: an initramfs carries our binaries, the programs and libraries that they need
//! from here, and a plan for the first process (`tests/src/bin/mesh-vm`), which tells its verdict on the console.

mod contents;
mod guest;
mod initramfs;
mod kernel;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::shell::step;
use crate::test;
use contents::{Contents, PROGRAMS};
use guest::Verdict;
use kernel::{Kernel, Series, home};

/// Which kernels, and what to run there.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels by the beginning of their version, separated by commas; downloaded once and kept under `target/vm`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = kernel::ALL.map(|it| it.name))]
    kernels: Vec<String>,
    /// How long a kernel may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    deadline: u64,
    /// Files of `tests/tests` to run
    #[arg(default_values = TESTS)]
    tests: Vec<String>,
}

/// What is run unless told: the kernel programs packet by packet, pods of one node and of two, policy, a boot, kube-proxy's IPVS,
/// pins that are lost, a clock that is set.
const TESTS: [&str; 6] = ["packets", "same_node", "boot", "ipvs", "pins", "clock"];

/// Modules that a node has: for the plugin, the agent, and the tests. What a kernel has built in is no module.
const MODULES: [&str; 14] = [
    "veth",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_counter",
    "tcp_diag",
    "bridge",
    "dummy",
    "ip_vs",
    "ip_vs_rr",
];

/// Runs the tests on every kernel, one after another.
pub(crate) fn run(args: &Args) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the machines run this machine's binaries on kernels for x86-64, which it is not");
    }
    let chosen = args.kernels.iter().map(|name| series(name));
    let chosen = chosen.collect::<Result<Vec<_>>>()?;
    test::install_packages(&[
        (guest::QEMU, "qemu-system-x86"),
        ("ipvsadm", "ipvsadm"),
        ("strip", "binutils"),
        ("xz", "xz-utils"),
    ])?;
    fs::create_dir_all(home())?;
    let names: Vec<_> = args.tests.iter().map(String::as_str).collect();
    let contents = Contents::build(&names)?;
    let mut passed = 0;
    for series in &chosen {
        let began = Instant::now();
        let (told, is_passed) = match on(*series, &contents, args.deadline) {
            Ok((kernel, verdict)) => (format!("{kernel}: {verdict}"), verdict.is_passed()),
            Err(error) => (format!("{}: {error:#}", series.name), false),
        };
        let word = if is_passed { "passed" } else { "FAILED" };
        passed += usize::from(is_passed);
        println!("{word} {told}, {} s", began.elapsed().as_secs());
    }
    let failed = chosen.len() - passed;
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("what the machines said is in {}/*.log", home().display());
    }
    Ok(())
}

fn series(name: &str) -> Result<Series> {
    let found = kernel::ALL.into_iter().find(|it| it.name == name);
    found.with_context(|| {
        let known = kernel::ALL.map(|it| it.name).join(", ");
        format!("--kernels: there is no {name}, but {known}")
    })
}

/// Runs the tests on one kernel; tells its release.
fn on(series: Series, contents: &Contents, deadline: u64) -> Result<(String, Verdict)> {
    let kernel = Kernel::of(series)?;
    step(&format!("booting {}", kernel.release));
    let mut files = contents.files.clone();
    let mut modules = Vec::new();
    for (name, content) in kernel.modules(&MODULES)? {
        let path = format!("/modules/{name}");
        files.add(&path, content);
        modules.push(path);
    }
    let plan = json!({
        "modules": modules,
        "tests": contents.tests,
        "environment": {
            "PATH": PROGRAMS,
            "MESH_BIN_DIR": PROGRAMS,
            // Emulation is some ten times slower.
            "MESH_PATIENCE": "10",
            "RUST_TEST_THREADS": "1",
        },
        "seconds": deadline,
    });
    files.add("/plan.json", serde_json::to_vec(&plan)?);
    let archive = home().join("initramfs");
    fs::write(&archive, files.finish()?)
        .with_context(|| format!("cannot write {}", archive.display()))?;
    let log = home().join(format!("{}.log", series.name));
    let within = Duration::from_secs(deadline);
    let verdict = guest::run(&kernel.image, &archive, &log, within)?;
    Ok((kernel.release, verdict))
}
