//! Embeds the kernel programs that `cargo xtask build` made.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=MESH_EBPF_OBJECT");
    let built = env::var_os("MESH_EBPF_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh.o"),
        PathBuf::from,
    );
    println!("cargo:rerun-if-changed={}", built.display());
    let object = if built.exists() {
        built
    } else {
        // Checks and unit tests need no kernel programs; the agent says at its start what is missing.
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let empty = out.join("empty.o");
        fs::write(&empty, []).expect("OUT_DIR is writable");
        empty
    };
    println!("cargo:rustc-env=MESH_EBPF_OBJECT={}", object.display());
}
