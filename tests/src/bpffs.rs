//! A BPF file system of a test's own: unmounting it removes every pin in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted BPF file system; dropping it unmounts.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts one on a directory, which is made if need be.
    pub fn mount(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        mount(
            Some("bpf"),
            directory,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("cannot mount a BPF file system on {}", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }

    /// Unmounts whatever is mounted on a directory, if anything is.
    pub fn unmount(directory: &Path) -> Result<()> {
        match umount2(directory, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(error) => bail!("cannot unmount {}: {error}", directory.display()),
        }
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Self::unmount(&self.0);
    }
}
