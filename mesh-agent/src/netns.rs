//! EDGE: pods' network namespaces, entered for a moment.
//!
//! Invariant: no thread that serves anything else ever enters a pod's namespace.

#![expect(
    unsafe_code,
    reason = "the one socket option that no library has is read by a raw system call"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A namespace cannot be entered; in a container, the agent needs its directory mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter network namespace {}", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Runs `work` inside a network namespace, on a thread of its own that ends there.
///
/// # Errors
/// Nothing has run then.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let enter_and_work = || {
        let file = File::open(netns)?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    let entered = thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, enter_and_work)?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    entered.map_err(|source| Error {
        path: netns.to_owned(),
        source,
    })
}

/// The kernel's number for a network namespace, which no other one ever gets while the machine runs. Needs Linux 5.14.
///
/// # Errors
/// It cannot be entered, or the kernel does not tell.
pub fn cookie(netns: &Path) -> Result<u64, Error> {
    let asked = inside(netns, || {
        let any = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        cookie_of(&any)
    })?;
    asked.map_err(|source| Error {
        path: netns.to_owned(),
        source,
    })
}

/// `SO_NETNS_COOKIE` of a socket.
fn cookie_of(socket: &OwnedFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes to `cookie`, which has that size and whose
    // every bit pattern is valid, and the length that it wrote to `length`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
