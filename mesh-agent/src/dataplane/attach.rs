//! Attaching the programs so that they outlive the agent: pinned tcx links, or clsact filters.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, Link, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, SchedClassifier, SkLookup, TcAttachType,
};
use aya::util::KernelVersion;
use clap::ValueEnum;

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// `tcx` at uplinks where the kernel has it (6.6), otherwise `clsact`.
    #[default]
    Auto,
    /// Links of the kernel's multi-program TC hook.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// Whose interface programs are attached to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Uplink,
    /// The host's end of a pod's veth.
    Pod,
}

/// Priority and handle of our clsact filters: fixed, so that the next agent finds and replaces them.
const FILTER: (u16, TcHandle) = (1, TcHandle::new(0, 1));

/// The first kernel with tcx.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Attaches a TC program to an interface, or replaces the one that an earlier agent left there.
///
/// A replacement is atomic: no packet meets the interface without a program.
pub(super) fn tc(
    program: &mut SchedClassifier,
    by_tcx: bool,
    ifname: &str,
    attach: TcAttachType,
    pin: &Path,
) -> Result<(), Cause> {
    if by_tcx {
        tcx_link(program, ifname, attach, pin)
    } else {
        clsact_filter(program, ifname, attach)?;
        // An earlier agent's, of another mode.
        Ok(detach(pin)?)
    }
}

/// Whether programs are attached as tcx links.
///
/// Where others attach programs, too, links are safe from them. A pod's interface is ours alone, and a link made there or gone
/// with it waits for a grace period of RCU under the lock of rtnetlink: 12 ms, twice for each pod, in which nobody else can
/// change the node's network.
pub(super) fn is_tcx(mode: Mode, place: Place) -> bool {
    match (mode, place) {
        (Mode::Auto, Place::Uplink) => {
            KernelVersion::current().is_ok_and(|version| version >= TCX_SINCE)
        }
        (Mode::Tcx, _) => true,
        (Mode::Auto, Place::Pod) | (Mode::Clsact, _) => false,
    }
}

fn tcx_link(
    program: &mut SchedClassifier,
    ifname: &str,
    attach: TcAttachType,
    pin: &Path,
) -> Result<(), Cause> {
    if pin.exists() {
        let old: SchedClassifierLink = FdLink::from(PinnedLink::from_pin(pin)?).try_into()?;
        if let Ok(id) = program.attach_to_link(old) {
            // The pin keeps the link; our descriptor is only closed.
            drop(program.take_link(id)?);
            return Ok(());
        }
        // The link's interface is gone and another of the same name took its place.
        fs::remove_file(pin)?;
    }
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(ifname, attach, first)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    let (priority, handle) = FILTER;
    // An earlier agent's, of another mode; most often there is none.
    let old = SchedClassifierLink::attached(ifname, attach, priority, handle, None)?;
    let _ = old.detach();
    Ok(())
}

fn clsact_filter(
    program: &mut SchedClassifier,
    ifname: &str,
    attach: TcAttachType,
) -> Result<(), Cause> {
    let (priority, handle) = FILTER;
    // Exists already after a restart; a real failure shows when the filter is added.
    let _ = qdisc_add_clsact(ifname);
    let old = SchedClassifierLink::attached(ifname, attach, priority, handle, None)?;
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_absent) => {
            let options = TcAttachOptions::Netlink(NlOptions {
                priority,
                handle,
                classid: None,
            });
            program.attach_with_options(ifname, attach, options)?
        }
    };
    // A filter needs no owner; dropping the link would detach it.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Attaches the socket look-up program to the calling thread's network namespace, in place of an earlier agent's.
pub(super) fn netns(program: &mut SkLookup, pin: &Path) -> Result<(), Cause> {
    let id = program.attach(File::open("/proc/thread-self/ns/net")?)?;
    let link: FdLink = program.take_link(id)?.into();
    // Both programs answer alike while they overlap; removing the old pin detaches the old one.
    detach(pin)?;
    link.pin(pin)?;
    Ok(())
}

/// Attaches a program to the sockets of a cgroup and all below it, in place of an earlier agent's.
pub(super) fn cgroup(program: &mut CgroupSockAddr, cgroup: &File, pin: &Path) -> Result<(), Cause> {
    // Links take no flags, and stand beside those of others.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    // Both programs answer alike while they overlap.
    detach(pin)?;
    link.pin(pin)?;
    Ok(())
}

/// Removes a pin, and with it the link; absent is fine.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where the link of a program at an interface is pinned.
pub(super) fn pin_path(bpffs: &Path, program: &str, ifname: &str) -> PathBuf {
    bpffs.join("links").join(format!("{program}-{ifname}"))
}
