//! What the agent knows, as `istioctl ztunnel-config` reads it (`istioctl/pkg/writer/ztunnel/configdump/api.go` of Istio).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::services::{hostname, whose};
use super::workloads::protocol;
use crate::model::{self, Key, Snapshot};
use crate::pki::{Report, Shown};
use crate::policy::{
    Action, AuthorizationPolicy, AuthorizationRule, Direction, Match, Pattern, Selector,
    ServiceAccount,
};
use crate::proxy::Ends;

/// What is dumped besides the world.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Name of the cluster.
    pub cluster: String,
    /// The flags in force.
    pub flags: BTreeMap<String, String>,
    /// The node's certificates.
    pub certificates: Vec<Report>,
    /// The connections that are open.
    pub connections: Vec<Ends>,
}

/// The dump, without any key.
pub fn config_dump(snapshot: &Snapshot, about: &About) -> Value {
    let pods: Vec<_> = snapshot
        .workloads()
        .filter_map(|it| Some((it, it.pod.as_deref()?)))
        .collect();
    let dumped = pods
        .iter()
        .map(|(it, pod)| workload(snapshot, about, it, pod));
    let carried = Carried::of(&about.connections);
    let local = pods.iter().filter(|(it, _)| it.is_local() && it.enrolled);
    let state: Map<_, _> = local
        .map(|(it, pod)| (uid(about, &pod.key), state(snapshot, &carried, it, pod)))
        .collect();
    let services = snapshot.services().map(|it| service(snapshot, about, it));
    let policies = snapshot.authorization_policies();
    json!({
        "version": { "version": env!("CARGO_PKG_VERSION"), "agent": "mesh-agent" },
        "config": about.flags,
        "node": &*snapshot.settings().node,
        "revision": snapshot.revision(),
        "workloads": dumped.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "policies": policies.map(|it| policy(snapshot, it)).collect::<Vec<_>>(),
        "certificates": about.certificates.iter().map(certificate).collect::<Vec<_>>(),
        "workloadState": state,
    })
}

/// Istio's name of a pod among all clusters.
fn uid(about: &About, pod: &Key) -> String {
    format!("{}//Pod/{}/{}", about.cluster, pod.namespace, pod.name)
}

fn workload(snapshot: &Snapshot, about: &About, it: &model::Workload, pod: &model::Pod) -> Value {
    let canonical = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ];
    let revision = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    let first = |labels: [&str; 3], default: &str| {
        let mut labels = labels.iter().filter_map(|it| pod.labels.get(*it));
        labels.next().map_or(default, String::as_str).to_owned()
    };
    let node = it.node.as_deref().unwrap_or_default();
    let zone = snapshot.node(node).and_then(|it| it.zone.as_deref());
    let policies = snapshot.authorization_policies_for(it);
    json!({
        "uid": uid(about, &pod.key),
        "workloadIps": it.addresses,
        "protocol": protocol(it),
        "name": &*pod.key.name,
        "namespace": &*pod.key.namespace,
        "serviceAccount": &*pod.service_account,
        "workloadName": &*pod.key.name,
        "workloadType": "pod",
        "canonicalName": first(canonical, &pod.key.name),
        "canonicalRevision": first(revision, "latest"),
        "clusterId": about.cluster,
        "trustDomain": snapshot.settings().trust_domain,
        "locality": zone.map_or_else(|| json!({}), |zone| json!({ "zone": zone })),
        "node": node,
        "network": "",
        "status": if pod.ready { "Healthy" } else { "Unhealthy" },
        "hostname": "",
        "capacity": 1,
        "authorizationPolicies": policies.map(|it| it.key.to_string()).collect::<Vec<_>>(),
    })
}

fn state(
    snapshot: &Snapshot,
    carried: &Carried<'_>,
    it: &model::Workload,
    pod: &model::Pod,
) -> Value {
    let is_up = snapshot.is_synced() && !it.addresses.is_empty();
    json!({
        "state": if is_up { "Up" } else { "Pending" },
        "connections": carried.by(&it.addresses),
        "info": {
            "name": &*pod.key.name,
            "namespace": &*pod.key.namespace,
            "trustDomain": snapshot.settings().trust_domain,
            "serviceAccount": &*pod.service_account,
        },
    })
}

/// Connections by the address of the local pod: that opened them, and that they lead to.
#[derive(Default)]
struct Carried<'a> {
    outbound: HashMap<IpAddr, Vec<&'a Ends>>,
    inbound: HashMap<IpAddr, Vec<&'a Ends>>,
}

impl<'a> Carried<'a> {
    fn of(connections: &'a [Ends]) -> Self {
        let mut carried = Self::default();
        for it in connections {
            // Who judges egress has the opener here, who judges ingress the other end.
            for direction in it.directions {
                let (of, address) = match direction {
                    Direction::Egress => (&mut carried.outbound, it.source.ip()),
                    Direction::Ingress => (&mut carried.inbound, it.destination.ip()),
                };
                of.entry(address).or_default().push(it);
            }
        }
        carried
    }

    fn by(&self, addresses: &[IpAddr]) -> Value {
        let connection = |it: &&Ends| {
            json!({
                "src": it.source.to_string(),
                "originalDst": it.asked.to_string(),
                "actualDst": it.destination.to_string(),
                "protocol": if it.is_tunnelled { "HBONE" } else { "TCP" },
            })
        };
        let of = |all: &HashMap<IpAddr, Vec<&Ends>>| {
            let found = addresses.iter().filter_map(|it| all.get(it));
            found.flatten().map(connection).collect::<Value>()
        };
        json!({ "inbound": of(&self.inbound), "outbound": of(&self.outbound) })
    }
}

fn service(snapshot: &Snapshot, about: &About, it: &model::Service) -> Value {
    let hostname = hostname(snapshot, it);
    let mut endpoints: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for port in &it.ports {
        for backend in snapshot.endpoints(it, port) {
            let ports = endpoints.entry(match backend.pod {
                Some(pod) => uid(about, pod),
                None => whose(&backend),
            });
            let ports = ports.or_default();
            ports.insert(port.port.to_string(), backend.address.port().into());
        }
    }
    let name = |it: &model::TargetPort| match it {
        model::TargetPort::Number(number) => *number,
        // Istio's, too, has no number where each endpoint may have another.
        model::TargetPort::Name(_) => 0,
    };
    let ports = it.ports.iter();
    let ports = ports.map(|port| (port.port.to_string(), name(&port.target).into()));
    let endpoints = endpoints.into_iter().map(|(uid, ports)| {
        let endpoint = json!({
            "workloadUid": uid,
            "service": format!("{}/{hostname}", it.key.namespace),
            "port": ports,
        });
        (uid, endpoint)
    });
    json!({
        "name": &*it.key.name,
        "namespace": &*it.key.namespace,
        "hostname": hostname,
        "vips": it.addresses.iter().map(|ip| format!("/{ip}")).collect::<Vec<_>>(),
        "ports": ports.collect::<Map<String, Value>>(),
        "endpoints": endpoints.collect::<Map<String, Value>>(),
        "subjectAltNames": [],
        "ipFamilies": families(it),
    })
}

fn families(it: &model::Service) -> &'static str {
    let has = |v4| it.addresses.iter().any(|ip| ip.is_ipv4() == v4);
    match (has(true), has(false)) {
        (true, true) => "Dual",
        (true, false) => "IPv4",
        (false, true) => "IPv6",
        (false, false) => "",
    }
}

fn policy(snapshot: &Snapshot, it: &AuthorizationPolicy) -> Value {
    let scope = if it.selector != Selector::everything() {
        "WorkloadSelector"
    } else if it.key.namespace == snapshot.settings().root_namespace {
        "Global"
    } else {
        "Namespace"
    };
    let action = match it.action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Nothing => "Audit",
    };
    let rules = it.rules.iter().filter_map(|rule| match rule {
        AuthorizationRule::AllOf(clauses) => {
            let clause = |it: &Vec<Match>| it.iter().map(one_match).collect::<Vec<_>>();
            Some(clauses.iter().map(clause).collect::<Vec<_>>())
        }
        // As it is in force: it matches whatever there is, or nothing.
        AuthorizationRule::Undecided => (it.action == Action::Deny).then(Vec::new),
    });
    json!({
        "name": &*it.key.name,
        "namespace": &*it.key.namespace,
        "scope": scope,
        "action": action,
        "rules": rules.collect::<Vec<_>>(),
    })
}

fn one_match(it: &Match) -> Value {
    let patterns = |all: &[Pattern]| all.iter().map(pattern).collect::<Value>();
    let networks = |all: &[IpNet]| all.iter().map(ToString::to_string).collect::<Value>();
    let ports = |all: &[u16]| all.iter().copied().collect::<Value>();
    let account =
        |it: &ServiceAccount| json!({ "namespace": it.namespace, "serviceAccount": it.name });
    let accounts = |all: &[ServiceAccount]| all.iter().map(account).collect::<Value>();
    json!({
        "principals": patterns(&it.principals.any_of),
        "notPrincipals": patterns(&it.principals.none_of),
        "namespaces": patterns(&it.namespaces.any_of),
        "notNamespaces": patterns(&it.namespaces.none_of),
        "serviceAccounts": accounts(&it.service_accounts.any_of),
        "notServiceAccounts": accounts(&it.service_accounts.none_of),
        "sourceIps": networks(&it.sources.any_of),
        "notSourceIps": networks(&it.sources.none_of),
        "destinationIps": networks(&it.destinations.any_of),
        "notDestinationIps": networks(&it.destinations.none_of),
        "destinationPorts": ports(&it.ports.any_of),
        "notDestinationPorts": ports(&it.ports.none_of),
    })
}

fn pattern(it: &Pattern) -> Value {
    match it {
        Pattern::Exact(text) => json!({ "Exact": text }),
        Pattern::Prefix(text) => json!({ "Prefix": text }),
        Pattern::Suffix(text) => json!({ "Suffix": text }),
        Pattern::Present => json!({ "Presence": {} }),
    }
}

fn certificate(it: &Report) -> Value {
    let shown = |all: &[Shown]| {
        let shown = |it: &Shown| {
            json!({
                "pem": it.pem,
                "serialNumber": it.serial_number,
                "validFrom": it.not_before,
                "expirationTime": it.not_after,
            })
        };
        all.iter().map(shown).collect::<Value>()
    };
    let issued = it.certificate.as_ref();
    let state = match (issued, &it.last_error) {
        (Some(_), _) => "Available".to_owned(),
        (None, Some(error)) => format!("Unavailable: {error}"),
        (None, None) => "Initializing".to_owned(),
    };
    json!({
        "identity": it.identity,
        "state": state,
        "certChain": shown(issued.map_or(&[], |it| &it.chain)),
        "rootCerts": shown(issued.map_or(&[], |it| &it.trusted)),
    })
}
