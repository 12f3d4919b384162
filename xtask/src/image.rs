//! The container image, made without a container tool: a tar file that `docker load`, `ctr images import` and
//! `kind load image-archive` take. The same inputs give the same bytes.
//!
//! `mesh-cni` is static, because it runs on the host, whatever C library that has. `mesh-agent` runs in the image and keeps
//! glibc, whose allocator does not make its threads wait for each other; the loader and the libraries it names are those of
//! the machine that builds, with their licences.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::shell::{cargo, command, output, root, run as run_command, step, target};
use crate::toolchain::Rustc;
use crate::{build, shell};

/// What to make.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file to write [default: target/mesh-cni-image.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name and tag of the image
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("mesh-cni:", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Take the agent without optimisation, which is quicker to build
    #[arg(long)]
    debug: bool,
}

/// Builds agent and plugin, and writes the image.
pub(crate) fn run(args: &Args) -> Result<()> {
    let plugin = build_plugin()?;
    let agent = build::run(&build::Args::of(args.debug))?.join("mesh-agent");
    let file = args
        .output
        .clone()
        .unwrap_or_else(|| target().join("mesh-cni-image.tar"));
    step(&format!(
        "writing the image {} to {}",
        args.tag,
        file.display()
    ));
    let layer = layer(&agent, &plugin)?;
    let archive = archive(&layer, &args.tag)?;
    fs::write(&file, &archive).with_context(|| format!("cannot write {}", file.display()))?;
    step(&format!(
        "wrote {} KiB; take it with `docker load -i`, `ctr -n k8s.io images import` or `kind load image-archive`",
        archive.len() / 1024
    ));
    Ok(())
}

/// Builds the plugin as a static program.
fn build_plugin() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    Rustc::find()?.ensure_target(&triple)?;
    step("building mesh-cni as a static program");
    run_command(&mut cargo(&[
        "build",
        "-p",
        "mesh-cni",
        "--bins",
        "--release",
        "--target",
        &triple,
    ]))?;
    Ok(target().join(triple).join("release/mesh-cni"))
}

/// The image's file system, as a tar file.
fn layer(agent: &Path, plugin: &Path) -> Result<Vec<u8>> {
    let mut files = vec![
        File::read("mesh-agent", 0o755, &stripped(agent)?)?,
        File::read("mesh-cni", 0o755, &stripped(plugin)?)?,
        File::read(
            "usr/share/doc/mesh-cni/LICENSE",
            0o644,
            &root().join("LICENSE"),
        )?,
        File {
            path: "etc/passwd".into(),
            mode: 0o644,
            content: b"root:x:0:0:root:/:/sbin/nologin\n".to_vec(),
        },
        File {
            path: "etc/group".into(),
            mode: 0o644,
            content: b"root:x:0:\n".to_vec(),
        },
    ];
    for library in libraries(agent)? {
        let inside = library.strip_prefix("/").unwrap_or(&library).to_owned();
        // What the loader opens by this name may be a symlink here.
        files.push(File::read(inside, 0o755, &library)?);
    }
    for package in ["libc6", "libgcc-s1"] {
        let licence = PathBuf::from(format!("/usr/share/doc/{package}/copyright"));
        if licence.is_file() {
            files.push(File::read(
                format!("usr/share/doc/{package}/copyright"),
                0o644,
                &licence,
            )?);
        }
    }
    tar(files)
}

/// A copy of a program without debug information; symbols stay for backtraces.
fn stripped(program: &Path) -> Result<PathBuf> {
    let directory = target().join("image");
    fs::create_dir_all(&directory)?;
    let copy = directory.join(program.file_name().context("a program has a name")?);
    let mut strip = command("strip", &["--strip-debug", "-o"]);
    shell::run(strip.arg(&copy).arg(program))
        .context("stripping needs `strip` (Debian package binutils)")?;
    Ok(copy)
}

/// The libraries that a program loads, and its loader, by the names that it asks for.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = output(command("ldd", &[]).arg(program))?;
    let found = listed.lines().filter_map(|line| {
        let path = line.split("=>").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    let found: BTreeSet<_> = found.collect();
    if listed.contains("not found") || found.is_empty() {
        bail!(
            "cannot tell the libraries of {}:\n{listed}",
            program.display()
        );
    }
    Ok(found)
}

/// The image as `docker save` writes it: a manifest that names a configuration and one layer.
fn archive(layer: &[u8], tag: &str) -> Result<Vec<u8>> {
    let digest = digest(layer);
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "created": EPOCH,
        "config": { "Entrypoint": ["/mesh-agent"], "Env": ["PATH=/"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created": EPOCH, "created_by": "cargo xtask image" }],
    }))?;
    let (config_name, layer_name) = (
        format!("{}.json", self::digest(&config)),
        format!("{digest}/layer.tar"),
    );
    let manifest = json!([{ "Config": config_name, "RepoTags": [tag], "Layers": [layer_name] }]);
    tar(vec![
        File {
            path: config_name.into(),
            mode: 0o644,
            content: config,
        },
        File {
            path: layer_name.into(),
            mode: 0o644,
            content: layer.to_vec(),
        },
        File {
            path: "manifest.json".into(),
            mode: 0o644,
            content: serde_json::to_vec(&manifest)?,
        },
    ])
}

const EPOCH: &str = "1970-01-01T00:00:00Z";

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .concat()
}

/// A file of a tar file.
struct File {
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

impl File {
    fn read(path: impl Into<PathBuf>, mode: u32, from: &Path) -> Result<Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(Self {
            path: path.into(),
            mode,
            content,
        })
    }
}

/// A tar file of these files and their directories, sorted, without owners and times.
fn tar(mut files: Vec<File>) -> Result<Vec<u8>> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let above = |file: &File| {
        file.path
            .ancestors()
            .skip(1)
            .map(Path::to_owned)
            .collect::<Vec<_>>()
    };
    let directories: BTreeSet<_> = files
        .iter()
        .flat_map(above)
        .filter(|path| path != Path::new(""))
        .collect();
    let mut tar = Builder::new(Vec::new());
    for directory in directories {
        append(&mut tar, EntryType::Directory, &directory, 0o755, &[])?;
    }
    for file in files {
        append(
            &mut tar,
            EntryType::Regular,
            &file.path,
            file.mode,
            &file.content,
        )?;
    }
    let mut bytes = tar.into_inner()?;
    bytes.flush()?;
    Ok(bytes)
}

fn append(
    tar: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &Path,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    Ok(tar.append_data(&mut header, path, content)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use serde_json::Value;

    use super::*;

    fn files(tar: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap();
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            assert_eq!(
                (
                    entry.header().mtime().unwrap(),
                    entry.header().uid().unwrap()
                ),
                (0, 0)
            );
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, (entry.header().mode().unwrap(), content))
        };
        entries.map(read).collect()
    }

    #[test]
    fn the_manifest_leads_to_the_files() {
        let program = || {
            vec![File {
                path: "a/b/program".into(),
                mode: 0o755,
                content: b"ELF".to_vec(),
            }]
        };
        let layer = tar(program()).unwrap();
        let image = archive(&layer, "mesh-cni:1").unwrap();
        assert_eq!(
            image,
            archive(&tar(program()).unwrap(), "mesh-cni:1").unwrap(),
            "made again, the same"
        );
        let image = files(&image);
        let json = |name: &str| serde_json::from_slice::<Value>(&image[name].1).unwrap();
        let manifest = &json("manifest.json")[0];
        assert_eq!(manifest["RepoTags"][0], "mesh-cni:1");
        let config = json(manifest["Config"].as_str().unwrap());
        assert_eq!(config["config"]["Entrypoint"], json!(["/mesh-agent"]));
        let stored = &image[manifest["Layers"][0].as_str().unwrap()].1;
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(stored))
        );
        let inside = files(stored);
        assert_eq!(
            inside.keys().collect::<Vec<_>>(),
            ["a", "a/b", "a/b/program"]
        );
        assert_eq!(inside["a/b/program"], (0o755, b"ELF".to_vec()));
    }

    #[test]
    fn a_program_names_its_loader_and_libraries() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        let has = |name: &str| found.iter().any(|it| it.to_string_lossy().contains(name));
        assert!(has("libc.so.6") && has("/ld-linux"), "{found:?}");
    }
}
