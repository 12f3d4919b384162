//! Local pods by what policies say about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_common::cni::Attachment;
use mesh_common::maps::flags;

use crate::model::{ContainerPort, Snapshot, Workload, WorkloadKey};
use crate::policy::{
    Action, AuthorizationPolicy, AuthorizationRule, Direction, Match, NetworkPolicy,
};

/// What policies say about some local pods, of which they say the same.
pub(super) struct View<'a> {
    /// One of the pods. It is nobody's peer: that a pod reaches itself is the kernel's to know.
    pub(super) workload: Workload,
    /// The network policies that select it.
    pub(super) network: Vec<&'a NetworkPolicy>,
    /// The authorization policies that its peers are held against.
    pub(super) authorization: Vec<&'a AuthorizationPolicy>,
    /// [`flags::INGRESS`], [`flags::EGRESS`], [`flags::STRICT`].
    pub(super) flags: u32,
    /// Its own addresses; empty unless policies ask for the destination's address.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether it has several interfaces, and the kernel does not know all its addresses at each.
    pub(super) alone: bool,
}

impl<'a> View<'a> {
    /// What policies say about a local pod; none when they say nothing.
    pub(super) fn of(snapshot: &'a Snapshot, workload: &'a Workload) -> Option<Self> {
        let policies = snapshot.network_policies_for(workload);
        let mut network: Vec<_> = policies.map(|it| &**it).collect();
        network.sort_by(|a, b| a.key.cmp(&b.key));
        let policies = workload.enrolled.then_some(workload);
        let policies = policies.map(|it| snapshot.authorization_policies_for(it));
        let policies = policies.into_iter().flatten().map(|it| &**it);
        let mut authorization: Vec<_> =
            policies.filter(|it| it.action != Action::Nothing).collect();
        authorization.sort_by(|a, b| a.key.cmp(&b.key));

        let isolates = |direction| network.iter().any(|it| it.rules(direction).is_some());
        let mut flags = 0;
        let mut ports = workload.strict_ports.values();
        if workload.enrolled && workload.strict && ports.all(|it| *it) {
            flags |= flags::STRICT;
        }
        let mut ports = workload.strict_ports.values();
        let strict = workload.enrolled && (workload.strict || ports.any(|it| *it));
        if isolates(Direction::Ingress) || strict || !authorization.is_empty() {
            flags |= flags::INGRESS;
        }
        if isolates(Direction::Egress) {
            flags |= flags::EGRESS;
        }
        let alone = workload.attachments.len() > 1;
        let mut view = Self {
            workload: workload.clone(),
            network,
            authorization,
            flags,
            addresses: Vec::new(),
            alone,
        };
        if view.matches().any(|it| !it.destinations.is_any()) {
            let attached = workload.attachments.iter();
            let attached = attached.filter_map(|it| snapshot.attachment(it));
            view.addresses = attached.flat_map(|it| it.addresses.clone()).collect();
        }
        if !alone {
            view.workload.key = nobody();
        }
        (flags != 0).then_some(view)
    }

    /// Whether policies say the same about both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        !self.alone && !other.alone && self.aspect() == other.aspect()
    }

    /// Every match of its authorization policies.
    pub(super) fn matches(&self) -> impl Iterator<Item = &'a Match> {
        let rules = self.authorization.iter().flat_map(|it| &it.rules);
        let clauses = rules.flat_map(|it| match it {
            AuthorizationRule::AllOf(clauses) => &clauses[..],
            AuthorizationRule::Undecided => &[],
        });
        clauses.flatten()
    }

    /// Whether flows of a direction are judged.
    pub(super) fn judges(&self, direction: Direction) -> bool {
        let flag = match direction {
            Direction::Ingress => flags::INGRESS,
            Direction::Egress => flags::EGRESS,
        };
        self.flags & flag != 0
    }

    fn aspect(&self) -> Aspect<'_> {
        let Self { workload, .. } = self;
        let pod = workload.pod.as_deref();
        let mesh = pod.filter(|_| workload.enrolled);
        Aspect {
            flags: self.flags,
            network: self.network.iter().map(|it| &raw const **it).collect(),
            authorization: self
                .authorization
                .iter()
                .map(|it| &raw const **it)
                .collect(),
            mesh: mesh.map(|it| (workload.strict, &workload.strict_ports, &it.probe_ports)),
            ports: pod.map(|it| &it.ports[..]),
            terminated: pod.is_some_and(|it| it.terminated),
            addresses: &self.addresses,
        }
    }
}

/// All that a verdict about a pod depends on, but its peer.
#[derive(PartialEq)]
struct Aspect<'a> {
    flags: u32,
    network: Vec<*const NetworkPolicy>,
    authorization: Vec<*const AuthorizationPolicy>,
    /// Of an enrolled pod: how strict it is, and where it is probed.
    mesh: Option<(bool, &'a BTreeMap<u16, bool>, &'a BTreeSet<u16>)>,
    ports: Option<&'a [ContainerPort]>,
    terminated: bool,
    addresses: &'a [IpAddr],
}

/// A key that no workload has.
fn nobody() -> WorkloadKey {
    WorkloadKey::Attachment(Attachment {
        container: String::new(),
        ifname: String::new(),
    })
}
