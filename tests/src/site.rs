//! Where a lab is on the machine: its directory, its lock, and the removal of everything with its name.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::bpffs::Bpffs;
use crate::netns::Netns;
use crate::process::Process;

const DIRECTORY: &str = "/run/mesh-lab";

/// Removes a lab that nobody runs; fine when there is none.
///
/// # Errors
/// When a process runs it.
pub fn down(name: &str) -> Result<()> {
    let lock = lock(name)?;
    remove(name)?;
    unlock(name, lock);
    Ok(())
}

/// Removes a lab that this process runs, whatever its other threads are doing: for the way out after a signal.
pub fn abandon(name: &str) -> Result<()> {
    remove(name)?;
    let _ = fs::remove_file(lock_path(name));
    Ok(())
}

pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn lock_path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.lock"))
}

/// Takes a lab's lock; waits for another run of the same scenario to end.
pub(crate) fn lock_patiently(name: &str) -> Result<Flock<File>> {
    const ATTEMPTS: u32 = 240;
    for _ in 1..ATTEMPTS {
        if let Ok(lock) = lock(name) {
            return Ok(lock);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    lock(name)
}

pub(crate) fn lock(name: &str) -> Result<Flock<File>> {
    fs::create_dir_all(DIRECTORY)
        .with_context(|| format!("cannot create {DIRECTORY} (a lab needs root)"))?;
    let file = File::create(lock_path(name))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Not the file of a lab that was removed just now.
        Ok(lock) if fs::metadata(lock_path(name)).is_ok_and(|it| is_same(&it, &lock)) => Ok(lock),
        Ok(_) => bail!("the lab {name} was being removed; try again"),
        Err((_, Errno::EAGAIN)) => bail!("the lab {name} is in use by another process"),
        Err((_, error)) => bail!("cannot lock {}: {error}", lock_path(name).display()),
    }
}

fn is_same(named: &Metadata, lock: &Flock<File>) -> bool {
    lock.metadata()
        .is_ok_and(|held| (held.dev(), held.ino()) == (named.dev(), named.ino()))
}

fn unlock(name: &str, lock: Flock<File>) {
    let _ = fs::remove_file(lock_path(name));
    drop(lock);
}

/// Removes everything with the lab's name.
pub(crate) fn remove(name: &str) -> Result<()> {
    let directory = directory(name);
    Process::end_recorded(&directory.join("pids"));
    for netns in Netns::names(&format!("mesh-{name}-")) {
        Netns::remove(&netns)?;
    }
    for mounted in mounted_below(&directory)? {
        Bpffs::unmount(&mounted)?;
    }
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

/// Where file systems are mounted in a directory, the last one first.
fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below = places
        .map(PathBuf::from)
        .filter(|it| it.starts_with(directory));
    Ok(below.collect::<Vec<_>>().into_iter().rev().collect())
}

/// The directory of `mesh-agent` and `mesh-cni`.
pub(crate) fn binaries() -> Result<PathBuf> {
    let directory = std::env::var_os("MESH_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug"),
        PathBuf::from,
    );
    for binary in ["mesh-agent", "mesh-cni"] {
        let path = directory.join(binary);
        ensure!(
            path.is_file(),
            "{} is missing; `cargo xtask build` makes it",
            path.display()
        );
    }
    Ok(directory.canonicalize()?)
}
