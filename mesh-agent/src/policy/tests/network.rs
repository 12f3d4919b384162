//! `NetworkPolicy`: every case that implementations get wrong.

use super::*;
use IpProtocol::{Icmp, Sctp, Udp};

/// The base world with policies of namespace `x`.
fn with(specs: &[&str]) -> Snapshot {
    let mut snapshot = world(&[&base()]);
    for (i, spec) in specs.iter().enumerate() {
        tell(&mut snapshot, &network_policy("x", &format!("p{i}"), spec));
    }
    assert_eq!(snapshot.caveats().count(), 0, "{specs:?}");
    snapshot
}

/// Whether each of these comes into `a`, port 8080.
#[track_caller]
fn sources(specs: &[&str], expect: &[(&str, bool)]) {
    let snapshot = with(specs);
    for (source, expect) in expect {
        check(&snapshot, *expect, &[tcp(source, A, 8080)]);
    }
}

/// Whether `a` reaches each of these, port 80.
#[track_caller]
fn destinations(specs: &[&str], expect: &[(&str, bool)]) {
    let snapshot = with(specs);
    for (destination, expect) in expect {
        check(&snapshot, *expect, &[tcp(A, destination, 80)]);
    }
}

#[test]
fn isolation_and_policy_types() {
    let cases = [
        // spec, b -> a, a -> b
        ("{podSelector: {}}", false, true),
        ("{}", false, true),
        ("{podSelector: {}, ingress: []}", false, true),
        ("{podSelector: {}, ingress: null}", false, true),
        ("{podSelector: {}, ingress: [{}]}", true, true),
        ("{podSelector: {}, egress: []}", false, true),
        ("{podSelector: {}, egress: [{}]}", false, true),
        (
            "{podSelector: {}, egress: [{ports: [{port: 1}]}]}",
            false,
            false,
        ),
        ("{podSelector: {}, policyTypes: []}", false, true),
        ("{podSelector: {}, policyTypes: [Ingress]}", false, true),
        ("{podSelector: {}, policyTypes: [Egress]}", true, false),
        (
            "{podSelector: {}, policyTypes: [Egress], ingress: []}",
            true,
            false,
        ),
        (
            "{podSelector: {}, policyTypes: [Egress], egress: []}",
            true,
            false,
        ),
        (
            "{podSelector: {}, policyTypes: [Egress], egress: [{}]}",
            true,
            true,
        ),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress]}",
            false,
            false,
        ),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}",
            true,
            true,
        ),
        // Rules of a direction that is not among the types say nothing.
        (
            "{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]}",
            false,
            true,
        ),
        ("{podSelector: {matchLabels: {app: other}}}", true, true),
    ];
    for (spec, ingress, egress) in cases {
        let snapshot = with(&[spec]);
        let into = tcp(YB, A, 8080).at(&snapshot, Direction::Ingress);
        let out = tcp(A, YB, 80).at(&snapshot, Direction::Egress);
        assert_eq!(
            (into.allow, out.allow),
            (ingress, egress),
            "{spec}: {into}; {out}"
        );
    }
}

#[test]
fn a_policy_is_about_pods_of_its_own_namespace() {
    let snapshot = with(&["{podSelector: {matchLabels: {app: a}}}"]);
    check(&snapshot, false, &[tcp(B, A, 80), tcp(OUTSIDE, A, 80)]);
    check(
        &snapshot,
        true,
        &[tcp(B, YA, 80), tcp(A, B, 80), tcp(A, C, 80)],
    );
}

#[test]
fn pods_in_the_hosts_network_are_the_node() {
    let snapshot = with(&[
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}]}",
    ]);
    let host = snapshot
        .workloads()
        .find(|it| it.key.to_string() == "x/host")
        .unwrap();
    // Not selected, even by the empty selector, and no peer, even when the caller names it.
    let out = tcp("192.168.0.9", OUTSIDE, 80);
    assert!(
        out.with(&snapshot, Direction::Egress, Some(host), None)
            .allow
    );
    let into = tcp("192.168.0.9", A, 80);
    assert!(
        !into
            .with(&snapshot, Direction::Ingress, Some(host), None)
            .allow
    );
    sources(
        &["{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/16}}]}]}"],
        &[("192.168.0.9", true), (B, false)],
    );
}

#[test]
fn both_ends_must_allow() {
    let ingress = "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}";
    let no_egress = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Egress]}";
    let egress = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: a}}}]}]}";
    sources(&[ingress], &[(B, true), (C, false)]);
    sources(&[ingress, no_egress], &[(B, false), (C, false)]);
    sources(&[ingress, no_egress, egress], &[(B, true), (C, false)]);
    sources(
        &[egress, "{podSelector: {matchLabels: {app: a}}}"],
        &[(B, false)],
    );
}

#[test]
fn empty_absent_and_selecting_peers() {
    let all = [(B, true), (YB, true), (OUTSIDE, true), (SIX, true)];
    for from in ["", "from: []", "from: null"] {
        sources(
            &[&format!("{{podSelector: {{}}, ingress: [{{{from}}}]}}")],
            &all,
        );
    }
    let check = |peers: &str, expect: &[(&str, bool)]| {
        sources(
            &[&format!(
                "{{podSelector: {{}}, ingress: [{{from: {peers}}}]}}"
            )],
            expect,
        );
        let egress =
            format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: {peers}}}]}}");
        destinations(&[&egress], expect);
    };
    check(
        "[{podSelector: {}}]",
        &[(B, true), (C, true), (YB, false), (OUTSIDE, false)],
    );
    check(
        "[{namespaceSelector: {}}]",
        &[(B, true), (YB, true), (SIX, true), (OUTSIDE, false)],
    );
    check(
        "[{namespaceSelector: {}, podSelector: {}}]",
        &[(B, true), (YB, true), (OUTSIDE, false)],
    );
    // One element: and. Two: or.
    check(
        "[{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: b}}}]",
        &[(B, false), (YA, false), (YB, true)],
    );
    check(
        "[{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: b}}}]",
        &[(B, true), (C, false), (YA, true), (YB, true)],
    );
    check(
        "[{podSelector: {matchLabels: {app: none}}}]",
        &[(B, false), (YB, false)],
    );
    check(
        "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]",
        &[(B, false), (YB, true)],
    );
}

#[test]
fn expressions() {
    let check = |expression: &str, expect: &[(&str, bool)]| {
        let selector = format!("{{matchExpressions: [{expression}]}}");
        sources(
            &[&format!(
                "{{podSelector: {{}}, ingress: [{{from: [{{podSelector: {selector}}}]}}]}}"
            )],
            expect,
        );
        // The same in the policy's own selector: who is selected is isolated.
        let snapshot = with(&[&format!("{{podSelector: {selector}}}")]);
        for (pod, is_selected) in expect {
            assert_eq!(
                !tcp(OUTSIDE, pod, 80).passes(&snapshot),
                *is_selected,
                "{expression} {pod}"
            );
        }
    };
    check(
        "{key: app, operator: In, values: [b, x]}",
        &[(B, true), (C, false)],
    );
    check(
        "{key: app, operator: NotIn, values: [b]}",
        &[(B, false), (C, true)],
    );
    check(
        "{key: tier, operator: NotIn, values: [front]}",
        &[(B, true), (C, true)],
    );
    check(
        "{key: tier, operator: NotIn, values: [back]}",
        &[(B, false), (C, true)],
    );
    check("{key: tier, operator: Exists}", &[(B, true), (C, false)]);
    check(
        "{key: tier, operator: DoesNotExist}",
        &[(B, false), (C, true)],
    );
    check(
        "{key: app, operator: In, values: [b, c]}, {key: tier, operator: DoesNotExist}",
        &[(B, false), (C, true)],
    );
    let by_name = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}}]}]}";
    sources(&[by_name], &[(B, true), (YB, false)]);
}

#[test]
fn a_namespace_that_was_not_told_has_its_name_only() {
    let snapshot = |requirement: &str| {
        let from = format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchExpressions: [{requirement}]}}}}]}}]}}"
        );
        world(&[
            &base(),
            &pod("z", "a", "10.0.2.1", ""),
            &network_policy("x", "p", &from),
        ])
    };
    let name = "{key: kubernetes.io/metadata.name, operator: In, values: [z]}";
    let absent = "{key: evil, operator: DoesNotExist}";
    check(&snapshot(""), true, &[tcp("10.0.2.1", A, 1)]);
    check(&snapshot(name), true, &[tcp("10.0.2.1", A, 1)]);
    check(&snapshot(absent), false, &[tcp("10.0.2.1", A, 1)]);
    let mut told = snapshot(absent);
    tell(&mut told, &namespace("z", ""));
    check(&told, true, &[tcp("10.0.2.1", A, 1)]);
}

#[test]
fn changes_count_at_once() {
    let spec = "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: b}}}]}]}";
    let mut it = with(&[spec]);
    let open = |it: &Snapshot| tcp(YB, A, 80).passes(it);
    assert!(open(&it));
    // A label of the peer, of its namespace, of the pod; the namespace itself; the pod; the policy.
    tell(&mut it, &pod("y", "b", YB, "app: z"));
    assert!(!open(&it));
    tell(&mut it, &pod("y", "b", YB, "app: b"));
    assert!(open(&it));
    tell(&mut it, &namespace("y", "team: green"));
    assert!(!open(&it));
    tell(&mut it, &namespace("y", "team: blue"));
    forget(&mut it, &namespace("y", ""));
    assert!(!open(&it));
    tell(&mut it, &namespace("y", "team: blue"));
    forget(&mut it, &pod("y", "b", YB, ""));
    assert!(!open(&it));
    // Its address given to another pod is another peer.
    tell(&mut it, &pod("y", "later", YB, "app: c"));
    assert!(!open(&it));
    tell(&mut it, &pod("x", "a", A, "app: free"));
    assert!(open(&it));
    tell(&mut it, &pod("x", "a", A, "app: a"));
    let change = it.apply(Event::Delete(crate::model::Reference::NetworkPolicy(
        crate::model::Key::new("x", "p0"),
    )));
    assert_eq!(change.policies.len(), 1);
    assert!(open(&it));
}

#[test]
fn ended_pods_are_no_peers() {
    let mut it = with(&["{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"]);
    check(&it, true, &[tcp(B, A, 80)]);
    let ended = pod("x", "b", B, "app: b").replace("status: {", "status: {phase: Succeeded, ");
    tell(&mut it, &ended);
    check(&it, false, &[tcp(B, A, 80)]);
}

#[test]
fn blocks() {
    let check = |blocks: &str, expect: &[(&str, bool)]| {
        sources(
            &[&format!(
                "{{podSelector: {{}}, ingress: [{{from: [{blocks}]}}]}}"
            )],
            expect,
        );
        let egress =
            format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{blocks}]}}]}}");
        destinations(&[&egress], expect);
    };
    check(
        "{ipBlock: {cidr: 203.0.113.0/24}}",
        &[(OUTSIDE, true), ("203.0.114.1", false), (B, false)],
    );
    // Pods and nodes have addresses, too.
    check(
        "{ipBlock: {cidr: 10.0.0.0/23}}",
        &[(B, true), (YB, true), (OUTSIDE, false)],
    );
    check("{ipBlock: {cidr: 10.0.0.9/24}}", &[(B, true), (YB, false)]);
    check(
        "{ipBlock: {cidr: 0.0.0.0/0}}",
        &[(B, true), (OUTSIDE, true), (SIX, false)],
    );
    check(
        "{ipBlock: {cidr: '::/0'}}",
        &[(B, false), (OUTSIDE, false), (SIX, true)],
    );
    check(
        "{ipBlock: {cidr: 'fd00::/8', except: ['fd00::6/128']}}",
        &[(SIX, false), ("fd00::7", true)],
    );
    check(
        "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.0.2/32]}}",
        &[(B, false), (C, true), (YB, false)],
    );
    // What one block leaves out another may allow.
    check(
        "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}, {ipBlock: {cidr: 10.0.1.2/32}}",
        &[(YA, false), (YB, true)],
    );
    check(
        "{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {podSelector: {matchLabels: {app: b}}}",
        &[(B, true), (C, false), (YB, false), (OUTSIDE, true)],
    );
    check(
        "{ipBlock: {cidr: 10.0.0.2/32, except: [10.0.0.2/32]}}",
        &[(B, false)],
    );
    // An address in its IPv6 form is the IPv4 address.
    check(
        "{ipBlock: {cidr: 203.0.113.0/24}}",
        &[("::ffff:203.0.113.7", true)],
    );
}

#[test]
fn overlapping_blocks_unite_their_ports() {
    let spec = "{podSelector: {}, ingress: [
        {from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]},
        {from: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: 81}]},
        {from: [{ipBlock: {cidr: 10.0.0.2/32}}], ports: [{port: 82}]}]}";
    let it = with(&[spec]);
    check(
        &it,
        true,
        &[
            tcp(B, A, 80),
            tcp(B, A, 81),
            tcp(B, A, 82),
            tcp(C, A, 81),
            tcp(YB, A, 80),
        ],
    );
    check(
        &it,
        false,
        &[tcp(C, A, 82), tcp(YB, A, 81), tcp(YB, A, 82), tcp(B, A, 83)],
    );
}

#[test]
fn ports_and_protocols() {
    type Case<'a> = (&'a str, &'a [(u16, IpProtocol, bool)]);
    let cases: &[Case<'_>] = &[
        (
            "",
            &[
                (1, IpProtocol::Tcp, true),
                (1, Udp, true),
                (1, Sctp, true),
                (0, Icmp, true),
                (0, IpProtocol::Other(47), true),
            ],
        ),
        (
            "ports: []",
            &[(1, IpProtocol::Tcp, true), (1, Udp, true), (0, Icmp, true)],
        ),
        (
            "ports: [{}]",
            &[
                (1, IpProtocol::Tcp, true),
                (1, Udp, false),
                (0, Icmp, false),
            ],
        ),
        (
            "ports: [{protocol: TCP}]",
            &[(65535, IpProtocol::Tcp, true), (1, Udp, false)],
        ),
        (
            "ports: [{port: 80}]",
            &[
                (80, IpProtocol::Tcp, true),
                (81, IpProtocol::Tcp, false),
                (80, Udp, false),
                (80, Sctp, false),
            ],
        ),
        (
            "ports: [{port: 53, protocol: UDP}]",
            &[
                (53, Udp, true),
                (53, IpProtocol::Tcp, false),
                (54, Udp, false),
            ],
        ),
        (
            "ports: [{protocol: SCTP}]",
            &[
                (1, Sctp, true),
                (1, IpProtocol::Tcp, false),
                (1, Udp, false),
            ],
        ),
        (
            "ports: [{port: 7, protocol: SCTP}]",
            &[
                (7, Sctp, true),
                (7, IpProtocol::Tcp, false),
                (8, Sctp, false),
            ],
        ),
        (
            "ports: [{port: 53, endPort: 80}]",
            &[
                (52, IpProtocol::Tcp, false),
                (53, IpProtocol::Tcp, true),
                (80, IpProtocol::Tcp, true),
                (81, IpProtocol::Tcp, false),
                (60, Udp, false),
            ],
        ),
        (
            "ports: [{port: 53, endPort: 53, protocol: UDP}]",
            &[(53, Udp, true), (54, Udp, false)],
        ),
        (
            "ports: [{port: 53, endPort: 84, protocol: SCTP}, {port: 80}]",
            &[
                (84, Sctp, true),
                (80, IpProtocol::Tcp, true),
                (84, IpProtocol::Tcp, false),
            ],
        ),
        (
            "ports: [{port: 1, endPort: 65535}]",
            &[(1, IpProtocol::Tcp, true), (65535, IpProtocol::Tcp, true)],
        ),
    ];
    for (ports, tries) in cases {
        let into = with(&[&format!("{{podSelector: {{}}, ingress: [{{{ports}}}]}}")]);
        let out = with(&[&format!(
            "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{{ports}}}]}}"
        )]);
        for (port, protocol, expect) in *tries {
            check(&into, *expect, &[tcp(OUTSIDE, A, *port).over(*protocol)]);
            check(&out, *expect, &[tcp(A, OUTSIDE, *port).over(*protocol)]);
        }
    }
}

#[test]
fn named_ports_are_those_of_the_destination() {
    // Ingress: the subject's own, of any of its containers, whoever connects.
    for from in [
        "",
        "from: [{ipBlock: {cidr: 0.0.0.0/0}}], ",
        "from: [{podSelector: {}}], ",
    ] {
        let spec = format!(
            "{{podSelector: {{}}, ingress: [{{{from}ports: [{{port: web}}, {{port: admin}}]}}]}}"
        );
        let it = with(&[&spec]);
        check(&it, true, &[tcp(B, A, 8080), tcp(B, A, 9090)]);
        check(
            &it,
            false,
            &[
                tcp(B, A, 80),
                tcp(B, A, 8081),
                tcp(B, C, 8080),
                tcp(B, A, 8080).over(Udp),
            ],
        );
    }
    // Protocols must agree: `dns` is UDP.
    let it = with(&["{podSelector: {}, ingress: [{ports: [{port: dns}]}]}"]);
    check(&it, false, &[tcp(B, A, 53), tcp(B, A, 53).over(Udp)]);
    let it = with(&["{podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}]}]}"]);
    check(&it, true, &[tcp(B, A, 53).over(Udp)]);
    check(&it, false, &[tcp(B, A, 53)]);
    // Egress: the same name, another number at each peer; none at a block and outside.
    let egress = |to: &str| {
        with(&[&format!(
            "{{podSelector: {{matchLabels: {{app: b}}}}, policyTypes: [Egress], egress: [{{{to}ports: [{{port: web}}]}}]}}"
        )])
    };
    for to in ["", "to: [{namespaceSelector: {}}], "] {
        let it = egress(to);
        check(&it, true, &[tcp(B, A, 8080), tcp(B, YA, 80)]);
        check(
            &it,
            false,
            &[
                tcp(B, A, 80),
                tcp(B, YA, 8080),
                tcp(B, C, 8080),
                tcp(B, OUTSIDE, 80),
            ],
        );
    }
    let it = egress("to: [{ipBlock: {cidr: 0.0.0.0/0}}], ");
    check(
        &it,
        false,
        &[tcp(B, A, 8080), tcp(B, YA, 80), tcp(B, OUTSIDE, 80)],
    );
    // A name that nobody serves isolates all the same.
    let it = with(&["{podSelector: {}, ingress: [{ports: [{port: nobody}]}]}"]);
    check(&it, false, &[tcp(B, A, 8080), tcp(B, A, 80)]);
}

#[test]
fn a_policy_for_another_protocol_isolates_and_opens_nothing() {
    for protocol in ["SCTP", "UDP"] {
        let it = with(&[&format!(
            "{{podSelector: {{}}, ingress: [{{ports: [{{port: 80, protocol: {protocol}}}]}}]}}"
        )]);
        check(
            &it,
            false,
            &[tcp(B, A, 80), tcp(B, A, 81), tcp(B, A, 0).over(Icmp)],
        );
        let over = if protocol == "UDP" { Udp } else { Sctp };
        check(&it, true, &[tcp(B, A, 80).over(over)]);
    }
}

#[test]
fn the_tunnels_port_is_a_port_like_others() {
    let it = with(&["{podSelector: {}, ingress: [{ports: [{port: 15008}]}]}"]);
    check(&it, true, &[tcp(B, A, 15008)]);
    check(&it, false, &[tcp(B, A, 8080)]);
}

#[test]
fn the_node_and_the_pod_itself_pass() {
    let it = with(&["{podSelector: {}, policyTypes: [Ingress, Egress]}"]);
    for protocol in [IpProtocol::Tcp, Udp, Sctp, Icmp] {
        check(&it, true, &[tcp(A, A, 1).over(protocol)]);
        let node = tcp("192.168.0.1", A, 1).over(protocol);
        assert!(node.by_node().at(&it, Direction::Ingress).allow);
        // Having the node's address is not being on the node.
        assert!(!node.at(&it, Direction::Ingress).allow);
        assert!(
            !tcp(A, "192.168.0.1", 1)
                .over(protocol)
                .at(&it, Direction::Egress)
                .allow
        );
    }
}

#[test]
fn translated_clients_are_who_they_look_like() {
    let it = with(&["{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}"]);
    check(&it, true, &[tcp(OUTSIDE, A, 80)]);
    check(&it, false, &[tcp("192.168.0.1", A, 80)]);
}

#[test]
fn conflicts() {
    let deny_all = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
    let rule = |to: &str| {
        format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{to}]}}]}}")
    };
    destinations(
        &[deny_all, &rule("{namespaceSelector: {}}")],
        &[(YB, true), (OUTSIDE, false)],
    );
    destinations(
        &[deny_all, &rule("{ipBlock: {cidr: 0.0.0.0/0}}")],
        &[(YB, true), (OUTSIDE, true)],
    );
    destinations(
        &[
            &rule("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"),
            &rule("{namespaceSelector: {}}"),
        ],
        &[(YB, true), ("10.9.9.9", false)],
    );
    destinations(
        &[
            &rule("{podSelector: {matchLabels: {app: none}}}"),
            &rule("{ipBlock: {cidr: 0.0.0.0/0}}"),
        ],
        &[(YB, true), (OUTSIDE, true)],
    );
    destinations(
        &[&rule(
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/25]}}",
        )],
        &[(YB, false), ("10.0.1.200", true)],
    );
    let it = with(&[
        "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 8080}]}]}",
    ]);
    check(&it, true, &[tcp(B, A, 8080)]);
    check(
        &it,
        false,
        &[
            tcp(B, A, 8081),
            tcp(C, A, 8080),
            tcp(YB, A, 8080),
            tcp(B, A, 8080).over(Udp),
        ],
    );
}

#[test]
fn enrolment_and_proof_of_identity_change_nothing() {
    let spec = "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 8080}]}]}";
    let mut it = with(&[spec]);
    for mode in [
        "",
        "istio.io/dataplane-mode: ambient",
        "",
        "istio.io/dataplane-mode: ambient",
    ] {
        tell(&mut it, &namespace("x", mode));
        check(&it, true, &[tcp(B, A, 8080), tcp(B, A, 8080).mtls()]);
        check(
            &it,
            false,
            &[
                tcp(B, A, 8081),
                tcp(B, A, 8081).mtls(),
                tcp(C, A, 8080).mtls(),
            ],
        );
    }
}

#[test]
fn a_certificate_that_is_not_the_pods_is_not_the_pod() {
    let it = with(&["{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"]);
    let b = it.workload_by_addr(ip(B)).map(|it| &**it);
    let judge = |identity: Option<Identity>| {
        let it = tcp(B, A, 80).with(&it, Direction::Ingress, b, identity.as_ref());
        it.allow
    };
    assert!(judge(None));
    assert!(judge(Some(Identity::new("alias.example", "x", "default"))));
    assert!(!judge(Some(Identity::new("cluster.local", "x", "other"))));
    assert!(!judge(Some(Identity::new("cluster.local", "y", "default"))));
}

#[test]
fn an_interface_whose_pod_is_not_known_yet_is_isolated_by_what_may_be_about_it() {
    let mut it = with(&["{podSelector: {matchLabels: {app: whatever}}, ingress: [{}]}"]);
    it.apply(attached("c1", Some(("x", "new")), &["10.0.0.50"]));
    it.apply(attached("c2", Some(("y", "new")), &["10.0.0.51"]));
    it.apply(attached("c3", None, &["10.0.0.52"]));
    check(&it, false, &[tcp(B, "10.0.0.50", 80)]);
    check(
        &it,
        true,
        &[
            tcp("10.0.0.50", B, 80),
            tcp(B, "10.0.0.51", 80),
            tcp(B, "10.0.0.52", 80),
        ],
    );
    let verdict = tcp(B, "10.0.0.50", 80).at(&it, Direction::Ingress);
    assert_eq!(verdict.reason, Reason::UnknownPod { policies: 1 });
    tell(
        &mut it,
        &pod("x", "new", "10.0.0.50", "app: free").replace("uid: new", "uid: uid-new"),
    );
    check(&it, true, &[tcp(B, "10.0.0.50", 80)]);
}

#[test]
fn verdicts_say_who_and_why() {
    let mut it = with(&[
        "{podSelector: {}}",
        "{podSelector: {}, ingress: [{ports: [{port: 1}]}, {ports: [{port: 80}]}]}",
    ]);
    let text = |it: &Snapshot, port| tcp(B, A, port).at(it, Direction::Ingress).to_string();
    assert_eq!(
        text(&it, 80),
        "allowed by NetworkPolicy: a rule allows it (NetworkPolicy x/p1, rule 1)"
    );
    assert_eq!(
        text(&it, 81),
        "denied by NetworkPolicy: default deny by 2 policies"
    );
    forget(&mut it, &network_policy("x", "p1", "{}"));
    assert_eq!(
        text(&it, 81),
        "denied by NetworkPolicy: default deny by 1 policy (NetworkPolicy x/p0)"
    );
    forget(&mut it, &network_policy("x", "p0", "{}"));
    assert_eq!(
        text(&it, 81),
        "allowed by NetworkPolicy: no policy is about the pod"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_is_not_understood_allows_nothing_and_is_named() {
    let rule = |rule: &str| {
        format!(
            "{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Ingress], ingress: [{{ports: [{{port: 1}}]}}, {{{rule}}}]}}"
        )
    };
    // Wrong values: what is right beside them holds.
    let values = [
        (
            rule("from: [{}]"),
            "spec.ingress[1].from[0]: \"\" is not valid, write an ipBlock alone",
        ),
        (
            rule("from: [{ipBlock: {cidr: 10.1/8}}]"),
            "spec.ingress[1].from[0].ipBlock.cidr: \"10.1/8\" is not valid",
        ),
        (
            rule("from: [{ipBlock: {cidr: 0.0.0.0/0, except: [1]}}]").replace("[1]}", "['x']}"),
            "spec.ingress[1].from[0].ipBlock.except[0]: \"x\"",
        ),
        (
            rule("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]"),
            "spec.ingress[1].from[0].ipBlock.except[0]: \"0.0.0.0/0\"",
        ),
        (
            rule("from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]"),
            "spec.ingress[1].from[0].ipBlock.cidr: \"::ffff:10.0.0.0/104\"",
        ),
        (
            rule("from: [{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}]"),
            "spec.ingress[1].from[0]: \"ipBlock and a selector\"",
        ),
        (
            rule("from: [{podSelector: {matchExpressions: [{key: a, operator: Has}]}}]"),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].operator: \"Has\"",
        ),
        (
            rule("from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]"),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values",
        ),
        (
            rule(
                "from: [{podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}}]",
            ),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0].values: \"b\"",
        ),
        (
            rule("ports: [{port: 0}]"),
            "spec.ingress[1].ports[0].port: \"0\"",
        ),
        (
            rule("ports: [{port: 70000}]"),
            "spec.ingress[1].ports[0].port: \"70000\"",
        ),
        (
            rule("ports: [{port: '80'}]"),
            "spec.ingress[1].ports[0].port: \"80\" is not valid, write a number without quotes",
        ),
        (
            rule("ports: [{endPort: 80}]"),
            "spec.ingress[1].ports[0].endPort: \"80\" is not valid, write endPort only with a port",
        ),
        (
            rule("ports: [{port: web, endPort: 80}]"),
            "spec.ingress[1].ports[0].endPort",
        ),
        (
            rule("ports: [{port: 80, endPort: 79}]"),
            "spec.ingress[1].ports[0].endPort: \"79\"",
        ),
        (
            rule("ports: [{port: 80, protocol: ICMP}]"),
            "spec.ingress[1].ports[0].protocol: \"ICMP\"",
        ),
    ];
    for (spec, expect) in values {
        let it = world(&[&base(), &network_policy("x", "p", &spec)]);
        let caveats: Vec<_> = it.caveats().map(|(of, it)| format!("{of}: {it}")).collect();
        assert!(
            caveats.len() == 1 && caveats[0].starts_with(&format!("NetworkPolicy x/p: {expect}")),
            "{caveats:?}"
        );
        check(&it, true, &[tcp(B, A, 1), tcp(B, C, 80), tcp(A, B, 80)]);
        check(
            &it,
            false,
            &[
                tcp(B, A, 80),
                tcp(B, A, 8080),
                tcp(OUTSIDE, A, 79),
                tcp(B, A, 0).over(Icmp),
            ],
        );
        let verdict = tcp(B, A, 80).at(&it, Direction::Ingress);
        assert_eq!(
            verdict.reason,
            Reason::DefaultDeny {
                policies: 1,
                caveats: 1
            }
        );
    }
    // Wrong shapes and unknown fields: nothing holds, both directions are isolated.
    let shapes = [
        (
            rule("form: [{podSelector: {}}]"),
            "spec.ingress[1].form: there is no such field",
        ),
        (
            rule("from: [{namspaceSelector: {}, podSelector: {}}]"),
            "spec.ingress[1].from[0].namspaceSelector",
        ),
        (rule("ports: [{prot: 80}]"), "spec.ingress[1].ports[0].prot"),
        (
            rule("from: {podSelector: {}}"),
            "spec.ingress[1].from: invalid type",
        ),
        (
            rule("ports: [{port: 80, endPort: many}]"),
            "spec.ingress[1].ports[0].endPort: invalid type",
        ),
        (
            rule("").replace("policyTypes: [Ingress]", "policytypes: [Ingress]"),
            "spec.policytypes: there is no such field",
        ),
        (
            rule("").replace("[Ingress]", "[Ingres]"),
            "spec.policyTypes: \"Ingres\" is not valid",
        ),
    ];
    for (spec, expect) in shapes {
        let it = world(&[&base(), &network_policy("x", "p", &spec)]);
        let caveats: Vec<_> = it.caveats().map(|(_, it)| it.to_string()).collect();
        assert!(
            caveats.len() == 1 && caveats[0].starts_with(expect),
            "{caveats:?}"
        );
        check(&it, true, &[tcp(B, C, 80), tcp(C, B, 80)]);
        check(&it, false, &[tcp(A, OUTSIDE, 1), tcp(A, B, 80)]);
        let ingress = tcp(B, A, 81).at(&it, Direction::Ingress);
        assert_eq!(ingress.allow, expect.contains("Ingres\""), "{ingress}");
    }
    // Whom it selects is not understood: it may be anyone of the namespace.
    for selector in [
        "{matchLabls: {app: a}}",
        "{matchExpressions: [{key: app, operator: Is, values: [a]}]}",
        "[a]",
    ] {
        let it = world(&[
            &base(),
            &network_policy("x", "p", &format!("{{podSelector: {selector}}}")),
        ]);
        check(&it, false, &[tcp(YB, A, 80), tcp(YB, C, 80)]);
        check(&it, true, &[tcp(OUTSIDE, YB, 80)]);
        assert!(it.caveats().any(|(_, it)| it.effect == Effect::SelectsAll));
    }
}
