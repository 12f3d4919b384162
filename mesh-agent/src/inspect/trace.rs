//! What would become of a connection.

use std::net::{IpAddr, SocketAddr};

use super::party::{self, Someone};
use super::walk::{Hop, Leg, Walk};
use super::{End, Outcome, Path, Problem, Question, Step, Trace, Transport};
use crate::model::{Key, Protocol, Readiness, Service, ServicePort, Snapshot};
use crate::policy::IpProtocol;
use crate::route::candidates;

/// Endpoints of a service that are told one by one.
const MAX_ENDPOINTS: usize = 32;

/// Tells what would become of a connection, step by step.
///
/// A pure function of the snapshot: nothing is sent.
///
/// # Errors
/// The ends are not known, or the question is not whole.
pub fn trace(snapshot: &Snapshot, question: &Question) -> Result<Trace, Problem> {
    if !snapshot.is_synced() {
        let node = snapshot.settings().node.to_string();
        return Err(Problem::NotSynced(node));
    }
    let target = Target::of(snapshot, question)?;
    let sources = party::addresses(snapshot, &question.source)?;
    let (source, destinations) = in_common(&sources, &target.addresses)?;
    let walk = Walk {
        snapshot,
        source: Someone::at(snapshot, source),
        protocol: question.protocol,
    };
    let mut steps = Vec::new();
    let mut legs = legs(&walk, &destinations, target.port, &mut steps);
    let endpoints = legs.len();
    legs.truncate(MAX_ENDPOINTS);
    let mut notes = walk.notes(&legs);
    if endpoints > legs.len() {
        let more = endpoints - legs.len();
        notes.push(format!("{more} more endpoints are not told"));
    }
    let before = denials(&steps);
    if !before.is_empty() {
        notes.push("egress is judged on the service's own address, which is no pod's: only rules for any peer or for a block of addresses are about it".to_owned());
    }
    let paths: Vec<_> = legs.iter().map(|leg| path(&walk, leg, &before)).collect();
    let (outcome, conclusion) = conclude(&paths, before);
    Ok(Trace {
        node: snapshot.settings().node.to_string(),
        revision: snapshot.revision(),
        protocol: question.protocol,
        source: walk.source.told(snapshot),
        destination: target.name,
        steps,
        paths,
        notes,
        outcome,
        conclusion,
    })
}

/// The ways there, and what happens before one of them is chosen.
fn legs(walk: &Walk<'_>, destinations: &[IpAddr], port: u16, steps: &mut Vec<Step>) -> Vec<Leg> {
    let each = || destinations.iter().map(|it| SocketAddr::new(*it, port));
    let at = |it: &SocketAddr| walk.snapshot.service_by_addr(it.ip());
    let service = each().find_map(|it| Some((it, at(&it)?)));
    match service.filter(|_| walk.protocol != Transport::Icmp) {
        Some((address, service)) => through_service(walk, service, address, steps),
        None => each().map(|it| walk.direct(it)).collect(),
    }
}

/// A destination as it was asked for.
struct Target {
    name: String,
    /// Its addresses, at least one. Of a headless service those of its endpoints, as DNS tells them.
    addresses: Vec<IpAddr>,
    /// The port; 0 where there is none.
    port: u16,
}

impl Target {
    fn of(snapshot: &Snapshot, question: &Question) -> Result<Self, Problem> {
        let protocol = IpProtocol::from(question.protocol).of_ports();
        let (name, addresses, ports) = match &question.destination {
            End::Service { namespace, name } => {
                let service = party::service(snapshot, namespace, name)?;
                let ports = service.ports.iter();
                let ports = ports.map(|it| (it.protocol, it.port)).collect();
                let name = format!("service {}", service.key);
                (name, addresses_of(snapshot, service)?, ports)
            }
            end @ End::Pod { namespace, name } => {
                let pod = party::pod(snapshot, namespace, name)?;
                let ports = pod.ports.iter();
                let ports = ports.map(|it| (it.protocol, it.port)).collect();
                (
                    format!("pod {}", pod.key),
                    party::addresses(snapshot, end)?,
                    ports,
                )
            }
            End::Address(address) => {
                let service = snapshot.service_by_addr(*address);
                let ports = service.iter().flat_map(|it| &it.ports);
                let ports = ports.map(|it| (it.protocol, it.port)).collect();
                let of = service.map(|it| format!(" of service {}", it.key));
                let name = format!("address {address}{}", of.unwrap_or_default());
                (name, vec![*address], ports)
            }
        };
        let port = port(question.port, protocol, ports)?;
        Ok(Self {
            name,
            addresses,
            port,
        })
    }
}

/// The port that is meant: the one told, or the only one of the destination.
fn port(
    told: Option<u16>,
    protocol: Option<Protocol>,
    named: Vec<(Protocol, u16)>,
) -> Result<u16, Problem> {
    let Some(protocol) = protocol else {
        return told.map_or(Ok(0), |_| Err(Problem::PortOfIcmp));
    };
    if let Some(port) = told {
        return Ok(port);
    }
    let mut ports: Vec<_> = named
        .into_iter()
        .filter_map(|(of, port)| (of == protocol).then_some(port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    match ports[..] {
        [port] => Ok(port),
        _ => Err(Problem::NoPort(ports)),
    }
}

fn addresses_of(snapshot: &Snapshot, service: &Service) -> Result<Vec<IpAddr>, Problem> {
    let mut addresses = service.addresses.clone();
    if addresses.is_empty() {
        let ports = service.ports.iter();
        let endpoints = ports.flat_map(|port| snapshot.endpoints(service, port));
        let ready = endpoints.filter(|it| it.readiness == Readiness::Ready);
        addresses = ready.map(|it| it.address.ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
    }
    if addresses.is_empty() {
        return Err(Problem::NoEndpoint(service.key.clone()));
    }
    Ok(addresses)
}

/// The addresses of the first family that both ends have. A service and a pod have one of it, an address by chance more.
fn in_common(from: &[IpAddr], to: &[IpAddr]) -> Result<(IpAddr, Vec<IpAddr>), Problem> {
    let both = from.iter().find_map(|source| {
        let same = to.iter().filter(|it| it.is_ipv4() == source.is_ipv4());
        let same: Vec<_> = same.copied().collect();
        (!same.is_empty()).then_some((*source, same))
    });
    both.ok_or(Problem::NoCommonFamily)
}

/// The ways to the endpoints behind a service's address.
fn through_service(
    walk: &Walk<'_>,
    service: &Service,
    address: SocketAddr,
    steps: &mut Vec<Step>,
) -> Vec<Leg> {
    let by_agent = walk.is_captured();
    if !by_agent {
        // The kernel sees the packet before whoever translates it.
        steps.extend(walk.egress(address, Hop::Kernel));
    }
    let protocol = IpProtocol::from(walk.protocol).of_ports();
    let mut ports = service.ports.iter();
    let found = ports.find(|it| it.port == address.port() && Some(it.protocol) == protocol);
    let endpoints = found.map_or_else(Vec::new, |port| endpoints(walk, service, port, address));
    let by = match walk.source.node {
        Some(node) if by_agent => format!("the agent of node {node}"),
        Some(node) => format!("node {node}, not by the mesh (kube-proxy)"),
        None => "its own node, not by the mesh".to_owned(),
    };
    let legs = if by_agent && walk.source.is_here(walk.snapshot) {
        walk.decided(address)
    } else if endpoints.is_empty() {
        let missing = if found.is_some() {
            "ready endpoint for port"
        } else {
            "port"
        };
        let key: &Key = &service.key;
        let why = format!("service {key} has no {missing} {}", address.port());
        vec![Leg::refused(address, by_agent.into(), why)]
    } else if by_agent {
        let each = endpoints.iter();
        each.map(|it| walk.by_agent(*it)).collect()
    } else {
        let each = endpoints.iter();
        each.map(|it| Leg::plain(*it, Hop::Service)).collect()
    };
    steps.push(Step::Service {
        service: service.key.to_string(),
        by,
        endpoints,
    });
    legs
}

/// The endpoints that take connections from the source's node.
fn endpoints(
    walk: &Walk<'_>,
    service: &Service,
    port: &ServicePort,
    address: SocketAddr,
) -> Vec<SocketAddr> {
    let node = walk.source.node.unwrap_or_default();
    let groups = candidates(walk.snapshot, node, service, port, address.is_ipv4());
    let first = groups.into_iter().next().unwrap_or_default();
    let mut addresses: Vec<_> = first.iter().map(|it| it.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn path(walk: &Walk<'_>, leg: &Leg, before: &[String]) -> Path {
    let steps = walk.steps(leg);
    let mut denied_by = before.to_vec();
    denied_by.extend(denials(&steps));
    let address = leg.address;
    Path {
        destination: Someone::at(walk.snapshot, address.ip()).told(walk.snapshot),
        port: (walk.protocol != Transport::Icmp).then_some(address.port()),
        steps,
        denied_by,
    }
}

/// Who denies.
fn denials(steps: &[Step]) -> Vec<String> {
    let denial = |step: &Step| match step {
        Step::Verdict(it) if !it.allow => {
            let what = match &it.policy {
                Some(policy) => format!("{} {}/{}", policy.kind, policy.namespace, policy.name),
                None => it.layer.clone(),
            };
            Some(format!("{what} at {}: {}", it.direction, it.reason))
        }
        Step::Route {
            carriage: super::Carriage::Refused,
            detail,
            by,
            ..
        } => Some(format!("{by}: {detail}")),
        _ => None,
    };
    steps.iter().filter_map(denial).collect()
}

fn conclude(paths: &[Path], before: Vec<String>) -> (Outcome, String) {
    let denied: Vec<_> = paths.iter().filter(|it| !it.denied_by.is_empty()).collect();
    let first = denied.first().map_or(before, |it| it.denied_by.clone());
    let by = first.join("; and by ");
    if denied.is_empty() && first.is_empty() {
        (Outcome::Allowed, "allowed".to_owned())
    } else if denied.len() == paths.len() {
        (Outcome::Denied, format!("denied by {by}"))
    } else {
        let to = denied[0].destination.address;
        let (allowed, all) = (paths.len() - denied.len(), paths.len());
        let words = format!("allowed to {allowed} of {all} endpoints; to {to} denied by {by}");
        (Outcome::Partly, words)
    }
}
