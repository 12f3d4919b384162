//! CORE: which routes lead to the pods of other nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Snapshot;

/// A route of ours in the node's main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRoute {
    /// The pod CIDR.
    pub prefix: IpNet,
    /// Where its packets go.
    pub via: Via,
}

/// The target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// A neighbouring node.
    Node(IpAddr),
    /// Nowhere: an address of our own pod CIDR that no pod has must not travel the default route in circles.
    Unreachable,
}

/// The routes that `node` needs: one to every pod CIDR of every other node over that node's address of the same family,
/// and an unreachable one for its own.
pub fn wanted(snapshot: &Snapshot, node: &str) -> BTreeSet<NodeRoute> {
    let mut routes = BTreeSet::new();
    for other in snapshot.nodes() {
        for prefix in &other.pod_cidrs {
            if *other.name == *node {
                routes.insert(NodeRoute {
                    prefix: prefix.trunc(),
                    via: Via::Unreachable,
                });
                continue;
            }
            let gateway = other
                .addresses
                .iter()
                .find(|ip| ip.is_ipv4() == prefix.addr().is_ipv4());
            if let Some(gateway) = gateway {
                routes.insert(NodeRoute {
                    prefix: prefix.trunc(),
                    via: Via::Node(*gateway),
                });
            }
        }
    }
    routes
}
