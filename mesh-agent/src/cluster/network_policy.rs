//! `NetworkPolicy` as it is written -> rules.
//!
//! A policy only ever adds to what is allowed, so a part that is not understood is left out; of what its whole shape is
//! not understood, nothing is allowed in either direction.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::field::{CIDR, Invalid, key, port, protocol};
use super::shape::{Unread, note, read, selector, subjects};
use super::{crd, field};
use crate::policy::{
    Among, Caveat, Effect, IpBlock, Namespaces, NetworkPolicy, NetworkRule, Peer, PortRange,
    PortTerm, Selector,
};

/// Converts a network policy; what is wrong with its spec is among its caveats.
///
/// # Errors
/// It has no name.
pub fn network_policy(it: &crd::Policy) -> Result<NetworkPolicy, Invalid> {
    let key = key(&it.metadata)?;
    let mut caveats = Vec::new();
    let spec = match &it.spec {
        Value::Null => Ok(net::NetworkPolicySpec::default()),
        it => read("spec", it),
    };
    let (selected, ingress, egress) = match spec {
        Ok(spec) => directions(spec, &mut caveats),
        Err(problem) => {
            caveats.push(problem.caveat(Effect::IsolatesBoth));
            let selected = it.spec.get("podSelector").unwrap_or(&Value::Null);
            (pod_selector(selected), Some(Vec::new()), Some(Vec::new()))
        }
    };
    Ok(NetworkPolicy {
        key,
        selector: subjects(selected, &mut caveats),
        ingress,
        egress,
        caveats,
    })
}

type Rules = Option<Vec<NetworkRule>>;

/// The selected pods, and the rules of each direction that is isolated.
fn directions(
    spec: net::NetworkPolicySpec,
    caveats: &mut Vec<Caveat>,
) -> (Result<Selector, Unread>, Rules, Rules) {
    let selected = spec.pod_selector.unwrap_or_default();
    let selected = selector("spec.podSelector", selected).map_err(Unread::from);
    let types = spec.policy_types.unwrap_or_default();
    let egress = spec.egress.unwrap_or_default();
    let is_type = |name: &str| types.iter().any(|it| it == name);
    let stranger = types
        .iter()
        .find(|it| !matches!(&***it, "Ingress" | "Egress"));
    if let Some(stranger) = stranger {
        let problem = Invalid {
            field: "spec.policyTypes".to_owned(),
            value: stranger.clone(),
            expected: "Ingress or Egress",
        };
        caveats.push(Unread::from(problem).caveat(Effect::IsolatesBoth));
    }
    // The API's default: always ingress, egress if the policy has rules for it.
    let isolates_ingress = types.is_empty() || stranger.is_some() || is_type("Ingress");
    let isolates_egress =
        stranger.is_some() || is_type("Egress") || (types.is_empty() && !egress.is_empty());
    let mut rules = |name, list: Vec<(_, _)>| -> Vec<_> {
        let list = list.into_iter().enumerate();
        list.map(|(i, (peers, ports))| rule(name, i, peers, ports, caveats))
            .collect()
    };
    let ingress = spec.ingress.unwrap_or_default().into_iter();
    let ingress = isolates_ingress.then(|| {
        rules(
            ("ingress", "from"),
            ingress.map(|it| (it.from, it.ports)).collect(),
        )
    });
    let egress = egress.into_iter();
    let egress = isolates_egress.then(|| {
        rules(
            ("egress", "to"),
            egress.map(|it| (it.to, it.ports)).collect(),
        )
    });
    (selected, ingress, egress)
}

/// What is left of a selector in a spec that is wrong elsewhere.
fn pod_selector(written: &Value) -> Result<Selector, Unread> {
    let path = "spec.podSelector";
    let it = match written {
        Value::Null => LabelSelector::default(),
        it => read(path, it)?,
    };
    Ok(selector(path, it)?)
}

fn rule(
    (direction, end): (&str, &str),
    index: usize,
    peers: Option<Vec<net::NetworkPolicyPeer>>,
    ports: Option<Vec<net::NetworkPolicyPort>>,
    caveats: &mut Vec<Caveat>,
) -> NetworkRule {
    let path = format!("spec.{direction}[{index}]");
    NetworkRule {
        peers: among(&format!("{path}.{end}"), peers, peer, caveats),
        ports: among(&format!("{path}.ports"), ports, port_term, caveats),
    }
}

/// A list of alternatives; one that is left out or empty does not restrict.
fn among<W, T>(
    path: &str,
    written: Option<Vec<W>>,
    convert: impl Fn(&str, W) -> Result<T, Invalid>,
    caveats: &mut Vec<Caveat>,
) -> Among<T> {
    let written = written.unwrap_or_default();
    if written.is_empty() {
        return Among::Any;
    }
    let mut understood = Vec::new();
    for (i, it) in written.into_iter().enumerate() {
        match convert(&format!("{path}[{i}]"), it) {
            Ok(it) => understood.push(it),
            Err(problem) => note(caveats, Unread::from(problem).caveat(Effect::AllowsLess)),
        }
    }
    Among::OneOf(understood)
}

fn peer(path: &str, it: net::NetworkPolicyPeer) -> Result<Peer, Invalid> {
    let of = |name: &str, it| selector(&format!("{path}.{name}"), it);
    match (it.ip_block, it.namespace_selector, it.pod_selector) {
        (Some(block), None, None) => ip_block(&format!("{path}.ipBlock"), block),
        (None, Some(namespaces), pods) => Ok(Peer::Pods {
            namespaces: Namespaces::Matching(of("namespaceSelector", namespaces)?),
            pods: of("podSelector", pods.unwrap_or_default())?,
        }),
        (None, None, Some(pods)) => Ok(Peer::Pods {
            namespaces: Namespaces::Own,
            pods: of("podSelector", pods)?,
        }),
        (block, _, _) => Err(Invalid {
            field: path.to_owned(),
            value: block.map_or("", |_| "ipBlock and a selector").to_owned(),
            expected: "an ipBlock alone, a podSelector, a namespaceSelector, or both selectors",
        }),
    }
}

fn ip_block(path: &str, it: net::IPBlock) -> Result<Peer, Invalid> {
    let cidr = prefix(&format!("{path}.cidr"), &it.cidr)?;
    let mut except = Vec::new();
    for (i, text) in it.except.into_iter().flatten().enumerate() {
        let field = format!("{path}.except[{i}]");
        let hole = prefix(&field, &text)?;
        if !cidr.contains(&hole) {
            return Err(Invalid {
                field,
                value: text,
                expected: "a prefix within the block's cidr",
            });
        }
        except.push(hole);
    }
    Ok(Peer::Block(IpBlock { cidr, except }))
}

/// Reads a prefix; host bits do not matter.
fn prefix(path: &str, text: &str) -> Result<IpNet, Invalid> {
    let it: IpNet = field::parse(path, text, CIDR)?;
    field::not_mapped(path, text, it)
}

fn port_term(path: &str, it: net::NetworkPolicyPort) -> Result<PortTerm, Invalid> {
    let protocol = protocol(|| format!("{path}.protocol"), it.protocol.as_deref())?;
    let last = it.end_port;
    let no_end = |expected| match last {
        Some(last) => Err(Invalid {
            field: format!("{path}.endPort"),
            value: last.to_string(),
            expected,
        }),
        None => Ok(()),
    };
    let number = |name: &str, it| port(|| format!("{path}.{name}"), it);
    let port = match it.port {
        None => {
            no_end("endPort only with a port")?;
            PortRange::All
        }
        Some(IntOrString::String(name)) => {
            no_end("endPort only with a port that is a number")?;
            let is_name = name.bytes().any(|it| it.is_ascii_alphabetic());
            if !is_name {
                return Err(Invalid {
                    field: format!("{path}.port"),
                    value: name,
                    expected: "a number without quotes, or the name of a container's port",
                });
            }
            PortRange::Name(name)
        }
        Some(IntOrString::Int(first)) => {
            let first = number("port", first)?;
            let last = last.map_or(Ok(first), |it| number("endPort", it))?;
            if last < first {
                no_end("a port that is not below the range's first")?;
            }
            PortRange::Numbers(first..=last)
        }
    };
    Ok(PortTerm { protocol, port })
}
