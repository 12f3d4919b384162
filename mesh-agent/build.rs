//! Tells the agent where the kernel programs are, for `include_bytes!(env!("MESH_EBPF_OBJECT"))`.
//!
//! `cargo xtask build` makes the object. Without it the agent gets an empty file in its place, so that `cargo check` and the
//! unit tests need no BPF toolchain; such an agent says at its start how to build a real one.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let object = env::var_os("MESH_EBPF_OBJECT").map_or_else(built, PathBuf::from);
    // Watched also while it is missing: making it builds the agent again.
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = if object.is_file() { object } else { empty() };
    // A megabyte of relocations, all of it read at every start, becomes a hundredth of that; glibc has it since 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rustc-env=MESH_EBPF_OBJECT={}", embedded.display());
}

/// Where `cargo xtask build` puts the object.
fn built() -> PathBuf {
    Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../target/bpf/mesh.o")
}

fn empty() -> PathBuf {
    let file = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("mesh.o");
    fs::write(&file, []).expect("OUT_DIR can be written to");
    file
}
