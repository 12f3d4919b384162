//! The tests: of the parts, of the real kernel programs packet by packet, and of the whole in network namespaces.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{self, cargo, command, is_installed, require_root, root, step};
use crate::{build, ebpf, prometheus};

/// Which tests to run; without one of the three flags, all.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Run the unit tests
    #[arg(long)]
    unit: bool,
    /// Run the packet tests: the real object, run by the kernel on made-up packets
    #[arg(long)]
    packet: bool,
    /// Run the scenarios: nodes and pods as network namespaces
    #[arg(long)]
    netns: bool,
    /// MTU of the scenarios' links between nodes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Turn segmentation and checksum offloads of the scenarios' links off
    #[arg(long)]
    no_offloads: bool,
}

/// The file in `tests/tests` that needs the object but no agent.
const PACKETS: &str = "packets";
/// The one that needs a kernel with IPVS, which not every machine has: `vm-test` runs it.
const IPVS: &str = "ipvs";

/// Runs the tests; the first group that fails ends it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = !(args.unit || args.packet || args.netns);
    if all || args.packet || args.netns {
        require_root("running the packet tests and scenarios")?;
        let ethtool = args.no_offloads.then_some(("ethtool", "ethtool"));
        let browser = (all || args.netns).then_some(BROWSER);
        let more: Vec<_> = ethtool.into_iter().chain(browser).collect();
        install_packages(&more)?;
    }
    let filter = args.filter.as_deref();
    if all || args.unit {
        step("unit tests");
        let parts = ["test", "--workspace", "--exclude", "mesh-ebpf"];
        finish(
            cargo(&parts).args(["--exclude", "mesh-tests", "--quiet"]),
            filter,
        )?;
        finish(
            &mut cargo(&["test", "-p", "mesh-tests", "--lib", "--quiet"]),
            filter,
        )?;
    }
    if all || args.packet {
        ebpf::build()?;
        step("packet tests");
        finish(&mut scenarios(&[PACKETS.to_owned()]), filter)?;
    }
    if all || args.netns {
        let path = prometheus::path()?;
        let binaries = build::run(&build::Args::DEBUG)?;
        step("scenarios");
        let mut names = scenario_files()?;
        names.retain(|name| ![PACKETS, IPVS].contains(&name.as_str()));
        let mut command = scenarios(&names);
        command.env("MESH_BIN_DIR", binaries).env("PATH", path);
        command.env("MESH_LAB_MTU", args.mtu.to_string());
        if args.no_offloads {
            command.env("MESH_LAB_OFFLOADS", "off");
        }
        finish(&mut command, filter)?;
    }
    Ok(())
}

/// One at a time: a scenario asserts exact counters and deadlines, and deserves the machine.
fn scenarios(names: &[String]) -> Command {
    let mut command = cargo(&["test", "-p", "mesh-tests"]);
    for name in names {
        command.args(["--test", name]);
    }
    command.env("RUST_TEST_THREADS", "1");
    command
}

fn finish(command: &mut Command, filter: Option<&str>) -> Result<()> {
    shell::run(command.args(filter))
}

fn scenario_files() -> Result<Vec<String>> {
    let directory = root().join("tests/tests");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix(".rs")?.to_owned())
        })
        .collect();
    names.sort();
    Ok(names)
}

/// What draws the live map for its scenario.
const BROWSER: (&str, &str) = ("chromium", "chromium");

/// What the harness, the demo and the independent HBONE peer of the tests run, and the Debian packages that have it.
const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("/usr/bin/python3", "python3"),
];

/// Installs the Debian packages that are missing, among them those of `more` programs.
pub(crate) fn install_packages(more: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .chain(more)
        .filter_map(|&(program, package)| (!is_installed(program)).then_some(package))
        .collect();
    if !has_python_h2() {
        missing.push("python3-h2");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_installed("apt-get") {
        bail!(
            "these packages are missing: {names}. Remedy: install them with your distribution's package manager"
        );
    }
    step(&format!("installing Debian packages: {names}"));
    shell::run(&mut command("apt-get", &["update", "-qq"]))?;
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    let mut install = command("apt-get", &options);
    shell::run(
        install
            .args(missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Whether the distribution's Python has the HTTP/2 library.
fn has_python_h2() -> bool {
    let mut check = command("/usr/bin/python3", &["-c", "import h2.connection"]);
    let quiet = check.stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
