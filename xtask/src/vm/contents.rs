//! What runs in the machines: this machine's own test binaries, and the programs that they need.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::initramfs::Initramfs;
use crate::shell::{cargo, output, root, step};
use crate::{build, ebpf};

/// The part of a machine's files that does not depend on its kernel.
pub(crate) struct Contents {
    pub(crate) files: Initramfs,
    /// The command lines of the tests.
    pub(crate) tests: Vec<[String; 2]>,
}

/// Where all programs are.
pub(crate) const PROGRAMS: &str = "/bin";

/// What the harness runs.
const NEEDED: [&str; 7] = ["ip", "tc", "nft", "ss", "sysctl", "ipvsadm", "curl"];

/// The first process.
const INIT: &str = "mesh-vm";

impl Contents {
    /// Builds everything, with these files of `tests/tests`.
    pub(crate) fn build(names: &[&str]) -> Result<Self> {
        let mut files = Initramfs::default();
        let binaries = build::run(&build::Args::DEBUG)?;
        for name in ["mesh-agent", "mesh-cni"] {
            files.add_program(&binaries.join(name), format!("{PROGRAMS}/{name}"))?;
        }
        for name in NEEDED {
            files.add_program(&installed(name)?, format!("{PROGRAMS}/{name}"))?;
        }
        // The tests find it beside their own source, whose directory must be there.
        let object = ebpf::object();
        files.add(&object, fs::read(&object)?);
        files.add(root().join("tests/here"), Vec::new());

        let built = build_tests(names)?;
        let path = |name: &str| {
            let path = built.get(name);
            path.with_context(|| format!("cargo tells no binary of {name}"))
        };
        files.add_program(path(INIT)?, "/init")?;
        let mut tests = Vec::new();
        for name in names {
            let inside = format!("/tests/{name}");
            files.add_program(path(name)?, &inside)?;
            tests.push([inside, "--include-ignored".to_owned()]);
        }
        Ok(Self { files, tests })
    }
}

/// Builds the first process and files of `tests/tests`; the path of each by its name.
fn build_tests(names: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    step("building the tests");
    let init = cargo(&["build", "-p", "mesh-tests", "--bin", INIT]);
    let mut tests = cargo(&["test", "--no-run", "-p", "mesh-tests"]);
    for name in names {
        tests.args(["--test", name]);
    }
    let mut built = BTreeMap::new();
    for mut command in [tests, init] {
        command.args(["--quiet", "--message-format=json-render-diagnostics"]);
        for line in output(&mut command)?.lines() {
            let message: Value = serde_json::from_str(line)?;
            let name = message["target"]["name"].as_str();
            if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
                built.insert(name.to_owned(), path.into());
            }
        }
    }
    Ok(built)
}

/// Where a program is on this machine.
fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's path may leave out where Debian has some of them.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|it| it.join(name)).find(|it| it.is_file());
    let found = found.with_context(|| format!("{name} is not installed"))?;
    ensure!(found.is_absolute(), "PATH has a relative directory");
    Ok(found)
}
