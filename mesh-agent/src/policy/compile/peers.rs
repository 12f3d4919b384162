//! What policies see in the other ends of connections.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::slice;

use ipnet::IpNet;

use super::mark::{Grant, Mark};
use super::ports::{Spans, spans};
use super::regions::Regions;
use super::residents::Residents;
use super::view::View;
use crate::model::{Identity, Key, Protocol, Snapshot, Workload};
use crate::policy::{
    Among, AuthorizationPolicy, AuthorizationRule, Direction, IpBlock, Match, NetworkPolicy,
    NetworkRule, Peer,
};

/// All that views look for.
#[derive(Default)]
pub(super) struct Peers<'a> {
    /// What views grant to some; what one view grants twice is one grant.
    pub(super) grants: Vec<Grant<'a>>,
    /// Grants to everybody, by view.
    pub(super) always: Vec<Vec<usize>>,
    granted: BTreeMap<(usize, Direction, Spans<'a>), usize>,
    /// By policy, direction and place: a rule is held against a peer once, however many views it is in.
    rules: BTreeMap<(&'a Key, Direction, usize), Rule<'a>>,
    /// Matches that say the same of everything but the peer, and the views they are in.
    matches: Vec<(Vec<&'a Match>, Vec<usize>)>,
    /// Names of ports at peers, and the views that ask for them.
    names: BTreeMap<(&'a str, Protocol), Vec<usize>>,
    /// Views that judge ingress.
    ingress: Vec<usize>,
    /// Views that ask for the destination's address.
    families: Vec<usize>,
    /// Views with a pod that is marked, by themselves.
    alone: Vec<usize>,
}

/// The peers of a rule, and the grants of being one.
struct Rule<'a> {
    policy: &'a NetworkPolicy,
    peers: &'a [Peer],
    to_pods: Vec<usize>,
    to_blocks: Vec<usize>,
}

/// Blocks by the region of their prefix, each with the rule it is in.
pub(super) type Blocks<'p, 'a> = HashMap<usize, Vec<(&'p [usize], &'a IpBlock)>>;

impl<'a> Peers<'a> {
    /// What some views look for.
    pub(super) fn of(views: &[View<'a>]) -> Self {
        let mut peers = Self::default();
        let mut authorization = BTreeMap::<_, (_, Vec<_>)>::new();
        for (index, view) in views.iter().enumerate() {
            peers.always.push(Vec::new());
            peers.alone.push(index);
            for policy in &view.network {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let rules = policy.rules(direction).unwrap_or_default();
                    for (place, rule) in rules.iter().enumerate() {
                        peers.rule(index, policy, direction, (place, rule));
                    }
                }
            }
            for policy in &view.authorization {
                let entry = authorization.entry(&policy.key);
                entry.or_insert((*policy, Vec::new())).1.push(index);
            }
            if view.judges(Direction::Ingress) {
                peers.ingress.push(index);
            }
            if !view.addresses.is_empty() {
                peers.families.push(index);
            }
        }
        for (policy, views) in authorization.into_values() {
            peers.authorization(policy, &views);
        }
        peers
    }

    fn rule(
        &mut self,
        view: usize,
        policy: &'a NetworkPolicy,
        direction: Direction,
        (place, rule): (usize, &'a NetworkRule),
    ) {
        let ports = spans(&rule.ports);
        let mut numbers = ports.clone();
        if direction == Direction::Egress {
            let spans = ports.iter().flatten();
            for (name, protocol) in spans.filter_map(|it| Some((it.name?, it.protocol))) {
                self.names.entry((name, protocol)).or_default().push(view);
            }
            // What a block leads to is no pod, so it has no names for its ports.
            if let Some(numbers) = &mut numbers {
                numbers.retain(|it| it.name.is_none());
            }
        }
        let to_pods = self.grant(view, direction, ports);
        let Among::OneOf(peers) = &rule.peers else {
            self.always[view].extend(to_pods);
            return;
        };
        let to_blocks = self.grant(view, direction, numbers);
        let rule = self.rules.entry((&policy.key, direction, place));
        let rule = rule.or_insert_with(|| Rule {
            policy,
            peers,
            to_pods: Vec::new(),
            to_blocks: Vec::new(),
        });
        rule.to_pods.extend(to_pods);
        rule.to_blocks.extend(to_blocks);
    }

    /// The index of a grant; none when it grants nothing.
    fn grant(&mut self, view: usize, direction: Direction, ports: Spans<'a>) -> Option<usize> {
        if ports.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let next = self.grants.len();
        let key = (view, direction, ports.clone());
        let index = *self.granted.entry(key).or_insert(next);
        if index == next {
            self.grants.push(Grant {
                view,
                direction,
                ports,
            });
        }
        Some(index)
    }

    fn authorization(&mut self, policy: &'a AuthorizationPolicy, views: &[usize]) {
        for rule in &policy.rules {
            let AuthorizationRule::AllOf(clauses) = rule else {
                continue;
            };
            for clause in clauses {
                let mut alike: Vec<Vec<&Match>> = Vec::new();
                for it in clause {
                    let rest = |it: &'a Match| (&it.ports, &it.destinations);
                    match alike.iter_mut().find(|like| rest(like[0]) == rest(it)) {
                        Some(like) => like.push(it),
                        None => alike.push(vec![it]),
                    }
                }
                let with_views = alike.into_iter().map(|it| (it, views.to_vec()));
                self.matches.extend(with_views);
            }
        }
    }

    /// Every prefix that a peer may be in.
    pub(super) fn nets(&self) -> impl Iterator<Item = &'a IpNet> {
        let blocks = self.rules.values().flat_map(|it| blocks(it.peers));
        let blocks = blocks.flat_map(|it| it.except.iter().chain([&it.cidr]));
        let sources = self.matches.iter().flat_map(|(it, _)| it);
        let sources = sources.flat_map(|it| it.sources.any_of.iter().chain(&it.sources.none_of));
        blocks.chain(sources)
    }

    /// Every block, where it can be found.
    pub(super) fn blocks(&self, regions: &Regions) -> Blocks<'_, 'a> {
        let mut found = Blocks::new();
        for rule in self.rules.values() {
            for block in blocks(rule.peers) {
                if let Some(region) = regions.of_net(&block.cidr) {
                    let there = found.entry(region).or_default();
                    there.push((&rule.to_blocks, block));
                }
            }
        }
        found
    }

    /// What is seen in every address of a region, whoever has it; nothing where there is none.
    pub(super) fn of_region(
        &self,
        regions: &Regions,
        blocks: &Blocks<'_, 'a>,
        region: usize,
    ) -> Vec<Mark<'a>> {
        let Some(address) = regions.all[region].sample else {
            return Vec::new();
        };
        let around = regions.around(region).filter_map(|it| blocks.get(&it));
        let around = around.flatten().filter(|(_, it)| it.contains(address));
        let grants = around.flat_map(|(grants, _)| *grants);
        let mut marks: Vec<_> = grants.map(|it| Mark::Granted(*it)).collect();
        marks.extend(self.from(None, address, false));
        if address.is_ipv6() && !self.families.is_empty() {
            marks.push(Mark::V6);
        }
        marks
    }

    /// What network policies grant pods of a namespace.
    pub(super) fn of_namespace(&self, snapshot: &Snapshot, namespace: &str) -> Residents<'_, 'a> {
        let rules = self.rules.values().map(|rule| {
            let peers = rule.peers.iter();
            let pods = peers.filter_map(|it| it.pods_of(snapshot, rule.policy, namespace));
            (pods.collect(), &rule.to_pods[..])
        });
        Residents::new(rules)
    }

    /// What else is seen in a workload at an address.
    pub(super) fn of_workload(
        &self,
        views: &[View<'_>],
        workload: &'a Workload,
        address: IpAddr,
    ) -> Vec<Mark<'a>> {
        let ports = workload.pod.iter().flat_map(|it| &it.ports);
        let named = ports.filter(|it| self.names.contains_key(&(it.name.as_str(), it.protocol)));
        let mut marks: Vec<_> = named
            .map(|it| Mark::Port {
                name: &it.name,
                protocol: it.protocol,
                port: it.port,
            })
            .collect();
        if !workload.is_local() {
            return marks;
        }
        if !self.ingress.is_empty() {
            marks.push(Mark::Local {
                has_identity: workload.identity.is_some(),
            });
            marks.extend(self.from(workload.identity.as_ref(), address, true));
        }
        // Others have given up their key.
        let own = views.iter().position(|it| it.workload.key == workload.key);
        marks.extend(own.map(Mark::Own));
        marks
    }

    fn from(
        &self,
        identity: Option<&Identity>,
        address: IpAddr,
        proved: bool,
    ) -> impl Iterator<Item = Mark<'a>> {
        let holds = move |it: &[&Match]| it.iter().any(|it| it.is_from(identity, address));
        let matches = self.matches.iter().enumerate();
        let matches = matches.filter(move |(_, (it, _))| holds(it));
        matches.map(move |(matches, _)| Mark::From { matches, proved })
    }

    /// The views that look for a mark, by index.
    pub(super) fn views(&self, mark: Mark<'a>) -> &[usize] {
        match mark {
            Mark::Granted(grant) => slice::from_ref(&self.grants[grant].view),
            Mark::From { matches, .. } => &self.matches[matches].1,
            Mark::Port { name, protocol, .. } => &self.names[&(name, protocol)],
            Mark::Local { .. } => &self.ingress,
            Mark::V6 => &self.families,
            Mark::Own(view) => slice::from_ref(&self.alone[view]),
        }
    }
}

fn blocks(peers: &[Peer]) -> impl Iterator<Item = &IpBlock> {
    peers.iter().filter_map(|it| match it {
        Peer::Block(block) => Some(block),
        Peer::Pods { .. } => None,
    })
}
