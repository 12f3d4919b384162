//! The kernel settings that a node of this network needs.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Reads or writes one setting of the calling process's network namespace.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

/// Writes a setting where it does not hold already, so that a read-only `/proc/sys` with the right values is fine.
///
/// # Errors
///
/// The file and the kernel's answer.
fn set(name: &str, value: &str) -> io::Result<()> {
    let path = path(name);
    if fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("writing {value} to {}: {error}", path.display()),
        )
    })
}

/// Whether the kernel speaks IPv6 in this network namespace.
pub(super) fn has_ipv6() -> bool {
    fs::read_to_string(path("ipv6/conf/all/disable_ipv6")).is_ok_and(|value| value.trim() == "0")
}

/// Makes the node forward packets, for the families it has, without giving up router advertisements on its uplinks.
pub(super) fn forward(uplinks: impl Iterator<Item = String>) -> io::Result<()> {
    set("ipv4/ip_forward", "1")?;
    if !has_ipv6() {
        return Ok(());
    }
    for uplink in uplinks {
        let name = format!("ipv6/conf/{uplink}/accept_ra");
        // A forwarding kernel ignores advertisements unless told twice (2).
        if fs::read_to_string(path(&name)).is_ok_and(|value| value.trim() == "1") {
            set(&name, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}
