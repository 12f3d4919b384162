//! A machine that has nothing but a kernel and files becomes one that can be a node.

use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

/// Where, and which file system.
const MOUNTS: [(&str, &str); 5] = [
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/dev", "devtmpfs"),
    ("/sys/fs/cgroup", "cgroup2"),
    ("/sys/fs/bpf", "bpf"),
];

/// Mounts what a distribution would have mounted.
pub(crate) fn mount_all() -> Result<()> {
    let none: Option<&str> = None;
    for directory in ["/run", "/tmp"] {
        fs::create_dir_all(directory)?;
    }
    for (directory, kind) in MOUNTS {
        fs::create_dir_all(directory)?;
        mount(Some(kind), directory, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount {directory}"))?;
    }
    Ok(())
}

/// Loads modules, each after those that it needs.
pub(crate) fn load_modules(paths: &[&str]) -> Result<()> {
    for path in paths {
        let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot load {path}")),
        }
    }
    Ok(())
}

/// Loopback; there is no other device.
pub(crate) fn set_up_network() -> Result<()> {
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(status.success(), "cannot set up the loopback device");
    Ok(())
}
