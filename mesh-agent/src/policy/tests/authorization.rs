//! `PeerAuthentication` and `AuthorizationPolicy`.

use super::*;
use crate::model::{Key, Reference};

/// The base world, enrolled, with a probe port at `a` and one policy of namespace `x` for each spec.
fn with(specs: &[&str]) -> Snapshot {
    let mut it = enrolled();
    for (i, spec) in specs.iter().enumerate() {
        tell(
            &mut it,
            &istio("AuthorizationPolicy", "x", &format!("p{i}"), spec),
        );
    }
    it
}

fn enrolled() -> Snapshot {
    let mode = "istio.io/dataplane-mode: ambient";
    let probed = "app: a|serviceAccountName: ann, containers: [{name: x, readinessProbe: {tcpSocket: {port: 8090}}}]";
    world(&[
        &base(),
        &namespace("x", mode),
        &namespace("y", mode),
        &pod("x", "a", A, probed),
        &pod("x", "b", B, "app: b|serviceAccountName: bob"),
    ])
}

#[track_caller]
fn clean(it: &Snapshot) {
    let caveats: Vec<_> = it.caveats().collect();
    assert!(caveats.is_empty(), "{caveats:?}");
}

#[test]
fn actions_in_their_order() {
    let from_b = "rules: [{from: [{source: {principals: [cluster.local/ns/x/sa/bob]}}]}]";
    let cases: &[(&[&str], bool, bool)] = &[
        // specs, b -> a, c -> a
        (&[], true, true),
        (&["{}"], false, false),
        (&["{action: ALLOW}"], false, false),
        (&["{rules: []}"], false, false),
        (&["{rules: [{}]}"], true, true),
        (&["{action: DENY}"], true, true),
        (&["{action: DENY, rules: [{}]}"], false, false),
        (&["FROM_B"], true, false),
        (&["{action: DENY, RULES}"], false, true),
        (&["FROM_B", "{action: DENY, RULES}"], false, false),
        (&["{}", "FROM_B"], true, false),
        (&["{rules: [{}]}", "{action: DENY, RULES}"], false, true),
        (&["{rules: [{}]}", "{action: DENY}"], true, true),
    ];
    for (specs, b, c) in cases {
        let specs: Vec<_> = specs
            .iter()
            .map(|it| {
                it.replace("FROM_B", &format!("{{{from_b}}}"))
                    .replace("RULES", from_b)
            })
            .collect();
        let it = with(&specs.iter().map(|it| &**it).collect::<Vec<_>>());
        clean(&it);
        check(&it, *b, &[tcp(B, A, 80).mtls()]);
        check(&it, *c, &[tcp(C, A, 80).mtls()]);
    }
}

#[test]
fn scopes() {
    let check_scope = |namespace: &str, selector: &str, expect: [bool; 4]| {
        let spec = format!("{{{selector}}}");
        let it = world(&[]);
        drop(it);
        let mut it = enrolled();
        tell(
            &mut it,
            &istio("AuthorizationPolicy", namespace, "p", &spec),
        );
        for (to, is_denied) in [A, B, YA, YB].into_iter().zip(expect) {
            check(&it, !is_denied, &[tcp(C, to, 80).mtls()]);
        }
    };
    let app = "selector: {matchLabels: {app: a}}";
    check_scope("x", "", [true, true, false, false]);
    check_scope("x", "selector: {}", [true, true, false, false]);
    check_scope("x", app, [true, false, false, false]);
    check_scope("istio-system", "", [true; 4]);
    check_scope("istio-system", app, [true, false, true, false]);
    check_scope("z", "", [false; 4]);
}

#[test]
fn only_tcp_to_enrolled_pods() {
    let mut it = with(&["{}"]);
    check(&it, false, &[tcp(B, A, 80).mtls(), tcp(OUTSIDE, A, 80)]);
    check(
        &it,
        true,
        &[
            tcp(B, A, 80).over(IpProtocol::Udp),
            tcp(A, A, 80),
            tcp(A, YA, 80),
        ],
    );
    tell(&mut it, &namespace("x", ""));
    check(&it, true, &[tcp(B, A, 80), tcp(OUTSIDE, A, 80)]);
}

/// Whether an ALLOW policy with this rule lets connections through, and that a DENY policy does the reverse.
#[track_caller]
fn rule(rule: &str, expect: &[(Try, bool)]) {
    let allow = with(&[&format!("{{rules: [{rule}]}}")]);
    let deny = with(&[&format!("{{action: DENY, rules: [{rule}]}}")]);
    clean(&allow);
    clean(&deny);
    for (it, matches) in expect {
        check(&allow, *matches, &[*it]);
        check(&deny, !matches, &[*it]);
    }
}

#[test]
fn sources() {
    let (b, c, y) = (
        tcp(B, A, 80).mtls(),
        tcp(C, A, 80).mtls(),
        tcp(YB, A, 80).mtls(),
    );
    let plain = tcp(B, A, 80);
    let of = |source: &str, expect: [bool; 4]| {
        let text = format!("{{from: [{{source: {{{source}}}}}]}}");
        let tries: Vec<_> = [b, c, y, plain].into_iter().zip(expect).collect();
        rule(&text, &tries);
    };
    of(
        "principals: [cluster.local/ns/x/sa/bob]",
        [true, false, false, false],
    );
    of(
        "principals: ['spiffe://cluster.local/ns/x/sa/bob']",
        [true, false, false, false],
    );
    of("principals: ['*']", [true, true, true, false]);
    of(
        "principals: ['cluster.local/ns/x/*']",
        [true, true, false, false],
    );
    of("principals: ['*/sa/default']", [false, true, true, false]);
    of("principals: ['*ns*']", [false; 4]);
    of(
        "principals: [none, '*/sa/bob']",
        [true, false, false, false],
    );
    of("notPrincipals: ['*/sa/bob']", [false, true, true, true]);
    of("notPrincipals: ['*']", [false, false, false, true]);
    of(
        "principals: ['*/ns/x/*'], notPrincipals: ['*/sa/bob']"
            .replace("*/ns/x/*", "cluster.local/ns/x/*")
            .as_str(),
        [false, true, false, false],
    );
    of("namespaces: [x]", [true, true, false, false]);
    of("namespaces: ['*']", [true, true, true, false]);
    of("notNamespaces: [x]", [false, false, true, true]);
    of("serviceAccounts: [bob]", [true, false, false, false]);
    of(
        "serviceAccounts: [x/bob, y/default]",
        [true, false, true, false],
    );
    of("notServiceAccounts: [bob]", [false, true, true, true]);
    of("ipBlocks: [10.0.0.2]", [true, false, false, true]);
    of("ipBlocks: [10.0.0.0/24]", [true, true, false, true]);
    of("notIpBlocks: [10.0.0.0/24]", [false, false, true, false]);
    of(
        "ipBlocks: [10.0.0.0/8], notIpBlocks: [10.0.0.3, 10.0.1.0/24]",
        [true, false, false, true],
    );
    of("ipBlocks: ['::/0']", [false; 4]);
    of(
        "namespaces: [x], ipBlocks: [10.0.0.3]",
        [false, true, false, false],
    );
    // Sources are alternatives.
    rule(
        "{from: [{source: {namespaces: [y]}}, {source: {serviceAccounts: [bob]}}]}",
        &[(b, true), (c, false), (y, true), (plain, false)],
    );
}

#[test]
fn operations_and_conditions() {
    let at = |port| tcp(B, A, port).mtls();
    rule(
        "{to: [{operation: {ports: ['80', '81']}}]}",
        &[(at(80), true), (at(81), true), (at(82), false)],
    );
    rule(
        "{to: [{operation: {notPorts: ['80']}}]}",
        &[(at(80), false), (at(81), true)],
    );
    rule(
        "{to: [{operation: {ports: ['80']}}, {operation: {ports: ['82']}}]}",
        &[(at(80), true), (at(82), true), (at(81), false)],
    );
    rule(
        "{from: [{source: {serviceAccounts: [bob]}}], to: [{operation: {ports: ['80']}}]}",
        &[
            (at(80), true),
            (at(81), false),
            (tcp(C, A, 80).mtls(), false),
        ],
    );
    let when = |key: &str, values: &str, expect: &[(Try, bool)]| {
        rule(
            &format!("{{when: [{{key: {key}, values: [{values}]}}]}}"),
            expect,
        );
        let reverse: Vec<_> = expect.iter().map(|(it, matches)| (*it, !matches)).collect();
        rule(
            &format!("{{when: [{{key: {key}, notValues: [{values}]}}]}}"),
            &reverse,
        );
    };
    let (c, y, plain) = (tcp(C, A, 80).mtls(), tcp(YB, A, 80).mtls(), tcp(B, A, 80));
    when(
        "source.ip",
        "10.0.0.2, 10.0.1.0/24",
        &[(at(80), true), (c, false), (y, true), (plain, true)],
    );
    when(
        "source.namespace",
        "x",
        &[(at(80), true), (c, true), (y, false), (plain, false)],
    );
    when(
        "source.principal",
        "'*/sa/bob'",
        &[(at(80), true), (c, false), (plain, false)],
    );
    when(
        "destination.port",
        "'80'",
        &[(at(80), true), (at(81), false)],
    );
    when(
        "destination.ip",
        "10.0.0.1",
        &[(at(80), true), (tcp(C, B, 80).mtls(), false)],
    );
    // Conditions are all asked for.
    rule(
        "{when: [{key: source.namespace, values: [x]}, {key: destination.port, notValues: ['80']}]}",
        &[
            (at(80), false),
            (at(81), true),
            (tcp(YB, A, 81).mtls(), false),
        ],
    );
}

#[test]
fn what_only_http_tells() {
    let parts = [
        "to: [{operation: {ports: ['80'], methods: [GET]}}]",
        "to: [{operation: {ports: ['80'], notPaths: [/a]}}]",
        "to: [{operation: {ports: ['80'], hosts: [h]}}]",
        "to: [{operation: {ports: ['80']}}], from: [{source: {requestPrincipals: ['*']}}]",
        "to: [{operation: {ports: ['80']}}], from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}]",
        "to: [{operation: {ports: ['80']}}], when: [{key: 'request.headers[x]', values: [y]}]",
    ];
    for part in parts {
        // ALLOW: never; what other rules allow stays.
        let it = with(&[&format!(
            "{{rules: [{{{part}}}, {{to: [{{operation: {{ports: ['90']}}}}]}}]}}"
        )]);
        check(&it, false, &[tcp(B, A, 80).mtls(), tcp(B, A, 81).mtls()]);
        check(&it, true, &[tcp(B, A, 90).mtls()]);
        let (of, caveat) = it.caveats().next().unwrap();
        assert_eq!(
            (of.to_string().as_str(), caveat.effect),
            ("AuthorizationPolicy x/p0", Effect::AllowsLess),
            "{part}"
        );
        assert!(caveat.field.starts_with("spec.rules[0]."), "{caveat}");
        // DENY: as if that were not asked for.
        for action in ["DENY", "CUSTOM"] {
            let it = with(&[&format!("{{action: {action}, rules: [{{{part}}}]}}")]);
            check(&it, false, &[tcp(B, A, 80).mtls()]);
            check(&it, true, &[tcp(B, A, 81).mtls()]);
            assert!(it.caveats().all(|(_, it)| it.effect == Effect::DeniesMore));
        }
    }
    let it = with(&["{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"]);
    check(&it, false, &[tcp(B, A, 80).mtls()]);
}

#[test]
fn what_others_enforce_has_no_effect_and_is_named() {
    let specs = [
        "{action: AUDIT, rules: [{}]}",
        "{targetRefs: [{kind: Gateway, name: w}], action: DENY, rules: [{}]}",
        "{targetRef: {kind: Gateway, name: w}, rules: [{to: [{operation: {paths: [/x], futureField: [y]}}]}]}",
        "{targetRefs: [{kind: Service, name: w}]}",
    ];
    for spec in specs {
        let it = with(&[spec]);
        check(&it, true, &[tcp(B, A, 80).mtls()]);
        let caveats: Vec<_> = it.caveats().map(|(_, it)| it.effect).collect();
        assert!(caveats.contains(&Effect::Nothing), "{spec}: {caveats:?}");
    }
    let mut it = enrolled();
    let dry = istio("AuthorizationPolicy", "x", "dry", "{}");
    tell(
        &mut it,
        &dry.replace(
            "name: dry",
            "name: dry, annotations: {istio.io/dry-run: 'true'}",
        ),
    );
    check(&it, true, &[tcp(B, A, 80).mtls()]);
    assert_eq!(it.caveats().count(), 1);
}

#[test]
fn what_is_not_understood_fails_closed() {
    let rules = [
        "{from: []}",
        "{from: [{}]}",
        "{from: [{source: {}}]}",
        "{from: [{source: {principals: ['']}}]}",
        "{from: [{source: {ipBlocks: [10.1/8]}}]}",
        "{from: [{source: {ipBlocks: ['::ffff:10.0.0.0/104']}}]}",
        "{from: [{source: {serviceAccounts: ['x/*']}}]}",
        "{from: [{source: {principal: [a]}}]}",
        "{from: {source: {}}}",
        "{to: [{operation: {ports: [80]}}]}",
        "{to: [{operation: {ports: ['0']}}]}",
        "{to: [{operation: {ports: ['80-90']}}]}",
        "{when: [{key: source.ip}]}",
        "{when: [{key: destination.port, values: [http]}]}",
        "{form: []}",
        "[]",
    ];
    for rule in rules {
        let it = with(&[&format!(
            "{{rules: [{rule}, {{to: [{{operation: {{ports: ['90']}}}}]}}]}}"
        )]);
        check(&it, false, &[tcp(B, A, 80).mtls()]);
        check(&it, true, &[tcp(B, A, 90).mtls()]);
        assert!(
            it.caveats()
                .any(|(_, it)| it.field.starts_with("spec.rules[0]")),
            "{rule}"
        );
        let it = with(&[&format!("{{action: DENY, rules: [{rule}]}}")]);
        check(&it, false, &[tcp(B, A, 80).mtls(), tcp(B, A, 90).mtls()]);
        let verdict = tcp(B, A, 80).mtls().at(&it, Direction::Ingress);
        assert_eq!(
            (verdict.reason, verdict.rule),
            (Reason::NotUnderstood, Some(0))
        );
    }
    for spec in [
        "{action: PERMIT, rules: [{}]}",
        "{rulez: [{}]}",
        "{rules: {}}",
        "[]",
        "{action: 7}",
    ] {
        let it = with(&["{rules: [{}]}", spec]);
        check(&it, false, &[tcp(B, A, 80).mtls()]);
        check(&it, true, &[tcp(B, YA, 80).mtls()]);
        assert!(
            it.caveats().any(|(_, it)| it.effect == Effect::DeniesAll),
            "{spec}"
        );
    }
    for selector in ["{matchLabls: {}}", "{matchExpressions: []}", "7"] {
        let it = with(&[&format!("{{selector: {selector}}}")]);
        check(&it, false, &[tcp(B, A, 80).mtls(), tcp(A, B, 80).mtls()]);
        assert!(
            it.caveats().any(|(_, it)| it.effect == Effect::SelectsAll),
            "{selector}"
        );
    }
}

#[test]
fn strict_asks_for_proof() {
    let mut it = enrolled();
    tell(
        &mut it,
        &istio(
            "PeerAuthentication",
            "x",
            "strict",
            "{mtls: {mode: STRICT}}",
        ),
    );
    check(
        &it,
        true,
        &[
            tcp(B, A, 80).mtls(),
            tcp(A, A, 80),
            tcp(B, A, 80).over(IpProtocol::Udp),
            tcp(B, YA, 80),
        ],
    );
    check(&it, false, &[tcp(B, A, 80), tcp(OUTSIDE, A, 80)]);
    let verdict = tcp(B, A, 80).at(&it, Direction::Ingress);
    assert_eq!(
        verdict.to_string(),
        "denied by PeerAuthentication: plaintext is not taken (PeerAuthentication x/strict)"
    );
    // Not enrolled, nothing is asked.
    tell(&mut it, &namespace("x", ""));
    check(&it, true, &[tcp(B, A, 80)]);
}

#[test]
fn modes_of_ports() {
    let modes = |specs: &[(&str, &str)]| {
        let mut it = enrolled();
        for (i, (namespace, spec)) in specs.iter().enumerate() {
            tell(
                &mut it,
                &istio("PeerAuthentication", namespace, &format!("p{i}"), spec),
            );
        }
        [80, 81, 82].map(|port| tcp(OUTSIDE, A, port).at(&it, Direction::Ingress).allow)
    };
    let app = "selector: {matchLabels: {app: a}}";
    let strict = ("x", "{mtls: {mode: STRICT}}");
    let of = |rest: &str| format!("{{{app}, {rest}}}");
    assert_eq!(modes(&[strict]), [false; 3]);
    assert_eq!(
        modes(&[(
            "x",
            &of(
                "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: DISABLE}}"
            )
        )]),
        [true, true, false]
    );
    assert_eq!(
        modes(&[(
            "x",
            &of("mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}")
        )]),
        [false, true, true]
    );
    assert_eq!(
        modes(&[("x", &of("portLevelMtls: {80: {mode: STRICT}}"))]),
        [false, true, true]
    );
    assert_eq!(
        modes(&[
            strict,
            (
                "x",
                &of("portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: UNSET}}")
            )
        ]),
        [true, false, false]
    );
    assert_eq!(
        modes(&[
            ("istio-system", "{mtls: {mode: STRICT}}"),
            ("x", &of("portLevelMtls: {82: {mode: PERMISSIVE}}"))
        ]),
        [false, false, true]
    );
    assert_eq!(
        modes(&[
            strict,
            (
                "x",
                &of("mtls: {mode: PERMISSIVE}, portLevelMtls: {81: {mode: STRICT}}")
            )
        ]),
        [true, false, true]
    );
    // Of two that select the pod only the older one counts, its ports too.
    let older = of("mtls: {mode: PERMISSIVE}");
    assert_eq!(
        modes(&[
            ("x", &older),
            ("x", &of("portLevelMtls: {80: {mode: STRICT}}"))
        ]),
        [true; 3]
    );
}

#[test]
fn probes_pass_and_nothing_else_of_the_node() {
    let mut it = with(&["{}"]);
    tell(
        &mut it,
        &istio(
            "PeerAuthentication",
            "x",
            "strict",
            "{mtls: {mode: STRICT}}",
        ),
    );
    tell(&mut it, &network_policy("x", "deny", "{podSelector: {}}"));
    let judge = |it: &Snapshot, port| {
        let node = tcp("192.168.0.1", A, port).by_node();
        node.at(it, Direction::Ingress)
    };
    assert!(judge(&it, 8090).allow);
    assert_eq!(judge(&it, 8080).layer, Layer::PeerAuthentication);
    // The node's address alone opens nothing.
    assert!(
        !tcp("192.168.0.1", A, 8090)
            .at(&it, Direction::Ingress)
            .allow
    );
    it.apply(Event::Delete(Reference::PeerAuthentication(Key::new(
        "x", "strict",
    ))));
    assert_eq!(judge(&it, 8080).layer, Layer::AuthorizationPolicy);
    it.apply(Event::Delete(Reference::AuthorizationPolicy(Key::new(
        "x", "p0",
    ))));
    assert!(judge(&it, 8080).allow);
}

#[test]
fn verdicts_say_who_and_why() {
    let text = |it: &Snapshot| tcp(B, A, 80).mtls().at(it, Direction::Ingress).to_string();
    let mut it = with(&["{rules: [{to: [{operation: {ports: ['81']}}]}]}"]);
    assert_eq!(
        text(&it),
        "denied by AuthorizationPolicy: default deny by 1 policy (AuthorizationPolicy x/p0)"
    );
    tell(
        &mut it,
        &istio("AuthorizationPolicy", "istio-system", "all", "{}"),
    );
    assert_eq!(
        text(&it),
        "denied by AuthorizationPolicy: default deny by 2 policies"
    );
    tell(
        &mut it,
        &istio(
            "AuthorizationPolicy",
            "x",
            "deny",
            "{action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}, {}]}",
        ),
    );
    assert_eq!(
        text(&it),
        "denied by AuthorizationPolicy: a rule denies it (AuthorizationPolicy x/deny, rule 1)"
    );
    tell(&mut it, &network_policy("x", "np", "{podSelector: {}}"));
    assert_eq!(
        text(&it),
        "denied by NetworkPolicy: default deny by 1 policy (NetworkPolicy x/np)"
    );
    let it = with(&["{rules: [{}]}"]);
    assert_eq!(
        text(&it),
        "allowed by AuthorizationPolicy: a rule allows it (AuthorizationPolicy x/p0, rule 0)"
    );
}
