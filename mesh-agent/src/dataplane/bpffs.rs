//! The pin directory: a directory of its own on a BPF file system.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Error;

/// Where distributions mount the BPF file system.
pub const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// Makes the pin directory with its `links` directory, mounting a BPF file system at the usual place if none is there.
///
/// # Errors
///
/// [`Error::Bpffs`] when the directory is not on a BPF file system and cannot be put on one.
pub fn prepare(path: &Path) -> Result<(), Error> {
    let error = |what| {
        move |source| Error::Bpffs {
            path: path.to_owned(),
            what,
            source,
        }
    };
    if path.starts_with(DEFAULT_MOUNT) && !is_bpffs(Path::new(DEFAULT_MOUNT)) {
        mount(
            Some("bpf"),
            DEFAULT_MOUNT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(io::Error::from)
        .map_err(error("mounting a BPF file system at /sys/fs/bpf"))?;
    }
    fs::create_dir_all(path.join("links")).map_err(error("making the directory"))?;
    if is_bpffs(path) {
        return Ok(());
    }
    Err(error("checking the file system")(io::Error::other(
        "not a BPF file system: mount one there with `mount -t bpf bpf DIR`",
    )))
}

/// Whether a path is on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
