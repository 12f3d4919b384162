//! CORE: which traffic of this node's pods leaves with the node's address.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::Snapshot;

/// What the table of ours says: a packet from `sources` is masqueraded unless it goes to `kept`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// This node's pod CIDRs.
    pub sources: BTreeSet<IpNet>,
    /// Where pods are known by their own addresses: all pods, all nodes, multicast groups, and what the operator names.
    pub kept: BTreeSet<IpNet>,
}

/// The masquerading that `node` needs, sparing what the operator names.
pub fn masquerade(snapshot: &Snapshot, node: &str, spared: &[IpNet]) -> Masquerade {
    let own = snapshot
        .node(node)
        .into_iter()
        .flat_map(|node| &node.pod_cidrs);
    let mut kept: BTreeSet<_> = spared.iter().map(IpNet::trunc).chain(MULTICAST).collect();
    for node in snapshot.nodes() {
        kept.extend(node.pod_cidrs.iter().map(IpNet::trunc));
        kept.extend(node.addresses.iter().map(|address| IpNet::from(*address)));
    }
    Masquerade {
        sources: own.map(IpNet::trunc).collect(),
        kept,
    }
}

const MULTICAST: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
    )),
];
