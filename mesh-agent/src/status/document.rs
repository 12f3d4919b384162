//! What `mesh-agent status` answers, and what of it is a problem.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::Health;
use crate::cluster::health::SourceState;
use crate::inspect::LeftOut;
use crate::model::Snapshot;
use crate::pki::Report;

/// How a node is doing. What a part of the agent could not be asked is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// What keeps it from being healthy.
    pub problems: Vec<Problem>,
    /// Where its world comes from.
    pub source: Option<Source>,
    /// Its network and the kernel's side; absent while it stops.
    pub network: Option<Node>,
    /// Its pods.
    pub pods: Pods,
    /// The cluster's policies.
    pub policies: Policies,
    /// What of the source cannot be read.
    pub left_out: Vec<LeftOut>,
    /// One an identity that runs here.
    pub certificates: Vec<Certificate>,
    /// Pods of this node that are not of the mesh, by why.
    #[serde(default)]
    pub not_enrolled: BTreeMap<String, Vec<String>>,
    /// Tunnels that are open, in both directions.
    #[serde(default)]
    pub tunnels: usize,
    /// Where HTTP is served.
    #[serde(default)]
    pub http: Vec<Port>,
}

/// What the parts of an agent tell. What could not be asked is absent.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Where its world comes from.
    pub source: Option<Source>,
    /// Its network and the kernel's side.
    pub network: Option<Node>,
    /// One an identity that runs here.
    pub certificates: Vec<Certificate>,
    /// Tunnels that are open.
    pub tunnels: usize,
    /// Where HTTP is served.
    pub http: Vec<Port>,
}

/// A port that HTTP is served on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The flag that names it.
    pub flag: String,
    /// Where it is.
    pub address: String,
    /// Why nothing is served there; none when something is.
    pub error: Option<String>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Where the world comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `kubernetes`, or the directory.
    pub name: String,
    /// Whether what it told is how things are.
    pub is_current: bool,
    /// In words: since when, and what went wrong last.
    pub detail: String,
}

/// The node's network and the kernel's side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Why a pod could not be wired now.
    pub not_ready: Option<Problem>,
    /// Interfaces that lead to other nodes.
    pub uplinks: Vec<Interface>,
    /// The hosts' ends of pods' interfaces.
    pub pods: Vec<Interface>,
    /// MTU of new pods' interfaces, in bytes.
    pub mtu: u32,
    /// Addresses for pods, by family.
    pub addresses: Vec<Addresses>,
    /// Whether pods leave the cluster with the node's address.
    pub masquerades: bool,
    /// The kernel's tables that can fill up.
    pub maps: Vec<Map>,
    /// What the node goes without because its kernel lacks something.
    #[serde(default)]
    pub without: Vec<String>,
    /// Pods' interfaces that have no record, and hence no network.
    #[serde(default)]
    pub lost: Vec<String>,
    /// Whether the kernel refused something and lags behind the world.
    pub is_behind: bool,
    /// How often it refused something.
    pub failures: u64,
}

/// An interface with programs of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Programs that should be attached there and are not, as far as the kernel tells.
    pub missing: Vec<String>,
}

/// A table of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Its name.
    pub name: String,
    /// Entries that it holds.
    pub held: usize,
    /// Entries that it has room for; 0 when that is not known.
    pub room: u32,
}

impl Map {
    /// Whether nine tenths of it are taken.
    fn is_nearly_full(&self) -> bool {
        self.room > 0 && self.held >= self.room as usize / 10 * 9
    }
}

/// Addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How many pods have.
    pub taken: u64,
    /// How many are left, at most what the type holds.
    pub free: u64,
}

/// Pods of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pods {
    /// With an interface of ours.
    pub wired: usize,
    /// Of those, part of the mesh.
    pub enrolled: usize,
    /// Of those, taking no plaintext.
    pub strict: usize,
}

/// The cluster's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// Of all kinds.
    pub count: usize,
    /// Parts of them that are not in force as written.
    pub not_as_written: usize,
}

/// A certificate of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Whose.
    pub identity: String,
    /// Start of its validity (RFC 3339), unless there is none yet.
    #[serde(default)]
    pub not_before: Option<String>,
    /// End of its validity (RFC 3339), unless there is none yet.
    pub not_after: Option<String>,
    /// Why the last request failed.
    pub error: Option<String>,
}

impl From<&Health> for Source {
    fn from(it: &Health) -> Self {
        let mut detail = vec![match it.state {
            SourceState::Starting => "has told nothing yet".to_owned(),
            SourceState::Live if it.objects.is_empty() => "read whenever it changes".to_owned(),
            SourceState::Live => format!("told {} objects", it.objects.values().sum::<usize>()),
            SourceState::Stale => "cannot be asked".to_owned(),
        }];
        if !it.absent.is_empty() {
            detail.push(format!("not served: {}", it.absent.join(", ")));
        }
        if let (SourceState::Starting | SourceState::Stale, Some(failure)) =
            (it.state, &it.last_error)
        {
            detail.push(failure.error.clone());
        }
        Self {
            name: it.source.clone(),
            is_current: it.state != SourceState::Stale,
            detail: detail.join("; "),
        }
    }
}

impl From<Report> for Certificate {
    fn from(it: Report) -> Self {
        Self {
            identity: it.identity,
            not_before: it.certificate.as_ref().map(|it| it.not_before.clone()),
            not_after: it.certificate.map(|it| it.not_after),
            error: it.last_error,
        }
    }
}

impl Status {
    /// Puts together what the parts of an agent tell.
    pub fn new(snapshot: &Snapshot, told: Told) -> Self {
        let node = snapshot.settings().node.to_string();
        let left_out = snapshot.left_out().map(|(part, reason)| LeftOut {
            part: part.to_owned(),
            reason: reason.to_owned(),
        });
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            problems: Vec::new(),
            pods: Pods::of(snapshot, &node),
            policies: Policies {
                count: snapshot.network_policies().count()
                    + snapshot.authorization_policies().count(),
                not_as_written: snapshot.caveats().count(),
            },
            left_out: left_out.collect(),
            not_enrolled: not_enrolled(snapshot, &node),
            node,
            source: told.source,
            network: told.network,
            certificates: told.certificates,
            tunnels: told.tunnels,
            http: told.http,
        };
        status.problems = status.find_problems();
        status
    }

    fn find_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |what: String, remedy: &str| {
            let remedy = remedy.to_owned();
            problems.push(Problem { what, remedy });
        };
        if let Some(source) = self.source.as_ref().filter(|source| !source.is_current) {
            let what = format!(
                "the source {} may have changed since: {}",
                source.name, source.detail
            );
            problem(
                what,
                "mend what it says; until then the last world is in force",
            );
        }
        for it in &self.certificates {
            let what = match (&it.error, &it.not_after) {
                (Some(error), _) => format!("no new certificate for {}: {error}", it.identity),
                (None, None) => format!("no certificate for {} yet", it.identity),
                (None, Some(_)) => continue,
            };
            problem(
                what,
                "see that the certificate authority runs and can be reached",
            );
        }
        for Port {
            flag,
            address,
            error,
        } in &self.http
        {
            if let Some(error) = error {
                problem(
                    format!("{flag} {address} is not served: {error}"),
                    "end what uses the port, or name another with that flag",
                );
            }
        }
        match &self.network {
            None => problem(
                "the agent is stopping".to_owned(),
                "ask again when the next one runs",
            ),
            Some(network) => problems.extend(network.find_problems()),
        }
        problems
    }
}

impl Node {
    fn find_problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self.not_ready.iter().cloned().collect();
        let mut problem = |what: String, remedy: &str| {
            let remedy = remedy.to_owned();
            problems.push(Problem { what, remedy });
        };
        for interface in &self.lost {
            let what = format!("interface {interface} has no record, and its pod no network");
            problem(what, "delete the pod");
        }
        if self.is_behind {
            let what = format!(
                "the kernel is behind the world, having refused {} writes",
                self.failures
            );
            problem(what, "see the agent's log; it tries again every second");
        }
        for it in self
            .uplinks
            .iter()
            .chain(&self.pods)
            .filter(|it| !it.missing.is_empty())
        {
            let what = format!(
                "interface {} is without {}",
                it.name,
                it.missing.join(" and ")
            );
            problem(what, "restart the agent, which attaches its programs again");
        }
        for it in self.maps.iter().filter(|it| it.is_nearly_full()) {
            let what = format!("map {} holds {} of {}", it.name, it.held, it.room);
            problem(
                what,
                "have fewer of its entries on this node; what finds no room is refused, never let through",
            );
        }
        for it in self.addresses.iter().filter(|it| it.free == 0) {
            let what = format!("no {} address is left for new pods", it.family);
            problem(what, "delete pods or add a pod CIDR to the Node");
        }
        problems
    }
}

/// The pods of a node that are not of the mesh, by why; those that have ended are none.
fn not_enrolled(snapshot: &Snapshot, node: &str) -> BTreeMap<String, Vec<String>> {
    let mut by_reason: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for workload in snapshot.workloads_on(node) {
        let pod = workload.pod.as_ref().filter(|it| !it.terminated);
        if let Some(why) = pod.and_then(|it| snapshot.not_enrolled(it)) {
            let pods = by_reason.entry(why.to_string()).or_default();
            pods.push(workload.key.to_string());
        }
    }
    by_reason
}

impl Pods {
    fn of(snapshot: &Snapshot, node: &str) -> Self {
        let wired = snapshot
            .workloads_on(node)
            .filter(|it| !it.attachments.is_empty());
        let mut pods = Self {
            wired: 0,
            enrolled: 0,
            strict: 0,
        };
        for workload in wired {
            pods.wired += 1;
            pods.enrolled += usize::from(workload.enrolled);
            pods.strict += usize::from(workload.enrolled && workload.strict);
        }
        pods
    }
}
