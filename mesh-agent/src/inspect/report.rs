//! The answers.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Transport;

/// What would become of a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The node that answers.
    pub node: String,
    /// The revision of its snapshot.
    pub revision: u64,
    /// What it would speak.
    pub protocol: Transport,
    /// Who would open it.
    pub source: Party,
    /// To whom, as it was asked.
    pub destination: String,
    /// What happens before an endpoint is chosen.
    pub steps: Vec<Step>,
    /// What happens then, for each endpoint it may lead to.
    pub paths: Vec<Path>,
    /// What may differ from what is told here, and why.
    pub notes: Vec<String>,
    /// What comes of it.
    pub outcome: Outcome,
    /// The same in words: `allowed`, or `denied by` whom.
    pub conclusion: String,
}

/// What comes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is allowed.
    Allowed,
    /// It is allowed to some of the endpoints it may lead to.
    Partly,
    /// It is not allowed.
    Denied,
}

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The address.
    pub address: IpAddr,
    /// Whose it is: `namespace/pod`, an interface, or `node <name>`; none for what is not of the cluster.
    pub name: Option<String>,
    /// The node it is on.
    pub node: Option<String>,
    /// Whether that is the node that answers.
    pub here: bool,
    /// Whether it is part of the mesh.
    pub enrolled: bool,
    /// Its SPIFFE id.
    pub identity: Option<String>,
}

/// The way to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The endpoint.
    pub destination: Party,
    /// Its port; none where the protocol has none.
    pub port: Option<u16>,
    /// What happens, in order; told to the end also where an early step denies.
    pub steps: Vec<Step>,
    /// Who denies, in order; empty when it is allowed.
    pub denied_by: Vec<String>,
}

/// A step of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A layer of policy judges.
    Verdict(Judgement),
    /// A service's address becomes an endpoint's.
    Service {
        /// `namespace/name` of the service.
        service: String,
        /// Who chooses.
        by: String,
        /// The endpoints to choose from.
        endpoints: Vec<SocketAddr>,
    },
    /// How it gets there.
    Route {
        /// The kind of way.
        carriage: Carriage,
        /// Who decides so.
        by: String,
        /// More about it.
        detail: String,
        /// Where the tunnel leads, for [`Carriage::Tunnel`].
        tunnel: Option<SocketAddr>,
        /// Who may answer there, by SPIFFE ids.
        identities: Vec<String>,
    },
}

/// The verdict of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// `egress` or `ingress`.
    pub direction: String,
    /// Who judges.
    pub by: String,
    /// The layer.
    pub layer: String,
    /// What it says.
    pub allow: bool,
    /// Why.
    pub reason: String,
    /// The policy that decides; none when there is none, or several in common.
    pub policy: Option<PolicyName>,
    /// Path of the deciding rule in the policy.
    pub rule: Option<String>,
}

/// How a connection gets to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carriage {
    /// It does not leave the pod.
    Itself,
    /// Between two enrolled pods of a node, in the kernel.
    SameNode,
    /// Between two enrolled pods of a node, through the agent and without a tunnel.
    Agent,
    /// As a stream of an mTLS tunnel.
    Tunnel,
    /// As without the mesh.
    Plain,
    /// Not at all.
    Refused,
}

/// Kind and name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyName {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What policies are in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// The node that answers.
    pub node: String,
    /// The revision of its snapshot.
    pub revision: u64,
    /// For the pod that was asked for, or for all of the node.
    pub found: Found,
    /// What is not in force as it was written; about a pod, of the policies about it.
    pub not_as_written: Vec<NotAsWritten>,
    /// What of the source cannot be read at all.
    pub left_out: Vec<LeftOut>,
}

/// What is in force, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// For a pod.
    Pod {
        /// The pod.
        pod: Party,
        /// By layer and direction.
        layers: Vec<InForce>,
    },
    /// All policies.
    All(Vec<Listed>),
}

/// What a layer asks of a pod's connections in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The layer.
    pub layer: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Whether only what is allowed passes.
    pub restricts: bool,
    /// What that comes to, in words.
    pub state: String,
    /// The policies about the pod.
    pub policies: Vec<Listed>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its kind and name.
    pub policy: PolicyName,
    /// What it does with the pods it is about.
    pub does: String,
    /// The pods of the answering node for which it is in force.
    pub local_pods: usize,
    /// How many of its parts are not in force as they were written.
    pub not_as_written: usize,
}

/// A part of a policy that is not in force as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotAsWritten {
    /// The policy.
    pub policy: PolicyName,
    /// Path of the field in it.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What holds instead.
    pub effect: String,
}

/// A part of the source that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The part.
    pub part: String,
    /// What is wrong with it.
    pub reason: String,
}
