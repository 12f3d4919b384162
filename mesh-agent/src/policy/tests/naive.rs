//! A second evaluator, written from the specifications alone: it reads the objects as they are written, knows none of the
//! engine's types, keeps no index, and asks every object about everything.

use std::net::IpAddr;

use serde_json::Value;

use super::{Direction, IpProtocol, Try};

/// All objects of a world, as they are written.
pub(super) struct Objects(pub(super) Vec<Value>);

impl Objects {
    /// Whether a connection passes at one of its ends.
    pub(super) fn allow(&self, it: &Try, direction: Direction) -> bool {
        let (source, destination) = (self.pod_at(it.from), self.pod_at(it.to));
        if let (Some(source), Some(destination)) = (source, destination)
            && source["metadata"] == destination["metadata"]
        {
            return true;
        }
        match direction {
            Direction::Egress => self.egress(it, source, destination),
            Direction::Ingress => {
                (it.node || self.ingress(it, source, destination))
                    && destination.is_none_or(|pod| self.istio(it, source, pod))
            }
        }
    }

    fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |it| it["kind"] == kind)
    }

    fn pod_at(&self, address: IpAddr) -> Option<&Value> {
        let address = address.to_string();
        self.of_kind("Pod").find(|it| {
            it["spec"]["hostNetwork"] != true && it["status"]["podIPs"][0]["ip"] == address
        })
    }

    fn namespace(&self, name: &str) -> Option<&Value> {
        self.of_kind("Namespace")
            .find(|it| it["metadata"]["name"] == name)
    }

    // NetworkPolicy.

    fn egress(&self, it: &Try, source: Option<&Value>, destination: Option<&Value>) -> bool {
        source.is_none_or(|subject| {
            self.network(it, subject, "Egress", it.to, destination, destination)
        })
    }

    fn ingress(&self, it: &Try, source: Option<&Value>, destination: Option<&Value>) -> bool {
        destination.is_none_or(|subject| {
            self.network(it, subject, "Ingress", it.from, source, destination)
        })
    }

    fn network(
        &self,
        it: &Try,
        subject: &Value,
        direction: &str,
        address: IpAddr,
        peer: Option<&Value>,
        destination: Option<&Value>,
    ) -> bool {
        let (list, end) = match direction {
            "Egress" => ("egress", "to"),
            _ => ("ingress", "from"),
        };
        let mut is_isolated = false;
        for policy in self.of_kind("NetworkPolicy") {
            let spec = &policy["spec"];
            if policy["metadata"]["namespace"] != subject["metadata"]["namespace"]
                || !selects(&spec["podSelector"], &subject["metadata"]["labels"])
                || !types(spec).contains(&direction)
            {
                continue;
            }
            is_isolated = true;
            for rule in items(&spec[list]) {
                let ports = items(&rule["ports"]);
                let peers = items(&rule[end]);
                let by = |peer_is_block: bool| {
                    ports.is_empty()
                        || ports.iter().any(|port| {
                            let nameless = peer_is_block && direction == "Egress";
                            port_matches(port, it, destination.filter(|_| !nameless))
                        })
                };
                let fits = |element: &Value| {
                    if element["ipBlock"].is_object() {
                        by(true) && in_block(&element["ipBlock"], address)
                    } else {
                        by(false) && peer.is_some_and(|peer| self.is_peer(element, peer, policy))
                    }
                };
                if peers.is_empty() && by(false) || peers.iter().any(fits) {
                    return true;
                }
            }
        }
        !is_isolated
    }

    fn is_peer(&self, element: &Value, peer: &Value, policy: &Value) -> bool {
        let name = text(&peer["metadata"]["namespace"]);
        let namespace_fits = if element["namespaceSelector"].is_object() {
            self.selects_namespace(&element["namespaceSelector"], name)
        } else {
            policy["metadata"]["namespace"] == *name
        };
        namespace_fits && selects(&element["podSelector"], &peer["metadata"]["labels"])
    }

    /// Every namespace is labelled with its name; of one that is not known nothing else holds.
    fn selects_namespace(&self, selector: &Value, name: &str) -> bool {
        const NAME: &str = "kubernetes.io/metadata.name";
        #[expect(clippy::single_match_else, reason = "two cases of equal weight")]
        match self.namespace(name) {
            Some(it) => {
                let mut labels = it["metadata"]["labels"].clone();
                labels[NAME] = name.into();
                selects(selector, &labels)
            }
            None => {
                let asked = selector["matchLabels"].as_object().into_iter().flatten();
                let asked = asked.map(|(key, _)| key.as_str());
                let expressions = items(&selector["matchExpressions"]);
                let mut keys = asked.chain(expressions.iter().map(|it| text(&it["key"])));
                keys.all(|it| it == NAME) && selects(selector, &serde_json::json!({ NAME: name }))
            }
        }
    }

    // Istio.

    fn is_enrolled(&self, pod: &Value) -> bool {
        let namespace = self.namespace(text(&pod["metadata"]["namespace"]));
        namespace.is_some_and(|it| it["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient")
    }

    fn istio(&self, it: &Try, source: Option<&Value>, pod: &Value) -> bool {
        if !self.is_enrolled(pod) || it.protocol != IpProtocol::Tcp {
            return true;
        }
        let probe = &pod["spec"]["containers"][0]["readinessProbe"]["tcpSocket"]["port"];
        if it.node && *probe == it.port {
            return true;
        }
        let peer = source.filter(|_| it.mtls).map(|it| {
            let account = it["spec"]["serviceAccountName"].as_str();
            (
                text(&it["metadata"]["namespace"]),
                account.unwrap_or("default"),
            )
        });
        (peer.is_some() || !self.is_strict(pod, it.port)) && self.is_authorized(it, peer, pod)
    }

    fn is_strict(&self, pod: &Value, port: u16) -> bool {
        let own = &pod["metadata"]["namespace"];
        let oldest = |fits: &dyn Fn(&Value) -> bool| {
            let policies = self.of_kind("PeerAuthentication").filter(|it| fits(it));
            policies.min_by_key(|it| {
                let created = text(&it["metadata"]["creationTimestamp"]).to_owned();
                (created, text(&it["metadata"]["name"]).to_owned())
            })
        };
        let has_selector = |it: &Value| {
            let labels = it["spec"]["selector"]["matchLabels"].as_object();
            labels.is_some_and(|it| !it.is_empty())
        };
        let of_workload = oldest(&|it| {
            let selector = &it["spec"]["selector"];
            it["metadata"]["namespace"] == *own
                && has_selector(it)
                && selects(selector, &pod["metadata"]["labels"])
        });
        let of_namespace = oldest(&|it| it["metadata"]["namespace"] == *own && !has_selector(it));
        let of_mesh =
            oldest(&|it| it["metadata"]["namespace"] == "istio-system" && !has_selector(it));
        let mut mode = "PERMISSIVE";
        for policy in [of_mesh, of_namespace, of_workload].into_iter().flatten() {
            let spec = &policy["spec"];
            let of_port = &spec["portLevelMtls"][port.to_string()]["mode"];
            for said in [&spec["mtls"]["mode"], of_port] {
                mode = said.as_str().filter(|it| *it != "UNSET").unwrap_or(mode);
            }
        }
        mode == "STRICT"
    }

    fn is_authorized(&self, it: &Try, peer: Option<(&str, &str)>, pod: &Value) -> bool {
        let policies = self.of_kind("AuthorizationPolicy").filter(|policy| {
            let namespace = &policy["metadata"]["namespace"];
            (namespace == "istio-system" || *namespace == pod["metadata"]["namespace"])
                && selects(&policy["spec"]["selector"], &pod["metadata"]["labels"])
        });
        let (mut has_allow, mut allowed) = (false, false);
        for policy in policies {
            let spec = &policy["spec"];
            let denies = spec["action"] == "DENY";
            let of = text(&policy["metadata"]["namespace"]);
            let matches = items(&spec["rules"])
                .iter()
                .any(|rule| (denies || !asks_http(rule)) && rule_matches(rule, it, peer, of));
            if denies && matches {
                return false;
            }
            has_allow |= !denies;
            allowed |= !denies && matches;
        }
        !has_allow || allowed
    }
}

fn text(it: &Value) -> &str {
    it.as_str().unwrap_or_default()
}

fn items(it: &Value) -> &[Value] {
    it.as_array().map_or(&[], |it| it)
}

fn types(spec: &Value) -> Vec<&str> {
    let told: Vec<_> = items(&spec["policyTypes"]).iter().map(text).collect();
    match told.is_empty() {
        false => told,
        true if items(&spec["egress"]).is_empty() => vec!["Ingress"],
        true => vec!["Ingress", "Egress"],
    }
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object().into_iter().flatten();
    let by_labels = wanted.into_iter().all(|(key, value)| labels[key] == *value);
    let by_expressions = items(&selector["matchExpressions"]).iter().all(|it| {
        let label = labels.get(text(&it["key"]));
        let is_among = label.is_some_and(|label| items(&it["values"]).contains(label));
        match text(&it["operator"]) {
            "In" => is_among,
            "NotIn" => !is_among,
            "Exists" => label.is_some(),
            "DoesNotExist" => label.is_none(),
            other => panic!("{other}"),
        }
    });
    by_labels && by_expressions
}

fn protocol_of(it: &Value) -> IpProtocol {
    match it.as_str() {
        None | Some("TCP") => IpProtocol::Tcp,
        Some("UDP") => IpProtocol::Udp,
        Some("SCTP") => IpProtocol::Sctp,
        Some(other) => panic!("{other}"),
    }
}

fn port_matches(port: &Value, it: &Try, destination: Option<&Value>) -> bool {
    if protocol_of(&port["protocol"]) != it.protocol {
        return false;
    }
    match &port["port"] {
        Value::Null => true,
        Value::String(name) => destination.is_some_and(|pod| {
            let containers = items(&pod["spec"]["containers"]).iter();
            let mut ports = containers.flat_map(|it| items(&it["ports"]));
            ports.any(|own| {
                own["name"] == *name
                    && own["containerPort"] == it.port
                    && protocol_of(&own["protocol"]) == it.protocol
            })
        }),
        first => {
            let first = first.as_u64().unwrap();
            let last = port["endPort"].as_u64().unwrap_or(first);
            (first..=last).contains(&u64::from(it.port))
        }
    }
}

fn in_block(block: &Value, address: IpAddr) -> bool {
    let except = items(&block["except"]);
    in_prefix(text(&block["cidr"]), address)
        && !except.iter().any(|it| in_prefix(text(it), address))
}

/// Whether the leading bits of both addresses agree; of a text without length all of them.
fn in_prefix(prefix: &str, address: IpAddr) -> bool {
    let (net, length) = prefix.split_once('/').unwrap_or((prefix, "128"));
    let length: u32 = length.parse().unwrap();
    let (net, address, bits) = match (net.parse().unwrap(), address) {
        (IpAddr::V4(net), IpAddr::V4(it)) => {
            (u128::from(net.to_bits()), u128::from(it.to_bits()), 32)
        }
        (IpAddr::V6(net), IpAddr::V6(it)) => (net.to_bits(), it.to_bits(), 128),
        _ => return false,
    };
    (0..length.min(bits)).all(|i| (net >> (bits - 1 - i)) & 1 == (address >> (bits - 1 - i)) & 1)
}

fn asks_http(rule: &Value) -> bool {
    let operations = items(&rule["to"]).iter().map(|it| &it["operation"]);
    let sources = items(&rule["from"]).iter().map(|it| &it["source"]);
    operations.into_iter().any(|it| it.get("methods").is_some())
        || sources
            .into_iter()
            .any(|it| it.get("requestPrincipals").is_some())
        || items(&rule["when"])
            .iter()
            .any(|it| text(&it["key"]).starts_with("request."))
}

/// What asks for HTTP is taken as fulfilled: only rules that deny come here with it.
fn rule_matches(
    rule: &Value,
    it: &Try,
    peer: Option<(&str, &str)>,
    policy_namespace: &str,
) -> bool {
    let principal =
        peer.map(|(namespace, account)| format!("cluster.local/ns/{namespace}/sa/{account}"));
    let namespace = peer.map_or("", |(namespace, _)| namespace);
    let is_principal = |wanted: &str| principal.as_ref().is_some_and(|it| glob(wanted, it));
    let is_account = |wanted: &str| {
        let wanted = if wanted.contains('/') {
            wanted.to_owned()
        } else {
            format!("{policy_namespace}/{wanted}")
        };
        peer.is_some_and(|(namespace, account)| wanted == format!("{namespace}/{account}"))
    };
    let from_fits = |element: &Value| {
        let source = &element["source"];
        holds(source, "principals", "notPrincipals", is_principal)
            && holds(source, "namespaces", "notNamespaces", |wanted| {
                glob(wanted, namespace)
            })
            && holds(source, "serviceAccounts", "notServiceAccounts", is_account)
            && holds(source, "ipBlocks", "notIpBlocks", |wanted| {
                in_prefix(wanted, it.from)
            })
    };
    let is_port = |wanted: &str| wanted == it.port.to_string();
    let to_fits = |element: &Value| holds(&element["operation"], "ports", "notPorts", is_port);
    let when_fits = |condition: &Value| {
        holds(condition, "values", "notValues", |wanted| {
            match text(&condition["key"]) {
                "source.ip" => in_prefix(wanted, it.from),
                "source.namespace" => glob(wanted, namespace),
                "source.principal" => is_principal(wanted),
                "destination.ip" => in_prefix(wanted, it.to),
                "destination.port" => is_port(wanted),
                other => panic!("{other}"),
            }
        })
    };
    let (from, to) = (items(&rule["from"]), items(&rule["to"]));
    let mut when = items(&rule["when"]).iter();
    (from.is_empty() || from.iter().any(from_fits))
        && (to.is_empty() || to.iter().any(to_fits))
        && when.all(|it| text(&it["key"]).starts_with("request.") || when_fits(it))
}

fn holds(of: &Value, any: &str, none: &str, matches: impl Fn(&str) -> bool) -> bool {
    let (any, none) = (items(&of[any]), items(&of[none]));
    (any.is_empty() || any.iter().any(|it| matches(text(it))))
        && !none.iter().any(|it| matches(text(it)))
}

fn glob(pattern: &str, it: &str) -> bool {
    match pattern.as_bytes() {
        b"*" => !it.is_empty(),
        [b'*', ..] => it.ends_with(&pattern[1..]),
        [.., b'*'] => it.starts_with(&pattern[..pattern.len() - 1]),
        _ => it == pattern,
    }
}
