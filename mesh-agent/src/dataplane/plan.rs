//! CORE: what the maps are to hold, as functions of the world.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;

use mesh_common::addr::Addr;
use mesh_common::cni::Attachment;
use mesh_common::maps::{self, flags};

use crate::model::{Snapshot, Workload, WorkloadKey};

/// The host's end of a wired pod interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its MAC address.
    pub host_mac: [u8; 6],
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// The kernel's number for that namespace, where it told.
    pub netns_cookie: Option<u64>,
}

/// The interfaces of this node's pods.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    by_attachment: HashMap<Attachment, Interface>,
    by_addr: HashMap<IpAddr, Attachment>,
}

impl Interfaces {
    /// Adds an interface, or replaces the attachment's earlier one.
    pub fn insert(&mut self, attachment: Attachment, interface: Interface) {
        self.remove(&attachment);
        for address in &interface.addresses {
            self.by_addr.insert(*address, attachment.clone());
        }
        self.by_attachment.insert(attachment, interface);
    }

    /// Forgets an attachment's interface.
    pub fn remove(&mut self, attachment: &Attachment) -> Option<Interface> {
        let interface = self.by_attachment.remove(attachment)?;
        self.by_addr.retain(|_, owner| owner != attachment);
        Some(interface)
    }

    /// The interface of an attachment.
    pub fn get(&self, attachment: &Attachment) -> Option<&Interface> {
        self.by_attachment.get(attachment)
    }

    /// Every interface.
    pub fn iter(&self) -> impl Iterator<Item = (&Attachment, &Interface)> {
        self.by_attachment.iter()
    }

    /// The interface that leads to an address of a workload.
    fn of(&self, workload: &Workload, address: IpAddr) -> Option<&Interface> {
        let attachment = self.by_addr.get(&address)?;
        workload
            .attachments
            .contains(attachment)
            .then(|| &self.by_attachment[attachment])
    }
}

/// The entry of `WORKLOADS` for an address; `present` is what the kernel holds.
pub fn workload(
    snapshot: &Snapshot,
    interfaces: &Interfaces,
    address: IpAddr,
    present: Option<&maps::Workload>,
) -> Option<maps::Workload> {
    let workload = snapshot.workload_by_addr(address)?;
    let interface = interfaces.of(workload, address);
    let ifindex = interface.map_or(0, |interface| interface.index);
    let before = present
        .filter(|present| present.ifindex == ifindex)
        .map_or(0, |p| p.flags);
    let local = if interface.is_some() { flags::LOCAL } else { 0 };
    Some(maps::Workload {
        id: workload.id.0,
        flags: workload_flags(snapshot, workload, local, before),
        ifindex,
    })
}

/// The entry of `PODS` for an attachment; `present` is what the kernel holds for the same interface.
pub fn pod(
    snapshot: &Snapshot,
    attachment: &Attachment,
    interface: &Interface,
    present: Option<&maps::Pod>,
    judged: impl Fn(&WorkloadKey) -> Judged,
) -> Option<maps::Pod> {
    let workload = snapshot.workload_by_attachment(attachment)?;
    let address = |v4| {
        interface
            .addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
    };
    let before = present.map_or(0, |present| present.flags);
    let judged = match present {
        // With its flags it keeps its policy set; once that is gone, nothing passes.
        Some(present) if is_lost(snapshot, workload) => Judged {
            flags: 0,
            policy: present.policy,
            generation: present.generation,
        },
        _ => judged(&workload.key),
    };
    Some(maps::Pod {
        addr4: address(true).map_or(Addr::NONE, |ip| (*ip).into()),
        addr6: address(false).map_or(Addr::NONE, |ip| (*ip).into()),
        workload: workload.id.0,
        flags: workload_flags(snapshot, workload, flags::LOCAL, before) | judged.flags,
        mac: interface.mac,
        host_mac: interface.host_mac,
        policy: judged.policy,
        generation: judged.generation,
    })
}

/// The keys of `POD_CIDRS`: prefix length in bits of an [`Addr`], and the network.
pub fn pod_cidrs(snapshot: &Snapshot) -> HashSet<(u32, Addr)> {
    let cidrs = snapshot.nodes().flat_map(|node| &node.pod_cidrs);
    cidrs
        .map(|cidr| {
            let mapped = if cidr.addr().is_ipv4() { 96 } else { 0 };
            (mapped + u32::from(cidr.prefix_len()), cidr.network().into())
        })
        .collect()
}

/// How a pod's flows are judged: the part of its `PODS` entry that compiled policy determines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// `INGRESS`, `EGRESS` and `STRICT` of [`flags`].
    pub flags: u32,
    /// [`maps::Pod::policy`].
    pub policy: u32,
    /// [`maps::Pod::generation`].
    pub generation: u32,
}

/// The entry of `SERVICES` for an address.
pub fn service(snapshot: &Snapshot, address: IpAddr) -> Option<maps::Service> {
    // Nothing in the kernel tells services apart yet.
    snapshot
        .service_by_addr(address)
        .map(|_| maps::Service { id: 0 })
}

/// Whether the pod runs here, but the source no longer tells it.
fn is_lost(snapshot: &Snapshot, workload: &Workload) -> bool {
    let named = |attachment| {
        snapshot
            .attachment(attachment)
            .is_some_and(|it| it.pod.is_some())
    };
    workload.pod.is_none() && workload.attachments.iter().any(named)
}

fn workload_flags(snapshot: &Snapshot, workload: &Workload, local: u32, before: u32) -> u32 {
    if is_lost(snapshot, workload) {
        // It stays as enrolled as it was.
        return before | local;
    }
    let enrolled = if workload.enrolled {
        flags::ENROLLED
    } else {
        0
    };
    // Once enrolled, always watched: the agent's sockets for it outlive a change of labels.
    let watched = local != 0 && (workload.enrolled || before & flags::SOCKETS != 0);
    let sockets = if watched { flags::SOCKETS } else { 0 };
    local | enrolled | sockets
}
