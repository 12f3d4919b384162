//! CORE: who speaks with whom, as the live map shows it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::connection::{Carriage, Record};
use super::edges::Counted;
use super::flows::Flow;
use super::labels::host;
use crate::inspect::in_force;
use crate::model::{Snapshot, Workload, WorkloadKey};

/// Workloads and what is between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// Whose knowledge it is.
    pub agents: Vec<Agent>,
    /// By their ids.
    pub nodes: Vec<Node>,
    /// Between them, in the order of their ends.
    pub edges: Vec<Edge>,
    /// Connections and refusals that are on no edge, there being too many.
    pub left_out: u64,
}

/// An agent that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// The node it serves; where it was asked, while that is not known.
    pub name: String,
    /// Milliseconds since it answered last; none if it never has.
    pub age_ms: Option<u64>,
    /// Why it does not answer now.
    pub error: Option<String>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `namespace/pod`, or the interface of what is no pod.
    pub id: String,
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The pod's name.
    pub name: String,
    /// What made it, such as its Deployment; otherwise its own name.
    pub workload: String,
    /// The node it runs on.
    pub node: Option<String>,
    /// Its SPIFFE id.
    pub identity: Option<String>,
    /// Whether it is part of the mesh.
    pub enrolled: bool,
    /// Whether an agent that was asked has wired it.
    pub local: bool,
    /// Whether it takes TCP only from the mesh.
    pub strict: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The policies in force for it: kind, namespace and name.
    pub policies: Vec<String>,
}

/// What is between two workloads. Counts only grow, while the agent lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Who opens the connections; none for what is no workload.
    pub source: Option<String>,
    /// Where they end; none for what is no workload.
    pub destination: Option<String>,
    /// The service that was asked for, by its name in DNS.
    pub service: Option<String>,
    /// `tunnel`, `same_node`, `plain`, or `unknown` for what did not get that far.
    pub carriage: String,
    /// `source` or `destination`: at which end it was seen.
    pub reporter: String,
    /// When the counts were read, in milliseconds since 1970 by the agent's clock.
    pub at_ms: u64,
    /// Connections that stood.
    pub opened: u64,
    /// Connections that stand.
    pub open: u64,
    /// Connections that something was in the way of.
    pub failed: u64,
    /// Connections, or packets of such, that policy refused.
    pub refused: u64,
    /// Bytes from the source.
    pub sent: u64,
    /// Bytes to the source.
    pub received: u64,
    /// Round trip in microseconds, where one is known: the kernel's smoothed one of a tunnel's socket; what handshakes took on
    /// average, of connections that the kernel carries.
    pub round_trip_us: Option<u32>,
    /// The last that was refused or failed.
    pub last_refusal: Option<Flow>,
}

/// Round trips between two addresses in microseconds: ours, theirs.
pub type RoundTrips = HashMap<(IpAddr, IpAddr), u32>;

impl Graph {
    /// What an agent knows, of its own workloads and of all that are on an edge.
    pub(super) fn of(
        snapshot: &Snapshot,
        (edges, left_out): (Vec<Counted>, u64),
        round_trips: &RoundTrips,
        now: SystemTime,
    ) -> Self {
        let here = &*snapshot.settings().node;
        let local = snapshot.workloads_on(here).filter(|it| it.is_local());
        let mut shown: BTreeSet<WorkloadKey> = local.map(|it| it.key.clone()).collect();
        for edge in &edges {
            let ends = [&edge.ends.source, &edge.ends.destination];
            shown.extend(ends.into_iter().flatten().cloned());
        }
        let nodes = shown.iter().filter_map(|it| snapshot.workload(it));
        let at_ms = milliseconds(now);
        let edges = edges
            .iter()
            .map(|it| Edge::of(it, snapshot, round_trips, at_ms));
        let mut graph = Self {
            agents: vec![Agent {
                name: here.to_owned(),
                age_ms: Some(0),
                error: None,
            }],
            nodes: nodes.map(|it| Node::of(it, snapshot)).collect(),
            edges: edges.collect(),
            left_out,
        };
        graph.sort();
        graph
    }

    pub(super) fn sort(&mut self) {
        self.nodes.sort_by(|a, b| a.id.cmp(&b.id));
        self.edges.sort_by(|a, b| a.key().cmp(&b.key()));
    }
}

impl Node {
    fn of(it: &Workload, snapshot: &Snapshot) -> Self {
        let pod = it.pod.as_deref();
        let id = it.key.to_string();
        let policies = in_force(snapshot, it);
        Self {
            namespace: pod.map(|pod| pod.key.namespace.to_string()),
            name: pod.map_or_else(|| id.clone(), |pod| pod.key.name.to_string()),
            workload: pod.map_or_else(|| id.clone(), |pod| pod.workload_name().to_owned()),
            id,
            node: it.node.as_ref().map(ToString::to_string),
            identity: it.identity.as_ref().map(ToString::to_string),
            enrolled: it.enrolled,
            local: it.is_local(),
            strict: it.enrolled && it.strict,
            addresses: it.addresses.clone(),
            policies: policies.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Edge {
    fn of(it: &Counted, snapshot: &Snapshot, round_trips: &RoundTrips, at_ms: u64) -> Self {
        let Counted { ends, totals, .. } = it;
        let service = ends.service.as_ref().map(|key| {
            let known = snapshot.service(key);
            known.map_or_else(|| key.to_string(), |it| host(snapshot, it))
        });
        let addresses = |it: &Option<WorkloadKey>| {
            let workload = it.as_ref().and_then(|it| snapshot.workload(it));
            workload.map_or(&[][..], |it| &it.addresses)
        };
        let round_trip = match ends.carriage {
            Carriage::Tunnel => between(
                round_trips,
                addresses(&ends.source),
                addresses(&ends.destination),
            ),
            Carriage::SameNode | Carriage::Plain => totals.handshake(),
            Carriage::Undecided => None,
        };
        Self {
            source: ends.source.as_ref().map(ToString::to_string),
            destination: ends.destination.as_ref().map(ToString::to_string),
            service,
            carriage: ends.carriage.name().to_owned(),
            reporter: ends.direction.reporter().to_owned(),
            at_ms,
            opened: totals.opened,
            open: totals.opened.saturating_sub(totals.closed),
            failed: totals.failed,
            refused: it.refused,
            sent: totals.sent,
            received: totals.received,
            round_trip_us: round_trip,
            last_refusal: it
                .last_refusal
                .as_ref()
                .map(|it: &Record| Flow::of(it, snapshot)),
        }
    }

    fn key(&self) -> impl Ord + '_ {
        (
            &self.source,
            &self.destination,
            &self.service,
            &self.carriage,
            &self.reporter,
        )
    }
}

/// The shortest round trip between two workloads, whoever has opened the tunnel.
fn between(known: &RoundTrips, ours: &[IpAddr], theirs: &[IpAddr]) -> Option<u32> {
    let ways = ours
        .iter()
        .flat_map(|a| theirs.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
    ways.filter_map(|it| known.get(&it).copied()).min()
}

fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}
