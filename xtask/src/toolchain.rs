//! What the kernel programs need beyond the pinned toolchain, the source of `core` and a linker for BPF; and the fuzzer.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, command, is_installed, output, run, step, target};

const BPF_LINKER: &str = "0.13.0";
const CARGO_FUZZ: &str = "0.13.1";

/// Makes sure that there is cargo-fuzz, which knows how to instrument, and returns its path: our own, under `target/tools`.
pub(crate) fn ensure_cargo_fuzz() -> Result<PathBuf> {
    let home = target().join(format!("tools/cargo-fuzz-{CARGO_FUZZ}"));
    let binary = home.join("bin/cargo-fuzz");
    if !binary.is_file() {
        step(&format!(
            "building cargo-fuzz {CARGO_FUZZ} (once, a minute)"
        ));
        let mut install = cargo(&["install", "cargo-fuzz", "--quiet", "--version", CARGO_FUZZ]);
        install
            .args(["--locked", "--root"])
            .arg(&home)
            .env("CARGO_TARGET_DIR", home.join("build"));
        run(&mut install)?;
        fs::remove_dir_all(home.join("build"))?;
    }
    Ok(binary)
}

/// The compiler in use.
pub(crate) struct Rustc {
    /// Its directory tree.
    sysroot: PathBuf,
    /// Its version, such as `1.95.0`.
    release: String,
    /// The major version of its LLVM.
    llvm: String,
}

impl Rustc {
    /// Asks the compiler about itself.
    pub(crate) fn find() -> Result<Self> {
        let about = output(&mut command("rustc", &["-vV"]))?;
        let field = |name: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("`rustc -vV` tells no {name}"))
        };
        let llvm = field("LLVM version")?;
        Ok(Self {
            sysroot: output(&mut command("rustc", &["--print", "sysroot"]))?.into(),
            release: field("release")?.to_owned(),
            llvm: llvm.split('.').next().unwrap_or(llvm).to_owned(),
        })
    }

    /// The directory of the compiler's own libraries, LLVM among them.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.sysroot.join("lib")
    }

    /// Makes sure that the source of `core` is there: no `core` comes compiled for BPF.
    pub(crate) fn ensure_source(&self) -> Result<()> {
        let core = self
            .sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if core.is_file() {
            return Ok(());
        }
        step("adding the rust-src component to the toolchain");
        let added = run(&mut command("rustup", &["component", "add", "rust-src"]));
        if core.is_file() {
            return Ok(());
        }
        let remedy = format!(
            "the source of Rust's core library is missing ({} does not exist). Remedy: `rustup component add rust-src`, \
             or unpack your distribution's rust-src package of version {} to the same place",
            core.display(),
            self.release
        );
        match added {
            Ok(()) => bail!("{remedy}"),
            Err(error) => Err(error.context(remedy)),
        }
    }

    /// Makes sure that the standard library is there for a target.
    pub(crate) fn ensure_target(&self, triple: &str) -> Result<()> {
        let there = || {
            self.sysroot
                .join("lib/rustlib")
                .join(triple)
                .join("lib")
                .is_dir()
        };
        if there() {
            return Ok(());
        }
        step(&format!("adding the target {triple} to the toolchain"));
        let added = run(&mut command("rustup", &["target", "add", triple]));
        if there() {
            return Ok(());
        }
        let remedy = format!(
            "Rust's standard library for {triple} is missing. Remedy: `rustup target add {triple}`"
        );
        added.context(remedy.clone())?;
        bail!(remedy)
    }

    /// Makes sure that there is a linker for BPF, and returns its path: the one in `PATH`, otherwise our own, linked
    /// against the compiler's LLVM and kept under `target/tools`.
    pub(crate) fn ensure_linker(&self) -> Result<PathBuf> {
        if is_installed("bpf-linker") {
            return Ok("bpf-linker".into());
        }
        let home = target().join(format!(
            "tools/bpf-linker-{BPF_LINKER}-rust-{}",
            self.release
        ));
        let linker = home.join("bin/bpf-linker");
        if linker.is_file() {
            return Ok(linker);
        }
        step(&format!(
            "building bpf-linker {BPF_LINKER} against the toolchain's LLVM {} (once, a minute or two)",
            self.llvm
        ));
        let prefix = home.join("llvm");
        self.link_llvm(&prefix.join("lib"))?;
        let feature = format!("llvm-{}", self.llvm);
        let mut install = cargo(&["install", "bpf-linker", "--quiet", "--version", BPF_LINKER]);
        install
            .args(["--locked", "--no-default-features", "--features", &feature])
            .arg("--root")
            .arg(&home)
            .env("LLVM_PREFIX", &prefix)
            .env("CARGO_TARGET_DIR", home.join("build"));
        run(&mut install).with_context(|| {
            format!(
                "bpf-linker {BPF_LINKER} does not build here. Remedy: a bpf-linker in PATH that knows LLVM {} is used as it is",
                self.llvm
            )
        })?;
        fs::remove_dir_all(home.join("build"))?;
        Ok(linker)
    }

    /// Makes a library directory with the two names of LLVM that the linker's build looks for.
    fn link_llvm(&self, lib: &Path) -> Result<()> {
        let libraries = self.libraries();
        let shared = fs::read_dir(&libraries)
            .with_context(|| format!("cannot read {}", libraries.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("libLLVM.so.") && name.contains("-rust-"))
            .with_context(|| {
                format!(
                    "the toolchain brings no shared LLVM (no libLLVM.so.*-rust-* in {}). Remedy: use a rustup toolchain, or put \
                     a bpf-linker into PATH",
                    libraries.display()
                )
            })?;
        fs::create_dir_all(lib)?;
        for name in ["libLLVM.so", &shared] {
            let link = lib.join(name);
            // What an interrupted run left is made anew.
            let _ = fs::remove_file(&link);
            symlink(libraries.join(&shared), &link)
                .with_context(|| format!("cannot make the symlink {}", link.display()))?;
        }
        Ok(())
    }
}
