//! Takes programs, links and maps out of the kernel, for good.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::TcAttachType;
use aya::programs::tc::{TcError, qdisc_detach_program};
use mesh_common::names::{PROGRAM_FROM_NET, PROGRAM_FROM_POD, PROGRAM_TO_NET, PROGRAM_TO_POD};

use super::{Error, bpffs};

/// Removes every pin, and with it links and maps; says how many links there were, `None` if there is no pin directory.
///
/// # Errors
/// The directory is not on a BPF file system, or cannot be removed.
pub fn remove_pins(path: &Path) -> Result<Option<usize>, Error> {
    let error = |what| {
        move |source| Error::Bpffs {
            path: path.to_owned(),
            what,
            source,
        }
    };
    if !path.exists() {
        return Ok(None);
    }
    if !bpffs::is_bpffs(path) {
        let source = io::Error::other("not a BPF file system: mend --bpffs");
        return Err(error("refusing to remove it")(source));
    }
    let links = fs::read_dir(path.join("links")).map_or(0, Iterator::count);
    fs::remove_dir_all(path).map_err(error("removing the directory"))?;
    Ok(Some(links))
}

/// Removes our clsact filters from an interface; whether there were any.
///
/// # Errors
/// The kernel refuses.
pub fn remove_filters(ifname: &str) -> Result<bool, Error> {
    let mut removed = false;
    for (program, attach) in [
        (PROGRAM_FROM_POD, TcAttachType::Ingress),
        (PROGRAM_FROM_NET, TcAttachType::Ingress),
        (PROGRAM_TO_POD, TcAttachType::Egress),
        (PROGRAM_TO_NET, TcAttachType::Egress),
    ] {
        match qdisc_detach_program(ifname, attach, program) {
            Ok(()) => removed = true,
            // No such filter; an interface that is gone has none either.
            Err(TcError::IoError(_)) => {}
            Err(source) => {
                return Err(Error::Attach {
                    program,
                    target: ifname.to_owned(),
                    source: Box::new(source),
                });
            }
        }
    }
    Ok(removed)
}
