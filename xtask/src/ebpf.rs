//! Builds the kernel programs into `target/bpf/mesh.o`, where the agent's build script finds them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{cargo, run, step, target};
use crate::toolchain::Rustc;

const TARGET: &str = "bpfel-unknown-none";

/// Where the object ends up.
pub(crate) fn object() -> PathBuf {
    target().join("bpf/mesh.o")
}

/// Builds the object; the file is written only when it changed, so that the agent is not built again for nothing.
pub(crate) fn build() -> Result<()> {
    cargo_bpf("building the kernel programs", "build", &[])?;
    let built = target().join(format!("bpf/{TARGET}/release/mesh-ebpf"));
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let object = object();
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    fs::write(&object, bytes).with_context(|| format!("cannot write {}", object.display()))
}

/// Runs a cargo command on `mesh-ebpf` for the BPF target, once what it needs is there.
pub(crate) fn cargo_bpf(what: &str, subcommand: &str, trailing: &[&str]) -> Result<()> {
    let rustc = Rustc::find()?;
    rustc.ensure_source()?;
    let linker = rustc.ensure_linker()?;
    step(what);
    let mut command = cargo(&[subcommand, "--package", "mesh-ebpf", "--release", "--quiet"]);
    command
        .args(["-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(target().join("bpf"))
        .args(trailing)
        // `build-std` is the one unstable option; the stable compiler takes it with this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
            "-Cdebuginfo=2 -Clink-arg=--btf",
        )
        // The caller's flags are meant for this machine, and would replace those above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("LD_LIBRARY_PATH", rustc.libraries());
    run(&mut command).with_context(|| format!("{what} failed"))
}
