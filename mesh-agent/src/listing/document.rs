//! The lists.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::hbone::{Opener, Seen};

/// Workloads that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workloads {
    /// The node that answers.
    pub node: String,
    /// In the order of their names.
    pub workloads: Vec<Workload>,
}

/// A pod as the mesh sees it, or an interface of the node without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Its namespace; empty for an interface.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on.
    pub node: Option<String>,
    /// `HBONE` for pods of the mesh, otherwise `TCP`.
    pub protocol: String,
    /// Its SPIFFE id.
    pub identity: Option<String>,
    /// Whether the agent that answers has wired it.
    pub wired: bool,
    /// Whether it takes TCP from the mesh alone, at ports of no mode of their own.
    pub strict: bool,
    /// Why it is no pod of the mesh, if it is none.
    pub not_enrolled: Option<String>,
}

/// Services that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// The node that answers.
    pub node: String,
    /// In the order of their names.
    pub services: Vec<Service>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its DNS name.
    pub hostname: String,
    /// Its cluster addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports: number and protocol.
    pub ports: Vec<String>,
    /// Endpoints that take connections.
    pub ready: usize,
    /// Endpoints in all; a pod with two addresses is one.
    pub endpoints: usize,
}

/// The tunnels of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnels {
    /// The oldest first.
    pub tunnels: Vec<Tunnel>,
}

/// A tunnel that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// `outbound` if a pod of this node has opened it, otherwise `inbound`.
    pub direction: String,
    /// The local pod's end.
    pub local: SocketAddr,
    /// Whose certificate was shown there.
    pub local_identity: String,
    /// The other end.
    pub remote: SocketAddr,
    /// Who that has proved to be.
    pub remote_identity: String,
    /// Streams that are open on it.
    pub streams: usize,
    /// How long it is open, in seconds.
    pub age: u64,
}

impl Tunnels {
    /// Those that are open at `now`.
    pub fn new(seen: Vec<Seen>, now: Instant) -> Self {
        let tunnel = |Seen {
                          open,
                          since,
                          streams,
                      }| Tunnel {
            direction: match open.opener {
                Opener::We => "outbound",
                Opener::They => "inbound",
            }
            .to_owned(),
            local: open.ours,
            local_identity: open.identity.to_string(),
            remote: open.theirs,
            remote_identity: open.peer.to_string(),
            streams,
            age: now.saturating_duration_since(since).as_secs(),
        };
        Self {
            tunnels: seen.into_iter().map(tunnel).collect(),
        }
    }
}
