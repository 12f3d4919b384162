//! EDGE: what the agent gives up, so that whoever gets into it gets no further.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter, apply_filter_all_threads,
};

/// Programs at interfaces, routes, rules, nftables and foreign addresses; loading programs and entering pods' namespaces.
const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN];

/// What an agent that runs has no use for.
const NEVER: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_perf_event_open,
    // The file systems and the root of the node.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    // Where kernels had their holes.
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// What threads that carry connections have no use for beyond that: they read what strangers send.
const NEVER_CARRYING: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setns,
    libc::SYS_bpf,
];

/// Why something could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The dump of a crash.
    #[error("cannot switch core dumps off")]
    Core(#[source] io::Error),
    /// The capabilities.
    #[error("cannot give up capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The way to more privileges.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// The system calls.
    #[error("cannot filter system calls")]
    Filter(#[from] seccompiler::Error),
    /// The filter cannot be made for this machine.
    #[error("cannot make a filter of system calls")]
    Backend(#[from] seccompiler::BackendError),
}

/// Takes what memory maps may need, then gives up all capabilities but those in use, the way to others, and core dumps.
///
/// They belong to a thread: to be called before there are others.
///
/// # Errors
/// The kernel's answer.
pub fn privileges() -> Result<(), Error> {
    // Before 5.11 maps count as locked memory. Where this fails, the maps may fit all the same.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    // Keys are in memory, and are to be nowhere else.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| Error::Core(errno.into()))?;
    prctl::set_no_new_privs().map_err(|errno| Error::NoNewPrivileges(errno.into()))?;
    let has = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|it| has.contains(it)).collect();
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// Gives up, on all threads, the system calls of which an agent that runs has no use: they fail with `EPERM`.
///
/// # Errors
/// The kernel's answer; a thread that has given up more already.
pub fn running() -> Result<(), Error> {
    Ok(apply_filter_all_threads(&without(NEVER)?)?)
}

/// Gives up, on this thread and those it starts, the system calls of which a thread that carries connections has no use.
///
/// # Errors
/// The kernel's answer.
pub fn carrying() -> Result<(), Error> {
    Ok(apply_filter(&without(NEVER_CARRYING)?)?)
}

fn without(calls: &[libc::c_long]) -> Result<BpfProgram, Error> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_carries_starts_no_program_and_others_do() {
        let carrier = thread::spawn(|| {
            carrying().unwrap();
            Command::new("true").status()
        });
        let refused = carrier.join().unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(Command::new("true").status().unwrap().success());
    }

    #[test]
    fn capabilities_that_are_given_up_do_not_come_back() {
        let given_up = thread::spawn(|| {
            privileges().unwrap();
            let had = caps::read(None, CapSet::Permitted).unwrap();
            assert!(had.iter().all(|it| KEPT.contains(it)), "{had:?}");
            caps::raise(None, CapSet::Effective, Capability::CAP_SYS_PTRACE)
        });
        assert!(given_up.join().unwrap().is_err());
    }
}
