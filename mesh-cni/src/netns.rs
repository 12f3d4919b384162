//! EDGE: a pod's network namespace.
//!
//! Invariant: the calling thread never changes its namespace. What must happen inside runs on a thread of its own that
//! ends there, so no error path can leave the process in the wrong one.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// An open network namespace, which lives at least as long as this does.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// [`Error::Netns`] if nothing is there, [`Error::OwnNetns`] if it is the one that we run in.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Netns {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let there = file.metadata().map_err(failed)?;
        let here = File::open(OWN).and_then(|own| own.metadata());
        let here = here.map_err(failed)?;
        let path = path.to_owned();
        if (there.dev(), there.ino()) == (here.dev(), here.ino()) {
            return Err(Error::OwnNetns { path });
        }
        Ok(Self { path, file })
    }

    /// Runs `work` inside the namespace and waits for it. Sockets that it opens stay there.
    ///
    /// # Errors
    /// [`Error::Netns`] if it cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let entered = thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.map_err(|source| Error::Netns {
            path: self.path.clone(),
            source,
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for netlink.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Reads a setting below `/proc/sys/net/ipv6/conf` of the calling thread's namespace; `None` if the kernel has no IPv6.
pub fn ipv6_setting(device: &str, setting: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(ipv6_path(device, setting)) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes such a setting.
pub fn set_ipv6_setting(device: &str, setting: &str, value: &str) -> io::Result<()> {
    std::fs::write(ipv6_path(device, setting), value)
}

fn ipv6_path(device: &str, setting: &str) -> PathBuf {
    [IPV6_CONF, device, setting].iter().collect()
}

const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";
