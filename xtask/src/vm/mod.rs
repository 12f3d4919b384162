//! The tests on other kernels: each boots in a virtual machine and runs the test binaries of this machine.

mod guest;
mod initramfs;
mod kernel;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::shell::{cargo, output, root, step};
use crate::{build, test};
use initramfs::Initramfs;
use kernel::{Kernel, Series, home};

/// Which kernels, and what to run there.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels by the beginning of their version, separated by commas; downloaded once and kept under `target/vm`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = kernel::ALL.map(|it| it.name))]
    kernels: Vec<String>,
    /// Run these files of `tests/tests` instead of those that tell most in little time
    tests: Vec<String>,
    /// How long a kernel may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    deadline: u64,
}

/// What is run unless told: the kernel programs packet by packet, both paths between pods, refusals, and kube-proxy's IPVS.
const TESTS: [&str; 3] = ["packets", "same_node", "ipvs"];

/// Modules that a node has, by need of the agent, the plugin or the tests.
const MODULES: [&str; 14] = [
    "veth",
    "bridge",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_counter",
    "tcp_diag",
    "ip_vs",
    "ip_vs_rr",
];

/// What the harness runs.
const PROGRAMS: [&str; 7] = ["ip", "tc", "nft", "ss", "sysctl", "ipvsadm", "curl"];

/// Runs the tests on every kernel, one after another.
pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen = args
        .kernels
        .iter()
        .map(|name| series(name))
        .collect::<Result<Vec<_>>>()?;
    test::install_packages(&[(guest::QEMU, "qemu-system-x86"), ("ipvsadm", "ipvsadm")])?;
    let mut files = Initramfs::default();
    let tests = add_tests(&mut files, args)?;
    let mut failed = 0;
    for series in &chosen {
        let began = Instant::now();
        let line = match on(*series, &files, &tests, args.deadline) {
            Ok((kernel, verdict)) => {
                let list = verdict["failed"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                failed += usize::from(!list.is_empty());
                let word = if list.is_empty() { "passed" } else { "FAILED" };
                format!("{word} {kernel}: {}", told(&verdict, list))
            }
            Err(error) => {
                failed += 1;
                format!("FAILED {}: {error:#}", series.name)
            }
        };
        println!("{line}, {} s", began.elapsed().as_secs());
    }
    println!("{} passed, {failed} failed", chosen.len() - failed);
    if failed > 0 {
        bail!("the consoles' logs are under {}", home().display());
    }
    Ok(())
}

fn told(verdict: &Value, failed: &[Value]) -> String {
    let names: Vec<_> = failed.iter().filter_map(Value::as_str).collect();
    let failed = match &*names {
        [] => String::new(),
        names => format!(", failed: {}", names.join(" ")),
    };
    format!(
        "{}, {} tests passed{failed}",
        verdict["attach"].as_str().unwrap_or_default(),
        verdict["passed"]
    )
}

fn series(name: &str) -> Result<Series> {
    let found = kernel::ALL.into_iter().find(|it| it.name == name);
    found.with_context(|| {
        let known = kernel::ALL.map(|it| it.name).join(", ");
        format!("--kernels: there is no {name}, but {known}")
    })
}

/// Runs the tests on one kernel.
fn on(series: Series, files: &Initramfs, tests: &Value, deadline: u64) -> Result<(String, Value)> {
    let kernel = Kernel::of(series)?;
    step(&format!("booting {}", kernel.release));
    let mut files = files.clone();
    let mut modules = Vec::new();
    for (name, content) in kernel.modules(&MODULES)? {
        let path = format!("/modules/{name}");
        files.add(&path, content);
        modules.push(path);
    }
    let plan = json!({
        "modules": modules,
        "tests": tests,
        "environment": { "PATH": PATH, "MESH_BIN_DIR": BINARIES, "MESH_PATIENCE": "10", "RUST_TEST_THREADS": "1", "RUST_BACKTRACE": "0" },
        "seconds": deadline,
    });
    files.add("/plan.json", serde_json::to_vec(&plan)?);
    let archive = home().join("initramfs");
    fs::write(&archive, files.finish()?)?;
    let log = home().join(format!("{}.log", series.name));
    let verdict = guest::run(&kernel.image, &archive, &log, Duration::from_secs(deadline))?;
    if let Some(error) = verdict["error"].as_str() {
        bail!("{error}");
    }
    Ok((kernel.release, verdict))
}

/// Where programs are in the guest.
const BINARIES: &str = "/bin";
const PATH: &str = "/bin";

/// Builds the tests and all that they need, puts it into the guest, and returns the command lines of the tests.
fn add_tests(files: &mut Initramfs, args: &Args) -> Result<Value> {
    let binaries = build::run(&build::Args::DEBUG)?;
    for name in ["mesh-agent", "mesh-cni"] {
        files.add_program(&binaries.join(name), format!("{BINARIES}/{name}"))?;
    }
    // The tests find it beside their own source, whose directory must be there.
    let object = crate::ebpf::object();
    files.add(&object, fs::read(&object)?);
    files.add(root().join("tests/here"), Vec::new());
    for name in PROGRAMS {
        files.add_program(&program(name)?, format!("{PATH}/{name}"))?;
    }
    let names: Vec<&str> = match &*args.tests {
        [] => TESTS.into(),
        chosen => chosen.iter().map(String::as_str).collect(),
    };
    let mut lines = Vec::new();
    for (name, path) in test_binaries(&names)? {
        if name == INIT {
            files.add_program(&path, "/init")?;
            continue;
        }
        let inside = format!("/tests/{name}");
        files.add_program(&path, &inside)?;
        lines.push(json!([inside, "--include-ignored"]));
    }
    Ok(lines.into())
}

/// The guest's first process.
const INIT: &str = "mesh-vm";

/// Builds the guest's first process and files of `tests/tests`; name and path of each.
fn test_binaries(names: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    step("building the tests");
    let mut built = Vec::new();
    let mut add = |mut command: std::process::Command| -> Result<()> {
        for line in output(command.arg("--message-format=json-render-diagnostics"))?.lines() {
            let message: Value = serde_json::from_str(line)?;
            let name = message["target"]["name"].as_str();
            if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
                built.push((name.to_owned(), path.into()));
            }
        }
        Ok(())
    };
    add(cargo(&[
        "build",
        "--quiet",
        "-p",
        "mesh-tests",
        "--bin",
        INIT,
    ]))?;
    let mut tests = cargo(&["test", "--quiet", "--no-run", "-p", "mesh-tests"]);
    for name in names {
        tests.args(["--test", name]);
    }
    add(tests)?;
    built.retain(|(name, _)| name == INIT || names.contains(&&**name));
    Ok(built)
}

/// Where a program is on this machine.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|it| it.is_file());
    found.with_context(|| format!("{name} is not in PATH"))
}
